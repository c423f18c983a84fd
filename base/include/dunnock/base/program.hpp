// The frame of a program: standard streams that are checked, and no exception that leaves main().
#pragma once

#include <functional>
#include <string_view>

namespace dunnock {

/// Runs a program and returns its exit status. A whole main() is
///
///     return run_program("dunnock", kFailed, [&] { return run(argc, argv); });
///
/// It begins with keep_standard_descriptors(). An exception that leaves `run`, and an output that
/// flush_standard_output() finds incomplete, are reported on standard error after `name`. The status is then `failed`
/// (for an incomplete output only where `run` returned 0).
[[nodiscard]] int run_program(std::string_view name, int failed, const std::function<int()>& run) noexcept;

}  // namespace dunnock
