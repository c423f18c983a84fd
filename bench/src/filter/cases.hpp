// What the headline table measures: filters, each on a medium, called in a mode, by some threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "filter/options.hpp"

namespace dunnock::bench {

/// Which filter. All but the baselines are CuckooFilter.
enum class Design : std::uint8_t {
  kParallel,      // Any number of writers.
  kSingleWriter,  // The next four, too: each is without one of its parts.
  kWithoutSpill,
  kWithoutLookahead,
  kWithoutPrimacy,
  kHalfLineGroups,
  kTextbook12,
  kTextbook16,
  kTextbookDurable,
  kBlockedBloom,
};

enum class Medium : std::uint8_t {
  kDram,
  kDirect,   // Real write-backs and fences, on plain memory.
  kNvm,      // The emulated one.
  kProcess,  // A pool in an ordinary file that nobody writes back.
  kFile,     // The same, written back.
  kCounted,  // As kDirect, with its flushes, fences and lines counted.
};

enum class Mode : std::uint8_t { kSingle, kBulk };  // A call per key, or one for all.

struct Case {
  const char* structure;  ///< What it is called in the table; ours follows "dunnock-12" or the like.
  Design design;
  Medium medium;
  Mode mode = Mode::kSingle;
  unsigned threads = 1;
  bool once = false;  ///< In the first round only.
  bool tails = true;  ///< If one thread makes single calls, some are timed one by one in the first round.

  [[nodiscard]] bool is_ours() const { return design < Design::kTextbook12; }
};

/// In the order in which they are measured.
[[nodiscard]] std::vector<Case> cases_of(const FilterBenchOptions& options);

/// As in the table.
[[nodiscard]] std::string structure_of(const Case& one, unsigned bits);
[[nodiscard]] const char* name_of(Medium medium);
[[nodiscard]] const char* name_of(Mode mode);

}  // namespace dunnock::bench
