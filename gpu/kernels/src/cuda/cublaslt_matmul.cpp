// Matrix products by cuBLASLt. Its matrices lie in columns, so what it is asked for is the transpose of ours: C' =
// op(B)' op(A)', with our B as its A; a row of ours is a column of its, and a bias a column is for it a bias a row.
//
// A plan is what its heuristic answers for a shape, an epilogue and the alignment of the addresses; the descriptions of
// matrices and epilogue live on the stack of a call. What it fuses (gelu is its tanh form):
//   bias, ReLU, GELU        BIAS, RELU(_BIAS), GELU(_BIAS)
//   GELU with saved V       GELU_AUX(_BIAS): rows of V a multiple of 8 values apart, addresses of 16 bytes
//   times GELU'             DGELU, with sums DGELU_BGRAD
//   the sums of B           BGRADA
// ReLU's aux is a mask of bits there, not V, so V of a ReLU and its derivative are passes of our own, as is all that
// the heuristic has no algorithm for.
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <array>
#include <bit>
#include <compare>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "cuda/on_device.hpp"
#include "driver.hpp"
#include "matmul_parts.hpp"

namespace dunnock::kernels::detail::cuda {
namespace {

/// Plans that the process keeps.
constexpr std::size_t kPlansMax = 4096;
constexpr std::size_t kDevicesMax = 64;

/// What NVIDIA recommends: 32 MiB since Hopper, 4 MiB before. Source: cuBLAS's documentation, cublasSetWorkspace.
constexpr std::size_t library_workspace_bytes(unsigned compute_capability) noexcept {
  return (std::size_t{compute_capability >= 90 ? 32U : 4U}) << 20;
}

/// An epilogue of cuBLASLt and its addresses; null: not used by it.
struct Fused {
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;  // or where a gradient of the bias goes
  const void* aux = nullptr;
};

struct PlanKey {
  std::array<std::size_t, 11> sizes;
  std::array<unsigned, 6> alignments;  // of A, B, C, bias, aux, workspace
  unsigned device;
  int epilogue;
  bool transpose_a, transpose_b, tf32, bf16, c_bf16, adds;
  friend auto operator<=>(const PlanKey&, const PlanKey&) = default;
};

/// Nothing: cuBLASLt has no algorithm for it.
using Plan = std::optional<cublasLtMatmulAlgo_t>;

/// The most recently used plans of all devices. Threads: any number.
class Plans {
 public:
  static Plans& of_process() {
    static auto& plans = *new Plans;
    return plans;
  }
  [[nodiscard]] std::optional<Plan> find(const PlanKey& key) {
    const std::lock_guard lock(mutex_);
    const auto found = places_.find(key);
    if (found == places_.end()) return std::nullopt;
    plans_.splice(plans_.begin(), plans_, found->second);
    return plans_.front().plan;
  }
  void keep(const PlanKey& key, const Plan& plan) {
    const std::lock_guard lock(mutex_);
    if (places_.contains(key)) return;  // Another thread was faster.
    if (plans_.size() == kPlansMax) {
      places_.erase(plans_.back().key);
      plans_.pop_back();
    }
    plans_.push_front({key, plan});
    places_[key] = plans_.begin();
  }

