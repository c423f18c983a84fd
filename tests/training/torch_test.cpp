// Random models trained by us and by the PyTorch that is installed, both in f32, with files exchanged. Where there is
// none, it is skipped (DUNNOCK_TORCH_PYTHON names a Python that has it).
//
// Bounds: both sides round each value to 2^-24 of it, in other orders; see golden_steps_test.cpp.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "dunnock/index/checkpoint_files.hpp"
#include "dunnock/training/weights.hpp"
#include "support/seed.hpp"
#include "support/temporary_folder.hpp"
#include "training/runs.hpp"

namespace dunnock::test {
namespace {

using model::ModelOptions;
using nlohmann::json;
using training::Trainer;

constexpr unsigned kSteps = 10;
// Of 1 + the loss, and of the largest weight of a tensor.
constexpr double kOfLosses = 5e-5;
constexpr double kOfWeights = 2e-4;
constexpr double kOfLogits = 2e-5;

/// A Python that has torch and numpy.
std::optional<std::string> python() {
  const char* named = std::getenv("DUNNOCK_TORCH_PYTHON");
  for (const std::string& one : {std::string(named == nullptr ? "python3" : named), std::string("/usr/bin/python3")}) {
    if (std::system(("'" + one + "' -c 'import numpy, torch' > /dev/null 2>&1").c_str()) == 0) return one;
  }
  return std::nullopt;
}

json image_of(const model::ImageShape& image) {
  return {{"height", image.height}, {"width", image.width}, {"channels", image.channels}};
}

json json_of(const ModelOptions& model) {
  struct Words {
    json operator()(const model::MlpOptions& m) const {
      return {{"kind", "mlp"}, {"inputs", m.inputs}, {"hidden", m.hidden}, {"classes", m.classes}};
    }
    json operator()(const model::CnnOptions& m) const {
      return {{"kind", "cnn"},      {"image", image_of(m.image)}, {"stages", m.stages}, {"batch_norm", m.batch_norm},
              {"hidden", m.hidden}, {"classes", m.classes}};
    }
    json operator()(const model::ResNetOptions& m) const {
      return {{"kind", "resnet"},           {"image", image_of(m.image)}, {"blocks", m.blocks},  {"width", m.width},
              {"bottleneck", m.bottleneck}, {"large_stem", m.large_stem}, {"classes", m.classes}};
    }
    json operator()(const model::DenseNetOptions& m) const {
      return {{"kind", "densenet"},         {"image", image_of(m.image)}, {"blocks", m.blocks},
              {"growth", m.growth},         {"stem_width", m.stem_width}, {"bottleneck", m.bottleneck},
              {"large_stem", m.large_stem}, {"classes", m.classes}};
    }
    json operator()(const model::GptOptions& m) const {
      return {{"kind", "gpt"},
              {"vocabulary", m.vocabulary},
              {"context", m.context},
              {"layers", m.layers},
              {"heads", m.heads},
              {"width", m.width},
              {"mlp_ratio", m.mlp_ratio},
              {"positions", m.positions == model::Positions::kRotary ? "rotary" : "learned"}};
    }
  };
  return std::visit(Words{}, model);
}

template <class T>
void write_tensor(SafetensorsWriter& writer, std::size_t number, const std::vector<T>& values) {
  ASSERT_TRUE(writer.write(number, 0, std::as_bytes(std::span(values))));
}

std::vector<float> read_tensor(const SafetensorsFile& file, const std::string& name) {
  for (const SafetensorsEntry& entry : file.header().tensors) {
    if (entry.spec.name != name) continue;
    std::vector<float> values(*entry.spec.bytes() / sizeof(float));
    EXPECT_EQ(entry.spec.dtype, Dtype::kF32);
    EXPECT_TRUE(file.read(entry.begin_bytes, std::as_writable_bytes(std::span(values))));
    return values;
  }
  ADD_FAILURE() << "no tensor " << name;
  return {};
}

/// A model that both sides train.
struct Job {
  std::string name;
  ModelOptions model;
  std::size_t rows = 0;
  unsigned micro_batches = 1;
  json optimizer;
  std::vector<DoubleBatch> batches{};
  std::vector<double> losses{};
  std::vector<double> norms{};
  States state{};
  std::vector<float> logits{};  // Of the first batch, in evaluation, behind all steps.
  std::unique_ptr<Trainer> trainer{};
};

/// Of a GPT: the targets are the tokens that follow.
DoubleBatch random_following_batch(const ModelOptions& model, std::size_t rows, std::mt19937_64& random,
                                   std::vector<std::int32_t>& tokens) {
  DoubleBatch batch = random_batch(model, rows, random);
  const auto* gpt = std::get_if<model::GptOptions>(&model);
  if (gpt == nullptr) return batch;
  batch.tokens.clear();
  batch.targets.clear();
  for (std::size_t i = 0; i < rows * (gpt->context + 1); ++i) {
    tokens.push_back(static_cast<std::int32_t>(random() % gpt->vocabulary));
    if (i % (gpt->context + 1) < gpt->context) batch.tokens.push_back(tokens.back());
    if (i % (gpt->context + 1) > 0) batch.targets.push_back(tokens.back());
  }
  return batch;
}

std::vector<float> logits_of(Trainer& trainer, const DoubleBatch& batch) {
  std::vector<float> all;
  const Inputs inputs(batch);
  for (unsigned row = 0; row < batch.rows; ++row) {
    const auto logits = trainer.logits(inputs.part(row, static_cast<unsigned>(batch.rows), 0));
    EXPECT_TRUE(logits) << logits.error().message;
    if (logits) all.insert(all.end(), logits->begin(), logits->end());
  }
  return all;
}

/// Our side of it: files for PyTorch, and what we make of them.
void run_ours(Job& job, const TemporaryFolder& folder, std::mt19937_64& random) {
  std::vector<std::int32_t> tokens;
  for (unsigned step = 0; step < kSteps; ++step)
    job.batches.push_back(random_following_batch(job.model, job.rows, random, tokens));
  const json& o = job.optimizer;
  const bool adamw = o.at("kind") == "adamw";
  auto made =
      Trainer::create(device::Device::cpu(),
                      {.model = job.model,
                       .rows = job.rows / job.micro_batches,
                       .micro_batches = job.micro_batches,
                       .optimizer = {.kind = adamw ? training::OptimizerKind::kAdamw : training::OptimizerKind::kSgd,
                                     .epsilon = o.value("epsilon", 1e-8F),
                                     .weight_decay = o.at("weight_decay"),
                                     .momentum = o.value("momentum", 0.0F),
                                     .nesterov = o.value("nesterov", false),
                                     .clip = o.at("clip")},
                       .threads = 1,
                       .plan = {},
                       .costs = {}});
  ASSERT_TRUE(made) << made.error().message;
  job.trainer = std::move(*made);
  ASSERT_TRUE(load_weights_of(*job.trainer, random_weights(job.model, random)));
  ASSERT_TRUE(training::save_weights(*job.trainer, folder.path(job.name + ".weights")));

  // Batches.
  std::vector<TensorSpec> specs;
  const bool is_gpt = std::holds_alternative<model::GptOptions>(job.model);
  std::vector<float> images;
  std::vector<std::int32_t> labels;
  for (const DoubleBatch& batch : job.batches) {
    const std::vector<float> some = floats(batch.images);
    images.insert(images.end(), some.begin(), some.end());
    labels.insert(labels.end(), batch.labels.begin(), batch.labels.end());
  }
  if (is_gpt) {
    specs.push_back({"tokens", Dtype::kI32, {kSteps, job.rows, tokens.size() / kSteps / job.rows}});
  } else {
    std::vector<std::uint64_t> shape{kSteps, job.rows};
    std::visit(
        [&](const auto& m) {
          if constexpr (requires { m.image; }) {
            shape.insert(shape.end(), {m.image.height, m.image.width, m.image.channels});
          } else if constexpr (requires { m.inputs; }) {
            shape.push_back(m.inputs);
          }
        },
        job.model);
    specs.push_back({"images", Dtype::kF32, shape});
    specs.push_back({"labels", Dtype::kI32, {kSteps, job.rows}});
  }
  auto writer = SafetensorsWriter::create(folder.path(job.name + ".batches"), specs, {});
  ASSERT_TRUE(writer) << writer.error().message;
  if (is_gpt) {
    write_tensor(*writer, 0, tokens);
  } else {
    write_tensor(*writer, 0, images);
    write_tensor(*writer, 1, labels);
  }
  ASSERT_TRUE(writer->commit());

  for (const DoubleBatch& batch : job.batches) {
    const Inputs inputs(batch);
    const training::StepInput input = inputs.part(0, 1, o.at("learning_rate").get<float>());
    const auto results = job.trainer->run({&input, 1});
    ASSERT_TRUE(results) << results.error().message;
    job.losses.push_back(results->front().loss);
    job.norms.push_back(results->front().gradient_norm.value_or(0));
  }
  job.state = state_of(*job.trainer);
  job.logits = logits_of(*job.trainer, job.batches.front());
  ASSERT_TRUE(training::save_weights(*job.trainer, folder.path(job.name + ".ours")));
}

void expect_near(const std::vector<float>& ours, const std::vector<float>& theirs, double share,
                 const std::string& what) {
  ASSERT_EQ(ours.size(), theirs.size()) << what;
  double largest = 0;
  for (const float value : theirs) largest = std::max(largest, std::abs(static_cast<double>(value)));
  for (std::size_t i = 0; i < ours.size(); ++i)
    ASSERT_NEAR(ours[i], theirs[i], share * largest) << what << " [" << i << "]";
}

std::vector<float> logits_file(const std::string& path) {
  const auto file = SafetensorsFile::open(path);
  EXPECT_TRUE(file) << file.error().message;
  return file ? read_tensor(*file, "logits") : std::vector<float>{};
}

TEST(Torch, trains_random_models_to_the_same_weights_and_reads_and_writes_the_same_files) {
  const auto with_torch = python();
  if (!with_torch) GTEST_SKIP() << "no Python here has torch and numpy (DUNNOCK_TORCH_PYTHON names one)";
  auto random = generator(31);
  const TemporaryFolder folder;
  std::vector<Job> jobs;
  json list = json::array();
  for (const std::string& kind : random_kinds()) {
    for (const bool adamw : {true, false}) {
      const ModelOptions model = random_model(kind, random);
      const bool norms = has_batch_norm(model);
      const unsigned micro_batches = 1 + random() % 2;
      const double learning_rate = adamw ? 0.002 : 0.01;
      json optimizer = {{"kind", adamw ? "adamw" : "sgd"},
                        {"learning_rate", learning_rate},
                        {"weight_decay", random() % 2 == 0 ? 0.0 : 0.0625},
                        {"clip", random() % 2 == 0 ? 0.0 : 1.0}};
      if (adamw) {
        // What a gradient of 0 is rounded to stays far below it.
        optimizer["epsilon"] = norms ? 1e-2 : 1e-4;
      } else {
        optimizer["momentum"] = 0.875;
        optimizer["nesterov"] = random() % 2 == 0;
      }
      Job job{.name = std::to_string(jobs.size()),
              .model = model,
              .rows = micro_batches * ((norms ? 3 : 1) + random() % 3),
              .micro_batches = micro_batches,
              .optimizer = optimizer};
      SCOPED_TRACE(to_string(model));
      run_ours(job, folder, random);
      if (HasFatalFailure()) return;
      list.push_back(
          {{"name", job.name},
           {"request",
            {{"model", json_of(model)}, {"optimizer", optimizer}, {"micro_batches", micro_batches}, {"threads", 1}}}});
      jobs.push_back(std::move(job));
    }
  }
  std::ofstream(folder.path("jobs.json")) << list.dump();
  const std::string command = "'" + *with_torch + "' '" + DUNNOCK_SOURCE_DIR + "/tests/training/torch_runs.py' '" +
                              folder.path("") + "' > '" + folder.path("log") + "' 2>&1";
  ASSERT_EQ(std::system(command.c_str()), 0) << file_bytes(folder.path("log"));

  for (const Job& job : jobs) {
    SCOPED_TRACE(to_string(job.model) + ", " + job.optimizer.dump());
    const json result = json::parse(file_bytes(folder.path(job.name + ".result")));
    for (unsigned step = 0; step < kSteps; ++step) {
      const double theirs = result.at("losses").at(step);
      EXPECT_NEAR(job.losses[step], theirs, kOfLosses * (1 + theirs)) << "step " << step;
      const double norm = result.at("gradient_norms").at(step);
      if (job.optimizer.at("clip") > 0) {
        EXPECT_NEAR(job.norms[step], norm, 4 * kOfLosses * (1 + norm)) << "step " << step;
      }
    }
    const auto final_file = SafetensorsFile::open(folder.path(job.name + ".final"));
    ASSERT_TRUE(final_file) << final_file.error().message;
    for (const SafetensorsEntry& entry : final_file->header().tensors) {
      const std::string& name = entry.spec.name;
      ASSERT_TRUE(job.state.contains(name)) << name;
      expect_near(job.state.at(name), read_tensor(*final_file, name), kOfWeights, name);
    }
    // What save_weights() has written PyTorch loads by load_state_dict(), and gives the same logits.
    expect_near(job.logits, logits_file(folder.path(job.name + ".logits")), kOfLogits, "logits");
    if (!std::holds_alternative<model::GptOptions>(job.model)) continue;
    for (const std::string dtype : {"F32", "F16", "BF16"}) {
      const std::string path = folder.path(job.name + ".hf." + dtype);
      const auto loaded = training::load_weights(*job.trainer, path);
      ASSERT_TRUE(loaded) << loaded.error().message;
      expect_near(logits_of(*job.trainer, job.batches.front()), logits_file(path + ".logits"), kOfLogits,
                  "logits of " + dtype);
    }
  }
}

}  // namespace
}  // namespace dunnock::test
