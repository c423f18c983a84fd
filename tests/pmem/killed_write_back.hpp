// Kills the process at one of its write-backs: libpmemobj makes its steps durable by these calls, FileMedia too.
//
// The functions stand in for the C library's in the program that includes this. They need not write anything back, for
// the page cache survives a kill. Included by one file of a program.
#pragma once

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>

namespace dunnock::test {

/// The process is killed at this many write-backs from now. 0: at none.
inline std::atomic<long> write_backs_left{0};

inline int write_back() noexcept {
  if (write_backs_left > 0 && --write_backs_left == 0) kill(getpid(), SIGKILL);
  return 0;
}

}  // namespace dunnock::test

extern "C" {
[[gnu::used]] inline int msync(void*, std::size_t, int) { return dunnock::test::write_back(); }
[[gnu::used]] inline int fdatasync(int) { return dunnock::test::write_back(); }
[[gnu::used]] inline int fsync(int) { return dunnock::test::write_back(); }
}
