// Convolutions by oneDNN. Activations stay as they are, channels innermost; weights are brought into the layout that
// oneDNN wants, and gradients of weights out of it, in each call: below 1 % of a convolution at batch 32.
//
// Speed beside oneDNN 2.6 with the blocked layouts that it likes best and no reorders (processor time of one thread of
// a Zen 5, batch 32, forward / input / weight gradient):
//                                        f32                 bf16
//   VGG 28^2, 128 -> 256, 3^2            108 /  86 /  88 %    95 /  96 /  97 %
//   VGG 14^2, 512 -> 512, 3^2            150 / 108 / 100 %   103 / 105 /  93 %
//   ResNet 112^2, 3 -> 64, 7^2 / 2       102 / 104 /  55 %    96 /  97 / 102 %
//   ResNet 28^2, 128 -> 128, 3^2         108 /  97 /  85 %    95 /  96 /  95 %
//   ResNet 28^2, 512 -> 128, 1^2          96 /  85 /  91 %   100 /  96 / 104 %
//   MobileNet 28^2, 192 -> 64, 1^2        92 /  75 /  50 %
//   MobileNet 56^2, 144 depthwise, 3^2   102 / 100 /  82 %
//   LeNet 28^2, 1 -> 6, 5^2               37 / 259 /  51 %    47 / 255 / 672 %
// What lacks is oneDNN's own difference between the layouts; our call around it costs 10 to 40 us. One run beside other
// work, by a program that is not in the tree; the weight gradients in bf16 are from before their scratch was cleared
// (below), which costs one pass of writing over it.
//
// A plan holds for a number of threads: oneDNN divides the work when a primitive is made.
#if DUNNOCK_HAS_DNNL
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <dnnl.hpp>
#include <exception>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "cpu/convolution_cpu.hpp"
#include "parallel.hpp"
#include "plan_cache.hpp"

namespace dunnock::kernels::detail::onednn {
namespace {

using dnnl::memory;

template <class T>
constexpr memory::data_type kType = memory::data_type::f32;
template <>
constexpr memory::data_type kType<device::Bf16> = memory::data_type::bf16;

const dnnl::engine& engine() {
  static const dnnl::engine one(dnnl::engine::kind::cpu, 0);
  return one;
}

/// What sets plans apart.
struct Key {
  ConvolutionShape shape;
  ConvolutionPass pass;
  bool bf16;
  bool bias;
  bool relu;
  unsigned threads;
  friend auto operator<=>(const Key&, const Key&) = default;
};

/// Sets the number of threads of the calling thread's kernels, for a scope.
class ThreadsInScope {
 public:
  explicit ThreadsInScope(unsigned threads) noexcept : before_(omp_get_max_threads()) {
    omp_set_num_threads(static_cast<int>(threads));
  }
  ThreadsInScope(const ThreadsInScope&) = delete;
  ThreadsInScope& operator=(const ThreadsInScope&) = delete;
  ~ThreadsInScope() { omp_set_num_threads(before_); }

