// Wall time, medians, and work on several threads.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

namespace dunnock::bench {

inline double median_of(std::vector<double> values) {
  if (values.empty()) return NAN;
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/// Wall time of work(), in nanoseconds.
template <class Work>
double ns_of(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count();
}

/// Calls work(thread) on `threads` threads; returns when all calls have.
template <class Work>
void on_threads(unsigned threads, const Work& work) {
  std::vector<std::thread> others;
  for (unsigned thread = 1; thread < threads; ++thread) others.emplace_back([&work, thread] { work(thread); });
  work(0U);
  for (std::thread& one : others) one.join();
}

/// Calls work(from, to) for equal parts of [0, count), one on each of `threads` threads; returns when all calls have.
template <class Work>
void in_parts(unsigned threads, std::uint64_t count, const Work& work) {
  on_threads(threads, [&](unsigned thread) { work(count * thread / threads, count * (thread + 1) / threads); });
}

}  // namespace dunnock::bench
