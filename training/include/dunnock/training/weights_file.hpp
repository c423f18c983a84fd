// Weights as safetensors files, under the names and in the shapes that PyTorch's users know (models.hpp): what
// torch.load_state_dict takes, and what Hugging Face's GPT-2 checkpoints have.
//
// Read: a file, an index of several (model.safetensors.index.json), or a folder with either as save_pretrained() leaves
// it; F32, F16 and BF16. Of names, parts that wrappers add are taken off, any number of them: "module", "_orig_mod",
// "_fsdp_wrapped_module", "_checkpoint_wrapped_module" anywhere, "model" and "transformer" in front. A GPT's table and
// head are one tensor, wte.weight or lm_head.weight: save_model() keeps either; a file that has both must have the same
// values in both. Every tensor of a file is used or named in an error, but for what is known to be no weight: the masks
// h.N.attn.bias (1, 1, n, n) and h.N.attn.masked_bias of a GPT-2's layers, and num_batches_tracked of batch norms.
//
// Written: F32, weights and running statistics, with nothing of the optimizer.
#pragma once

#include <string>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/training/trainer.hpp"

namespace dunnock::training {

/// What was read.
struct LoadedWeights {
  std::vector<std::string> files;     ///< One, or those that an index names.
  std::vector<std::string> left_out;  ///< Tensors that are no weights, as they are named there.
};

/// All of the model's tensors, or none: whatever is wrong is found before the first is taken over, and all of it is
/// named at once, a line each. Errors: NotFound (the file, or nothing but tensors that it does not have),
/// InvalidArgument (other shapes, tensors that the model does not have or that are there twice, a head that is not
/// tied, several kinds of errors), Unsupported (dtypes), Corrupt (values that are no numbers, with tensor and index; a
/// damaged file or index), Io. Of a pipeline, each rank reads what it holds.
[[nodiscard]] Result<LoadedWeights> load_weights(Trainer& trainer, const std::string& path);
/// All ranks of a pipeline call it (of one of the data-parallel groups); its rank 0 writes. Errors: those of
/// SafetensorsWriter, and Device.
[[nodiscard]] Status save_weights(Trainer& trainer, const std::string& path);

}  // namespace dunnock::training
