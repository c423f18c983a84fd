// GPT: embedding, then a link of attention and one of the MLP for each block, then norm, tied head and loss.
//
//   attention   y = x + proj(attention(c_attn(ln_1(x))))
//   MLP         y = x + proj(gelu(c_fc(ln_2(x))))
//
// dO and dW of a link:
//
//   attention   dO:  do = dy Wp', attention backward -> dqkv (kept), dn = dqkv Wa', norm backward -> dx = . + dy
//               dW:  dWp = o' dy, dWa = n' dqkv, and the sums of dy and of dqkv
//   MLP         dO:  dv = (dy Wp') gelu'(v) (kept), dn = dv Wf', norm backward -> dx = . + dy
//               dW:  dWp = g' dy, dWf = n' dv, and the sums of dy and of dv
//   head        dO:  dn = dlogits W, norm backward -> dx;   dW: dW = dlogits' n
#include <cmath>
#include <string>
#include <utility>

#include "dunnock/kernels/attention.hpp"
#include "dunnock/kernels/cross_entropy.hpp"
#include "dunnock/kernels/elementwise.hpp"
#include "dunnock/kernels/embedding.hpp"
#include "dunnock/kernels/matmul.hpp"
#include "dunnock/kernels/norm.hpp"
#include "dunnock/kernels/rotary.hpp"
#include "layers.hpp"
#include "workspace.hpp"

namespace dunnock::model {
namespace {

using device::Span;
using kernels::MatmulEpilogue;
using kernels::MatmulShape;

constexpr float kDeviation = 0.02F;  // GPT-2's, of all weights; of what ends in the residual sum over sqrt(2 layers).

ParameterSpec matrix(std::string name, std::size_t in, std::size_t out, float deviation) {
  return {.name = std::move(name), .shape = {in, out}, .initial = Initial::kNormal, .scale = deviation, .decays = true};
}
ParameterSpec vector(std::string name, std::size_t size, Initial initial = Initial::kZeros) {
  return {.name = std::move(name), .shape = {size}, .initial = initial};
}

/// Products of a link with a weight (in, out): forward, gradient of the input, gradient of the weight.
MatmulShape forward_shape(std::size_t tokens, std::size_t in, std::size_t out) {
  return {.rows = tokens, .columns = out, .inner = in};
}
MatmulShape dx_shape(std::size_t tokens, std::size_t in, std::size_t out) {
  return {.rows = tokens, .columns = in, .inner = out, .transpose_b = true};
}
MatmulShape dw_shape(std::size_t tokens, std::size_t in, std::size_t out) {
  return {.rows = in, .columns = out, .inner = tokens, .transpose_a = true};
}
std::size_t most_workspace(std::size_t tokens, std::size_t in, std::size_t out, device::Device device) {
  std::size_t bytes = 0;
  for (const MatmulShape& shape :
       {forward_shape(tokens, in, out), dx_shape(tokens, in, out), dw_shape(tokens, in, out)})
    bytes = std::max(bytes, kernels::matmul_workspace_bytes(shape, device));
  return bytes;
}

double as_double(std::size_t n) { return static_cast<double>(n); }

/// The norm before a link, and the gradient after it: dx = norm backward of dn, plus dy.
template <class T>
class InputNorm {
 public:
  explicit InputNorm(std::size_t width) : width_(width) {}

  [[nodiscard]] kernels::NormShape shape(std::size_t tokens) const { return {.rows = tokens, .columns = width_}; }
  [[nodiscard]] std::size_t workspace_bytes(std::size_t tokens, device::Device device) const {
    return 2 * MadeGradient<T>::room(width_) + room_for<float>(kernels::norm_backward_workspace(shape(tokens), device));
  }
  [[nodiscard]] std::uint64_t bytes(std::size_t tokens) const { return tokens * (width_ * sizeof(T) + 8); }
  [[nodiscard]] Status reserve(unsigned slots, std::size_t tokens, device::Stream& stream) {
    DUNNOCK_TRY(n_.reserve(slots, tokens * width_, stream));
    DUNNOCK_TRY(mean_.reserve(slots, tokens, stream));
    return r_.reserve(slots, tokens, stream);
  }
  [[nodiscard]] device::Span<T> result(unsigned slot, std::size_t tokens) const {
    return n_.get(slot, tokens * width_);
  }