 private:
  struct Kept {
    PlanKey key;
    Plan plan;
  };
  std::mutex mutex_;
  std::list<Kept> plans_;
  std::map<PlanKey, std::list<Kept>::iterator> places_;
};

/// One a device, for as long as the process. Its device is the thread's current one.
cublasStatus_t handle_of(unsigned device, cublasLtHandle_t& handle) {
  static auto& mutex = *new std::mutex;
  static auto& handles = *new std::array<cublasLtHandle_t, kDevicesMax>{};
  const std::lock_guard lock(mutex);
  if (handles.at(device) == nullptr) {
    const device::detail::BesideCapture beside;
    if (const cublasStatus_t status = cublasLtCreate(&handles[device]); status != CUBLAS_STATUS_SUCCESS) {
      handles[device] = nullptr;
      return status;
    }
  }
  handle = handles[device];
  return CUBLAS_STATUS_SUCCESS;
}

/// The largest power of two up to 256 that divides the address.
unsigned alignment_of(const void* address) noexcept {
  const auto value = reinterpret_cast<std::uintptr_t>(address);
  return value == 0 ? 256U : static_cast<unsigned>(std::min<std::uintptr_t>(256, value & (~value + 1)));
}

template <class T>
constexpr cudaDataType_t kDataType = std::is_same_v<T, float> ? CUDA_R_32F : CUDA_R_16BF;

/// One call of cuBLASLt for a product: its descriptions, whose first failure is kept.
template <class T, class C>
class Product {
 public:
  Product(const MatmulCall<T, C>& call, C* out, const Fused& fused) : call_(call), out_(out), fused_(fused) {
    const MatmulShape& s = call.shape;
    good(cublasLtMatmulDescInit(
        &product_, s.tf32 && std::is_same_v<T, float> ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set(CUBLASLT_MATMUL_DESC_TRANSA, s.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, s.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, fused.epilogue);
    if (fused.bias != nullptr) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, fused.bias);
    if (fused.aux != nullptr) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, fused.aux);
      set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, static_cast<std::int64_t>(s.ldc));
      set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, static_cast<std::int64_t>(s.stride_c));
    }
    // As stored, and seen as columns: the first size is that of what lies side by side.
    layout(b_, kDataType<T>, s.transpose_b ? s.inner : s.columns, s.transpose_b ? s.columns : s.inner, s.ldb,
           s.stride_b);
    layout(a_, kDataType<T>, s.transpose_a ? s.rows : s.inner, s.transpose_a ? s.inner : s.rows, s.lda, s.stride_a);
    layout(c_, kDataType<C>, s.columns, s.rows, s.ldc, s.stride_c);
  }

  /// Nothing: there is no algorithm, or one of the descriptions was refused.
  [[nodiscard]] Plan ask(cublasLtHandle_t handle, std::size_t workspace_bytes) {
    cublasLtMatmulPreferenceOpaque_t preference{};
    good(cublasLtMatmulPreferenceInit(&preference));
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
      good(cublasLtMatmulPreferenceSetAttribute(&preference, what, &value, sizeof value));
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(call_.b));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(call_.a));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(out_));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(out_));
    if (status_ != CUBLAS_STATUS_SUCCESS) return std::nullopt;
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    const cublasStatus_t asked =
        cublasLtMatmulAlgoGetHeuristic(handle, &product_, &b_, &a_, &c_, &c_, &preference, 1, &result, &found);
    if (asked != CUBLAS_STATUS_SUCCESS || found == 0 || result.state != CUBLAS_STATUS_SUCCESS) return std::nullopt;
    return result.algo;
  }

  [[nodiscard]] cublasStatus_t run(cublasLtHandle_t handle, const cublasLtMatmulAlgo_t& algorithm,
                                   std::size_t workspace_bytes, device::Stream& stream) {
    if (status_ != CUBLAS_STATUS_SUCCESS) return status_;
    return cublasLtMatmul(handle, &product_, &call_.epilogue.alpha, call_.b, &b_, call_.a, &a_, &call_.epilogue.beta,
                          out_, &c_, out_, &c_, &algorithm, call_.workspace.device_data(), workspace_bytes,
                          static_cast<cudaStream_t>(stream.native()));
  }

  [[nodiscard]] PlanKey key(unsigned device) const {
    const MatmulShape& s = call_.shape;
    return {{s.rows, s.columns, s.inner, s.lda, s.ldb, s.ldc, s.count, s.stride_a, s.stride_b, s.stride_c,
             call_.workspace.size()},
            {alignment_of(call_.a), alignment_of(call_.b), alignment_of(out_), alignment_of(fused_.bias),
             alignment_of(fused_.aux), alignment_of(call_.workspace.device_data())},
            device,
            static_cast<int>(fused_.epilogue),
            s.transpose_a,
            s.transpose_b,
            s.tf32,
            std::is_same_v<T, device::Bf16>,
            std::is_same_v<C, device::Bf16>,
            call_.epilogue.beta != 0};
  }

 private:
  void good(cublasStatus_t status) noexcept {
    if (status_ == CUBLAS_STATUS_SUCCESS) status_ = status;
  }
  template <class V>
  void set(cublasLtMatmulDescAttributes_t what, const V& value) {
    good(cublasLtMatmulDescSetAttribute(&product_, what, &value, sizeof value));
  }
  void layout(cublasLtMatrixLayoutOpaque_t& out, cudaDataType_t type, std::size_t side_by_side, std::size_t lines,
              std::size_t ld, std::size_t stride) {
    good(cublasLtMatrixLayoutInit(&out, type, side_by_side, lines, static_cast<std::int64_t>(ld)));
    if (call_.shape.count == 1) return;
    const auto count = static_cast<std::int32_t>(call_.shape.count);
    const auto step = static_cast<std::int64_t>(stride);
    good(cublasLtMatrixLayoutSetAttribute(&out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count));
    good(cublasLtMatrixLayoutSetAttribute(&out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step, sizeof step));
  }

  const MatmulCall<T, C>& call_;
  C* out_;
  Fused fused_;
  cublasLtMatmulDescOpaque_t product_{};
  cublasLtMatrixLayoutOpaque_t a_{};
  cublasLtMatrixLayoutOpaque_t b_{};
  cublasLtMatrixLayoutOpaque_t c_{};
  cublasStatus_t status_ = CUBLAS_STATUS_SUCCESS;
};

