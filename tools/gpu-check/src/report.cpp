#include "report.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <string_view>

#include "dunnock/base/output_file.hpp"

namespace dunnock::gpu_check {
namespace {

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      std::array<char, 8> escape{};
      std::snprintf(escape.data(), escape.size(), "\\u%04x", static_cast<unsigned>(static_cast<unsigned char>(c)));
      out += escape.data();
    } else if (static_cast<unsigned char>(c) >= 0x7f) {
      out += '?';  // Another program's output may be of any encoding.
    } else {
      out += c;
    }
  }
  return out + "\"";
}
/// JSON has neither infinities nor NaN.
std::string number(std::optional<double> value) {
  if (!value || !std::isfinite(*value)) return "null";
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.6g", *value);
  return text.data();
}
const char* word_of(Outcome outcome) {
  return outcome == Outcome::kPassed ? "passed" : outcome == Outcome::kFailed ? "failed" : "skipped";
}
/// In a column of the table; "-" where there is none.
std::string cell(std::optional<double> value, const char* format) {
  if (!value) return "-";
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), format, *value);
  return text.data();
}
/// Targets are for a GPU at full sizes.
bool targets_apply(const RunFacts& facts) { return !facts.rehearsal && !facts.quick; }

}  // namespace

std::optional<double> Figure::share() const {
  if (!value || ceiling.empty() || ceiling_value <= 0) return std::nullopt;
  return better == Better::kHigher ? *value / ceiling_value : ceiling_value / *value;
}
std::optional<double> Figure::ratio() const {
  if (!value || !peer || peer->value <= 0 || *value <= 0) return std::nullopt;
  return better == Better::kHigher ? *value / peer->value : peer->value / *value;
}

void Report::note(Check check) {
  const std::lock_guard lock(mutex_);
  std::printf("%-8s %s%s%s\n", word_of(check.outcome), check.name.c_str(), check.why.empty() ? "" : ": ",
              check.why.c_str());
  std::fflush(stdout);
  checks_.push_back(std::move(check));
}
void Report::check(const std::string& name, const std::string& why_not) {
  note({name, why_not.empty() ? Outcome::kPassed : Outcome::kFailed, why_not});
}
void Report::skip(const std::string& name, const std::string& why) { note({name, Outcome::kSkipped, why}); }
void Report::figure(Figure figure) {
  const std::lock_guard lock(mutex_);
  figures_.push_back(std::move(figure));
}

void Report::peers(std::string about) {
  const std::lock_guard lock(mutex_);
  peers_ = std::move(about);
}

bool Report::all_passed() const {
  const std::lock_guard lock(mutex_);
  const auto is = [](Outcome outcome) { return [outcome](const Check& one) { return one.outcome == outcome; }; };
  return std::ranges::any_of(checks_, is(Outcome::kPassed)) && std::ranges::none_of(checks_, is(Outcome::kFailed));
}
std::optional<double> Report::value_of(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  for (const Figure& one : figures_) {
    if (one.name == name) return one.value;
  }
  return std::nullopt;
}

void Report::print(const RunFacts& facts) const {
  const std::lock_guard lock(mutex_);
  std::printf("\npeers: %s\n", peers_.c_str());
  std::printf("\n%-64s %10s %-7s %8s %10s %7s  %s\n", "what", "measured", "", "ceiling", "peer", "ratio", "target");
  for (const Figure& one : figures_) {
    const auto share = one.share();
    const auto percent = share ? std::optional(100 * *share) : std::nullopt;
    const char* const verdict = one.target.empty() || !one.value ? ""
                                : !targets_apply(facts)          ? ""
                                : one.met                        ? "met"
                                                                 : "MISSED";
    std::printf("%-64s %10s %-7s %8s %10s %7s  %s %s%s\n", one.name.c_str(), cell(one.value, "%.4g").c_str(),
                one.unit.c_str(), percent ? (cell(percent, "%.1f") + " %").c_str() : "-",
                one.peer ? cell(one.peer->value, "%.4g").c_str() : "-", cell(one.ratio(), "%.2fx").c_str(),
                one.target.c_str(), verdict, one.peer ? ("  (peer: " + one.peer->name + ")").c_str() : "");
  }
  unsigned counts[3] = {};
  for (const Check& one : checks_) ++counts[static_cast<unsigned>(one.outcome)];
  std::printf("\nchecks: %u passed, %u failed, %u skipped\n", counts[0], counts[1], counts[2]);
  for (const Check& one : checks_) {
    if (one.outcome != Outcome::kPassed)
      std::printf("  %s: %s: %s\n", word_of(one.outcome), one.name.c_str(), one.why.c_str());
  }
  std::fflush(stdout);
}

