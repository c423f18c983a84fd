#include "dunnock/kernels/matmul.hpp"

#include <algorithm>

#include "checks.hpp"
#include "matmul_call.hpp"
#include "matmul_parts.hpp"
#include "parallel.hpp"

namespace dunnock::kernels {
namespace detail {
namespace {

/// A matrix whose columns are summed: as stored, or transposed.
template <class T>
struct Summed {
  const T* from;
  std::size_t rows;
  std::size_t columns;
  std::size_t ld;
  bool transposed;
};

/// Columns that are summed up at once; the sums stay in the first cache.
constexpr std::size_t kColumnsAtOnce = 64;

template <class T, class C>
void sum_column_block(const Summed<T>& m, std::size_t first, std::size_t last, C* out, bool adds) {
  float sums[kColumnsAtOnce] = {};
  const std::size_t count = last - first;
  for (std::size_t i = 0; i < m.rows && !m.transposed; ++i) {
    const T* const row = m.from + i * m.ld + first;
    for (std::size_t j = 0; j < count; ++j) sums[j] += static_cast<float>(row[j]);
  }
  for (std::size_t j = 0; j < count && m.transposed; ++j) {
    const T* const line = m.from + (first + j) * m.ld;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::size_t i = 0; i < m.rows; ++i) sum += static_cast<float>(line[i]);
    sums[j] = sum;
  }
  for (std::size_t j = 0; j < count; ++j) out[first + j] = C((adds ? static_cast<float>(out[first + j]) : 0) + sums[j]);
}

template <class T, class C>
void sum_columns(const Summed<T>& m, C* out, bool adds) {
  const std::size_t blocks = (m.columns + kColumnsAtOnce - 1) / kColumnsAtOnce;
  device::parallel_for(blocks, device::kParallelGrain / (kColumnsAtOnce * std::max<std::size_t>(m.rows, 1)) + 1,
                       [&](std::size_t begin, std::size_t end) {
                         for (std::size_t block = begin; block < end; ++block)
                           sum_column_block(m, block * kColumnsAtOnce,
                                            std::min(m.columns, (block + 1) * kColumnsAtOnce), out, adds);
                       });
}

/// Measured with two threads: oneDNN shares small products out badly, so that the own kernels are 1.2 to 1.9 times as
/// fast (dunnock-bench kernels --only matmul --threads 2). With one thread they never were, and with few rows they pack
/// more than they multiply.
template <class T, class C>
bool own_is_faster(const MatmulCall<T, C>& call) noexcept {
  const MatmulShape& s = call.shape;
  const std::size_t products = s.rows * s.columns * s.inner;
  if (device::parallel_threads() == 1 || s.count > 1 || s.rows < 32 || products > (std::size_t{1} << 22)) return false;
  return std::is_same_v<T, device::Bf16> || s.transpose_a || s.transpose_b || products <= (std::size_t{1} << 18);
}

}  // namespace

template <class T, class C>
Status matmul_on_cpu(const MatmulCall<T, C>& call, MatmulMaker maker, MatmulIsa isa) {
  const MatmulShape& s = call.shape;
  const MatmulEpilogue<C>& e = call.epilogue;
  if (!e.b_sums.empty())
    sum_columns(Summed<T>{call.b, s.inner, s.columns, s.ldb, s.transpose_b}, e.b_sums.device_data(), e.adds_sums);
  if (s.count * s.rows * s.columns > 0) {
    if (maker == MatmulMaker::kBest)
      maker = onednn_makes(call) && !own_is_faster(call) ? MatmulMaker::kOneDnn : MatmulMaker::kOwn;
    if (maker == MatmulMaker::kOneDnn) {
      DUNNOCK_TRY(onednn_matmul(call, isa));
    } else {
      own_matmul(call, isa);
    }
  }
  if (!e.sums.empty())
    sum_columns(Summed<C>{call.c, s.rows, s.columns, s.ldc, false}, e.sums.device_data(), e.adds_sums);
  return {};
}

}  // namespace detail

