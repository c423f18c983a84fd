// KvStore, and so ValueLog, under the explorer: segments of 1024 bytes, so that puts fill them and compact them all the
// time, and a checker that knows which value each key may have.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "dunnock/crash/explorer.hpp"
#include "dunnock/crash/linearizability.hpp"
#include "dunnock/crash/sequential_objects.hpp"
#include "dunnock/index/kv_store.hpp"
#include "filter_subject.hpp"  // ImageMedia
#include "value_history.hpp"

namespace dunnock::crash {

template <class Sim>
class LogSubject final : public Subject {
 public:
  using Recorded = KvStore<Sim>;
  using Checked = KvStore<ImageMedia>;

  explicit LogSubject(const FilterWorkload& workload) : workload_(workload) { generate(); }

  [[nodiscard]] std::size_t bytes() const override { return log_at_ + log_bytes_; }
  [[nodiscard]] std::size_t operations() const override { return operations_.size(); }

  std::optional<std::string> record(SimMemory& memory, const std::vector<std::size_t>& keep) override {
    base_.assign(kKeys, ValueHistory());
    calls_.assign(kKeys, {});
    time_ = 0;
    changes_.clear();
    violation_.reset();
    next_value_ = big_ ? kBig : 1;
    format_acked_ = 0;
    images_seen_ = 0;
    if (!life_) {
      Checked store = *format<ImageMedia>(memory.data(), {});
      std::mt19937_64 random(workload_.seed + 77);
      for (std::size_t n = 0; n < prefill_; ++n) {
        const std::size_t i = random() % kKeys;
        if (store.put(keys_[i], value_of(next_value_)) != PutResult::kFull) base_[i] = ValueHistory(next_value_++);
      }
    }
    now_ = base_;
    memory.start();
    auto store = life_ ? format<Sim>(memory.data(), Sim(memory)) : attach<Sim>(memory.data(), Sim(memory));
    if (!store) return "it can't be made or opened: " + store.error().message;
    if (life_) format_acked_ = memory.mark();
    store_ = std::make_unique<Recorded>(std::move(*store));
    std::vector<std::function<void()>> threads;
    for (unsigned t = 0; t < workload_.threads; ++t) {
      threads.push_back([this, &memory, &keep, t] {
        for (const std::size_t n : keep) {
          if (operations_[n].thread == t && !violation_) run(memory, operations_[n]);
        }
      });
    }
    if (!memory.run_threads(threads, workload_.seed + schedule_ * 0x9e3779b97f4a7c15ULL, switch_every()))
      return "all threads wait for each other";
    for (std::size_t i = 0; i < kKeys && !violation_; ++i) {
      if (!linearize<MapKey>(calls_[i], {base_[i].latest()}))
        violation_ = "after running: no order explains the calls on key #" + std::to_string(i);
    }
    if (!violation_) {
      const IndexCheck report = store_->check();
      if (!report.ok()) violation_ = "after running: " + report.violations.front();
    }
    store_.reset();
    return violation_;
  }

  std::optional<std::string> check(std::byte* image, std::size_t events, std::size_t more) override {
    replay_until(events, more);
    auto opened = attach<ImageMedia>(image, {});
    if (!opened) {
      if (life_ && events < format_acked_ && opened.error().code == ErrorCode::kWrongLayout) return std::nullopt;
      return "it can't be opened: " + opened.error().message;
    }
    Checked& store = *opened;
    const IndexCheck report = store.check();
    if (!report.ok()) return report.violations.front();
    if (auto wrong = compare(store, "")) return wrong;
    if (events % 4 != 0) return std::nullopt;
    // Goes on working: everything is moved, and replaced, and nothing of it comes back.
    store.compact(8, 1.1);
    if (auto wrong = compare(store, " after compaction")) return wrong;
    for (std::size_t i = 0; i < kKeys; ++i) store.erase(keys_[i]);
    for (std::size_t i = 0; i < kKeys; ++i) {
      if (store.put(keys_[i], value_of(i + 1)) == PutResult::kFull) return "there is no room when all was erased";
    }
    for (std::size_t i = 0; i < kKeys; ++i) {
      if (value_in(store, i) != ValueHistory::Value(i + 1)) return "key #" + std::to_string(i) + " can't be put again";
    }
    const IndexCheck end = store.check();
    return end.ok() ? std::nullopt : std::optional("after going on: " + end.violations.front());
  }

  [[nodiscard]] bool recovery_has_work(const std::byte* image) const override {
    std::uint64_t magic;
    std::memcpy(&magic, image, sizeof magic);
    return magic == kIndexMagic && ++images_seen_ % 64 == 8;
  }

