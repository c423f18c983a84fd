#include "dunnock/kernels/activation.hpp"

#include "checks.hpp"
#include "cpu/vector_for.hpp"
#include "dispatch.hpp"

namespace dunnock::kernels {
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
  DUNNOCK_CHECK(false, "the activation is a known one");
}

template <class T>
void check_swiglu(const SwigluShape& shape, device::Span<const T> gate, device::Span<const T> up) {
  DUNNOCK_CHECK(shape.columns > 0, "a row has columns");
  DUNNOCK_CHECK(shape.gate_stride >= shape.columns, "rows of gate do not overlap");
  DUNNOCK_CHECK(shape.up_stride >= shape.columns, "rows of up do not overlap");
  if (shape.rows == 0) return;
  DUNNOCK_CHECK(gate.size() >= (shape.rows - 1) * shape.gate_stride + shape.columns, "spans fit the shape");
  DUNNOCK_CHECK(up.size() >= (shape.rows - 1) * shape.up_stride + shape.columns, "spans fit the shape");
}

}  // namespace

template <class T>
void run(const Activate<T>& call, device::Stream& stream) {
  check_sizes(call.x.size(), call.y);
  if (call.x.empty()) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("activation", [=] {
    with_activation(call.kind, [&](auto f) {
      vector_for(call.x.size(), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
        const T* const from = call.x.device_data();
        T* const to = call.y.device_data();
#pragma omp simd
        for (std::size_t i = first; i < last; ++i) store(to + i, f.value(load(from + i)));
      });
    });
    return Status{};
  });
}

template <class T>
void run(const ActivateBackward<T>& call, device::Stream& stream) {
  check_sizes(call.x.size(), call.dy, call.dx);
  if (call.x.empty()) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("activation backward", [=] {
    with_activation(call.kind, [&](auto f) {
      vector_for(call.x.size(), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
        const T* const from = call.x.device_data();
        const T* const grad = call.dy.device_data();
        T* const to = call.dx.device_data();
#pragma omp simd
        for (std::size_t i = first; i < last; ++i) store(to + i, load(grad + i) * f.slope(load(from + i)));
      });
    });
    return Status{};
  });
}

template <class T>
void run(const Swiglu<T>& call, device::Stream& stream) {
  check_swiglu(call.shape, call.gate, call.up);
  check_sizes(call.shape.rows * call.shape.columns, call.y);
  if (call.shape.rows == 0) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("SwiGLU", [=] {
    vector_for(call.shape.rows, detail::rows_grain(call.shape.columns),
               [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
                 for (std::size_t row = first; row < last; ++row) {
                   const T* const g = call.gate.device_data() + row * call.shape.gate_stride;
                   const T* const u = call.up.device_data() + row * call.shape.up_stride;
                   T* const to = call.y.device_data() + row * call.shape.columns;
#pragma omp simd
                   for (std::size_t c = 0; c < call.shape.columns; ++c)
                     store(to + c, Silu{}.value(load(g + c)) * load(u + c));
                 }
               });
    return Status{};
  });
}

template <class T>
void run(const SwigluBackward<T>& call, device::Stream& stream) {
  check_swiglu(call.shape, call.gate, call.up);
  check_swiglu<T>(call.shape, call.dgate, call.dup);
  check_sizes(call.shape.rows * call.shape.columns, call.dy);
  if (call.shape.rows == 0) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("SwiGLU backward", [=] {
    vector_for(call.shape.rows, detail::rows_grain(call.shape.columns),
               [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
                 for (std::size_t row = first; row < last; ++row) {
                   const T* const g = call.gate.device_data() + row * call.shape.gate_stride;
                   const T* const u = call.up.device_data() + row * call.shape.up_stride;
                   const T* const d = call.dy.device_data() + row * call.shape.columns;
                   T* const dg = call.dgate.device_data() + row * call.shape.gate_stride;
                   T* const du = call.dup.device_data() + row * call.shape.up_stride;
#pragma omp simd
                   for (std::size_t c = 0; c < call.shape.columns; ++c) {
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

DUNNOCK_INSTANTIATE_KERNELS(Activate, ActivateBackward, Swiglu, SwigluBackward);

}  // namespace dunnock::kernels
