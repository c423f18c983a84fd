#include "dunnock/device/memory.hpp"

#include "driver.hpp"

namespace dunnock::device {

using detail::CachingAllocator;

namespace detail {

Result<Allocation> Allocation::create(std::size_t bytes, Stream& stream) {
  if (stream.capturing())
    return make_error(ErrorCode::kInvalidArgument, "a buffer can't be allocated while its stream is recording a graph");
  Driver& driver = stream.device().driver();
  auto block = driver.allocator().allocate(bytes, stream.impl().number());
  if (!block) return make_error(block.error().code, stream.device().label() + ": " + block.error().message);
  Allocation allocation;
  allocation.driver_ = &driver;
  allocation.block_ = *block;
  return allocation;
}

Allocation::~Allocation() {
  if (block_ != nullptr) driver_->allocator().free(static_cast<CachingAllocator::Block*>(block_));
}

void Allocation::use_on(Stream& stream) {
  if (block_ == nullptr) return;
  // What is recorded does not run now, and its event could not be asked for: the buffers of a graph stay as long as it.
  if (stream.capturing()) return;
  auto event = driver_->make_event();
  if (!event) {
    (void)stream.impl().synchronize();  // There is no room for an event: waited for here, it needs none.
    return;
  }
  stream.impl().record(**event);
  driver_->allocator().add_use(static_cast<CachingAllocator::Block*>(block_), std::move(*event));
}

void* Allocation::address() const noexcept {
  return block_ == nullptr ? nullptr : CachingAllocator::address_of(static_cast<CachingAllocator::Block*>(block_));
}

Result<PinnedAllocation> PinnedAllocation::create(Device device, std::size_t bytes) {
  void* const memory = device.driver().take_pinned(bytes);
  if (memory == nullptr)
    return make_error(ErrorCode::kNoSpace,
                      device.label() + ": can't allocate " + std::to_string(bytes) + " bytes of pinned memory");
  PinnedAllocation allocation;
  allocation.driver_ = &device.driver();
  allocation.address_ = memory;
  return allocation;
}

PinnedAllocation::~PinnedAllocation() {
  if (address_ != nullptr) driver_->give_pinned(address_);
}

void copy_bytes(void* to, const void* from, std::size_t bytes, Stream& stream) { stream.impl().copy(to, from, bytes); }
void fill_bytes(void* to, std::byte value, std::size_t bytes, Stream& stream) { stream.impl().fill(to, value, bytes); }

Error operation_failed(std::string_view name, const Error& why) {
  return {why.code, "operation '" + std::string(name) + "' failed: " + why.message};
}

}  // namespace detail
}  // namespace dunnock::device
