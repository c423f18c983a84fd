// The models of models.hpp once more, in double precision and written to be read: what the runtime's losses and
// gradients are compared with. For tiny models: nothing here is fast.
//
// Weights go by their names and lie row-major in their shapes, both as PyTorch's users know them (models.hpp): linear
// layers (out, in), convolutions (out, in, height, width), c_... of a GPT (in, out). Pinned to PyTorch in float64 by
// double_models_test.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "dunnock/model/models.hpp"

namespace dunnock::test {

using DoubleWeights = std::map<std::string, std::vector<double>>;

/// A GPT has tokens and targets, others images and labels.
struct DoubleBatch {
  std::size_t rows = 0;
  std::vector<double> images{};         // (rows, height, width, channels); of an MLP (rows, inputs)
  std::vector<std::int32_t> labels{};   // (rows)
  std::vector<std::int32_t> tokens{};   // (rows, context)
  std::vector<std::int32_t> targets{};  // (rows, context)
};

/// The shape of every parameter of the model; running statistics are not parameters.
[[nodiscard]] std::map<std::string, std::vector<std::size_t>> parameter_shapes(const model::ModelOptions& model);

/// Mean cross-entropy of the batch: over rows, of a GPT over rows and tokens. Batch norms use the batch's statistics. A
/// parameter that is missing or has another size is a programmer error, as are labels that there are not; what the
/// model does not have is not looked at.
[[nodiscard]] double loss(const model::ModelOptions& model, const DoubleWeights& weights, const DoubleBatch& batch);

/// Which values of which parameters.
using DoubleIndices = std::map<std::string, std::vector<std::size_t>>;

/// (loss(w + step) - loss(w - step)) / (2 step) of each of these values by itself, in the order of `at`. Their error:
/// of the order of step^2, and 1e-16 / step of rounding; more where step crosses a kink (ReLU at 0, two largest of a
/// pool).
[[nodiscard]] DoubleWeights central_differences(const model::ModelOptions& model, const DoubleWeights& weights,
                                                const DoubleBatch& batch, const DoubleIndices& at, double step = 1e-5);

}  // namespace dunnock::test
