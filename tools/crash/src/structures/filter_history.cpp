#include "filter_history.hpp"

#include <algorithm>
#include <array>
#include <random>
#include <utility>

namespace dunnock::crash {
namespace {

using Kind = FilterOperation::Kind;

class Generator {
 public:
  Generator(const Workload& workload, const FilterKind& kind)
      : workload_(workload),
        kind_(kind),
        random_(workload.seed * 0x9e3779b97f4a7c15ULL + 1),
        hasher_(HashSeed::from(workload.seed)) {}

  FilterHistory generate() {
    choose_table();
    choose_keys();
    find_families();
    for (unsigned n = 0; n < workload_.operations; ++n) add_operation();
    return std::move(history_);
  }

 private:
  void choose_table() {
    equal_ = workload_.threads > 1 && random_() % 6 == 0;
    const unsigned groups = equal_ ? 2 : 1 + static_cast<unsigned>(random_() % 3);
    history_.slots = groups * kind_.group_slots();
    history_.life = !equal_ && random_() % 16 == 0;
    history_.clean_before = random_() % 4 == 0;
    history_.switch_every = 1 + static_cast<unsigned>(random_() % 6);
    static constexpr unsigned kFill[] = {0, 40, 80, 95, 110, 130};
    history_.prefilled = history_.life ? 0 : history_.slots * kFill[random_() % 6] / 100;
    history_.erased_before = random_() % 3 == 0 ? 0 : random_() % (history_.slots / 8);
    history_.erased_at = history_.prefilled;
  }

  [[nodiscard]] std::uint64_t groups() const { return history_.slots / kind_.group_slots(); }
  [[nodiscard]] FilterClass class_of(std::uint64_t key) const { return kind_.class_of(hasher_(key), groups()); }

  /// Random ones; and now and then one that shares fingerprint and groups with another, for then the copies can't be
  /// told apart and the hard cases of erase come up.
  void choose_keys() {
    std::size_t count = history_.prefilled + workload_.operations * 3 + 2;
    dense_ = random_() % 8 == 0;
    std::vector<std::uint64_t> twins = find_twins(count / 2);
    if (equal_) count = choose_equal_keys();
    while (history_.keys.size() < count) {
      if (!twins.empty() && random_() % (dense_ ? 2 : 3) == 0) {
        history_.keys.push_back(twins.back());
        twins.pop_back();
      } else {
        history_.keys.push_back(random_());
      }
    }
  }

  /// Keys that are not alone in their class, shuffled: they may be among the residents, among the newcomers, or both.
  std::vector<std::uint64_t> find_twins(std::size_t most) {
    // A pool of candidates in the order of their classes has enough twins by the birthday paradox.
    std::vector<std::pair<FilterClass, std::uint64_t>> pool(dense_ ? 16000 : 1200);
    for (auto& [group_class, key] : pool) {
      key = random_();
      group_class = class_of(key);
    }
    std::sort(pool.begin(), pool.end());
    std::vector<std::uint64_t> twins;
    if (dense_) {
      std::vector<std::pair<std::size_t, std::size_t>> sizes;  // of a class, and where it starts
      for (std::size_t i = 0; i < pool.size();) {
        std::size_t end = i;
        while (end < pool.size() && pool[end].first == pool[i].first) ++end;
        sizes.emplace_back(end - i, i);
        i = end;
      }
      std::sort(sizes.rbegin(), sizes.rend());
      for (const auto& [size, at] : sizes) {
        if (twins.size() > most) break;
        for (std::size_t i = at; i < at + size; ++i) twins.push_back(pool[i].second);
      }
    }
    for (std::size_t i = 1; !dense_ && i < pool.size(); ++i) {
      if (pool[i].first != pool[i - 1].first) continue;
      twins.push_back(pool[i - 1].second);
      twins.push_back(pool[i].second);
    }
    std::sort(twins.begin(), twins.end());
    twins.erase(std::unique(twins.begin(), twins.end()), twins.end());
    std::shuffle(twins.begin(), twins.end(), random_);
    if (!dense_ && random_() % 2 == 0) twins.clear();
    return twins;
  }

  /// Newcomers are all of one class in two groups. One group is full, so that keys of that class go to the other one;
  /// then room is made in it for more of them.
  std::size_t choose_equal_keys() {
    std::vector<std::uint64_t>& keys = history_.keys;
    const std::uint64_t full = random_() % 2;
    const std::size_t beside = kind_.group_slots() * (30 + random_() % 60) / 100;
    while (keys.size() < kind_.group_slots() + beside) {
      const std::uint64_t key = random_();
      const std::uint64_t group = kind_.home_group(hasher_(key), groups());
      if ((group == full) == (keys.size() < kind_.group_slots())) keys.push_back(key);
    }
    others_ = keys.size();
    history_.erased_at = others_ + 2 + random_() % 6;
    history_.prefilled = history_.erased_at + 2 + random_() % 6;
    history_.erased_before = 2 + random_() % 8;
    const FilterClass wanted = class_of(random_());
    // Of 16 bits there may be few: then some, however long that takes.
    for (std::size_t looked = 0; keys.size() < others_ + (looked < 500000 ? 30 : 4); ++looked) {
      const std::uint64_t key = random_();
      if (class_of(key) == wanted) keys.push_back(key);
    }
    history_.prefilled = std::min<std::size_t>(history_.prefilled, keys.size());
    history_.erased_at = std::min<std::size_t>(history_.erased_at, keys.size());
    return keys.size();
  }

