// Decoding over a paged cache against its twin.
#include "dunnock/kernels/paged_attention.hpp"

#include <algorithm>
#include <numeric>

#include "paged_attention_parts.hpp"
#include "runners.hpp"

namespace dunnock::kernels {
namespace {

class PagedAttentions : public test::OnEachRunner {
 protected:
  PagedShape any_shape() {
    constexpr std::size_t kDims[] = {1, 7, 32, 33, 64, 80, 128, 256};
    constexpr std::size_t kGroups[] = {1, 2, 4, 5, 8, 11};
    PagedShape shape;
    shape.sequences = any_size(emulated() ? 5 : 40);
    shape.kv_heads = any_size(2);
    shape.heads = shape.kv_heads * kGroups[random()() % std::size(kGroups)];
    shape.head_dim = kDims[random()() % std::size(kDims)];
    shape.block_tokens = std::size_t{1} << random()() % 6;
    const std::size_t longest = emulated() ? 250 : 700;
    shape.blocks_a_sequence = (longest + shape.block_tokens - 1) / shape.block_tokens;
    shape.blocks = shape.sequences * shape.blocks_a_sequence + any_size(5);
    if (random()() % 4 == 0) shape.scale = 1.5F / std::sqrt(static_cast<float>(shape.head_dim));
    return shape;
  }
  /// No block twice, in any order.
  std::vector<std::int32_t> any_tables(const PagedShape& shape) {
    std::vector<std::int32_t> blocks(shape.blocks);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), random());
    blocks.resize(shape.sequences * shape.blocks_a_sequence);
    return blocks;
  }
  /// Some empty, some of one token, some full.
  std::vector<std::int32_t> any_lengths(const PagedShape& shape) {
    std::vector<std::int32_t> lengths(shape.sequences);
    const std::size_t longest = shape.blocks_a_sequence * shape.block_tokens;
    for (std::int32_t& length : lengths) {
      const std::size_t kind = random()() % 6;
      length = static_cast<std::int32_t>(kind == 0 ? 0 : kind == 1 ? 1 : kind == 2 ? longest : any_size(longest));
    }
    return lengths;
  }

  template <class T, class C>
  std::vector<T> attend(const PagedShape& shape, const std::vector<T>& q, const std::vector<C>& k,
                        const std::vector<C>& v, const std::vector<std::int32_t>& tables,
                        const std::vector<std::int32_t>& lengths, device::Stream& on, bool twin) {
    const auto q_there = put(q, on);
    const auto k_there = put(k, on);
    const auto v_there = put(v, on);
    const auto tables_there = put(tables, on);
    const auto lengths_there = put(lengths, on);
    const auto o = put(std::vector<T>(q.size(), T(77)), on);
    const std::size_t floats = emulated() && !twin ? detail::emulated::paged_attention_workspace(shape, 4)
                                                   : paged_attention_workspace(shape, on.device());
    const auto space = put(std::vector<float>(floats, NAN), on);
    const HeadsView<const T> view =
        heads_view<const T>(q_there, {.tokens = shape.sequences, .heads = shape.heads, .head_dim = shape.head_dim});
    const PagedCache<const C> cache{k_there, v_there};
    const PagedSequences sequences{tables_there, lengths_there};
    run_form(twin,
             PagedAttention<T, C>{
                 .q = view, .cache = cache, .sequences = sequences, .o = o, .shape = shape, .workspace = space},
             on);
    return get(o.span(), on);
  }

  template <class T, class C>
  void agrees(const PagedShape& shape, const std::vector<std::int32_t>& lengths) {
    SCOPED_TRACE(std::to_string(shape.sequences) + " sequences, " + std::to_string(shape.heads) + " on " +
                 std::to_string(shape.kv_heads) + " heads of " + std::to_string(shape.head_dim) + ", blocks of " +
                 std::to_string(shape.block_tokens));
    const std::size_t cached = shape.blocks * shape.kv_heads * shape.block_tokens * shape.head_dim;
    const auto q = normal<T>(shape.sequences * shape.heads * shape.head_dim);
    const auto k = normal<C>(cached);
    const auto v = normal<C>(cached);
    const auto tables = any_tables(shape);
    test::expect_close(attend(shape, q, k, v, tables, lengths, stream(), false),
                       attend(shape, q, k, v, tables, lengths, twin_stream(), true), test::kRounding<T>, 1e-5, "o");
  }
  template <class T, class C>
  void any_shapes_agree() {
    for (int round = 0; round < (emulated() ? 10 : 20) && !HasFatalFailure(); ++round) {
      const PagedShape shape = any_shape();
      agrees<T, C>(shape, any_lengths(shape));
    }
  }

