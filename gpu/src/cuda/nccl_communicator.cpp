// Ranks that are GPUs, by NCCL. Nothing waits here: when an operation takes longer than the timeout, check() aborts.
#include <cuda_runtime.h>
#include <nccl.h>

#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "communicator_impl.hpp"
#include "driver.hpp"
#include "dunnock/base/check.hpp"

namespace dunnock::gpu::detail {
namespace {

using Clock = std::chrono::steady_clock;

ncclDataType_t type_of(Element element) noexcept {
  if (element == Element::kByte) return ncclUint8;
  return element == Element::kF32 ? ncclFloat32 : ncclBfloat16;
}
ncclRedOp_t op_of(Reduction reduction) noexcept {
  if (reduction == Reduction::kMean) return ncclAvg;
  return reduction == Reduction::kSum ? ncclSum : ncclMax;
}

Error nccl_error(ncclResult_t code, std::string_view what) {
  const bool lost = code == ncclRemoteError || code == ncclSystemError || code == ncclInternalError;
  return {lost ? ErrorCode::kPeerLost : ErrorCode::kDevice, std::string(what) + ": NCCL: " + ncclGetErrorString(code)};
}

class NcclCommunicator final : public CommunicatorImpl {
 public:
  NcclCommunicator(ncclComm_t comm, Device device, unsigned rank, unsigned size, const CommunicatorOptions& options)
      : comm_(comm), device_(device), rank_(rank), size_(size), timeout_(options.timeout) {}
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;
  ~NcclCommunicator() override {
    const std::lock_guard lock(mutex_);
    if (comm_ != nullptr) (void)(failed_ ? ncclCommAbort(comm_) : ncclCommDestroy(comm_));
    if (nothing_ != nullptr) (void)cudaFree(nothing_);
  }

  [[nodiscard]] unsigned rank() const noexcept override { return rank_; }
  [[nodiscard]] unsigned size() const noexcept override { return size_; }

  void all_reduce(void* values, std::size_t count, Element element, Reduction reduction, Stream& stream) override {
    issue("all-reduce", stream, [&](cudaStream_t queue) {
      return ncclAllReduce(values, values, count, type_of(element), op_of(reduction), comm_, queue);
    });
  }
  void reduce_scatter(const void* in, void* out, std::size_t count, Element element, Reduction reduction,
                      Stream& stream) override {
    issue("reduce-scatter", stream, [&](cudaStream_t queue) {
      return ncclReduceScatter(in, out, count, type_of(element), op_of(reduction), comm_, queue);
    });
  }
  void all_gather(const void* in, void* out, std::size_t count, Element element, Stream& stream) override {
    issue("all-gather", stream,
          [&](cudaStream_t queue) { return ncclAllGather(in, out, count, type_of(element), comm_, queue); });
  }
  void broadcast(void* values, std::size_t count, Element element, unsigned root, Stream& stream) override {
    issue("broadcast", stream, [&](cudaStream_t queue) {
      return ncclBroadcast(values, values, count, type_of(element), static_cast<int>(root), comm_, queue);
    });
  }
  void send(const void* values, std::size_t count, Element element, unsigned to, Stream& stream) override {
    issue("send", stream, [&](cudaStream_t queue) {
      return ncclSend(values, count, type_of(element), static_cast<int>(to), comm_, queue);
    });
  }
  void receive(void* values, std::size_t count, Element element, unsigned from, Stream& stream) override {
    issue("receive", stream, [&](cudaStream_t queue) {
      return ncclRecv(values, count, type_of(element), static_cast<int>(from), comm_, queue);
    });
  }
  void barrier(Stream& stream) override {
    if (nothing_ == nullptr && cudaMalloc(&nothing_, sizeof(float)) != cudaSuccess) nothing_ = nullptr;
    all_reduce(nothing_, nothing_ == nullptr ? 0 : 1, Element::kF32, Reduction::kMax, stream);
  }

