// The matrix product by oneDNN, called so that a product costs no more than oneDNN's own time: a primitive a shape,
// kept by the thread that made it, called through the C interface with arguments that are only pointed at other memory.
//
// Kept by thread, and not shared: a primitive's scratch can serve one call at a time, it is made for the number of
// threads that the stream has, and a stream is one thread. So no lock is needed.
#include "matmul_call.hpp"

#if DUNNOCK_HAS_DNNL
#include <dnnl.h>
#include <dnnl_debug.h>

#include <array>
#include <bit>
#include <compare>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "parallel.hpp"
#endif

namespace dunnock::kernels::detail {

#if DUNNOCK_HAS_DNNL
namespace {

/// Plans that a thread keeps: a training step has some 10 shapes a layer kind, serving some more.
constexpr std::size_t kPlansMax = 256;

/// All that a primitive is made of.
struct PlanKey {
  std::array<std::size_t, 10> sizes;
  std::uint32_t alpha_bits;  // of floats: a NaN has no order
  std::uint32_t beta_bits;
  MatmulActivation activation;  // that is fused
  bool transpose_a, transpose_b, has_bias, bf16, c_bf16;
  unsigned threads;
  friend auto operator<=>(const PlanKey&, const PlanKey&) = default;
};

struct Destroy {
  void operator()(dnnl_engine_t it) const noexcept { (void)dnnl_engine_destroy(it); }
  void operator()(dnnl_stream_t it) const noexcept { (void)dnnl_stream_destroy(it); }
  void operator()(dnnl_memory_t it) const noexcept { (void)dnnl_memory_destroy(it); }
  void operator()(dnnl_primitive_t it) const noexcept { (void)dnnl_primitive_destroy(it); }
  void operator()(dnnl_primitive_desc_t it) const noexcept { (void)dnnl_primitive_desc_destroy(it); }
  void operator()(dnnl_primitive_attr_t it) const noexcept { (void)dnnl_primitive_attr_destroy(it); }
  void operator()(dnnl_post_ops_t it) const noexcept { (void)dnnl_post_ops_destroy(it); }
};
template <class Handle>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy>;

struct Plan {
  std::unique_ptr<std::byte[]> scratch;
  std::array<Owned<dnnl_memory_t>, 5> memories;  // A, B, C, the bias, the scratch
  std::array<dnnl_exec_arg_t, 5> arguments;
  Owned<dnnl_primitive_t> primitive;
};

/// Makes plans: the first thing that fails is remembered, and the rest left out.
class PlanMaker {
 public:
  explicit PlanMaker(dnnl_engine_t engine) noexcept : engine_(engine) {}
  [[nodiscard]] std::unique_ptr<Plan> make(const MatmulShape& s, const PlanKey& key);
  [[nodiscard]] dnnl_status_t status() const noexcept { return status_; }

