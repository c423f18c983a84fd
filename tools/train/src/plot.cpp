#include "plot.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string_view>

#include "dunnock/base/check.hpp"
#include "dunnock/base/output_file.hpp"

namespace dunnock::train {
namespace {

// Okabe and Ito's colors, told apart by all eyes.
constexpr std::array<std::string_view, 7> kColours = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                      "#e69f00", "#56b4e9", "#555555"};
constexpr double kLeft = 56, kRight = 16, kTop = 24, kLegendRow = 18, kBottom = 40;
constexpr double kCharacter = 7;  // Pixels of the legend's font, about.

struct Point {
  double x = 0, y = 0;
};
using Line = std::vector<Point>;

std::string number(double value) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.1f", value);
  std::string out = text.data();
  if (out.ends_with(".0")) out.resize(out.size() - 2);
  return out == "-0" ? "0" : out;
}

/// As a label of an axis whose ticks are `step` apart: with the digits that tell them apart.
std::string label(double value, double step) {
  const double magnitude = std::max(std::abs(value), step);
  std::array<char, 64> text{};
  if (magnitude >= 1e7 || step < 1e-6) {
    std::snprintf(text.data(), text.size(), "%.*g", 6, value);
  } else {
    const int digits = std::clamp(static_cast<int>(std::ceil(-std::log10(step) - 1e-9)), 0, 6);
    std::snprintf(text.data(), text.size(), "%.*f", digits, value == 0 ? 0.0 : value);
  }
  return text.data();
}

/// How many bytes of a character of UTF-8 begin here; 0: none.
std::size_t character_at(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) {
    return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : std::uint8_t{0};
  };
  const auto follows = [&](std::size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const unsigned first = byte(0), second = byte(1);
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4) return 0;
  if (!follows(1)) return 0;
  if (first < 0xE0) return 2;
  if (!follows(2)) return 0;
  if (first == 0xE0 && second < 0xA0) return 0;                                        // Longer than it need be.
  if (first == 0xED && second > 0x9F) return 0;                                        // Half a surrogate.
  if (first < 0xF0) return first == 0xEF && second == 0xBF && byte(2) > 0xBD ? 0 : 3;  // U+FFFE, U+FFFF
  if (!follows(3)) return 0;
  if ((first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F)) return 0;
  return 4;
}

/// As text of XML: names may be anything, but XML has no control characters and only whole ones.
std::string escaped(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const char c = text[i];
    const std::size_t bytes = character_at(text, i);
    if (bytes == 0 || static_cast<unsigned char>(c) < 0x20) {
      out += '?';
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '&') {
      out += "&amp;";
    } else if (c == '"') {
      out += "&quot;";
    } else {
      out += text.substr(i, bytes);
    }
    i += std::max<std::size_t>(bytes, 1);
  }
  return out;
}

void add_text(std::string& svg, Point at, std::string_view text, std::string_view style) {
  svg.append("<text class=\"").append(style).append("\" x=\"").append(number(at.x)).append("\" y=\"");
  svg.append(number(at.y)).append("\">").append(escaped(text)).append("</text>\n");
}

void add_line(std::string& svg, Point from, Point to, std::string_view style) {
  svg.append("<line class=\"").append(style).append("\" x1=\"").append(number(from.x)).append("\" y1=\"");
  svg.append(number(from.y)).append("\" x2=\"").append(number(to.x)).append("\" y2=\"").append(number(to.y));
  svg.append("\"/>\n");
}

/// At most two points a pixel, the least and the largest of it in their order; gaps stay.
Line thinned(const Line& line) {
  Line out;
  for (std::size_t i = 0; i < line.size();) {
    if (!std::isfinite(line[i].y)) {
      out.push_back(line[i++]);
      continue;
    }
    std::size_t least = i, largest = i, end = i;
    for (; end < line.size() && std::floor(line[end].x) == std::floor(line[i].x) && std::isfinite(line[end].y); ++end) {
      if (line[end].y < line[least].y) least = end;
      if (line[end].y > line[largest].y) largest = end;
    }
    out.push_back(line[std::min(least, largest)]);
    if (least != largest) out.push_back(line[std::max(least, largest)]);
    i = end;
  }
  return out;
}

