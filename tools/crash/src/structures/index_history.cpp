#include "index_history.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>
#include <random>
#include <span>

namespace dunnock::crash {

using Kind = IndexOperation::Kind;

// ----- generation ----------------------------------------------------------------------------------------------------

class IndexHistory::Generator {
 public:
  explicit Generator(IndexHistory& history)
      : history_(history),
        random_(history.workload_.seed * 0x9e3779b97f4a7c15ULL + 5),
        hasher_(HashSeed::from(history.workload_.seed)) {}

  void generate() {
    choose_segments();
    choose_keys();
    hot_ = random_() % 4 == 0;
    fresh_ = history_.prefilled_;
    mine_.resize(history_.workload_.threads);
    for (unsigned n = 0; n < history_.workload_.operations; ++n) add_operation();
  }

 private:
  void choose_segments() {
    IndexHistory& h = history_;
    h.initial_segments_ = random_() % 3 == 0 ? 2 : 1;
    h.segments_max_ = h.initial_segments_ + random_() % 3;
    second_split_ = h.initial_segments_ == 2 && random_() % 2 == 0;
    h.life_ = random_() % 12 == 0;
    h.clean_before_ = random_() % 4 == 0;
    h.switch_every_ = 1 + static_cast<unsigned>(random_() % 6);
    set_options();
    static constexpr std::size_t kFill[] = {0, 10, 44, 76, 79, 80, 80, 80};  // A segment splits at 81.
    h.prefilled_ = h.life_ ? 0 : kFill[random_() % std::size(kFill)] * (h.initial_segments_ == 1 ? 8 : 15) / 8;
    if (second_split_) {
      h.life_ = false;
      h.segments_max_ = 4;
      h.prefilled_ = 2 * kSegmentLanes + 1;
    }
    h.erased_before_ = second_split_ || h.prefilled_ == 0 || random_() % 2 == 0 ? 0 : random_() % 6;
  }

  void set_options() {
    IndexHistory& h = history_;
    h.options_.entries = h.initial_segments_ == 1 ? 0 : kSegmentLanes * 3 / 5 + 1;
    h.options_.bytes_max = h.segments_max_ * Checked::segment_bytes(kGroups);
    h.options_.segment_groups = kGroups;
    h.options_.seed = HashSeed::from(h.workload_.seed);
    h.meta_bytes_ = Checked::meta_bytes(h.options_);
  }

  /// Random keys, and twins that share fingerprint, bucket and segment, for what a crash leaves of the one may be taken
  /// for the other.
  void choose_keys() {
    const std::size_t residents = history_.prefilled_;
    const std::size_t count = residents + history_.workload_.operations * 3 + 4;
    std::vector<std::pair<IndexKey, IndexKey>> twins = find_twins();
    history_.keys_.resize(count);
    history_.twin_.resize(count);
    for (std::size_t i = 0; i < count; ++i) {
      history_.keys_[i] = {random_(), random_()};
      history_.twin_[i] = i;
    }
    // One segment has been split and the other is full: its split finds the directory long enough.
    for (std::size_t i = 0; second_split_ && i < residents; ++i) {
      IndexKey& key = history_.keys_[i];
      while ((hasher_(key.low, key.high) >> 39 & 1) != (i < kSegmentLanes ? 0U : 1U)) key.low = random_();
    }
    // A twin of a newcomer is a resident or another newcomer.
    for (std::size_t i = residents; i < count; ++i) {
      if (twins.empty() || history_.twin_[i] != i || random_() % 2 == 0) continue;
      const std::size_t j = second_split_ ? residents + random_() % (count - residents) : random_() % count;
      if (history_.twin_[j] != j || j == i) continue;
      history_.keys_[i] = twins.back().first;
      history_.keys_[j] = twins.back().second;
      twins.pop_back();
      history_.twin_[i] = j;
      history_.twin_[j] = i;
    }
  }

