// The emulator of CUDA blocks shows what a GPU would do, and notices what a kernel must not do.
#include "cuda/device_code.hpp"
#include "runners.hpp"

namespace dunnock::kernels {
namespace {

using namespace detail::device_code;

Status run(unsigned blocks, unsigned threads, const std::function<void()>& kernel, std::size_t shared_bytes = 0) {
  return emulator::run_grid(dim3(blocks), dim3(threads), shared_bytes, kernel);
}
std::string why(const Status& status) { return status ? "" : status.error().message; }

TEST(Emulator, runs_each_thread_of_each_block_once) {
  std::vector<int> calls(5 * 3 * 2 * 64);
  const Status done = emulator::run_grid(dim3(5, 3), dim3(64, 2), 0, [&] {
    const unsigned block = blockIdx.y * gridDim.x + blockIdx.x;
    ++calls[(block * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x];
  });
  EXPECT_EQ(why(done), "");
  EXPECT_EQ(calls, std::vector<int>(calls.size(), 1));
}

/// Every thread writes a value and reads its neighbor's.
bool neighbours_see_each_other(bool with_barrier, std::uint64_t seed) {
  emulator::set_seed(seed);
  bool right = true;
  const Status done = run(
      1, 128,
      [&] {
        DUNNOCK_DYNAMIC_SHARED(unsigned, values);
        values[threadIdx.x] = threadIdx.x;
        if (with_barrier) __syncthreads();
        right &= values[(threadIdx.x + 1) % 128] == (threadIdx.x + 1) % 128;
      },
      128 * sizeof(unsigned));
  return right && done.has_value();
}
TEST(Emulator, shows_that_a_barrier_is_missing) {
  EXPECT_TRUE(neighbours_see_each_other(true, test::seed()));
  EXPECT_FALSE(neighbours_see_each_other(false, test::seed()));
}

/// A warp reads what the next one has written, with nothing but warp operations between.
bool warps_see_each_other(bool with_barrier, std::uint64_t seed) {
  emulator::set_seed(seed);
  bool right = true;
  const Status done = run(
      1, 256,
      [&] {
        DUNNOCK_DYNAMIC_SHARED(unsigned, values);
        for (int i = 0; i < 5; ++i) (void)warp_reduce<Sum>(1);
        values[threadIdx.x] = threadIdx.x;
        if (with_barrier) __syncthreads();
        for (int i = 0; i < 5; ++i) (void)warp_reduce<Sum>(1);
        right &= values[(threadIdx.x + 32) % 256] == (threadIdx.x + 32) % 256;
      },
      256 * sizeof(unsigned));
  return right && done.has_value();
}
TEST(Emulator, shows_that_a_barrier_between_warps_is_missing) {
  unsigned shown = 0;
  for (std::uint64_t n = 0; n < 40; ++n) {  // Each by chance 1 of 2: none of 40 is 1e-12.
    EXPECT_TRUE(warps_see_each_other(true, test::seed() + n));
    shown += warps_see_each_other(false, test::seed() + n) ? 0 : 1;
  }
  EXPECT_GT(shown, 0U);
}

TEST(Emulator, fills_shared_memory_of_the_launch_with_NaNs_before_each_block) {
  unsigned clean = 0;
  ASSERT_TRUE(run(
      3, 32,
      [&] {
        DUNNOCK_DYNAMIC_SHARED(float, values);
        if (std::isnan(values[threadIdx.x])) ++clean;
        __syncthreads();
        values[threadIdx.x] = 1;
      },
      128));
  EXPECT_EQ(clean, 96U);
}

TEST(Emulator, tells_of_threads_that_wait_for_ever) {
  EXPECT_EQ(why(run(1, 64,
                    [] {
                      if (threadIdx.x < 32) (void)ballot(true);
                      if (threadIdx.x == 0) (void)ballot(true);
                      __syncthreads();
                    })),
            "block 0, 0, 0: threads wait at different barriers: 63 of 64 at the block's, 0 are over");
  EXPECT_EQ(why(run(1, 32,
                    [] {
                      if (threadIdx.x < 16) sync_warp();
                    })),
            "block 0, 0, 0: warp 0: a warp operation that not all lanes come to");
}

TEST(Emulator, refuses_what_CUDA_refuses) {
  const auto nothing = [] {};
  EXPECT_EQ(why(run(1, 2048, nothing)), "a block has 1 to 1024 threads");
  EXPECT_EQ(why(run(1, 33, nothing)), "a block is whole warps");
  EXPECT_EQ(why(run(0, 32, nothing)), "a grid has a block");
  EXPECT_EQ(why(run(1, 32, nothing, 300 << 10)), "a block has at most 227 KiB of shared memory");
  EXPECT_EQ(why(emulator::run_grid(dim3(1, 70000), dim3(32), 0, nothing)),
            "a grid is at most 65535 blocks high and deep");
  EXPECT_EQ(why(emulator::run_grid(dim3(1U << 31), dim3(32), 0, nothing)), "a grid is at most 2^31 - 1 blocks wide");
}

TEST(Emulator, notices_lanes_at_different_warp_operations) {
  EXPECT_EQ(why(run(1, 64,
                    [] {
                      if (threadIdx.x < 32) return;
                      if (threadIdx.x % 2 == 0) {
                        (void)shuffle(1.0F, 0);
                      } else {
                        (void)ballot(true);
                      }
                    })),
            "block 0, 0, 0: warp 1: lanes come to different warp operations");
}

TEST(EmulatorDeathTest, stops_at_packs_that_are_not_aligned) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  alignas(16) float values[8] = {};
  const auto access = [&](unsigned first, bool writes) {
    return run(1, 32, [&values, first, writes] {
      if (writes) {
        store_pack(values + first, Pack<float, 4>{});
      } else {
        (void)load_pack<4>(values + first);
      }
    });
  };
  EXPECT_TRUE(access(4, false));
  EXPECT_TRUE(access(4, true));
  EXPECT_DEATH((void)access(2, false), "a pack is aligned");
  EXPECT_DEATH((void)access(2, true), "a pack is aligned");
}

TEST(Emulator, does_asynchronous_copies_no_sooner_than_they_are_waited_for) {
  alignas(16) const float from[4] = {1, 2, 3, 4};
  bool late = false;
  bool there = false;
  bool zeros = false;
  ASSERT_TRUE(run(
      1, 32,
      [&] {
        DUNNOCK_DYNAMIC_SHARED(float, to);
        if (threadIdx.x != 0) return;
        copy_async_16(to, from);
        copies_commit();
        copy_async_16(to + 4, from, false);
        copies_commit();
        late = std::isnan(to[0]);
        copies_wait<1>();
        there = to[3] == 4 && std::isnan(to[4]);
        copies_wait<0>();
        zeros = to[4] == 0;
      },
      64));
  EXPECT_TRUE(late);
  EXPECT_TRUE(there);
  EXPECT_TRUE(zeros);
  EXPECT_EQ(why(run(
                1, 32,
                [&] {
                  DUNNOCK_DYNAMIC_SHARED(float, to);
                  copy_async_16(to, from);
                },
                64)),
            "block 0, 0, 0: a copy that nobody waited for when the thread was over");
}

/// A 16 x 16 of A and 16 x 8 of B in shared memory, by ldmatrix, as a product.
TEST(Emulator, multiplies_matrices_as_tensor_cores_do) {
  std::mt19937_64 random(test::seed());
  std::normal_distribution<float> normal;
  std::vector<device::Bf16> a(16 * 16);
  std::vector<device::Bf16> b(8 * 16);  // columns of B, one after the other
  for (device::Bf16& value : a) value = device::Bf16(normal(random));
  for (device::Bf16& value : b) value = device::Bf16(normal(random));
  std::vector<float> product(16 * 8);
  ASSERT_TRUE(run(
      1, 32,
      [&] {
        DUNNOCK_DYNAMIC_SHARED(device::Bf16, shared);
        device::Bf16* const right = shared + 256;
        for (unsigned i = threadIdx.x; i < 256; i += 32) shared[i] = a[i];
        for (unsigned i = threadIdx.x; i < 128; i += 32) right[i] = b[i];
        __syncthreads();
        const unsigned lane = threadIdx.x;
        std::uint32_t left_regs[4];
        std::uint32_t right_regs[4];
        load_matrices<false>(left_regs, shared + (lane % 16) * 16 + lane / 16 * 8);
        load_matrices<false>(right_regs, right + (lane % 8) * 16 + lane / 8 % 2 * 8);
        float d[4] = {};
        mma_bf16(d, left_regs, {right_regs[0], right_regs[1]});
        for (unsigned i = 0; i < 4; ++i) product[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
      },
      1024));
  for (unsigned row = 0; row < 16; ++row) {
    for (unsigned column = 0; column < 8; ++column) {
      double expected = 0;
      for (unsigned k = 0; k < 16; ++k)
        expected += double(static_cast<float>(a[row * 16 + k])) * double(static_cast<float>(b[column * 16 + k]));
      EXPECT_NEAR(product[row * 8 + column], expected, 1e-5) << row << ' ' << column;
    }
  }
}

TEST(Emulator, transposes_matrices_as_ldmatrix_does) {
  std::vector<unsigned> seen(8 * 8, 99);
  ASSERT_TRUE(run(
      1, 32,
      [&] {
        DUNNOCK_DYNAMIC_SHARED(std::uint16_t, shared);
        for (unsigned i = threadIdx.x; i < 64; i += 32) shared[i] = static_cast<std::uint16_t>(i);
        __syncthreads();
        std::uint32_t r[4];
        load_matrices<true>(r, shared + threadIdx.x % 8 * 8);
        seen[threadIdx.x / 4 * 8 + threadIdx.x % 4 * 2] = r[3] & 0xffffU;
        seen[threadIdx.x / 4 * 8 + threadIdx.x % 4 * 2 + 1] = r[3] >> 16;
      },
      128));
  for (unsigned i = 0; i < 8; ++i) {
    for (unsigned j = 0; j < 8; ++j) EXPECT_EQ(seen[i * 8 + j], j * 8 + i);
  }
}

TEST(Emulator, reduces_over_warps_and_blocks) {
  std::vector<float> sums(256);
  std::vector<float> most(256);
  ASSERT_TRUE(run(
      1, 256,
      [&] {
        DUNNOCK_DYNAMIC_SHARED(float, shared);
        const auto mine = static_cast<float>(threadIdx.x);
        sums[threadIdx.x] = block_reduce<Sum, 256>(mine, shared);
        most[threadIdx.x] = warp_reduce<Max, 8>(mine);
      },
      64));
  for (unsigned t = 0; t < 256; ++t) {
    EXPECT_EQ(sums[t], 255.0F * 128);
    EXPECT_EQ(most[t], static_cast<float>(t / 8 * 8 + 7));
  }
}

}  // namespace
}  // namespace dunnock::kernels
