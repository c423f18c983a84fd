// Rotary position embedding: rotates pairs of a head's values by angles that grow with the token's position.
//
//   (a, b) -> (a cos - b sin, a sin + b cos),   angle of pair i at position p: p * base^(-2 i / rotary_dim)
//   halves:       pair i is values i and i + rotary_dim / 2
//   interleaved:  pair i is values 2 i and 2 i + 1
//
// Backward is the inverse rotation. Values from rotary_dim on stay as they are. T is float or Bf16. In place; nothing
// allocates. Source: Su et al. 2021 (arXiv 2104.09864).
#pragma once

#include <cstddef>
#include <cstdint>

#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/heads_view.hpp"
#include "dunnock/kernels/kernel.hpp"

namespace dunnock::kernels {

enum class RotaryForm : std::uint8_t { kHalves, kInterleaved };

/// The cosines and sines of all positions that may occur: made once.
struct RotaryTableShape {
  std::size_t positions = 0;
  std::size_t rotary_dim = 0;  ///< even, > 0
  double base = 10000;
};
/// -> table (positions, rotary_dim / 2, 2): cosine, sine. Angles are in double: on CUDA too, they are made once.
struct RotaryTable {
  device::Span<float> table{};
  RotaryTableShape shape{};
};
DUNNOCK_KERNEL_0(RotaryTable);

struct RotaryShape {
  std::size_t batch = 0;
  std::size_t tokens = 0;
  std::size_t heads = 0;  ///< q's and k's in one call, if they are contiguous
  std::size_t head_dim = 0;
  std::size_t rotary_dim = 0;  ///< even, 1 .. head_dim
  RotaryForm form = RotaryForm::kHalves;
};

/// x (batch, tokens, heads, head_dim); table (any, rotary_dim / 2, 2), which has each position; positions
/// (batch, tokens)
template <class T>
struct Rotary {
  HeadsView<T> x{};
  device::Span<const float> table{};
  device::Span<const std::int32_t> positions{};
  RotaryShape shape{};
};
DUNNOCK_KERNEL(Rotary);
template <class T>
struct RotaryBackward {
  HeadsView<T> dx{};
  device::Span<const float> table{};
  device::Span<const std::int32_t> positions{};
  RotaryShape shape{};
};
DUNNOCK_KERNEL(RotaryBackward);

}  // namespace dunnock::kernels
