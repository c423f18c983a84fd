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
  return image.size() == 0 ? invalid("an image has a height, a width and channels") : Status();
}

Status check_sizes(const MlpOptions& model) {
  if (model.inputs == 0) return invalid("an MLP has inputs");
  if (any_zero(model.hidden)) return invalid("hidden layers of an MLP have values");
  return model.classes == 0 ? invalid("an MLP has classes") : Status();
}

Status check_sizes(const CnnOptions& model) {
  DUNNOCK_TRY(check_image(model.image));
  std::size_t height = model.image.height;
  std::size_t width = model.image.width;
  if (model.stages.empty()) return invalid("a CNN has stages");
  for (const std::vector<std::size_t>& stage : model.stages) {
    if (stage.empty()) return invalid("a CNN's stage has convolutions");
    if (any_zero(stage)) return invalid("a CNN's convolutions have channels");
    height /= 2;
    width /= 2;
  }
  if (height == 0 || width == 0) return invalid("a CNN has no more stages than halve its images to 1 x 1");
  if (any_zero(model.hidden)) return invalid("a CNN's hidden layers have values");
  return model.classes == 0 ? invalid("a CNN has classes") : Status();
}

Status check_blocks(std::string_view kind, const std::vector<std::size_t>& blocks) {
  if (blocks.empty() || any_zero(blocks)) return invalid("a " + std::string(kind) + "'s stages have blocks");
  return {};
}

Status check_sizes(const ResNetOptions& model) {
  DUNNOCK_TRY(check_image(model.image));
  DUNNOCK_TRY(check_blocks("ResNet", model.blocks));
  if (model.width == 0) return invalid("a ResNet has a width");
  return model.classes == 0 ? invalid("a ResNet has classes") : Status();
}

Status check_sizes(const DenseNetOptions& model) {
  DUNNOCK_TRY(check_image(model.image));
  DUNNOCK_TRY(check_blocks("DenseNet", model.blocks));
  if (model.growth == 0 || model.stem_width == 0 || model.bottleneck == 0)
    return invalid("a DenseNet has a growth, a stem's width and a bottleneck");
  std::size_t smallest = std::min(model.image.height, model.image.width);
  if (model.large_stem) smallest = ((smallest + 1) / 2 + 1) / 2;
  for (std::size_t i = 1; i < model.blocks.size(); ++i) smallest /= 2;
  if (smallest == 0) return invalid("a DenseNet has no more blocks than halve its images to 1 x 1");
  return model.classes == 0 ? invalid("a DenseNet has classes") : Status();
}

Status check_sizes(const GptOptions& model) {
  if (model.vocabulary == 0 || model.context == 0 || model.layers == 0)
    return invalid("a GPT has a vocabulary, a context and layers");
  if (model.heads == 0 || model.width == 0 || model.mlp_ratio == 0)
    return invalid("a GPT has heads, a width and an mlp_ratio");
  if (model.width % model.heads != 0)
    return invalid("a GPT's width (" + std::to_string(model.width) + ") is a multiple of its heads (" +
                   std::to_string(model.heads) + ")");
  const std::size_t head_dim = model.width / model.heads;
  if (head_dim > 256) return invalid("a GPT's heads have at most 256 values, not " + std::to_string(head_dim));
  if (model.positions == Positions::kRotary && head_dim % 2 != 0)
    return invalid("heads with rotary positions have an even number of values, not " + std::to_string(head_dim));
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
