#include "pool_guard.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <new>

#include "dunnock/base/check.hpp"
#include "dunnock/pmem/file_media.hpp"
#include "dunnock/pmem/fork_mark.hpp"

namespace dunnock::detail {

/// One open pool. Slots are never freed, only used again, so that a signal handler may walk them.
struct PoolGuard::Slot {
  std::atomic<bool> used{false};
  Guarded guarded;
  Slot* next = nullptr;  // set before the slot is in the list
};

namespace {

/// Of all slots: where the list begins, and who may change it.
struct Registry {
  std::mutex mutex;
  std::atomic<void*> first{nullptr};
  struct sigaction before {};
  bool handles_sigbus = false;
  bool handles_fork = false;
  /// Children that have not come to in_child() yet, in memory that they share; null: unknown.
  std::atomic<int>* young = nullptr;
};

/// Never destroyed: pools may be closed by destructors of global objects.
Registry& registry() noexcept {
  static auto* const one = new Registry;
  return *one;
}

}  // namespace

struct GuardHandlers {
  using Slot = PoolGuard::Slot;

  template <class Use>
  static void for_each(const Use& use) noexcept {
    for (auto* slot = static_cast<Slot*>(registry().first.load(std::memory_order_acquire)); slot != nullptr;
         slot = slot->next) {
      if (slot->used.load(std::memory_order_acquire)) use(slot->guarded);  // Partner: the constructor.
    }
  }

  static void before_fork() noexcept {
    registry().mutex.lock();
    if (registry().young != nullptr) registry().young->fetch_add(1, std::memory_order_relaxed);
    for_each([](PoolGuard::Guarded& pool) {
      if (pool.catalog != nullptr) pool.catalog->lock();
      if (pool.allocating != nullptr) pool.allocating->lock();
    });
  }
  static void unlock() noexcept {
    for_each([](PoolGuard::Guarded& pool) {
      if (pool.allocating != nullptr) pool.allocating->unlock();
      if (pool.catalog != nullptr) pool.catalog->unlock();
    });
    registry().mutex.unlock();
  }
  static void in_child() noexcept {
    fork_generation.fetch_add(1, std::memory_order_relaxed);
    for_each([](PoolGuard::Guarded& pool) {
      if (pool.sync != nullptr) pool.sync->abandon();
      // A description of its own, so that the parent's lock ends with the parent.
      char self[40];
      std::snprintf(self, sizeof self, "/proc/self/fd/%d", pool.file);
      const int own = ::open(self, O_RDONLY | O_CLOEXEC);
      constexpr int kFlags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
      if (pool.base == nullptr) {
        // A file that is open for a while, without a mapping.
      } else if (own < 0 || mmap(pool.base, pool.bytes, PROT_READ | PROT_WRITE, kFlags, own, 0) == MAP_FAILED)
        mmap(pool.base, pool.bytes, PROT_READ | PROT_WRITE, kFlags | MAP_ANONYMOUS, -1, 0);
      const int none = own >= 0 ? own : ::open("/dev/null", O_RDONLY | O_CLOEXEC);
      if (none >= 0) {
        dup3(none, pool.file, O_CLOEXEC);
        ::close(none);
      }
    });
    if (registry().young != nullptr) registry().young->fetch_sub(1, std::memory_order_release);
    unlock();
  }

  static void on_sigbus(int signal, siginfo_t* info, void* context) noexcept {
    const int error = errno;
    const auto at = reinterpret_cast<std::uintptr_t>(info->si_addr);
    bool ours = false;
    for_each([&](PoolGuard::Guarded& pool) {
      const auto base = reinterpret_cast<std::uintptr_t>(pool.base);
      if (ours || !pool.catch_sigbus || pool.sync == nullptr || at < base || at - base >= pool.bytes) return;
      pool.sync->fail(EIO);
      const auto page_bytes = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
      auto* const page = reinterpret_cast<void*>(at / page_bytes * page_bytes);
      if (pool.lost_a_page != nullptr) pool.lost_a_page->store(true, std::memory_order_relaxed);
      ours = mmap(page, page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0) == page;
    });
    errno = error;
    if (ours) return;  // The access is tried again, and finds zeros.
    const struct sigaction& before = registry().before;
    if ((before.sa_flags & SA_SIGINFO) != 0 && before.sa_sigaction != nullptr) {
      before.sa_sigaction(signal, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
      before.sa_handler(signal);
    } else {
      // As if this handler were not there: the access is tried again, and ends the process.
      struct sigaction none {};
      none.sa_handler = SIG_DFL;
      sigaction(SIGBUS, &none, nullptr);
    }
  }
};

PoolGuard::Lock PoolGuard::keep_forks_out() { return Lock(registry().mutex); }

bool PoolGuard::wait_for_children() noexcept {
  std::atomic<int>* const young = registry().young;
  if (young == nullptr || young->load(std::memory_order_acquire) <= 0) return false;
  constexpr int kTurns = 400;
  constexpr useconds_t kTurnUs = 500;
  for (int i = 0; i < kTurns && young->load(std::memory_order_acquire) > 0; ++i) usleep(kTurnUs);
  young->store(0, std::memory_order_relaxed);  // One that never came has died, or was never born.
  return true;
}

PoolGuard::PoolGuard(const Guarded& guarded, const Lock& forks_kept_out) {
  DUNNOCK_CHECK(forks_kept_out.owns_lock(), "a pool that is being opened is not copied by fork");
  Registry& all = registry();
  if (!all.handles_fork) {
    void* const shared =
        mmap(nullptr, sizeof(std::atomic<int>), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared != MAP_FAILED) all.young = new (shared) std::atomic<int>(0);
    all.handles_fork =
        pthread_atfork(&GuardHandlers::before_fork, &GuardHandlers::unlock, &GuardHandlers::in_child) == 0;
  }
  if (guarded.catch_sigbus && !all.handles_sigbus) {
    struct sigaction action {};
    action.sa_sigaction = &GuardHandlers::on_sigbus;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    all.handles_sigbus = sigaction(SIGBUS, &action, &all.before) == 0;
  }
  for (auto* slot = static_cast<Slot*>(all.first.load(std::memory_order_relaxed)); slot != nullptr; slot = slot->next) {
    if (slot->used.load(std::memory_order_relaxed)) continue;
    slot_ = slot;
    slot_->guarded = guarded;
    slot_->used.store(true, std::memory_order_release);  // Partner: for_each.
    return;
  }
  slot_ = new Slot;
  slot_->guarded = guarded;
  slot_->used.store(true, std::memory_order_relaxed);
  slot_->next = static_cast<Slot*>(all.first.load(std::memory_order_relaxed));
  all.first.store(slot_, std::memory_order_release);  // Partner: for_each.
}

void PoolGuard::end(const Lock& forks_kept_out, const std::function<void()>& unmap) {
  DUNNOCK_CHECK(forks_kept_out.owns_lock(), "a pool that is being closed is not copied by fork");
  unmap();
  slot_->used.store(false, std::memory_order_release);
}

}  // namespace dunnock::detail
