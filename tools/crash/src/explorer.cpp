#include "dunnock/crash/explorer.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <random>
#include <string_view>
#include <unordered_set>

#include "shrink.hpp"

namespace dunnock::crash {
namespace {

using Event = SimMemory::Event;
using EventKind = SimMemory::EventKind;

constexpr std::uint32_t kNoLine = ~0U;
constexpr std::size_t kWordsPerLine = kLineBytes / sizeof(Word);

/// Aligned bytes for one image.
class Image {
 public:
  explicit Image(std::size_t bytes)
      : memory_(static_cast<std::byte*>(std::aligned_alloc(kLineBytes, bytes)), &std::free) {}
  [[nodiscard]] std::byte* data() const noexcept { return memory_.get(); }

 private:
  std::unique_ptr<std::byte, void (*)(void*)> memory_;
};

/// What a walk through a record knows at a moment.
class Walk {
 public:
  Walk(const std::vector<std::byte>& base, bool eadr) : durable_(base), lines_(base.size() / kLineBytes), eadr_(eadr) {}

  void step(const Event& event) {
    switch (event.kind) {
      case EventKind::kStore: {
        const std::uint32_t line = event.word / kWordsPerLine;
        Line& one = lines_[line];
        if (one.pending.empty()) open_.push_back(line);
        one.pending.push_back({event.word, event.value});
        if (eadr_) settle(line, one.pending.size());
        break;
      }
      case EventKind::kFlush:
        if (event.thread >= flushed_.size()) flushed_.resize(event.thread + 1U);
        flushed_[event.thread].push_back({event.word, lines_[event.word].settled + lines_[event.word].pending.size()});
        break;
      case EventKind::kFence:
        if (event.thread >= flushed_.size()) break;
        for (const Flushed& flush : flushed_[event.thread]) {
          Line& one = lines_[flush.line];
          if (flush.stores > one.settled) settle(flush.line, flush.stores - one.settled);
        }
        flushed_[event.thread].clear();
        break;
      case EventKind::kMark:
      case EventKind::kCall: break;
    }
  }

  /// Lines with stores that may or may not be durable.
  [[nodiscard]] const std::vector<std::uint32_t>& open_lines() const noexcept { return open_; }
  [[nodiscard]] std::size_t pending(std::uint32_t line) const noexcept { return lines_[line].pending.size(); }

  /// The image in which each open line holds as many of its pending stores as `prefix` says.
  void build(std::byte* image, const std::vector<std::size_t>& prefix) const {
    std::memcpy(image, durable_.data(), durable_.size());
    for (std::size_t i = 0; i < open_.size(); ++i) {
      const Line& line = lines_[open_[i]];
      for (std::size_t s = 0; s < prefix[i]; ++s) {
        std::memcpy(image + line.pending[s].word * sizeof(Word), &line.pending[s].value, sizeof(Word));
      }
    }
  }

 private:
  struct Store {
    std::uint32_t word;
    std::uint64_t value;
  };
  struct Line {
    std::vector<Store> pending;
    std::size_t settled = 0;  // stores that are durable for sure
  };
  struct Flushed {
    std::uint32_t line;
    std::size_t stores;  // settled + pending at the time of the flush
  };

  /// The first `count` pending stores of the line are durable now.
  void settle(std::uint32_t line, std::size_t count) {
    Line& one = lines_[line];
    for (std::size_t s = 0; s < count; ++s) {
      std::memcpy(durable_.data() + one.pending[s].word * sizeof(Word), &one.pending[s].value, sizeof(Word));
    }
    one.pending.erase(one.pending.begin(), one.pending.begin() + static_cast<std::ptrdiff_t>(count));
    one.settled += count;
    if (one.pending.empty()) std::erase(open_, line);
  }

