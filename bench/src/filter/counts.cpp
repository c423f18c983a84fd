#include "filter/counts.hpp"

#include <algorithm>

#include "counting_media.hpp"
#include "filter/subject.hpp"
#include "scratch.hpp"

namespace dunnock::bench {
namespace {

/// Of work(key) for each key, as an operation of its own.
template <class Work>
Counts count_each(KeySpan keys, const Work& work) {
  Counter& counter = Counter::here();
  const Counts before = counter.counts;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    counter.begin_operation();
    work(keys.subspan(i, 1));
  }
  return counter.counts - before;
}

void set_means(Row& row, const Counts& counts, std::uint64_t operations) {
  const auto mean = [&](std::uint64_t count) { return static_cast<double>(count) / static_cast<double>(operations); };
  row.flushes = mean(counts.flushes);
  row.fences = mean(counts.fences);
  row.lines = mean(counts.lines);
}

void count_case(const Case& one, const FilterBenchOptions& options, std::uint64_t slots, Keys& keys, Rows& rows) {
  const auto made = make_subject(one, {.bits = options.bits, .slots = slots, .seed = options.seed});
  if (!made) fail(made.error().message);
  Subject& subject = **made;
  const auto row = [&](const char* op, unsigned load) -> Row& {
    return rows.at({structure_of(one, options.bits), name_of(one.medium), op, name_of(one.mode), load, 1});
  };
  const auto insert = [&](KeySpan key) { (void)subject.insert(key); };
  const auto look_up = [&](KeySpan key) { (void)subject.contains(key); };
  constexpr std::uint64_t kLookups = 200'000;
  std::uint64_t inserted = 0;
  Counts filling;
  for (const unsigned load : options.stops()) {
    const KeySpan next = keys.in(inserted, subject.slots() * load / 100);
    const Counts inserts = count_each(next, insert);
    set_means(row("insert", load), inserts, next.size());
    inserted += next.size();
    filling += inserts;
    if (load == options.stops().back()) set_means(row("fill", load), filling, inserted);
    if (!options.reports(load)) continue;
    set_means(row("negative", load), count_each(keys.absent().first(kLookups), look_up), kLookups);
    set_means(row("positive", load), count_each(keys.present(inserted, load).first(kLookups), look_up), kLookups);
  }
}

}  // namespace

void count_operations(const FilterBenchOptions& options, Rows& rows) {
  const std::uint64_t slots = std::min<std::uint64_t>(options.slots, 1 << 20);
  Keys keys(slots + slots / 50, options.seed);
  count_case({"", Design::kSingleWriter, Medium::kCounted}, options, slots, keys, rows);
  count_case({"textbook-durable", Design::kTextbookDurable, Medium::kCounted}, options, slots, keys, rows);
}

}  // namespace dunnock::bench
