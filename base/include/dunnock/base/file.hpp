// File: the one door through which the library changes files and makes them durable.
//
// What it is for: a harness can replace the operating system's FileSystem with its own, see every write, sync and
// directory change in order, and answer any of them with an error. What it is not for: reading (a harness that plays a
// power failure changes what is read by changing the files), and formatted input and output.
//
// The calls follow the system calls of the same name (-1 and errno on an error), with two differences: they are never
// interrupted (EINTR is tried again), and pwrite writes all or fails.
#pragma once

#include <fcntl.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "dunnock/base/result.hpp"

namespace dunnock {

/// Owns a file descriptor.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) noexcept : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~UniqueFd() { reset(); }

  [[nodiscard]] int get() const noexcept { return fd_; }
  [[nodiscard]] explicit operator bool() const noexcept { return fd_ >= 0; }
  [[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }
  /// Closes the descriptor.
  void reset() noexcept;

 private:
  int fd_ = -1;
};

/// Maps a range of a file into memory for as long as this lives.
class MappedFile {
 public:
  MappedFile() = default;
  /// Maps `bytes` bytes from the start of the file. On failure the object is empty (see operator bool) and errno is
  /// set.
  MappedFile(int fd, std::uint64_t bytes, int protection, int flags) noexcept;
  MappedFile(MappedFile&& other) noexcept
      : bytes_(std::exchange(other.bytes_, 0)), address_(std::exchange(other.address_, nullptr)) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    std::swap(address_, other.address_);
    return *this;
  }
  ~MappedFile();

  [[nodiscard]] explicit operator bool() const noexcept { return address_ != nullptr; }
  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {static_cast<std::byte*>(address_), bytes_}; }

 private:
  std::uint64_t bytes_ = 0;
  void* address_ = nullptr;
};

/// What the library asks of the operating system where files change. Threads: any number.
class FileSystem {
 public:
  virtual ~FileSystem() = default;

  /// openat(2), always with O_CLOEXEC. Called only where the file may be created or truncated.
  virtual int open(int directory, const char* path, int flags, mode_t mode) noexcept;
  /// Writes all `bytes` bytes at `offset`, or fails; an error may leave some of them written.
  virtual bool pwrite(int fd, const void* from, std::size_t bytes, std::uint64_t offset) noexcept;
  /// Writes all `bytes` bytes at the descriptor's current position (a pipe, a terminal), or fails.
  virtual bool write(int fd, const void* from, std::size_t bytes) noexcept;
  /// As pwrite, and returns when these bytes are durable. `fd` was opened with O_DSYNC.
  virtual bool pwrite_durably(int fd, const void* from, std::size_t bytes, std::uint64_t offset) noexcept;
  /// Asks the disk to begin writing a range. Not a sync: nothing is promised, and errors are ignored.
  virtual void start_write(int fd, std::uint64_t offset, std::uint64_t bytes) noexcept;
  /// Writes back a range and waits until that is done, including writes that have begun. Not a sync: the disk's own
  /// cache is not flushed. It does report an error that the kernel met in writing the file and has not yet reported to
  /// this descriptor.
  virtual int wait_for_writes(int fd, std::uint64_t offset, std::uint64_t bytes) noexcept;
  virtual int fsync(int fd) noexcept;
  virtual int fdatasync(int fd) noexcept;
  /// msync(2) with MS_SYNC of whole pages of a shared mapping.
  virtual int msync(void* address, std::size_t bytes) noexcept;
  /// Allocates the blocks of a range; where the file system can't, writes zeros to the bytes in holes.
  virtual int allocate(int fd, std::uint64_t offset, std::uint64_t bytes) noexcept;
  virtual int truncate(int fd, std::uint64_t bytes) noexcept;
  /// Gives an unnamed file (O_TMPFILE) its name. Fails with EEXIST when the name is taken.
  virtual int name_file(int fd, int directory, const char* name) noexcept;
  virtual int rename(int from_directory, const char* from, int to_directory, const char* to, unsigned flags) noexcept;
  virtual int unlink(int directory, const char* name) noexcept;

  /// The library asks this before a step that its calls alone do not show: is the step left out, as a planted bug (by
  /// `dunnock-crash mutants`)? `step` also says what the next call is for. Always false outside that harness.
  [[nodiscard]] virtual bool leaves_out(std::string_view step) noexcept;
};

/// The operating system, or what set_file_system() has put in its place.
[[nodiscard]] FileSystem& file_system() noexcept;
/// For harnesses. Null restores the operating system. `files` must outlive its use. Returns the previous file system
/// (null: the operating system).
FileSystem* set_file_system(FileSystem* files) noexcept;

/// The error code that corresponds to an errno.
[[nodiscard]] ErrorCode error_code_of(int error) noexcept;
/// "what: reason of errno", with error_code_of(error).
[[nodiscard]] tl::unexpected<Error> system_error(const std::string& what, int error);

/// The folder of a path ("." if it names none) and its last part.
struct PathParts {
  std::string folder, name;
};
[[nodiscard]] PathParts split_path(const std::string& path);

/// Opens a folder, so that later work in it does not depend on what its name means by then. Errors: those of open(2).
[[nodiscard]] Result<UniqueFd> open_folder(const std::string& folder);
/// A file for writing that did not exist before.
struct NewFile {
  UniqueFd file;
  std::string path;
};
/// Creates a file whose path is `start` and a unique suffix, so that no existing file is overwritten and no link is
/// followed. Errors: those of open(2).
[[nodiscard]] Result<NewFile> create_new_file(const std::string& start, mode_t mode);
/// Calls fsync on a directory. EINVAL (the file system has nothing to sync there) does not count as an error.
[[nodiscard]] int sync_folder(int directory) noexcept;

}  // namespace dunnock