  void forward(device::Span<const T> x, device::Span<const T> weight, device::Span<const T> bias, std::size_t tokens,
               const LayerRun<T>& run) {
    kernels::run(kernels::LayerNorm<T>{.x = x,
                                       .weight = weight,
                                       .bias = bias,
                                       .y = result(run.slot, tokens),
                                       .mean = mean_.get(run.slot, tokens),
                                       .r = r_.get(run.slot, tokens),
                                       .shape = shape(tokens)},
                 run.stream);
  }
  /// dx (tokens, width) = backward of dn, which may be dx.
  void backward(device::Span<const T> dn, device::Span<const T> x, device::Span<const T> weight, device::Span<T> dx,
                device::Span<float> dweight, device::Span<float> dbias, std::size_t tokens, Workspace workspace,
                const LayerRun<T>& run) {
    const MadeGradient<T> of_weight(dweight, run.adds, workspace);
    const MadeGradient<T> of_bias(dbias, run.adds, workspace);
    kernels::run(kernels::LayerNormBackward<T>{.dy = dn,
                                               .x = x,
                                               .weight = weight,
                                               .mean = mean_.get(run.slot, tokens),
                                               .r = r_.get(run.slot, tokens),
                                               .dx = dx,
                                               .dweight = of_weight.target(),
                                               .dbias = of_bias.target(),
                                               .adds = of_weight.kernel_adds(),
                                               .shape = shape(tokens),
                                               .workspace = workspace.take<float>(kernels::norm_backward_workspace(
                                                   shape(tokens), run.stream.device()))},
                 run.stream);
    of_weight.add(run.stream);
    of_bias.add(run.stream);
  }

 private:
  std::size_t width_;
  SlotBuffers<T> n_;         // (tokens, width)
  SlotBuffers<float> mean_;  // (tokens)
  SlotBuffers<float> r_;     // (tokens)
};

template <class T>
class EmbeddingLayer final : public NetworkLayer<T> {
 public:
  explicit EmbeddingLayer(const GptOptions& options) : options_(options) {}

  [[nodiscard]] std::string name() const override { return "embedding"; }
  [[nodiscard]] std::vector<ParameterSpec> parameters() const override {
    std::vector<ParameterSpec> specs{matrix("wte.weight", options_.vocabulary, options_.width, kDeviation)};
    if (learned()) specs.push_back(matrix("wpe.weight", options_.context, options_.width, kDeviation));
    return specs;
  }
  [[nodiscard]] std::size_t outputs() const override { return options_.context * options_.width; }
  [[nodiscard]] bool weights_behind_output() const override { return false; }
  [[nodiscard]] LayerBytes bytes(std::size_t rows) const override {
    const std::uint64_t tokens = rows * options_.context * sizeof(std::int32_t);
    return {.output = rows * outputs() * sizeof(T), .kept = tokens, .kept_for_weights = tokens};
  }
  [[nodiscard]] double flops(std::size_t /*rows*/) const override { return 0; }
  [[nodiscard]] std::size_t workspace_bytes(std::size_t rows, device::Device device) const override {
    return std::max(
        room_for<std::uint32_t>(kernels::embedding_backward_workspace(rows * options_.context, shape(), device)),
        MadeGradient<T>::room(outputs()) + room_for<float>(kernels::column_sums_workspace({rows, outputs()}, device)));
  }
  [[nodiscard]] Status reserve(unsigned /*slots*/, std::size_t /*rows*/, device::Stream& /*stream*/) override {
    return {};
  }

