// The cuckoo filter under the explorer: tiny tables, a few operations on one or several threads, and a checker that
// knows which keys must, may and must not be there.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "dunnock/crash/explorer.hpp"
#include "dunnock/crash/linearizability.hpp"
#include "dunnock/crash/sequential_objects.hpp"
#include "dunnock/filter/cuckoo_filter.hpp"

namespace dunnock::crash {

/// Media for images that nobody else sees: plain memory.
struct ImageMedia : detail::MappedMedia {
  static constexpr Durability kDurability = Durability::kPower;
  static constexpr bool kVisibleIsDurable = true;
  void flush(Point, const void*) const noexcept {}
  void fence(Point) const noexcept {}
};

struct FilterWorkload {
  std::uint64_t seed = 1;
  unsigned threads = 1;
  unsigned operations = 6;
};

template <unsigned kBits, class Sim, unsigned kGroupWords = 8>
class FilterSubject final : public Subject {
 public:
  using Recorded = CuckooFilter<kBits, Sim, FilterPolicy{.group_words = kGroupWords}>;
  using Checked = CuckooFilter<kBits, ImageMedia, FilterPolicy{.multi_writer = false, .group_words = kGroupWords}>;

  static constexpr std::size_t kErasedAfterRecovery = 12;

  explicit FilterSubject(const FilterWorkload& workload) : workload_(workload) { generate(); }

  [[nodiscard]] std::size_t bytes() const override { return Checked::meta_bytes() + Checked::table_bytes(slots_); }
  [[nodiscard]] std::size_t operations() const override { return operations_.size(); }

  std::optional<std::string> record(SimMemory& memory, const std::vector<std::size_t>& keep) override {
    states_.assign(keys_.size(), {});
    history_.clear();
    base_states_.assign(keys_.size(), {});
    violation_.reset();
    format_acked_ = 0;
    clears_.clear();
    closed_.clear();
    under_way_.clear();
    choices_.seed(workload_.seed + schedule_);
    calls_.assign(keys_.size(), {});
    time_ = 0;
    if (!life_) {
      Checked filter = std::move(*Checked::format(meta(memory.data()), table(memory.data()), options(), {}));
      for (std::size_t i = 0; i < prefilled_; ++i) {
        if (filter.insert(keys_[i])) base_states_[i] = {.inserted = true, .insert_acked = true};
        // Holes in the middle make later inserts take every road.
        for (std::size_t gone = 0; i + 1 == erased_at_ && gone < erased_before_ && gone <= i; ++gone) {
          if (base_states_[gone].inserted && filter.erase(keys_[gone]))
            base_states_[gone] = {.inserted = true, .insert_acked = true, .erased = true, .erase_acked = true};
        }
      }
      if (clean_before_) filter.close();
    }
    states_ = base_states_;
    memory.start();
    if (life_) {
      auto filter = Recorded::format(meta(memory.data()), table(memory.data()), options(), Sim(memory));
      if (!filter) return "format failed: " + filter.error().message;
      format_acked_ = memory.mark();
      filter_ = std::make_unique<Recorded>(std::move(*filter));
    } else {
      auto opened = Recorded::attach(meta(memory.data()), table(memory.data()), Sim(memory));
      if (!opened) return "attach failed: " + opened.error().message;
      filter_ = std::make_unique<Recorded>(std::move(opened->filter));
    }
    std::vector<std::function<void()>> threads;
    turn_ = 0;
    for (unsigned t = 0; t < workload_.threads; ++t) {
      threads.push_back([this, &memory, &keep, t] {
        for (std::size_t n = 0; n < keep.size(); ++n) {
          if (operations_[keep[n]].thread != t) continue;
          // close() and clear() need the filter for themselves: in a life, threads take turns.
          while (life_ && turn_ != n) memory.pause();
          if (!violation_) run(memory, operations_[keep[n]]);
          turn_ = n + 1;
        }
      });
    }
    if (!memory.run_threads(threads, workload_.seed + schedule_ * 0x9e3779b97f4a7c15ULL, switch_every()))
      return "all threads wait for each other";
    for (std::size_t i = 0; i < keys_.size() && !violation_ && !life_; ++i) {  // In a life, threads take turns.
      if (!linearize<FilterKey>(calls_[i], {fate_of(base_states_[i]) == Fate::kMust ? 1U : 0U}))
        violation_ = "after running: no order explains the calls on key #" + std::to_string(i);
    }
    filter_.reset();
    return violation_;
  }

