#include "dunnock/gpu/device.hpp"

#include "driver.hpp"
#include "dunnock/gpu/graph.hpp"
#include "dunnock/gpu/memory.hpp"

namespace dunnock::gpu {

using detail::CachingAllocator;

// ----- Device ----------------------------------------------------------------------------------------------------

Device Device::cpu(unsigned ordinal) { return Device(detail::cpu_driver(ordinal)); }

Result<Device> Device::cuda(unsigned ordinal) {
  DUNNOCK_TRY(auto driver, detail::cuda_driver(ordinal));
  return Device(*driver);
}

unsigned Device::cuda_count() {
  std::string why;
  return detail::cuda_devices(why);
}

std::string Device::why_no_cuda() {
  std::string why;
  (void)detail::cuda_devices(why);
  return why;
}

const DeviceInfo& Device::info() const noexcept { return driver_->info(); }
std::string Device::label() const {
  return (backend() == Backend::kCpu ? "cpu:" : "cuda:") + std::to_string(ordinal());
}
MemoryStats Device::memory_stats() const { return driver_->allocator().stats(); }
void Device::reset_memory_peak() { driver_->allocator().reset_peak(); }
void Device::set_memory_limit(std::uint64_t bytes) { driver_->allocator().set_limit(bytes); }
void Device::release_kept_memory() { driver_->allocator().release_kept(); }

// ----- Event -----------------------------------------------------------------------------------------------------

Result<Event> Event::create(Device device) {
  DUNNOCK_TRY(auto impl, device.driver().make_event());
  return Event(std::move(impl));
}
Event::Event(std::unique_ptr<detail::EventImpl> impl) noexcept : impl_(std::move(impl)) {}
Event::Event(Event&&) noexcept = default;
Event& Event::operator=(Event&&) noexcept = default;
Event::~Event() = default;
bool Event::done() const { return impl_->done(); }
Status Event::synchronize() const { return impl_->synchronize(); }
double Event::ms_since(const Event& start) const { return impl_->ms_since(*start.impl_); }

// ----- Stream ----------------------------------------------------------------------------------------------------

namespace {
void end_stream(std::unique_ptr<detail::StreamImpl>& impl) {
  if (!impl) return;
  const Device device = impl->device();
  const std::uint64_t number = impl->number();
  impl.reset();  // Waits for its operations.
  device.driver().allocator().forget_stream(number);
}
}  // namespace

Result<Stream> Stream::create(Device device, const StreamOptions& options) {
  DUNNOCK_TRY(auto impl, device.driver().make_stream(device, options));
  return Stream(std::move(impl));
}
Stream::Stream(std::unique_ptr<detail::StreamImpl> impl) noexcept : impl_(std::move(impl)) {}
Stream::Stream(Stream&&) noexcept = default;
Stream& Stream::operator=(Stream&& other) noexcept {
  if (this == &other) return *this;
  end_stream(impl_);
  impl_ = std::move(other.impl_);
  return *this;
}
Stream::~Stream() { end_stream(impl_); }
Device Stream::device() const noexcept { return impl_->device(); }
void Stream::run(std::string_view name, std::function<Status()> work) { impl_->run(name, std::move(work)); }
void Stream::record(Event& event) { impl_->record(event.impl()); }
void Stream::wait(const Event& event) { impl_->wait(event.impl()); }
Status Stream::synchronize() { return impl_->synchronize(); }
bool Stream::idle() const { return impl_->idle(); }
void* Stream::native() const noexcept { return impl_->native(); }
bool Stream::capturing() const { return impl_->capturing(); }

// ----- Graph -----------------------------------------------------------------------------------------------------

Result<Graph> Graph::capture(Stream& stream, const std::function<void()>& issue) {
  DUNNOCK_TRY(stream.impl().begin_capture());
  issue();
  DUNNOCK_TRY(auto impl, stream.impl().end_capture());
  return Graph(std::move(impl));
}
Graph::Graph(std::unique_ptr<detail::GraphImpl> impl) noexcept : impl_(std::move(impl)) {}
Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;
Graph::~Graph() = default;
void Graph::launch(Stream& stream) { stream.impl().launch(*impl_); }
std::size_t Graph::size() const noexcept { return impl_->size(); }

// ----- memory ----------------------------------------------------------------------------------------------------

namespace detail {

Result<Allocation> Allocation::create(std::size_t bytes, Stream& stream) {
  if (stream.capturing())
    return make_error(ErrorCode::kInvalidArgument, "a buffer can't be made while its stream records a graph");
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
                      device.label() + ": no " + std::to_string(bytes) + " bytes of pinned memory");
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
}  // namespace dunnock::gpu
