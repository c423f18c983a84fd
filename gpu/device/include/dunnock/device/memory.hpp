// Memory of a device, and copies to and from it.
//
//   std::span<T>     host memory, any
//   Span<T>    device memory; has no operator[] and no iterators, so host code can't touch it by accident
//   Buffer<T>        owns device memory, from the device's caching allocator
//   PinnedBuffer<T>  owns host memory that a GPU can copy from and to by itself
//
// upload(), download() and device_copy() are the only ways between them, in order with the other operations of a
// stream. On the CPU backend device memory is host memory, and the rules are the same.
//
// Memory is ordered by streams: a Buffer belongs to the stream that it was made on. When it is destroyed, the next
// buffer of the same stream may get its memory at once, without waiting, because that buffer's operations come later in
// the stream. A buffer that other streams use too needs use_on() for each of them (or must outlive their work).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

#include "dunnock/base/check.hpp"
#include "dunnock/base/result.hpp"
#include "dunnock/device/stream.hpp"

namespace dunnock::device {

/// Refers to `size` values of T in a device's memory. T is trivially copyable, perhaps const.
template <class T>
class Span {
 public:
  constexpr Span() = default;
  /// `data` is memory of the stream's device (on the CPU backend: any).
  constexpr Span(T* data, std::size_t size) noexcept : data_(data), size_(size) {}
  // NOLINTNEXTLINE(google-explicit-constructor): as std::span.
  template <class U>
  requires std::is_same_v<const U, T>
  constexpr Span(Span<U> other) noexcept : data_(other.device_data()), size_(other.size()) {}

  [[nodiscard]] constexpr std::size_t size() const noexcept { return size_; }
  [[nodiscard]] constexpr std::size_t size_bytes() const noexcept { return size_ * sizeof(T); }
  [[nodiscard]] constexpr bool empty() const noexcept { return size_ == 0; }
  [[nodiscard]] constexpr Span subspan(std::size_t first, std::size_t count) const {
    DUNNOCK_CHECK(first <= size_, "a part begins within the whole");
    DUNNOCK_CHECK(count <= size_ - first, "a part ends within the whole");
    return {data_ + first, count};
  }
  /// An address for kernels. The host must not read or write there.
  [[nodiscard]] constexpr T* device_data() const noexcept { return data_; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

namespace detail {

/// What a Buffer owns, without its type.
class Allocation {
 public:
  Allocation() = default;
  [[nodiscard]] static Result<Allocation> create(std::size_t bytes, Stream& stream);
  Allocation(Allocation&& other) noexcept
      : driver_(std::exchange(other.driver_, nullptr)), block_(std::exchange(other.block_, nullptr)) {}
  Allocation& operator=(Allocation&& other) noexcept {
    std::swap(driver_, other.driver_);
    std::swap(block_, other.block_);
    return *this;
  }
  ~Allocation();
  void use_on(Stream& stream);
  [[nodiscard]] void* address() const noexcept;

 private:
  Driver* driver_ = nullptr;
  void* block_ = nullptr;
};

class PinnedAllocation {
 public:
  PinnedAllocation() = default;
  [[nodiscard]] static Result<PinnedAllocation> create(Device device, std::size_t bytes);
  PinnedAllocation(PinnedAllocation&& other) noexcept
      : driver_(std::exchange(other.driver_, nullptr)), address_(std::exchange(other.address_, nullptr)) {}
  PinnedAllocation& operator=(PinnedAllocation&& other) noexcept {
    std::swap(driver_, other.driver_);
    std::swap(address_, other.address_);
    return *this;
  }
  ~PinnedAllocation();
  [[nodiscard]] void* address() const noexcept { return address_; }

 private:
  Driver* driver_ = nullptr;
  void* address_ = nullptr;
};

void copy_bytes(void* to, const void* from, std::size_t bytes, Stream& stream);
void fill_bytes(void* to, std::byte value, std::size_t bytes, Stream& stream);

}  // namespace detail

/// Owns uninitialized memory of a device, aligned to 512 bytes. Move-only; freed in the order of its stream.
template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>, "a device copies bytes");
  static_assert(!std::is_const_v<T>);

