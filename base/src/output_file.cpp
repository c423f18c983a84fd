#include "dunnock/base/output_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdio>
#include <cstring>
#include <thread>
#include <utility>

#include "dunnock/base/file.hpp"

namespace dunnock {
namespace {

/// /proc/self/fd/1, to which /dev/stdout leads: a file that somebody has open, not a name of it.
bool is_descriptor(const std::string& path) {
  return path.starts_with("/proc/") && path.find("/fd/") != std::string::npos;
}

/// The path with the links at its end followed, also one that leads to nothing yet. Empty: errno says why.
std::string follow(std::string path) {
  constexpr int kLinksMost = 40;  // As the system's own limit.
  for (int links = 0; links < kLinksMost; ++links) {
    if (is_descriptor(path)) return path;
    std::array<char, PATH_MAX> to;
    const ssize_t length = ::readlink(path.c_str(), to.data(), to.size());
    if (length < 0) {
      if (errno == EINVAL || errno == ENOENT) return path;  // No link; or nothing is there.
      return {};
    }
    if (static_cast<std::size_t>(length) == to.size()) {
      errno = ENAMETOOLONG;
      return {};
    }
    const std::string_view target(to.data(), static_cast<std::size_t>(length));
    path = target.starts_with('/') ? std::string(target) : split_path(path).folder + "/" + std::string(target);
  }
  errno = ELOOP;
  return {};
}

}  // namespace

Result<UniqueFd> open_in_place(const std::string& path, int flags) {
  constexpr std::chrono::milliseconds kBetween{10};
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(kReaderSeconds);
  while (true) {
    // With O_NONBLOCK a FIFO that nobody reads is ENXIO; without, opening it would wait, whatever the signals.
    UniqueFd file(
        file_system().open(AT_FDCWD, path.c_str(), O_WRONLY | O_NOCTTY | O_NONBLOCK | flags, 0666));
    const int error = errno;
    if (file) {
      const int opened = ::fcntl(file.get(), F_GETFL);
      if (opened < 0 || ::fcntl(file.get(), F_SETFL, opened & ~O_NONBLOCK) != 0)
        return system_error("can't write " + path, errno);
      return file;
    }
    struct stat there {};
    if (error != ENXIO || ::stat(path.c_str(), &there) != 0 || !S_ISFIFO(there.st_mode))
      return system_error("can't write " + path, error);
    if (std::chrono::steady_clock::now() >= until)
      return make_error(ErrorCode::kIo, "can't write " + path + ": no process reads from this FIFO");
    std::this_thread::sleep_for(kBetween);
  }
}

Result<OutputFile> OutputFile::create(const std::string& path) {
  const auto cannot = [&path](int error) { return system_error("can't write " + path, error); };
  if (path.empty()) return make_error(ErrorCode::kInvalidArgument, "the path of the file to write is empty");
  struct stat there {};
  const bool exists = ::stat(path.c_str(), &there) == 0;
  if (!exists && errno != ENOENT) return cannot(errno);
  if ((exists && S_ISDIR(there.st_mode)) || path.ends_with('/'))
    return make_error(ErrorCode::kInvalidArgument, "can't write " + path + ": it is a directory");
  const bool ordinary = !exists || S_ISREG(there.st_mode);
  const std::string target = ordinary ? follow(path) : path;
  if (target.empty()) return cannot(errno);
  if (!ordinary || is_descriptor(target)) {
    DUNNOCK_TRY(auto descriptor, open_in_place(path, ordinary ? O_TRUNC : 0));
    OutputFile output(descriptor.release(), path);
    struct stat opened {};
    if (::fstat(output.descriptor_, &opened) != 0) return cannot(errno);
    if (S_ISREG(opened.st_mode) != ordinary)
      return make_error(ErrorCode::kIo, "can't write " + path + ": it was replaced while it was being opened");
    output.stream_ = ::lseek(output.descriptor_, 0, SEEK_CUR) < 0;
    return output;
  }
  if (exists && ::faccessat(AT_FDCWD, target.c_str(), W_OK, AT_EACCESS) != 0) return cannot(errno);

  const auto [folder, name] = split_path(target);
  constexpr std::size_t kNameMost = 200;  // With the rest of it, less than the 255 bytes that a name may have.
  // Never more rights than the file that it replaces.
  auto made = create_new_file(folder + "/" + name.substr(0, kNameMost) + ".part-", exists ? 0600 : 0666);
  if (!made) return make_error(made.error().code, "can't write " + path + ": " + made.error().message);
  OutputFile output(made->file.release(), path);
  output.target_ = target;
  output.temporary_ = made->path;
  if (exists) {
    // Who may not give a file away keeps it. Its mode comes last, for a change of owner takes rights away.
    (void)!::fchown(output.descriptor_, there.st_uid, there.st_gid);
    if (::fchmod(output.descriptor_, there.st_mode & 0777) != 0) return cannot(errno);
  }
  return output;
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      path_(std::move(other.path_)),
      target_(std::move(other.target_)),
      temporary_(std::move(other.temporary_)),
      stream_(other.stream_),
      appended_bytes_(other.appended_bytes_) {}

OutputFile::~OutputFile() {
  if (descriptor_ < 0) return;
  (void)::close(descriptor_);
  if (!temporary_.empty()) (void)file_system().unlink(AT_FDCWD, temporary_.c_str());
}

Status OutputFile::append(std::span<const std::byte> bytes) {
  DUNNOCK_TRY(write_at(appended_bytes_, bytes));
  if (!stream_) appended_bytes_ += bytes.size();
  return {};
}

Status OutputFile::write_at(std::uint64_t offset_bytes, std::span<const std::byte> bytes) {
  if (stream_) {
    if (offset_bytes != appended_bytes_)
      return make_error(ErrorCode::kInvalidArgument,
                        "can't write " + path_ + ": it can only be written from beginning to end");
    if (!file_system().write(descriptor_, bytes.data(), bytes.size()))
      return system_error("can't write " + path_, errno);
    appended_bytes_ += bytes.size();
  } else if (!file_system().pwrite(descriptor_, bytes.data(), bytes.size(), offset_bytes)) {
    return system_error("can't write " + path_, errno);
  }
  return {};
}

Status OutputFile::commit() {
  const bool in_place = temporary_.empty();
  // Pipes and many devices have nothing to synchronize, and say so.
  if (file_system().fsync(descriptor_) != 0 && !(in_place && (errno == EINVAL || errno == EROFS || errno == ENOTSUP)))
    return system_error("can't write " + path_, errno);
  if (in_place) {
    if (::close(std::exchange(descriptor_, -1)) != 0) return system_error("can't write " + path_, errno);
    return {};
  }
  if (file_system().rename(AT_FDCWD, temporary_.c_str(), AT_FDCWD, target_.c_str(), 0) != 0)
    return system_error("can't rename " + temporary_ + " to " + target_, errno);
  temporary_.clear();
  // Network file systems report here what they could not write.
  if (::close(std::exchange(descriptor_, -1)) != 0) return system_error("can't write " + path_, errno);
  // The new name is durable when the folder is.
  const std::string folder = split_path(target_).folder;
  DUNNOCK_TRY(auto opened, open_folder(folder));
  if (sync_folder(opened.get()) != 0) return system_error("can't write " + folder, errno);
  return {};
}

Status write_output_file(const std::string& path, std::string_view text) {
  DUNNOCK_TRY(auto output, OutputFile::create(path));
  DUNNOCK_TRY(output.append(text));
  return output.commit();
}

}  // namespace dunnock