  void forward(const LayerValues<T>& values, const LayerRun<T>& run) override {
    kernels::run(kernels::Embedding<T>{.table = this->weight(0),
                                       .positions = learned() ? this->weight(1) : device::Span<const T>(),
                                       .tokens = run.batch.tokens,
                                       .y = values.y,
                                       .shape = shape()},
                 run.stream);
  }
  void output_gradient(const LayerValues<T>& /*values*/, const LayerRun<T>& /*run*/) override {}
  void weight_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t words =
        kernels::embedding_backward_workspace(run.batch.tokens.size(), shape(), run.stream.device());
    kernels::run(kernels::EmbeddingBackward<T, float>{.dy = values.dy,
                                                      .tokens = run.batch.tokens,
                                                      .dtable = this->gradient(0),
                                                      .adds = run.adds,
                                                      .shape = shape(),
                                                      .workspace = Workspace(run.workspace).take<std::uint32_t>(words)},
                 run.stream);
    if (!learned()) return;
    const kernels::RowMatrix rows{run.batch.rows, outputs()};
    Workspace workspace(run.workspace);
    const MadeGradient<T> of_positions(this->gradient(1), run.adds, workspace);
    kernels::run(kernels::ColumnSums<T>{.x = values.dy,
                                        .sums = of_positions.target(),
                                        .adds = of_positions.kernel_adds(),
                                        .shape = rows,
                                        .workspace = workspace.take<float>(
                                            kernels::column_sums_workspace(rows, run.stream.device()))},
                 run.stream);
    of_positions.add(run.stream);
  }

 private:
  [[nodiscard]] bool learned() const { return options_.positions == Positions::kLearned; }
  [[nodiscard]] kernels::EmbeddingShape shape() const { return {options_.vocabulary, options_.width}; }

  GptOptions options_;
};

template <class T>
class AttentionLayer final : public NetworkLayer<T> {
 public:
  AttentionLayer(const GptOptions& options, unsigned number)
      : options_(options), number_(number), norm_(options.width) {}

  [[nodiscard]] std::string name() const override { return "h." + std::to_string(number_) + ".attn"; }
  [[nodiscard]] unsigned block() const override { return number_ + 1; }
  [[nodiscard]] std::vector<ParameterSpec> parameters() const override {
    const std::string h = "h." + std::to_string(number_) + ".";
    const std::size_t c = options_.width;
    return {vector(h + "ln_1.weight", c, Initial::kOnes),
            vector(h + "ln_1.bias", c),
            matrix(h + "attn.c_attn.weight", c, 3 * c, kDeviation),
            vector(h + "attn.c_attn.bias", 3 * c),
            matrix(h + "attn.c_proj.weight", c, c, kDeviation / std::sqrt(2.0F * static_cast<float>(options_.layers))),
            vector(h + "attn.c_proj.bias", c)};
  }
  [[nodiscard]] std::size_t outputs() const override { return options_.context * options_.width; }
  [[nodiscard]] LayerBytes bytes(std::size_t rows) const override {
    const std::uint64_t value = rows * outputs() * sizeof(T);
    // x, n, q, k, v, o; then the gradients of q, k and v, and dy instead of ours to the layer above.
    return {.output = value,
            .kept = 6 * value + norm_.bytes(0) + rows * options_.context * (8 + 4 * options_.heads),
            .kept_for_weights = 5 * value};
  }
  [[nodiscard]] double flops(std::size_t rows) const override {
    const double c = as_double(options_.width);
    const double tokens = as_double(rows * options_.context);
    return tokens * (8 * c * c + 2 * c * as_double(options_.context));  // Causal: half of all pairs.
  }
  [[nodiscard]] std::size_t workspace_bytes(std::size_t rows, device::Device device) const override {
    const std::size_t n = tokens(rows);
    const std::size_t c = options_.width;
    const std::size_t products = std::max(most_workspace(n, c, 3 * c, device), most_workspace(n, c, c, device));
    return room_for<T>(n * c) +
           std::max({products, room_for<float>(kernels::attention_backward_workspace(attention_shape(rows), device)),
                     norm_.workspace_bytes(n, device)});
  }
  [[nodiscard]] Status reserve(unsigned slots, std::size_t rows, device::Stream& stream) override {
    const std::size_t n = tokens(rows);
    DUNNOCK_TRY(norm_.reserve(slots, n, stream));
    DUNNOCK_TRY(qkv_.reserve(slots, 3 * n * options_.width, stream));
    DUNNOCK_TRY(dqkv_.reserve(slots, 3 * n * options_.width, stream));
    DUNNOCK_TRY(o_.reserve(slots, n * options_.width, stream));
    DUNNOCK_TRY(lse_.reserve(slots, n * options_.heads, stream));
    return rotary() ? reserve_rotary(rows, stream) : Status();
  }

