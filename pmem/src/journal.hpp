// A redo journal for a pool in an ordinary file: one sequential write for a fence instead of a write of every page.
//
//   file: | head 4096 B | half A: group, group, ... | half B: group, group, ... |
//   group: head 64 B | revokes 16 B each | lines 72 B each | zeros up to a multiple of 4096 B
//
// A group holds what one fence (or several that met) makes durable: lines of the pool with their offsets, as they were
// then. Groups are numbered; a half begins with the group that was the first when it was begun anew. When a half is
// full, the other is used, and the pool's file is written back in the background; only then the full half may be begun
// anew. So at any time pool file and journal together hold everything that was fenced.
//
// A revoke says that older lines in a range of the pool are void: the range was written past the journal.
//
// After a crash: the lines of all groups, in the order of their numbers, are written to the pool's file. What is newer
// there than the journal was never fenced, and may be older again: the model in media.hpp allows it for each line.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/pmem/media.hpp"

namespace dunnock::detail {

inline constexpr std::uint64_t kJournalBlock = 4096;

struct JournalHead {
  std::uint64_t magic;  // kJournalMagic
  std::uint64_t id;     // also in the pool's root, for as long as the pool needs this journal
  std::uint64_t half_bytes;
  std::uint64_t checksum;  // XXH3 of the fields before
};
inline constexpr std::uint64_t kJournalMagic = 0x314c4e524a4b4e44ULL;  // "DNKJRNL1", little endian

struct JournalGroup {
  std::uint64_t id;
  std::uint64_t number;  // of the group; one more than that of the group before
  std::uint64_t lines;
  std::uint64_t revokes;
  std::uint64_t checksum;  // XXH3 of the fields before, the revokes and the lines
  std::array<std::uint64_t, 3> zero;
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
  /// Creates the file `path` anew, of two halves of that many bytes (a multiple of 4096), with its blocks allocated.
  /// `write_back` makes everything in the pool's file durable; false: it fails. Called from another thread.
  /// Errors: NoSpace, Io.
  [[nodiscard]] static Result<std::unique_ptr<Journal>> create(const std::string& path, std::uint64_t id,
                                                               std::uint64_t half_bytes, std::uint64_t pool_bytes,
                                                               std::function<bool()> write_back);
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;
  virtual ~Journal() = default;

  /// The most lines that a group can have.
  [[nodiscard]] virtual std::size_t lines_max() const noexcept = 0;
  /// Makes the group durable. `copy` reads a line of the pool. False: the disk refuses.
  [[nodiscard]] virtual bool append(std::span<const std::uint64_t> line_offsets, std::span<const JournalRevoke> revokes,
                                    const std::function<void(std::uint64_t offset, std::uint64_t* words)>& copy) = 0;
  /// Does the journal hold lines in that range of the pool, as far as it knows?
  [[nodiscard]] virtual bool may_hold(std::uint64_t offset, std::uint64_t bytes) const noexcept = 0;

 protected:
  Journal() = default;
};

/// Calls apply(offset, words) for each line that a journal brings back, each offset once; the offsets are multiples of
/// 64 under pool_bytes. Errors: Corrupt (whatever the bytes are; then nothing was applied).
[[nodiscard]] Status replay_journal(std::span<const std::byte> journal, std::uint64_t id, std::uint64_t pool_bytes,
                                    const std::function<void(std::uint64_t offset, const std::uint64_t* words)>& apply);

}  // namespace dunnock::detail
