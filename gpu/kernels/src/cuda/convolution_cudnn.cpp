// Convolutions by cuDNN's graph API, in its C form: it is the one whose heuristics know the tensor-core kernels of each
// GPU for channels that lie innermost, that executes without allocating, and that is not deprecated.
//
// A plan is made when a shape is first seen: the graph, the heuristic's engines in its order, the first that cuDNN can
// build and that keeps what we promise:
//   deterministic   no engine whose sums have an order of chance
//   float           no engine that rounds floats to TF32 or less
// Nothing is timed and nothing synchronizes. If the first choice is not available, the next may be:
//   forward           convolution + bias + ReLU in one   |  only the convolution, then add_bias
//   weight gradient   of bf16 as f32, added by put_gradient  |  as bf16
// If there is no plan at all, the caller takes our own kernels.
#include <cuda_runtime.h>
#include <cudnn.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "convolution_parts.hpp"
#include "cuda/on_device.hpp"
#include "driver.hpp"
#include "dunnock/base/check.hpp"
#include "plan_cache.hpp"

namespace dunnock::kernels::detail::cudnn {
namespace {

constexpr std::size_t kEnginesMax = 32;  // of one heuristic that are tried
constexpr std::size_t kWorkspaceMax = std::size_t{1} << 30;

/// One of cuDNN's descriptors. Any call that fails makes it, and what is made of it, invalid.
class Descriptor {
 public:
  explicit Descriptor(cudnnBackendDescriptorType_t type) {
    valid_ = cudnnBackendCreateDescriptor(type, &handle_) == CUDNN_STATUS_SUCCESS;
  }
  Descriptor(Descriptor&& other) noexcept
      : handle_(std::exchange(other.handle_, nullptr)), valid_(std::exchange(other.valid_, false)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(valid_, other.valid_);
    return *this;
  }
  ~Descriptor() {
    if (handle_ != nullptr) (void)cudnnBackendDestroyDescriptor(handle_);
  }

  template <class T>
  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const T* values,
                  std::size_t count) {
    valid_ = valid_ && cudnnBackendSetAttribute(handle_, name, type, static_cast<std::int64_t>(count), values) ==
                           CUDNN_STATUS_SUCCESS;
    return *this;
  }
  template <class T>
  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const T& value) {
    return set(name, type, &value, 1);
  }
  Descriptor& set(cudnnBackendAttributeName_t name, const Descriptor& part) {
    valid_ = valid_ && part.valid_;
    return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, &part.handle_, 1);
  }
  Descriptor& finalize() {
    valid_ = valid_ && cudnnBackendFinalize(handle_) == CUDNN_STATUS_SUCCESS;
    return *this;
  }
  [[nodiscard]] bool valid() const noexcept { return valid_; }
  [[nodiscard]] cudnnBackendDescriptor_t handle() const noexcept { return handle_; }

  /// Up to values.size() of an attribute; how many there were.
  template <class T>
  std::size_t get(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, std::vector<T>& values) const {
    std::int64_t count = 0;
    const auto status =
        cudnnBackendGetAttribute(handle_, name, type, static_cast<std::int64_t>(values.size()), &count, values.data());
    if (status != CUDNN_STATUS_SUCCESS || count < 0) return 0;
    return std::min(static_cast<std::size_t>(count), values.size());
  }

 private:
  cudnnBackendDescriptor_t handle_ = nullptr;
  bool valid_ = false;
};

// What a plan's pointers are called.
constexpr std::int64_t kX = 1;
constexpr std::int64_t kWeight = 2;
constexpr std::int64_t kY = 3;
constexpr std::int64_t kBias = 4;
constexpr std::int64_t kFirstVirtual = 10;

struct Tensor {
  std::int64_t id;
  cudnnDataType_t type;
  std::array<std::int64_t, 4> sizes;  // batch (or output channels), channels, height, width
  bool is_virtual = false;            // Handed on from one operation to the next, never in memory.
};

