#include "dunnock/data/idx.hpp"

#include <xxhash.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "dunnock/base/input_file.hpp"

namespace dunnock::data {
namespace {

static_assert(std::endian::native == std::endian::little, "elements are turned around when read");

tl::unexpected<Error> corrupt(const std::string& what) {
  return make_error(ErrorCode::kCorrupt, "not an IDX file: " + what);
}

bool is_gzip(std::span<const std::byte> bytes) {
  return bytes.size() >= 2 && bytes[0] == std::byte{0x1f} && bytes[1] == std::byte{0x8b};
}

/// Bytes in order, uncompressed on the way where they are compressed.
class Source {
 public:
  explicit Source(std::span<const std::byte> file) : rest_(file), gzip_(is_gzip(file)) {
    if (!gzip_) return;
    constexpr int kWindowBits = 15, kGzip = 16;
    ready_ = inflateInit2(&stream_, kWindowBits + kGzip) == Z_OK;
  }
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;
  ~Source() {
    if (ready_) inflateEnd(&stream_);
  }

  /// Fills `to` as far as there are bytes; how many they were.
  Result<std::size_t> read(std::span<std::byte> to) {
    if (!gzip_) {
      const std::size_t count = std::min(to.size(), rest_.size());
      std::copy_n(rest_.begin(), count, to.begin());
      rest_ = rest_.subspan(count);
      return count;
    }
    if (!ready_) return make_error(ErrorCode::kNoSpace, "can't allocate memory for decompression");
    std::size_t done = 0;
    while (done < to.size() && !ended_) {
      constexpr std::size_t kStep = 1U << 30;  // zlib counts in 32 bits.
      const std::size_t in = std::min(rest_.size(), kStep), out = std::min(to.size() - done, kStep);
      stream_.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(rest_.data()));
      stream_.avail_in = static_cast<uInt>(in);
      stream_.next_out = reinterpret_cast<Bytef*>(to.data() + done);
      stream_.avail_out = static_cast<uInt>(out);
      const int answer = inflate(&stream_, Z_NO_FLUSH);
      rest_ = rest_.subspan(in - stream_.avail_in);
      done += out - stream_.avail_out;
      if (answer == Z_STREAM_END) {
        // A gzip file may be several in sequence, and zeros may follow each: the padding of tape or disk blocks. gzip
        // and Python's gzip read it the same way.
        const auto* const content = std::find_if(rest_.data(), rest_.data() + rest_.size(),
                                                 [](std::byte byte) { return byte != std::byte{0}; });
        rest_ = rest_.subspan(static_cast<std::size_t>(content - rest_.data()));
        if (rest_.empty()) {
          ended_ = true;
        } else if (!is_gzip(rest_)) {
          return corrupt(std::to_string(rest_.size()) +
                         " bytes after the compressed data are neither compressed data nor zero padding");
        } else if (inflateReset(&stream_) != Z_OK) {
          return corrupt("the compressed data can't be read any further");
        }
      } else if (answer == Z_BUF_ERROR && rest_.empty()) {
        return corrupt("the compressed data is truncated");
      } else if (answer != Z_OK) {
        return corrupt(std::string("the compressed data is damaged") +
                       (stream_.msg != nullptr ? std::string(" (") + stream_.msg + ")" : ""));
      }
    }
    return done;
  }

 private:
  std::span<const std::byte> rest_;
  bool gzip_;
  bool ready_ = false;
  bool ended_ = false;
  z_stream stream_{};
};

template <class T>
void turn_around(std::span<std::byte> data) {
  for (std::size_t at = 0; at + sizeof(T) <= data.size(); at += sizeof(T)) {
    std::reverse(data.begin() + static_cast<std::ptrdiff_t>(at),
                 data.begin() + static_cast<std::ptrdiff_t>(at + sizeof(T)));
  }
}

void to_other_byte_order(IdxType type, std::span<std::byte> data) {
  switch (bytes_of(type)) {
    case 2: return turn_around<std::uint16_t>(data);
    case 4: return turn_around<std::uint32_t>(data);
    case 8: return turn_around<std::uint64_t>(data);
    default: return;
  }
}

}  // namespace

