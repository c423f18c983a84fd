// The two ways of exploring histories, on memory and on files, behind one face for the commands explore and mutants.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dunnock/crash/explorer.hpp"

namespace dunnock::crash {

/// What the command line says.
struct Settings {
  std::string structure = "filter";
  std::string media = "memory";  // or "file"
  unsigned bits = 12;
  std::uint64_t seed = 1;
  unsigned threads = 4;
  unsigned operations = 24;
  std::optional<std::size_t> images_per_moment{};
  std::size_t recovery_every = 16;
  std::uint64_t schedules = 128;
  bool eadr = false;
  // Of explore.
  std::uint64_t images = 1000000;
  bool only_seed = false;
  std::vector<std::size_t> keep{};
  // Of mutants.
  std::uint64_t budget = 2000000;           // images per planted bug
  std::optional<std::uint64_t> original{};  // images of the code without a bug; none: as many
  std::string known{};                      // a file of KnownHistories; none: ""
  bool learn = false;                       // and write it
  std::string bug{};                        // explore: of this name; mutants: with these words in their name
  unsigned jobs = 1;
  std::string json{};
};

/// What has come of one history.
struct Explored : ExploreResult {
  std::uint64_t replayed = 0;  // images whose journal was needed
  std::uint64_t refused = 0;   // 1: the disk refused a call
};

/// Threads: any, for a const one. Bugs are known by their place in bugs().
class Exploration {
 public:
  using Step = ExploreResult::Step;
  static constexpr std::size_t kNoBug = ~std::size_t{0};
  virtual ~Exploration() = default;

  [[nodiscard]] virtual std::unique_ptr<Subject> subject(std::uint64_t seed) const = 0;
  [[nodiscard]] virtual Explored explore(Subject& subject, const std::vector<std::size_t>& keep, std::uint64_t seed,
                                         std::size_t bug) const = 0;
  /// The names of the bugs that can be planted.
  [[nodiscard]] virtual std::vector<std::string> bugs() const = 0;
  /// The bug of that name, or kNoBug.
  [[nodiscard]] virtual std::size_t bug(const std::string& name) = 0;
  /// Adds a bug for each line of the running code that shares a step with others, if a bug leaves that step out: one
  /// line could stand in for the others.
  virtual void add_bugs_of_lines(std::span<const Step> running) = 0;
  /// Steps of the running code that no bug leaves out.
  [[nodiscard]] virtual std::vector<std::string> untried(std::span<const Step> running) const = 0;
  /// Bugs that tests catch, in words.
  [[nodiscard]] virtual std::vector<std::string> left_to_tests() const { return {}; }
  /// The options of the command line for this way alone.
  [[nodiscard]] virtual std::string own_options() const = 0;
  [[nodiscard]] virtual std::size_t images_per_moment() const = 0;
};

/// Of settings.media. `settings` outlives it; its structure is known (find_structure).
[[nodiscard]] std::unique_ptr<Exploration> make_exploration(const Settings& settings);

}  // namespace dunnock::crash
