// The CUDA backend: streams, events, graphs and memory of the CUDA runtime, every call checked.
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cuda/on_device.hpp"
#include "driver.hpp"
#include "dunnock/base/check.hpp"

// Ranges for Nsight; a part of the toolkit that may be left out. Without a profiler, each call of it is a comparison.
#if __has_include(<nvtx3/nvToolsExtCudaRt.h>)
#include <nvtx3/nvToolsExt.h>
#include <nvtx3/nvToolsExtCudaRt.h>
#define DUNNOCK_HAS_NVTX 1
#else
#define DUNNOCK_HAS_NVTX 0
#endif

namespace dunnock::device::detail {
namespace {

Error cuda_error(cudaError_t code, std::string_view what) {
  const ErrorCode kind = code == cudaErrorMemoryAllocation ? ErrorCode::kNoSpace : ErrorCode::kDevice;
  return {kind, std::string(what) + ": " + cudaGetErrorString(code) + " (" + cudaGetErrorName(code) + ")"};
}

/// What a query answers. CUDA keeps "not ready" as the thread's last error, where code that looks for the error of a
/// launch of its own would find it.
bool not_ready(cudaError_t answer) {
  if (answer != cudaSuccess) (void)cudaGetLastError();
  return answer == cudaErrorNotReady;
}

#if DUNNOCK_HAS_NVTX
nvtxDomainHandle_t nvtx_domain() {
  static const nvtxDomainHandle_t domain = nvtxDomainCreateA("dunnock");
  return domain;
}
void push_range(const char* name) {
  nvtxEventAttributes_t range{};
  range.version = NVTX_VERSION;
  range.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  range.messageType = NVTX_MESSAGE_TYPE_ASCII;
  range.message.ascii = name;
  nvtxDomainRangePushEx(nvtx_domain(), &range);
}
void pop_range() { nvtxDomainRangePop(nvtx_domain()); }
#else
void push_range(const char*) {}
void pop_range() {}
#endif

bool waits_for_each_operation() {
  const char* const value = std::getenv("DUNNOCK_GPU_SYNC");
  return value != nullptr && *value != '\0' && *value != '0';
}

class CudaEvent final : public EventImpl {
 public:
  explicit CudaEvent(cudaEvent_t made) noexcept : event(made) {}
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  ~CudaEvent() override { (void)cudaEventDestroy(event); }
  [[nodiscard]] bool done() const override {
    const BesideCapture here;
    return !not_ready(cudaEventQuery(event));
  }
  [[nodiscard]] Status synchronize() const override {
    if (const cudaError_t code = cudaEventSynchronize(event); code != cudaSuccess)
      return tl::unexpected(cuda_error(code, "waiting for an event"));
    return {};
  }
  [[nodiscard]] double ms_since(const EventImpl& start) const override {
    float ms = 0;
    const cudaError_t code = cudaEventElapsedTime(&ms, dynamic_cast<const CudaEvent&>(start).event, event);
    DUNNOCK_CHECK(code == cudaSuccess, "both events have happened");
    return static_cast<double>(ms);
  }

  cudaEvent_t event;
};

/// What host functions of a stream have failed with; outlives the stream where a graph needs it.
struct Failures {
  std::mutex mutex;
  std::optional<Error> first;
  void add(Error error) {
    const std::lock_guard lock(mutex);
    if (!first) first = std::move(error);
  }
  std::optional<Error> take() {
    const std::lock_guard lock(mutex);
    return std::exchange(first, std::nullopt);
  }
};

/// A function that the host runs in a stream, and where its error goes.
struct HostCall {
  std::string_view name;
  Work work;
  std::shared_ptr<Failures> failures;
  bool once;
};

/// A graph that is being recorded: its host functions, and the first failure of any of its streams.
struct Recording {
  std::vector<std::unique_ptr<HostCall>> calls;
  std::optional<Error> failed;
};

/// By CUDA's number of the recording, which all its streams have.
class Captures {
 public:
  static Captures& of_process() {
    static auto& captures = *new Captures;
    return captures;
  }
  void add(unsigned long long id, std::unique_ptr<HostCall> call) {
    const std::lock_guard lock(mutex_);
    recordings_[id].calls.push_back(std::move(call));
  }
  void fail(unsigned long long id, Error error) {
    const std::lock_guard lock(mutex_);
    Recording& recording = recordings_[id];
    if (!recording.failed) recording.failed = std::move(error);
  }
  Recording take(unsigned long long id) {
    const std::lock_guard lock(mutex_);
    auto found = recordings_.extract(id);
    return found.empty() ? Recording{} : std::move(found.mapped());
  }