  std::optional<std::string> check(std::byte* image, std::size_t events, std::size_t more) override {
    replay_until(events, more);
    const bool may_be_missing = life_ && events < format_acked_;
    auto opened = Checked::attach(meta(image), table(image), {});
    if (!opened) {
      // Before format() returns there may be no filter, but not half a one.
      if (may_be_missing && opened.error().code == ErrorCode::kWrongLayout) return std::nullopt;
      return "it can't be opened: " + opened.error().message;
    }
    for (const auto& [acked, reopened] : closed_) {
      if (more == 0 && events >= acked && events <= reopened && !opened->report.clean_shutdown)
        return "close() had returned, but it does not open as clean";
    }
    Checked& filter = opened->filter;
    const CheckReport report = filter.check();
    if (!report.ok()) return report.violations.front();
    for (const auto& [invoked, acked] : clears_) {
      if (events >= invoked && events < acked && report.items == 0) return std::nullopt;
    }

    std::uint64_t least = 0, most = 0;
    for (std::size_t i = 0; i < keys_.size(); ++i) {
      const Fate fate = fate_of(states_[i]);
      least += fate == Fate::kMust ? 1 : 0;
      most += fate != Fate::kMustNot ? 1 : 0;
      if (fate == Fate::kMust && !filter.contains(keys_[i])) return lost("is not there", i);
      if (fate == Fate::kMustNot && alone_[i] && filter.contains(keys_[i])) return lost("is there", i);
    }
    if (report.items < least || report.items > most) {
      return "it holds " + std::to_string(report.items) + " items, expected " + std::to_string(least) + " to " +
             std::to_string(most);
    }
    for (std::size_t i = 0; i < keys_.size(); ++i) {
      if (fate_of(states_[i]) == Fate::kMust && !filter.erase(keys_[i])) return lost("can't be erased", i);
    }
    for (std::size_t i = 0; i < keys_.size(); ++i) {
      if (fate_of(states_[i]) == Fate::kMay) filter.erase(keys_[i]);
    }
    if (const std::uint64_t rest = filter.check().items; rest != 0) {
      return std::to_string(rest) + " fingerprints stay behind when all keys are erased";
    }
    return std::nullopt;
  }

  [[nodiscard]] bool recovery_has_work(const std::byte* image) const override {
    std::uint64_t work = 0;
    for (unsigned i = 0; i < kLogLines; ++i) work |= word(image, kFilterLogOffset + i * sizeof(LogLine));
    return (work | word(image, kFilterStateOffset + offsetof(FilterState, clearing))) != 0 &&
           word(image, 0) == kFilterMagic;
  }

  void recover(SimMemory& memory, std::size_t events) override {
    replay_until(events, 0);
    continued_.clear();
    std::vector<std::size_t> victims;  // Erasing touches whatever recovery has touched.
    for (std::size_t i = 0; i < keys_.size(); ++i) {
      if (fate_of(states_[i]) == Fate::kMust) victims.push_back(i);
    }
    // A few of them: each costs images, and there are many recoveries.
    std::mt19937_64 random(workload_.seed + events);
    std::shuffle(victims.begin(), victims.end(), random);
    victims.resize(std::min(victims.size(), kErasedAfterRecovery));
    // Another thread than the one that recovers, so that a fence that recovery forgot is not made up for.
    std::unique_ptr<Recorded> filter;
    const std::vector<std::function<void()>> threads = {
        [&] {
          auto opened = Recorded::attach(meta(memory.data()), table(memory.data()), Sim(memory));
          if (opened) filter = std::make_unique<Recorded>(std::move(opened->filter));
          recovered_ = true;
        },
        [&] {
          while (!recovered_) memory.pause();
          if (filter == nullptr) return;
          for (const std::size_t i : victims) {
            continued_.push_back({memory.events().size(), i, What::kErase});
            (void)filter->erase(keys_[i]);
            continued_.push_back({memory.mark(), i, What::kErased});
          }
        }};
    recovered_ = false;
    (void)memory.run_threads(threads, workload_.seed, 1);
  }

