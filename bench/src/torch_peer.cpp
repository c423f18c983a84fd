#include "torch_peer.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <vector>

namespace dunnock::bench {
namespace {

constexpr std::chrono::seconds kPatience{600};  // torch.compile and slow machines included.

nlohmann::json error(const std::string& what) { return {{"error", what}}; }

}  // namespace

std::size_t resident_bytes_of(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("VmRSS:", 0) == 0) return std::strtoull(line.c_str() + 6, nullptr, 10) << 10;
  }
  return 0;
}

std::unique_ptr<TorchPeer> TorchPeer::start(std::string python, std::string script, std::string& why) {
  if (script.empty()) script = std::string(DUNNOCK_BENCH_SOURCE_DIR) + "/training_peer.py";
  if (access(script.c_str(), R_OK) != 0) {
    why = "can't read " + script;
    return nullptr;
  }
  std::vector<std::string> candidates;
  const char* const named = std::getenv("DUNNOCK_TORCH_PYTHON");
  if (!python.empty()) {
    candidates.push_back(std::move(python));
  } else {
    if (named != nullptr && *named != '\0') candidates.emplace_back(named);
    candidates.insert(candidates.end(), {"python3", "/usr/bin/python3"});
  }
  signal(SIGPIPE, SIG_IGN);  // A peer that dies is an answer, not our end.
  for (const std::string& candidate : candidates) {
    std::array<int, 2> in{};
    std::array<int, 2> out{};
    if (pipe2(in.data(), O_CLOEXEC) != 0) continue;
    if (pipe2(out.data(), O_CLOEXEC) != 0) {
      close(in[0]);
      close(in[1]);
      continue;
    }
    const pid_t pid = fork();
    if (pid == 0) {
      dup2(in[0], STDIN_FILENO);
      dup2(out[1], STDOUT_FILENO);
      const int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
      if (nowhere >= 0) dup2(nowhere, STDERR_FILENO);
      execlp(candidate.c_str(), candidate.c_str(), script.c_str(), "serve", nullptr);
      _exit(127);
    }
    close(in[0]);
    close(out[1]);
    std::unique_ptr<TorchPeer> peer(new TorchPeer);
    peer->python_ = candidate;
    peer->pid_ = pid;
    peer->to_ = in[1];
    peer->from_ = out[0];
    // A round before any request is refused, by a process that has imported all it needs.
    if (pid > 0) {
      const nlohmann::json answer = peer->ask("round");
      if (answer.value("error", "").find("before any request") != std::string::npos) return peer;
    }
  }
  why = "no Python here has torch and numpy (--python or DUNNOCK_TORCH_PYTHON names one)";
  return nullptr;
}

TorchPeer::~TorchPeer() {
  if (to_ >= 0) close(to_);  // The end of its input is its end,
  if (from_ >= 0) close(from_);
  if (pid_ <= 0) return;
  for (int i = 0; i < 100; ++i) {
    if (waitpid(pid_, nullptr, WNOHANG) != 0) return;
    usleep(50'000);
  }
  kill(pid_, SIGKILL);  // or this is.
  waitpid(pid_, nullptr, 0);
}

nlohmann::json TorchPeer::ask(const std::string& line) {
  const std::string all = line + "\n";
  for (std::size_t sent = 0; sent < all.size();) {
    const ssize_t some = write(to_, all.data() + sent, all.size() - sent);
    if (some < 0 && errno == EINTR) continue;
    if (some <= 0) return error(std::string("the process is gone: ") + std::strerror(errno));
    sent += static_cast<std::size_t>(some);
  }
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    if (const std::size_t end = read_.find('\n'); end != std::string::npos) {
      const std::string answer = read_.substr(0, end);
      read_.erase(0, end + 1);
      nlohmann::json parsed = nlohmann::json::parse(answer, nullptr, false);
      if (!parsed.is_object()) return error("not an answer: " + answer);
      return parsed;
    }
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) return error("no answer within " + std::to_string(kPatience.count()) + " s");
    pollfd wanted{from_, POLLIN, 0};
    const int ready = poll(&wanted, 1, static_cast<int>(left.count()));
    if (ready <= 0) continue;
    std::array<char, 4096> some{};
    const ssize_t got = read(from_, some.data(), some.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return error("the process has ended");
    read_.append(some.data(), static_cast<std::size_t>(got));
  }
}

std::size_t TorchPeer::resident_bytes() const { return resident_bytes_of(pid_); }

}  // namespace dunnock::bench
