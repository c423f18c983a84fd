// The layers of each family of models; models.cpp knows which is which.
#pragma once

#include <memory>
#include <vector>

#include "dunnock/model/models.hpp"
#include "dunnock/model/network_layer.hpp"

namespace dunnock::model {

template <class T>
using Layers = std::vector<std::unique_ptr<NetworkLayer<T>>>;

template <class T>
[[nodiscard]] Layers<T> make_layers(const MlpOptions& options);
template <class T>
[[nodiscard]] Layers<T> make_layers(const CnnOptions& options);
template <class T>
[[nodiscard]] Layers<T> make_layers(const ResNetOptions& options);
template <class T>
[[nodiscard]] Layers<T> make_layers(const DenseNetOptions& options);
template <class T>
[[nodiscard]] Layers<T> make_layers(const GptOptions& options);

}  // namespace dunnock::model
