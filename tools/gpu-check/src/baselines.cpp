// The baselines on the CPU: the twins of baselines.cu.
#include "baselines.hpp"

#include <atomic>
#include <cmath>

namespace dunnock::gpu_check {
namespace {

using device::Backend;
using device::Span;
using device::Stream;

constexpr unsigned kWords = detail::kSectorWords;

/// Errors: NoSpace. Every byte is `value`.
Result<device::Buffer<std::uint64_t>> sectors(std::uint64_t count, std::byte value, Stream& stream) {
  auto made = device::Buffer<std::uint64_t>::create(std::max<std::uint64_t>(count, 1) * kWords, stream);
  if (made) device::fill_bytes(made->span(), value, stream);
  return made;
}
std::atomic_ref<std::uint64_t> shared(std::uint64_t& word) { return std::atomic_ref(word); }

bool set_insert(std::uint64_t* slots, std::uint64_t windows, std::uint64_t key) {
  for (std::uint64_t window = detail::set_window(key, windows);; window = window + 1 == windows ? 0 : window + 1) {
    for (unsigned i = 0; i < kWords; ++i) {
      std::uint64_t there = detail::kEmptySlot;
      if (shared(slots[window * kWords + i]).compare_exchange_strong(there, key)) return true;
      if (there == key) return false;
    }
  }
}
bool set_contains(std::uint64_t* slots, std::uint64_t windows, std::uint64_t key) {
  for (std::uint64_t window = detail::set_window(key, windows);; window = window + 1 == windows ? 0 : window + 1) {
    for (unsigned i = 0; i < kWords; ++i) {
      const std::uint64_t there = shared(slots[window * kWords + i]).load(std::memory_order_relaxed);
      if (there == key) return true;
      if (there == detail::kEmptySlot) return false;
    }
  }
}

}  // namespace

void make_keys(device::Span<std::uint64_t> keys, std::uint64_t first, Stream& stream) {
#if DUNNOCK_HAS_CUDA
  if (stream.device().backend() == Backend::kCuda) return detail::make_keys_cuda(keys, first, stream);
#endif
  stream.run("keys", [=] {
    for (std::size_t i = 0; i < keys.size(); ++i) keys.device_data()[i] = key_number(first + i);
    return Status{};
  });
}

Result<BloomFilter> BloomFilter::create(std::uint64_t items, double bits_per_item, Stream& stream) {
  const double bits = static_cast<double>(items) * bits_per_item;
  DUNNOCK_TRY(auto words, sectors(static_cast<std::uint64_t>(std::ceil(bits / (64 * kWords))), std::byte{0}, stream));
  BloomFilter made;
  made.words_ = std::move(words);
  return made;
}
void BloomFilter::insert(device::Span<const std::uint64_t> keys, Stream& stream) const {
#if DUNNOCK_HAS_CUDA
  if (stream.device().backend() == Backend::kCuda) return detail::bloom_insert_cuda(words(), keys, stream);
#endif
  stream.run("Bloom filter insert", [keys, words = words()] {
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const auto place = detail::bloom_place(keys.device_data()[i], words.size() / kWords);
      for (unsigned w = 0; w < kWords; ++w) {
        shared(words.device_data()[place.block * kWords + w])
            .fetch_or(detail::bloom_mask(place.bits, w), std::memory_order_relaxed);
      }
    }
    return Status{};
  });
}
void BloomFilter::contains(device::Span<const std::uint64_t> keys, device::Span<std::uint8_t> answers,
                           Stream& stream) const {
#if DUNNOCK_HAS_CUDA
  if (stream.device().backend() == Backend::kCuda) return detail::bloom_contains_cuda(words(), keys, answers, stream);
#endif
  stream.run("Bloom filter contains", [keys, answers, words = words()] {
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const auto place = detail::bloom_place(keys.device_data()[i], words.size() / kWords);
      bool all = true;
      for (unsigned w = 0; w < kWords; ++w) {
        const std::uint64_t mask = detail::bloom_mask(place.bits, w);
        all = all && (words.device_data()[place.block * kWords + w] & mask) == mask;
      }
      answers.device_data()[i] = all ? 1 : 0;
    }
    return Status{};
  });
}

Result<StaticSet> StaticSet::create(std::uint64_t items, double load, Stream& stream) {
  const double slots = static_cast<double>(items) / load + 1;  // One is always empty: there every search ends.
  DUNNOCK_TRY(auto made, sectors(static_cast<std::uint64_t>(std::ceil(slots / kWords)), std::byte{0xff}, stream));
  StaticSet set;
  set.slots_ = std::move(made);
  return set;
}
void StaticSet::insert(device::Span<const std::uint64_t> keys, device::Span<std::uint8_t> inserted,
                       Stream& stream) const {
#if DUNNOCK_HAS_CUDA
  if (stream.device().backend() == Backend::kCuda) return detail::set_insert_cuda(slots(), keys, inserted, stream);
#endif
  stream.run("set insert", [keys, inserted, slots = slots()] {
    for (std::size_t i = 0; i < keys.size(); ++i)
      inserted.device_data()[i] = set_insert(slots.device_data(), slots.size() / kWords, keys.device_data()[i]) ? 1 : 0;
    return Status{};
  });
}
void StaticSet::contains(device::Span<const std::uint64_t> keys, device::Span<std::uint8_t> answers,
                         Stream& stream) const {
#if DUNNOCK_HAS_CUDA
  if (stream.device().backend() == Backend::kCuda) return detail::set_contains_cuda(slots(), keys, answers, stream);
#endif
  stream.run("set contains", [keys, answers, slots = slots()] {
    for (std::size_t i = 0; i < keys.size(); ++i)
      answers.device_data()[i] =
          set_contains(slots.device_data(), slots.size() / kWords, keys.device_data()[i]) ? 1 : 0;
    return Status{};
  });
}

}  // namespace dunnock::gpu_check