Descriptor made(const Tensor& tensor) {
  const auto& [n, c, h, w] = tensor.sizes;
  const std::array<std::int64_t, 4> strides{h * w * c, 1, w * c, c};  // Channels innermost.
  // What Buffer gives is aligned to 512 bytes, but a span may begin anywhere: plans hold for 16, and spans that are not
  // aligned so go to our own kernels.
  const std::int64_t alignment = 16;
  Descriptor made(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  made.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, tensor.type)
      .set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, tensor.sizes.data(), 4)
      .set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, strides.data(), 4)
      .set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, tensor.id)
      .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, alignment);
  if (tensor.is_virtual) made.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, true);
  return std::move(made.finalize());
}

/// What sets plans apart.
struct Key {
  ConvolutionShape shape;
  ConvolutionPass pass;
  bool bf16;
  bool bias;
  bool relu;
  unsigned device;
  friend auto operator<=>(const Key&, const Key&) = default;
};

/// How much one plan does.
struct Wish {
  bool epilogue;      // Forward: bias and ReLU too.
  bool f32_gradient;  // Weight gradient: in f32, whatever the type of the rest.
};

struct Plan {
  std::vector<Descriptor> parts;  // What the plan is made of lives as long.
  std::unique_ptr<Descriptor> plan;
  std::size_t workspace_bytes = 0;
  Wish wish{};
};

using Handle = std::unique_ptr<std::remove_pointer_t<cudnnHandle_t>, decltype(&cudnnDestroy)>;

/// One a device, made at first use; the mutex is held while something is issued with it.
struct Library {
  std::mutex mutex;
  Handle handle{nullptr, &cudnnDestroy};
};
Library* library_of(unsigned device) {
  static std::mutex mutex;
  // Never destroyed: CUDA may be gone by then.
  static auto& all = *new std::map<unsigned, std::unique_ptr<Library>>();
  const std::lock_guard lock(mutex);
  auto& library = all[device];
  if (library) return library->handle ? library.get() : nullptr;
  library = std::make_unique<Library>();
  cudnnHandle_t handle = nullptr;
  if (cudnnCreate(&handle) == CUDNN_STATUS_SUCCESS) library->handle.reset(handle);
  return library->handle ? library.get() : nullptr;
}

Descriptor convolution_of(const ConvolutionShape& s) {
  const auto pair = [](std::size_t height, std::size_t width) {
    return std::array<std::int64_t, 2>{static_cast<std::int64_t>(height), static_cast<std::int64_t>(width)};
  };
  const auto padding = pair(s.padding_height, s.padding_width);
  const auto strides = pair(s.stride_height, s.stride_width);
  const auto dilations = pair(s.dilation_height, s.dilation_width);
  const std::int64_t dimensions = 2;
  Descriptor made(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
  made.set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, dimensions)
      .set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT)
      .set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, CUDNN_CROSS_CORRELATION)
      .set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, padding.data(), 2)
      .set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, padding.data(), 2)
      .set(CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, dilations.data(), 2)
      .set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, strides.data(), 2);
  return std::move(made.finalize());
}

Descriptor pointwise(cudnnPointwiseMode_t mode, const Descriptor& x, const Descriptor* b, const Descriptor& y,
                     std::vector<Descriptor>& parts) {
  Descriptor how(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  how.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, mode)
      .set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT)
      .finalize();
  Descriptor made(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  made.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how)
      .set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x)
      .set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
  if (b != nullptr) made.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, *b);
  made.finalize();
  parts.push_back(std::move(how));
  return made;
}

