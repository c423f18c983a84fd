// A redo journal for a pool in an ordinary file: one sequential write for a fence instead of a write of every page.
//
//   an extent of the pool's file: | head 4096 B | half A: group, group, ... | half B: group, group, ... |
//   group: head 64 B | revokes 16 B each | lines 72 B each | zeros up to a multiple of 4096 B
//
// A group holds what one fence (or several that met) makes durable: lines of the pool with their offsets, as they were
// then. Groups are numbered, and one is appended when the one before it is durable. When a half is full, the other is
// used, and the pool's file is written back in the background; only then may the full half be begun anew. So at any
// time the pool's pages and the journal together hold everything that was fenced.
//
// `oldest` in a group's head is the number of the first group that a replay needs once this group is durable: the first
// of the other half until that has been written back, then the first of its own. The last block of a half is kept free
// for a group that says the latter, so that it is always said before the other half is begun anew. Without that word, a
// half whose first new group was torn by a power failure could not be told from a half that is damaged.
//
// A revoke says that older lines in a range of the pool are void: the range was written past the journal.
//
// After a crash: the youngest sound group says which groups are needed. All of them must be sound, or the journal is
// damaged; their lines, in the order of their numbers, are written to the pool's pages. What is not needed may be torn.
// What is newer in the pages than in the journal was never fenced, and may be older again: the model in media.hpp
// allows it for each line. (Whether the youngest acknowledged group itself has rotted can't be told from one that was
// torn before it was acknowledged, as in every redo log.)
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "dunnock/base/file.hpp"
#include "dunnock/base/result.hpp"
#include "dunnock/pmem/media.hpp"

namespace dunnock::detail {

inline constexpr std::uint64_t kJournalBlock = 4096;
/// Two halves of seven blocks: a third of one still takes a group of a hundred lines.
inline constexpr std::uint64_t kJournalBytesMin = 64 << 10;
/// Two halves of four: less has no room for any group. (As `dunnock-crash explore` has it, to change halves often.)
inline constexpr std::uint64_t kJournalBytesLeast = 9 * kJournalBlock;

/// Where a journal lies in the pool's file; multiples of kJournalBlock.
struct JournalExtent {
  std::uint64_t offset = 0, bytes = 0;
};

struct JournalHead {
  std::uint64_t magic;  // kJournalMagic
  std::uint64_t id;     // also in the pool's root, for as long as the pool needs this journal
  std::uint64_t half_bytes;
  std::uint64_t checksum;  // XXH3 of the fields before
};
inline constexpr std::uint64_t kJournalMagic = 0x324c4e524a4b4e44ULL;  // "DNKJRNL2", little endian
inline constexpr std::uint64_t kSideJournalMagic =
    0x314c4e524a4b4e44ULL;  // "DNKJRNL1": a file beside a pool of version 2

struct JournalGroup {
  std::uint64_t id;
  std::uint64_t number;  // of the group; one more than that of the group before
  std::uint64_t lines;
  std::uint64_t revokes;
  std::uint64_t checksum;  // XXH3 of the other fields of this head, the revokes and the lines
  std::uint64_t oldest;    // the first group that a replay needs; 0 in a side journal, which does not say it
  std::array<std::uint64_t, 2> zero;
};
static_assert(sizeof(JournalGroup) == 64);

struct JournalRevoke {
  std::uint64_t offset, bytes;  // in the pool
};
struct JournalLine {
  std::uint64_t offset;  // in the pool
  std::array<std::uint64_t, kLineBytes / 8> words;
};
static_assert(sizeof(JournalLine) == 72);

/// Writes a journal. Threads: one at a time, but the write-back that it starts runs beside them.
class Journal {
 public:
  struct Options {
    UniqueFd file;         ///< Of the pool, opened for synchronous writes (O_DSYNC, and O_DIRECT where that works).
    JournalExtent extent;  ///< At least kJournalBytesLeast long. Nobody else writes there.
    std::uint64_t id = 0;
    std::uint64_t pool_bytes = 0;
    /// The extent's blocks were never written: they are, so that a later write changes no data of the file system's
    /// own.
    bool fresh = true;
    /// Makes everything in the pool's pages durable. 0, or the errno of what failed.
    std::function<int()> write_back;
    /// On a thread of its own; false, or where no thread can be started: by the thread that needs the half, at the
    /// latest moment.
    bool in_background = true;
  };
  /// Writes the head of a new journal with no groups, durably. Errors: NoSpace, Io.
  [[nodiscard]] static Result<std::unique_ptr<Journal>> create(Options options);
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;
  virtual ~Journal() = default;

  /// Can one group have this many?
  [[nodiscard]] virtual bool fits(std::size_t lines, std::size_t revokes) const noexcept = 0;
  /// Makes the group, which fits, durable. `copy` reads a line of the pool. 0, or the errno of what failed: a write, or
  /// a write-back that was to make room.
  [[nodiscard]] virtual int append(std::span<const std::uint64_t> line_offsets, std::span<const JournalRevoke> revokes,
                                   const std::function<void(std::uint64_t offset, std::uint64_t* words)>& copy) = 0;
  /// Does the journal hold lines in that range of the pool, as far as it knows?
  [[nodiscard]] virtual bool may_hold(std::uint64_t offset, std::uint64_t bytes) const noexcept = 0;
  /// The errno of the first write-back that has failed; 0: none has. To be asked before the journal is given up.
  [[nodiscard]] virtual int write_back_error() const noexcept = 0;
  /// Waits for a write-back that is running.
  virtual void finish_write_back() noexcept = 0;

 protected:
  Journal() = default;
};

/// Calls apply(offset, words) for each line that a journal brings back, each offset once, ascending; the offsets are
/// multiples of 64 under pool_bytes and outside of `extent`. `journal` is the extent, or the bytes of a side journal.
/// Errors: Corrupt (whatever the bytes are; then nothing was applied).
[[nodiscard]] Status replay_journal(std::span<const std::byte> journal, std::uint64_t id, std::uint64_t pool_bytes,
                                    JournalExtent extent,
                                    const std::function<void(std::uint64_t offset, const std::uint64_t* words)>& apply);

}  // namespace dunnock::detail