  void forward(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t rows = run.batch.rows;
    const std::size_t n = tokens(rows);
    const std::size_t c = options_.width;
    norm_.forward(values.x, this->weight(0), this->weight(1), n, run);
    MatmulEpilogue<T> to_qkv;
    to_qkv.bias = this->weight(3);
    const device::Span<T> qkv = qkv_.get(run.slot, 3 * n * c);
    kernels::run(kernels::Matmul<T, T>{.a = norm_.result(run.slot, n),
                                       .b = this->weight(2),
                                       .c = qkv,
                                       .shape = forward_shape(n, c, 3 * c),
                                       .epilogue = to_qkv,
                                       .workspace = run.workspace},
                 run.stream);
    if (rotary())
      kernels::run(
          kernels::Rotary<T>{
              .x = packed(qkv, 0), .table = table_, .positions = positions_of(rows), .shape = rotary_shape(rows)},
          run.stream);
    const device::Span<T> o = o_.get(run.slot, n * c);
    kernels::run(kernels::Attention<T>{.in = {packed(qkv, 0), packed(qkv, 1), packed(qkv, 2)},
                                       .o = heads(o),
                                       .lse = lse_.get(run.slot, n * options_.heads),
                                       .shape = attention_shape(rows)},
                 run.stream);
    device::device_copy(values.y, values.x, run.stream);
    MatmulEpilogue<T> projection;
    projection.beta = 1;
    projection.bias = this->weight(5);
    kernels::run(kernels::Matmul<T, T>{.a = o,
                                       .b = this->weight(4),
                                       .c = values.y,
                                       .shape = forward_shape(n, c, c),
                                       .epilogue = projection,
                                       .workspace = run.workspace},
                 run.stream);
  }

  void output_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t rows = run.batch.rows;
    const std::size_t n = tokens(rows);
    const std::size_t c = options_.width;
    Workspace workspace(run.workspace);
    const device::Span<T> between = workspace.take<T>(n * c);  // do, then dn
    kernels::run(kernels::Matmul<T, T>{.a = values.dy,
                                       .b = this->weight(4),
                                       .c = between,
                                       .shape = dx_shape(n, c, c),
                                       .epilogue = {},
                                       .workspace = workspace.rest()},
                 run.stream);
    const device::Span<T> qkv = qkv_.get(run.slot, 3 * n * c);
    const device::Span<T> dqkv = dqkv_.get(run.slot, 3 * n * c);
    const std::size_t floats = kernels::attention_backward_workspace(attention_shape(rows), run.stream.device());
    kernels::run(kernels::AttentionBackward<T>{.in = {packed(qkv, 0), packed(qkv, 1), packed(qkv, 2)},
                                               .results = {heads(o_.get(run.slot, n * c)), heads(between),
                                                           lse_.get(run.slot, n * options_.heads)},
                                               .gradients = {packed(dqkv, 0), packed(dqkv, 1), packed(dqkv, 2)},
                                               .shape = attention_shape(rows),
                                               .workspace = Workspace(workspace.rest()).take<float>(floats)},
                 run.stream);
    if (rotary())
      kernels::run(
          kernels::RotaryBackward<T>{
              .dx = packed(dqkv, 0), .table = table_, .positions = positions_of(rows), .shape = rotary_shape(rows)},
          run.stream);
    kernels::run(kernels::Matmul<T, T>{.a = dqkv,
                                       .b = this->weight(2),
                                       .c = between,
                                       .shape = dx_shape(n, c, 3 * c),
                                       .epilogue = {},
                                       .workspace = workspace.rest()},
                 run.stream);
    norm_.backward(between, values.x, this->weight(0), between, this->gradient(0), this->gradient(1), n, workspace,
                   run);
    kernels::run(kernels::AddScaled<T>{.a = values.dy, .b = between, .factor = 1, .y = values.dx}, run.stream);
  }

