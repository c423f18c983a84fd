// CheckpointStore under the explorer: a few versions of a few small tensors, saved, removed and collected, so that
// crashes fall between the chunks, the manifest and the catalog line of a checkpoint.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "dunnock/crash/explorer.hpp"
#include "dunnock/index/checkpoint_store.hpp"
#include "filter_subject.hpp"  // ImageMedia
#include "value_history.hpp"

namespace dunnock::crash {

template <class Sim>
class CheckpointSubject final : public Subject {
 public:
  using Recorded = CheckpointStore<Sim>;
  using Checked = CheckpointStore<ImageMedia>;

  explicit CheckpointSubject(const FilterWorkload& workload) : workload_(workload) { generate(); }

  [[nodiscard]] std::size_t bytes() const override { return catalog_at_ + catalog_bytes_; }
  [[nodiscard]] std::size_t operations() const override { return operations_.size(); }

  std::optional<std::string> record(SimMemory& memory, const std::vector<std::size_t>& keep) override {
    base_.assign(kVersions, ValueHistory());
    changes_.clear();
    violation_.reset();
    format_acked_ = 0;
    images_seen_ = 0;
    contents_ = 1;
    if (!life_) {
      Checked store = *format<ImageMedia>(memory.data(), {});
      for (std::uint64_t version = 0; version < prefill_; ++version) {
        if (save(store, version, contents_)) base_[version] = ValueHistory(contents_);
        ++contents_;
      }
    }
    now_ = base_;
    memory.start();
    auto store = life_ ? format<Sim>(memory.data(), Sim(memory)) : attach<Sim>(memory.data(), Sim(memory));
    if (!store) return "it can't be made or opened: " + store.error().message;
    if (life_) format_acked_ = memory.mark();
    for (const std::size_t n : keep) {
      if (!violation_) run(memory, *store, operations_[n]);
    }
    if (!violation_) {
      const CheckpointCheck report = store->check();
      if (!report.ok()) violation_ = "after running: " + report.violations.front();
    }
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
    const CheckpointCheck report = store.check();
    if (!report.ok()) return report.violations.front();
    if (auto wrong = compare(store, "")) return wrong;
    if (events % 4 != 0) return std::nullopt;
    // What was interrupted is collected, and nothing else; then there is room for as much as ever.
    (void)store.collect();
    if (auto wrong = compare(store, " after collecting")) return wrong;
    for (std::uint64_t version = 0; version < kVersions; ++version) (void)store.remove(kName, version);
    (void)store.collect();
    if (store.stats().index.entries != 0) return "something stays behind when all checkpoints are removed";
    if (!save(store, 0, 7)) return "there is no room when all checkpoints are removed";
    return value_in(store, 0) == ValueHistory::Value(7) ? std::nullopt : std::optional("a new checkpoint is wrong");
  }

  [[nodiscard]] bool recovery_has_work(const std::byte* image) const override {
    std::uint64_t magic;
    std::memcpy(&magic, image, sizeof magic);
    return magic == kIndexMagic && ++images_seen_ % 256 == 8;
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
    auto store = attach<Sim>(memory.data(), Sim(memory));
    if (!store) return;
    for (std::size_t i = 0; i < kVersions; ++i) {
      if (now[i].in_flight()) note({memory.mark(), i, ValueChange::What::kSettle, value_in(*store, i)});
    }
    // On another thread, so that a fence that recovery forgot is not made up for.
    const std::vector<std::function<void()>> threads = {[] {},
                                                        [&] {
                                                          for (int n = 0; n < 2; ++n) {
                                                            const std::size_t i = random() % kVersions;
                                                            change_one(memory, *store, i, 5000 + random() % 1000,
                                                                       now[i], note);
                                                          }
                                                        }};
    (void)memory.run_threads(threads, workload_.seed, 1);
  }

  [[nodiscard]] std::string describe(std::size_t operation) const override {
    const Operation& op = operations_[operation];
    static constexpr const char* kNames[] = {"save or remove", "collect", "restore"};
    return std::string(kNames[static_cast<int>(op.kind)]) + " version " + std::to_string(op.version);
  }

