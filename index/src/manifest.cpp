#include "dunnock/index/manifest.hpp"

#include <xxhash.h>

#include <cstring>
#include <type_traits>

namespace dunnock {
namespace {

constexpr std::uint64_t kMagic = 0x314e414d'4b4e4e44ULL;  // "DNNKMAN1"
constexpr std::uint32_t kVersion = 1;

class Writer {
 public:
  template <class T>
  requires std::is_integral_v<T>
  void number(T value) {
    const auto* from = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), from, from + sizeof value);
  }
  void text(std::string_view text) {
    number(static_cast<std::uint32_t>(text.size()));
    const auto* from = reinterpret_cast<const std::byte*>(text.data());
    bytes_.insert(bytes_.end(), from, from + text.size());
  }
  [[nodiscard]] std::vector<std::byte>& bytes() { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

/// Reads what is there; once something is missing, everything that follows is zero and ok() is false.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : left_(bytes) {}
  template <class T>
  T number() {
    T value{};
    if (left_.size() < sizeof value) {
      ok_ = false;
      return value;
    }
    std::memcpy(&value, left_.data(), sizeof value);
    left_ = left_.subspan(sizeof value);
    return value;
  }
  std::string text() {
    const auto length = number<std::uint32_t>();
    if (length > left_.size()) {
      ok_ = false;
      return {};
    }
    std::string text(reinterpret_cast<const char*>(left_.data()), length);
    left_ = left_.subspan(length);
    return text;
  }
  /// Reads a count of items of at least `bytes` bytes each, and refuses one larger than what can follow.
  std::uint64_t count(std::uint64_t bytes_each) {
    const auto count = number<std::uint64_t>();
    if (count > left_.size() / bytes_each) ok_ = false;
    return ok_ ? count : 0;
  }
  [[nodiscard]] bool ok() const { return ok_; }
  [[nodiscard]] std::size_t left() const { return left_.size(); }
  void fail() { ok_ = false; }

 private:
  std::span<const std::byte> left_;
  bool ok_ = true;
};

ManifestTensor read_tensor(Reader& reader, std::uint32_t chunk_bytes) {
  ManifestTensor tensor;
  tensor.spec.name = reader.text();
  tensor.spec.dtype = static_cast<Dtype>(reader.number<std::uint8_t>());
  if (bits_of(tensor.spec.dtype) == 0) reader.fail();
  const auto dimensions = reader.number<std::uint8_t>();
  for (unsigned i = 0; i < dimensions && reader.ok(); ++i) tensor.spec.shape.push_back(reader.number<std::uint64_t>());
  const auto bytes = tensor.spec.bytes();
  if (!reader.ok() || !bytes || chunks_of(*bytes, chunk_bytes) > reader.left() / sizeof(IndexKey)) {
    reader.fail();
    return tensor;
  }
  for (std::uint64_t i = 0; i < chunks_of(*bytes, chunk_bytes); ++i) {
    const auto low = reader.number<std::uint64_t>();
    tensor.chunks.push_back({low, reader.number<std::uint64_t>()});
  }
  return tensor;
}

}  // namespace

std::uint64_t Manifest::bytes() const noexcept {
  std::uint64_t total = 0;
  for (const ManifestTensor& tensor : tensors) total += tensor.spec.bytes().value_or(0);
  return total;
}

const ManifestTensor* Manifest::find(std::string_view tensor) const noexcept {
  for (const ManifestTensor& one : tensors) {
    if (one.spec.name == tensor) return &one;
  }
  return nullptr;
}

std::vector<std::byte> encode(const Manifest& manifest) {
  Writer writer;
  writer.number(kMagic);
  writer.number(kVersion);
  writer.number(manifest.chunk_bytes);
  writer.text(manifest.name);
  writer.number(manifest.version);
  writer.number(manifest.created_seconds);
  writer.number(static_cast<std::uint64_t>(manifest.tensors.size()));
  for (const ManifestTensor& tensor : manifest.tensors) {
    writer.text(tensor.spec.name);
    writer.number(static_cast<std::uint8_t>(tensor.spec.dtype));
    writer.number(static_cast<std::uint8_t>(tensor.spec.shape.size()));
    for (const std::uint64_t length : tensor.spec.shape) writer.number(length);
    for (const IndexKey& chunk : tensor.chunks) {
      writer.number(chunk.low);
      writer.number(chunk.high);
    }
  }
  writer.number(static_cast<std::uint64_t>(manifest.notes.size()));
  for (const auto& [key, value] : manifest.notes) {
    writer.text(key);
    writer.text(value);
  }
  writer.number(static_cast<std::uint64_t>(XXH3_64bits(writer.bytes().data(), writer.bytes().size())));
  return std::move(writer.bytes());
}

Result<Manifest> decode_manifest(std::span<const std::byte> bytes) {
  const auto corrupt = [](const char* what) {
    return make_error(ErrorCode::kCorrupt, std::string("the manifest ") + what);
  };
  constexpr std::size_t kSum = sizeof(std::uint64_t);
  if (bytes.size() < 2 * kSum) return corrupt("is truncated");
  std::uint64_t sum;
  std::memcpy(&sum, bytes.data() + bytes.size() - kSum, kSum);
  bytes = bytes.first(bytes.size() - kSum);
  if (sum != XXH3_64bits(bytes.data(), bytes.size())) return corrupt("fails its checksum");
  Reader reader(bytes);
  if (reader.number<std::uint64_t>() != kMagic) return corrupt("lacks its magic word");
  if (const auto version = reader.number<std::uint32_t>(); version != kVersion)
    return make_error(ErrorCode::kWrongVersion, "the manifest has format version " + std::to_string(version) +
                                                    ", expected " + std::to_string(kVersion));
  Manifest manifest;
  manifest.chunk_bytes = reader.number<std::uint32_t>();
  if (manifest.chunk_bytes == 0) return corrupt("has chunks of 0 bytes");
  manifest.name = reader.text();
  manifest.version = reader.number<std::uint64_t>();
  manifest.created_seconds = reader.number<std::uint64_t>();
  const std::uint64_t tensors = reader.count(6);
  for (std::uint64_t i = 0; i < tensors && reader.ok(); ++i)
    manifest.tensors.push_back(read_tensor(reader, manifest.chunk_bytes));
  const std::uint64_t notes = reader.count(8);
  for (std::uint64_t i = 0; i < notes && reader.ok(); ++i) {
    std::string key = reader.text();
    manifest.notes.emplace_back(std::move(key), reader.text());
  }
  if (!reader.ok()) return corrupt("contains an invalid length or dtype");
  if (reader.left() != 0) return corrupt("has extra bytes at its end");
  return manifest;
}

}  // namespace dunnock
