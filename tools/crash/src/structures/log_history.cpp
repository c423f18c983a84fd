#include "log_history.hpp"

#include <iterator>
#include <random>
#include <utility>

namespace dunnock::crash {

using Kind = LogOperation::Kind;

LogHistory::LogHistory(const Workload& workload) : HistorySubject(workload) { generate(); }

void LogHistory::generate() {
  std::mt19937_64 random(workload_.seed * 0x9e3779b97f4a7c15ULL + 9);
  life_ = random() % 12 == 0;
  switch_every_ = 1 + static_cast<unsigned>(random() % 6);
  prefill_ = random() % 40;
  StoreOptions options{.index = {.seed = HashSeed::from(workload_.seed)}, .log = {}};
  options.log.segment_bytes = 1024;
  // Long values fill three or four segments again and again while somebody reads.
  big_ = workload_.threads > 1 && random() % 2 == 0;
  options.log.capacity_bytes = ((big_ ? 6 : 4) + random() % 3) * 1024;
  memory_ = StoreMemory(options);
  for (std::size_t i = 0; i < kKeys; ++i) keys_.push_back({random(), random()});
  for (unsigned n = 0; n < workload_.operations * 2; ++n) {
    LogOperation op;
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

std::vector<std::byte> LogHistory::value_of(std::uint64_t number) {
  static constexpr std::size_t kLengths[] = {9, 33, 64, 100, 8, 221, 17, 40};
  static constexpr std::size_t kBigLengths[] = {180, 221, 260, 300};
  std::vector<std::byte> bytes(number >= kBig ? kBigLengths[number % std::size(kBigLengths)]
                                              : kLengths[number % std::size(kLengths)]);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(number * 31 + i * 7);
  std::memcpy(bytes.data(), &number, sizeof number);
  return bytes;
}

void LogHistory::begin_log_record(std::byte* memory) {
  begin_record();
  calls_.begin(kKeys);
  next_value_ = big_ ? kBig : 1;
  std::vector<ValueHistory> base(kKeys);
  if (!life_) {
    Checked store = *memory_.format<ImageMedia>(memory, {});
    std::mt19937_64 random(workload_.seed + 77);
    for (std::size_t n = 0; n < prefill_; ++n) {
      const std::size_t i = random() % kKeys;
      if (store.put(keys_[i], value_of(next_value_)) != PutResult::kFull) base[i] = ValueHistory(next_value_++);
    }
  }
  values_.begin(std::move(base));
}

std::string LogHistory::describe(std::size_t operation) const {
  const LogOperation& op = operations_[operation];
  static constexpr const char* kNames[] = {"put", "put_bulk", "erase", "get", "compact"};
  std::string text = "thread " + std::to_string(op.thread) + ": " + kNames[static_cast<int>(op.kind)];
  for (const std::size_t key : op.keys) text += " #" + std::to_string(key);
  return text;
}

std::optional<std::string> LogHistory::check(std::byte* image, std::size_t events, std::size_t more) {
  values_.replay_until(events, more);
  auto opened = memory_.attach<ImageMedia>(image, {});
  if (!opened) {
    if (may_be_missing(events, opened.error())) return std::nullopt;
    return "it can't be opened: " + opened.error().message;
  }
  Checked& store = *opened;
  const IndexCheck report = store.check();
  if (!report.ok()) return report.violations.front();
  if (auto differs = compare(store, "")) return differs;
  if (events % 4 != 0) return std::nullopt;
  // Goes on working: everything is moved, and replaced, and nothing of it comes back.
  store.compact(8, 1.1);
  if (auto differs = compare(store, " after compaction")) return differs;
  for (std::size_t i = 0; i < kKeys; ++i) store.erase(keys_[i]);
  for (std::size_t i = 0; i < kKeys; ++i) {
    if (store.put(keys_[i], value_of(i + 1)) == PutResult::kFull) return "there is no room after everything was erased";
  }
  for (std::size_t i = 0; i < kKeys; ++i) {
    if (value_in(store, i) != ValueHistory::Value(i + 1)) return "key #" + std::to_string(i) + " can't be put again";
  }
  const IndexCheck end = store.check();
  return end.ok() ? std::nullopt : std::optional("after going on: " + end.violations.front());
}

std::optional<std::string> LogHistory::compare(const Checked& store, const char* when) const {
  for (std::size_t i = 0; i < kKeys; ++i) {
    if (auto refused = values_.refuse(i, value_in(store, i), "key #" + std::to_string(i) + when)) return refused;
  }
  return std::nullopt;
}

bool LogHistory::recovery_has_work(const std::byte* image) const {
  std::uint64_t magic;
  std::memcpy(&magic, image, sizeof magic);
  return magic == kIndexMagic && is_one_in(64);
}

}  // namespace dunnock::crash
