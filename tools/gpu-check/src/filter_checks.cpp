// FilterView beside its twin.
#include <algorithm>
#include <random>
#include <vector>

#include "checks.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/filter_view.hpp"

namespace dunnock::gpu_check {
namespace {

using namespace dunnock::kernels;

/// A filter's words on a device.
class Words {
 public:
  Words(device::Device device, const FilterShape& shape, const std::vector<std::uint64_t>& words)
      : stream_(std::move(*device::Stream::create(device))),
        buffer_(std::move(*device::Buffer<std::uint64_t>::create(words.size(), stream_))),
        view_(*FilterView::create(shape, buffer_.span())) {
    upload(buffer_.span(), words, stream_);
    (void)stream_.synchronize();
  }
  using Operation = void (FilterView::*)(device::Span<const std::uint64_t>, device::Span<std::uint8_t>,
                                         device::Stream&) const;
  std::vector<std::uint8_t> call(Operation operation, const std::vector<std::uint64_t>& keys) {
    auto in = std::move(*device::Buffer<std::uint64_t>::create(keys.size(), stream_));
    auto out = std::move(*device::Buffer<std::uint8_t>::create(keys.size(), stream_));
    upload(in.span(), keys, stream_);
    (view_.*operation)(in.span(), out.span(), stream_);
    std::vector<std::uint8_t> answers(keys.size(), 9);
    download(answers, out.span(), stream_);
    if (const Status done = stream_.synchronize(); !done) error = done.error().message;
    return answers;
  }
  std::vector<std::uint64_t> words() {
    std::vector<std::uint64_t> words(buffer_.size());
    download(words, buffer_.span(), stream_);
    if (const Status done = stream_.synchronize(); !done) error = done.error().message;
    return words;
  }
  std::string error;

