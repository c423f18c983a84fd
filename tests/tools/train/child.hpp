// dunnock-train as a child process, for tests that look at its words and its exit status.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "support/temporary_folder.hpp"

namespace dunnock::test {

struct ChildEnd {
  int status = -1;  // Of exit; 128 + N of signal N. SIGALRM: it took too long.
  std::string output;
};

/// Runs it to its end, but no longer than `seconds_max`; `words`: the program and its arguments.
inline ChildEnd run_child(const TemporaryFolder& folder, std::vector<std::string> words, unsigned seconds_max) {
  const std::string output = folder.path("output of a child.txt");
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  const pid_t id = fork();
  if (id == 0) {
    const int file = open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (file < 0) _exit(126);
    dup2(file, 1);
    dup2(file, 2);
    alarm(seconds_max);  // Is kept by what is executed.
    execvp(arguments[0], arguments.data());
    _exit(127);
  }
  int status = 0;
  waitpid(id, &status, 0);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), file_bytes(output)};
}

}  // namespace dunnock::test
