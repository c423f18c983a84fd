// Checked standard output: a program reports what it could not print, in words and in its exit status.
//
// run_program() (program.hpp) begins with keep_standard_descriptors() and ends with flush_standard_output().
#pragma once

#include <string_view>

#include "dunnock/base/result.hpp"

namespace dunnock {

/// Replaces a closed standard input, output or error with a descriptor that refuses I/O. Otherwise the next file to be
/// opened, perhaps a pool, would get its number and everything that is printed. Call at the beginning of main().
void keep_standard_descriptors() noexcept;

/// Prints the text; a failure is remembered for flush_standard_output().
void write_standard_output(std::string_view text) noexcept;

/// Checks that everything printed, by any means, has arrived. Call at the end of main(): on an error the program exits
/// with a failure. Errors: NoSpace, Io, with the system's reason.
[[nodiscard]] Status flush_standard_output();

}  // namespace dunnock
