#include "dunnock/base/check.hpp"

#include <cstdio>
#include <cstdlib>

namespace dunnock::detail {

void check_failed(const char* condition, const char* why, const char* file, int line) noexcept {
  std::fprintf(stderr, "%s:%d: check failed: %s (%s)\n", file, line, condition, why);
  std::fflush(stderr);
  std::abort();
}

}  // namespace dunnock::detail
