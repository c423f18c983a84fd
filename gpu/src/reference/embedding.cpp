#include "dunnock/gpu/kernels/embedding.hpp"

#include <limits>

#include "kernels/embedding_launchers.hpp"
#include "reference/values.hpp"

namespace dunnock::gpu::reference {

template <class T>
void embedding(DeviceSpan<const T> table, DeviceSpan<const T> positions, DeviceSpan<const std::int32_t> tokens,
               DeviceSpan<T> y, const EmbeddingShape& shape, Stream& stream) {
  stream.run("embedding", [=] {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const std::int64_t token = tokens.device_data()[i];
      for (std::size_t c = 0; c < shape.columns; ++c) {
        double value = std::numeric_limits<double>::quiet_NaN();
        if (token >= 0 && token < std::int64_t(shape.vocabulary))
          value = at(table, std::size_t(token) * shape.columns + c);
        if (!positions.empty()) value += at(positions, (i * shape.columns + c) % positions.size());
        set(y, i * shape.columns + c, value);
      }
    }
    return Status{};
  });
}
template <class T, class G>
void embedding_backward(DeviceSpan<const T> dy, DeviceSpan<const std::int32_t> tokens, DeviceSpan<G> dtable, bool adds,
                        const EmbeddingShape& shape, DeviceSpan<std::uint32_t>, Stream& stream) {
  stream.run("embedding backward", [=] {
    for (std::size_t v = 0; v < shape.vocabulary; ++v) {
      for (std::size_t c = 0; c < shape.columns; ++c) {
        double sum = 0;
        for (std::size_t i = 0; i < tokens.size(); ++i) {
          if (tokens.device_data()[i] == std::int32_t(v)) sum += at(dy, i * shape.columns + c);
        }
        add_or_set(dtable, v * shape.columns + c, sum, adds);
      }
    }
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_EMBEDDINGS

}  // namespace dunnock::gpu::reference
