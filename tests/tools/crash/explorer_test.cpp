// The explorer itself: its images against an independent enumeration, and a small structure that it must find broken
// or fine. The structure is also the example in docs/crash_consistency.md.
#include "dunnock/crash/explorer.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <set>

#include "support/seed.hpp"

namespace dunnock::crash {
namespace {

// ----- images against brute force -----------------------------------------------------------------------------------

constexpr std::size_t kLines = 3;

/// A random history on three lines by three threads, as a list of what to call.
struct Step {
  unsigned thread;
  enum { kStore, kFlush, kFence, kAck } what;
  std::size_t word;
  std::uint64_t value;
};

std::vector<Step> random_history(std::mt19937_64& random, std::size_t length) {
  std::vector<Step> steps;
  for (std::size_t i = 0; i < length; ++i) {
    const unsigned dice = static_cast<unsigned>(random() % 10);
    steps.push_back({static_cast<unsigned>(random() % 3),
                     dice < 5   ? Step::kStore
                     : dice < 8 ? Step::kFlush
                     : dice < 9 ? Step::kFence
                                : Step::kAck,
                     random() % (kLines * 8), i + 1});
  }
  return steps;
}

/// Plays a history and collects, for every moment, the images that the explorer has checked.
class Collector final : public Subject {
 public:
  explicit Collector(std::vector<Step> steps) : steps_(std::move(steps)) {}
  std::size_t bytes() const override { return kLines * kLineBytes; }
  std::size_t operations() const override { return steps_.size(); }
  std::optional<std::string> record(SimMemory& memory, const std::vector<std::size_t>&) override {
    memory.start();
    const SimMedia media(memory);
    // One fiber a thread, taking turns in the order of the history.
    std::size_t turn = 0;
    std::vector<std::function<void()>> threads;
    for (unsigned t = 0; t < 3; ++t) {
      threads.push_back([&, t] {
        for (std::size_t i = 0; i < steps_.size(); ++i) {
          if (steps_[i].thread != t) continue;
          while (turn != i) media.pause();
          Word* words = reinterpret_cast<Word*>(memory.data());
          switch (steps_[i].what) {
            case Step::kStore: media.store(Point{1}, words[steps_[i].word], steps_[i].value); break;
            case Step::kFlush: media.flush(Point{1}, &words[steps_[i].word]); break;
            case Step::kFence: media.fence(Point{1}); break;
            case Step::kAck: memory.mark(); break;
          }
          turn = i + 1;
        }
      });
    }
    EXPECT_TRUE(memory.run_threads(threads, 1, 3));
    EXPECT_EQ(memory.events().size(), steps_.size());
    return std::nullopt;
  }
  std::optional<std::string> check(std::byte* image, std::size_t events, std::size_t) override {
    seen[events].insert(std::string(reinterpret_cast<const char*>(image), bytes()));
    return std::nullopt;
  }
  bool recovery_has_work(const std::byte*) const override { return false; }
  void recover(SimMemory&, std::size_t) override {}
  std::string describe(std::size_t) const override { return "step"; }

  std::map<std::size_t, std::set<std::string>> seen;

