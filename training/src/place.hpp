// Place: what all parts of a trainer know of the run, and of this rank's place in it.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/model/models.hpp"
#include "dunnock/training/schedules.hpp"
#include "dunnock/training/trainer.hpp"

namespace dunnock::training {

[[nodiscard]] inline tl::unexpected<Error> invalid(std::string what) {
  return make_error(ErrorCode::kInvalidArgument, std::move(what));
}

/// A buffer of device memory, in the place of an empty one.
template <class U>
[[nodiscard]] Status make_buffer(device::Buffer<U>& buffer, std::size_t size, device::Stream& stream) {
  DUNNOCK_TRY(auto made, device::Buffer<U>::create(size, stream));
  buffer = std::move(made);
  return {};
}

struct Place {
  TrainerOptions options;
  Ranks ranks;
  Family family = Family::kOneDevice;
  std::vector<unsigned> stage_of_layer;  // Of a pipeline.

  [[nodiscard]] bool is_pipeline() const noexcept { return family == Family::kPipeline; }
  [[nodiscard]] unsigned stages() const { return size_of(ranks.pipeline); }
  [[nodiscard]] unsigned stage() const { return rank_of(ranks.pipeline); }
  [[nodiscard]] unsigned data_ranks() const { return size_of(ranks.data); }
  [[nodiscard]] unsigned data_rank() const { return rank_of(ranks.data); }
  [[nodiscard]] unsigned stage_of(unsigned layer) const { return is_pipeline() ? stage_of_layer[layer] : 0; }
  [[nodiscard]] unsigned first_stage() const { return stage_of_layer.front(); }
  [[nodiscard]] unsigned last_stage() const { return stage_of_layer.back(); }

  /// Plans of pipelines have the micro-batches. For other plans, all micro-batches but the last run before the plan.
  [[nodiscard]] bool accumulates_apart() const { return !is_pipeline() && options.micro_batches > 1; }
  /// The number of steps that are issued at once.
  [[nodiscard]] unsigned window() const { return accumulates_apart() ? 1 : options.window; }
  [[nodiscard]] std::size_t step_rows() const { return options.rows * options.micro_batches; }
  [[nodiscard]] float gradient_factor() const {
    return 1.0F / static_cast<float>(step_rows() * input_sizes(options.model).targets);
  }
  [[nodiscard]] bool clips() const { return options.optimizer.clip > 0; }
  /// Whether the policy lets the layer train in this step (counted from 1).
  [[nodiscard]] bool trains(unsigned layer, std::uint64_t step) const {
    return options.policy == nullptr || options.policy->trains(layer, step);
  }

 private:
  static unsigned size_of(const ranks::Communicator* group) { return group == nullptr ? 1 : group->size(); }
  static unsigned rank_of(const ranks::Communicator* group) { return group == nullptr ? 0 : group->rank(); }
};

}  // namespace dunnock::training