void fail(cublasStatus_t status, device::Stream& stream) {
  stream.run("matrix product", [status] {
    return Status(make_error(ErrorCode::kDevice, std::string("cuBLASLt: ") + cublasLtGetStatusString(status)));
  });
}

/// The product with this epilogue. False: cuBLASLt does not make it, nothing was issued. A failure goes to the stream,
/// and counts as made.
template <class T, class C>
bool make(const MatmulCall<T, C>& call, C* out, const Fused& fused, device::Stream& stream) {
  const unsigned device = stream.device().ordinal();
  const std::size_t workspace_bytes = library_workspace_bytes(stream.device().info().compute_capability);
  cublasLtHandle_t handle = nullptr;
  if (const cublasStatus_t status = handle_of(device, handle); status != CUBLAS_STATUS_SUCCESS) {
    fail(status, stream);
    return true;
  }
  Product<T, C> product(call, out, fused);
  const PlanKey key = product.key(device);
  std::optional<Plan> plan = Plans::of_process().find(key);
  if (!plan) {
    const device::detail::BesideCapture beside;
    plan = product.ask(handle, workspace_bytes);
    Plans::of_process().keep(key, *plan);
  }
  if (!plan->has_value()) return false;
  const cublasStatus_t status = product.run(handle, **plan, workspace_bytes, stream);
  if (status != CUBLAS_STATUS_SUCCESS) fail(status, stream);
  stream.impl().launched("matrix product", cudaSuccess);
  return true;
}

