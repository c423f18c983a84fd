// TorchPeer: training_peer.py as a process that lives beside the benchmark and does a round of timing when asked, so
// that PyTorch and the runtime run in turn on the same machine.
#pragma once

#include <sys/types.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

namespace dunnock::bench {

/// Threads: one at a time. Ends with the object.
class TorchPeer {
 public:
  /// `python`: the interpreter; empty: DUNNOCK_TORCH_PYTHON, then python3 and /usr/bin/python3. `script`: empty: that
  /// of the source tree. Null, and `why` says so, where none of them has torch and numpy.
  [[nodiscard]] static std::unique_ptr<TorchPeer> start(std::string python, std::string script, std::string& why);
  TorchPeer(const TorchPeer&) = delete;
  TorchPeer& operator=(const TorchPeer&) = delete;
  ~TorchPeer();

  /// Sends a line and waits for the answer's; {"error": why} also where the process is gone.
  [[nodiscard]] nlohmann::json ask(const std::string& line);
  /// Resident memory of the process, bytes; 0: not known.
  [[nodiscard]] std::size_t resident_bytes() const;
  [[nodiscard]] const std::string& python() const noexcept { return python_; }

 private:
  TorchPeer() = default;
  std::string python_;
  pid_t pid_ = -1;
  int to_ = -1;
  int from_ = -1;
  std::string read_;  // What was read after the last line.
};

/// Resident memory of a process, bytes; 0: not known.
[[nodiscard]] std::size_t resident_bytes_of(pid_t pid);

}  // namespace dunnock::bench
