#include "dunnock/gpu/kernels/activation.hpp"

#include "kernels/activation_launchers.hpp"
#include "kernels/checks.hpp"
#include "kernels/vector_for.hpp"

namespace dunnock::gpu {
namespace {

using detail::check_sizes;
using detail::load;
using detail::store;
using detail::vector_for;
namespace vector_math = detail::vector_math;

constexpr float kGeluFactor = 0.797884561F;  // sqrt(2 / pi)
constexpr float kGeluCube = 0.044715F;

struct GeluTanh {
  DUNNOCK_INLINED float value(float x) const {  // (1 + tanh(u)) / 2 is sigmoid(2 u), which loses nothing below 0.
    return x * vector_math::sigmoid(2 * kGeluFactor * x * (1.0F + kGeluCube * x * x));
  }
  DUNNOCK_INLINED float slope(float x) const {
    const float s = vector_math::sigmoid(2 * kGeluFactor * x * (1.0F + kGeluCube * x * x));
    return s + x * s * (1.0F - s) * 2 * kGeluFactor * (1.0F + 3 * kGeluCube * x * x);
  }
};
struct GeluErf {
  DUNNOCK_INLINED float value(float x) const { return 0.5F * x * (1.0F + vector_math::erf(x * 0.707106781F)); }
  DUNNOCK_INLINED float slope(float x) const {
    const float density = 0.398942280F * vector_math::exp(-0.5F * x * x);
    return 0.5F * (1.0F + vector_math::erf(x * 0.707106781F)) + x * density;
  }
};
struct Silu {
  DUNNOCK_INLINED float value(float x) const { return x * vector_math::sigmoid(x); }
  DUNNOCK_INLINED float slope(float x) const {
    const float s = vector_math::sigmoid(x);
    return s + x * s * (1.0F - s);
  }
};
struct Relu {
  DUNNOCK_INLINED float value(float x) const { return x < 0.0F ? 0.0F : x; }
  DUNNOCK_INLINED float slope(float x) const { return x > 0.0F ? 1.0F : 0.0F; }
};

template <class F>
void with_activation(Activation kind, const F& f) {
  switch (kind) {
    case Activation::kGeluTanh: return f(GeluTanh{});
    case Activation::kGeluErf: return f(GeluErf{});
    case Activation::kSilu: return f(Silu{});
    case Activation::kRelu: return f(Relu{});
  }
  DUNNOCK_CHECK(false, "an activation");
}

template <class T>
void check_swiglu(const SwigluShape& shape, DeviceSpan<const T> gate, DeviceSpan<const T> up) {
  DUNNOCK_CHECK(shape.columns > 0, "a row has columns");
  DUNNOCK_CHECK(shape.gate_stride >= shape.columns, "rows of gate do not overlap");
  DUNNOCK_CHECK(shape.up_stride >= shape.columns, "rows of up do not overlap");
  if (shape.rows == 0) return;
  DUNNOCK_CHECK(gate.size() >= (shape.rows - 1) * shape.gate_stride + shape.columns, "spans fit the shape");
  DUNNOCK_CHECK(up.size() >= (shape.rows - 1) * shape.up_stride + shape.columns, "spans fit the shape");
}

}  // namespace

template <class T>
void activation(Activation kind, DeviceSpan<const T> x, DeviceSpan<T> y, Stream& stream) {
  check_sizes(x.size(), y);
  if (x.empty()) return;
  DUNNOCK_ON_CUDA(stream, detail::cuda::activation<T>(kind, x, y, stream));
  stream.run("activation", [=] {
    with_activation(kind, [&](auto f) {
      vector_for(x.size(), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
        const T* const from = x.device_data();
        T* const to = y.device_data();
#pragma omp simd
        for (std::size_t i = first; i < last; ++i) store(to + i, f.value(load(from + i)));
      });
    });
    return Status{};
  });
}

template <class T>
void activation_backward(Activation kind, DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<T> dx,
                         Stream& stream) {
  check_sizes(x.size(), dy, dx);
  if (x.empty()) return;
  DUNNOCK_ON_CUDA(stream, detail::cuda::activation_backward<T>(kind, dy, x, dx, stream));
  stream.run("activation backward", [=] {
    with_activation(kind, [&](auto f) {
      vector_for(x.size(), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
        const T* const from = x.device_data();
        const T* const grad = dy.device_data();
        T* const to = dx.device_data();
#pragma omp simd
        for (std::size_t i = first; i < last; ++i) store(to + i, load(grad + i) * f.slope(load(from + i)));
      });
    });
    return Status{};
  });
}

template <class T>
void swiglu(DeviceSpan<const T> gate, DeviceSpan<const T> up, DeviceSpan<T> y, const SwigluShape& shape,
            Stream& stream) {
  check_swiglu(shape, gate, up);
  check_sizes(shape.rows * shape.columns, y);
  if (shape.rows == 0) return;
  DUNNOCK_ON_CUDA(stream, detail::cuda::swiglu<T>(gate, up, y, shape, stream));
  stream.run("SwiGLU", [=] {
    vector_for(shape.rows, detail::rows_grain(shape.columns), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
      for (std::size_t row = first; row < last; ++row) {
        const T* const g = gate.device_data() + row * shape.gate_stride;
        const T* const u = up.device_data() + row * shape.up_stride;
        T* const to = y.device_data() + row * shape.columns;
#pragma omp simd
        for (std::size_t c = 0; c < shape.columns; ++c) store(to + c, Silu{}.value(load(g + c)) * load(u + c));
      }
    });
    return Status{};
  });
}

template <class T>
void swiglu_backward(DeviceSpan<const T> dy, DeviceSpan<const T> gate, DeviceSpan<const T> up, DeviceSpan<T> dgate,
                     DeviceSpan<T> dup, const SwigluShape& shape, Stream& stream) {
  check_swiglu(shape, gate, up);
  check_swiglu<T>(shape, dgate, dup);
  check_sizes(shape.rows * shape.columns, dy);
  if (shape.rows == 0) return;
  DUNNOCK_ON_CUDA(stream, detail::cuda::swiglu_backward<T>(dy, gate, up, dgate, dup, shape, stream));
  stream.run("SwiGLU backward", [=] {
    vector_for(shape.rows, detail::rows_grain(shape.columns), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
      for (std::size_t row = first; row < last; ++row) {
        const T* const g = gate.device_data() + row * shape.gate_stride;
        const T* const u = up.device_data() + row * shape.up_stride;
        const T* const d = dy.device_data() + row * shape.columns;
        T* const dg = dgate.device_data() + row * shape.gate_stride;
        T* const du = dup.device_data() + row * shape.up_stride;
#pragma omp simd
        for (std::size_t c = 0; c < shape.columns; ++c) {
          const float x = load(g + c);
          const float s = vector_math::sigmoid(x);
          const float grad = load(d + c);
          const float other = load(u + c);
          store(dg + c, grad * other * (s + x * s * (1.0F - s)));
          store(du + c, grad * x * s);
        }
      }
    });
    return Status{};
  });
}

#define DUNNOCK_INSTANTIATE(T)                                                                                        \
  template void activation<T>(Activation, DeviceSpan<const T>, DeviceSpan<T>, Stream&);                               \
  template void activation_backward<T>(Activation, DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>, Stream&); \
  template void swiglu<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>, const SwigluShape&, Stream&);      \
  template void swiglu_backward<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>,      \
                                   DeviceSpan<T>, const SwigluShape&, Stream&);
DUNNOCK_INSTANTIATE(float)
DUNNOCK_INSTANTIATE(Bf16)
#undef DUNNOCK_INSTANTIATE

}  // namespace dunnock::gpu
