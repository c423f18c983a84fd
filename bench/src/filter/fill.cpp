#include "filter/fill.hpp"

#include <unistd.h>
#include <x86intrin.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>

#include "scratch.hpp"
#include "timing.hpp"

namespace dunnock::bench {
namespace {

std::string pool_path() { return "dunnock-bench-" + std::to_string(getpid()) + ".pool"; }

/// Null, with the reason on stderr: the environment refuses this case, and the others go on.
std::unique_ptr<Subject> subject_of(const Case& one, const SubjectOptions& options) {
  auto made = make_subject(one, options);
  if (made) return std::move(*made);
  std::fprintf(stderr, "%s\n", made.error().message.c_str());
  return nullptr;
}

double ns_per_tick() {
  static const double value = [] {
    std::uint64_t ticks = 0;
    const double ns = ns_of([&] {
      const auto start = std::chrono::steady_clock::now();
      const std::uint64_t before = __rdtsc();
      while (std::chrono::steady_clock::now() - start < std::chrono::milliseconds(20)) {
      }
      ticks = __rdtsc() - before;
    });
    return ns / static_cast<double>(ticks);
  }();
  return value;
}

/// What some threads did together.
struct Timed {
  double ns;           // Per operation: wall time divided by the operations of all threads.
  std::uint64_t done;  // Sum of what they returned.
};

/// Times work(from, to) for parts of [0, count).
template <class Work>
Timed time_parts(unsigned threads, std::uint64_t count, const Work& work) {
  std::atomic<std::uint64_t> done = 0;
  const double ns =
      ns_of([&] { in_parts(threads, count, [&](std::uint64_t from, std::uint64_t to) { done += work(from, to); }); });
  return {ns / static_cast<double>(std::max<std::uint64_t>(1, count)), done};
}

/// A case that is being filled.
class Filling {
 public:
  Filling(const Case& one, const FilterBenchOptions& options, Subject& subject, Keys& keys, Rows& rows)
      : one_(one), options_(options), subject_(subject), keys_(keys), rows_(rows) {}

  void run(bool with_tails) {
    for (const unsigned load : options_.stops()) {
      insert_to(load);
      if (!options_.reports(load)) continue;
      const KeySpan present = keys_.present(inserted_, load);
      look_up(load, present);
      if (with_tails) time_calls(load, present);
      if (one_.mode == Mode::kSingle && load == options_.loads.back()) churn(load);
    }
  }

 private:
  Row& row(const char* op, unsigned load) {
    return rows_.at(
        {structure_of(one_, options_.bits), name_of(one_.medium), op, name_of(one_.mode), load, one_.threads});
  }
  void complain(const std::string& what) const {
    std::fprintf(stderr, "%s %s %s\n", structure_of(one_, options_.bits).c_str(), name_of(one_.medium), what.c_str());
  }

  void insert_to(unsigned load) {
    const std::uint64_t to = std::min<std::uint64_t>(subject_.slots() * load / 100, keys_.in().size());
    const KeySpan wanted = keys_.in(inserted_, to);
    const Timed timed = time_parts(one_.threads, wanted.size(), [&](std::uint64_t from, std::uint64_t until) {
      const KeySpan part = wanted.subspan(from, until - from);
      return one_.mode == Mode::kBulk ? subject_.insert_bulk(part) : subject_.insert(part);
    });
    if (timed.done != wanted.size())
      complain("refused " + std::to_string(wanted.size() - timed.done) + " keys before " + std::to_string(load) + " %");
    inserted_ = to;
    filling_ns_ += timed.ns * static_cast<double>(wanted.size());
    Row& insert = row("insert", load);
    insert.ns.push_back(timed.ns);
    insert.bits_per_item = 8.0 * static_cast<double>(subject_.memory_bytes()) / static_cast<double>(inserted_);
    if (load == options_.stops().back()) row("fill", load).ns.push_back(filling_ns_ / static_cast<double>(inserted_));
  }

  Timed find(KeySpan wanted) {
    return time_parts(one_.threads, wanted.size(), [&](std::uint64_t from, std::uint64_t to) {
      const KeySpan part = wanted.subspan(from, to - from);
      return one_.mode == Mode::kBulk ? subject_.contains_bulk(part, found_.data() + from) : subject_.contains(part);
    });
  }

  void look_up(unsigned load, KeySpan present) {
    const Timed absent = find(keys_.absent());
    Row& negative = row("negative", load);
    negative.ns.push_back(absent.ns);
    negative.fpr = static_cast<double>(absent.done) / static_cast<double>(keys_.absent().size());
    row("insert", load).fpr = negative.fpr;
    const Timed found = find(present);
    row("positive", load).ns.push_back(found.ns);
    if (found.done != present.size()) complain("LOST keys");
  }

