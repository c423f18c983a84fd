#include "dunnock/base/program.hpp"

#include <cstdio>
#include <string>

#include "dunnock/base/last_catch.hpp"
#include "dunnock/base/printable.hpp"
#include "dunnock/base/standard_streams.hpp"

namespace dunnock {
namespace {

void complain(std::string_view name, std::string_view reason) noexcept {
  std::fprintf(stderr, "%.*s: %.*s\n", static_cast<int>(name.size()), name.data(), static_cast<int>(reason.size()),
               reason.data());
}

}  // namespace

int run_program(std::string_view name, int failed, const std::function<int()>& run) noexcept {
  try {
    keep_standard_descriptors();
    int status = failed;
    try {
      status = run();
    } catch (...) {
      complain(name, printable(words_of_exception()));
    }
    // After an exception too: what was printed before it must arrive.
    const Status printed = flush_standard_output();
    if (printed) return status;
    complain(name, printable(printed.error().message));
    return status == 0 ? failed : status;
  } catch (...) {
    complain(name, "out of memory");  // No words could be made.
    return failed;
  }
}

}  // namespace dunnock
