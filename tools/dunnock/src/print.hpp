// Everything that the tool prints: lines without anything that acts on a terminal, and JSON.
#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "dunnock/base/printable.hpp"
#include "dunnock/base/standard_streams.hpp"

namespace dunnock::tool {

/// One line to standard output. Whatever it quotes, it stays one line (see printable()).
template <class... Args>
void print_line(fmt::format_string<Args...> format, Args&&... args) {
  write_standard_output(printable(fmt::format(format, std::forward<Args>(args)...)) + "\n");
}
/// The same to standard error.
template <class... Args>
void complain(fmt::format_string<Args...> format, Args&&... args) {
  const std::string line = printable(fmt::format(format, std::forward<Args>(args)...)) + "\n";
  (void)std::fwrite(line.data(), 1, line.size(), stderr);
}
/// In ASCII; what is not UTF-8 is replaced.
template <class Json>
void print_json(const Json& json) {
  write_standard_output(json.dump(2, ' ', true, Json::error_handler_t::replace) + "\n");
}

}  // namespace dunnock::tool
