// Files that are read whole: opened, mapped or copied, with their errors in words. What is not an ordinary file is
// refused at once. Not for files that change while they are read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "dunnock/base/file.hpp"
#include "dunnock/base/result.hpp"

namespace dunnock {

/// Opens an ordinary file for reading; refuses anything else at once, even a FIFO that nobody writes into.
/// `bytes`: its size. Errors: NotFound, ReadOnly (no right to read it), InvalidArgument (not an ordinary file), Io.
[[nodiscard]] Result<UniqueFd> open_to_read(const std::string& path, std::uint64_t& bytes);

/// Reads a whole file as text. Unlike a mapped file, it may be truncated meanwhile. Errors: those of open_to_read();
/// NoSpace: not enough memory.
[[nodiscard]] Result<std::string> read_file(const std::string& path);

/// A whole file, mapped for reading. Threads: any number.
class InputFile {
 public:
  /// Errors: those of open_to_read().
  [[nodiscard]] static Result<InputFile> open(const std::string& path);

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return mapped_.bytes(); }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  /// Copies bytes of the file by reading it, so that truncation causes an error, not a signal. Errors: Corrupt (the
  /// file has become shorter), Io.
  [[nodiscard]] Status read(std::uint64_t at, std::span<std::byte> to) const;
  /// Does the file still have the size that it was opened with? Reading a truncated part of the mapping raises SIGBUS,
  /// so check before a long read.
  [[nodiscard]] bool still_whole() const noexcept;

 private:
  InputFile(UniqueFd file, std::string path, MappedFile mapped) noexcept
      : file_(std::move(file)), path_(std::move(path)), mapped_(std::move(mapped)) {}
  UniqueFd file_;
  std::string path_;
  MappedFile mapped_;  // Empty if the file is empty.
};

}  // namespace dunnock
