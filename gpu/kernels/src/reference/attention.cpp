#include "dunnock/kernels/attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "reference/values.hpp"

namespace dunnock::kernels::reference {
namespace {

template <class T>
std::size_t place(const HeadsView<T>& view, std::size_t b, std::size_t t, std::size_t h, std::size_t d) {
  return b * view.batch_stride + t * view.token_stride + h * view.head_stride + d;
}
template <class T>
double value_at(const HeadsView<const T>& view, std::size_t b, std::size_t t, std::size_t h, std::size_t d) {
  return at(view.values, place(view, b, t, h, d));
}
template <class T>
void set_at(const HeadsView<T>& view, std::size_t b, std::size_t t, std::size_t h, std::size_t d, double value) {
  set(view.values, place(view, b, t, h, d), value);
}

double scale_of(const AttentionShape& shape) {
  return shape.scale != 0 ? double(shape.scale) : 1 / std::sqrt(double(shape.head_dim));
}

bool sees(const AttentionShape& shape, std::size_t query, std::size_t key) {
  return !shape.causal || key + shape.query_tokens <= query + shape.key_tokens;
}

/// The logits of one query; -infinity where it does not see the key.
template <class T>
std::vector<double> logits(const AttentionInputs<T>& in, std::size_t b, std::size_t h, std::size_t i,
                           const AttentionShape& shape) {
  const std::size_t kv_head = h / (shape.heads / shape.kv_heads);
  std::vector<double> s(shape.key_tokens, -std::numeric_limits<double>::infinity());
  for (std::size_t j = 0; j < shape.key_tokens; ++j) {
    if (!sees(shape, i, j)) continue;
    double dot = 0;
    for (std::size_t d = 0; d < shape.head_dim; ++d)
      dot += value_at(in.q, b, i, h, d) * value_at(in.k, b, j, kv_head, d);
    s[j] = scale_of(shape) * dot;
  }
  return s;
}

template <class T>
void forward(const AttentionInputs<T>& in, HeadsView<T> o, device::Span<float> lse, const AttentionShape& shape) {
  for (std::size_t b = 0; b < shape.batch; ++b) {
    for (std::size_t h = 0; h < shape.heads; ++h) {
      for (std::size_t i = 0; i < shape.query_tokens; ++i) {
        const std::vector<double> s = logits(in, b, h, i, shape);
        double max = -std::numeric_limits<double>::infinity();
        for (const double logit : s) max = std::max(max, logit);
        const bool sees_any = std::isfinite(max);
        double sum = 0;
        for (const double logit : s) sum += sees_any ? std::exp(logit - max) : 0;
        for (std::size_t d = 0; d < shape.head_dim; ++d) {
          double value = 0;
          for (std::size_t j = 0; sees_any && j < shape.key_tokens; ++j)
            value += std::exp(s[j] - max) / sum * value_at(in.v, b, j, h / (shape.heads / shape.kv_heads), d);
          set_at(o, b, i, h, d, value);
        }
        if (!lse.empty()) set(lse, (b * shape.heads + h) * shape.query_tokens + i, max + std::log(sum));
      }
    }
  }
}

template <class T>
void backward(const AttentionInputs<T>& in, const AttentionResults<T>& results, const AttentionGradients<T>& gradients,
              const AttentionShape& shape) {
  const std::size_t dim = shape.head_dim;
  const std::size_t group = shape.heads / shape.kv_heads;
  for (std::size_t b = 0; b < shape.batch; ++b) {
    for (std::size_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
      std::vector<double> dk(shape.key_tokens * dim);
      std::vector<double> dv(shape.key_tokens * dim);
      for (std::size_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
        for (std::size_t i = 0; i < shape.query_tokens; ++i) {
          const std::vector<double> s = logits(in, b, h, i, shape);
          const double lse = at(results.lse, (b * shape.heads + h) * shape.query_tokens + i);
          double delta = 0;
          for (std::size_t d = 0; d < dim; ++d)
            delta += value_at(results.o, b, i, h, d) * value_at(results.o_grad, b, i, h, d);
          std::vector<double> dq(dim);
          for (std::size_t j = 0; j < shape.key_tokens; ++j) {
            if (!sees(shape, i, j)) continue;
            const double p = std::exp(s[j] - lse);
            double dp = 0;
            for (std::size_t d = 0; d < dim; ++d)
              dp += value_at(results.o_grad, b, i, h, d) * value_at(in.v, b, j, kv_head, d);
            const double ds = scale_of(shape) * p * (dp - delta);
            for (std::size_t d = 0; d < dim; ++d) {
              dq[d] += ds * value_at(in.k, b, j, kv_head, d);
              dk[j * dim + d] += ds * value_at(in.q, b, i, h, d);
              dv[j * dim + d] += p * value_at(results.o_grad, b, i, h, d);
            }
          }
          for (std::size_t d = 0; d < dim; ++d) set_at(gradients.q, b, i, h, d, dq[d]);
        }
      }
      for (std::size_t j = 0; j < shape.key_tokens; ++j) {
        for (std::size_t d = 0; d < dim; ++d) {
          set_at(gradients.k, b, j, kv_head, d, dk[j * dim + d]);
          set_at(gradients.v, b, j, kv_head, d, dv[j * dim + d]);
        }
      }
    }
  }
}

}  // namespace

template <class T>
void run(const Attention<T>& call, device::Stream& stream) {
  stream.run("attention", [=] { return forward<T>(call.in, call.o, call.lse, call.shape), Status{}; });
}
template <class T>
void run(const AttentionBackward<T>& call, device::Stream& stream) {
  stream.run("attention backward",
             [=] { return backward<T>(call.in, call.results, call.gradients, call.shape), Status{}; });
}

DUNNOCK_INSTANTIATE_KERNELS(Attention, AttentionBackward);

}  // namespace dunnock::kernels::reference