 private:
  std::vector<Step> steps_;
};

/// The definition, word for word: per line a prefix of its stores that is not shorter than what was stored before a
/// flush by a thread that fenced afterwards.
std::set<std::string> legal_images(const std::vector<Step>& steps, std::size_t moment) {
  std::vector<std::vector<const Step*>> stores(kLines);
  std::vector<std::size_t> least(kLines, 0);
  for (std::size_t i = 0; i < moment; ++i) {
    if (steps[i].what == Step::kStore) stores[steps[i].word / 8].push_back(&steps[i]);
    if (steps[i].what != Step::kFlush) continue;
    for (std::size_t fence = i + 1; fence < moment; ++fence) {
      if (steps[fence].what != Step::kFence || steps[fence].thread != steps[i].thread) continue;
      const std::size_t line = steps[i].word / 8;
      const auto before = static_cast<std::size_t>(
          std::count_if(steps.begin(), steps.begin() + static_cast<std::ptrdiff_t>(i),
                        [&](const Step& step) { return step.what == Step::kStore && step.word / 8 == line; }));
      least[line] = std::max(least[line], before);
    }
  }
  std::set<std::string> images;
  for (std::size_t a = least[0]; a <= stores[0].size(); ++a) {
    for (std::size_t b = least[1]; b <= stores[1].size(); ++b) {
      for (std::size_t c = least[2]; c <= stores[2].size(); ++c) {
        std::string image(kLines * kLineBytes, '\0');
        const std::size_t lengths[] = {a, b, c};
        for (std::size_t line = 0; line < kLines; ++line) {
          for (std::size_t s = 0; s < lengths[line]; ++s)
            std::memcpy(image.data() + stores[line][s]->word * 8, &stores[line][s]->value, 8);
        }
        images.insert(image);
      }
    }
  }
  return images;
}

TEST(Explorer, builds_all_the_legal_images_and_no_others) {
  std::mt19937_64 random = test::generator(1);
  for (int run = 0; run < 300; ++run) {
    const std::vector<Step> steps = random_history(random, 1 + random() % 24);
    Collector collector(steps);
    ExploreOptions options;
    options.images_per_moment = 1 << 20;
    const ExploreResult result = explore(collector, {}, options);
    ASSERT_FALSE(result.violation.has_value());
    ASSERT_EQ(result.moments_sampled, 0U);
    for (std::size_t moment = 1; moment <= steps.size(); ++moment) {
      const std::set<std::string> legal = legal_images(steps, moment);
      if (steps[moment - 1].what == Step::kAck) {
        ASSERT_EQ(collector.seen[moment], legal);
      } else if (steps[moment - 1].what == Step::kStore) {
        // Those with the new store; the others were there a moment ago.
        for (const std::string& image : collector.seen[moment]) ASSERT_TRUE(legal.count(image));
        for (const std::string& image : legal) {
          const bool before = legal_images(steps, moment - 1).count(image) != 0;
          ASSERT_TRUE(before || collector.seen[moment].count(image)) << "an image is missing";
        }
      }
    }
  }
}

TEST(Explorer, samples_only_legal_images_when_there_are_too_many) {
  std::mt19937_64 random = test::generator(2);
  for (int run = 0; run < 100; ++run) {
    const std::vector<Step> steps = random_history(random, 24);
    Collector collector(steps);
    ExploreOptions options;
    options.images_per_moment = 6;
    (void)explore(collector, {}, options);
    for (const auto& [moment, images] : collector.seen) {
      const std::set<std::string> legal = legal_images(steps, moment);
      for (const std::string& image : images) ASSERT_TRUE(legal.count(image));
    }
  }
}

TEST(Explorer, has_one_image_a_moment_with_eadr) {
  std::mt19937_64 random = test::generator(3);
  const std::vector<Step> steps = random_history(random, 40);
  Collector collector(steps);
  ExploreOptions options;
  options.eadr = true;
  (void)explore(collector, {}, options);
  for (const auto& [moment, images] : collector.seen) EXPECT_EQ(images.size(), 1U) << moment;
}

// ----- a structure of one's own -------------------------------------------------------------------------------------

enum class Fault { kNone, kNoFence, kNoFlush, kAckFirst };

/// A register of two words in two lines and a version in a third that says which of two copies is valid.
class Register final : public Subject {
 public:
  Register(Fault fault, std::size_t writes) : fault_(fault), writes_(writes) {}
  std::size_t bytes() const override { return 5 * kLineBytes; }
  std::size_t operations() const override { return writes_; }

