// What a single thread would see of our structures: the objects that linearize() compares their histories with.
//
//   MapKey      one key of a KvIndex or KvStore         keys are independent: a history of each
//   FilterKey   one key of a CuckooFilter               a multiset that may say yes too often
//   PrefixTree  a PrefixStore                           blocks that come after one another, and may be evicted
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace dunnock::crash {

/// One key of a map.
struct MapKey {
  using Value = std::optional<std::uint64_t>;  // empty: the key is missing
  enum class What : std::uint8_t { kPut, kErase, kReplaceIf, kEraseIf, kGet, kMayContain };
  enum class Answer : std::uint8_t {
    kNone,      // it never returned
    kDone,      // put: the key was new. erase, replace_if, erase_if: done. may_contain: maybe. get: see `seen`.
    kReplaced,  // put: the key existed
    kRefused,   // put: the key was missing, and no room. erase, replace_if, erase_if: missing, or another value.
                // may_contain: no.
    kFull,      // put of a KvStore: no room, whether the key existed or not
  };
  struct Call {
    What what = What::kGet;
    Answer answer = Answer::kNone;
    std::uint64_t value = 0;      // put, replace_if: the new one
    std::uint64_t expected = 0;   // replace_if, erase_if
    std::optional<Value> seen{};  // get: what it found; put, erase: the previous value, if reported
  };
  struct State {
    Value value;
    bool operator==(const State&) const = default;
  };
  static std::size_t hash(const State& state) { return state.value ? *state.value * 2 + 1 : 0; }
  static bool step(State& state, const Call& call) {
    const bool there = state.value.has_value();
    if (call.answer != Answer::kNone && call.seen && *call.seen != state.value) return false;
    switch (call.what) {
      case What::kPut:
        if (call.answer == Answer::kFull) return true;
        if (call.answer == Answer::kRefused) return !there;
        if (call.answer != Answer::kNone && there != (call.answer == Answer::kReplaced)) return false;
        state.value = call.value;
        return true;
      case What::kErase:
        if (call.answer != Answer::kNone && there != (call.answer == Answer::kDone)) return false;
        state.value = std::nullopt;
        return true;
      case What::kReplaceIf:
      case What::kEraseIf: {
        const bool matches = state.value == Value(call.expected);
        if (call.answer != Answer::kNone && matches != (call.answer == Answer::kDone)) return false;
        if (matches) state.value = call.what == What::kReplaceIf ? Value(call.value) : std::nullopt;
        return true;
      }
      case What::kGet: return true;
      case What::kMayContain: return call.answer != Answer::kRefused || !there;
    }
    return false;
  }
};

/// One key of a filter, as a number of copies. Only existing copies may be erased (CuckooFilter::erase).
struct FilterKey {
  enum class What : std::uint8_t { kInsert, kErase, kContains };
  struct Call {
    What what = What::kContains;
    bool answered = false;
    bool yes = false;
  };
  struct State {
    std::uint32_t copies = 0;
    bool operator==(const State&) const = default;
  };
  static std::size_t hash(const State& state) { return state.copies; }
  static bool step(State& state, const Call& call) {
    switch (call.what) {
      case What::kInsert: state.copies += !call.answered || call.yes ? 1 : 0; return true;
      case What::kErase:
        if (call.answered && call.yes != (state.copies != 0)) return false;
        state.copies -= state.copies != 0 ? 1 : 0;
        return true;
      case What::kContains: return call.yes || !call.answered || state.copies == 0;
    }
    return false;
  }
};

/// A tree of at most 64 blocks, of which some are stored: never one without the one before it. Blocks may be evicted at
/// any time if the tree allows it, or as many as calls of evict() have removed; but not pinned ones, nor those before
/// them. Here they are evicted when an answer requires it, which is equivalent to any earlier moment: until then no
/// call has seen them.
struct PrefixTree {
  struct Tree {
    std::vector<int> parents;       // of each block; -1: none
    bool evicts_by_itself = false;  // it is full
    [[nodiscard]] std::uint64_t with_what_follows(unsigned block) const {
      std::uint64_t all = std::uint64_t{1} << block;
      for (std::size_t i = 0; i < parents.size(); ++i) {  // Parents have smaller numbers.
        if (parents[i] >= 0 && (all >> parents[i] & 1) != 0) all |= std::uint64_t{1} << i;
      }
      return all;
    }
  };
  enum class What : std::uint8_t { kLookup, kUnpin, kPut, kEvict };
  enum class Answer : std::uint8_t { kStored, kThere, kNoParent, kFull };
  struct Call {
    What what = What::kLookup;
    std::vector<std::uint8_t> blocks{};  // lookup: of the prompt, in order; put, unpin: the one
    std::size_t count = 0;               // lookup: found; evict: gone
    Answer answer = Answer::kStored;     // put
    bool contended = false;              // put: another thread may have been putting or evicting the same block;
                                         // lookup: putting the first one that was not found
  };
  struct State {
    const Tree* tree = nullptr;
    std::uint64_t there = 0;
    std::uint64_t may_go = 0;  // this many blocks were evicted, which no call has missed yet
    std::array<std::uint8_t, 64> pins{};
    bool operator==(const State&) const = default;
  };
  static std::size_t hash(const State& state) {
    std::size_t value = state.there * 0x9e3779b97f4a7c15ULL + state.may_go;
    for (const std::uint8_t pins : state.pins) value = value * 31 + pins;
    return value;
  }
  static bool is_there(const State& state, unsigned block) { return (state.there >> block & 1) != 0; }
  /// Evicts the block and those that follow it. False: they can't have been evicted.
  static bool gone(State& state, unsigned block) {
    if (!is_there(state, block)) return true;
    const std::uint64_t all = state.tree->with_what_follows(block) & state.there;
    for (unsigned i = 0; i < 64; ++i) {
      if ((all >> i & 1) != 0 && state.pins[i] != 0) return false;
    }
    if (!state.tree->evicts_by_itself) {
      const auto many = static_cast<std::uint64_t>(std::popcount(all));
      if (many > state.may_go) return false;
      state.may_go -= many;
    }
    state.there &= ~all;
    return true;
  }
  static bool step(State& state, const Call& call) {
    switch (call.what) {
      case What::kLookup:
        for (std::size_t i = 0; i < call.count; ++i) {
          if (!is_there(state, call.blocks[i])) return false;
        }
        // A block that is put meanwhile may be missed: a lookup pins blocks later than it counts them.
        if (call.count < call.blocks.size() && !call.contended && !gone(state, call.blocks[call.count])) return false;
        if (call.count != 0) ++state.pins[call.blocks[call.count - 1]];
        return true;
      case What::kUnpin: return state.pins[call.blocks[0]]-- != 0;
      case What::kEvict: state.may_go += call.count; return true;
      case What::kPut: break;
    }
    const unsigned block = call.blocks[0];
    const int parent = state.tree->parents[block];
    const bool follows = parent < 0 || is_there(state, static_cast<unsigned>(parent));
    switch (call.answer) {
      case Answer::kStored:
        if (!follows || !gone(state, block)) return false;
        state.there |= std::uint64_t{1} << block;
        return true;
      case Answer::kThere: return is_there(state, block);
      case Answer::kNoParent:
        if (call.contended || !follows) return true;
        // The parent is gone, or the block itself is being evicted.
        return (parent >= 0 && gone(state, static_cast<unsigned>(parent))) ||
               (is_there(state, block) && gone(state, block));
      case Answer::kFull: return true;
    }
    return false;
  }
};

}  // namespace dunnock::crash
