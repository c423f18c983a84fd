// A timeline as a picture: an SVG with one row per lane and one box per operation, colored by kind, with its number
// inside. Small enough for documents; for a closer look, use Perfetto (schedule/timeline.hpp).
#pragma once

#include <string>

#include "dunnock/base/result.hpp"
#include "dunnock/training/schedules.hpp"

namespace dunnock::training {

struct SvgOptions {
  std::string title;             ///< Above the picture; "simulated" is added.
  double width = 960;            ///< Width of the time axis in pixels.
  bool shows_transfers = false;  ///< Shows rows of what devices receive, which pictures of pipelines rarely need.
};

/// Boxes show the micro-batch (pipelines) or the layer if there is room. Lanes with nothing to show are omitted.
[[nodiscard]] std::string to_svg(const Plan& plan, const schedule::Timeline& timeline, const SvgOptions& options = {});
/// Errors: those of write_output_file.
[[nodiscard]] Status write_svg(const std::string& path, const Plan& plan, const schedule::Timeline& timeline,
                               const SvgOptions& options = {});

}  // namespace dunnock::training
