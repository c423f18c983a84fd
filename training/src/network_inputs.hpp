// NetworkInputs: device memory for some micro-batches: images, or tokens; targets; losses.
#pragma once

#include <cstdint>
#include <vector>

#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/elementwise.hpp"
#include "dunnock/kernels/philox.hpp"
#include "dunnock/model/models.hpp"
#include "dunnock/model/network_layer.hpp"
#include "dunnock/training/trainer.hpp"

namespace dunnock::training {

template <class T>
class NetworkInputs {
 public:
  [[nodiscard]] static Result<NetworkInputs> create(const model::ModelOptions& model, std::size_t count,
                                                    std::size_t rows, device::Stream& stream) {
    NetworkInputs made;
    made.sizes_ = input_sizes(model);
    made.rows_ = rows;
    const std::size_t all = count * rows;
    DUNNOCK_TRY(make(made.targets_, all * made.sizes_.targets, stream));
    DUNNOCK_TRY(make(made.losses_, all * made.sizes_.targets, stream));
    DUNNOCK_TRY(make(made.tokens_, all * made.sizes_.tokens, stream));
    DUNNOCK_TRY(make(made.images_, all * made.sizes_.values, stream));
    if (!std::is_same_v<T, float>) {
      DUNNOCK_TRY(make(made.casted_, all * made.sizes_.values, stream));
    }
    return made;
  }

  [[nodiscard]] const model::InputSizes& sizes() const noexcept { return sizes_; }

  /// `rows` rows from the beginning of micro-batch `first` on; they may be those of several. The host's memory must
  /// stay until the stream is synchronized.
  void upload(std::size_t first, std::size_t rows, const StepInput& input, device::Stream& stream) {
    const std::size_t begin = first * rows_;
    const auto part = [&](auto& buffer, std::size_t a_row) {
      return buffer.span().subspan(begin * a_row, rows * a_row);
    };
    device::upload(part(targets_, sizes_.targets), input.targets, stream);
    if (sizes_.tokens > 0) device::upload(part(tokens_, sizes_.tokens), input.tokens, stream);
    if (sizes_.values == 0) return;
    device::upload(part(images_, sizes_.values), input.images, stream);
    if constexpr (!std::is_same_v<T, float>)
      kernels::run(kernels::Cast<T, float>{.x = part(images_, sizes_.values), .y = part(casted_, sizes_.values)},
                   stream);
  }

  /// Numbers that say nothing, for measurements. Synchronises.
  [[nodiscard]] Status fill_with_noise(std::size_t count, device::Stream& stream) {
    const std::size_t rows = count * rows_;
    std::vector<float> images(rows * sizes_.values);
    std::vector<std::int32_t> tokens(rows * sizes_.tokens);
    std::vector<std::int32_t> targets(rows * sizes_.targets);
    const auto drawn = [](std::size_t i) { return kernels::philox_block({1, 0}, i).words[0]; };
    for (std::size_t i = 0; i < images.size(); ++i) images[i] = 2 * kernels::uniform_of(drawn(i)) - 1;
    for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(drawn(i) % sizes_.classes);
    for (std::size_t i = 0; i < targets.size(); ++i)
      targets[i] = static_cast<std::int32_t>(drawn(i + 7) % sizes_.classes);
    upload(0, rows, {.images = images, .tokens = tokens, .targets = targets}, stream);
    return stream.synchronize();
  }

  /// Micro-batch `number`, of which `rows` rows count.
  [[nodiscard]] model::MicroBatch<T> batch(std::size_t number, std::size_t rows, float gradient_factor) const {
    const std::size_t begin = number * rows_;
    const auto part = [&](const auto& buffer, std::size_t a_row) {
      return buffer.span().subspan(begin * a_row, rows * a_row);
    };
    model::MicroBatch<T> batch{.rows = rows,
                               .tokens = part(tokens_, sizes_.tokens),
                               .targets = part(targets_, sizes_.targets),
                               .losses = part(losses_, sizes_.targets),
                               .gradient_factor = gradient_factor};
    if constexpr (std::is_same_v<T, float>) {
      batch.images = part(images_, sizes_.values);
    } else {
      batch.images = part(casted_, sizes_.values);
    }
    return batch;
  }
  /// Of `rows` rows from the beginning of micro-batch `first` on.
  [[nodiscard]] device::Span<const float> losses(std::size_t first, std::size_t rows) const {
    return losses_.span().subspan(first * rows_ * sizes_.targets, rows * sizes_.targets);
  }
  [[nodiscard]] device::Span<const std::int32_t> targets(std::size_t first, std::size_t rows) const {
    return targets_.span().subspan(first * rows_ * sizes_.targets, rows * sizes_.targets);
  }

 private:
  template <class U>
  [[nodiscard]] static Status make(device::Buffer<U>& buffer, std::size_t size, device::Stream& stream) {
    DUNNOCK_TRY(auto made, device::Buffer<U>::create(size, stream));
    buffer = std::move(made);
    return {};
  }

  model::InputSizes sizes_;
  std::size_t rows_ = 0;
  device::Buffer<float> images_;
  device::Buffer<T> casted_;  // The images, where T is not float.
  device::Buffer<std::int32_t> tokens_;
  device::Buffer<std::int32_t> targets_;
  device::Buffer<float> losses_;
};

}  // namespace dunnock::training
