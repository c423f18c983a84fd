// Matrix products and their epilogues against the twin: by our own kernels (each instruction set that the processor
// has), by oneDNN, by the one that is chosen, and on CUDA. Of CUDA's parts the kernels after cuBLASLt run emulated.
#include "dunnock/kernels/matmul.hpp"

#include <cmath>
#include <functional>
#include <limits>

#include "matmul_parts.hpp"
#include "parallel.hpp"
#include "runners.hpp"

namespace dunnock::kernels {
namespace {

enum class Maker : std::uint8_t { kBest, kOwnBase, kOwnAvx512, kOwnAvx512Bf16, kOneDnn, kCuda };

std::string name_of_maker(const ::testing::TestParamInfo<Maker>& info) {
  constexpr const char* kNames[] = {"cpu", "own_base", "own_avx512", "own_avx512_bf16", "onednn", "cuda"};
  return kNames[static_cast<int>(info.param)];
}

/// The values that a product reads and writes.
template <class T, class C>
struct Values {
  std::vector<T> a, b;
  std::vector<C> c, bias, saved, gradient_at, sums, b_sums;
};

/// Which spans of the epilogue are there.
struct Wanted {
  bool bias = false, saved = false, gradient = false, sums = false, b_sums = false;
};

class Products : public ::testing::TestWithParam<Maker> {
 protected:
  void SetUp() override {
    if (GetParam() == Maker::kCuda && device::Device::cuda_count() == 0) GTEST_SKIP() << device::Device::why_no_cuda();
    if (isa() > detail::best_matmul_isa()) GTEST_SKIP() << "this processor does not have these instructions";
    const detail::MatmulCall<float, float> any{nullptr, nullptr, nullptr, {.rows = 1, .columns = 1, .inner = 1},
                                               {},      {}};
    if (GetParam() == Maker::kOneDnn && !detail::onednn_makes(any)) GTEST_SKIP() << "built without oneDNN";
    random_.seed(test::seed());
  }
  static detail::MatmulIsa isa() {
    if (GetParam() == Maker::kOwnBase) return detail::MatmulIsa::kBase;
    if (GetParam() == Maker::kOwnAvx512) return detail::MatmulIsa::kAvx512;
    if (GetParam() == Maker::kOwnAvx512Bf16) return detail::MatmulIsa::kAvx512Bf16;
    return detail::best_matmul_isa();
  }
  static device::Device device() {
    return GetParam() == Maker::kCuda ? device::Device::cuda().value() : device::Device::cpu();
  }

  std::size_t up_to(std::size_t max) { return 1 + random_() % max; }
  bool coin() { return random_() % 2 == 0; }
  template <class T>
  std::vector<T> normal(std::size_t count) {
    std::normal_distribution<float> distribution(0, 1);
    std::vector<T> values(count);
    for (T& value : values) value = T(distribution(random_));
    return values;
  }

  /// Ones, odd ones, multiples of tiles, sizes that take several blocks and threads; strides and batches.
  MatmulShape any_shape(bool one_matrix) {
    constexpr std::size_t kSizes[] = {1, 2, 3, 7, 13, 14, 15, 16, 17, 31, 32, 33, 64, 100, 129, 257};
    const auto any = [&] { return random_() % 8 == 0 ? up_to(600) : kSizes[random_() % std::size(kSizes)]; };
    MatmulShape shape{.rows = any(), .columns = any(), .inner = any()};
    if (random_() % 12 == 0) shape.inner = 1100 + up_to(300);  // more than one block of depth
    if (random_() % 15 == 0) shape.inner = 0;
    shape.transpose_a = coin();
    shape.transpose_b = coin();
    if (coin()) {
      shape.lda = (shape.transpose_a ? shape.rows : shape.inner) + random_() % 9;
      shape.ldb = (shape.transpose_b ? shape.inner : shape.columns) + random_() % 9;
      shape.ldc = shape.columns + random_() % 9;
    }
    if (!one_matrix && random_() % 3 == 0) {
      shape.count = up_to(4);
      const MatmulShape whole = detail::completed(shape);
      if (coin()) shape.stride_a = whole.stride_a + random_() % 9;
      if (coin()) shape.stride_b = whole.stride_b + random_() % 9;
      if (coin()) shape.stride_c = whole.stride_c + random_() % 9;
    }
    return shape;
  }