 private:
  device::Stream stream_;
  device::Buffer<std::uint64_t> buffer_;
  FilterView view_;
};

constexpr Words::Operation kContains = &FilterView::contains;
constexpr Words::Operation kInsert = &FilterView::insert;
constexpr Words::Operation kErase = &FilterView::erase;

std::string check_filter(device::Device device, unsigned bits, unsigned group_words, double load, unsigned words,
                         std::uint64_t seed) {
  std::mt19937_64 random(seed);
  FilterShape shape;
  shape.fingerprint_bits = bits;
  shape.group_words = group_words;
  shape.groups = words / group_words + 3;
  for (auto& word : shape.seed) word = random() | 1;
  const std::uint64_t slots = shape.groups * group_words * (60 / bits);
  std::vector<std::uint64_t> keys(static_cast<std::size_t>(load * static_cast<double>(slots)));
  for (auto& key : keys) key = random();
  std::copy_n(keys.begin(), keys.size() / 100, keys.end() - static_cast<std::ptrdiff_t>(keys.size() / 100));
  std::vector<std::uint64_t> strangers(5 * words);
  for (auto& key : strangers) key = random();

  Words there(device, shape, std::vector<std::uint64_t>(shape.groups * group_words));
  const auto accepted = there.call(kInsert, keys);
  if (!there.error.empty()) return there.error;
  const auto refused = keys.size() - static_cast<std::size_t>(std::ranges::count(accepted, 1));
  if (refused != 0) return std::to_string(refused) + " of " + std::to_string(keys.size()) + " keys are refused";
  // The same words, looked at by the twin.
  Words here(device::Device::cpu(), shape, there.words());
  for (const auto* some : {&keys, &strangers}) {
    const auto theirs = there.call(kContains, *some);
    const auto ours = here.call(kContains, *some);
    if (theirs != ours) return "lookups differ from the twin's";
    if (some == &keys && std::ranges::count(ours, 1) != static_cast<std::ptrdiff_t>(keys.size()))
      return "a key that was inserted is not found";
  }
  // Half is erased there, half here; nothing must be left.
  const std::vector<std::uint64_t> half(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(keys.size() / 2));
  const std::vector<std::uint64_t> rest(keys.begin() + static_cast<std::ptrdiff_t>(keys.size() / 2), keys.end());
  if (std::ranges::count(there.call(kErase, half), 1) != static_cast<std::ptrdiff_t>(half.size()))
    return "a key that was inserted can't be erased";
  if (std::ranges::count(there.call(kContains, rest), 1) != static_cast<std::ptrdiff_t>(rest.size()))
    return "a key that was not erased is missing";
  Words last(device::Device::cpu(), shape, there.words());
  if (std::ranges::count(last.call(kErase, rest), 1) != static_cast<std::ptrdiff_t>(rest.size()))
    return "a key can't be erased by the twin";
  for (const std::uint64_t word : last.words()) {
    if ((word << 4) != 0) return "the filter is not empty after all keys were erased";
  }
  return there.error;
}

/// Requests of random lengths, a random part of which is stored.
std::string check_longest_prefix(device::Device device, bool small, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  FilterShape shape;
  shape.fingerprint_bits = 16;
  shape.group_words = 4;
  shape.groups = small ? 1000 : 20000;
  for (auto& word : shape.seed) word = random() | 1;
  std::vector<Key128> hashes;
  std::vector<Key128> stored;
  std::vector<std::uint32_t> first{0};
  std::vector<std::uint32_t> lengths;
  while (stored.size() + 100 < shape.groups * 8) {
    const auto blocks = static_cast<std::uint32_t>(random() % 100);
    lengths.push_back(static_cast<std::uint32_t>(random() % (blocks + 1)));
    for (std::uint32_t b = 0; b < blocks; ++b) {
      hashes.push_back({random(), random()});
      if (b < lengths.back()) stored.push_back(hashes.back());
    }
    first.push_back(static_cast<std::uint32_t>(hashes.size()));
  }
  auto stream = std::move(*device::Stream::create(device));
  auto words = std::move(*device::Buffer<std::uint64_t>::create(shape.groups * shape.group_words, stream));
  auto keys = std::move(*device::Buffer<Key128>::create(hashes.size(), stream));
  auto ends = std::move(*device::Buffer<std::uint32_t>::create(first.size(), stream));
  auto answers = std::move(*device::Buffer<std::uint8_t>::create(stored.size(), stream));
  auto found = std::move(*device::Buffer<std::uint32_t>::create(lengths.size(), stream));
  const FilterView view = *FilterView::create(shape, words.span());
  fill_bytes(words.span(), std::byte{0}, stream);
  upload(keys.span().subspan(0, stored.size()), stored, stream);
  view.insert(keys.span().subspan(0, stored.size()), answers.span(), stream);
  std::vector<std::uint8_t> accepted(stored.size());
  download(accepted, answers.span(), stream);
  if (const Status done = stream.synchronize(); !done) return done.error().message;
  upload(keys.span(), hashes, stream);
  upload(ends.span(), first, stream);
  view.longest_prefix(keys.span(), ends.span(), found.span(), stream);
  std::vector<std::uint32_t> back(lengths.size());
  download(back, found.span(), stream);
  if (const Status done = stream.synchronize(); !done) return done.error().message;
  if (std::ranges::count(accepted, 1) != static_cast<std::ptrdiff_t>(accepted.size())) return "a block was refused";
  std::size_t longer = 0;
  for (std::size_t r = 0; r < lengths.size(); ++r) {
    if (back[r] < lengths[r]) return "a stored prefix is not found";
    if (back[r] > first[r + 1] - first[r]) return "a prefix is longer than its request";
    longer += back[r] > lengths[r] ? 1 : 0;
  }
  // A false positive of 16 bits: 1 in 7000 probes at half load, and a request makes about 6.
  return longer * 100 <= lengths.size() ? "" : std::to_string(longer) + " prefixes are longer than what is stored";
}

}  // namespace

void check_filter_view(device::Device device, const CheckOptions& options, Report& report) {
  std::uint64_t seed = options.seed;
  for (const unsigned bits : {8U, 12U, 16U}) {
    for (const unsigned group_words : {8U, 4U}) {
      for (const double load : {0.3, 0.9}) {
        ++seed;
        const std::string name = "filter of " + std::to_string(bits) + " bits, groups of " +
                                 std::to_string(group_words) + ", load " +
                                 std::to_string(static_cast<int>(100 * load)) + " %, seed " + std::to_string(seed);
        report.check(name, check_filter(device, bits, group_words, load, options.small ? 2000 : 20000, seed));
      }
    }
  }
  report.check("longest prefixes, seed " + std::to_string(seed + 1),
               check_longest_prefix(device, options.small, seed + 1));
}

}  // namespace dunnock::gpu_check
