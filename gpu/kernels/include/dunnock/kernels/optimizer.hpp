// AdamW and SGD over all tensors of a model in one launch, fused: each value is read once and written once.
//
//   AdamW (Loshchilov, Hutter 2019, arXiv 1711.05101; as torch.optim.AdamW), with g = factor * gradient:
//     w -= learning_rate * decay * w
//     m = beta1 * m + (1 - beta1) * g;   v = beta2 * v + (1 - beta2) * g^2
//     w -= learning_rate / (1 - beta1^step) * m / (sqrt(v / (1 - beta2^step)) + epsilon)
//   SGD (as torch.optim.SGD, without dampening), with g = factor * gradient:
//     g += decay * w;   m = momentum * m + g;   w -= learning_rate * (nesterov ? g + momentum * m : m)
//     (momentum 0: w -= learning_rate * g, and m is neither read nor written)
//
// Weights and moments are f32, the gradient is T (float or Bf16). If a tensor has a `copy`, it becomes the new weights
// in bf16. `factor` is read from device memory, so that clipping (reduce.hpp) does not involve the host; an empty span
// means 1. Moments begin as zeros. Nothing allocates.
//
//   std::vector<OptimizerTensor<Bf16>> table = {{.weights = w.span().device_data(), ..., .size = w.size()}, ...};
//   const std::size_t chunks = lay_out(table);               // once
//   upload(on_device.span(), table, stream);
//   run(Adamw<Bf16>{.table = {on_device, chunks}, .step = step, .factor = factor}, stream);  // each step
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/kernel.hpp"

namespace dunnock::kernels {

/// One tensor; addresses of device memory (device::Span::device_data()). The table is in device memory too.
template <class T>
struct OptimizerTensor {
  float* weights = nullptr;        // (size)
  float* first_moment = nullptr;   // (size): AdamW's m, SGD's momentum
  float* second_moment = nullptr;  // (size): AdamW's v; SGD has none
  const T* gradient = nullptr;     // (size)
  device::Bf16* copy = nullptr;    // (size), or null
  std::size_t size = 0;
  std::size_t first_chunk = 0;  // lay_out() sets it
  float decay = 0;              // weight decay
  float padding = 0;
};

inline constexpr std::size_t kOptimizerChunk = 8192;  ///< Values that a block of threads works on.

/// Numbers the chunks of all tensors, and returns their number.
template <class T>
[[nodiscard]] std::size_t lay_out(std::span<OptimizerTensor<T>> table) {
  std::size_t chunks = 0;
  for (OptimizerTensor<T>& tensor : table) {
    tensor.first_chunk = chunks;
    chunks += (tensor.size + kOptimizerChunk - 1) / kOptimizerChunk;
  }
  return chunks;
}

/// A table in device memory that lay_out() has processed, and its chunks.
template <class T>
struct OptimizerTable {
  device::Span<const OptimizerTensor<T>> tensors;
  std::size_t chunks = 0;
};

struct AdamwStep {
  float learning_rate = 1e-3F;
  float beta1 = 0.9F;
  float beta2 = 0.999F;
  float epsilon = 1e-8F;
  std::uint64_t step = 1;  ///< 1, 2, ...
};
struct SgdStep {
  float learning_rate = 1e-2F;
  float momentum = 0;
  bool nesterov = false;  ///< Needs a momentum.
};

/// factor: (1) or empty.
template <class T>
struct Adamw {
  OptimizerTable<T> table{};
  AdamwStep step{};
  device::Span<const float> factor{};
};
DUNNOCK_KERNEL(Adamw);
template <class T>
struct Sgd {
  OptimizerTable<T> table{};
  SgdStep step{};
  device::Span<const float> factor{};
};
DUNNOCK_KERNEL(Sgd);

/// The same with the step in device memory, (1): it is read when the kernel runs, so a recorded graph (graph.hpp) makes
/// another step, with another learning rate, whenever it is launched. The CPU gives the bits of the step by value. CUDA
/// computes the bias corrections of AdamW in each block, with its own double `pow`: compared with the step by value,
/// they may differ in a float's last bit. Errors: InvalidArgument, through the stream, on the CPU: a step of 0, or
/// Nesterov without a momentum. CUDA does not check: there that is a division by 0, or SGD without momentum.
template <class T>
struct AdamwFromDevice {
  OptimizerTable<T> table{};
  device::Span<const AdamwStep> step{};
  device::Span<const float> factor{};
};
DUNNOCK_KERNEL(AdamwFromDevice);
template <class T>
struct SgdFromDevice {
  OptimizerTable<T> table{};
  device::Span<const SgdStep> step{};
  device::Span<const float> factor{};
};
DUNNOCK_KERNEL(SgdFromDevice);

}  // namespace dunnock::kernels
