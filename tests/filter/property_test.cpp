// The filter against a multiset, on sequences of operations that rapidcheck makes up and shrinks when they fail.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "dunnock/filter/cuckoo_filter.hpp"
#include "support/seed.hpp"

namespace dunnock {
namespace {

enum class Do : std::uint8_t { kInsert, kErase, kLook, kInsertBulk, kEraseBulk, kLookBulk, kReopen, kClear };
/// What to do, and with which of a few keys.
using Step = std::pair<Do, std::vector<std::uint8_t>>;

template <class F>
class Model {
 public:
  void run(const std::vector<Step>& steps) {
    for (const auto& [what, numbers] : steps) {
      std::vector<std::uint64_t> keys(numbers.begin(), numbers.end());
      step(what, keys);
      RC_ASSERT(filter_.size() == items_);
    }
    for (const auto& [key, copies] : copies_) RC_ASSERT(copies == 0 || filter_.contains(key));
    const CheckReport report = filter_.check();
    if (!report.ok()) RC_FAIL(report.violations.front());
    // What was refused or erased left nothing behind.
    for (auto& [key, copies] : copies_) {
      for (; copies != 0; --copies) RC_ASSERT(filter_.erase(key));
    }
    RC_ASSERT(filter_.size() == 0U);
  }

 private:
  void step(Do what, std::vector<std::uint64_t>& keys) {
    std::vector<std::uint8_t> verdicts(keys.size(), 2);
    switch (what) {
      case Do::kInsert:
        for (std::size_t i = 0; i < keys.size(); ++i) verdicts[i] = filter_.insert(keys[i]) ? 1 : 0;
        added(keys, verdicts);
        break;
      case Do::kInsertBulk:
        filter_.insert_bulk(keys, verdicts.data());
        added(keys, verdicts);
        break;
      case Do::kErase:
      case Do::kEraseBulk:
        keep_present(keys);
        verdicts.resize(keys.size());
        if (what == Do::kEraseBulk) {
          filter_.erase_bulk(keys, verdicts.data());
        } else {
          for (std::size_t i = 0; i < keys.size(); ++i) verdicts[i] = filter_.erase(keys[i]) ? 1 : 0;
        }
        for (const std::uint8_t verdict : verdicts) RC_ASSERT(verdict == 1);
        break;
      case Do::kLook:
        for (std::size_t i = 0; i < keys.size(); ++i) verdicts[i] = filter_.contains(keys[i]) ? 1 : 0;
        found(keys, verdicts);
        break;
      case Do::kLookBulk:
        filter_.contains_bulk(keys, verdicts.data());
        found(keys, verdicts);
        break;
      case Do::kReopen: {
        if (keys.size() % 2 == 0) filter_.close();
        auto opened = F::attach(meta_.region(), table_.region(), {});
        RC_ASSERT(opened.has_value());
        RC_ASSERT(opened->report.clean_shutdown == (keys.size() % 2 == 0));
        filter_ = std::move(opened->filter);
        break;
      }
      case Do::kClear:
        filter_.clear();
        copies_.clear();
        items_ = 0;
        break;
    }
  }
  void added(const std::vector<std::uint64_t>& keys, const std::vector<std::uint8_t>& verdicts) {
    for (std::size_t i = 0; i < keys.size(); ++i) {
      RC_ASSERT(verdicts[i] <= 1);
      copies_[keys[i]] += verdicts[i];
      items_ += verdicts[i];
    }
  }
  /// Only what is there may be erased: takes the others out of `keys`, and all of them out of the model.
  void keep_present(std::vector<std::uint64_t>& keys) {
    std::erase_if(keys, [this](std::uint64_t key) {
      if (copies_[key] == 0) return true;
      --copies_[key];
      --items_;
      return false;
    });
  }
  void found(const std::vector<std::uint64_t>& keys, const std::vector<std::uint8_t>& verdicts) {
    for (std::size_t i = 0; i < keys.size(); ++i) RC_ASSERT(copies_[keys[i]] == 0 || verdicts[i] == 1);
  }

  static constexpr std::uint64_t kSlots = 3 * F::kLanes * F::kGroupWords;  // three groups: everything happens soon
  VolatileRegion meta_ = std::move(*VolatileRegion::create(F::meta_bytes()));
  VolatileRegion table_ = std::move(*VolatileRegion::create(F::table_bytes(kSlots)));
  F filter_ = std::move(*F::format(meta_.region(), table_.region(), {kSlots, HashSeed::from(test::seed())}, {}));
  std::map<std::uint64_t, std::uint64_t> copies_;
  std::uint64_t items_ = 0;
};

template <class F>
void agrees() {
  EXPECT_TRUE(rc::check([] {
    const auto steps = *rc::gen::container<std::vector<Step>>(
        rc::gen::pair(rc::gen::weightedElement<Do>({{6, Do::kInsert}, {3, Do::kErase}, {2, Do::kLook},
                                                    {6, Do::kInsertBulk}, {3, Do::kEraseBulk}, {2, Do::kLookBulk},
                                                    {1, Do::kReopen}, {1, Do::kClear}}),
                      rc::gen::arbitrary<std::vector<std::uint8_t>>()));
    Model<F>().run(steps);
  }));
}

TEST(FilterProperty, holds_for_made_up_sequences_on_durable_media) {
  agrees<CuckooFilter<8, DirectMedia>>();
  agrees<CuckooFilter<12, DirectMedia>>();
  agrees<CuckooFilter<16, DirectMedia, FilterPolicy{.multi_writer = false}>>();
}
TEST(FilterProperty, holds_for_made_up_sequences_on_plain_memory) {
  agrees<CuckooFilter<12, DramMedia, FilterPolicy{.multi_writer = false}>>();
  agrees<CuckooFilter<12, DramMedia, FilterPolicy{.group_words = 4}>>();
}

}  // namespace
}  // namespace dunnock
