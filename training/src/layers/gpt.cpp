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

#include "dunnock/gpu/kernels/attention.hpp"
#include "dunnock/gpu/kernels/cross_entropy.hpp"
#include "dunnock/gpu/kernels/elementwise.hpp"
#include "dunnock/gpu/kernels/embedding.hpp"
#include "dunnock/gpu/kernels/matmul.hpp"
#include "dunnock/gpu/kernels/norm.hpp"
#include "dunnock/gpu/kernels/rotary.hpp"
#include "layers.hpp"
#include "workspace.hpp"

namespace dunnock::training {
namespace {

using gpu::DeviceSpan;
using gpu::MatmulEpilogue;
using gpu::MatmulShape;

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
std::size_t most_workspace(std::size_t tokens, std::size_t in, std::size_t out, gpu::Device device) {
  std::size_t bytes = 0;
  for (const MatmulShape& shape :
       {forward_shape(tokens, in, out), dx_shape(tokens, in, out), dw_shape(tokens, in, out)})
    bytes = std::max(bytes, gpu::matmul_workspace_bytes(shape, device));
  return bytes;
}

double as_double(std::size_t n) { return static_cast<double>(n); }

/// The norm before a link, and the gradient after it: dx = norm backward of dn, plus dy.
template <class T>
class InputNorm {
 public:
  explicit InputNorm(std::size_t width) : width_(width) {}

  [[nodiscard]] gpu::NormShape shape(std::size_t tokens) const { return {.rows = tokens, .columns = width_}; }
  [[nodiscard]] std::size_t workspace_bytes(std::size_t tokens, gpu::Device device) const {
    return 2 * MadeGradient<T>::room(width_) + room_for<float>(gpu::norm_backward_workspace(shape(tokens), device));
  }
  [[nodiscard]] std::uint64_t bytes(std::size_t tokens) const { return tokens * (width_ * sizeof(T) + 8); }
  [[nodiscard]] Status reserve(unsigned slots, std::size_t tokens, gpu::Stream& stream) {
    DUNNOCK_TRY(n_.reserve(slots, tokens * width_, stream));
    DUNNOCK_TRY(mean_.reserve(slots, tokens, stream));
    return r_.reserve(slots, tokens, stream);
  }
  [[nodiscard]] DeviceSpan<T> result(unsigned slot, std::size_t tokens) const { return n_.get(slot, tokens * width_); }

