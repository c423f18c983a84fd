// CNN, ResNet and DenseNet: sizes and names beside torchvision's, gradients beside differences, and that what is kept
// lies in slots.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "dunnock/model/network.hpp"
#include "support/seed.hpp"

namespace dunnock::model {
namespace {

CnnOptions small_cnn(bool batch_norm) {
  return {.image = {9, 8, 2}, .stages = {{4, 6}, {8}}, .batch_norm = batch_norm, .hidden = {10}, .classes = 5};
}

/// Of each family some that are small, and have all that there is of branches.
std::map<std::string, ModelOptions> models() {
  const ResNetOptions resnet{.image = {8, 8, 3}, .blocks = {1, 2}, .width = 4, .classes = 5};
  ResNetOptions bottlenecks = resnet;
  bottlenecks.blocks = {2, 1};
  bottlenecks.bottleneck = true;
  ResNetOptions large_resnet{.image = {22, 25, 3}, .blocks = {1, 1}, .width = 4, .large_stem = true, .classes = 5};
  const DenseNetOptions densenet{
      .image = {9, 8, 3}, .blocks = {2, 1}, .growth = 3, .stem_width = 5, .bottleneck = 2, .classes = 5};
  DenseNetOptions large_densenet = densenet;
  large_densenet.image = {23, 24, 3};
  large_densenet.large_stem = true;
  return {{"CNN", small_cnn(false)},
          {"CNN_with_norms", small_cnn(true)},
          {"ResNet", resnet},
          {"ResNet_of_bottlenecks", bottlenecks},
          {"ResNet_with_large_stem", large_resnet},
          {"DenseNet", densenet},
          {"DenseNet_with_large_stem", large_densenet}};
}

std::size_t classes_of(const ModelOptions& model) {
  return std::visit(
      [](const auto& sizes) -> std::size_t {
        if constexpr (requires { sizes.classes; }) return sizes.classes;
        return 0;
      },
      model);
}
ImageShape image_of(const ModelOptions& model) {
  return std::visit(
      [](const auto& sizes) -> ImageShape {
        if constexpr (requires { sizes.image; }) return sizes.image;
        return {};
      },
      model);
}

/// Of one thread: what is small here is slow where threads of others are in the way.
device::Stream stream_of(device::Device device = device::Device::cpu()) {
  return std::move(*device::Stream::create(device, {.threads = 1}));
}

template <class T>
std::vector<float> floats(device::Span<T> values, device::Stream& stream) {
  std::vector<std::remove_const_t<T>> host(values.size());
  device::download(std::span(host), values, stream);
  EXPECT_TRUE(stream.synchronize());
  return {host.begin(), host.end()};
}

/// A network, and batches of random images. Norms have weights that are not all alike.
template <class T>
class Trained {
 public:
  Trained(const ModelOptions& model, std::size_t rows, unsigned slots, std::mt19937_64& random)
      : stream_(stream_of()), model_(model), rows_(rows) {
    auto made = Network<T>::create(model, {.slots = slots, .rows = rows, .seed = random()}, stream_);
    EXPECT_TRUE(made) << made.error().message;
    network_.emplace(std::move(*made));
    workspace_ = std::move(*device::Buffer<std::byte>::create(network_->workspace_bytes(), stream_));
    std::uniform_real_distribution<float> uniform(0.5F, 1.5F);
    Parameters<T>& parameters = network_->parameters();
    for (std::size_t i = 0; i < parameters.tensors().size(); ++i) {
      if (parameters.tensors()[i].spec.shape.size() > 1) continue;
      std::vector<float> values(parameters.tensors()[i].size);
      const float off = parameters.tensors()[i].spec.initial == Initial::kOnes ? 0.0F : -1.0F;
      for (float& value : values) value = uniform(random) + off;
      device::upload(parameters.master(i), values, stream_);
      EXPECT_TRUE(stream_.synchronize());
    }
    parameters.refresh_weights(stream_);
    for (unsigned slot = 0; slot < slots; ++slot) batches_.push_back(make_batch(random));
  }

  Network<T>& network() { return *network_; }
  Parameters<T>& parameters() { return network_->parameters(); }
  device::Stream& stream() { return stream_; }