std::string Report::json(const RunFacts& facts) const {
  const std::lock_guard lock(mutex_);
  const device::DeviceInfo& info = facts.device.info;
  const auto whole = [](std::uint64_t value) { return std::to_string(value); };
  const auto yes = [](bool value) { return std::string(value ? "true" : "false"); };
  std::string out = "{\n\"format\": 1,\n\"date\": " + quoted(facts.date) + ",\n\"rehearsal\": " + yes(facts.rehearsal) +
                    ", \"quick\": " + yes(facts.quick) + ",\n";
  out += "\"device\": {\"name\": " + quoted(info.name) + ", \"label\": " + quoted(facts.device.label) +
         ", \"driver\": " + quoted(facts.device.driver) + ", \"cuda\": " + quoted(facts.device.cuda) +
         ", \"compute_capability\": " + whole(info.compute_capability) + ", \"processors\": " + whole(info.processors) +
         ", \"memory_bytes\": " + whole(info.memory_bytes) + ", \"l2_bytes\": " + whole(info.l2_bytes) +
         ", \"clock_mhz\": " + whole(facts.device.clock_mhz) + ", \"memory_mhz\": " + whole(facts.device.memory_mhz) +
         ", \"bus_bits\": " + whole(facts.device.bus_bits) + "},\n";
  out += "\"peers\": " + quoted(peers_) + ",\n\"checks\": [";
  for (std::size_t i = 0; i < checks_.size(); ++i) {
    out += std::string(i == 0 ? "" : ",") + "\n  {\"name\": " + quoted(checks_[i].name) +
           ", \"outcome\": " + quoted(word_of(checks_[i].outcome)) + ", \"why\": " + quoted(checks_[i].why) + "}";
  }
  out += "\n],\n\"figures\": [";
  for (std::size_t i = 0; i < figures_.size(); ++i) {
    const Figure& one = figures_[i];
    const bool judged = targets_apply(facts) && !one.target.empty() && one.value;
    out +=
        std::string(i == 0 ? "" : ",") + "\n  {\"name\": " + quoted(one.name) + ", \"value\": " + number(one.value) +
        ", \"unit\": " + quoted(one.unit) + ", \"ceiling\": " + (one.ceiling.empty() ? "null" : quoted(one.ceiling)) +
        ", \"ceiling_value\": " + number(one.ceiling.empty() ? std::nullopt : std::optional(one.ceiling_value)) +
        ", \"share\": " + number(one.share()) + ", \"peer\": " + (one.peer ? quoted(one.peer->name) : "null") +
        ", \"peer_value\": " + number(one.peer ? std::optional(one.peer->value) : std::nullopt) +
        ", \"ratio\": " + number(one.ratio()) + ", \"target\": " + (one.target.empty() ? "null" : quoted(one.target)) +
        ", \"met\": " + (judged ? yes(one.met) : "null") + "}";
  }
  return out + "\n]\n}\n";
}

Status Report::write_json(const std::string& path, const RunFacts& facts) const {
  return write_output_file(path, json(facts));
}

}  // namespace dunnock::gpu_check
