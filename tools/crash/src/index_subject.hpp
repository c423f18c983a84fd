// KvIndex under the explorer: segments of two groups, nearly full, so that the next puts split them; and a checker
// that knows which value each key may have.
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
#include "dunnock/index/kv_index.hpp"
#include "filter_subject.hpp"  // ImageMedia
#include "value_history.hpp"

namespace dunnock::crash {

template <class Sim>
class IndexSubject final : public Subject {
 public:
  using Recorded = KvIndex<Sim>;
  using Checked = KvIndex<ImageMedia>;
  static constexpr std::uint32_t kGroups = 2;
  static constexpr std::size_t kSegmentLanes = kGroups * kIndexGroupLanes;

  explicit IndexSubject(const FilterWorkload& workload) : workload_(workload) { generate(); }

  [[nodiscard]] std::size_t bytes() const override {
    return meta_bytes_ + segments_max_ * Checked::segment_bytes(kGroups);
  }
  [[nodiscard]] std::size_t operations() const override { return operations_.size(); }

  static constexpr std::size_t kGoesOn = 4;           // operations after a recovery
  static constexpr std::size_t kLookedAtEvery = 512;  // Most images have such work, and each costs thousands more.

  std::optional<std::string> record(SimMemory& memory, const std::vector<std::size_t>& keep) override {
    base_.assign(keys_.size(), ValueHistory());
    changes_.clear();
    violation_.reset();
    closed_.clear();
    format_acked_ = 0;
    images_seen_ = 0;
    next_value_ = 1;
    under_way_.clear();
    choices_.seed(workload_.seed + schedule_);
    calls_.assign(keys_.size(), {});
    time_ = 0;
    if (!life_) {
      auto index = Checked::format(meta(memory.data()), chunks(memory.data()), options_, {});
      for (std::size_t i = 0; i < prefilled_; ++i) {
        if (index->put(keys_[i], value_of(next_value_)) == PutResult::kInserted) base_[i] = ValueHistory(next_value_++);
      }
      for (std::size_t i = 0; i < erased_before_; ++i) {
        if (index->erase(keys_[i])) base_[i] = ValueHistory();
      }
      if (clean_before_) index->close();
    }
    now_ = base_;
    memory.start();
    if (life_) {
      auto index = Recorded::format(meta(memory.data()), chunks(memory.data()), options_, Sim(memory));
      if (!index) return "format failed: " + index.error().message;
      format_acked_ = memory.mark();
      index_ = std::make_unique<Recorded>(std::move(*index));
    } else {
      auto opened = Recorded::attach(meta(memory.data()), chunks(memory.data()), Sim(memory));
      if (!opened) return "attach failed: " + opened.error().message;
      index_ = std::make_unique<Recorded>(std::move(opened->index));
    }
    std::vector<std::function<void()>> threads;
    turn_ = 0;
    for (unsigned t = 0; t < workload_.threads; ++t) {
      threads.push_back([this, &memory, &keep, t] {
        for (std::size_t n = 0; n < keep.size(); ++n) {
          if (operations_[keep[n]].thread != t) continue;
          while (life_ && turn_ != n) memory.pause();  // close() needs the index for itself.
          if (!violation_) run(memory, operations_[keep[n]]);
          turn_ = n + 1;
        }
      });
    }
    if (!memory.run_threads(threads, workload_.seed + schedule_ * 0x9e3779b97f4a7c15ULL, switch_every()))
      return "all threads wait for each other";
    for (std::size_t i = 0; i < keys_.size() && !violation_; ++i) {
      if (!linearize<MapKey>(calls_[i], {base_[i].latest()}))
        violation_ = "after running: no order explains the calls on key #" + std::to_string(i);
    }
    if (!violation_) {
      const IndexCheck report = index_->check();
      if (!report.ok()) violation_ = "after running: " + report.violations.front();
      // Nobody crashed, so every lane that a split or an erase was to free is free.
      for (const SimMemory::Event& event : memory.events()) {
        if (event.kind == SimMemory::EventKind::kStore && event.point == index_point::kResetRecord)
          violation_ = "after running: a put found an entry without a lane";
      }
      if (report.dead_lanes != 0) violation_ = "after running: a lane points to no entry";
    }
    index_.reset();
    return violation_;
  }