  std::optional<std::string> record(SimMemory& memory, const std::vector<std::size_t>& keep) override {
    acked_.clear();
    memory.start();
    const SimMedia media(memory);
    Word* words = reinterpret_cast<Word*>(memory.data());
    std::uint64_t version = 0;
    for (const std::size_t i : keep) {
      const std::uint64_t value = i + 1;
      ++version;
      Word* copy = words + 8 + version % 2 * 16;
      media.store(Point{1}, copy[0], value);
      media.store(Point{1}, copy[8], value);
      if (fault_ != Fault::kNoFlush) media.flush(Point{1}, &copy[0]);
      media.flush(Point{1}, &copy[8]);
      if (fault_ != Fault::kNoFence) media.fence(Point{1});
      if (fault_ == Fault::kAckFirst) acked_.push_back({memory.mark(), version, value});
      media.store(Point{2}, words[0], version);  // From here the new copy is the register.
      media.flush(Point{2}, &words[0]);
      media.fence(Point{2});
      if (fault_ != Fault::kAckFirst) acked_.push_back({memory.mark(), version, value});
    }
    return std::nullopt;
  }
  std::optional<std::string> check(std::byte* image, std::size_t events, std::size_t) override {
    std::uint64_t words[40];
    std::memcpy(words, image, sizeof words);
    const std::uint64_t version = words[0];
    const std::uint64_t* copy = words + 8 + version % 2 * 16;
    if (copy[0] != copy[8]) return "the register is torn";
    for (const Ack& ack : acked_) {
      if (ack.events <= events && version < ack.version) return "an acknowledged write is lost";
      if (ack.version == version && copy[0] != ack.value) return "the register holds another value than was written";
    }
    return std::nullopt;
  }
  bool recovery_has_work(const std::byte*) const override { return false; }
  void recover(SimMemory&, std::size_t) override {}
  std::string describe(std::size_t operation) const override { return "write " + std::to_string(operation + 1); }

