// Evaluator: forward passes without a plan, for losses, hits and logits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "dunnock/kernels/reduce.hpp"
#include "dunnock/model/network.hpp"
#include "network_inputs.hpp"
#include "place.hpp"

namespace dunnock::training {

/// Whether a step's or an evaluation's input has `rows` rows that the model knows. Errors: InvalidArgument.
[[nodiscard]] inline Status check_input(const StepInput& input, std::size_t rows, const model::InputSizes& sizes) {
  const auto wrong = [](const char* what, std::size_t is, std::size_t wanted) {
    return invalid("a step needs " + std::to_string(wanted) + " " + what + ", not " + std::to_string(is));
  };
  if (input.images.size() != rows * sizes.values)
    return wrong("image values", input.images.size(), rows * sizes.values);
  if (input.tokens.size() != rows * sizes.tokens) return wrong("tokens", input.tokens.size(), rows * sizes.tokens);
  if (input.targets.size() != rows * sizes.targets) return wrong("targets", input.targets.size(), rows * sizes.targets);
  const auto unknown = [&](std::int32_t number) {
    return number < 0 || static_cast<std::size_t>(number) >= sizes.classes;
  };
  if (const auto bad = std::ranges::find_if(input.tokens, unknown); bad != input.tokens.end())
    return invalid("token " + std::to_string(*bad) + " is out of range: the vocabulary has " +
                   std::to_string(sizes.classes) + " tokens");
  if (const auto bad = std::ranges::find_if(input.targets, unknown); bad != input.targets.end())
    return invalid("target " + std::to_string(*bad) + " is out of range: the number of classes is " +
                   std::to_string(sizes.classes));
  return {};
}

/// Threads: as Trainer; nothing else may run.
template <class T>
class Evaluator {
 public:
  Evaluator(const Place& place, model::Network<T>& network) : place_(place), network_(network) {}
  Evaluator(const Evaluator&) = delete;
  Evaluator& operator=(const Evaluator&) = delete;

  /// After the network is there. Errors: NoSpace, Device.
  [[nodiscard]] Status set_up(device::Stream& main) {
    const TrainerOptions& options = place_.options;
    DUNNOCK_TRY(auto inputs, NetworkInputs<T>::create(options.model, 1, options.rows, main));
    inputs_ = std::move(inputs);
    DUNNOCK_TRY(make_buffer(results_, 2, main));
    return make_buffer(guesses_, options.rows * inputs_.sizes().targets, main);
  }

  /// See Trainer::evaluate().
  [[nodiscard]] Result<Evaluation> evaluate(const StepInput& input, device::Span<std::byte> workspace,
                                            device::Stream& main) {
    const model::InputSizes& sizes = inputs_.sizes();
    const std::size_t rows = input.targets.size() / sizes.targets;
    Evaluation sum;
    for (std::size_t done = 0; done < rows; done += place_.options.rows) {
      const std::size_t some = std::min(place_.options.rows, rows - done);
      const auto part = [&](auto values, std::size_t per_row) {
        return values.subspan(done * per_row, some * per_row);
      };
      const StepInput chunk{.images = part(input.images, sizes.values),
                            .tokens = part(input.tokens, sizes.tokens),
                            .targets = part(input.targets, sizes.targets)};
      DUNNOCK_TRY(evaluate_some(chunk, some, sum, workspace, main));
    }
    return sum;
  }

  /// The logits of one row: (classes), or (context, vocabulary).
  [[nodiscard]] Result<std::vector<float>> logits(const StepInput& row, device::Span<std::byte> workspace,
                                                  device::Stream& main) {
    inputs_.upload(0, 1, row, main);
    forward(1, workspace, main);
    const std::size_t count = inputs_.sizes().targets * inputs_.sizes().classes;
    std::vector<T> values(count);
    device::download(std::span(values), network_.logits(0).subspan(0, count), main);
    DUNNOCK_TRY(main.synchronize());
    std::vector<float> floats(count);
    std::ranges::transform(values, floats.begin(), [](T value) { return static_cast<float>(value); });
    return floats;
  }

 private:
  /// On the first slot; values of other stages are sent and received where they are due.
  void forward(std::size_t rows, device::Span<std::byte> workspace, device::Stream& main) {
    const model::MicroBatch<T> batch = inputs_.batch(0, rows, 1);
    const model::NetworkRun<T> run{
        .batch = batch, .slot = 0, .adds = false, .training = false, .workspace = workspace, .stream = main};
    ranks::Communicator* const pipeline = place_.ranks.pipeline;
    for (unsigned l = 0; l < network_.layers(); ++l) {
      if (network_.held(l)) network_.forward(l, run);
      if (l + 1 == network_.layers() || place_.stage_of(l) == place_.stage_of(l + 1)) continue;
      if (network_.held(l)) pipeline->send<T>(network_.value(l, 0, rows), place_.stage_of(l + 1), main);
      if (network_.held(l + 1)) pipeline->receive<T>(network_.value(l, 0, rows), place_.stage_of(l), main);
    }
  }

  Status evaluate_some(const StepInput& input, std::size_t rows, Evaluation& sum, device::Span<std::byte> workspace,
                       device::Stream& main) {
    inputs_.upload(0, rows, input, main);
    forward(rows, workspace, main);
    const model::InputSizes& sizes = inputs_.sizes();
    const std::size_t targets = rows * sizes.targets;
    std::vector<float> losses(targets);
    std::vector<std::int32_t> guesses(targets);
    double results[2] = {};  // The sum of the losses, and the number of hits.
    if (network_.held(network_.layers() - 1)) {
      kernels::run(kernels::ArgmaxRows<T>{.x = network_.logits(0).subspan(0, targets * sizes.classes),
                                          .indices = guesses_.span().subspan(0, targets),
                                          .values = {},
                                          .shape = {.rows = targets, .columns = sizes.classes}},
                   main);
      device::download(std::span(losses), inputs_.losses(0, rows), main);
      device::download(std::span(guesses), guesses_.span().subspan(0, targets), main);
      DUNNOCK_TRY(main.synchronize());
      results[0] = std::accumulate(losses.begin(), losses.end(), 0.0);
      for (std::size_t i = 0; i < targets; ++i) results[1] += guesses[i] == input.targets[i] ? 1 : 0;
    }
    if (place_.stages() > 1) {
      const auto bytes = std::as_writable_bytes(std::span(results));
      const device::Span<std::byte> on_device(reinterpret_cast<std::byte*>(results_.span().device_data()),
                                              bytes.size());
      device::upload(on_device, bytes, main);
      place_.ranks.pipeline->template broadcast<std::byte>(on_device, place_.last_stage(), main);
      device::download(bytes, on_device, main);
    }
    DUNNOCK_TRY(main.synchronize());
    sum.loss += results[0];
    sum.correct += static_cast<std::size_t>(results[1]);
    sum.targets += targets;
    return {};
  }

  const Place& place_;
  model::Network<T>& network_;
  NetworkInputs<T> inputs_;               // One micro-batch.
  device::Buffer<double> results_;        // (2)
  device::Buffer<std::int32_t> guesses_;  // (rows * targets per row)
};

}  // namespace dunnock::training
