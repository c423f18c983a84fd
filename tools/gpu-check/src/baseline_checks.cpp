// The baselines beside their twins: what is slower or faster than a filter must first be right.
#include <algorithm>
#include <random>
#include <vector>

#include "baselines.hpp"
#include "checks.hpp"

namespace dunnock::gpu_check {
namespace {

/// Keys on a device, and what a call says of them.
class Keys {
 public:
  Keys(const std::vector<std::uint64_t>& keys, device::Stream& stream)
      : keys_(std::move(*device::Buffer<std::uint64_t>::create(keys.size(), stream))),
        answers_(std::move(*device::Buffer<std::uint8_t>::create(keys.size(), stream))),
        stream_(stream) {
    upload(keys_.span(), keys, stream);
    (void)stream.synchronize();  // `keys` may go.
  }
  [[nodiscard]] device::Span<const std::uint64_t> span() const { return keys_.span(); }
  [[nodiscard]] device::Span<std::uint8_t> answers() const { return answers_.span(); }
  /// The answers of the last call.
  [[nodiscard]] Result<std::vector<std::uint8_t>> back() {
    std::vector<std::uint8_t> answers(answers_.size(), 9);
    download(answers, answers_.span(), stream_);
    DUNNOCK_TRY(stream_.synchronize());
    return answers;
  }

 private:
  device::Buffer<std::uint64_t> keys_;
  device::Buffer<std::uint8_t> answers_;
  device::Stream& stream_;
};

std::size_t yes(const std::vector<std::uint8_t>& answers) {
  return static_cast<std::size_t>(std::ranges::count(answers, 1));
}
Result<std::vector<std::uint64_t>> words_of(device::Span<std::uint64_t> there, device::Stream& stream) {
  std::vector<std::uint64_t> words(there.size());
  download(words, there, stream);
  DUNNOCK_TRY(stream.synchronize());
  return words;
}
std::vector<std::uint64_t> random_keys(std::mt19937_64& random, std::size_t count) {
  std::vector<std::uint64_t> keys(count);
  for (auto& key : keys) key = random() >> 1;  // Never ~0.
  return keys;
}

std::string check_keys(device::Device device) {
  auto stream = std::move(*device::Stream::create(device));
  auto there = std::move(*device::Buffer<std::uint64_t>::create(1001, stream));
  make_keys(there.span(), 7, stream);
  const auto keys = words_of(there.span(), stream);
  if (!keys) return keys.error().message;
  for (std::size_t i = 0; i < keys->size(); ++i) {
    if ((*keys)[i] != key_number(7 + i)) return "key " + std::to_string(i) + " differs from the expected one";
  }
  return "";
}

std::string check_bloom(device::Device device, std::size_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  auto there = std::move(*device::Stream::create(device));
  auto here = std::move(*device::Stream::create(device::Device::cpu()));
  const auto inserted = random_keys(random, count);
  const auto strangers = random_keys(random, 4 * count);
  const auto filter = BloomFilter::create(count, 14, there);
  const auto twin = BloomFilter::create(count, 14, here);
  if (!filter || !twin) return "out of memory";
  Keys keys(inserted, there);
  filter->insert(keys.span(), there);
  filter->contains(keys.span(), keys.answers(), there);
  const auto found = keys.back();
  if (!found) return found.error().message;
  if (yes(*found) != count) return std::to_string(count - yes(*found)) + " keys that were inserted are not found";

  Keys same(inserted, here);
  twin->insert(same.span(), here);
  const auto words = words_of(filter->words(), there);
  const auto expected = words_of(twin->words(), here);
  if (!words || !expected) return "the words can't be read";
  if (*words != *expected) return "the words differ from the twin's";

  Keys others(strangers, there);
  filter->contains(others.span(), others.answers(), there);
  const auto said = others.back();
  if (!said) return said.error().message;
  Keys same_others(strangers, here);
  twin->contains(same_others.span(), same_others.answers(), here);
  if (*said != *same_others.back()) return "lookups differ from the twin's";
  return yes(*said) * 50 < strangers.size() ? "" : "more than 2 % false positives at 14 bits an item";
}

std::string check_set(device::Device device, std::size_t count, double load, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  auto stream = std::move(*device::Stream::create(device));
  auto keys = random_keys(random, count);
  const std::size_t doubles = count / 50;  // Some keys come twice, and only one of the two is new.
  std::copy_n(keys.begin(), doubles, keys.end() - static_cast<std::ptrdiff_t>(doubles));
  const auto set = StaticSet::create(count - doubles, load, stream);
  if (!set) return set.error().message;
  Keys there(keys, stream);
  set->insert(there.span(), there.answers(), stream);
  const auto inserted = there.back();
  if (!inserted) return inserted.error().message;
  if (yes(*inserted) != count - doubles)
    return std::to_string(yes(*inserted)) + " of " + std::to_string(count - doubles) + " keys were new";
  set->contains(there.span(), there.answers(), stream);
  const auto found = there.back();
  if (!found) return found.error().message;
  if (yes(*found) != count) return "a key that was inserted is not found";
  Keys others(random_keys(random, count), stream);
  set->contains(others.span(), others.answers(), stream);
  const auto said = others.back();
  if (!said) return said.error().message;
  if (yes(*said) != 0) return "a key that was not inserted is found";
  // Each key is in one slot.
  auto slots = words_of(set->slots(), stream);
  if (!slots) return slots.error().message;
  std::erase(*slots, detail::kEmptySlot);
  std::ranges::sort(*slots);
  keys.resize(count - doubles);
  std::ranges::sort(keys);
  return *slots == keys ? "" : "the slots do not hold what was inserted";
}

}  // namespace

void check_baselines(device::Device device, const CheckOptions& options, Report& report) {
  const std::size_t count = options.small ? 5003 : 200'003;
  const std::string seed = ", seed " + std::to_string(options.seed);
  report.check("keys", check_keys(device));
  report.check("blocked Bloom filter" + seed, check_bloom(device, count, options.seed));
  report.check("set, load 50 %" + seed, check_set(device, count, 0.5, options.seed));
  report.check("set, load 90 %" + seed, check_set(device, count, 0.9, options.seed + 1));
}

}  // namespace dunnock::gpu_check
