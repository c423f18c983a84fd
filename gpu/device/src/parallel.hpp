// Loops of the CPU kernels over several processors, by OpenMP: as oneDNN has it too, so both share one team of threads
// for each stream. How many: StreamOptions::threads.
#pragma once

#include <algorithm>
#include <cstddef>

#if defined(_OPENMP)
#include <omp.h>
#endif

/// Before a hot function of plain loops: it is compiled for AVX-512 too, and the loader takes what the processor has.
/// What is inlined into it is compiled so as well. (Sanitizers do not know of the loader's choice.)
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(__clang__)
#define DUNNOCK_VECTOR_CLONES
#else
#define DUNNOCK_VECTOR_CLONES __attribute__((target_clones("arch=x86-64-v4", "default")))
#endif

namespace dunnock::device {

[[nodiscard]] inline unsigned parallel_threads() noexcept {
#if defined(_OPENMP)
  return static_cast<unsigned>(omp_get_max_threads());
#else
  return 1;
#endif
}

/// For what the calling thread does from now on; 0: the default.
inline void set_parallel_threads([[maybe_unused]] unsigned threads) noexcept {
#if defined(_OPENMP)
  if (threads != 0) omp_set_num_threads(static_cast<int>(threads));
#endif
}

/// Calls body(first, last) for parts of 0 .. count - 1, each of at least `grain` (but the whole, if that is less), on
/// as many threads as there are parts. The parts depend on `count`, `grain` and the threads of the stream alone, so
/// what a body sums up by part is the same in each run.
template <class Body>
void parallel_for(std::size_t count, std::size_t grain, const Body& body) {
  if (count == 0) return;
  const std::size_t parts = std::clamp<std::size_t>(count / std::max<std::size_t>(grain, 1), 1, parallel_threads());
  if (parts == 1) return body(std::size_t{0}, count);
#if defined(_OPENMP)
#pragma omp parallel for schedule(static, 1) num_threads(static_cast <int>(parts))
#endif
  for (std::size_t part = 0; part < parts; ++part) body(count * part / parts, count * (part + 1) / parts);
}

/// Values of f32 arithmetic that make a thread worth waking (some 5 us of work).
inline constexpr std::size_t kParallelGrain = 16384;

}  // namespace dunnock::device
