#include "dunnock/index/checkpoint_files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

namespace dunnock {
namespace {

tl::unexpected<Error> system_error(const std::string& what, int error) {
  const ErrorCode code = error == ENOENT                                       ? ErrorCode::kNotFound
                         : error == ENOSPC || error == EDQUOT                  ? ErrorCode::kNoSpace
                         : error == EACCES || error == EROFS || error == EPERM ? ErrorCode::kReadOnly
                                                                               : ErrorCode::kIo;
  return make_error(code, what + ": " + std::strerror(error));
}

bool read_all(int descriptor, std::uint64_t at, std::span<std::byte> into) noexcept {
  while (!into.empty()) {
    const ssize_t got =
        pread(descriptor, into.data(), std::min<std::size_t>(into.size(), 1U << 30), static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    into = into.subspan(static_cast<std::size_t>(got));
    at += static_cast<std::uint64_t>(got);
  }
  return true;
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

}  // namespace

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  // Without O_NONBLOCK, opening a FIFO would wait for whoever writes into it.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return system_error("can't open " + path, errno);
  SafetensorsFile file(descriptor, 0, {});  // Closes it from here on.
  struct stat info {};
  if (fstat(descriptor, &info) != 0) return system_error("can't open " + path, errno);
  if (!S_ISREG(info.st_mode)) return make_error(ErrorCode::kInvalidArgument, path + " is not an ordinary file");
  const auto corrupt = [&path](const std::string& what) { return make_error(ErrorCode::kCorrupt, path + ": " + what); };
  const auto size = static_cast<std::uint64_t>(info.st_size);
  std::uint64_t length = 0;
  if (size < sizeof length || !read_all(descriptor, 0, std::as_writable_bytes(std::span(&length, 1))))
    return corrupt("not a safetensors file: it has no header");
  if (length > kSafetensorsHeaderBytesMax || length > size - sizeof length)
    return corrupt("not a safetensors file, or cut off: its header would have " + std::to_string(length) + " bytes");
  std::vector<std::byte> json(length);
  if (!read_all(descriptor, sizeof length, json)) return system_error("can't read " + path, errno);
  auto header = parse_safetensors_header(json, size - sizeof length - length);
  if (!header) return make_error(header.error().code, path + ": " + header.error().message);
  file.data_at_ = sizeof length + length;
  file.header_ = std::move(*header);
  return file;
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), data_at_(other.data_at_), header_(std::move(other.header_)) {}

SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(data_at_, other.data_at_);
  std::swap(header_, other.header_);
  return *this;
}

SafetensorsFile::~SafetensorsFile() {
  if (descriptor_ >= 0) (void)::close(descriptor_);
}

bool SafetensorsFile::read(std::uint64_t offset_bytes, std::span<std::byte> into) const noexcept {
  return read_all(descriptor_, data_at_ + offset_bytes, into);
}

std::vector<TensorSource> SafetensorsFile::sources() const {
  std::vector<TensorSource> all;
  for (const SafetensorsEntry& entry : header_.tensors) {
    TensorSource& source = all.emplace_back();
    source.spec = entry.spec;
    source.read = [this, begin = entry.begin_bytes](std::uint64_t offset, std::span<std::byte> into) {
      return read(begin + offset, into);
    };
  }
  return all;
}

Result<SafetensorsWriter> SafetensorsWriter::create(const std::string& path, std::span<const TensorSpec> tensors,
                                                    std::span<const std::pair<std::string, std::string>> notes) {
  const auto header = safetensors_header(tensors, notes);
  if (!header) return tl::unexpected(header.error());
  std::vector<std::uint64_t> begins{header->size()};
  for (const TensorSpec& spec : tensors) begins.push_back(begins.back() + spec.bytes().value_or(0));
  const std::string temporary = path + ".part";
  const int descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor < 0) return system_error("can't write " + temporary, errno);
  SafetensorsWriter writer(descriptor, path, temporary, std::move(begins));
  if (!write_all(descriptor, 0, std::as_bytes(std::span(*header))) ||
      ftruncate(descriptor, static_cast<off_t>(writer.begins_.back())) != 0)
    return system_error("can't write " + temporary, errno);
  return writer;
}

SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      begins_(std::move(other.begins_)) {}

SafetensorsWriter::~SafetensorsWriter() {
  if (descriptor_ < 0) return;
  (void)::close(descriptor_);
  (void)::unlink(temporary_.c_str());
}

bool SafetensorsWriter::write(std::size_t tensor, std::uint64_t offset_bytes,
                              std::span<const std::byte> from) noexcept {
  return write_all(descriptor_, begins_[tensor] + offset_bytes, from);
}

Status SafetensorsWriter::commit() {
  if (fsync(descriptor_) != 0) return system_error("can't write " + temporary_, errno);
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0)
    return system_error("can't rename " + temporary_ + " to " + path_, errno);
  (void)::close(std::exchange(descriptor_, -1));
  // The new name is durable when the directory is.
  std::string directory = std::filesystem::path(path_).parent_path().string();
  if (directory.empty()) directory = ".";
  const int folder = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return system_error("can't open " + directory, errno);
  const int synced = fsync(folder);
  const int error = errno;
  (void)::close(folder);
  if (synced != 0) return system_error("can't write " + directory, error);
  return {};
}

}  // namespace dunnock