  void weight_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t n = tokens(run.batch.rows);
    const std::size_t c = options_.width;
    MatmulEpilogue<float> epilogue;
    epilogue.beta = run.adds ? 1.0F : 0.0F;
    epilogue.adds_sums = run.adds;
    epilogue.b_sums = this->gradient(5);
    kernels::run(kernels::Matmul<T, float>{.a = o_.get(run.slot, n * c),
                                           .b = values.dy,
                                           .c = this->gradient(4),
                                           .shape = dw_shape(n, c, c),
                                           .epilogue = epilogue,
                                           .workspace = run.workspace},
                 run.stream);
    epilogue.b_sums = this->gradient(3);
    kernels::run(kernels::Matmul<T, float>{.a = norm_.result(run.slot, n),
                                           .b = dqkv_.get(run.slot, 3 * n * c),
                                           .c = this->gradient(2),
                                           .shape = dw_shape(n, c, 3 * c),
                                           .epilogue = epilogue,
                                           .workspace = run.workspace},
                 run.stream);
  }

 private:
  [[nodiscard]] std::size_t tokens(std::size_t rows) const { return rows * options_.context; }
  [[nodiscard]] std::size_t head_dim() const { return options_.width / options_.heads; }
  [[nodiscard]] bool rotary() const { return options_.positions == Positions::kRotary; }
  [[nodiscard]] kernels::AttentionShape attention_shape(std::size_t rows) const {
    return {.batch = rows,
            .query_tokens = options_.context,
            .key_tokens = options_.context,
            .heads = options_.heads,
            .kv_heads = options_.heads,
            .head_dim = head_dim()};
  }
  /// q's and k's heads lie side by side, so both are turned in one call.
  [[nodiscard]] kernels::RotaryShape rotary_shape(std::size_t rows) const {
    return {.batch = rows,
            .tokens = options_.context,
            .heads = 2 * options_.heads,
            .head_dim = head_dim(),
            .rotary_dim = head_dim()};
  }
  [[nodiscard]] kernels::HeadsView<T> packed(device::Span<T> qkv, std::size_t third) const {
    return kernels::heads_view(qkv, {.tokens = options_.context,
                                     .heads = 3 * options_.heads,
                                     .head_dim = head_dim(),
                                     .first_head = third * options_.heads});
  }
  [[nodiscard]] kernels::HeadsView<T> heads(device::Span<T> o) const {
    return kernels::heads_view(o, {.tokens = options_.context, .heads = options_.heads, .head_dim = head_dim()});
  }
  [[nodiscard]] device::Span<const std::int32_t> positions_of(std::size_t rows) const {
    return positions_.span().subspan(0, tokens(rows));
  }
  [[nodiscard]] Status reserve_rotary(std::size_t rows, device::Stream& stream) {
    DUNNOCK_TRY(auto table, device::Buffer<float>::create(options_.context * head_dim(), stream));
    table_ = std::move(table);
    kernels::run(
        kernels::RotaryTable{.table = table_, .shape = {.positions = options_.context, .rotary_dim = head_dim()}},
        stream);
    DUNNOCK_TRY(auto positions, device::Buffer<std::int32_t>::create(tokens(rows), stream));
    positions_ = std::move(positions);
    std::vector<std::int32_t> numbers(tokens(rows));
    for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<std::int32_t>(i % options_.context);
    device::upload(positions_.span(), numbers, stream);
    return stream.synchronize();  // For `numbers` goes.
  }

  GptOptions options_;
  unsigned number_;
  InputNorm<T> norm_;
  SlotBuffers<T> qkv_;                      // (rows, context, 3, heads, head_dim)
  SlotBuffers<T> dqkv_;                     // the same
  SlotBuffers<T> o_;                        // (rows, context, heads, head_dim)
  SlotBuffers<float> lse_;                  // (rows, heads, context)
  device::Buffer<float> table_;             // (context, head_dim / 2, 2)
  device::Buffer<std::int32_t> positions_;  // (rows, context)
};

template <class T>
class MlpLayer final : public NetworkLayer<T> {
 public:
  MlpLayer(const GptOptions& options, unsigned number) : options_(options), number_(number), norm_(options.width) {}

