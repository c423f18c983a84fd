// Kill storms and damage for what maps numbers to numbers.
//
//   template <class M>
//   struct Map {
//     Structure<M> map;
//     static constexpr std::uint64_t kPoolBytes, kKeys;                     // keys of a thread
//     static Result<Map> create(Pool&, M), open(Pool&, M);
//     bool put(std::uint64_t n, std::uint64_t value);                       // false: full
//     std::optional<std::uint64_t> get(std::uint64_t n) const;              // kWrongValue: a value that nobody put
//     bool erase(std::uint64_t n);
//     static std::vector<Point> seldom();
//     static std::vector<std::uint64_t> magics();
//   };
#pragma once

#include <map>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "damage.hpp"
#include "dunnock/index/kv_index.hpp"
#include "storm.hpp"

namespace dunnock::crash {

inline constexpr std::uint64_t kWrongValue = ~0ULL;
inline IndexKey key_of(std::uint64_t n) { return {n * 0x9e3779b97f4a7c15ULL, n}; }
inline IndexOptions map_index_options() {
  return {.entries = 0, .bytes_max = 12 << 20, .segment_groups = 4, .seed = HashSeed::from(11)};
}

template <template <class> class Map>
struct MapStorm {
  template <class M>
  class On final : public StormSystem {
   public:
    explicit On(unsigned threads) : threads_(threads), sure_(threads) {}

    std::string create(Pool& pool) override {
      auto made = Map<M>::create(pool, media_of<M>(pool));
      return made ? "" : made.error().message;
    }
    [[nodiscard]] std::uint64_t pool_bytes() const override { return Map<M>::kPoolBytes; }
    [[nodiscard]] std::vector<Point> seldom() const override { return Map<M>::seldom(); }
    void live(Pool& pool, Fuse& fuse, int journal, std::uint64_t seed) override {
      auto opened = Map<FusedMedia<M>>::open(pool, {media_of<M>(pool), fuse});
      if (!opened) return;
      std::vector<std::thread> threads;
      for (unsigned t = 0; t < threads_; ++t)
        threads.emplace_back([&, t] { put_and_erase(*opened, journal, t, seed + t); });
      for (std::thread& thread : threads) thread.join();
    }
    bool open_only(Pool& pool, Fuse& fuse) override {
      return Map<FusedMedia<M>>::open(pool, {media_of<M>(pool), fuse}).has_value();
    }
    std::string verify(Pool& pool, const std::string& journal, KillResult& result) override {
      std::vector<std::optional<JournalLine>> in_flight(threads_);
      if (std::string wrong = replay(journal, in_flight, result); !wrong.empty()) return wrong;
      auto opened = open_timed(result, [&] { return Map<M>::open(pool, media_of<M>(pool)); });
      if (!opened) return opened.error().message;
      if (const IndexCheck report = opened->map.check(); !report.ok()) return report.violations.front();
      std::uint64_t count = 0;
      for (unsigned t = 0; t < threads_; ++t) {
        if (in_flight[t] && !settle(*opened, *in_flight[t], sure_[t]))
          return "key " + std::to_string(in_flight[t]->key) + " has a value that no operation wrote";
        for (const auto& [key, value] : sure_[t]) {
          if (opened->get(key) != value) return "acknowledged key " + std::to_string(key) + " is lost or wrong";
        }
        count += sure_[t].size();
      }
      if (opened->map.size() == count) return {};
      return std::to_string(opened->map.size()) + " entries, expected " + std::to_string(count);
    }

   private:
    using What = JournalLine::What;
    using Values = std::map<std::uint64_t, std::uint64_t>;

