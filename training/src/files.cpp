#include "files.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <new>
#include <stdexcept>

namespace dunnock::training::detail {

tl::unexpected<Error> system_error(const std::string& what, int error) {
  const ErrorCode code = error == ENOENT || error == ENOTDIR                    ? ErrorCode::kNotFound
                         : error == ENOSPC || error == EDQUOT || error == EFBIG ? ErrorCode::kNoSpace
                         : error == EACCES || error == EROFS || error == EPERM  ? ErrorCode::kReadOnly
                                                                                : ErrorCode::kIo;
  return make_error(code, what + ": " + std::strerror(error));
}

Descriptor::~Descriptor() {
  if (number_ >= 0) (void)::close(number_);
}

bool write_all(int descriptor, std::uint64_t at, std::span<const std::byte> from) noexcept {
  while (!from.empty()) {
    const ssize_t put =
        pwrite(descriptor, from.data(), std::min<std::size_t>(from.size(), 1U << 30), static_cast<off_t>(at));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return false;
    from = from.subspan(static_cast<std::size_t>(put));
    at += static_cast<std::uint64_t>(put);
  }
  return true;
}

Status publish(const Descriptor& file, const std::string& temporary, const std::string& path) {
  if (fsync(file.get()) != 0) return system_error("can't write " + temporary, errno);
  // What a link leads to is replaced, not the link; and what is no ordinary file is not replaced at all.
  std::error_code unseen;
  const std::filesystem::path linked = std::filesystem::canonical(path, unseen);
  const std::string target = unseen ? path : linked.string();
  if (std::filesystem::exists(target, unseen) && !std::filesystem::is_regular_file(target, unseen))
    return make_error(ErrorCode::kInvalidArgument, path + " is not an ordinary file");
  if (std::rename(temporary.c_str(), target.c_str()) != 0)
    return system_error("can't rename " + temporary + " to " + target, errno);
  std::string directory = std::filesystem::path(target).parent_path().string();
  if (directory.empty()) directory.push_back('.');
  const Descriptor folder(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.get() < 0) return system_error("can't open " + directory, errno);
  if (fsync(folder.get()) != 0) return system_error("can't write " + directory, errno);
  return {};
}

namespace {

std::string_view kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a FIFO";
  return S_ISSOCK(mode) ? "a socket" : "a device";
}

}  // namespace

Result<Descriptor> open_to_read(const std::string& path, std::uint64_t& bytes) {
  // Without O_NONBLOCK, opening a FIFO would wait for whoever writes into it.
  Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) return system_error("can't open " + path, errno);
  struct stat info {};
  if (fstat(file.get(), &info) != 0) return system_error("can't open " + path, errno);
  if (!S_ISREG(info.st_mode))
    return make_error(ErrorCode::kInvalidArgument,
                      path + " is " + std::string(kind_of(info.st_mode)) + ", not an ordinary file");
  bytes = static_cast<std::uint64_t>(info.st_size);
  return file;
}

Result<std::string> read_file(const std::string& path) {
  std::uint64_t bytes = 0;
  const auto file = open_to_read(path, bytes);
  if (!file) return tl::unexpected(file.error());
  try {
    std::string text;
    text.resize(bytes + 1);  // One more, in which the end is met.
    std::size_t done = 0;
    while (true) {
      // Files of /proc say that they have 0 bytes; and a file may have grown.
      if (done == text.size()) text.resize(done + std::max<std::size_t>(4096, done / 8));
      const ssize_t got = ::read(file->get(), text.data() + done, std::min<std::size_t>(text.size() - done, 1U << 30));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return system_error("can't read " + path, errno);
      if (got == 0) break;
      done += static_cast<std::size_t>(got);
    }
    text.resize(done);
    return text;
  } catch (const std::bad_alloc&) {
  } catch (const std::length_error&) {
  }
  return make_error(ErrorCode::kNoSpace,
                    path + " has " + std::to_string(bytes) + " bytes, more than there is memory for");
}

Result<MappedFile> MappedFile::open(const std::string& path) {
  std::uint64_t size = 0;
  auto file = open_to_read(path, size);
  if (!file) return tl::unexpected(file.error());
  if (size == 0) return MappedFile(std::move(*file), path, {});
  void* at = mmap(nullptr, size, PROT_READ, MAP_SHARED, file->get(), 0);
  if (at == MAP_FAILED) return system_error("can't map " + path, errno);
  return MappedFile(std::move(*file), path, {static_cast<const std::byte*>(at), size});
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) (void)munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

Status MappedFile::read(std::uint64_t at, std::span<std::byte> to) const {
  while (!to.empty()) {
    const ssize_t got =
        pread(file_.get(), to.data(), std::min<std::size_t>(to.size(), 1U << 30), static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return system_error("can't read " + path_, errno);
    if (got == 0) return make_error(ErrorCode::kCorrupt, path_ + " has become shorter since it was opened");
    to = to.subspan(static_cast<std::size_t>(got));
    at += static_cast<std::uint64_t>(got);
  }
  return {};
}

bool MappedFile::still_whole() const noexcept {
  struct stat info {};
  return fstat(file_.get(), &info) == 0 && static_cast<std::uint64_t>(info.st_size) >= bytes_.size();
}

}  // namespace dunnock::training::detail