  [[nodiscard]] Status check() const override {
    const std::lock_guard lock(mutex_);
    if (failed_) return tl::unexpected(*failed_);
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    if (asked != ncclSuccess || (state != ncclSuccess && state != ncclInProgress)) {
      abort(nccl_error(asked != ncclSuccess ? asked : state, "a collective"));
      return tl::unexpected(*failed_);
    }
    while (!pending_.empty() && pending_.front().done.done()) pending_.pop_front();
    if (!pending_.empty() && Clock::now() - pending_.front().since > timeout_) {
      abort({ErrorCode::kPeerLost, std::string(pending_.front().name) + " was not done within " +
                                       std::to_string(timeout_.count()) + " ms: another rank is lost"});
      return tl::unexpected(*failed_);
    }
    return {};
  }

 private:
  struct Pending {
    Event done;
    Clock::time_point since;
    std::string_view name;
  };

  template <class Call>
  void issue(std::string_view name, Stream& stream, const Call& call) {
    DUNNOCK_CHECK(stream.device() == device_, "a rank has one GPU");
    const std::lock_guard lock(mutex_);
    if (failed_) return stream.run(name, [error = *failed_] { return Status(tl::unexpected(error)); });
    const ncclResult_t code = call(static_cast<cudaStream_t>(stream.impl().native()));
    if (code != ncclSuccess) {
      failed_ = nccl_error(code, name);
      return stream.run(name, [error = *failed_] { return Status(tl::unexpected(error)); });
    }
    stream.impl().launched(name);
    if (stream.capturing()) return;
    auto event = Event::create(device_);
    if (!event) return;  // It is not watched then.
    stream.record(*event);
    pending_.push_back({std::move(*event), Clock::now(), name});
    while (pending_.size() > 1 && pending_.front().done.done()) pending_.pop_front();
  }

  /// Ends what is under way on the GPU, which would wait for ever.
  void abort(Error error) const {
    failed_ = std::move(error);
    (void)ncclCommAbort(comm_);
    comm_ = nullptr;
  }

  mutable std::mutex mutex_;
  mutable ncclComm_t comm_;
  mutable std::optional<Error> failed_;
  mutable std::deque<Pending> pending_;
  Device device_;
  unsigned rank_;
  unsigned size_;
  std::chrono::milliseconds timeout_;
  void* nothing_ = nullptr;  // What a barrier reduces.
};

}  // namespace

Result<std::unique_ptr<CommunicatorImpl>> make_nccl(Device device, Communicator& others,
                                                    const CommunicatorOptions& options) {
  if (device.backend() != Backend::kCuda)
    return make_error(ErrorCode::kUnsupported, "NCCL is for GPUs, and this is " + device.label());
  // The id of rank 0 goes to the others over what they have already.
  ncclUniqueId id{};
  if (others.rank() == 0) {
    if (const ncclResult_t code = ncclGetUniqueId(&id); code != ncclSuccess)
      return tl::unexpected(nccl_error(code, "an id"));
  }
  auto stream = Stream::create(Device::cpu());
  if (!stream) return tl::unexpected(stream.error());
  std::vector<std::byte> bytes(sizeof id);
  std::memcpy(bytes.data(), &id, sizeof id);
  others.broadcast(DeviceSpan<std::byte>(bytes.data(), bytes.size()), 0, *stream);
  if (Status told = stream->synchronize(); !told) return tl::unexpected(told.error());
  std::memcpy(&id, bytes.data(), sizeof id);
  if (cudaSetDevice(static_cast<int>(device.ordinal())) != cudaSuccess)
    return make_error(ErrorCode::kDevice, device.label() + " can't be used");
  ncclComm_t comm = nullptr;
  const ncclResult_t code =
      ncclCommInitRank(&comm, static_cast<int>(others.size()), id, static_cast<int>(others.rank()));
  if (code != ncclSuccess) return tl::unexpected(nccl_error(code, "joining"));
  return std::make_unique<NcclCommunicator>(comm, device, others.rank(), others.size(), options);
}

}  // namespace dunnock::gpu::detail
