// Device: where memory is and streams run: the host's processors, which always exist, or an NVIDIA GPU.
//
//   Device  --creates-->  Stream   operations in order (stream.hpp)
//           --creates-->  Event    a point in a stream that others wait for
//           --has------>  a caching allocator, from which Buffer takes its memory (memory.hpp)
//
// A program written against these runs on both: the CPU backend's streams are threads, so what would be a race or a
// missed wait on a GPU is one there too, and ThreadSanitizer sees it.
//
// Not for: choosing a device for the caller, or moving data without the caller's request.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "dunnock/base/result.hpp"

namespace dunnock::device {

namespace detail {
class Driver;
}

enum class Backend : std::uint8_t { kCpu, kCuda };

struct DeviceInfo {
  Backend backend = Backend::kCpu;
  unsigned ordinal = 0;
  std::string name;                 ///< E.g. "NVIDIA H200", or "cpu".
  std::uint64_t memory_bytes = 0;   ///< Memory of the device.
  unsigned processors = 0;          ///< Multiprocessors, or hardware threads.
  std::uint64_t l2_bytes = 0;       ///< 0: unknown.
  unsigned compute_capability = 0;  ///< 90 for 9.0. 0 for the CPU.
};

/// Statistics of one device since it was first used. Bytes are those that buffers asked for, rounded up to 512.
struct MemoryStats {
  std::uint64_t used_bytes = 0;       ///< In buffers.
  std::uint64_t used_bytes_peak = 0;  ///< Maximum of used_bytes, ever or since reset_memory_peak().
  std::uint64_t held_bytes = 0;       ///< Taken from the device, in use or kept for later.
  std::uint64_t allocations = 0;      ///< Number of buffers made.
  std::uint64_t hits = 0;             ///< Those of them that needed no allocation from the device.
  std::uint64_t device_allocations = 0;
  std::uint64_t releases = 0;  ///< How often all kept memory had to be freed to make room.
};

/// A handle to a device; copies refer to the same one, which lives as long as the process.
/// Threads: any number of threads may call all functions.
class Device {
 public:
  /// The host's processors. Devices of other ordinals share the processors, but have their own streams and memory
  /// counts, so code for many devices can run on them. `ordinal` < kCpuDevicesMax.
  [[nodiscard]] static Device cpu(unsigned ordinal = 0);
  static constexpr unsigned kCpuDevicesMax = 64;
  /// A GPU. Errors: Unsupported, with the reason: built without CUDA, no driver, no such device.
  [[nodiscard]] static Result<Device> cuda(unsigned ordinal = 0);
  /// How many GPUs can be used; 0 if there is no driver, or no CUDA in this build.
  [[nodiscard]] static unsigned cuda_count();
  /// Why there is no GPU, in words; empty if there is one.
  [[nodiscard]] static std::string why_no_cuda();

  [[nodiscard]] const DeviceInfo& info() const noexcept;
  [[nodiscard]] Backend backend() const noexcept { return info().backend; }
  [[nodiscard]] unsigned ordinal() const noexcept { return info().ordinal; }
  /// "cpu:0", "cuda:1".
  [[nodiscard]] std::string label() const;

  [[nodiscard]] MemoryStats memory_stats() const;
  void reset_memory_peak();
  /// Limits the buffers of this device to `bytes` in total; NoSpace beyond that. Default: only the device's own limit.
  void set_memory_limit(std::uint64_t bytes);
  /// Returns memory that the allocator keeps for later to the device. Waits for work that may still use it.
  void release_kept_memory();

  friend bool operator==(Device a, Device b) noexcept { return a.driver_ == b.driver_; }
  [[nodiscard]] detail::Driver& driver() const noexcept { return *driver_; }  ///< Only for the gpu layer itself.

 private:
  explicit Device(detail::Driver& driver) noexcept : driver_(&driver) {}
  detail::Driver* driver_;
};

}  // namespace dunnock::device