  void recover(SimMemory& memory, std::size_t events) override {
    replay_until(events, 0);
    continued_.clear();
    std::mt19937_64 random(workload_.seed + events);
    std::vector<ValueHistory> now = replayed_;
    const auto note = [&](ValueChange change) {
      change.apply(now[change.key]);
      continued_.push_back(change);
    };
    std::unique_ptr<Recorded> store;
    bool recovered = false;
    std::uint64_t value = 10000;
    const std::vector<std::function<void()>> threads = {
        [&] {
          auto opened = attach<Sim>(memory.data(), Sim(memory));
          if (opened) store = std::make_unique<Recorded>(std::move(*opened));
          recovered = true;
        },
        [&] {
          while (!recovered) memory.pause();
          if (store == nullptr) return;
          for (std::size_t i = 0; i < kKeys; ++i) {
            if (now[i].in_flight()) note({memory.mark(), i, ValueChange::What::kSettle, value_in(*store, i)});
          }
          for (int n = 0; n < 3; ++n) {
            const std::size_t i = random() % kKeys;
            note({memory.events().size(), i, ValueChange::What::kIntend, value});
            const bool full = store->put(keys_[i], value_of(value++)) == PutResult::kFull;
            if (full) {
              note({memory.mark(), i, ValueChange::What::kSettle, value_in(*store, i)});
            } else {
              note({memory.mark(), i, ValueChange::What::kAcknowledge});
            }
          }
        }};
    (void)memory.run_threads(threads, workload_.seed, 1);
  }

  /// Long values have many words, and nobody looks at one before its entry is there.
  [[nodiscard]] bool is_unseen(Point point) const override { return big_ && point == log_point::kPayload; }

  bool reschedule(std::uint64_t schedule) override {
    schedule_ = schedule;
    return workload_.threads > 1;
  }

  [[nodiscard]] std::string describe(std::size_t operation) const override {
    const Operation& op = operations_[operation];
    static constexpr const char* kNames[] = {"put", "put_bulk", "erase", "get", "compact"};
    std::string text = "thread " + std::to_string(op.thread) + ": " + kNames[static_cast<int>(op.kind)];
    for (const std::size_t key : op.keys) text += " #" + std::to_string(key);
    return text;
  }

 private:
  static constexpr std::size_t kKeys = 12;
  static constexpr std::uint64_t kBig = 1 << 20;  // values from this number on are long
  enum class Kind : std::uint8_t { kPut, kPutBulk, kErase, kGet, kCompact };
  struct Operation {
    Kind kind;
    unsigned thread;
    std::vector<std::size_t> keys;
    unsigned held = 0;  // turns of other threads in which a value that was read is kept
  };

  /// The number, and bytes that follow from it, of a length that follows from it.
  static std::vector<std::byte> value_of(std::uint64_t number) {
    static constexpr std::size_t kLengths[] = {9, 33, 64, 100, 8, 221, 17, 40};
    static constexpr std::size_t kBigLengths[] = {180, 221, 260, 300};
    std::vector<std::byte> bytes(number >= kBig ? kBigLengths[number % std::size(kBigLengths)]
                                                : kLengths[number % std::size(kLengths)]);
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(number * 31 + i * 7);
    std::memcpy(bytes.data(), &number, sizeof number);
    return bytes;
  }
  /// What the key has: none when it is not there, a number that no value has when it is damaged.
  template <class Store>
  ValueHistory::Value value_in(const Store& store, std::size_t i) const {
    return value_of_found(store.get(keys_[i]));
  }
  template <class Found>
  static ValueHistory::Value value_of_found(const Found& found) {
    if (found.state == GetState::kMissing) return std::nullopt;
    if (!found || found.bytes().size() < sizeof(std::uint64_t)) return ~0ULL;
    std::uint64_t number;
    std::memcpy(&number, found.bytes().data(), sizeof number);
    return std::ranges::equal(found.bytes(), value_of(number)) ? number : ~0ULL;
  }
  std::optional<std::string> compare(const Checked& store, const char* when) const {
    for (std::size_t i = 0; i < kKeys; ++i) {
      const ValueHistory::Value value = value_in(store, i);
      if (replayed_[i].allows(value)) continue;
      return "key #" + std::to_string(i) + when + " has " + (value ? std::to_string(*value) : "nothing") +
             ", expected " + replayed_[i].describe();
    }
    return std::nullopt;
  }

