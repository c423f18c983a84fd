// Attention against its twin, and the twin's gradients against differences.
#include "dunnock/kernels/attention.hpp"

#include <algorithm>
#include <limits>

#include "attention_parts.hpp"
#include "runners.hpp"

namespace dunnock::kernels {
namespace {

std::string text(const AttentionShape& shape) {
  return std::to_string(shape.batch) + " x " + std::to_string(shape.query_tokens) + " behind " +
         std::to_string(shape.key_tokens) + " tokens, " + std::to_string(shape.heads) + " on " +
         std::to_string(shape.kv_heads) + " heads of " + std::to_string(shape.head_dim) +
         (shape.causal ? ", causal" : "");
}

/// What the backward pass reads and gives.
template <class T>
struct Tensors {
  std::vector<T> q, k, v, o, o_grad;
  std::vector<float> lse;
  std::vector<T> dq, dk, dv;
};

template <class T>
HeadsView<T> plain(device::Span<T> span, std::size_t tokens, std::size_t heads, std::size_t head_dim) {
  return heads_view(span, {.tokens = tokens, .heads = heads, .head_dim = head_dim});
}

class Attentions : public test::OnEachRunner {
 protected:
  AttentionShape any_shape() {
    constexpr std::size_t kDims[] = {1, 7, 16, 32, 33, 40, 64, 80, 128, 130, 256};
    const std::size_t longest = emulated() ? 90 : 200;
    AttentionShape shape;
    shape.batch = any_size(2);
    shape.key_tokens = any_size(longest);
    shape.query_tokens = random()() % 2 == 0 ? shape.key_tokens : any_size(longest);
    shape.kv_heads = any_size(2);
    shape.heads = shape.kv_heads * any_size(emulated() ? 2 : 3);
    shape.head_dim = kDims[random()() % std::size(kDims)];
    shape.causal = random()() % 2 == 0;
    if (random()() % 4 == 0) shape.scale = 1.5F / std::sqrt(static_cast<float>(shape.head_dim));
    return shape;
  }

  template <class T>
  Tensors<T> any_tensors(const AttentionShape& shape) {
    Tensors<T> tensors;
    tensors.q = normal<T>(shape.batch * shape.query_tokens * shape.heads * shape.head_dim);
    tensors.k = normal<T>(shape.batch * shape.key_tokens * shape.kv_heads * shape.head_dim);
    tensors.v = normal<T>(tensors.k.size());
    tensors.o = normal<T>(tensors.q.size());
    tensors.o_grad = normal<T>(tensors.q.size());
    return tensors;
  }

  template <class T>
  void forward(Tensors<T>& tensors, const AttentionShape& shape, device::Stream& on, bool twin) {
    const auto q = put(tensors.q, on);
    const auto k = put(tensors.k, on);
    const auto v = put(tensors.v, on);
    const auto o = put(tensors.o, on);
    const auto lse = put(std::vector<float>(shape.batch * shape.heads * shape.query_tokens), on);
    const AttentionInputs<T> in{plain<const T>(q, shape.query_tokens, shape.heads, shape.head_dim),
                                plain<const T>(k, shape.key_tokens, shape.kv_heads, shape.head_dim),
                                plain<const T>(v, shape.key_tokens, shape.kv_heads, shape.head_dim)};
    const auto to = plain<T>(o, shape.query_tokens, shape.heads, shape.head_dim);
    run_form(twin, Attention<T>{.in = in, .o = to, .lse = lse, .shape = shape}, on);
    tensors.o = get(o.span(), on);
    tensors.lse = get(lse.span(), on);
  }

