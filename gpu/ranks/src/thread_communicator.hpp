// Ranks that are threads of this process.
#pragma once

#include <memory>
#include <vector>

#include "communicator_impl.hpp"

namespace dunnock::ranks::detail {

[[nodiscard]] std::vector<std::unique_ptr<CommunicatorImpl>> make_threads(unsigned ranks,
                                                                          const CommunicatorOptions& options);

}  // namespace dunnock::ranks::detail