namespace {

/// Values that `count` matrices of rows x columns take.
std::size_t extent(std::size_t count, std::size_t stride, std::size_t rows, std::size_t columns, std::size_t ld) {
  if (count * rows * columns == 0) return 0;
  return (count - 1) * stride + (rows - 1) * ld + columns;
}

template <class T, class C>
void check(device::Span<const T> a, device::Span<const T> b, device::Span<C> c, const MatmulShape& s,
           const MatmulEpilogue<C>& e) {
  const std::size_t a_rows = s.transpose_a ? s.inner : s.rows;
  const std::size_t a_columns = s.transpose_a ? s.rows : s.inner;
  const std::size_t b_rows = s.transpose_b ? s.columns : s.inner;
  const std::size_t b_columns = s.transpose_b ? s.inner : s.columns;
  DUNNOCK_CHECK(s.lda >= a_columns, "A's rows do not overlap");
  DUNNOCK_CHECK(s.ldb >= b_columns, "B's rows do not overlap");
  DUNNOCK_CHECK(s.ldc >= s.columns, "C's rows do not overlap");
  const std::size_t c_one = extent(1, 0, s.rows, s.columns, s.ldc);
  DUNNOCK_CHECK(s.count <= 1 || s.stride_c >= c_one, "C's matrices do not overlap");
  DUNNOCK_CHECK(a.size() >= extent(s.count, s.stride_a, a_rows, a_columns, s.lda), "A's span holds its matrices");
  DUNNOCK_CHECK(b.size() >= extent(s.count, s.stride_b, b_rows, b_columns, s.ldb), "B's span holds its matrices");
  const std::size_t c_all = extent(s.count, s.stride_c, s.rows, s.columns, s.ldc);
  DUNNOCK_CHECK(c.size() >= c_all, "C's span holds its matrices");
  DUNNOCK_CHECK(e.saved.empty() || e.saved.size() >= c_all, "saved is as large as C");
  DUNNOCK_CHECK(e.saved.empty() || e.saved.device_data() != c.device_data(), "saved is not C");
  DUNNOCK_CHECK(e.gradient_at.empty() || e.gradient_at.size() >= c_all, "gradient_at is as large as C");
  detail::check_optional(s.columns, e.bias, e.sums, e.b_sums);
  DUNNOCK_CHECK(s.count == 1 || e.sums.empty(), "sums are of one matrix");
  DUNNOCK_CHECK(s.count == 1 || e.b_sums.empty(), "sums are of one matrix");
}

}  // namespace

std::size_t matmul_workspace_bytes(const MatmulShape& shape, device::Device device) {
#if DUNNOCK_HAS_CUDA
  if (device.backend() == device::Backend::kCuda)
    return detail::cuda::matmul_workspace_bytes(shape, device.info().compute_capability);
#endif
  return detail::own_matmul_workspace_bytes(shape, device.info().processors);
}

template <class T, class C>
void run(const Matmul<T, C>& call, device::Stream& stream) {
  const auto made = detail::matmul_call(call);
  check(call.a, call.b, call.c, made.shape, made.epilogue);
  DUNNOCK_CHECK(call.workspace.size() >= matmul_workspace_bytes(call.shape, stream.device()),
                "the workspace is large enough");
  DUNNOCK_CHECK(reinterpret_cast<std::uintptr_t>(call.workspace.device_data()) % 256 == 0,
                "the workspace is aligned to 256");
  if (ran_on_cuda(call, stream)) return;
  stream.run("matrix product", [made] { return detail::matmul_on_cpu(made); });
}

DUNNOCK_INSTANTIATE_KERNEL_WIDENING(Matmul);

namespace detail {
template Status matmul_on_cpu(const MatmulCall<float, float>&, MatmulMaker, MatmulIsa);
template Status matmul_on_cpu(const MatmulCall<device::Bf16, device::Bf16>&, MatmulMaker, MatmulIsa);
template Status matmul_on_cpu(const MatmulCall<device::Bf16, float>&, MatmulMaker, MatmulIsa);
}  // namespace detail

}  // namespace dunnock::kernels
