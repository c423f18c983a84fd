// Volatile marks: one byte for each line or group of a structure, folded to a bounded number. Writers set them; what
// the values mean is up to the structure (the filter's Stripes, the index's GroupLocks).
//
// What it is for: locks and warnings that cost readers a load and no store. What it is not for: anything durable.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>

namespace dunnock::detail {

class Marks {
 public:
  /// 2^18 bytes stay in a second-level cache; two of 64 writers meet on a mark once in 4,096 operations.
  static constexpr std::uint64_t kMax = 1ULL << 18;

  Marks() = default;
  /// At least this many.
  explicit Marks(std::uint64_t count)
      : mask_(std::bit_ceil(count) - 1), values_(std::make_unique<std::atomic<std::uint8_t>[]>(mask_ + 1)) {}

  /// The mark of a line or group; that many neighbors have different ones, in their order.
  [[nodiscard]] std::uint64_t of(std::uint64_t number) const noexcept { return number & mask_; }
  [[nodiscard]] std::uint64_t count() const noexcept { return mask_ + 1; }
  void release(std::uint64_t mark) const noexcept { values_[mark].store(0, std::memory_order_release); }

 protected:
  [[nodiscard]] std::atomic<std::uint8_t>& value(std::uint64_t mark) const noexcept { return values_[mark]; }

 private:
  std::uint64_t mask_ = 0;
  std::unique_ptr<std::atomic<std::uint8_t>[]> values_;
};

}  // namespace dunnock::detail