/// The operations of a wish; their tensors go to `parts`.
std::vector<Descriptor> operations_of(const Key& key, const Wish& wish, std::vector<Descriptor>& parts) {
  const ConvolutionShape& s = key.shape;
  const auto d = [](std::size_t size) { return static_cast<std::int64_t>(size); };
  const cudnnDataType_t type = key.bf16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
  const cudnnDataType_t weight_type = wish.f32_gradient ? CUDNN_DATA_FLOAT : type;
  const std::array<std::int64_t, 4> y_sizes{d(s.batch), d(s.out_channels), d(s.out_height()), d(s.out_width())};
  const Descriptor x = made({kX, type, {d(s.batch), d(s.in_channels), d(s.height), d(s.width)}});
  const Descriptor weight = made(
      {kWeight, weight_type, {d(s.out_channels), d(s.in_channels / s.groups), d(s.kernel_height), d(s.kernel_width)}});
  const Descriptor convolution = convolution_of(s);
  const bool adds_bias = wish.epilogue && key.bias;
  const bool rectifies = wish.epilogue && key.relu;
  const Descriptor y = made({kY, type, y_sizes});
  // Between the operations, in float.
  const Descriptor convolved = made({kFirstVirtual, CUDNN_DATA_FLOAT, y_sizes, true});
  const Descriptor biased = made({kFirstVirtual + 1, CUDNN_DATA_FLOAT, y_sizes, true});
  const float one = 1;
  const float zero = 0;

  std::vector<Descriptor> operations;
  if (key.pass == ConvolutionPass::kForward) {
    Descriptor operation(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
    operation.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, weight)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, adds_bias || rectifies ? convolved : y)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, convolution)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, one)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, zero)
        .finalize();
    operations.push_back(std::move(operation));
    if (adds_bias) {
      Descriptor bias = made({kBias, type, {1, d(s.out_channels), 1, 1}});
      operations.push_back(pointwise(CUDNN_POINTWISE_ADD, convolved, &bias, rectifies ? biased : y, parts));
      parts.push_back(std::move(bias));
    }
    if (rectifies)
      operations.push_back(pointwise(CUDNN_POINTWISE_RELU_FWD, adds_bias ? biased : convolved, nullptr, y, parts));
  } else if (key.pass == ConvolutionPass::kInputGradient) {
    Descriptor operation(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR);
    operation.set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, x)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, weight)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, y)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, convolution)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, CUDNN_TYPE_FLOAT, one)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA, CUDNN_TYPE_FLOAT, zero)
        .finalize();
    operations.push_back(std::move(operation));
  } else {
    Descriptor operation(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR);
    operation.set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, x)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW, weight)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY, y)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC, convolution)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA, CUDNN_TYPE_FLOAT, one)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA, CUDNN_TYPE_FLOAT, zero)
        .finalize();
    operations.push_back(std::move(operation));
  }
  return operations;
}

/// The engine keeps what we promise.
bool acceptable(const Descriptor& configuration, bool f32) {
  Descriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  std::vector<cudnnBackendDescriptor_t> engines{engine.handle()};
  if (configuration.get(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, engines) != 1) return false;
  std::vector<cudnnBackendNumericalNote_t> notes(CUDNN_NUMERICAL_NOTE_TYPE_COUNT);
  notes.resize(engine.get(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, notes));
  return std::ranges::none_of(notes, [f32](cudnnBackendNumericalNote_t note) {
    if (note == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) return true;
    if (note == CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION) return true;
    // Winograd's and Fourier's sums are of other products, and less exact.
    if (note == CUDNN_NUMERICAL_NOTE_WINOGRAD || note == CUDNN_NUMERICAL_NOTE_FFT) return true;
    return f32 && (note == CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS || note == CUDNN_NUMERICAL_NOTE_TENSOR_CORE);
  });
}

std::shared_ptr<const Plan> try_plan(const Key& key, const Wish& wish, cudnnHandle_t handle) {
  auto plan = std::make_shared<Plan>();
  plan->wish = wish;
  std::vector<Descriptor> operations = operations_of(key, wish, plan->parts);
  std::vector<cudnnBackendDescriptor_t> handles;
  for (const Descriptor& operation : operations) {
    if (!operation.valid()) return nullptr;
    handles.push_back(operation.handle());
  }
  Descriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, handles.data(), handles.size())
      .set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle)
      .finalize();
  if (!graph.valid()) return nullptr;
  for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) {
    Descriptor heuristic(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    heuristic.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)
        .set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, mode)
        .finalize();
    if (!heuristic.valid()) continue;
    std::vector<Descriptor> configurations;
    std::vector<cudnnBackendDescriptor_t> results;
    for (std::size_t i = 0; i < kEnginesMax; ++i) {
      configurations.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
      results.push_back(configurations.back().handle());
    }
    const std::size_t count = heuristic.get(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, results);
    for (std::size_t i = 0; i < count; ++i) {
      if (!acceptable(configurations[i], !key.bf16)) continue;
      auto made_plan = std::make_unique<Descriptor>(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
      made_plan->set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, handle)
          .set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configurations[i])
          .finalize();
      if (!made_plan->valid()) continue;
      std::vector<std::int64_t> bytes(1);
      if (made_plan->get(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, bytes) != 1) continue;
      if (bytes[0] < 0 || static_cast<std::size_t>(bytes[0]) > kWorkspaceMax) continue;
      plan->workspace_bytes = static_cast<std::size_t>(bytes[0]);
      plan->plan = std::move(made_plan);
      for (Descriptor& operation : operations) plan->parts.push_back(std::move(operation));
      plan->parts.push_back(std::move(graph));
      plan->parts.push_back(std::move(configurations[i]));
      return plan;
    }
  }
  return nullptr;
}

