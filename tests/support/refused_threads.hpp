// A system that has no more threads to give: the test decides how many can still be started.
//
// The function stands in for the C library's in the program that includes this. Included by one file of a program.
#pragma once

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <limits>

namespace dunnock::test {

inline constexpr int kThreadsUnlimited = std::numeric_limits<int>::max();
/// This many threads can be started from now on.
inline std::atomic<int> threads_left{kThreadsUnlimited};
/// Tries that were refused.
inline std::atomic<int> threads_refused{0};

/// Sets `threads_left` for as long as it lives.
class ThreadsLeft {
 public:
  explicit ThreadsLeft(int count) noexcept { threads_left = count; }
  ~ThreadsLeft() { threads_left = kThreadsUnlimited; }
  ThreadsLeft(const ThreadsLeft&) = delete;
  ThreadsLeft& operator=(const ThreadsLeft&) = delete;
};

}  // namespace dunnock::test

extern "C" [[gnu::used]] inline int pthread_create(pthread_t* thread, const pthread_attr_t* attributes,
                                                   void* (*work)(void*), void* argument) noexcept {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  // The C library's, or a sanitizer's.
  static const auto create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  for (int left = dunnock::test::threads_left; left != dunnock::test::kThreadsUnlimited;) {
    if (left == 0) {
      ++dunnock::test::threads_refused;
      return EAGAIN;
    }
    if (dunnock::test::threads_left.compare_exchange_weak(left, left - 1)) break;
  }
  return create(thread, attributes, work, argument);
}
