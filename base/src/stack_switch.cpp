#include "dunnock/base/stack_switch.hpp"

#include <cstdint>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

asm(R"(
.text
.globl dunnock_switch_stacks
.type dunnock_switch_stacks, @function
dunnock_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size dunnock_switch_stacks, .-dunnock_switch_stacks
)");

namespace dunnock {

void* first_stack_pointer(char* stack, std::size_t bytes, void (*start)()) noexcept {
  // As if it had switched away: six registers, then the address to return to; 16-byte aligned after the return.
  const auto top = reinterpret_cast<std::uintptr_t>(stack + bytes) / 16 * 16;
  auto* const slots = reinterpret_cast<void**>(top) - 8;
  for (int r = 0; r < 6; ++r) slots[r] = nullptr;
  slots[6] = reinterpret_cast<void*>(start);
  slots[7] = nullptr;
  return slots;
}

#if defined(__SANITIZE_THREAD__)
void ShadowStack::begin() noexcept { context_ = __tsan_create_fiber(0); }
void ShadowStack::be_current() noexcept { context_ = __tsan_get_current_fiber(); }
void ShadowStack::switch_to() const noexcept { __tsan_switch_to_fiber(context_, 0); }
void ShadowStack::end() noexcept { __tsan_destroy_fiber(context_); }
#else
void ShadowStack::begin() noexcept {}
void ShadowStack::be_current() noexcept {}
void ShadowStack::switch_to() const noexcept {}
void ShadowStack::end() noexcept {}
#endif

}  // namespace dunnock
