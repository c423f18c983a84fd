#include "cuda_emulator.hpp"

#include <array>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "dunnock/base/check.hpp"
#include "dunnock/base/stack_switch.hpp"
#include "dunnock/device/bf16.hpp"

namespace dunnock::emulator {
namespace {

constexpr std::size_t kStackBytes = 128 << 10;
constexpr unsigned kWarp = 32;
constexpr unsigned kThreadsMax = 1024;
constexpr std::size_t kSharedMax = 227 << 10;  // of Hopper

enum class State : std::uint8_t { kReady, kAtBlockBarrier, kAtWarpBarrier, kOver };

struct Copy {
  void* to;
  const void* from;
  bool there;
};

struct Thread {
  void* stack_pointer = nullptr;
  std::unique_ptr<char[]> stack;
  ShadowStack shadow;
  State state = State::kOver;
  dim3 index;
  unsigned warp_operations = 0;
  WarpOperation operation{};              // when it is at a warp barrier
  std::vector<std::vector<Copy>> groups;  // committed copies, oldest first
  std::vector<Copy> open;                 // those that are not committed yet
};

/// Two sets of slots: a lane can be at most one warp operation ahead of the others.
struct WarpSlots {
  std::byte lanes[2][kWarp][64];
};

struct Block {
  std::vector<Thread> threads;
  std::vector<WarpSlots> warps;
  std::vector<unsigned char> shared;
  std::mt19937_64 random;
  Builtins builtins;
  std::size_t current = 0;
  void* scheduler = nullptr;
  ShadowStack scheduler_shadow;
  const std::function<void()>* kernel = nullptr;

  Thread& running() { return threads[current]; }
  void yield(State state) {
    Thread& mine = running();
    mine.state = state;
    scheduler_shadow.switch_to();
    dunnock_switch_stacks(&mine.stack_pointer, scheduler);
    builtins.thread = mine.index;
  }
  static void start();
};

thread_local Block* block_of_thread = nullptr;
std::uint64_t seed_of_turns = 1;

void Block::start() {
  Block& block = *block_of_thread;
  (*block.kernel)();
  block.yield(State::kOver);
  __builtin_unreachable();
}

std::string text(dim3 index) {
  return std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z);
}

void perform(const Copy& copy) {
  if (copy.there) {
    std::memcpy(copy.to, copy.from, 16);
  } else {
    std::memset(copy.to, 0, 16);
  }
}

/// The next threads that may go on; empty: all are over, or `why` says why none ever will.
std::vector<std::size_t> ready_threads(Block& block, std::string& why) {
  std::vector<std::size_t> ready;
  std::size_t over = 0;
  std::size_t at_block = 0;
  const std::size_t count = block.threads.size();
  for (std::size_t w = 0; w * kWarp < count; ++w) {
    std::size_t at_warp = 0;
    std::size_t lanes_over = 0;
    for (std::size_t t = w * kWarp; t < (w + 1) * kWarp; ++t) {
      at_warp += block.threads[t].state == State::kAtWarpBarrier ? 1 : 0;
      lanes_over += block.threads[t].state == State::kOver ? 1 : 0;
      at_block += block.threads[t].state == State::kAtBlockBarrier ? 1 : 0;
    }
    over += lanes_over;
    if (at_warp == kWarp) {
      for (std::size_t t = w * kWarp + 1; t < (w + 1) * kWarp; ++t) {
        if (block.threads[t].operation == block.threads[t - 1].operation) continue;
        why = "warp " + std::to_string(w) + ": lanes come to different warp operations";
        return {};
      }
      for (std::size_t t = w * kWarp; t < (w + 1) * kWarp; ++t) ready.push_back(t);
    } else if (at_warp + lanes_over == kWarp && at_warp != 0) {
      why = "warp " + std::to_string(w) + ": a warp operation that not all lanes come to";
      return {};
    }
  }
  if (!ready.empty() || over == count) return ready;
  if (at_block + over == count) {
    for (std::size_t t = 0; t < count; ++t) {
      if (block.threads[t].state == State::kAtBlockBarrier) ready.push_back(t);
    }
    return ready;
  }
  why = "threads wait at different barriers: " + std::to_string(at_block) + " of " + std::to_string(count) +
        " at the block's, " + std::to_string(over) + " are over";
  return {};
}

/// Each until its next barrier or warp operation.
void run_threads(Block& block, std::vector<std::size_t>& some) {
  std::shuffle(some.begin(), some.end(), block.random);
  for (const std::size_t t : some) {
    block.current = t;
    block.builtins.thread = block.threads[t].index;
    block.threads[t].shadow.switch_to();
    dunnock_switch_stacks(&block.scheduler, block.threads[t].stack_pointer);
  }
}

/// Warp by warp, each until its lanes wait for other warps: warp operations alone would keep warps in step, which hides
/// that a barrier between them is missing.
void run_warps(Block& block, const std::vector<std::size_t>& ready) {
  std::vector<std::vector<std::size_t>> warps(block.threads.size() / kWarp);
  for (const std::size_t t : ready) warps[t / kWarp].push_back(t);
  std::shuffle(warps.begin(), warps.end(), block.random);
  for (std::vector<std::size_t>& warp : warps) {
    if (warp.empty()) continue;
    const std::size_t first = warp.front() / kWarp * kWarp;
    const auto goes_on = [&] {  // Lanes at different operations do not: ready_threads() tells.
      for (std::size_t t = first; t < first + kWarp; ++t) {
        if (block.threads[t].state != State::kAtWarpBarrier) return false;
        if (block.threads[t].operation != block.threads[first].operation) return false;
      }
      return true;
    };
    run_threads(block, warp);
    while (goes_on()) {
      warp.resize(kWarp);
      std::iota(warp.begin(), warp.end(), first);
      run_threads(block, warp);
    }
  }
}

Status run_block(Block& block) {
  std::fill(block.shared.begin(), block.shared.end(), static_cast<unsigned char>(0xff));
  const dim3 size = block.builtins.block_dim;
  std::vector<std::size_t> ready;
  for (std::size_t t = 0; t < block.threads.size(); ++t) {
    Thread& thread = block.threads[t];
    const auto n = static_cast<unsigned>(t);
    thread.index = dim3(n % size.x, n / size.x % size.y, n / (size.x * size.y));
    thread.state = State::kReady;
    thread.warp_operations = 0;
    thread.stack_pointer = first_stack_pointer(thread.stack.get(), kStackBytes, &Block::start);
    ready.push_back(t);
  }
  std::string why;
  bool in_step = false;
  while (!ready.empty()) {
    if (block.threads[ready.front()].state != State::kAtWarpBarrier) in_step = block.random() % 2 == 0;
    if (in_step) {
      run_threads(block, ready);
    } else {
      run_warps(block, ready);
    }
    ready = ready_threads(block, why);
  }
  for (Thread& thread : block.threads) {
    const bool copies = !thread.open.empty() || std::ranges::any_of(thread.groups, [](auto& g) { return !g.empty(); });
    if (copies && why.empty()) why = "a copy that nobody waited for when the thread was over";
    thread.open.clear();
    thread.groups.clear();
  }
  if (why.empty()) return {};
  return make_error(ErrorCode::kDevice, "block " + text(block.builtins.block) + ": " + why);
}

}  // namespace

