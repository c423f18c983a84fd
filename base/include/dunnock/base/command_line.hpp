// command_line: what CLI11 says of a command line that it has not parsed: help, or what is wrong with it.
//
// What it is for: arguments may hold anything, also what acts on a terminal, and CLI11 quotes them as they are. A
// template, so that this layer does not need CLI11. Not for messages of the program itself: see printable.hpp.
#pragma once

#include <span>
#include <sstream>
#include <string>

#include "dunnock/base/printable.hpp"
#include "dunnock/base/standard_streams.hpp"

namespace dunnock {

/// For app.parse()'s error: prints help or a version, where that was asked for, to standard output. The result is what
/// is wrong otherwise, in printable lines, for standard error; empty: nothing is. `arguments`: those of main().
template <class App, class ParseError>
[[nodiscard]] std::string explain_parse_error(const App& app, const ParseError& error,
                                              std::span<char* const> arguments) {
  std::ostringstream out, complaint;
  const int status = app.exit(error, out, complaint);
  write_standard_output(out.str());
  if (status == 0) return {};
  return printable_lines(complaint.str().empty() ? "the arguments are invalid" : complaint.str(), arguments);
}

}  // namespace dunnock
