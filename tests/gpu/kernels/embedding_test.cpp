// Embeddings against their twins.
#include "dunnock/kernels/embedding.hpp"

#include "runners.hpp"

namespace dunnock::kernels {
namespace {

class Embeddings : public test::OnEachRunner {
 protected:
  template <class T, class G>
  void agrees() {
    for (int round = 0; round < 8; ++round) {
      constexpr std::size_t kColumns[] = {1, 8, 37, 128, 260, 768};
      const EmbeddingShape shape{.vocabulary = any_size(emulated() ? 150 : 400),
                                 .columns = kColumns[random()() % std::size(kColumns)]};
      const std::size_t length = any_size(12);
      const bool with_positions = random()() % 2 == 0;
      const bool adds = random()() % 2 == 0;
      std::vector<std::int32_t> ids(any_size(emulated() ? 300 : 700));
      for (auto& id : ids) {
        id = static_cast<std::int32_t>(random()() % shape.vocabulary);
        if (random()() % 4 == 0) id = 0;  // One that is frequent.
        if (random()() % 20 == 0) id = static_cast<std::int32_t>(shape.vocabulary);
        if (random()() % 20 == 0) id = -1;
      }
      SCOPED_TRACE(std::to_string(ids.size()) + " of " + std::to_string(shape.vocabulary) + " x " +
                   std::to_string(shape.columns));
      const auto table = normal<T>(shape.vocabulary * shape.columns);
      const auto positions = normal<T>(with_positions ? length * shape.columns : 0);
      const auto dy = normal<T>(ids.size() * shape.columns);
      const auto before = normal<G>(table.size());
      const auto run = [&](device::Stream& on, bool twin, std::vector<G>& dtable) {
        auto tables = put(table, on);
        auto position = put(positions, on);
        auto tokens = put(ids, on);
        auto y = put(std::vector<T>(dy.size()), on);
        auto dys = put(dy, on);
        auto gradient = put(before, on);
        auto space = put(std::vector<std::uint32_t>(embedding_backward_workspace(ids.size(), shape, on.device())), on);
        run_form(twin, Embedding<T>{.table = tables, .positions = position, .tokens = tokens, .y = y, .shape = shape},
                 on);
        run_form(twin,
                 EmbeddingBackward<T, G>{
                     .dy = dys, .tokens = tokens, .dtable = gradient, .adds = adds, .shape = shape, .workspace = space},
                 on);
        dtable = get(gradient.span(), on);
        auto values = get(y.span(), on);
        for (T& value : values) {
          if (std::isnan(static_cast<float>(value))) value = T(1e9F);  // Which equals itself.
        }
        return values;
      };
      std::vector<G> dtable, twin_dtable, again;
      const auto y = run(stream(), false, dtable);
      const auto twin_y = run(twin_stream(), true, twin_dtable);
      (void)run(stream(), false, again);
      test::expect_close(y, twin_y, test::kRounding<T>, 1e-6, "y");
      test::expect_close(dtable, twin_dtable, test::kRounding<G>, 2e-4, "dtable");
      EXPECT_TRUE(std::memcmp(dtable.data(), again.data(), dtable.size() * sizeof(G)) == 0) << "the same in each run";
    }
  }
};
DUNNOCK_ON_EACH_RUNNER(Embeddings);

TEST_P(Embeddings, of_floats_agrees_with_its_twin) { agrees<float, float>(); }
TEST_P(Embeddings, of_bf16_agrees_with_its_twin) { agrees<device::Bf16, device::Bf16>(); }
TEST_P(Embeddings, of_bf16_with_a_float_gradient_agrees_with_its_twin) { agrees<device::Bf16, float>(); }
TEST_P(Embeddings, a_token_that_the_table_does_not_have_gives_nans_and_no_gradient) {
  const EmbeddingShape shape{.vocabulary = 2, .columns = 2};
  auto table = put(std::vector<float>{1, 2, 3, 4}, stream());
  auto tokens = put(std::vector<std::int32_t>{2, 1, -1}, stream());
  auto y = put(std::vector<float>(6), stream());
  run_form(false, Embedding<float>{.table = table, .positions = {}, .tokens = tokens, .y = y, .shape = shape},
           stream());
  const auto is = get(y.span(), stream());
  EXPECT_TRUE(std::isnan(is[0]) && std::isnan(is[1]) && std::isnan(is[4]) && std::isnan(is[5]));
  EXPECT_EQ(is[2], 3);
  auto dy = put(std::vector<float>{10, 20, 30, 40, 50, 60}, stream());
  auto space = put(std::vector<std::uint32_t>(6), stream());
  run_form(false,
           EmbeddingBackward<float, float>{
               .dy = dy, .tokens = tokens, .dtable = table, .adds = false, .shape = shape, .workspace = space},
           stream());
  EXPECT_EQ(get(table.span(), stream()), (std::vector<float>{0, 0, 30, 40}));
}
TEST(EmbeddingDeathTest, spans_that_do_not_fit_are_refused) {
  auto stream = std::move(*device::Stream::create(device::Device::cpu()));
  auto x = std::move(*device::Buffer<float>::create(8, stream));
  auto y = std::move(*device::Buffer<float>::create(7, stream));
  auto tokens = std::move(*device::Buffer<std::int32_t>::create(2, stream));
  const EmbeddingShape shape{.vocabulary = 2, .columns = 4};
  EXPECT_DEATH(
      kernels::run(Embedding<float>{.table = x, .positions = {}, .tokens = tokens, .y = y, .shape = shape}, stream),
      "spans fit the shape");
  EXPECT_DEATH(
      kernels::run(Embedding<float>{.table = x, .positions = y, .tokens = tokens, .y = x, .shape = shape}, stream),
      "whole rows");
  EXPECT_DEATH((kernels::run(
                   EmbeddingBackward<float, float>{
                       .dy = x, .tokens = tokens, .dtable = y, .adds = false, .shape = shape, .workspace = {}},
                   stream)),
               "spans fit the shape");
  EXPECT_DEATH((kernels::run(
                   EmbeddingBackward<float, float>{
                       .dy = x, .tokens = tokens, .dtable = x, .adds = false, .shape = shape, .workspace = {}},
                   stream)),
               "workspace");
}

}  // namespace
}  // namespace dunnock::kernels
