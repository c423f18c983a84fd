// A layer's temporary values, side by side in the workspace of its stream.
#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>
#include <utility>
#include <vector>

#include "dunnock/base/check.hpp"
#include "dunnock/base/result.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/elementwise.hpp"

namespace dunnock::model {

/// Bytes that this many values take, with what aligns the next ones.
template <class U>
[[nodiscard]] constexpr std::size_t room_for(std::size_t count) noexcept {
  return (count * sizeof(U) + 255) / 256 * 256;
}

class Workspace {
 public:
  explicit Workspace(device::Span<std::byte> left) : left_(left) {}

  template <class U>
  [[nodiscard]] device::Span<U> take(std::size_t count) {
    const std::size_t bytes = room_for<U>(count);
    DUNNOCK_CHECK(bytes <= left_.size(), "a layer's workspace is as large as it says");
    const device::Span<U> taken(reinterpret_cast<U*>(left_.device_data()), count);
    left_ = left_.subspan(bytes, left_.size() - bytes);
    return taken;
  }
  [[nodiscard]] device::Span<std::byte> rest() const noexcept { return left_; }

 private:
  device::Span<std::byte> left_;
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
  MadeGradient(device::Span<float> sum, bool adds, Workspace& workspace) : sum_(sum), adds_(adds) {
    if constexpr (kIsSum) {
      made_ = sum;
    } else if (!sum.empty()) {
      made_ = workspace.take<T>(sum.size());
      wide_ = workspace.take<float>(sum.size());
    }
  }
  /// For the kernel.
  [[nodiscard]] device::Span<T> target() const noexcept { return made_; }
  [[nodiscard]] bool kernel_adds() const noexcept { return kIsSum && adds_; }
  /// Call after the kernel.
  void add(device::Stream& stream) const {
    if constexpr (!kIsSum) {
      if (sum_.empty()) return;
      kernels::run(kernels::Cast<float, T>{.x = made_, .y = adds_ ? wide_ : sum_}, stream);
      if (adds_) kernels::run(kernels::AddScaled<float>{.a = sum_, .b = wide_, .factor = 1, .y = sum_}, stream);
    }
  }

 private:
  device::Span<float> sum_;
  bool adds_;
  device::Span<T> made_;
  device::Span<float> wide_;
};

/// A buffer for each slot.
template <class U>
class SlotBuffers {
 public:
  [[nodiscard]] Status reserve(unsigned slots, std::size_t size, device::Stream& stream) {
    buffers_.clear();
    for (unsigned i = 0; i < slots; ++i) {
      DUNNOCK_TRY(auto buffer, device::Buffer<U>::create(size, stream));
      buffers_.push_back(std::move(buffer));
    }
    return {};
  }
  [[nodiscard]] device::Span<U> all(unsigned slot) const { return buffers_[slot].span(); }
  [[nodiscard]] device::Span<U> get(unsigned slot, std::size_t size) const {
    return buffers_[slot].span().subspan(0, size);
  }

 private:
  std::vector<device::Buffer<U>> buffers_;
};

}  // namespace dunnock::model
