#include "dunnock/kernels/matmul.hpp"

#include <cmath>
#include <numbers>

#include "matmul_call.hpp"
#include "reference/values.hpp"

namespace dunnock::kernels::reference {
namespace {

double gelu_slope(double x) { return std::sqrt(2 / std::numbers::pi) * (1 + 3 * 0.044715 * x * x); }
double gelu_tanh(double x) { return std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)); }

double activated(MatmulActivation activation, double x) {
  switch (activation) {
    case MatmulActivation::kNone: return x;
    case MatmulActivation::kRelu: return x < 0 ? 0 : x;  // A NaN stays one.
    case MatmulActivation::kGelu: return 0.5 * x * (1 + gelu_tanh(x));
  }
  return x;
}

double derivative(MatmulActivation activation, double x) {
  switch (activation) {
    case MatmulActivation::kNone: return 1;
    case MatmulActivation::kRelu: return x <= 0 ? 0 : 1;
    case MatmulActivation::kGelu: {
      const double t = gelu_tanh(x);
      return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * gelu_slope(x);
    }
  }
  return 1;
}

template <class T, class C>
void product(device::Span<const T> a, device::Span<const T> b, device::Span<C> c, const MatmulShape& given,
             const MatmulEpilogue<C>& e) {
  const MatmulShape s = detail::completed(given);
  const auto a_at = [&](std::size_t n, std::size_t i, std::size_t l) {
    return at(a, n * s.stride_a + (s.transpose_a ? l * s.lda + i : i * s.lda + l));
  };
  const auto b_at = [&](std::size_t n, std::size_t l, std::size_t j) {
    return at(b, n * s.stride_b + (s.transpose_b ? j * s.ldb + l : l * s.ldb + j));
  };
  for (std::size_t j = 0; j < s.columns; ++j) {
    double sum = 0;
    for (std::size_t n = 0; n < s.count; ++n) {
      for (std::size_t i = 0; i < s.rows; ++i) {
        const std::size_t where = n * s.stride_c + i * s.ldc + j;
        double v = 0;
        for (std::size_t l = 0; l < s.inner; ++l) v += a_at(n, i, l) * b_at(n, l, j);
        v *= double(e.alpha);
        if (e.beta != 0) v += double(e.beta) * at<C>(c, where);
        if (!e.bias.empty()) v += at(e.bias, j);
        if (!e.saved.empty()) set(e.saved, where, v);
        v = e.gradient_at.empty() ? activated(e.activation, v) : v * derivative(e.activation, at(e.gradient_at, where));
        set(c, where, v);
        sum += v;
      }
    }
    if (!e.sums.empty()) add_or_set(e.sums, j, sum, e.adds_sums);
    double b_sum = 0;
    for (std::size_t l = 0; l < s.inner && !e.b_sums.empty(); ++l) b_sum += b_at(0, l, j);
    if (!e.b_sums.empty()) add_or_set(e.b_sums, j, b_sum, e.adds_sums);
  }
}

}  // namespace

template <class T, class C>
void run(const Matmul<T, C>& call, device::Stream& stream) {
  stream.run("matrix product",
             [=] { return product<T, C>(call.a, call.b, call.c, call.shape, call.epilogue), Status{}; });
}

DUNNOCK_INSTANTIATE_KERNEL_WIDENING(Matmul);

}  // namespace dunnock::kernels::reference
