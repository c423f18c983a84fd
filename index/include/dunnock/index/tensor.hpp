// How a checkpoint describes a tensor: its name, element type and shape. The bytes are stored elsewhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dunnock/base/result.hpp"

namespace dunnock {

/// Element types, with the names that safetensors uses. Manifests contain the numbers: never change one.
enum class Dtype : std::uint8_t {
  kBool = 1,
  kU8 = 2,
  kI8 = 3,
  kF8E5M2 = 4,
  kF8E4M3 = 5,
  kI16 = 6,
  kU16 = 7,
  kF16 = 8,
  kBF16 = 9,
  kI32 = 10,
  kU32 = 11,
  kF32 = 12,
  kF64 = 13,
  kI64 = 14,
  kU64 = 15,
  kC64 = 16,  ///< Two F32.
  kF8E8M0 = 17,
  kF8E4M3Fnuz = 18,
  kF8E5M2Fnuz = 19,
  // Types whose elements share bytes: a tensor of them must fill whole bytes.
  kF4 = 20,
  kF6E2M3 = 21,
  kF6E3M2 = 22,
};
inline constexpr std::uint8_t kDtypeLast = 22;

/// "F32" and so on; empty for an unknown number.
[[nodiscard]] std::string_view name_of(Dtype dtype) noexcept;
[[nodiscard]] std::optional<Dtype> dtype_of(std::string_view name) noexcept;
/// Bits per element; 0 for an unknown number.
[[nodiscard]] std::uint64_t bits_of(Dtype dtype) noexcept;
/// Bytes that one element needs by itself: 1 for types of less than 8 bits; 0 for an unknown number.
[[nodiscard]] std::uint64_t bytes_of(Dtype dtype) noexcept;

struct TensorSpec {
  std::string name;  ///< Unique in its checkpoint. UTF-8.
  Dtype dtype = Dtype::kF32;
  std::vector<std::uint64_t> shape;  ///< Outermost first; empty: a scalar.

  /// Bytes of all elements; empty if that is more than 2^63 - 1, or they do not fill whole bytes.
  [[nodiscard]] std::optional<std::uint64_t> bytes() const noexcept;
  friend bool operator==(const TensorSpec&, const TensorSpec&) = default;
};

/// "F32 [4096, 128]"
[[nodiscard]] std::string describe(const TensorSpec& spec);

/// A tensor to be saved: its bytes in memory (row-major, little endian), or a function that supplies them in pieces,
/// for tensors that do not fit in memory or are elsewhere. Such a function is called once for each piece, in the order
/// of the tensors and of their offsets, though by several threads at once.
struct TensorSource {
  TensorSpec spec;
  std::span<const std::byte> bytes;  ///< All bytes, if there is no function.
  /// Copies a piece. Errors: why it can't be read.
  std::function<Status(std::uint64_t offset_bytes, std::span<std::byte> into)> read;
  /// Or lends a piece, which is held until it is durable. Errors: why it can't be read.
  std::function<Result<std::shared_ptr<const std::byte[]>>(std::uint64_t offset_bytes, std::uint64_t bytes)> piece;
};

/// A tensor to be restored: `spec` is what is expected. The bytes go to memory or, in pieces, to a function that
/// several threads call at once, each for its own pieces.
struct TensorSink {
  TensorSpec spec;
  std::span<std::byte> bytes;  ///< Destination if `write` is empty.
  /// Errors: why it can't be written.
  std::function<Status(std::uint64_t offset_bytes, std::span<const std::byte> from)> write;
};

}  // namespace dunnock
