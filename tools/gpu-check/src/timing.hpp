// Times on a device, by its own events.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "dunnock/device/stream.hpp"

namespace dunnock::gpu_check {

/// Times what is issued on one stream. The first error of the stream is kept, and times are NaN from then on.
class Timer {
 public:
  explicit Timer(device::Stream& stream)
      : stream_(stream),
        begin_(std::move(*device::Event::create(stream.device()))),
        end_(std::move(*device::Event::create(stream.device()))) {}

  /// Milliseconds of what `issue` issues, once.
  double once_ms(const std::function<void()>& issue) {
    stream_.record(begin_);
    issue();
    stream_.record(end_);
    if (const Status done = stream_.synchronize(); !done && error_.empty()) error_ = done.error().message;
    return error_.empty() ? end_.ms_since(begin_) : std::numeric_limits<double>::quiet_NaN();
  }
  /// The median of `rounds`, after one that does not count. issue(round), from 0 on: what is bound by memory takes
  /// other buffers each time, so that no cache has them.
  double median_ms(const std::function<void(unsigned)>& issue, unsigned rounds = 11) {
    std::vector<double> times;
    for (unsigned round = 0; round <= rounds && error_.empty(); ++round) {
      const double ms = once_ms([&] { issue(round); });
      if (round != 0) times.push_back(ms);
    }
    if (!error_.empty()) return std::numeric_limits<double>::quiet_NaN();
    std::ranges::nth_element(times, times.begin() + static_cast<std::ptrdiff_t>(rounds / 2));
    return times[rounds / 2];
  }
  [[nodiscard]] const std::string& error() const noexcept { return error_; }

 private:
  device::Stream& stream_;
  device::Event begin_;
  device::Event end_;
  std::string error_;
};

/// Billions a second.
inline double giga_per_s(std::uint64_t count, double ms) { return static_cast<double>(count) / ms * 1e-6; }

}  // namespace dunnock::gpu_check
