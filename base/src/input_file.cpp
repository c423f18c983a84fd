#include "dunnock/base/input_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <stdexcept>
#include <string_view>

namespace dunnock {
namespace {

std::string_view kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a FIFO";
  return S_ISSOCK(mode) ? "a socket" : "a device";
}

}  // namespace

Result<UniqueFd> open_to_read(const std::string& path, std::uint64_t& bytes) {
  // Without O_NONBLOCK, opening a FIFO would wait for a writer.
  UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file) return system_error("can't open " + path, errno);
  struct stat info {};
  if (fstat(file.get(), &info) != 0) return system_error("can't open " + path, errno);
  if (!S_ISREG(info.st_mode))
    return make_error(ErrorCode::kInvalidArgument,
                      path + " is " + std::string(kind_of(info.st_mode)) + ", not a regular file");
  bytes = static_cast<std::uint64_t>(info.st_size);
  return file;
}

Result<std::string> read_file(const std::string& path) {
  std::uint64_t bytes = 0;
  DUNNOCK_TRY(const auto file, open_to_read(path, bytes));
  try {
    std::string text;
    text.resize(bytes + 1);  // One more, in which the end is met.
    std::size_t done = 0;
    while (true) {
      // Files of /proc say that they have 0 bytes; and a file may have grown.
      if (done == text.size()) text.resize(done + std::max<std::size_t>(4096, done / 8));
      const ssize_t got = ::read(file.get(), text.data() + done, std::min<std::size_t>(text.size() - done, 1U << 30));
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
  return make_error(ErrorCode::kNoSpace, path + " has " + std::to_string(bytes) + " bytes, which do not fit in memory");
}

Result<InputFile> InputFile::open(const std::string& path) {
  std::uint64_t bytes = 0;
  DUNNOCK_TRY(auto file, open_to_read(path, bytes));
  MappedFile mapped;
  if (bytes != 0) {
    mapped = MappedFile(file.get(), bytes, PROT_READ, MAP_SHARED);
    if (!mapped) return system_error("can't map " + path, errno);
  }
  return InputFile(std::move(file), path, std::move(mapped));
}

Status InputFile::read(std::uint64_t at, std::span<std::byte> to) const {
  while (!to.empty()) {
    const ssize_t got =
        pread(file_.get(), to.data(), std::min<std::size_t>(to.size(), 1U << 30), static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return system_error("can't read " + path_, errno);
    if (got == 0) return make_error(ErrorCode::kCorrupt, path_ + " was truncated while it was open");
    to = to.subspan(static_cast<std::size_t>(got));
    at += static_cast<std::uint64_t>(got);
  }
  return {};
}

bool InputFile::still_whole() const noexcept {
  struct stat info {};
  return fstat(file_.get(), &info) == 0 && static_cast<std::uint64_t>(info.st_size) >= bytes().size();
}

}  // namespace dunnock
