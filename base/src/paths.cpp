#include "dunnock/base/paths.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <system_error>

namespace dunnock {
namespace {

namespace fs = std::filesystem;

constexpr int kLinksMax = 40;  // As many as Linux follows.

std::optional<struct stat> look_at(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return std::nullopt;
  return info;
}

/// Where the file would be made: behind links that lead nowhere yet.
std::optional<fs::path> place_of(const std::string& path) {
  fs::path at = path;
  for (int links = 0; links < kLinksMax; ++links) {
    if (!at.has_filename()) at = at.parent_path();
    std::error_code error;
    const fs::path named = at.parent_path();
    const fs::path folder = fs::weakly_canonical(named.empty() ? fs::path(".") : named, error);
    if (error) return std::nullopt;
    at = folder / at.filename();
    if (!fs::is_symlink(fs::symlink_status(at, error))) return at.lexically_normal();
    const fs::path to = fs::read_symlink(at, error);
    if (error) return std::nullopt;
    at = folder / to;  // An absolute one takes the folder's place.
  }
  return std::nullopt;
}

tl::unexpected<Error> refused(const std::string& path, int error) {
  ErrorCode code = ErrorCode::kIo;
  if (error == ENOENT || error == ENOTDIR) code = ErrorCode::kNotFound;
  if (error == EACCES || error == EPERM || error == EROFS || error == ETXTBSY) code = ErrorCode::kReadOnly;
  if (error == ENOSPC || error == EDQUOT) code = ErrorCode::kNoSpace;
  return make_error(code, path + " can't be written: " + std::strerror(error));
}

/// A file beside `path`, with a block in it, which goes at once. 0, or an errno.
int try_beside(const std::string& path) {
  std::string name = path + ".XXXXXX";
  const int file = mkostemp(name.data(), O_CLOEXEC);
  if (file < 0) return errno;
  const std::array<char, 4096> block{};
  int error = write(file, block.data(), block.size()) == static_cast<ssize_t>(block.size()) ? 0 : errno;
  if (error == 0 && fsync(file) != 0) error = errno;  // Some file systems refuse only now.
  if (close(file) != 0 && error == 0) error = errno;
  (void)unlink(name.c_str());
  return error;
}

}  // namespace

bool same_file(const std::string& a, const std::string& b) {
  if (a.empty() || b.empty()) return false;
  const auto first = look_at(a);
  const auto second = look_at(b);
  if (first && second) return first->st_dev == second->st_dev && first->st_ino == second->st_ino;
  if (first || second) return false;
  const auto first_place = place_of(a);
  const auto second_place = place_of(b);
  return first_place && second_place && *first_place == *second_place;
}

Status check_output(const std::string& path, OutputKind kind, std::uint64_t bytes) {
  if (path.empty() || path.ends_with('/'))
    return make_error(ErrorCode::kInvalidArgument, "'" + path + "' can't be written: it names no file");
  const auto there = look_at(path);
  if (there) {
    if (S_ISDIR(there->st_mode))
      return make_error(ErrorCode::kInvalidArgument, path + " can't be written: it is a folder");
    if (kind == OutputKind::kReplaced && !S_ISREG(there->st_mode))
      return make_error(ErrorCode::kInvalidArgument,
                        path + " can't be written: it is not an ordinary file, and would be replaced by one");
    if (kind == OutputKind::kInPlace) {
      // Not blocking: a pipe may have no reader yet, which is no mistake.
      const int file = open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
      if (file < 0 && errno != ENXIO) return refused(path, errno);
      if (file >= 0) (void)close(file);
      if (!S_ISREG(there->st_mode)) return {};
    }
  }
  // Where links lead: what is replaced is the link itself, and its folder is asked.
  std::string place = path;
  if (kind == OutputKind::kInPlace) {
    if (const auto at = place_of(path)) place = at->string();
  }
  if (kind == OutputKind::kReplaced || !there) {
    if (const int error = try_beside(place); error != 0) return refused(path, error);
  }
  struct statvfs disk {};
  const std::string folder = fs::path(place).parent_path().string();
  if (bytes != 0 && statvfs(folder.empty() ? "." : folder.c_str(), &disk) == 0) {
    const std::uint64_t left = std::uint64_t{disk.f_bavail} * disk.f_frsize;
    if (left < bytes)
      return make_error(ErrorCode::kNoSpace, path + " can't be written: it needs " + std::to_string(bytes) +
                                                 " bytes, and the disk has " + std::to_string(left) + " left");
  }
  return {};
}

}  // namespace dunnock
