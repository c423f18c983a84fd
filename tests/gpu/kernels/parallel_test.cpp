// How CPU kernels share their work among threads.
#include "parallel.hpp"

#include <atomic>
#include <mutex>
#include <set>
#include <thread>

#include "runners.hpp"

namespace dunnock::kernels {
namespace {

TEST(ParallelFor, calls_the_body_for_each_index_once) {
  for (const std::size_t count : {0U, 1U, 2U, 7U, 1000U}) {
    for (const std::size_t grain : {0U, 1U, 3U, 5000U}) {
      std::vector<std::atomic<int>> calls(count);
      device::parallel_for(count, grain, [&](std::size_t first, std::size_t last) {
        for (std::size_t i = first; i < last; ++i) ++calls[i];
      });
      for (const auto& one : calls) EXPECT_EQ(one, 1);
    }
  }
}

TEST(ParallelFor, of_a_stream_uses_the_threads_that_the_stream_has) {
  for (const unsigned threads : {1U, 2U}) {
    auto stream = std::move(*device::Stream::create(device::Device::cpu(), {.threads = threads}));
    std::mutex mutex;
    std::set<std::thread::id> ids;
    stream.run("count", [&] {
      device::parallel_for(64, 1, [&](std::size_t, std::size_t) {
        const std::lock_guard lock(mutex);
        ids.insert(std::this_thread::get_id());
      });
      return Status{};
    });
    ASSERT_TRUE(stream.synchronize());
#if defined(_OPENMP)
    EXPECT_EQ(ids.size(), threads);
#else
    EXPECT_EQ(ids.size(), 1U);
#endif
  }
}

}  // namespace
}  // namespace dunnock::kernels
