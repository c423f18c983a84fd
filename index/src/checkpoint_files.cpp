#include "dunnock/index/checkpoint_files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace dunnock {
namespace {

bool read_all(int descriptor, std::uint64_t at, std::span<std::byte> into) noexcept {
  while (!into.empty()) {
    const ssize_t got =
        pread(descriptor, into.data(), std::min<std::size_t>(into.size(), 1U << 30), static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got == 0) errno = ENODATA;  // It is shorter than it was.
    if (got <= 0) return false;
    into = into.subspan(static_cast<std::size_t>(got));
    at += static_cast<std::uint64_t>(got);
  }
  return true;
}

}  // namespace

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  // Without O_NONBLOCK, opening a FIFO would wait for a writer.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return system_error("can't open " + path, errno);
  SafetensorsFile file(descriptor, 0, {});  // Closes it from here on.
  struct stat info {};
  if (fstat(descriptor, &info) != 0) return system_error("can't open " + path, errno);
  if (!S_ISREG(info.st_mode)) return make_error(ErrorCode::kInvalidArgument, path + " is not a regular file");
  const auto corrupt = [&path](const std::string& what) { return make_error(ErrorCode::kCorrupt, path + ": " + what); };
  const auto size = static_cast<std::uint64_t>(info.st_size);
  std::uint64_t length = 0;
  if (size < sizeof length || !read_all(descriptor, 0, std::as_writable_bytes(std::span(&length, 1))))
    return corrupt("not a safetensors file: it has no header");
  if (length > kSafetensorsHeaderBytesMax || length > size - sizeof length)
    return corrupt("not a safetensors file, or truncated: its header would have " + std::to_string(length) + " bytes");
  std::vector<std::byte> json(length);
  if (!read_all(descriptor, sizeof length, json)) return system_error("can't read " + path, errno);
  auto header = parse_safetensors_header(json, size - sizeof length - length);
  if (!header) return make_error(header.error().code, path + ": " + header.error().message);
  file.path_ = path;
  file.data_at_ = sizeof length + length;
  file.header_ = std::move(*header);
  return file;
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      path_(std::move(other.path_)),
      data_at_(other.data_at_),
      header_(std::move(other.header_)) {}

SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(path_, other.path_);
  std::swap(data_at_, other.data_at_);
  std::swap(header_, other.header_);
  return *this;
}

SafetensorsFile::~SafetensorsFile() {
  if (descriptor_ >= 0) (void)::close(descriptor_);
}

Status SafetensorsFile::read(std::uint64_t offset_bytes, std::span<std::byte> into) const {
  if (!read_all(descriptor_, data_at_ + offset_bytes, into)) return system_error("can't read " + path_, errno);
  return {};
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
  DUNNOCK_TRY(const auto header, safetensors_header(tensors, notes));
  std::vector<std::uint64_t> begins{header.size()};
  for (const TensorSpec& spec : tensors) begins.push_back(begins.back() + spec.bytes().value_or(0));
  DUNNOCK_TRY(auto output, OutputFile::create(path));
  DUNNOCK_TRY(output.write_at(0, std::as_bytes(std::span(header))));
  return SafetensorsWriter(std::move(output), std::move(begins));
}

Status SafetensorsWriter::write(std::size_t tensor, std::uint64_t offset_bytes, std::span<const std::byte> from) {
  return output_.write_at(begins_[tensor] + offset_bytes, from);
}

}  // namespace dunnock
