// dunnock-bench filter and model: what the filter does, on what, against what.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#include <x86intrin.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <sstream>
#include <thread>

#include "commands.hpp"
#include "counting_media.hpp"
#include "dunnock/base/output_file.hpp"
#include "dunnock/filter/cuckoo_filter.hpp"
#include "dunnock/pmem/emulated_nvm.hpp"
#include "model.hpp"
#include "textbook_cuckoo_filter.hpp"

namespace dunnock::bench {
namespace {

using Json = nlohmann::json;
using Clock = std::chrono::steady_clock;

struct Options {
  std::uint64_t slots = 1ULL << 26;
  unsigned bits = 12;
  std::vector<unsigned> loads = {50, 75, 90, 95};
  std::vector<unsigned> threads = {1, 2};
  std::vector<std::string> media = {"dram", "direct", "nvm"};
  unsigned repeat = 3;
  std::uint64_t seed = 1;
  std::uint64_t nvm_slots = 1ULL << 22;
  NvmSpeed nvm;
  bool quick = false;
  std::string json, csv;
};

/// One row of the result: the same measurement of every repeat, to be reported by its median.
struct Row {
  std::string structure, media, op, mode;
  unsigned load = 0, threads = 1;
  std::vector<double> ns;  // per operation and thread-less: wall time / operations
  double bits_per_item = 0, fpr = -1;
  double flushes = -1, fences = -1, lines = -1;
  double p50 = -1, p99 = -1, p999 = -1;
};

double median(std::vector<double> values) {
  if (values.empty()) return NAN;
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

std::uint64_t mix(std::uint64_t x) {  // SplitMix64's finalizer
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

/// All rows, keyed so that repeats add up.
class Results {
 public:
  Row& row(const std::string& structure, const std::string& media, const std::string& op, const std::string& mode,
           unsigned load, unsigned threads) {
    const std::string key =
        structure + "|" + media + "|" + op + "|" + mode + "|" + std::to_string(load) + "|" + std::to_string(threads);
    const auto [found, added] = index_.try_emplace(key, rows_.size());
    if (added) rows_.push_back({structure, media, op, mode, load, threads, {}});
    return rows_[found->second];
  }
  [[nodiscard]] double ns(const std::string& structure, const std::string& media, const std::string& op,
                          const std::string& mode, unsigned load, unsigned threads = 1) const {
    const auto found = index_.find(structure + "|" + media + "|" + op + "|" + mode + "|" + std::to_string(load) + "|" +
                                   std::to_string(threads));
    return found == index_.end() ? NAN : median(rows_[found->second].ns);
  }
  [[nodiscard]] const std::vector<Row>& rows() const { return rows_; }

 private:
  std::vector<Row> rows_;
  std::map<std::string, std::size_t> index_;
};

/// Keys of a run: distinct, in random order, the same for every structure.
struct Keys {
  explicit Keys(std::uint64_t count, std::uint64_t seed) : in(count) {
    for (std::uint64_t i = 0; i < count; ++i) in[i] = mix(seed << 40 | i);
    for (std::uint64_t i = 0; i < absent.size(); ++i) absent[i] = mix(seed << 40 | 1ULL << 39 | i);
  }
  std::span<const std::uint64_t> present(std::uint64_t inserted, std::uint64_t salt) {
    for (std::uint64_t i = 0; i < some.size(); ++i) some[i] = in[multiply_high(mix(salt << 32 | i), inserted)];
    return some;
  }
  std::vector<std::uint64_t> in;
  std::vector<std::uint64_t> absent = std::vector<std::uint64_t>(4000000);
  std::vector<std::uint64_t> some = std::vector<std::uint64_t>(4000000);
  std::vector<std::uint8_t> verdicts = std::vector<std::uint8_t>(4000000);
};

template <class Work>
double ns_per_op(std::uint64_t operations, const Work& work) {
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double, std::nano>(Clock::now() - start).count() /
         static_cast<double>(std::max<std::uint64_t>(1, operations));
}

/// Splits [first, last) over threads and waits for them.
template <class Work>
void in_threads(unsigned threads, std::uint64_t first, std::uint64_t last, const Work& work) {
  if (threads == 1) return work(first, last);
  std::vector<std::thread> all;
  for (unsigned t = 0; t < threads; ++t) {
    all.emplace_back(
        [&, t] { work(first + (last - first) * t / threads, first + (last - first) * (t + 1) / threads); });
  }
  for (std::thread& thread : all) thread.join();
}

template <class F>
concept HasBulk = requires(F& filter, std::span<const std::uint64_t> keys, std::uint8_t* out) {
  filter.insert_bulk(keys);
  filter.contains_bulk(keys, out);
};
template <class F>
concept HasErase = requires(F& filter) {
  filter.erase(std::uint64_t{1});
};

/// A user's loop. Not inlined, so that what is measured does not depend on what stands around it.
template <class F>
[[gnu::noinline]] std::uint64_t count_found(const F& filter, std::span<const std::uint64_t> keys) {
  std::uint64_t hits = 0;
  for (const std::uint64_t key : keys) hits += filter.contains(key) ? 1 : 0;
  return hits;
}

/// Of the time-stamp counter.
double ns_per_tick() {
  static const double value = [] {
    const auto start = Clock::now();
    const std::uint64_t before = __rdtsc();
    while (Clock::now() - start < std::chrono::milliseconds(20)) {
    }
    return std::chrono::duration<double, std::nano>(Clock::now() - start).count() /
           static_cast<double>(__rdtsc() - before);
  }();
  return value;
}

/// Fills a structure in steps of load and measures on the way. `mode` is single or bulk.
template <class F>
void fill_and_measure(Results& results, const Options& options, Keys& keys, F& filter, std::uint64_t slots,
                      const std::string& structure, const std::string& media, const std::string& mode, unsigned threads,
                      bool tails) {
  const bool bulk = mode == "bulk";
  std::uint64_t at = 0;
  double whole_ns = 0;
  std::vector<unsigned> loads = options.loads;
  loads.push_back(94);  // "at 95 %" is the band from 94 to 95.
  std::sort(loads.begin(), loads.end());
  loads.erase(std::unique(loads.begin(), loads.end()), loads.end());
  for (const unsigned load : loads) {
    const std::uint64_t to = std::min<std::uint64_t>(slots * load / 100, keys.in.size());
    std::atomic<std::uint64_t> refused{0};
    const double ns = ns_per_op(to - at, [&] {
      in_threads(threads, at, to, [&](std::uint64_t first, std::uint64_t last) {
        std::uint64_t placed = 0;
        if constexpr (HasBulk<F>) {
          if (bulk) {
            placed = filter.insert_bulk(std::span<const std::uint64_t>(keys.in).subspan(first, last - first));
          }
        }
        if (!bulk) {
          const auto some = std::span<const std::uint64_t>(keys.in).subspan(first, last - first);
          for (const std::uint64_t key : some) placed += filter.insert(key) ? 1 : 0;
        }
        refused += last - first - placed;
      });
    });
    if (refused != 0)
      std::fprintf(stderr, "%s %s refused %llu keys before %u %%\n", structure.c_str(), media.c_str(),
                   static_cast<unsigned long long>(refused.load()), load);
    whole_ns += ns * static_cast<double>(to - at);
    at = to;
    Row& insert = results.row(structure, media, "insert", mode, load, threads);
    insert.ns.push_back(ns);
    insert.bits_per_item = 8.0 * static_cast<double>(filter.memory_bytes()) / static_cast<double>(at);
    if (load == loads.back())
      results.row(structure, media, "fill", mode, load, threads).ns.push_back(whole_ns / static_cast<double>(at));
    if (std::find(options.loads.begin(), options.loads.end(), load) == options.loads.end()) continue;

    const std::span<const std::uint64_t> present = keys.present(at, load);
    const auto look = [&](std::span<const std::uint64_t> wanted) {
      std::atomic<std::uint64_t> found{0};
      const double each = ns_per_op(wanted.size(), [&] {
        in_threads(threads, 0, wanted.size(), [&](std::uint64_t first, std::uint64_t last) {
          std::uint64_t hits = 0;
          if constexpr (HasBulk<F>) {
            if (bulk) hits = filter.contains_bulk(wanted.subspan(first, last - first), keys.verdicts.data() + first);
          }
          if (!bulk) {
            hits = count_found(filter, wanted.subspan(first, last - first));
          }
          found += hits;
        });
      });
      return std::pair(each, found.load());
    };
    const auto [negative_ns, false_positives] = look(keys.absent);
    Row& negative = results.row(structure, media, "negative", mode, load, threads);
    negative.ns.push_back(negative_ns);
    negative.fpr = static_cast<double>(false_positives) / static_cast<double>(keys.absent.size());
    insert.fpr = negative.fpr;
    const auto [positive_ns, hits] = look(present);
    results.row(structure, media, "positive", mode, load, threads).ns.push_back(positive_ns);
    if (hits != present.size()) std::fprintf(stderr, "%s %s LOST keys\n", structure.c_str(), media.c_str());

    if (tails && !bulk && threads == 1) {  // Passes of their own, for the clock costs as much as a lookup.
      const auto time_each = [&results, &structure, &media, &mode, load, threads](const char* op, std::size_t count,
                                                                                  const auto& run_one) {
        std::vector<std::uint64_t> ticks;
        for (std::size_t i = 0; i < count; ++i) {
          unsigned core;
          const std::uint64_t before = __rdtscp(&core);
          run_one(i);
          ticks.push_back(__rdtscp(&core) - before);
        }
        if (ticks.empty()) return;
        std::sort(ticks.begin(), ticks.end());
        Row& row = results.row(structure, media, op, mode, load, threads);
        row.p50 = ns_per_tick() * static_cast<double>(ticks[ticks.size() / 2]);
        row.p99 = ns_per_tick() * static_cast<double>(ticks[ticks.size() * 99 / 100]);
        row.p999 = ns_per_tick() * static_cast<double>(ticks[ticks.size() * 999 / 1000]);
      };
      [[maybe_unused]] volatile bool sink = false;
      constexpr std::size_t kTimed = 200000;
      time_each("negative", kTimed, [&](std::size_t i) { sink = filter.contains(keys.absent[i]); });
      time_each("positive", kTimed, [&](std::size_t i) { sink = filter.contains(present[i]); });
      if constexpr (HasErase<F>) {  // The load stays: what is erased is inserted again.
        const std::size_t some = std::min<std::size_t>(kTimed, at);
        time_each("erase", some, [&](std::size_t i) { sink = filter.erase(keys.in[i]); });
        time_each("insert", some, [&](std::size_t i) { sink = filter.insert(keys.in[i]); });
      }
    }
    if constexpr (HasErase<F>) {
      if (!bulk && load == options.loads.back()) {
        const std::uint64_t some = std::min<std::uint64_t>(at / 20, 2000000);
        std::uint64_t mixed_found = 0;
        results.row(structure, media, "mixed", mode, load, threads).ns.push_back(ns_per_op(some * 2, [&] {
          in_threads(threads, 0, some / 2, [&](std::uint64_t first, std::uint64_t last) {  // erase, insert, 2 lookups
            std::uint64_t seen = 0;
            for (std::uint64_t i = first; i < last; ++i) {
              filter.erase(keys.in[i]);
              filter.insert(keys.in[i]);
              seen += (filter.contains(keys.in[at - 1 - i]) ? 1U : 0U) + (filter.contains(keys.absent[i]) ? 1U : 0U);
            }
            mixed_found += threads == 1 ? seen : 0;
          });
        }));
        results.row(structure, media, "erase", mode, load, threads).ns.push_back(ns_per_op(some, [&] {
          in_threads(threads, at - some, at, [&](std::uint64_t first, std::uint64_t last) {
            for (std::uint64_t i = first; i < last; ++i) filter.erase(keys.in[i]);
          });
        }));
      }
    }
  }
}

/// Flushes, fences and lines per operation, on a smaller table: they do not depend on its size.
template <class F>
void count_operations(Results& results, const Options& options, Keys& keys, F& filter, std::uint64_t slots,
                      const std::string& structure, const std::string& media) {
  Counter& counter = Counter::here();
  std::uint64_t at = 0;
  Counts whole{};
  const auto put = [](Row& row, const Counts& before, const Counts& after, std::uint64_t operations) {
    const auto per = [operations](std::uint64_t a, std::uint64_t b) {
      return static_cast<double>(b - a) / static_cast<double>(operations);
    };
    row.flushes = per(before.flushes, after.flushes);
    row.fences = per(before.fences, after.fences);
    row.lines = per(before.lines, after.lines);
  };
  std::vector<unsigned> loads = options.loads;
  loads.push_back(94);
  std::sort(loads.begin(), loads.end());
  loads.erase(std::unique(loads.begin(), loads.end()), loads.end());
  const Counts start = counter.counts;
  for (const unsigned load : loads) {
    const std::uint64_t to = slots * load / 100;
    Counts before = counter.counts;
    const std::uint64_t first = at;
    for (; at < to; ++at) {
      counter.begin_operation();
      filter.insert(keys.in[at]);
    }
    put(results.row(structure, media, "insert", "single", load, 1), before, counter.counts, to - first);
    if (load == loads.back()) put(results.row(structure, media, "fill", "single", load, 1), start, counter.counts, at);
    if (std::find(options.loads.begin(), options.loads.end(), load) == options.loads.end()) continue;
    constexpr std::uint64_t kLookups = 200000;
    before = counter.counts;
    for (std::uint64_t i = 0; i < kLookups; ++i) {
      counter.begin_operation();
      (void)filter.contains(keys.absent[i]);
    }
    put(results.row(structure, media, "negative", "single", load, 1), before, counter.counts, kLookups);
    const auto present = keys.present(at, load);
    before = counter.counts;
    for (std::uint64_t i = 0; i < kLookups; ++i) {
      counter.begin_operation();
      (void)filter.contains(present[i]);
    }
    put(results.row(structure, media, "positive", "single", load, 1), before, counter.counts, kLookups);
  }
  (void)whole;
}

template <unsigned kBits>
constexpr FilterPolicy kSingleWriter{.multi_writer = false};

template <unsigned kBits, class M, FilterPolicy kPolicy>
CuckooFilter<kBits, M, kPolicy> make(const Options& options, std::uint64_t slots, std::uint64_t round, M media,
                                     std::vector<VolatileRegion>& memory) {
  using F = CuckooFilter<kBits, M, kPolicy>;
  memory.push_back(std::move(*VolatileRegion::create(F::meta_bytes())));
  memory.push_back(std::move(*VolatileRegion::create(F::table_bytes(slots))));
  return std::move(*F::format(memory[memory.size() - 2].region(), memory[memory.size() - 1].region(),
                              {slots, HashSeed::from(options.seed + round)}, media));
}

struct Floors {
  double load, load_dependent, load_ahead, store, persist, persist_grouped;
};

/// What the machine itself takes, on memory of the table's size.
Floors measure_floors(std::uint64_t bytes) {
  auto memory = std::move(*VolatileRegion::create(bytes));
  Word* words = reinterpret_cast<Word*>(memory.region().at(0));
  const std::uint64_t lines = bytes / kLineBytes;
  constexpr std::uint64_t kLoads = 10000000, kPersists = 1000000;
  std::uint64_t sum = 0;
  const auto at = [&](std::uint64_t i) -> Word& { return words[multiply_high(mix(i), lines) * 8]; };
  Floors floors{};
  floors.load = ns_per_op(kLoads, [&] {
    for (std::uint64_t i = 0; i < kLoads; ++i) sum += at(i).load(std::memory_order_relaxed);
  });
  floors.load_dependent = ns_per_op(kLoads / 10, [&] {
    for (std::uint64_t i = 0; i < kLoads / 10; ++i) sum += at(i + (sum & 1)).load(std::memory_order_relaxed);
  });
  floors.load_ahead = ns_per_op(kLoads, [&] {
    for (std::uint64_t i = 0; i < kLoads; ++i) {
      __builtin_prefetch(&at(i + 16));
      sum += at(i).load(std::memory_order_relaxed);
    }
  });
  floors.store = ns_per_op(kLoads, [&] {
    for (std::uint64_t i = 0; i < kLoads; ++i) at(i).store(i, std::memory_order_relaxed);
  });
  floors.persist = ns_per_op(kPersists, [&] {
    for (std::uint64_t i = 0; i < kPersists; ++i) {
      Word& word = at(i);
      word.store(i + sum % 2, std::memory_order_relaxed);
      detail::flush_line(&word);
      detail::store_fence();
    }
  });
  floors.persist_grouped = ns_per_op(kPersists, [&] {
    for (std::uint64_t i = 0; i < kPersists; ++i) {
      Word& word = at(i);
      word.store(i, std::memory_order_relaxed);
      detail::flush_line(&word);
      if (i % 16 == 15) detail::store_fence();
    }
  });
  return floors;
}

template <unsigned kBits>
void run(const Options& options, Results& results, std::vector<Floors>& floors, double& highest_load,
         double& reopen_ms) {
  const std::uint64_t slots = options.slots;
  Keys keys(slots + slots / 50, options.seed);
  const auto wants = [&](const char* media) {
    return std::find(options.media.begin(), options.media.end(), media) != options.media.end();
  };
  const std::string ours = "dunnock-" + std::to_string(kBits);
  for (unsigned round = 0; round < options.repeat; ++round) {
    std::fprintf(stderr, "round %u of %u\n", round + 1, options.repeat);
    floors.push_back(measure_floors(CuckooFilter<kBits, DramMedia>::table_bytes(slots)));
    const auto on = [&]<class M, FilterPolicy kPolicy>(M media, const std::string& name, const std::string& media_name,
                                                       const std::string& mode, unsigned threads,
                                                       std::uint64_t table_slots) {
      std::vector<VolatileRegion> memory;
      auto filter = make<kBits, M, kPolicy>(options, table_slots, round, media, memory);
      fill_and_measure(results, options, keys, filter, filter.slots(), name, media_name, mode, threads, round == 0);
    };
    const auto textbook = [&]<unsigned kTextbookBits>(const std::string& name, const std::string& mode) {
      TextbookCuckooFilter<kTextbookBits> filter(slots, HashSeed::from(options.seed + round));
      fill_and_measure(results, options, keys, filter, filter.slots(), name, "dram", mode, 1, round == 0);
    };
    if (wants("dram")) {
      for (const std::string mode : {"single", "bulk"}) {
        on.template operator()<DramMedia, kSingleWriter<kBits>>({}, ours, "dram", mode, 1, slots);
        textbook.template operator()<12>("textbook-4x12", mode);
        textbook.template operator()<16>("textbook-4x16", mode);
      }
      on.template operator()<DramMedia, FilterPolicy{}>({}, ours + "-parallel", "dram", "bulk", 1, slots);
      for (const unsigned threads : options.threads) {
        on.template operator()<DramMedia, FilterPolicy{}>({}, ours + "-parallel", "dram", "single", threads, slots);
        if (threads > 1)
          on.template operator()<DramMedia, FilterPolicy{}>({}, ours + "-parallel", "dram", "bulk", threads, slots);
      }
      BlockedBloomFilter bloom(slots * 13, HashSeed::from(options.seed + round));
      fill_and_measure(results, options, keys, bloom, slots, "blocked-bloom", "dram", "single", 1, round == 0);
      if (!options.quick && round == 0) {
        on.template operator()<DramMedia, FilterPolicy{.multi_writer = false, .spill = false}>(
            {}, ours + " no spill", "dram", "single", 1, slots);
        on.template operator()<DramMedia, FilterPolicy{.multi_writer = false, .lookahead = false}>(
            {}, ours + " no lookahead", "dram", "single", 1, slots);
        on.template operator()<DramMedia, FilterPolicy{.multi_writer = false, .primacy = false}>(
            {}, ours + " no primacy", "dram", "single", 1, slots);
        on.template operator()<DramMedia, FilterPolicy{.multi_writer = false, .group_words = 4}>(
            {}, ours + " half-line groups", "dram", "single", 1, slots);
      }
    }
    if (wants("direct")) {
      for (const unsigned threads : options.threads) {
        on.template operator()<DirectMedia, FilterPolicy{}>({}, ours, "direct (dram)", "single", threads, slots);
        on.template operator()<DirectMedia, FilterPolicy{}>({}, ours, "direct (dram)", "bulk", threads, slots);
      }
      DurableTextbookFilter<DirectMedia> durable(slots, HashSeed::from(options.seed + round), {});
      fill_and_measure(results, options, keys, durable, durable.slots(), "textbook-durable", "direct (dram)", "single",
                       1, round == 0);
    }
    if (wants("nvm")) {
      for (const unsigned threads : options.threads) {
        NvmModel model(options.nvm);
        on.template operator()<EmulatedNvm, FilterPolicy{}>(EmulatedNvm(model), ours, "nvm (emulated)", "single",
                                                            threads, options.nvm_slots);
        DurableTextbookFilter<EmulatedNvm> durable(options.nvm_slots, HashSeed::from(options.seed + round),
                                                   EmulatedNvm(model));
        fill_and_measure(results, options, keys, durable, durable.slots(), "textbook-durable", "nvm (emulated)",
                         "single", threads, false);
      }
    }
    if (wants("file") || wants("process")) {
      for (const bool file : {false, true}) {
        if (!wants(file ? "file" : "process")) continue;
        const std::string path = "dunnock-bench-" + std::to_string(getpid()) + ".pool";
        std::remove(path.c_str());
        const std::uint64_t sizes[] = {CuckooFilter<kBits, FileMedia>::table_bytes(slots), 8192};
        auto pool = Pool::create(path, {Pool::bytes_for(sizes)});
        if (!pool) {
          std::fprintf(stderr, "%s\n", pool.error().message.c_str());
          continue;
        }
        // A millisecond a fence: only bulk calls make sense on a file.
        if (file) {
          auto filter = CuckooFilter<kBits, FileMedia>::create(*pool, "f", {slots, HashSeed::from(options.seed)},
                                                               pool->file_media());
          const std::uint64_t some = 20000;
          results.row(ours, "file", "insert", "bulk", 0, 1).ns.push_back(ns_per_op(some, [&] {
            filter->insert_bulk(std::span<const std::uint64_t>(keys.in).subspan(0, some));
          }));
          results.row(ours, "file", "insert", "single", 0, 1).ns.push_back(ns_per_op(300, [&] {
            for (std::uint64_t i = 0; i < 300; ++i) filter->insert(keys.in[some + i]);
          }));
        } else {
          auto filter =
              CuckooFilter<kBits, ProcessMedia>::create(*pool, "f", {slots, HashSeed::from(options.seed)}, {});
          for (const std::string mode : {"single", "bulk"}) {
            filter->clear();
            fill_and_measure(results, options, keys, *filter, filter->slots(), ours, "process", mode, 1, false);
          }
        }
        std::remove(path.c_str());
      }
    }
    if (round == 0) {
      const std::uint64_t small = std::min<std::uint64_t>(slots, 1 << 20);
      Keys few(small + small / 50, options.seed);
      std::vector<VolatileRegion> memory;
      auto counted =
          make<kBits, CountingMedia<DirectMedia>, FilterPolicy{.multi_writer = false}>(options, small, 0, {}, memory);
      count_operations(results, options, few, counted, counted.slots(), ours, "direct (dram)");
      DurableTextbookFilter<CountingMedia<DirectMedia>> textbook_counted(small, HashSeed::from(options.seed), {});
      count_operations(results, options, few, textbook_counted, textbook_counted.slots(), "textbook-durable",
                       "direct (dram)");
      // How far it goes.
      auto full = make<kBits, DramMedia, kSingleWriter<kBits>>(options, slots, 0, {}, memory);
      std::uint64_t placed =
          full.insert_bulk(std::span<const std::uint64_t>(keys.in).subspan(0, full.slots() * 95 / 100));
      while (placed < keys.in.size() && full.insert(keys.in[placed])) ++placed;
      highest_load = static_cast<double>(placed) / static_cast<double>(full.slots());
    }
  }
  // Reopening after a crash: a pool file of 1 GiB, let go without close().
  if (!options.quick) {
    const std::string path = "dunnock-bench-reopen-" + std::to_string(getpid()) + ".pool";
    std::remove(path.c_str());
    const std::uint64_t gib_slots = (1ULL << 30) / 8 * CuckooFilter<kBits, ProcessMedia>::kLanes;
    const std::uint64_t sizes[] = {1ULL << 30, 8192};
    if (pid_t child = fork(); child == 0) {
      auto pool = Pool::create(path, {Pool::bytes_for(sizes)});
      if (!pool) _exit(1);
      auto filter = CuckooFilter<kBits, ProcessMedia>::create(*pool, "f", {gib_slots, HashSeed::from(1)}, {});
      if (!filter) _exit(1);
      filter->insert_bulk(std::span<const std::uint64_t>(keys.in).subspan(0, keys.in.size() / 4));
      raise(SIGKILL);
    } else {
      int status = 0;
      waitpid(child, &status, 0);
      const auto start = Clock::now();
      auto pool = Pool::open(path);
      if (pool) {
        auto opened = CuckooFilter<kBits, ProcessMedia>::open(*pool, "f", {});
        if (opened && opened->filter.contains(keys.in[0]))
          reopen_ms = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
      }
    }
    std::remove(path.c_str());
  }
}

Json json_of(const Row& row) {
  const double ns = median(row.ns);
  Json out = {{"name", row.structure + "/" + row.media + "/" + row.op + "/" + row.mode +
                           "/load:" + std::to_string(row.load) + "/threads:" + std::to_string(row.threads)},
              {"run_name", row.structure + "/" + row.op},
              {"run_type", "iteration"},
              {"repetitions", row.ns.size()},
              {"repetition_index", 0},
              {"threads", row.threads},
              {"iterations", 1},
              {"real_time", ns},
              {"cpu_time", ns},
              {"time_unit", "ns"},
              {"structure", row.structure},
              {"media", row.media},
              {"op", row.op},
              {"mode", row.mode},
              {"load", row.load},
              {"mops", 1000.0 / ns}};
  const auto add = [&out](const char* name, double value) { out[name] = value < 0 ? Json() : Json(value); };
  add("flushes_per_op", row.flushes);
  add("fences_per_op", row.fences);
  add("lines_per_op", row.lines);
  add("bits_per_item", row.bits_per_item > 0 ? row.bits_per_item : -1);
  add("fpr", row.fpr);
  add("p50_ns", row.p50);
  add("p99_ns", row.p99);
  add("p999_ns", row.p999);
  return out;
}

int filter_command(const Options& options) {
  Results results;
  std::vector<Floors> floors;
  double highest = NAN, reopen_ms = NAN;
  switch (options.bits) {
    case 8: run<8>(options, results, floors, highest, reopen_ms); break;
    case 16: run<16>(options, results, floors, highest, reopen_ms); break;
    default: run<12>(options, results, floors, highest, reopen_ms);
  }
  const auto floor_of = [&](double Floors::*member) {
    std::vector<double> values;
    for (const Floors& one : floors) values.push_back(one.*member);
    return median(values);
  };

  std::printf("%-28s %-15s %-9s %-6s %4s %3s %9s %8s %7s %7s %7s %7s %9s %7s\n", "structure", "media", "op", "mode",
              "load", "thr", "ns/op", "Mops/s", "flush", "fence", "lines", "bits", "fpr %", "p99 ns");
  for (const Row& row : results.rows()) {
    const double ns = median(row.ns);
    const auto cell = [](double value, int digits) {
      char text[32];
      std::snprintf(text, sizeof text, "%.*f", digits, value);
      return value < 0 || std::isnan(value) ? std::string("-") : std::string(text);
    };
    std::printf("%-28s %-15s %-9s %-6s %4u %3u %9.1f %8.2f %7s %7s %7s %7s %9s %7s\n", row.structure.c_str(),
                row.media.c_str(), row.op.c_str(), row.mode.c_str(), row.load, row.threads, ns, 1000 / ns,
                cell(row.flushes, 3).c_str(), cell(row.fences, 3).c_str(), cell(row.lines, 3).c_str(),
                cell(row.bits_per_item > 0 ? row.bits_per_item : -1, 2).c_str(),
                cell(row.fpr < 0 ? -1 : row.fpr * 100, 4).c_str(), cell(row.p99, 0).c_str());
  }
  std::printf(
      "\nFloors of this machine on memory of the table's size (ns): random load %.1f, prefetched %.1f, dependent %.1f, "
      "store %.1f, persisted store %.1f, persisted with one fence for 16 %.1f\n",
      floor_of(&Floors::load), floor_of(&Floors::load_ahead), floor_of(&Floors::load_dependent),
      floor_of(&Floors::store), floor_of(&Floors::persist), floor_of(&Floors::persist_grouped));
  const unsigned top = options.loads.back();
  const std::string ours = "dunnock-" + std::to_string(options.bits);
  const std::string direct = "direct (dram)", nvm = "nvm (emulated)";
  Json summary;
  const auto line = [&](const char* what, double value, const char* target, const char* unit) {
    std::printf("  %-86s %9.2f %-3s (target %s)\n", what, value, unit, target);
    summary[what] = std::isnan(value) ? Json() : Json(value);
  };
  std::printf("\nAgainst the targets (medians of %u rounds, %llu slots):\n", options.repeat,
              static_cast<unsigned long long>(options.slots));
  double bits = NAN, fpr = NAN, fill_flushes = NAN;
  for (const Row& row : results.rows()) {
    if (row.structure == ours && row.media == "dram" && row.op == "insert" && row.mode == "single" && row.load == top)
      bits = row.bits_per_item;
    if (row.structure == ours && row.media == "dram" && row.op == "negative" && row.mode == "single" && row.load == top)
      fpr = 100 * row.fpr;
    if (row.structure == ours && row.media == direct && row.op == "fill" && row.flushes >= 0)
      fill_flushes = row.flushes;
  }
  const auto ratio = [&](const std::string& s, const std::string& m, const std::string& op, const std::string& mode,
                         const std::string& s2, const std::string& m2, const std::string& op2, const std::string& mode2,
                         unsigned load, unsigned threads = 1) {
    return results.ns(s2, m2, op2, mode2, load, threads) / results.ns(s, m, op, mode, load, threads);
  };
  line("bits per item at the top load", bits, "<= 13.5", "");
  line("false positives at the top load", fpr, "<= 0.25", "%");
  line("highest load before a refusal", 100 * highest, ">= 97", "%");
  line("DRAM fill, single insert, times textbook 4x12",
       ratio(ours, "dram", "fill", "single", "textbook-4x12", "dram", "fill", "single", top), ">= 2.5", "x");
  line("DRAM fill, bulk insert, times textbook 4x12 (single)",
       ratio(ours, "dram", "fill", "bulk", "textbook-4x12", "dram", "fill", "single", top), ">= 5", "x");
  line("DRAM insert in the last 1 % before the top load, times textbook",
       ratio(ours, "dram", "insert", "single", "textbook-4x12", "dram", "insert", "single", top), ">= 5", "x");
  line("DRAM negative lookup at the top load, single, times textbook",
       ratio(ours, "dram", "negative", "single", "textbook-4x12", "dram", "negative", "single", top), ">= 1.2", "x");
  line("DRAM positive lookup at the top load, single, times textbook",
       ratio(ours, "dram", "positive", "single", "textbook-4x12", "dram", "positive", "single", top), ">= 1.0", "x");
  line("DRAM negative lookup, bulk, times textbook (single)",
       ratio(ours, "dram", "negative", "bulk", "textbook-4x12", "dram", "negative", "single", top), ">= 2", "x");
  line("DRAM positive lookup, bulk, times textbook (single)",
       ratio(ours, "dram", "positive", "bulk", "textbook-4x12", "dram", "positive", "single", top), ">= 2", "x");
  line("durable plain insert (to 50 %), times the floor",
       results.ns(ours, direct, "insert", "single", options.loads.front()) / floor_of(&Floors::persist), "<= 1.25",
       "x");
  line("durable bulk insert (to 50 %), times durable single",
       ratio(ours, direct, "insert", "bulk", ours, direct, "insert", "single", options.loads.front()), ">= 4", "x");
  line("durable bulk fill, times durable single fill",
       ratio(ours, direct, "fill", "bulk", ours, direct, "fill", "single", top), ">= 4", "x");
  line("durable fill, flushed lines per insert, log and marks included", fill_flushes, "<= 1.4", "");
  line("emulated NVM, parallel insert in the last 1 %, times durable textbook",
       ratio(ours, nvm, "insert", "single", "textbook-durable", nvm, "insert", "single", top, options.threads.back()),
       ">= 5", "x");
  line("reopen and recover 1 GiB after a kill", reopen_ms, "<= 50", "ms");

  Json out;
  out["context"] = {{"executable", "dunnock-bench"},
                    {"num_cpus", std::thread::hardware_concurrency()},
                    {"library_build_type", "release"},
                    {"slots", options.slots},
                    {"fingerprint_bits", options.bits},
                    {"repeat", options.repeat},
                    {"seed", options.seed},
                    {"floors_ns",
                     {{"load", floor_of(&Floors::load)},
                      {"load_prefetched", floor_of(&Floors::load_ahead)},
                      {"load_dependent", floor_of(&Floors::load_dependent)},
                      {"store", floor_of(&Floors::store)},
                      {"persist", floor_of(&Floors::persist)},
                      {"persist_16_a_fence", floor_of(&Floors::persist_grouped)}}},
                    {"targets", summary}};
  for (const Row& row : results.rows()) out["benchmarks"].push_back(json_of(row));
  if (!options.json.empty()) {
    if (Status written = write_output_file(options.json, out.dump(2) + "\n"); !written) {
      std::fprintf(stderr, "%s\n", written.error().message.c_str());
      return 3;
    }
  }
  if (!options.csv.empty()) {
    std::ostringstream file;
    file << "structure,media,op,mode,load,threads,ns,mops,flushes_per_op,fences_per_op,lines_per_op,bits_per_item,fpr,"
            "p50_ns,p99_ns,p999_ns\n";
    for (const Row& row : results.rows()) {
      file << row.structure << ',' << row.media << ',' << row.op << ',' << row.mode << ',' << row.load << ','
           << row.threads << ',' << median(row.ns) << ',' << 1000 / median(row.ns);
      for (const double value : {row.flushes, row.fences, row.lines, row.bits_per_item > 0 ? row.bits_per_item : -1,
                                 row.fpr, row.p50, row.p99, row.p999}) {
        file << ',';
        if (value >= 0) file << value;
      }
      file << '\n';
    }
    if (Status written = write_output_file(options.csv, file.str()); !written) {
      std::fprintf(stderr, "%s\n", written.error().message.c_str());
      return 3;
    }
  }
  return 0;
}

/// Model and measurement side by side, on a small table.
int model_command(const Options& options) {
  const std::uint64_t slots = std::min<std::uint64_t>(options.slots, 1 << 20);
  Keys keys(slots, options.seed);
  std::vector<VolatileRegion> memory;
  auto filter =
      make<12, CountingMedia<DirectMedia>, FilterPolicy{.multi_writer = false}>(options, slots, 0, {}, memory);
  Results results;
  Options all = options;
  all.loads = {30, 50, 60, 70, 80, 85, 90, 93, 95};
  count_operations(results, all, keys, filter, filter.slots(), "dunnock-12", "model");
  DurableTextbookFilter<CountingMedia<DirectMedia>> textbook(slots, HashSeed::from(options.seed), {});
  count_operations(results, all, keys, textbook, textbook.slots(), "textbook", "model");
  std::printf("lines touched per operation: model / measured\n%5s  %21s %21s %21s   %21s %21s\n", "load",
              "ours: insert", "negative", "positive", "textbook: insert", "negative");
  const auto lines = [&](const char* structure, const char* op, unsigned load) {
    for (const Row& row : results.rows()) {
      if (row.structure == structure && row.op == op && row.load == load) return row.lines;
    }
    return static_cast<double>(NAN);
  };
  unsigned before = 0;
  for (const unsigned load : all.loads) {
    const ModelPoint at = model_at(load / 100.0), from = model_at(before / 100.0);
    std::printf("%4u%%  %10.3f /%9.3f %10.3f /%9.3f %10.3f /%9.3f   %10.3f /%9.3f %10.3f /%9.3f\n", load,
                (at.insert_lines + from.insert_lines) / 2, lines("dunnock-12", "insert", load), at.negative_lines,
                lines("dunnock-12", "negative", load), at.positive_lines, lines("dunnock-12", "positive", load),
                (at.textbook_insert_lines + from.textbook_insert_lines) / 2, lines("textbook", "insert", load), 2.0,
                lines("textbook", "negative", load));
    before = load;
  }
  return 0;
}

}  // namespace

void add_filter_commands(CLI::App& app, Run& run) {
  static Options options;
  CLI::App* filter = app.add_subcommand("filter", "throughput, flushes, fences, lines, space, false positives");
  CLI::App* model = app.add_subcommand("model", "the probabilistic model beside the measurement");
  for (CLI::App* command : {filter, model}) {
    command->add_option("--slots", options.slots, "fingerprints to have room for")
        ->check(CLI::Range(std::uint64_t{1000}, std::uint64_t{1} << 36))
        ->capture_default_str();
    command->add_option("--seed", options.seed)->capture_default_str();
  }
  filter->add_option("--fingerprint-bits", options.bits, "8, 12 or 16")
      ->check(CLI::IsMember({8, 12, 16}))
      ->capture_default_str();
  filter->add_option("--loads", options.loads, "percent, ascending")
      ->delimiter(',')
      ->check(CLI::Range(1, 96))
      ->capture_default_str();
  filter->add_option("--threads", options.threads)->delimiter(',')->check(CLI::Range(1, 256))->capture_default_str();
  filter->add_option("--media", options.media, "dram, direct, nvm, process, file")
      ->delimiter(',')
      ->check(CLI::IsMember({"dram", "direct", "nvm", "process", "file"}))
      ->capture_default_str();
  filter->add_option("--repeat", options.repeat, "rounds; medians are reported")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  filter->add_option("--nvm-slots", options.nvm_slots, "table for the emulated NVM, which is slow")
      ->check(CLI::Range(std::uint64_t{1000}, std::uint64_t{1} << 36))
      ->capture_default_str();
  filter->add_option("--nvm-read-ns", options.nvm.read_ns, "added latency of a 256-byte block")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  filter->add_option("--nvm-write-gbps", options.nvm.write_gb_per_s, "bandwidth of written blocks")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  filter->add_flag("--quick", options.quick, "leave out ablations and the 1-GiB reopen");
  filter->add_option("--json", options.json, "Google-Benchmark-compatible file");
  filter->add_option("--csv", options.csv, "file");
  filter->callback([&run] {
    run = [] {
      std::sort(options.loads.begin(), options.loads.end());
      return filter_command(options);
    };
  });
  model->callback([&run] { run = [] { return model_command(options); }; });
}

}  // namespace dunnock::bench
