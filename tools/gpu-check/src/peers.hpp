// The same operations done by PyTorch, where it is installed: peers.py does them, and says one JSON object a line.
//
//   {"name": "torch", "version": "2.8.0", "device": "NVIDIA H200"}      first
//   {"name": "layer_norm bf16", "ms": 0.123, "gb_per_s": 2200.0}        a case (bench/kernel_cases)
//   {"name": "adamw", "error": "out of memory"}                         one that it could not do, or had no time for
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "budget.hpp"

namespace dunnock::gpu_check {

/// A flat JSON object: text, numbers, truth; null is left out. None: it is not one, or holds objects or arrays.
using FlatObject = std::map<std::string, std::variant<std::string, double, bool>>;
[[nodiscard]] std::optional<FlatObject> parse_flat_object(std::string_view line);

struct PeerResults {
  std::string about{};                          // "PyTorch 2.8.0 on NVIDIA H200", or why there is nothing.
  std::map<std::string, double> ms{};           // By case.
  std::map<std::string, std::string> errors{};  // By case.
  unsigned broken_lines = 0;                    // Neither empty nor understood.
};
/// What peers.py has printed. A time counts only if it is a finite number of more than 0.
[[nodiscard]] PeerResults read_peers(std::string_view output);

struct PeerOptions {
  std::string script;  // peers.py
  std::string cases;   // The table, one line of JSON a case.
  double seconds_max = 120;
  bool rehearse = false;  // On the CPU.
};
/// Runs it, if there is a python3 that has PyTorch (and a GPU, unless it is a rehearsal).
[[nodiscard]] PeerResults run_peers(const PeerOptions& options);

}  // namespace dunnock::gpu_check
