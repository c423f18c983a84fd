#include "dunnock/gpu/communicator.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "communicator_impl.hpp"
#include "thread_communicator.hpp"

namespace dunnock::gpu {
namespace {

template <class T>
constexpr detail::Element element_of() noexcept {
  if constexpr (std::is_same_v<T, float>) return detail::Element::kF32;
  if constexpr (std::is_same_v<T, Bf16>) return detail::Element::kBf16;
  return detail::Element::kByte;
}

}  // namespace

Communicator::Communicator(std::unique_ptr<detail::CommunicatorImpl> impl) noexcept : impl_(std::move(impl)) {}
Communicator::Communicator(Communicator&&) noexcept = default;
Communicator& Communicator::operator=(Communicator&&) noexcept = default;
Communicator::~Communicator() = default;

Result<std::vector<Communicator>> Communicator::threads(unsigned ranks, const CommunicatorOptions& options) {
  if (ranks == 0) return make_error(ErrorCode::kInvalidArgument, "a job has at least one rank");
  std::vector<Communicator> ends;
  for (auto& impl : detail::make_threads(ranks, options)) ends.push_back(Communicator(std::move(impl)));
  return ends;
}

Result<Communicator> Communicator::mpi(const CommunicatorOptions& options) {
  auto impl = detail::make_mpi(options);
  if (!impl) return tl::unexpected(impl.error());
  return Communicator(std::move(*impl));
}

Result<Communicator> Communicator::nccl(Device device, Communicator& others, const CommunicatorOptions& options) {
  auto impl = detail::make_nccl(device, others, options);
  if (!impl) return tl::unexpected(impl.error());
  return Communicator(std::move(*impl));
}

unsigned Communicator::rank() const noexcept { return impl_->rank(); }
unsigned Communicator::size() const noexcept { return impl_->size(); }
Status Communicator::check() const { return impl_->check(); }
void Communicator::barrier(Stream& stream) { impl_->barrier(stream); }

template <class T>
void Communicator::all_reduce(DeviceSpan<T> values, Reduction reduction, Stream& stream) {
  impl_->all_reduce(values.device_data(), values.size(), element_of<T>(), reduction, stream);
}
template <class T>
void Communicator::reduce_scatter(DeviceSpan<const T> in, DeviceSpan<T> out, Reduction reduction, Stream& stream) {
  DUNNOCK_CHECK(in.size() == out.size() * size(), "each rank gets a part of the same size");
  impl_->reduce_scatter(in.device_data(), out.device_data(), out.size(), element_of<T>(), reduction, stream);
}
template <class T>
void Communicator::all_gather(DeviceSpan<const T> in, DeviceSpan<T> out, Stream& stream) {
  DUNNOCK_CHECK(out.size() == in.size() * size(), "there is room for the values of all ranks");
  impl_->all_gather(in.device_data(), out.device_data(), in.size(), element_of<T>(), stream);
}
template <class T>
void Communicator::broadcast(DeviceSpan<T> values, unsigned root, Stream& stream) {
  DUNNOCK_CHECK(root < size(), "the root is a rank");
  impl_->broadcast(values.device_data(), values.size(), element_of<T>(), root, stream);
}
template <class T>
void Communicator::send(DeviceSpan<const T> values, unsigned to, Stream& stream) {
  DUNNOCK_CHECK(to < size(), "a message goes to a rank");
  DUNNOCK_CHECK(to != rank(), "a message goes to another rank");
  impl_->send(values.device_data(), values.size(), element_of<T>(), to, stream);
}
template <class T>
void Communicator::receive(DeviceSpan<T> values, unsigned from, Stream& stream) {
  DUNNOCK_CHECK(from < size(), "a message comes from a rank");
  DUNNOCK_CHECK(from != rank(), "a message comes from another rank");
  impl_->receive(values.device_data(), values.size(), element_of<T>(), from, stream);
}

template void Communicator::all_reduce(DeviceSpan<float>, Reduction, Stream&);
template void Communicator::all_reduce(DeviceSpan<Bf16>, Reduction, Stream&);
template void Communicator::reduce_scatter(DeviceSpan<const float>, DeviceSpan<float>, Reduction, Stream&);
template void Communicator::reduce_scatter(DeviceSpan<const Bf16>, DeviceSpan<Bf16>, Reduction, Stream&);
template void Communicator::all_gather(DeviceSpan<const float>, DeviceSpan<float>, Stream&);
template void Communicator::all_gather(DeviceSpan<const Bf16>, DeviceSpan<Bf16>, Stream&);
template void Communicator::all_gather(DeviceSpan<const std::byte>, DeviceSpan<std::byte>, Stream&);
template void Communicator::broadcast(DeviceSpan<float>, unsigned, Stream&);
template void Communicator::broadcast(DeviceSpan<Bf16>, unsigned, Stream&);
template void Communicator::broadcast(DeviceSpan<std::byte>, unsigned, Stream&);
template void Communicator::send(DeviceSpan<const float>, unsigned, Stream&);
template void Communicator::send(DeviceSpan<const Bf16>, unsigned, Stream&);
template void Communicator::send(DeviceSpan<const std::byte>, unsigned, Stream&);
template void Communicator::receive(DeviceSpan<float>, unsigned, Stream&);
template void Communicator::receive(DeviceSpan<Bf16>, unsigned, Stream&);
template void Communicator::receive(DeviceSpan<std::byte>, unsigned, Stream&);

namespace detail {
namespace {

template <class T>
void reduce_typed(T* into, const T* from, std::size_t count, Reduction reduction) noexcept {
  if (reduction == Reduction::kSum) {
    for (std::size_t i = 0; i < count; ++i) into[i] = T(static_cast<float>(into[i]) + static_cast<float>(from[i]));
  } else {
    for (std::size_t i = 0; i < count; ++i)
      into[i] = T(std::max(static_cast<float>(into[i]), static_cast<float>(from[i])));
  }
}

}  // namespace

void reduce_into(void* into, const void* from, std::size_t count, Element element, Reduction reduction) noexcept {
  DUNNOCK_CHECK(element != Element::kByte, "numbers are reduced");
  if (element == Element::kF32)
    return reduce_typed(static_cast<float*>(into), static_cast<const float*>(from), count, reduction);
  reduce_typed(static_cast<Bf16*>(into), static_cast<const Bf16*>(from), count, reduction);
}

}  // namespace detail
}  // namespace dunnock::gpu
