// Floor: forward reads x and writes y once; backward reads dy and x and writes dx. Some 10 to 30 instructions a value,
// of which an H200 has about 30 in the time of 4 bytes.
#include "cuda/map.hpp"
#include "dispatch.hpp"
#include "dunnock/kernels/activation.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {
namespace {

using namespace device_code;

__device__ float sigmoid(float x) { return __fdividef(1.0F, 1.0F + __expf(-x)); }

constexpr float kGeluFactor = 0.797884561F;  // sqrt(2 / pi)
constexpr float kGeluCube = 0.044715F;

struct GeluTanh {
  __device__ static float sigmoid_of(float x) { return sigmoid(2 * kGeluFactor * x * (1.0F + kGeluCube * x * x)); }
  __device__ static float value(float x) { return x * sigmoid_of(x); }
  __device__ static float slope(float x) {
    const float s = sigmoid_of(x);
    return s + x * s * (1.0F - s) * 2 * kGeluFactor * (1.0F + 3 * kGeluCube * x * x);
  }
};
struct GeluErf {
  __device__ static float value(float x) { return 0.5F * x * (1.0F + erff(x * 0.707106781F)); }
  __device__ static float slope(float x) {
    return 0.5F * (1.0F + erff(x * 0.707106781F)) + x * 0.398942280F * __expf(-0.5F * x * x);
  }
};
struct Silu {
  __device__ static float value(float x) { return x * sigmoid(x); }
  __device__ static float slope(float x) {
    const float s = sigmoid(x);
    return s + x * s * (1.0F - s);
  }
};
struct Relu {
  __device__ static float value(float x) { return x < 0.0F ? 0.0F : x; }
  __device__ static float slope(float x) { return x > 0.0F ? 1.0F : 0.0F; }
};

template <class A>
struct Forward {
  __device__ void operator()(const float (&x)[1], float (&y)[1]) const { y[0] = A::value(x[0]); }
};
template <class A>
struct Backward {
  __device__ void operator()(const float (&x)[2], float (&y)[1]) const { y[0] = x[0] * A::slope(x[1]); }
};

template <class F>
void with_activation(Activation kind, const F& f) {
  if (kind == Activation::kGeluTanh) f(GeluTanh{});
  if (kind == Activation::kGeluErf) f(GeluErf{});
  if (kind == Activation::kSilu) f(Silu{});
  if (kind == Activation::kRelu) f(Relu{});
}

/// Where value i of (rows, columns) is: 32 bits of division suffice for what has fewer values.
struct Rows {
  std::size_t columns;
  bool small;

  __device__ std::size_t row_of(std::size_t i) const {
    return small ? static_cast<unsigned>(i) / static_cast<unsigned>(columns) : i / columns;
  }
};

template <class T>
struct SwigluBody {
  const T* gate;
  const T* up;
  T* y;
  Rows rows;
  std::size_t gate_stride, up_stride;

  template <unsigned W>
  struct Held {
    Pack<T, W> gate, up;
  };
  template <unsigned W>
  __device__ void load(Held<W>& held, std::size_t first) const {
    const std::size_t row = rows.row_of(first);
    const std::size_t c = first - row * rows.columns;
    held.gate = load_pack<W>(gate + row * gate_stride + c);
    held.up = load_pack<W>(up + row * up_stride + c);
  }
  template <unsigned W>
  __device__ void finish(const Held<W>& held, std::size_t first) const {
    Pack<T, W> out;
#pragma unroll
    for (unsigned j = 0; j < W; ++j)
      out.values[j] = from_float<T>(Silu::value(to_float(held.gate.values[j])) * to_float(held.up.values[j]));
    store_pack(y + first, out);
  }
};

template <class T>
struct SwigluBackwardBody {
  const T* dy;
  const T* gate;
  const T* up;
  T* dgate;
  T* dup;
  Rows rows;
  std::size_t gate_stride, up_stride;

