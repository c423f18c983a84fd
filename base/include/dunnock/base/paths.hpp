// Paths of a program's files, looked at before anything is opened for writing: whether two of them are one file, and
// whether a file could be written at all. Files are told apart by device and inode where they are there, and by folder
// and name where they are not yet. Not for opening files.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "dunnock/base/result.hpp"

namespace dunnock {

/// Whether writing to one would change the other: the same ordinary file, folder or block device, through whatever
/// links (hard or symbolic) and spellings, or the same file that is not there yet (a link that leads nowhere yet stands
/// for what it leads to). Devices such as /dev/null, terminals and pipes may be shared, so they are not the same. False
/// for what cannot be looked at, and for empty paths.
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

/// How a program writes an output.
enum class OutputKind : std::uint8_t {
  kInPlace,   ///< Opened under its own name; devices and pipes will do.
  kReplaced,  ///< Written beside it and renamed, which would turn anything but an ordinary file into one.
};

/// Whether `path` can be written as it is to be, as far as that can be known: opens it, or makes a file beside it and
/// removes it again. What is there stays as it is, and nothing is left where nothing was. `bytes`: what the disk must
/// have room for; 0 is a block. Errors: NotFound (the folder), ReadOnly, NoSpace, InvalidArgument (a folder, or not an
/// ordinary file where that is needed), Io; each names the path.
[[nodiscard]] Status check_output(const std::string& path, OutputKind kind, std::uint64_t bytes = 0);

}  // namespace dunnock
