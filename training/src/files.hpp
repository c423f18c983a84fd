// Files for the readers of data: opened, mapped, and their errors in words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "dunnock/base/result.hpp"

namespace dunnock::training::detail {

/// `what`, and what the system says about `error` (an errno).
[[nodiscard]] tl::unexpected<Error> system_error(const std::string& what, int error);

/// Owns a descriptor.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) noexcept : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~Descriptor();
  [[nodiscard]] int get() const noexcept { return number_; }

 private:
  int number_ = -1;
};

/// Writes all of it at `at`; false: errno says why.
[[nodiscard]] bool write_all(int descriptor, std::uint64_t at, std::span<const std::byte> from) noexcept;

/// Makes what is in `temporary` durable under the name `path`, its directory included.
[[nodiscard]] Status publish(const Descriptor& file, const std::string& temporary, const std::string& path);

/// Opens an ordinary file for reading; what is none is refused at once, also a FIFO that nobody writes into.
/// `bytes`: its size. Errors: NotFound, ReadOnly (no right to read it), InvalidArgument (not an ordinary file), Io.
[[nodiscard]] Result<Descriptor> open_to_read(const std::string& path, std::uint64_t& bytes);

/// A whole file, for reading, as text. Unlike what is mapped, it may be cut off meanwhile. Errors: those of
/// open_to_read(); NoSpace: there is not the memory for it.
[[nodiscard]] Result<std::string> read_file(const std::string& path);

/// A whole file, for reading, mapped. Threads: any number.
class MappedFile {
 public:
  /// Errors: NotFound, ReadOnly (no right to read it), InvalidArgument (not an ordinary file), Io.
  [[nodiscard]] static Result<MappedFile> open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept
      : file_(std::move(other.file_)), path_(std::move(other.path_)), bytes_(std::exchange(other.bytes_, {})) {}
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile();

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  /// Copies bytes of the file by reading it, so that one that is being cut off is an error and no signal. Errors:
  /// Corrupt (it has become shorter), Io.
  [[nodiscard]] Status read(std::uint64_t at, std::span<std::byte> to) const;
  /// Has it still the size that it was opened with? What was cut off can't be read (the system sends SIGBUS), so look
  /// before a longer reading.
  [[nodiscard]] bool still_whole() const noexcept;

 private:
  MappedFile(Descriptor file, std::string path, std::span<const std::byte> bytes) noexcept
      : file_(std::move(file)), path_(std::move(path)), bytes_(bytes) {}
  Descriptor file_;
  std::string path_;
  std::span<const std::byte> bytes_;
};

}  // namespace dunnock::training::detail
