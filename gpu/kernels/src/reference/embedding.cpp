#include "dunnock/kernels/embedding.hpp"

#include <limits>

#include "dispatch.hpp"
#include "reference/values.hpp"

namespace dunnock::kernels::reference {

template <class T>
void run(const Embedding<T>& call, device::Stream& stream) {
  stream.run("embedding", [=] {
    for (std::size_t i = 0; i < call.tokens.size(); ++i) {
      const std::int64_t token = call.tokens.device_data()[i];
      for (std::size_t c = 0; c < call.shape.columns; ++c) {
        double value = std::numeric_limits<double>::quiet_NaN();
        if (token >= 0 && token < std::int64_t(call.shape.vocabulary))
          value = at(call.table, std::size_t(token) * call.shape.columns + c);
        if (!call.positions.empty()) value += at(call.positions, (i * call.shape.columns + c) % call.positions.size());
        set(call.y, i * call.shape.columns + c, value);
      }
    }
    return Status{};
  });
}
template <class T, class G>
void run(const EmbeddingBackward<T, G>& call, device::Stream& stream) {
  stream.run("embedding backward", [=] {
    for (std::size_t v = 0; v < call.shape.vocabulary; ++v) {
      for (std::size_t c = 0; c < call.shape.columns; ++c) {
        double sum = 0;
        for (std::size_t i = 0; i < call.tokens.size(); ++i) {
          if (call.tokens.device_data()[i] == std::int32_t(v)) sum += at(call.dy, i * call.shape.columns + c);
        }
        add_or_set(call.dtable, v * call.shape.columns + c, sum, call.adds);
      }
    }
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNELS(Embedding);
DUNNOCK_INSTANTIATE_KERNEL_WIDENING(EmbeddingBackward);

}  // namespace dunnock::kernels::reference
