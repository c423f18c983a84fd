// Loss curves: well-formed XML whatever the names are, points where they belong, and ticks that people like.
#include "plot.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>

#include "support/seed.hpp"
#include "support/temporary_folder.hpp"

namespace dunnock::train {
namespace {

using test::TemporaryFolder;

constexpr double kNoNumber = std::numeric_limits<double>::quiet_NaN();

// ----- XML ----------------------------------------------------------------------------------------------------------

struct Element {
  std::string name;
  std::map<std::string, std::string> attributes;
  std::string text{};
};

/// The elements of a document, in the order in which they begin; a failure where it is not well-formed (XML 1.0 as far
/// as SVGs need it: elements, attributes, text, and the five entities).
class Xml {
 public:
  explicit Xml(std::string_view text) : text_(text) {
    while (at_ < text_.size() && !failed_) {
      if (text_[at_] == '<') {
        tag();
      } else {
        characters();
      }
    }
    if (!open_.empty()) fail("an element is not closed: " + elements_[open_.back()].name);
    if (roots_ != 1) fail("there is one root");
  }
  [[nodiscard]] bool sound() const { return !failed_; }
  [[nodiscard]] const std::string& why() const { return why_; }
  [[nodiscard]] std::vector<Element> all(std::string_view name, std::string_view style = {}) const {
    std::vector<Element> found;
    for (const Element& one : elements_) {
      const auto its = one.attributes.find("class");
      if (one.name == name && (style.empty() || (its != one.attributes.end() && its->second == style)))
        found.push_back(one);
    }
    return found;
  }

 private:
  void fail(const std::string& why) {
    if (!failed_) why_ = why + ", at byte " + std::to_string(at_);
    failed_ = true;
  }
  char next() { return at_ < text_.size() ? text_[at_++] : (fail("the end"), '\0'); }
  std::string name() {
    const std::size_t begin = at_;
    while (at_ < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[at_])) != 0 || text_[at_] == '-'))
      ++at_;
    if (at_ == begin) fail("a name");
    return std::string(text_.substr(begin, at_ - begin));
  }
  void spaces() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_])) != 0) ++at_;
  }
  /// One character, decoded.
  std::string character() {
    const char c = next();
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 && c != '\n') fail("a control character");
    if (c == '<') fail("a '<' in text");
    if (c == '&') {
      const std::size_t end = text_.find(';', at_);
      const std::string entity(text_.substr(at_, end - at_));
      at_ = end + 1;
      if (entity == "lt") return "<";
      if (entity == "gt") return ">";
      if (entity == "amp") return "&";
      if (entity == "quot") return "\"";
      fail("an entity: " + entity);
    }
    if (byte < 0x80) return {c};
    // UTF-8: the number of bytes, and a value in the range of this number.
    const unsigned more = byte >= 0xF0 ? 3 : byte >= 0xE0 ? 2 : 1;
    std::uint32_t value = byte & (0x3F >> more);
    std::string all{c};
    for (unsigned i = 0; i < more; ++i) {
      all += next();
      if ((static_cast<unsigned char>(all.back()) & 0xC0) != 0x80) fail("not UTF-8");
      value = value << 6 | (static_cast<unsigned char>(all.back()) & 0x3F);
    }
    constexpr std::array<std::uint32_t, 4> kLeast = {0, 0x80, 0x800, 0x10000};
    const bool in_xml = value < 0xD800 || (value > 0xDFFF && value < 0xFFFE) || (value > 0xFFFF && value < 0x110000);
    if (byte < 0xC0 || byte > 0xF7 || value < kLeast[more] || !in_xml) fail("not a character of XML");
    return all;
  }
  void characters() {
    const std::string one = character();
    if (!open_.empty())
      elements_[open_.back()].text += one;
    else if (one != "\n")
      fail("text outside");
  }
  void tag() {
    (void)next();
    if (at_ < text_.size() && text_[at_] == '/') {
      ++at_;
      const std::string closes = name();
      if (open_.empty() || elements_[open_.back()].name != closes) return fail("closes another: " + closes);
      open_.pop_back();
      if (next() != '>') fail("a tag's end");
      return;
    }
    Element element{name(), {}};
    if (open_.empty()) ++roots_;
    for (;;) {
      spaces();
      const char c = at_ < text_.size() ? text_[at_] : '\0';
      if (c == '>' || c == '/' || failed_ || c == '\0') break;
      const std::string key = name();
      if (next() != '=' || next() != '"') return fail("an attribute's value");
      std::string value;
      while (at_ < text_.size() && text_[at_] != '"' && !failed_) value += character();
      (void)next();
      if (!element.attributes.emplace(key, value).second) fail("an attribute twice: " + key);
    }
    const bool closed = at_ < text_.size() && text_[at_] == '/';
    if (closed) ++at_;
    if (next() != '>') fail("a tag's end");
    elements_.push_back(std::move(element));
    if (!closed) open_.push_back(elements_.size() - 1);
  }

  std::string_view text_;
  std::size_t at_ = 0;
  std::vector<Element> elements_;
  std::vector<std::size_t> open_;
  unsigned roots_ = 0;
  bool failed_ = false;
  std::string why_;
};

