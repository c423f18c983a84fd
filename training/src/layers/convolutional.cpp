#include "layers.hpp"
namespace dunnock::training {
template <class T>
Layers<T> make_layers(const ResNetOptions&) {
  return {};
}
template <class T>
Layers<T> make_layers(const DenseNetOptions&) {
  return {};
}
template Layers<float> make_layers<float>(const ResNetOptions&);
template Layers<gpu::Bf16> make_layers<gpu::Bf16>(const ResNetOptions&);
template Layers<float> make_layers<float>(const DenseNetOptions&);
template Layers<gpu::Bf16> make_layers<gpu::Bf16>(const DenseNetOptions&);
}  // namespace dunnock::training