  template <class T, class C>
  Values<T, C> any_values(const MatmulShape& shape, const Wanted& wanted, float beta) {
    const MatmulShape s = detail::completed(shape);
    Values<T, C> values;
    values.a = normal<T>(s.count * s.stride_a);
    values.b = normal<T>(s.count * s.stride_b);
    // What must not be read is not a number.
    values.c = beta == 0 ? std::vector<C>(s.count * s.stride_c, C(std::numeric_limits<float>::quiet_NaN()))
                         : normal<C>(s.count * s.stride_c);
    if (wanted.bias) values.bias = normal<C>(s.columns);
    if (wanted.saved) values.saved = normal<C>(s.count * s.stride_c);
    if (wanted.gradient) values.gradient_at = normal<C>(s.count * s.stride_c);
    if (wanted.sums) values.sums = normal<C>(s.columns);
    if (wanted.b_sums) values.b_sums = normal<C>(s.columns);
    return values;
  }

  /// Runs the product; `values` gets what it has written.
  template <class T, class C>
  void run(Values<T, C>& values, const MatmulShape& shape, MatmulEpilogue<C> epilogue, bool twin) {
    auto on = std::move(*device::Stream::create(twin ? device::Device::cpu() : device()));
    const auto put = [&](auto& host) {
      auto buffer = std::move(
          *device::Buffer<typename std::remove_reference_t<decltype(host)>::value_type>::create(host.size(), on));
      upload(buffer.span(), host, on);
      return buffer;
    };
    auto a = put(values.a);
    auto b = put(values.b);
    auto c = put(values.c);
    auto bias = put(values.bias);
    auto saved = put(values.saved);
    auto at = put(values.gradient_at);
    auto sums = put(values.sums);
    auto b_sums = put(values.b_sums);
    epilogue.bias = bias.span();
    epilogue.saved = saved.span();
    epilogue.gradient_at = at.span();
    epilogue.sums = sums.span();
    epilogue.b_sums = b_sums.span();
    auto space = std::move(*device::Buffer<std::byte>::create(matmul_workspace_bytes(shape, on.device()), on));
    if (twin) {
      reference::run(Matmul<T, C>{.a = a.span(),
                                  .b = b.span(),
                                  .c = c.span(),
                                  .shape = shape,
                                  .epilogue = epilogue,
                                  .workspace = space.span()},
                     on);
    } else if (GetParam() == Maker::kBest || GetParam() == Maker::kCuda) {
      kernels::run(Matmul<T, C>{.a = a.span(),
                                .b = b.span(),
                                .c = c.span(),
                                .shape = shape,
                                .epilogue = epilogue,
                                .workspace = space.span()},
                   on);
    } else {
      const auto call = detail::matmul_call(Matmul<T, C>{.a = a.span(),
                                                         .b = b.span(),
                                                         .c = c.span(),
                                                         .shape = shape,
                                                         .epilogue = epilogue,
                                                         .workspace = space.span()});
      const auto maker = GetParam() == Maker::kOneDnn && detail::onednn_makes(call) ? detail::MatmulMaker::kOneDnn
                                                                                    : detail::MatmulMaker::kOwn;
      on.run("product", [call, maker, isa = isa()] { return detail::matmul_on_cpu(call, maker, isa); });
    }
    const auto get = [&](auto& host, const auto& buffer) { download(host, buffer.span(), on); };
    get(values.c, c);
    get(values.saved, saved);
    get(values.sums, sums);
    get(values.b_sums, b_sums);
    const Status done = on.synchronize();
    ASSERT_TRUE(done) << done.error().message;
  }