  // The log comes last when it is made and first when it is opened, so that nothing else stands in for its steps.
  template <class M>
  Result<KvStore<M>> format(std::byte* memory, M media) const {
    DUNNOCK_TRY(auto index,
                KvIndex<M>::format(region(memory, index_meta_bytes_), chunks(memory), index_options_, media));
    DUNNOCK_TRY(auto log, ValueLog<M>::format(log_meta(memory), log_data(memory), log_options_, media));
    return KvStore<M>(std::move(index), std::move(log));
  }
  template <class M>
  Result<KvStore<M>> attach(std::byte* memory, M media) const {
    DUNNOCK_TRY(auto log, ValueLog<M>::attach(log_meta(memory), log_data(memory), media));
    DUNNOCK_TRY(auto index, KvIndex<M>::attach(region(memory, index_meta_bytes_), chunks(memory), media));
    return KvStore<M>(std::move(index.index), std::move(log));
  }
  [[nodiscard]] Region log_meta(std::byte* memory) const { return region(memory + log_meta_at_, log_meta_bytes_); }
  [[nodiscard]] Region log_data(std::byte* memory) const { return region(memory + log_at_, log_bytes_); }
  static Region region(std::byte* memory, std::uint64_t bytes) { return Region({memory}, bytes, std::bit_ceil(bytes)); }
  [[nodiscard]] IndexMemory chunks(std::byte* memory) const {
    std::byte* first = memory + index_meta_bytes_;
    const auto chunk = [first](unsigned, std::uint64_t bytes) -> Result<Region> { return region(first, bytes); };
    return {chunk, chunk};
  }

  void note(ValueChange change) {
    change.apply(now_[change.key]);
    changes_.push_back(change);
  }

  void run(SimMemory& memory, const Operation& op) {
    using What = ValueChange::What;
    const auto wrong = [this](const std::string& what, std::size_t i) {
      violation_ = "while running: key #" + std::to_string(i) + " " + what;
    };
    using Ask = MapKey::What;
    using Answer = MapKey::Answer;
    const std::uint64_t began = ++time_;
    const auto called = [&](std::size_t i, const MapKey::Call& call) {
      calls_[i].push_back({call, began, call.answer == Answer::kNone ? Timed<MapKey::Call>::kNever : ++time_});
    };
    switch (op.kind) {
      case Kind::kPut:
      case Kind::kPutBulk: {
        const std::uint64_t first_value = next_value_;
        std::vector<std::vector<std::byte>> values;
        std::vector<typename Recorded::Item> items;
        for (const std::size_t i : op.keys) {
          note({memory.events().size(), i, What::kIntend, next_value_});
          values.push_back(value_of(next_value_++));
        }
        for (std::size_t n = 0; n < op.keys.size(); ++n) items.push_back({keys_[op.keys[n]], values[n]});
        bool put = false;
        if (op.kind == Kind::kPut) {
          const PutResult result = store_->put(items[0].key, items[0].bytes);
          const Answer answer = result == PutResult::kFull       ? Answer::kFull
                                : result == PutResult::kReplaced ? Answer::kReplaced
                                                                 : Answer::kDone;
          called(op.keys[0], {Ask::kPut, answer, first_value, 0, {}});
          put = result != PutResult::kFull;
        } else {  // It does not tell which keys were there, or which of them it has put when it could not put all.
          put = store_->put_bulk(items);
          for (std::size_t n = 0; n < op.keys.size(); ++n)
            called(op.keys[n], {Ask::kPut, Answer::kNone, first_value + n, 0, {}});
        }
        const std::size_t acked = memory.mark();
        for (const std::size_t i : op.keys) {
          if (put) {
            note({acked, i, What::kAcknowledge});
          } else {
            note({acked, i, What::kSettle, value_in(*store_, i)});
          }
        }
        break;
      }
      case Kind::kErase: {
        const std::size_t i = op.keys.front();
        const bool there = now_[i].latest().has_value();
        note({memory.events().size(), i, What::kIntend, std::nullopt});
        const bool erased = store_->erase(keys_[i]);
        called(i, {Ask::kErase, erased ? Answer::kDone : Answer::kRefused, 0, 0, {}});
        if (erased != there) wrong("was erased as if it were another", i);
        note({memory.mark(), i, What::kAcknowledge});
        break;
      }
      case Kind::kGet: {
        const std::size_t i = op.keys.front();
        const std::size_t from = now_[i].floor();
        const auto found = store_->get(keys_[i]);
        const ValueHistory::Value value = value_of_found(found);
        called(i, {Ask::kGet, Answer::kDone, 0, 0, value});
        const std::size_t acked = memory.mark();
        if (const auto seen = now_[i].find(value, from)) {
          note({acked, i, What::kRuleOutBefore, {}, *seen});
        } else {
          wrong("is " + (value ? std::to_string(*value) : std::string("nothing")) + ", expected " + now_[i].describe(),
                i);
        }
        for (unsigned n = 0; n < op.held; ++n) memory.pause();
        if (value_of_found(found) != value) wrong("has changed in the hands of who read it", i);
        break;
      }
      case Kind::kCompact: store_->compact(1 + op.keys.size(), 0.9); break;
    }
  }

