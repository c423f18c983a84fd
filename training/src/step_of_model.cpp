#include "step_of_model.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "dunnock/gpu/kernels/optimizer.hpp"
#include "dunnock/gpu/kernels/random.hpp"
#include "dunnock/training/network.hpp"
#include "layers/layers.hpp"
#include "network_inputs.hpp"

namespace dunnock::training {
namespace {

template <class T>
Step estimate(const ModelOptions& model, std::size_t rows, const DeviceRates& rates) {
  Step step = step_of_model<T>(model, rows, false);
  const auto layers = std::visit([](const auto& sizes) { return make_layers<T>(sizes); }, model);
  const double flops_per_us = rates.gflops * 1e3;
  const double bytes_per_us = rates.gb_per_s * 1e3;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    Layer& layer = step.layers[i];
    const double flops_us = layers[i]->flops(rows) / flops_per_us;
    const auto moved_us = [&](std::uint64_t bytes) { return static_cast<double>(bytes) / bytes_per_us; };
    layer.forward.us = rates.launch_us + flops_us + moved_us(layer.kept_bytes + layer.output_bytes);
    if (i > 0) layer.output_gradient.us = layer.forward.us;
    if (layer.gradient_bytes == 0) continue;
    layer.weight_gradient.us =
        rates.launch_us + flops_us + moved_us(layer.kept_for_weights_bytes + layer.gradient_bytes);
    layer.update.us = rates.launch_us + moved_us(2 * layer.weight_bytes);
  }
  return step;
}

/// Microseconds of the median of some rounds of `issue`, each with its `finish`.
template <class Issue, class Finish>
Result<double> median_us(unsigned repeats, const Issue& issue, const Finish& finish) {
  std::vector<double> times;
  for (unsigned i = 0; i <= repeats; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    issue();
    if (const Status done = finish(); !done) return tl::unexpected(done.error());
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
    if (i > 0) times.push_back(took.count());  // The first makes plans.
  }
  std::ranges::nth_element(times, times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2));
  return times[times.size() / 2];
}

template <class T>
Result<Step> profile(gpu::Device device, const ModelOptions& model, std::size_t rows, const OptimizerOptions& optimizer,
                     const ProfileOptions& options) {
  auto main = gpu::Stream::create(device, {.threads = options.threads});
  if (!main) return tl::unexpected(main.error());
  auto side = gpu::Stream::create(device, {.threads = options.threads});
  if (!side) return tl::unexpected(side.error());
  auto network = Network<T>::create(model, {.slots = 1, .rows = rows}, *main);
  if (!network) return tl::unexpected(network.error());
  auto inputs = NetworkInputs<T>::create(model, 1, rows, *main);
  if (!inputs) return tl::unexpected(inputs.error());
  if (const Status filled = inputs->fill_with_noise(1, *main); !filled) return tl::unexpected(filled.error());
  std::vector<gpu::Buffer<std::byte>> workspaces;
  for (gpu::Stream* stream : {&*main, &*side}) {
    auto made = gpu::Buffer<std::byte>::create(std::max<std::size_t>(1, network->workspace_bytes()), *stream);
    if (!made) return tl::unexpected(made.error());
    workspaces.push_back(std::move(*made));
  }
  const MicroBatch<T> batch = inputs->batch(0, rows, 1.0F / static_cast<float>(rows));
  const auto on = [&](gpu::Stream& stream, std::size_t workspace) {
    return NetworkRun<T>{.batch = batch, .workspace = workspaces[workspace].span(), .stream = stream};
  };
  const NetworkRun<T> on_main = on(*main, 0);
  const NetworkRun<T> on_side = on(*side, 1);
  const auto finish = [&]() -> Status {
    if (Status done = main->synchronize(); !done) return done;
    return side->synchronize();
  };
  Step step = step_of_model<T>(model, rows, optimizer.clip > 0);
  const auto idle = median_us(
      options.repeats, [&] { main->run("nothing", [] { return Status(); }); }, finish);
  if (!idle) return tl::unexpected(idle.error());
  const auto measure = [&](Cost& cost, const std::function<void()>& issue) -> Status {
    const auto us = median_us(options.repeats, issue, finish);
    if (!us) return tl::unexpected(us.error());
    cost.us = std::max(0.0, *us - *idle);
    return {};
  };
  const unsigned layers = network->layers();
  for (unsigned i = 0; i < layers; ++i) {
    if (Status done = measure(step.layers[i].forward, [&] { network->forward(i, on_main); }); !done)
      return tl::unexpected(done.error());
  }
  for (unsigned i = layers; i-- > 0;) {
    Layer& layer = step.layers[i];
    if (i > 0) {
      if (Status done = measure(layer.output_gradient, [&] { network->output_gradient(i, on_main); }); !done)
        return tl::unexpected(done.error());
    }
    if (layer.gradient_bytes == 0) continue;
    if (Status done = measure(layer.weight_gradient, [&] { network->weight_gradient(i, on_main); }); !done)
      return tl::unexpected(done.error());
    if (!options.pairs || i == 0) continue;
    // Both ask for the same share of the device, as far as this can tell: together for the shorter's time, slowed down
    // by what they ask for beyond one device.
    const auto both = median_us(
        options.repeats,
        [&] {
          network->output_gradient(i, on_main);
          network->weight_gradient(i, on_side);
        },
        finish);
    if (!both) return tl::unexpected(both.error());
    const double shorter = std::min(layer.output_gradient.us, layer.weight_gradient.us);
    const double longer = std::max(layer.output_gradient.us, layer.weight_gradient.us);
    if (shorter <= 0) continue;
    const double slowdown = std::clamp((*both - *idle - (longer - shorter)) / shorter, 1.0, 2.0);
    layer.output_gradient.demand = layer.weight_gradient.demand = layer.forward.demand = slowdown / 2;
  }
  // Updates move bytes: measured for all weights, and shared by size.
  const Parameters<T>& parameters = network->parameters();
  std::vector<gpu::OptimizerTensor<T>> table;
  double bytes = 0;
  for (std::size_t i = 0; i < parameters.tensors().size(); ++i) {
    if (parameters.tensors()[i].owner) continue;
    table.push_back({.weights = parameters.master(i).device_data(),
                     .first_moment = parameters.first_moment(i).device_data(),
                     .second_moment = parameters.second_moment(i).device_data(),
                     .gradient = parameters.gradient(i).device_data(),
                     .size = parameters.tensors()[i].size});
  }
  const std::size_t chunks = gpu::lay_out<T>(std::span(table));
  auto on_device = gpu::Buffer<gpu::OptimizerTensor<T>>::create(table.size(), *main);
  if (!on_device) return tl::unexpected(on_device.error());
  gpu::upload(on_device->span(), table, *main);
  const gpu::OptimizerTable<T> all{on_device->span(), chunks};
  Cost update;
  if (Status done = measure(update,
                            [&] {
                              if (optimizer.kind == OptimizerKind::kAdamw) {
                                gpu::adamw<T>(all, gpu::AdamwStep{.learning_rate = 0}, {}, *main);
                              } else {
                                gpu::sgd<T>(all, gpu::SgdStep{.learning_rate = 0, .momentum = optimizer.momentum}, {},
                                            *main);
                              }
                            });
      !done)
    return tl::unexpected(done.error());
  for (const Layer& layer : step.layers) bytes += static_cast<double>(layer.weight_bytes);
  for (Layer& layer : step.layers)
    layer.update.us = bytes > 0 ? update.us * static_cast<double>(layer.weight_bytes) / bytes : 0;
  return step;
}

}  // namespace