  NetworkRun<T> run(unsigned batch, unsigned slot, bool adds = false, bool training = true) {
    return run_of(rows_, batch, slot, adds, training);
  }
  /// Of the first rows.
  NetworkRun<T> run_of(std::size_t rows, unsigned batch, unsigned slot, bool adds = false, bool training = true) {
    Batch& values = batches_[batch];
    values.view = {.rows = rows,
                   .images = values.images.span().subspan(0, rows * image_of(model_).size()),
                   .tokens = {},
                   .targets = values.targets.span().subspan(0, rows),
                   .losses = values.losses.span().subspan(0, rows),
                   .gradient_factor = 1.0F / static_cast<float>(rows)};
    return {values.view, slot, adds, training, workspace_.span(), stream_};
  }
  void forward(const NetworkRun<T>& run) {
    for (unsigned layer = 0; layer < network_->layers(); ++layer) network_->forward(layer, run);
  }
  void output_gradients(const NetworkRun<T>& run) {
    for (unsigned layer = network_->layers() - 1; layer > 0; --layer) network_->output_gradient(layer, run);
  }
  void weight_gradients(const NetworkRun<T>& run) {
    for (unsigned layer = 0; layer < network_->layers(); ++layer) network_->weight_gradient(layer, run);
  }
  void step(const NetworkRun<T>& run) {
    forward(run);
    output_gradients(run);
    weight_gradients(run);
  }
  void step(unsigned batch, unsigned slot, bool adds = false) { step(run(batch, slot, adds)); }
  double loss(unsigned batch, unsigned slot, bool training = true) {
    forward(run(batch, slot, false, training));
    const std::vector<float> losses = floats(batches_[batch].losses.span(), stream_);
    return std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(rows_);
  }
  std::vector<float> gradients() { return floats(parameters().gradients(), stream_); }
  std::vector<float> states() { return floats(parameters().state_values(), stream_); }
  std::vector<float> gradient(std::size_t tensor) { return floats(parameters().gradient(tensor), stream_); }

 private:
  struct Batch {
    device::Buffer<T> images;
    device::Buffer<std::int32_t> targets;
    device::Buffer<float> losses;
    MicroBatch<T> view{};
  };
  Batch make_batch(std::mt19937_64& random) {
    std::normal_distribution<float> normal(0.3F, 1);
    std::vector<T> images(rows_ * image_of(model_).size());
    for (T& value : images) value = T(normal(random));
    std::vector<std::int32_t> targets(rows_);
    for (std::size_t i = 0; i < rows_; ++i) targets[i] = static_cast<std::int32_t>(i % classes_of(model_));
    Batch batch{std::move(*device::Buffer<T>::create(images.size(), stream_)),
                std::move(*device::Buffer<std::int32_t>::create(rows_, stream_)),
                std::move(*device::Buffer<float>::create(rows_, stream_))};
    device::upload(batch.images.span(), images, stream_);
    device::upload(batch.targets.span(), targets, stream_);
    EXPECT_TRUE(stream_.synchronize());
    return batch;
  }