  void find_families() {
    std::vector<FilterClass> classes;
    for (const std::uint64_t key : history_.keys) classes.push_back(class_of(key));
    std::sort(classes.begin(), classes.end());
    history_.families.resize(classes.size());
    for (const std::uint64_t key : history_.keys) {
      const auto range = std::equal_range(classes.begin(), classes.end(), class_of(key));
      history_.alone.push_back(range.second - range.first == 1);
      history_.family_of.push_back(static_cast<std::size_t>(range.first - classes.begin()));
      history_.families[history_.family_of.back()].push_back(history_.family_of.size() - 1);
    }
    fresh_ = history_.prefilled;
  }

  /// A resident that belongs to this thread, or something it inserted before; or a number that no key has.
  std::size_t own(unsigned thread) {
    const std::size_t none = history_.keys.size();
    if (equal_) return random_() % 4 == 0 ? random_() % others_ : others_ + random_() % (none - others_);
    const std::vector<std::size_t>& mine = mine_[thread % 8];
    if (!mine.empty() && (history_.prefilled == 0 || random_() % 2 == 0)) return mine[random_() % mine.size()];
    if (history_.prefilled == 0) return none;
    // Thread t owns every threads-th resident from t on.
    const std::size_t at = random_() % history_.prefilled / workload_.threads * workload_.threads + thread;
    return at < history_.prefilled ? at : none;
  }

  void add_operation() {
    FilterOperation op;
    op.thread = static_cast<unsigned>(random_() % workload_.threads);
    // Readers of what others are at are many in a history with several threads.
    const unsigned dice = static_cast<unsigned>(random_() % (workload_.threads > 1 ? 26 : 20));
    op.follows = random_() % 2 == 0;
    if (dice < 9) {
      op.kind = Kind::kInsert;
      op.keys = {fresh_};
    } else if (dice < 11) {
      op.kind = Kind::kInsertBulk;
      op.keys = {fresh_, fresh_ + 1, fresh_ + 2};
    } else if (dice < 14) {
      op.kind = Kind::kErase;
      op.keys = {own(op.thread)};
    } else if (dice < 15) {
      op.kind = Kind::kEraseBulk;
      op.keys = {own(op.thread), own(op.thread)};
      if (op.keys[0] == op.keys[1]) op.keys.pop_back();
    } else if (dice < 18 || dice >= 20 || !history_.life) {
      choose_lookups(op);
    } else {
      op.kind = dice == 18 ? Kind::kReopen : Kind::kClear;
    }
    // In a life, threads take turns. What is inserted, each only once; what is erased, by anybody who finds it there.
    const bool inserts = op.kind == Kind::kInsert || op.kind == Kind::kInsertBulk;
    const bool looks = op.kind == Kind::kContains || op.kind == Kind::kContainsBulk;
    op.follows = op.follows && !history_.life && !inserts && (looks || dense_ || equal_);
    if (inserts) {
      for (const std::size_t i : op.keys) mine_[op.thread % 8].push_back(i);
      fresh_ += op.keys.size();
    }
    std::erase_if(op.keys, [&](std::size_t i) { return i >= history_.keys.size(); });
    if (op.keys.empty() && op.kind != Kind::kReopen && op.kind != Kind::kClear) return;
    history_.operations.push_back(op);
  }

  void choose_lookups(FilterOperation& op) {
    op.kind = random_() % 3 == 0 ? Kind::kContainsBulk : Kind::kContains;
    const std::size_t lookups = op.kind == Kind::kContains ? 1 : 1 + random_() % 4;
    for (std::size_t looked = 0; looked < lookups; ++looked) {
      if (equal_) {
        op.keys.push_back(own(op.thread));
        continue;
      }
      const std::size_t residents = history_.prefilled;
      op.keys.push_back(random_() % 3 == 0 && residents != 0 ? random_() % residents
                                                             : residents + random_() % (fresh_ - residents + 1));
    }
  }

  const Workload& workload_;
  const FilterKind& kind_;
  std::mt19937_64 random_;
  KeyHasher hasher_;
  FilterHistory history_;
  bool equal_ = false;      // newcomers are all of one class
  bool dense_ = false;      // half of all keys out of a few classes
  std::size_t others_ = 0;  // keys that are not of that class come first
  std::size_t fresh_ = 0;   // the next key that nobody has inserted
  std::array<std::vector<std::size_t>, 8> mine_;  // what each thread has inserted
};

}  // namespace

FilterHistory generate_filter_history(const Workload& workload, const FilterKind& kind) {
  return Generator(workload, kind).generate();
}

}  // namespace dunnock::crash