std::shared_ptr<const Plan> make_plan(const Key& key) {
  const device::detail::BesideCapture beside;
  Library* const library = library_of(key.device);
  if (library == nullptr) return nullptr;
  std::vector<Wish> wishes;
  if (key.pass == ConvolutionPass::kForward && (key.bias || key.relu)) wishes.push_back({true, false});
  if (key.pass == ConvolutionPass::kWeightGradient && key.bf16) wishes.push_back({false, true});
  wishes.push_back({false, false});
  const std::lock_guard lock(library->mutex);
  for (const Wish& wish : wishes) {
    if (auto plan = try_plan(key, wish, library->handle.get())) return plan;
  }
  return nullptr;
}

std::shared_ptr<const Plan> plan_of(const Key& key) {
  // Never destroyed: CUDA may be gone by then.
  static auto& plans = *new PlanCache<Key, Plan>();
  return plans.get(key, [&] { return make_plan(key); });
}

struct Pointers {
  const void* x;
  const void* weight;
  const void* y;
  const void* bias;  // Null where the plan has none.
};

bool aligned(const Pointers& p) {
  for (const void* const pointer : {p.x, p.weight, p.y, p.bias})
    if (reinterpret_cast<std::uintptr_t>(pointer) % 16 != 0) return false;
  return true;
}

/// Errors come with the stream, under `name`.
void execute(std::string_view name, const Plan& plan, const Pointers& pointers, std::byte* workspace,
             device::Stream& stream) {
  std::vector<std::int64_t> ids{kX, kWeight, kY};
  std::vector<void*> addresses{const_cast<void*>(pointers.x), const_cast<void*>(pointers.weight),
                               const_cast<void*>(pointers.y)};
  if (pointers.bias != nullptr) {
    ids.push_back(kBias);
    addresses.push_back(const_cast<void*>(pointers.bias));
  }
  void* const space = workspace;
  Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, ids.data(), ids.size())
      .set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, addresses.data(), addresses.size())
      .set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, space)
      .finalize();
  Library* const library = library_of(stream.device().ordinal());
  cudnnStatus_t status = CUDNN_STATUS_BAD_PARAM;
  if (pack.valid()) {
    const std::lock_guard lock(library->mutex);
    status = cudnnSetStream(library->handle.get(), static_cast<cudaStream_t>(stream.native()));
    if (status == CUDNN_STATUS_SUCCESS)
      status = cudnnBackendExecute(library->handle.get(), plan.plan->handle(), pack.handle());
  }
  if (status != CUDNN_STATUS_SUCCESS) {
    const std::string why = std::string("cuDNN: ") + cudnnGetErrorString(status);
    stream.run(name, [why] { return Status(make_error(ErrorCode::kDevice, why)); });
    return;
  }
  stream.impl().launched(name, cudaSuccess);
}

/// Where the gradient of the weights, as f32, and what the bias's gradient needs, lie behind cuDNN's own workspace.
std::size_t rounded(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

template <class T>
Key key_of(ConvolutionPass pass, const ConvolutionShape& shape, bool bias, bool relu, device::Device device) {
  return {shape, pass, std::is_same_v<T, device::Bf16>, bias, relu, device.ordinal()};
}

}  // namespace

template <class T>
std::optional<std::size_t> convolution_workspace(ConvolutionPass pass, const ConvolutionShape& shape,
                                                 device::Device device) {
  const device::detail::OnDevice here(device.ordinal());
  std::optional<std::size_t> bytes;
  for (const bool bias : {false, true}) {
    for (const bool relu : {false, true}) {
      if ((bias || relu) && pass != ConvolutionPass::kForward) continue;
      const auto plan = plan_of(key_of<T>(pass, shape, bias, relu, device));
      if (plan) bytes = std::max(bytes.value_or(0), rounded(plan->workspace_bytes));
    }
  }
  if (bytes && pass == ConvolutionPass::kWeightGradient) {
    *bytes += rounded(shape.weight_size() * sizeof(float)) +
              rounded(cuda::bias_gradient_workspace(shape, device.info().processors) * sizeof(float));
  }
  return bytes;
}

