// Paths of a program's files, looked at before anything is opened for writing: whether two of them are one file, and
// whether a file could be written at all. Not for opening files.
#pragma once

#include <cstdint>
#include <string>

#include "dunnock/base/result.hpp"

namespace dunnock {

/// Whether two paths lead to the same file, however they are spelled: through links, "..", or a second hard link. What
/// is there is compared by device and inode; of what is not there yet, the folder is, and the name (a link that leads
/// nowhere yet stands for what it leads to). False for what cannot be looked at, and for empty paths.
[[nodiscard]] bool same_file(const std::string& a, const std::string& b);

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
