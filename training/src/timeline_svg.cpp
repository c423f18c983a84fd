#include "dunnock/training/timeline_svg.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <vector>

#include "dunnock/base/output_file.hpp"

namespace dunnock::training {
namespace {

constexpr double kRow = 18;
constexpr double kGap = 3;
constexpr double kLabel = 96;
constexpr double kTop = 44;
constexpr double kCharacter = 5.6;  // Of the boxes' font, pixels.

/// Colors that differ without red and green. Chunks after the first of a device have a dark edge.
struct Look {
  Part part;
  std::string_view name;
  std::string_view what;
  std::string_view colour;
};
constexpr std::array<Look, 8> kLooks = {{{Part::kForward, "f", "forward", "#9ecae1"},
                                         {Part::kOutputGradient, "b", "output gradient", "#fdae6b"},
                                         {Part::kWeightGradient, "w", "weight gradient", "#c7e9c0"},
                                         {Part::kUpdate, "u", "update", "#bcbddc"},
                                         {Part::kSendActivation, "s", "transfer", "#d9d9d9"},
                                         {Part::kSendGradient, "s", "transfer", "#d9d9d9"},
                                         {Part::kAllReduce, "r", "all-reduce", "#bdbdbd"},
                                         {Part::kNorm, "n", "norm", "#fdd0a2"}}};

const Look& look_of(Part part) { return *std::ranges::find(kLooks, part, &Look::part); }

std::string number(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.1f", value);
  std::string short_text = text.data();
  if (short_text.ends_with(".0")) short_text.resize(short_text.size() - 2);
  return short_text;
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '&': out += "&amp;"; break;
      case '"': out += "&quot;"; break;
      default: out += c;
    }
  }
  return out;
}

void add_text(std::string& svg, double x, double y, std::string_view text, std::string_view style = {}) {
  svg += "<text x=\"" + number(x) + "\" y=\"" + number(y) + "\"";
  if (!style.empty()) svg.append(" class=\"").append(style).append("\"");
  svg.append(">").append(escaped(text)).append("</text>\n");
}

/// What the colors of these parts mean, in a line.
void add_legend(std::string& svg, std::vector<Part> parts) {
  double x = 4;
  std::string_view last;
  std::ranges::sort(parts);
  for (const Part part : parts) {
    const Look& look = look_of(part);
    if (look.what == last) continue;
    last = look.what;
    svg += "<rect class=\"" + std::string(look.name) + "\" x=\"" + number(x) +
           "\" y=\"22\" width=\"12\" height=\"12\"/>\n";
    add_text(svg, x + 16, 32, look.what);
    x += 30 + 7.0 * static_cast<double>(look.what.size());
  }
}

}  // namespace

std::string to_svg(const Plan& plan, const schedule::Timeline& timeline, const SvgOptions& options) {
  const auto shown = [&](const schedule::Interval& one) {
    const Part part = plan.tags[one.op].part;
    const bool transfer = part == Part::kSendActivation || part == Part::kSendGradient;
    return one.end_us > one.start_us && (!transfer || options.shows_transfers);
  };
  std::vector<bool> used(plan.schedule.lanes.size());
  double end_us = 0;
  std::vector<Part> parts;
  for (const schedule::Interval& one : timeline.intervals) {
    if (!shown(one)) continue;
    used[one.lane] = true;
    end_us = std::max(end_us, one.end_us);
    const Part part = plan.tags[one.op].part;
    if (std::ranges::find(parts, part) == parts.end()) parts.push_back(part);
  }
  std::vector<double> y(plan.schedule.lanes.size());
  double height = kTop;
  for (std::size_t lane = 0; lane < used.size(); ++lane) {
    if (!used[lane]) continue;
    y[lane] = height;
    height += kRow + kGap;
  }
  height += 20;
  const double scale = end_us > 0 ? options.width / end_us : 0;

  std::string svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" + number(kLabel + options.width + 10) +
                    "\" height=\"" + number(height) + "\" font-family=\"sans-serif\" font-size=\"12\">\n<style>";
  for (const Look& look : kLooks) {
    if (look.part == Part::kSendGradient) continue;  // As the one before.
    const auto is_norm = [](const OpTag& tag) { return tag.part == Part::kNorm; };
    if (look.part == Part::kNorm && std::ranges::none_of(plan.tags, is_norm)) continue;
    svg.append(".").append(look.name).append("{fill:").append(look.colour).append("}");
  }
  svg +=
      "rect{stroke:#fff;stroke-width:.6}.c{stroke:#555}text{fill:#222}.n{font-size:9px;text-anchor:middle}"
      ".t{font-weight:bold}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n";
  add_text(svg, 4, 14, (options.title.empty() ? plan.name : options.title) + " (simulated)", "t");
  add_legend(svg, std::move(parts));
  for (std::size_t lane = 0; lane < used.size(); ++lane) {
    if (used[lane]) add_text(svg, 4, y[lane] + kRow - 5, plan.schedule.lanes[lane].name);
  }
  for (const schedule::Interval& one : timeline.intervals) {
    if (!shown(one)) continue;
    const OpTag& tag = plan.tags[one.op];
    const double left = kLabel + one.start_us * scale;
    const double width = (one.end_us - one.start_us) * scale;
    std::string style(look_of(tag.part).name);
    if (plan.family == Family::kPipeline && tag.chunk >= plan.devices) style += " c";
    svg += "<rect class=\"" + style + "\" x=\"" + number(left) + "\" y=\"" + number(y[one.lane]) + "\" width=\"" +
           number(width) + "\" height=\"" + number(kRow) + "\"/>\n";
    const std::string text = std::to_string(
        (plan.family == Family::kPipeline && tag.part != Part::kUpdate ? tag.micro_batch : tag.chunk) + 1);
    if (width >= kCharacter * static_cast<double>(text.size()) + 1)
      add_text(svg, left + width / 2, y[one.lane] + kRow - 6, text, "n");
  }
  add_text(svg, kLabel, height - 6, "0");
  add_text(svg, kLabel + options.width - 60, height - 6, number(end_us) + " us");
  return svg + "</svg>\n";
}

Status write_svg(const std::string& path, const Plan& plan, const schedule::Timeline& timeline,
                 const SvgOptions& options) {
  return write_output_file(path, to_svg(plan, timeline, options));
}

}  // namespace dunnock::training