 private:
  static constexpr std::size_t kVersions = 5;
  static constexpr const char* kName = "run";
  enum class Kind : std::uint8_t { kChange, kCollect, kRestore };
  struct Operation {
    Kind kind;
    std::uint64_t version;
  };

  /// Three tensors; those of neighboring contents share some chunks.
  static std::vector<std::vector<std::byte>> tensors_of(std::uint64_t contents) {
    std::vector<std::vector<std::byte>> tensors{std::vector<std::byte>(200), std::vector<std::byte>(64),
                                                std::vector<std::byte>(9)};
    for (std::size_t i = 0; i < 200; ++i)
      tensors[0][i] = static_cast<std::byte>(i * 3 + (i / 64 == contents % 3 ? contents * 101 : 0));
    for (std::size_t i = 0; i < 64; ++i) tensors[1][i] = static_cast<std::byte>(i + contents / 2);
    std::memcpy(tensors[2].data(), &contents, sizeof contents);
    return tensors;
  }
  template <class Store>
  static bool save(Store& store, std::uint64_t version, std::uint64_t contents) {
    const auto tensors = tensors_of(contents);
    std::vector<TensorSource> sources;
    for (std::size_t i = 0; i < tensors.size(); ++i)
      sources.push_back(
          {{std::string(1, static_cast<char>('a' + i)), Dtype::kU8, {tensors[i].size()}}, tensors[i], {}});
    return store.save(kName, version, sources).has_value();
  }
  /// The contents of a version: none when it is not there, a number that no contents have when it is wrong.
  template <class Store>
  static ValueHistory::Value value_in(const Store& store, std::uint64_t version) {
    auto tensors = tensors_of(0);
    std::vector<TensorSink> sinks;
    for (std::size_t i = 0; i < tensors.size(); ++i)
      sinks.push_back({{std::string(1, static_cast<char>('a' + i)), Dtype::kU8, {tensors[i].size()}}, tensors[i], {}});
    const auto restored = store.restore(kName, version, sinks);
    if (!restored) return restored.error().code == ErrorCode::kNotFound ? ValueHistory::Value() : ~0ULL;
    std::uint64_t contents;
    std::memcpy(&contents, tensors[2].data(), sizeof contents);
    return tensors == tensors_of(contents) ? contents : ~0ULL;
  }
  std::optional<std::string> compare(const Checked& store, const char* when) const {
    for (std::size_t i = 0; i < kVersions; ++i) {
      const ValueHistory::Value value = value_in(store, i);
      if (replayed_[i].allows(value)) continue;
      return "version " + std::to_string(i) + when + " has " + (value ? std::to_string(*value) : "nothing") +
             ", expected " + replayed_[i].describe();
    }
    return std::nullopt;
  }

  // The catalog comes last when it is made and first when it is opened, so that nothing else stands in for its steps.
  template <class M>
  Result<CheckpointStore<M>> format(std::byte* memory, M media) const {
    DUNNOCK_TRY(auto index,
                KvIndex<M>::format(region(memory, index_meta_bytes_), chunks(memory), store_options_.index, media));
    DUNNOCK_TRY(auto log, ValueLog<M>::format(region(memory + log_meta_at_, log_meta_bytes_),
                                              region(memory + log_at_, log_bytes_), store_options_.log, media));
    return CheckpointStore<M>::format(region(memory + catalog_at_, catalog_bytes_),
                                      KvStore<M>(std::move(index), std::move(log)), options_, media);
  }
  template <class M>
  Result<CheckpointStore<M>> attach(std::byte* memory, M media) const {
    std::uint64_t magic;
    std::memcpy(&magic, memory + catalog_at_, sizeof magic);
    if (magic != kCatalogMagic) return make_error(ErrorCode::kWrongLayout, "there is no catalog");
    DUNNOCK_TRY(auto log, ValueLog<M>::attach(region(memory + log_meta_at_, log_meta_bytes_),
                                              region(memory + log_at_, log_bytes_), media));
    DUNNOCK_TRY(auto index, KvIndex<M>::attach(region(memory, index_meta_bytes_), chunks(memory), media));
    return CheckpointStore<M>::attach(region(memory + catalog_at_, catalog_bytes_),
                                      KvStore<M>(std::move(index.index), std::move(log)), media);
  }
  static Region region(std::byte* memory, std::uint64_t bytes) { return Region({memory}, bytes, std::bit_ceil(bytes)); }
  [[nodiscard]] IndexMemory chunks(std::byte* memory) const {
    std::byte* first = memory + index_meta_bytes_;
    const auto chunk = [first](unsigned, std::uint64_t bytes) -> Result<Region> { return region(first, bytes); };
    return {chunk, chunk};
  }

