// What `dunnock-bench filter` can be asked for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dunnock/pmem/emulated_nvm.hpp"

namespace dunnock::bench {

struct FilterBenchOptions {
  std::uint64_t slots = 1ULL << 26;
  unsigned bits = 12;
  std::vector<unsigned> loads = {50, 75, 90, 95};  // Percent, ascending.
  std::vector<unsigned> threads = {1, 2};
  std::vector<std::string> media = {"dram", "direct", "nvm"};
  unsigned repeat = 3;
  std::uint64_t seed = 1;
  std::uint64_t nvm_slots = 1ULL << 22;
  NvmSpeed nvm;
  bool quick = false;
  std::string json, csv;

  [[nodiscard]] bool wants(std::string_view medium) const {
    return std::find(media.begin(), media.end(), medium) != media.end();
  }
  /// The loads at which a filling pauses: those asked for, and 94 %, since "at 95 %" is the band from 94 to 95.
  [[nodiscard]] std::vector<unsigned> stops() const {
    std::vector<unsigned> all = loads;
    all.push_back(94);
    std::sort(all.begin(), all.end());
    all.erase(std::unique(all.begin(), all.end()), all.end());
    return all;
  }
  [[nodiscard]] bool reports(unsigned load) const { return std::find(loads.begin(), loads.end(), load) != loads.end(); }
};

}  // namespace dunnock::bench