 private:
  std::mutex mutex_;
  std::map<unsigned long long, Recording> recordings_;
};

void CUDART_CB call_host(void* data) {
  auto* const call = static_cast<HostCall*>(data);
  push_range(std::string(call->name).c_str());
  if (const Status done = call->work(); !done) call->failures->add(operation_failed(call->name, done.error()));
  pop_range();
  if (call->once) delete call;
}

class CudaGraph final : public GraphImpl {
 public:
  CudaGraph(cudaGraph_t graph, cudaGraphExec_t executable, std::size_t size,
            std::vector<std::unique_ptr<HostCall>> calls) noexcept
      : exec(executable), graph_(graph), size_(size), calls_(std::move(calls)) {}
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  ~CudaGraph() override {
    (void)cudaGraphExecDestroy(exec);
    (void)cudaGraphDestroy(graph_);
  }
  [[nodiscard]] std::size_t size() const noexcept override { return size_; }

  cudaGraphExec_t exec;

 private:
  cudaGraph_t graph_;
  std::size_t size_;
  std::vector<std::unique_ptr<HostCall>> calls_;
};

class CudaStream final : public StreamImpl {
 public:
  CudaStream(Device device, cudaStream_t stream) : StreamImpl(device), stream_(stream) {}
  ~CudaStream() override {
    (void)cudaStreamSynchronize(stream_);
    (void)cudaStreamDestroy(stream_);
  }

  void run(std::string_view name, Work work) override {
    const OnDevice here(device().ordinal());
    const std::optional<unsigned long long> id = capture_id();
    auto call = std::make_unique<HostCall>(HostCall{name, std::move(work), failures_, !id.has_value()});
    if (id) {
      if (check(cudaLaunchHostFunc(stream_, call_host, call.get()), name))
        Captures::of_process().add(*id, std::move(call));
      return;
    }
    HostCall* const given = call.release();
    if (!check(cudaLaunchHostFunc(stream_, call_host, given), name)) delete given;
    behind(name);
  }
  void copy(void* to, const void* from, std::size_t bytes) override {
    if (bytes == 0) return;
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "copy");
    behind("copy");
  }
  void fill(void* to, std::byte value, std::size_t bytes) override {
    if (bytes == 0) return;
    const OnDevice here(device().ordinal());
    check(cudaMemsetAsync(to, std::to_integer<int>(value), bytes, stream_), "fill");
    behind("fill");
  }
  void record(EventImpl& event) override {
    const OnDevice here(device().ordinal());
    check(cudaEventRecord(dynamic_cast<CudaEvent&>(event).event, stream_), "recording an event");
  }
  void wait(const EventImpl& event) override {
    check(cudaStreamWaitEvent(stream_, dynamic_cast<const CudaEvent&>(event).event, 0), "waiting for an event");
  }

  [[nodiscard]] Status synchronize() override {
    const cudaError_t code = cudaStreamSynchronize(stream_);
    std::string candidates;
    for (const std::string_view name : recent_) {
      if (candidates.find(name) == std::string::npos)
        candidates += (candidates.empty() ? "" : ", ") + std::string(name);
    }
    recent_.clear();
    std::optional<Error> failed = std::exchange(failed_, std::nullopt);
    const std::optional<Error> host = failures_->take();
    if (failed) return tl::unexpected(*failed);
    if (host) return tl::unexpected(*host);
    if (code != cudaSuccess)
      return tl::unexpected(
          cuda_error(code, candidates.empty() ? std::string("a stream") : "one of the operations " + candidates));
    return {};
  }
  [[nodiscard]] bool idle() const override {
    const BesideCapture here;
    return !not_ready(cudaStreamQuery(stream_));
  }

