// Whether two paths are one file: by device and inode where it is there, by its folder and name where it is not yet.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "dunnock/base/result.hpp"

namespace dunnock {

/// Whether writing to one would change the other: the same ordinary file or block device, through whatever links (hard
/// or symbolic) and spellings, or the same file that is not there yet. Devices such as /dev/null, terminals and pipes
/// may be shared, so they are not the same. Two paths of which one is empty are not the same either.
[[nodiscard]] bool is_same_file(const std::string& first, const std::string& second);
/// The same for an open descriptor, such as standard output.
[[nodiscard]] bool is_same_file(int descriptor, const std::string& path);

/// A path that a program is given, and what it is for.
struct NamedPath {
  std::string_view what;  ///< "log.csv", "--output"
  std::string path;       ///< Empty: not given.
  bool written = false;
};
/// Before anything is opened for writing: no path that is written may be the same file as another.
/// Errors: InvalidArgument ("log.csv (run.csv) and checkpoint.pool (./run.csv) are the same file").
[[nodiscard]] Status check_paths(std::span<const NamedPath> paths);

}  // namespace dunnock