void set_seed(std::uint64_t seed) { seed_of_turns = seed; }

Status run_grid(dim3 blocks, dim3 threads, std::size_t shared_bytes, const std::function<void()>& kernel) {
  const std::size_t count = std::size_t{threads.x} * threads.y * threads.z;
  const auto refused = [](const char* what) { return make_error(ErrorCode::kInvalidArgument, what); };
  if (count == 0 || count > kThreadsMax) return refused("a block has 1 to 1024 threads");
  if (count % kWarp != 0) return refused("a block is whole warps");
  if (shared_bytes > kSharedMax) return refused("a block has at most 227 KiB of shared memory");
  if (std::size_t{blocks.x} * blocks.y * blocks.z == 0) return refused("a grid has a block");
  if (blocks.x > 0x7fffffffU) return refused("a grid is at most 2^31 - 1 blocks wide");
  if (blocks.y > 65535 || blocks.z > 65535) return refused("a grid is at most 65535 blocks high and deep");

  Block block;
  block.random.seed(seed_of_turns);
  block.kernel = &kernel;
  block.shared.resize(shared_bytes + 128);
  block.warps.resize(count / kWarp);
  block.threads.resize(count);
  block.scheduler_shadow.be_current();
  for (Thread& thread : block.threads) {
    thread.stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
    thread.shadow.begin();
  }
  block.builtins.block_dim = threads;
  block.builtins.grid_dim = blocks;
  Block* const outer = std::exchange(block_of_thread, &block);
  Status status;
  for (unsigned z = 0; z < blocks.z && status; ++z) {
    for (unsigned y = 0; y < blocks.y && status; ++y) {
      for (unsigned x = 0; x < blocks.x && status; ++x) {
        block.builtins.block = dim3(x, y, z);
        status = run_block(block);
      }
    }
  }
  for (Thread& thread : block.threads) thread.shadow.end();
  block_of_thread = outer;
  return status;
}