  [[nodiscard]] bool capturing() const override { return capture_id().has_value(); }
  [[nodiscard]] Status begin_capture() override {
    if (capturing()) return make_error(ErrorCode::kInvalidArgument, "the stream is already recording a graph");
    if (const cudaError_t code = cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal); code != cudaSuccess)
      return tl::unexpected(cuda_error(code, "recording a graph"));
    recording_ = capture_id().value_or(0);
    return {};
  }
  [[nodiscard]] Result<std::unique_ptr<GraphImpl>> end_capture() override {
    const OnDevice here(device().ordinal());
    cudaGraph_t graph = nullptr;
    // The number of the beginning: a recording that was spoilt has none any more.
    Recording recording = Captures::of_process().take(recording_);
    const cudaError_t ended = cudaStreamEndCapture(stream_, &graph);
    (void)cudaGetLastError();
    if (ended != cudaSuccess) {
      Error error = cuda_error(ended, "recording a graph");
      const bool misused = ended == cudaErrorStreamCaptureUnjoined || ended == cudaErrorStreamCaptureInvalidated ||
                           ended == cudaErrorStreamCaptureIsolation || ended == cudaErrorStreamCaptureUnmatched;
      if (misused) error.code = ErrorCode::kInvalidArgument;
      return tl::unexpected(std::move(error));
    }
    if (recording.failed) {
      (void)cudaGraphDestroy(graph);
      return tl::unexpected(*recording.failed);
    }
    std::size_t nodes = 0;
    (void)cudaGraphGetNodes(graph, nullptr, &nodes);
    cudaGraphExec_t exec = nullptr;
    if (const cudaError_t code = cudaGraphInstantiate(&exec, graph, 0); code != cudaSuccess) {
      (void)cudaGraphDestroy(graph);
      return tl::unexpected(cuda_error(code, "instantiating a graph"));
    }
    return std::make_unique<CudaGraph>(graph, exec, nodes, std::move(recording.calls));
  }
  void launch(GraphImpl& graph) override {
    const OnDevice here(device().ordinal());
    check(cudaGraphLaunch(dynamic_cast<CudaGraph&>(graph).exec, stream_), "graph");
    behind("graph");
  }
  [[nodiscard]] void* native() const noexcept override { return stream_; }
  void launched(std::string_view name, int error) override {
    check(static_cast<cudaError_t>(error), name);
    behind(name);
  }
  [[nodiscard]] std::function<void(Error)> failure_sink() override {
    return [failures = failures_](Error error) { failures->add(std::move(error)); };
  }
#if DUNNOCK_HAS_NVTX
  void set_name(const std::string& name) override { nvtxNameCudaStreamA(stream_, name.c_str()); }
#endif
  void begin_range(const std::string& name) override { push_range(name.c_str()); }
  void end_range() override { pop_range(); }

 private:
  static constexpr std::size_t kRecentMax = 64;

  /// 0: of a recording that is spoilt.
  [[nodiscard]] std::optional<unsigned long long> capture_id() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    unsigned long long id = 0;
    const cudaError_t code = cudaStreamGetCaptureInfo(stream_, &status, &id);
    if (code != cudaSuccess || status == cudaStreamCaptureStatusNone) return std::nullopt;
    return status == cudaStreamCaptureStatusActive ? id : 0;
  }
  bool check(cudaError_t code, std::string_view name) {
    if (code == cudaSuccess) return true;
    (void)cudaGetLastError();  // It is reported here, and nobody else is to find it.
    Error error = operation_failed(name, cuda_error(code, device().label()));
    if (const auto id = capture_id()) {
      // Else the graph would go without the operation. A recording that is spoilt (0) fails as a whole.
      if (*id != 0) Captures::of_process().fail(*id, std::move(error));
    } else if (!failed_) {
      failed_ = std::move(error);
    }
    return false;
  }
  /// Behind an operation: its name is kept in case it fails later.
  void behind(std::string_view name) {
    static const bool each = waits_for_each_operation();
    if (each && !capturing()) {
      check(cudaStreamSynchronize(stream_), name);
      return;
    }
    if (recent_.size() == kRecentMax) recent_.pop_front();
    recent_.push_back(name);
  }

  cudaStream_t stream_;
  std::shared_ptr<Failures> failures_ = std::make_shared<Failures>();
  std::optional<Error> failed_;
  unsigned long long recording_ = 0;  // that began here
  std::deque<std::string_view> recent_;
};

