// Weights as safetensors files, under the names and in the shapes that PyTorch's users know (models.hpp): those that
// torch.load_state_dict takes, and those of Hugging Face's GPT-2 checkpoints.
//
// Reads a file, an index of several (model.safetensors.index.json), or a folder with either as save_pretrained() leaves
// it; F32, F16 and BF16. Removes any number of parts that wrappers add to names: "module", "_orig_mod",
// "_fsdp_wrapped_module" and "_checkpoint_wrapped_module" anywhere, "model" and "transformer" at the beginning. A GPT's
// table and head are one tensor, wte.weight or lm_head.weight: safetensors' save_model() keeps either; a file that has
// both must have the same values in both. Every tensor of a file is used or named in an error, except those that are
// known not to be weights: the masks h.N.attn.bias (1, 1, n, n) and h.N.attn.masked_bias of a GPT-2's layers, and
// num_batches_tracked of batch norms.
//
// Writes F32: weights and running statistics, but no optimizer state.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/model/models.hpp"
#include "dunnock/model/state_tensor.hpp"

namespace dunnock::model {

/// Which files and tensors were read.
struct LoadedWeights {
  std::vector<std::string> files;     ///< One file, or those that an index names.
  std::vector<std::string> left_out;  ///< Tensors that are not weights, by their names in the file.
};

/// What read_weights() returns.
struct ReadWeights {
  /// In the order of the state, as its tensors are stored; empty for tensors that are neither weights nor statistics.
  std::vector<std::vector<float>> values;
  LoadedWeights loaded;
};

/// Reads the weights and statistics of `state`, the whole state of `model`, of which only names and shapes are looked
/// at. Finds every error before it returns values, and reports all of them at once, one per line. Errors: NotFound (the
/// file, or only tensors that it does not have), InvalidArgument (other shapes, tensors that the model does not have or
/// that are duplicate, a head that is not tied, several kinds of errors), Unsupported (dtypes), Corrupt (values that
/// are not finite, with tensor and index; a damaged file or index), Io.
[[nodiscard]] Result<ReadWeights> read_weights(const ModelOptions& model, std::span<const StateTensor> state,
                                               const std::string& path);
/// Writes the weights and statistics of `state`; `values` are those of all its tensors, in its order and as stored.
/// The file is replaced as a whole. Errors: those of SafetensorsWriter.
[[nodiscard]] Status write_weights(std::span<const StateTensor> state, std::span<const std::vector<float>> values,
                                   const std::string& path);

}  // namespace dunnock::model
