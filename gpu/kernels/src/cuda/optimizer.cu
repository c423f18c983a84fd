// Floor, a value: AdamW reads w, m, v (12 bytes) and the gradient, and writes w, m, v and the copy; SGD without v. One
// launch for all tensors: a block a chunk.
#include "cuda/segments.hpp"
#include "optimizer_parts.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {
namespace {

using namespace device_code;

constexpr unsigned kBlock = 256;

struct AdamwUpdate {
  static constexpr bool kFirst = true;
  static constexpr bool kSecond = true;
  AdamwFactors by;
  __device__ void operator()(float g, float decay, float& w, float& m, float& v) const {
    m = by.beta1 * m + (1.0F - by.beta1) * g;
    v = by.beta2 * v + (1.0F - by.beta2) * g * g;
    w = (1.0F - by.learning_rate * decay) * w - by.rate * m / (sqrtf(v) * by.root + by.epsilon);
  }
};
template <bool kMomentum>
struct SgdUpdate {
  static constexpr bool kFirst = kMomentum;
  static constexpr bool kSecond = false;
  SgdStep by;
  __device__ void operator()(float g, float decay, float& w, float& m, float&) const {
    g += decay * w;
    if constexpr (kMomentum) {
      m = by.momentum * m + g;
      g = by.nesterov ? g + by.momentum * m : m;
    }
    w -= by.learning_rate * g;
  }
};

template <unsigned W, class T, class Step>
__device__ void step_some(const OptimizerTensor<T>& tensor, const Step& step, float factor, std::size_t i) {
  auto w = load_pack<W>(tensor.weights + i);
  Pack<float, W> m{};
  Pack<float, W> v{};
  if constexpr (Step::kFirst) m = load_pack<W>(tensor.first_moment + i);
  if constexpr (Step::kSecond) v = load_pack<W>(tensor.second_moment + i);
  const auto g = load_pack<W>(tensor.gradient + i);
  Pack<device::Bf16, W> copy;
#pragma unroll
  for (unsigned j = 0; j < W; ++j) {
    step(factor * to_float(g.values[j]), tensor.decay, w.values[j], m.values[j], v.values[j]);
    copy.values[j] = device::Bf16(w.values[j]);
  }
  store_pack(tensor.weights + i, w);
  if constexpr (Step::kFirst) store_pack(tensor.first_moment + i, m);
  if constexpr (Step::kSecond) store_pack(tensor.second_moment + i, v);
  if (tensor.copy != nullptr) store_pack(tensor.copy + i, copy);
}

__device__ inline bool aligned_to(const void* address, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(address) % bytes == 0;
}

/// The chunk of this block.
template <class T, class Step>
__device__ void step_chunk(const OptimizerTensor<T>* __restrict__ tensors, unsigned count, const Step& step,
                           const float* __restrict__ factors) {
  const OptimizerTensor<T> tensor = tensors[tensor_of_chunk(tensors, count, blockIdx.x)];
  const float factor = factors == nullptr ? 1.0F : *factors;
  const std::size_t first = (blockIdx.x - tensor.first_chunk) * kOptimizerChunk;
  const std::size_t rest = tensor.size - first;
  const unsigned values = static_cast<unsigned>(rest < kOptimizerChunk ? rest : kOptimizerChunk);
  const bool aligned = aligned_to(tensor.weights, 16) && aligned_to(tensor.first_moment, 16) &&
                       aligned_to(tensor.second_moment, 16) && aligned_to(tensor.gradient, 4 * sizeof(T)) &&
                       aligned_to(tensor.copy, 8);
  const unsigned packs = aligned ? values / 4 : 0;
  for (unsigned p = threadIdx.x; p < packs; p += kBlock) step_some<4>(tensor, step, factor, first + p * 4);
  for (unsigned i = packs * 4 + threadIdx.x; i < values; i += kBlock) step_some<1>(tensor, step, factor, first + i);
}

template <class T, class Step>
__global__ void __launch_bounds__(kBlock)
    optimizer_kernel(const OptimizerTensor<T>* __restrict__ tensors, unsigned count, Step step,
                     const float* __restrict__ factors) {
  step_chunk(tensors, count, step, factors);
}
// With the step in memory. The two powers of AdamW are some hundred operations of double: one thread of a block makes
// them, beside the reading and writing of 8192 values; other blocks of the multiprocessor go on meanwhile.
template <class T>
__global__ void __launch_bounds__(kBlock)
    adamw_kernel(const OptimizerTensor<T>* __restrict__ tensors, unsigned count, const AdamwStep* __restrict__ step,
                 const float* __restrict__ factors) {
  __shared__ AdamwFactors by;
  if (threadIdx.x == 0) by = AdamwFactors(*step);
  __syncthreads();
  step_chunk(tensors, count, AdamwUpdate{by}, factors);
}
template <class T>
__global__ void __launch_bounds__(kBlock)
    sgd_kernel(const OptimizerTensor<T>* __restrict__ tensors, unsigned count, const SgdStep* __restrict__ step,
               const float* __restrict__ factors) {
  const SgdStep by = *step;
  if (by.momentum != 0) {
    step_chunk(tensors, count, SgdUpdate<true>{by}, factors);
  } else {
    step_chunk(tensors, count, SgdUpdate<false>{by}, factors);
  }
}

/// `step`: by value or where it lies, as the kernel has it.
template <class T, class Step>
void launch_step(std::string_view name,
                 void (*kernel)(const OptimizerTensor<T>* __restrict__, unsigned, Step, const float* __restrict__),
                 const OptimizerTable<T>& table, std::type_identity_t<Step> step, device::Span<const float> factor,
                 device::Stream& stream) {
  launch(name, kernel, {dim3(static_cast<unsigned>(table.chunks)), dim3(kBlock)}, stream, table.tensors.device_data(),
         static_cast<unsigned>(table.tensors.size()), step, factor.device_data());
}

}  // namespace

template <class T>
void run(const Adamw<T>& call, device::Stream& stream) {
  launch_step("AdamW", optimizer_kernel<T, AdamwUpdate>, call.table, AdamwUpdate{AdamwFactors(call.step)}, call.factor,
              stream);
}
template <class T>
void run(const AdamwFromDevice<T>& call, device::Stream& stream) {
  launch_step("AdamW", adamw_kernel<T>, call.table, call.step.device_data(), call.factor, stream);
}
template <class T>
void run(const Sgd<T>& call, device::Stream& stream) {
  if (call.step.momentum != 0) {
    launch_step("SGD", optimizer_kernel<T, SgdUpdate<true>>, call.table, SgdUpdate<true>{call.step}, call.factor,
                stream);
  } else {
    launch_step("SGD", optimizer_kernel<T, SgdUpdate<false>>, call.table, SgdUpdate<false>{call.step}, call.factor,
                stream);
  }
}
template <class T>
void run(const SgdFromDevice<T>& call, device::Stream& stream) {
  launch_step("SGD", sgd_kernel<T>, call.table, call.step.device_data(), call.factor, stream);
}

DUNNOCK_INSTANTIATE_KERNELS(Adamw, AdamwFromDevice, Sgd, SgdFromDevice);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
