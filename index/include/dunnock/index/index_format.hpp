// What an index looks like in the pool. docs/on_media_format.md says the same in prose.
//
// Region "<name>.meta":
//
//   offset 0      IndexHeader   128 B   written once by format(); magic last. Never changes.
//   offset 128    IndexState     64 B   clean shutdown mark, size of the directory in use
//   offset 192    zero
//   offset 4096   directory      8 B for each segment number: 0, or the slot of the segment with a checksum
//
// Regions "<name>.s0", "<name>.s1", ...: chunks, each an array of slots; a slot holds one segment:
//
//   offset 0                  groups x 64 B             fingerprint lines: the filter's words (filter/layout.hpp)
//   offset groups x 64        groups x 40 x 64 B        record lines: record i of a group belongs to lane i
//
// Segments are split like those of an extendible hash table. Segment n at depth d holds the keys whose hash ends (in
// the bits above those that choose the group) in the d bits of n. A split at depth d moves half of them to segment
// n + 2^d, which did not exist before, and one 8-byte store to the directory makes it exist. Depths follow from which
// segments exist, so nothing else has to be changed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>

#include "dunnock/base/check.hpp"
#include "dunnock/filter/hash.hpp"
#include "dunnock/filter/layout.hpp"
#include "dunnock/pmem/header.hpp"
#include "dunnock/pmem/media.hpp"

namespace dunnock {

inline constexpr std::uint64_t kIndexMagic = 0x31584449'4b4e4e44ULL;  // "DNNKIDX1", little endian
inline constexpr std::uint32_t kIndexFormatVersion = 1;
inline constexpr std::uint64_t kIndexStateOffset = 128;
inline constexpr std::uint64_t kIndexDirectoryOffset = 4096;
inline constexpr unsigned kIndexGroupWords = 8;
inline constexpr unsigned kIndexGroupLanes = kIndexGroupWords * Layout<12>::kLanes;  // 40
inline constexpr unsigned kIndexDepthMax = 24;

/// The key of an index: 128 bits, taken as they are.
struct IndexKey {
  std::uint64_t low = 0;
  std::uint64_t high = 0;

  /// The XXH3 hash (128 bits, no seed) of a longer key: the same on every machine, so it may be stored. Among 2^32
  /// keys, two collide with a probability of 2^-65. Not for keys that an adversary chooses: hash these yourself, with
  /// a secret.
  [[nodiscard]] static IndexKey of(std::string_view name) noexcept;
  friend bool operator==(const IndexKey&, const IndexKey&) = default;
};

/// Where the bytes of a value are (see value_log.hpp).
struct Locator {
  std::uint64_t position = 0;  ///< Opaque to the index. The log: offset in bytes (low 48 bits) and epoch (high 16).
  std::uint32_t length = 0;    ///< Length in bytes.
  std::uint32_t checksum = 0;  ///< Checksum of these bytes.
  friend bool operator==(const Locator&, const Locator&) = default;
};

/// The value of an index entry: up to 16 bytes, or a locator.
class IndexValue {
 public:
  static constexpr std::size_t kInlineBytesMax = 16;

  IndexValue() = default;
  /// `bytes`: at most kInlineBytesMax of them.
  [[nodiscard]] static IndexValue of(std::span<const std::byte> bytes) noexcept {
    DUNNOCK_CHECK(bytes.size() <= kInlineBytesMax, "an inline value has at most 16 bytes");
    IndexValue value;
    if (!bytes.empty()) std::memcpy(value.words_.data(), bytes.data(), bytes.size());
    value.tag_ = static_cast<std::uint8_t>(bytes.size());
    return value;
  }
  [[nodiscard]] static IndexValue of(std::uint64_t number) noexcept { return {{number, 0}, 8}; }
  [[nodiscard]] static IndexValue of(const Locator& locator) noexcept {
    return {{locator.position, locator.length | static_cast<std::uint64_t>(locator.checksum) << 32}, kLocatorTag};
  }

  [[nodiscard]] bool is_locator() const noexcept { return tag_ == kLocatorTag; }
  /// Only when is_locator().
  [[nodiscard]] Locator locator() const noexcept {
    return {words_[0], static_cast<std::uint32_t>(words_[1]), static_cast<std::uint32_t>(words_[1] >> 32)};
  }
  /// Only when !is_locator(). Valid as long as this object.
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept {
    return std::as_bytes(std::span(words_)).first(tag_);
  }
  /// The first eight inline bytes as a number; missing ones are zero.
  [[nodiscard]] std::uint64_t number() const noexcept { return words_[0]; }

  friend bool operator==(const IndexValue&, const IndexValue&) = default;

  /// For the index itself: the raw words, and 0 .. 16 or kLocatorTag.
  static constexpr std::uint8_t kLocatorTag = 31;
  IndexValue(const std::array<std::uint64_t, 2>& words, std::uint8_t tag) noexcept : words_(words), tag_(tag) {}
  [[nodiscard]] const std::array<std::uint64_t, 2>& words() const noexcept { return words_; }
  [[nodiscard]] std::uint8_t tag() const noexcept { return tag_; }

