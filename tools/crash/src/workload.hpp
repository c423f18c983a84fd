// What a history is generated from.
#pragma once

#include <cstdint>

namespace dunnock::crash {

struct Workload {
  std::uint64_t seed = 1;
  unsigned threads = 1;
  unsigned operations = 6;
};

}  // namespace dunnock::crash