  std::vector<std::pair<IndexKey, IndexKey>> find_twins() {
    std::vector<std::pair<std::uint64_t, IndexKey>> pool(12000);
    for (auto& [where, key] : pool) {
      key = {random_(), random_()};
      where = hasher_(key.low, key.high) & 0xffff;  // fingerprint, word, group
    }
    std::sort(pool.begin(), pool.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    std::vector<std::pair<IndexKey, IndexKey>> twins;
    for (std::size_t i = 1; i < pool.size(); ++i) {
      if (pool[i].first != pool[i - 1].first) continue;
      twins.emplace_back(pool[i - 1].second, pool[i].second);
      ++i;
    }
    std::shuffle(twins.begin(), twins.end(), random_);
    return twins;
  }

  [[nodiscard]] std::size_t key_count() const { return history_.keys_.size(); }

  /// Something of this thread's, or a number that no key has: residents are shared out.
  std::size_t own(unsigned thread) {
    const std::size_t residents = history_.prefilled_;
    const unsigned threads = history_.workload_.threads;
    const std::vector<std::size_t>& list = mine_[thread];
    if (!list.empty() && hot_ && random_() % 4 != 0) return list[0];
    if (!list.empty() && (residents == 0 || random_() % 2 == 0)) return list[random_() % list.size()];
    if (residents == 0) return key_count();
    // Or one of the last of them: in a segment that is nearly full these are far from home.
    const std::size_t from = random_() % 2 == 0 ? 0 : residents - std::min<std::size_t>(residents, 8);
    const std::size_t any = from + random_() % (residents - from);
    const std::size_t at = any / threads * threads + thread;
    return at < residents ? at : key_count();
  }

  void add_operation() {
    IndexOperation op;
    op.thread = static_cast<unsigned>(random_() % history_.workload_.threads);
    // Readers of what others are at are half of a history with several threads.
    const unsigned dice = static_cast<unsigned>(random_() % (history_.workload_.threads > 1 ? 36 : 24));
    if (dice < 7) {
      op.kind = Kind::kPut;
      op.keys = {fresh_};
    } else if (dice < 9) {
      op.kind = Kind::kPutBulk;
      op.keys = {fresh_, fresh_ + 1, own(op.thread)};
    } else if (dice < 12) {
      op.kind = Kind::kPut;
      op.keys = {own(op.thread)};
    } else if (dice < 15) {
      op.kind = Kind::kErase;
      op.keys = {own(op.thread)};
    } else if (dice < 16) {
      op.kind = Kind::kEraseBulk;
      op.keys = {own(op.thread), own(op.thread)};
      if (op.keys[0] == op.keys[1]) op.keys.pop_back();
    } else if (dice < 18) {
      op.kind = Kind::kReplaceIf;
      op.keys = {own(op.thread)};
    } else if (dice != 23 || !history_.life_) {
      op.kind = dice % 5 == 0 ? Kind::kMayContain : dice % 5 == 1 ? Kind::kGetBulk : Kind::kGet;
      choose_lookups(op);
    } else {
      op.kind = Kind::kReopen;
    }
    if (op.kind == Kind::kPut || op.kind == Kind::kPutBulk) own_newcomers(op);
    std::erase_if(op.keys, [&](std::size_t i) { return i >= key_count(); });
    if (op.keys.empty() && op.kind != Kind::kReopen) return;
    history_.operations_.push_back(op);
  }

  void choose_lookups(IndexOperation& op) {
    const std::size_t residents = history_.prefilled_;
    op.follows = !history_.life_ && random_() % 2 == 0;
    for (std::size_t lookups = op.kind == Kind::kGetBulk ? 1 + random_() % 3 : 1; lookups > 0; --lookups) {
      op.keys.push_back(random_() % 3 == 0 && residents != 0 ? random_() % residents
                                                             : residents + random_() % (fresh_ - residents + 1));
    }
  }

  void own_newcomers(const IndexOperation& op) {
    for (const std::size_t i : op.keys) {
      if (i >= fresh_ && i < key_count()) mine_[op.thread].push_back(i);
    }
    for (const std::size_t i : op.keys) fresh_ = std::max(fresh_, i < key_count() ? i + 1 : fresh_);
  }

  IndexHistory& history_;
  std::mt19937_64 random_;
  KeyHasher hasher_;
  bool second_split_ = false;
  bool hot_ = false;       // each thread changes one key again and again
  std::size_t fresh_ = 0;  // the next key that nobody has put
  std::vector<std::vector<std::size_t>> mine_;  // what each thread has put
};

IndexHistory::IndexHistory(const Workload& workload) : HistorySubject(workload) { Generator(*this).generate(); }

// ----- values and memory ---------------------------------------------------------------------------------------------

IndexValue IndexHistory::value_of(std::uint64_t number) {
  if (number % 5 == 0) return IndexValue::of(Locator{number * 0x0101010101010101ULL, 77, 99});
  const std::uint64_t words[2] = {number * 0x0101010101010101ULL, ~(number * 0x0101010101010101ULL)};
  return IndexValue::of(std::as_bytes(std::span(words)).first(number % 2 == 0 ? 16 : 9));
}

std::uint64_t IndexHistory::number_of(const IndexValue& value) {
  // 0x0101010101010101 is odd, so multiplication by its inverse gives the number back.
  std::uint64_t inverse = 1;
  for (int i = 0; i < 6; ++i) inverse *= 2 - 0x0101010101010101ULL * inverse;
  return value.number() * inverse;
}

Region IndexHistory::meta(std::byte* memory) const { return Region({memory}, meta_bytes_, std::bit_ceil(meta_bytes_)); }

IndexMemory IndexHistory::chunks(std::byte* memory) const {
  std::byte* first = memory + meta_bytes_;
  const std::uint64_t initial = initial_segments_;
  const auto chunk = [first, initial](unsigned number, std::uint64_t bytes) -> Result<Region> {
    const std::uint64_t before = number == 0 ? 0 : initial + number - 1;  // All but the first are one segment.
    return Region({first + before * Checked::segment_bytes(kGroups)}, bytes, std::bit_ceil(bytes));
  };
  return {chunk, chunk};
}

void IndexHistory::begin_index_record(std::byte* memory) {
  begin_record();
  recover_violation_.reset();
  next_value_ = 1;
  under_way_.begin(workload_.seed + schedule_);
  calls_.begin(keys_.size());
  std::vector<ValueHistory> base(keys_.size());
  if (!life_) {
    auto index = Checked::format(meta(memory), chunks(memory), options_, {});
    for (std::size_t i = 0; i < prefilled_; ++i) {
      if (index->put(keys_[i], value_of(next_value_)) == PutResult::kInserted) base[i] = ValueHistory(next_value_++);
    }
    for (std::size_t i = 0; i < erased_before_; ++i) {
      if (index->erase(keys_[i])) base[i] = ValueHistory();
    }
    if (clean_before_) index->close();
  }
  values_.begin(std::move(base));
}

void IndexHistory::follow(std::vector<std::size_t>& keys) {
  if (under_way_.empty()) return;
  for (std::size_t& i : keys) {
    const bool resident = prefilled_ != 0 && under_way_.choose(3) == 0;
    i = resident ? under_way_.choose(prefilled_) : under_way_.any();
  }
}

std::string IndexHistory::describe(std::size_t operation) const {
  const IndexOperation& op = operations_[operation];
  static constexpr const char* kNames[] = {"put",        "erase",      "get",         "put_bulk",        "get_bulk",
                                           "erase_bulk", "replace_if", "may_contain", "close and reopen"};
  std::string text = "thread " + std::to_string(op.thread) + ": " + kNames[static_cast<int>(op.kind)];
  for (const std::size_t key : op.keys) text += " #" + std::to_string(key);
  return text + (op.follows ? " or what another thread is at" : "");
}

// ----- images --------------------------------------------------------------------------------------------------------

std::optional<std::string> IndexHistory::check(std::byte* image, std::size_t events, std::size_t more) {
  values_.replay_until(events, more);
  if (more != 0 && recover_violation_) return recover_violation_;
  auto opened = Checked::attach(meta(image), chunks(image), {});
  if (!opened) {
    if (may_be_missing(events, opened.error())) return std::nullopt;
    return "it can't be opened: " + opened.error().message;
  }
  const bool clean = opened->report.clean_shutdown;
  if (must_be_clean(events, more) && !clean) return "close() had returned, but it does not open as clean";
  Checked& index = opened->index;
  const std::uint64_t size = clean ? index.size() : 0;
  const IndexCheck report = index.check();
  if (!report.ok()) return report.violations.front();
  if (clean && size != report.entries) return "the size of a clean shutdown is wrong";
  std::uint64_t found = 0;
  if (auto differs = compare(index, report.entries, found)) return differs;
  // What is left of the crash must not come back: keys are put and erased once more.
  return found % 4 == events % 4 ? put_and_erase_again(index, events) : std::nullopt;
}

std::optional<std::string> IndexHistory::compare(const Checked& index, std::uint64_t entries,
                                                 std::uint64_t& found_count) const {
  for (std::size_t i = 0; i < keys_.size(); ++i) {
    const GetResult found = index.get(keys_[i]);
    const auto key = [i] { return "key #" + std::to_string(i); };
    if (found.state == GetState::kDamaged) return key() + " is damaged";
    const ValueHistory::Value value = seen_in(found);
    if (!values_.replayed(i).allows(value)) return values_.refuse(i, value, key());
    if (found && !(found.value == value_of(*value))) return key() + " has a torn value";
    if (found && !index.may_contain(keys_[i])) return key() + " is not in the filter";
    found_count += found ? 1 : 0;
  }
  if (found_count == entries) return std::nullopt;
  return std::to_string(entries) + " entries, of which " + std::to_string(found_count) + " can be found";
}

std::optional<std::string> IndexHistory::put_and_erase_again(Checked& index, std::size_t events) const {
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

/// Opening stores little, but a crash may leave lanes without entries and entries without lanes, which later puts take
/// over: that is what is explored.
bool IndexHistory::recovery_has_work(const std::byte* image) const {
  std::uint64_t magic;
  std::memcpy(&magic, image, sizeof magic);
  if (magic != kIndexMagic || !is_one_in(segments_max_ == 1 ? 16 : kLookedAtEvery)) return false;
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

bool IndexHistory::is_unseen(Point point) const {
  return point == index_point::kSplitRecord || point == index_point::kSplitWord;
}

}  // namespace dunnock::crash
