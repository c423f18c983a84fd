// The media policy: the one door through which every durable store, flush and fence goes.
//
// A structure is a template over its media, so production media cost what the instructions cost and nothing more.
// The same structure then runs on real persistent memory, on an ordinary file, in plain DRAM, or on the simulated
// media of the crash harness, which sees every store, flush and fence and plays power failures.
//
// What a structure may rely on (the x86 persistency model: Raad, Wickerson, Neis, Vafeiadis, "Persistency
// semantics of the Intel-x86 architecture", POPL 2020):
//   * an aligned 8-byte store is never torn by a power failure;
//   * the stores to one 64-byte line become durable in the order in which they became visible: after a power
//     failure the line holds a prefix of them;
//   * different lines are independent, unless flush(line) and then fence() come between two stores: when fence()
//     returns, every store to a line that the same thread flushed before it is durable.
// Nothing else. In particular a line may become durable long before it is flushed.
//
//   media           | survives        | flush            | fence                | visible is durable
//   ----------------+-----------------+------------------+----------------------+-------------------
//   DramMedia       | nothing         | -                | -                    | (nothing to lose)
//   ProcessMedia    | SIGKILL         | -                | -                    | yes
//   ReadOnlyMedia   | nothing         | -                | -                    | yes; nothing may change
//   EadrMedia       | power loss      | -                | sfence               | yes
//   DirectMedia     | power loss      | clwb             | sfence               | no
//   FileMedia       | power loss      | notes the line   | one write a group    | no     (file_media.hpp)
//   SimMedia        | what it says    | recorded         | recorded             | per mode (sim_media.hpp)
#pragma once

#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "dunnock/pmem/fork_mark.hpp"

