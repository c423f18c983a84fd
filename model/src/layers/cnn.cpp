// The CNN, as torchvision's VGG: units of convolution, perhaps batch norm, and ReLU, with a pool at a stage's end; then
// linear layers.
#include "convolutions.hpp"
#include "layers.hpp"

namespace dunnock::model {

template <class T>
Layers<T> make_layers(const CnnOptions& options) {
  Layers<T> layers;
  ImageShape image = options.image;
  std::size_t number = 0;  // Of torchvision's Sequential, which counts norms, ReLUs and pools too.
  for (std::size_t stage = 0; stage < options.stages.size(); ++stage) {
    const std::vector<std::size_t>& widths = options.stages[stage];
    for (std::size_t i = 0; i < widths.size(); ++i) {
      const bool last = i + 1 == widths.size();
      UnitOptions unit{.name = "features." + std::to_string(number),
                       .convolution = {.image = image, .out = widths[i]},
                       .bias = true,
                       .pool = {.kernel = last ? std::size_t{2} : 0},
                       .x_is_relu = !layers.empty() && !options.batch_norm,
                       .block = static_cast<unsigned>(stage)};
      if (options.batch_norm) unit.norm = "features." + std::to_string(number + 1);
      number += options.batch_norm ? 3 : 2;
      auto layer = std::make_unique<ConvolutionUnit<T>>(std::move(unit));
      image = layer->result();
      layers.push_back(std::move(layer));
    }
    ++number;
  }
  std::size_t in = image.size();
  for (std::size_t i = 0; i <= options.hidden.size(); ++i) {
    const bool last = i == options.hidden.size();
    const std::size_t out = last ? options.classes : options.hidden[i];
    layers.push_back(
        std::make_unique<LinearLayer<T>>(LinearOptions{.name = "classifier." + std::to_string(2 * i),
                                                       .in = in,
                                                       .out = out,
                                                       .relu = !last,
                                                       .x_is_relu = i > 0 || !options.batch_norm,
                                                       .loss = last,
                                                       .positions = i == 0 ? image.height * image.width : 1,
                                                       .block = static_cast<unsigned>(options.stages.size())}));
    in = out;
  }
  return layers;
}
template Layers<float> make_layers<float>(const CnnOptions&);
template Layers<device::Bf16> make_layers<device::Bf16>(const CnnOptions&);

}  // namespace dunnock::model
