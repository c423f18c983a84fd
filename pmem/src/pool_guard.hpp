// PoolGuard: what happens to an open pool in a child of fork(), and when a page of its file can't be read.
//
// Both come from outside of any call of the library, so they are handled for the whole process: by handlers of
// pthread_atfork, and one of SIGBUS, which are installed with the first pool and stay.
//
//   fork      In the child the mapping becomes private, the descriptors become ones without a right to the lock, and
//             the media has failed (ECHILD). So the child can't change the pool, and does not keep it locked when the
//             parent dies. fork() waits for calls of libpmemobj that are at work on a pool.
//   SIGBUS    A fault within the mapping makes the media fail (EIO), and the page is replaced by zeros, so that the
//             access goes on. Any other fault goes to the handler that was there before.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>

namespace dunnock::detail {

class FileSync;

class PoolGuard {
 public:
  struct Guarded {
    void* base = nullptr;
    std::uint64_t bytes = 0;
    int file = -1;                     ///< Of the pool.
    FileSync* sync = nullptr;          ///< Its media.
    std::mutex* allocating = nullptr;  ///< Held while libpmemobj works on the pool.
    std::mutex* catalog = nullptr;     ///< Another, which is taken first.
    bool catch_sigbus = true;
    std::atomic<bool>* lost_a_page = nullptr;  ///< Set when a page could not be read.
  };
  using Lock = std::unique_lock<std::mutex>;
  /// While the result lives, fork() waits: a pool that is being opened must not be copied into a child unguarded.
  [[nodiscard]] static Lock keep_forks_out();
  /// Waits until children that were forked just now have let go of the descriptors that they were born with. False:
  /// there is none. Within keep_forks_out().
  static bool wait_for_children() noexcept;
  PoolGuard(const Guarded& guarded, const Lock& forks_kept_out);
  /// Calls unmap(), after which there is nothing to guard. A page that can't be read is met until then.
  void end(const Lock& forks_kept_out, const std::function<void()>& unmap);
  /// end() must have been called.
  ~PoolGuard() = default;
  PoolGuard(const PoolGuard&) = delete;
  PoolGuard& operator=(const PoolGuard&) = delete;

 private:
  friend struct GuardHandlers;
  struct Slot;
  Slot* slot_;
};

}  // namespace dunnock::detail