  [[nodiscard]] std::string name() const override { return "h." + std::to_string(number_) + ".mlp"; }
  [[nodiscard]] unsigned block() const override { return number_ + 1; }
  [[nodiscard]] std::vector<ParameterSpec> parameters() const override {
    const std::string h = "h." + std::to_string(number_) + ".";
    const std::size_t c = options_.width;
    return {
        vector(h + "ln_2.weight", c, Initial::kOnes),
        vector(h + "ln_2.bias", c),
        matrix(h + "mlp.c_fc.weight", c, inner(), kDeviation),
        vector(h + "mlp.c_fc.bias", inner()),
        matrix(h + "mlp.c_proj.weight", inner(), c, kDeviation / std::sqrt(2.0F * static_cast<float>(options_.layers))),
        vector(h + "mlp.c_proj.bias", c)};
  }
  [[nodiscard]] std::size_t outputs() const override { return options_.context * options_.width; }
  [[nodiscard]] LayerBytes bytes(std::size_t rows) const override {
    const std::uint64_t value = rows * outputs() * sizeof(T);
    const std::uint64_t wide = value * options_.mlp_ratio;
    return {.output = value, .kept = 2 * value + 2 * wide + tokens(rows) * 8, .kept_for_weights = value + 2 * wide};
  }
  [[nodiscard]] double flops(std::size_t rows) const override {
    return 4 * as_double(tokens(rows)) * as_double(options_.width) * as_double(inner());
  }
  [[nodiscard]] std::size_t workspace_bytes(std::size_t rows, device::Device device) const override {
    const std::size_t n = tokens(rows);
    const std::size_t c = options_.width;
    const std::size_t products = std::max(most_workspace(n, c, inner(), device), most_workspace(n, inner(), c, device));
    return room_for<T>(n * c) + std::max(products, norm_.workspace_bytes(n, device));
  }
  [[nodiscard]] Status reserve(unsigned slots, std::size_t rows, device::Stream& stream) override {
    const std::size_t n = tokens(rows);
    DUNNOCK_TRY(norm_.reserve(slots, n, stream));
    DUNNOCK_TRY(v_.reserve(slots, n * inner(), stream));
    DUNNOCK_TRY(g_.reserve(slots, n * inner(), stream));
    return dv_.reserve(slots, n * inner(), stream);
  }

  void forward(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t n = tokens(run.batch.rows);
    const std::size_t c = options_.width;
    norm_.forward(values.x, this->weight(0), this->weight(1), n, run);
    MatmulEpilogue<T> up;
    up.bias = this->weight(3);
    up.activation = kernels::MatmulActivation::kGelu;
    up.saved = v_.get(run.slot, n * inner());
    kernels::run(kernels::Matmul<T, T>{.a = norm_.result(run.slot, n),
                                       .b = this->weight(2),
                                       .c = g_.get(run.slot, n * inner()),
                                       .shape = forward_shape(n, c, inner()),
                                       .epilogue = up,
                                       .workspace = run.workspace},
                 run.stream);
    device::device_copy(values.y, values.x, run.stream);
    MatmulEpilogue<T> projection;
    projection.beta = 1;
    projection.bias = this->weight(5);
    kernels::run(kernels::Matmul<T, T>{.a = g_.get(run.slot, n * inner()),
                                       .b = this->weight(4),
                                       .c = values.y,
                                       .shape = forward_shape(n, inner(), c),
                                       .epilogue = projection,
                                       .workspace = run.workspace},
                 run.stream);
  }

