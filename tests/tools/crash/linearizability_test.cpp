// The search for a linear order: known histories that have one and that have none, and a brute-force twin that tries
// every order of tiny random ones.
#include "dunnock/crash/linearizability.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "dunnock/crash/sequential_objects.hpp"
#include "support/seed.hpp"

namespace dunnock::crash {
namespace {

using Map = MapKey::Call;
using Filter = FilterKey::Call;
constexpr std::uint64_t kNever = Timed<Map>::kNever;

Map put(std::uint64_t value, MapKey::Answer answer = MapKey::Answer::kDone) {
  return {MapKey::What::kPut, answer, value, 0, {}};
}
Map get(MapKey::Value seen) { return {MapKey::What::kGet, MapKey::Answer::kDone, 0, 0, seen}; }
Map erase(bool done) {
  return {MapKey::What::kErase, done ? MapKey::Answer::kDone : MapKey::Answer::kRefused, 0, 0, {}};
}
Map replace_if(std::uint64_t expected, std::uint64_t value, bool done) {
  return {MapKey::What::kReplaceIf, done ? MapKey::Answer::kDone : MapKey::Answer::kRefused, value, expected, {}};
}
Map may_contain(bool maybe) {
  return {MapKey::What::kMayContain, maybe ? MapKey::Answer::kDone : MapKey::Answer::kRefused, 0, 0, {}};
}

// ----- known histories ----------------------------------------------------------------------------------------------

TEST(Linearizability, an_empty_history_has_an_order) { EXPECT_TRUE(linearize<MapKey>({})); }

TEST(Linearizability, overlapping_calls_may_take_effect_in_either_order) {
  const Verdict verdict = linearize<MapKey>({{put(1), 1, 10}, {get(std::nullopt), 2, 3}, {get(1), 4, 5}});
  EXPECT_TRUE(verdict);
  EXPECT_EQ(verdict.order, (std::vector<std::size_t>{1, 0, 2}));
}

TEST(Linearizability, a_value_that_goes_back_has_no_order) {
  const std::vector<Timed<Map>> history = {{put(1), 1, 10}, {get(1), 2, 3}, {get(std::nullopt), 4, 5}};
  const Verdict verdict = linearize<MapKey>(history);
  EXPECT_FALSE(verdict);
  EXPECT_EQ(unexplained(history, verdict), (std::vector<std::size_t>{2}));
}

TEST(Linearizability, two_readers_must_agree_on_the_order_of_two_writes) {
  using enum MapKey::Answer;
  // Both puts overlap all gets; the one that came second has replaced the other.
  EXPECT_FALSE(linearize<MapKey>(
      {{put(1, kDone), 1, 20}, {put(2, kReplaced), 2, 21}, {get(1), 3, 4}, {get(2), 5, 6}, {get(1), 7, 8}}));
  EXPECT_TRUE(linearize<MapKey>(
      {{put(1, kDone), 1, 20}, {put(2, kReplaced), 2, 21}, {get(1), 3, 4}, {get(2), 5, 6}, {get(2), 7, 8}}));
}

TEST(Linearizability, a_read_after_a_return_must_see_it) {
  EXPECT_FALSE(linearize<MapKey>({{put(1), 1, 2}, {get(std::nullopt), 3, 4}}));
  EXPECT_FALSE(linearize<MapKey>({{put(1), 1, 2}, {may_contain(false), 3, 4}}));
  EXPECT_TRUE(linearize<MapKey>({{put(1), 1, 3}, {may_contain(false), 3, 4}}));
  EXPECT_TRUE(linearize<MapKey>({{may_contain(true), 3, 4}}));
}

TEST(Linearizability, only_one_of_two_conditional_writes_can_win) {
  const Timed<Map> first{put(1), 1, 2};
  EXPECT_TRUE(linearize<MapKey>({first, {replace_if(1, 2, true), 3, 6}, {replace_if(1, 3, false), 4, 7}}));
  EXPECT_FALSE(linearize<MapKey>({first, {replace_if(1, 2, true), 3, 6}, {replace_if(1, 3, true), 4, 7}}));
  EXPECT_FALSE(linearize<MapKey>({first, {replace_if(1, 2, false), 3, 6}}));
  EXPECT_FALSE(linearize<MapKey>({first, {erase(true), 3, 6}, {erase(true), 4, 7}}));
  EXPECT_TRUE(linearize<MapKey>({first, {erase(true), 3, 6}, {erase(false), 4, 7}}));
}

TEST(Linearizability, what_a_write_says_it_has_replaced_must_have_been_there) {
  Map second = put(2, MapKey::Answer::kReplaced);
  second.seen = MapKey::Value(7);
  EXPECT_FALSE(linearize<MapKey>({{put(1), 1, 2}, {second, 3, 4}}));
  second.seen = MapKey::Value(1);
  EXPECT_TRUE(linearize<MapKey>({{put(1), 1, 2}, {second, 3, 4}}));
}

TEST(Linearizability, a_call_that_never_returned_may_have_happened_or_not) {
  const Timed<Map> lost{put(1, MapKey::Answer::kNone), 1, kNever};
  EXPECT_TRUE(linearize<MapKey>({lost, {get(std::nullopt), 5, 6}}));
  EXPECT_TRUE(linearize<MapKey>({lost, {get(1), 5, 6}}));
  EXPECT_TRUE(linearize<MapKey>({lost, {get(std::nullopt), 5, 6}, {get(1), 7, 8}}));
  EXPECT_FALSE(linearize<MapKey>({lost, {get(1), 5, 6}, {get(std::nullopt), 7, 8}}));
}

TEST(Linearizability, a_filter_may_say_yes_too_often_but_never_no) {
  const Filter insert{FilterKey::What::kInsert, true, true}, refused{FilterKey::What::kInsert, true, false};
  const Filter erased{FilterKey::What::kErase, true, true}, missing{FilterKey::What::kErase, true, false};
  const Filter yes{FilterKey::What::kContains, true, true}, no{FilterKey::What::kContains, true, false};
  EXPECT_TRUE(linearize<FilterKey>({{yes, 1, 2}, {no, 3, 4}, {yes, 5, 6}}));
  EXPECT_FALSE(linearize<FilterKey>({{insert, 1, 2}, {no, 3, 4}}));
  EXPECT_TRUE(linearize<FilterKey>({{refused, 1, 2}, {no, 3, 4}}));
  // Two copies: one erase leaves one.
  EXPECT_FALSE(linearize<FilterKey>({{insert, 1, 2}, {insert, 3, 4}, {erased, 5, 6}, {no, 7, 8}}));
  EXPECT_TRUE(linearize<FilterKey>({{insert, 1, 2}, {insert, 3, 4}, {erased, 5, 9}, {erased, 6, 10}, {no, 7, 8}}));
  EXPECT_FALSE(linearize<FilterKey>({{insert, 1, 2}, {missing, 3, 4}}));
}

TEST(Linearizability, a_prefix_is_found_as_far_as_it_is_there) {
  using What = PrefixTree::What;
  using Answer = PrefixTree::Answer;
  const PrefixTree::Tree tree{{-1, 0, 1, 0}, false};
  const auto put = [](std::uint8_t block, Answer answer) {
    return PrefixTree::Call{What::kPut, {block}, 0, answer, false};
  };
  const auto lookup = [](std::vector<std::uint8_t> blocks, std::size_t found) {
    return PrefixTree::Call{What::kLookup, std::move(blocks), found, {}, false};
  };
  const auto judge = [&](std::vector<Timed<PrefixTree::Call>> calls, bool evicts = false) {
    PrefixTree::Tree how = tree;
    how.evicts_by_itself = evicts;
    PrefixTree::State state;
    state.tree = &how;
    return static_cast<bool>(linearize<PrefixTree>(std::move(calls), state));
  };
  const Timed<PrefixTree::Call> first{put(0, Answer::kStored), 1, 2}, second{put(1, Answer::kStored), 3, 4};
  EXPECT_TRUE(judge({first, second, {lookup({0, 1, 2}, 2), 5, 6}}));
  EXPECT_FALSE(judge({first, second, {lookup({0, 1, 2}, 1), 5, 6}}));
  EXPECT_FALSE(judge({first, second, {lookup({0, 1, 2}, 3), 5, 6}}));
  EXPECT_FALSE(judge({second}));                                    // It has no parent.
  EXPECT_FALSE(judge({first, {put(1, Answer::kNoParent), 3, 4}}));  // It has.
  EXPECT_FALSE(judge({first, {put(0, Answer::kStored), 3, 4}}));    // It was there.
  // One that was evicted may be missing, and takes along what follows it; but not while it is pinned.
  const Timed<PrefixTree::Call> evict{{What::kEvict, {}, 1, {}, false}, 5, 6};
  EXPECT_TRUE(judge({first, second, evict, {lookup({0, 1}, 1), 7, 8}}));
  EXPECT_FALSE(judge({first, second, evict, {lookup({0, 1}, 0), 7, 8}}));  // Two would have gone.
  EXPECT_TRUE(judge({first, second, {lookup({0, 1}, 0), 7, 8}}, true));
  EXPECT_FALSE(judge({first, second, {lookup({0, 1}, 2), 5, 6}, {lookup({0, 1}, 0), 7, 8}}, true));
  const Timed<PrefixTree::Call> unpin{{What::kUnpin, {1}, 0, {}, false}, 7, 8};
  EXPECT_TRUE(judge({first, second, {lookup({0, 1}, 2), 5, 6}, unpin, {lookup({0, 1}, 0), 9, 10}}, true));
}

TEST(Linearizability, long_histories_with_few_overlaps_are_judged_fast) {
  std::vector<Timed<Map>> history;
  std::uint64_t time = 1;
  MapKey::Value value;
  for (std::uint64_t n = 0; n < 20000; ++n) {
    history.push_back({put(n, value ? MapKey::Answer::kReplaced : MapKey::Answer::kDone), time, time + 3});
    history.push_back({get(n % 2 == 0 ? value : MapKey::Value(n)), time + 1, time + 2});
    value = n;
    time += 4;
  }
  EXPECT_TRUE(linearize<MapKey>(history));
  history.push_back({get(value ? *value - 1 : 0), time, time + 1});
  const Verdict verdict = linearize<MapKey>(history);
  EXPECT_FALSE(verdict.linearizable);
  EXPECT_EQ(unexplained(history, verdict), (std::vector<std::size_t>{history.size() - 1}));
}

TEST(Linearizability, says_so_when_it_gives_up) {
  std::vector<Timed<Filter>> history;
  for (std::uint64_t n = 0; n < 40; ++n)
    history.push_back({{n % 2 == 0 ? FilterKey::What::kInsert : FilterKey::What::kContains, true, true}, 1, 100});
  history.push_back({{FilterKey::What::kContains, true, false}, 200, 201});
  const Verdict verdict = linearize<FilterKey>(history, {}, 1000);
  EXPECT_TRUE(verdict.gave_up);
  EXPECT_FALSE(verdict);
}

// ----- against brute force ------------------------------------------------------------------------------------------

/// The definition, word for word: some subset of the calls that holds all that returned, in some order that respects
/// real time, is a run of the object.
template <class Object>
bool linearizable_by_definition(const std::vector<Timed<typename Object::Call>>& calls, typename Object::State state) {
  for (unsigned subset = 0; subset < 1U << calls.size(); ++subset) {
    std::vector<std::size_t> order;
    bool whole = true;
    for (std::size_t i = 0; i < calls.size(); ++i) {
      if ((subset >> i & 1) != 0) {
        order.push_back(i);
      } else if (calls[i].returned != kNever) {
        whole = false;
      }
    }
    if (!whole) continue;
    do {
      bool fits = true;
      typename Object::State now = state;
      for (std::size_t a = 0; a < order.size() && fits; ++a) {
        for (std::size_t b = a + 1; b < order.size(); ++b)
          fits = fits && calls[order[b]].returned >= calls[order[a]].began;
        fits = fits && Object::step(now, calls[order[a]].call);
      }
      if (fits) return true;
    } while (std::next_permutation(order.begin(), order.end()));
  }
  return false;
}

/// Random times for calls of at most three threads; now and then a call never returns.
template <class Call>
std::vector<Timed<Call>> at_random_times(std::mt19937_64& random, const std::vector<Call>& calls) {
  std::vector<Timed<Call>> timed;
  std::uint64_t free_from[3] = {1, 1, 1};
  for (const Call& call : calls) {
    std::uint64_t& from = free_from[random() % 3];
    if (from == kNever) continue;
    const std::uint64_t began = from + random() % 6;
    const std::uint64_t returned = random() % 10 == 0 ? kNever : began + random() % 12;
    timed.push_back({call, began, returned});
    from = returned == kNever ? kNever : returned + 1;
  }
  return timed;
}

TEST(Linearizability, agrees_with_brute_force_on_histories_of_a_map) {
  std::mt19937_64 random = test::generator(1);
  unsigned yes = 0, no = 0;
  for (int run = 0; run < 4000; ++run) {
    std::vector<Map> calls;
    for (std::size_t n = 1 + random() % 6; n > 0; --n) {
      Map call{static_cast<MapKey::What>(random() % 6),
               static_cast<MapKey::Answer>(1 + random() % 3),
               1 + random() % 2,
               1 + random() % 2,
               {}};
      if (call.what == MapKey::What::kGet) call.seen = random() % 3 == 0 ? MapKey::Value() : 1 + random() % 2;
      calls.push_back(call);
    }
    auto history = at_random_times(random, calls);
    for (auto& one : history) {
      if (one.returned == kNever) one.call.answer = MapKey::Answer::kNone;
    }
    const bool expected = linearizable_by_definition<MapKey>(history, {});
    ASSERT_EQ(static_cast<bool>(linearize<MapKey>(history)), expected) << "run " << run;
    ++(expected ? yes : no);
  }
  EXPECT_GT(yes, 100U);
  EXPECT_GT(no, 100U);
}

TEST(Linearizability, agrees_with_brute_force_on_histories_of_a_filter) {
  std::mt19937_64 random = test::generator(2);
  unsigned yes = 0, no = 0;
  for (int run = 0; run < 4000; ++run) {
    std::vector<Filter> calls;
    for (std::size_t n = 1 + random() % 6; n > 0; --n)
      calls.push_back({static_cast<FilterKey::What>(random() % 3), true, random() % 3 != 0});
    auto history = at_random_times(random, calls);
    for (auto& one : history) one.call.answered = one.returned != kNever;
    const bool expected = linearizable_by_definition<FilterKey>(history, {});
    ASSERT_EQ(static_cast<bool>(linearize<FilterKey>(history)), expected) << "run " << run;
    ++(expected ? yes : no);
  }
  EXPECT_GT(yes, 100U);
  EXPECT_GT(no, 100U);
}

TEST(Linearizability, agrees_with_brute_force_on_histories_of_a_prefix_tree) {
  std::mt19937_64 random = test::generator(3);
  unsigned yes = 0, no = 0;
  for (int run = 0; run < 4000; ++run) {
    const PrefixTree::Tree tree{{-1, 0, 0}, random() % 2 == 0};
    std::vector<PrefixTree::Call> calls;
    for (std::size_t n = 1 + random() % 5; n > 0; --n) {
      PrefixTree::Call call;
      call.what = random() % 3 == 0 ? static_cast<PrefixTree::What>(random() % 4) : PrefixTree::What::kPut;
      call.blocks = {static_cast<std::uint8_t>(random() % 3)};
      if (call.what == PrefixTree::What::kLookup) call.blocks = {0, static_cast<std::uint8_t>(1 + random() % 2)};
      call.count = random() % (call.blocks.size() + 1);
      call.answer = random() % 2 == 0 ? PrefixTree::Answer::kStored : static_cast<PrefixTree::Answer>(random() % 4);
      call.contended = random() % 4 == 0;
      calls.push_back(call);
    }
    auto history = at_random_times(random, calls);
    std::erase_if(history, [](const auto& one) { return one.returned == kNever; });
    PrefixTree::State state;
    state.tree = &tree;
    const bool expected = linearizable_by_definition<PrefixTree>(history, state);
    ASSERT_EQ(static_cast<bool>(linearize<PrefixTree>(history, state)), expected) << "run " << run;
    ++(expected ? yes : no);
  }
  EXPECT_GT(yes, 100U);
  EXPECT_GT(no, 100U);
}

}  // namespace
}  // namespace dunnock::crash
