// Gradients of networks, beside PyTorch's and central differences, both in double precision.
//
// Bounds: f32 rounds each value to 2^-24 of it, and a gradient is the end of a chain of some tens of such roundings, of
// sums that are rounded by the size of what is added up and not by what comes out. So the error of a value is measured
// against the root mean square of its tensor's gradient, and against a small share of the largest tensor's, for some
// tensors' gradients are 0 in truth (biases before a batch norm, of keys) and what is found is rounding of others.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "dunnock/device/bf16.hpp"
#include "dunnock/model/network.hpp"
#include "dunnock/training/trainer.hpp"
#include "network_inputs.hpp"
#include "support/seed.hpp"
#include "training/runs.hpp"

namespace dunnock::test {
namespace {

using model::ModelOptions;

/// Of one batch.
struct Found {
  double loss = 0;
  std::map<std::string, std::vector<double>> gradients;  // As seen; of a tied tensor the sum of both ends.
  std::map<std::string, std::vector<double>> states;
};

struct How {
  unsigned slots = 1;
  unsigned slot = 0;
  unsigned micro_batches = 1;  // The batch is split into this many.
  std::size_t spare_rows = 0;  // That the network has room for.
};

template <class T>
Found gradients_of(const ModelOptions& model, const DoubleWeights& weights, const DoubleBatch& batch, How how = {}) {
  auto stream = std::move(*device::Stream::create(device::Device::cpu(), {.threads = 1}));
  const std::size_t rows = batch.rows / how.micro_batches;
  auto created =
      model::Network<T>::create(model, {.slots = how.slots, .rows = rows + how.spare_rows, .held = {}}, stream);
  EXPECT_TRUE(created) << created.error().message;
  model::Network<T>& network = *created;
  model::Parameters<T>& parameters = network.parameters();
  std::vector<std::vector<float>> lying;
  for (std::size_t i = 0; i < parameters.tensors().size(); ++i) {
    const model::ParameterSpec& spec = parameters.tensors()[i].spec;
    lying.push_back(to_lying(spec, weights.at(spec.name)));
    device::upload(parameters.master(i), lying.back(), stream);
  }
  parameters.refresh_weights(stream);
  auto inputs = std::move(*training::NetworkInputs<T>::create(model, how.micro_batches, rows, stream));
  const Inputs values(batch);
  inputs.upload(0, batch.rows, values.part(0, 1, 0), stream);
  auto workspace =
      std::move(*device::Buffer<std::byte>::create(std::max<std::size_t>(1, network.workspace_bytes()), stream));
  const float factor = 1.0F / static_cast<float>(values.targets.size());
  for (unsigned m = 0; m < how.micro_batches; ++m) {
    const auto micro_batch = inputs.batch(m, rows, factor);
    const model::NetworkRun<T> run{.batch = micro_batch,
                                   .slot = how.slot,
                                   .adds = m > 0,
                                   .training = true,
                                   .workspace = workspace.span(),
                                   .stream = stream};
    for (unsigned l = 0; l < network.layers(); ++l) network.forward(l, run);
    for (unsigned l = network.layers(); l-- > 1;) network.output_gradient(l, run);
    for (unsigned l = network.layers(); l-- > 0;) network.weight_gradient(l, run);
  }
  EXPECT_TRUE(stream.synchronize());
  Found found;
  std::vector<float> losses(values.targets.size());
  device::download(std::span(losses), inputs.losses(0, batch.rows), stream);
  EXPECT_TRUE(stream.synchronize());
  for (const float loss : losses) found.loss += static_cast<double>(loss) / static_cast<double>(losses.size());
  for (std::size_t i = 0; i < parameters.tensors().size(); ++i) {
    const model::ParameterSpec& spec = parameters.tensors()[i].spec;
    std::vector<float> gradient(parameters.tensors()[i].size);
    device::download(std::span(gradient), parameters.gradient(i), stream);
    EXPECT_TRUE(stream.synchronize());
    const std::vector<float> seen = to_seen(spec, gradient);
    std::vector<double>& sum = found.gradients[spec.name];
    sum.resize(seen.size());
    for (std::size_t j = 0; j < seen.size(); ++j) sum[j] += static_cast<double>(seen[j]);
  }
  for (std::size_t i = 0; i < parameters.states().size(); ++i) {
    std::vector<float> state(parameters.states()[i].spec.size);
    device::download(std::span(state), parameters.state(i), stream);
    EXPECT_TRUE(stream.synchronize());
    found.states[parameters.states()[i].spec.name].assign(state.begin(), state.end());
  }
  return found;
}

double root_mean_square(const std::vector<double>& values) {
  return root_of_squares(values) / std::sqrt(static_cast<double>(values.size()));
}
double largest_root_mean_square(const std::map<std::string, std::vector<double>>& gradients) {
  double largest = 0;
  for (const auto& [name, values] : gradients) largest = std::max(largest, root_mean_square(values));
  return largest;
}

// Of root mean squares. The worst value of the golden cases uses a quarter of its bound.
constexpr double kOfTensor = 1e-4;
constexpr double kOfLargest = 3e-6;

double bound_of(const Found& found, const std::string& name) {
  return kOfTensor * root_mean_square(found.gradients.at(name)) +
         kOfLargest * largest_root_mean_square(found.gradients);
}

void expect_golden(const GoldenGradients& at, const Found& found) {
  EXPECT_NEAR(found.loss, at.loss, 1e-6 * (1 + at.loss)) << at.name;
  ASSERT_EQ(found.gradients.size(), at.gradients.size()) << at.name;
  for (const auto& [name, gradient] : at.gradients) {
    ASSERT_TRUE(found.gradients.contains(name)) << at.name << ": " << name;
    const std::vector<double>& values = found.gradients.at(name);
    const double bound = bound_of(found, name);
    double sum = 0;
    for (const double value : values) sum += value;
    const double size = static_cast<double>(values.size());
    EXPECT_NEAR(sum, gradient.sum, bound * size) << at.name << ": " << name;
    EXPECT_NEAR(root_of_squares(values), std::sqrt(gradient.squares), bound * std::sqrt(size))
        << at.name << ": " << name;
    for (std::size_t i = 0; i < gradient.indices.size(); ++i) {
      EXPECT_NEAR(values[gradient.indices[i]], gradient.values[i], bound)
          << at.name << ": " << name << " [" << gradient.indices[i] << "]";
    }
  }
}

TEST(Gradients, are_those_of_py_torch) {
  for (const GoldenGradients& at : golden_gradients())
    expect_golden(at, gradients_of<float>(at.model, formula_weights(at.model), formula_batch(at.model, at.rows, 0)));
}

TEST(Gradients, are_the_same_in_any_slot_and_with_room_to_spare) {
  for (const GoldenGradients& at : golden_gradients()) {
    const DoubleBatch batch = formula_batch(at.model, at.rows, 0);
    expect_golden(at, gradients_of<float>(at.model, formula_weights(at.model), batch,
                                          {.slots = 3, .slot = 2, .micro_batches = 1, .spare_rows = 3}));
  }
}

TEST(Gradients, of_micro_batches_add_up) {
  for (const GoldenGradients& at : golden_gradients()) {
    if (has_batch_norm(at.model) || at.rows % 2 != 0) continue;  // Batch norms see a micro-batch at a time.
    const DoubleBatch batch = formula_batch(at.model, at.rows, 0);
    expect_golden(at, gradients_of<float>(at.model, formula_weights(at.model), batch,
                                          {.slots = 1, .slot = 0, .micro_batches = 2, .spare_rows = 0}));
  }
}

class RandomModels : public ::testing::TestWithParam<std::string> {};

/// Central differences with two steps: where they disagree, a ReLU or a pool has a kink between, and the value says
/// nothing.
TEST_P(RandomModels, have_the_gradients_of_central_differences) {
  auto random = generator(2);
  constexpr std::size_t kIndices = 3;  // Of each tensor.
  std::size_t compared = 0;
  std::size_t left_out = 0;
  for (int round = 0; round < 6; ++round) {
    const ModelOptions model = random_model(GetParam(), random);
    SCOPED_TRACE(to_string(model));
    const DoubleWeights weights = random_weights(model, random);
    const DoubleBatch batch = random_batch(model, (has_batch_norm(model) ? 3 : 1) + random() % 4, random);
    const Found found = gradients_of<float>(model, weights, batch);
    EXPECT_NEAR(found.loss, loss(model, weights, batch), 2e-6 * (1 + found.loss));
    DoubleIndices at;
    for (const auto& [name, values] : weights) {
      for (std::size_t i = 0; i < kIndices; ++i) at[name].push_back(random() % values.size());
    }
    const DoubleWeights wide = central_differences(model, weights, batch, at, 4e-6);
    const DoubleWeights narrow = central_differences(model, weights, batch, at, 1e-6);
    ASSERT_EQ(found.gradients.size(), weights.size());
    for (const auto& [name, indices] : at) {
      const double bound = bound_of(found, name) + 2e-9;  // And what the difference rounds to.
      for (std::size_t i = 0; i < indices.size(); ++i) {
        if (std::abs(wide.at(name)[i] - narrow.at(name)[i]) > bound / 4) {
          ++left_out;
          continue;
        }
        ++compared;
        EXPECT_NEAR(found.gradients.at(name)[indices[i]], narrow.at(name)[i], bound)
            << name << " [" << indices[i] << "]";
      }
    }
  }
  EXPECT_GT(compared, 9 * left_out) << "kinks are rare";
}
INSTANTIATE_TEST_SUITE_P(All, RandomModels, ::testing::ValuesIn(random_kinds()));

/// bf16 rounds each value to 2^-8 of it where f32 rounds to 2^-24, so a tensor's gradient is off by some such
/// roundings: measured against its own length, and a share of the longest one's.
void expect_bf16_near(const ModelOptions& model, DoubleWeights weights, DoubleBatch batch, double of_tensor,
                      double of_longest) {
  SCOPED_TRACE(to_string(model));
  // Both begin with the same numbers.
  const auto round_to_bf16 = [](std::vector<double>& values) {
    for (double& value : values)
      value = static_cast<double>(static_cast<float>(device::Bf16(static_cast<float>(value))));
  };
  for (auto& [name, values] : weights) round_to_bf16(values);
  round_to_bf16(batch.images);
  const Found wide = gradients_of<float>(model, weights, batch);
  const Found narrow = gradients_of<device::Bf16>(model, weights, batch);
  EXPECT_NEAR(narrow.loss, wide.loss, 0.05 * (1 + wide.loss));
  double longest = 0;
  for (const auto& [name, values] : wide.gradients) longest = std::max(longest, root_of_squares(values));
  for (const auto& [name, values] : wide.gradients) {
    std::vector<double> errors = narrow.gradients.at(name);
    for (std::size_t i = 0; i < errors.size(); ++i) errors[i] -= values[i];
    EXPECT_LE(root_of_squares(errors), of_tensor * root_of_squares(values) + of_longest * longest) << name;
  }
}

TEST_P(RandomModels, have_the_gradients_of_f32_in_bf16_up_to_its_rounding) {
  auto random = generator(3);
  for (int round = 0; round < 4; ++round) {
    const ModelOptions model = random_model(GetParam(), random);
    // Small batch norms divide by what is itself rounded: those of chance have no bound.
    if (has_batch_norm(model)) continue;
    const DoubleWeights weights = random_weights(model, random);
    expect_bf16_near(model, weights, random_batch(model, 1 + random() % 4, random), 0.4, 0.1);
  }
}

/// The bound of batch norms is weak: it tells a wrong formula in plain networks, and only gross errors in these.
TEST(Gradients, in_bf16_are_those_of_f32_up_to_its_rounding) {
  for (const GoldenGradients& at : golden_gradients()) {
    const bool norms = has_batch_norm(at.model);
    expect_bf16_near(at.model, formula_weights(at.model), formula_batch(at.model, at.rows, 0), norms ? 0.7 : 0.1,
                     norms ? 0.2 : 0.03);
  }
}

// ----- many micro-batches in bf16 -----------------------------------------------------------------------------------

double norm_of(const std::map<std::string, std::vector<double>>& gradients) {
  double squares = 0;
  for (const auto& [name, values] : gradients) squares += root_of_squares(values) * root_of_squares(values);
  return std::sqrt(squares);
}

struct Many {
  std::string name;
  ModelOptions model;
};
std::vector<Many> models_of_many() {
  return {{"gpt", model::GptOptions{.vocabulary = 48, .context = 8, .layers = 2, .heads = 2, .width = 16}},
          {"mlp", model::MlpOptions{.inputs = 24, .hidden = {32}, .classes = 8}},
          {"cnn", model::CnnOptions{.image = {6, 6, 2}, .stages = {{4, 4}}, .hidden = {16}, .classes = 8}}};
}

/// The rows of one micro-batch of `batch`, of which it has `count`.
DoubleBatch micro_batch(const DoubleBatch& batch, std::size_t m, std::size_t count) {
  const auto part = [&](const auto& values) {
    const auto a_row = static_cast<std::ptrdiff_t>(values.size() / count);
    const auto first = values.begin() + static_cast<std::ptrdiff_t>(m) * a_row;
    return std::remove_cvref_t<decltype(values)>(first, first + a_row);
  };
  DoubleBatch one = batch;
  one.rows = 1;
  one.images = part(batch.images);
  one.labels = part(batch.labels);
  one.tokens = part(batch.tokens);
  one.targets = part(batch.targets);
  return one;
}

/// One micro-batch `count` times.
DoubleBatch repeated(const DoubleBatch& one, std::size_t count) {
  const auto many = [&](const auto& values) {
    std::remove_cvref_t<decltype(values)> all;
    for (std::size_t i = 0; i < count; ++i) all.insert(all.end(), values.begin(), values.end());
    return all;
  };
  DoubleBatch all = one;
  all.rows = static_cast<unsigned>(count);
  all.images = many(one.images);
  all.labels = many(one.labels);
  all.tokens = many(one.tokens);
  all.targets = many(one.targets);
  return all;
}

/// The sum of 512 micro-batches is as near to f32's as one of them: bf16's 8 bits are those of the values, not of the
/// sum.
TEST(Gradients, of_hundreds_of_micro_batches_in_bf16_keep_their_norm) {
  constexpr unsigned kMicroBatches = 512;
  auto random = generator(7);
  for (const auto& [name, model] : models_of_many()) {
    SCOPED_TRACE(name);
    const DoubleWeights weights = random_weights(model, random);
    const DoubleBatch batch = random_batch(model, kMicroBatches, random);
    const Found wide = gradients_of<float>(model, weights, batch, {.micro_batches = kMicroBatches});
    const Found narrow = gradients_of<device::Bf16>(model, weights, batch, {.micro_batches = kMicroBatches});
    EXPECT_NEAR(norm_of(narrow.gradients) / norm_of(wide.gradients), 1, 0.02);
  }
}

/// The sum of 512 equal micro-batches is 512 times one of them. In bf16, here by hand, it stands still at about half of
/// that: what is added is less than half a unit in the last place.
TEST(Gradients, of_hundreds_of_equal_micro_batches_in_bf16_are_those_of_one) {
  constexpr unsigned kMicroBatches = 512;
  auto random = generator(9);
  for (const auto& [name, model] : models_of_many()) {
    SCOPED_TRACE(name);
    const DoubleWeights weights = random_weights(model, random);
    const DoubleBatch one = micro_batch(random_batch(model, 2, random), 1, 2);
    const auto of_one = gradients_of<device::Bf16>(model, weights, one).gradients;
    const auto of_all =
        gradients_of<device::Bf16>(model, weights, repeated(one, kMicroBatches), {.micro_batches = kMicroBatches})
            .gradients;
    EXPECT_NEAR(norm_of(of_all) / norm_of(of_one), 1, 1e-3);

    std::map<std::string, std::vector<double>> by_hand;
    for (const auto& [tensor, values] : of_one) {
      for (const double value : values) {
        device::Bf16 sum(0.0F);
        for (unsigned m = 0; m < kMicroBatches; ++m)
          sum = device::Bf16(static_cast<float>(sum) + static_cast<float>(value / kMicroBatches));
        by_hand[tensor].push_back(static_cast<double>(static_cast<float>(sum)));
      }
    }
    EXPECT_LT(norm_of(by_hand) / norm_of(of_one), 0.8) << "sums in bf16 would have passed";
  }
}

/// What a run reports and clips by.
TEST(Gradients, of_hundreds_of_micro_batches_have_the_same_norm_in_runs_of_both_types) {
  for (const auto& [name, model] : models_of_many()) {
    SCOPED_TRACE(name);
    auto random = generator(8);
    const DoubleBatch batch = random_batch(model, 512, random);
    const Inputs values(batch);
    double norms[2] = {};
    for (const model::DataType type : {model::DataType::kF32, model::DataType::kBf16}) {
      auto trainer = training::Trainer::create(
          device::Device::cpu(),
          {.model = model, .type = type, .micro_batches = 512, .optimizer = {.clip = 1}, .threads = 1});
      ASSERT_TRUE(trainer) << trainer.error().message;
      const std::vector<training::StepInput> steps{values.part(0, 1, 0.001F)};
      const auto results = (*trainer)->run(steps);
      ASSERT_TRUE(results) << results.error().message;
      ASSERT_TRUE(results->front().gradient_norm);
      norms[type == model::DataType::kBf16 ? 1 : 0] = *results->front().gradient_norm;
    }
    EXPECT_NEAR(norms[1] / norms[0], 1, 0.01);
  }
}

// ----- running statistics -------------------------------------------------------------------------------------------

/// The first batch norm's: of the convolution in front of it, in double.
TEST(Gradients, running_statistics_follow_the_batch) {
  auto random = generator(4);
  struct Stem {
    std::string kind, convolution, norm;
  };
  for (const Stem& stem : {Stem{"cnn of batch norms", "features.0", "features.1"}, Stem{"resnet", "conv1", "bn1"},
                           Stem{"densenet", "features.conv0", "features.norm0"}}) {
    for (int round = 0; round < 4; ++round) {
      const ModelOptions model = random_model(stem.kind, random);
      SCOPED_TRACE(to_string(model));
      const DoubleWeights weights = random_weights(model, random);
      const DoubleBatch batch = random_batch(model, 3, random);
      const Found found = gradients_of<float>(model, weights, batch);
      model::ImageShape image;
      std::visit(
          [&](const auto& sizes) {
            if constexpr (requires { sizes.image; }) image = sizes.image;
          },
          model);
      const auto shape = parameter_shapes(model).at(stem.convolution + ".weight");
      const std::vector<double>& weight = weights.at(stem.convolution + ".weight");
      const std::size_t kernel = shape[2];
      const std::size_t stride = kernel == 7 ? 2 : 1;
      const std::size_t height = (image.height + stride - 1) / stride;
      const std::size_t width = (image.width + stride - 1) / stride;
      const auto bias = weights.find(stem.convolution + ".bias");
      for (std::size_t out = 0; out < shape[0]; ++out) {
        double sum = 0;
        double squares = 0;
        for (std::size_t n = 0; n < batch.rows; ++n) {
          for (std::size_t y = 0; y < height; ++y) {
            for (std::size_t x = 0; x < width; ++x) {
              double value = bias == weights.end() ? 0 : bias->second[out];
              for (std::size_t c = 0; c < image.channels; ++c) {
                for (std::size_t u = 0; u < kernel; ++u) {
                  for (std::size_t v = 0; v < kernel; ++v) {
                    const std::size_t at_y = y * stride + u;  // Of the padded image.
                    const std::size_t at_x = x * stride + v;
                    const std::size_t padding = kernel / 2;
                    if (at_y < padding || at_y - padding >= image.height) continue;
                    if (at_x < padding || at_x - padding >= image.width) continue;
                    value += weight[((out * image.channels + c) * kernel + u) * kernel + v] *
                             batch.images[((n * image.height + at_y - padding) * image.width + at_x - padding) *
                                              image.channels +
                                          c];
                  }
                }
              }
              sum += value;
              squares += value * value;
            }
          }
        }
        const auto count = static_cast<double>(batch.rows * height * width);
        const double mean = sum / count;
        const double variance = (squares / count - mean * mean) * count / (count - 1);  // PyTorch's: without bias.
        EXPECT_NEAR(found.states.at(stem.norm + ".running_mean")[out], 0.1 * mean, 1e-5 * (1 + std::abs(mean)));
        EXPECT_NEAR(found.states.at(stem.norm + ".running_var")[out], 0.9 + 0.1 * variance, 1e-5 * (1 + variance));
      }
    }
  }
}

}  // namespace
}  // namespace dunnock::test
