// DUNNOCK_CHECK: an assertion that stays on in release builds.
//
// For programmer errors and for both sides of the durable boundary (before writing, after reading). Where the
// outside world can fail, return a Result instead.
#pragma once

namespace dunnock::detail {
[[noreturn]] void check_failed(const char* condition, const char* why, const char* file, int line) noexcept;
}  // namespace dunnock::detail

/// Stops the process with the condition, the reason and the place on stderr when `condition` is false.
#define DUNNOCK_CHECK(condition, why)                                               \
  (__builtin_expect(static_cast<bool>(condition), 1)                                \
       ? static_cast<void>(0)                                                       \
       : ::dunnock::detail::check_failed(#condition, why, __FILE__, __LINE__))
