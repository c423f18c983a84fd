#include "dunnock/index/tensor.hpp"

#include <array>
#include <limits>

namespace dunnock {
namespace {

struct Known {
  Dtype dtype;
  std::string_view name;
  std::uint64_t bytes;
};
constexpr std::array kKnown = {
    Known{Dtype::kBool, "BOOL", 1},      Known{Dtype::kU8, "U8", 1},          Known{Dtype::kI8, "I8", 1},
    Known{Dtype::kF8E5M2, "F8_E5M2", 1}, Known{Dtype::kF8E4M3, "F8_E4M3", 1}, Known{Dtype::kI16, "I16", 2},
    Known{Dtype::kU16, "U16", 2},        Known{Dtype::kF16, "F16", 2},        Known{Dtype::kBF16, "BF16", 2},
    Known{Dtype::kI32, "I32", 4},        Known{Dtype::kU32, "U32", 4},        Known{Dtype::kF32, "F32", 4},
    Known{Dtype::kF64, "F64", 8},        Known{Dtype::kI64, "I64", 8},        Known{Dtype::kU64, "U64", 8}};

}  // namespace

std::string_view name_of(Dtype dtype) noexcept {
  for (const Known& one : kKnown) {
    if (one.dtype == dtype) return one.name;
  }
  return {};
}

std::optional<Dtype> dtype_of(std::string_view name) noexcept {
  for (const Known& one : kKnown) {
    if (one.name == name) return one.dtype;
  }
  return std::nullopt;
}

std::uint64_t bytes_of(Dtype dtype) noexcept {
  for (const Known& one : kKnown) {
    if (one.dtype == dtype) return one.bytes;
  }
  return 0;
}

std::optional<std::uint64_t> TensorSpec::bytes() const noexcept {
  constexpr auto kMost = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  std::uint64_t bytes = bytes_of(dtype);
  for (const std::uint64_t length : shape) {
    if (length == 0) return 0;
  }
  for (const std::uint64_t length : shape) {
    if (bytes > kMost / length) return std::nullopt;
    bytes *= length;
  }
  return bytes;
}

std::string describe(const TensorSpec& spec) {
  std::string text = std::string(name_of(spec.dtype)) + " [";
  for (std::size_t i = 0; i < spec.shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(spec.shape[i]);
  return text + "]";
}

}  // namespace dunnock
