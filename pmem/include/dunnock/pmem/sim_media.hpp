// SimMedia: memory that records every access, so that power failures can be simulated.
//
// A structure runs on a SimMemory through SimMedia (or SimEadrMedia). Every store, flush and fence is recorded in the
// order in which it became visible. From the record, the crash explorer derives what power failures may leave behind:
// for every line a prefix of its stores, not shorter than what a completed flush and fence made durable.
//
// Several threads are simulated as fibers on one real thread: at every load, store, flush, fence and pause a seeded
// scheduler may switch to another fiber. The same seed gives the same run. (So a structure under simulation must not
// keep thread-local state across media calls.)
//
// A SimMemory can also plant a bug: leave a step out, or do it too early or too late (Mutation). That is how the crash
// harness proves that it would notice. It knows the source line that each step comes from, so that a bug can be
// planted in one of several lines that share a Point.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <source_location>
#include <vector>

#include "dunnock/pmem/media.hpp"

namespace dunnock {

/// A planted persistence bug.
struct Mutation {
  enum class Kind : std::uint8_t {
    kNone,
    kDropStore,      ///< The stores of `point` do not happen.
    kDropFlush,      ///< The flushes of `point` do not happen.
    kDropFence,      ///< The fences of `point` do not happen.
    kFlushTooEarly,  ///< The flushes of `point` happen before the last store to their line.
    kStoreTooLate,   ///< The stores of `point` happen after the next store, flush or fence of `until`.
    kFlushTooLate,   ///< The flushes of `point` happen after the next fence of `until`.
    kSkipCheck,      ///< is_taken(media, point) says no.
  };
  Kind kind = Kind::kNone;
  Point point{};
  Point until{};
  std::uint32_t line = 0;  ///< For kDrop...: only the steps of this source line. 0: all steps of the point.
};

class SimMemory {
 public:
  enum class EventKind : std::uint8_t { kStore, kFlush, kFence, kMark, kCall };
  struct Event {
    EventKind kind;
    std::uint8_t thread;
    Point point;
    std::uint32_t word;      // index of the 8-byte word (store) or of its line (flush); the number of a call
    std::uint64_t value;     // of a store; for a call, whatever a derived class notes
    std::uint32_t line = 0;  // of the source, and its file
    const char* file = "";
  };
  /// A step that stores nothing, which the structure asked about (is_taken()).
  struct Check {
    Point point;
    std::uint32_t line;
    const char* file;
  };
  using Where = std::source_location;

  /// `bytes` of zeroed memory, a multiple of a line. Nothing is recorded until start().
  explicit SimMemory(std::size_t bytes);
  ~SimMemory();
  SimMemory(const SimMemory&) = delete;
  SimMemory& operator=(const SimMemory&) = delete;

  [[nodiscard]] std::byte* data() noexcept { return memory_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

  /// Clears the record and takes what the memory holds now as durable. From here everything is recorded.
  void start();
  void stop() noexcept { recording_ = false; }
  [[nodiscard]] const std::vector<Event>& events() const noexcept { return events_; }
  /// The protocol steps that were asked about, each once.
  [[nodiscard]] const std::vector<Check>& checks() const noexcept { return checks_; }
  /// What the memory held at start().
  [[nodiscard]] const std::vector<std::byte>& base() const noexcept { return base_; }

  /// Notes that something was acknowledged here; returns the number of events so far.
  std::size_t mark();

  void plant(const Mutation& mutation) noexcept { mutation_ = mutation; }

  /// Runs the functions as simulated threads until all have returned. Switches threads at one store,
  /// flush or fence in `switch_every` on average, and less often at loads and checks. One switch in four puts the
  /// thread to sleep for up to 512 turns of others, so that whole operations fall between two of its steps. False: no
  /// thread could continue (all wait in pause()).
  bool run_threads(const std::vector<std::function<void()>>& threads, std::uint64_t seed, unsigned switch_every);

  // Called by the media.
  std::uint64_t load(const Word& word) noexcept;
  void store(Point point, Word& word, std::uint64_t value, const Where& where = Where::current()) noexcept;
  void flush(Point point, const void* address, const Where& where = Where::current()) noexcept;
  void fence(Point point, const Where& where = Where::current()) noexcept;
  void pause() noexcept;
  bool skips(Point point, const Where& where = Where::current()) noexcept;

 protected:
  // For memory that is part of something larger, such as a file.
  void record(EventKind kind, Point point, std::uint32_t word, std::uint64_t value,
              const Where& where = Where::current());
  [[nodiscard]] std::uint8_t thread() const noexcept;
  void may_switch(unsigned rarer = 1, unsigned dozes = 4) noexcept;

 private:
  struct Fibers;
  struct Late {
    Event event;
    bool store;
  };
  [[nodiscard]] bool drops(Mutation::Kind kind, Point point, const Where& where) const noexcept {
    return mutation_.kind == kind && mutation_.point == point &&
           (mutation_.line == 0 || mutation_.line == where.line());
  }
  void perform_late(Point point) noexcept;
  [[nodiscard]] std::uint32_t word_of(const void* address) const noexcept;

  std::byte* memory_;
  std::size_t bytes_;
  bool recording_ = false;
  std::vector<std::byte> base_;
  std::vector<Event> events_;
  std::vector<Check> checks_;
  Mutation mutation_;
  std::vector<Late> late_;
  std::unique_ptr<Fibers> fibers_;
};

/// Recording media for caches that are lost on power failure (ADR).
struct SimMedia {
  static constexpr Durability kDurability = Durability::kPower;
  static constexpr bool kVisibleIsDurable = false;
  static constexpr bool kThreadsAreSimulated = true;  // They share a real one, which must not block or yield for them.
  explicit SimMedia(SimMemory& memory) noexcept : memory_(&memory) {}
  [[nodiscard]] std::uint64_t load(const Word& word) const noexcept { return memory_->load(word); }
  void store(Point point, Word& word, std::uint64_t value,
             const SimMemory::Where& where = SimMemory::Where::current()) const noexcept {
    memory_->store(point, word, value, where);
  }
  void flush(Point point, const void* address,
             const SimMemory::Where& where = SimMemory::Where::current()) const noexcept {
    memory_->flush(point, address, where);
  }
  void fence(Point point, const SimMemory::Where& where = SimMemory::Where::current()) const noexcept {
    memory_->fence(point, where);
  }
  void pause() const noexcept { memory_->pause(); }
  [[nodiscard]] static constexpr bool ok() noexcept { return true; }
  /// Has a bug been planted that leaves this step out? See is_taken().
  [[nodiscard]] bool skips(Point point, const SimMemory::Where& where = SimMemory::Where::current()) const noexcept {
    return memory_->skips(point, where);
  }

 private:
  SimMemory* memory_;
};

/// Recording media for caches that survive power failure (eADR): a visible store is durable; flushes do nothing.
struct SimEadrMedia : SimMedia {
  static constexpr bool kVisibleIsDurable = true;
  using SimMedia::SimMedia;
  void flush(Point, const void*) const noexcept {}
};

static_assert(Media<SimMedia> && Media<SimEadrMedia>);

}  // namespace dunnock