template <class T>
bool ran(const Convolution<T>& call, device::Stream& stream) {
  const device::detail::OnDevice here(stream.device().ordinal());
  const auto plan =
      plan_of(key_of<T>(ConvolutionPass::kForward, call.shape, !call.bias.empty(), call.relu, stream.device()));
  if (!plan) return false;
  const Pointers pointers{call.x.device_data(), call.weight.device_data(), call.y.device_data(),
                          plan->wish.epilogue ? call.bias.device_data() : nullptr};
  if (!aligned(pointers)) return false;
  execute("convolution", *plan, pointers, call.workspace.device_data(), stream);
  if (!plan->wish.epilogue && (!call.bias.empty() || call.relu))
    cuda::add_bias<T>(call.y, call.bias, call.relu, stream);
  return true;
}

template <class T>
bool ran(const ConvolutionInputGradient<T>& call, device::Stream& stream) {
  const device::detail::OnDevice here(stream.device().ordinal());
  const auto plan = plan_of(key_of<T>(ConvolutionPass::kInputGradient, call.shape, false, false, stream.device()));
  if (!plan) return false;
  const Pointers pointers{call.dx.device_data(), call.weight.device_data(), call.dy.device_data(), nullptr};
  if (!aligned(pointers)) return false;
  execute("convolution's input gradient", *plan, pointers, call.workspace.device_data(), stream);
  return true;
}

template <class T>
bool ran(const ConvolutionWeightGradient<T>& call, device::Stream& stream) {
  const device::detail::OnDevice here(stream.device().ordinal());
  const auto plan = plan_of(key_of<T>(ConvolutionPass::kWeightGradient, call.shape, false, false, stream.device()));
  if (!plan) return false;
  std::byte* const gradient = call.workspace.device_data() + rounded(plan->workspace_bytes);
  std::byte* const behind = gradient + rounded(call.shape.weight_size() * sizeof(float));
  const bool f32 = std::is_same_v<T, float> || plan->wish.f32_gradient;
  // What is added, or rounded, goes by way of the workspace.
  const bool direct = !call.adds && f32 == std::is_same_v<T, float>;
  void* const to = direct ? static_cast<void*>(call.dweight.device_data()) : gradient;
  const Pointers pointers{call.x.device_data(), to, call.dy.device_data(), nullptr};
  if (!aligned(pointers)) return false;
  execute("convolution's weight gradient", *plan, pointers, call.workspace.device_data(), stream);
  if (!direct && f32) {
    const device::Span<const float> made(static_cast<const float*>(to), call.dweight.size());
    cuda::put_gradient<T, float>(made, call.dweight, call.adds, stream);
  } else if (!direct) {
    const device::Span<const T> made(static_cast<const T*>(to), call.dweight.size());
    cuda::put_gradient<T, T>(made, call.dweight, call.adds, stream);
  }
  if (!call.dbias.empty()) {
    const device::Span<float> space(reinterpret_cast<float*>(behind),
                                    cuda::bias_gradient_workspace(call.shape, stream.device().info().processors));
    cuda::bias_gradient<T>(call.dy, call.dbias, call.adds, call.shape, space, stream);
  }
  return true;
}

#define DUNNOCK_INSTANTIATE(T)                                                                           \
  template std::optional<std::size_t> convolution_workspace<T>(ConvolutionPass, const ConvolutionShape&, \
                                                               device::Device);                          \
  template bool ran(const Convolution<T>&, device::Stream&);                                             \
  template bool ran(const ConvolutionInputGradient<T>&, device::Stream&);                                \
  template bool ran(const ConvolutionWeightGradient<T>&, device::Stream&);
DUNNOCK_INSTANTIATE(float)
DUNNOCK_INSTANTIATE(device::Bf16)
#undef DUNNOCK_INSTANTIATE

}  // namespace dunnock::kernels::detail::cudnn
