#include "dunnock/base/file.hpp"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

namespace dunnock {
namespace {

std::atomic<FileSystem*> replaced{nullptr};

/// Calls `call` until it is not interrupted.
template <class Call>
auto uninterrupted(const Call& call) noexcept {
  while (true) {
    const auto result = call();
    if (result != -1 || errno != EINTR) return result;
  }
}

/// Calls put(from, bytes) until all is written.
template <class Put>
bool write_pieces(const void* from, std::size_t bytes, const Put& put) noexcept {
  const auto* at = static_cast<const std::byte*>(from);
  while (bytes != 0) {
    const ssize_t written = uninterrupted([&] { return put(at, std::min<std::size_t>(bytes, 1U << 30)); });
    if (written <= 0) {
      if (written == 0) errno = EIO;
      return false;
    }
    at += written;
    bytes -= static_cast<std::size_t>(written);
  }
  return true;
}

bool write_all(int fd, const void* from, std::size_t bytes, std::uint64_t offset) noexcept {
  return write_pieces(from, bytes, [&](const std::byte* at, std::size_t length) {
    return ::pwrite(fd, at, length,
                    static_cast<off_t>(offset + static_cast<std::uint64_t>(at - static_cast<const std::byte*>(from))));
  });
}

/// Writes zeros where the range has holes.
int fill_holes(int fd, std::uint64_t offset, std::uint64_t bytes) noexcept {
  static constexpr std::size_t kPiece = 64 << 10;
  static const std::byte zeros[kPiece] = {};
  const std::uint64_t end = offset + bytes;
  while (offset < end) {
    const off_t hole = lseek(fd, static_cast<off_t>(offset), SEEK_HOLE);
    if (hole < 0) return errno == ENXIO ? 0 : -1;
    if (static_cast<std::uint64_t>(hole) >= end) return 0;
    const off_t data = lseek(fd, hole, SEEK_DATA);
    if (data < 0 && errno != ENXIO) return -1;
    const std::uint64_t until = data < 0 ? end : std::min(end, static_cast<std::uint64_t>(data));
    for (offset = static_cast<std::uint64_t>(hole); offset < until;) {
      const std::size_t length = std::min<std::uint64_t>(kPiece, until - offset);
      if (!write_all(fd, zeros, length, offset)) return -1;
      offset += length;
    }
  }
  return 0;
}

}  // namespace

void UniqueFd::reset() noexcept {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

MappedFile::MappedFile(int fd, std::uint64_t bytes, int protection, int flags) noexcept {
  if (bytes == 0) {
    errno = EINVAL;
    return;
  }
  void* const address = mmap(nullptr, bytes, protection, flags, fd, 0);
  if (address == MAP_FAILED) return;
  address_ = address;
  bytes_ = bytes;
}

MappedFile::~MappedFile() {
  if (address_ != nullptr) munmap(address_, bytes_);
}

int FileSystem::open(int directory, const char* path, int flags, mode_t mode) noexcept {
  return uninterrupted([&] { return ::openat(directory, path, flags | O_CLOEXEC, mode); });
}

bool FileSystem::pwrite(int fd, const void* from, std::size_t bytes, std::uint64_t offset) noexcept {
  return write_all(fd, from, bytes, offset);
}

bool FileSystem::write(int fd, const void* from, std::size_t bytes) noexcept {
  return write_pieces(from, bytes, [fd](const std::byte* at, std::size_t length) { return ::write(fd, at, length); });
}

bool FileSystem::pwrite_durably(int fd, const void* from, std::size_t bytes, std::uint64_t offset) noexcept {
  return write_all(fd, from, bytes, offset);
}

void FileSystem::start_write(int fd, std::uint64_t offset, std::uint64_t bytes) noexcept {
  (void)sync_file_range(fd, static_cast<off_t>(offset), static_cast<off_t>(bytes), SYNC_FILE_RANGE_WRITE);
}

int FileSystem::wait_for_writes(int fd, std::uint64_t offset, std::uint64_t bytes) noexcept {
  constexpr unsigned kFlags = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
  const int status = uninterrupted(
      [&] { return ::sync_file_range(fd, static_cast<off_t>(offset), static_cast<off_t>(bytes), kFlags); });
  return status != 0 && (errno == EINVAL || errno == ESPIPE) ? 0 : status;  // A device: there is nothing to wait for.
}

int FileSystem::fsync(int fd) noexcept {
  return uninterrupted([&] { return ::fsync(fd); });
}

int FileSystem::fdatasync(int fd) noexcept {
  return uninterrupted([&] { return ::fdatasync(fd); });
}

int FileSystem::msync(void* address, std::size_t bytes) noexcept {
  return uninterrupted([&] { return ::msync(address, bytes, MS_SYNC); });
}

int FileSystem::allocate(int fd, std::uint64_t offset, std::uint64_t bytes) noexcept {
  const int status =
      uninterrupted([&] { return ::fallocate(fd, 0, static_cast<off_t>(offset), static_cast<off_t>(bytes)); });
  if (status == 0 || (errno != EOPNOTSUPP && errno != ENOSYS)) return status;
  struct stat info {};
  if (fstat(fd, &info) != 0) return -1;
  if (static_cast<std::uint64_t>(info.st_size) < offset + bytes && truncate(fd, offset + bytes) != 0) return -1;
  return fill_holes(fd, offset, bytes);
}

int FileSystem::truncate(int fd, std::uint64_t bytes) noexcept {
  return uninterrupted([&] { return ::ftruncate(fd, static_cast<off_t>(bytes)); });
}

int FileSystem::name_file(int fd, int directory, const char* name) noexcept {
  char self[40];
  std::snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
  return ::linkat(AT_FDCWD, self, directory, name, AT_SYMLINK_FOLLOW);
}

int FileSystem::rename(int from_directory, const char* from, int to_directory, const char* to,
                       unsigned flags) noexcept {
  return ::renameat2(from_directory, from, to_directory, to, flags);
}

int FileSystem::unlink(int directory, const char* name) noexcept { return ::unlinkat(directory, name, 0); }

bool FileSystem::leaves_out(std::string_view) noexcept { return false; }

FileSystem& file_system() noexcept {
  static FileSystem system;
  FileSystem* const other = replaced.load(std::memory_order_acquire);  // Partner: set_file_system.
  return other != nullptr ? *other : system;
}

FileSystem* set_file_system(FileSystem* files) noexcept { return replaced.exchange(files, std::memory_order_acq_rel); }

ErrorCode error_code_of(int error) noexcept {
  switch (error) {
    case ENOENT:
    case ENOTDIR: return ErrorCode::kNotFound;
    case EEXIST: return ErrorCode::kAlreadyExists;
    case EWOULDBLOCK: return ErrorCode::kAlreadyOpen;
    case EACCES:
    case EPERM:
    case EROFS: return ErrorCode::kReadOnly;
    case ENOSPC:
    case EFBIG:
    case EDQUOT:
    case ENOMEM: return ErrorCode::kNoSpace;
    default: return ErrorCode::kIo;
  }
}

tl::unexpected<Error> system_error(const std::string& what, int error) {
  return make_error(error_code_of(error), what + ": " + std::strerror(error));
}

PathParts split_path(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return {".", path};
  return {slash == 0 ? "/" : path.substr(0, slash), path.substr(slash + 1)};
}

Result<UniqueFd> open_folder(const std::string& folder) {
  UniqueFd fd(uninterrupted([&] { return ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (!fd) return system_error("can't open the directory " + folder, errno);
  return fd;
}

Result<NewFile> create_new_file(const std::string& start, mode_t mode) {
  for (unsigned n = 0; n < 1000; ++n) {
    std::string path = start + std::to_string(::getpid()) + "-" + std::to_string(n);
    UniqueFd file(file_system().open(AT_FDCWD, path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, mode));
    if (file) return NewFile{std::move(file), std::move(path)};
    if (errno != EEXIST) return system_error("can't create " + path, errno);
  }
  return system_error("can't create a file with a name that begins with " + start, EEXIST);
}

int sync_folder(int directory) noexcept {
  const int status = file_system().fsync(directory);
  return status != 0 && errno == EINVAL ? 0 : status;
}

}  // namespace dunnock
