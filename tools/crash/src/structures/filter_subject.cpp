#include "filter_subject.hpp"

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>

namespace dunnock::crash {
namespace {

using Kind = FilterOperation::Kind;

constexpr std::size_t kErasedAfterRecovery = 12;

std::uint64_t word(const std::byte* image, std::size_t offset) {
  std::uint64_t value;
  std::memcpy(&value, image + offset, sizeof value);
  return value;
}

}  // namespace

FilterSubject::FilterSubject(const Workload& workload, std::unique_ptr<FilterKind> kind)
    : HistorySubject(workload), kind_(std::move(kind)), history_(generate_filter_history(workload, *kind_)) {
  life_ = history_.life;
  switch_every_ = history_.switch_every;
}

// ----- what has happened to the keys ---------------------------------------------------------------------------------

FilterSubject::Fate FilterSubject::fate_of(const KeyState& s) {
  if (!s.inserted || s.refused || s.erase_acked || s.seen_gone) return Fate::kMustNot;
  if (s.erased) return Fate::kMay;
  return s.insert_acked || s.seen ? Fate::kMust : Fate::kMay;
}

void FilterSubject::apply(KeyState& s, What what) {
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

void FilterSubject::note(std::size_t events, std::size_t key, What what) {
  changes_.push_back({events, key, what});
  apply(states_[key], what);
}

std::string FilterSubject::lost(const char* what, std::size_t key) const {
  const KeyState& s = states_[key];
  std::string text = "key #" + std::to_string(key) + " " + what + " (";
  text += key < history_.prefilled ? "resident"
          : !s.inserted            ? "never inserted"
          : s.refused              ? "refused"
          : s.insert_acked         ? "acknowledged"
          : s.seen                 ? "seen by another thread"
                                   : "insert in flight";
  text += s.erase_acked ? ", erase acknowledged" : s.seen_gone ? ", seen gone" : s.erased ? ", erase in flight" : "";
  return text + ")";
}

void FilterSubject::replay_until(std::size_t events, std::size_t more) {
  if (is_replayed_ && events == replayed_events_ && more == 0 && replayed_more_ == 0) return;
  // Changes are in the order of their notes; the events of different threads' notes ascend as well.
  states_ = base_states_;
  for (const Change& change : changes_) {
    if (change.events > events) break;
    apply(states_[change.key], change.what);
  }
  for (const Change& change : continued_) {
    if (more != 0 && change.events <= more) apply(states_[change.key], change.what);
  }
  replayed_events_ = events;
  replayed_more_ = more;
  is_replayed_ = true;
}

// ----- the record ----------------------------------------------------------------------------------------------------

std::optional<std::string> FilterSubject::record(SimMemory& memory, const std::vector<std::size_t>& keep) {
  begin_record();
  base_states_.assign(history_.keys.size(), {});
  is_replayed_ = false;
  changes_.clear();
  clears_.clear();
  under_way_.begin(workload_.seed + schedule_);
  calls_.begin(history_.keys.size());
  if (!life_) fill(memory);
  states_ = base_states_;
  memory.start();
  if (auto failed = begin(memory)) return failed;
  const auto run_one = [&](const FilterOperation& op) { run(memory, op); };
  // close() and clear() need the filter for themselves: in a life, threads take turns.
  if (!run_history(memory, history_.operations, keep, life_, run_one)) return "all threads are in a deadlock";
  if (!violation_ && !life_) {
    violation_ = calls_.unexplained(
        [&](std::size_t i) { return FilterKey::State{fate_of(base_states_[i]) == Fate::kMust ? 1U : 0U}; });
  }
  filter_.reset();
  return violation_;
}

/// Inserts the residents, before the record.
void FilterSubject::fill(SimMemory& memory) {
  const auto filter = std::move(*kind_->format(memory.data(), options(), nullptr));
  for (std::size_t i = 0; i < history_.prefilled; ++i) {
    if (filter->insert(history_.keys[i])) base_states_[i] = {.inserted = true, .insert_acked = true};
    if (i + 1 != history_.erased_at) continue;
    // Holes in the middle make later inserts take every road.
    for (std::size_t gone = 0; gone < history_.erased_before && gone <= i; ++gone) {
      if (base_states_[gone].inserted && filter->erase(history_.keys[gone]))
        base_states_[gone] = {.inserted = true, .insert_acked = true, .erased = true, .erase_acked = true};
    }
  }
  if (history_.clean_before) filter->close();
}

std::optional<std::string> FilterSubject::begin(SimMemory& memory) {
  if (life_) {
    auto filter = kind_->format(memory.data(), options(), &memory);
    if (!filter) return "format failed: " + filter.error().message;
    format_acked_ = memory.mark();
    filter_ = std::move(*filter);
  } else {
    auto opened = kind_->attach(memory.data(), history_.slots, &memory);
    if (!opened) return "attach failed: " + opened.error().message;
    filter_ = std::move(opened->filter);
  }
  return std::nullopt;
}

// ----- operations ----------------------------------------------------------------------------------------------------

/// A key that another thread is inserting or erasing, or one that can't be told from it; else `otherwise`.
std::size_t FilterSubject::followed(std::size_t otherwise) {
  if (under_way_.empty()) return otherwise;
  const std::size_t i = under_way_.any();
  const std::vector<std::size_t>& family = history_.families[history_.family_of[i]];
  for (unsigned tries = 0; tries < 4 && under_way_.choose(2) == 0; ++tries) {
    const std::size_t j = family[under_way_.choose(family.size())];
    if (fate_of(states_[j]) == Fate::kMust) return j;
  }
  return i;
}

std::vector<std::uint64_t> FilterSubject::keys_of(const std::vector<std::size_t>& places) const {
  std::vector<std::uint64_t> keys;
  for (const std::size_t i : places) keys.push_back(history_.keys[i]);
  return keys;
}

void FilterSubject::run(SimMemory& memory, FilterOperation op) {
  if (op.follows) {
    for (std::size_t& i : op.keys) i = followed(i);
  }
  switch (op.kind) {
    case Kind::kInsert:
    case Kind::kInsertBulk: insert(memory, op); break;
    case Kind::kErase:
    case Kind::kEraseBulk: erase(memory, op); break;
    case Kind::kContains:
    case Kind::kContainsBulk: look_up(memory, op); break;
    case Kind::kReopen: close_and_reopen(memory); break;
    case Kind::kClear: clear(memory); break;
  }
}

void FilterSubject::insert(SimMemory& memory, const FilterOperation& op) {
  const std::uint64_t began = calls_.now();
  const std::vector<std::uint64_t> keys = keys_of(op.keys);
  std::vector<std::uint8_t> inserted(keys.size(), 0);
  const UnderWay::Keys under_way = under_way_.enter(op.keys);
  for (const std::size_t i : op.keys) note(memory.events().size(), i, What::kInsert);
  if (op.kind == Kind::kInsert) {
    inserted[0] = filter_->insert(keys[0]) ? 1 : 0;
  } else {
    filter_->insert_bulk(keys, inserted.data());
  }
  const std::size_t acked = memory.mark();
  for (std::size_t n = 0; n < keys.size(); ++n) {
    calls_.returned(op.keys[n], {FilterKey::What::kInsert, true, inserted[n] != 0}, began);
    note(acked, op.keys[n], inserted[n] != 0 ? What::kInserted : What::kRefused);
  }
}

void FilterSubject::erase(SimMemory& memory, const FilterOperation& op) {
  const std::uint64_t began = calls_.now();
  std::vector<std::size_t> present;
  for (const std::size_t i : op.keys) {
    // Only what is known to be there may be erased. (A followed key may come twice.)
    if (fate_of(states_[i]) != Fate::kMust) continue;
    present.push_back(i);
    note(memory.events().size(), i, What::kErase);
  }
  if (present.empty()) return;
  const std::vector<std::uint64_t> keys = keys_of(present);
  const UnderWay::Keys under_way = under_way_.enter(present);
  std::vector<std::uint8_t> erased(keys.size(), 0);
  if (op.kind == Kind::kErase) {
    erased[0] = filter_->erase(keys[0]) ? 1 : 0;
  } else {
    filter_->erase_bulk(keys, erased.data());
  }
  const std::size_t acked = memory.mark();
  for (std::size_t n = 0; n < keys.size(); ++n) {
    calls_.returned(present[n], {FilterKey::What::kErase, true, erased[n] != 0}, began);
    if (erased[n] == 0) violation_ = "while running: " + lost("can't be erased", present[n]);
    note(acked, present[n], What::kErased);
  }
}

void FilterSubject::look_up(SimMemory& memory, const FilterOperation& op) {
  const std::uint64_t began = calls_.now();
  const std::vector<std::uint64_t> keys = keys_of(op.keys);
  std::vector<std::uint8_t> found(keys.size(), 0);
  std::vector<KeyState> before;
  for (const std::size_t i : op.keys) before.push_back(states_[i]);
  if (op.kind == Kind::kContains) {
    found[0] = filter_->contains(keys[0]) ? 1 : 0;
  } else {
    filter_->contains_bulk(keys, found.data());
  }
  const std::size_t acked = memory.mark();
  for (std::size_t n = 0; n < keys.size(); ++n) {
    calls_.returned(op.keys[n], {FilterKey::What::kContains, true, found[n] != 0}, began);
    judge_lookup(op.keys[n], found[n] != 0, before[n], acked);
  }
}

/// A lookup that said so, between this state of the key and that of now, and what follows from that after a crash.
void FilterSubject::judge_lookup(std::size_t i, bool found, const KeyState& before, std::size_t acked) {
  const KeyState& after = states_[i];
  if (!found && fate_of(before) == Fate::kMust && !after.erased)
    violation_ = "while running: " + lost("is not there", i);
  // A copy of another key's may hide that this one is gone, but none makes a key seem gone.
  if (!found && before.insert_acked && after.erased) note(acked, i, What::kSeenGone);
  if (!history_.alone[i]) return;
  if (found && fate_of(before) == Fate::kMustNot && !(after.inserted && !before.inserted))
    violation_ = "while running: " + lost("is there", i);
  if (found && after.inserted && !after.erased) note(acked, i, What::kSeen);
}

void FilterSubject::close_and_reopen(SimMemory& memory) {
  filter_->close();
  closed_.push_back(memory.mark());
  auto opened = kind_->attach(memory.data(), history_.slots, &memory);
  if (!opened || !opened->clean_shutdown) {
    violation_ = "while running: a closed filter does not open as clean";
    return;
  }
  filter_ = std::move(opened->filter);
}

void FilterSubject::clear(SimMemory& memory) {
  const std::size_t invoked = memory.events().size();
  for (std::size_t i = 0; i < states_.size(); ++i) {
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
}

// ----- images --------------------------------------------------------------------------------------------------------

std::optional<std::string> FilterSubject::check(std::byte* image, std::size_t events, std::size_t more) {
  replay_until(events, more);
  auto opened = kind_->attach(image, history_.slots, nullptr);
  if (!opened) {
    if (may_be_missing(events, opened.error())) return std::nullopt;
    return "it can't be opened: " + opened.error().message;
  }
  if (must_be_clean(events, more) && !opened->clean_shutdown)
    return "close() had returned, but it does not open as clean";
  AnyFilter& filter = *opened->filter;
  const CheckReport report = filter.check();
  if (!report.ok()) return report.violations.front();
  for (const auto& [invoked, acked] : clears_) {
    if (events >= invoked && events < acked && report.items == 0) return std::nullopt;
  }
  if (auto wrong = compare(filter, report.items)) return wrong;
  return erase_all(filter);
}

std::optional<std::string> FilterSubject::compare(const AnyFilter& filter, std::uint64_t items) const {
  std::uint64_t least = 0, most = 0;
  for (std::size_t i = 0; i < states_.size(); ++i) {
    const Fate fate = fate_of(states_[i]);
    least += fate == Fate::kMust ? 1 : 0;
    most += fate != Fate::kMustNot ? 1 : 0;
    if (fate == Fate::kMust && !filter.contains(history_.keys[i])) return lost("is not there", i);
    if (fate == Fate::kMustNot && history_.alone[i] && filter.contains(history_.keys[i])) return lost("is there", i);
  }
  if (items >= least && items <= most) return std::nullopt;
  return "it holds " + std::to_string(items) + " items, expected " + std::to_string(least) + " to " +
         std::to_string(most);
}

std::optional<std::string> FilterSubject::erase_all(AnyFilter& filter) const {
  for (std::size_t i = 0; i < states_.size(); ++i) {
    if (fate_of(states_[i]) == Fate::kMust && !filter.erase(history_.keys[i])) return lost("can't be erased", i);
  }
  for (std::size_t i = 0; i < states_.size(); ++i) {
    if (fate_of(states_[i]) == Fate::kMay) filter.erase(history_.keys[i]);
  }
  const std::uint64_t rest = filter.check().items;
  if (rest == 0) return std::nullopt;
  return std::to_string(rest) + " fingerprints stay behind when all keys are erased";
}

bool FilterSubject::recovery_has_work(const std::byte* image) const {
  std::uint64_t work = 0;
  for (unsigned i = 0; i < kLogLines; ++i) work |= word(image, kFilterLogOffset + i * sizeof(LogLine));
  return (work | word(image, kFilterStateOffset + offsetof(FilterState, clearing))) != 0 &&
         word(image, 0) == kFilterMagic;
}

void FilterSubject::recover(SimMemory& memory, std::size_t events) {
  replay_until(events, 0);
  continued_.clear();
  std::vector<std::size_t> victims;  // Erasing touches whatever recovery has touched.
  for (std::size_t i = 0; i < states_.size(); ++i) {
    if (fate_of(states_[i]) == Fate::kMust) victims.push_back(i);
  }
  // A few of them: each costs images, and there are many recoveries.
  std::mt19937_64 random(workload_.seed + events);
  std::shuffle(victims.begin(), victims.end(), random);
  victims.resize(std::min(victims.size(), kErasedAfterRecovery));
  std::unique_ptr<AnyFilter> filter;
  const auto attach = [&] {
    auto opened = kind_->attach(memory.data(), history_.slots, &memory);
    if (opened) filter = std::move(opened->filter);
    return filter != nullptr;
  };
  recover_and_continue(memory, attach, [&] {
    for (const std::size_t i : victims) {
      continued_.push_back({memory.events().size(), i, What::kErase});
      (void)filter->erase(history_.keys[i]);
      continued_.push_back({memory.mark(), i, What::kErased});
    }
  });
}

std::string FilterSubject::describe(std::size_t operation) const {
  const FilterOperation& op = history_.operations[operation];
  static constexpr const char* kNames[] = {"insert",     "erase",         "contains",         "insert_bulk",
                                           "erase_bulk", "contains_bulk", "close and reopen", "clear"};
  std::string text = "thread " + std::to_string(op.thread) + ": " + kNames[static_cast<int>(op.kind)];
  for (const std::size_t key : op.keys) text += " #" + std::to_string(key);
  return text + (op.follows ? " or what another thread is at" : "");
}

}  // namespace dunnock::crash