  bool reschedule(std::uint64_t schedule) override {
    schedule_ = schedule;
    return workload_.threads > 1;
  }

  [[nodiscard]] std::string describe(std::size_t operation) const override {
    const Operation& op = operations_[operation];
    static constexpr const char* kNames[] = {"insert",     "erase",         "contains",         "insert_bulk",
                                             "erase_bulk", "contains_bulk", "close and reopen", "clear"};
    std::string text = "thread " + std::to_string(op.thread) + ": " + kNames[static_cast<int>(op.kind)];
    for (const std::size_t key : op.keys) text += " #" + std::to_string(key);
    return text + (op.follows ? " or what another thread is at" : "");
  }

 private:
  enum class Kind : std::uint8_t {
    kInsert,
    kErase,
    kContains,
    kInsertBulk,
    kEraseBulk,
    kContainsBulk,
    kReopen,
    kClear
  };
  struct Operation {
    Kind kind;
    unsigned thread;
    std::vector<std::size_t> keys;  // indices into keys_
    bool follows = false;           // a key that another thread is at instead, if there is one
  };
  /// What has happened to a key by some moment. Each key is inserted and erased at most once.
  struct KeyState {
    bool inserted = false, insert_acked = false, refused = false;
    bool erased = false, erase_acked = false;
    bool seen = false, seen_gone = false;
  };
  enum class What : std::uint8_t { kInsert, kInserted, kRefused, kErase, kErased, kSeen, kSeenGone };
  struct Change {
    std::size_t events;
    std::size_t key;
    What what;
  };
  enum class Fate : std::uint8_t { kMust, kMay, kMustNot };

  static Fate fate_of(const KeyState& s) {
    if (!s.inserted || s.refused || s.erase_acked || s.seen_gone) return Fate::kMustNot;
    if (s.erased) return Fate::kMay;
    return s.insert_acked || s.seen ? Fate::kMust : Fate::kMay;
  }
  static void apply(KeyState& s, What what) {
    switch (what) {
      case What::kInsert: s.inserted = true; break;
      case What::kInserted: s.insert_acked = true; break;
      case What::kRefused: s.refused = true; break;
      case What::kErase: s.erased = true; break;
      case What::kErased: s.erase_acked = true; break;
      case What::kSeen: s.seen = true; break;
      case What::kSeenGone: s.seen_gone = true; break;
    }
  }

  static Region meta(std::byte* memory) { return Region({memory}, Checked::meta_bytes(), Checked::meta_bytes()); }
  [[nodiscard]] Region table(std::byte* memory) const {
    const std::uint64_t length = Checked::table_bytes(slots_);
    return Region({memory + Checked::meta_bytes()}, length, std::bit_ceil(length));
  }
  [[nodiscard]] FilterOptions options() const { return {slots_, HashSeed::from(workload_.seed)}; }
  static std::uint64_t word(const std::byte* image, std::size_t offset) {
    std::uint64_t value;
    std::memcpy(&value, image + offset, sizeof value);
    return value;
  }
  [[nodiscard]] std::string lost(const char* what, std::size_t key) const {
    const KeyState& s = states_[key];
    std::string text = "key #" + std::to_string(key) + " " + what + " (";
    text += key < prefilled_ ? "resident"
            : !s.inserted    ? "never inserted"
            : s.refused      ? "refused"
            : s.insert_acked ? "acknowledged"
            : s.seen         ? "seen by another thread"
                             : "insert in flight";
    text += s.erase_acked ? ", erase acknowledged" : s.seen_gone ? ", seen gone" : s.erased ? ", erase in flight" : "";
    return text + ")";
  }

  void note(std::size_t events, std::size_t key, What what) {
    history_.push_back({events, key, what});
    apply(states_[key], what);
  }

