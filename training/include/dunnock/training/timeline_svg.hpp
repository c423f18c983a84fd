// A timeline as a picture: an SVG of one row a lane, one box an operation, its colour by kind and its number inside.
// Small enough for documents; Perfetto's view (gpu/timeline.hpp) is for looking closely.
#pragma once

#include <string>

#include "dunnock/base/result.hpp"
#include "dunnock/training/schedules.hpp"

namespace dunnock::training {

struct SvgOptions {
  std::string title;             ///< Above the picture; "simulated" is added.
  double width = 960;            ///< Pixels of the time axis.
  bool shows_transfers = false;  ///< Rows of what devices receive, which pipelines' pictures rarely need.
};

/// Boxes carry the micro-batch (pipelines) or the layer, where there is room. Lanes with nothing to show are left out.
[[nodiscard]] std::string to_svg(const Plan& plan, const gpu::Timeline& timeline, const SvgOptions& options = {});
/// Errors: those of write_output_file.
[[nodiscard]] Status write_svg(const std::string& path, const Plan& plan, const gpu::Timeline& timeline,
                               const SvgOptions& options = {});

}  // namespace dunnock::training
