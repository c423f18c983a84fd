#include "step_of_model.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "dunnock/kernels/optimizer.hpp"
#include "dunnock/kernels/random.hpp"
#include "dunnock/model/network.hpp"
#include "network_inputs.hpp"

namespace dunnock::training {
namespace {

template <class T>
Step estimate(const model::ModelOptions& model, std::size_t rows, const DeviceRates& rates) {
  Step step = step_of_model<T>(model, rows, false);
  const auto layers = model::layers_of<T>(model);
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

double median_of(std::vector<double> values) {
  std::ranges::nth_element(values, values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2));
  return values[values.size() / 2];
}

/// Two points in a stream, and the time between them.
struct Span {
  device::Event begin;
  device::Event end;
  [[nodiscard]] double us() const { return 1e3 * end.ms_since(begin); }
};
Result<Span> make_span(device::Device device) {
  DUNNOCK_TRY(auto begin, device::Event::create(device));
  DUNNOCK_TRY(auto end, device::Event::create(device));
  return Span{std::move(begin), std::move(end)};
}

/// Times operations in the order and in the company that a step has them: a value that an operation reads is as far
/// away as it is there, which repeating the operation alone would hide.
template <class T>
class Profiler {
 public:
  static Result<Step> run(device::Device device, const model::ModelOptions& model, std::size_t rows,
                          const OptimizerOptions& optimizer, const ProfileOptions& options) {
    Profiler profiler(options);
    DUNNOCK_TRY(profiler.make(device, model, rows, optimizer));
    Step step = step_of_model<T>(model, rows, optimizer.clip > 0);
    DUNNOCK_TRY(profiler.passes(step));
    if (options.pairs) {
      DUNNOCK_TRY(profiler.pairs(step));
    }
    return step;
  }

 private:
  explicit Profiler(const ProfileOptions& options) : options_(options) {}

  Status make(device::Device device, const model::ModelOptions& model, std::size_t rows,
              const OptimizerOptions& optimizer) {
    rows_ = rows;
    optimizer_ = optimizer;
    for (int i = 0; i < 2; ++i) {
      DUNNOCK_TRY(auto stream, device::Stream::create(device, {.threads = options_.threads}));
      streams_.push_back(std::move(stream));
    }
    DUNNOCK_TRY(auto network,
                model::Network<T>::create(model, {.slots = options_.micro_batches, .rows = rows}, streams_[0]));
    network_ = std::move(network);
    DUNNOCK_TRY(auto inputs, NetworkInputs<T>::create(model, options_.micro_batches, rows, streams_[0]));
    inputs_ = std::move(inputs);
    DUNNOCK_TRY(inputs_.fill_with_noise(options_.micro_batches, streams_[0]));
    for (device::Stream& stream : streams_) {
      DUNNOCK_TRY(auto made,
                  device::Buffer<std::byte>::create(std::max<std::size_t>(1, network_.workspace_bytes()), stream));
      workspaces_.push_back(std::move(made));
    }
    // Of a micro-batch: forward, dO and dW of each layer; then one of the update.
    for (std::size_t i = 0; i <= std::size_t{3} * network_.layers() * options_.micro_batches; ++i) {
      DUNNOCK_TRY(auto span, make_span(device));
      spans_.push_back(std::move(span));
    }
    return make_table();
  }

  /// Updates move bytes: measured for all weights.
  Status make_table() {
    const model::Parameters<T>& parameters = network_.parameters();
    std::vector<kernels::OptimizerTensor<float>> table;
    for (std::size_t i = 0; i < parameters.tensors().size(); ++i) {
      if (parameters.tensors()[i].owner) continue;
      kernels::OptimizerTensor<float> entry{.weights = parameters.master(i).device_data(),
                                            .first_moment = parameters.first_moment(i).device_data(),
                                            .second_moment = parameters.second_moment(i).device_data(),
                                            .gradient = parameters.gradient(i).device_data(),
                                            .size = parameters.tensors()[i].size};
      if constexpr (!std::is_same_v<T, float>) entry.copy = parameters.weight(i).device_data();
      table.push_back(entry);
    }
    chunks_ = kernels::lay_out<float>(std::span(table));
    DUNNOCK_TRY(auto on_device, device::Buffer<kernels::OptimizerTensor<float>>::create(table.size(), streams_[0]));
    table_ = std::move(on_device);
    device::upload(table_.span(), table, streams_[0]);
    return streams_[0].synchronize();  // For `table` goes.
  }