  /// A key that another thread is inserting or erasing, or one that can't be told from it; else `otherwise`.
  std::size_t followed(std::size_t otherwise) {
    if (under_way_.empty()) return otherwise;
    const std::size_t i = under_way_[choices_() % under_way_.size()];
    const std::vector<std::size_t>& family = families_[family_of_[i]];
    for (unsigned tries = 0; tries < 4 && choices_() % 2 == 0; ++tries) {
      const std::size_t j = family[choices_() % family.size()];
      if (fate_of(states_[j]) == Fate::kMust) return j;
    }
    return i;
  }
  /// The keys of an operation are under way while this lives.
  class UnderWay {
   public:
    UnderWay(std::vector<std::size_t>& list, const std::vector<std::size_t>& keys) : list_(list), keys_(keys) {
      list_.insert(list_.end(), keys_.begin(), keys_.end());
    }
    UnderWay(const UnderWay&) = delete;
    UnderWay& operator=(const UnderWay&) = delete;
    ~UnderWay() {
      for (const std::size_t i : keys_) list_.erase(std::find(list_.begin(), list_.end(), i));
    }

   private:
    std::vector<std::size_t>& list_;
    std::vector<std::size_t> keys_;
  };

  void run(SimMemory& memory, Operation op) {
    if (op.follows) {
      for (std::size_t& i : op.keys) i = followed(i);
    }
    std::vector<std::uint64_t> keys;
    for (const std::size_t i : op.keys) keys.push_back(keys_[i]);
    std::vector<std::uint8_t> verdicts(keys.size(), 0);
    const auto now = [&memory] { return memory.events().size(); };
    const std::uint64_t began = ++time_;
    const auto called = [&](std::size_t i, FilterKey::What what, bool yes) {
      calls_[i].push_back({{what, true, yes}, began, ++time_});
    };
    switch (op.kind) {
      case Kind::kInsert:
      case Kind::kInsertBulk: {
        const UnderWay under_way(under_way_, op.keys);
        for (const std::size_t i : op.keys) note(now(), i, What::kInsert);
        if (op.kind == Kind::kInsert) {
          verdicts[0] = filter_->insert(keys[0]) ? 1 : 0;
        } else {
          filter_->insert_bulk(keys, verdicts.data());
        }
        const std::size_t acked = memory.mark();
        for (std::size_t n = 0; n < keys.size(); ++n) {
          called(op.keys[n], FilterKey::What::kInsert, verdicts[n] != 0);
          note(acked, op.keys[n], verdicts[n] != 0 ? What::kInserted : What::kRefused);
        }
        break;
      }
      case Kind::kErase:
      case Kind::kEraseBulk: {
        std::vector<std::size_t> present;
        keys.clear();
        for (const std::size_t i : op.keys) {
          // Only what is known to be there may be erased. (A followed key may come twice.)
          if (fate_of(states_[i]) != Fate::kMust) continue;
          present.push_back(i);
          keys.push_back(keys_[i]);
          note(now(), i, What::kErase);
        }
        if (present.empty()) break;
        const UnderWay under_way(under_way_, present);
        verdicts.assign(keys.size(), 0);
        if (op.kind == Kind::kErase) {
          verdicts[0] = filter_->erase(keys[0]) ? 1 : 0;
        } else {
          filter_->erase_bulk(keys, verdicts.data());
        }
        const std::size_t acked = memory.mark();
        for (std::size_t n = 0; n < keys.size(); ++n) {
          called(present[n], FilterKey::What::kErase, verdicts[n] != 0);
          if (verdicts[n] == 0) violation_ = "while running: " + lost("can't be erased", present[n]);
          note(acked, present[n], What::kErased);
        }
        break;
      }
      case Kind::kContains:
      case Kind::kContainsBulk: {
        std::vector<KeyState> before;
        for (const std::size_t i : op.keys) before.push_back(states_[i]);
        if (op.kind == Kind::kContains) {
          verdicts[0] = filter_->contains(keys[0]) ? 1 : 0;
        } else {
          filter_->contains_bulk(keys, verdicts.data());
        }
        const std::size_t acked = memory.mark();
        for (std::size_t n = 0; n < keys.size(); ++n) {
          const std::size_t i = op.keys[n];
          called(i, FilterKey::What::kContains, verdicts[n] != 0);
          judge_lookup(i, verdicts[n] != 0, before[n], states_[i], acked);
        }
        break;
      }
      case Kind::kReopen: {
        filter_->close();
        const std::size_t closed = memory.mark();
        closed_.emplace_back(closed, closed);
        auto opened = Recorded::attach(meta(memory.data()), table(memory.data()), Sim(memory));
        if (!opened || !opened->report.clean_shutdown) {
          violation_ = "while running: a closed filter does not open as clean";
          break;
        }
        *filter_ = std::move(opened->filter);
        break;
      }
      case Kind::kClear: {
        const std::size_t invoked = now();
        for (std::size_t i = 0; i < keys_.size(); ++i) {
          if (fate_of(states_[i]) != Fate::kMustNot) erased_by_clear_.push_back(i);
        }
        filter_->clear();
        const std::size_t acked = memory.mark();
        for (const std::size_t i : erased_by_clear_) {
          note(acked, i, What::kErase);
          note(acked, i, What::kErased);
        }
        erased_by_clear_.clear();
        clears_.emplace_back(invoked, acked);
        break;
      }
    }
  }

