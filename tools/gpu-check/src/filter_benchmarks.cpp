// FilterView beside what one would use instead, on the same keys, in the same run:
//
//   FilterView, 8 words a group   as CuckooFilter has it by default
//   FilterView, 4 words a group   a group is one sector: the shape for a GPU
//   blocked Bloom filter          at FilterView's bits per item; no erase
//   set                           exact; at 50 and 80 % load
//
// Every structure gets the keys of 90 % of FilterView's slots, in batches of a twentieth of the slots, made on the
// device. The ceiling is what random 32-byte sectors of a table of FilterView's size can be read at: each lookup needs
// one at least.
#include <algorithm>
#include <random>
#include <vector>

#include "baselines.hpp"
#include "benchmarks.hpp"
#include "dunnock/kernels/filter_view.hpp"
#include "timing.hpp"

namespace dunnock::gpu_check {
namespace {

using namespace dunnock::kernels;

constexpr unsigned kLanes = 5;                        // Fingerprints of 12 bits in a word.
constexpr unsigned kBatches = 18;                     // To 90 %, of a twentieth of the slots each.
constexpr std::uint64_t kFirstStranger = 1ULL << 40;  // Keys from this number on are in no structure.
constexpr const char* kBloom = "blocked Bloom filter";
constexpr const char* kSectorCeiling = "ceiling: reads of random 32-byte sectors of the table";

/// The keys and answers of one batch, and the times of what is done with them.
class Batch {
 public:
  [[nodiscard]] static Result<Batch> create(std::uint64_t size, device::Stream& stream) {
    DUNNOCK_TRY(auto keys, device::Buffer<std::uint64_t>::create(size, stream));
    DUNNOCK_TRY(auto answers, device::Buffer<std::uint8_t>::create(size, stream));
    return Batch(std::move(keys), std::move(answers), stream);
  }
  void make(std::uint64_t first) { make_keys(keys_.span(), first, *stream_); }
  [[nodiscard]] std::uint64_t size() const { return keys_.size(); }
  [[nodiscard]] device::Span<const std::uint64_t> keys() const { return keys_.span(); }
  [[nodiscard]] device::Span<std::uint8_t> answers() const { return answers_.span(); }
  [[nodiscard]] device::Stream& stream() const { return *stream_; }
  /// Of the last call.
  [[nodiscard]] std::uint64_t yes() {
    host_.resize(answers_.size());
    download(host_, answers_.span(), *stream_);
    (void)stream_->synchronize();  // An error comes with the next time that is taken, or has come already.
    return static_cast<std::uint64_t>(std::ranges::count(host_, 1));
  }

