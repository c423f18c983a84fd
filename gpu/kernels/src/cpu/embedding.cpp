#include "dunnock/kernels/embedding.hpp"

#include <algorithm>
#include <limits>

#include "checks.hpp"
#include "cpu/vector_for.hpp"
#include "dispatch.hpp"

namespace dunnock::kernels {
namespace {

using detail::check_sizes;
using detail::load;
using detail::store;
using detail::vector_for;

DUNNOCK_INLINED inline bool in_table(std::int32_t token, const EmbeddingShape& shape) {
  return token >= 0 && static_cast<std::size_t>(token) < shape.vocabulary;
}
void check_shape(const EmbeddingShape& shape) {
  DUNNOCK_CHECK(shape.columns > 0, "a row has columns");
  DUNNOCK_CHECK(shape.vocabulary < (std::size_t{1} << 31), "a token is an i32");
}

}  // namespace

template <class T>
void run(const Embedding<T>& call, device::Stream& stream) {
  check_shape(call.shape);
  check_sizes(call.shape.vocabulary * call.shape.columns, call.table);
  check_sizes(call.tokens.size() * call.shape.columns, call.y);
  DUNNOCK_CHECK(call.positions.size() % call.shape.columns == 0, "positions are whole rows");
  if (call.tokens.empty()) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("embedding", [=] {
    const std::size_t columns = call.shape.columns;
    const std::size_t length = call.positions.size() / columns;
    vector_for(call.tokens.size(), detail::rows_grain(columns),
               [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
                 for (std::size_t i = first; i < last; ++i) {
                   T* const to = call.y.device_data() + i * columns;
                   const std::int32_t token = call.tokens.device_data()[i];
                   if (!in_table(token, call.shape)) {
                     std::fill_n(to, columns, T(std::numeric_limits<float>::quiet_NaN()));
                     continue;
                   }
                   const T* const row = call.table.device_data() + static_cast<std::size_t>(token) * columns;
                   if (length == 0) {
                     std::copy_n(row, columns, to);
                     continue;
                   }
                   const T* const position = call.positions.device_data() + i % length * columns;
#pragma omp simd
                   for (std::size_t c = 0; c < columns; ++c) store(to + c, load(row + c) + load(position + c));
                 }
               });
    return Status{};
  });
}

std::size_t embedding_backward_workspace(std::size_t tokens, const EmbeddingShape& shape,
                                         [[maybe_unused]] device::Device device) {
#if DUNNOCK_HAS_CUDA
  if (device.backend() == device::Backend::kCuda) return 0;
#endif
  return tokens + shape.vocabulary + 1;
}

template <class T, class G>
void run(const EmbeddingBackward<T, G>& call, device::Stream& stream) {
  check_shape(call.shape);
  check_sizes(call.shape.vocabulary * call.shape.columns, call.dtable);
  check_sizes(call.tokens.size() * call.shape.columns, call.dy);
  DUNNOCK_CHECK(call.tokens.size() < (std::size_t{1} << 31), "there are fewer than 2^31 tokens");
  DUNNOCK_CHECK(call.workspace.size() >= embedding_backward_workspace(call.tokens.size(), call.shape, stream.device()),
                "the workspace is large enough");
  if (call.shape.vocabulary == 0) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("embedding backward", [=] {
    // The tokens' places, sorted by token (a counting sort, which keeps the order of equals): ends[v] is then where
    // those of v end.
    std::uint32_t* const ends = call.workspace.device_data();
    std::uint32_t* const places = ends + call.shape.vocabulary + 1;
    const std::int32_t* const token = call.tokens.device_data();
    std::fill_n(ends, call.shape.vocabulary + 1, 0U);
    for (std::size_t i = 0; i < call.tokens.size(); ++i) {
      if (in_table(token[i], call.shape)) ++ends[static_cast<std::size_t>(token[i]) + 1];
    }
    for (std::size_t v = 0; v < call.shape.vocabulary; ++v) ends[v + 1] += ends[v];
    for (std::size_t i = 0; i < call.tokens.size(); ++i) {
      if (in_table(token[i], call.shape))
        places[ends[static_cast<std::size_t>(token[i])]++] = static_cast<std::uint32_t>(i);
    }
    vector_for(call.shape.vocabulary, detail::rows_grain(call.shape.columns),
               [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
                 constexpr std::size_t kAtOnce = 512;
                 float sums[kAtOnce];
                 for (std::size_t v = first; v < last; ++v) {
                   const std::uint32_t begin = v == 0 ? 0 : ends[v - 1];
                   if (call.adds && begin == ends[v]) continue;
                   for (std::size_t c = 0; c < call.shape.columns; c += kAtOnce) {
                     const std::size_t width = std::min(kAtOnce, call.shape.columns - c);
                     G* const to = call.dtable.device_data() + v * call.shape.columns + c;
                     for (std::size_t j = 0; j < width; ++j) sums[j] = 0;
                     for (std::uint32_t k = begin; k < ends[v]; ++k) {
                       const T* const from = call.dy.device_data() + std::size_t{places[k]} * call.shape.columns + c;
#pragma omp simd
                       for (std::size_t j = 0; j < width; ++j) sums[j] += load(from + j);
                     }
#pragma omp simd
                     for (std::size_t j = 0; j < width; ++j)
                       store(to + j, call.adds ? load(to + j) + sums[j] : sums[j]);
                   }
                 }
               });
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNELS(Embedding);
DUNNOCK_INSTANTIATE_KERNEL_WIDENING(EmbeddingBackward);

}  // namespace dunnock::kernels