  void forward(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias, std::size_t tokens,
               const LayerRun<T>& run) {
    gpu::layer_norm<T>(x, weight, bias, result(run.slot, tokens), mean_.get(run.slot, tokens), r_.get(run.slot, tokens),
                       shape(tokens), run.stream);
  }
  /// dx (tokens, width) = backward of dn, which may be dx.
  void backward(DeviceSpan<const T> dn, DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<T> dx,
                DeviceSpan<float> dweight, DeviceSpan<float> dbias, std::size_t tokens, Workspace workspace,
                const LayerRun<T>& run) {
    const MadeGradient<T> of_weight(dweight, run.adds, workspace);
    const MadeGradient<T> of_bias(dbias, run.adds, workspace);
    gpu::layer_norm_backward<T>(dn, x, weight, mean_.get(run.slot, tokens), r_.get(run.slot, tokens), dx,
                                of_weight.target(), of_bias.target(), of_weight.kernel_adds(), shape(tokens),
                                workspace.take<float>(gpu::norm_backward_workspace(shape(tokens), run.stream.device())),
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
  [[nodiscard]] std::size_t workspace_bytes(std::size_t rows, gpu::Device device) const override {
    return std::max(
        room_for<std::uint32_t>(gpu::embedding_backward_workspace(rows * options_.context, shape(), device)),
        MadeGradient<T>::room(outputs()) + room_for<float>(gpu::column_sums_workspace({rows, outputs()}, device)));
  }
  [[nodiscard]] Status reserve(unsigned /*slots*/, std::size_t /*rows*/, gpu::Stream& /*stream*/) override {
    return {};
  }

  void forward(const LayerValues<T>& values, const LayerRun<T>& run) override {
    gpu::embedding<T>(this->weight(0), learned() ? this->weight(1) : DeviceSpan<const T>(), run.batch.tokens, values.y,
                      shape(), run.stream);
  }
  void output_gradient(const LayerValues<T>& /*values*/, const LayerRun<T>& /*run*/) override {}
  void weight_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t words = gpu::embedding_backward_workspace(run.batch.tokens.size(), shape(), run.stream.device());
    gpu::embedding_backward<T, float>(values.dy, run.batch.tokens, this->gradient(0), run.adds, shape(),
                                      Workspace(run.workspace).take<std::uint32_t>(words), run.stream);
    if (!learned()) return;
    const gpu::RowMatrix rows{run.batch.rows, outputs()};
    Workspace workspace(run.workspace);
    const MadeGradient<T> of_positions(this->gradient(1), run.adds, workspace);
    gpu::column_sums<T>(values.dy, of_positions.target(), of_positions.kernel_adds(), rows,
                        workspace.take<float>(gpu::column_sums_workspace(rows, run.stream.device())), run.stream);
    of_positions.add(run.stream);
  }

 private:
  [[nodiscard]] bool learned() const { return options_.positions == Positions::kLearned; }
  [[nodiscard]] gpu::EmbeddingShape shape() const { return {options_.vocabulary, options_.width}; }

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
  [[nodiscard]] std::size_t workspace_bytes(std::size_t rows, gpu::Device device) const override {
    const std::size_t n = tokens(rows);
    const std::size_t c = options_.width;
    const std::size_t products = std::max(most_workspace(n, c, 3 * c, device), most_workspace(n, c, c, device));
    return room_for<T>(n * c) +
           std::max({products, room_for<float>(gpu::attention_backward_workspace(attention_shape(rows), device)),
                     norm_.workspace_bytes(n, device)});
  }
  [[nodiscard]] Status reserve(unsigned slots, std::size_t rows, gpu::Stream& stream) override {
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
    const DeviceSpan<T> qkv = qkv_.get(run.slot, 3 * n * c);
    gpu::matmul<T, T>(norm_.result(run.slot, n), this->weight(2), qkv, forward_shape(n, c, 3 * c), to_qkv,
                      run.workspace, run.stream);
    if (rotary()) gpu::rotary<T>(packed(qkv, 0), table_, positions_of(rows), rotary_shape(rows), run.stream);
    const DeviceSpan<T> o = o_.get(run.slot, n * c);
    gpu::attention<T>({packed(qkv, 0), packed(qkv, 1), packed(qkv, 2)}, heads(o),
                      lse_.get(run.slot, n * options_.heads), attention_shape(rows), run.stream);
    gpu::device_copy(values.y, values.x, run.stream);
    MatmulEpilogue<T> projection;
    projection.beta = 1;
    projection.bias = this->weight(5);
    gpu::matmul<T, T>(o, this->weight(4), values.y, forward_shape(n, c, c), projection, run.workspace, run.stream);
  }

  void output_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t rows = run.batch.rows;
    const std::size_t n = tokens(rows);
    const std::size_t c = options_.width;
    Workspace workspace(run.workspace);
    const DeviceSpan<T> between = workspace.take<T>(n * c);  // do, then dn
    gpu::matmul<T, T>(values.dy, this->weight(4), between, dx_shape(n, c, c), {}, workspace.rest(), run.stream);
    const DeviceSpan<T> qkv = qkv_.get(run.slot, 3 * n * c);
    const DeviceSpan<T> dqkv = dqkv_.get(run.slot, 3 * n * c);
    const std::size_t floats = gpu::attention_backward_workspace(attention_shape(rows), run.stream.device());
    gpu::attention_backward<T>({packed(qkv, 0), packed(qkv, 1), packed(qkv, 2)},
                               {heads(o_.get(run.slot, n * c)), heads(between), lse_.get(run.slot, n * options_.heads)},
                               {packed(dqkv, 0), packed(dqkv, 1), packed(dqkv, 2)}, attention_shape(rows),
                               Workspace(workspace.rest()).take<float>(floats), run.stream);
    if (rotary()) gpu::rotary_backward<T>(packed(dqkv, 0), table_, positions_of(rows), rotary_shape(rows), run.stream);
    gpu::matmul<T, T>(dqkv, this->weight(2), between, dx_shape(n, c, 3 * c), {}, workspace.rest(), run.stream);
    norm_.backward(between, values.x, this->weight(0), between, this->gradient(0), this->gradient(1), n, workspace,
                   run);
    gpu::add_scaled<T>(values.dy, between, 1, values.dx, run.stream);
  }

