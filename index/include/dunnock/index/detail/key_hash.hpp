// A hash of keys for containers in memory: keys of an index are hashes already.
#pragma once

#include <cstddef>

#include "dunnock/index/index_format.hpp"

namespace dunnock::detail {

struct KeyHash {
  std::size_t operator()(const IndexKey& key) const noexcept { return key.low ^ key.high * 0x9e3779b97f4a7c15ULL; }
};

}  // namespace dunnock::detail
