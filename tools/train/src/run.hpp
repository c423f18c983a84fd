// Run: one run of dunnock-train, on one process or as a rank of many.
//
//   config -> data, trainer, checkpoints (resumed, if asked for) -> window after window of steps
//                                                    between them: log, evaluation, saves, signals
//
// What a crash leaves: the checkpoints whose saves were done, and the log up to some row; both are continued.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "config.hpp"
#include "dunnock/base/result.hpp"
#include "dunnock/ranks/communicator.hpp"

namespace dunnock::train {

struct RunOptions {
  bool resume = false;                       ///< From the newest checkpoint; from the beginning if there is none.
  std::optional<std::uint64_t> resume_step;  ///< From that of this step; newer ones are removed.
  bool verify = false;                       ///< Before resuming, every byte of it.
  std::vector<std::string> changes;          ///< "section.key=value", of a run that is resumed (changes.hpp).
  std::vector<std::string> command;          ///< The program's words, for messages that give a command.
  std::string trace;         ///< Chrome/Perfetto JSON of a window; "": none. Ranks but the first add ".rankN".
  std::string weights;       ///< Initial weights, a safetensors file; "": drawn by the seed.
  std::string save_weights;  ///< Written at the end; "": no.
  /// JSON lines, one as each thing happens, for what watches a run: {"event": EVENT, "step": N, ...}, EVENT being
  /// "started", "resumed", "saving", "saved", "save failed", "stopped" or "done"; appended. "": none. One that can't be
  /// written is reported, and training continues.
  std::string events;
  std::optional<double> seconds_max;  ///< Stops, saving, when so much time is over.
  bool quiet = false;                 ///< Results only.
};

/// How it ended.
struct RunResult {
  std::uint64_t steps = 0;
  bool interrupted = false;  ///< By a signal or the time.
  bool logged = true;        ///< On the first rank: false: a row of the log or an event is missing.
  bool saved = true;         ///< On the first rank: false: there is a pool, and the last state did not get into it.
};

/// `world`: null for one process. Looks at all paths before it opens any: an output that can't be written, or that is
/// another output or an input, is an error, and everything is as it was. Errors: with words for people; the last
/// checkpoint is intact.
[[nodiscard]] Result<RunResult> run(const LoadedConfig& loaded, const RunOptions& options, ranks::Communicator* world);

/// From here on SIGINT and SIGTERM end the process with kInterrupted at once, until a run trains; from then on they end
/// the run after the current window, batch of an evaluation or token, with a save. A second one kills.
void stop_on_signals();
inline constexpr int kInterrupted = 130;  ///< Exit status.

}  // namespace dunnock::train