  /// Removes the version if it is there, else saves it with these contents.
  template <class Store, class Note>
  void change_one(SimMemory& memory, Store& store, std::size_t i, std::uint64_t contents, const ValueHistory& history,
                  const Note& note) {
    using What = ValueChange::What;
    const bool there = history.latest().has_value();
    note({memory.events().size(), i, What::kIntend, there ? ValueHistory::Value() : ValueHistory::Value(contents)});
    const bool done = there ? store.remove(kName, i).has_value() : save(store, i, contents);
    if (done) {
      note({memory.mark(), i, What::kAcknowledge});
    } else {
      note({memory.mark(), i, What::kSettle, there ? history.latest() : ValueHistory::Value()});
      if (there) violation_ = "while running: version " + std::to_string(i) + " can't be removed";
    }
  }

  void run(SimMemory& memory, Recorded& store, const Operation& op) {
    const auto note = [this](ValueChange change) {
      change.apply(now_[change.key]);
      changes_.push_back(change);
    };
    switch (op.kind) {
      case Kind::kChange: change_one(memory, store, op.version, contents_++, now_[op.version], note); break;
      case Kind::kCollect: (void)store.collect(); break;
      case Kind::kRestore:
        if (value_in(store, op.version) != now_[op.version].latest())
          violation_ = "while running: version " + std::to_string(op.version) + " is wrong";
        break;
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
    std::mt19937_64 random(workload_.seed * 0x9e3779b97f4a7c15ULL + 13);
    life_ = random() % 8 == 0;
    prefill_ = random() % 5;
    options_.capacity_bytes = (6 + random() % 4) * 1024;
    options_.segment_bytes = 1024;
    options_.chunk_bytes = 64;
    options_.checkpoints_max = kVersions + 1;
    store_options_ = Checked::store_options(options_);
    store_options_.index.entries = 0;
    store_options_.index.segment_groups = 2;
    store_options_.index.bytes_max = KvIndex<Sim>::segment_bytes(2);
    store_options_.index.seed = HashSeed::from(workload_.seed);
    index_meta_bytes_ = KvIndex<Sim>::meta_bytes(store_options_.index);
    log_meta_at_ = index_meta_bytes_ + KvIndex<Sim>::segment_bytes(2);
    log_meta_bytes_ = ValueLog<Sim>::meta_bytes(store_options_.log);
    log_at_ = log_meta_at_ + log_meta_bytes_;
    log_bytes_ = ValueLog<Sim>::data_bytes(store_options_.log);
    catalog_at_ = log_at_ + log_bytes_;
    catalog_bytes_ = Checked::catalog_bytes(options_);
    for (unsigned n = 0; n < workload_.operations; ++n) {
      const unsigned dice = static_cast<unsigned>(random() % 8);
      operations_.push_back({dice < 6   ? Kind::kChange
                             : dice < 7 ? Kind::kCollect
                                        : Kind::kRestore,
                             random() % kVersions});
    }
  }

  FilterWorkload workload_;
  bool life_ = false;
  std::uint64_t prefill_ = 0;
  CheckpointOptions options_;
  StoreOptions store_options_;
  std::uint64_t index_meta_bytes_ = 0, log_meta_at_ = 0, log_meta_bytes_ = 0, log_at_ = 0, log_bytes_ = 0;
  std::uint64_t catalog_at_ = 0, catalog_bytes_ = 0;
  std::vector<Operation> operations_;

  std::uint64_t contents_ = 1;
  std::size_t format_acked_ = 0;
  mutable std::size_t images_seen_ = 0;
  std::vector<ValueHistory> base_, now_, replayed_;
  std::vector<ValueChange> changes_, continued_;
  std::optional<std::string> violation_;
};

}  // namespace dunnock::crash
