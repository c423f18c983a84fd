// FileMedia: durability for pools in ordinary files, where the page cache stands between memory and the disk.
//
// flush() only notes the page; fence() writes back every page that this thread has noted with one msync over the span
// from the lowest to the highest (the kernel writes the dirty pages in it and no others). Fences of several threads
// that meet are served together: while one msync runs, the others gather for the next. One msync costs about a
// millisecond on a disk, so bulk operations, which fence once for many keys, are the way to use this media.
//
// The kernel may write a page at any time before it is fenced, which is what the model in media.hpp allows.
//
// When msync fails, the kernel may have dropped the dirty pages ("fsyncgate"): what is in memory and what is on disk
// can no longer be told apart, so the process is stopped with a message; the next opening recovers what is on disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#include "dunnock/pmem/media.hpp"

namespace dunnock {

namespace detail {

/// What all FileMedia of one mapping share.
class FileSync {
 public:
  FileSync(void* base, std::size_t bytes);
  ~FileSync();
  FileSync(const FileSync&) = delete;
  FileSync& operator=(const FileSync&) = delete;

  /// Notes the page of `address` for the calling thread.
  void note(const void* address) noexcept;
  /// Returns when all pages that the calling thread has noted are on disk.
  void sync() noexcept;

  [[nodiscard]] std::uint64_t syncs() const noexcept;   ///< msync calls so far
  [[nodiscard]] std::uint64_t fences() const noexcept;  ///< sync() calls that had something to do

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace detail

/// A copyable handle; the Pool that it came from must outlive it.
struct FileMedia : detail::MappedMedia {
  static constexpr Durability kDurability = Durability::kPower;
  static constexpr bool kVisibleIsDurable = false;

  explicit FileMedia(detail::FileSync& file_sync) noexcept : sync_(&file_sync) {}
  void write(Point, void* to, const void* from, std::size_t bytes) const noexcept {
    if (bytes == 0) return;
    std::memcpy(to, from, bytes);
    sync_->note(to);
    sync_->note(static_cast<const std::byte*>(to) + bytes - 1);  // One msync covers all from the lowest to the highest.
  }
  void flush(Point, const void* address) const noexcept { sync_->note(address); }
  void fence(Point) const noexcept { sync_->sync(); }

  /// msync calls and fences since the pool was opened: their ratio says how many fences shared one msync.
  [[nodiscard]] std::uint64_t syncs() const noexcept { return sync_->syncs(); }
  [[nodiscard]] std::uint64_t fences() const noexcept { return sync_->fences(); }

 private:
  detail::FileSync* sync_;
};

static_assert(Media<FileMedia>);

}  // namespace dunnock
