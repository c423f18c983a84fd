// Whether this is one of several processes that mpirun has started.
#pragma once

#include <cstdlib>

namespace dunnock::bench {

inline bool is_under_mpirun() {
  return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMI_SIZE") != nullptr;
}

}  // namespace dunnock::bench