  template <class T, class C>
  void agrees(const MatmulShape& shape, const MatmulEpilogue<C>& epilogue, const Wanted& wanted) {
    SCOPED_TRACE(std::to_string(shape.count) + " * " + std::to_string(shape.rows) + " x " +
                 std::to_string(shape.columns) + " x " + std::to_string(shape.inner) +
                 (shape.transpose_a ? " A'" : " A") + (shape.transpose_b ? " B'" : " B") + ", alpha " +
                 std::to_string(epilogue.alpha) + ", beta " + std::to_string(epilogue.beta) + ", activation " +
                 std::to_string(static_cast<int>(epilogue.activation)) + (wanted.bias ? ", bias" : "") +
                 (wanted.saved ? ", saved" : "") + (wanted.gradient ? ", gradient" : ""));
    auto is = any_values<T, C>(shape, wanted, epilogue.beta);
    auto should = is;
    run<T, C>(is, shape, epilogue, false);
    run<T, C>(should, shape, epilogue, true);
    // Sums of `inner` products of about 1; in bf16 V may be rounded before the activation, whose slope is at most 1.13.
    const double depth = std::sqrt(static_cast<double>(shape.inner) + 4);
    const bool bf16 = std::is_same_v<C, device::Bf16>;
    const double absolute = (bf16 ? 0.01 : 2e-6) * depth * 4;
    expect_close_or_nan(is.c, should.c, test::kRounding<C> * 2, absolute, "C");
    expect_close_or_nan(is.saved, should.saved, test::kRounding<C>, absolute, "saved");
    const double rows = std::sqrt(static_cast<double>(shape.rows));
    // Alike values are rounded to the same side, each time that one is added: seen 4e-6 of 441 rows (seed 3514734288).
    const double one_by_one = static_cast<double>(shape.rows) * 0x1p-24;
    expect_close_or_nan(is.sums, should.sums, test::kRounding<C> + one_by_one, absolute * rows, "sums");
    expect_close_or_nan(is.b_sums, should.b_sums, test::kRounding<C>, 1e-4 * depth, "sums of B");
  }

  /// NaNs are where the twin has them: what lies between rows and matrices is left alone.
  template <class C>
  static void expect_close_or_nan(std::vector<C> values, std::vector<C> expected, double relative, double absolute,
                                  const char* what) {
    ASSERT_EQ(values.size(), expected.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(std::isnan(static_cast<float>(values[i])), std::isnan(static_cast<float>(expected[i])))
          << what << " [" << i << "] (seed " << test::seed() << ")";
      if (std::isnan(static_cast<float>(values[i]))) values[i] = expected[i] = C(0.0F);
    }
    test::expect_close(values, expected, relative, absolute, what);
  }

  template <class C>
  MatmulEpilogue<C> any_scales() {
    MatmulEpilogue<C> epilogue;
    epilogue.alpha = coin() ? 1.0F : 0.5F;
    epilogue.beta = coin() ? 0.0F : coin() ? 1.0F : -0.75F;
    return epilogue;
  }

  std::mt19937_64& random() { return random_; }

