#include "model/double_models.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>
#include <variant>

#include "dunnock/base/check.hpp"

namespace dunnock::test {
namespace {

using model::CnnOptions;
using model::DenseNetOptions;
using model::GptOptions;
using model::ImageShape;
using model::MlpOptions;
using model::ModelOptions;
using model::Positions;
using model::ResNetOptions;

using Shape = std::vector<std::size_t>;

constexpr double kNormEpsilon = 1e-5;

std::size_t size_of(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::size_t{1}, std::multiplies<>());
}

/// Row-major. Images: (rows, height, width, channels).
struct Tensor {
  Shape shape;
  std::vector<double> values;
  explicit Tensor(Shape of) : shape(std::move(of)), values(size_of(shape)) {}
  Tensor(Shape of, std::vector<double> with) : shape(std::move(of)), values(std::move(with)) {
    DUNNOCK_CHECK(values.size() == size_of(shape), "the batch does not fit the model");
  }
};

/// The parameters by name; or, if none have been given yet, a note of those that are requested.
class Parameters {
 public:
  explicit Parameters(const DoubleWeights& given) : given_(&given) {}
  Parameters() = default;

  const std::vector<double>& operator()(const std::string& name, const Shape& shape) {
    shapes_[name] = shape;
    if (given_ == nullptr) return ones_[name] = std::vector<double>(size_of(shape), 1);
    const auto at = given_->find(name);
    DUNNOCK_CHECK(at != given_->end(), name.c_str());
    DUNNOCK_CHECK(at->second.size() == size_of(shape), name.c_str());
    return at->second;
  }
  [[nodiscard]] const std::map<std::string, Shape>& shapes() const { return shapes_; }

