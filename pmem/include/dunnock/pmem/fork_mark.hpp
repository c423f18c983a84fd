// ForkMark: which process opened this? A pool belongs to the process that opened it.
//
// fork() copies a pool's objects into the child, but neither its threads nor its right to the file. The child's copies
// answer Io, and their destructors only unmap (pool.hpp); a mark is how an object finds out that it is such a copy.
#pragma once

#include <atomic>
#include <cstdint>

namespace dunnock::detail {

/// Number of forks that led to this process as a child since the library was first used.
extern std::atomic<std::uint32_t> fork_generation;

class ForkMark {
 public:
  /// Is this process a child of the one that made the mark?
  [[nodiscard]] bool is_child() const noexcept {
    return generation_ != fork_generation.load(std::memory_order_relaxed);
  }

 private:
  std::uint32_t generation_ = fork_generation.load(std::memory_order_relaxed);
};

}  // namespace dunnock::detail
