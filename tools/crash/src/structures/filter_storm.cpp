// The filter in a real process on a real pool file: killed, and damaged.
#include <algorithm>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "damage.hpp"
#include "dunnock/filter/cuckoo_filter.hpp"
#include "storm.hpp"

namespace dunnock::crash {
namespace {

using What = JournalLine::What;

constexpr std::uint64_t kSlots = 20000;
constexpr std::size_t kTargetItems = kSlots * 97 / 100;  // High enough that kicks are common.

template <class M>
class FilterStorm final : public StormSystem {
 public:
  FilterStorm(unsigned threads, std::uint64_t seed)
      : threads_(threads), seed_(seed), sure_(threads), next_key_(threads) {}

  /// Nearly full from the start, so that every storm has kicks.
  std::string create(Pool& pool) override {
    auto filter = CuckooFilter<12, M>::create(pool, "filter", {kSlots, HashSeed::from(seed_)}, media_of<M>(pool));
    if (!filter) return filter.error().message;
    for (unsigned t = 0; t < threads_; ++t) {
      std::vector<std::uint64_t> keys(kTargetItems / threads_);
      next_key_[t] = static_cast<std::uint64_t>(t + 1) << 48;
      for (std::uint64_t& key : keys) key = next_key_[t]++;
      if (filter->insert_bulk(keys) != keys.size()) return "the filter can't be filled";
      sure_[t] = std::move(keys);
    }
    return {};
  }
  [[nodiscard]] std::uint64_t pool_bytes() const override { return 32 << 20; }
  [[nodiscard]] std::vector<Point> seldom() const override {
    using namespace filter_point;
    return {kSpillMark, kSpill,    kOverflowMark, kOverflow,  kEraseMarks, kLogFields,
            kLogArm,    kKickCopy, kKickRemove,   kKickFence, kLogRetire};
  }
  [[nodiscard]] unsigned recovery_steps() const override { return 16; }

  void live(Pool& pool, Fuse& fuse, int journal, std::uint64_t seed) override {
    auto opened = CuckooFilter<12, FusedMedia<M>>::open(pool, "filter", {media_of<M>(pool), fuse});
    if (!opened) return;
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < threads_; ++t)
      threads.emplace_back([&, t] { insert_and_erase(opened->filter, journal, t, seed + t); });
    for (std::thread& thread : threads) thread.join();
  }
  bool open_only(Pool& pool, Fuse& fuse) override {
    return CuckooFilter<12, FusedMedia<M>>::open(pool, "filter", {media_of<M>(pool), fuse}).has_value();
  }

  std::string verify(Pool& pool, const std::string& journal, KillResult& result) override {
    if (std::string wrong = replay(journal, result); !wrong.empty()) return wrong;
    auto opened = open_timed(result, [&] { return CuckooFilter<12, M>::open(pool, "filter", media_of<M>(pool)); });
    if (!opened) return opened.error().message;
    result.completed_kicks += opened->report.kicks_completed;
    const CheckReport report = opened->filter.check();
    if (!report.ok()) return report.violations.front();
    std::uint64_t least = 0;
    for (const auto& mine : sure_) {
      least += mine.size();
      for (const std::uint64_t key : mine) {
        if (!opened->filter.contains(key)) return "acknowledged key " + std::to_string(key) + " is lost";
      }
    }
    if (report.items >= least && report.items <= least + unsure_) return {};
    return std::to_string(report.items) + " items, expected " + std::to_string(least) + " to " +
           std::to_string(least + unsure_);
  }

 private:
  /// What one thread of the child does until it is killed.
  template <class F>
  void insert_and_erase(F& filter, int journal, unsigned thread, std::uint64_t seed) const {
    std::mt19937_64 random(seed);
    std::vector<std::uint64_t> mine = sure_[thread];
    std::uint64_t next_key = next_key_[thread];
    for (;;) {
      if (mine.size() < kTargetItems / threads_ && (mine.empty() || random() % 3 != 0)) {
        const std::uint64_t key = next_key++;
        say(journal, {What::kIntent, thread, key, 1});
        const bool inserted = filter.insert(key);
        say(journal, {inserted ? What::kDone : What::kRefused, thread, key, 1});
        if (inserted) mine.push_back(key);
      } else {
        const std::size_t at = random() % mine.size();
        const std::uint64_t key = mine[at];
        mine[at] = mine.back();
        mine.pop_back();
        say(journal, {What::kIntent, thread, key, 0});
        const bool erased = filter.erase(key);
        say(journal, {erased ? What::kDone : What::kWrong, thread, key, 0});
      }
    }
  }

