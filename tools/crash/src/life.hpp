// The life of a pool's file under power failures: creation, regions that come and go, fences, closing, opening after a
// crash with a replay, and removal, with the real Pool and libpmemobj on a real file. What the library and libpmemobj
// ask of the operating system is recorded, with the sectors that have changed at each call; images that a power failure
// may leave are opened by another process and compared with what was acknowledged.
//
// The model is that of file_explorer.hpp, in sectors of 512 bytes; versions of a sector are what it held at some call.
// A name in a folder is durable when the folder is synced: before that it is there, or not.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace dunnock::crash {

struct LifeOptions {
  std::uint64_t seed = 1;
  std::uint64_t images = 1000;  ///< Stop after this many.
  /// As a planted bug, these syncs do nothing: "folder", "fdatasync", "msync" or "durable write", alone or with what
  /// they are for: " while opening", " while closing", " while a fence" and so on. Empty: none.
  std::string drop;
};
/// Whether `drop` names syncs.
[[nodiscard]] bool is_drop(std::string_view drop);
/// What `drop` may be, in words.
[[nodiscard]] std::string drops_in_words();

struct LifeResult {
  std::uint64_t images = 0;    // opened and compared
  std::uint64_t lives = 0;     // of them, how many pools
  std::uint64_t calls = 0;     // recorded
  std::uint64_t dropped = 0;   // syncs that did nothing
  std::uint64_t replayed = 0;  // lives that began with a crashed pool
  char violation[400] = {};    // empty: none
};
[[nodiscard]] LifeResult live_and_crash(const LifeOptions& options);

}  // namespace dunnock::crash