 private:
  int before_;
};

unsigned threads_max() { return static_cast<unsigned>(std::max(omp_get_num_procs(), 1)); }

/// How memory looks, and how much of it there is, before code is generated.
///   workspace   | weights as oneDNN has them | bias gradient | weights as we have them, f32 | scratch |
struct Layout {
  dnnl::primitive_desc primitive;
  memory::desc x;
  memory::desc weight;        // as oneDNN wants it
  memory::desc plain_weight;  // as we have it; of a gradient, f32
  memory::desc bias;
  memory::desc y;
  memory::desc scratch;
  std::size_t bias_at = 0;
  std::size_t plain_at = 0;
  std::size_t scratch_at = 0;
  std::size_t bytes = 0;
};

std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

template <class T>
Layout layout_of(const Key& key) {
  const ConvolutionShape& s = key.shape;
  const auto d = [](std::size_t size) { return static_cast<memory::dim>(size); };
  using tag = memory::format_tag;
  const bool gradient = key.pass == ConvolutionPass::kWeightGradient;
  const memory::data_type weight_type = gradient ? memory::data_type::f32 : kType<T>;
  memory::dims weights{d(s.out_channels / s.groups), d(s.in_channels / s.groups), d(s.kernel_height),
                       d(s.kernel_width)};
  if (s.groups > 1) weights.insert(weights.begin(), d(s.groups));
  const memory::dims strides{d(s.stride_height), d(s.stride_width)};
  const memory::dims dilations{d(s.dilation_height - 1), d(s.dilation_width - 1)};
  const memory::dims padding{d(s.padding_height), d(s.padding_width)};
  // Below and on the right oneDNN wants what the outputs use, which may be less than there is, or be negative.
  const auto rest = [](std::size_t outputs, std::size_t stride, std::size_t spread, std::size_t size, std::size_t pad) {
    return static_cast<memory::dim>((outputs - 1) * stride + spread) - static_cast<memory::dim>(size + pad);
  };
  const memory::dims padding_after{
      rest(s.out_height(), s.stride_height, s.dilation_height * (s.kernel_height - 1) + 1, s.height, s.padding_height),
      rest(s.out_width(), s.stride_width, s.dilation_width * (s.kernel_width - 1) + 1, s.width, s.padding_width)};
  const memory::desc x({d(s.batch), d(s.in_channels), d(s.height), d(s.width)}, kType<T>, tag::nhwc);
  const memory::desc y({d(s.batch), d(s.out_channels), d(s.out_height()), d(s.out_width())}, kType<T>, tag::nhwc);
  const memory::desc any(weights, weight_type, tag::any);
  const memory::desc bias = key.bias ? memory::desc({d(s.out_channels)}, weight_type, tag::a) : memory::desc();
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (key.relu) {
    dnnl::post_ops after;
    after.append_eltwise(1.0F, dnnl::algorithm::eltwise_relu, 0, 0);
    attributes.set_post_ops(after);
  }

  Layout layout;
  layout.x = x;
  layout.y = y;
  layout.bias = bias;
  layout.plain_weight = memory::desc(weights, weight_type, s.groups > 1 ? tag::gohwi : tag::ohwi);
  const auto algorithm = dnnl::algorithm::convolution_direct;
  const auto forward = [&](const dnnl::primitive_attr& with) {
    const memory::desc w(weights, kType<T>, tag::any);
    const memory::desc b = key.bias ? memory::desc({d(s.out_channels)}, kType<T>, tag::a) : memory::desc();
    return dnnl::convolution_forward::primitive_desc(
        {dnnl::prop_kind::forward_training, algorithm, x, w, b, y, strides, dilations, padding, padding_after}, with,
        engine());
  };
  if (key.pass == ConvolutionPass::kForward) {
    const auto made = forward(attributes);
    layout.weight = made.weights_desc();
    layout.primitive = made;
  } else if (key.pass == ConvolutionPass::kInputGradient) {
    const dnnl::convolution_backward_data::primitive_desc made(
        {algorithm, x, any, y, strides, dilations, padding, padding_after}, attributes, engine(), forward({}));
    layout.weight = made.weights_desc();
    layout.primitive = made;
  } else {
    const dnnl::convolution_backward_weights::primitive_desc made(
        {algorithm, x, any, bias, y, strides, dilations, padding, padding_after}, attributes, engine(), forward({}));
    layout.weight = made.diff_weights_desc();
    layout.primitive = made;
  }
  layout.scratch = layout.primitive.scratchpad_desc();
  layout.bias_at = aligned(layout.weight.get_size());
  layout.plain_at = layout.bias_at + (gradient && key.bias ? aligned(bias.get_size()) : 0);
  layout.scratch_at = layout.plain_at + (gradient ? aligned(layout.plain_weight.get_size()) : 0);
  layout.bytes = layout.scratch_at + layout.scratch.get_size();
  return layout;
}

struct Plan {
  Layout layout;
  dnnl::primitive convolution;
  dnnl::primitive reorder;  // Of the weights, before, or of their gradient, behind.
  bool reorders = true;
};

template <class T>
std::shared_ptr<const Plan> make_plan(const Key& key) {
  try {
    const ThreadsInScope threads(key.threads);
    auto plan = std::make_shared<Plan>();
    plan->layout = layout_of<T>(key);
    const Layout& layout = plan->layout;
    plan->convolution = dnnl::primitive(layout.primitive.get());
    plan->reorders = layout.weight != layout.plain_weight;
    if (plan->reorders) {
      const bool behind = key.pass == ConvolutionPass::kWeightGradient;
      dnnl::primitive_attr attributes;
      attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
      const memory::desc& from = behind ? layout.weight : layout.plain_weight;
      const memory::desc& to = behind ? layout.plain_weight : layout.weight;
      const dnnl::reorder::primitive_desc made(engine(), from, engine(), to, attributes);
      // It shares the scratch memory of the convolution.
      plan->layout.bytes = std::max(layout.bytes, layout.scratch_at + made.scratchpad_desc().get_size());
      plan->reorder = dnnl::reorder(made);
    }
    return plan;
  } catch (const dnnl::error&) {
    return nullptr;  // oneDNN does not support this convolution.
  }
}

std::shared_ptr<const Plan> plan_of(const Key& key) {
  static PlanCache<Key, Plan> plans;
  return plans.get(key, [&] { return key.bf16 ? make_plan<device::Bf16>(key) : make_plan<float>(key); });
}

template <class T>
void put_gradient(T* to, const float* from, std::size_t count, bool adds) {
  device::parallel_for(count, device::kParallelGrain, [&](std::size_t first, std::size_t last) {
    if (adds) {
      for (std::size_t i = first; i < last; ++i) to[i] = T(static_cast<float>(to[i]) + from[i]);
    } else {
      for (std::size_t i = first; i < last; ++i) to[i] = T(from[i]);
    }
  });
}

template <class T>
void execute(const Plan& plan, ConvolutionPass pass, const ConvolutionData<T>& data, const ConvolutionShape& shape) {
  const Layout& layout = plan.layout;
  std::byte* const space = data.workspace;
  dnnl::stream stream(engine());
  const auto memory_at = [](const memory::desc& desc, const void* where) {
    return memory(desc, engine(), const_cast<void*>(where));
  };
  const memory scratch = memory_at(layout.scratch, space + layout.scratch_at);
  const auto reorder = [&](const void* from, const memory::desc& from_desc, void* to, const memory::desc& to_desc) {
    dnnl::primitive(plan.reorder)
        .execute(stream, {{DNNL_ARG_FROM, memory_at(from_desc, from)},
                          {DNNL_ARG_TO, memory_at(to_desc, to)},
                          {DNNL_ARG_SCRATCHPAD, scratch}});
  };
  if (pass == ConvolutionPass::kWeightGradient) {
    // Straight to where it goes, where layout and type are already right.
    constexpr bool kFloats = std::is_same_v<T, float>;
    float* const floats = reinterpret_cast<float*>(kFloats && !data.adds ? reinterpret_cast<std::byte*>(data.dweight)
                                                                         : space + layout.plain_at);
    void* const made = plan.reorders ? static_cast<void*>(space) : floats;
    auto* const bias = reinterpret_cast<float*>(space + layout.bias_at);
    std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, memory_at(layout.x, data.x)},
                                              {DNNL_ARG_DIFF_DST, memory_at(layout.y, data.dy)},
                                              {DNNL_ARG_DIFF_WEIGHTS, memory_at(layout.weight, made)},
                                              {DNNL_ARG_SCRATCHPAD, scratch}};
    if (data.dbias != nullptr) arguments.emplace(DNNL_ARG_DIFF_BIAS, memory_at(layout.bias, bias));
    // oneDNN 2.6.3 in bf16 multiplies zeros by what lay in its scratch where a tap of the kernel meets padding only: a
    // NaN there, of whatever used the workspace before, came out (kernels.convolution, seed 139671245).
    if (!kFloats) std::memset(space + layout.scratch_at, 0, layout.scratch.get_size());
    plan.convolution.execute(stream, arguments);
    if (plan.reorders) reorder(made, layout.weight, floats, layout.plain_weight);
    if (!kFloats || data.adds) put_gradient(data.dweight, floats, shape.weight_size(), data.adds);
    if (data.dbias != nullptr) put_gradient(data.dbias, bias, shape.out_channels, data.adds);
    return;
  }
  if (plan.reorders) reorder(data.weight, layout.plain_weight, space, layout.weight);
  const memory weight = memory_at(layout.weight, plan.reorders ? static_cast<const void*>(space) : data.weight);
  std::unordered_map<int, memory> arguments{{DNNL_ARG_WEIGHTS, weight}, {DNNL_ARG_SCRATCHPAD, scratch}};
  if (pass == ConvolutionPass::kForward) {
    arguments.emplace(DNNL_ARG_SRC, memory_at(layout.x, data.x));
    arguments.emplace(DNNL_ARG_DST, memory_at(layout.y, data.y));
    if (data.bias != nullptr) arguments.emplace(DNNL_ARG_BIAS, memory_at(layout.bias, data.bias));
  } else {
    arguments.emplace(DNNL_ARG_DIFF_SRC, memory_at(layout.x, data.dx));
    arguments.emplace(DNNL_ARG_DIFF_DST, memory_at(layout.y, data.dy));
  }
  plan.convolution.execute(stream, arguments);
}

