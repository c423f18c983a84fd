#include "dunnock/schedule/timeline.hpp"

#include <algorithm>
#include <array>
#include <cstdio>

#include "dunnock/base/output_file.hpp"

namespace dunnock::schedule {
namespace {

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      std::array<char, 8> code{};
      std::snprintf(code.data(), code.size(), "\\u%04x", static_cast<unsigned>(c));
      out += code.data();
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string number(double value) {
  std::array<char, 40> text{};
  std::snprintf(text.data(), text.size(), "%.3f", value);
  return text.data();
}

}  // namespace

double Timeline::makespan_us() const noexcept {
  if (intervals.empty()) return 0;
  double first = intervals.front().start_us;
  double last = intervals.front().end_us;
  for (const Interval& one : intervals) {
    first = std::min(first, one.start_us);
    last = std::max(last, one.end_us);
  }
  return last - first;
}

double Timeline::idle_share(unsigned lane) const noexcept {
  const double whole = makespan_us();
  if (whole <= 0) return 0;
  double busy = 0;
  for (const Interval& one : intervals) busy += one.lane == lane ? one.end_us - one.start_us : 0;
  return 1 - busy / whole;
}

std::string to_chrome_json(const TaskGraph& graph, const Schedule& schedule, const Timeline& timeline) {
  std::string json = "{\"displayTimeUnit\":\"ms\",\"otherData\":{\"schedule\":" + quoted(schedule.name) +
                     ",\"simulated\":" + (timeline.simulated ? "true" : "false") + "},\"traceEvents\":[";
  unsigned ranks = 0;
  for (const Lane& lane : schedule.lanes) ranks = std::max(ranks, lane.rank + 1);
  for (unsigned rank = 0; rank < ranks; ++rank) {
    json += "{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":" + std::to_string(rank) + ",\"args\":{\"name\":" +
            quoted("rank " + std::to_string(rank) + (timeline.simulated ? " (simulated)" : "")) + "}},\n";
  }
  for (std::size_t lane = 0; lane < schedule.lanes.size(); ++lane) {
    json += "{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":" + std::to_string(schedule.lanes[lane].rank) +
            ",\"tid\":" + std::to_string(lane) + ",\"args\":{\"name\":" + quoted(schedule.lanes[lane].name) + "}},\n";
  }
  for (const Interval& one : timeline.intervals) {
    const Op& op = graph.op(one.op);
    json += "{\"ph\":\"X\",\"name\":" + quoted(op.name) + ",\"cat\":" + quoted(to_string(op.kind)) +
            ",\"pid\":" + std::to_string(schedule.lanes[one.lane].rank) + ",\"tid\":" + std::to_string(one.lane) +
            ",\"ts\":" + number(one.start_us) + ",\"dur\":" + number(one.end_us - one.start_us) + "},\n";
  }
  if (json.ends_with(",\n")) json.resize(json.size() - 2);
  return json + "]}\n";
}

Status write_chrome_json(const std::string& path, const TaskGraph& graph, const Schedule& schedule,
                         const Timeline& timeline) {
  return write_output_file(path, to_chrome_json(graph, schedule, timeline));
}

}  // namespace dunnock::schedule
