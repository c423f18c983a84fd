// The backward passes of known models in sizes and times: which gradients become ready when, on a device whose speed is
// given. For the simulator: nothing is computed, and the times are what arithmetic and memory ask for, not what a
// device does.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "dunnock/ranks/gradient_buckets.hpp"
#include "dunnock/schedule/simulator.hpp"

namespace dunnock::bench {

struct ModelShape {
  std::string name;
  std::size_t layers = 0;
  std::size_t width = 0;
  std::size_t mlp_width = 0;
  std::size_t vocabulary = 0;
  std::size_t context = 0;
  bool is_llama =
      false;  ///< RMS norms, gated MLP, no biases, no positions, a head of its own. Otherwise a GPT-2, tied.
};
// Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", table 2, and Touvron et al. 2023,
// "LLaMA", table 2: 124.4, 1557.6 and 6738.4 million values.
inline const std::vector<ModelShape> kModelShapes{{"gpt2-124m", 12, 768, 4 * 768, 50257, 1024, false},
                                                  {"gpt2-1558m", 48, 1600, 4 * 1600, 50257, 1024, false},
                                                  {"llama-7b", 32, 4096, 11008, 32000, 2048, true}};

struct DeviceModel {
  double tflop_per_s = 400;  ///< Of matrix products, reached: about half of an H200's peak in bf16.
  double memory_gb_per_s = 4000;
};

/// An operation of the backward pass, and the gradients that are complete with it.
struct BackwardStep {
  std::string name;
  double cost_us = 0;
  schedule::OpKind kind = schedule::OpKind::kOutputGradient;
  std::vector<std::size_t> gradients{};
};
struct BackwardPass {
  std::vector<BackwardStep> steps;
  std::vector<std::size_t> sizes;  // of the gradients, in values, in the order in which they are ready
};

/// Of `tokens` a rank; activations are of 2 bytes. A matrix product of (tokens, in) x (in, out) is 2 tokens in out
/// operations, twice: for its input and for its weights. Attention backward: 5/2 of forward, half of it masked.
inline BackwardPass backward_pass(const ModelShape& model, std::size_t tokens, const DeviceModel& device) {
  BackwardPass pass;
  const auto n = static_cast<double>(tokens);
  const auto add = [&](std::string name, double cost_us, const std::vector<std::size_t>& sizes) {
    const auto kind = sizes.empty() ? schedule::OpKind::kOutputGradient : schedule::OpKind::kWeightGradient;
    BackwardStep step{std::move(name), cost_us, kind, {}};
    for (const std::size_t size : sizes) {
      step.gradients.push_back(pass.sizes.size());
      pass.sizes.push_back(size);
    }
    pass.steps.push_back(std::move(step));
  };
  const auto product_us = [&](std::size_t in, std::size_t out) {
    return 2 * n * static_cast<double>(in) * static_cast<double>(out) / (device.tflop_per_s * 1e6);
  };
  /// The time to read and write this many arrays of (tokens, width).
  const auto pass_us = [&](double arrays, std::size_t width) {
    return arrays * 2 * n * static_cast<double>(width) / (device.memory_gb_per_s * 1e3);
  };
  const auto linear = [&](const std::string& name, std::size_t in, std::size_t out) {
    add(name + " dX", product_us(in, out), {});
    std::vector<std::size_t> gradients{in * out};
    if (!model.is_llama) gradients.push_back(out);
    add(name + " dW", product_us(in, out), gradients);
  };
  const std::size_t width = model.width;
  const auto norm = [&](const std::string& name) {
    add(name, pass_us(3, width), std::vector<std::size_t>(model.is_llama ? 1 : 2, width));
  };
  const std::size_t table = model.vocabulary * width;
  add("head dX", product_us(width, model.vocabulary), {});
  // A tied table's gradient is complete with its other half, the embedding's, at the very end.
  add("head dW", product_us(width, model.vocabulary),
      model.is_llama ? std::vector<std::size_t>{table} : std::vector<std::size_t>{});
  norm("norm");
  for (std::size_t layer = model.layers; layer-- > 0;) {
    const std::string name = std::to_string(layer) + " ";
    linear(name + "mlp out", model.mlp_width, width);
    add(name + "activation", pass_us(model.is_llama ? 5 : 3, model.mlp_width), {});
    if (model.is_llama) linear(name + "mlp gate", width, model.mlp_width);
    linear(name + "mlp in", width, model.mlp_width);
    norm(name + "norm 2");
    linear(name + "attention out", width, width);
    add(name + "attention", 2.5 * product_us(model.context, width), {});
    linear(name + "qkv", width, 3 * width);
    norm(name + "norm 1");
  }
  std::vector<std::size_t> last{table};
  if (!model.is_llama) last.push_back(model.context * width);
  add("embedding", pass_us(3, width), last);
  return pass;
}

struct Overlap {
  double compute_ms = 0;
  double communication_ms = 0;
  double makespan_ms = 0;
  double hidden = 0;  ///< hidden_share()
  double bound = 0;   ///< The same if every byte were on the link at once but the last step's, which nothing can hide.
  std::size_t buckets = 0;
};

/// One rank of `options.ranks` that are all alike, simulated. Errors: those of lay_out_buckets() and simulate().
inline Result<Overlap> simulate_overlap(const BackwardPass& pass, std::size_t value_bytes,
                                        const ranks::BucketOptions& buckets, const ranks::AllReduceOptions& options) {
  DUNNOCK_TRY(auto layout, ranks::lay_out_buckets(pass.sizes, value_bytes, buckets));
  schedule::TaskGraph graph;
  const auto gradients = ranks::add_gradients(graph, layout);
  Overlap overlap;
  schedule::ValueId before = graph.add_value("loss", 0);
  for (const BackwardStep& step : pass.steps) {
    const schedule::ValueId behind = graph.add_value(step.name, 0);
    schedule::Op op{
        .name = step.name, .kind = step.kind, .inputs = {before}, .outputs = {behind}, .cost_us = step.cost_us};
    for (const std::size_t gradient : step.gradients) op.outputs.push_back(gradients[gradient]);
    graph.add(std::move(op));
    before = behind;
    overlap.compute_ms += step.cost_us / 1e3;
  }
  for (const auto& bucket : ranks::add_all_reduces(graph, layout, gradients, options))
    overlap.communication_ms += graph.op(bucket.op).cost_us / 1e3;
  DUNNOCK_TRY(const auto schedule, ranks::overlapped(graph));
  DUNNOCK_TRY(const auto timeline, schedule::simulate(graph, schedule));
  overlap.makespan_ms = timeline.makespan_us() / 1e3;
  overlap.hidden = ranks::hidden_share(graph, schedule, timeline.makespan_us());
  overlap.buckets = layout.buckets.size();
  std::size_t last = 0;
  for (const std::size_t gradient : pass.steps.back().gradients) last += pass.sizes[gradient];
  const double exposed_ms = ranks::all_reduce_us(options.link, last * value_bytes, options.ranks) / 1e3;
  overlap.bound = overlap.communication_ms > 0 ? 1 - exposed_ms / overlap.communication_ms : 1;
  return overlap;
}

}  // namespace dunnock::bench
