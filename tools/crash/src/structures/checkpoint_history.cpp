#include "checkpoint_history.hpp"

#include <random>

namespace dunnock::crash {

using Kind = CheckpointOperation::Kind;

CheckpointHistory::CheckpointHistory(const Workload& workload) : HistorySubject(workload) { generate(); }

void CheckpointHistory::generate() {
  std::mt19937_64 random(workload_.seed * 0x9e3779b97f4a7c15ULL + 13);
  life_ = random() % 8 == 0;
  prefill_ = random() % 5;
  options_.capacity_bytes = (6 + random() % 4) * 1024;
  options_.segment_bytes = 1024;
  options_.chunk_bytes = 64;
  options_.checkpoints_max = kVersions + 1;
  StoreOptions store = Checked::store_options(options_);
  store.index.entries = 0;
  store.index.seed = HashSeed::from(workload_.seed);
  memory_ = StoreMemory(store);
  catalog_bytes_ = Checked::catalog_bytes(options_);
  for (unsigned n = 0; n < workload_.operations; ++n) {
    const unsigned dice = static_cast<unsigned>(random() % 8);
    const Kind kind = dice < 6 ? Kind::kChange : dice < 7 ? Kind::kCollect : Kind::kRestore;
    operations_.push_back({kind, random() % kVersions});
  }
}

std::vector<std::vector<std::byte>> CheckpointHistory::tensors_of(std::uint64_t contents) {
  std::vector<std::vector<std::byte>> tensors{std::vector<std::byte>(200), std::vector<std::byte>(64),
                                              std::vector<std::byte>(9)};
  for (std::size_t i = 0; i < 200; ++i)
    tensors[0][i] = static_cast<std::byte>(i * 3 + (i / 64 == contents % 3 ? contents * 101 : 0));
  for (std::size_t i = 0; i < 64; ++i) tensors[1][i] = static_cast<std::byte>(i + contents / 2);
  std::memcpy(tensors[2].data(), &contents, sizeof contents);
  return tensors;
}

void CheckpointHistory::begin_checkpoint_record(std::byte* memory) {
  begin_record();
  contents_ = 1;
  std::vector<ValueHistory> base(kVersions);
  if (!life_) {
    Checked store = *format<ImageMedia>(memory, {});
    for (std::uint64_t version = 0; version < prefill_; ++version) {
      if (save(store, version, contents_)) base[version] = ValueHistory(contents_);
      ++contents_;
    }
  }
  values_.begin(std::move(base));
}

std::string CheckpointHistory::describe(std::size_t operation) const {
  const CheckpointOperation& op = operations_[operation];
  static constexpr const char* kNames[] = {"save or remove", "collect", "restore"};
  return std::string(kNames[static_cast<int>(op.kind)]) + " version " + std::to_string(op.version);
}

std::optional<std::string> CheckpointHistory::check(std::byte* image, std::size_t events, std::size_t more) {
  values_.replay_until(events, more);
  auto opened = attach<ImageMedia>(image, {});
  if (!opened) {
    if (may_be_missing(events, opened.error())) return std::nullopt;
    return "it can't be opened: " + opened.error().message;
  }
  Checked& store = *opened;
  const CheckpointCheck report = store.check();
  if (!report.ok()) return report.violations.front();
  if (auto differs = compare(store, "")) return differs;
  if (events % 4 != 0) return std::nullopt;
  // What was interrupted is collected, and nothing else; then there is room for as much as ever.
  (void)store.collect();
  if (auto differs = compare(store, " after collecting")) return differs;
  for (std::uint64_t version = 0; version < kVersions; ++version) (void)store.remove(kName, version);
  (void)store.collect();
  if (store.stats().index.entries != 0) return "entries remain after all checkpoints were removed";
  if (!save(store, 0, 7)) return "there is no room after all checkpoints were removed";
  return value_in(store, 0) == ValueHistory::Value(7) ? std::nullopt : std::optional("a new checkpoint is wrong");
}

std::optional<std::string> CheckpointHistory::compare(const Checked& store, const char* when) const {
  for (std::size_t i = 0; i < kVersions; ++i) {
    if (auto refused = values_.refuse(i, value_in(store, i), "version " + std::to_string(i) + when)) return refused;
  }
  return std::nullopt;
}

bool CheckpointHistory::recovery_has_work(const std::byte* image) const {
  std::uint64_t magic;
  std::memcpy(&magic, image, sizeof magic);
  return magic == kIndexMagic && is_one_in(256);
}

}  // namespace dunnock::crash