void add_curve(std::string& svg, const Line& line, std::string_view style, std::string_view colour) {
  std::string path;
  bool drawing = false;
  for (const Point& point : thinned(line)) {
    if (!std::isfinite(point.y)) {
      drawing = false;
      continue;
    }
    // What lies far outside is cut by the frame; renderers need not see numbers of any size.
    const double y = std::clamp(point.y, -1e4, 1e5);
    path.append(drawing ? "L" : "M").append(number(point.x)).append(" ").append(number(y));
    drawing = true;
  }
  if (path.empty()) return;
  svg.append("<path class=\"").append(style).append("\" stroke=\"").append(colour).append("\" d=\"");
  svg.append(path).append("\"/>\n");
}

/// What is drawn of a loss: those that have gone beyond all bounds lie far outside.
double drawable(double loss) { return std::clamp(loss, -1e30, 1e30); }  // NaN stays.

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  void add(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, drawable(value));
    high = std::max(high, drawable(value));
  }
};

}  // namespace

std::vector<double> ticks(double low, double high, unsigned most) {
  DUNNOCK_CHECK(std::isfinite(low) && std::isfinite(high), "the ends of an axis are finite");
  DUNNOCK_CHECK(low < high, "an axis begins before it ends");
  DUNNOCK_CHECK(most >= 3, "an axis has room for three ticks");
  // Halved first: the difference of two numbers may be larger than any.
  const double rough = 2 * ((high / 2 - low / 2) / most);
  double power = std::pow(10, std::floor(std::log10(rough)));
  for (;; power *= 10) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double step = factor * power;
      const double first = std::floor(low / step), last = std::ceil(high / step);
      if (last - first + 1 > most) continue;
      std::vector<double> all;
      for (double i = first; i <= last; ++i) all.push_back(i * step);
      return all;
    }
  }
}

std::vector<double> smoothed(std::span<const double> losses, double rows) {
  std::vector<double> out(losses.begin(), losses.end());
  const double keeps = 1 - 1 / std::max(1.0, rows);
  double average = 0, weight = 0;
  for (double& loss : out) {
    if (!std::isfinite(loss)) continue;
    average = keeps * average + (1 - keeps) * loss;
    weight = keeps * weight + (1 - keeps);
    loss = average / weight;
  }
  return out;
}