  void output_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t n = tokens(run.batch.rows);
    const std::size_t c = options_.width;
    Workspace workspace(run.workspace);
    const device::Span<T> dn = workspace.take<T>(n * c);
    MatmulEpilogue<T> slope;
    slope.activation = kernels::MatmulActivation::kGelu;
    slope.gradient_at = v_.get(run.slot, n * inner());
    const device::Span<T> dv = dv_.get(run.slot, n * inner());
    kernels::run(kernels::Matmul<T, T>{.a = values.dy,
                                       .b = this->weight(4),
                                       .c = dv,
                                       .shape = dx_shape(n, inner(), c),
                                       .epilogue = slope,
                                       .workspace = workspace.rest()},
                 run.stream);
    kernels::run(kernels::Matmul<T, T>{.a = dv,
                                       .b = this->weight(2),
                                       .c = dn,
                                       .shape = dx_shape(n, c, inner()),
                                       .epilogue = {},
                                       .workspace = workspace.rest()},
                 run.stream);
    norm_.backward(dn, values.x, this->weight(0), dn, this->gradient(0), this->gradient(1), n, workspace, run);
    kernels::run(kernels::AddScaled<T>{.a = values.dy, .b = dn, .factor = 1, .y = values.dx}, run.stream);
  }

  void weight_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t n = tokens(run.batch.rows);
    const std::size_t c = options_.width;
    MatmulEpilogue<float> epilogue;
    epilogue.beta = run.adds ? 1.0F : 0.0F;
    epilogue.adds_sums = run.adds;
    epilogue.b_sums = this->gradient(5);
    kernels::run(kernels::Matmul<T, float>{.a = g_.get(run.slot, n * inner()),
                                           .b = values.dy,
                                           .c = this->gradient(4),
                                           .shape = dw_shape(n, inner(), c),
                                           .epilogue = epilogue,
                                           .workspace = run.workspace},
                 run.stream);
    epilogue.b_sums = this->gradient(3);
    kernels::run(kernels::Matmul<T, float>{.a = norm_.result(run.slot, n),
                                           .b = dv_.get(run.slot, n * inner()),
                                           .c = this->gradient(2),
                                           .shape = dw_shape(n, c, inner()),
                                           .epilogue = epilogue,
                                           .workspace = run.workspace},
                 run.stream);
  }

 private:
  [[nodiscard]] std::size_t tokens(std::size_t rows) const { return rows * options_.context; }
  [[nodiscard]] std::size_t inner() const { return options_.width * options_.mlp_ratio; }

  GptOptions options_;
  unsigned number_;
  InputNorm<T> norm_;
  SlotBuffers<T> v_;   // (tokens, inner): before GELU
  SlotBuffers<T> g_;   // (tokens, inner)
  SlotBuffers<T> dv_;  // (tokens, inner)
};

template <class T>
class HeadLayer final : public NetworkLayer<T> {
 public:
  explicit HeadLayer(const GptOptions& options) : options_(options), norm_(options.width) {}

  [[nodiscard]] std::string name() const override { return "head"; }
  [[nodiscard]] unsigned block() const override { return static_cast<unsigned>(options_.layers) + 1; }
  [[nodiscard]] std::vector<ParameterSpec> parameters() const override {
    ParameterSpec table = matrix("wte.weight", options_.vocabulary, options_.width, kDeviation);
    table.tied = true;
    return {vector("ln_f.weight", options_.width, Initial::kOnes), vector("ln_f.bias", options_.width), table};
  }
  [[nodiscard]] std::size_t outputs() const override { return 0; }
  [[nodiscard]] bool weights_behind_output() const override { return false; }
  [[nodiscard]] LayerBytes bytes(std::size_t rows) const override {
    const std::uint64_t n = tokens(rows);
    const std::uint64_t logits = n * options_.vocabulary * sizeof(T);
    return {.output = 0,
            .kept = 2 * n * options_.width * sizeof(T) + logits + 8 * n,
            .kept_for_weights = n * options_.width * sizeof(T) + logits};
  }
  [[nodiscard]] double flops(std::size_t rows) const override {
    return 2 * as_double(tokens(rows)) * as_double(options_.width) * as_double(options_.vocabulary);
  }
  [[nodiscard]] std::size_t workspace_bytes(std::size_t rows, device::Device device) const override {
    const std::size_t n = tokens(rows);
    std::size_t products = 0;
    for (const MatmulShape& shape : {logits_shape(n), dn_shape(n), dtable_shape(n)})
      products = std::max(products, kernels::matmul_workspace_bytes(shape, device));
    return room_for<T>(n * options_.width) + std::max(products, norm_.workspace_bytes(n, device));
  }
  [[nodiscard]] Status reserve(unsigned slots, std::size_t rows, device::Stream& stream) override {
    DUNNOCK_TRY(norm_.reserve(slots, tokens(rows), stream));
    return logits_.reserve(slots, tokens(rows) * options_.vocabulary, stream);
  }

