// Runs one function on several threads at once.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/pmem/start_thread.hpp"

namespace dunnock::detail {

/// Can a caller ask for so many? Errors: InvalidArgument.
[[nodiscard]] inline Status check_threads(unsigned threads, unsigned threads_max) {
  if (threads <= threads_max) return {};
  return make_error(ErrorCode::kInvalidArgument, "a checkpoint can be saved or restored by at most " +
                                                     std::to_string(threads_max) + " threads, not " +
                                                     std::to_string(threads));
}

/// Returns when all of them have. The calling thread is one of them, and the only one when `threads` is 0 or 1, or when
/// the system has no other: fewer may run than `threads`, so each has to take shares of the work until none is left.
template <class Work>
void run_on_threads(unsigned threads, const Work& work) {
  std::vector<std::unique_ptr<std::thread>> others;
  if (threads > 1) others.reserve(threads - 1);
  while (others.size() + 1 < threads) {
    auto one = start_thread(std::cref(work));
    if (!one) break;
    others.push_back(std::move(one));
  }
  work();
  for (const auto& one : others) one->join();
}

}  // namespace dunnock::detail
