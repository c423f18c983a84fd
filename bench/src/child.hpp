// Children that are killed, for what a crash leaves to the next process that opens the pool.
#pragma once

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>

namespace dunnock::bench {

/// Runs work(die) in a child. die() kills it at once, with everything that work has open. False: the child has ended
/// otherwise, or there was none.
template <class Work>
bool run_and_kill(const Work& work) {
  const pid_t child = fork();
  if (child < 0) return false;
  if (child == 0) {
    work([] { (void)raise(SIGKILL); });
    _exit(1);
  }
  int status = 0;
  return waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

/// Runs work(report_ready) in a child, and kills it 0.2 s after it has called report_ready(). False: it never did.
template <class Work>
bool kill_in_the_middle(const Work& work) {
  std::array<int, 2> ends;
  if (pipe(ends.data()) != 0) return false;
  const pid_t child = fork();
  if (child == 0) {
    close(ends[0]);
    work([&] {
      if (write(ends[1], "x", 1) != 1) _exit(1);
    });
    _exit(1);
  }
  close(ends[1]);
  char ready = 0;
  const bool was_ready = read(ends[0], &ready, 1) == 1;
  usleep(200000);
  if (child > 0) {
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
  }
  close(ends[0]);
  return was_ready;
}

}  // namespace dunnock::bench
