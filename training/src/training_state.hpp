// The state that training changes: tensors in place, names of the whole model's, and their way to and from rank 0.
#pragma once

#include <algorithm>
#include <functional>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "dunnock/model/network.hpp"
#include "place.hpp"

namespace dunnock::training {

/// The moments that the optimizer keeps per weight.
struct Moments {
  bool first = false;
  bool second = false;
};
[[nodiscard]] inline Moments moments_of(const OptimizerOptions& optimizer) {
  const bool adamw = optimizer.kind == OptimizerKind::kAdamw;
  return {.first = adamw || optimizer.momentum != 0, .second = adamw};
}

[[nodiscard]] inline std::size_t values_of(const model::StateTensor& tensor) {
  return std::accumulate(tensor.shape.begin(), tensor.shape.end(), std::size_t{1}, std::multiplies<>());
}

/// A view of a network's state. Threads: none may train meanwhile, unless updates are held.
template <class T>
class TrainingState {
 public:
  using What = model::StateTensor::What;

  TrainingState(const Place& place, const model::Network<T>& network) : place_(place), network_(network) {}

  /// What this rank holds, in place.
  [[nodiscard]] std::vector<model::StateTensor> held() const {
    std::vector<model::StateTensor> state;
    const Moments moments = moments_of(place_.options.optimizer);
    const model::Parameters<T>& parameters = network_.parameters();
    const auto add = [&](std::size_t i, What what, device::Span<float> values) {
      const model::ParameterSpec& spec = parameters.tensors()[i].spec;
      state.push_back({spec.name, what, spec.shape, spec.positions, values});
    };
    for (std::size_t i = 0; i < parameters.tensors().size(); ++i) {
      if (parameters.tensors()[i].owner) continue;
      add(i, What::kWeight, parameters.master(i));
      if (moments.first) add(i, What::kFirstMoment, parameters.first_moment(i));
      if (moments.second) add(i, What::kSecondMoment, parameters.second_moment(i));
    }
    for (std::size_t i = 0; i < parameters.states().size(); ++i) {
      const model::StateSpec& spec = parameters.states()[i].spec;
      state.push_back({spec.name, What::kStatistic, {spec.size}, 1, parameters.state(i)});
    }
    return state;
  }

  /// Names and shapes of the whole model's state: parameters, then the statistics that forward passes keep.
  [[nodiscard]] std::vector<model::StateTensor> whole() const {
    std::vector<model::StateTensor> state;
    visit([&](unsigned, model::StateTensor tensor) { state.push_back(std::move(tensor)); });
    return state;
  }

  /// See Trainer::gather().
  [[nodiscard]] Result<std::vector<std::vector<float>>> gather(device::Stream& main) const {
    const std::vector<model::StateTensor> names = whole();
    const std::vector<model::StateTensor> mine = held();
    const bool collects = place_.stage() == 0;
    std::vector<std::vector<float>> values(collects ? names.size() : 0);
    device::Buffer<float> arrived;
    for (std::size_t i = 0; i < names.size(); ++i) {
      const model::StateTensor* here = find(mine, names[i]);
      const std::size_t size = values_of(names[i]);
      const unsigned holder = holder_of(i);
      device::Span<float> from = here != nullptr ? here->values : device::Span<float>();
      if (holder != 0) {
        if (place_.stage() == holder) place_.ranks.pipeline->template send<float>(from, 0, main);
        if (!collects) continue;
        if (Status made = make_buffer(arrived, size, main); !made) {
          (void)main.synchronize();  // `values` must outlive the copies to it.
          return tl::unexpected(made.error());
        }
        from = arrived.span();
        place_.ranks.pipeline->template receive<float>(from, holder, main);
      }
      if (!collects) continue;
      values[i].resize(size);
      device::download(std::span(values[i]), from, main);
    }
    DUNNOCK_TRY(main.synchronize());
    return values;
  }

  /// Copies what this rank holds from the whole state; `whole_values` must outlive the copies. All sizes are checked
  /// before the first one. Errors: InvalidArgument.
  [[nodiscard]] Status upload(std::span<const std::vector<float>> whole_values, device::Stream& main) const {
    const std::vector<model::StateTensor> names = whole();
    if (whole_values.size() != names.size())
      return invalid("the state has " + std::to_string(whole_values.size()) + " tensors, expected " +
                     std::to_string(names.size()));
    const std::vector<model::StateTensor> mine = held();
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (!whole_values[i].empty() && whole_values[i].size() != values_of(names[i]))
        return invalid("tensor '" + names[i].name + "' has " + std::to_string(whole_values[i].size()) +
                       " values, expected " + std::to_string(values_of(names[i])));
    }
    for (std::size_t i = 0; i < names.size(); ++i) {
      const model::StateTensor* here = find(mine, names[i]);
      if (here != nullptr && !whole_values[i].empty()) device::upload(here->values, whole_values[i], main);
    }
    return {};
  }

 private:
  static const model::StateTensor* find(const std::vector<model::StateTensor>& tensors,
                                        const model::StateTensor& wanted) {
    const auto same = [&wanted](const model::StateTensor& one) {
      return one.what == wanted.what && one.name == wanted.name;
    };
    const auto found = std::ranges::find_if(tensors, same);
    return found == tensors.end() ? nullptr : &*found;
  }
  /// f(layer, tensor) for the whole model.
  template <class F>
  void visit(const F& f) const {
    const Moments moments = moments_of(place_.options.optimizer);
    for (unsigned l = 0; l < network_.layers(); ++l) {
      for (const model::ParameterSpec& spec : network_.layer(l).parameters()) {
        if (spec.tied) continue;
        const auto add = [&](What what) { f(l, model::StateTensor{spec.name, what, spec.shape, spec.positions, {}}); };
        add(What::kWeight);
        if (moments.first) add(What::kFirstMoment);
        if (moments.second) add(What::kSecondMoment);
      }
    }
    for (unsigned l = 0; l < network_.layers(); ++l) {
      for (const model::StateSpec& spec : network_.layer(l).states())
        f(l, model::StateTensor{spec.name, What::kStatistic, {spec.size}, 1, {}});
    }
  }
  /// The stage that has tensor `number` of whole(); for a tied one, its owner.
  [[nodiscard]] unsigned holder_of(std::size_t number) const {
    std::vector<unsigned> layers;
    visit([&](unsigned layer, const model::StateTensor&) { layers.push_back(layer); });
    return place_.stage_of(layers.at(number));
  }

  const Place& place_;
  const model::Network<T>& network_;
};

}  // namespace dunnock::training
