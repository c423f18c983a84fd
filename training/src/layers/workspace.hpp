// A layer's temporary values, side by side in the workspace of its stream.
#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>
#include <utility>
#include <vector>

#include "dunnock/base/check.hpp"
#include "dunnock/base/result.hpp"
#include "dunnock/gpu/kernels/elementwise.hpp"
#include "dunnock/gpu/memory.hpp"

namespace dunnock::training {

/// Bytes that this many values take, with what aligns the next ones.
template <class U>
[[nodiscard]] constexpr std::size_t room_for(std::size_t count) noexcept {
  return (count * sizeof(U) + 255) / 256 * 256;
}

class Workspace {
 public:
  explicit Workspace(gpu::DeviceSpan<std::byte> left) : left_(left) {}

  template <class U>
  [[nodiscard]] gpu::DeviceSpan<U> take(std::size_t count) {
    const std::size_t bytes = room_for<U>(count);
    DUNNOCK_CHECK(bytes <= left_.size(), "a layer's workspace is as large as it says");
    const gpu::DeviceSpan<U> taken(reinterpret_cast<U*>(left_.device_data()), count);
    left_ = left_.subspan(bytes, left_.size() - bytes);
    return taken;
  }
  [[nodiscard]] gpu::DeviceSpan<std::byte> rest() const noexcept { return left_; }

 private:
  gpu::DeviceSpan<std::byte> left_;
};

/// The gradient of a weight, as a kernel makes it that knows no sums in f32: in T and in the workspace, from where
/// add() brings it to the sum. Where T is float, the kernel works on the sum itself, and this is nothing.
template <class T>
class MadeGradient {
 public:
  static constexpr bool kIsSum = std::is_same_v<T, float>;

  [[nodiscard]] static constexpr std::size_t room(std::size_t count) noexcept {
    return kIsSum ? 0 : room_for<T>(count) + room_for<float>(count);
  }
  /// `adds`: to what is in the sum. An empty sum is no gradient.
  MadeGradient(gpu::DeviceSpan<float> sum, bool adds, Workspace& workspace) : sum_(sum), adds_(adds) {
    if constexpr (kIsSum) {
      made_ = sum;
    } else if (!sum.empty()) {
      made_ = workspace.take<T>(sum.size());
      wide_ = workspace.take<float>(sum.size());
    }
  }
  /// For the kernel.
  [[nodiscard]] gpu::DeviceSpan<T> target() const noexcept { return made_; }
  [[nodiscard]] bool kernel_adds() const noexcept { return kIsSum && adds_; }
  /// Call after the kernel.
  void add(gpu::Stream& stream) const {
    if constexpr (!kIsSum) {
      if (sum_.empty()) return;
      gpu::cast<float, T>(made_, adds_ ? wide_ : sum_, stream);
      if (adds_) gpu::add_scaled<float>(sum_, wide_, 1, sum_, stream);
    }
  }

 private:
  gpu::DeviceSpan<float> sum_;
  bool adds_;
  gpu::DeviceSpan<T> made_;
  gpu::DeviceSpan<float> wide_;
};

/// A buffer for each slot.
template <class U>
class SlotBuffers {
 public:
  [[nodiscard]] Status reserve(unsigned slots, std::size_t size, gpu::Stream& stream) {
    buffers_.clear();
    for (unsigned i = 0; i < slots; ++i) {
      DUNNOCK_TRY(auto buffer, gpu::Buffer<U>::create(size, stream));
      buffers_.push_back(std::move(buffer));
    }
    return {};
  }
  [[nodiscard]] gpu::DeviceSpan<U> all(unsigned slot) const { return buffers_[slot].span(); }
  [[nodiscard]] gpu::DeviceSpan<U> get(unsigned slot, std::size_t size) const {
    return buffers_[slot].span().subspan(0, size);
  }

 private:
  std::vector<gpu::Buffer<U>> buffers_;
};

}  // namespace dunnock::training
