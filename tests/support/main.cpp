// main() of every test program: GoogleTest, and --seed N.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>

#include "support/seed.hpp"

namespace {
std::uint64_t run_seed = 0;
}  // namespace

std::uint64_t dunnock::test::seed() { return run_seed; }

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  run_seed = std::random_device{}();
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--seed") == 0 && i + 1 < argc) run_seed = std::strtoull(argv[i + 1], nullptr, 10);
  }
  std::printf("seed %llu (replay with --seed)\n", static_cast<unsigned long long>(run_seed));
  // rapidcheck reads its own seed from the environment.
  setenv("RC_PARAMS", ("seed=" + std::to_string(run_seed)).c_str(), 0);
  const int failed = RUN_ALL_TESTS();
  // A filter that fits no test is a slip of the pen, not a pass.
  if (failed == 0 && !GTEST_FLAG_GET(list_tests) && testing::UnitTest::GetInstance()->test_to_run_count() == 0) {
    std::fprintf(stderr, "no test was run\n");
    return 2;
  }
  return failed;
}
