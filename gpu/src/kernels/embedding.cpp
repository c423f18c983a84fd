#include "dunnock/gpu/kernels/embedding.hpp"

#include <algorithm>
#include <limits>

#include "kernels/checks.hpp"
#include "kernels/embedding_launchers.hpp"
#include "kernels/vector_for.hpp"

namespace dunnock::gpu {
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
void embedding(DeviceSpan<const T> table, DeviceSpan<const T> positions, DeviceSpan<const std::int32_t> tokens,
               DeviceSpan<T> y, const EmbeddingShape& shape, Stream& stream) {
  check_shape(shape);
  check_sizes(shape.vocabulary * shape.columns, table);
  check_sizes(tokens.size() * shape.columns, y);
  DUNNOCK_CHECK(positions.size() % shape.columns == 0, "positions are whole rows");
  if (tokens.empty()) return;
  DUNNOCK_ON_CUDA(stream, detail::cuda::embedding<T>(table, positions, tokens, y, shape, stream));
  stream.run("embedding", [=] {
    const std::size_t columns = shape.columns;
    const std::size_t length = positions.size() / columns;
    vector_for(tokens.size(), detail::rows_grain(columns), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
      for (std::size_t i = first; i < last; ++i) {
        T* const to = y.device_data() + i * columns;
        const std::int32_t token = tokens.device_data()[i];
        if (!in_table(token, shape)) {
          std::fill_n(to, columns, T(std::numeric_limits<float>::quiet_NaN()));
          continue;
        }
        const T* const row = table.device_data() + static_cast<std::size_t>(token) * columns;
        if (length == 0) {
          std::copy_n(row, columns, to);
          continue;
        }
        const T* const position = positions.device_data() + i % length * columns;
#pragma omp simd
        for (std::size_t c = 0; c < columns; ++c) store(to + c, load(row + c) + load(position + c));
      }
    });
    return Status{};
  });
}

std::size_t embedding_backward_workspace(std::size_t tokens, const EmbeddingShape& shape,
                                         [[maybe_unused]] Device device) {
#if DUNNOCK_HAS_CUDA
  if (device.backend() == Backend::kCuda) return 0;
#endif
  return tokens + shape.vocabulary + 1;
}

template <class T, class G>
void embedding_backward(DeviceSpan<const T> dy, DeviceSpan<const std::int32_t> tokens, DeviceSpan<G> dtable, bool adds,
                        const EmbeddingShape& shape, DeviceSpan<std::uint32_t> workspace, Stream& stream) {
  check_shape(shape);
  check_sizes(shape.vocabulary * shape.columns, dtable);
  check_sizes(tokens.size() * shape.columns, dy);
  DUNNOCK_CHECK(tokens.size() < (std::size_t{1} << 31), "there are less than 2^31 tokens");
  DUNNOCK_CHECK(workspace.size() >= embedding_backward_workspace(tokens.size(), shape, stream.device()),
                "the workspace is large enough");
  if (shape.vocabulary == 0) return;
  DUNNOCK_ON_CUDA(stream, (detail::cuda::embedding_backward<T, G>(dy, tokens, dtable, adds, shape, workspace, stream)));
  stream.run("embedding backward", [=] {
    // The tokens' places, sorted by token (a counting sort, which keeps the order of equals): ends[v] is then where
    // those of v end.
    std::uint32_t* const ends = workspace.device_data();
    std::uint32_t* const places = ends + shape.vocabulary + 1;
    const std::int32_t* const token = tokens.device_data();
    std::fill_n(ends, shape.vocabulary + 1, 0U);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (in_table(token[i], shape)) ++ends[static_cast<std::size_t>(token[i]) + 1];
    }
    for (std::size_t v = 0; v < shape.vocabulary; ++v) ends[v + 1] += ends[v];
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (in_table(token[i], shape)) places[ends[static_cast<std::size_t>(token[i])]++] = static_cast<std::uint32_t>(i);
    }
    vector_for(shape.vocabulary, detail::rows_grain(shape.columns),
               [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
                 constexpr std::size_t kAtOnce = 512;
                 float sums[kAtOnce];
                 for (std::size_t v = first; v < last; ++v) {
                   const std::uint32_t begin = v == 0 ? 0 : ends[v - 1];
                   if (adds && begin == ends[v]) continue;
                   for (std::size_t c = 0; c < shape.columns; c += kAtOnce) {
                     const std::size_t width = std::min(kAtOnce, shape.columns - c);
                     G* const to = dtable.device_data() + v * shape.columns + c;
                     for (std::size_t j = 0; j < width; ++j) sums[j] = 0;
                     for (std::uint32_t k = begin; k < ends[v]; ++k) {
                       const T* const from = dy.device_data() + std::size_t{places[k]} * shape.columns + c;
#pragma omp simd
                       for (std::size_t j = 0; j < width; ++j) sums[j] += load(from + j);
                     }
#pragma omp simd
                     for (std::size_t j = 0; j < width; ++j) store(to + j, adds ? load(to + j) + sums[j] : sums[j]);
                   }
                 }
               });
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_EMBEDDINGS

}  // namespace dunnock::gpu
