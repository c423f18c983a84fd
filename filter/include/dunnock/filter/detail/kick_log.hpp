// The log of kicks in flight: a move of a fingerprint from one word to another, as one failure-atomic step.
//
//   take      a line that is idle                                              volatile
//   arm       the record, its mark last; fence                                 from here a crash completes the move
//   ...       the two words; fence                                             the move is durable by itself
//   retire    the mark is 0 again; fence                                       no crash replays it over later changes
//   release   the line may be taken again                                      volatile
//   replay    after a crash: both words of each armed record, then retire
//
// The bytes of a line are in format.hpp. The writer holds the stripes of both words from before arm until after retire.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <string>

#include "dunnock/base/check.hpp"
#include "dunnock/base/result.hpp"
#include "dunnock/filter/format.hpp"
#include "dunnock/filter/points.hpp"
#include "dunnock/pmem/media.hpp"

namespace dunnock::detail {

/// A move: the values that two words of the table have after it.
struct KickRecord {
  std::uint64_t source;  // index of the word
  std::uint64_t source_after;
  std::uint64_t target;
  std::uint64_t target_after;
};

/// Threads: any number.
class KickLog {
 public:
  /// The lines of a filter; all idle unless replay() comes first.
  explicit KickLog(LogLine* lines) noexcept : lines_(lines) {}

  /// Null: all lines are in use. (This and move() are not inlined, since few inserts kick.)
  template <Media M>
  [[nodiscard, gnu::noinline]] LogLine* try_take(const M& media) noexcept {
    std::uint64_t free_lines = free_.load(std::memory_order_relaxed);
    while (free_lines != 0) {
      const std::uint64_t taken = free_lines & (~free_lines + 1);
      // acquire: the last user's retirement (release in release()) comes before our record.
      if (free_.compare_exchange_weak(free_lines, free_lines & ~taken, std::memory_order_acquire,
                                      std::memory_order_relaxed)) {
        LogLine& log = lines_[std::countr_zero(taken)];
        DUNNOCK_CHECK(media.load(log.armed) == 0, "a free log line is idle");
        return &log;
      }
    }
    return nullptr;
  }

  /// Stores and flushes the record. The caller fences.
  template <Point kArm, Media M>
  static void arm(const M& media, LogLine& log, const KickRecord& record) noexcept {
    media.store(filter_point::kLogFields, log.target, record.target);
    media.store(filter_point::kLogFields, log.target_after, record.target_after);
    media.store(filter_point::kLogFields, log.source, record.source);
    media.store(filter_point::kLogFields, log.source_after, record.source_after);
    media.store(kArm, log.armed, log_mark(record.target, record.target_after, record.source, record.source_after));
    media.flush(kArm, &log);
  }

  /// Stores and flushes. The caller fences, and then releases the line.
  template <Point kRetire, Media M>
  static void retire(const M& media, LogLine& log) noexcept {
    media.store(kRetire, log.armed, 0);
    media.flush(kRetire, &log);
  }

  void release(const LogLine& log) noexcept { free_.fetch_or(1ULL << (&log - lines_), std::memory_order_release); }

  /// Stores both words as one failure-atomic step. The copy is visible to readers before the original is removed.
  template <Media M, class Table>
  [[gnu::noinline]] void move(const M& media, const Table& table, const KickRecord& record) {
    Word& from = table.word_at(record.source);
    Word& to = table.word_at(record.target);
    if constexpr (M::kDurability == Durability::kNone) {
      media.store(filter_point::kKickCopy, to, record.target_after);
      media.store(filter_point::kKickRemove, from, record.source_after);
      return;
    }
    LogLine* log = try_take(media);  // There are as many as useful concurrent kicks.
    for (; log == nullptr; log = try_take(media)) media.pause();
    arm<filter_point::kLogArm>(media, *log, record);
    media.fence(filter_point::kLogArm);  // From here a crash completes the move.

    media.store(filter_point::kKickCopy, to, record.target_after);
    media.flush(filter_point::kKickCopy, &to);
    media.store(filter_point::kKickRemove, from, record.source_after);
    media.flush(filter_point::kKickRemove, &from);
    media.fence(filter_point::kKickFence);  // The move is durable by itself.

    retire<filter_point::kLogRetire>(media, *log);
    media.fence(filter_point::kLogRetire);  // No crash replays it over later changes to these words.
    release(*log);
  }

  /// Is each record idle or whole, for a table of this many words? Errors: Corrupt.
  template <Media M>
  [[nodiscard]] Status check(const M& media, std::uint64_t words) const {
    for (unsigned i = 0; i < kLogLines; ++i) {
      const LogLine& log = lines_[i];
      const std::uint64_t armed = media.load(log.armed);
      if (armed == 0) continue;
      const std::uint64_t target = media.load(log.target);
      const std::uint64_t source = media.load(log.source);
      if (armed != log_mark(target, media.load(log.target_after), source, media.load(log.source_after)) ||
          target >= words || source >= words || target == source)
        return make_error(ErrorCode::kCorrupt, "kick record " + std::to_string(i) + " of the filter is damaged");
    }
    return {};
  }

  /// Completes the moves of all armed records, which check() has passed. Idempotent: after a crash in here, the next
  /// call completes them. Returns how many there were.
  template <Media M, class Table>
  unsigned replay(const M& media, const Table& table) noexcept {
    unsigned completed = 0;
    for (unsigned i = 0; i < kLogLines; ++i) {
      LogLine& log = lines_[i];
      if (media.load(log.armed) == 0) continue;
      Word& target = table.word_at(media.load(log.target));
      Word& source = table.word_at(media.load(log.source));
      media.store(filter_point::kRecoverCopy, target, media.load(log.target_after));
      media.flush(filter_point::kRecoverCopy, &target);
      media.store(filter_point::kRecoverRemove, source, media.load(log.source_after));
      media.flush(filter_point::kRecoverRemove, &source);
      media.fence(filter_point::kRecoverFence);  // The move is durable by itself.
      retire<filter_point::kRecoverRetire>(media, log);
      media.fence(filter_point::kRecoverRetire);
      ++completed;
    }
    return completed;
  }

  /// Calls visit(i) for each record that is not idle.
  template <Media M, class Visit>
  void for_each_armed(const M& media, Visit&& visit) const {
    for (unsigned i = 0; i < kLogLines; ++i) {
      if (media.load(lines_[i].armed) != 0) visit(i);
    }
  }

 private:
  LogLine* lines_;
  std::atomic<std::uint64_t> free_{~0ULL};  // bit i: line i is idle
  static_assert(kLogLines == 64);
};

}  // namespace dunnock::detail
