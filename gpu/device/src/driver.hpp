// The interface that a backend implements: devices, streams, events and graphs, for the classes of the public headers.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "caching_allocator.hpp"
#include "dunnock/base/result.hpp"
#include "dunnock/device/stream.hpp"

namespace dunnock::device::detail {

using Work = std::function<Status()>;

class EventImpl {
 public:
  virtual ~EventImpl() = default;
  [[nodiscard]] virtual bool done() const = 0;
  [[nodiscard]] virtual Status synchronize() const = 0;
  [[nodiscard]] virtual double ms_since(const EventImpl& start) const = 0;
};

class GraphImpl {
 public:
  virtual ~GraphImpl() = default;
  [[nodiscard]] virtual std::size_t size() const noexcept = 0;
};

class StreamImpl {
 public:
  explicit StreamImpl(Device device) noexcept : device_(device), number_(next_number_.fetch_add(1)) {}
  StreamImpl(const StreamImpl&) = delete;
  StreamImpl& operator=(const StreamImpl&) = delete;
  virtual ~StreamImpl() = default;

  [[nodiscard]] Device device() const noexcept { return device_; }
  /// No other stream of the process has it, then or later.
  [[nodiscard]] std::uint64_t number() const noexcept { return number_; }

  virtual void run(std::string_view name, Work work) = 0;
  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;
  virtual void fill(void* to, std::byte value, std::size_t bytes) = 0;
  virtual void record(EventImpl& event) = 0;
  virtual void wait(const EventImpl& event) = 0;
  [[nodiscard]] virtual Status synchronize() = 0;
  [[nodiscard]] virtual bool idle() const = 0;

  [[nodiscard]] virtual bool capturing() const = 0;
  [[nodiscard]] virtual Status begin_capture() = 0;
  [[nodiscard]] virtual Result<std::unique_ptr<GraphImpl>> end_capture() = 0;
  virtual void launch(GraphImpl& graph) = 0;

  /// A cudaStream_t, or null.
  [[nodiscard]] virtual void* native() const noexcept { return nullptr; }
  /// Called behind what was issued on native(). `error` is what that call returned (a cudaError_t; 0: it went well):
  /// not the thread's last error, which may be older, or of a library that has tried something and gone on.
  virtual void launched(std::string_view name, int error) = 0;

  /// Reports a failure of what runs on the device, as the next synchronize() does its own. For any thread, also when
  /// the stream is gone. The CPU's operations report for themselves.
  [[nodiscard]] virtual std::function<void(Error)> failure_sink() {
    return [](const Error&) {};
  }

  /// For profilers (NVTX), where the backend has one: the stream's name, and that what is issued from begin_range() to
  /// its end_range(), by this thread, is `name`. Ranges nest.
  virtual void set_name(const std::string&) {}
  virtual void begin_range(const std::string&) {}
  virtual void end_range() {}

 private:
  Device device_;
  std::uint64_t number_;
  static inline std::atomic<std::uint64_t> next_number_{CachingAllocator::kNoStream + 1};
};

/// A device. Lives as long as the process.
class Driver : public MemorySource {
 public:
  Driver() noexcept : allocator_(*this) {}
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

  [[nodiscard]] const DeviceInfo& info() const noexcept { return info_; }
  [[nodiscard]] CachingAllocator& allocator() noexcept { return allocator_; }

  [[nodiscard]] virtual Result<std::unique_ptr<StreamImpl>> make_stream(Device device,
                                                                        const StreamOptions& options) = 0;
  [[nodiscard]] virtual Result<std::unique_ptr<EventImpl>> make_event() = 0;
  [[nodiscard]] virtual void* take_pinned(std::size_t bytes) = 0;
  virtual void give_pinned(void* memory) = 0;

 protected:
  DeviceInfo info_;

 private:
  CachingAllocator allocator_;
};

/// "operation 'softmax' failed: why".
[[nodiscard]] Error operation_failed(std::string_view name, const Error& why);

/// The device `cpu:ordinal`.
[[nodiscard]] Driver& cpu_driver(unsigned ordinal);
/// Of the CUDA backend; absent from a build without it.
[[nodiscard]] unsigned cuda_devices(std::string& why_none);
[[nodiscard]] Result<Driver*> cuda_driver(unsigned ordinal);

}  // namespace dunnock::device::detail