 private:
  struct Ack {
    std::size_t events;
    std::uint64_t version;
    std::uint64_t value;
  };
  Fault fault_;
  std::size_t writes_;
  std::vector<Ack> acked_;
};

std::vector<std::size_t> all_of(const Subject& subject) {
  std::vector<std::size_t> all(subject.operations());
  std::iota(all.begin(), all.end(), 0);
  return all;
}

TEST(Explorer, passes_a_structure_that_is_right) {
  Register fine(Fault::kNone, 10);
  const ExploreResult result = explore(fine, all_of(fine), {});
  EXPECT_FALSE(result.violation.has_value()) << *result.violation;
  EXPECT_GT(result.images, 40U);
}

TEST(Explorer, catches_a_missing_fence_a_missing_flush_and_an_early_acknowledgement) {
  for (const Fault fault : {Fault::kNoFence, Fault::kNoFlush, Fault::kAckFirst}) {
    Register broken(fault, 10);
    EXPECT_TRUE(explore(broken, all_of(broken), {}).violation.has_value());
  }
}

TEST(Explorer, catches_bugs_that_the_memory_plants_in_a_right_structure) {
  using Kind = Mutation::Kind;
  for (const Mutation mutation :
       {Mutation{Kind::kDropFlush, Point{1}, {}}, Mutation{Kind::kDropFence, Point{1}, {}},
        Mutation{Kind::kDropFlush, Point{2}, {}}, Mutation{Kind::kDropFence, Point{2}, {}},
        Mutation{Kind::kDropStore, Point{1}, {}}, Mutation{Kind::kDropStore, Point{2}, {}},
        Mutation{Kind::kFlushTooEarly, Point{1}, {}}, Mutation{Kind::kFlushTooEarly, Point{2}, {}},
        Mutation{Kind::kStoreTooLate, Point{1}, Point{2}}, Mutation{Kind::kFlushTooLate, Point{1}, Point{2}}}) {
    Register fine(Fault::kNone, 10);
    ExploreOptions options;
    options.mutation = mutation;
    EXPECT_TRUE(explore(fine, all_of(fine), options).violation.has_value())

        << "kind " << static_cast<int>(mutation.kind) << " at " << static_cast<int>(mutation.point);
  }
}

TEST(Explorer, tells_which_durable_steps_it_has_seen) {
  using Event = SimMemory::EventKind;
  Register fine(Fault::kNone, 3);
  const ExploreResult whole = explore(fine, all_of(fine), {});
  for (const Event kind : {Event::kStore, Event::kFlush, Event::kFence}) {
    EXPECT_TRUE(whole.saw(kind, Point{1}));
    EXPECT_TRUE(whole.saw(kind, Point{2}));
    EXPECT_FALSE(whole.saw(kind, Point{3}));
  }
  Register without_fence(Fault::kNoFence, 3);
  ExploreOptions eadr;  // There the missing fence is no violation, so the record is walked to its end.
  eadr.eadr = true;
  EXPECT_FALSE(explore(without_fence, all_of(without_fence), eadr).saw(Event::kFence, Point{1}));
}

TEST(Explorer, plants_a_bug_in_one_of_the_lines_that_share_a_step) {
  Register fine(Fault::kNone, 5);
  const ExploreResult whole = explore(fine, all_of(fine), {});
  std::set<std::uint32_t> lines;
  for (const ExploreResult::Step& step : whole.steps) {
    if (step.left_out_by != Mutation::Kind::kDropStore || step.point != Point{1}) continue;
    EXPECT_EQ(step.file, "explorer_test.cpp");
    lines.insert(step.line);
  }
  ASSERT_EQ(lines.size(), 2U);  // The two copies of the register's words.
  for (const std::uint32_t line : lines) {
    ExploreOptions options;
    options.mutation = {Mutation::Kind::kDropStore, Point{1}, {}, line};
    EXPECT_TRUE(explore(fine, all_of(fine), options).violation.has_value()) << line;
  }
  ExploreOptions elsewhere;
  elsewhere.mutation = {Mutation::Kind::kDropStore, Point{1}, {}, 1};
  EXPECT_FALSE(explore(fine, all_of(fine), elsewhere).violation.has_value());
}

/// Two threads count up, under a lock that can be left out. Without it an update is lost, but only in some schedules.
class SharedCounter final : public Subject {
 public:
  std::size_t bytes() const override { return kLineBytes; }
  std::size_t operations() const override { return 2; }
  std::optional<std::string> record(SimMemory& memory, const std::vector<std::size_t>& keep) override {
    memory.start();
    const SimMedia media(memory);
    Word& word = *reinterpret_cast<Word*>(memory.data());
    bool locked = false;
    std::vector<std::function<void()>> threads;
    for (std::size_t n = 0; n < keep.size(); ++n) {
      threads.push_back([&] {
        const bool locks = is_taken(media, Point{2});
        while (locks && locked) media.pause();
        if (locks) locked = true;
        media.store(Point{1}, word, media.load(word) + 1);
        if (locks) locked = false;
      });
    }
    EXPECT_TRUE(memory.run_threads(threads, schedule_, schedule_ == 0 ? 1000000 : 1));
    return word.load() == keep.size() ? std::nullopt : std::optional<std::string>("an update is lost");
  }
  bool reschedule(std::uint64_t schedule) override {
    schedule_ = schedule;
    return true;
  }
  std::optional<std::string> check(std::byte*, std::size_t, std::size_t) override { return std::nullopt; }
  bool recovery_has_work(const std::byte*) const override { return false; }
  void recover(SimMemory&, std::size_t) override {}
  std::string describe(std::size_t) const override { return "count"; }