  template <class T>
  void backward(Tensors<T>& tensors, const AttentionShape& shape, device::Stream& on, bool twin) {
    const auto q = put(tensors.q, on);
    const auto k = put(tensors.k, on);
    const auto v = put(tensors.v, on);
    const auto o = put(tensors.o, on);
    const auto o_grad = put(tensors.o_grad, on);
    const auto lse = put(tensors.lse, on);
    const auto dq = put(std::vector<T>(tensors.q.size(), T(77)), on);
    const auto dk = put(std::vector<T>(tensors.k.size(), T(77)), on);
    const auto dv = put(std::vector<T>(tensors.k.size(), T(77)), on);
    const std::size_t floats = emulated() && !twin ? detail::emulated::attention_backward_workspace(shape)
                                                   : attention_backward_workspace(shape, on.device());
    const auto space = put(std::vector<float>(floats, std::numeric_limits<float>::quiet_NaN()), on);
    const AttentionInputs<T> in{plain<const T>(q, shape.query_tokens, shape.heads, shape.head_dim),
                                plain<const T>(k, shape.key_tokens, shape.kv_heads, shape.head_dim),
                                plain<const T>(v, shape.key_tokens, shape.kv_heads, shape.head_dim)};
    const AttentionResults<T> results{plain<const T>(o, shape.query_tokens, shape.heads, shape.head_dim),
                                      plain<const T>(o_grad, shape.query_tokens, shape.heads, shape.head_dim), lse};
    const AttentionGradients<T> gradients{plain<T>(dq, shape.query_tokens, shape.heads, shape.head_dim),
                                          plain<T>(dk, shape.key_tokens, shape.kv_heads, shape.head_dim),
                                          plain<T>(dv, shape.key_tokens, shape.kv_heads, shape.head_dim)};
    if (twin) {
      reference::run(
          AttentionBackward<T>{.in = in, .results = results, .gradients = gradients, .shape = shape, .workspace = {}},
          on);
    } else if (emulated()) {
      detail::emulated::run(
          AttentionBackward<T>{
              .in = in, .results = results, .gradients = gradients, .shape = shape, .workspace = space},
          on);
    } else {
      kernels::run(
          AttentionBackward<T>{
              .in = in, .results = results, .gradients = gradients, .shape = shape, .workspace = space},
          on);
    }
    tensors.dq = get(dq.span(), on);
    tensors.dk = get(dk.span(), on);
    tensors.dv = get(dv.span(), on);
  }

  /// Within a share of the largest value: a logit of 10 has an error of 5e-6 or so as a float, which is p's relative
  /// one; and p is rounded to Bf16 on CUDA. Where all should be 0 (a query that sees one key has no choice, so ds = p *
  /// (dp - delta) is 0), what is left is rounding: dp and delta are sums of some head_dim products, each within 6e-8 of
  /// its size, and dk sums that over the queries: some 1e-6 in all, seen 1.06e-6 (seed 3081984113).
  template <class T>
  static void expect_near(const std::vector<T>& values, const std::vector<T>& expected, const std::string& what) {
    double largest = 0;
    for (const T value : expected) largest = std::max(largest, std::abs(double(float(value))));
    const double share = std::is_same_v<T, float> ? 1e-5 : 0.008;
    test::expect_close(values, expected, test::kRounding<T>, share * largest + 1e-5, what);
  }
  static void expect_log_sums(const std::vector<float>& values, const std::vector<float>& expected) {
    ASSERT_EQ(values.size(), expected.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (std::isinf(expected[i])) {
        ASSERT_EQ(values[i], expected[i]) << "lse [" << i << "]";
      } else {
        ASSERT_NEAR(values[i], expected[i], 2e-5 + 5e-6 * std::abs(expected[i])) << "lse [" << i << "]";
      }
    }
  }

  template <class T>
  void agrees(const AttentionShape& shape, Tensors<T> tensors) {
    SCOPED_TRACE(text(shape) + " (seed " + std::to_string(test::seed()) + ")");
    Tensors<T> twin = tensors;
    forward(tensors, shape, stream(), false);
    forward(twin, shape, twin_stream(), true);
    expect_near(tensors.o, twin.o, "o");
    expect_log_sums(tensors.lse, twin.lse);
    if (HasFatalFailure()) return;
    tensors.o = twin.o;
    tensors.lse = twin.lse;
    backward(tensors, shape, stream(), false);
    backward(twin, shape, twin_stream(), true);
    expect_near(tensors.dq, twin.dq, "dq");
    expect_near(tensors.dk, twin.dk, "dk");
    expect_near(tensors.dv, twin.dv, "dv");
  }

