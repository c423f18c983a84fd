// Changes: a run that goes on from a checkpoint with another learning rate, and others like it.
//
//   checkpoint: notes of the run ---+
//   config of this run ------------ +--> resolve() --> the config that goes on, and the notes of its own checkpoints
//   --change KEY=VALUE ------------ +
//
// The notes are the whole config that a checkpoint was made with, and for each key that was changed the value that the
// run began with. So a later --resume with the old file goes on with the changed values, and one with another config
// learns which key differs. Not for what may differ anyway (ranks, schedule, device): --set gives that to each run.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config.hpp"
#include "dunnock/base/result.hpp"

namespace dunnock::train {

/// What a checkpoint keeps in words, by name.
using Notes = std::vector<std::pair<std::string, std::string>>;

/// Whether a run that goes on may have another value of this key. Errors: InvalidArgument: there is no such key; it
/// makes another run, and why.
[[nodiscard]] Status may_change(std::string_view key);

struct SavedRun {
  std::uint64_t step = 0;
  Notes notes;  ///< Empty: a checkpoint of a version before there were notes.
};

/// A config that goes on with a checkpoint.
struct Resolved {
  LoadedConfig loaded;
  std::map<std::string, std::string> before;  ///< Of each key that was changed: what the run began with, as in TOML.
  std::uint64_t setup = 0;                    ///< identity_of() what the checkpoint was made with.
  bool hash_only = false;  ///< The checkpoint does not say what it was made with; `setup` is of the config given.
  [[nodiscard]] Notes notes() const;
};

/// `saved`: none where there is no checkpoint. Errors: InvalidArgument: a change that may_change() refuses, that is no
/// sound value, or that the checkpoint has no moments for; keys that determine the run differ, which are named with
/// both values.
[[nodiscard]] Result<Resolved> resolve(const LoadedConfig& given, std::span<const std::string> changes,
                                       const std::optional<SavedRun>& saved);

/// The words of a command line, as a shell reads them.
[[nodiscard]] std::string command_line(std::span<const std::string> words);

/// `words`, a command line of dunnock-train, but going on from `step` with these changes ("section.key=value").
[[nodiscard]] std::vector<std::string> resuming_command(std::span<const std::string> words, std::uint64_t step,
                                                        std::span<const std::string> changes);

}  // namespace dunnock::train