const Builtins& builtins() noexcept { return block_of_thread->builtins; }
unsigned char* shared_memory() noexcept {
  const auto address = reinterpret_cast<std::uintptr_t>(block_of_thread->shared.data());
  return reinterpret_cast<unsigned char*>((address + 127) / 128 * 128);
}
void block_barrier() { block_of_thread->yield(State::kAtBlockBarrier); }
void warp_barrier(WarpOperation operation) {
  block_of_thread->running().operation = operation;
  block_of_thread->yield(State::kAtWarpBarrier);
}
unsigned lane() noexcept { return static_cast<unsigned>(block_of_thread->current % kWarp); }

const std::byte (*warp_meet(const void* mine, std::size_t bytes, WarpOperation operation))[64] {
  Block& block = *block_of_thread;
  Thread& thread = block.running();
  auto& slots = block.warps[block.current / kWarp].lanes[thread.warp_operations++ % 2];
  std::memcpy(slots[lane()], mine, bytes);
  warp_barrier(operation);
  return slots;
}

void check_alignment(const void* address, std::size_t bytes) {
  DUNNOCK_CHECK(reinterpret_cast<std::uintptr_t>(address) % bytes == 0, "a pack is aligned to its size");
}

unsigned ballot(bool value) {
  const auto* const all = warp_meet(&value, sizeof value, WarpOperation::kBallot);
  unsigned bits = 0;
  for (unsigned l = 0; l < kWarp; ++l) bits |= all[l][0] != std::byte{0} ? 1U << l : 0U;
  return bits;
}

void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  std::array<std::uint32_t, 6> mine{a[0], a[1], a[2], a[3], b[0], b[1]};
  const auto* const all = warp_meet(mine.data(), sizeof mine, WarpOperation::kMma);
  const auto value = [all](unsigned lane_of, unsigned reg, unsigned half) {
    std::uint32_t word = 0;
    std::memcpy(&word, all[lane_of] + 4 * reg, sizeof word);
    return std::bit_cast<float>(half == 0 ? word << 16 : word & 0xffff0000U);
  };
  const unsigned g = lane() / 4;
  const unsigned t = lane() % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = g + (i / 2) * 8;
    const unsigned column = 2 * t + i % 2;
    float sum = 0;
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned pair = k % 8 / 2;
      const unsigned a_reg = (row >= 8 ? 1U : 0U) + (k >= 8 ? 2U : 0U);
      const float left = value(row % 8 * 4 + pair, a_reg, k % 2);
      const float right = value(column * 4 + pair, 4 + (k >= 8 ? 1U : 0U), k % 2);
      sum += left * right;
    }
    d[i] += sum;
  }
}

void load_matrices(std::uint32_t (&r)[4], const void* row, bool transposed) {
  DUNNOCK_CHECK(reinterpret_cast<std::uintptr_t>(row) % 16 == 0, "a row of a matrix is aligned to 16 bytes");
  const auto* const all = warp_meet(static_cast<const void*>(&row), sizeof row, WarpOperation::kLoadMatrices);
  const auto value = [all](unsigned matrix, unsigned i, unsigned j) {
    const std::uint16_t* address = nullptr;
    std::memcpy(static_cast<void*>(&address), all[matrix * 8 + i], sizeof address);
    return static_cast<std::uint32_t>(address[j]);
  };
  const unsigned g = lane() / 4;
  const unsigned t = lane() % 4;
  for (unsigned m = 0; m < 4; ++m)
    r[m] = transposed ? value(m, 2 * t, g) | value(m, 2 * t + 1, g) << 16
                      : value(m, g, 2 * t) | value(m, g, 2 * t + 1) << 16;
  warp_barrier();  // The values are read before anybody goes on and writes there.
}

void copy_async_16(void* to, const void* from, bool there) {
  DUNNOCK_CHECK(reinterpret_cast<std::uintptr_t>(to) % 16 == 0, "a copy's target is aligned to 16 bytes");
  DUNNOCK_CHECK(!there || reinterpret_cast<std::uintptr_t>(from) % 16 == 0, "a copy's source is aligned to 16 bytes");
  block_of_thread->running().open.push_back({to, from, there});
}
void copies_commit() {
  Thread& thread = block_of_thread->running();
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
}
void copies_wait(unsigned pending) {
  Thread& thread = block_of_thread->running();
  while (thread.groups.size() > pending) {
    for (const Copy& copy : thread.groups.front()) perform(copy);
    thread.groups.erase(thread.groups.begin());
  }
}

}  // namespace dunnock::emulator