  std::vector<std::byte> durable_;
  std::vector<Line> lines_;
  std::vector<std::uint32_t> open_;
  std::vector<std::vector<Flushed>> flushed_;
  bool eadr_;
};

/// Puts the steps of records together, each once.
class Noted {
 public:
  explicit Noted(std::vector<ExploreResult::Step>& steps) : steps_(steps) {}
  void note(Mutation::Kind kind, Point point, std::uint32_t line, std::string_view file) {
    const std::uint64_t key =
        static_cast<std::uint64_t>(kind) << 56 | static_cast<std::uint64_t>(point) << 32 | std::uint64_t{line};
    if (key == latest_ || !seen_.insert(key).second) return;
    latest_ = key;
    steps_.push_back({kind, point, line, file.substr(file.rfind('/') + 1)});
  }
  void note(const std::vector<SimMemory::Check>& checks) {
    for (const SimMemory::Check& one : checks) note(Mutation::Kind::kSkipCheck, one.point, one.line, one.file);
  }

 private:
  std::vector<ExploreResult::Step>& steps_;
  std::unordered_set<std::uint64_t> seen_;
  std::uint64_t latest_ = 0;
};

/// Explores one record.
class Exploration {
 public:
  static constexpr std::size_t kAllImages = ~std::size_t{0};
  static constexpr std::size_t kImagesOfUnseen = 4;

  Exploration(Subject& subject, const ExploreOptions& options, ExploreResult& result, Noted& noted)
      : subject_(subject),
        options_(options),
        result_(result),
        noted_(noted),
        image_(subject.bytes()),
        pristine_(subject.bytes()),
        random_(options.seed) {}

  /// `fixed_moment`: the record is of a recovery after a crash at that moment; otherwise of the workload.
  bool run(const std::vector<std::byte>& base, const std::vector<Event>& events,
           std::optional<std::size_t> fixed_moment) {
    Walk walk(base, options_.eadr);
    for (std::size_t i = 0; i < events.size(); ++i) {
      const Event& event = events[i];
      walk.step(event);
      note_step(event);
      const bool stored = event.kind == EventKind::kStore;
      if (!stored && event.kind != EventKind::kMark) continue;
      ++result_.moments;
      const std::uint32_t newest =
          stored && !options_.eadr ? event.word / static_cast<std::uint32_t>(kWordsPerLine) : kNoLine;
      const std::size_t most = stored && subject_.is_unseen(event.point) ? kImagesOfUnseen : kAllImages;
      if (!images(walk, newest, fixed_moment.value_or(i + 1), fixed_moment ? i + 1 : 0, most)) return false;
    }
    return true;
  }

 private:
  void note_step(const Event& event) {
    if (event.kind != EventKind::kMark) noted_.note(left_out_by(event.kind), event.point, event.line, event.file);
  }

  /// All images, or a sample, of one moment. `newest`: the line of the latest store, which all of them hold.
  /// `most`: no more than that, all of them random.
  bool images(const Walk& walk, std::uint32_t newest, std::size_t moment, std::size_t more, std::size_t most) {
    const std::vector<std::uint32_t>& open = walk.open_lines();
    std::vector<std::size_t> low(open.size(), 0), high(open.size()), prefix;
    double combinations = 1;
    for (std::size_t i = 0; i < open.size(); ++i) {
      high[i] = walk.pending(open[i]);
      if (open[i] == newest) low[i] = high[i];
      combinations *= static_cast<double>(high[i] - low[i] + 1);
    }
    if (combinations <= static_cast<double>(std::min(options_.images_per_moment, most))) {
      prefix = low;
      for (;;) {
        if (!one(walk, prefix, moment, more)) return false;
        std::size_t i = 0;
        while (i < prefix.size() && prefix[i] == high[i]) {
          prefix[i] = low[i];
          ++i;
        }
        if (i == prefix.size()) return true;
        ++prefix[i];
      }
    }
    ++result_.moments_sampled;
    if (most != kAllImages) {
      prefix = low;
      for (std::size_t n = 0; n < most; ++n) {
        for (std::size_t i = 0; i < open.size(); ++i) prefix[i] = low[i] + random_() % (high[i] - low[i] + 1);
        if (!one(walk, prefix, moment, more)) return false;
      }
      return true;
    }
    if (!one(walk, low, moment, more) || !one(walk, high, moment, more)) return false;
    for (std::size_t i = 0; i < open.size(); ++i) {  // One line ahead of the others, and one behind.
      prefix = low;
      prefix[i] = high[i];
      if (!one(walk, prefix, moment, more)) return false;
      prefix = high;
      prefix[i] = low[i];
      if (!one(walk, prefix, moment, more)) return false;
    }
    for (std::size_t n = 2 + 2 * open.size(); n < options_.images_per_moment; ++n) {
      for (std::size_t i = 0; i < open.size(); ++i) prefix[i] = low[i] + random_() % (high[i] - low[i] + 1);
      if (!one(walk, prefix, moment, more)) return false;
    }
    return true;
  }