/// The most that any number of threads needs, with a bias or without.
template <class T>
std::size_t bytes_max(ConvolutionPass pass, const ConvolutionShape& shape) {
  std::size_t bytes = 0;
  for (unsigned threads = 1; threads <= threads_max(); ++threads) {
    const ThreadsInScope scope(threads);
    for (const bool bias : {false, true}) {
      if (bias && pass == ConvolutionPass::kInputGradient) continue;
      for (const bool relu : {false, true}) {
        if (relu && pass != ConvolutionPass::kForward) continue;
        bytes =
            std::max(bytes, layout_of<T>({shape, pass, std::is_same_v<T, device::Bf16>, bias, relu, threads}).bytes);
      }
    }
  }
  return bytes + 64;
}

}  // namespace

template <class T>
std::optional<std::size_t> convolution_workspace(ConvolutionPass pass, const ConvolutionShape& shape) {
  static PlanCache<std::pair<ConvolutionShape, ConvolutionPass>, std::size_t> sizes;
  const auto bytes = sizes.get({shape, pass}, [&]() -> std::shared_ptr<const std::size_t> {
    try {
      return std::make_shared<const std::size_t>(bytes_max<T>(pass, shape));
    } catch (const dnnl::error&) {
      return nullptr;
    }
  });
  if (!bytes) return std::nullopt;
  return *bytes;
}