  std::optional<std::string> check(std::byte* image, std::size_t events, std::size_t more) override {
    replay_until(events, more);
    if (more != 0 && recover_violation_) return recover_violation_;
    const bool may_be_missing = life_ && events < format_acked_;
    auto opened = Checked::attach(meta(image), chunks(image), {});
    if (!opened) {
      if (may_be_missing && opened.error().code == ErrorCode::kWrongLayout) return std::nullopt;
      return "it can't be opened: " + opened.error().message;
    }
    for (const auto& [acked, reopened] : closed_) {
      if (more == 0 && events >= acked && events <= reopened && !opened->report.clean_shutdown)
        return "close() had returned, but it does not open as clean";
    }
    Checked& index = opened->index;
    const std::uint64_t size = opened->report.clean_shutdown ? index.size() : 0;
    const IndexCheck report = index.check();
    if (!report.ok()) return report.violations.front();
    if (opened->report.clean_shutdown && size != report.entries) return "the size of a clean shutdown is wrong";

    std::uint64_t found_count = 0;
    for (std::size_t i = 0; i < keys_.size(); ++i) {
      const GetResult found = index.get(keys_[i]);
      if (found.state == GetState::kDamaged) return "key #" + std::to_string(i) + " is damaged";
      const ValueHistory::Value value = found ? ValueHistory::Value(number_of(found.value)) : std::nullopt;
      if (!replayed_[i].allows(value)) {
        return "key #" + std::to_string(i) + " has " + (value ? std::to_string(*value) : "nothing") + ", expected " +
               replayed_[i].describe();
      }
      if (found && !(found.value == value_of(*value))) return "key #" + std::to_string(i) + " has a torn value";
      if (found && !index.may_contain(keys_[i])) return "key #" + std::to_string(i) + " is not in the filter";
      found_count += found ? 1 : 0;
    }
    if (found_count != report.entries)
      return std::to_string(report.entries) + " entries, of which " + std::to_string(found_count) + " can be found";
    // What is left of the crash must not come back: keys are put and erased once more.
    if (found_count % 4 != events % 4) return std::nullopt;
    for (std::size_t i = 0; i < keys_.size(); i += 1 + events % 3) {
      if (index.put(keys_[i], value_of(7)) == PutResult::kFull) continue;
      const GetResult found = index.get(keys_[i]);
      if (!found || number_of(found.value) != 7) return "key #" + std::to_string(i) + " can't be put again";
    }
    for (const IndexKey& key : keys_) index.erase(key);
    const IndexCheck empty = index.check();
    if (!empty.ok()) return "after erasing all: " + empty.violations.front();
    if (empty.entries != 0) return std::to_string(empty.entries) + " entries stay behind when all keys are erased";
    return std::nullopt;
  }

  /// Opening stores little, but a crash may leave lanes without entries and entries without lanes, which later puts
  /// take over: that is what is explored.
  [[nodiscard]] bool recovery_has_work(const std::byte* image) const override {
    std::uint64_t magic;
    std::memcpy(&magic, image, sizeof magic);
    if (magic != kIndexMagic || ++images_seen_ % (segments_max_ == 1 ? 16 : kLookedAtEvery) != 8) return false;
    const std::byte* segments = image + meta_bytes_;
    for (std::size_t s = 0; s < segments_max_; ++s) {
      const std::byte* at = segments + s * Checked::segment_bytes(kGroups);
      for (std::size_t group = 0; group < kGroups; ++group) {
        for (std::size_t v = 0; v < kIndexGroupWords; ++v) {
          std::uint64_t word;
          std::memcpy(&word, at + group * kLineBytes + v * sizeof word, sizeof word);
          for (unsigned lane = 0; lane < Layout<12>::kLanes; ++lane) {
            std::uint64_t control;
            const std::size_t record = group * kIndexGroupLanes + v * Layout<12>::kLanes + lane;
            std::memcpy(&control, at + (kGroups + record) * kLineBytes, sizeof control);
            if ((Layout<12>::lane(word, lane) != 0) != detail::Control::live(control)) return true;
          }
        }
      }
    }
    return false;
  }

