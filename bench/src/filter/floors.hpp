// What the machine itself takes for what a filter does to memory.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <vector>

namespace dunnock::bench {

/// Nanoseconds per operation on random lines; a sample per round.
struct Floors {
  std::vector<double> load;
  std::vector<double> load_prefetched;  // 16 ahead.
  std::vector<double> load_dependent;   // Each waits for the one before.
  std::vector<double> store;
  std::vector<double> persist;          // Store, write-back and fence.
  std::vector<double> persist_grouped;  // One fence for 16 of them.

  /// Measures a round, on this much memory.
  void measure(std::uint64_t bytes);
  void print() const;
  [[nodiscard]] nlohmann::json json() const;
};

}  // namespace dunnock::bench
