// A layer's temporary values, side by side in the workspace of its stream.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "dunnock/base/check.hpp"
#include "dunnock/base/result.hpp"
#include "dunnock/gpu/memory.hpp"

namespace dunnock::training {

/// Bytes that so many values take, with what aligns the next ones.
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

/// A buffer for each slot.
template <class U>
class SlotBuffers {
 public:
  [[nodiscard]] Status reserve(unsigned slots, std::size_t size, gpu::Stream& stream) {
    buffers_.clear();
    for (unsigned i = 0; i < slots; ++i) {
      auto buffer = gpu::Buffer<U>::create(size, stream);
      if (!buffer) return tl::unexpected(buffer.error());
      buffers_.push_back(std::move(*buffer));
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