  device::Stream stream_;
  ModelOptions model_;
  std::size_t rows_;
  std::optional<Network<T>> network_;
  device::Buffer<std::byte> workspace_;
  std::vector<Batch> batches_;
};

class Models : public testing::TestWithParam<std::string> {
 protected:
  [[nodiscard]] static ModelOptions model() { return models().at(GetParam()); }
};
std::vector<std::string> names_of_models() {
  std::vector<std::string> names;
  for (const auto& [name, model] : models()) names.push_back(name);
  return names;
}
INSTANTIATE_TEST_SUITE_P(, Models, testing::ValuesIn(names_of_models()), [](const auto& each) { return each.param; });

std::vector<std::string> parameter_names(const ModelOptions& model) {
  device::Stream stream = stream_of();
  auto network = Network<float>::create(model, {}, stream);
  EXPECT_TRUE(network) << network.error().message;
  std::vector<std::string> names;
  for (const auto& tensor : network->parameters().tensors()) {
    std::string text = tensor.spec.name + " (";
    for (const std::size_t size : tensor.spec.shape) {
      text += text.back() == '(' ? "" : ",";
      text += std::to_string(size);
    }
    names.push_back(text + ")");
  }
  for (const auto& state : network->parameters().states())
    names.push_back(state.spec.name + " [" + std::to_string(state.spec.size) + "]");
  return names;
}

TEST(Cnn, has_as_many_weights_as_torchvisions_vgg) {
  CnnOptions vgg11{.image = {224, 224, 3},
                   .stages = {{64}, {128}, {256, 256}, {512, 512}, {512, 512}},
                   .hidden = {4096, 4096},
                   .classes = 1000};
  EXPECT_EQ(parameter_count(vgg11), 132'863'336U);
  vgg11.batch_norm = true;
  EXPECT_EQ(parameter_count(vgg11), 132'868'840U);
}

TEST(Cnn, counts_relus_and_pools_in_its_names) {
  EXPECT_EQ(
      parameter_names(small_cnn(false)),
      (std::vector<std::string>{"features.0.weight (4,2,3,3)", "features.0.bias (4)", "features.2.weight (6,4,3,3)",
                                "features.2.bias (6)", "features.5.weight (8,6,3,3)", "features.5.bias (8)",
                                "classifier.0.weight (10,32)", "classifier.0.bias (10)", "classifier.2.weight (5,10)",
                                "classifier.2.bias (5)"}));
  EXPECT_EQ(parameter_names(small_cnn(true)),
            (std::vector<std::string>{
                "features.0.weight (4,2,3,3)", "features.0.bias (4)",         "features.1.weight (4)",
                "features.1.bias (4)",         "features.3.weight (6,4,3,3)", "features.3.bias (6)",
                "features.4.weight (6)",       "features.4.bias (6)",         "features.7.weight (8,6,3,3)",
                "features.7.bias (8)",         "features.8.weight (8)",       "features.8.bias (8)",
                "classifier.0.weight (10,32)", "classifier.0.bias (10)",      "classifier.2.weight (5,10)",
                "classifier.2.bias (5)",       "features.1.running_mean [4]", "features.1.running_var [4]",
                "features.4.running_mean [6]", "features.4.running_var [6]",  "features.8.running_mean [8]",
                "features.8.running_var [8]"}));
}

TEST(Cnn, may_have_no_hidden_layer) {
  CnnOptions plain = small_cnn(false);
  plain.hidden.clear();
  EXPECT_EQ(parameter_names(plain).back(), "classifier.0.bias (5)");
}

// The figures that torchvision's documentation gives for each of its weights.
TEST(ResNet, has_as_many_weights_as_torchvisions) {
  const auto count = [](std::vector<std::size_t> blocks, bool bottleneck) {
    return parameter_count(ResNetOptions{.image = {224, 224, 3},
                                         .blocks = std::move(blocks),
                                         .width = 64,
                                         .bottleneck = bottleneck,
                                         .large_stem = true,
                                         .classes = 1000});
  };
  EXPECT_EQ(count({2, 2, 2, 2}, false), 11'689'512U);
  EXPECT_EQ(count({3, 4, 6, 3}, false), 21'797'672U);
  EXPECT_EQ(count({3, 4, 6, 3}, true), 25'557'032U);
  EXPECT_EQ(count({3, 4, 23, 3}, true), 44'549'160U);
}
TEST(DenseNet, has_as_many_weights_as_torchvisions) {
  const auto count = [](std::vector<std::size_t> blocks, std::size_t growth, std::size_t stem_width) {
    return parameter_count(DenseNetOptions{.image = {224, 224, 3},
                                           .blocks = std::move(blocks),
                                           .growth = growth,
                                           .stem_width = stem_width,
                                           .large_stem = true,
                                           .classes = 1000});
  };
  EXPECT_EQ(count({6, 12, 24, 16}, 32, 64), 7'978'856U);
  EXPECT_EQ(count({6, 12, 36, 24}, 48, 96), 28'681'000U);
  EXPECT_EQ(count({6, 12, 32, 32}, 32, 64), 14'149'480U);
}

TEST(ResNet, has_torchvisions_names) {
  EXPECT_EQ(parameter_names(ResNetOptions{.image = {8, 8, 3}, .blocks = {1, 1}, .width = 4, .classes = 5}),
            (std::vector<std::string>{"conv1.weight (4,3,3,3)",
                                      "bn1.weight (4)",
                                      "bn1.bias (4)",
                                      "layer1.0.conv1.weight (4,4,3,3)",
                                      "layer1.0.bn1.weight (4)",
                                      "layer1.0.bn1.bias (4)",
                                      "layer1.0.conv2.weight (4,4,3,3)",
                                      "layer1.0.bn2.weight (4)",
                                      "layer1.0.bn2.bias (4)",
                                      "layer2.0.conv1.weight (8,4,3,3)",
                                      "layer2.0.bn1.weight (8)",
                                      "layer2.0.bn1.bias (8)",
                                      "layer2.0.conv2.weight (8,8,3,3)",
                                      "layer2.0.bn2.weight (8)",
                                      "layer2.0.bn2.bias (8)",
                                      "layer2.0.downsample.0.weight (8,4,1,1)",
                                      "layer2.0.downsample.1.weight (8)",
                                      "layer2.0.downsample.1.bias (8)",
                                      "fc.weight (5,8)",
                                      "fc.bias (5)",
                                      "bn1.running_mean [4]",
                                      "bn1.running_var [4]",
                                      "layer1.0.bn1.running_mean [4]",
                                      "layer1.0.bn1.running_var [4]",
                                      "layer1.0.bn2.running_mean [4]",
                                      "layer1.0.bn2.running_var [4]",
                                      "layer2.0.bn1.running_mean [8]",
                                      "layer2.0.bn1.running_var [8]",
                                      "layer2.0.bn2.running_mean [8]",
                                      "layer2.0.bn2.running_var [8]",
                                      "layer2.0.downsample.1.running_mean [8]",
                                      "layer2.0.downsample.1.running_var [8]"}));
  const auto of_bottlenecks =
      parameter_names(ResNetOptions{.image = {8, 8, 3}, .blocks = {1}, .width = 4, .bottleneck = true, .classes = 5});
  for (const std::string name : {"layer1.0.conv1.weight (4,4,1,1)", "layer1.0.conv2.weight (4,4,3,3)",
                                 "layer1.0.conv3.weight (16,4,1,1)", "layer1.0.downsample.0.weight (16,4,1,1)"})
    EXPECT_EQ(std::ranges::count(of_bottlenecks, name), 1) << name;
}
TEST(DenseNet, has_torchvisions_names) {
  EXPECT_EQ(parameter_names(DenseNetOptions{
                .image = {8, 8, 3}, .blocks = {1, 1}, .growth = 3, .stem_width = 5, .bottleneck = 2, .classes = 7}),
            (std::vector<std::string>{"features.conv0.weight (5,3,3,3)",
                                      "features.norm0.weight (5)",
                                      "features.norm0.bias (5)",
                                      "features.denseblock1.denselayer1.norm1.weight (5)",
                                      "features.denseblock1.denselayer1.norm1.bias (5)",
                                      "features.denseblock1.denselayer1.conv1.weight (6,5,1,1)",
                                      "features.denseblock1.denselayer1.norm2.weight (6)",
                                      "features.denseblock1.denselayer1.norm2.bias (6)",
                                      "features.denseblock1.denselayer1.conv2.weight (3,6,3,3)",
                                      "features.transition1.norm.weight (8)",
                                      "features.transition1.norm.bias (8)",
                                      "features.transition1.conv.weight (4,8,1,1)",
                                      "features.denseblock2.denselayer1.norm1.weight (4)",
                                      "features.denseblock2.denselayer1.norm1.bias (4)",
                                      "features.denseblock2.denselayer1.conv1.weight (6,4,1,1)",
                                      "features.denseblock2.denselayer1.norm2.weight (6)",
                                      "features.denseblock2.denselayer1.norm2.bias (6)",
                                      "features.denseblock2.denselayer1.conv2.weight (3,6,3,3)",
                                      "features.norm5.weight (7)",
                                      "features.norm5.bias (7)",
                                      "classifier.weight (7,7)",
                                      "classifier.bias (7)",
                                      "features.norm0.running_mean [5]",
                                      "features.norm0.running_var [5]",
                                      "features.denseblock1.denselayer1.norm1.running_mean [5]",
                                      "features.denseblock1.denselayer1.norm1.running_var [5]",
                                      "features.denseblock1.denselayer1.norm2.running_mean [6]",
                                      "features.denseblock1.denselayer1.norm2.running_var [6]",
                                      "features.transition1.norm.running_mean [8]",
                                      "features.transition1.norm.running_var [8]",
                                      "features.denseblock2.denselayer1.norm1.running_mean [4]",
                                      "features.denseblock2.denselayer1.norm1.running_var [4]",
                                      "features.denseblock2.denselayer1.norm2.running_mean [6]",
                                      "features.denseblock2.denselayer1.norm2.running_var [6]",
                                      "features.norm5.running_mean [7]",
                                      "features.norm5.running_var [7]"}));
}

/// What a change of the weights along `direction` does to the loss, by differences: of both sides, and of each.
std::array<double, 3> slopes_of_loss(Trained<float>& trained, std::size_t tensor, const std::vector<float>& direction,
                                     float distance) {
  const device::Span<float> master = trained.parameters().master(tensor);
  const std::vector<float> before = floats(master, trained.stream());
  const auto loss_at = [&](float factor) {
    std::vector<float> moved = before;
    for (std::size_t i = 0; i < moved.size(); ++i) moved[i] += factor * direction[i];
    device::upload(master, moved, trained.stream());
    EXPECT_TRUE(trained.stream().synchronize());
    return trained.loss(0, 0);
  };
  const double above = loss_at(distance);
  const double below = loss_at(-distance);
  const double here = loss_at(0);
  const double step = distance;
  return {(above - below) / (2 * step), (above - here) / step, (here - below) / step};
}

// Along the gradient itself, and in random directions. The loss is in f32, and has kinks where ReLUs and pools change
// their mind. A wide difference meets kinks, a narrow one the rounding, and at a kink a gradient is the slope of one
// side: the best of some differences counts, and may be off by some 1 % of the gradient's length. A term that lacks
// shows far above that.
TEST_P(Models, gradients_agree_with_differences) {
  auto random = test::generator(1);
  Trained<float> trained(model(), 6, 1, random);
  trained.step(0, 0);
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> gradients;
  const std::size_t tensors = trained.parameters().tensors().size();
  for (std::size_t i = 0; i < tensors; ++i) gradients.push_back(trained.gradient(i));
  for (std::size_t i = 0; i < tensors; ++i) {
    SCOPED_TRACE(trained.parameters().tensors()[i].spec.name);
    const std::vector<float>& gradient = gradients[i];
    const double length = std::sqrt(std::inner_product(gradient.begin(), gradient.end(), gradient.begin(), 0.0));
    for (int kind = 0; kind < 3; ++kind) {
      std::vector<float> direction = gradient;
      if (kind > 0) {
        for (float& value : direction) value = normal(random);
      }
      const double norm = std::sqrt(std::inner_product(direction.begin(), direction.end(), direction.begin(), 0.0));
      if (norm < 1e-12) continue;
      for (float& value : direction) value = static_cast<float>(static_cast<double>(value) / norm);
      const double should = std::inner_product(direction.begin(), direction.end(), gradient.begin(), 0.0);
      double is = INFINITY;
      for (const float distance : {2e-3F, 3e-4F, 1e-4F}) {
        for (const double slope : slopes_of_loss(trained, i, direction, distance))
          is = std::abs(slope - should) < std::abs(is - should) ? slope : is;
        if (std::abs(is - should) < 0.03 * length) break;
      }
      EXPECT_NEAR(is, should, 0.03 * length + 1e-3);
    }
  }
}

TEST_P(Models, slots_do_not_see_each_other_and_a_late_dw_gives_the_same_bits) {
  auto random = test::generator(2);
  Trained<float> trained(model(), 4, 2, random);
  trained.step(0, 0);
  const std::vector<float> first = trained.gradients();
  trained.step(1, 1);
  const std::vector<float> second = trained.gradients();
  EXPECT_NE(first, second);

  const auto norms_of = [&](const std::vector<float>& gradients, std::vector<float> others) {
    // Norms' gradients are made by dO: theirs are those of the slot that did it last.
    for (const auto& tensor : trained.parameters().tensors()) {
      if (tensor.spec.initial != Initial::kOnes && !tensor.spec.name.ends_with(".bias")) continue;
      std::copy_n(gradients.begin() + static_cast<std::ptrdiff_t>(tensor.gradient_begin), tensor.size,
                  others.begin() + static_cast<std::ptrdiff_t>(tensor.gradient_begin));
    }
    return others;
  };
  const NetworkRun<float> run0 = trained.run(0, 0);
  const NetworkRun<float> run1 = trained.run(1, 1);
  trained.forward(run0);
  trained.forward(run1);
  trained.output_gradients(run0);
  trained.output_gradients(run1);
  trained.weight_gradients(run1);
  EXPECT_EQ(trained.gradients(), second);
  trained.weight_gradients(run0);
  const std::vector<float> late = trained.gradients();
  EXPECT_EQ(norms_of(late, first), late);
}

TEST_P(Models, gradients_are_added_where_that_is_wanted) {
  auto random = test::generator(3);
  Trained<float> trained(model(), 4, 2, random);
  trained.step(0, 0);
  const std::vector<float> first = trained.gradients();
  trained.step(1, 1);
  const std::vector<float> second = trained.gradients();
  trained.step(0, 0, true);
  const std::vector<float> both = trained.gradients();
  for (std::size_t i = 0; i < both.size(); ++i)
    ASSERT_NEAR(both[i], first[i] + second[i], 1e-5F + 1e-5F * std::abs(both[i])) << i;
}

TEST_P(Models, a_batch_may_have_fewer_rows_than_there_is_room_for) {
  auto random = test::generator(6);
  auto same = random;
  Trained<float> large(model(), 9, 1, random);
  Trained<float> small(model(), 4, 1, same);
  large.step(large.run_of(4, 0, 0));
  small.step(0, 0);
  EXPECT_EQ(large.gradients(), small.gradients());
  for (std::size_t rows = 1; rows <= 9; ++rows) large.step(large.run_of(rows, 0, 0));
}

// Its running statistics become those of the one batch that it sees; only the variance's rows - 1 is left between.
TEST_P(Models, evaluation_differs_from_training_by_the_statistics_only) {
  auto random = test::generator(4);
  Trained<float> trained(model(), 32, 1, random);
  for (int i = 0; i < 150; ++i) trained.forward(trained.run(0, 0));
  const double training = trained.loss(0, 0);
  const std::vector<float> before = trained.states();
  const double evaluation = trained.loss(0, 0, false);
  EXPECT_EQ(trained.states(), before);
  EXPECT_EQ(trained.network().logits(0).size(), 32 * classes_of(model()));
  if (before.empty()) {
    EXPECT_EQ(evaluation, training);
  } else {
    EXPECT_NEAR(evaluation, training, 0.03 * training);
    EXPECT_NE(evaluation, training);
  }
}

TEST_P(Models, gradients_in_bf16_point_where_those_in_f32_do) {
  auto random = test::generator(5);
  auto same = random;
  Trained<float> floats_of(model(), 48, 1, random);
  Trained<device::Bf16> trained(model(), 48, 1, same);
  floats_of.step(0, 0);
  trained.step(0, 0);
  const std::vector<float> should = floats_of.gradients();
  const std::vector<float> is = trained.gradients();
  ASSERT_EQ(is.size(), should.size());
  const double product = std::inner_product(is.begin(), is.end(), should.begin(), 0.0);
  const double lengths = std::sqrt(std::inner_product(is.begin(), is.end(), is.begin(), 0.0) *
                                   std::inner_product(should.begin(), should.end(), should.begin(), 0.0));
  EXPECT_GT(product, 0.9 * lengths);
  EXPECT_NEAR(trained.loss(0, 0), floats_of.loss(0, 0), 0.05);
}

// A slot's buffers: what layers keep, and the values between them with their gradients, of which plans know by
// themselves (Layer::output_bytes). x of a layer is the value of the one below.
TEST_P(Models, bytes_are_those_of_the_buffers) {
  constexpr std::size_t kRows = 64;
  const auto used = [&](unsigned slots) {
    const device::Device device = device::Device::cpu(7);
    device::Stream stream = stream_of(device);
    const auto network = Network<float>::create(model(), {.slots = slots, .rows = kRows}, stream);
    EXPECT_TRUE(network) << network.error().message;
    return device.memory_stats().used_bytes;
  };
  const std::uint64_t a_slot = used(3) - used(2);
  device::Stream stream = stream_of();
  const auto network = Network<float>::create(model(), {.slots = 1, .rows = kRows}, stream);
  std::uint64_t planned = 0;
  std::uint64_t images = kRows * image_of(model()).size() * sizeof(float);
  for (unsigned i = 0; i < network->layers(); ++i) {
    const LayerBytes bytes = network->layer(i).bytes(kRows);
    EXPECT_LE(bytes.kept_for_weights, bytes.kept) << network->layer(i).name();
    EXPECT_EQ(bytes.output, kRows * network->layer(i).outputs() * sizeof(float)) << network->layer(i).name();
    planned += bytes.kept + bytes.output;  // The output's gradient; the output itself is what the next layer keeps.
  }
  EXPECT_NEAR(static_cast<double>(a_slot), static_cast<double>(planned - images), 0.05 * static_cast<double>(a_slot));
}

}  // namespace
}  // namespace dunnock::model
