#include "process.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <string_view>
#include <thread>

namespace dunnock::gpu_check {

Finished run_process(const std::vector<std::string>& arguments, const ProcessOptions& options) {
  using Clock = std::chrono::steady_clock;
  Finished finished;
  std::vector<char*> argv;  // Before the fork: between it and exec nothing may be allocated.
  for (const std::string& one : arguments) argv.push_back(const_cast<char*>(one.c_str()));
  argv.push_back(nullptr);
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) return finished;
  const pid_t child = fork();
  if (child < 0) {
    (void)close(ends[0]);
    (void)close(ends[1]);
    return finished;
  }
  if (child == 0) {
    (void)setpgid(0, 0);  // So that what it starts can be ended with it.
    (void)dup2(ends[1], STDOUT_FILENO);
    if (options.with_errors) (void)dup2(ends[1], STDERR_FILENO);
    (void)execvp(argv[0], argv.data());
    _exit(127);
  }
  (void)setpgid(child, child);  // Parent or child, the one that gets here first.
  (void)close(ends[1]);
  const auto end =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(options.seconds_max));
  const auto ms_left = [&] {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
    return static_cast<int>(left < 0 ? 0 : left > 1'000'000 ? 1'000'000 : left);
  };
  std::array<char, 65536> buffer;
  for (;;) {
    pollfd one{ends[0], POLLIN, 0};
    const int ready = poll(&one, 1, ms_left());
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) {
      finished.timed_out = true;
      break;
    }
    const ssize_t got = read(ends[0], buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;  // All who could write have closed it.
    const auto room = options.output_bytes_max - finished.output.size();
    finished.output.append(buffer.data(), std::min(static_cast<std::size_t>(got), room));
  }
  (void)close(ends[0]);
  // It may close its output and go on.
  int state = 0;
  while (!finished.timed_out) {
    const pid_t gone = waitpid(child, &state, WNOHANG);
    if (gone == child) {
      if (WIFEXITED(state)) finished.status = WEXITSTATUS(state);
      return finished;
    }
    if (ms_left() == 0) finished.timed_out = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  (void)kill(-child, SIGKILL);
  while (waitpid(child, &state, 0) < 0 && errno == EINTR) {
  }
  return finished;
}

std::string find_program(const std::string& name) {
  const char* const path = std::getenv("PATH");
  std::string_view rest = path == nullptr ? "" : path;
  while (!rest.empty()) {
    const std::size_t colon = rest.find(':');
    std::string candidate = std::string(rest.substr(0, colon)) + "/" + name;
    if (access(candidate.c_str(), X_OK) == 0) return candidate;
    if (colon == std::string_view::npos) break;
    rest.remove_prefix(colon + 1);
  }
  return {};
}

}  // namespace dunnock::gpu_check