 private:
  std::uint64_t schedule_ = 0;
};

TEST(Explorer, finds_in_other_schedules_what_a_check_that_is_left_out_does) {
  SharedCounter counter;
  ExploreOptions options;
  options.schedules = 200;
  const ExploreResult whole = explore(counter, all_of(counter), options);
  EXPECT_FALSE(whole.violation.has_value()) << *whole.violation;
  EXPECT_EQ(whole.schedules, 200U);
  EXPECT_TRUE(std::any_of(whole.steps.begin(), whole.steps.end(), [](const ExploreResult::Step& step) {
    return step.left_out_by == Mutation::Kind::kSkipCheck && step.point == Point{2};
  }));
  options.mutation = {Mutation::Kind::kSkipCheck, Point{2}, {}};
  const ExploreResult caught = explore(counter, all_of(counter), options);
  ASSERT_TRUE(caught.violation.has_value());
  EXPECT_EQ(caught.violation->rfind("in schedule ", 0), 0U) << *caught.violation;
  options.schedules = 0;
  EXPECT_FALSE(explore(counter, all_of(counter), options).violation.has_value()) << "its own schedule does not show it";
}

/// A counter whose recovery (copying an intent into place) may forget its flush.
class CopiedCounter final : public Subject {
 public:
  explicit CopiedCounter(bool forgets) : forgets_(forgets) {}
  std::size_t bytes() const override { return 2 * kLineBytes; }
  std::size_t operations() const override { return 5; }
  std::optional<std::string> record(SimMemory& memory, const std::vector<std::size_t>& keep) override {
    acked_.clear();
    memory.start();
    const SimMedia media(memory);
    for (std::size_t n = 0; n < keep.size(); ++n) {
      write(media, intent(memory.data()), n + 1);
      acked_.push_back(memory.mark());
      write(media, value(memory.data()), n + 1);
      write(media, intent(memory.data()), 0);
    }
    return std::nullopt;
  }
  std::optional<std::string> check(std::byte* image, std::size_t events, std::size_t) override {
    const std::uint64_t found = std::max(intent(image).load(), value(image).load());
    for (std::size_t n = 0; n < acked_.size(); ++n) {
      if (acked_[n] <= events && found < n + 1) return "an acknowledged count is lost";
    }
    return std::nullopt;
  }
  bool recovery_has_work(const std::byte* image) const override {
    return intent(const_cast<std::byte*>(image)).load() != 0;
  }
  void recover(SimMemory& memory, std::size_t) override {
    const SimMedia media(memory);
    media.store(Point{2}, value(memory.data()), intent(memory.data()).load());
    if (!forgets_) media.flush(Point{2}, &value(memory.data()));
    media.fence(Point{2});
    write(media, intent(memory.data()), 0);
  }
  std::string describe(std::size_t operation) const override { return "count to " + std::to_string(operation + 1); }

 private:
  static Word& intent(std::byte* memory) { return reinterpret_cast<Word*>(memory)[0]; }
  static Word& value(std::byte* memory) { return reinterpret_cast<Word*>(memory)[8]; }
  static void write(const SimMedia& media, Word& word, std::uint64_t to) {
    media.store(Point{1}, word, to);
    media.flush(Point{1}, &word);
    media.fence(Point{1});
  }
  bool forgets_;
  std::vector<std::size_t> acked_;
};

TEST(Explorer, crashes_in_the_middle_of_recovery_too) {
  CopiedCounter fine(false), forgetful(true);
  const ExploreResult passed = explore(fine, all_of(fine), {});
  EXPECT_FALSE(passed.violation.has_value()) << *passed.violation;
  EXPECT_GT(passed.recovery_images, 0U);
  const ExploreResult caught = explore(forgetful, all_of(forgetful), {});
  ASSERT_TRUE(caught.violation.has_value());
  EXPECT_NE(caught.violation->find("of recovery"), std::string::npos) << *caught.violation;
}

TEST(Explorer, shrinks_a_violation_to_what_it_needs) {
  Register broken(Fault::kNoFence, 40);
  const std::vector<std::size_t> needed = shrink(broken, all_of(broken), {});
  EXPECT_EQ(needed.size(), 1U);
  EXPECT_TRUE(explore(broken, needed, {}).violation.has_value());
}

TEST(Explorer, tells_when_all_simulated_threads_wait_for_each_other) {
  SimMemory memory(kLineBytes);
  const SimMedia media(memory);
  const std::vector<std::function<void()>> threads(2, [&] {
    for (int i = 0; i < 1000000; ++i) media.pause();
  });
  EXPECT_FALSE(memory.run_threads(threads, 1, 1));
}

}  // namespace
}  // namespace dunnock::crash
