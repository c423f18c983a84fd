#include "dunnock/ranks/communicator.hpp"

#include <algorithm>
#include <array>
#include <climits>
#include <functional>
#include <span>
#include <string>
#include <utility>

#include "communicator_impl.hpp"
#include "thread_communicator.hpp"

namespace dunnock::ranks {
namespace {

template <class T>
constexpr detail::Element element_of() noexcept {
  if constexpr (std::is_same_v<T, float>) return detail::Element::kF32;
  if constexpr (std::is_same_v<T, device::Bf16>) return detail::Element::kBf16;
  return detail::Element::kByte;
}

/// `part` is part `rank` of `whole`, or no byte of it.
bool is_apart_or_part(device::Span<const std::byte> part, device::Span<const std::byte> whole, unsigned rank) noexcept {
  const std::byte* const first = part.device_data();
  const std::byte* const all = whole.device_data();
  if (part.empty() || first == all + rank * part.size()) return true;
  const std::less<> before;  // Of pointers into different memory.
  return !before(all, first + part.size()) || !before(first, all + whole.size());
}
template <class T, class U>
bool is_apart_or_part(device::Span<T> part, device::Span<U> whole, unsigned rank) noexcept {
  const auto bytes = [](auto span) {
    return device::Span<const std::byte>(reinterpret_cast<const std::byte*>(span.device_data()), span.size_bytes());
  };
  return is_apart_or_part(bytes(part), bytes(whole), rank);
}

}  // namespace

Communicator::Communicator(std::unique_ptr<detail::CommunicatorImpl> impl) noexcept : impl_(std::move(impl)) {}
Communicator::Communicator(Communicator&&) noexcept = default;
Communicator& Communicator::operator=(Communicator&&) noexcept = default;
Communicator::~Communicator() = default;

Result<std::vector<Communicator>> Communicator::threads(unsigned ranks, const CommunicatorOptions& options) {
  if (ranks == 0) return make_error(ErrorCode::kInvalidArgument, "a job needs at least one rank");
  std::vector<Communicator> ends;
  for (auto& impl : detail::make_threads(ranks, options)) ends.push_back(Communicator(std::move(impl)));
  return ends;
}

Result<Communicator> Communicator::mpi(const CommunicatorOptions& options) {
  DUNNOCK_TRY(auto impl, detail::make_mpi(options));
  return Communicator(std::move(impl));
}

Result<Communicator> Communicator::nccl(device::Device device, Communicator& others,
                                        const CommunicatorOptions& options) {
  DUNNOCK_TRY(auto impl, detail::make_nccl(device, others, options));
  return Communicator(std::move(impl));
}

Result<Communicator> Communicator::split(unsigned color, unsigned key) {
  DUNNOCK_CHECK(color <= INT_MAX, "a color is below 2^31");
  DUNNOCK_CHECK(key <= INT_MAX, "a key is below 2^31");
  DUNNOCK_TRY(auto impl, impl_->split(color, key));
  return Communicator(std::move(impl));
}

unsigned Communicator::rank() const noexcept { return impl_->rank(); }
unsigned Communicator::size() const noexcept { return impl_->size(); }
Status Communicator::check() const { return impl_->check(); }
std::string Communicator::description() const { return impl_->description(); }
void Communicator::barrier(device::Stream& stream) { impl_->barrier(stream); }

template <class T>
void Communicator::all_reduce(device::Span<T> values, Reduction reduction, device::Stream& stream) {
  impl_->all_reduce(values.device_data(), values.size(), element_of<T>(), reduction, stream);
}
template <class T>
void Communicator::reduce_scatter(device::Span<const T> in, device::Span<T> out, Reduction reduction,
                                  device::Stream& stream) {
  DUNNOCK_CHECK(in.size() == out.size() * size(), "each rank gets a part of the same size");
  DUNNOCK_CHECK(is_apart_or_part(out, in, rank()),
                "the output does not overlap the input except in the rank's own part");
  impl_->reduce_scatter(in.device_data(), out.device_data(), out.size(), element_of<T>(), reduction, stream);
}
template <class T>
void Communicator::all_gather(device::Span<const T> in, device::Span<T> out, device::Stream& stream) {
  DUNNOCK_CHECK(out.size() == in.size() * size(), "there is room for the values of all ranks");
  DUNNOCK_CHECK(is_apart_or_part(in, out, rank()),
                "the output does not overlap the input except in the rank's own part");
  impl_->all_gather(in.device_data(), out.device_data(), in.size(), element_of<T>(), stream);
}
template <class T>
void Communicator::broadcast(device::Span<T> values, unsigned root, device::Stream& stream) {
  DUNNOCK_CHECK(root < size(), "the root is a rank of the group");
  impl_->broadcast(values.device_data(), values.size(), element_of<T>(), root, stream);
}
template <class T>
void Communicator::send(device::Span<const T> values, unsigned to, device::Stream& stream) {
  DUNNOCK_CHECK(to < size(), "a message goes to a rank of the group");
  DUNNOCK_CHECK(to != rank(), "a message goes to another rank");
  impl_->send(values.device_data(), values.size(), element_of<T>(), to, stream);
}
template <class T>
void Communicator::receive(device::Span<T> values, unsigned from, device::Stream& stream) {
  DUNNOCK_CHECK(from < size(), "a message comes from a rank of the group");
  DUNNOCK_CHECK(from != rank(), "a message comes from another rank");
  impl_->receive(values.device_data(), values.size(), element_of<T>(), from, stream);
}

template void Communicator::all_reduce(device::Span<float>, Reduction, device::Stream&);
template void Communicator::all_reduce(device::Span<device::Bf16>, Reduction, device::Stream&);
template void Communicator::reduce_scatter(device::Span<const float>, device::Span<float>, Reduction, device::Stream&);
template void Communicator::reduce_scatter(device::Span<const device::Bf16>, device::Span<device::Bf16>, Reduction,
                                           device::Stream&);
template void Communicator::all_gather(device::Span<const float>, device::Span<float>, device::Stream&);
template void Communicator::all_gather(device::Span<const device::Bf16>, device::Span<device::Bf16>, device::Stream&);
template void Communicator::all_gather(device::Span<const std::byte>, device::Span<std::byte>, device::Stream&);
template void Communicator::broadcast(device::Span<float>, unsigned, device::Stream&);
template void Communicator::broadcast(device::Span<device::Bf16>, unsigned, device::Stream&);
template void Communicator::broadcast(device::Span<std::byte>, unsigned, device::Stream&);
template void Communicator::send(device::Span<const float>, unsigned, device::Stream&);
template void Communicator::send(device::Span<const device::Bf16>, unsigned, device::Stream&);
template void Communicator::send(device::Span<const std::byte>, unsigned, device::Stream&);
template void Communicator::receive(device::Span<float>, unsigned, device::Stream&);
template void Communicator::receive(device::Span<device::Bf16>, unsigned, device::Stream&);
template void Communicator::receive(device::Span<std::byte>, unsigned, device::Stream&);

namespace detail {
namespace {

constexpr std::size_t kBlock = 2048;  // Sums of a block lie in the first cache, so that each byte is read once.

template <class T, class Combine>
void reduce_typed(T* to, std::span<const void* const> from, std::size_t count, float scale, const Combine& combine) {
  const auto values = [from](std::size_t rank) { return static_cast<const T*>(from[rank]); };
  alignas(64) std::array<float, kBlock> sum;
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    const std::size_t many = std::min(kBlock, count - begin);
    const T* const first = values(0) + begin;
    if (from.size() == 1) {
      for (std::size_t i = 0; i < many; ++i) sum[i] = static_cast<float>(first[i]);
    } else {
      const T* const second = values(1) + begin;
      for (std::size_t i = 0; i < many; ++i)
        sum[i] = combine(static_cast<float>(first[i]), static_cast<float>(second[i]));
    }
    for (std::size_t rank = 2; rank < from.size(); ++rank) {
      const T* const next = values(rank) + begin;
      for (std::size_t i = 0; i < many; ++i) sum[i] = combine(sum[i], static_cast<float>(next[i]));
    }
    T* const into = to + begin;
    if (scale == 1.0F) {
      for (std::size_t i = 0; i < many; ++i) into[i] = T(sum[i]);
    } else {
      for (std::size_t i = 0; i < many; ++i) into[i] = T(sum[i] * scale);
    }
  }
}

template <class T>
void reduce_values(void* to, std::span<const void* const> from, std::size_t count, Reduction reduction) {
  const float scale = reduction == Reduction::kMean ? 1.0F / static_cast<float>(from.size()) : 1.0F;
  if (reduction == Reduction::kMax)
    return reduce_typed(static_cast<T*>(to), from, count, scale, [](float a, float b) { return a < b ? b : a; });
  reduce_typed(static_cast<T*>(to), from, count, scale, [](float a, float b) { return a + b; });
}

std::string text_of(const Call& call, bool receives) {
  std::string text = name_of(call.kind, receives);
  if (call.kind == Call::Kind::kBarrier || call.kind == Call::Kind::kSplit) return text;
  text += " of " + std::to_string(call.count);
  text += call.element == Element::kByte ? " bytes" : call.element == Element::kF32 ? " f32 values" : " bf16 values";
  constexpr std::array<const char*, 3> kReductions = {" (sum)", " (max)", " (mean)"};
  if (call.kind == Call::Kind::kBroadcast) text += " from rank " + std::to_string(call.detail);
  if (call.kind == Call::Kind::kAllReduce || call.kind == Call::Kind::kReduceScatter)
    text += call.detail < kReductions.size() ? kReductions[call.detail] : "";
  return text;
}

}  // namespace

const char* name_of(Call::Kind kind, bool receives) noexcept {
  switch (kind) {
    case Call::Kind::kAllReduce: return "all-reduce";
    case Call::Kind::kReduceScatter: return "reduce-scatter";
    case Call::Kind::kAllGather: return "all-gather";
    case Call::Kind::kBroadcast: return "broadcast";
    case Call::Kind::kBarrier: return "barrier";
    case Call::Kind::kSplit: return "split";
    case Call::Kind::kMessage: return receives ? "receive" : "send";
  }
  return "an unknown operation";
}

Error mismatch(unsigned rank, const Call& call, unsigned other, const Call& others, bool receives) {
  return {ErrorCode::kInvalidArgument, "rank " + std::to_string(rank) + " calls " + text_of(call, receives) +
                                           " where rank " + std::to_string(other) + " calls " +
                                           text_of(others, !receives)};
}

std::vector<unsigned> group_of(std::span<const Choice> choices, unsigned rank) {
  std::vector<unsigned> members;
  for (unsigned other = 0; other < choices.size(); ++other) {
    if (choices[other].color == choices[rank].color) members.push_back(other);
  }
  std::ranges::stable_sort(members, {}, [choices](unsigned member) { return choices[member].key; });
  return members;
}

void reduce_all(void* to, std::span<const void* const> from, std::size_t count, Element element, Reduction reduction) {
  DUNNOCK_CHECK(element != Element::kByte, "only numbers can be reduced");
  if (element == Element::kF32) return reduce_values<float>(to, from, count, reduction);
  reduce_values<device::Bf16>(to, from, count, reduction);
}

}  // namespace detail
}  // namespace dunnock::ranks
