// Progress: one line that shows how far a run is.
//
//   [############............]  1200/3000  loss 1.7321  2:31 left  12.3k tokens/s  45 % of peak  val 1.8012  312 MiB
//
// On a terminal it is drawn anew in place; elsewhere (a file, a pipe) a line is printed now and then.
// Not for logs: see log.hpp. Threads: one.
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace dunnock::train {

struct ProgressFacts {
  std::uint64_t step = 0;  ///< Steps that are done, of `steps`.
  std::uint64_t steps = 0;
  double loss = 0;
  std::optional<double> validation_loss = std::nullopt;  ///< The last one.
  double items_per_second = 0;
  std::string_view items = "tokens";                ///< Or "images".
  std::optional<double> peak_share = std::nullopt;  ///< 0 to 1.
  std::uint64_t memory_bytes = 0;                   ///< 0: not known.
  double seconds_left = -1;                         ///< Negative: not known.
};

/// The line, at most `columns` characters, all of them ASCII. Where they do not suffice, the bar shrinks, and then
/// parts go: memory first, then validation loss, share of peak, rate, bar, time left; step and loss are cut last.
[[nodiscard]] std::string progress_line(const ProgressFacts& facts, std::size_t columns);

/// "0:05", "59:59", "1:00:00", "4 d 03 h"; seconds are rounded up.
[[nodiscard]] std::string time_text(double seconds);
/// Three digits that count: "9.99", "10.0", "12.3k", "1.20M".
[[nodiscard]] std::string rate_text(double per_second);

class Progress {
 public:
  struct Options {
    bool terminal = false;
    std::function<std::size_t()> columns = [] { return std::size_t{120}; };  ///< Asked for each line.
    double seconds_between = 30;                                             ///< Of lines, or of drawings.
  };
  /// What suits `out`: a terminal, and its width; 10 drawings a second there, a line in 30 seconds elsewhere.
  [[nodiscard]] static Options options_for(std::FILE* out);

  Progress(std::FILE* out, Options options) : out_(out), options_(std::move(options)) {}
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// Ends the line if it is not ended.
  ~Progress() { end_line(); }

  /// Shows it when it is time: the first time, and `seconds_between` after the last. `now_s`: of any steady clock.
  void show(const ProgressFacts& facts, double now_s);
  /// Shows it in any case, and ends the line.
  void finish(const ProgressFacts& facts);
  /// A line of its own, above.
  void print(std::string_view line);

 private:
  void draw(const ProgressFacts& facts);
  void end_line();

  std::FILE* out_;
  Options options_;
  std::optional<double> shown_s_;
  std::string drawn_;  // What stands in the terminal's last line.
};

}  // namespace dunnock::train