  template <class T, class C>
  void appended_agrees() {
    for (int round = 0; round < 10; ++round) {
      const PagedShape shape = any_shape();
      SCOPED_TRACE(std::to_string(shape.kv_heads) + " heads of " + std::to_string(shape.head_dim));
      const std::size_t cached = shape.blocks * shape.kv_heads * shape.block_tokens * shape.head_dim;
      const auto before = normal<C>(cached);
      const auto tables = any_tables(shape);
      // One token a sequence, or some tokens of any sequences, none of them at the same place.
      const bool decodes = random()() % 2 == 0;
      std::vector<std::int32_t> sequence_of, positions;
      for (std::size_t s = 0; s < shape.sequences; ++s) {
        const std::size_t first = random()() % (shape.blocks_a_sequence * shape.block_tokens);
        const std::size_t count =
            decodes ? 1 : std::min<std::size_t>(random()() % 9, shape.blocks_a_sequence * shape.block_tokens - first);
        for (std::size_t t = 0; t < count; ++t) {
          sequence_of.push_back(static_cast<std::int32_t>(s));
          positions.push_back(random()() % 8 == 0 ? -1 : static_cast<std::int32_t>(first + t));
        }
      }
      if (positions.empty()) continue;
      // k and v lie in a packed projection, behind two heads of q.
      const std::size_t heads = 2 + 2 * shape.kv_heads;
      const auto packed = normal<T>(positions.size() * heads * shape.head_dim);
      const auto run = [&](device::Stream& on, bool twin) {
        const auto packed_there = put(packed, on);
        const auto k = put(before, on);
        const auto v = put(before, on);
        const auto tables_there = put(tables, on);
        const auto positions_there = put(positions, on);
        const auto sequences_there = put(sequence_of, on);
        const auto part = [&](std::size_t first_head) {
          return heads_view<const T>(
              packed_there,
              {.tokens = positions.size(), .heads = heads, .head_dim = shape.head_dim, .first_head = first_head});
        };
        NewKeysValues<T> tokens{positions.size(), part(2),         part(2 + shape.kv_heads),
                                sequences_there,  positions_there, tables_there};
        if (decodes) tokens.sequence_of = {};
        const PagedCache<C> cache{k, v};
        run_form(twin, AppendToPagedCache<T, C>{.tokens = tokens, .cache = cache, .shape = shape}, on);
        auto both = get(k.span(), on);
        const auto values = get(v.span(), on);
        both.insert(both.end(), values.begin(), values.end());
        return both;
      };
      ASSERT_EQ(run(stream(), false), run(twin_stream(), true)) << "seed " << test::seed();
    }
  }
};
DUNNOCK_ON_EACH_RUNNER(PagedAttentions);