  /// A lookup that said so, between these two states of the key, and what follows from that after a crash.
  void judge_lookup(std::size_t i, bool found, const KeyState& before, const KeyState& after, std::size_t acked) {
    if (!found && fate_of(before) == Fate::kMust && !after.erased)
      violation_ = "while running: " + lost("is not there", i);
    // A copy of another key's may hide that this one is gone, but none makes a key seem gone.
    if (!found && before.insert_acked && after.erased) note(acked, i, What::kSeenGone);
    if (!alone_[i]) return;
    if (found && fate_of(before) == Fate::kMustNot && !(after.inserted && !before.inserted))
      violation_ = "while running: " + lost("is there", i);
    if (found && after.inserted && !after.erased) note(acked, i, What::kSeen);
  }

  void replay_until(std::size_t events, std::size_t more) {
    if (events == replayed_events_ && more == replayed_more_ && more == 0 && replayed_of_ == history_.size()) return;
    // History is in the order of its notes; the events of different threads' notes ascend as well.
    states_ = base_states_;
    for (const Change& change : history_) {
      if (change.events > events) break;
      apply(states_[change.key], change.what);
    }
    if (more != 0) {
      for (const Change& change : continued_) {
        if (change.events <= more) apply(states_[change.key], change.what);
      }
    }
    replayed_events_ = events;
    replayed_more_ = more;
    replayed_of_ = history_.size();
  }