  [[nodiscard]] model::NetworkRun<T> on(std::size_t stream, const model::MicroBatch<T>& batch, unsigned micro_batch) {
    return {.batch = batch,
            .slot = micro_batch,
            .adds = micro_batch > 0,
            .workspace = workspaces_[stream].span(),
            .stream = streams_[stream]};
  }
  [[nodiscard]] model::MicroBatch<T> batch(unsigned micro_batch) const {
    return inputs_.batch(micro_batch, rows_, 1.0F / static_cast<float>(rows_));
  }
  void update() {
    const kernels::OptimizerTable<float> all{table_.span(), chunks_};
    if (optimizer_.kind == OptimizerKind::kAdamw) {
      kernels::run(kernels::Adamw<float>{.table = all, .step = kernels::AdamwStep{.learning_rate = 0}, .factor = {}},
                   streams_[0]);
    } else {
      kernels::run(kernels::Sgd<float>{.table = all,
                                       .step = kernels::SgdStep{.learning_rate = 0, .momentum = optimizer_.momentum},
                                       .factor = {}},
                   streams_[0]);
    }
  }

  /// All forwards, then all gradients; the median of all micro-batches and repeats.
  Status passes(Step& step) {
    const unsigned layers = network_.layers();
    device::Stream& main = streams_[0];
    std::vector<std::vector<double>> times(std::size_t{3} * layers + 1);
    for (unsigned repeat = 0; repeat <= options_.repeats; ++repeat) {
      std::vector<std::size_t> what;  // [span]
      const auto timed = [&](std::size_t index, const auto& issue) {
        main.record(spans_[what.size()].begin);
        issue();
        main.record(spans_[what.size()].end);
        what.push_back(index);
      };
      std::vector<model::MicroBatch<T>> batches;
      for (unsigned m = 0; m < options_.micro_batches; ++m) batches.push_back(batch(m));
      for (unsigned m = 0; m < options_.micro_batches; ++m) {
        const model::NetworkRun<T> run = on(0, batches[m], m);
        for (unsigned i = 0; i < layers; ++i) timed(std::size_t{3} * i, [&] { network_.forward(i, run); });
      }
      for (unsigned m = 0; m < options_.micro_batches; ++m) {
        const model::NetworkRun<T> run = on(0, batches[m], m);
        for (unsigned i = layers; i-- > 0;) {
          if (i > 0) timed(std::size_t{3} * i + 1, [&] { network_.output_gradient(i, run); });
          if (step.layers[i].gradient_bytes > 0)
            timed(std::size_t{3} * i + 2, [&] { network_.weight_gradient(i, run); });
        }
      }
      timed(times.size() - 1, [&] { update(); });
      DUNNOCK_TRY(main.synchronize());
      if (repeat == 0) continue;  // The first makes plans.
      for (std::size_t s = 0; s < what.size(); ++s) times[what[s]].push_back(spans_[s].us());
    }
    const auto cost = [&](std::size_t index) { return times[index].empty() ? 0 : median_of(times[index]); };
    double bytes = 0;
    for (const Layer& layer : step.layers) bytes += static_cast<double>(layer.weight_bytes);
    for (unsigned i = 0; i < layers; ++i) {
      Layer& layer = step.layers[i];
      layer.forward.us = cost(std::size_t{3} * i);
      layer.output_gradient.us = cost(std::size_t{3} * i + 1);
      layer.weight_gradient.us = cost(std::size_t{3} * i + 2);
      layer.update.us = bytes > 0 ? cost(times.size() - 1) * static_cast<double>(layer.weight_bytes) / bytes : 0;
    }
    return {};
  }

