#include "dunnock/base/paths.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <system_error>

#include "dunnock/base/file.hpp"
#include "dunnock/base/printable.hpp"

namespace dunnock {
namespace {

namespace fs = std::filesystem;

constexpr int kLinksMax = 40;  // As many as Linux follows.

std::optional<struct stat> look_at(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return std::nullopt;
  return info;
}

bool is_shareable(const struct stat& info) noexcept {
  return !S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode) && !S_ISDIR(info.st_mode);
}

bool is_same(const struct stat& first, const struct stat& second) noexcept {
  if (S_ISBLK(first.st_mode) && S_ISBLK(second.st_mode)) return first.st_rdev == second.st_rdev;
  return first.st_dev == second.st_dev && first.st_ino == second.st_ino;
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
  return make_error(error_code_of(error == ETXTBSY ? EACCES : error),
                    path + " can't be written: " + std::strerror(error));
}

/// A file beside `path`, with a block in it, which goes at once.
Status try_beside(const std::string& path) {
  FileSystem& files = file_system();
  const std::array<char, 4096> block{};
  const auto made = create_new_file(path + ".try-", 0600);
  if (!made) return make_error(made.error().code, path + " can't be written: " + made.error().message);
  // Some file systems refuse only at the sync.
  const bool fine = files.pwrite(made->file.get(), block.data(), block.size(), 0) && files.fsync(made->file.get()) == 0;
  const int error = fine ? 0 : errno;
  (void)files.unlink(AT_FDCWD, made->path.c_str());
  if (!fine) return refused(path, error);
  return {};
}

}  // namespace

bool is_same_file(const std::string& first, const std::string& second) {
  if (first.empty() || second.empty()) return false;
  const auto first_there = look_at(first);
  const auto second_there = look_at(second);
  if (first_there && second_there) return !is_shareable(*first_there) && is_same(*first_there, *second_there);
  if (first_there || second_there) return false;
  const auto one = place_of(first);
  const auto other = place_of(second);
  if (!one || !other || one->filename() != other->filename()) return false;
  if (*one == *other) return true;
  // One folder may have several names: bind mounts, for one.
  const auto one_folder = look_at(one->parent_path().string());
  const auto other_folder = look_at(other->parent_path().string());
  return one_folder && other_folder && is_same(*one_folder, *other_folder);
}

bool is_same_file(int descriptor, const std::string& path) {
  struct stat info {};
  const auto there = look_at(path);
  return there && ::fstat(descriptor, &info) == 0 && !is_shareable(info) && is_same(info, *there);
}

Status check_paths(std::span<const NamedPath> paths) {
  for (std::size_t i = 0; i < paths.size(); ++i) {
    for (std::size_t j = i + 1; j < paths.size(); ++j) {
      if (!paths[i].written && !paths[j].written) continue;
      if (!is_same_file(paths[i].path, paths[j].path)) continue;
      const auto text = [](const NamedPath& one) { return std::string(one.what) + " (" + printable(one.path) + ")"; };
      return make_error(ErrorCode::kInvalidArgument, text(paths[i]) + " and " + text(paths[j]) + " are the same file");
    }
  }
  return {};
}

Status check_output(const std::string& path, OutputKind kind, std::uint64_t bytes) {
  if (path.empty() || path.ends_with('/'))
    return make_error(ErrorCode::kInvalidArgument, "'" + path + "' can't be written: the path names no file");
  const auto there = look_at(path);
  if (there) {
    if (S_ISDIR(there->st_mode))
      return make_error(ErrorCode::kInvalidArgument, path + " can't be written: it is a directory");
    if (kind == OutputKind::kReplaced && !S_ISREG(there->st_mode))
      return make_error(ErrorCode::kInvalidArgument,
                        path + " can't be written: it is not a regular file, but would be replaced by one");
    if (S_ISFIFO(there->st_mode)) {
      // It may have no reader yet, which is no mistake. One that it has would meet the end of what is written when this
      // look closed the FIFO again, so it is not opened.
      if (::faccessat(AT_FDCWD, path.c_str(), W_OK, AT_EACCESS) != 0) return refused(path, errno);
      return {};
    }
    if (kind == OutputKind::kInPlace) {
      const UniqueFd file(file_system().open(AT_FDCWD, path.c_str(), O_WRONLY | O_NONBLOCK | O_NOCTTY, 0));
      if (!file && errno != ENXIO) return refused(path, errno);
      if (!S_ISREG(there->st_mode)) return {};
    }
  }
  // Where links lead: what is replaced is the link itself, and its folder is asked.
  std::string place = path;
  if (kind == OutputKind::kInPlace) {
    if (const auto at = place_of(path)) place = at->string();
  }
  if (kind == OutputKind::kReplaced || !there) {
    DUNNOCK_TRY(try_beside(place));
  }
  struct statvfs disk {};
  const std::string folder = fs::path(place).parent_path().string();
  if (bytes != 0 && statvfs(folder.empty() ? "." : folder.c_str(), &disk) == 0) {
    const std::uint64_t left = std::uint64_t{disk.f_bavail} * disk.f_frsize;
    if (left < bytes)
      return make_error(ErrorCode::kNoSpace, path + " can't be written: it needs " + std::to_string(bytes) +
                                                 " bytes, but the disk has only " + std::to_string(left) + " left");
  }
  return {};
}

}  // namespace dunnock
