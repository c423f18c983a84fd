// Loss curves as an SVG: of each run the training loss (thin) and its smoothed form, and the validation loss (dots and
// a line), over the steps; several runs have a color each, and a legend.
//
// The looks are those of training/timeline_svg.hpp. Not for a million points: where there are more than pixels, each
// pixel shows the least and the largest of its steps.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "dunnock/base/result.hpp"
#include "log.hpp"

namespace dunnock::train {

struct LossCurve {
  std::string name;          ///< For the legend.
  std::vector<LogRow> rows;  ///< In the order of their steps. A loss that is not finite leaves a gap.
};

struct PlotOptions {
  std::string title = "loss";
  double width = 960, height = 480;  ///< Pixels, of the whole picture.
  /// Rows that the smoothed curve is an average of, the last ones counting most (an exponential average that forgets
  /// 1 / smoothing a row, corrected for its beginning). 0: a fiftieth of the run's rows.
  double smoothing = 0;
};

/// The picture. The axes hold what is smoothed and evaluated: a peak of a single step may be cut off.
[[nodiscard]] std::string loss_svg(std::span<const LossCurve> curves, const PlotOptions& options = {});
/// The same in a file, whole or not at all. Errors: NotFound (the folder), ReadOnly, NoSpace, Io.
[[nodiscard]] Status write_loss_svg(const std::string& path, std::span<const LossCurve> curves,
                                    const PlotOptions& options = {});

/// Multiples of 1, 2 or 5 times a power of ten, from at most `low` to at least `high`, as many as there can be without
/// being more than `most` (3 or more). `low` < `high`, both finite.
[[nodiscard]] std::vector<double> ticks(double low, double high, unsigned most);

/// The exponential average after each loss; a loss that is not finite is skipped, and kept as it is.
[[nodiscard]] std::vector<double> smoothed(std::span<const double> losses, double rows);

}  // namespace dunnock::train