TEST(XmlOfThisTest, notices_what_is_not_well_formed) {
  EXPECT_TRUE(Xml("<a b=\"1\"><c/>x &lt;&amp; y\n</a>\n").sound());
  for (const char* wrong :
       {"", "<a>", "<a></b>", "<a/><a/>", "<a b=1/>", "<a b=\"1\" b=\"2\"/>", "<a>&nbsp;</a>", "<a>\x01</a>",
        "<a>\xff</a>", "<a>\xc0\x80</a>", "<a>\xed\xa0\x80</a>", "<a>\xef\xbf\xbf</a>", "<a b=\"<\"/>", "<a", "x<a/>"})
    EXPECT_FALSE(Xml(wrong).sound()) << wrong;
}

Xml parsed(std::span<const LossCurve> curves, const PlotOptions& options = {}) {
  const std::string svg = loss_svg(curves, options);
  const Xml xml(svg);
  EXPECT_TRUE(xml.sound()) << xml.why() << "\n" << svg.substr(0, 3000);
  // Nothing that a picture has no place for.
  for (const char* word : {"nan", "inf"}) EXPECT_EQ(svg.find(word), std::string::npos) << word;
  return xml;
}

/// Losses at steps 10, 20, ...; each `every`th evaluated as 1 more.
LossCurve curve_of(std::string name, const std::vector<double>& losses, std::size_t every = 0) {
  LossCurve curve{std::move(name), {}};
  for (std::size_t i = 0; i < losses.size(); ++i) {
    LogRow row{.step = 10 * (i + 1), .loss = losses[i]};
    if (every > 0 && i % every == 0) row.validation_loss = losses[i] + 1;
    curve.rows.push_back(row);
  }
  return curve;
}

/// The numbers of a path of M and L.
std::vector<std::pair<double, double>> points_of(const Element& path) {
  std::vector<std::pair<double, double>> points;
  const std::string& text = path.attributes.at("d");
  for (std::size_t at = 0; at < text.size();) {
    EXPECT_TRUE(text[at] == 'M' || text[at] == 'L') << text;
    std::size_t used = 0;
    const double x = std::stod(text.substr(++at), &used);
    at += used;
    const double y = std::stod(text.substr(at), &used);
    at += used;
    points.emplace_back(x, y);
  }
  return points;
}

double attribute(const Element& element, const char* name) { return std::stod(element.attributes.at(name)); }

// ----- the picture --------------------------------------------------------------------------------------------------

TEST(Plot, has_each_run_thin_smooth_and_evaluated) {
  const std::vector<LossCurve> curves = {curve_of("one", {4, 3, 2, 1}, 2), curve_of("two", {4, 2, 1, 0.5})};
  const Xml xml = parsed(curves, {.title = "losses"});
  EXPECT_EQ(xml.all("path", "raw").size(), 2U);
  EXPECT_EQ(xml.all("path", "validation").size(), 1U);
  EXPECT_EQ(xml.all("circle").size(), 2U);
  EXPECT_EQ(xml.all("path", "smooth").size(), 4U) << "two curves, and two in the legend";
  const auto legend = xml.all("text", "legend");
  ASSERT_EQ(legend.size(), 2U);
  EXPECT_EQ(legend[0].text, "one");
  EXPECT_EQ(legend[1].text, "two");
  EXPECT_EQ(xml.all("text", "t").at(0).text, "losses");
  EXPECT_NE(xml.all("path", "raw")[0].attributes.at("stroke"), xml.all("path", "raw")[1].attributes.at("stroke"));
}