/// The epilogue as cuBLASLt may fuse it, and all of it but sums of B; nothing: it has none such.
template <class T, class C>
std::optional<Fused> whole_epilogue(const MatmulCall<T, C>& call) {
  const MatmulEpilogue<C>& e = call.epilogue;
  const MatmulShape& s = call.shape;
  const bool bias = !e.bias.empty();
  const auto aux_fits = [&](const void* aux) {
    return s.ldc % 8 == 0 && (s.count == 1 || s.stride_c % 8 == 0) && alignment_of(aux) >= 16;
  };
  const bool gelu = e.activation == MatmulActivation::kGelu;
  if (!e.gradient_at.empty()) {
    if (!gelu || bias || !e.saved.empty() || !aux_fits(e.gradient_at.device_data())) return std::nullopt;
    const bool sums = !e.sums.empty() && !e.adds_sums;
    return Fused{sums ? CUBLASLT_EPILOGUE_DGELU_BGRAD : CUBLASLT_EPILOGUE_DGELU, sums ? e.sums.device_data() : nullptr,
                 e.gradient_at.device_data()};
  }
  if (!e.saved.empty()) {
    if (!gelu || !aux_fits(e.saved.device_data())) return std::nullopt;
    return Fused{bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX, e.bias.device_data(),
                 e.saved.device_data()};
  }
  switch (e.activation) {
    case MatmulActivation::kRelu:
      return Fused{bias ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_RELU, e.bias.device_data(), nullptr};
    case MatmulActivation::kGelu:
      return Fused{bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU, e.bias.device_data(), nullptr};
    case MatmulActivation::kNone: break;
  }
  return Fused{bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT, e.bias.device_data(), nullptr};
}

template <class T, class C>
void make_with_epilogue(const MatmulCall<T, C>& call, bool& made_sums, bool& made_b_sums, device::Stream& stream) {
  const MatmulEpilogue<C>& e = call.epilogue;
  MatmulFinish<C> finish{call.c, call.c, e.saved.device_data(), e.gradient_at.device_data(), e.bias.device_data(),
                         1,      0,      e.activation};
  if (call.shape.inner == 0) {  // V = beta * C + bias
    finish.scale = e.beta;
    return matmul_finish(finish, call.shape, stream);
  }
  const std::optional<Fused> whole = whole_epilogue(call);
  if (whole) {
    const bool plain = whole->epilogue == CUBLASLT_EPILOGUE_DEFAULT;
    if (plain && !e.b_sums.empty() && !e.adds_sums &&
        make(call, call.c, {CUBLASLT_EPILOGUE_BGRADA, e.b_sums.device_data(), nullptr}, stream)) {
      made_b_sums = true;
      return;
    }
    if (make(call, call.c, *whole, stream)) {
      made_sums = whole->epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD;
      return;
    }
    if (whole->epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD &&
        make(call, call.c, {CUBLASLT_EPILOGUE_DGELU, nullptr, whole->aux}, stream))
      return;
  }
  if (!make(call, call.c, Fused{}, stream)) return fail(CUBLAS_STATUS_NOT_SUPPORTED, stream);
  matmul_finish(finish, call.shape, stream);
}

}  // namespace

std::size_t matmul_workspace_bytes(const MatmulShape& shape, unsigned compute_capability) noexcept {
  return library_workspace_bytes(compute_capability) + column_sums_workspace_bytes(shape.columns);
}

template <class T, class C>
void run(const Matmul<T, C>& given, device::Stream& stream) {
  const MatmulCall<T, C> call = matmul_call(given);
  const MatmulShape& s = call.shape;
  const MatmulEpilogue<C>& e = call.epilogue;
  const device::detail::OnDevice here(stream.device().ordinal());
  const std::size_t library_bytes = library_workspace_bytes(stream.device().info().compute_capability);
  auto* const space = reinterpret_cast<float*>(call.workspace.device_data() + library_bytes);
  bool made_sums = false;
  bool made_b_sums = false;
  if (s.count * s.rows * s.columns > 0) make_with_epilogue(call, made_sums, made_b_sums, stream);
  if (!e.b_sums.empty() && !made_b_sums)
    column_sums(
        StoredColumnSums<T, C>{call.b, s.inner, s.columns, s.ldb, s.transpose_b, e.b_sums.device_data(), e.adds_sums},
        space, stream);
  if (!e.sums.empty() && !made_sums)
    column_sums(StoredColumnSums<C, C>{call.c, s.rows, s.columns, s.ldc, false, e.sums.device_data(), e.adds_sums},
                space, stream);
}

DUNNOCK_INSTANTIATE_KERNEL_WIDENING(Matmul);

}  // namespace dunnock::kernels::detail::cuda