 public:
  Buffer() = default;
  /// Allocates `size` values. Errors: NoSpace (the device's memory, or its limit, is exhausted, although kept memory
  /// has been freed), InvalidArgument (the stream records a graph).
  [[nodiscard]] static Result<Buffer> create(std::size_t size, Stream& stream) {
    if (size > SIZE_MAX / sizeof(T))
      return make_error(ErrorCode::kNoSpace,
                        "a buffer of " + std::to_string(size) + " values exceeds the address space");
    DUNNOCK_TRY(auto made, detail::Allocation::create(size * sizeof(T), stream));
    Buffer buffer;
    buffer.memory_ = std::move(made);
    buffer.size_ = size;
    return buffer;
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] Span<T> span() const noexcept { return {static_cast<T*>(memory_.address()), size_}; }
  // NOLINTBEGIN(google-explicit-constructor): a buffer is accepted where a span is expected.
  operator Span<T>() const noexcept { return span(); }
  operator Span<const T>() const noexcept { return span(); }
  // NOLINTEND(google-explicit-constructor)
  /// Keeps the memory from being reused before what was issued on `stream` is done. Call after the last use there.
  void use_on(Stream& stream) { memory_.use_on(stream); }

 private:
  detail::Allocation memory_;
  std::size_t size_ = 0;
};

/// Owns host memory that `device` accesses directly (CUDA: page-locked), so that copies do not block the host.
template <class T>
class PinnedBuffer {
  static_assert(std::is_trivially_copyable_v<T>, "a device copies bytes");

 public:
  PinnedBuffer() = default;
  /// Errors: NoSpace.
  [[nodiscard]] static Result<PinnedBuffer> create(std::size_t size, Device device) {
    if (size > SIZE_MAX / sizeof(T))
      return make_error(ErrorCode::kNoSpace,
                        "a buffer of " + std::to_string(size) + " values exceeds the address space");
    DUNNOCK_TRY(auto made, detail::PinnedAllocation::create(device, size * sizeof(T)));
    PinnedBuffer buffer;
    buffer.memory_ = std::move(made);
    buffer.size_ = size;
    return buffer;
  }
  [[nodiscard]] std::span<T> span() const noexcept { return {static_cast<T*>(memory_.address()), size_}; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  detail::PinnedAllocation memory_;
  std::size_t size_ = 0;
};

/// Copies all of `from` to `to`, of the same size, in the order of the stream. Host memory must stay as it is until the
/// stream is synchronized; the host is blocked while a GPU copies memory that is not pinned.
template <class T>
void upload(Span<T> to, std::type_identity_t<std::span<const T>> from, Stream& stream) {
  DUNNOCK_CHECK(to.size() == from.size(), "a copy is as large as what is copied");
  detail::copy_bytes(to.device_data(), from.data(), from.size_bytes(), stream);
}
template <class T>
void download(std::type_identity_t<std::span<std::remove_const_t<T>>> to, Span<T> from, Stream& stream) {
  DUNNOCK_CHECK(to.size() == from.size(), "a copy is as large as what is copied");
  detail::copy_bytes(to.data(), from.device_data(), from.size_bytes(), stream);
}
template <class T>
void device_copy(Span<T> to, std::type_identity_t<Span<const T>> from, Stream& stream) {
  DUNNOCK_CHECK(to.size() == from.size(), "a copy is as large as what is copied");
  detail::copy_bytes(to.device_data(), from.device_data(), from.size_bytes(), stream);
}
/// Sets all bytes to `value`.
template <class T>
void fill_bytes(Span<T> to, std::byte value, Stream& stream) {
  detail::fill_bytes(to.device_data(), value, to.size_bytes(), stream);
}

}  // namespace dunnock::device