  /// Turns the journal into what must be there.
  std::string replay(const std::string& journal, KillResult& result) {
    std::vector<bool> in_flight(threads_);
    for (const JournalLine& line : lines_of(journal)) {
      std::vector<std::uint64_t>& mine = sure_[line.thread];
      in_flight[line.thread] = line.what == What::kIntent;
      switch (line.what) {
        case What::kIntent:
          if (line.value == 0) {
            *std::find(mine.begin(), mine.end(), line.key) = mine.back();
            mine.pop_back();
          } else {
            next_key_[line.thread] = line.key + 1;
          }
          break;
        case What::kDone:
          if (line.value != 0) mine.push_back(line.key);
          ++result.acknowledged;
          break;
        case What::kRefused: break;
        case What::kWrong: return "a key in the filter could not be erased";
      }
    }
    unsure_ += static_cast<std::uint64_t>(std::count(in_flight.begin(), in_flight.end(), true));
    return {};
  }

  unsigned threads_;
  std::uint64_t seed_;
  std::vector<std::vector<std::uint64_t>> sure_;  // acknowledged keys of each thread
  std::vector<std::uint64_t> next_key_;
  std::uint64_t unsure_ = 0;  // operations that were in flight at some kill: their key may be there or not
};

using DamagedFilter = CuckooFilter<12, ProcessMedia>;
constexpr std::uint64_t kDamagedSlots = 100000;
constexpr std::uint64_t kDamagedKeys = 90000;

/// What a user would do with the file: open, check, look for the keys, insert and erase.
int use_damaged(Pool& pool, std::string& error) {
  auto opened = DamagedFilter::open(pool, "filter", {});
  if (!opened) return refuse(opened.error(), error);
  DamagedFilter& filter = opened->filter;
  const bool sound = filter.check().ok();
  std::uint64_t missing = 0;
  for (std::uint64_t key = 0; key < kDamagedKeys; ++key) missing += filter.contains(key) ? 0 : 1;
  const std::uint64_t items = filter.size();
  for (std::uint64_t key = 0; key < 1000; ++key) (void)filter.insert((1ULL << 40) + key);
  for (std::uint64_t key = 0; key < 1000; ++key) (void)filter.erase(key);
  if (!sound) return kFound;
  return missing == 0 && items == kDamagedKeys ? kUnharmed : kApproximate;
}

}  // namespace

KillResult kill_filter(const KillOptions& options) {
  return run_storm_of<FilterStorm>(options, options.threads, options.seed);
}

std::vector<CorruptCase> corrupt_filter(const CorruptOptions& options) {
  DamageSystem system;
  system.pool_bytes = 16 << 20;
  system.create = [&](Pool& pool) -> std::string {
    auto filter = DamagedFilter::create(pool, "filter", {kDamagedSlots, HashSeed::from(options.seed)}, {});
    if (!filter) return filter.error().message;
    for (std::uint64_t key = 0; key < kDamagedKeys; ++key) (void)filter->insert(key);
    filter->close();
    return {};
  };
  system.use = use_damaged;
  system.magics = {kFilterMagic};
  // Fingerprints have no checksum, so a lost page of them can't be told from an empty one. And some of the pages in use
  // are libpmemobj's own, at which its recovery may end the process.
  system.damages_whole_pages = false;
  system.areas = {{"the filter's log", kFilterMagic, kFilterLogOffset, kLogLines * kLineBytes}};
  system.refusals = {
      {"wrong fingerprint width", ErrorCode::kWrongLayout,
       [](Pool& pool) { return status_of(CuckooFilter<16, ProcessMedia>::open(pool, "filter", {})); }},
      {"no such filter", ErrorCode::kNotFound,
       [](Pool& pool) { return status_of(DamagedFilter::open(pool, "other", {})); }},
      {"pool full", ErrorCode::kNoSpace,
       [](Pool& pool) { return status_of(DamagedFilter::create(pool, "second", {1ULL << 30}, {})); }},
  };
  return run_damage(options, system);
}

}  // namespace dunnock::crash