template <class T>
Status convolution(ConvolutionPass pass, const ConvolutionData<T>& data, const ConvolutionShape& shape) {
  const Key key{shape,
                pass,
                std::is_same_v<T, device::Bf16>,
                data.bias != nullptr || data.dbias != nullptr,
                pass == ConvolutionPass::kForward && data.relu,
                std::min(device::parallel_threads(), threads_max())};
  const auto plan = plan_of(key);
  if (!plan) return make_error(ErrorCode::kUnsupported, "oneDNN does not support this convolution");
  try {
    const ThreadsInScope threads(key.threads);
    execute(*plan, pass, data, shape);
  } catch (const std::exception& error) {
    return make_error(ErrorCode::kDevice, std::string("oneDNN: ") + error.what());
  }
  return {};
}

#define DUNNOCK_INSTANTIATE(T)                                                                            \
  template std::optional<std::size_t> convolution_workspace<T>(ConvolutionPass, const ConvolutionShape&); \
  template Status convolution<T>(ConvolutionPass, const ConvolutionData<T>&, const ConvolutionShape&);
DUNNOCK_INSTANTIATE(float)
DUNNOCK_INSTANTIATE(device::Bf16)
#undef DUNNOCK_INSTANTIATE

}  // namespace dunnock::kernels::detail::onednn
#endif
