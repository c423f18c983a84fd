// IDX files, the format of the MNIST digits (http://yann.lecun.com/exdb/mnist), plain or compressed by gzip.
//
//   2 B      zero
//   1 B      type of the elements: IdxType
//   1 B      dimensions, 1 or more
//   4 B each lengths of the dimensions, big endian, outermost first
//   ...      elements, big endian, the last dimension without gaps; nothing follows
//
// The parser trusts nothing: it refuses a length that does not fit the bytes, unknown types, trailing bytes and damaged
// compression, and takes memory as data arrives, not as the header promises. Compressed data may be several gzip
// members, and zeros may follow each, as gzip itself reads it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "dunnock/base/check.hpp"
#include "dunnock/base/result.hpp"

namespace dunnock::data {

/// The numbers are those of the format.
enum class IdxType : std::uint8_t { kU8 = 0x08, kI8 = 0x09, kI16 = 0x0B, kI32 = 0x0C, kF32 = 0x0D, kF64 = 0x0E };

/// Bytes per element; 0 for an unknown type.
[[nodiscard]] constexpr std::size_t bytes_of(IdxType type) noexcept {
  switch (type) {
    case IdxType::kU8:
    case IdxType::kI8: return 1;
    case IdxType::kI16: return 2;
    case IdxType::kI32:
    case IdxType::kF32: return 4;
    case IdxType::kF64: return 8;
  }
  return 0;
}

namespace detail {
template <class T>
inline constexpr bool kIsIdxElement = false;
template <>
inline constexpr bool kIsIdxElement<std::uint8_t> = true;
template <>
inline constexpr bool kIsIdxElement<std::int8_t> = true;
template <>
inline constexpr bool kIsIdxElement<std::int16_t> = true;
template <>
inline constexpr bool kIsIdxElement<std::int32_t> = true;
template <>
inline constexpr bool kIsIdxElement<float> = true;
template <>
inline constexpr bool kIsIdxElement<double> = true;

template <class T>
constexpr IdxType idx_type() noexcept {
  static_assert(kIsIdxElement<T>, "IDX has no such elements");
  if constexpr (std::is_same_v<T, std::uint8_t>) return IdxType::kU8;
  if constexpr (std::is_same_v<T, std::int8_t>) return IdxType::kI8;
  if constexpr (std::is_same_v<T, std::int16_t>) return IdxType::kI16;
  if constexpr (std::is_same_v<T, std::int32_t>) return IdxType::kI32;
  if constexpr (std::is_same_v<T, float>) return IdxType::kF32;
  return IdxType::kF64;
}
}  // namespace detail

/// The array of a file, its elements in the host's byte order.
struct IdxArray {
  IdxType type = IdxType::kU8;
  std::vector<std::uint32_t> shape;  ///< The outermost dimension first.
  std::vector<std::byte> data;       ///< Product of the shape times bytes_of(type).

  /// The elements, in order. T must match `type`; anything else is a programmer error.
  template <class T>
  [[nodiscard]] std::span<const T> as() const {
    DUNNOCK_CHECK(type == detail::idx_type<T>(), "an array is read as the type that it has");
    return {reinterpret_cast<const T*>(data.data()), data.size() / sizeof(T)};
  }
  friend bool operator==(const IdxArray&, const IdxArray&) = default;
};

inline constexpr std::uint64_t kIdxBytesMax = std::uint64_t{1} << 32;

/// Parses a file's bytes; decompresses them first if they begin with gzip's mark. `bytes_max`: the most that the
/// elements may take. Errors: Corrupt, with what is wrong; NoSpace: more than `bytes_max`.
[[nodiscard]] Result<IdxArray> parse_idx(std::span<const std::byte> file, std::uint64_t bytes_max = kIdxBytesMax);

/// Reads a file. Errors: those of parse_idx(), with the path; NotFound, ReadOnly, InvalidArgument (not a file), Io.
[[nodiscard]] Result<IdxArray> read_idx(const std::string& path, std::uint64_t bytes_max = kIdxBytesMax);

/// Reads images as ImageSet takes them. Errors: those of read_idx(); InvalidArgument, with the path: not images.
[[nodiscard]] Result<IdxArray> read_images(const std::string& path);

/// Labels as u8 (count), made from (count) or (count, 1) whole numbers of any type, or from QMNIST's i32 (count, 8),
/// of which the first number is used. Errors: InvalidArgument: the array has another form; Corrupt: a label is not
/// below `classes` (1 to 256).
[[nodiscard]] Result<IdxArray> labels_from(const IdxArray& array, unsigned classes);

/// Reads a file of labels. Errors: those of read_idx() and labels_from(), with the path.
[[nodiscard]] Result<IdxArray> read_labels(const std::string& path, unsigned classes);

/// The bytes of an uncompressed file. `array.data` must be as long as its shape says, with 1 to 255 dimensions.
[[nodiscard]] std::vector<std::byte> encode_idx(const IdxArray& array);

/// Images and their labels.
class ImageSet {
 public:
  /// `images`: u8, (count, height, width) or (count, channels, height, width); `labels`: what labels_from() takes.
  /// Errors: InvalidArgument: they have another form, or do not belong together; Corrupt: a label is out of range.
  [[nodiscard]] static Result<ImageSet> create(IdxArray images, IdxArray labels, unsigned classes);
  struct Paths {
    std::string images;
    std::string labels;
  };
  /// Reads both. Errors: those of read_idx() and create().
  [[nodiscard]] static Result<ImageSet> open(const Paths& paths, unsigned classes);

  [[nodiscard]] std::size_t count() const noexcept { return labels_.data.size(); }
  [[nodiscard]] std::size_t channels() const noexcept { return channels_; }
  [[nodiscard]] std::size_t height() const noexcept { return height_; }
  [[nodiscard]] std::size_t width() const noexcept { return width_; }
  [[nodiscard]] unsigned classes() const noexcept { return classes_; }
  /// Checksum of all pixels and labels (XXH3).
  [[nodiscard]] std::uint64_t checksum() const noexcept { return checksum_; }
  /// Number of values in one image: channels x height x width.
  [[nodiscard]] std::size_t pixels() const noexcept { return channels_ * height_ * width_; }
  /// (channels, height, width). `index` < count().
  [[nodiscard]] std::span<const std::uint8_t> image(std::size_t index) const {
    DUNNOCK_CHECK(index < count(), "the index of an image is below the count");
    return images_.as<std::uint8_t>().subspan(index * pixels(), pixels());
  }
  [[nodiscard]] std::uint8_t label(std::size_t index) const {
    DUNNOCK_CHECK(index < count(), "the index of a label is below the count");
    return labels_.as<std::uint8_t>()[index];
  }

 private:
  IdxArray images_;  // (count, [channels,] height, width)
  IdxArray labels_;  // (count)
  std::size_t channels_ = 0, height_ = 0, width_ = 0;
  unsigned classes_ = 0;
  std::uint64_t checksum_ = 0;
};

}  // namespace dunnock::data
