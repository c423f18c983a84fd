// What headers promise of sums on the CPU: the same bits with any number of threads.
#include <cstring>

#include "dunnock/kernels/attention.hpp"
#include "dunnock/kernels/elementwise.hpp"
#include "dunnock/kernels/embedding.hpp"
#include "dunnock/kernels/gather.hpp"
#include "dunnock/kernels/norm.hpp"
#include "dunnock/kernels/paged_attention.hpp"
#include "dunnock/kernels/reduce.hpp"
#include "runners.hpp"

namespace dunnock::kernels {
namespace {

/// Sizes are such that several threads have work, and do not divide evenly.
class OfAnyThreads : public test::OnEachRunner {
 protected:
  /// run(stream) gives floats; each number of threads must give the same.
  template <class Run>
  void same_bits(const Run& run) {
    std::vector<float> of_one;
    for (const unsigned threads : {1U, 2U, 3U, 7U}) {
      auto on = std::move(*device::Stream::create(device::Device::cpu(), {.threads = threads}));
      const std::vector<float> is = run(on);
      if (threads == 1) of_one = is;
      ASSERT_EQ(is.size(), of_one.size());
      EXPECT_EQ(std::memcmp(is.data(), of_one.data(), is.size() * sizeof(float)), 0)
          << threads << " threads, seed " << test::seed();
    }
  }
  static void add(std::vector<float>& all, device::Span<float> span, device::Stream& on) {
    const auto values = get(span, on);
    all.insert(all.end(), values.begin(), values.end());
  }
  device::Buffer<float> space(std::size_t floats, device::Stream& on) {
    return put(std::vector<float>(floats + 1), on);
  }
};
INSTANTIATE_TEST_SUITE_P(Runners, OfAnyThreads, ::testing::Values(test::Runner::kCpu), test::name_of_runner);

TEST_P(OfAnyThreads, sums_and_norms_have_the_same_bits) {
  const auto x = normal<float>(300'007);
  same_bits([&](device::Stream& on) {
    auto xs = put(x, on);
    auto result = put(std::vector<float>(2), on);
    auto workspace = space(reduce_workspace(x.size()) + 1, on);
    std::vector<ReduceTensor<float>> table{{.values = xs.span().device_data(), .size = 100'001},
                                           {.values = xs.span().device_data() + 100'001, .size = 200'006}};
    const std::size_t chunks = lay_out(std::span(table));
    auto tensors = put(table, on);
    kernels::run(
        Reduce<float>{.kind = ReduceKind::kSum, .x = xs, .result = result.span().subspan(0, 1), .workspace = workspace},
        on);
    kernels::run(
        GradientNorm<float>{.table = {tensors, chunks}, .norm = result.span().subspan(1, 1), .workspace = workspace},
        on);
    return get(result.span(), on);
  });
}

TEST_P(OfAnyThreads, gradients_of_biases_norms_and_tables_have_the_same_bits) {
  constexpr std::size_t kRows = 501;
  constexpr std::size_t kColumns = 203;
  const auto dy = normal<float>(kRows * kColumns);
  const auto x = normal<float>(kRows * kColumns);
  const auto weight = normal<float>(kColumns);
  const auto r = normal<float>(kRows, 0.1F, 1);
  std::vector<std::int32_t> tokens(kRows);
  for (auto& token : tokens) token = static_cast<std::int32_t>(random()() % 97);
  same_bits([&](device::Stream& on) {
    auto dys = put(dy, on);
    auto xs = put(x, on);
    auto weights = put(weight, on);
    auto rs = put(r, on);
    auto ids = put(tokens, on);
    auto dx = put(dy, on);
    auto dweight = put(weight, on);
    auto dbias = put(weight, on);
    auto sums = put(weight, on);
    auto table = put(std::vector<float>(97 * kColumns), on);
    const NormShape norm{.rows = kRows, .columns = kColumns};
    const RowMatrix matrix{.rows = kRows, .columns = kColumns};
    const EmbeddingShape words{.vocabulary = 97, .columns = kColumns};
    auto workspace =
        space(std::max(norm_backward_workspace(norm, on.device()), column_sums_workspace(matrix, on.device())), on);
    auto places = put(std::vector<std::uint32_t>(embedding_backward_workspace(kRows, words, on.device())), on);
    kernels::run(LayerNormBackward<float>{.dy = dys,
                                          .x = xs,
                                          .weight = weights,
                                          .mean = rs,
                                          .r = rs,
                                          .dx = dx,
                                          .dweight = dweight,
                                          .dbias = dbias,
                                          .adds = true,
                                          .shape = norm,
                                          .workspace = workspace},
                 on);
    kernels::run(ColumnSums<float>{.x = dys, .sums = sums, .adds = true, .shape = matrix, .workspace = workspace}, on);
    kernels::run(
        EmbeddingBackward<float, float>{
            .dy = dys, .tokens = ids, .dtable = table, .adds = false, .shape = words, .workspace = places},
        on);
    std::vector<float> all;
    for (const auto& span : {dx.span(), dweight.span(), dbias.span(), sums.span(), table.span()}) add(all, span, on);
    return all;
  });
}

TEST_P(OfAnyThreads, rows_that_are_scattered_have_the_same_bits) {
  const GatherShape shape{.rows = 401, .columns = 203};  // Some threads' rows end where those of others begin.
  const auto x = normal<float>(shape.rows * shape.columns);
  const auto y = normal<float>(900 * shape.columns);
  std::vector<std::int32_t> index(900);
  for (auto& row : index) row = static_cast<std::int32_t>(random()() % shape.rows);
  same_bits([&](device::Stream& on) {
    auto xs = put(x, on);
    auto ys = put(y, on);
    auto rows = put(index, on);
    kernels::run(ScatterRows<float>{.y = ys, .index = rows, .x = xs, .adds = true, .shape = shape}, on);
    return get(xs.span(), on);
  });
}

TEST_P(OfAnyThreads, attention_and_its_gradients_have_the_same_bits) {
  // One head of keys: its gradients are sums over heads of queries and over slices of them.
  const AttentionShape shape{
      .batch = 1, .query_tokens = 300, .key_tokens = 310, .heads = 2, .kv_heads = 1, .head_dim = 40};
  const auto q = normal<float>(shape.query_tokens * shape.heads * shape.head_dim);
  const auto k = normal<float>(shape.key_tokens * shape.head_dim);
  const auto v = normal<float>(k.size());
  const auto o_grad = normal<float>(q.size());
  const auto of_queries = [&](device::Span<float> span) {
    return heads_view(span, {.tokens = shape.query_tokens, .heads = shape.heads, .head_dim = shape.head_dim});
  };
  const auto of_keys = [&](device::Span<float> span) {
    return heads_view(span, {.tokens = shape.key_tokens, .heads = shape.kv_heads, .head_dim = shape.head_dim});
  };
  same_bits([&](device::Stream& on) {
    auto qs = put(q, on);
    auto ks = put(k, on);
    auto vs = put(v, on);
    auto grads = put(o_grad, on);
    auto o = put(std::vector<float>(q.size()), on);
    auto lse = put(std::vector<float>(shape.heads * shape.query_tokens), on);
    auto dq = put(std::vector<float>(q.size()), on);
    auto dk = put(std::vector<float>(k.size()), on);
    auto dv = put(std::vector<float>(k.size()), on);
    auto workspace = space(attention_backward_workspace(shape, on.device()), on);
    const AttentionInputs<float> in{of_queries(qs), of_keys(ks), of_keys(vs)};
    kernels::run(Attention<float>{.in = in, .o = of_queries(o), .lse = lse, .shape = shape}, on);
    kernels::run(AttentionBackward<float>{.in = in,
                                          .results = {of_queries(o), of_queries(grads), lse},
                                          .gradients = {of_queries(dq), of_keys(dk), of_keys(dv)},
                                          .shape = shape,
                                          .workspace = workspace},
                 on);
    std::vector<float> all;
    for (const auto& span : {o.span(), lse.span(), dq.span(), dk.span(), dv.span()}) add(all, span, on);
    return all;
  });
}

TEST_P(OfAnyThreads, decoding_has_the_same_bits) {
  const PagedShape shape{.sequences = 3,
                         .heads = 4,
                         .kv_heads = 2,
                         .head_dim = 64,
                         .blocks = 120,
                         .block_tokens = 16,
                         .blocks_a_sequence = 40};
  const auto q = normal<float>(shape.sequences * shape.heads * shape.head_dim);
  const auto k = normal<float>(shape.blocks * shape.kv_heads * shape.block_tokens * shape.head_dim);
  const auto v = normal<float>(k.size());
  std::vector<std::int32_t> tables(shape.sequences * shape.blocks_a_sequence);
  for (std::size_t i = 0; i < tables.size(); ++i) tables[i] = static_cast<std::int32_t>(i);
  const std::vector<std::int32_t> lengths{639, 0, 211};
  same_bits([&](device::Stream& on) {
    auto qs = put(q, on);
    auto ks = put(k, on);
    auto vs = put(v, on);
    auto blocks = put(tables, on);
    auto ends = put(lengths, on);
    auto o = put(std::vector<float>(q.size()), on);
    auto workspace = space(paged_attention_workspace(shape, on.device()), on);
    kernels::run(PagedAttention<float, float>{.q = heads_view<const float>(qs, {.tokens = shape.sequences,
                                                                                .heads = shape.heads,
                                                                                .head_dim = shape.head_dim}),
                                              .cache = {ks, vs},
                                              .sequences = {blocks, ends},
                                              .o = o,
                                              .shape = shape,
                                              .workspace = workspace},
                 on);
    return get(o.span(), on);
  });
}

}  // namespace
}  // namespace dunnock::kernels