 private:
  bool good(dnnl_status_t status) noexcept {
    if (status_ == dnnl_success) status_ = status;
    return status_ == dnnl_success;
  }
  static dnnl_memory_desc_t describe(std::array<std::size_t, 3> sizes, std::array<std::size_t, 3> strides,
                                     bool bf16) noexcept {
    const auto signed_of = [](const std::array<std::size_t, 3>& of) {
      return std::array<dnnl_dim_t, 3>{static_cast<dnnl_dim_t>(of[0]), static_cast<dnnl_dim_t>(of[1]),
                                       static_cast<dnnl_dim_t>(of[2])};
    };
    const auto dims = signed_of(sizes);
    const auto steps = signed_of(strides);
    dnnl_memory_desc_t desc{};
    // A batch of one is a plain matrix: oneDNN has faster ways for that.
    const int skip = sizes[0] == 1 ? 1 : 0;
    (void)dnnl_memory_desc_init_by_strides(&desc, 3 - skip, dims.data() + skip, bf16 ? dnnl_bf16 : dnnl_f32,
                                           steps.data() + skip);
    return desc;
  }
  dnnl_engine_t engine_;
  dnnl_status_t status_ = dnnl_success;
};

std::unique_ptr<Plan> PlanMaker::make(const MatmulShape& s, const PlanKey& key) {
  auto plan = std::make_unique<Plan>();
  const std::array<std::size_t, 3> a_strides{s.stride_a, s.transpose_a ? 1 : s.lda, s.transpose_a ? s.lda : 1};
  const std::array<std::size_t, 3> b_strides{s.stride_b, s.transpose_b ? 1 : s.ldb, s.transpose_b ? s.ldb : 1};
  const dnnl_memory_desc_t a = describe({s.count, s.rows, s.inner}, a_strides, key.bf16);
  const dnnl_memory_desc_t b = describe({s.count, s.inner, s.columns}, b_strides, key.bf16);
  const dnnl_memory_desc_t c = describe({s.count, s.rows, s.columns}, {s.stride_c, s.ldc, 1}, key.c_bf16);
  dnnl_memory_desc_t bias = describe({1, 1, s.columns}, {s.columns, s.columns, 1}, key.c_bf16);
  if (s.count > 1) {
    const dnnl_dims_t dims{1, 1, static_cast<dnnl_dim_t>(s.columns)};
    good(dnnl_memory_desc_init_by_tag(&bias, 3, dims, key.c_bf16 ? dnnl_bf16 : dnnl_f32, dnnl_abc));
  }
  dnnl_matmul_desc_t product{};
  if (!good(dnnl_matmul_desc_init(&product, &a, &b, key.has_bias ? &bias : nullptr, &c))) return nullptr;

  dnnl_primitive_attr_t attributes = nullptr;
  if (!good(dnnl_primitive_attr_create(&attributes))) return nullptr;
  const Owned<dnnl_primitive_attr_t> attributes_owner(attributes);
  good(dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user));
  const auto alpha = std::bit_cast<float>(key.alpha_bits);
  const auto beta = std::bit_cast<float>(key.beta_bits);
  if (alpha != 1) good(dnnl_primitive_attr_set_output_scales(attributes, 1, 0, &alpha));
  dnnl_post_ops_t behind = nullptr;
  if (!good(dnnl_post_ops_create(&behind))) return nullptr;
  const Owned<dnnl_post_ops_t> behind_owner(behind);
  if (beta != 0) good(dnnl_post_ops_append_sum(behind, beta));
  if (key.activation == MatmulActivation::kGelu)
    good(dnnl_post_ops_append_eltwise(behind, 1, dnnl_eltwise_gelu_tanh, 0, 0));
  good(dnnl_primitive_attr_set_post_ops(attributes, behind));

  dnnl_primitive_desc_t desc = nullptr;
  if (!good(dnnl_primitive_desc_create(&desc, &product, attributes, engine_, nullptr))) return nullptr;
  const Owned<dnnl_primitive_desc_t> desc_owner(desc);
  dnnl_primitive_t primitive = nullptr;
  if (!good(dnnl_primitive_create(&primitive, desc))) return nullptr;
  plan->primitive.reset(primitive);

  const dnnl_memory_desc_t* const scratch = dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0);
  constexpr std::size_t kAlignment = 64;
  plan->scratch = std::make_unique<std::byte[]>(dnnl_memory_desc_get_size(scratch) + kAlignment);
  const std::array<const dnnl_memory_desc_t*, 5> descs{&a, &b, &c, &bias, scratch};
  constexpr std::array<int, 5> kArguments{DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST, DNNL_ARG_BIAS,
                                          DNNL_ARG_SCRATCHPAD};
  for (std::size_t i = 0; i < descs.size(); ++i) {
    dnnl_memory_t memory = nullptr;
    if (!good(dnnl_memory_create(&memory, descs[i], engine_, DNNL_MEMORY_NONE))) return nullptr;
    plan->memories[i].reset(memory);
    plan->arguments[i] = {kArguments[i], memory};
  }
  auto address = reinterpret_cast<std::uintptr_t>(plan->scratch.get());
  address = (address + kAlignment - 1) / kAlignment * kAlignment;
  good(dnnl_memory_set_data_handle(plan->memories[4].get(), reinterpret_cast<void*>(address)));
  if (!key.has_bias) std::swap(plan->arguments[3], plan->arguments[4]);  // The scratch last but one, and no bias.
  return plan;
}

