#include "filter/floors.hpp"

#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

#include "dunnock/filter/layout.hpp"
#include "dunnock/pmem/media.hpp"
#include "dunnock/pmem/volatile_region.hpp"
#include "mix.hpp"
#include "timing.hpp"

namespace dunnock::bench {
namespace {

constexpr std::uint64_t kLoads = 10'000'000, kPersists = 1'000'000;

/// Nanoseconds of work(i), for i in [0, count).
template <class Work>
double ns_each(std::uint64_t count, const Work& work) {
  return ns_of([&] {
           for (std::uint64_t i = 0; i < count; ++i) work(i);
         }) /
         static_cast<double>(count);
}

}  // namespace

void Floors::measure(std::uint64_t bytes) {
  auto memory = std::move(*VolatileRegion::create(bytes));
  Word* const words = reinterpret_cast<Word*>(memory.region().at(0));
  const std::uint64_t lines = bytes / kLineBytes;
  const auto at = [words, lines](std::uint64_t i) -> Word& { return words[multiply_high(mix(i), lines) * 8]; };
  std::uint64_t sum = 0;
  load.push_back(ns_each(kLoads, [&](std::uint64_t i) { sum += at(i).load(std::memory_order_relaxed); }));
  load_dependent.push_back(
      ns_each(kLoads / 10, [&](std::uint64_t i) { sum += at(i + (sum & 1)).load(std::memory_order_relaxed); }));
  load_prefetched.push_back(ns_each(kLoads, [&](std::uint64_t i) {
    __builtin_prefetch(&at(i + 16));
    sum += at(i).load(std::memory_order_relaxed);
  }));
  store.push_back(ns_each(kLoads, [&](std::uint64_t i) { at(i).store(i, std::memory_order_relaxed); }));
  persist.push_back(ns_each(kPersists, [&](std::uint64_t i) {
    Word& word = at(i);
    word.store(i + sum % 2, std::memory_order_relaxed);  // The loads above are for something.
    detail::flush_line(&word);
    detail::store_fence();
  }));
  persist_grouped.push_back(ns_each(kPersists, [&](std::uint64_t i) {
    Word& word = at(i);
    word.store(i, std::memory_order_relaxed);
    detail::flush_line(&word);
    if (i % 16 == 15) detail::store_fence();
  }));
}

void Floors::print() const {
  std::printf(
      "\nFloors of this machine on memory of the table's size (ns): random load %.1f, prefetched %.1f, dependent %.1f, "
      "store %.1f, persisted store %.1f, persisted with one fence for 16 %.1f\n",
      median_of(load), median_of(load_prefetched), median_of(load_dependent), median_of(store), median_of(persist),
      median_of(persist_grouped));
}

nlohmann::json Floors::json() const {
  return {{"load", median_of(load)},
          {"load_prefetched", median_of(load_prefetched)},
          {"load_dependent", median_of(load_dependent)},
          {"store", median_of(store)},
          {"persist", median_of(persist)},
          {"persist_16_a_fence", median_of(persist_grouped)}};
}

}  // namespace dunnock::bench
