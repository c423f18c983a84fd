#include "exploration.hpp"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "dunnock/base/check.hpp"
#include "file_bugs.hpp"
#include "file_explorer.hpp"
#include "structures.hpp"

namespace dunnock::crash {
namespace {

/// The thread count cycles, so that a run has some of each.
SubjectOptions subject_options(const Settings& settings, std::uint64_t seed, Recording recording) {
  const unsigned threads = 1 + static_cast<unsigned>(seed % settings.threads);
  return {{seed, threads, settings.operations}, settings.bits, recording};
}

template <class Bugs>
std::vector<std::string> names_of(const Bugs& bugs) {
  std::vector<std::string> names;
  for (const auto& one : bugs) names.push_back(one.name);
  return names;
}

template <class Bugs>
std::size_t find_bug(const Bugs& bugs, const std::string& name) {
  const auto found = std::find_if(bugs.begin(), bugs.end(), [&](const auto& one) { return one.name == name; });
  return found == bugs.end() ? Exploration::kNoBug : static_cast<std::size_t>(found - bugs.begin());
}

// ----- memory -------------------------------------------------------------------------------------------------------

const char* what_is_left_out(Mutation::Kind kind) {
  using Kind = Mutation::Kind;
  return kind == Kind::kDropStore   ? "store"
         : kind == Kind::kDropFlush ? "flush"
         : kind == Kind::kDropFence ? "fence"
                                    : "check";
}

class MemoryExploration final : public Exploration {
 public:
  MemoryExploration(const Settings& settings, const Structure& structure)
      : settings_(settings), structure_(structure), bugs_(structure.bugs.all()) {}

  [[nodiscard]] std::unique_ptr<Subject> subject(std::uint64_t seed) const override {
    return structure_.subject(
        subject_options(settings_, seed, settings_.eadr ? Recording::kEadr : Recording::kMemory));
  }
  [[nodiscard]] Explored explore(Subject& subject, const std::vector<std::size_t>& keep, std::uint64_t seed,
                                 std::size_t bug) const override {
    ExploreOptions how;
    how.eadr = settings_.eadr;
    how.seed = seed;
    how.images_per_moment = images_per_moment();
    how.recovery_every = settings_.recovery_every;
    how.schedules = settings_.schedules;
    if (bug != kNoBug) how.mutation = bugs_[bug].mutation;
    return {crash::explore(subject, keep, how)};
  }
  [[nodiscard]] std::vector<std::string> bugs() const override { return names_of(bugs_); }
  [[nodiscard]] std::size_t bug(const std::string& name) override {
    if (const std::size_t found = find_bug(bugs_, name); found != kNoBug) return found;
    // "no flush Spill at cuckoo_filter_ops.ipp:151" is the one of that name, in that line alone.
    const std::size_t at = name.find(" at ");
    const std::size_t colon = name.rfind(':');
    if (at == std::string::npos || colon == std::string::npos || colon < at) return kNoBug;
    const std::size_t everywhere = find_bug(bugs_, name.substr(0, at));
    if (everywhere == kNoBug) return kNoBug;
    Mutation mutation = bugs_[everywhere].mutation;
    mutation.line = static_cast<std::uint32_t>(std::strtoul(name.c_str() + colon + 1, nullptr, 10));
    bugs_.push_back({name, mutation});
    return bugs_.size() - 1;
  }
  void add_bugs_of_lines(std::span<const Step> running) override {
    const std::size_t everywhere = bugs_.size();
    for (const Step& step : running) {
      const auto same = [&](const Step& other) {
        return other.left_out_by == step.left_out_by && other.point == step.point;
      };
      if (!is_own(step) || std::count_if(running.begin(), running.end(), same) < 2 || !is_planted(step, everywhere))
        continue;
      bugs_.push_back({"no " + words_of(step), {step.left_out_by, step.point, {}, step.line}});
    }
  }
  [[nodiscard]] std::vector<std::string> untried(std::span<const Step> running) const override {
    std::vector<std::string> alone;
    for (const Step& step : running) {
      const bool excepted = structure_.bugs.is_excepted({step.left_out_by, step.point, {}});
      if (is_own(step) && !is_planted(step, bugs_.size()) && !excepted) alone.push_back(words_of(step));
    }
    return alone;
  }
  [[nodiscard]] std::vector<std::string> left_to_tests() const override {
    std::vector<std::string> words;
    for (const auto& one : structure_.bugs.elsewhere) {
      words.push_back(std::string(one.test) + ": no " + what_is_left_out(one.kind) + " " +
                      std::string(structure_.point_name(one.point)));
    }
    return words;
  }
  [[nodiscard]] std::string own_options() const override {
    return " --schedules " + std::to_string(settings_.schedules) + (settings_.eadr ? " --eadr" : "");
  }
  [[nodiscard]] std::size_t images_per_moment() const override { return settings_.images_per_moment.value_or(64); }

