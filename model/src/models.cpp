#include "dunnock/model/models.hpp"

#include <algorithm>
#include <string>

#include "dunnock/model/network.hpp"

namespace dunnock::model {
namespace {

Status invalid(std::string what) { return make_error(ErrorCode::kInvalidArgument, std::move(what)); }

template <class Sizes>
bool any_zero(const Sizes& sizes) {
  return std::ranges::any_of(sizes, [](std::size_t size) { return size == 0; });
}

std::string listed(const std::vector<std::size_t>& sizes) {
  std::string text;
  for (const std::size_t size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return text;
}

Status check_image(const ImageShape& image) {
  return image.size() == 0 ? invalid("an image needs a height, a width and channels above 0") : Status();
}

Status check_sizes(const MlpOptions& model) {
  if (model.inputs == 0) return invalid("an MLP needs at least one input");
  if (any_zero(model.hidden)) return invalid("each hidden layer of an MLP needs at least one value");
  return model.classes == 0 ? invalid("an MLP needs at least one class") : Status();
}

Status check_sizes(const CnnOptions& model) {
  DUNNOCK_TRY(check_image(model.image));
  std::size_t height = model.image.height;
  std::size_t width = model.image.width;
  if (model.stages.empty()) return invalid("a CNN needs at least one stage");
  for (const std::vector<std::size_t>& stage : model.stages) {
    if (stage.empty()) return invalid("each stage of a CNN needs at least one convolution");
    if (any_zero(stage)) return invalid("each convolution of a CNN needs at least one channel");
    height /= 2;
    width /= 2;
  }
  if (height == 0 || width == 0)
    return invalid("a CNN's " + std::to_string(model.stages.size()) +
                   " stages are too many: each halves the image, which must stay at least 1 x 1");
  if (any_zero(model.hidden)) return invalid("each hidden layer of a CNN needs at least one value");
  return model.classes == 0 ? invalid("a CNN needs at least one class") : Status();
}

Status check_blocks(std::string_view kind, const std::vector<std::size_t>& blocks) {
  if (blocks.empty() || any_zero(blocks))
    return invalid("a " + std::string(kind) + " needs stages of at least one block each");
  return {};
}

Status check_sizes(const ResNetOptions& model) {
  DUNNOCK_TRY(check_image(model.image));
  DUNNOCK_TRY(check_blocks("ResNet", model.blocks));
  if (model.width == 0) return invalid("a ResNet needs a width above 0");
  return model.classes == 0 ? invalid("a ResNet needs at least one class") : Status();
}

Status check_sizes(const DenseNetOptions& model) {
  DUNNOCK_TRY(check_image(model.image));
  DUNNOCK_TRY(check_blocks("DenseNet", model.blocks));
  if (model.growth == 0 || model.stem_width == 0 || model.bottleneck == 0)
    return invalid("a DenseNet needs a growth, a stem width and a bottleneck above 0");
  std::size_t smallest = std::min(model.image.height, model.image.width);
  if (model.large_stem) smallest = ((smallest + 1) / 2 + 1) / 2;
  for (std::size_t i = 1; i < model.blocks.size(); ++i) smallest /= 2;
  if (smallest == 0)
    return invalid("a DenseNet's " + std::to_string(model.blocks.size()) +
                   " blocks are too many: each but the first halves the image, which must stay at least 1 x 1");
  return model.classes == 0 ? invalid("a DenseNet needs at least one class") : Status();
}

Status check_sizes(const GptOptions& model) {
  if (model.vocabulary == 0 || model.context == 0 || model.layers == 0)
    return invalid("a GPT needs a vocabulary, a context and layers above 0");
  if (model.heads == 0 || model.width == 0 || model.mlp_ratio == 0)
    return invalid("a GPT needs heads, a width and an mlp_ratio above 0");
  if (model.width % model.heads != 0)
    return invalid("a GPT's width (" + std::to_string(model.width) + ") must be a multiple of its heads (" +
                   std::to_string(model.heads) + ")");
  const std::size_t head_dim = model.width / model.heads;
  if (head_dim > 256) return invalid("a GPT's head can have at most 256 values, not " + std::to_string(head_dim));
  if (model.positions == Positions::kRotary && head_dim % 2 != 0)
    return invalid("a head with rotary positions needs an even number of values, not " + std::to_string(head_dim));
  return {};
}

std::string words_of(const MlpOptions& model) {
  return "MLP of " + std::to_string(model.inputs) + " inputs, hidden " + listed(model.hidden) + ", " +
         std::to_string(model.classes) + " classes";
}
std::string words_of(const CnnOptions& model) {
  std::string stages;
  for (const auto& stage : model.stages) stages += (stages.empty() ? "" : " | ") + listed(stage);
  return "CNN of stages " + stages + (model.batch_norm ? " with batch norm" : "") + ", hidden " + listed(model.hidden) +
         ", " + std::to_string(model.classes) + " classes";
}
std::string words_of(const ResNetOptions& model) {
  return "ResNet of " + listed(model.blocks) + (model.bottleneck ? " bottlenecks" : " blocks") + ", width " +
         std::to_string(model.width) + ", " + std::to_string(model.classes) + " classes";
}
std::string words_of(const DenseNetOptions& model) {
  return "DenseNet of " + listed(model.blocks) + " layers, growth " + std::to_string(model.growth) + ", " +
         std::to_string(model.classes) + " classes";
}
std::string words_of(const GptOptions& model) {
  return "GPT of " + std::to_string(model.layers) + " layers, width " + std::to_string(model.width) + ", " +
         std::to_string(model.heads) + " heads, context " + std::to_string(model.context) + ", " +
         std::to_string(model.vocabulary) + " tokens" + (model.positions == Positions::kRotary ? ", rotary" : "");
}

}  // namespace

Status check(const ModelOptions& model) {
  return std::visit([](const auto& sizes) { return check_sizes(sizes); }, model);
}

std::string to_string(const ModelOptions& model) {
  return std::visit([](const auto& sizes) { return words_of(sizes); }, model);
}

InputSizes input_sizes(const ModelOptions& model) {
  struct Sizes {
    InputSizes operator()(const MlpOptions& mlp) const { return {.values = mlp.inputs, .classes = mlp.classes}; }
    InputSizes operator()(const CnnOptions& cnn) const { return {.values = cnn.image.size(), .classes = cnn.classes}; }
    InputSizes operator()(const ResNetOptions& resnet) const {
      return {.values = resnet.image.size(), .classes = resnet.classes};
    }
    InputSizes operator()(const DenseNetOptions& dense) const {
      return {.values = dense.image.size(), .classes = dense.classes};
    }
    InputSizes operator()(const GptOptions& gpt) const {
      return {.tokens = gpt.context, .targets = gpt.context, .classes = gpt.vocabulary};
    }
  };
  return std::visit(Sizes{}, model);
}

std::size_t parameter_count(const ModelOptions& model) {
  const auto layers = layers_of<float>(model);
  std::size_t count = 0;
  for (const auto& layer : layers) {
    for (const ParameterSpec& spec : layer->parameters()) count += spec.tied ? 0 : spec.size();
  }
  return count;
}

}  // namespace dunnock::model
