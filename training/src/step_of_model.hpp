// The step of a model: names, blocks, bytes and ties of its layers. Costs are for others to fill in.
#pragma once

#include "dunnock/model/models.hpp"
#include "dunnock/training/step.hpp"
#include "dunnock/training/trainer.hpp"

namespace dunnock::training {

template <class T>
[[nodiscard]] Step step_of_model(const model::ModelOptions& model, std::size_t rows, bool clips);

}  // namespace dunnock::training