TEST(Plot, puts_points_where_the_axes_say) {
  const std::vector<LossCurve> curves = {curve_of("one", {4, 3, 2, 1}, 1)};
  const Xml xml = parsed(curves, {.smoothing = 1});
  // The axes, from their labels: text beside a grid line of the same place.
  const auto axis = [&](const char* style, const char* coordinate, double shift) {
    std::vector<std::pair<double, double>> labels;  // value, place
    for (const Element& text : xml.all("text", style)) {
      if (text.text != "step") labels.emplace_back(std::stod(text.text), attribute(text, coordinate) + shift);
    }
    return labels;
  };
  const auto at = [](const std::vector<std::pair<double, double>>& labels, double value) {
    const auto [first, low] = labels.front();
    const auto [last, high] = labels.back();
    return low + (high - low) * (value - first) / (last - first);
  };
  const auto steps = axis("x", "x", 0), losses = axis("y", "y", -4);
  ASSERT_GE(steps.size(), 3U);
  ASSERT_GE(losses.size(), 3U);
  const auto points = points_of(xml.all("path", "raw").at(0));
  ASSERT_EQ(points.size(), 4U);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(points[i].first, at(steps, 10.0 * static_cast<double>(i + 1)), 0.2);
    EXPECT_NEAR(points[i].second, at(losses, 4.0 - static_cast<double>(i)), 0.2);
    EXPECT_NEAR(attribute(xml.all("circle").at(i), "cx"), points[i].first, 0.01);
    EXPECT_NEAR(attribute(xml.all("circle").at(i), "cy"), at(losses, 5.0 - static_cast<double>(i)), 0.2);
  }
  EXPECT_EQ(points_of(xml.all("path", "smooth").at(0)), points) << "an average of one row is the row";
}

TEST(Plot, stays_within_its_picture) {
  auto random = test::generator(1);
  std::vector<double> losses(500);
  for (double& loss : losses) loss = std::exp(static_cast<double>(random() % 1000) / 100 - 5);
  const std::vector<LossCurve> curves = {curve_of("one", losses, 7)};
  const Xml xml = parsed(curves);
  for (const Element& circle : xml.all("circle")) {
    EXPECT_GE(attribute(circle, "cx"), 0);
    EXPECT_LE(attribute(circle, "cx"), 960);
    EXPECT_GE(attribute(circle, "cy"), 0);
    EXPECT_LE(attribute(circle, "cy"), 480);
  }
}

TEST(Plot, leaves_gaps_where_there_is_no_number) {
  const std::vector<LossCurve> curves = {
      curve_of("one", {3, 2, kNoNumber, 2, std::numeric_limits<double>::infinity(), 1})};
  const Xml xml = parsed(curves);
  const std::string path = xml.all("path", "raw").at(0).attributes.at("d");
  EXPECT_EQ(std::ranges::count(path, 'M'), 3) << path;
  EXPECT_EQ(std::ranges::count(path, 'L'), 1) << path;
}

TEST(Plot, is_sound_with_nothing_to_show) {
  EXPECT_EQ(parsed({}).all("path").size(), 0U);
  for (const std::vector<double>& losses :
       {std::vector<double>{}, {2}, {2, 2, 2}, {0}, {kNoNumber}, {1e300, -1e300}, {1e-300, 2e-300}, {1e308, -1e308}}) {
    const std::vector<LossCurve> curves = {curve_of("one", losses, 1)};
    (void)parsed(curves);
    (void)parsed(curves, {.width = 1, .height = 1});
  }
  LossCurve first{"at once", {LogRow{.step = 0, .loss = 3}}};
  EXPECT_EQ(points_of(parsed(std::vector{first}).all("path", "raw").at(0)).size(), 1U);
  first.rows[0].step = std::numeric_limits<std::uint64_t>::max();
  (void)parsed(std::vector{first});
}

TEST(Plot, is_well_formed_whatever_the_names_are) {
  const std::vector<LossCurve> curves = {curve_of("a < b & \"c\" > 'd'", {1, 2}), curve_of("\x01\n\xff \xc3\xa9", {1})};
  const Xml xml = parsed(curves, {.title = "<&>"});
  EXPECT_EQ(xml.all("text", "legend").at(0).text, "a < b & \"c\" > 'd'");
  EXPECT_EQ(xml.all("text", "legend").at(1).text, "??? \xc3\xa9");
  EXPECT_EQ(xml.all("text", "t").at(0).text, "<&>");
  auto random = test::generator(2);
  for (int round = 0; round < 300; ++round) {
    std::string name;
    for (std::uint64_t i = random() % 12; i > 0; --i) {
      // Beginnings and ends of ranges, where rules are broken.
      constexpr std::array<int, 16> kBytes = {0,    0x1F, '<',  '&',  0x7F, 0x80, 0x8F, 0x90,
                                              0xA0, 0xBF, 0xC1, 0xC3, 0xE0, 0xED, 0xEF, 0xF4};
      name +=
          static_cast<char>(random() % 2 == 0 ? kBytes[random() % kBytes.size()] : static_cast<int>(random() % 256));
    }
    (void)parsed(std::vector{curve_of(name, {1, 2})});
  }
}

TEST(Plot, has_room_for_many_names) {
  std::vector<LossCurve> curves;
  for (int i = 0; i < 30; ++i) curves.push_back(curve_of("run with a long name " + std::to_string(i), {1, 2}));
  const Xml xml = parsed(curves);
  std::set<std::pair<double, double>> places;
  for (const Element& text : xml.all("text", "legend")) {
    EXPECT_LT(attribute(text, "x") + 7 * static_cast<double>(text.text.size()), 960);
    places.emplace(attribute(text, "x"), attribute(text, "y"));
  }
  EXPECT_EQ(places.size(), 30U);
}