Result<IdxArray> parse_idx(std::span<const std::byte> file, std::uint64_t bytes_max) {
  Source source(file);
  std::array<std::byte, 4> head{};
  DUNNOCK_TRY(const auto head_bytes, source.read(head));
  if (head_bytes != head.size()) return corrupt("it has no header");
  if (head[0] != std::byte{0} || head[1] != std::byte{0}) return corrupt("it does not begin with two zero bytes");
  IdxArray array;
  array.type = static_cast<IdxType>(head[2]);
  const std::size_t element_bytes = bytes_of(array.type);
  if (element_bytes == 0)
    return corrupt("its elements have the unknown type " + std::to_string(std::to_integer<int>(head[2])));
  const auto dimensions = std::to_integer<std::size_t>(head[3]);
  if (dimensions == 0) return corrupt("it has no dimensions");

  std::uint64_t expected = element_bytes;
  for (std::size_t i = 0; i < dimensions; ++i) {
    std::array<std::byte, 4> length{};
    DUNNOCK_TRY(const auto length_bytes, source.read(length));
    if (length_bytes != length.size()) return corrupt("its header is truncated");
    std::uint32_t value = 0;
    for (const std::byte byte : length) value = value << 8 | std::to_integer<std::uint32_t>(byte);
    array.shape.push_back(value);
    if (__builtin_mul_overflow(expected, value, &expected)) return corrupt("its shape is too large for any file");
  }
  if (expected > bytes_max)
    return make_error(ErrorCode::kNoSpace, "the IDX file has " + std::to_string(expected) + " bytes; the limit is " +
                                               std::to_string(bytes_max));

  // Grown as data comes: a header is no reason to take memory.
  constexpr std::uint64_t kFirst = 1U << 20;
  while (array.data.size() < expected) {
    const std::size_t had = array.data.size();
    array.data.resize(std::min<std::uint64_t>(expected, std::max<std::uint64_t>(kFirst, 2 * had)));
    DUNNOCK_TRY(const auto got, source.read(std::span(array.data).subspan(had)));
    if (got < array.data.size() - had)
      return corrupt("its header says " + std::to_string(expected) + " bytes, but it has " + std::to_string(had + got));
  }
  std::byte more{};
  const auto beyond = source.read({&more, 1});  // Of compressed data it also compares the checksum.
  DUNNOCK_TRY(beyond);
  if (*beyond != 0) return corrupt("it has more than the " + std::to_string(expected) + " bytes that its header says");
  to_other_byte_order(array.type, array.data);
  return array;
}

Result<IdxArray> read_idx(const std::string& path, std::uint64_t bytes_max) {
  DUNNOCK_TRY(const auto file, read_file(path));
  auto array = parse_idx(std::as_bytes(std::span(file)), bytes_max);
  if (!array) return make_error(array.error().code, path + ": " + array.error().message);
  return array;
}

std::vector<std::byte> encode_idx(const IdxArray& array) {
  DUNNOCK_CHECK(!array.shape.empty(), "an IDX file has a dimension");
  DUNNOCK_CHECK(array.shape.size() <= 255, "an IDX file has no more than 255 dimensions");
  std::uint64_t expected = bytes_of(array.type);
  std::vector<std::byte> bytes{std::byte{0}, std::byte{0}, static_cast<std::byte>(array.type),
                               static_cast<std::byte>(array.shape.size())};
  for (const std::uint32_t length : array.shape) {
    for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<std::byte>(length >> shift & 0xFFU));
    expected *= length;
  }
  DUNNOCK_CHECK(array.data.size() == expected, "an array has the bytes that its shape says");
  const std::size_t header = bytes.size();
  bytes.insert(bytes.end(), array.data.begin(), array.data.end());
  to_other_byte_order(array.type, std::span(bytes).subspan(header));
  return bytes;
}