namespace dunnock {

inline constexpr std::size_t kLineBytes = 64;

/// A durable 8-byte word as structures hold it. Loads and stores go through the media.
using Word = std::atomic<std::uint64_t>;
static_assert(sizeof(Word) == 8 && Word::is_always_lock_free);

/// The name of one durable step in the source ("the store that arms the log"). Each structure numbers its own steps
/// from 1 and gives them readable names (see filter/points.hpp). Production media ignore it; `dunnock-crash
/// mutants` uses it to plant bugs: every point is dropped once, and the harness must notice.
enum class Point : std::uint16_t {};

enum class Durability : std::uint8_t {
  kNone,     ///< Lost with the process.
  kProcess,  ///< Survives the death of the process (SIGKILL), but not that of the machine.
  kPower,    ///< Survives power loss.
};

/// What a media must offer. All calls are thread-safe; none throws.
///   kDurability        what an acknowledged operation survives. kNone: no log is kept and nothing is flushed.
///   kVisibleIsDurable  a store is durable as soon as another thread can see it, so a reader never has to persist
///                      what it has read.
///   load(word)         acquire load.
///   store(point, word, value)   release store (one aligned 8-byte store).
///   flush(point, address)       starts making the line that holds `address` durable.
///   fence(point)                returns when everything that this thread flushed is durable.
///   pause()            called while waiting for another thread.
/// It may also offer write(point, to, from, bytes), a faster form of write_durably() below; kFenceBatch, how many keys
/// of a bulk operation should share a fence where fences are slow; ok(), for media_ok() below; and skips(point), the
/// crash harness's answer to is_taken() below.
template <class M>
concept Media = std::copy_constructible<M> && requires(const M media, Word& word, const Word& source, Point point) {
  { M::kDurability } -> std::convertible_to<Durability>;
  { M::kVisibleIsDurable } -> std::convertible_to<bool>;
  { media.load(source) } noexcept -> std::same_as<std::uint64_t>;
  { media.store(point, word, std::uint64_t{}) } noexcept;
  { media.flush(point, static_cast<const void*>(&word)) } noexcept;
  { media.fence(point) } noexcept;
  { media.pause() } noexcept;
};

namespace detail {

/// Writes the line back to memory and keeps it cached where the processor can (clwb, otherwise clflushopt, otherwise
/// clflush).
void flush_line_slow(const void* address) noexcept;
extern const bool kHasClwb;

inline void flush_line(const void* address) noexcept {
#if defined(__x86_64__)
  if (kHasClwb) [[likely]] {
    asm volatile("clwb %0" : : "m"(*static_cast<const char*>(address)) : "memory");
    return;
  }
#endif
  flush_line_slow(address);
}

inline void store_fence() noexcept {
#if defined(__x86_64__)
  asm volatile("sfence" : : : "memory");
#else
  std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

/// Copies whole lines past the cache where that is faster, and starts making the rest durable.
void copy_and_flush(void* to, const void* from, std::size_t bytes) noexcept;

inline void cpu_pause() noexcept {
#if defined(__x86_64__)
  asm volatile("pause");
#endif
}

/// What all media in mapped memory share: plain atomic loads and stores.
struct MappedLoads {
  [[nodiscard]] std::uint64_t load(const Word& word) const noexcept { return word.load(std::memory_order_acquire); }
  void store(Point, Word& word, std::uint64_t value) const noexcept { word.store(value, std::memory_order_release); }
  void pause() const noexcept { cpu_pause(); }
};

/// What media in a shared mapping share: the mapping belongs to the process that made this object (see Pool about
/// fork).
struct MappedMedia : MappedLoads {
  [[nodiscard]] bool ok() const noexcept { return !fork_.is_child(); }

 private:
  ForkMark fork_;
};

}  // namespace detail

/// Plain memory: makes a structure fast and volatile.
struct DramMedia : detail::MappedLoads {
  static constexpr Durability kDurability = Durability::kNone;
  static constexpr bool kVisibleIsDurable = true;
  void write(Point, void* to, const void* from, std::size_t bytes) const noexcept { std::memcpy(to, from, bytes); }
  void flush(Point, const void*) const noexcept {}
  void fence(Point) const noexcept {}
  [[nodiscard]] static constexpr bool ok() noexcept { return true; }
};

/// A shared file mapping without flushes: the page cache keeps the stores when the process dies. Does not survive power
/// loss.
struct ProcessMedia : detail::MappedMedia {
  static constexpr Durability kDurability = Durability::kProcess;
  static constexpr bool kVisibleIsDurable = true;
  void write(Point, void* to, const void* from, std::size_t bytes) const noexcept { std::memcpy(to, from, bytes); }
  void flush(Point, const void*) const noexcept {}
  void fence(Point) const noexcept {}
};

/// A private copy of a pool that is open read-only: recovery may store freely, reads never have to persist anything,
/// and structures refuse changes (kIsReadOnly).
struct ReadOnlyMedia : detail::MappedLoads {
  static constexpr bool kReadOnly = true;
  static constexpr Durability kDurability = Durability::kProcess;
  static constexpr bool kVisibleIsDurable = true;
  void write(Point, void* to, const void* from, std::size_t bytes) const noexcept { std::memcpy(to, from, bytes); }
  void flush(Point, const void*) const noexcept {}
  void fence(Point) const noexcept {}
  [[nodiscard]] static constexpr bool ok() noexcept { return true; }
};

/// Does a structure on this media refuse changes?
template <class M>
inline constexpr bool kIsReadOnly = requires { requires M::kReadOnly; };

/// Persistent memory behind caches that are flushed on power loss (eADR): only the store order matters.
struct EadrMedia : detail::MappedMedia {
  static constexpr Durability kDurability = Durability::kPower;
  static constexpr bool kVisibleIsDurable = true;
  void write(Point, void* to, const void* from, std::size_t bytes) const noexcept { std::memcpy(to, from, bytes); }
  void flush(Point, const void*) const noexcept {}
  void fence(Point) const noexcept { detail::store_fence(); }
};

/// Persistent memory mapped with DAX (ADR): clwb writes a line back, sfence waits for it.
struct DirectMedia : detail::MappedMedia {
  static constexpr Durability kDurability = Durability::kPower;
  static constexpr bool kVisibleIsDurable = false;
  void write(Point, void* to, const void* from, std::size_t bytes) const noexcept {
    detail::copy_and_flush(to, from, bytes);
  }
  void flush(Point, const void* address) const noexcept { detail::flush_line(address); }
  void fence(Point) const noexcept { detail::store_fence(); }
};

/// Stores `bytes` (a multiple of 8) bytes to `to` (8-byte aligned) and starts making them durable: a store for every
/// word and a flush for every line, all of `point`. Until the next fence, a power failure may leave any of these words
/// as it was. No other thread may read or write there meanwhile.
template <Media M>
void write_durably(const M& media, Point point, void* to, const void* from, std::size_t bytes) noexcept {
  if constexpr (requires { media.write(point, to, from, bytes); }) {
    media.write(point, to, from, bytes);
  } else {
    auto* words = static_cast<Word*>(to);
    const auto* source = static_cast<const std::byte*>(from);
    for (std::size_t i = 0; i < bytes / sizeof(Word); ++i) {
      std::uint64_t value;
      std::memcpy(&value, source + i * sizeof value, sizeof value);
      media.store(point, words[i], value);
      const bool line_ends = (reinterpret_cast<std::uintptr_t>(words + i + 1) & (kLineBytes - 1)) == 0;
      if (line_ends || (i + 1) * sizeof(Word) == bytes) media.flush(point, words + i);
    }
  }
}

/// Is everything durable that fences have returned for? False: the medium has failed, and stays failed: what fences
/// have returned for since then may be lost, and nothing may be acknowledged any more. A structure asks after the last
/// fence of an operation, before it answers. Media without ok() can't fail.
template <Media M>
[[nodiscard]] bool media_ok(const M& media) noexcept {
  if constexpr (requires { media.ok(); }) {
    return media.ok();
  } else {
    return true;
  }
}

/// Is this step of a protocol taken? Always true, except where the crash harness plants a bug by leaving the step out.
/// For steps that store nothing and so do not go through the media otherwise: a second look, a pin that is respected.
///   if (is_taken(media, point) && again != before) continue;
template <Media M>
[[nodiscard]] constexpr bool is_taken(const M& media, Point point) noexcept {
  if constexpr (requires { media.skips(point); }) {
    return !media.skips(point);
  } else {
    return true;
  }
}

static_assert(Media<DramMedia> && Media<ProcessMedia> && Media<EadrMedia> && Media<DirectMedia>);

}  // namespace dunnock
