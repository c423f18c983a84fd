// Weights as safetensors files, under the names and in the shapes that PyTorch's users know (models.hpp): those that
// torch.load_state_dict takes, and those of Hugging Face's GPT-2 checkpoints.
//
// Reads a file, an index of several (model.safetensors.index.json), or a folder with either as save_pretrained() leaves
// it; F32, F16 and BF16. Removes any number of parts that wrappers add to names: "module", "_orig_mod",
// "_fsdp_wrapped_module" and "_checkpoint_wrapped_module" anywhere, "model" and "transformer" at the beginning. A GPT's
// table and head are one tensor, wte.weight or lm_head.weight: save_model() keeps either; a file that has both must
// have the same values in both. Every tensor of a file is used or named in an error, except those that are known not to
// be weights: the masks h.N.attn.bias (1, 1, n, n) and h.N.attn.masked_bias of a GPT-2's layers, and
// num_batches_tracked of batch norms.
//
// Writes F32: weights and running statistics, but no optimizer state.
#pragma once

#include <string>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/training/trainer.hpp"

namespace dunnock::training {

/// Which files and tensors were read.
struct LoadedWeights {
  std::vector<std::string> files;     ///< One file, or those that an index names.
  std::vector<std::string> left_out;  ///< Tensors that are not weights, by their names in the file.
};

/// Loads all of the model's tensors or none: finds every error before the first tensor is replaced, and reports all of
/// them at once, one per line. Errors: NotFound (the file, or only tensors that it does not have), InvalidArgument
/// (other shapes, tensors that the model does not have or that are duplicate, a head that is not tied, several kinds of
/// errors), Unsupported (dtypes), Corrupt (values that are not finite, with tensor and index; a damaged file or index),
/// Io. In a pipeline, each rank reads what it holds.
[[nodiscard]] Result<LoadedWeights> load_weights(Trainer& trainer, const std::string& path);
/// All ranks of a pipeline (of one of the data-parallel groups) must call it; its rank 0 writes. Errors: those of
/// SafetensorsWriter, and Device.
[[nodiscard]] Status save_weights(Trainer& trainer, const std::string& path);

}  // namespace dunnock::training
