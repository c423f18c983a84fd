#include "dunnock/pmem/fork_mark.hpp"

namespace dunnock::detail {

std::atomic<std::uint32_t> fork_generation{0};

}  // namespace dunnock::detail
