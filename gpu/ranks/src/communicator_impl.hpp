// What a kind of communicator implements, without types: bytes, and how to reduce them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "dunnock/ranks/communicator.hpp"

namespace dunnock::ranks::detail {

enum class Element : std::uint8_t { kByte, kF32, kBf16 };
[[nodiscard]] constexpr std::size_t bytes_of(Element element) noexcept {
  return element == Element::kByte ? 1 : element == Element::kF32 ? 4 : 2;
}

/// What a rank calls. The same on all ranks that take part in a collective, and at both ends of a message. Processes
/// send it as it is.
struct Call {
  enum class Kind : std::uint8_t { kAllReduce, kReduceScatter, kAllGather, kBroadcast, kBarrier, kSplit, kMessage };
  Kind kind = Kind::kBarrier;
  Element element = Element::kByte;
  std::uint16_t padding = 0;
  std::uint32_t detail = 0;  // The reduction, or the root of a broadcast.
  std::uint64_t count = 0;
  friend bool operator==(const Call&, const Call&) = default;
};
static_assert(sizeof(Call) == 16 && std::is_trivially_copyable_v<Call>);

/// For the names of operations: "all-reduce". A message has two: "send" and "receive".
[[nodiscard]] const char* name_of(Call::Kind kind, bool receives = false) noexcept;
/// Why `rank` can't go on with `call`: `other` has called something else. `receives`: of a message, `rank` gets it.
[[nodiscard]] Error mismatch(unsigned rank, const Call& call, unsigned other, const Call& others,
                             bool receives = false);

/// Counts are of elements. Pointers are of the stream's device.
class CommunicatorImpl {
 public:
  virtual ~CommunicatorImpl() = default;
  [[nodiscard]] virtual unsigned rank() const noexcept = 0;
  [[nodiscard]] virtual unsigned size() const noexcept = 0;
  virtual void all_reduce(void* values, std::size_t count, Element element, Reduction reduction,
                          device::Stream& stream) = 0;
  /// `count` is that of `out`.
  virtual void reduce_scatter(const void* in, void* out, std::size_t count, Element element, Reduction reduction,
                              device::Stream& stream) = 0;
  virtual void all_gather(const void* in, void* out, std::size_t count, Element element, device::Stream& stream) = 0;
  virtual void broadcast(void* values, std::size_t count, Element element, unsigned root, device::Stream& stream) = 0;
  virtual void send(const void* values, std::size_t count, Element element, unsigned to, device::Stream& stream) = 0;
  virtual void receive(void* values, std::size_t count, Element element, unsigned from, device::Stream& stream) = 0;
  virtual void barrier(device::Stream& stream) = 0;
  [[nodiscard]] virtual Result<std::unique_ptr<CommunicatorImpl>> split(unsigned color, unsigned key) = 0;
  [[nodiscard]] virtual Status check() const = 0;
  [[nodiscard]] virtual std::string description() const = 0;
};

/// What a rank gives to split().
struct Choice {
  unsigned color = 0;
  unsigned key = 0;
};
/// The ranks with the color of `rank`, in the order of their keys, and then of the ranks.
[[nodiscard]] std::vector<unsigned> group_of(std::span<const Choice> choices, unsigned rank);

/// to[i] = the reduction of from[rank][i] over the ranks, made in their order, in float, rounded once. `to` may be one
/// of `from`. Time: that of reading `from` and writing `to` where they are larger than the caches.
void reduce_all(void* to, std::span<const void* const> from, std::size_t count, Element element, Reduction reduction);

[[nodiscard]] Result<std::unique_ptr<CommunicatorImpl>> make_mpi(const CommunicatorOptions& options);
[[nodiscard]] Result<std::unique_ptr<CommunicatorImpl>> make_nccl(device::Device device, Communicator& others,
                                                                  const CommunicatorOptions& options);

}  // namespace dunnock::ranks::detail