  void weight_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t n = tokens(run.batch.rows);
    const std::size_t c = options_.width;
    MatmulEpilogue<float> epilogue;
    epilogue.beta = run.adds ? 1.0F : 0.0F;
    epilogue.adds_sums = run.adds;
    epilogue.b_sums = this->gradient(5);
    gpu::matmul<T, float>(o_.get(run.slot, n * c), values.dy, this->gradient(4), dw_shape(n, c, c), epilogue,
                          run.workspace, run.stream);
    epilogue.b_sums = this->gradient(3);
    gpu::matmul<T, float>(norm_.result(run.slot, n), dqkv_.get(run.slot, 3 * n * c), this->gradient(2),
                          dw_shape(n, c, 3 * c), epilogue, run.workspace, run.stream);
  }

 private:
  [[nodiscard]] std::size_t tokens(std::size_t rows) const { return rows * options_.context; }
  [[nodiscard]] std::size_t head_dim() const { return options_.width / options_.heads; }
  [[nodiscard]] bool rotary() const { return options_.positions == Positions::kRotary; }
  [[nodiscard]] gpu::AttentionShape attention_shape(std::size_t rows) const {
    return {.batch = rows,
            .query_tokens = options_.context,
            .key_tokens = options_.context,
            .heads = options_.heads,
            .kv_heads = options_.heads,
            .head_dim = head_dim()};
  }
  /// q's and k's heads lie side by side, so both are turned in one call.
  [[nodiscard]] gpu::RotaryShape rotary_shape(std::size_t rows) const {
    return {.batch = rows,
            .tokens = options_.context,
            .heads = 2 * options_.heads,
            .head_dim = head_dim(),
            .rotary_dim = head_dim()};
  }
  [[nodiscard]] gpu::HeadsView<T> packed(DeviceSpan<T> qkv, std::size_t third) const {
    return gpu::heads_view(qkv, {.tokens = options_.context,
                                 .heads = 3 * options_.heads,
                                 .head_dim = head_dim(),
                                 .first_head = third * options_.heads});
  }
  [[nodiscard]] gpu::HeadsView<T> heads(DeviceSpan<T> o) const {
    return gpu::heads_view(o, {.tokens = options_.context, .heads = options_.heads, .head_dim = head_dim()});
  }
  [[nodiscard]] DeviceSpan<const std::int32_t> positions_of(std::size_t rows) const {
    return positions_.span().subspan(0, tokens(rows));
  }
  [[nodiscard]] Status reserve_rotary(std::size_t rows, gpu::Stream& stream) {
    DUNNOCK_TRY(auto table, gpu::Buffer<float>::create(options_.context * head_dim(), stream));
    table_ = std::move(table);
    gpu::rotary_table(table_, {.positions = options_.context, .rotary_dim = head_dim()}, stream);
    DUNNOCK_TRY(auto positions, gpu::Buffer<std::int32_t>::create(tokens(rows), stream));
    positions_ = std::move(positions);
    std::vector<std::int32_t> numbers(tokens(rows));
    for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<std::int32_t>(i % options_.context);
    gpu::upload(positions_.span(), numbers, stream);
    return stream.synchronize();  // For `numbers` goes.
  }

  GptOptions options_;
  unsigned number_;
  InputNorm<T> norm_;
  SlotBuffers<T> qkv_;                   // (rows, context, 3, heads, head_dim)
  SlotBuffers<T> dqkv_;                  // the same
  SlotBuffers<T> o_;                     // (rows, context, heads, head_dim)
  SlotBuffers<float> lse_;               // (rows, heads, context)
  gpu::Buffer<float> table_;             // (context, head_dim / 2, 2)
  gpu::Buffer<std::int32_t> positions_;  // (rows, context)
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
  [[nodiscard]] std::size_t workspace_bytes(std::size_t rows, gpu::Device device) const override {
    const std::size_t n = tokens(rows);
    const std::size_t c = options_.width;
    const std::size_t products = std::max(most_workspace(n, c, inner(), device), most_workspace(n, inner(), c, device));
    return room_for<T>(n * c) + std::max(products, norm_.workspace_bytes(n, device));
  }
  [[nodiscard]] Status reserve(unsigned slots, std::size_t rows, gpu::Stream& stream) override {
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
    up.activation = gpu::MatmulActivation::kGelu;
    up.saved = v_.get(run.slot, n * inner());
    gpu::matmul<T, T>(norm_.result(run.slot, n), this->weight(2), g_.get(run.slot, n * inner()),
                      forward_shape(n, c, inner()), up, run.workspace, run.stream);
    gpu::device_copy(values.y, values.x, run.stream);
    MatmulEpilogue<T> projection;
    projection.beta = 1;
    projection.bias = this->weight(5);
    gpu::matmul<T, T>(g_.get(run.slot, n * inner()), this->weight(4), values.y, forward_shape(n, inner(), c),
                      projection, run.workspace, run.stream);
  }

