// Standard output, looked at: what a program could not print, it says, and its exit status too.
//
// A program's main() begins with keep_standard_descriptors() and ends with flush_standard_output().
#pragma once

#include <string_view>

#include "dunnock/base/result.hpp"

namespace dunnock {

/// Where standard input, output or error is closed, puts something in its place that refuses, or the next file that is
/// opened, a pool perhaps, would get its number and everything that is printed. For the beginning of main().
void keep_standard_descriptors() noexcept;

/// Prints; what fails is remembered for flush_standard_output().
void write_standard_output(std::string_view text) noexcept;

/// Whether everything that was printed by whatever means has arrived. For the end of main(): the program then exits
/// with a failure. Errors: NoSpace, Io, with the system's reason.
[[nodiscard]] Status flush_standard_output();

}  // namespace dunnock