 private:
  const DoubleWeights* given_ = nullptr;
  DoubleWeights ones_;
  std::map<std::string, Shape> shapes_;
};

// ----- operations ---------------------------------------------------------------------------------------------------

/// x (rows, in) -> (rows, out)
Tensor linear(const Tensor& x, const std::string& name, std::size_t out, Parameters& parameters) {
  const std::size_t rows = x.shape[0];
  const std::size_t in = x.shape[1];
  const auto& weight = parameters(name + ".weight", {out, in});
  const auto& bias = parameters(name + ".bias", {out});
  Tensor y({rows, out});
  for (std::size_t n = 0; n < rows; ++n) {
    for (std::size_t o = 0; o < out; ++o) {
      double sum = bias[o];
      for (std::size_t i = 0; i < in; ++i) sum += x.values[n * in + i] * weight[o * in + i];
      y.values[n * out + o] = sum;
    }
  }
  return y;
}

/// The same of a weight (in, out).
Tensor linear_in_out(const Tensor& x, const std::string& name, std::size_t out, Parameters& parameters) {
  const std::size_t rows = x.shape[0];
  const std::size_t in = x.shape[1];
  const auto& weight = parameters(name + ".weight", {in, out});
  const auto& bias = parameters(name + ".bias", {out});
  Tensor y({rows, out});
  for (std::size_t n = 0; n < rows; ++n) {
    for (std::size_t o = 0; o < out; ++o) y.values[n * out + o] = bias[o];
    for (std::size_t i = 0; i < in; ++i) {
      for (std::size_t o = 0; o < out; ++o) y.values[n * out + o] += x.values[n * in + i] * weight[i * out + o];
    }
  }
  return y;
}

Tensor relu(Tensor x) {
  for (double& value : x.values) value = std::max(value, 0.0);
  return x;
}

Tensor sum_of(Tensor x, const Tensor& y) {
  for (std::size_t i = 0; i < x.values.size(); ++i) x.values[i] += y.values[i];
  return x;
}

struct Window {
  std::size_t kernel = 1;
  std::size_t stride = 1;
  std::size_t padding = 0;
  [[nodiscard]] std::size_t places(std::size_t side) const { return (side + 2 * padding - kernel) / stride + 1; }
};

/// Calls f(place in x) for what the window at (i, j) sees of image n, without its padding. A place is the index of its
/// first channel; f's other arguments are u and v, the place in the window.
template <class F>
void for_each_place(const Tensor& x, const Window& window, std::size_t n, std::size_t i, std::size_t j, const F& f) {
  const std::size_t height = x.shape[1];
  const std::size_t width = x.shape[2];
  for (std::size_t u = 0; u < window.kernel; ++u) {
    for (std::size_t v = 0; v < window.kernel; ++v) {
      const std::size_t row = i * window.stride + u;  // In the padded image.
      const std::size_t column = j * window.stride + v;
      if (row < window.padding || row >= height + window.padding) continue;
      if (column < window.padding || column >= width + window.padding) continue;
      f(((n * height + row - window.padding) * width + column - window.padding) * x.shape[3], u, v);
    }
  }
}

struct ConvolutionOptions {
  std::size_t out = 0;
  Window window{};
  bool bias = false;
};

Tensor convolution(const Tensor& x, const std::string& name, const ConvolutionOptions& options,
                   Parameters& parameters) {
  const std::size_t in = x.shape[3];
  const std::size_t out = options.out;
  const std::size_t kernel = options.window.kernel;
  const auto& weight = parameters(name + ".weight", {out, in, kernel, kernel});
  Tensor y({x.shape[0], options.window.places(x.shape[1]), options.window.places(x.shape[2]), out});
  if (options.bias) {
    const auto& bias = parameters(name + ".bias", {out});
    for (std::size_t i = 0; i < y.values.size(); ++i) y.values[i] = bias[i % out];
  }
  std::size_t at = 0;
  for (std::size_t n = 0; n < y.shape[0]; ++n) {
    for (std::size_t i = 0; i < y.shape[1]; ++i) {
      for (std::size_t j = 0; j < y.shape[2]; ++j, at += out) {
        for_each_place(x, options.window, n, i, j, [&](std::size_t place, std::size_t u, std::size_t v) {
          for (std::size_t o = 0; o < out; ++o) {
            for (std::size_t c = 0; c < in; ++c)
              y.values[at + o] += x.values[place + c] * weight[((o * in + c) * kernel + u) * kernel + v];
          }
        });
      }
    }
  }
  return y;
}

/// Padding is less than any value.
Tensor max_pool(const Tensor& x, const Window& window) {
  const std::size_t channels = x.shape[3];
  Tensor y({x.shape[0], window.places(x.shape[1]), window.places(x.shape[2]), channels});
  std::ranges::fill(y.values, -std::numeric_limits<double>::infinity());
  std::size_t at = 0;
  for (std::size_t n = 0; n < y.shape[0]; ++n) {
    for (std::size_t i = 0; i < y.shape[1]; ++i) {
      for (std::size_t j = 0; j < y.shape[2]; ++j, at += channels) {
        for_each_place(x, window, n, i, j, [&](std::size_t place, std::size_t, std::size_t) {
          for (std::size_t c = 0; c < channels; ++c) y.values[at + c] = std::max(y.values[at + c], x.values[place + c]);
        });
      }
    }
  }
  return y;
}

/// Of windows without padding.
Tensor average_pool(const Tensor& x, const Window& window) {
  const std::size_t channels = x.shape[3];
  const auto places = static_cast<double>(window.kernel * window.kernel);
  Tensor y({x.shape[0], window.places(x.shape[1]), window.places(x.shape[2]), channels});
  std::size_t at = 0;
  for (std::size_t n = 0; n < y.shape[0]; ++n) {
    for (std::size_t i = 0; i < y.shape[1]; ++i) {
      for (std::size_t j = 0; j < y.shape[2]; ++j, at += channels) {
        for_each_place(x, window, n, i, j, [&](std::size_t place, std::size_t, std::size_t) {
          for (std::size_t c = 0; c < channels; ++c) y.values[at + c] += x.values[place + c] / places;
        });
      }
    }
  }
  return y;
}

/// x (rows, height, width, channels) -> (rows, channels)
Tensor global_average(const Tensor& x) {
  const std::size_t places = x.shape[1] * x.shape[2];
  const std::size_t channels = x.shape[3];
  Tensor y({x.shape[0], channels});
  for (std::size_t i = 0; i < x.values.size(); ++i)
    y.values[i / (places * channels) * channels + i % channels] += x.values[i] / static_cast<double>(places);
  return y;
}

/// x (rows, height, width, channels) -> (rows, channels * height * width): PyTorch's order.
Tensor flatten(const Tensor& x) {
  const std::size_t places = x.shape[1] * x.shape[2];
  const std::size_t channels = x.shape[3];
  Tensor y({x.shape[0], channels * places});
  for (std::size_t n = 0; n < x.shape[0]; ++n) {
    for (std::size_t place = 0; place < places; ++place) {
      for (std::size_t c = 0; c < channels; ++c)
        y.values[(n * channels + c) * places + place] = x.values[(n * places + place) * channels + c];
    }
  }
  return y;
}

/// Channels of y behind those of x.
Tensor concatenate(const Tensor& x, const Tensor& y) {
  const std::size_t of_x = x.shape[3];
  const std::size_t of_y = y.shape[3];
  Tensor both({x.shape[0], x.shape[1], x.shape[2], of_x + of_y});
  for (std::size_t place = 0; place < size_of(x.shape) / of_x; ++place) {
    for (std::size_t c = 0; c < of_x; ++c) both.values[place * (of_x + of_y) + c] = x.values[place * of_x + c];
    for (std::size_t c = 0; c < of_y; ++c) both.values[place * (of_x + of_y) + of_x + c] = y.values[place * of_y + c];
  }
  return both;
}

/// By the mean and the (biased) variance of each channel in the batch.
Tensor batch_norm(Tensor x, const std::string& name, Parameters& parameters) {
  const std::size_t channels = x.shape[3];
  const auto rows = static_cast<double>(x.values.size() / channels);
  const auto& weight = parameters(name + ".weight", {channels});
  const auto& bias = parameters(name + ".bias", {channels});
  for (std::size_t c = 0; c < channels; ++c) {
    double mean = 0;
    for (std::size_t i = c; i < x.values.size(); i += channels) mean += x.values[i] / rows;
    double variance = 0;
    for (std::size_t i = c; i < x.values.size(); i += channels)
      variance += (x.values[i] - mean) * (x.values[i] - mean) / rows;
    for (std::size_t i = c; i < x.values.size(); i += channels)
      x.values[i] = (x.values[i] - mean) / std::sqrt(variance + kNormEpsilon) * weight[c] + bias[c];
  }
  return x;
}

/// x (rows, width): each row by its own mean and variance.
Tensor layer_norm(Tensor x, const std::string& name, Parameters& parameters) {
  const std::size_t width = x.shape[1];
  const auto& weight = parameters(name + ".weight", {width});
  const auto& bias = parameters(name + ".bias", {width});
  for (std::size_t n = 0; n < x.shape[0]; ++n) {
    double* row = &x.values[n * width];
    double mean = 0;
    for (std::size_t i = 0; i < width; ++i) mean += row[i] / static_cast<double>(width);
    double variance = 0;
    for (std::size_t i = 0; i < width; ++i) variance += (row[i] - mean) * (row[i] - mean) / static_cast<double>(width);
    for (std::size_t i = 0; i < width; ++i)
      row[i] = (row[i] - mean) / std::sqrt(variance + kNormEpsilon) * weight[i] + bias[i];
  }
  return x;
}

/// The form with tanh.
Tensor gelu(Tensor x) {
  const double root = std::sqrt(2 / std::acos(-1.0));
  for (double& value : x.values)
    value = 0.5 * value * (1 + std::tanh(root * (value + 0.044715 * value * value * value)));
  return x;
}

/// logits (rows, classes)
double cross_entropy(const Tensor& logits, const std::vector<std::int32_t>& targets) {
  const std::size_t rows = logits.shape[0];
  const std::size_t classes = logits.shape[1];
  DUNNOCK_CHECK(targets.size() == rows, "a target for each row");
  double sum = 0;
  for (std::size_t n = 0; n < rows; ++n) {
    const double* row = &logits.values[n * classes];
    const auto target = static_cast<std::size_t>(targets[n]);
    DUNNOCK_CHECK(target < classes, "a target that the model does not have");
    const double largest = *std::max_element(row, row + classes);
    double exponentials = 0;
    for (std::size_t i = 0; i < classes; ++i) exponentials += std::exp(row[i] - largest);
    sum += std::log(exponentials) + largest - row[target];
  }
  return sum / static_cast<double>(rows);
}

// ----- models: the logits of a batch --------------------------------------------------------------------------------

Tensor images_of(const ImageShape& shape, const DoubleBatch& batch) {
  return {{batch.rows, shape.height, shape.width, shape.channels}, batch.images};
}

Tensor logits(const MlpOptions& options, Parameters& parameters, const DoubleBatch& batch) {
  Tensor x({batch.rows, options.inputs}, batch.images);
  for (std::size_t i = 0; i < options.hidden.size(); ++i)
    x = relu(linear(x, "layers." + std::to_string(i), options.hidden[i], parameters));
  return linear(x, "layers." + std::to_string(options.hidden.size()), options.classes, parameters);
}

Tensor logits(const CnnOptions& options, Parameters& parameters, const DoubleBatch& batch) {
  Tensor x = images_of(options.image, batch);
  std::size_t number = 0;  // Counts all of PyTorch's modules: ReLUs and pools too.
  const auto feature = [&number] { return "features." + std::to_string(number++); };
  for (const std::vector<std::size_t>& stage : options.stages) {
    for (const std::size_t width : stage) {
      x = convolution(x, feature(), {.out = width, .window = {3, 1, 1}, .bias = true}, parameters);
      if (options.batch_norm) x = batch_norm(std::move(x), feature(), parameters);
      x = relu(std::move(x));
      ++number;
    }
    x = max_pool(x, {2, 2, 0});
    ++number;
  }
  x = flatten(x);
  for (std::size_t i = 0; i < options.hidden.size(); ++i)
    x = relu(linear(x, "classifier." + std::to_string(2 * i), options.hidden[i], parameters));
  return linear(x, "classifier." + std::to_string(2 * options.hidden.size()), options.classes, parameters);
}

Tensor stem(const Tensor& images, const std::string& name, std::size_t width, bool large, Parameters& parameters) {
  return convolution(images, name, {.out = width, .window = large ? Window{7, 2, 3} : Window{3, 1, 1}}, parameters);
}

/// Two convolutions, or three in a bottleneck; and what came in, by a convolution of its own where the shape changes.
Tensor residual_block(const Tensor& x, const std::string& name, std::size_t width, std::size_t stride, bool bottleneck,
                      Parameters& parameters) {
  const auto part = [&](const Tensor& from, const std::string& number, std::size_t out, const Window& window) {
    return batch_norm(convolution(from, name + ".conv" + number, {.out = out, .window = window}, parameters),
                      name + ".bn" + number, parameters);
  };
  const std::size_t out = bottleneck ? 4 * width : width;
  Tensor y = bottleneck ? relu(part(x, "1", width, {1, 1, 0})) : relu(part(x, "1", width, {3, stride, 1}));
  if (bottleneck) {
    y = relu(part(y, "2", width, {3, stride, 1}));
    y = part(y, "3", out, {1, 1, 0});
  } else {
    y = part(y, "2", width, {3, 1, 1});
  }
  if (stride == 1 && x.shape[3] == out) return relu(sum_of(std::move(y), x));
  const Tensor shortcut =
      batch_norm(convolution(x, name + ".downsample.0", {.out = out, .window = {1, stride, 0}}, parameters),
                 name + ".downsample.1", parameters);
  return relu(sum_of(std::move(y), shortcut));
}

Tensor logits(const ResNetOptions& options, Parameters& parameters, const DoubleBatch& batch) {
  Tensor x = stem(images_of(options.image, batch), "conv1", options.width, options.large_stem, parameters);
  x = relu(batch_norm(std::move(x), "bn1", parameters));
  if (options.large_stem) x = max_pool(x, {3, 2, 1});
  for (std::size_t stage = 0; stage < options.blocks.size(); ++stage) {
    for (std::size_t block = 0; block < options.blocks[stage]; ++block) {
      const std::string name = "layer" + std::to_string(stage + 1) + "." + std::to_string(block);
      const std::size_t stride = block == 0 && stage > 0 ? 2 : 1;
      x = residual_block(x, name, options.width << stage, stride, options.bottleneck, parameters);
    }
  }
  return linear(global_average(x), "fc", options.classes, parameters);
}

Tensor dense_layer(const Tensor& x, const std::string& name, const DenseNetOptions& options, Parameters& parameters) {
  Tensor y = relu(batch_norm(x, name + ".norm1", parameters));
  y = convolution(y, name + ".conv1", {.out = options.bottleneck * options.growth}, parameters);
  y = relu(batch_norm(std::move(y), name + ".norm2", parameters));
  return convolution(y, name + ".conv2", {.out = options.growth, .window = {3, 1, 1}}, parameters);
}

Tensor logits(const DenseNetOptions& options, Parameters& parameters, const DoubleBatch& batch) {
  const std::string features = "features.";
  Tensor x =
      stem(images_of(options.image, batch), features + "conv0", options.stem_width, options.large_stem, parameters);
  x = relu(batch_norm(std::move(x), features + "norm0", parameters));
  if (options.large_stem) x = max_pool(x, {3, 2, 1});
  for (std::size_t block = 0; block < options.blocks.size(); ++block) {
    const std::string number = std::to_string(block + 1);
    for (std::size_t layer = 0; layer < options.blocks[block]; ++layer) {
      const std::string name = features + "denseblock" + number + ".denselayer" + std::to_string(layer + 1);
      x = concatenate(x, dense_layer(x, name, options, parameters));
    }
    if (block + 1 == options.blocks.size()) break;
    const std::string transition = features + "transition" + number;
    x = relu(batch_norm(std::move(x), transition + ".norm", parameters));
    x = convolution(x, transition + ".conv", {.out = x.shape[3] / 2}, parameters);
    x = average_pool(x, {2, 2, 0});
  }
  x = relu(batch_norm(std::move(x), features + "norm5", parameters));
  return linear(global_average(x), "classifier", options.classes, parameters);
}

/// Queries or keys of one token and head, turned to its position: pair i is values i and i + dim / 2.
void turn(double* x, std::size_t dim, std::size_t position) {
  for (std::size_t i = 0; i < dim / 2; ++i) {
    const double exponent = -2 * static_cast<double>(i) / static_cast<double>(dim);
    const double angle = static_cast<double>(position) * std::pow(10000, exponent);
    const double a = x[i];
    const double b = x[i + dim / 2];
    x[i] = a * std::cos(angle) - b * std::sin(angle);
    x[i + dim / 2] = a * std::sin(angle) + b * std::cos(angle);
  }
}

/// qkv (rows * context, 3 * width): queries, keys, values, each head by head -> (rows * context, width)
Tensor attention(Tensor qkv, const GptOptions& options) {
  const std::size_t context = options.context;
  const std::size_t width = options.width;
  const std::size_t dim = width / options.heads;
  if (options.positions == Positions::kRotary) {
    for (std::size_t token = 0; token < qkv.shape[0]; ++token) {
      for (std::size_t head = 0; head < 2 * options.heads; ++head)
        turn(&qkv.values[token * 3 * width + head * dim], dim, token % context);
    }
  }
  Tensor y({qkv.shape[0], width});
  std::vector<double> shares(context);
  for (std::size_t token = 0; token < qkv.shape[0]; ++token) {
    const std::size_t first = token / context * context;  // The row's first token.
    for (std::size_t head = 0; head < options.heads; ++head) {
      const double* query = &qkv.values[token * 3 * width + head * dim];
      double largest = -std::numeric_limits<double>::infinity();
      for (std::size_t other = first; other <= token; ++other) {
        const double* key = &qkv.values[other * 3 * width + width + head * dim];
        const double score = std::inner_product(query, query + dim, key, 0.0) / std::sqrt(static_cast<double>(dim));
        shares[other - first] = score;
        largest = std::max(largest, score);
      }
      double sum = 0;
      for (std::size_t other = first; other <= token; ++other)
        sum += shares[other - first] = std::exp(shares[other - first] - largest);
      for (std::size_t other = first; other <= token; ++other) {
        const double* value = &qkv.values[other * 3 * width + 2 * width + head * dim];
        for (std::size_t i = 0; i < dim; ++i)
          y.values[token * width + head * dim + i] += shares[other - first] / sum * value[i];
      }
    }
  }
  return y;
}

Tensor logits(const GptOptions& options, Parameters& parameters, const DoubleBatch& batch) {
  const std::size_t width = options.width;
  const std::size_t tokens = batch.rows * options.context;
  DUNNOCK_CHECK(batch.tokens.size() == tokens, "the batch does not fit the model");
  const auto& table = parameters("wte.weight", {options.vocabulary, width});
  Tensor x({tokens, width});
  for (std::size_t token = 0; token < tokens; ++token) {
    const auto row = static_cast<std::size_t>(batch.tokens[token]);
    DUNNOCK_CHECK(row < options.vocabulary, "a token that the model does not have");
    for (std::size_t i = 0; i < width; ++i) x.values[token * width + i] = table[row * width + i];
  }
  if (options.positions == Positions::kLearned) {
    const auto& positions = parameters("wpe.weight", {options.context, width});
    for (std::size_t i = 0; i < x.values.size(); ++i) x.values[i] += positions[i % (options.context * width)];
  }
  for (std::size_t layer = 0; layer < options.layers; ++layer) {
    const std::string name = "h." + std::to_string(layer) + ".";
    Tensor y = layer_norm(x, name + "ln_1", parameters);
    y = attention(linear_in_out(y, name + "attn.c_attn", 3 * width, parameters), options);
    x = sum_of(std::move(x), linear_in_out(y, name + "attn.c_proj", width, parameters));
    y = layer_norm(x, name + "ln_2", parameters);
    y = gelu(linear_in_out(y, name + "mlp.c_fc", options.mlp_ratio * width, parameters));
    x = sum_of(std::move(x), linear_in_out(y, name + "mlp.c_proj", width, parameters));
  }
  x = layer_norm(std::move(x), "ln_f", parameters);
  Tensor y({tokens, options.vocabulary});
  for (std::size_t token = 0; token < tokens; ++token) {
    for (std::size_t word = 0; word < options.vocabulary; ++word) {
      const double* row = &x.values[token * width];
      y.values[token * options.vocabulary + word] = std::inner_product(row, row + width, &table[word * width], 0.0);
    }
  }
  return y;
}

/// One row of zeros.
DoubleBatch empty_batch(const ModelOptions& model) {
  DoubleBatch batch{.rows = 1};
  if (const auto* gpt = std::get_if<GptOptions>(&model)) batch.tokens.resize(gpt->context);
  if (const auto* mlp = std::get_if<MlpOptions>(&model)) batch.images.resize(mlp->inputs);
  if (const auto* cnn = std::get_if<CnnOptions>(&model)) batch.images.resize(cnn->image.size());
  if (const auto* resnet = std::get_if<ResNetOptions>(&model)) batch.images.resize(resnet->image.size());
  if (const auto* densenet = std::get_if<DenseNetOptions>(&model)) batch.images.resize(densenet->image.size());
  return batch;
}

}  // namespace