  template <class T>
  void any_shapes_agree() {
    for (int round = 0; round < (emulated() ? 8 : 25) && !HasFatalFailure(); ++round) {
      const AttentionShape shape = any_shape();
      agrees<T>(shape, any_tensors<T>(shape));
    }
  }

  /// In place in a packed projection, whose gradient is packed too.
  template <class T>
  void packed_agrees() {
    const AttentionShape shape{
        .batch = 2, .query_tokens = 37, .key_tokens = 37, .heads = 2, .kv_heads = 2, .head_dim = 32};
    const std::size_t values = shape.batch * shape.query_tokens * shape.heads * shape.head_dim;
    const std::size_t rows = shape.query_tokens + 1;  // One lies between two entries of the batch.
    const auto qkv = normal<T>(3 * shape.batch * rows * shape.heads * shape.head_dim);
    const auto o_grad = normal<T>(values);
    const auto run = [&](device::Stream& on, bool twin, std::vector<T>& o_out) {
      const auto packed = put(qkv, on);
      const auto gradient = put(std::vector<T>(qkv.size()), on);
      const auto o = put(std::vector<T>(values), on);
      const auto grad = put(o_grad, on);
      const auto lse = put(std::vector<float>(shape.batch * shape.heads * shape.query_tokens), on);
      const auto space = put(std::vector<float>(attention_backward_workspace(shape, on.device())), on);
      const auto part = [&](const auto& of, std::size_t n) {
        return heads_view(
            of.span(),
            {.tokens = rows, .heads = 3 * shape.heads, .head_dim = shape.head_dim, .first_head = n * shape.heads});
      };
      const auto o_view = plain<T>(o, shape.query_tokens, shape.heads, shape.head_dim);
      const auto grad_view = plain<T>(grad, shape.query_tokens, shape.heads, shape.head_dim);
      const AttentionInputs<T> in{part(packed, 0), part(packed, 1), part(packed, 2)};
      const AttentionResults<T> results{o_view, grad_view, lse};
      const AttentionGradients<T> gradients{part(gradient, 0), part(gradient, 1), part(gradient, 2)};
      run_form(twin, Attention<T>{.in = in, .o = o_view, .lse = lse, .shape = shape}, on);
      run_form(twin,
               AttentionBackward<T>{
                   .in = in, .results = results, .gradients = gradients, .shape = shape, .workspace = space},
               on);
      o_out = get(o.span(), on);
      return get(gradient.span(), on);
    };
    std::vector<T> o, twin_o;
    const auto gradient = run(stream(), false, o);
    const auto twin = run(twin_stream(), true, twin_o);
    expect_near(o, twin_o, "o");
    expect_near(gradient, twin, "dqkv");
  }