  /// dW beside the dO of the layer below, for its own may write what dW reads. Both ask for the same share of the
  /// device, as far as this can tell: together for the shorter's time, slowed down by what they ask for beyond one
  /// device. The last layer's dO and forward are taken to ask for what its dW does.
  Status pairs(Step& step) {
    const model::MicroBatch<T> some = batch(0);
    const model::NetworkRun<T> on_main = on(0, some, 0);
    const model::NetworkRun<T> on_side = on(1, some, 0);
    for (unsigned i = network_.layers(); i-- > 2;) {
      Layer& layer = step.layers[i];
      Layer& below = step.layers[i - 1];
      if (layer.gradient_bytes == 0) continue;
      std::vector<double> output;
      std::vector<double> weight;
      std::vector<double> both;
      for (unsigned repeat = 0; repeat <= options_.repeats; ++repeat) {
        const auto alone = [&](const auto& issue, std::vector<double>& times) -> Status {
          streams_[0].record(spans_[0].begin);
          issue();
          streams_[0].record(spans_[0].end);
          DUNNOCK_TRY(streams_[0].synchronize());
          if (repeat > 0) times.push_back(spans_[0].us());
          return {};
        };
        if (Status done = alone([&] { network_.output_gradient(i - 1, on_main); }, output); !done) return done;
        if (Status done = alone([&] { network_.weight_gradient(i, on_main); }, weight); !done) return done;
        streams_[0].record(spans_[0].begin);
        streams_[1].wait(spans_[0].begin);
        network_.output_gradient(i - 1, on_main);
        network_.weight_gradient(i, on_side);
        streams_[1].record(spans_[1].end);
        streams_[0].wait(spans_[1].end);
        streams_[0].record(spans_[0].end);
        for (device::Stream& stream : streams_) {
          DUNNOCK_TRY(stream.synchronize());
        }
        if (repeat > 0) both.push_back(spans_[0].us());
      }
      const double shorter = std::min(median_of(output), median_of(weight));
      const double longer = std::max(median_of(output), median_of(weight));
      if (shorter <= 0) continue;
      const double slowdown = std::clamp((median_of(both) - (longer - shorter)) / shorter, 1.0, 2.0);
      layer.weight_gradient.demand = below.output_gradient.demand = below.forward.demand = slowdown / 2;
      if (i + 1 == network_.layers()) layer.output_gradient.demand = layer.forward.demand = slowdown / 2;
    }
    return {};
  }

  ProfileOptions options_;
  OptimizerOptions optimizer_;
  std::size_t rows_ = 0;
  std::vector<device::Stream> streams_;
  model::Network<T> network_;
  NetworkInputs<T> inputs_;
  std::vector<device::Buffer<std::byte>> workspaces_;  // [stream]
  std::vector<Span> spans_;
  device::Buffer<kernels::OptimizerTensor<float>> table_;
  std::size_t chunks_ = 0;
};

}  // namespace

template <class T>
Step step_of_model(const model::ModelOptions& model, std::size_t rows, bool clips) {
  const auto layers = model::layers_of<T>(model);
  Step step{.name = to_string(model), .clips = clips};
  std::map<std::string, unsigned> owners;
  for (unsigned i = 0; i < layers.size(); ++i) {
    const model::LayerBytes bytes = layers[i]->bytes(rows);
    Layer layer{.name = layers[i]->name(),
                .block = layers[i]->block(),
                .output_bytes = bytes.output,
                .kept_bytes = bytes.kept,
                .kept_for_weights_bytes = bytes.kept_for_weights,
                .weights_behind_output = layers[i]->weights_behind_output()};
    for (const model::ParameterSpec& spec : layers[i]->parameters()) {
      layer.gradient_bytes += model::aligned_values(spec.size()) * sizeof(float);
      if (spec.tied) {
        layer.tied_to = owners.at(spec.name);
        continue;
      }
      owners.emplace(spec.name, i);
      // Masters, moments, and the copies that kernels read.
      layer.weight_bytes += model::aligned_values(spec.size()) * (12 + (sizeof(T) == 4 ? 0 : sizeof(T)));
    }
    step.layers.push_back(layer);
  }
  return step;
}
template Step step_of_model<float>(const model::ModelOptions&, std::size_t, bool);
template Step step_of_model<device::Bf16>(const model::ModelOptions&, std::size_t, bool);

Step estimate_step(const model::ModelOptions& model, model::DataType type, std::size_t rows, const DeviceRates& rates) {
  return type == model::DataType::kF32 ? estimate<float>(model, rows, rates)
                                       : estimate<device::Bf16>(model, rows, rates);
}

Result<Step> profile_step(device::Device device, const model::ModelOptions& model, model::DataType type,
                          std::size_t rows, const OptimizerOptions& optimizer, const ProfileOptions& options) {
  if (rows == 0) return make_error(ErrorCode::kInvalidArgument, "a micro-batch needs at least one row");
  if (options.repeats == 0) return make_error(ErrorCode::kInvalidArgument, "a measurement needs at least one repeat");
  DUNNOCK_TRY(check(model));
  if (options.micro_batches == 0)
    return make_error(ErrorCode::kInvalidArgument, "a step needs at least one micro-batch");
  return type == model::DataType::kF32 ? Profiler<float>::run(device, model, rows, optimizer, options)
                                       : Profiler<device::Bf16>::run(device, model, rows, optimizer, options);
}

}  // namespace dunnock::training