TEST_P(PagedAttentions, of_floats_agrees_with_its_twin) { any_shapes_agree<float, float>(); }
TEST_P(PagedAttentions, of_bf16_agrees_with_its_twin) { any_shapes_agree<device::Bf16, device::Bf16>(); }
TEST_P(PagedAttentions, of_floats_over_a_cache_of_bf16_agrees_with_its_twin) {
  any_shapes_agree<float, device::Bf16>();
}
TEST_P(PagedAttentions, of_one_long_sequence_agrees_with_its_twin) {
  const PagedShape shape{
      .sequences = 1, .heads = 4, .kv_heads = 1, .head_dim = 64, .blocks = 100, .blocks_a_sequence = 100};
  agrees<device::Bf16, device::Bf16>(shape, {1591});
}
TEST_P(PagedAttentions, of_many_sequences_agrees_with_its_twin) {
  const PagedShape shape{
      .sequences = 70, .heads = 1, .kv_heads = 1, .head_dim = 32, .blocks = 140, .blocks_a_sequence = 2};
  agrees<float, float>(shape, any_lengths(shape));
}
TEST_P(PagedAttentions, of_less_tokens_than_parts_agrees_with_its_twin) {
  const PagedShape shape{
      .sequences = 3, .heads = 1, .kv_heads = 1, .head_dim = 16, .blocks = 60, .blocks_a_sequence = 20};
  for (const std::vector<std::int32_t>& lengths : std::vector<std::vector<std::int32_t>>{
           {20, 0, 60}, {1, 1, 1}, {0, 0, 33}, {100, 17, 0}, {40, 40, 40}, {0, 1, 0}})
    agrees<float, float>(shape, lengths);
}
TEST_P(PagedAttentions, of_empty_sequences_is_zero) {
  const PagedShape shape{.sequences = 3, .heads = 2, .kv_heads = 1, .head_dim = 8, .blocks = 3, .blocks_a_sequence = 1};
  const std::size_t cached = shape.blocks * shape.kv_heads * shape.block_tokens * shape.head_dim;
  const auto o = attend(shape, normal<float>(48), normal<float>(cached), normal<float>(cached), any_tables(shape),
                        {0, 0, 0}, stream(), false);
  for (const float value : o) ASSERT_EQ(value, 0.0F);
}
TEST_P(PagedAttentions, takes_large_logits) {
  const PagedShape shape{
      .sequences = 2, .heads = 2, .kv_heads = 1, .head_dim = 64, .blocks = 10, .blocks_a_sequence = 5};
  const std::size_t cached = shape.blocks * shape.kv_heads * shape.block_tokens * shape.head_dim;
  const auto q = normal<float>(shape.sequences * shape.heads * shape.head_dim, 100);
  const auto k = normal<float>(cached, 100);
  const auto v = normal<float>(cached);
  const auto tables = any_tables(shape);
  const std::vector<std::int32_t> lengths = {77, 80};
  test::expect_close(attend(shape, q, k, v, tables, lengths, stream(), false),
                     attend(shape, q, k, v, tables, lengths, twin_stream(), true), 0.02, 0.02, "o");
}

TEST_P(PagedAttentions, appends_floats) { appended_agrees<float, float>(); }
TEST_P(PagedAttentions, appends_floats_as_bf16) { appended_agrees<float, device::Bf16>(); }
TEST_P(PagedAttentions, appends_bf16) { appended_agrees<device::Bf16, device::Bf16>(); }

class PagedAttentionChecks : public PagedAttentions {};
INSTANTIATE_TEST_SUITE_P(Runners, PagedAttentionChecks, ::testing::Values(test::Runner::kCpu), test::name_of_runner);

TEST_P(PagedAttentionChecks, refuses_shapes_that_do_not_fit) {
  PagedShape shape{.sequences = 1,
                   .heads = 1,
                   .kv_heads = 1,
                   .head_dim = 8,
                   .blocks = 1,
                   .block_tokens = 12,
                   .blocks_a_sequence = 1};
  const auto values = put(std::vector<float>(128), stream());
  const auto table = put(std::vector<std::int32_t>(1), stream());
  const auto attend_now = [&](device::Span<float> space) {
    kernels::run(
        PagedAttention<float, float>{.q = heads_view<const float>(values, {.tokens = 1, .heads = 1, .head_dim = 8}),
                                     .cache = {values, values},
                                     .sequences = {table, table},
                                     .o = values.span().subspan(0, 8),
                                     .shape = shape,
                                     .workspace = space},
        stream());
  };
  EXPECT_DEATH(attend_now(values), "power of two");
  shape.block_tokens = 32;
  EXPECT_DEATH(attend_now(values), "spans fit the shape");
  shape.block_tokens = 16;
  EXPECT_DEATH(attend_now({}), "workspace is large enough");
  shape.scale = -1;
  EXPECT_DEATH(attend_now(values), "a scale is not negative");
}

}  // namespace
}  // namespace dunnock::kernels
