// Google Benchmark of the pieces, in the first-level cache: hash, bucket operations, lookups.
#include <benchmark/benchmark.h>

#include "dunnock/filter/cuckoo_filter.hpp"

namespace {

using dunnock::CuckooFilter;
using dunnock::DramMedia;
using Filter = CuckooFilter<12, DramMedia, dunnock::FilterPolicy{.multi_writer = false}>;
using L = dunnock::Layout<12>;

void hash_of_an_integer(benchmark::State& state) {
  const dunnock::KeyHasher hash(dunnock::HashSeed::from(1));
  std::uint64_t key = 0;
  for (auto _ : state) benchmark::DoNotOptimize(hash(key++));
}
BENCHMARK(hash_of_an_integer);

void hash_of_a_string(benchmark::State& state) {
  const dunnock::KeyHasher hash(dunnock::HashSeed::from(1));
  std::string text(static_cast<std::size_t>(state.range(0)), 'x');
  for (auto _ : state) {
    ++text[0];
    benchmark::DoNotOptimize(hash(std::string_view(text)));
  }
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(hash_of_a_string)->Arg(8)->Arg(32)->Arg(256);

void match_in_a_bucket(benchmark::State& state) {
  std::uint64_t word = 0x0123456789abcdefULL, pattern = L::pattern(7);
  for (auto _ : state) {
    benchmark::DoNotOptimize(L::match_home(word, pattern));
    word += 0x1001;
  }
}
BENCHMARK(match_in_a_bucket);

void lookup_in_the_cache(benchmark::State& state) {
  auto filter = std::move(*Filter::create_volatile({4000, dunnock::HashSeed::from(1)}));
  const std::uint64_t items = filter.slots() * static_cast<std::uint64_t>(state.range(0)) / 100;
  for (std::uint64_t key = 0; key < items; ++key) filter.insert(key);
  std::uint64_t key = state.range(1) != 0 ? 0 : items;
  for (auto _ : state) {
    benchmark::DoNotOptimize(filter.contains(key));
    key = state.range(1) != 0 ? (key + 1) % items : key + 1;
  }
}
BENCHMARK(lookup_in_the_cache)->ArgNames({"load", "present"})->ArgsProduct({{50, 95}, {0, 1}});

}  // namespace

BENCHMARK_MAIN();
