// Floor: each byte read or written, once; that hides ten rounds of Philox for four values. A thread makes eight
// neighboring values: two blocks, 16 or 32 bytes, and a whole byte of a mask.
#include "cuda/device_code.hpp"
#include "dispatch.hpp"
#include "dunnock/kernels/random.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {
namespace {

using namespace device_code;

constexpr unsigned kBlock = 256;
constexpr unsigned kValues = 8;  // a thread at a time

/// f(group number, its eight words) for the groups of this thread.
template <class F>
__device__ void each_group(std::size_t count, const RandomKey& key, const F& f) {
  const std::size_t groups = (count + kValues - 1) / kValues;
  for (std::size_t g = std::size_t{blockIdx.x} * kBlock + threadIdx.x; g < groups;
       g += std::size_t{gridDim.x} * kBlock) {
    const PhiloxBlock first = philox_block(key, 2 * g);
    const PhiloxBlock second = philox_block(key, 2 * g + 1);
    const std::uint32_t words[kValues] = {first.words[0],  first.words[1],  first.words[2],  first.words[3],
                                          second.words[0], second.words[1], second.words[2], second.words[3]};
    f(g, words);
  }
}

/// Reads or writes the values of a group at once where that is possible.
template <class T>
__device__ void read_group(const T* from, std::size_t group, std::size_t count, bool aligned,
                           float (&values)[kValues]) {
  if (aligned && (group + 1) * kValues <= count) {
#pragma unroll
    for (unsigned p = 0; p < kValues / kPack<T>; ++p) {
      const auto pack = load_pack<kPack<T>>(from + group * kValues + p * kPack<T>);
#pragma unroll
      for (unsigned i = 0; i < kPack<T>; ++i) values[p * kPack<T> + i] = to_float(pack.values[i]);
    }
    return;
  }
#pragma unroll
  for (unsigned i = 0; i < kValues; ++i)
    values[i] = group * kValues + i < count ? to_float(from[group * kValues + i]) : 0.0F;
}
template <class T>
__device__ void write_group(T* to, std::size_t group, std::size_t count, bool aligned, const float (&values)[kValues]) {
  if (aligned && (group + 1) * kValues <= count) {
#pragma unroll
    for (unsigned p = 0; p < kValues / kPack<T>; ++p) {
      Pack<T, kPack<T>> pack;
#pragma unroll
      for (unsigned i = 0; i < kPack<T>; ++i) pack.values[i] = from_float<T>(values[p * kPack<T> + i]);
      store_pack(to + group * kValues + p * kPack<T>, pack);
    }
    return;
  }
#pragma unroll
  for (unsigned i = 0; i < kValues; ++i) {
    if (group * kValues + i < count) to[group * kValues + i] = from_float<T>(values[i]);
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock) uniform_kernel(T* out, std::size_t count, RandomKey key, bool aligned) {
  each_group(count, key, [&](std::size_t group, const std::uint32_t(&words)[kValues]) {
    float values[kValues];
#pragma unroll
    for (unsigned i = 0; i < kValues; ++i) values[i] = uniform_of(words[i]);
    write_group(out, group, count, aligned, values);
  });
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    normal_kernel(T* out, std::size_t count, NormalShape shape, RandomKey key, bool aligned) {
  each_group(count, key, [&](std::size_t group, const std::uint32_t(&words)[kValues]) {
    float values[kValues];
#pragma unroll
    for (unsigned i = 0; i < kValues; i += 2) {
      const float a = (static_cast<float>(words[i] >> 8) + 1) * 0x1p-24F;
      const float angle = 6.2831853F * uniform_of(words[i + 1]);
      const float radius = shape.deviation * sqrtf(-2.0F * logf(a));
      values[i] = shape.mean + radius * cosf(angle);
      values[i + 1] = shape.mean + radius * sinf(angle);
    }
    write_group(out, group, count, aligned, values);
  });
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    dropout_kernel(const T* x, T* y, std::uint8_t* mask, std::size_t count, float keep, RandomKey key, bool aligned) {
  const std::uint32_t threshold = keep_threshold(keep);
  const float scale = 1 / keep;
  each_group(count, key, [&](std::size_t group, const std::uint32_t(&words)[kValues]) {
    float values[kValues];
    read_group(x, group, count, aligned, values);
    unsigned bits = 0;
#pragma unroll
    for (unsigned i = 0; i < kValues; ++i) {
      const bool kept = is_kept(words[i], threshold);
      values[i] = kept ? values[i] * scale : 0.0F;
      bits |= kept && group * kValues + i < count ? 1U << i : 0U;
    }
    write_group(y, group, count, aligned, values);
    if (mask != nullptr) mask[group] = static_cast<std::uint8_t>(bits);
  });
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    mask_kernel(const T* x, const std::uint8_t* __restrict__ mask, T* y, std::size_t count, float keep, bool aligned) {
  const float scale = 1 / keep;
  const std::size_t groups = (count + kValues - 1) / kValues;
  for (std::size_t g = std::size_t{blockIdx.x} * kBlock + threadIdx.x; g < groups;
       g += std::size_t{gridDim.x} * kBlock) {
    float values[kValues];
    read_group(x, g, count, aligned, values);
    const unsigned bits = mask[g];
#pragma unroll
    for (unsigned i = 0; i < kValues; ++i) values[i] = (bits >> i & 1U) != 0 ? values[i] * scale : 0.0F;
    write_group(y, g, count, aligned, values);
  }
}

LaunchShape shape_for(std::size_t count, device::Stream& stream) {
  const std::size_t blocks = (count + kBlock * kValues - 1) / (kBlock * kValues);
  return {dim3(static_cast<unsigned>(std::min<std::size_t>(blocks, std::size_t{multiprocessors(stream)} * 16))),
          dim3(kBlock)};
}

}  // namespace

template <class T>
void run(const RandomUniform<T>& call, device::Stream& stream) {
  launch("uniform", uniform_kernel<T>, shape_for(call.out.size(), stream), stream, call.out.device_data(),
         call.out.size(), call.key, is_aligned(call.out.device_data()));
}
template <class T>
void run(const RandomNormal<T>& call, device::Stream& stream) {
  launch("normal", normal_kernel<T>, shape_for(call.out.size(), stream), stream, call.out.device_data(),
         call.out.size(), call.shape, call.key, is_aligned(call.out.device_data()));
}
template <class T>
void run(const Dropout<T>& call, device::Stream& stream) {
  launch("dropout", dropout_kernel<T>, shape_for(call.x.size(), stream), stream, call.x.device_data(),
         call.y.device_data(), call.mask.device_data(), call.x.size(), call.keep, call.key,
         is_aligned(call.x.device_data()) && is_aligned(call.y.device_data()));
}
template <class T>
void run(const ApplyMask<T>& call, device::Stream& stream) {
  launch("apply mask", mask_kernel<T>, shape_for(call.x.size(), stream), stream, call.x.device_data(),
         call.mask.device_data(), call.y.device_data(), call.x.size(), call.keep,
         is_aligned(call.x.device_data()) && is_aligned(call.y.device_data()));
}

DUNNOCK_INSTANTIATE_KERNELS(RandomUniform, RandomNormal, Dropout, ApplyMask);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