  void recover(SimMemory& memory, std::size_t events) override {
    replay_until(events, 0);
    continued_.clear();
    recover_violation_.reset();
    std::mt19937_64 random(workload_.seed + events);
    std::vector<ValueHistory> now = replayed_;
    const auto note = [&](ValueChange change) {
      change.apply(now[change.key]);
      continued_.push_back(change);
    };
    // Another thread than the one that recovers, so that a fence that recovery forgot is not made up for.
    std::unique_ptr<Recorded> index;
    bool recovered = false;
    std::uint64_t value = 1000;
    const std::vector<std::function<void()>> threads = {
        [&] {
          auto opened = Recorded::attach(meta(memory.data()), chunks(memory.data()), Sim(memory));
          if (opened) index = std::make_unique<Recorded>(std::move(opened->index));
          recovered = true;
        },
        [&] {
          while (!recovered) memory.pause();
          if (index == nullptr) return;
          std::vector<std::size_t> order;
          for (std::size_t i = 0; i < keys_.size(); ++i) {
            if (!now[i].in_flight()) continue;
            const GetResult found = index->get(keys_[i]);
            const auto seen = found ? ValueHistory::Value(number_of(found.value)) : std::nullopt;
            note({memory.mark(), i, ValueChange::What::kSettle, seen});
            if (twin_[i] != i) order.push_back(twin_[i]);
            if (random() % 2 == 0) order.push_back(i);
          }
          order.push_back(random() % keys_.size());
          if (order.size() > kGoesOn) order.resize(kGoesOn);
          for (const std::size_t i : order) {
            const bool erase = now[i].latest() && random() % 2 == 0;
            const auto next = erase ? ValueHistory::Value() : ValueHistory::Value(value++);
            note({memory.events().size(), i, ValueChange::What::kIntend, next});
            if (erase) {
              (void)index->erase(keys_[i]);
            } else if (index->put(keys_[i], value_of(*next)) == PutResult::kFull) {
              // With one segment any key has room while a lane is free, or points to no entry.
              const auto there = std::count_if(now.begin(), now.end(), [](const auto& one) { return one.latest(); });
              if (segments_max_ == 1 && static_cast<std::size_t>(there) <= kSegmentLanes)
                recover_violation_ =
                    "after recovery a put found no room, with " + std::to_string(there - 1) + " entries";
              note({memory.mark(), i, ValueChange::What::kSettle, std::nullopt});
              continue;
            }
            note({memory.mark(), i, ValueChange::What::kAcknowledge});
          }
        }};
    (void)memory.run_threads(threads, workload_.seed, 1);
  }

  [[nodiscard]] bool is_unseen(Point point) const override {
    return point == index_point::kSplitRecord || point == index_point::kSplitWord;
  }

  bool reschedule(std::uint64_t schedule) override {
    schedule_ = schedule;
    return workload_.threads > 1;
  }

  [[nodiscard]] std::string describe(std::size_t operation) const override {
    const Operation& op = operations_[operation];
    static constexpr const char* kNames[] = {"put",        "erase",      "get",         "put_bulk",        "get_bulk",
                                             "erase_bulk", "replace_if", "may_contain", "close and reopen"};
    std::string text = "thread " + std::to_string(op.thread) + ": " + kNames[static_cast<int>(op.kind)];
    for (const std::size_t key : op.keys) text += " #" + std::to_string(key);
    return text + (op.follows ? " or what another thread is at" : "");
  }

 private:
  enum class Kind : std::uint8_t {
    kPut,
    kErase,
    kGet,
    kPutBulk,
    kGetBulk,
    kEraseBulk,
    kReplaceIf,
    kMayContain,
    kReopen
  };
  struct Operation {
    Kind kind;
    unsigned thread;
    std::vector<std::size_t> keys;
    bool follows = false;  // a key that another thread is at instead, if there is one
  };

  /// Values differ in every byte and in their length, so that a mixture is found out.
  static IndexValue value_of(std::uint64_t number) {
    if (number % 5 == 0) return IndexValue::of(Locator{number * 0x0101010101010101ULL, 77, 99});
    const std::uint64_t words[2] = {number * 0x0101010101010101ULL, ~(number * 0x0101010101010101ULL)};
    return IndexValue::of(std::as_bytes(std::span(words)).first(number % 2 == 0 ? 16 : 9));
  }
  static std::uint64_t number_of(const IndexValue& value) { return inverse(value.number()); }
  static std::uint64_t inverse(std::uint64_t word) {
    // 0x0101010101010101 is odd, so multiplication by its inverse gives the number back.
    std::uint64_t inverse = 1;
    for (int i = 0; i < 6; ++i) inverse *= 2 - 0x0101010101010101ULL * inverse;
    return word * inverse;
  }

