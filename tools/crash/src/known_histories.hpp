// The histories that are known to catch planted bugs: a file that spares `dunnock-crash mutants` most of its search.
//
//   {"filter": {"no flush SpillMark": 245, ...}, "log.file": {...}}     structure: bug: seed of the history
//
// A history that no longer catches its bug costs one history: the search goes on as if it were not known.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "dunnock/base/result.hpp"
#include "exploration.hpp"

namespace dunnock::crash {

class KnownHistories {
 public:
  /// Reads the file. `may_be_missing`: then none is known. Errors: NotFound, Io; InvalidArgument if it is not such a
  /// file.
  [[nodiscard]] static Result<KnownHistories> read(const std::string& path, bool may_be_missing);
  /// Errors: Io.
  [[nodiscard]] Status write(const std::string& path) const;

  /// Seeds that may catch the bug. Of a bug in one line of the source, also those of the same step elsewhere in that
  /// file: lines move.
  [[nodiscard]] std::vector<std::uint64_t> of(const Settings& settings, const std::string& bug) const;
  /// All seeds for that structure and media.
  [[nodiscard]] std::vector<std::uint64_t> all_of(const Settings& settings) const;
  /// Forgets what is known for that structure and media.
  void forget(const Settings& settings);
  void learn(const Settings& settings, const std::string& bug, std::uint64_t seed);

 private:
  std::map<std::string, std::map<std::string, std::uint64_t>> seeds_;  // by structure and media, by bug
};

}  // namespace dunnock::crash