  template <unsigned W>
  struct Held {
    Pack<T, W> dy, gate, up;
    std::size_t gate_at, up_at;
  };
  template <unsigned W>
  __device__ void load(Held<W>& held, std::size_t first) const {
    const std::size_t row = rows.row_of(first);
    const std::size_t c = first - row * rows.columns;
    held.gate_at = row * gate_stride + c;
    held.up_at = row * up_stride + c;
    held.dy = load_pack<W>(dy + first);
    held.gate = load_pack<W>(gate + held.gate_at);
    held.up = load_pack<W>(up + held.up_at);
  }
  template <unsigned W>
  __device__ void finish(const Held<W>& held, std::size_t) const {
    Pack<T, W> gates;
    Pack<T, W> ups;
#pragma unroll
    for (unsigned j = 0; j < W; ++j) {
      const float d = to_float(held.dy.values[j]);
      const float x = to_float(held.gate.values[j]);
      const float s = sigmoid(x);
      gates.values[j] = from_float<T>(d * to_float(held.up.values[j]) * (s + x * s * (1.0F - s)));
      ups.values[j] = from_float<T>(d * x * s);
    }
    store_pack(dgate + held.gate_at, gates);
    store_pack(dup + held.up_at, ups);
  }
};

template <class T>
Rows rows_of(const SwigluShape& shape) {
  return {shape.columns, shape.rows * shape.columns < (std::size_t{1} << 32)};
}
template <class T>
bool whole_packs(const SwigluShape& shape) {
  return shape.columns % kPack<T> == 0 && shape.gate_stride % kPack<T> == 0 && shape.up_stride % kPack<T> == 0;
}

}  // namespace

template <class T>
void run(const Activate<T>& call, device::Stream& stream) {
  with_activation(call.kind, [&](auto a) {
    const PlainMap<T, 1, 1, Forward<decltype(a)>> body{{call.x.device_data()}, {call.y.device_data()}, {}};
    launch_map<kPack<T>>("activation", body, call.x.size(), all_aligned(call.x, call.y), stream);
  });
}

template <class T>
void run(const ActivateBackward<T>& call, device::Stream& stream) {
  with_activation(call.kind, [&](auto a) {
    const PlainMap<T, 2, 1, Backward<decltype(a)>> body{
        {call.dy.device_data(), call.x.device_data()}, {call.dx.device_data()}, {}};
    launch_map<kPack<T>>("activation backward", body, call.x.size(), all_aligned(call.dy, call.x, call.dx), stream);
  });
}

template <class T>
void run(const Swiglu<T>& call, device::Stream& stream) {
  const SwigluBody<T> body{call.gate.device_data(), call.up.device_data(),  call.y.device_data(),
                           rows_of<T>(call.shape),  call.shape.gate_stride, call.shape.up_stride};
  constexpr unsigned kWidth = kPack<T>;
  const bool aligned = whole_packs<T>(call.shape) && all_aligned(call.gate, call.up, call.y);
  launch_map<kWidth>("SwiGLU", body, call.shape.rows * call.shape.columns, aligned, stream);
}

template <class T>
void run(const SwigluBackward<T>& call, device::Stream& stream) {
  const SwigluBackwardBody<T> body{call.dy.device_data(),    call.gate.device_data(), call.up.device_data(),
                                   call.dgate.device_data(), call.dup.device_data(),  rows_of<T>(call.shape),
                                   call.shape.gate_stride,   call.shape.up_stride};
  constexpr unsigned kWidth = kPack<T>;
  const bool aligned = whole_packs<T>(call.shape) && all_aligned(call.dy, call.gate, call.up, call.dgate, call.dup);
  launch_map<kWidth>("SwiGLU backward", body, call.shape.rows * call.shape.columns, aligned, stream);
}

DUNNOCK_INSTANTIATE_KERNELS(Activate, ActivateBackward, Swiglu, SwigluBackward);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
