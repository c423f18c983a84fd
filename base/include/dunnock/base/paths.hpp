// Checks of a program's file paths before anything is opened for writing: whether two paths name one file, and whether
// a file could be written at all. Existing files are compared by device and inode, and files that do not exist yet by
// folder and name. Not for opening files.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "dunnock/base/result.hpp"

namespace dunnock {

/// Would writing to one change the other? True for the same ordinary file, folder or block device, however it is
/// spelled or linked (hard or symbolic), and for the same file that does not exist yet (a dangling link counts as its
/// target). Devices such as /dev/null, terminals and pipes may be shared, so they are not the same. False for paths
/// that cannot be examined and for empty paths.
[[nodiscard]] bool is_same_file(const std::string& first, const std::string& second);
/// The same for an open descriptor, such as standard output.
[[nodiscard]] bool is_same_file(int descriptor, const std::string& path);

/// A path given to a program, and what it is for.
struct NamedPath {
  std::string_view what;  ///< "log.csv", "--output"
  std::string path;       ///< Empty: not given.
  bool written = false;
};
/// Checks that no path to be written is the same file as another. Call it before anything is opened for writing.
/// Errors: InvalidArgument ("log.csv (run.csv) and checkpoint.pool (./run.csv) are the same file").
[[nodiscard]] Status check_paths(std::span<const NamedPath> paths);

/// How a program writes an output.
enum class OutputKind : std::uint8_t {
  kInPlace,   ///< Opened under its own name; devices and pipes are allowed.
  kReplaced,  ///< Written beside it and renamed, which would turn anything but an ordinary file into one.
};

/// Checks, as far as possible, that `path` can be written in this way: opens it, or creates a file beside it and
/// removes that again. An existing file stays as it is, and no new one is left. `bytes`: the space that the disk must
/// have; 0 means one block. Errors: NotFound (the folder), ReadOnly, NoSpace, InvalidArgument (a folder, or not an
/// ordinary file where one is needed), Io; each names the path.
[[nodiscard]] Status check_output(const std::string& path, OutputKind kind, std::uint64_t bytes = 0);

}  // namespace dunnock