std::map<std::string, std::vector<std::size_t>> parameter_shapes(const ModelOptions& model) {
  Parameters asked;
  std::visit([&](const auto& options) { static_cast<void>(logits(options, asked, empty_batch(model))); }, model);
  return asked.shapes();
}

double loss(const ModelOptions& model, const DoubleWeights& weights, const DoubleBatch& batch) {
  Parameters parameters(weights);
  const Tensor y = std::visit([&](const auto& options) { return logits(options, parameters, batch); }, model);
  return cross_entropy(y, std::holds_alternative<GptOptions>(model) ? batch.targets : batch.labels);
}

DoubleWeights central_differences(const ModelOptions& model, const DoubleWeights& weights, const DoubleBatch& batch,
                                  const DoubleIndices& at, double step) {
  DoubleWeights moved = weights;
  DoubleWeights differences;
  for (const auto& [name, indices] : at) {
    const auto found = moved.find(name);
    DUNNOCK_CHECK(found != moved.end(), name.c_str());
    for (const std::size_t i : indices) {
      DUNNOCK_CHECK(i < found->second.size(), name.c_str());
      double& value = found->second[i];
      const double before = value;
      value = before + step;
      const double above = loss(model, moved, batch);
      value = before - step;
      const double below = loss(model, moved, batch);
      value = before;
      differences[name].push_back((above - below) / (2 * step));
    }
  }
  return differences;
}

}  // namespace dunnock::test
