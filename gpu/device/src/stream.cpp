#include "dunnock/device/stream.hpp"

#include "driver.hpp"

namespace dunnock::device {

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

}  // namespace dunnock::device
