// Other programs: run one, take what it prints, and end it when its time is over.
#pragma once

#include <string>
#include <vector>

namespace dunnock::gpu_check {

struct Finished {
  int status = -1;         ///< Its exit status; -1: it did not end by itself, or could not be started.
  bool timed_out = false;  ///< It was ended, with all that it had started.
  std::string output;      ///< What it printed: standard output, then errors too where they are asked for.
};

struct ProcessOptions {
  double seconds_max = 60;
  bool with_errors = false;                 ///< Standard error is taken too; else it is let through.
  std::size_t output_bytes_max = 16 << 20;  ///< What comes behind is read and dropped.
};

/// `arguments[0]` is looked for on PATH. Returns when it has ended, at the latest a second after its time is over.
[[nodiscard]] Finished run_process(const std::vector<std::string>& arguments, const ProcessOptions& options = {});
/// Where PATH has the program; empty: nowhere.
[[nodiscard]] std::string find_program(const std::string& name);

}  // namespace dunnock::gpu_check
