// The seed of random tests. Every test program prints it when it starts and takes `--seed N` to replay a run.
#pragma once

#include <cstdint>
#include <random>

namespace dunnock::test {

/// The seed of this run. The same for the whole process.
[[nodiscard]] std::uint64_t seed();

/// A generator for one test: the run's seed and a number of the test's own.
[[nodiscard]] inline std::mt19937_64 generator(std::uint64_t number) {
  std::seed_seq sequence{seed(), seed() >> 32, number};
  return std::mt19937_64(sequence);
}

}  // namespace dunnock::test