  void forward(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t n = tokens(run.batch.rows);
    norm_.forward(values.x, this->weight(0), this->weight(1), n, run);
    const device::Span<T> logits = logits_.get(run.slot, n * options_.vocabulary);
    kernels::run(kernels::Matmul<T, T>{.a = norm_.result(run.slot, n),
                                       .b = this->weight(2),
                                       .c = logits,
                                       .shape = logits_shape(n),
                                       .epilogue = {},
                                       .workspace = run.workspace},
                 run.stream);
    kernels::run(
        kernels::CrossEntropy<T>{
            .logits = logits,
            .targets = run.batch.targets,
            .losses = run.batch.losses,
            .gradient = run.training ? logits : device::Span<T>(),
            .shape = {.rows = n, .classes = options_.vocabulary, .gradient_factor = run.batch.gradient_factor}},
        run.stream);
  }

  void output_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t n = tokens(run.batch.rows);
    Workspace workspace(run.workspace);
    const device::Span<T> dn = workspace.take<T>(n * options_.width);
    kernels::run(kernels::Matmul<T, T>{.a = logits_.get(run.slot, n * options_.vocabulary),
                                       .b = this->weight(2),
                                       .c = dn,
                                       .shape = dn_shape(n),
                                       .epilogue = {},
                                       .workspace = workspace.rest()},
                 run.stream);
    norm_.backward(dn, values.x, this->weight(0), values.dx, this->gradient(0), this->gradient(1), n, workspace, run);
  }

  void weight_gradient(const LayerValues<T>& /*values*/, const LayerRun<T>& run) override {
    const std::size_t n = tokens(run.batch.rows);
    MatmulEpilogue<float> epilogue;
    epilogue.beta = run.adds ? 1.0F : 0.0F;
    kernels::run(kernels::Matmul<T, float>{.a = logits_.get(run.slot, n * options_.vocabulary),
                                           .b = norm_.result(run.slot, n),
                                           .c = this->gradient(2),
                                           .shape = dtable_shape(n),
                                           .epilogue = epilogue,
                                           .workspace = run.workspace},
                 run.stream);
  }

  [[nodiscard]] device::Span<const T> logits(unsigned slot) const override { return logits_.all(slot); }

 private:
  [[nodiscard]] std::size_t tokens(std::size_t rows) const { return rows * options_.context; }
  /// The table is (vocabulary, width).
  [[nodiscard]] MatmulShape logits_shape(std::size_t n) const {
    return {.rows = n, .columns = options_.vocabulary, .inner = options_.width, .transpose_b = true};
  }
  [[nodiscard]] MatmulShape dn_shape(std::size_t n) const {
    return {.rows = n, .columns = options_.width, .inner = options_.vocabulary};
  }
  [[nodiscard]] MatmulShape dtable_shape(std::size_t n) const {
    return {.rows = options_.vocabulary, .columns = options_.width, .inner = n, .transpose_a = true};
  }

  GptOptions options_;
  InputNorm<T> norm_;
  SlotBuffers<T> logits_;  // (tokens, vocabulary); after a forward pass in training their gradient.
};

}  // namespace

template <class T>
Layers<T> make_layers(const GptOptions& options) {
  Layers<T> layers;
  layers.push_back(std::make_unique<EmbeddingLayer<T>>(options));
  for (unsigned i = 0; i < options.layers; ++i) {
    layers.push_back(std::make_unique<AttentionLayer<T>>(options, i));
    layers.push_back(std::make_unique<MlpLayer<T>>(options, i));
  }
  layers.push_back(std::make_unique<HeadLayer<T>>(options));
  return layers;
}
template Layers<float> make_layers<float>(const GptOptions&);
template Layers<device::Bf16> make_layers<device::Bf16>(const GptOptions&);

}  // namespace dunnock::model