namespace {

tl::unexpected<Error> refuse(const std::string& what) { return make_error(ErrorCode::kInvalidArgument, what); }

std::string_view name_of(IdxType type) {
  switch (type) {
    case IdxType::kU8: return "u8";
    case IdxType::kI8: return "i8";
    case IdxType::kI16: return "i16";
    case IdxType::kI32: return "i32";
    case IdxType::kF32: return "f32";
    case IdxType::kF64: return "f64";
  }
  return "an unknown type";
}

/// "i32 [60000, 8]"
std::string described(const IdxArray& array) {
  std::string text = std::string(name_of(array.type)) + " [";
  for (std::size_t i = 0; i < array.shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(array.shape[i]);
  return text + "]";
}

Status check_images(const IdxArray& images) {
  if (images.type != IdxType::kU8) return refuse("images must be arrays of bytes, not " + described(images));
  if (images.shape.size() != 3 && images.shape.size() != 4)
    return refuse("images need 3 or 4 dimensions, not " + described(images));
  for (std::size_t i = 1; i < images.shape.size(); ++i) {
    if (images.shape[i] == 0) return refuse("images need pixels, not " + described(images));
  }
  return {};
}

/// The first number of each row, as a class.
template <class T>
Result<std::vector<std::byte>> classes_of(const IdxArray& labels, unsigned classes) {
  const auto values = labels.as<T>();
  const std::size_t count = labels.shape[0];
  const std::size_t columns = labels.shape.size() == 2 ? labels.shape[1] : 1;
  std::vector<std::byte> found(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto label = static_cast<std::int64_t>(values[i * columns]);
    if (label < 0 || label >= static_cast<std::int64_t>(classes))
      return make_error(ErrorCode::kCorrupt, "label " + std::to_string(i) + " is " + std::to_string(label) +
                                                 ", which is out of range: the number of classes is " +
                                                 std::to_string(classes));
    found[i] = static_cast<std::byte>(label);
  }
  return found;
}

}  // namespace

Result<IdxArray> labels_from(const IdxArray& array, unsigned classes) {
  if (classes == 0 || classes > 256)
    return refuse("the number of classes must be 1 to 256, not " + std::to_string(classes));
  // QMNIST's (Yadav, Bottou 2019): the class, and seven numbers about who wrote it and where it stands.
  constexpr std::uint32_t kQmnistColumns = 8;
  const bool rows = array.shape.size() == 1 || (array.shape.size() == 2 && array.shape[1] == 1);
  const bool qmnist = array.shape.size() == 2 && array.shape[1] == kQmnistColumns && array.type == IdxType::kI32;
  if (!rows && !qmnist)
    return refuse("labels must be a row of whole numbers or QMNIST's i32 [count, 8], not " + described(array));
  Result<std::vector<std::byte>> found = std::vector<std::byte>();
  switch (array.type) {
    case IdxType::kU8: found = classes_of<std::uint8_t>(array, classes); break;
    case IdxType::kI8: found = classes_of<std::int8_t>(array, classes); break;
    case IdxType::kI16: found = classes_of<std::int16_t>(array, classes); break;
    case IdxType::kI32: found = classes_of<std::int32_t>(array, classes); break;
    case IdxType::kF32:
    case IdxType::kF64: return refuse("labels must be whole numbers, not " + described(array));
  }
  DUNNOCK_TRY(found);
  return IdxArray{IdxType::kU8, {array.shape[0]}, std::move(*found)};
}

Result<IdxArray> read_images(const std::string& path) {
  auto images = read_idx(path);
  if (!images) return images;
  if (Status sound = check_images(*images); !sound)
    return make_error(sound.error().code, path + ": " + sound.error().message);
  return images;
}

Result<IdxArray> read_labels(const std::string& path, unsigned classes) {
  const auto array = read_idx(path);
  if (!array) return array;
  auto labels = labels_from(*array, classes);
  if (!labels) return make_error(labels.error().code, path + ": " + labels.error().message);
  return labels;
}

Result<ImageSet> ImageSet::create(IdxArray images, IdxArray labels, unsigned classes) {
  DUNNOCK_TRY(check_images(images));
  DUNNOCK_TRY(auto bytes, labels_from(labels, classes));
  labels = std::move(bytes);
  if (images.shape[0] != labels.shape[0])
    return refuse("there are " + std::to_string(images.shape[0]) + " images but " + std::to_string(labels.shape[0]) +
                  " labels");
  ImageSet set;
  set.channels_ = images.shape.size() == 4 ? images.shape[1] : 1;
  set.height_ = images.shape[images.shape.size() - 2];
  set.width_ = images.shape.back();
  set.classes_ = classes;
  set.checksum_ =
      XXH3_64bits_withSeed(images.data.data(), images.data.size(), XXH3_64bits(labels.data.data(), labels.data.size()));
  set.images_ = std::move(images);
  set.labels_ = std::move(labels);
  return set;
}

Result<ImageSet> ImageSet::open(const Paths& paths, unsigned classes) {
  DUNNOCK_TRY(auto images, read_images(paths.images));
  DUNNOCK_TRY(auto labels, read_labels(paths.labels, classes));
  auto set = create(std::move(images), std::move(labels), classes);
  if (!set) return make_error(set.error().code, paths.images + ", " + paths.labels + ": " + set.error().message);
  return set;
}

}  // namespace dunnock::data
