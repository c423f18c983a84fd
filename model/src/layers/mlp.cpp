// The MLP: linear layers with ReLU between them.
#include "layers.hpp"
#include "linear.hpp"

namespace dunnock::model {

template <class T>
Layers<T> make_layers(const MlpOptions& options) {
  Layers<T> layers;
  std::size_t in = options.inputs;
  for (std::size_t i = 0; i <= options.hidden.size(); ++i) {
    const bool last = i == options.hidden.size();
    const std::size_t out = last ? options.classes : options.hidden[i];
    layers.push_back(std::make_unique<LinearLayer<T>>(LinearOptions{
        .name = "layers." + std::to_string(i), .in = in, .out = out, .relu = !last, .x_is_relu = i > 0, .loss = last}));
    in = out;
  }
  return layers;
}
template Layers<float> make_layers<float>(const MlpOptions&);
template Layers<device::Bf16> make_layers<device::Bf16>(const MlpOptions&);

}  // namespace dunnock::model