 private:
  Batch(device::Buffer<std::uint64_t> keys, device::Buffer<std::uint8_t> answers, device::Stream& stream)
      : keys_(std::move(keys)), answers_(std::move(answers)), stream_(&stream) {}
  device::Buffer<std::uint64_t> keys_;
  device::Buffer<std::uint8_t> answers_;
  device::Stream* stream_;
  std::vector<std::uint8_t> host_;
};

/// One structure: how it inserts and looks up, and what is said of it.
struct Candidate {
  std::string name;
  double bits_per_item = 0;
  bool exact = false;
  std::function<void(const Batch&)> insert;  // Of keys that are not there.
  std::function<void(const Batch&)> contains;
  std::function<void(const Batch&)> erase;  // Null: it can't.
  bool insert_answers = true;               // insert says 1 for each key.
  bool has_targets = false;
};

void measure(const Candidate& one, Batch& batch, Report& report) {
  Timer timer(batch.stream());
  const double ceiling = report.value_of(kSectorCeiling).value_or(-1);
  const auto figure = [&](const std::string& what, double rate, const std::string& target, bool met) {
    Figure made{.name = one.name + ": " + what, .value = rate, .unit = "G/s", .target = target, .met = met};
    if (ceiling > 0) {
      made.ceiling = kSectorCeiling;
      made.ceiling_value = ceiling;
    }
    if (const auto peer = report.value_of(kBloom + (": " + what)); peer && one.name != kBloom)
      made.peer = Peer{kBloom, *peer};
    report.figure(std::move(made));
  };
  std::vector<double> insert_ms;
  std::uint64_t refused = 0;
  for (unsigned i = 0; i < kBatches; ++i) {
    batch.make(i * batch.size());
    insert_ms.push_back(timer.once_ms([&] { one.insert(batch); }));
    if (!timer.error().empty()) return report.check(one.name + ": inserts run", timer.error());
    if (one.insert_answers) refused += batch.size() - batch.yes();
  }
  report.check(one.name + ": no key is refused", refused == 0 ? "" : std::to_string(refused) + " are");
  double all_ms = 0;
  for (const double ms : insert_ms) all_ms += ms;
  const double insert_rate = giga_per_s(kBatches * batch.size(), all_ms);
  figure("inserts", insert_rate, one.has_targets ? ">= 1 G/s (H200)" : "", insert_rate >= 1);
  figure("inserts, the last 1/18", giga_per_s(batch.size(), insert_ms.back()), "", true);

  for (const bool there : {true, false}) {
    batch.make(there ? batch.size() : kFirstStranger);
    const double ms = timer.median_ms([&](unsigned) { one.contains(batch); });
    if (!timer.error().empty()) return report.check(one.name + ": lookups run", timer.error());
    const double rate = giga_per_s(batch.size(), ms);
    figure(there ? "lookups, present" : "lookups, absent", rate,
           one.has_targets ? ">= 5 G/s (H200), >= 60 % of the ceiling" : "",
           rate >= 5 && (ceiling <= 0 || rate >= 0.6 * ceiling));
    const std::uint64_t yes = batch.yes();
    if (there) {
      report.check(one.name + ": every key is found",
                   yes == batch.size() ? "" : std::to_string(batch.size() - yes) + " are not");
    } else if (one.exact) {
      report.check(one.name + ": no stranger is found", yes == 0 ? "" : std::to_string(yes) + " are");
    } else {
      report.figure({.name = one.name + ": false positives",
                     .value = 100 * static_cast<double>(yes) / static_cast<double>(batch.size()),
                     .unit = "%",
                     .better = Better::kLower});
    }
  }
  report.figure(
      {.name = one.name + ": bits per item", .value = one.bits_per_item, .unit = "", .better = Better::kLower});
  if (!one.erase) return;
  batch.make(0);
  const double ms = timer.once_ms([&] { one.erase(batch); });
  if (!timer.error().empty()) return report.check(one.name + ": erasures run", timer.error());
  const std::uint64_t erased = batch.yes();
  report.check(one.name + ": every key can be erased",
               erased == batch.size() ? "" : std::to_string(batch.size() - erased) + " can't");
  figure("erasures", giga_per_s(batch.size(), ms), "", true);
}

FilterShape shape_of(std::uint64_t slots, unsigned group_words) {
  FilterShape shape;
  shape.group_words = group_words;
  shape.groups = slots / (std::uint64_t{group_words} * kLanes);
  std::mt19937_64 random(1);
  for (auto& word : shape.seed) word = random() | 1;
  return shape;
}

/// Loads the kernels, so that no time has that in it.
void warm_up(const FilterView& view, Batch& batch) {
  batch.make(0);
  view.insert(batch.keys(), batch.answers(), batch.stream());
  view.contains(batch.keys(), batch.answers(), batch.stream());
  view.erase(batch.keys(), batch.answers(), batch.stream());
}

/// Of a table of FilterView's size. A CPU's caches have no such number.
void measure_sectors(std::uint64_t slots, const Batch& batch, Report& report) {
#if DUNNOCK_HAS_CUDA
  device::Stream& stream = batch.stream();
  if (stream.device().backend() != device::Backend::kCuda) return;
  const auto words = device::Buffer<std::uint64_t>::create(slots / kLanes, stream);
  if (!words) return report.skip(kSectorCeiling, words.error().message);
  fill_bytes(words->span(), std::byte{1}, stream);
  const std::uint64_t reads = 4 * batch.size();
  Timer timer(stream);
  const double ms = timer.median_ms([&](unsigned) { read_random_sectors(words->span(), reads, stream); });
  if (!timer.error().empty()) return report.check("reads of random sectors run", timer.error());
  report.figure({.name = kSectorCeiling, .value = giga_per_s(reads, ms), .unit = "G/s"});
#endif
}

void measure_filter_view(std::uint64_t slots, unsigned group_words, Batch& batch, Report& report) {
  device::Stream& stream = batch.stream();
  const std::string name = "FilterView, " + std::to_string(group_words) + " words a group";
  const FilterShape shape = shape_of(slots, group_words);
  auto words = device::Buffer<std::uint64_t>::create(shape.groups * group_words, stream);
  if (!words) return report.skip(name, words.error().message);
  {
    const FilterShape tiny = shape_of(40'000, group_words);
    auto some = std::move(*device::Buffer<std::uint64_t>::create(tiny.groups * group_words, stream));
    auto few = Batch::create(1000, stream);
    if (!few) return report.skip(name, few.error().message);
    fill_bytes(some.span(), std::byte{0}, stream);
    warm_up(*FilterView::create(tiny, some.span()), *few);
  }
  fill_bytes(words->span(), std::byte{0}, stream);
  const FilterView view = *FilterView::create(shape, words->span());
  Candidate one;
  one.name = name;
  one.bits_per_item = 64.0 * static_cast<double>(words->size()) / static_cast<double>(kBatches * batch.size());
  one.insert = [&](const Batch& some) { view.insert(some.keys(), some.answers(), some.stream()); };
  one.contains = [&](const Batch& some) { view.contains(some.keys(), some.answers(), some.stream()); };
  one.erase = [&](const Batch& some) { view.erase(some.keys(), some.answers(), some.stream()); };
  one.has_targets = true;
  measure(one, batch, report);
}

void measure_bloom(Batch& batch, Report& report) {
  const double bits = 64.0 / kLanes / 0.9;  // FilterView's, at 90 % load.
  const auto filter = BloomFilter::create(kBatches * batch.size(), bits, batch.stream());
  if (!filter) return report.skip(kBloom, filter.error().message);
  {
    const auto tiny = BloomFilter::create(1000, bits, batch.stream());
    auto few = Batch::create(1000, batch.stream());
    if (!tiny || !few) return report.skip(kBloom, "no memory");
    few->make(0);
    tiny->insert(few->keys(), few->stream());
    tiny->contains(few->keys(), few->answers(), few->stream());
  }
  Candidate one;
  one.name = kBloom;
  one.bits_per_item = 64.0 * static_cast<double>(filter->words().size()) / static_cast<double>(kBatches * batch.size());
  one.insert = [&](const Batch& some) { filter->insert(some.keys(), some.stream()); };
  one.contains = [&](const Batch& some) { filter->contains(some.keys(), some.answers(), some.stream()); };
  one.insert_answers = false;
  measure(one, batch, report);
}

void measure_set(double load, Batch& batch, Report& report) {
  const std::string name = "set, load " + std::to_string(static_cast<int>(std::lround(100 * load))) + " %";
  const auto set = StaticSet::create(kBatches * batch.size(), load, batch.stream());
  if (!set) return report.skip(name, set.error().message);
  {
    const auto tiny = StaticSet::create(1000, load, batch.stream());
    auto few = Batch::create(1000, batch.stream());
    if (!tiny || !few) return report.skip(name, "no memory");
    few->make(0);
    tiny->insert(few->keys(), few->answers(), few->stream());
    tiny->contains(few->keys(), few->answers(), few->stream());
  }
  Candidate one;
  one.name = name;
  one.bits_per_item = 64.0 * static_cast<double>(set->slots().size()) / static_cast<double>(kBatches * batch.size());
  one.exact = true;
  one.insert = [&](const Batch& some) { set->insert(some.keys(), some.answers(), some.stream()); };
  one.contains = [&](const Batch& some) { set->contains(some.keys(), some.answers(), some.stream()); };
  measure(one, batch, report);
}

}  // namespace

void benchmark_filters(device::Device device, const BenchmarkOptions& options, const Budget& budget, Report& report) {
  // 2^30 slots: 1.7 GB; the set at 50 % load 15.5 GB.
  std::uint64_t slots = options.quick ? 1ULL << 20 : 1ULL << 30;
  while (device.backend() == device::Backend::kCuda && slots * 20 > device.info().memory_bytes) slots /= 2;
  auto stream = std::move(*device::Stream::create(device));
  auto batch = Batch::create(slots / 20, stream);
  if (!batch) return report.skip("filters", batch.error().message);
  report.figure({.name = "filters: keys of each", .value = static_cast<double>(kBatches * batch->size()), .unit = ""});
  constexpr double kSecondsEach = 15;  // On an H200 a few.
  const auto in_time = [&](const std::string& name) {
    if (budget.seconds_left() >= kSecondsEach) return true;
    report.skip(name, "no time is left");
    return false;
  };
  measure_sectors(slots, *batch, report);
  // One after the other, so that the memory of one is there for the next; first the one that others stand beside.
  if (in_time(kBloom)) measure_bloom(*batch, report);
  for (const unsigned group_words : {4U, 8U}) {
    if (in_time("FilterView")) measure_filter_view(slots, group_words, *batch, report);
  }
  for (const double load : {0.5, 0.8}) {
    if (in_time("set")) measure_set(load, *batch, report);
  }
}

}  // namespace dunnock::gpu_check