  static Region meta_region(std::byte* memory, std::uint64_t bytes) {
    return Region({memory}, bytes, std::bit_ceil(bytes));
  }
  [[nodiscard]] Region meta(std::byte* memory) const { return meta_region(memory, meta_bytes_); }
  [[nodiscard]] IndexMemory chunks(std::byte* memory) const {
    std::byte* first = memory + meta_bytes_;
    const std::uint64_t initial = initial_segments_;
    const auto chunk = [first, initial](unsigned number, std::uint64_t bytes) -> Result<Region> {
      const std::uint64_t before = number == 0 ? 0 : initial + number - 1;  // All but the first are one segment.
      return Region({first + before * Checked::segment_bytes(kGroups)}, bytes, std::bit_ceil(bytes));
    };
    return {chunk, chunk};
  }
  void set_options() {
    options_.entries = initial_segments_ == 1 ? 0 : kSegmentLanes * 3 / 5 + 1;
    options_.bytes_max = segments_max_ * Checked::segment_bytes(kGroups);
    options_.segment_groups = kGroups;
    options_.seed = HashSeed::from(workload_.seed);
    meta_bytes_ = Checked::meta_bytes(options_);
  }

  void note(ValueChange change) {
    change.apply(now_[change.key]);
    changes_.push_back(change);
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
    if (op.follows && !under_way_.empty()) {
      for (std::size_t& i : op.keys) {  // Or a resident, which a split may be moving.
        const bool resident = prefilled_ != 0 && choices_() % 3 == 0;
        i = resident ? choices_() % prefilled_ : under_way_[choices_() % under_way_.size()];
      }
    }
    const bool reads = op.kind == Kind::kGet || op.kind == Kind::kGetBulk || op.kind == Kind::kMayContain;
    const UnderWay under_way(under_way_, reads ? std::vector<std::size_t>() : op.keys);
    using What = ValueChange::What;
    const auto events = [&memory] { return memory.events().size(); };
    const auto wrong = [this](const std::string& what, std::size_t i) {
      violation_ = "while running: key #" + std::to_string(i) + " " + what;
    };
    const auto intend = [&](std::size_t i, ValueHistory::Value value) { note({events(), i, What::kIntend, value}); };
    using Ask = MapKey::What;
    using Answer = MapKey::Answer;
    std::uint64_t began = ++time_;
    const auto called = [&](std::size_t i, const MapKey::Call& call) { calls_[i].push_back({call, began, ++time_}); };
    const auto done = [](bool yes) { return yes ? Answer::kDone : Answer::kRefused; };
    const auto previously = [](bool there, const IndexValue& value) {
      return there ? ValueHistory::Value(number_of(value)) : std::nullopt;
    };
    switch (op.kind) {
      case Kind::kPut:
      case Kind::kPutBulk: {
        std::vector<typename Recorded::Entry> entries;
        std::vector<bool> there;
        for (const std::size_t i : op.keys) {
          there.push_back(now_[i].latest().has_value());
          intend(i, next_value_);
          entries.push_back({keys_[i], value_of(next_value_++)});
        }
        std::vector<PutResult> results(entries.size());
        std::vector<IndexValue> previous(entries.size());
        if (op.kind == Kind::kPut) {
          results[0] = index_->put(entries[0].key, entries[0].value, previous.data());
        } else {
          index_->put_bulk(entries, results.data(), previous.data());
        }
        const std::size_t acked = memory.mark();
        for (std::size_t n = 0; n < entries.size(); ++n) {
          const std::size_t i = op.keys[n];
          const bool replaced = results[n] == PutResult::kReplaced;
          called(i, {Ask::kPut, replaced ? Answer::kReplaced : done(results[n] == PutResult::kInserted),
                     number_of(entries[n].value), 0, previously(replaced, previous[n])});
          if (results[n] == PutResult::kFull) {
            if (there[n]) wrong("is there, but there is no room for its value", i);
            note({acked, i, What::kSettle, std::nullopt});
            continue;
          }
          if ((results[n] == PutResult::kReplaced) != there[n]) wrong("was put as if it were another", i);
          note({acked, i, What::kAcknowledge});
        }
        break;
      }
      case Kind::kErase:
      case Kind::kEraseBulk: {
        std::vector<IndexKey> keys;
        std::vector<bool> there;
        for (const std::size_t i : op.keys) {
          keys.push_back(keys_[i]);
          there.push_back(now_[i].latest().has_value());
          intend(i, std::nullopt);
        }
        std::vector<std::uint8_t> erased(keys.size());
        std::vector<IndexValue> previous(keys.size());
        if (op.kind == Kind::kErase) {
          erased[0] = index_->erase(keys[0], previous.data()) ? 1 : 0;
        } else {
          index_->erase_bulk(keys, erased.data(), previous.data());
        }
        const std::size_t acked = memory.mark();
        for (std::size_t n = 0; n < keys.size(); ++n) {
          called(op.keys[n], {Ask::kErase, done(erased[n] != 0), 0, 0, previously(erased[n] != 0, previous[n])});
          if ((erased[n] != 0) != there[n]) wrong("was erased as if it were another", op.keys[n]);
          note({acked, op.keys[n], What::kAcknowledge});
        }
        break;
      }
      case Kind::kReplaceIf: {
        const std::size_t i = op.keys.front();
        const auto latest = now_[i].latest();
        if (index_->replace_if(keys_[i], value_of(123456), value_of(1))) wrong("was replaced though it differs", i);
        called(i, {Ask::kReplaceIf, Answer::kRefused, 1, 123456, {}});
        if (!latest) break;
        const std::uint64_t value = next_value_++;
        intend(i, value);
        began = ++time_;
        if (!index_->replace_if(keys_[i], value_of(*latest), value_of(value))) wrong("was not replaced", i);
        called(i, {Ask::kReplaceIf, Answer::kDone, value, *latest, {}});
        note({memory.mark(), i, What::kAcknowledge});
        break;
      }
      case Kind::kMayContain: {
        const std::size_t i = op.keys.front();
        const std::size_t from = now_[i].floor();
        const bool maybe = index_->may_contain(keys_[i]);
        called(i, {Ask::kMayContain, done(maybe), 0, 0, {}});
        const auto absent = now_[i].find(std::nullopt, from);
        if (!maybe && !absent) wrong("is not in the filter", i);
        // No fingerprint: then it was absent at some moment.
        if (!maybe && absent) note({memory.mark(), i, What::kRuleOutBefore, {}, *absent});
        break;
      }
      case Kind::kGet:
      case Kind::kGetBulk: {
        std::vector<std::size_t> from;
        std::vector<IndexKey> keys;
        for (const std::size_t i : op.keys) {
          from.push_back(now_[i].floor());
          keys.push_back(keys_[i]);
        }
        std::vector<GetResult> found(keys.size());
        if (op.kind == Kind::kGet) {
          found[0] = index_->get(keys[0]);
        } else {
          index_->get_bulk(keys, found.data());
        }
        const std::size_t acked = memory.mark();
        for (std::size_t n = 0; n < keys.size(); ++n) {
          const std::size_t i = op.keys[n];
          if (found[n].state == GetState::kDamaged) wrong("is damaged", i);
          const auto value = found[n] ? ValueHistory::Value(number_of(found[n].value)) : std::nullopt;
          called(i, {Ask::kGet, Answer::kDone, 0, 0, value});
          const auto seen = now_[i].find(value, from[n]);
          if (!seen) {
            wrong(
                "is " + (value ? std::to_string(*value) : std::string("nothing")) + ", expected " + now_[i].describe(),
                i);
          } else {
            note({acked, i, What::kRuleOutBefore, {}, *seen});
          }
        }
        break;
      }
      case Kind::kReopen: {
        index_->close();
        const std::size_t closed = memory.mark();
        closed_.emplace_back(closed, closed);
        auto opened = Recorded::attach(meta(memory.data()), chunks(memory.data()), Sim(memory));
        if (!opened || !opened->report.clean_shutdown) {
          violation_ = "while running: a closed index does not open as clean";
          break;
        }
        *index_ = std::move(opened->index);
        break;
      }
    }
  }