class CudaDriver final : public Driver {
 public:
  CudaDriver(unsigned ordinal, const cudaDeviceProp& properties) {
    info_.backend = Backend::kCuda;
    info_.ordinal = ordinal;
    info_.name = properties.name;
    info_.memory_bytes = properties.totalGlobalMem;
    info_.processors = static_cast<unsigned>(properties.multiProcessorCount);
    info_.l2_bytes = static_cast<std::uint64_t>(properties.l2CacheSize);
    info_.compute_capability = static_cast<unsigned>(properties.major * 10 + properties.minor);
  }

  void* take(std::size_t bytes) override {
    const OnDevice here(info_.ordinal);
    void* memory = nullptr;
    if (cudaMalloc(&memory, bytes) == cudaSuccess) return memory;
    (void)cudaGetLastError();  // It is reported as NoSpace.
    return nullptr;
  }
  void give(void* segment) override {
    const OnDevice here(info_.ordinal);
    (void)cudaFree(segment);
  }
  void finish_all() override {
    const OnDevice here(info_.ordinal);
    (void)cudaDeviceSynchronize();
  }
  Result<std::unique_ptr<StreamImpl>> make_stream(Device device, const StreamOptions& options) override {
    const OnDevice here(info_.ordinal);
    int least = 0;
    int greatest = 0;
    (void)cudaDeviceGetStreamPriorityRange(&least, &greatest);
    cudaStream_t stream = nullptr;
    const int priority = options.priority > 0 ? greatest : least;
    if (const cudaError_t code = cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, priority);
        code != cudaSuccess)
      return tl::unexpected(cuda_error(code, "creating a stream"));
    return std::make_unique<CudaStream>(device, stream);
  }
  Result<std::unique_ptr<EventImpl>> make_event() override {
    const OnDevice here(info_.ordinal);
    cudaEvent_t event = nullptr;
    if (const cudaError_t code = cudaEventCreate(&event); code != cudaSuccess)
      return tl::unexpected(cuda_error(code, "creating an event"));
    return std::make_unique<CudaEvent>(event);
  }
  void* take_pinned(std::size_t bytes) override {
    const OnDevice here(info_.ordinal);
    void* memory = nullptr;
    if (cudaMallocHost(&memory, bytes == 0 ? 1 : bytes) == cudaSuccess) return memory;
    (void)cudaGetLastError();
    return nullptr;
  }
  void give_pinned(void* memory) override { (void)cudaFreeHost(memory); }
};

constexpr unsigned kDevicesMax = 64;

}  // namespace

unsigned cuda_devices(std::string& why_none) {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  (void)cudaGetLastError();
  why_none.clear();
  if (code == cudaSuccess && count > 0) return std::min(static_cast<unsigned>(count), kDevicesMax);
  why_none = code == cudaSuccess ? "there is no NVIDIA GPU" : cuda_error(code, "CUDA").message;
  return 0;
}

Result<Driver*> cuda_driver(unsigned ordinal) {
  static auto& drivers = *new std::array<std::atomic<CudaDriver*>, kDevicesMax>{};
  static auto& mutex = *new std::mutex;
  std::string why;
  const unsigned count = cuda_devices(why);
  if (count == 0) return make_error(ErrorCode::kUnsupported, why);
  if (ordinal >= count)
    return make_error(
        ErrorCode::kUnsupported,
        "cuda:" + std::to_string(ordinal) + " does not exist: the number of CUDA devices is " + std::to_string(count));
  CudaDriver* driver = drivers[ordinal].load(std::memory_order_acquire);
  if (driver != nullptr) return driver;
  const std::lock_guard lock(mutex);
  driver = drivers[ordinal].load(std::memory_order_relaxed);
  if (driver != nullptr) return driver;
  cudaDeviceProp properties{};
  if (const cudaError_t cause = cudaGetDeviceProperties(&properties, static_cast<int>(ordinal)); cause != cudaSuccess)
    return tl::unexpected(cuda_error(cause, "cuda:" + std::to_string(ordinal)));
  driver = new CudaDriver(ordinal, properties);
  drivers[ordinal].store(driver, std::memory_order_release);  // Partner: the load above.
  return driver;
}

}  // namespace dunnock::device::detail
