#include "filter/reopen.hpp"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <utility>

#include "child.hpp"
#include "filter/subject.hpp"
#include "scratch.hpp"
#include "timing.hpp"

namespace dunnock::bench {

double reopen_ms(const FilterBenchOptions& options, const Keys& keys) {
  const ScratchFile pool("dunnock-bench-reopen-" + std::to_string(getpid()) + ".pool");
  const bool was_killed = run_and_kill([&](const auto& die) {
    const auto made = make_subject(
        {.structure = "", .design = Design::kParallel, .medium = Medium::kProcess},
        {.bits = options.bits, .slots = table_slots(options.bits, 1ULL << 30), .seed = 1, .pool = pool.path});
    if (!made) fail(made.error().message);
    (void)(*made)->insert_bulk(keys.in(0, keys.in().size() / 4));
    die();
  });
  if (!was_killed) return NAN;
  std::unique_ptr<Subject> subject;  // Closed when the clock has stopped.
  bool is_found = false;
  const double ns = ns_of([&] {
    auto opened = open_subject(options.bits, pool.path);
    if (!opened) return;
    subject = std::move(*opened);
    is_found = subject->contains(keys.in(0, 1)) == 1;
  });
  if (is_found) return ns / 1e6;
  std::fprintf(stderr, "keys that a killed process had inserted are not found\n");
  return NAN;
}

}  // namespace dunnock::bench
