// Switches between stacks of one thread: the basis of simulated threads (pmem/sim_media.hpp; the emulator of GPU blocks
// in tests/gpu/kernels/emulator). Not for production code, which has real threads.
//
//   scheduler  --switch_stacks(&its pointer, a fiber's)-->  fiber  --switch_stacks(&its pointer, the scheduler's)-->
//   ...
//
// x86-64, System V. (swapcontext would do, but asks the kernel for the signal mask at every switch, which was 40 % of
// an exploration of crash images.)
#pragma once

#include <cstddef>

namespace dunnock {

/// Saves the callee-saved registers on the running stack and its pointer in *save, then continues on the stack `load`.
extern "C" void dunnock_switch_stacks(void** save, void* load);

/// The pointer for the first switch to a new stack: `start` runs on it, and must never return.
[[nodiscard]] void* first_stack_pointer(char* stack, std::size_t bytes, void (*start)()) noexcept;

/// ThreadSanitizer's record of one stack. It keeps a shadow of the calls on each stack; if it does not learn that the
/// stack changes, the one thread's shadow grows with every fiber that ends (24 GiB after a million images).
class ShadowStack {
 public:
  void begin() noexcept;       ///< Makes this the record of a new stack.
  void be_current() noexcept;  ///< Makes this the record of the running stack.
  /// Call immediately before switching to this stack. Stacks of one thread take turns, so they do not race.
  void switch_to() const noexcept;
  void end() noexcept;

 private:
  [[maybe_unused]] void* context_ = nullptr;
};

}  // namespace dunnock