  /// Logits of some 1e4.
  template <class T>
  void large_logits_agree() {
    const AttentionShape shape{
        .batch = 1, .query_tokens = 20, .key_tokens = 70, .heads = 1, .kv_heads = 1, .head_dim = 64};
    Tensors<T> tensors = any_tensors<T>(shape);
    tensors.q = normal<T>(tensors.q.size(), 100);
    tensors.k = normal<T>(tensors.k.size(), 100);
    Tensors<T> twin = tensors;
    forward(tensors, shape, stream(), false);
    forward(twin, shape, twin_stream(), true);
    // A logit of 1e4 has an error of 1e-3 or so as a float, and that is the relative one of its p.
    test::expect_close(tensors.o, twin.o, 0.02, 0.02, "o");
    tensors.lse = twin.lse;
    backward(tensors, shape, stream(), false);
    for (const auto* gradient : {&tensors.dq, &tensors.dk, &tensors.dv}) {
      for (const T value : *gradient) ASSERT_TRUE(std::isfinite(float(value)));
    }
  }
};
DUNNOCK_ON_EACH_RUNNER(Attentions);

TEST_P(Attentions, of_floats_agrees_with_its_twin) { any_shapes_agree<float>(); }
TEST_P(Attentions, of_bf16_agrees_with_its_twin) { any_shapes_agree<device::Bf16>(); }
TEST_P(Attentions, reads_and_writes_packed_projections_of_floats_in_place) { packed_agrees<float>(); }
TEST_P(Attentions, reads_and_writes_packed_projections_of_bf16_in_place) { packed_agrees<device::Bf16>(); }
TEST_P(Attentions, takes_large_logits_of_floats) { large_logits_agree<float>(); }
TEST_P(Attentions, takes_large_logits_of_bf16) { large_logits_agree<device::Bf16>(); }

TEST_P(Attentions, of_each_dimension_that_has_its_kernel_agrees) {
  for (const std::size_t dim : {32, 64, 128, 256}) {
    const AttentionShape shape{
        .batch = 1, .query_tokens = 70, .key_tokens = 133, .heads = 2, .kv_heads = 1, .head_dim = dim};
    agrees<float>(shape, any_tensors<float>(shape));
    agrees<device::Bf16>(shape, any_tensors<device::Bf16>(shape));
  }
}

TEST_P(Attentions, rows_that_see_no_key_are_zero) {
  AttentionShape shape{.batch = 1, .query_tokens = 70, .key_tokens = 3, .heads = 2, .kv_heads = 1, .head_dim = 16};
  agrees<float>(shape, any_tensors<float>(shape));
  agrees<device::Bf16>(shape, any_tensors<device::Bf16>(shape));
  shape.key_tokens = 0;
  for (const bool causal : {true, false}) {
    shape.causal = causal;
    Tensors<float> tensors = any_tensors<float>(shape);
    forward(tensors, shape, stream(), false);
    for (const float value : tensors.o) ASSERT_EQ(value, 0.0F);
    for (const float value : tensors.lse) ASSERT_EQ(value, -std::numeric_limits<float>::infinity());
    backward(tensors, shape, stream(), false);
    for (const float value : tensors.dq) ASSERT_EQ(value, 0.0F);
  }
}

TEST_P(Attentions, gradients_of_keys_that_no_query_sees_are_zero) {
  const AttentionShape shape{.batch = 1, .query_tokens = 0, .key_tokens = 5, .heads = 2, .kv_heads = 1, .head_dim = 16};
  Tensors<float> tensors = any_tensors<float>(shape);
  backward(tensors, shape, stream(), false);
  for (const float value : tensors.dk) ASSERT_EQ(value, 0.0F);
  for (const float value : tensors.dv) ASSERT_EQ(value, 0.0F);
}

TEST_P(Attentions, gives_the_same_bits_in_each_run) {
  const AttentionShape shape{
      .batch = 1, .query_tokens = 150, .key_tokens = 150, .heads = 3, .kv_heads = 1, .head_dim = 32};
  Tensors<float> first = any_tensors<float>(shape);
  Tensors<float> second = first;
  forward(first, shape, stream(), false);
  backward(first, shape, stream(), false);
  // On the CPU another number of threads makes no difference either.
  auto other = std::move(*device::Stream::create(stream().device(), {.threads = 1}));
  forward(second, shape, other, false);
  backward(second, shape, other, false);
  EXPECT_EQ(first.o, second.o);
  EXPECT_EQ(first.lse, second.lse);
  EXPECT_EQ(first.dq, second.dq);
  EXPECT_EQ(first.dk, second.dk);
  EXPECT_EQ(first.dv, second.dv);
}

/// Of loss = sum of o * g, by central differences.
class AttentionTwin : public Attentions {};
INSTANTIATE_TEST_SUITE_P(Runners, AttentionTwin, ::testing::Values(test::Runner::kCpu), test::name_of_runner);

TEST_P(AttentionTwin, has_the_gradients_that_differences_give) {
  for (const bool causal : {true, false}) {
    const AttentionShape shape{
        .batch = 1, .query_tokens = 4, .key_tokens = 6, .heads = 4, .kv_heads = 2, .head_dim = 3, .causal = causal};
    Tensors<float> tensors = any_tensors<float>(shape);
    forward(tensors, shape, twin_stream(), true);
    backward(tensors, shape, twin_stream(), true);
    const auto loss = [&](const Tensors<float>& at) {
      Tensors<float> there = at;
      forward(there, shape, twin_stream(), true);
      double sum = 0;
      for (std::size_t i = 0; i < there.o.size(); ++i) sum += double(there.o[i]) * double(at.o_grad[i]);
      return sum;
    };
    constexpr float kStep = 1.0F / 128;
    const auto check = [&](std::vector<float> Tensors<float>::*values, const std::vector<float>& gradient) {
      for (std::size_t i = 0; i < gradient.size(); ++i) {
        Tensors<float> above = tensors;
        Tensors<float> below = tensors;
        (above.*values)[i] += kStep;
        (below.*values)[i] -= kStep;
        const double step = double((above.*values)[i]) - double((below.*values)[i]);
        ASSERT_NEAR((loss(above) - loss(below)) / step, gradient[i], 1e-3) << i << " (seed " << test::seed() << ")";
      }
    };
    check(&Tensors<float>::q, tensors.dq);
    check(&Tensors<float>::k, tensors.dk);
    check(&Tensors<float>::v, tensors.dv);
  }
}

class AttentionChecks : public Attentions {};
INSTANTIATE_TEST_SUITE_P(Runners, AttentionChecks, ::testing::Values(test::Runner::kCpu), test::name_of_runner);

TEST_P(AttentionChecks, refuses_shapes_that_do_not_fit) {
  const AttentionShape good{.batch = 1, .query_tokens = 2, .key_tokens = 2, .heads = 2, .kv_heads = 1, .head_dim = 4};
  const auto with = [&](AttentionShape shape, const char* why) {
    const auto q = put(std::vector<float>(16), stream());
    const AttentionInputs<float> in{plain<const float>(q, 2, 2, 4), plain<const float>(q, 2, 1, 4),
                                    plain<const float>(q, 2, 1, 4)};
    EXPECT_DEATH(
        kernels::run(Attention<float>{.in = in, .o = plain<float>(q, 2, 2, 4), .lse = {}, .shape = shape}, stream()),
        why);
  };
  AttentionShape shape = good;
  shape.head_dim = 257;
  with(shape, "1 to 256 dimensions");
  shape = good;
  shape.heads = 3;
  shape.kv_heads = 2;
  with(shape, "a multiple of the heads of keys");
  shape = good;
  shape.key_tokens = 200;
  with(shape, "views are within their memory");
  shape = good;
  shape.kv_heads = 0;
  with(shape, "there is at least one head of keys");
  shape = good;
  shape.scale = -1;
  with(shape, "a scale is not negative");
}

TEST_P(AttentionChecks, refuses_a_workspace_that_is_too_small) {
  const AttentionShape shape{.batch = 1, .query_tokens = 2, .key_tokens = 2, .heads = 1, .kv_heads = 1, .head_dim = 4};
  const auto q = put(std::vector<float>(8), stream());
  const auto lse = put(std::vector<float>(2), stream());
  const auto view = plain<float>(q, 2, 1, 4);
  EXPECT_DEATH(kernels::run(AttentionBackward<float>{.in = {view, view, view},
                                                     .results = {view, view, lse},
                                                     .gradients = {view, view, view},
                                                     .shape = shape,
                                                     .workspace = {}},
                            stream()),
               "workspace is large enough");
}

}  // namespace
}  // namespace dunnock::kernels
