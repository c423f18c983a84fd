// Ranks that are GPUs, by NCCL. A thread watches what has been issued: an operation that has begun and is not done
// within the timeout, or an error that NCCL has noticed, aborts the communicator. Then the GPU is free again, the
// streams that had operations of it report the error at their next synchronize(), and all later operations fail. NCCL's
// calls do not block (blocking = 0), so that a rank that dies while connections are made is noticed as well.
#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <list>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "communicator_impl.hpp"
#include "cuda/on_device.hpp"
#include "driver.hpp"
#include "dunnock/base/check.hpp"

namespace dunnock::ranks::detail {
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

Error late(std::string_view what, std::chrono::milliseconds timeout) {
  return {ErrorCode::kPeerLost,
          std::string(what) + " was not done within " + std::to_string(timeout.count()) + " ms: another rank is lost"};
}

/// Waits until a call that has returned `code` is through; the host's part of it, not the GPU's.
Status settle(ncclComm_t comm, ncclResult_t code, std::string_view what, std::chrono::milliseconds timeout) {
  const auto began = Clock::now();
  while (code == ncclInProgress) {
    if (const ncclResult_t asked = ncclCommGetAsyncError(comm, &code); asked != ncclSuccess) code = asked;
    if (code != ncclInProgress) break;
    if (Clock::now() - began > timeout) return tl::unexpected(late(what, timeout));
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  if (code != ncclSuccess) return tl::unexpected(nccl_error(code, what));
  return {};
}

/// What a barrier reduces: a float. Made with the communicator: a barrier may be recorded in a graph, where no memory
/// can be taken. For cudaFree.
Result<void*> make_nothing(device::Device device) {
  void* nothing = nullptr;
  cudaError_t code = cudaMalloc(&nothing, sizeof(float));
  if (code == cudaSuccess) code = cudaMemset(nothing, 0, sizeof(float));
  if (code == cudaSuccess) return nothing;
  (void)cudaFree(nothing);
  (void)cudaGetLastError();
  return make_error(code == cudaErrorMemoryAllocation ? ErrorCode::kNoSpace : ErrorCode::kDevice,
                    device.label() + ": can't allocate memory for barriers: " + cudaGetErrorString(code));
}

class NcclCommunicator final : public CommunicatorImpl {
 public:
  /// Owns the communicator and `nothing`, a float in the device's memory.
  NcclCommunicator(ncclComm_t comm, void* nothing, device::Device device, unsigned rank, unsigned size,
                   const CommunicatorOptions& options)
      : comm_(comm),
        device_(device),
        rank_(rank),
        size_(size),
        timeout_(options.timeout),
        nothing_(nothing),
        watch_([this] { watch(); }) {}
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;
  ~NcclCommunicator() override {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    watch_.join();
    if (comm_ != nullptr) {
      const bool finished = !failed_ && settle(comm_, ncclCommFinalize(comm_), "leaving", timeout_).has_value();
      (void)(finished ? ncclCommDestroy(comm_) : ncclCommAbort(comm_));
    }
    (void)cudaFree(nothing_);
  }

  [[nodiscard]] unsigned rank() const noexcept override { return rank_; }
  [[nodiscard]] unsigned size() const noexcept override { return size_; }

  void all_reduce(void* values, std::size_t count, Element element, Reduction reduction,
                  device::Stream& stream) override {
    issue("all-reduce", stream, [&](cudaStream_t queue) {
      return ncclAllReduce(values, values, count, type_of(element), op_of(reduction), comm_, queue);
    });
  }
  void reduce_scatter(const void* in, void* out, std::size_t count, Element element, Reduction reduction,
                      device::Stream& stream) override {
    issue("reduce-scatter", stream, [&](cudaStream_t queue) {
      return ncclReduceScatter(in, out, count, type_of(element), op_of(reduction), comm_, queue);
    });
  }
  void all_gather(const void* in, void* out, std::size_t count, Element element, device::Stream& stream) override {
    issue("all-gather", stream,
          [&](cudaStream_t queue) { return ncclAllGather(in, out, count, type_of(element), comm_, queue); });
  }
  void broadcast(void* values, std::size_t count, Element element, unsigned root, device::Stream& stream) override {
    issue("broadcast", stream, [&](cudaStream_t queue) {
      return ncclBroadcast(values, values, count, type_of(element), static_cast<int>(root), comm_, queue);
    });
  }
  void send(const void* values, std::size_t count, Element element, unsigned to, device::Stream& stream) override {
    issue("send", stream, [&](cudaStream_t queue) {
      return ncclSend(values, count, type_of(element), static_cast<int>(to), comm_, queue);
    });
  }
  void receive(void* values, std::size_t count, Element element, unsigned from, device::Stream& stream) override {
    issue("receive", stream, [&](cudaStream_t queue) {
      return ncclRecv(values, count, type_of(element), static_cast<int>(from), comm_, queue);
    });
  }
  void barrier(device::Stream& stream) override { all_reduce(nothing_, 1, Element::kF32, Reduction::kMax, stream); }

  [[nodiscard]] Result<std::unique_ptr<CommunicatorImpl>> split(unsigned color, unsigned key) override {
    const device::detail::OnDevice here(device_.ordinal());
    DUNNOCK_TRY(finish_pending());
    DUNNOCK_TRY(auto nothing, make_nothing(device_));
    auto made = std::make_unique<ncclComm_t>(nullptr);
    Status split;
    {
      const std::lock_guard lock(mutex_);
      if (failed_) {
        split = tl::unexpected(*failed_);
      } else {
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
        config.blocking = 0;
        const ncclResult_t code =
            ncclCommSplit(comm_, static_cast<int>(color), static_cast<int>(key), made.get(), &config);
        split = settle(comm_, code, "split", timeout_);
        if (!split) abort(split.error());
      }
    }
    int rank = 0;
    int size = 0;
    if (split) split = settle(*made, ncclInProgress, "split", timeout_);
    for (const auto& [ask, answer] : {std::pair(&ncclCommUserRank, &rank), std::pair(&ncclCommCount, &size)}) {
      if (!split) break;
      if (const ncclResult_t code = ask(*made, answer); code != ncclSuccess)
        split = tl::unexpected(nccl_error(code, "splitting the communicator"));
    }
    if (!split) {
      (void)cudaFree(nothing);
      if (*made != nullptr) (void)ncclCommAbort(*made);
      (void)made.release();  // NCCL may still write there.
      return tl::unexpected(split.error());
    }
    return std::make_unique<NcclCommunicator>(*made, nothing, device_, static_cast<unsigned>(rank),
                                              static_cast<unsigned>(size), CommunicatorOptions{timeout_});
  }

  [[nodiscard]] std::string description() const override { return "GPUs"; }
  [[nodiscard]] Status check() const override {
    const std::lock_guard lock(mutex_);
    return look();
  }

 private:
  struct Pending {
    device::Event begun;
    device::Event done;
    std::optional<Clock::time_point>
        since;  // It was seen to have begun: what is before it in its stream may take long.
    std::string_view name;
    std::function<void(Error)> fail;
  };
  static constexpr std::chrono::milliseconds kLookEvery{50};

  void watch() {
    std::unique_lock lock(mutex_);
    while (!ending_) {
      if (pending_.empty()) {
        changed_.wait(lock);
      } else {
        changed_.wait_for(lock, std::min(kLookEvery, timeout_));
      }
      if (!ending_) (void)look();
    }
  }

  /// Under the lock.
  Status look() const {
    if (failed_) return tl::unexpected(*failed_);
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    if (asked != ncclSuccess || (state != ncclSuccess && state != ncclInProgress)) {
      abort(nccl_error(asked != ncclSuccess ? asked : state, "a collective"));
      return tl::unexpected(*failed_);
    }
    const auto now = Clock::now();
    for (auto one = pending_.begin(); one != pending_.end();) {
      if (one->done.done()) {
        one = pending_.erase(one);
        continue;
      }
      if (!one->since && one->begun.done()) one->since = now;
      if (one->since && now - *one->since > timeout_) {
        abort(late(one->name, timeout_));
        return tl::unexpected(*failed_);
      }
      ++one;
    }
    return {};
  }

  /// NCCL makes no communicator out of one that is at work: it may stop for ever.
  Status finish_pending() {
    for (;;) {
      {
        const std::lock_guard lock(mutex_);
        DUNNOCK_TRY(look());
        if (pending_.empty()) return {};
      }
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

  template <class Call>
  void issue(std::string_view name, device::Stream& stream, const Call& call) {
    DUNNOCK_CHECK(stream.device() == device_, "a rank has one GPU");
    const device::detail::OnDevice here(device_.ordinal());
    const std::lock_guard lock(mutex_);
    if (failed_) return stream.run(name, [error = *failed_] { return Status(tl::unexpected(error)); });
    const bool captured = stream.capturing();
    auto begun = device::Event::create(device_);
    auto done = device::Event::create(device_);
    const bool watched = !captured && begun && done;
    if (watched) stream.record(*begun);
    const ncclResult_t code = call(static_cast<cudaStream_t>(stream.impl().native()));
    if (Status settled = settle(comm_, code, name, timeout_); !settled) {
      abort(settled.error());
      return stream.run(name, [error = *failed_] { return Status(tl::unexpected(error)); });
    }
    stream.impl().launched(name, cudaSuccess);
    if (!watched) return;
    stream.record(*done);
    pending_.push_back({std::move(*begun), std::move(*done), std::nullopt, name, stream.impl().failure_sink()});
    changed_.notify_all();
  }

  /// Ends what is under way on the GPU, which would wait for ever.
  void abort(Error error) const {
    failed_ = std::move(error);
    for (const Pending& one : pending_) {
      if (!one.done.done()) one.fail(device::detail::operation_failed(one.name, *failed_));
    }
    pending_.clear();
    (void)ncclCommAbort(comm_);
    comm_ = nullptr;
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // There is something to watch, or nothing more.
  mutable ncclComm_t comm_;
  mutable std::optional<Error> failed_;
  mutable std::list<Pending> pending_;
  device::Device device_;
  unsigned rank_;
  unsigned size_;
  std::chrono::milliseconds timeout_;
  void* nothing_;  // What a barrier reduces: a float.
  bool ending_ = false;
  std::thread watch_;
};

}  // namespace

Result<std::unique_ptr<CommunicatorImpl>> make_nccl(device::Device device, Communicator& others,
                                                    const CommunicatorOptions& options) {
  if (device.backend() != device::Backend::kCuda)
    return make_error(ErrorCode::kUnsupported, "NCCL needs a GPU, not " + device.label());
  // The id of rank 0 goes to the others over what they have already.
  ncclUniqueId id{};
  if (others.rank() == 0) {
    if (const ncclResult_t code = ncclGetUniqueId(&id); code != ncclSuccess)
      return tl::unexpected(nccl_error(code, "creating an id"));
  }
  DUNNOCK_TRY(auto stream, device::Stream::create(device::Device::cpu()));
  std::vector<std::byte> bytes(sizeof id);
  std::memcpy(bytes.data(), &id, sizeof id);
  others.broadcast(device::Span<std::byte>(bytes.data(), bytes.size()), 0, stream);
  DUNNOCK_TRY(stream.synchronize());
  std::memcpy(&id, bytes.data(), sizeof id);
  const device::detail::OnDevice here(device.ordinal());
  DUNNOCK_TRY(auto nothing, make_nothing(device));
  ncclComm_t comm = nullptr;
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const ncclResult_t code =
      ncclCommInitRankConfig(&comm, static_cast<int>(others.size()), id, static_cast<int>(others.rank()), &config);
  if (Status joined = settle(comm, code, "joining", options.timeout); !joined) {
    if (comm != nullptr) (void)ncclCommAbort(comm);
    (void)cudaFree(nothing);
    return tl::unexpected(joined.error());
  }
  return std::make_unique<NcclCommunicator>(comm, nothing, device, others.rank(), others.size(), options);
}

}  // namespace dunnock::ranks::detail
