// What others throw, as words: for the last catch of a program, and where their exceptions become errors as values.
#pragma once

#include <string>

namespace dunnock {

/// The exception that is being handled, as a sentence; call it in a catch (...).
[[nodiscard]] std::string words_of_exception();

}  // namespace dunnock