TEST(Plot, of_many_steps_is_small_and_keeps_their_peaks) {
  std::vector<double> losses(200'000, 2);
  losses[77'777] = 3;
  losses[123'456] = 1;
  const std::vector<LossCurve> curves = {curve_of("one", losses)};
  const std::string svg = loss_svg(curves);
  EXPECT_LT(svg.size(), 100'000U);
  const auto points = points_of(Xml(svg).all("path", "raw").at(0));
  EXPECT_EQ(std::ranges::count_if(points, [&](const auto& one) { return one.second != points.front().second; }), 2);
}

// ----- averages and ticks -------------------------------------------------------------------------------------------

TEST(Smoothing, is_an_average_from_the_first_row_on) {
  const std::vector<double> same(10, 3.5);
  for (const double loss : smoothed(same, 4)) EXPECT_NEAR(loss, 3.5, 1e-12);
  const auto half = smoothed(std::vector<double>{1, 4, 0}, 2);
  EXPECT_DOUBLE_EQ(half[0], 1);
  EXPECT_DOUBLE_EQ(half[1], (0.25 * 1 + 0.5 * 4) / 0.75);
  EXPECT_DOUBLE_EQ(half[2], (0.125 * 1 + 0.25 * 4) / 0.875);
  const auto gap = smoothed(std::vector<double>{1, kNoNumber, 4}, 2);
  EXPECT_TRUE(std::isnan(gap[1]));
  EXPECT_DOUBLE_EQ(gap[2], half[1]);
  EXPECT_EQ(smoothed(std::vector<double>{5, 7}, 0), (std::vector<double>{5, 7}));
}

TEST(Ticks, are_round_numbers) {
  EXPECT_EQ(ticks(0, 3000, 10), (std::vector<double>{0, 500, 1000, 1500, 2000, 2500, 3000}));
  EXPECT_EQ(ticks(1.5, 4.2, 8), (std::vector<double>{1.5, 2, 2.5, 3, 3.5, 4, 4.5}));
  EXPECT_EQ(ticks(-1, 1, 3), (std::vector<double>{-1, 0, 1}));
  EXPECT_EQ(ticks(0, 1, 3), (std::vector<double>{0, 0.5, 1}));
}

TEST(Ticks, hold_their_range_and_are_not_too_many) {
  auto random = test::generator(3);
  for (int round = 0; round < 3000; ++round) {
    const auto number = [&] {
      return std::ldexp(std::generate_canonical<double, 53>(random) - 0.5, static_cast<int>(random() % 80) - 40);
    };
    double low = number(), high = number();
    if (low > high) std::swap(low, high);
    if (!(high - low > 1e-6 * std::max(std::abs(low), std::abs(high)))) continue;
    const auto most = static_cast<unsigned>(3 + random() % 20);
    const auto all = ticks(low, high, most);
    ASSERT_GE(all.size(), 2U);
    ASSERT_LE(all.size(), most);
    const double step = all[1] - all[0];
    ASSERT_LE(all.front(), low + 1e-9 * step);
    ASSERT_GE(all.back(), high - 1e-9 * step);
    ASSERT_LE(low - all.front(), step * (1 + 1e-9)) << "none too many below";
    ASSERT_LE(all.back() - high, step * (1 + 1e-9));
    const double leading = step / std::pow(10, std::floor(std::log10(step * 1.0000001)));
    ASSERT_TRUE(std::abs(leading - 1) < 1e-6 || std::abs(leading - 2) < 1e-6 || std::abs(leading - 5) < 1e-6) << step;
  }
}

// ----- files --------------------------------------------------------------------------------------------------------

TEST(PlotFiles, are_written_whole_or_not_at_all) {
  const TemporaryFolder folder;
  const std::vector<LossCurve> curves = {curve_of("one", {3, 2, 1})};
  const std::string path = folder.write("a.svg", "old");
  ASSERT_TRUE(write_loss_svg(path, curves));
  EXPECT_EQ(test::file_bytes(path), loss_svg(curves));
  EXPECT_FALSE(std::filesystem::exists(path + ".new"));
  EXPECT_EQ(write_loss_svg(folder.path("none/a.svg"), curves).error().code, ErrorCode::kNotFound);
  std::filesystem::create_directories(folder.path("taken/more"));
  const Status taken = write_loss_svg(folder.path("taken"), curves);
  EXPECT_FALSE(taken);
  EXPECT_FALSE(std::filesystem::exists(folder.path("taken.new"))) << "nothing is left lying";
}

}  // namespace
}  // namespace dunnock::train
