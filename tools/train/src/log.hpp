// TrainingLog: a row every few steps, as CSV, as JSON lines, or both, for people, plots and scripts.
//
//   step,epoch,loss,validation_loss,...      {"step": 10, "epoch": 0.5, "loss": 2.5, "validation_loss": null, ...}
//   10,0.5,2.5,,...
//
// Numbers are written so that reading them gives the same bits. What is not known is empty, or null; a loss that is no
// number is "nan", or null. A row is one write, and is not flushed: after a power loss the last rows may be missing or
// torn, after a kill they are not. A resumed run continues its log as if it had never been interrupted.
// Not for the state of a run (that is what checkpoints are for), and not for several processes: one rank logs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dunnock/base/file.hpp"
#include "dunnock/base/result.hpp"

namespace dunnock::train {

struct LogRow {
  std::uint64_t step = 0;  ///< Steps that are done.
  double epoch = 0;        ///< Epochs that are done, with fractions.
  double loss = 0;  ///< Of training, nats a token or an image; mean since the row before, or since it was resumed.
  std::optional<double> validation_loss = std::nullopt;  ///< Where it was evaluated.
  std::optional<double> accuracy = std::nullopt;         ///< Share of validation images, 0 to 1.
  double learning_rate = 0;
  std::optional<double> gradient_norm = std::nullopt;
  double items_per_second = 0;                      ///< Tokens or images.
  std::optional<double> peak_share = std::nullopt;  ///< Of the device's arithmetic, 0 to 1.
  std::uint64_t memory_bytes = 0;
  double seconds = 0;                  ///< Of training, from the very first step.
  std::uint64_t checkpoint_bytes = 0;  ///< Written for checkpoints since the row before.
  friend bool operator==(const LogRow&, const LogRow&) = default;
};

enum class LogFormat : std::uint8_t { kCsv, kJsonLines };

/// The first line of a CSV file, with its end.
[[nodiscard]] std::string csv_header();
/// With the end of the line.
[[nodiscard]] std::string to_line(const LogRow& row, LogFormat format);
/// A line without its end; nothing if it is none.
[[nodiscard]] std::optional<LogRow> row_of(std::string_view line, LogFormat format);

/// The rows of a file of either format; a last line without an end is left out. Errors: NotFound, ReadOnly, Io;
/// InvalidArgument (not a file); Corrupt: FILE:LINE is no row, or the first line no log's.
[[nodiscard]] Result<std::vector<LogRow>> read_log(const std::string& path);

struct LogPaths {
  std::string csv = {};   ///< "": none.
  std::string json = {};  ///< "": none.
};

class TrainingLog {
 public:
  /// A log of a new run: a file that is there becomes FILE.old (in place of an older one). Or the log of a run that
  /// goes on behind `resumed_step`: rows of later steps and a torn last line are cut off, all at once, and nothing is
  /// kept aside; a file that is not there is begun. Errors: NotFound (the folder), ReadOnly, NoSpace, Io; resumed,
  /// those of read_log() for what is not a log, which stays as it is.
  [[nodiscard]] static Result<TrainingLog> open(const LogPaths& paths,
                                                std::optional<std::uint64_t> resumed_step = std::nullopt);

  /// Writes a row into each file. When a file can't be written, the part of the row that has come into it is taken out
  /// again, the error is returned, and the row is missing; it is tried again with the next row, and that fails in
  /// silence until it works again, so that a full disk is told once. Errors: NoSpace, Io.
  [[nodiscard]] Status add(const LogRow& row);
  /// Rows that are missing in one file or another.
  [[nodiscard]] std::uint64_t rows_lost() const noexcept { return rows_lost_; }

 private:
  struct File {
    std::string path;
    LogFormat format;
    UniqueFd descriptor;
    std::uint64_t bytes = 0;  // Whole lines; what follows is not ours.
    bool failing = false;
  };
  static Result<File> begin(const std::string& path, LogFormat format);
  static Result<File> resume(const std::string& path, LogFormat format, std::uint64_t step);
  static Status append(File& file, const LogRow& row);

  std::vector<File> files_;
  std::uint64_t rows_lost_ = 0;
};

}  // namespace dunnock::train