  void replay_until(std::size_t events, std::size_t more) {
    if (events == replayed_events_ && more == 0 && replayed_more_ == 0 && replayed_of_ == changes_.size() &&
        !replayed_.empty()) {
      return;
    }
    replayed_ = base_;
    for (const ValueChange& change : changes_) {
      if (change.events > events) break;
      change.apply(replayed_[change.key]);
    }
    if (more != 0) {
      for (const ValueChange& change : continued_) {
        if (change.events <= more) change.apply(replayed_[change.key]);
      }
    }
    replayed_events_ = events;
    replayed_more_ = more;
    replayed_of_ = changes_.size();
  }

  void generate() {
    std::mt19937_64 random(workload_.seed * 0x9e3779b97f4a7c15ULL + 5);
    initial_segments_ = random() % 3 == 0 ? 2 : 1;
    segments_max_ = initial_segments_ + random() % 3;
    second_split_ = initial_segments_ == 2 && random() % 2 == 0;
    life_ = random() % 12 == 0;
    clean_before_ = random() % 4 == 0;
    switch_every_ = 1 + static_cast<unsigned>(random() % 6);
    set_options();
    static constexpr std::size_t kFill[] = {0, 10, 44, 76, 79, 80, 80, 80};  // A segment splits at 81.
    prefilled_ = life_ ? 0 : kFill[random() % std::size(kFill)] * (initial_segments_ == 1 ? 8 : 15) / 8;
    if (second_split_) {
      life_ = false;
      segments_max_ = 4;
      prefilled_ = 2 * kSegmentLanes + 1;
    }
    erased_before_ = second_split_ || prefilled_ == 0 || random() % 2 == 0 ? 0 : random() % 6;

    // Keys: random ones, and twins that share fingerprint, bucket and segment, for what a crash leaves of the one may
    // be taken for the other.
    const KeyHasher hasher(HashSeed::from(workload_.seed));
    const std::size_t key_count = prefilled_ + workload_.operations * 3 + 4;
    std::vector<std::pair<std::uint64_t, IndexKey>> pool(12000);
    for (auto& [where, key] : pool) {
      key = {random(), random()};
      where = hasher(key.low, key.high) & 0xffff;  // fingerprint, word, group
    }
    std::sort(pool.begin(), pool.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    std::vector<std::pair<IndexKey, IndexKey>> twins;
    for (std::size_t i = 1; i < pool.size(); ++i) {
      if (pool[i].first != pool[i - 1].first) continue;
      twins.emplace_back(pool[i - 1].second, pool[i].second);
      ++i;
    }
    std::shuffle(twins.begin(), twins.end(), random);
    keys_.resize(key_count);
    twin_.resize(key_count);
    for (std::size_t i = 0; i < key_count; ++i) {
      keys_[i] = {random(), random()};
      twin_[i] = i;
    }
    // One segment has been split and the other is full: its split finds the directory long enough.
    for (std::size_t i = 0; second_split_ && i < prefilled_; ++i) {
      while ((hasher(keys_[i].low, keys_[i].high) >> 39 & 1) != (i < kSegmentLanes ? 0U : 1U)) keys_[i].low = random();
    }
    // A twin of a newcomer is a resident or another newcomer.
    for (std::size_t i = prefilled_; i < key_count; ++i) {
      if (twins.empty() || twin_[i] != i || random() % 2 == 0) continue;
      const std::size_t j = second_split_ ? prefilled_ + random() % (key_count - prefilled_) : random() % key_count;
      if (twin_[j] != j || j == i) continue;
      keys_[i] = twins.back().first;
      keys_[j] = twins.back().second;
      twins.pop_back();
      twin_[i] = j;
      twin_[j] = i;
    }

    const bool hot = random() % 4 == 0;  // Each thread changes one key again and again.
    std::size_t fresh = prefilled_;
    std::vector<std::vector<std::size_t>> mine(workload_.threads);
    for (unsigned n = 0; n < workload_.operations; ++n) {
      Operation op;
      op.thread = static_cast<unsigned>(random() % workload_.threads);
      const auto own = [&]() -> std::size_t {  // Something of this thread's: residents are shared out.
        std::vector<std::size_t>& list = mine[op.thread];
        if (!list.empty() && hot && random() % 4 != 0) return list[0];
        if (!list.empty() && (prefilled_ == 0 || random() % 2 == 0)) return list[random() % list.size()];
        if (prefilled_ == 0) return key_count;
        // Or one of the last of them: in a segment that is nearly full these are far from home.
        const std::size_t from = random() % 2 == 0 ? 0 : prefilled_ - std::min<std::size_t>(prefilled_, 8);
        const std::size_t any = from + random() % (prefilled_ - from);
        const std::size_t at = any / workload_.threads * workload_.threads + op.thread;
        return at < prefilled_ ? at : key_count;
      };
      // Readers of what others are at are half of a history with several threads.
      const unsigned dice = static_cast<unsigned>(random() % (workload_.threads > 1 ? 36 : 24));
      if (dice < 7) {
        op.kind = Kind::kPut;
        op.keys = {fresh};
      } else if (dice < 9) {
        op.kind = Kind::kPutBulk;
        op.keys = {fresh, fresh + 1, own()};
      } else if (dice < 12) {
        op.kind = Kind::kPut;
        op.keys = {own()};
      } else if (dice < 15) {
        op.kind = Kind::kErase;
        op.keys = {own()};
      } else if (dice < 16) {
        op.kind = Kind::kEraseBulk;
        op.keys = {own(), own()};
        if (op.keys[0] == op.keys[1]) op.keys.pop_back();
      } else if (dice < 18) {
        op.kind = Kind::kReplaceIf;
        op.keys = {own()};
      } else if (dice != 23 || !life_) {
        op.kind = dice % 5 == 0 ? Kind::kMayContain : dice % 5 == 1 ? Kind::kGetBulk : Kind::kGet;
        op.follows = !life_ && random() % 2 == 0;
        for (std::size_t lookups = op.kind == Kind::kGetBulk ? 1 + random() % 3 : 1; lookups > 0; --lookups) {
          op.keys.push_back(random() % 3 == 0 && prefilled_ != 0 ? random() % prefilled_
                                                                 : prefilled_ + random() % (fresh - prefilled_ + 1));
        }
      } else {
        op.kind = Kind::kReopen;
      }
      if (op.kind == Kind::kPut || op.kind == Kind::kPutBulk) {
        for (const std::size_t i : op.keys) {
          if (i >= fresh && i < key_count) mine[op.thread].push_back(i);
        }
        for (const std::size_t i : op.keys) fresh = std::max(fresh, i < key_count ? i + 1 : fresh);
      }
      std::erase_if(op.keys, [&](std::size_t i) { return i >= key_count; });
      if (op.keys.empty() && op.kind != Kind::kReopen) continue;
      operations_.push_back(op);
    }
  }

  FilterWorkload workload_;
  std::uint64_t initial_segments_ = 1;
  std::uint64_t segments_max_ = 1;
  IndexOptions options_{.seed = {}};
  std::uint64_t meta_bytes_ = 0;
  bool second_split_ = false;
  bool life_ = false;  // starts from zeroed memory and is closed and reopened
  bool clean_before_ = false;
  unsigned switch_every_ = 1;
  std::uint64_t schedule_ = 0;
  [[nodiscard]] unsigned switch_every() const { return 1 + static_cast<unsigned>((switch_every_ - 1 + schedule_) % 6); }
  std::size_t prefilled_ = 0;  // keys_[0 .. prefilled_) are there before the record starts
  std::size_t erased_before_ = 0;
  std::vector<IndexKey> keys_;
  std::vector<std::size_t> twin_;
  std::vector<Operation> operations_;

  std::unique_ptr<Recorded> index_;
  std::uint64_t next_value_ = 1;
  std::vector<std::size_t> under_way_;                   // keys that are being changed
  std::mt19937_64 choices_;                              // of what is followed
  std::vector<std::vector<Timed<MapKey::Call>>> calls_;  // on each key
  std::uint64_t time_ = 0;                               // of calls: counts their beginnings and returns
  std::size_t turn_ = 0;
  mutable std::size_t images_seen_ = 0;
  std::size_t format_acked_ = 0;
  std::vector<std::pair<std::size_t, std::size_t>> closed_;
  std::vector<ValueHistory> base_, now_, replayed_;
  std::vector<ValueChange> changes_, continued_;
  std::size_t replayed_events_ = 0, replayed_more_ = 0, replayed_of_ = 0;
  std::optional<std::string> violation_, recover_violation_;
};

}  // namespace dunnock::crash