 private:
  std::array<std::uint64_t, 2> words_{};
  std::uint8_t tag_ = 0;
};

/// The parameters of an index. Every field is checked when an index is attached.
struct IndexHeader {
  std::uint64_t magic;             // kIndexMagic. Written last: without it the index does not exist.
  std::uint32_t format_version;    // kIndexFormatVersion
  std::uint32_t segment_groups;    // groups in a segment: a power of two
  std::uint64_t initial_segments;  // a power of two
  std::uint64_t segments_max;      // maximum number of slots, ever
  std::uint64_t directory_depth;   // the directory has 2^directory_depth words
  HashSeed seed;                   // 32 B
  std::array<std::uint64_t, 6> zero;
  std::uint64_t checksum;  // XXH3 of the 112 bytes between magic and this
};
static_assert(sizeof(IndexHeader) == 128 && std::is_trivially_copyable_v<IndexHeader>);

/// What changes besides directory and segments: one line, so its stores become durable in the order of the arrows.
///   close():  entries, then clean = index_clean_mark(entries)   A crash in between leaves clean = 0: entries
///                                                               are counted again when size() is first needed.
///   attach(): clean = 0                                         Before the first operation.
///   growth:   depth grows before the directory gets a word beyond 2^depth. Only grows.
struct alignas(kLineBytes) IndexState {
  Word clean;
  Word entries;
  Word depth;
  std::array<std::uint64_t, 5> zero;
};
static_assert(sizeof(IndexState) == kLineBytes);

/// The mark that says that `entries` can be trusted; never 0.
[[nodiscard]] constexpr std::uint64_t index_clean_mark(std::uint64_t entries) noexcept {
  return ((entries ^ 0x2545f4914f6cdd1dULL) * 0x9e3779b97f4a7c15ULL) | 1;
}

/// The directory's word for a segment: its slot plus one, and a checksum of slot and number in the upper half.
[[nodiscard]] constexpr std::uint64_t directory_word(std::uint64_t segment, std::uint64_t slot) noexcept {
  std::uint64_t mix = (segment * 0x9e3779b97f4a7c15ULL) ^ ((slot + 1) * 0xd6e8feb86659fd93ULL);
  mix ^= mix >> 32;
  mix *= 0xd6e8feb86659fd93ULL;
  return (mix >> 32) << 32 | (slot + 1);
}

/// One entry: one line, so its stores become durable in the order in which they are made.
///
///   control   63 ........ 32 31 ........ 7 6 ... 2  1    0
///             |  checksum   |  sequence   |  tag  |slot|live|
///
///   live      1: the entry exists (if a lane with its fingerprint points to it). 0: the line is free.
///   slot      which of the two values is current: an update fills the other one and then stores the control word.
///   tag       0 .. 16: inline bytes; 31: a locator
///   sequence  grows with every change, so a reader that sees the same control word before and after reading the
///             value has read a value that was current in between
///   checksum  of key, value, and the lower half of the control word; read with every get
///
/// put, new:      key, values[0], control; the lane in the fingerprint line; then one fence for both lines. A crash
///                that keeps only one of the two lines leaves a lane that points to a free line, or a line to which no
///                lane points: the entry does not exist, and a later put reuses what is left.
/// put, existing: values[other], control: one line, one fence.
/// erase:         control (live = 0), one fence; then the lane, without a fence.
struct alignas(kLineBytes) IndexRecord {
  Word control;
  std::array<Word, 2> key;
  std::array<std::array<Word, 2>, 2> values;
  std::uint64_t zero;
};
static_assert(sizeof(IndexRecord) == kLineBytes);

namespace detail {

/// Takes the control word of a record apart and puts it together.
struct Control {
  static constexpr std::uint64_t kLive = 1;
  static constexpr std::uint64_t kSecond = 2;
  static constexpr std::uint64_t kSequenceOne = 1ULL << 7;
  static constexpr std::uint64_t kLowMask = 0xffffffffULL;

  [[nodiscard]] static constexpr bool live(std::uint64_t control) noexcept { return (control & kLive) != 0; }
  [[nodiscard]] static constexpr unsigned slot(std::uint64_t control) noexcept {
    return static_cast<unsigned>(control >> 1 & 1);
  }
  [[nodiscard]] static constexpr std::uint8_t tag(std::uint64_t control) noexcept {
    return static_cast<std::uint8_t>(control >> 2 & 31);
  }
  [[nodiscard]] static constexpr bool sound_tag(std::uint64_t control) noexcept {
    return tag(control) <= IndexValue::kInlineBytesMax || tag(control) == IndexValue::kLocatorTag;
  }
  static constexpr std::uint64_t fold(std::uint64_t a, std::uint64_t b) noexcept {
    const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
    return static_cast<std::uint64_t>(product >> 64) ^ static_cast<std::uint64_t>(product);
  }
  [[nodiscard]] static constexpr std::uint64_t sum(const IndexKey& key, const std::array<std::uint64_t, 2>& value,
                                                   std::uint64_t low) noexcept {
    const std::uint64_t of_key = fold(key.low ^ 0xa0761d6478bd642fULL, key.high ^ 0xe7037ed1a0b428dbULL);
    const std::uint64_t of_value = fold(value[0] ^ 0x8ebc6af09c88c6e3ULL, value[1] ^ 0x589965cc75374cc3ULL);
    return fold(of_key ^ low ^ 0x1d8e4e27c47d124fULL, of_value ^ 0xeb44accab455d165ULL) >> 32 << 32;
  }
  /// The control word that follows `before` when the entry gets this value in that slot.
  [[nodiscard]] static constexpr std::uint64_t next_live(std::uint64_t before, unsigned slot, std::uint8_t tag,
                                                         const IndexKey& key,
                                                         const std::array<std::uint64_t, 2>& value) noexcept {
    const std::uint64_t sequence = ((before & kLowMask) >> 7) + 1;
    const std::uint64_t low = (sequence << 7 & kLowMask) | static_cast<std::uint64_t>(tag) << 2 |
                              static_cast<std::uint64_t>(slot) << 1 | kLive;
    return sum(key, value, low) | low;
  }
  /// The control word that follows `before` when the entry is erased.
  [[nodiscard]] static constexpr std::uint64_t next_free(std::uint64_t before) noexcept {
    return (((before & kLowMask) >> 7) + 1) << 7 & kLowMask;
  }
};

}  // namespace detail

}  // namespace dunnock