  void generate() {
    std::mt19937_64 random(workload_.seed * 0x9e3779b97f4a7c15ULL + 1);
    const bool equal = workload_.threads > 1 && random() % 6 == 0;  // Newcomers are all of one class in two groups.
    const unsigned groups = equal ? 2 : 1 + static_cast<unsigned>(random() % 3);
    constexpr unsigned kGroupSlots = Checked::kLanes * kGroupWords;
    slots_ = groups * kGroupSlots;
    life_ = !equal && random() % 16 == 0;
    clean_before_ = random() % 4 == 0;
    switch_every_ = 1 + static_cast<unsigned>(random() % 6);
    static constexpr unsigned kFill[] = {0, 40, 80, 95, 110, 130};
    prefilled_ = life_ ? 0 : slots_ * kFill[random() % 6] / 100;
    erased_before_ = random() % 3 == 0 ? 0 : random() % (slots_ / 8);
    erased_at_ = prefilled_;

    // Keys: random ones; and now and then one that shares fingerprint and groups with another, for then the copies
    // can't be told apart and the hard cases of erase come up.
    const KeyHasher hasher(HashSeed::from(workload_.seed));
    const std::uint64_t group_count = slots_ / kGroupSlots;
    const auto class_of = [&](std::uint64_t key) {
      const Place place = Layout<kBits>::place(hasher(key), group_count * kGroupWords);
      const std::uint64_t group = place.bucket / kGroupWords;
      const std::uint64_t other = Layout<kBits>::other_group(group, place.fingerprint, group_count);
      return std::tuple(place.fingerprint, std::min(group, other), std::max(group, other));
    };
    std::size_t key_count = prefilled_ + workload_.operations * 3 + 2;
    // A pool of candidates in the order of their classes has enough twins by the birthday paradox.
    const bool dense = random() % 8 == 0;  // Half of all keys out of a few classes.
    std::vector<std::pair<decltype(class_of(0)), std::uint64_t>> pool(dense ? 16000 : 1200);
    for (auto& [group_class, key] : pool) {
      key = random();
      group_class = class_of(key);
    }
    std::sort(pool.begin(), pool.end());
    std::vector<std::uint64_t> twins;
    if (dense) {
      std::vector<std::pair<std::size_t, std::size_t>> sizes;  // of a class, and where it starts
      for (std::size_t i = 0; i < pool.size();) {
        std::size_t end = i;
        while (end < pool.size() && pool[end].first == pool[i].first) ++end;
        sizes.emplace_back(end - i, i);
        i = end;
      }
      std::sort(sizes.rbegin(), sizes.rend());
      for (const auto& [size, at] : sizes) {
        if (twins.size() > key_count / 2) break;
        for (std::size_t i = at; i < at + size; ++i) twins.push_back(pool[i].second);
      }
    }
    for (std::size_t i = 1; !dense && i < pool.size(); ++i) {
      if (pool[i].first != pool[i - 1].first) continue;
      twins.push_back(pool[i - 1].second);
      twins.push_back(pool[i].second);
    }
    std::sort(twins.begin(), twins.end());  // Twins may be among the residents, among the newcomers, or both.
    twins.erase(std::unique(twins.begin(), twins.end()), twins.end());
    std::shuffle(twins.begin(), twins.end(), random);
    if (!dense && random() % 2 == 0) twins.clear();
    std::size_t others = 0;  // keys that are not of that class come first
    if (equal) {
      // One group is full, so that keys of that class go to the other one; then room is made in it for more of them.
      const std::uint64_t full = random() % 2;
      const std::size_t beside = kGroupSlots * (30 + random() % 60) / 100;
      while (keys_.size() < kGroupSlots + beside) {
        const std::uint64_t key = random();
        const std::uint64_t group = Layout<kBits>::place(hasher(key), group_count * kGroupWords).bucket / kGroupWords;
        if ((group == full) == (keys_.size() < kGroupSlots)) keys_.push_back(key);
      }
      others = keys_.size();
      erased_at_ = others + 2 + random() % 6;
      prefilled_ = erased_at_ + 2 + random() % 6;
      erased_before_ = 2 + random() % 8;
      const auto wanted = class_of(random());
      // Of 16 bits there may be few: then some, however long that takes.
      for (std::size_t looked = 0; keys_.size() < others + (looked < 500000 ? 30 : 4); ++looked) {
        const std::uint64_t key = random();
        if (class_of(key) == wanted) keys_.push_back(key);
      }
      prefilled_ = std::min<std::size_t>(prefilled_, keys_.size());
      erased_at_ = std::min<std::size_t>(erased_at_, keys_.size());
      key_count = keys_.size();
    }
    while (keys_.size() < key_count) {
      if (!twins.empty() && random() % (dense ? 2 : 3) == 0) {
        keys_.push_back(twins.back());
        twins.pop_back();
      } else {
        keys_.push_back(random());
      }
    }
    std::vector<decltype(class_of(0))> classes;
    for (const std::uint64_t key : keys_) classes.push_back(class_of(key));
    std::sort(classes.begin(), classes.end());
    families_.resize(classes.size());
    for (const std::uint64_t key : keys_) {
      const auto range = std::equal_range(classes.begin(), classes.end(), class_of(key));
      alone_.push_back(range.second - range.first == 1);
      family_of_.push_back(static_cast<std::size_t>(range.first - classes.begin()));
      families_[family_of_.back()].push_back(family_of_.size() - 1);
    }

    std::size_t fresh = prefilled_;
    std::vector<std::size_t> mine_by_thread[8];
    for (unsigned n = 0; n < workload_.operations; ++n) {
      Operation op;
      op.thread = static_cast<unsigned>(random() % workload_.threads);
      std::vector<std::size_t>& mine = mine_by_thread[op.thread % 8];
      const auto own = [&]() -> std::size_t {
        if (equal) return random() % 4 == 0 ? random() % others : others + random() % (keys_.size() - others);
        // A resident that belongs to this thread, or something it inserted before.
        if (!mine.empty() && (prefilled_ == 0 || random() % 2 == 0)) return mine[random() % mine.size()];
        if (prefilled_ == 0) return keys_.size();
        const std::size_t at = random() % prefilled_ / workload_.threads * workload_.threads + op.thread;
        return at < prefilled_ ? at : keys_.size();  // Thread t owns every threads-th resident from t on.
      };
      // Readers of what others are at are many in a history with several threads.
      const unsigned dice = static_cast<unsigned>(random() % (workload_.threads > 1 ? 26 : 20));
      op.follows = random() % 2 == 0;
      if (dice < 9) {
        op.kind = Kind::kInsert;
        op.keys = {fresh};
      } else if (dice < 11) {
        op.kind = Kind::kInsertBulk;
        op.keys = {fresh, fresh + 1, fresh + 2};
      } else if (dice < 14) {
        op.kind = Kind::kErase;
        op.keys = {own()};
      } else if (dice < 15) {
        op.kind = Kind::kEraseBulk;
        op.keys = {own(), own()};
        if (op.keys[0] == op.keys[1]) op.keys.pop_back();
      } else if (dice < 18 || dice >= 20 || !life_) {
        op.kind = random() % 3 == 0 ? Kind::kContainsBulk : Kind::kContains;
        const std::size_t lookups = op.kind == Kind::kContains ? 1 : 1 + random() % 4;
        for (std::size_t looked = 0; looked < lookups; ++looked) {
          if (equal) {
            op.keys.push_back(own());
            continue;
          }
          op.keys.push_back(random() % 3 == 0 && prefilled_ != 0 ? random() % prefilled_
                                                                 : prefilled_ + random() % (fresh - prefilled_ + 1));
        }
      } else {
        op.kind = dice == 18 ? Kind::kReopen : Kind::kClear;
      }
      // In a life, threads take turns. What is inserted, each only once; what is erased, by anybody who finds it there.
      op.follows = op.follows && !life_ && op.kind != Kind::kInsert && op.kind != Kind::kInsertBulk &&
                   (op.kind == Kind::kContains || op.kind == Kind::kContainsBulk || dense || equal);
      if (op.kind == Kind::kInsert || op.kind == Kind::kInsertBulk) {
        for (const std::size_t i : op.keys) mine.push_back(i);
        fresh += op.keys.size();
      }
      std::erase_if(op.keys, [&](std::size_t i) { return i >= keys_.size(); });
      if (op.keys.empty() && op.kind != Kind::kReopen && op.kind != Kind::kClear) continue;
      operations_.push_back(op);
    }
  }

