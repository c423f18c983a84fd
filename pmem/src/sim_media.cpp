#include "dunnock/pmem/sim_media.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>

#include "dunnock/base/check.hpp"
#include "dunnock/base/stack_switch.hpp"

namespace dunnock {
namespace {
constexpr std::size_t kStackBytes = 256 << 10;
}  // namespace

/// Simulated threads: one of them runs, the others wait at a media call.
struct SimMemory::Fibers {
  struct Fiber {
    void* stack_pointer = nullptr;
    std::unique_ptr<char[]> stack;
    const std::function<void()>* work = nullptr;
    bool over = false;
    std::size_t asleep_until = 0;  // the turn
    ShadowStack shadow;
  };
  void* scheduler = nullptr;  // its stack pointer
  ShadowStack scheduler_shadow;
  std::vector<Fiber> all;
  std::size_t current = 0;
  bool inside = false;          // a fiber runs, rather than the scheduler
  std::size_t idle_pauses = 0;  // pauses since anybody did anything else
  std::size_t turn = 0;
  std::mt19937_64 random;
  unsigned switch_every = 1;

  /// A fiber starts here; `running` tells which.
  static thread_local Fibers* running;
  static void start() {
    Fibers& fibers = *running;
    Fiber& fiber = fibers.all[fibers.current];
    (*fiber.work)();
    fiber.over = true;
    fibers.scheduler_shadow.switch_to();
    dunnock_switch_stacks(&fiber.stack_pointer, fibers.scheduler);
    __builtin_unreachable();
  }
  void yield() {
    inside = false;
    scheduler_shadow.switch_to();
    dunnock_switch_stacks(&all[current].stack_pointer, scheduler);
    inside = true;
  }
  /// Others have the next turns, if they can go on: 1 to 512 of them.
  void doze() { all[current].asleep_until = turn + (std::size_t{1} << random() % 10); }
  void resume(std::size_t fiber) {
    current = fiber;
    running = this;
    inside = true;
    all[fiber].shadow.switch_to();
    dunnock_switch_stacks(&scheduler, all[fiber].stack_pointer);
    inside = false;
  }
};
thread_local SimMemory::Fibers* SimMemory::Fibers::running = nullptr;

SimMemory::SimMemory(std::size_t bytes)
    : memory_(static_cast<std::byte*>(std::aligned_alloc(kLineBytes, bytes))), bytes_(bytes) {
  DUNNOCK_CHECK(memory_ != nullptr, "the memory is not null");
  DUNNOCK_CHECK(bytes % kLineBytes == 0, "the memory is a whole number of lines");
  std::memset(memory_, 0, bytes);
}

SimMemory::~SimMemory() { std::free(memory_); }

void SimMemory::start() {
  events_.clear();
  late_.clear();
  base_.assign(memory_, memory_ + bytes_);
  recording_ = true;
}

std::uint32_t SimMemory::word_of(const void* address) const noexcept {
  const auto offset = reinterpret_cast<std::uintptr_t>(address) - reinterpret_cast<std::uintptr_t>(memory_);
  DUNNOCK_CHECK(offset < bytes_, "the address is in the simulated memory");
  return static_cast<std::uint32_t>(offset / sizeof(Word));
}

std::uint8_t SimMemory::thread() const noexcept {
  return fibers_ != nullptr ? static_cast<std::uint8_t>(fibers_->current) : std::uint8_t{0};
}

void SimMemory::record(EventKind kind, Point point, std::uint32_t word, std::uint64_t value, const Where& where) {
  if (recording_) events_.push_back({kind, thread(), point, word, value, where.line(), where.file_name()});
}

std::size_t SimMemory::mark() {
  record(EventKind::kMark, Point{}, 0, 0, Where{});
  return events_.size();
}

std::uint64_t SimMemory::load(const Word& word) noexcept {
  may_switch(8);  // There are many more loads than stores.
  return word.load(std::memory_order_relaxed);
}

void SimMemory::store(Point point, Word& word, std::uint64_t value, const Where& where) noexcept {
  may_switch();
  const std::uint32_t index = word_of(&word);
  if (drops(Mutation::Kind::kDropStore, point, where)) return;
  if (mutation_.point == point && mutation_.kind == Mutation::Kind::kStoreTooLate) {
    late_.push_back({{EventKind::kStore, thread(), point, index, value}, true});
    return;
  }
  word.store(value, std::memory_order_relaxed);
  record(EventKind::kStore, point, index, value, where);
  perform_late(point);
}

void SimMemory::flush(Point point, const void* address, const Where& where) noexcept {
  may_switch();
  const std::uint32_t line = word_of(address) / 8;
  if (drops(Mutation::Kind::kDropFlush, point, where)) return;
  if (mutation_.point == point) {
    if (mutation_.kind == Mutation::Kind::kFlushTooLate) {
      late_.push_back({{EventKind::kFlush, thread(), point, line, 0}, false});
      return;
    }
    if (mutation_.kind == Mutation::Kind::kFlushTooEarly) {
      for (std::size_t i = events_.size(); i-- > 0;) {
        if (events_[i].kind != EventKind::kStore || events_[i].word / 8 != line) continue;
        events_.insert(events_.begin() + static_cast<std::ptrdiff_t>(i),
                       {EventKind::kFlush, thread(), point, line, 0, where.line(), where.file_name()});
        break;
      }
      return;
    }
  }
  record(EventKind::kFlush, point, line, 0, where);
  perform_late(point);
}

void SimMemory::fence(Point point, const Where& where) noexcept {
  may_switch();
  if (drops(Mutation::Kind::kDropFence, point, where)) return;
  record(EventKind::kFence, point, 0, 0, where);
  perform_late(point);
}

bool SimMemory::skips(Point point, const Where& where) noexcept {
  may_switch(4, 2);  // The longer it sleeps before it looks, the more there is to see.
  const auto same = [&](const Check& one) { return one.point == point && one.line == where.line(); };
  if (std::none_of(checks_.begin(), checks_.end(), same)) checks_.push_back({point, where.line(), where.file_name()});
  return drops(Mutation::Kind::kSkipCheck, point, where);
}

/// Does what a mutation has put off until `point`.
void SimMemory::perform_late(Point point) noexcept {
  if (late_.empty() || mutation_.until != point) return;
  for (const Late& one : late_) {
    if (one.store) {
      reinterpret_cast<Word*>(memory_)[one.event.word].store(one.event.value, std::memory_order_relaxed);
    }
    if (recording_) events_.push_back(one.event);
  }
  late_.clear();
}

void SimMemory::may_switch(unsigned rarer, unsigned dozes) noexcept {
  if (fibers_ == nullptr || !fibers_->inside) return;
  fibers_->idle_pauses = 0;
  if (fibers_->random() % (fibers_->switch_every * rarer) != 0) return;
  if (fibers_->random() % dozes == 0) fibers_->doze();
  fibers_->yield();
}

void SimMemory::pause() noexcept {
  if (fibers_ == nullptr || !fibers_->inside) return;
  ++fibers_->idle_pauses;
  fibers_->yield();
}

bool SimMemory::run_threads(const std::vector<std::function<void()>>& threads, std::uint64_t seed,
                            unsigned switch_every) {
  fibers_ = std::make_unique<Fibers>();
  Fibers& f = *fibers_;
  f.random.seed(seed);
  f.switch_every = switch_every;
  f.all.resize(threads.size());
  f.scheduler_shadow.be_current();
  for (std::size_t i = 0; i < threads.size(); ++i) {
    Fibers::Fiber& fiber = f.all[i];
    fiber.stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
    fiber.work = &threads[i];
    fiber.shadow.begin();
    fiber.stack_pointer = first_stack_pointer(fiber.stack.get(), kStackBytes, &Fibers::start);
  }
  bool went_on = true;
  for (;;) {
    std::vector<std::size_t> ready, awake;
    for (std::size_t i = 0; i < f.all.size(); ++i) {
      if (f.all[i].over) continue;
      ready.push_back(i);
      if (f.all[i].asleep_until <= f.turn) awake.push_back(i);
    }
    if (ready.empty()) break;
    if (!awake.empty()) ready = std::move(awake);
    ++f.turn;
    if (f.idle_pauses > 10000) {  // Everybody waits for somebody.
      went_on = false;
      break;
    }
    f.resume(ready[f.random() % ready.size()]);
  }
  for (Fibers::Fiber& fiber : f.all) fiber.shadow.end();
  fibers_.reset();
  return went_on;
}

}  // namespace dunnock
