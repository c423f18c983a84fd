// What a run of dunnock-gpu-check has found: checks that passed or not, and figures beside what they should reach.
#pragma once

#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "dunnock/base/result.hpp"
#include "facts.hpp"

namespace dunnock::gpu_check {

enum class Outcome : unsigned char { kPassed, kFailed, kSkipped };

struct Check {
  std::string name;
  Outcome outcome = Outcome::kSkipped;
  std::string why;  // When it did not pass.
};

/// Another one's number for the same work, in the figure's unit.
struct Peer {
  std::string name;
  double value = 0;
};

/// What is best: rates want to be high, times low.
enum class Better : unsigned char { kHigher, kLower };

struct Figure {
  std::string name;
  std::optional<double> value{};  // None: only the peer was measured.
  std::string unit{};
  std::string ceiling{};     // What bounds it, in words; empty: nothing that was measured.
  double ceiling_value = 0;  // In the figure's unit.
  std::optional<Peer> peer{};
  Better better = Better::kHigher;
  std::string target{};  // In words; empty: none.
  bool met = true;       // Says nothing where there is no target, or targets do not apply.

  /// value / ceiling_value, 1 is the ceiling. None where one is missing.
  [[nodiscard]] std::optional<double> share() const;
  /// How many times as good as the peer. None where one is missing.
  [[nodiscard]] std::optional<double> ratio() const;
};

/// What the whole run was.
struct RunFacts {
  DeviceFacts device;
  std::string date;  // ISO 8601, UTC.
  bool rehearsal = false;
  bool quick = false;
};

/// Threads: any number; the watchdog (budget.hpp) prints what there is when time is up.
class Report {
 public:
  /// `why_not` empty: it passed. Notes the check, and prints a line of it.
  void check(const std::string& name, const std::string& why_not);
  void skip(const std::string& name, const std::string& why);
  void figure(Figure figure);
  /// Who stands beside the kernels, "PyTorch 2.8.0 on ...", or why nobody does.
  void peers(std::string about);
  [[nodiscard]] bool all_passed() const;
  /// The figure of that name, if it was measured.
  [[nodiscard]] std::optional<double> value_of(const std::string& name) const;

  void print(const RunFacts& facts) const;
  [[nodiscard]] std::string json(const RunFacts& facts) const;
  /// False: the file can't be written.
  [[nodiscard]] Status write_json(const std::string& path, const RunFacts& facts) const;

 private:
  void note(Check check);

  mutable std::mutex mutex_;  // of what follows
  std::vector<Check> checks_;
  std::vector<Figure> figures_;
  std::string peers_ = "not measured";
};

}  // namespace dunnock::gpu_check
