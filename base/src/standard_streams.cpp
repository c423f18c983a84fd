#include "dunnock/base/standard_streams.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <string>

#include "dunnock/base/output_file.hpp"

namespace dunnock {
namespace {

std::atomic<int> g_error{0};  // The first that write_standard_output() met.

}  // namespace

void keep_standard_descriptors() noexcept {
  for (const int number : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(number, F_GETFD) >= 0 || errno != EBADF) continue;
    // The lowest number that is free is this one. For the wrong direction, so that what uses it gets an error.
    (void)!::open("/dev/null", number == STDIN_FILENO ? O_WRONLY : O_RDONLY);
  }
}

void write_standard_output(std::string_view text) noexcept {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size()) return;
  int none = 0;
  g_error.compare_exchange_strong(none, errno == 0 ? EIO : errno);
}

Status flush_standard_output() {
  int error = g_error.load();
  errno = 0;
  const bool flushed = std::fflush(stdout) == 0;
  if (!flushed && error == 0) error = errno;
  if (error == 0 && std::ferror(stdout) != 0) {
    // A printf has failed and its reason is gone. The output is not whole anyway, so it is asked for once more.
    error = ::write(STDOUT_FILENO, "\n", 1) < 0 ? errno : EIO;
  }
  // Network file systems report at a close what they could not write.
  if (error == 0) {
    const int copy = ::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    if (copy >= 0 && ::close(copy) != 0) error = errno;
  }
  if (error != 0) return system_error("can't write to standard output", error);
  return {};
}

}  // namespace dunnock
