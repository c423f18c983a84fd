// JSON of files that others have made, believed no further than the text of the format goes.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "dunnock/base/result.hpp"

namespace dunnock {

/// The whole text as one value. Errors: Corrupt, beginning with "it": it is not JSON (a NUL byte, which nlohmann's
/// parser takes for the end, included), a name occurs twice in one object, or it is nested more than 64 deep. A byte
/// order mark may come first.
[[nodiscard]] Result<nlohmann::json> parse_json(std::string_view text);

}  // namespace dunnock
