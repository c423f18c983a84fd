// Updater: from gradients to weights. Ties, the norm of all gradients, clipping, and AdamW or SGD, layer by layer.
//
//   norm(iteration)             ties, the norm over all stages, and the factor of clipping    only if gradients are
//   clipped update(iteration, layers)   ties (unless norm() has added them), then the optimizer       layers that the
//   policy
//                                                                                             passes over stay as they
//                                                                                             are
#pragma once

#include <algorithm>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/base/check.hpp"
#include "dunnock/kernels/elementwise.hpp"
#include "dunnock/kernels/optimizer.hpp"
#include "dunnock/kernels/reduce.hpp"
#include "dunnock/model/network.hpp"
#include "place.hpp"

namespace dunnock::training {

/// Threads: norm() and update() are called where operations are issued; prepare() and norms() between runs.
template <class T>
class Updater {
 public:
  Updater(const Place& place, model::Network<T>& network) : place_(place), network_(network) {}
  Updater(const Updater&) = delete;
  Updater& operator=(const Updater&) = delete;

  /// After the network is there. Errors: NoSpace, Device.
  [[nodiscard]] Status set_up(device::Stream& main) {
    const unsigned window = place_.window();
    DUNNOCK_TRY(make_buffer(adamw_steps_, window, main));
    DUNNOCK_TRY(make_buffer(sgd_steps_, window, main));
    DUNNOCK_TRY(make_buffer(norms_, window, main));
    DUNNOCK_TRY(make_buffer(factors_, window, main));
    DUNNOCK_TRY(make_buffer(stage_norms_, place_.stages(), main));
    std::vector<kernels::ReduceTensor<float>> counted;
    DUNNOCK_TRY(make_tables(counted, main));
    norm_chunks_ = kernels::lay_out<float>(std::span(counted));
    DUNNOCK_TRY(make_buffer(norm_table_, counted.size(), main));
    device::upload(norm_table_.span(), counted, main);
    std::vector<kernels::ReduceTensor<float>> stages{{stage_norms_.span().device_data(), stage_norms_.size()}};
    stage_norm_chunks_ = kernels::lay_out<float>(std::span(stages));
    DUNNOCK_TRY(make_buffer(stage_norm_table_, stages.size(), main));
    device::upload(stage_norm_table_.span(), stages, main);
    DUNNOCK_TRY(make_buffer(norm_workspace_, norm_chunks_ + stage_norm_chunks_, main));
    return main.synchronize();  // `counted` and `stages` must outlive the copies from them.
  }

  /// Uploads the settings of the steps of a window, which begins after `steps_done` updates.
  void prepare(std::span<const StepInput> steps, std::uint64_t steps_done, device::Stream& main) {
    const OptimizerOptions& optimizer = place_.options.optimizer;
    steps_done_ = steps_done;
    adamw_settings_.clear();
    sgd_settings_.clear();
    for (std::size_t t = 0; t < steps.size(); ++t) {
      adamw_settings_.push_back({.learning_rate = steps[t].learning_rate,
                                 .beta1 = optimizer.beta1,
                                 .beta2 = optimizer.beta2,
                                 .epsilon = optimizer.epsilon,
                                 .step = steps_done + t + 1});
      sgd_settings_.push_back({steps[t].learning_rate, optimizer.momentum, optimizer.nesterov});
    }
    device::upload(adamw_steps_.span().subspan(0, steps.size()), adamw_settings_, main);
    device::upload(sgd_steps_.span().subspan(0, steps.size()), sgd_settings_, main);
  }

  /// Whether the layer trains in this iteration of the window.
  [[nodiscard]] bool trains(unsigned layer, unsigned iteration) const {
    return place_.trains(layer, steps_done_ + iteration + 1);
  }

  void norm(unsigned iteration, device::Stream& stream) {
    add_ties(0, network_.layers(), stream);
    const device::Span<float> result = norms_.span().subspan(iteration, 1);
    kernels::run(
        kernels::GradientNorm<float>{
            .table = {norm_table_.span(), norm_chunks_}, .norm = result, .workspace = norm_workspace_.span()},
        stream);
    if (place_.stages() > 1) {
      place_.ranks.pipeline_sums->template all_gather<float>(result, stage_norms_.span(), stream);
      kernels::run(kernels::GradientNorm<float>{.table = {stage_norm_table_.span(), stage_norm_chunks_},
                                                .norm = result,
                                                .workspace = norm_workspace_.span()},
                   stream);
    }
    kernels::run(
        kernels::ClipFactor{
            .norm = result, .norm_max = place_.options.optimizer.clip, .factor = factors_.span().subspan(iteration, 1)},
        stream);
  }

  /// Updates the layers begin .. end - 1.
  void update(unsigned iteration, unsigned begin, unsigned end, device::Stream& stream) {
    if (!place_.clips()) add_ties(begin, end, stream);
    const device::Span<const float> factor =
        place_.clips() ? factors_.span().subspan(iteration, 1) : device::Span<float>();
    for (unsigned l = begin; l < end; ++l) {
      for (const Table& table : tables_[l]) {
        if (trains(table.trains_with, iteration)) step(table, iteration, factor, stream);
      }
    }
  }

  /// The norms of the last window's iterations, in device memory; only if gradients are clipped.
  [[nodiscard]] device::Span<const float> norms(unsigned iterations) const {
    return norms_.span().subspan(0, iterations);
  }

 private:
  /// Tensors of a layer, which are updated by one launch.
  struct Table {
    device::Buffer<kernels::OptimizerTensor<float>> tensors;
    std::size_t chunks = 0;
    unsigned trains_with = 0;  // The layer whose policy they follow.
  };

