#include "dunnock/index/tensor.hpp"

#include <array>
#include <limits>

namespace dunnock {
namespace {

struct Known {
  Dtype dtype;
  std::string_view name;
  std::uint64_t bits;
};
// In the order of their numbers.
constexpr std::array kKnown = {Known{Dtype::kBool, "BOOL", 8},
                               Known{Dtype::kU8, "U8", 8},
                               Known{Dtype::kI8, "I8", 8},
                               Known{Dtype::kF8E5M2, "F8_E5M2", 8},
                               Known{Dtype::kF8E4M3, "F8_E4M3", 8},
                               Known{Dtype::kI16, "I16", 16},
                               Known{Dtype::kU16, "U16", 16},
                               Known{Dtype::kF16, "F16", 16},
                               Known{Dtype::kBF16, "BF16", 16},
                               Known{Dtype::kI32, "I32", 32},
                               Known{Dtype::kU32, "U32", 32},
                               Known{Dtype::kF32, "F32", 32},
                               Known{Dtype::kF64, "F64", 64},
                               Known{Dtype::kI64, "I64", 64},
                               Known{Dtype::kU64, "U64", 64},
                               Known{Dtype::kC64, "C64", 64},
                               Known{Dtype::kF8E8M0, "F8_E8M0", 8},
                               Known{Dtype::kF8E4M3Fnuz, "F8_E4M3FNUZ", 8},
                               Known{Dtype::kF8E5M2Fnuz, "F8_E5M2FNUZ", 8},
                               Known{Dtype::kF4, "F4", 4},
                               Known{Dtype::kF6E2M3, "F6_E2M3", 6},
                               Known{Dtype::kF6E3M2, "F6_E3M2", 6}};
static_assert(kKnown.size() == kDtypeLast);

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

std::uint64_t bits_of(Dtype dtype) noexcept {
  for (const Known& one : kKnown) {
    if (one.dtype == dtype) return one.bits;
  }
  return 0;
}

std::uint64_t bytes_of(Dtype dtype) noexcept { return (bits_of(dtype) + 7) / 8; }

std::optional<std::uint64_t> TensorSpec::bytes() const noexcept {
  constexpr auto kMost = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  for (const std::uint64_t length : shape) {
    if (length == 0) return 0;
  }
  unsigned __int128 bits = bits_of(dtype);
  for (const std::uint64_t length : shape) {
    bits *= length;  // Of less than 2^67 bits before: no overflow.
    if (bits / 8 > kMost) return std::nullopt;
  }
  if (bits % 8 != 0) return std::nullopt;
  return static_cast<std::uint64_t>(bits / 8);
}

std::string describe(const TensorSpec& spec) {
  std::string text = std::string(name_of(spec.dtype)) + " [";
  for (std::size_t i = 0; i < spec.shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(spec.shape[i]);
  return text + "]";
}

}  // namespace dunnock
