#include "dunnock/kernels/matmul.hpp"

#include <cmath>

#include "kernel_case.hpp"

#if DUNNOCK_HAS_DNNL
#include <dnnl.hpp>
#endif

namespace dunnock::bench {
namespace {

using namespace kernels;

/// Which product is measured: the plain one, or those of a layer's forward and backward pass.
enum class Use : std::uint8_t { kPlain, kForward, kGradientOfX, kGradientOfWeights };

#if DUNNOCK_HAS_DNNL
/// The same product as one would call oneDNN for it by oneself: a primitive and memory objects made once, on the thread
/// that runs them.
template <class T>
class Direct {
 public:
  Direct(const T* a, const T* b, T* c, const MatmulShape& s) {
    constexpr auto kType = std::is_same_v<T, float> ? dnnl::memory::data_type::f32 : dnnl::memory::data_type::bf16;
    const auto m = static_cast<dnnl::memory::dim>(s.rows);
    const auto n = static_cast<dnnl::memory::dim>(s.columns);
    const auto k = static_cast<dnnl::memory::dim>(s.inner);
    using Strides = dnnl::memory::dims;
    const dnnl::memory::desc a_desc({m, k}, kType, s.transpose_a ? Strides{1, m} : Strides{k, 1});
    const dnnl::memory::desc b_desc({k, n}, kType, s.transpose_b ? Strides{1, k} : Strides{n, 1});
    const dnnl::memory::desc c_desc({m, n}, kType, Strides{n, 1});
    primitive_ = dnnl::matmul(dnnl::matmul::primitive_desc(dnnl::matmul::desc(a_desc, b_desc, c_desc), engine_));
    arguments_ = {{DNNL_ARG_SRC, dnnl::memory(a_desc, engine_, const_cast<T*>(a))},
                  {DNNL_ARG_WEIGHTS, dnnl::memory(b_desc, engine_, const_cast<T*>(b))},
                  {DNNL_ARG_DST, dnnl::memory(c_desc, engine_, c)}};
  }
  void run() { primitive_.execute(stream_, arguments_); }

 private:
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  dnnl::matmul primitive_;
  std::unordered_map<int, dnnl::memory> arguments_;
};
#endif

template <class T, class C = T>
KernelCase product(Use use, MatmulShape shape) {
  KernelCase one;
  constexpr const char* kNames[] = {"matmul", "matmul, bias, GELU", "matmul, GELU'", "matmul of weights"};
  one.kernel = kNames[static_cast<int>(use)];
  one.type = type_name<T>();
  one.shape = std::to_string(shape.rows) + " x " + std::to_string(shape.columns) + " x " + std::to_string(shape.inner) +
              (shape.transpose_a ? " A'" : "") + (shape.transpose_b ? " B'" : "");
  const auto values_of = [](std::size_t rows, std::size_t columns) { return static_cast<double>(rows * columns); };
  one.flops = 2 * values_of(shape.rows, shape.columns) * static_cast<double>(shape.inner);
  if (use == Use::kPlain)
    one.operation = {"matmul",
                     {{"m", shape.rows},
                      {"n", shape.columns},
                      {"k", shape.inner},
                      {"transpose_a", shape.transpose_a ? 1 : 0},
                      {"transpose_b", shape.transpose_b ? 1 : 0}}};
  one.relative = 2 * kCaseRounding<C>;
  one.absolute = kCaseRounding<C> * 4;  // Values are of about 1.
  const float scale = 1 / std::sqrt(static_cast<float>(shape.inner));
  one.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const auto a = values.normal<T>(shape.rows * shape.inner);
    const auto b = values.normal<T>(shape.inner * shape.columns, 0, scale);
    const std::size_t c_size = shape.rows * shape.columns;
    const auto c = values.result<C>(c_size);
    MatmulEpilogue<C> epilogue;
    if (use == Use::kForward) {
      epilogue.bias = values.normal<C>(shape.columns);
      epilogue.saved = values.result<C>(c_size);
      epilogue.activation = MatmulActivation::kGelu;
    } else if (use == Use::kGradientOfX) {
      epilogue.gradient_at = values.normal<C>(c_size);
      epilogue.activation = MatmulActivation::kGelu;
    } else if (use == Use::kGradientOfWeights) {
      epilogue.b_sums = values.result<C>(shape.columns);
    }
    const auto space = values.workspace<std::byte>(matmul_workspace_bytes(shape, values.device()));
#if DUNNOCK_HAS_DNNL
    auto direct = std::make_shared<std::unique_ptr<Direct<T>>>();
#endif
    return [=](device::Stream& stream, Form form) {
#if DUNNOCK_HAS_DNNL
      if constexpr (std::is_same_v<T, C>) {
        if (form == Form::kPeer) {
          stream.run("oneDNN", [=] {
            if (!*direct)
              *direct = std::make_unique<Direct<T>>(a.device_data(), b.device_data(), c.device_data(), shape);
            (*direct)->run();
            return Status{};
          });
          return;
        }
      }
#endif
      run_form(form, Matmul<T, C>{.a = a, .b = b, .c = c, .shape = shape, .epilogue = epilogue, .workspace = space},
               stream);
    };
  };
#if DUNNOCK_HAS_DNNL
  if (use == Use::kPlain) one.peer = "oneDNN, direct";
#endif
  return one;
}

}  // namespace

std::vector<KernelCase> matmul_cases(CaseSize size) {
  std::vector<KernelCase> cases;
  const auto plain = [&](const MatmulShape& shape) {
    cases.push_back(product<float>(Use::kPlain, shape));
    cases.push_back(product<device::Bf16>(Use::kPlain, shape));
  };
  /// A layer of `in` to `out` features: forward, and both of its gradients.
  const auto layer = [&](std::size_t tokens, std::size_t in, std::size_t out) {
    const MatmulShape forward{.rows = tokens, .columns = out, .inner = in};
    const MatmulShape of_x{.rows = tokens, .columns = in, .inner = out, .transpose_b = true};
    const MatmulShape of_weights{.rows = in, .columns = out, .inner = tokens, .transpose_a = true};
    plain(forward);
    plain(of_x);
    plain(of_weights);
    cases.push_back(product<float>(Use::kForward, forward));
    cases.push_back(product<device::Bf16>(Use::kForward, forward));
    cases.push_back(product<float>(Use::kGradientOfX, of_x));
    cases.push_back(product<device::Bf16>(Use::kGradientOfX, of_x));
    cases.push_back(product<float>(Use::kGradientOfWeights, of_weights));
    cases.push_back(product<device::Bf16, float>(Use::kGradientOfWeights, of_weights));
  };
  switch (size) {
    case CaseSize::kTiny: layer(37, 64, 104); break;
    case CaseSize::kCpu:
      for (const std::size_t n : {64, 128, 256, 512, 1024, 2048}) plain({.rows = n, .columns = n, .inner = n});
      layer(64, 128, 512);  // A GPT of a million parameters
      layer(256, 768, 3072);
      layer(1024, 768, 3072);
      plain({.rows = 4096, .columns = 3072, .inner = 768});
      for (const std::size_t rows : {1, 4, 16}) {  // Serving
        plain({.rows = rows, .columns = 3072, .inner = 768});
        plain({.rows = rows, .columns = 3072, .inner = 768, .transpose_b = true});
      }
      break;
    case CaseSize::kGpu:
      for (const std::size_t n : {1024, 4096, 8192}) plain({.rows = n, .columns = n, .inner = n});
      layer(16384, 768, 3072);
      layer(16384, 4096, 14336);
      break;
  }
  return cases;
}

}  // namespace dunnock::bench
