#include "dunnock/pmem/file_media.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <limits>
#include <mutex>
#include <vector>

#include "dunnock/base/check.hpp"

namespace dunnock::detail {
namespace {

/// Addresses [low, high) with pages to be written back.
struct Span {
  std::uintptr_t low = std::numeric_limits<std::uintptr_t>::max();
  std::uintptr_t high = 0;
  [[nodiscard]] bool empty() const noexcept { return low >= high; }
  void add(const Span& other) noexcept {
    if (other.low < low) low = other.low;
    if (other.high > high) high = other.high;
  }
};

/// What this thread has noted and not yet fenced, one entry a mapping. `mapping` is a number that is never used twice,
/// so an entry of a mapping that is gone can't be mistaken for another's.
struct Noted {
  std::uint64_t mapping;
  Span span;
};
thread_local std::vector<Noted> noted_here;

std::atomic<std::uint64_t> next_mapping{1};

Span& noted_for(std::uint64_t mapping) {
  for (Noted& one : noted_here) {
    if (one.mapping == mapping) return one.span;
  }
  noted_here.push_back({mapping, {}});
  return noted_here.back().span;
}

}  // namespace

struct FileSync::State {
  std::uint64_t mapping = next_mapping.fetch_add(1, std::memory_order_relaxed);
  std::uintptr_t base = 0;
  std::uintptr_t end = 0;
  std::uintptr_t page_bytes = 4096;

  std::mutex mutex;
  std::condition_variable round_over;
  Span gathering;                  // of the round that has not started
  std::uint64_t round_started = 0; // rounds taken by a leader
  std::uint64_t round_done = 0;
  bool running = false;
  std::atomic<std::uint64_t> syncs{0};
  std::atomic<std::uint64_t> fences{0};
};

FileSync::FileSync(void* base, std::size_t bytes) : state_(std::make_unique<State>()) {
  state_->base = reinterpret_cast<std::uintptr_t>(base);
  state_->end = state_->base + bytes;
  state_->page_bytes = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
}

FileSync::~FileSync() = default;

void FileSync::note(const void* address) noexcept {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  DUNNOCK_CHECK(at >= state_->base, "a flushed address lies in the pool");
  DUNNOCK_CHECK(at < state_->end, "a flushed address lies in the pool");
  const std::uintptr_t page = at / state_->page_bytes * state_->page_bytes;
  noted_for(state_->mapping).add({page, page + state_->page_bytes});
}

void FileSync::sync() noexcept {
  Span& mine = noted_for(state_->mapping);
  if (mine.empty()) return;
  State& s = *state_;
  s.fences.fetch_add(1, std::memory_order_relaxed);
  std::unique_lock lock(s.mutex);
  s.gathering.add(mine);
  mine = {};
  const std::uint64_t my_round = s.round_started + 1;  // The one that `gathering` belongs to.
  while (s.round_done < my_round) {
    if (s.running) {
      s.round_over.wait(lock);
      continue;
    }
    // Lead: take what has gathered, write it back without the lock, tell the others.
    s.running = true;
    const std::uint64_t round = ++s.round_started;
    const Span span = s.gathering;
    s.gathering = {};
    lock.unlock();
    const int failed = msync(reinterpret_cast<void*>(span.low), span.high - span.low, MS_SYNC);
    DUNNOCK_CHECK(failed == 0, "msync failed: nothing more can be acknowledged (see file_media.hpp)");
    s.syncs.fetch_add(1, std::memory_order_relaxed);
    lock.lock();
    s.running = false;
    s.round_done = round;
    s.round_over.notify_all();
  }
}

std::uint64_t FileSync::syncs() const noexcept { return state_->syncs.load(std::memory_order_relaxed); }
std::uint64_t FileSync::fences() const noexcept { return state_->fences.load(std::memory_order_relaxed); }

}  // namespace dunnock::detail