  /// Passes of their own, for reading the clock costs as much as a lookup. The load stays.
  void time_calls(unsigned load, KeySpan present) {
    constexpr std::uint64_t kCalls = 200'000;
    const KeySpan some = keys_.in(0, std::min(kCalls, inserted_));
    add_tails(row("negative", load), Call::kContains, keys_.absent().first(kCalls));
    add_tails(row("positive", load), Call::kContains, present.first(kCalls));
    if (!subject_.can_erase()) return;
    add_tails(row("erase", load), Call::kErase, some);
    add_tails(row("insert", load), Call::kInsert, some);
  }
  void add_tails(Row& row, Call call, KeySpan keys) {
    std::vector<std::uint64_t> ticks = subject_.ticks_of(call, keys);
    if (ticks.empty()) return;
    std::sort(ticks.begin(), ticks.end());
    const auto ns_at = [&](std::size_t per_mille) {
      return ns_per_tick() * static_cast<double>(ticks[ticks.size() * per_mille / 1000]);
    };
    row.p50 = ns_at(500);
    row.p99 = ns_at(990);
    row.p999 = ns_at(999);
  }

  /// Erases, inserts and lookups in turn; then erases alone.
  void churn(unsigned load) {
    if (!subject_.can_erase()) return;
    const std::uint64_t some = std::min<std::uint64_t>(inserted_ / 20, 2'000'000);
    const std::uint64_t moving = some / 2;  // Each of them takes four operations.
    const KeySpan last = keys_.in(inserted_ - moving, inserted_);
    const Timed mixed = time_parts(one_.threads, moving, [&](std::uint64_t from, std::uint64_t to) {
      const std::uint64_t count = to - from;
      return subject_.mixed(keys_.in(from, to), last.subspan(from, count), keys_.absent().subspan(from, count));
    });
    row("mixed", load).ns.push_back(mixed.ns / 4);
    const KeySpan leaving = keys_.in(inserted_ - some, inserted_);
    const Timed erased = time_parts(one_.threads, some, [&](std::uint64_t from, std::uint64_t to) {
      return subject_.erase(leaving.subspan(from, to - from));
    });
    row("erase", load).ns.push_back(erased.ns);
  }

  const Case& one_;
  const FilterBenchOptions& options_;
  Subject& subject_;
  Keys& keys_;
  Rows& rows_;
  std::vector<std::uint8_t> found_ = std::vector<std::uint8_t>(Keys::kLookups);
  std::uint64_t inserted_ = 0;
  double filling_ns_ = 0;
};

}  // namespace

void fill_and_measure(const Case& one, const FilterBenchOptions& options, unsigned round, Keys& keys, Rows& rows) {
  const ScratchFile pool(pool_path());
  const auto subject = subject_of(one, {.bits = options.bits,
                                        .slots = one.medium == Medium::kNvm ? options.nvm_slots : options.slots,
                                        .seed = options.seed + round,
                                        .nvm = options.nvm,
                                        .pool = pool.path,
                                        .prefaults = true});
  if (subject == nullptr) return;
  const bool with_tails = one.tails && round == 0 && one.mode == Mode::kSingle && one.threads == 1;
  Filling(one, options, *subject, keys, rows).run(with_tails);
}

void insert_on_file(const FilterBenchOptions& options, const Keys& keys, Rows& rows) {
  constexpr std::uint64_t kSingle = 300;
  const std::uint64_t bulk = std::min<std::uint64_t>(20'000, keys.in().size() - kSingle);
  const ScratchFile pool(pool_path());
  const auto subject =
      subject_of({.structure = "", .design = Design::kParallel, .medium = Medium::kFile},
                 {.bits = options.bits, .slots = options.slots, .seed = options.seed, .pool = pool.path});
  if (subject == nullptr) return;
  const auto row = [&](Mode mode) -> Row& {
    return rows.at({"dunnock-" + std::to_string(options.bits), name_of(Medium::kFile), "insert", name_of(mode), 0, 1});
  };
  row(Mode::kBulk)
      .ns.push_back(ns_of([&] { (void)subject->insert_bulk(keys.in(0, bulk)); }) / static_cast<double>(bulk));
  row(Mode::kSingle).ns.push_back(ns_of([&] { (void)subject->insert(keys.in(bulk, bulk + kSingle)); }) / kSingle);
}

double highest_load(const FilterBenchOptions& options, const Keys& keys) {
  const auto subject = subject_of({.structure = "", .design = Design::kSingleWriter, .medium = Medium::kDram},
                                  {.bits = options.bits, .slots = options.slots, .seed = options.seed});
  if (subject == nullptr) return NAN;
  const std::uint64_t slots = subject->slots();
  std::uint64_t placed = subject->insert_bulk(keys.in(0, slots * 95 / 100));
  while (placed < keys.in().size() && subject->insert(keys.in(placed, placed + 1)) == 1) ++placed;
  return static_cast<double>(placed) / static_cast<double>(slots);
}

}  // namespace dunnock::bench
