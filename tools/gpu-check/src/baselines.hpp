// What one would use on a GPU instead of FilterView: a blocked Bloom filter and an open-addressing set, in the style of
// cuCollections' bloom_filter and static_set, written here so that they are measured in the same run.
//
//   BloomFilter   a key sets 8 bits in one block of 32 bytes, one bit in each 4-byte word of it
//
//        block:  | word 0 | word 1 | ... | word 7 |      one sector a key, to insert and to look up; no erase
//                                                        (Putze, Sanders, Singler, doi 10.1145/1498698.1594230)
//
//   StaticSet     keys in windows of 4 slots of 8 bytes, one sector; linear probing from window to window
//
//        | k k k . | k k k k | k . . . |                 exact; 8 bytes / load a key
//
// Inserts and the set's lookups are done by groups of 4 lanes, each lane with one word of the sector; the CPU's twins
// take one key after the other. What a BloomFilter's words are does not depend on the order of the inserts, so those of
// a device and of the twin are the same bits; where a set's keys are does.
#pragma once

#include <cstdint>

#include "dunnock/device/memory.hpp"
#include "keys.hpp"

namespace dunnock::gpu_check {

/// Threads: inserts may overlap with inserts and lookups with lookups, on several streams.
class BloomFilter {
 public:
  /// Room for `items` at `bits_per_item`; empty when the stream comes to it. Errors: NoSpace.
  [[nodiscard]] static Result<BloomFilter> create(std::uint64_t items, double bits_per_item, device::Stream& stream);
  void insert(device::Span<const std::uint64_t> keys, device::Stream& stream) const;
  /// answers[i] = 1 if keys[i] may have been inserted, 0 if it was not. (n) -> (n)
  void contains(device::Span<const std::uint64_t> keys, device::Span<std::uint8_t> answers,
                device::Stream& stream) const;
  [[nodiscard]] device::Span<std::uint64_t> words() const noexcept { return words_.span(); }  // (blocks x 4)

 private:
  device::Buffer<std::uint64_t> words_;
};

/// As BloomFilter; a key must not be ~0.
class StaticSet {
 public:
  /// Room for `items`, of which `load` (less than 1) of all slots are taken then. Errors: NoSpace.
  [[nodiscard]] static Result<StaticSet> create(std::uint64_t items, double load, device::Stream& stream);
  /// inserted[i] = 1, or 0 if the key was there already. The set must not become full. (n) -> (n)
  void insert(device::Span<const std::uint64_t> keys, device::Span<std::uint8_t> inserted,
              device::Stream& stream) const;
  /// answers[i] = 1 if keys[i] was inserted. (n) -> (n)
  void contains(device::Span<const std::uint64_t> keys, device::Span<std::uint8_t> answers,
                device::Stream& stream) const;
  [[nodiscard]] device::Span<std::uint64_t> slots() const noexcept { return slots_.span(); }  // (windows x 4)

 private:
  device::Buffer<std::uint64_t> slots_;
};

namespace detail {

inline constexpr unsigned kSectorWords = 4;  // 8 bytes each.
inline constexpr std::uint64_t kEmptySlot = ~0ULL;

struct BloomPlace {
  std::uint64_t block;
  std::uint32_t bits;  // Which ones: spread by bloom_mask.
};
DUNNOCK_HOST_DEVICE constexpr BloomPlace bloom_place(std::uint64_t key, std::uint64_t blocks) noexcept {
  const std::uint64_t hash = mixed(key ^ 0x5851f42d4c957f2dULL);
  return {multiply_high(hash, blocks), static_cast<std::uint32_t>(hash)};  // From the top bits, and the low ones.
}
/// The bits of a key in 8-byte word `word` of its block: one in each half. The factors are any odd numbers.
DUNNOCK_HOST_DEVICE constexpr std::uint64_t bloom_mask(std::uint32_t bits, unsigned word) noexcept {
  const std::uint32_t low = (bits * (0x9e3779b1U + 0x3c6ef372U * word)) >> 27;
  const std::uint32_t high = (bits * (0x85ebca6bU + 0x68e31da4U * word)) >> 27;
  return 1ULL << low | 1ULL << (32 + high);
}
DUNNOCK_HOST_DEVICE constexpr std::uint64_t set_window(std::uint64_t key, std::uint64_t windows) noexcept {
  return multiply_high(mixed(key ^ 0x5851f42d4c957f2dULL), windows);
}

#if DUNNOCK_HAS_CUDA
void make_keys_cuda(device::Span<std::uint64_t> keys, std::uint64_t first, device::Stream& stream);
void bloom_insert_cuda(device::Span<std::uint64_t> words, device::Span<const std::uint64_t> keys,
                       device::Stream& stream);
void bloom_contains_cuda(device::Span<const std::uint64_t> words, device::Span<const std::uint64_t> keys,
                         device::Span<std::uint8_t> answers, device::Stream& stream);
void set_insert_cuda(device::Span<std::uint64_t> slots, device::Span<const std::uint64_t> keys,
                     device::Span<std::uint8_t> inserted, device::Stream& stream);
void set_contains_cuda(device::Span<const std::uint64_t> slots, device::Span<const std::uint64_t> keys,
                       device::Span<std::uint8_t> answers, device::Stream& stream);
#endif

}  // namespace detail
}  // namespace dunnock::gpu_check
