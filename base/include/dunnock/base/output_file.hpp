// OutputFile: a file that a program writes for its user. An ordinary file appears whole or not at all; anything else is
// written in place.
//
//   target                          what happens
//   ---------------------------------------------------------------------------------------------------------------
//   no file, ordinary file          written beside it as "<name>.part-...", synchronized, renamed, folder synchronized;
//                                   a replaced file passes on its mode, and its owner where that is allowed
//   symbolic link                   the same with its target; the link stays
//   device, FIFO, socket            written in place, as cp does; never renamed over
//   directory, read-only file       refused
//
// Not for files that a program keeps open and changes (pools, logs).
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "dunnock/base/file.hpp"
#include "dunnock/base/result.hpp"

namespace dunnock {

/// Threads: write_at by any number of threads; everything else by one.
class OutputFile {
 public:
  /// Errors: NotFound (folder), InvalidArgument (a directory, an empty name), ReadOnly, NoSpace, Io (also: nobody reads
  /// the FIFO).
  [[nodiscard]] static Result<OutputFile> create(const std::string& path);
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&&) = delete;
  /// Removes what was written beside the target if commit() was not called. What was written in place stays.
  ~OutputFile();

  /// Appends to what append() has written so far. Errors: NoSpace, Io, with the system's reason.
  [[nodiscard]] Status append(std::span<const std::byte> bytes);
  [[nodiscard]] Status append(std::string_view text) { return append(std::as_bytes(std::span(text))); }
  /// Writes at an offset of the file. If is_stream(), the pieces must come in order, without gaps.
  /// Errors: NoSpace, Io; InvalidArgument (a stream, and not the next piece).
  [[nodiscard]] Status write_at(std::uint64_t offset_bytes, std::span<const std::byte> bytes);
  /// Is this a FIFO or a terminal, which has no offsets?
  [[nodiscard]] bool is_stream() const noexcept { return stream_; }
  /// Returns when everything is on disk under its name. Errors: NoSpace, Io.
  [[nodiscard]] Status commit();

 private:
  OutputFile(int descriptor, std::string path) noexcept : descriptor_(descriptor), path_(std::move(path)) {}
  int descriptor_;
  std::string path_;       // As the user gave it.
  std::string target_;     // Links followed. Empty: written in place.
  std::string temporary_;  // Empty: written in place.
  bool stream_ = false;
  std::uint64_t appended_bytes_ = 0;
};

/// For a reader that is started together with the writer.
inline constexpr unsigned kReaderSeconds = 2;

/// Opens for writing what is written in place: a device, a FIFO, or a file that is appended to. `flags`: of open(2),
/// besides O_WRONLY. Waits at most kReaderSeconds for the reader of a FIFO; writing to it waits as ever. Errors: those
/// of create().
[[nodiscard]] Result<UniqueFd> open_in_place(const std::string& path, int flags);

/// Writes the text and commits. Errors: those of OutputFile.
[[nodiscard]] Status write_output_file(const std::string& path, std::string_view text);

}  // namespace dunnock