/// A thread's plans, the most recently used first.
class Plans {
 public:
  static Plans& of_thread() {
    thread_local Plans plans;
    return plans;
  }
  /// Null, with the status: oneDNN has none.
  [[nodiscard]] Plan* find(const MatmulShape& shape, const PlanKey& key, dnnl_status_t& status) {
    const auto found = places_.find(key);
    if (found != places_.end()) {
      plans_.splice(plans_.begin(), plans_, found->second);
      return plans_.front().plan.get();
    }
    if (engine_ == nullptr) {
      dnnl_engine_t engine = nullptr;
      dnnl_stream_t stream = nullptr;
      status = dnnl_engine_create(&engine, dnnl_cpu, 0);
      engine_.reset(engine);
      if (status == dnnl_success) status = dnnl_stream_create(&stream, engine, dnnl_stream_default_flags);
      stream_.reset(stream);
      if (status != dnnl_success) return nullptr;
    }
    PlanMaker maker(engine_.get());
    auto plan = maker.make(shape, key);
    status = maker.status();
    if (status != dnnl_success) return nullptr;
    if (plans_.size() == kPlansMax) {
      places_.erase(plans_.back().key);
      plans_.pop_back();
    }
    plans_.push_front({key, std::move(plan)});
    places_[key] = plans_.begin();
    return plans_.front().plan.get();
  }
  [[nodiscard]] dnnl_stream_t stream() const noexcept { return stream_.get(); }

 private:
  struct Kept {
    PlanKey key;
    std::unique_ptr<Plan> plan;
  };
  Owned<dnnl_engine_t> engine_;
  Owned<dnnl_stream_t> stream_;
  std::list<Kept> plans_;
  std::map<PlanKey, std::list<Kept>::iterator> places_;
};

}  // namespace

template <class T, class C>
bool onednn_makes(const MatmulCall<T, C>& call) noexcept {
  if (call.shape.inner == 0) return false;
  if (std::is_same_v<T, device::Bf16> && best_matmul_isa() == MatmulIsa::kBase) return false;
  return call.epilogue.bias.empty() || call.epilogue.alpha == 1;
}

template <class T, class C>
Status onednn_matmul(const MatmulCall<T, C>& call, MatmulIsa isa) {
  const MatmulShape& s = call.shape;
  const MatmulEpilogue<C>& e = call.epilogue;
  // oneDNN's ReLU makes 0 of a NaN, and hides what has gone wrong.
  const bool fused = e.saved.empty() && e.gradient_at.empty() && e.activation != MatmulActivation::kRelu;
  // V goes where it is wanted at once, unless C must be added to.
  C* const v = !e.saved.empty() && e.beta == 0 ? e.saved.device_data() : call.c;
  const PlanKey key{{s.rows, s.columns, s.inner, s.lda, s.ldb, s.ldc, s.count, s.stride_a, s.stride_b, s.stride_c},
                    std::bit_cast<std::uint32_t>(e.alpha),
                    std::bit_cast<std::uint32_t>(e.beta),
                    fused ? e.activation : MatmulActivation::kNone,
                    s.transpose_a,
                    s.transpose_b,
                    !e.bias.empty(),
                    std::is_same_v<T, device::Bf16>,
                    std::is_same_v<C, device::Bf16>,
                    device::parallel_threads()};
  Plans& plans = Plans::of_thread();
  dnnl_status_t status = dnnl_success;
  Plan* const plan = plans.find(s, key, status);
  if (plan != nullptr) {
    const std::array<const void*, 4> data{call.a, call.b, v, e.bias.device_data()};
    const std::size_t arguments = key.has_bias ? 5 : 4;
    for (std::size_t i = 0; i < (key.has_bias ? 4U : 3U); ++i)
      (void)dnnl_memory_set_data_handle(plan->memories[i].get(), const_cast<void*>(data[i]));
    status = dnnl_primitive_execute(plan->primitive.get(), plans.stream(), static_cast<int>(arguments),
                                    plan->arguments.data());
  }
  if (status != dnnl_success) return make_error(ErrorCode::kDevice, "oneDNN: " + std::string(dnnl_status2str(status)));
  if (!fused) finish_matmul(call, v, isa);
  return {};
}

#else

template <class T, class C>
bool onednn_makes(const MatmulCall<T, C>&) noexcept {
  return false;
}
template <class T, class C>
Status onednn_matmul(const MatmulCall<T, C>&, MatmulIsa) {
  return make_error(ErrorCode::kUnsupported, "this build of dunnock has no oneDNN");
}

#endif

#define DUNNOCK_INSTANTIATE(T, C)                                     \
  template bool onednn_makes<T, C>(const MatmulCall<T, C>&) noexcept; \
  template Status onednn_matmul<T, C>(const MatmulCall<T, C>&, MatmulIsa);
DUNNOCK_INSTANTIATE(float, float)
DUNNOCK_INSTANTIATE(device::Bf16, device::Bf16)
DUNNOCK_INSTANTIATE(device::Bf16, float)
#undef DUNNOCK_INSTANTIATE

}  // namespace dunnock::kernels::detail