  void replay_until(std::size_t events, std::size_t more) {
    replayed_ = base_;
    for (const ValueChange& change : changes_) {
      if (change.events > events) break;
      change.apply(replayed_[change.key]);
    }
    if (more == 0) return;
    for (const ValueChange& change : continued_) {
      if (change.events <= more) change.apply(replayed_[change.key]);
    }
  }

  void generate() {
    std::mt19937_64 random(workload_.seed * 0x9e3779b97f4a7c15ULL + 9);
    life_ = random() % 12 == 0;
    switch_every_ = 1 + static_cast<unsigned>(random() % 6);
    prefill_ = random() % 40;
    index_options_.bytes_max = KvIndex<Sim>::segment_bytes(2);
    index_options_.segment_groups = 2;
    index_options_.seed = HashSeed::from(workload_.seed);
    log_options_.segment_bytes = 1024;
    // Long values fill three or four segments again and again while somebody reads.
    big_ = workload_.threads > 1 && random() % 2 == 0;
    log_options_.capacity_bytes = ((big_ ? 6 : 4) + random() % 3) * 1024;
    index_meta_bytes_ = KvIndex<Sim>::meta_bytes(index_options_);
    log_meta_at_ = index_meta_bytes_ + KvIndex<Sim>::segment_bytes(2);
    log_meta_bytes_ = ValueLog<Sim>::meta_bytes(log_options_);
    log_at_ = log_meta_at_ + log_meta_bytes_;
    log_bytes_ = ValueLog<Sim>::data_bytes(log_options_);
    for (std::size_t i = 0; i < kKeys; ++i) keys_.push_back({random(), random()});
    for (unsigned n = 0; n < workload_.operations * 2; ++n) {
      Operation op;
      op.thread = static_cast<unsigned>(random() % workload_.threads);
      const auto own = [&] {  // Every threads-th key from its number on.
        return (random() % (kKeys / workload_.threads)) * workload_.threads + op.thread;
      };
      const unsigned dice = static_cast<unsigned>(random() % 16);
      op.keys = {own()};
      if (dice < 7) {
        op.kind = Kind::kPut;
      } else if (dice < 9) {
        op.kind = Kind::kPutBulk;
        op.keys.push_back(own());
        if (op.keys[0] == op.keys[1]) op.keys.pop_back();
      } else if (dice < 10) {
        op.kind = Kind::kErase;
      } else if (dice < 14) {
        op.kind = Kind::kGet;
        op.keys = {random() % kKeys};
        static constexpr unsigned kHeld[] = {0, 0, 8, 64, 256, 1024};
        op.held = workload_.threads == 1 ? 0 : kHeld[random() % std::size(kHeld)];
      } else {
        op.kind = Kind::kCompact;
      }
      operations_.push_back(op);
    }
  }

  FilterWorkload workload_;
  bool life_ = false;
  unsigned switch_every_ = 1;
  std::uint64_t schedule_ = 0;
  [[nodiscard]] unsigned switch_every() const { return 1 + static_cast<unsigned>((switch_every_ - 1 + schedule_) % 6); }
  std::size_t prefill_ = 0;
  bool big_ = false;
  IndexOptions index_options_{.seed = {}};
  LogOptions log_options_;
  std::uint64_t index_meta_bytes_ = 0, log_meta_at_ = 0, log_meta_bytes_ = 0, log_at_ = 0, log_bytes_ = 0;
  std::vector<IndexKey> keys_;
  std::vector<Operation> operations_;

  std::unique_ptr<Recorded> store_;
  std::uint64_t next_value_ = 1;
  std::vector<std::vector<Timed<MapKey::Call>>> calls_;  // on each key
  std::uint64_t time_ = 0;                               // of calls: counts their beginnings and returns
  std::size_t format_acked_ = 0;
  mutable std::size_t images_seen_ = 0;
  std::vector<ValueHistory> base_, now_, replayed_;
  std::vector<ValueChange> changes_, continued_;
  std::optional<std::string> violation_;
};

}  // namespace dunnock::crash
