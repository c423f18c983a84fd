// Runs one function on several threads at once.
#pragma once

#include <thread>
#include <vector>

namespace dunnock::detail {

/// Returns when all of them have. The calling thread is one of them, and the only one when `threads` is 0 or 1.
template <class Work>
void run_on_threads(unsigned threads, const Work& work) {
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(work);
  work();
  for (std::thread& one : others) one.join();
}

}  // namespace dunnock::detail