template <class T>
Step step_of_model(const ModelOptions& model, std::size_t rows, bool clips) {
  const auto layers = std::visit([](const auto& sizes) { return make_layers<T>(sizes); }, model);
  Step step{.name = to_string(model), .clips = clips};
  std::map<std::string, unsigned> owners;
  for (unsigned i = 0; i < layers.size(); ++i) {
    const LayerBytes bytes = layers[i]->bytes(rows);
    Layer layer{.name = layers[i]->name(),
                .block = layers[i]->block(),
                .output_bytes = bytes.output,
                .kept_bytes = bytes.kept,
                .kept_for_weights_bytes = bytes.kept_for_weights,
                .weights_behind_output = layers[i]->weights_behind_output()};
    for (const ParameterSpec& spec : layers[i]->parameters()) {
      layer.gradient_bytes += aligned_values(spec.size()) * sizeof(T);
      if (spec.tied) {
        layer.tied_to = owners.at(spec.name);
        continue;
      }
      owners.emplace(spec.name, i);
      // Masters, moments, and the copies that kernels read.
      layer.weight_bytes += aligned_values(spec.size()) * (12 + (sizeof(T) == 4 ? 0 : sizeof(T)));
    }
    step.layers.push_back(layer);
  }
  return step;
}
template Step step_of_model<float>(const ModelOptions&, std::size_t, bool);
template Step step_of_model<gpu::Bf16>(const ModelOptions&, std::size_t, bool);

Step estimate_step(const ModelOptions& model, DataType type, std::size_t rows, const DeviceRates& rates) {
  return type == DataType::kF32 ? estimate<float>(model, rows, rates) : estimate<gpu::Bf16>(model, rows, rates);
}

Result<Step> profile_step(gpu::Device device, const ModelOptions& model, DataType type, std::size_t rows,
                          const OptimizerOptions& optimizer, const ProfileOptions& options) {
  if (rows == 0) return make_error(ErrorCode::kInvalidArgument, "a micro-batch has rows");
  if (options.repeats == 0) return make_error(ErrorCode::kInvalidArgument, "a measurement is repeated");
  if (const Status sound = check(model); !sound) return tl::unexpected(sound.error());
  return type == DataType::kF32 ? profile<float>(device, model, rows, optimizer, options)
                                : profile<gpu::Bf16>(device, model, rows, optimizer, options);
}

}  // namespace dunnock::training
