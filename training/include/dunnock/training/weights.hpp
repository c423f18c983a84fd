// A trainer's weights from and to safetensors files (model/weights_file.hpp has the format and its names).
#pragma once

#include <string>

#include "dunnock/base/result.hpp"
#include "dunnock/model/weights_file.hpp"
#include "dunnock/training/trainer.hpp"

namespace dunnock::training {

/// Loads all of the model's tensors or none: finds every error before the first tensor is replaced. Errors: those of
/// model::read_weights() and Trainer::load(). In a pipeline, each rank reads the file and keeps what it holds.
[[nodiscard]] Result<model::LoadedWeights> load_weights(Trainer& trainer, const std::string& path);
/// All ranks of a pipeline (of one of the data-parallel groups) must call it; its rank 0 writes. Errors: those of
/// model::write_weights(), and Device.
[[nodiscard]] Status save_weights(Trainer& trainer, const std::string& path);

}  // namespace dunnock::training
