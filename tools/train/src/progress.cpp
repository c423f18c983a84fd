#include "progress.hpp"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdarg>
#include <utility>

namespace dunnock::train {
namespace {

[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...) {
  std::array<char, 400> text{};
  va_list values;
  va_start(values, pattern);
  std::vsnprintf(text.data(), text.size(), pattern, values);
  va_end(values);
  return text.data();
}

constexpr std::size_t kCellsLeast = 10;  // Of the bar, without its brackets.
constexpr std::size_t kCellsMost = 30;
constexpr std::string_view kBetween = "  ";

std::string memory_text(std::uint64_t bytes) {
  const double mib = static_cast<double>(bytes) / (1 << 20);
  return mib < 9999.5 ? format("%.0f MiB", mib) : format("%.1f GiB", mib / 1024);
}

double share_done(const ProgressFacts& facts) {
  if (facts.steps == 0) return 1;
  return std::min(1.0, static_cast<double>(facts.step) / static_cast<double>(facts.steps));
}

std::string bar(double share, std::size_t cells) {
  const auto full = static_cast<std::size_t>(share * static_cast<double>(cells));  // All only when it is done.
  std::string text = "[";
  text.append(full, '#').append(cells - full, '.').append("]");
  return text;
}

}  // namespace

std::string rate_text(double per_second) {
  if (!std::isfinite(per_second) || per_second < 0) return "?";
  constexpr std::array<std::string_view, 5> kUnits = {"", "k", "M", "G", "T"};
  double value = per_second;
  std::size_t unit = 0;
  while (value >= 999.5 && unit + 1 < kUnits.size()) {
    value /= 1000;
    ++unit;
  }
  return format("%.*f%s", value < 9.995 ? 2 : value < 99.95 ? 1 : 0, value, kUnits[unit].data());
}

std::string time_text(double seconds) {
  constexpr double kForever = 1e9;  // 31 years
  if (!(seconds >= 0) || seconds > kForever) return "?";
  const auto whole = static_cast<unsigned long long>(std::ceil(seconds));
  const unsigned long long minutes = whole / 60, hours = minutes / 60;
  if (hours >= 100) return format("%llu d %02llu h", hours / 24, hours % 24);
  if (hours > 0) return format("%llu:%02llu:%02llu", hours, minutes % 60, whole % 60);
  return format("%llu:%02llu", minutes, whole % 60);
}

std::string progress_line(const ProgressFacts& facts, std::size_t columns) {
  // In the order of the line after the bar; each part with its rank among those that stay.
  struct Part {
    std::string text;
    unsigned rank;
    bool shown = false;
  };
  std::array<Part, 7> parts = {{
      {format("%llu/%llu", static_cast<unsigned long long>(facts.step), static_cast<unsigned long long>(facts.steps)),
       0},
      {format("loss %.4f", facts.loss), 1},
      {facts.seconds_left >= 0 ? time_text(facts.seconds_left) + " left" : "", 2},
      {rate_text(facts.items_per_second) + " " + std::string(facts.items) + "/s", 4},
      {facts.peak_share ? format("%.0f %% of peak", *facts.peak_share * 100) : "", 5},
      {facts.validation_loss ? format("val %.4f", *facts.validation_loss) : "", 6},
      {facts.memory_bytes > 0 ? memory_text(facts.memory_bytes) : "", 7},
  }};
  constexpr unsigned kBarsRank = 3, kRanks = 8;
  std::size_t used = 0, cells = 0;
  for (unsigned rank = 0; rank < kRanks; ++rank) {
    const auto part = std::ranges::find(parts, rank, &Part::rank);
    const std::size_t wanted = rank == kBarsRank ? kCellsLeast + 2 : part->text.size();
    if (wanted == 0) continue;
    const std::size_t with = used + (used > 0 ? kBetween.size() : 0) + wanted;
    // What comes first stays; a lesser part never takes the place of a greater one that did not fit.
    if (with > columns && rank > 1) break;
    used = with;
    if (rank == kBarsRank) {
      cells = kCellsLeast;
    } else {
      part->shown = true;
    }
  }
  if (cells > 0) cells = std::min(kCellsMost, cells + (columns - used));
  std::string line = cells > 0 ? bar(share_done(facts), cells) : "";
  for (const Part& part : parts) {
    if (part.shown) line.append(line.empty() ? "" : kBetween).append(part.text);
  }
  if (line.size() > columns) line.resize(columns);
  return line;
}

Progress::Options Progress::options_for(std::FILE* out) {
  const int file = fileno(out);
  if (isatty(file) == 0) return {};
  const auto columns = [file] {
    winsize size{};
    // One less: a terminal may go to the next line after the last column.
    return ioctl(file, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? std::size_t{size.ws_col} - 1 : std::size_t{79};
  };
  return {.terminal = true, .columns = columns, .seconds_between = 0.1};
}

void Progress::show(const ProgressFacts& facts, double now_s) {
  if (shown_s_ && now_s - *shown_s_ < options_.seconds_between) return;
  shown_s_ = now_s;
  draw(facts);
}

void Progress::finish(const ProgressFacts& facts) {
  draw(facts);
  end_line();
}

void Progress::print(std::string_view line) {
  if (!drawn_.empty()) std::fputs("\r\x1b[K", out_);
  std::fwrite(line.data(), 1, line.size(), out_);
  std::fputs("\n", out_);
  std::fputs(drawn_.c_str(), out_);
  std::fflush(out_);
}

void Progress::draw(const ProgressFacts& facts) {
  const std::string line = progress_line(facts, options_.columns());
  if (options_.terminal) {
    std::fprintf(out_, "\r%s\x1b[K", line.c_str());
    drawn_ = line;
  } else {
    std::fprintf(out_, "%s\n", line.c_str());
  }
  std::fflush(out_);
}

void Progress::end_line() {
  if (std::exchange(drawn_, {}).empty()) return;
  std::fputs("\n", out_);
  std::fflush(out_);
}

}  // namespace dunnock::train
