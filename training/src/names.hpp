// Names of operations and values: a letter for what it is, and what it belongs to.
#pragma once

#include <string>
#include <string_view>

namespace dunnock::training {

/// Not `"F" + name`: of that, gcc 12 warns without a reason (PR 105651).
[[nodiscard]] inline std::string named(std::string_view what, std::string_view whose) {
  return std::string(what).append(whose);
}

}  // namespace dunnock::training