std::string loss_svg(std::span<const LossCurve> curves, const PlotOptions& options) {
  // What the axes hold.
  Range steps, losses;
  steps.add(0);
  std::vector<std::vector<double>> smooth;
  for (const LossCurve& curve : curves) {
    std::vector<double> all;
    for (const LogRow& row : curve.rows) {
      steps.add(static_cast<double>(row.step));
      all.push_back(row.loss);
      if (row.validation_loss) losses.add(*row.validation_loss);
    }
    const double rows = options.smoothing > 0 ? options.smoothing : static_cast<double>(all.size()) / 50;
    smooth.push_back(smoothed(all, rows));
    for (const double loss : smooth.back()) losses.add(loss);
  }
  if (!(losses.low <= losses.high)) losses = {0, 1};
  // All the same, or nearly: as much above as below.
  if (const double size = std::max(1.0, std::abs(losses.low)); losses.high - losses.low < 1e-9 * size) {
    const double room = size / 2;
    losses = {losses.low - room, losses.high + room};
  }
  const double last_step = std::max(1.0, steps.high);

  // Where they lie. The legend takes as many rows as its names need.
  std::vector<Point> legend;
  Point at{kLeft, kTop + 14};
  for (const LossCurve& curve : curves) {
    const double width = 44 + kCharacter * static_cast<double>(curve.name.size());
    if (at.x > kLeft && at.x + width > options.width - kRight) at = {kLeft, at.y + kLegendRow};
    legend.push_back(at);
    at.x += width;
  }
  const double top = at.y + 14;
  const double bottom = std::max(top + 40, options.height - kBottom);
  const double right = std::max(kLeft + 40, options.width - kRight);
  const std::vector<double> rows =
      ticks(losses.low, losses.high, std::max(3U, static_cast<unsigned>((bottom - top) / 40)));
  const std::vector<double> columns = ticks(0, last_step, std::max(3U, static_cast<unsigned>((right - kLeft) / 90)));
  const auto x_of = [&](double step) { return kLeft + (right - kLeft) * (step / last_step); };
  const auto y_of = [&](double loss) {
    if (!std::isfinite(loss)) return loss;
    return bottom - (bottom - top) * ((drawable(loss) - rows.front()) / (rows.back() - rows.front()));
  };

  std::string svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" + number(right + kRight) + "\" height=\"" +
                    number(bottom + kBottom) +
                    "\" font-family=\"sans-serif\" font-size=\"12\">\n"
                    "<style>path{fill:none}.raw{stroke-width:.7;opacity:.35}.smooth{stroke-width:1.8}"
                    ".validation{stroke-width:1.2;stroke-dasharray:5 3}.grid{stroke:#ddd}.frame{fill:none;stroke:#555}"
                    "text{fill:#222}.t{font-weight:bold}.x{text-anchor:middle}.y{text-anchor:end}</style>\n"
                    "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n";
  svg += "<clipPath id=\"frame\"><rect x=\"" + number(kLeft) + "\" y=\"" + number(top) + "\" width=\"" +
         number(right - kLeft) + "\" height=\"" + number(bottom - top) + "\"/></clipPath>\n";
  add_text(svg, {kLeft, 18}, options.title, "t");
  for (const double loss : rows) {
    add_line(svg, {kLeft, y_of(loss)}, {right, y_of(loss)}, "grid");
    add_text(svg, {kLeft - 6, y_of(loss) + 4}, label(loss, rows[1] - rows[0]), "y");
  }
  for (const double step : columns) {
    if (step > last_step) continue;
    add_line(svg, {x_of(step), top}, {x_of(step), bottom}, "grid");
    add_text(svg, {x_of(step), bottom + 16}, label(step, columns[1] - columns[0]), "x");
  }
  add_text(svg, {(kLeft + right) / 2, bottom + 32}, "step", "x");
  svg += "<g clip-path=\"url(#frame)\">\n";
  for (std::size_t i = 0; i < curves.size(); ++i) {
    const std::string_view colour = kColours[i % kColours.size()];
    Line thin, thick, validation;
    for (std::size_t row = 0; row < curves[i].rows.size(); ++row) {
      const LogRow& one = curves[i].rows[row];
      const double x = x_of(static_cast<double>(one.step));
      thin.push_back({x, y_of(one.loss)});
      thick.push_back({x, y_of(smooth[i][row])});
      if (one.validation_loss) validation.push_back({x, y_of(*one.validation_loss)});
    }
    add_curve(svg, thin, "raw", colour);
    add_curve(svg, thick, "smooth", colour);
    add_curve(svg, validation, "validation", colour);
    for (const Point& point : thinned(validation)) {
      if (!std::isfinite(point.y)) continue;
      svg += "<circle cx=\"" + number(point.x) + "\" cy=\"" + number(std::clamp(point.y, -1e4, 1e5)) +
             "\" r=\"3\" fill=\"" + std::string(colour) + "\"/>\n";
    }
  }
  svg += "</g>\n<rect class=\"frame\" x=\"" + number(kLeft) + "\" y=\"" + number(top) + "\" width=\"" +
         number(right - kLeft) + "\" height=\"" + number(bottom - top) + "\"/>\n";
  for (std::size_t i = 0; i < curves.size(); ++i) {
    const Point& place = legend[i];
    svg += "<path class=\"smooth\" stroke=\"" + std::string(kColours[i % kColours.size()]) + "\" d=\"M" +
           number(place.x) + " " + number(place.y - 4) + "h22\"/>\n";
    add_text(svg, {place.x + 28, place.y}, curves[i].name, "legend");
  }
  return svg + "</svg>\n";
}

Status write_loss_svg(const std::string& path, std::span<const LossCurve> curves, const PlotOptions& options) {
  return write_output_file(path, loss_svg(curves, options));
}

}  // namespace dunnock::train