 private:
  std::mt19937_64 random_;
};
INSTANTIATE_TEST_SUITE_P(Makers, Products,
                         ::testing::Values(Maker::kBest, Maker::kOwnBase, Maker::kOwnAvx512, Maker::kOwnAvx512Bf16,
                                           Maker::kOneDnn, Maker::kCuda),
                         name_of_maker);

template <class T_, class C_>
struct Types {
  using T = T_;
  using C = C_;
};
/// f(Types<T, C>) for each pair that there is.
template <class F>
void for_types(const F& f) {
  f(Types<float, float>{});
  f(Types<device::Bf16, device::Bf16>{});
  f(Types<device::Bf16, float>{});
}

constexpr int kRounds = 16;

TEST_P(Products, of_any_shape_agree_with_the_twin) {
  for_types([&](auto types) {
    using Of = decltype(types);
    for (int round = 0; round < kRounds; ++round)
      agrees<typename Of::T, typename Of::C>(any_shape(false), any_scales<typename Of::C>(), {});
  });
}

TEST_P(Products, with_a_bias_and_an_activation_agree_with_the_twin) {
  for_types([&](auto types) {
    using Of = decltype(types);
    for (int round = 0; round < kRounds; ++round) {
      auto epilogue = any_scales<typename Of::C>();
      epilogue.activation = static_cast<MatmulActivation>(random()() % 3);
      agrees<typename Of::T, typename Of::C>(any_shape(false), epilogue, {.bias = coin()});
    }
  });
}

TEST_P(Products, that_save_what_comes_before_the_activation_agree_with_the_twin) {
  for_types([&](auto types) {
    using Of = decltype(types);
    for (int round = 0; round < kRounds; ++round) {
      auto epilogue = any_scales<typename Of::C>();
      epilogue.activation = static_cast<MatmulActivation>(random()() % 3);
      agrees<typename Of::T, typename Of::C>(any_shape(false), epilogue, {.bias = coin(), .saved = true});
    }
  });
}

TEST_P(Products, times_the_derivative_of_an_activation_agree_with_the_twin) {
  for_types([&](auto types) {
    using Of = decltype(types);
    for (int round = 0; round < kRounds; ++round) {
      auto epilogue = any_scales<typename Of::C>();
      epilogue.activation = static_cast<MatmulActivation>(random()() % 3);
      const bool sums = coin();
      epilogue.adds_sums = coin();
      agrees<typename Of::T, typename Of::C>(any_shape(sums), epilogue, {.gradient = true, .sums = sums});
    }
  });
}

TEST_P(Products, give_the_sums_of_the_columns_of_B_and_C) {
  for_types([&](auto types) {
    using Of = decltype(types);
    for (int round = 0; round < kRounds; ++round) {
      auto epilogue = any_scales<typename Of::C>();
      epilogue.adds_sums = coin();
      agrees<typename Of::T, typename Of::C>(any_shape(true), epilogue, {.sums = coin(), .b_sums = true});
    }
  });
}

TEST_P(Products, with_everything_at_once_agree_with_the_twin) {
  for_types([&](auto types) {
    using Of = decltype(types);
    for (int round = 0; round < kRounds / 2; ++round) {
      auto epilogue = any_scales<typename Of::C>();
      epilogue.activation = static_cast<MatmulActivation>(random()() % 3);
      agrees<typename Of::T, typename Of::C>(
          any_shape(true), epilogue, {.bias = true, .saved = true, .gradient = coin(), .sums = true, .b_sums = true});
    }
  });
}

TEST_P(Products, of_shapes_with_several_blocks_and_threads_agree_with_the_twin) {
  for_types([&](auto types) {
    using Of = decltype(types);
    MatmulShape shape{.rows = 300, .columns = 40, .inner = 2100, .transpose_b = true};
    agrees<typename Of::T, typename Of::C>(shape, {}, {.bias = true});
    shape = {.rows = 40, .columns = 1100, .inner = 600, .transpose_a = true};
    agrees<typename Of::T, typename Of::C>(shape, {}, {.bias = true});
  });
}

TEST_P(Products, of_nothing_change_the_sums_only) {
  for_types([&](auto types) {
    using Of = decltype(types);
    MatmulEpilogue<typename Of::C> epilogue;
    for (const bool adds : {false, true}) {
      epilogue.adds_sums = adds;
      agrees<typename Of::T, typename Of::C>({.rows = 0, .columns = 5, .inner = 3}, epilogue,
                                             {.sums = true, .b_sums = true});
      agrees<typename Of::T, typename Of::C>({.rows = 3, .columns = 0, .inner = 3}, epilogue, {});
      agrees<typename Of::T, typename Of::C>({.rows = 3, .columns = 4, .inner = 3, .count = 0}, epilogue, {});
    }
  });
}

TEST_P(Products, carry_what_is_not_finite_to_where_it_belongs) {
  MatmulShape shape{.rows = 20, .columns = 40, .inner = 33};
  auto is = any_values<float, float>(shape, {}, 0);
  is.a[5 * 33 + 32] = std::numeric_limits<float>::infinity();
  is.a[7 * 33] = std::numeric_limits<float>::quiet_NaN();
  run<float, float>(is, shape, {}, false);
  for (std::size_t i = 0; i < is.c.size(); ++i) {
    EXPECT_EQ(std::isnan(is.c[i]), i / 40 == 7) << i;
    EXPECT_EQ(std::isinf(is.c[i]), i / 40 == 5) << i;
  }
}

/// GELU far out, where a sloppy exponential overflows.
TEST_P(Products, keep_GELU_finite_for_large_values) {
  const std::vector<float> xs{0,    -0.0F, 1e-20F, -1e-20F, 0.5F, -0.5F, 3,     -3,
                              5.5F, -5.5F, 20,     -20,     1e4F, -1e4F, 1e20F, -1e20F};
  Values<float, float> is;
  is.a = {1};
  is.b = xs;
  is.c.resize(xs.size());
  is.saved.resize(xs.size());
  auto should = is;
  const MatmulShape shape{.rows = 1, .columns = xs.size(), .inner = 1};
  MatmulEpilogue<float> epilogue;
  epilogue.activation = MatmulActivation::kGelu;
  run<float, float>(is, shape, epilogue, false);
  run<float, float>(should, shape, epilogue, true);
  test::expect_close(is.c, should.c, 1e-5, 1e-7, "gelu");
  is.gradient_at = should.gradient_at = xs;
  is.saved.clear();
  should.saved.clear();
  is.b.assign(xs.size(), 1);
  should.b = is.b;
  run<float, float>(is, shape, epilogue, false);
  run<float, float>(should, shape, epilogue, true);
  test::expect_close(is.c, should.c, 1e-5, 1e-6, "its derivative");
}

TEST(OwnProducts, do_not_depend_on_the_number_of_threads) {
  std::mt19937_64 random(test::seed());
  std::normal_distribution<float> distribution(0, 1);
  const MatmulShape shape = detail::completed({.rows = 210, .columns = 333, .inner = 700});
  std::vector<float> a(shape.stride_a), b(shape.stride_b);
  for (float& value : a) value = distribution(random);
  for (float& value : b) value = distribution(random);
  std::vector<std::vector<float>> results;
  for (const unsigned threads : {1U, 2U, 3U}) {
    auto stream = std::move(*device::Stream::create(device::Device::cpu(), {.threads = threads}));
    std::vector<std::byte> space(detail::own_matmul_workspace_bytes(shape, threads));
    auto& c = results.emplace_back(shape.stride_c);
    const detail::MatmulCall<float, float> call{a.data(), b.data(), c.data(), shape, {}, {space.data(), space.size()}};
    stream.run("product", [&] { return detail::matmul_on_cpu(call, detail::MatmulMaker::kOwn); });
    ASSERT_TRUE(stream.synchronize());
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST(OneDnnProducts, of_more_shapes_than_a_thread_keeps_plans_are_right) {
  const detail::MatmulCall<float, float> any{nullptr, nullptr, nullptr, {.rows = 1, .columns = 1, .inner = 1}, {}, {}};
  if (!detail::onednn_makes(any)) GTEST_SKIP() << "built without oneDNN";
  std::vector<float> a(400, 1), b(400, 1);
  for (int round = 0; round < 2; ++round) {
    for (std::size_t inner = 1; inner <= 400; ++inner) {
      float c = 0;
      const MatmulShape shape = detail::completed({.rows = 1, .columns = 1, .inner = inner});
      const detail::MatmulCall<float, float> call{a.data(), b.data(), &c, shape, {}, {}};
      ASSERT_TRUE(detail::matmul_on_cpu(call, detail::MatmulMaker::kOneDnn));
      ASSERT_EQ(c, static_cast<float>(inner));
    }
  }
}

TEST(OneDnnProducts, are_refused_by_a_build_without_it) {
  float one = 1;
  const detail::MatmulCall<float, float> call{
      &one, &one, &one, detail::completed({.rows = 1, .columns = 1, .inner = 1}), {}, {}};
  if (detail::onednn_makes(call)) GTEST_SKIP() << "built with oneDNN";
  const Status made = detail::matmul_on_cpu(call, detail::MatmulMaker::kOneDnn);
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code, ErrorCode::kUnsupported);
}

/// The kernels behind cuBLASLt: what it does not fuse. On a GPU the products above come to them.
class Behind : public test::OnEachRunner {
 protected:
  /// finish with a product of no depth is the twin of it, V being beta * C + bias.
  template <class C>
  void finish_agrees() {
    constexpr std::size_t kColumns[] = {1, 3, 8, 33, 64, 264, 1000, 2056};
    for (int round = 0; round < 24; ++round) {
      MatmulShape shape{.rows = any_size(9), .columns = kColumns[random()() % std::size(kColumns)]};
      shape.count = any_size(3);
      if (random()() % 2 == 0) shape.ldc = shape.columns + random()() % 17;
      const MatmulShape whole = detail::completed(shape);
      const std::size_t size = whole.count * whole.stride_c;
      SCOPED_TRACE(std::to_string(shape.count) + " * " + std::to_string(shape.rows) + " x " +
                   std::to_string(shape.columns) + " by " + std::to_string(whole.ldc));
      const auto coin = [&] { return random()() % 2 == 0; };
      const auto before = normal<C>(size, 2);
      const auto bias = normal<C>(coin() ? shape.columns : 0);
      const auto at = normal<C>(coin() ? size : 0, 2);
      const bool saves = coin();
      MatmulEpilogue<C> epilogue;
      epilogue.beta = coin() ? -0.75F : coin() ? 1.0F : 0.0F;
      epilogue.activation = static_cast<MatmulActivation>(random()() % 3);
      const bool in_c = coin();  // V lies in C, or beta * C is added to none.
      const auto run = [&](device::Stream& on, bool twin, std::vector<C>& saved) {
        auto c = put(before, on);
        auto biases = put(bias, on);
        auto ats = put(at, on);
        auto out = put(std::vector<C>(saves ? size : 0), on);
        const auto pointer = [](const auto& buffer) {
          return buffer.size() == 0 ? nullptr : buffer.span().device_data();
        };
        if (twin) {
          epilogue.bias = biases.span();
          epilogue.gradient_at = ats.span();
          epilogue.saved = out.span();
          reference::run(
              Matmul<C, C>{.a = {}, .b = {}, .c = c.span(), .shape = shape, .epilogue = epilogue, .workspace = {}}, on);
        } else {
          detail::emulated::MatmulFinish<C> finish;
          finish.v = c.span().device_data();
          finish.c = c.span().device_data();
          finish.saved = pointer(out);
          finish.gradient_at = pointer(ats);
          finish.bias = pointer(biases);
          finish.scale = in_c ? epilogue.beta : 0;
          finish.beta = in_c ? 0 : epilogue.beta;
          finish.activation = epilogue.activation;
          detail::emulated::matmul_finish(finish, whole, on);
        }
        saved = get(out.span(), on);
        return get(c.span(), on);
      };
      std::vector<C> saved, twin_saved;
      const auto is = run(stream(), false, saved);
      const auto should = run(twin_stream(), true, twin_saved);
      test::expect_close(is, should, test::kRounding<C>, 2e-6, "C");
      test::expect_close(saved, twin_saved, test::kRounding<C>, 2e-6, "saved");
    }
  }

  template <class T, class C>
  void sums_agree() {
    for (int round = 0; round < 24; ++round) {
      const bool transposed = random()() % 2 == 0;
      const std::size_t inner = random()() % 8 == 0 ? 0 : any_size(600);
      MatmulShape shape{.rows = 1, .columns = any_size(100), .inner = inner, .transpose_b = transposed};
      shape.ldb = (transposed ? inner : shape.columns) + random()() % 5;
      const auto b = normal<T>(detail::completed(shape).stride_b, 1, 0.5F);
      const auto before = normal<C>(shape.columns);
      MatmulEpilogue<C> epilogue;
      epilogue.adds_sums = random()() % 2 == 0;
      const auto run = [&](device::Stream& on, bool twin) {
        auto there = put(b, on);
        auto sums = put(before, on);
        if (twin) {
          auto a = put(std::vector<T>(inner), on);
          auto c = put(std::vector<C>(shape.columns), on);
          epilogue.b_sums = sums.span();
          reference::run(Matmul<T, C>{.a = a.span(),
                                      .b = there.span(),
                                      .c = c.span(),
                                      .shape = shape,
                                      .epilogue = epilogue,
                                      .workspace = {}},
                         on);
        } else {
          auto space =
              put(std::vector<float>(detail::emulated::column_sums_workspace_bytes(shape.columns) / sizeof(float)), on);
          const detail::emulated::StoredColumnSums<T, C> what{
              there.span().device_data(), inner, shape.columns, shape.ldb, transposed, sums.span().device_data(),
              epilogue.adds_sums};
          detail::emulated::column_sums(what, space.span().device_data(), on);
        }
        return get(sums.span(), on);
      };
      const auto is = run(stream(), false);
      const auto should = run(twin_stream(), true);
      test::expect_close(is, should, test::kRounding<C>, 1e-4, "sums");
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Runners, Behind, ::testing::Values(test::Runner::kEmulated), test::name_of_runner);

TEST_P(Behind, cublaslt_the_rest_of_an_epilogue_of_floats_agrees_with_the_twin) { finish_agrees<float>(); }
TEST_P(Behind, cublaslt_the_rest_of_an_epilogue_of_bf16_agrees_with_the_twin) { finish_agrees<device::Bf16>(); }
TEST_P(Behind, cublaslt_sums_of_columns_agree_with_the_twin) {
  sums_agree<float, float>();
  sums_agree<device::Bf16, device::Bf16>();
  sums_agree<device::Bf16, float>();
}

class Misuse : public ::testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
  /// A product of 4 x 4 matrices, after `spoil` has changed something.
  template <class Spoil>
  void product(const Spoil& spoil) {
    auto stream = std::move(*device::Stream::create(device::Device::cpu()));
    std::vector<float> values(16);
    MatmulShape shape{.rows = 4, .columns = 4, .inner = 4};
    MatmulEpilogue<float> epilogue;
    device::Span<float> span(values.data(), values.size());
    // At least a byte, so that an address is not null, and one to spoil.
    const auto space =
        std::move(*device::Buffer<std::byte>::create(matmul_workspace_bytes(shape, stream.device()) + 1, stream));
    device::Span<std::byte> workspace = space.span();
    spoil(shape, epilogue, span, workspace);
    kernels::run(
        Matmul<float, float>{
            .a = span, .b = span, .c = span, .shape = shape, .epilogue = epilogue, .workspace = workspace},
        stream);
  }
};
using Span = device::Span<float>;
using Bytes = device::Span<std::byte>;
using Epilogue = MatmulEpilogue<float>;

TEST_F(Misuse, is_noticed) {
  EXPECT_DEATH(product([](MatmulShape& s, Epilogue&, Span&, Bytes&) { s.lda = 3; }), "A's rows do not overlap");
  EXPECT_DEATH(product([](MatmulShape& s, Epilogue&, Span&, Bytes&) { s.ldb = 3; }), "B's rows do not overlap");
  EXPECT_DEATH(product([](MatmulShape& s, Epilogue&, Span&, Bytes&) { s.ldc = 3; }), "C's rows do not overlap");
  EXPECT_DEATH(product([](MatmulShape& s, Epilogue&, Span&, Bytes&) { s.count = 2, s.stride_c = 5; }),
               "C's matrices do not overlap");
  EXPECT_DEATH(product([](MatmulShape& s, Epilogue&, Span&, Bytes&) { s.lda = 5; }), "A's span holds its matrices");
  EXPECT_DEATH(product([](MatmulShape& s, Epilogue&, Span&, Bytes&) { s.ldb = 5; }), "B's span holds its matrices");
  EXPECT_DEATH(product([](MatmulShape& s, Epilogue&, Span&, Bytes&) { s.ldc = 5; }), "C's span holds its matrices");
  EXPECT_DEATH(product([](MatmulShape&, Epilogue& e, Span& c, Bytes&) { e.saved = c; }), "saved is not C");
  EXPECT_DEATH(product([](MatmulShape&, Epilogue& e, Span& c, Bytes&) { e.saved = c.subspan(0, 3); }),
               "saved is as large as C");
  EXPECT_DEATH(product([](MatmulShape&, Epilogue& e, Span& c, Bytes&) { e.gradient_at = c.subspan(0, 3); }),
               "gradient_at is as large as C");
  EXPECT_DEATH(product([](MatmulShape&, Epilogue& e, Span& c, Bytes&) { e.bias = c; }), "spans fit the shape");
  EXPECT_DEATH(product([](MatmulShape& s, Epilogue& e, Span& c, Bytes&) {
                 s = {.rows = 1, .columns = 4, .inner = 1, .count = 2};
                 e.sums = c.subspan(0, 4);
               }),
               "sums are of one matrix");
  EXPECT_DEATH(product([](MatmulShape&, Epilogue&, Span&, Bytes& space) { space = {}; }),
               "the workspace is large enough");
  EXPECT_DEATH(
      product([](MatmulShape&, Epilogue&, Span&, Bytes& space) { space = space.subspan(1, space.size() - 1); }),
      "the workspace is aligned to 256");
}

}  // namespace
}  // namespace dunnock::kernels
