// Models, described by their sizes. make_network() (network.hpp) turns them into a chain of layers.
//
// Parameters have the names, shapes and initial values that PyTorch's users know: a model's weights are written to a
// safetensors file and read back under these names.
//
//   MLP        layers.I.weight (out, in), layers.I.bias             linear, ReLU, linear, ReLU, ..., linear
//   CNN        features.I.weight, .bias; classifier.I.weight, .bias as torchvision's VGG: each stage has several 3 x 3
//                                                                   convolutions (padding 1), each with batch norm (if
//                                                                   enabled) and ReLU, then a max pool of 2 x 2; the
//                                                                   end is linear layers. I counts ReLUs and pools too
//   ResNet     conv1, bn1, layerS.B.conv1, .bn1, .conv2, .bn2, .downsample.0, .downsample.1, fc      as torchvision's
//   DenseNet   features.conv0, .norm0, .denseblockS.denselayerL.norm1, .conv1, .norm2, .conv2,
//              .transitionS.norm, .conv, .norm5, classifier         as torchvision's
//   GPT        wte, wpe, h.L.ln_1, .attn.c_attn, .attn.c_proj, .ln_2, .mlp.c_fc, .mlp.c_proj, ln_f   as Hugging Face's
//                                                                   GPT-2; c_... are stored (in, out)
//
// Sources: He et al. 2016 (arXiv 1512.03385), Huang et al. 2017 (arXiv 1608.06993), Simonyan, Zisserman 2015 (arXiv
// 1409.1556), Radford et al. 2019 (GPT-2), Su et al. 2021 for rotary positions (arXiv 2104.09864).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "dunnock/base/result.hpp"

namespace dunnock::model {

/// The type of weights and of the values between layers.
enum class DataType : std::uint8_t {
  kF32,
  kBf16,  ///< Weights, values and their gradients in bf16; masters, moments and the gradients of weights in f32.
};

/// Images (height, width, channels), channels innermost.
struct ImageShape {
  std::size_t height = 28;
  std::size_t width = 28;
  std::size_t channels = 1;
  [[nodiscard]] std::size_t size() const noexcept { return height * width * channels; }
};

struct MlpOptions {
  std::size_t inputs = 784;
  std::vector<std::size_t> hidden = {512, 512};
  std::size_t classes = 10;
};

struct CnnOptions {
  ImageShape image{};
  std::vector<std::vector<std::size_t>> stages = {{32, 32}, {64, 64}};  ///< Widths of each stage's convolutions.
  bool batch_norm = false;
  std::vector<std::size_t> hidden = {128};  ///< Widths of the linear layers before the last.
  std::size_t classes = 10;
};

struct ResNetOptions {
  ImageShape image{32, 32, 3};
  std::vector<std::size_t> blocks = {2, 2, 2};  ///< Blocks per stage; each later stage's first block halves the image.
  std::size_t width = 16;                       ///< Width of the first stage; each stage doubles it.
  bool bottleneck = false;                      ///< Three convolutions per block, and 4 times the width after it.
  bool large_stem = false;  ///< 7 x 7 with a stride of 2, and a max pool of 3 x 3; otherwise 3 x 3, without a pool.
  std::size_t classes = 10;
};

struct DenseNetOptions {
  ImageShape image{32, 32, 3};
  std::vector<std::size_t> blocks = {6, 12, 24, 16};  ///< Dense layers of each block.
  std::size_t growth = 32;
  std::size_t stem_width = 64;
  std::size_t bottleneck = 4;  ///< conv1 of a dense layer has bottleneck * growth channels.
  bool large_stem = false;     ///< As in ResNetOptions: 7 x 7 and pool, otherwise 3 x 3.
  std::size_t classes = 10;
};

enum class Positions : std::uint8_t {
  kLearned,  ///< A table, wpe.
  kRotary,   ///< Rotated queries and keys, halves form, base 10000; no wpe.
};

struct GptOptions {
  std::size_t vocabulary = 256;
  std::size_t context = 128;  ///< Tokens per row.
  std::size_t layers = 6;
  std::size_t heads = 4;
  std::size_t width = 128;  ///< A multiple of heads; with rotary positions, of 2 * heads.
  std::size_t mlp_ratio = 4;
  Positions positions = Positions::kLearned;
};
/// "gpt2" (124M), "gpt2-medium", "gpt2-large", "gpt2-xl". Errors: NotFound, and the message lists all.
[[nodiscard]] Result<GptOptions> gpt_preset(std::string_view name);

using ModelOptions = std::variant<MlpOptions, CnnOptions, ResNetOptions, DenseNetOptions, GptOptions>;

/// Success, or which size is wrong (InvalidArgument).
[[nodiscard]] Status check(const ModelOptions& model);
/// "GPT of 6 layers, width 128, 4 heads, context 128, 256 tokens"
[[nodiscard]] std::string to_string(const ModelOptions& model);
/// The number of values in all its parameters. The model must be valid.
[[nodiscard]] std::size_t parameter_count(const ModelOptions& model);

/// The values that a model takes per row of a batch.
struct InputSizes {
  std::size_t values = 0;   ///< Of an image; 0: the model takes tokens.
  std::size_t tokens = 0;   ///< Per row; 0: the model takes images.
  std::size_t targets = 1;  ///< Per row.
  std::size_t classes = 0;  ///< Targets are below it.
};
[[nodiscard]] InputSizes input_sizes(const ModelOptions& model);

}  // namespace dunnock::model
