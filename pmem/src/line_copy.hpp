// copy_line: one line of a pool at one moment.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "dunnock/pmem/media.hpp"

namespace dunnock::detail {

/// A line as it is at one moment, while others may store to it: what was read twice alike. Their stores to one line
/// become durable in their order, so a copy must not have a younger word and lack an older one. between_words() is
/// called after each word of the first reading; `readings`: 2, or 1 to see what that would do (`journal_test`).
template <class BetweenWords>
#if defined(__SANITIZE_THREAD__)
__attribute__((no_sanitize("thread")))
#endif
inline void
copy_line(const std::byte* line, std::uint64_t* words, const BetweenWords& between_words, unsigned readings) noexcept {
  auto* from = reinterpret_cast<const volatile std::uint64_t*>(line);
  constexpr std::size_t kWords = kLineBytes / sizeof(std::uint64_t);
  while (true) {
    for (std::size_t i = 0; i < kWords; ++i) {
      words[i] = from[i];
      between_words();
    }
    if (readings == 1) return;
    std::atomic_thread_fence(std::memory_order_acquire);
    bool same = true;
    for (std::size_t i = 0; i < kWords; ++i) same = same && words[i] == from[i];
    if (same) return;
    cpu_pause();
  }
}
inline void copy_line(const std::byte* line, std::uint64_t* words) noexcept {
  copy_line(
      line, words, [] {}, 2);
}

}  // namespace dunnock::detail
