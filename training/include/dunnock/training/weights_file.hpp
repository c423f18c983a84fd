// Weights as safetensors files, under the names and in the shapes that PyTorch's users know (models.hpp): what
// torch.load_state_dict takes, and what Hugging Face's GPT-2 checkpoints have.
//
// Read: F32, F16 and BF16; a prefix "transformer." or "model." is taken off; what GPT-2 files have besides (attn.bias
// masks, a tied lm_head.weight, num_batches_tracked) is left out. Written: F32, weights and running statistics, with
// nothing of the optimizer.
#pragma once

#include <string>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/training/trainer.hpp"

namespace dunnock::training {

/// Errors: NotFound (the file, or the first of the model's tensors that it does not have), InvalidArgument (a shape is
/// another), Unsupported (a dtype), Corrupt, Io. Then the weights may be mixed ones. Of a pipeline, each rank reads
/// what it holds.
[[nodiscard]] Status load_weights(Trainer& trainer, const std::string& path);
/// All ranks of a pipeline call it (of one of the data-parallel groups); its rank 0 writes. Errors: those of
/// SafetensorsWriter, and Device.
[[nodiscard]] Status save_weights(Trainer& trainer, const std::string& path);

}  // namespace dunnock::training