 private:
  [[nodiscard]] bool is_own(const Step& step) const { return structure_.bugs.is_own(step.point); }
  /// By one of the first `count` bugs.
  [[nodiscard]] bool is_planted(const Step& step, std::size_t count) const {
    return std::any_of(bugs_.begin(), bugs_.begin() + static_cast<std::ptrdiff_t>(count), [&](const Mutant& one) {
      return one.mutation.kind == step.left_out_by && one.mutation.point == step.point;
    });
  }
  [[nodiscard]] std::string words_of(const Step& step) const {
    return std::string(what_is_left_out(step.left_out_by)) + " " + std::string(structure_.point_name(step.point)) +
           " at " + std::string(step.file) + ":" + std::to_string(step.line);
  }

  const Settings& settings_;
  const Structure& structure_;
  std::vector<Mutant> bugs_;
};

// ----- files --------------------------------------------------------------------------------------------------------

class FileExploration final : public Exploration {
 public:
  FileExploration(const Settings& settings, const Structure& structure)
      : settings_(settings), structure_(structure), bugs_(file_bugs()) {}

  [[nodiscard]] std::unique_ptr<Subject> subject(std::uint64_t seed) const override {
    return structure_.subject(subject_options(settings_, seed, Recording::kFile));
  }
  [[nodiscard]] Explored explore(Subject& subject, const std::vector<std::size_t>& keep, std::uint64_t seed,
                                 std::size_t bug) const override {
    FileExploreOptions how;
    how.seed = seed;
    how.images_per_moment = images_per_moment();
    how.recovery_every = settings_.recovery_every;
    if (bug != kNoBug) how.mutation = bugs_[bug].mutation;
    FileExploreResult result = explore_file(subject, keep, how);
    Explored explored{std::move(static_cast<ExploreResult&>(result)), result.replayed, result.refused};
    for (std::size_t site = 0; site < kSites; ++site) {
      if (result.sites[site]) explored.steps.push_back({Mutation::Kind::kNone, static_cast<Point>(site), 0, {}});
    }
    return explored;
  }
  [[nodiscard]] std::vector<std::string> bugs() const override { return names_of(bugs_); }
  [[nodiscard]] std::size_t bug(const std::string& name) override { return find_bug(bugs_, name); }
  void add_bugs_of_lines(std::span<const Step>) override {}  // Each call has a site of its own.
  [[nodiscard]] std::vector<std::string> untried(std::span<const Step> running) const override {
    std::vector<std::string> alone;
    for (const Step& step : running) {
      const auto site = static_cast<Site>(static_cast<std::size_t>(step.point));
      // The zeros of new blocks mean nothing, and what others do is the harness's own.
      if (site == Site::kBeginFill || site == Site::kOthersSync) continue;
      const bool planted = std::any_of(bugs_.begin(), bugs_.end(), [&](const FileMutant& one) {
        using Kind = FileMutation::Kind;
        const bool drops = one.mutation.kind == Kind::kNotDone || one.mutation.kind == Kind::kFailed;
        return drops && one.mutation.site == site;
      });
      if (!planted) alone.emplace_back(name(site));
    }
    return alone;
  }
  [[nodiscard]] std::string own_options() const override { return " --media file"; }
  /// Fewer images a moment than of memory, and more histories: most of a file's state is the same for a long time.
  [[nodiscard]] std::size_t images_per_moment() const override { return settings_.images_per_moment.value_or(8); }

 private:
  const Settings& settings_;
  const Structure& structure_;
  std::vector<FileMutant> bugs_;
};

}  // namespace

std::unique_ptr<Exploration> make_exploration(const Settings& settings) {
  const Structure* const structure = find_structure(settings.structure);
  DUNNOCK_CHECK(structure != nullptr, "the structure is known");
  if (settings.media == "file") return std::make_unique<FileExploration>(settings, *structure);
  return std::make_unique<MemoryExploration>(settings, *structure);
}

}  // namespace dunnock::crash
