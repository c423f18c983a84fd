// is_dax: persistent memory, by the kernel's word.
#pragma once

#include <sys/mman.h>

namespace dunnock::detail {

/// Is a mapping of the file persistent memory? Asks the kernel alone: PMDK's answers can be set by its environment.
inline bool is_dax(int fd) noexcept {
  void* const page = mmap(nullptr, 4096, PROT_READ, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0);
  if (page == MAP_FAILED) return false;
  munmap(page, 4096);
  return true;
}

}  // namespace dunnock::detail