    /// What one thread of the child does until it is killed.
    template <class Opened>
    void put_and_erase(Opened& map, int journal, unsigned thread, std::uint64_t seed) const {
      std::mt19937_64 random(seed);
      Values mine = sure_[thread];
      for (;;) {
        const std::uint64_t key = static_cast<std::uint64_t>(thread) << 40 | random() % Map<M>::kKeys;
        const bool there = mine.contains(key);
        const std::uint64_t value = there && random() % 3 == 0 ? 0 : (random() >> 1) + 1;
        say(journal, {What::kIntent, thread, key, value});
        const bool done = value == 0 ? map.erase(key) : map.put(key, value);
        say(journal, {done ? What::kDone : What::kWrong, thread, key, value});
        apply(mine, key, value);
        // Another thread's keys are read, too: never a value that nobody wrote.
        const std::uint64_t other = random() % threads_ << 40 | random() % Map<M>::kKeys;
        if (map.get(other) == kWrongValue) say(journal, {What::kWrong, thread, other, 1});
      }
    }
    static void apply(Values& values, std::uint64_t key, std::uint64_t value) {
      if (value == 0) {
        values.erase(key);
      } else {
        values[key] = value;
      }
    }

    std::string replay(const std::string& journal, std::vector<std::optional<JournalLine>>& in_flight,
                       KillResult& result) {
      for (const JournalLine& line : lines_of(journal)) {
        if (line.what == What::kWrong) {
          return "while running: key " + std::to_string(line.key) +
                 (line.value == 0   ? " could not be erased"
                  : line.value == 1 ? " had a value that nobody put"
                                    : " found no room");
        }
        if (line.what == What::kIntent) {
          in_flight[line.thread] = line;
          continue;
        }
        in_flight[line.thread].reset();
        ++result.acknowledged;
        apply(sure_[line.thread], line.key, line.value);
      }
      return {};
    }
    /// Before or after: the first look decides. False: neither.
    static bool settle(const Map<M>& map, const JournalLine& line, Values& values) {
      const auto found = map.get(line.key);
      const std::uint64_t now = found.value_or(0);
      const auto old = values.find(line.key);
      const std::uint64_t before = old == values.end() ? 0 : old->second;
      if (now != before && now != line.value) return false;
      apply(values, line.key, now);
      return true;
    }

    unsigned threads_;
    std::vector<Values> sure_;
  };
};

template <template <class> class Map>
[[nodiscard]] KillResult kill_map(const KillOptions& options) {
  return run_storm_of<MapStorm<Map>::template On>(options, options.threads);
}

template <template <class> class Map>
[[nodiscard]] std::vector<CorruptCase> corrupt_map(const CorruptOptions& options) {
  constexpr std::uint64_t kEntries = Map<ProcessMedia>::kKeys * 2;
  DamageSystem system;
  system.pool_bytes = 24 << 20;
  system.magics = Map<ProcessMedia>::magics();
  system.create = [&](Pool& pool) -> std::string {
    auto made = Map<ProcessMedia>::create(pool, {});
    if (!made) return made.error().message;
    for (std::uint64_t n = 0; n < kEntries; ++n) {
      if (!made->put(n, n * 77 + 1)) return "it is full";
    }
    made->map.close();
    return {};
  };
  system.use = [](Pool& pool, std::string& error) -> int {
    auto opened = Map<ProcessMedia>::open(pool, {});
    if (!opened) return refuse(opened.error(), error);
    const bool sound = opened->map.check().ok();
    std::uint64_t missing = 0;
    for (std::uint64_t n = 0; n < kEntries; ++n) {
      const auto found = opened->get(n);
      if (found && *found != kWrongValue && *found != n * 77 + 1) return kLostSilently;
      missing += found && *found != kWrongValue ? 0 : 1;
    }
    for (std::uint64_t n = 0; n < 200; ++n) (void)opened->put((1ULL << 30) + n, n + 1);
    for (std::uint64_t n = 0; n < 200; ++n) (void)opened->erase((1ULL << 30) + n);
    if (!sound) return kFound;
    return missing == 0 ? kUnharmed : kLostSilently;
  };
  return run_damage(options, system);
}

}  // namespace dunnock::crash