  bool one(const Walk& walk, const std::vector<std::size_t>& prefix, std::size_t moment, std::size_t more) {
    walk.build(image_.data(), prefix);
    ++result_.images;
    if (more != 0) ++result_.recovery_images;
    const bool deeper = more == 0 && subject_.recovery_has_work(image_.data()) &&
                        random_() % options_.recovery_every == 0 && is_new(moment);
    if (deeper) std::memcpy(pristine_.data(), image_.data(), subject_.bytes());
    if (std::optional<std::string> wrong = subject_.check(image_.data(), moment, more)) {
      result_.violation = "after event " + std::to_string(moment);
      if (more != 0)
        *result_.violation += ", a crash, and event " + std::to_string(more) + " of recovery and what followed";
      *result_.violation += ": " + *wrong;
      return false;
    }
    if (!deeper) return true;
    SimMemory memory(subject_.bytes());
    std::memcpy(memory.data(), pristine_.data(), subject_.bytes());
    memory.start();
    memory.plant(options_.mutation);
    subject_.recover(memory, moment);
    memory.stop();
    noted_.note(memory.checks());
    Exploration inner(subject_, options_, result_, noted_);
    return inner.run(memory.base(), memory.events(), moment);
  }

  /// Recovery sees the image and nothing else, so equal images at one moment need one exploration.
  bool is_new(std::size_t moment) {
    const std::string_view bytes(reinterpret_cast<const char*>(image_.data()), subject_.bytes());
    return recovered_.insert(std::hash<std::string_view>()(bytes) + moment * 0x9e3779b97f4a7c15ULL).second;
  }

  Subject& subject_;
  const ExploreOptions& options_;
  ExploreResult& result_;
  Noted& noted_;
  Image image_;
  Image pristine_;
  std::mt19937_64 random_;
  std::unordered_set<std::uint64_t> recovered_;  // images (with moment) whose recovery was explored
};

}  // namespace

Mutation::Kind left_out_by(EventKind kind) noexcept {
  switch (kind) {
    case EventKind::kStore: return Mutation::Kind::kDropStore;
    case EventKind::kFlush: return Mutation::Kind::kDropFlush;
    case EventKind::kFence: return Mutation::Kind::kDropFence;
    case EventKind::kMark: break;
  }
  return Mutation::Kind::kNone;
}

bool ExploreResult::saw(SimMemory::EventKind kind, Point point) const {
  return std::any_of(steps.begin(), steps.end(),
                     [&](const Step& one) { return one.left_out_by == left_out_by(kind) && one.point == point; });
}

ExploreResult explore(Subject& subject, const std::vector<std::size_t>& keep, const ExploreOptions& options) {
  ExploreResult result;
  Noted noted(result.steps);
  // Other schedules before images: many come at the price of a few images.
  for (std::uint64_t schedule = 1; schedule <= options.schedules && subject.reschedule(schedule); ++schedule) {
    SimMemory memory(subject.bytes());
    memory.plant(options.mutation);
    result.violation = subject.record(memory, keep);
    memory.stop();
    noted.note(memory.checks());
    ++result.schedules;
    if (!result.violation) continue;
    *result.violation = "in schedule " + std::to_string(schedule) + ", " + *result.violation;
    (void)subject.reschedule(0);
    return result;
  }
  (void)subject.reschedule(0);
  SimMemory memory(subject.bytes());
  memory.plant(options.mutation);
  result.violation = subject.record(memory, keep);
  memory.stop();
  noted.note(memory.checks());
  if (result.violation) return result;
  Exploration(subject, options, result, noted).run(memory.base(), memory.events(), std::nullopt);
  return result;
}

std::vector<std::size_t> shrink(Subject& subject, std::vector<std::size_t> keep, const ExploreOptions& options) {
  return shrink_while(std::move(keep), [&](const std::vector<std::size_t>& fewer) {
    return explore(subject, fewer, options).violation.has_value();
  });
}

}  // namespace dunnock::crash
