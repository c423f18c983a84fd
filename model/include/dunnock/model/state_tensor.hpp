// StateTensor: a named tensor of a model's state: a weight, a moment of the optimizer, or a running statistic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "dunnock/device/memory.hpp"

namespace dunnock::model {

/// A tensor of the training state, in place. On a CPU device the bytes may be read while nothing runs.
struct StateTensor {
  enum class What : std::uint8_t { kWeight, kFirstMoment, kSecondMoment, kStatistic };
  std::string name;  ///< The parameter's, or the running statistic's.
  What what = What::kWeight;
  std::vector<std::size_t> shape{};  ///< As users see it.
  std::size_t positions = 1;         ///< See ParameterSpec.
  device::Span<float> values;
};

}  // namespace dunnock::model
