// The textbook cuckoo filter (Fan, Andersen, Kaminsky, Mitzenmacher, CoNEXT 2014), written for comparison: buckets of
// four, two buckets a key, random-walk eviction. Not part of the library.
//
// Plain: packed 4 x 12 or 4 x 16 bits, one thread. Durable: one 8-byte word a bucket, so that a store is atomic, any
// Media, striped locks; made failure atomic the straightforward way: a fingerprint that a kick has in its hand is in a
// log line, durably, before its place is overwritten.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>

#include "dunnock/filter/hash.hpp"
#include "dunnock/filter/layout.hpp"
#include "dunnock/pmem/media.hpp"
#include "dunnock/pmem/volatile_region.hpp"

namespace dunnock::bench {

inline constexpr unsigned kKicksMax = 500;  // as in the reference implementation

/// Where a key goes: the same hash, ranges and other-bucket function as the filter's, so that only the structure
/// differs.
template <unsigned kBits>
struct TextbookPlace {
  std::uint64_t bucket;
  std::uint64_t fingerprint;
  TextbookPlace(std::uint64_t hash, std::uint64_t buckets) {
    const Place place = Layout<kBits>::place(hash, buckets);
    bucket = place.bucket;
    fingerprint = place.fingerprint;
  }
};

inline std::uint64_t next_random(std::uint64_t& state) {  // xorshift64 (Marsaglia 2003)
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

template <unsigned kBits>
class TextbookCuckooFilter {
 public:
  static_assert(kBits == 12 || kBits == 16);
  static constexpr unsigned kBucketBytes = kBits / 2;
  static constexpr std::uint64_t kLane = (1ULL << kBits) - 1;

  TextbookCuckooFilter(std::uint64_t slots, const HashSeed& seed)
      : hasher_(seed),
        buckets_((slots + 3) / 4),
        memory_(std::move(*VolatileRegion::create(buckets_ * kBucketBytes + 8))),
        base_(memory_.region().at(0)) {}

  [[nodiscard]] std::uint64_t slots() const { return buckets_ * 4; }
  [[nodiscard]] std::uint64_t memory_bytes() const { return buckets_ * kBucketBytes; }

  bool contains(std::uint64_t key) const {
    const TextbookPlace<kBits> place(hasher_(key), buckets_);
    const std::uint64_t pattern = place.fingerprint * kOnes;
    const std::uint64_t other =
        Layout<kBits>::other_group(place.bucket, static_cast<std::uint32_t>(place.fingerprint), buckets_);
    return (zero_lanes(load(place.bucket) ^ pattern) | zero_lanes(load(other) ^ pattern)) != 0;
  }
  bool insert(std::uint64_t key) {
    const TextbookPlace<kBits> place(hasher_(key), buckets_);
    if (victim_) return false;  // As in the reference: a fingerprint without a place means full.
    if (put(place.bucket, place.fingerprint)) return true;
    std::uint64_t bucket = other_of(place.bucket, place.fingerprint);
    std::uint64_t fingerprint = place.fingerprint;
    if (put(bucket, fingerprint)) return true;
    for (unsigned kick = 0; kick < kKicksMax; ++kick) {
      const unsigned lane = static_cast<unsigned>(next_random(random_) >> 40) & 3;
      const std::uint64_t word = load(bucket);
      const std::uint64_t displaced = word >> (kBits * lane) & kLane;
      store(bucket, (word & ~(kLane << (kBits * lane))) | fingerprint << (kBits * lane));
      fingerprint = displaced;
      bucket = other_of(bucket, fingerprint);
      if (put(bucket, fingerprint)) return true;
    }
    victim_ = true;
    return true;
  }
  bool erase(std::uint64_t key) {
    const TextbookPlace<kBits> place(hasher_(key), buckets_);
    for (const std::uint64_t bucket : {place.bucket, other_of(place.bucket, place.fingerprint)}) {
      const std::uint64_t word = load(bucket);
      const std::uint64_t zero = zero_lanes(word ^ place.fingerprint * kOnes);
      if (zero == 0) continue;
      const unsigned lane = static_cast<unsigned>(std::countr_zero(zero)) / kBits;
      store(bucket, word & ~(kLane << (kBits * lane)));
      return true;
    }
    return false;
  }
  /// The textbook's bulk lookup: the same with both lines prefetched a batch ahead.
  std::size_t contains_bulk(std::span<const std::uint64_t> keys, std::uint8_t* found) const {
    std::size_t total = 0;
    constexpr std::size_t kAhead = 16;
    for (std::size_t i = 0; i < keys.size() + kAhead; ++i) {
      if (i < keys.size()) {
        const TextbookPlace<kBits> place(hasher_(keys[i]), buckets_);
        __builtin_prefetch(base_ + place.bucket * kBucketBytes);
        __builtin_prefetch(base_ + other_of(place.bucket, place.fingerprint) * kBucketBytes);
      }
      if (i < kAhead) continue;
      found[i - kAhead] = contains(keys[i - kAhead]) ? 1 : 0;
      total += found[i - kAhead];
    }
    return total;
  }
  std::size_t insert_bulk(std::span<const std::uint64_t> keys) {
    std::size_t total = 0;
    constexpr std::size_t kAhead = 16;
    for (std::size_t i = 0; i < keys.size() + kAhead; ++i) {
      if (i < keys.size())
        __builtin_prefetch(base_ + TextbookPlace<kBits>(hasher_(keys[i]), buckets_).bucket * kBucketBytes, 1);
      if (i >= kAhead) total += insert(keys[i - kAhead]) ? 1 : 0;
    }
    return total;
  }

 private:
  static constexpr std::uint64_t kOnes = 1 | 1ULL << kBits | 1ULL << 2 * kBits | 1ULL << 3 * kBits;
  static constexpr std::uint64_t kHigh = kOnes << (kBits - 1);
  static constexpr std::uint64_t kMask = kOnes * kLane;
  static std::uint64_t zero_lanes(std::uint64_t x) { return ~(((x & (kHigh - kOnes)) + (kHigh - kOnes)) | x) & kHigh; }
  [[nodiscard]] std::uint64_t other_of(std::uint64_t bucket, std::uint64_t fingerprint) const {
    return Layout<kBits>::other_group(bucket, static_cast<std::uint32_t>(fingerprint), buckets_);
  }
  [[nodiscard]] std::uint64_t load(std::uint64_t bucket) const {
    std::uint64_t word;
    std::memcpy(&word, base_ + bucket * kBucketBytes, sizeof word);
    return word & kMask;
  }
  void store(std::uint64_t bucket, std::uint64_t word) {
    std::memcpy(base_ + bucket * kBucketBytes, &word, kBucketBytes);
  }
  bool put(std::uint64_t bucket, std::uint64_t fingerprint) {
    const std::uint64_t word = load(bucket);
    const std::uint64_t empty = zero_lanes(word);
    if (empty == 0) return false;
    store(bucket, word | fingerprint << (static_cast<unsigned>(std::countr_zero(empty)) - (kBits - 1)));
    return true;
  }

  KeyHasher hasher_;
  std::uint64_t buckets_;
  VolatileRegion memory_;
  std::byte* base_;
  std::uint64_t random_ = 88172645463325252ULL;
  bool victim_ = false;
};

/// The same, failure atomic on any media, for any number of threads.
template <Media M>
class DurableTextbookFilter {
 public:
  using L = Layout<12>;
  static constexpr unsigned kLaneBits = 16;  // 12 used: four lanes fill the atomic word

  DurableTextbookFilter(std::uint64_t slots, const HashSeed& seed, M media)
      : media_(std::move(media)),
        hasher_(seed),
        buckets_((slots + 3) / 4),
        memory_(std::move(*VolatileRegion::create(buckets_ * 8))),
        log_memory_(std::move(*VolatileRegion::create(kLogs * kLineBytes))),
        words_(reinterpret_cast<Word*>(memory_.region().at(0))),
        logs_(reinterpret_cast<Word*>(log_memory_.region().at(0))),
        locks_(std::make_unique<std::atomic<std::uint8_t>[]>(kLocks)) {}

  [[nodiscard]] std::uint64_t slots() const { return buckets_ * 4; }
  [[nodiscard]] std::uint64_t memory_bytes() const { return buckets_ * 8; }

  bool contains(std::uint64_t key) const {
    const TextbookPlace<12> place(hasher_(key), buckets_);
    const std::uint64_t pattern = place.fingerprint * kOnes;
    const std::uint64_t other = other_of(place.bucket, place.fingerprint);
    return (zero_lanes(media_.load(words_[place.bucket]) ^ pattern) |
            zero_lanes(media_.load(words_[other]) ^ pattern)) != 0;
  }
  bool insert(std::uint64_t key) {
    const TextbookPlace<12> place(hasher_(key), buckets_);
    if (put(place.bucket, place.fingerprint)) return true;
    std::uint64_t bucket = other_of(place.bucket, place.fingerprint);
    std::uint64_t fingerprint = place.fingerprint;
    if (put(bucket, fingerprint)) return true;
    thread_local std::uint64_t random = 88172645463325252ULL;
    thread_local const unsigned number = next_log_.fetch_add(1) % kLogs;
    Word* log = logs_ + number * 8;
    bool placed = false;
    for (unsigned kick = 0; kick < kKicksMax && !placed; ++kick) {
      const unsigned lane = static_cast<unsigned>(next_random(random) >> 40) & 3;
      {
        const Lock lock(*this, bucket);
        const std::uint64_t word = media_.load(words_[bucket]);
        const std::uint64_t displaced = word >> (kLaneBits * lane) & 0xffff;
        media_.store(Point{}, log[1], bucket);
        media_.store(Point{}, log[0], displaced | fingerprint << 16 | 1ULL << 63);
        media_.flush(Point{}, log);
        media_.fence(Point{});
        media_.store(Point{}, words_[bucket],
                     (word & ~(0xffffULL << (kLaneBits * lane))) | fingerprint << (kLaneBits * lane));
        media_.flush(Point{}, &words_[bucket]);
        media_.fence(Point{});
        fingerprint = displaced;
      }
      if (fingerprint == 0) {  // Another thread has emptied the lane meanwhile.
        placed = true;
        break;
      }
      bucket = other_of(bucket, fingerprint);
      placed = put(bucket, fingerprint);
    }
    media_.store(Point{}, log[0], 0);
    media_.flush(Point{}, log);
    media_.fence(Point{});
    return placed;
  }
  bool erase(std::uint64_t key) {
    const TextbookPlace<12> place(hasher_(key), buckets_);
    for (const std::uint64_t bucket : {place.bucket, other_of(place.bucket, place.fingerprint)}) {
      const Lock lock(*this, bucket);
      const std::uint64_t word = media_.load(words_[bucket]);
      const std::uint64_t zero = zero_lanes(word ^ place.fingerprint * kOnes);
      if (zero == 0) continue;
      const unsigned lane = static_cast<unsigned>(std::countr_zero(zero)) / kLaneBits;
      media_.store(Point{}, words_[bucket], word & ~(0xffffULL << (kLaneBits * lane)));
      media_.flush(Point{}, &words_[bucket]);
      media_.fence(Point{});
      return true;
    }
    return false;
  }

 private:
  static constexpr std::uint64_t kOnes = 0x0001000100010001ULL;
  static constexpr std::uint64_t kHigh = kOnes << 15;
  static constexpr std::uint64_t kLocks = 1 << 18;
  static constexpr unsigned kLogs = 256;
  static std::uint64_t zero_lanes(std::uint64_t x) { return ~(((x & (kHigh - kOnes)) + (kHigh - kOnes)) | x) & kHigh; }
  [[nodiscard]] std::uint64_t other_of(std::uint64_t bucket, std::uint64_t fingerprint) const {
    return L::other_group(bucket, static_cast<std::uint32_t>(fingerprint), buckets_);
  }
  struct Lock {
    Lock(const DurableTextbookFilter& filter, std::uint64_t bucket) : lock(filter.locks_[bucket / 8 % kLocks]) {
      while (lock.exchange(1, std::memory_order_acquire) != 0) detail::cpu_pause();
    }
    ~Lock() { lock.store(0, std::memory_order_release); }
    std::atomic<std::uint8_t>& lock;
  };
  bool put(std::uint64_t bucket, std::uint64_t fingerprint) {
    const Lock lock(*this, bucket);
    const std::uint64_t word = media_.load(words_[bucket]);
    const std::uint64_t empty = zero_lanes(word);
    if (empty == 0) return false;
    media_.store(Point{}, words_[bucket], word | fingerprint << (static_cast<unsigned>(std::countr_zero(empty)) - 15));
    media_.flush(Point{}, &words_[bucket]);
    media_.fence(Point{});
    return true;
  }

  [[no_unique_address]] M media_;
  KeyHasher hasher_;
  std::uint64_t buckets_;
  VolatileRegion memory_;
  VolatileRegion log_memory_;
  Word* words_;
  Word* logs_;
  std::unique_ptr<std::atomic<std::uint8_t>[]> locks_;
  inline static std::atomic<unsigned> next_log_{0};  // A number per thread, for all filters of this type.
};

/// Cache-blocked Bloom filter (Putze, Sanders, Singler, 2007): eight bits of one 512-bit block a key. No erase.
class BlockedBloomFilter {
 public:
  static constexpr std::uint64_t kBitsPerKey = 13;  // About as much as our filter takes at 95 %.

  BlockedBloomFilter(std::uint64_t bits, const HashSeed& seed)
      : hasher_(seed),
        blocks_((bits + 511) / 512),
        memory_(std::move(*VolatileRegion::create(blocks_ * 64))),
        words_(reinterpret_cast<std::uint64_t*>(memory_.region().at(0))) {}
  /// As many keys as it has the bits for; it refuses none.
  [[nodiscard]] std::uint64_t slots() const { return blocks_ * 512 / kBitsPerKey; }
  [[nodiscard]] std::uint64_t memory_bytes() const { return blocks_ * 64; }
  bool insert(std::uint64_t key) {
    const std::uint64_t hash = hasher_(key);
    std::uint64_t* block = words_ + multiply_high(hash, blocks_) * 8;
    std::uint64_t bits = hash * 0x9e3779b97f4a7c15ULL;
    for (unsigned i = 0; i < 8; ++i, bits = bits >> 6 | bits << 58) block[i] |= 1ULL << (bits & 63);
    return true;
  }
  bool contains(std::uint64_t key) const {
    const std::uint64_t hash = hasher_(key);
    const std::uint64_t* block = words_ + multiply_high(hash, blocks_) * 8;
    std::uint64_t bits = hash * 0x9e3779b97f4a7c15ULL;
    std::uint64_t all = ~0ULL;
    for (unsigned i = 0; i < 8; ++i, bits = bits >> 6 | bits << 58) all &= block[i] >> (bits & 63);
    return (all & 1) != 0;
  }

 private:
  KeyHasher hasher_;
  std::uint64_t blocks_;
  VolatileRegion memory_;
  std::uint64_t* words_;
};

}  // namespace dunnock::bench
