// Words for exceptions that other code throws: for a program's last catch, and where exceptions become error values.
#pragma once

#include <string>

namespace dunnock {

/// Describes the exception being handled in a sentence; call it in a catch (...).
[[nodiscard]] std::string words_of_exception();

}  // namespace dunnock