  FilterWorkload workload_;
  std::uint64_t slots_ = 0;
  std::size_t turn_ = 0;
  bool life_ = false;  // starts from zeroed memory and lives a life
  bool clean_before_ = false;
  unsigned switch_every_ = 1;
  std::uint64_t schedule_ = 0;
  [[nodiscard]] unsigned switch_every() const { return 1 + static_cast<unsigned>((switch_every_ - 1 + schedule_) % 6); }
  std::size_t prefilled_ = 0;      // keys_[0 .. prefilled_) are inserted before the record starts
  std::size_t erased_before_ = 0;  // this many of them are erased again when keys_[erased_at_ - 1] has been inserted
  std::size_t erased_at_ = 0;
  std::vector<std::uint64_t> keys_;
  std::vector<bool> alone_;                         // no other key has this fingerprint and these groups
  std::vector<std::vector<std::size_t>> families_;  // keys with the same fingerprint and groups
  std::vector<std::size_t> family_of_;
  std::vector<Operation> operations_;

  std::unique_ptr<Recorded> filter_;
  std::vector<KeyState> base_states_, states_;
  std::vector<Change> history_;
  std::vector<std::size_t> under_way_;                      // keys that are being inserted or erased
  std::mt19937_64 choices_;                                 // of what is followed
  std::vector<std::vector<Timed<FilterKey::Call>>> calls_;  // on each key
  std::uint64_t time_ = 0;                                  // of calls: counts their beginnings and returns
  std::vector<std::size_t> erased_by_clear_;
  std::vector<std::pair<std::size_t, std::size_t>> clears_;  // events at invocation and acknowledgement
  std::vector<std::pair<std::size_t, std::size_t>> closed_;  // events when close() returned and when attach() began
  std::size_t format_acked_ = 0;
  std::vector<Change> continued_;  // what followed recovery
  bool recovered_ = false;
  std::size_t replayed_events_ = 0, replayed_more_ = 0, replayed_of_ = 0;
  std::optional<std::string> violation_;
};

}  // namespace dunnock::crash