  void output_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t n = tokens(run.batch.rows);
    const std::size_t c = options_.width;
    Workspace workspace(run.workspace);
    const DeviceSpan<T> dn = workspace.take<T>(n * c);
    MatmulEpilogue<T> slope;
    slope.activation = gpu::MatmulActivation::kGelu;
    slope.gradient_at = v_.get(run.slot, n * inner());
    const DeviceSpan<T> dv = dv_.get(run.slot, n * inner());
    gpu::matmul<T, T>(values.dy, this->weight(4), dv, dx_shape(n, inner(), c), slope, workspace.rest(), run.stream);
    gpu::matmul<T, T>(dv, this->weight(2), dn, dx_shape(n, c, inner()), {}, workspace.rest(), run.stream);
    norm_.backward(dn, values.x, this->weight(0), dn, this->gradient(0), this->gradient(1), n, workspace, run);
    gpu::add_scaled<T>(values.dy, dn, 1, values.dx, run.stream);
  }

  void weight_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t n = tokens(run.batch.rows);
    const std::size_t c = options_.width;
    MatmulEpilogue<float> epilogue;
    epilogue.beta = run.adds ? 1.0F : 0.0F;
    epilogue.adds_sums = run.adds;
    epilogue.b_sums = this->gradient(5);
    gpu::matmul<T, float>(g_.get(run.slot, n * inner()), values.dy, this->gradient(4), dw_shape(n, inner(), c),
                          epilogue, run.workspace, run.stream);
    epilogue.b_sums = this->gradient(3);
    gpu::matmul<T, float>(norm_.result(run.slot, n), dv_.get(run.slot, n * inner()), this->gradient(2),
                          dw_shape(n, c, inner()), epilogue, run.workspace, run.stream);
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
  [[nodiscard]] std::size_t workspace_bytes(std::size_t rows, gpu::Device device) const override {
    const std::size_t n = tokens(rows);
    std::size_t products = 0;
    for (const MatmulShape& shape : {logits_shape(n), dn_shape(n), dtable_shape(n)})
      products = std::max(products, gpu::matmul_workspace_bytes(shape, device));
    return room_for<T>(n * options_.width) + std::max(products, norm_.workspace_bytes(n, device));
  }
  [[nodiscard]] Status reserve(unsigned slots, std::size_t rows, gpu::Stream& stream) override {
    DUNNOCK_TRY(norm_.reserve(slots, tokens(rows), stream));
    return logits_.reserve(slots, tokens(rows) * options_.vocabulary, stream);
  }

  void forward(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t n = tokens(run.batch.rows);
    norm_.forward(values.x, this->weight(0), this->weight(1), n, run);
    const DeviceSpan<T> logits = logits_.get(run.slot, n * options_.vocabulary);
    gpu::matmul<T, T>(norm_.result(run.slot, n), this->weight(2), logits, logits_shape(n), {}, run.workspace,
                      run.stream);
    gpu::cross_entropy<T>(logits, run.batch.targets, run.batch.losses, run.training ? logits : DeviceSpan<T>(),
                          {.rows = n, .classes = options_.vocabulary, .gradient_factor = run.batch.gradient_factor},
                          run.stream);
  }

  void output_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t n = tokens(run.batch.rows);
    Workspace workspace(run.workspace);
    const DeviceSpan<T> dn = workspace.take<T>(n * options_.width);
    gpu::matmul<T, T>(logits_.get(run.slot, n * options_.vocabulary), this->weight(2), dn, dn_shape(n), {},
                      workspace.rest(), run.stream);
    norm_.backward(dn, values.x, this->weight(0), values.dx, this->gradient(0), this->gradient(1), n, workspace, run);
  }

  void weight_gradient(const LayerValues<T>& /*values*/, const LayerRun<T>& run) override {
    const std::size_t n = tokens(run.batch.rows);
    MatmulEpilogue<float> epilogue;
    epilogue.beta = run.adds ? 1.0F : 0.0F;
    gpu::matmul<T, float>(logits_.get(run.slot, n * options_.vocabulary), norm_.result(run.slot, n), this->gradient(2),
                          dtable_shape(n), epilogue, run.workspace, run.stream);
  }

  [[nodiscard]] DeviceSpan<const T> logits(unsigned slot) const override { return logits_.all(slot); }

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
template Layers<gpu::Bf16> make_layers<gpu::Bf16>(const GptOptions&);

}  // namespace dunnock::training
