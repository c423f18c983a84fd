#include "dunnock/training/idx.hpp"

#include <xxhash.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "files.hpp"

namespace dunnock::training {
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
    if (!ready_) return make_error(ErrorCode::kNoSpace, "no memory to uncompress with");
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
        // A gzip file may be several, one behind the other.
        if (rest_.empty()) {
          ended_ = true;
        } else if (!is_gzip(rest_) || inflateReset(&stream_) != Z_OK) {
          return corrupt("bytes follow the compressed data");
        }
      } else if (answer == Z_BUF_ERROR && rest_.empty()) {
        return corrupt("the compressed data is cut off");
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
  const auto head_bytes = source.read(head);
  if (!head_bytes) return tl::unexpected(head_bytes.error());
  if (*head_bytes != head.size()) return corrupt("it has no header");
  if (head[0] != std::byte{0} || head[1] != std::byte{0}) return corrupt("it does not begin with two zero bytes");
  IdxArray array;
  array.type = static_cast<IdxType>(head[2]);
  const std::size_t element_bytes = bytes_of(array.type);
  if (element_bytes == 0)
    return corrupt("elements of the unknown type " + std::to_string(std::to_integer<int>(head[2])));
  const auto dimensions = std::to_integer<std::size_t>(head[3]);
  if (dimensions == 0) return corrupt("it has no dimensions");

  std::uint64_t expected = element_bytes;
  for (std::size_t i = 0; i < dimensions; ++i) {
    std::array<std::byte, 4> length{};
    const auto length_bytes = source.read(length);
    if (!length_bytes) return tl::unexpected(length_bytes.error());
    if (*length_bytes != length.size()) return corrupt("its header is cut off");
    std::uint32_t value = 0;
    for (const std::byte byte : length) value = value << 8 | std::to_integer<std::uint32_t>(byte);
    array.shape.push_back(value);
    if (__builtin_mul_overflow(expected, value, &expected)) return corrupt("its shape is too large for any file");
  }
  if (expected > bytes_max)
    return make_error(ErrorCode::kNoSpace, "an IDX file of " + std::to_string(expected) + " bytes; no more than " +
                                               std::to_string(bytes_max) + " are wanted");

  // Grown as data comes: a header is no reason to take memory.
  constexpr std::uint64_t kFirst = 1U << 20;
  while (array.data.size() < expected) {
    const std::size_t had = array.data.size();
    array.data.resize(std::min<std::uint64_t>(expected, std::max<std::uint64_t>(kFirst, 2 * had)));
    const auto got = source.read(std::span(array.data).subspan(had));
    if (!got) return tl::unexpected(got.error());
    if (*got < array.data.size() - had)
      return corrupt("its header promises " + std::to_string(expected) + " bytes, but " + std::to_string(had + *got) +
                     " are there");
  }
  std::byte more{};
  const auto beyond = source.read({&more, 1});  // Of compressed data it also compares the checksum.
  if (!beyond) return tl::unexpected(beyond.error());
  if (*beyond != 0) return corrupt("bytes follow the " + std::to_string(expected) + " that its header promises");
  to_other_byte_order(array.type, array.data);
  return array;
}

Result<IdxArray> read_idx(const std::string& path, std::uint64_t bytes_max) {
  const auto file = detail::MappedFile::open(path);
  if (!file) return tl::unexpected(file.error());
  auto array = parse_idx(file->bytes(), bytes_max);
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

Result<ImageSet> ImageSet::create(IdxArray images, IdxArray labels, unsigned classes) {
  const auto refuse = [](const std::string& what) { return make_error(ErrorCode::kInvalidArgument, what); };
  if (images.type != IdxType::kU8) return refuse("images are arrays of bytes");
  if (images.shape.size() != 3 && images.shape.size() != 4)
    return refuse("images have 3 or 4 dimensions, and not " + std::to_string(images.shape.size()));
  if (labels.type != IdxType::kU8 || labels.shape.size() != 1) return refuse("labels are one row of bytes");
  if (images.shape[0] != labels.shape[0])
    return refuse(std::to_string(images.shape[0]) + " images, but " + std::to_string(labels.shape[0]) + " labels");
  if (classes == 0 || classes > 256) return refuse("there are 1 to 256 classes");
  ImageSet set;
  set.channels_ = images.shape.size() == 4 ? images.shape[1] : 1;
  set.height_ = images.shape[images.shape.size() - 2];
  set.width_ = images.shape.back();
  set.classes_ = classes;
  if (set.pixels() == 0) return refuse("images without pixels");
  const auto values = labels.as<std::uint8_t>();
  const auto wrong = std::ranges::find_if(values, [classes](std::uint8_t label) { return label >= classes; });
  if (wrong != values.end())
    return make_error(ErrorCode::kCorrupt, "label " + std::to_string(wrong - values.begin()) + " is " +
                                               std::to_string(*wrong) + ", of " + std::to_string(classes) + " classes");
  set.checksum_ =
      XXH3_64bits_withSeed(images.data.data(), images.data.size(), XXH3_64bits(labels.data.data(), labels.data.size()));
  set.images_ = std::move(images);
  set.labels_ = std::move(labels);
  return set;
}

Result<ImageSet> ImageSet::open(const Paths& paths, unsigned classes) {
  auto images = read_idx(paths.images);
  if (!images) return tl::unexpected(images.error());
  auto labels = read_idx(paths.labels);
  if (!labels) return tl::unexpected(labels.error());
  auto set = create(std::move(*images), std::move(*labels), classes);
  if (!set) return make_error(set.error().code, paths.images + ": " + set.error().message);
  return set;
}

}  // namespace dunnock::training