  void step(const Table& table, unsigned iteration, device::Span<const float> factor, device::Stream& stream) {
    const kernels::OptimizerTable<float> all{table.tensors.span(), table.chunks};
    if (place_.options.optimizer.kind == OptimizerKind::kAdamw) {
      kernels::run(
          kernels::AdamwFromDevice<float>{
              .table = all, .step = adamw_steps_.span().subspan(iteration, 1), .factor = factor},
          stream);
    } else {
      kernels::run(
          kernels::SgdFromDevice<float>{
              .table = all, .step = sgd_steps_.span().subspan(iteration, 1), .factor = factor},
          stream);
    }
  }

  /// Makes the tables, and collects the tensors that count in the norm.
  Status make_tables(std::vector<kernels::ReduceTensor<float>>& counted, device::Stream& main) {
    const model::Parameters<T>& parameters = network_.parameters();
    tables_.resize(network_.layers());
    std::size_t largest_tie = 0;
    for (unsigned l = 0; l < network_.layers(); ++l) {
      // By the layer that they train with: a copy of another stage's tensor follows the layer that owns it.
      std::map<unsigned, std::vector<kernels::OptimizerTensor<float>>> tables;
      const auto [first, last] = parameters.of_layer(l);
      for (std::size_t i = first; i < last; ++i) {
        const auto& tensor = parameters.tensors()[i];
        if (tensor.far_tie) largest_tie = std::max(largest_tie, tensor.size);
        if (tensor.owner) continue;
        kernels::OptimizerTensor<float> entry{.weights = parameters.master(i).device_data(),
                                              .first_moment = parameters.first_moment(i).device_data(),
                                              .second_moment = parameters.second_moment(i).device_data(),
                                              .gradient = parameters.gradient(i).device_data(),
                                              .size = tensor.size,
                                              .decay = tensor.spec.decays ? place_.options.optimizer.weight_decay : 0};
        if constexpr (!std::is_same_v<T, float>) entry.copy = parameters.weight(i).device_data();
        tables[tensor.spec.tied ? owner_of(tensor.spec.name) : l].push_back(entry);
        // A tensor that is tied to another stage's counts there.
        if (!tensor.spec.tied) counted.push_back({parameters.gradient(i).device_data(), tensor.size});
      }
      for (auto& [layer, table] : tables) {
        Table made{.tensors = {}, .chunks = kernels::lay_out<float>(std::span(table)), .trains_with = layer};
        DUNNOCK_TRY(make_buffer(made.tensors, table.size(), main));
        device::upload(made.tensors.span(), table, main);
        tables_[l].push_back(std::move(made));
      }
      DUNNOCK_TRY(main.synchronize());  // `tables` must outlive the copies from them.
    }
    return largest_tie > 0 ? make_buffer(other_end_, largest_tie, main) : Status();
  }

  /// The layer that owns a tensor, which may be another stage's.
  [[nodiscard]] unsigned owner_of(const std::string& name) const {
    unsigned owner = network_.layers();
    for (unsigned l = network_.layers(); l-- > 0;) {
      for (const model::ParameterSpec& spec : network_.layer(l).parameters()) {
        if (!spec.tied && spec.name == name) owner = l;
      }
    }
    DUNNOCK_CHECK(owner < network_.layers(), "a tie has an owner");
    return owner;
  }

  /// The gradients of tied tensors become the sum of both ends', on both.
  void add_ties(unsigned begin, unsigned end, device::Stream& stream) {
    const model::Parameters<T>& parameters = network_.parameters();
    for (unsigned l = begin; l < end; ++l) {
      const auto [first, last] = parameters.of_layer(l);
      for (std::size_t i = first; i < last; ++i) {
        const auto& tensor = parameters.tensors()[i];
        const device::Span<float> mine = parameters.gradient(i);
        if (tensor.tied)
          kernels::run(
              kernels::AddScaled<float>{.a = mine, .b = parameters.gradient(*tensor.tied), .factor = 1, .y = mine},
              stream);
        if (!tensor.far_tie) continue;
        const device::Span<float> theirs = other_end_.span().subspan(0, tensor.size);
        const unsigned me = place_.stage();
        // GPT's table, which the first layer owns and the last uses.
        const unsigned peer = tensor.spec.tied ? place_.first_stage() : place_.last_stage();
        ranks::Communicator& sums = *place_.ranks.pipeline_sums;
        if (me < peer) sums.send<float>(mine, peer, stream);
        sums.receive<float>(theirs, peer, stream);
        if (me > peer) sums.send<float>(mine, peer, stream);
        kernels::run(kernels::AddScaled<float>{.a = mine, .b = theirs, .factor = 1, .y = mine}, stream);
      }
    }
  }

  const Place& place_;
  model::Network<T>& network_;
  std::uint64_t steps_done_ = 0;                    // Before the window that runs.
  std::vector<std::vector<Table>> tables_;          // [layer]
  std::vector<kernels::AdamwStep> adamw_settings_;  // [iteration]; copied when their turn comes
  std::vector<kernels::SgdStep> sgd_settings_;
  device::Buffer<kernels::AdamwStep> adamw_steps_;  // (window), as what follows
  device::Buffer<kernels::SgdStep> sgd_steps_;
  device::Buffer<float> norms_;
  device::Buffer<float> factors_;
  device::Buffer<float> stage_norms_;  // (stages)
  device::Buffer<kernels::ReduceTensor<float>> norm_table_;
  std::size_t norm_chunks_ = 0;
  device::Buffer<kernels::ReduceTensor<float>> stage_norm_table_;
  std::size_t stage_norm_chunks_ = 0;
  device::Buffer<float> norm_workspace_;
  device::Buffer<float> other_end_;  // The gradient of the other end of a tie to another stage.
};

}  // namespace dunnock::training
