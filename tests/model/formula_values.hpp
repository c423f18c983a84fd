// Values from a formula that bench/training_peer.py has too: weights and batches of the cases whose losses, gradients
// and steps PyTorch has worked out (golden_cases.hpp), so that no file has to carry them.
//
//   bits(name, i)                    the i-th output of splitmix64, i = 0, 1, ..., from the seed fnv1a64(name)
//   unit(name, i)                    (bits >> 48) / 32768 - 1: from -1 to 1, a multiple of 2^-15
//   weight, two or more dimensions   unit * 2^(1 - e), e the least with 4^e >= size / shape[0]
//   weight, of a norm                1 + unit / 4
//   bias                             unit / 4
//   images                           2 * unit("images", i), i counts through (steps, rows, height, width, channels)
//   labels                           (bits("labels", i) >> 32) % classes, i through (steps, rows)
//   tokens                           (bits("tokens", i) >> 32) % vocabulary, i through (steps, rows, context + 1)
//
// i counts row-major through the shape that PyTorch's users know. All values are exact in f32. Sources: Steele, Lea,
// Flood 2014 (splitmix64), Fowler, Noll, Vo (FNV-1a).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace dunnock::test {

[[nodiscard]] constexpr std::uint64_t formula_bits(std::string_view name, std::uint64_t i) {
  std::uint64_t seed = 0xCBF29CE484222325;
  for (const char c : name) seed = (seed ^ static_cast<unsigned char>(c)) * 0x100000001B3;
  std::uint64_t z = seed + (i + 1) * 0x9E3779B97F4A7C15;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

[[nodiscard]] constexpr double formula_unit(std::string_view name, std::uint64_t i) {
  return static_cast<double>(formula_bits(name, i) >> 48) / 32768 - 1;
}

/// Initial values of the parameter `name` of this shape: row-major, the shape being PyTorch's.
[[nodiscard]] inline std::vector<double> formula_weights(std::string_view name, const std::vector<std::size_t>& shape) {
  std::size_t size = 1;
  for (const std::size_t side : shape) size *= side;
  double scale = 0.25;
  double centre = name.ends_with("weight") ? 1 : 0;
  if (shape.size() >= 2) {
    centre = 0;
    scale = 2;
    for (std::size_t reach = 1; reach < size / shape[0]; reach *= 4) scale /= 2;
  }
  std::vector<double> values(size);
  for (std::size_t i = 0; i < size; ++i) values[i] = centre + scale * formula_unit(name, i);
  return values;
}

/// `count` values from the `first` on.
[[nodiscard]] inline std::vector<double> formula_images(std::size_t first, std::size_t count) {
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = 2 * formula_unit("images", first + i);
  return values;
}

/// "labels" or "tokens", each below `limit`: `count` of them from the `first` on.
[[nodiscard]] inline std::vector<std::int32_t> formula_integers(std::string_view name, std::size_t limit,
                                                                std::size_t first, std::size_t count) {
  std::vector<std::int32_t> values(count);
  for (std::size_t i = 0; i < count; ++i)
    values[i] = static_cast<std::int32_t>((formula_bits(name, first + i) >> 32) % limit);
  return values;
}

}  // namespace dunnock::test
