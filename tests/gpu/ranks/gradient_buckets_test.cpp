// Buckets of gradients: how they lie, when they are reduced, and that reducing them meanwhile gives what reducing them
// afterwards gives: among threads here, among processes under mpirun.
#include "dunnock/ranks/gradient_buckets.hpp"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <optional>
#include <random>
#include <thread>

#include "dunnock/schedule/executor.hpp"
#include "dunnock/schedule/simulator.hpp"
#include "support/seed.hpp"

namespace dunnock::ranks {
namespace {

using namespace std::chrono_literals;

std::vector<std::size_t> random_sizes(std::mt19937_64& random, std::size_t tensors, std::size_t size_max) {
  std::vector<std::size_t> sizes(tensors);
  for (std::size_t& size : sizes) size = 1 + random() % (random() % 4 == 0 ? size_max : 1 + size_max / 20);
  return sizes;
}

// ----- the layout ---------------------------------------------------------------------------------------------------

TEST(BucketLayouts, keep_order_alignment_and_limits_and_waste_no_bucket) {
  auto random = test::generator(1);
  for (int round = 0; round < 500; ++round) {
    const auto sizes = random_sizes(random, random() % 60, 4000);
    BucketOptions options;
    options.bytes_max = random() % 20'000;
    options.first_bytes_max = random() % 20'000;
    options.alignment_bytes = std::uint64_t{4} << random() % 6;
    const std::size_t width = random() % 2 == 0 ? 4 : 2;
    const auto layout = lay_out_buckets(sizes, width, options);
    ASSERT_TRUE(layout) << layout.error().message;
    ASSERT_EQ(layout->tensors.size(), sizes.size());
    ASSERT_EQ(layout->value_bytes, width);
    std::size_t end = 0;
    std::size_t tensor = 0;
    for (std::size_t b = 0; b < layout->buckets.size(); ++b) {
      const auto& bucket = layout->buckets[b];
      const std::uint64_t limit = b == 0 ? std::min(options.first_bytes_max, options.bytes_max) : options.bytes_max;
      ASSERT_EQ(bucket.first_tensor, tensor) << "each tensor is in one bucket, in order";
      ASSERT_GE(bucket.tensors, 1U);
      ASSERT_GE(bucket.begin, end) << "buckets lie apart";
      ASSERT_EQ(bucket.begin, layout->tensors[tensor].begin);
      if (bucket.tensors > 1) {
        ASSERT_LE(layout->bytes_of(bucket), limit);
      }
      for (; tensor < bucket.first_tensor + bucket.tensors; ++tensor) {
        const auto& at = layout->tensors[tensor];
        ASSERT_EQ(at.bucket, b);
        ASSERT_EQ(at.size, sizes[tensor]);
        ASSERT_EQ(at.begin * width % options.alignment_bytes, 0U);
        ASSERT_GE(at.begin, end);
        ASSERT_LT(at.begin * width, end * width + options.alignment_bytes) << "no more between them than must be";
        end = at.begin + at.size;
      }
      ASSERT_EQ(bucket.begin + bucket.size, end);
      if (tensor < sizes.size()) {
        const auto& next = layout->tensors[tensor];
        ASSERT_GT((next.begin + next.size - bucket.begin) * width, limit) << "the next tensor has room in " << b;
      }
    }
    ASSERT_EQ(tensor, sizes.size());
    ASSERT_EQ(layout->size, end);
  }
}

TEST(BucketLayouts, give_a_large_tensor_a_bucket_of_its_own) {
  const std::vector<std::size_t> sizes{10, 20, 1000, 5, 6};
  const auto layout = lay_out_buckets(sizes, 4, {.bytes_max = 400, .first_bytes_max = 64, .alignment_bytes = 4});
  ASSERT_TRUE(layout);
  std::vector<std::size_t> tensors;
  for (const auto& bucket : layout->buckets) tensors.push_back(bucket.tensors);
  EXPECT_EQ(tensors, (std::vector<std::size_t>{1, 1, 1, 2})) << "a small first one, and the large one alone";
}

TEST(BucketLayouts, refuse_what_can_not_be) {
  const auto code = [](std::vector<std::size_t> sizes, BucketOptions options) {
    const auto layout = lay_out_buckets(sizes, 4, options);
    return layout ? std::optional<ErrorCode>() : layout.error().code;
  };
  EXPECT_EQ(code({1, 0}, {}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({1}, {.alignment_bytes = 24}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({1}, {.alignment_bytes = 2}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({1}, {.alignment_bytes = 0}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({1, SIZE_MAX}, {}), ErrorCode::kNoSpace);
  EXPECT_EQ(code({SIZE_MAX / 16 - 100, SIZE_MAX / 16 - 100}, {}), ErrorCode::kNoSpace);
  EXPECT_EQ(code({}, {}), std::nullopt) << "no tensors, no buckets";
  auto stream = device::Stream::create(device::Device::cpu());
  const std::vector<std::size_t> sizes{3, 0};
  EXPECT_EQ(GradientBuckets<float>::create(sizes, *stream).error().code, ErrorCode::kInvalidArgument);
  const std::vector<std::size_t> too_many{std::size_t{1} << 55};
  EXPECT_EQ(GradientBuckets<float>::create(too_many, *stream).error().code, ErrorCode::kNoSpace);
}

TEST(BucketLayouts, are_parts_of_one_zeroed_buffer) {
  auto stream = device::Stream::create(device::Device::cpu());
  const std::vector<std::size_t> sizes{3, 5, 40};
  const auto buckets =
      GradientBuckets<device::Bf16>::create(sizes, *stream, {.bytes_max = 100, .first_bytes_max = 100});
  ASSERT_TRUE(buckets);
  EXPECT_EQ(buckets->span().size(), 64U + 40U);
  EXPECT_EQ(buckets->gradient(1).device_data(), buckets->span().device_data() + 32);
  EXPECT_EQ(buckets->gradient(1).size(), 5U);
  EXPECT_EQ(buckets->bucket(1).device_data(), buckets->gradient(2).device_data());
  std::vector<device::Bf16> values(buckets->span().size(), device::Bf16(1.0F));
  download(values, buckets->span(), *stream);
  ASSERT_TRUE(stream->synchronize());
  EXPECT_EQ(values, std::vector<device::Bf16>(values.size(), device::Bf16(0.0F)));
}

// ----- the graph, the schedule and the simulator --------------------------------------------------------------------

TEST(AllReduces, cost_what_a_ring_costs) {
  EXPECT_EQ(all_reduce_us({.latency_us = 5, .gb_per_s = 10}, 1'000'000, 1), 0) << "nobody to tell";
  EXPECT_DOUBLE_EQ(all_reduce_us({.latency_us = 5, .gb_per_s = 10}, 1'000'000, 2), 5 + 100);
  EXPECT_DOUBLE_EQ(all_reduce_us({.latency_us = 5, .gb_per_s = 10}, 1'000'000, 4), 5 + 150);
  EXPECT_DOUBLE_EQ(all_reduce_us({.latency_us = 5}, 1'000'000, 8), 5);
}

/// A backward pass of `layout` on each of `ranks`, in one graph; costs 1 to 20.
struct Simulated {
  schedule::TaskGraph graph;
  std::vector<unsigned> rank_of;
  std::vector<schedule::OpId> last_gradients;  // of each communication, one
  std::vector<std::vector<ReducedBucket>> reduced;

  Simulated(std::mt19937_64& random, const BucketLayout& layout, unsigned ranks, const AllReduceOptions& options) {
    std::vector<schedule::ValueId> gradients;
    for (unsigned rank = 0; rank < ranks; ++rank) {
      const auto mine = add_gradients(graph, layout);
      gradients.insert(gradients.end(), mine.begin(), mine.end());
    }
    for (unsigned rank = 0; rank < ranks; ++rank) {
      for (std::size_t i = 0; i < layout.tensors.size(); ++i) {
        graph.add({.name = fmt::format("B{}", i),
                   .kind = schedule::OpKind::kWeightGradient,
                   .outputs = {gradients[rank * layout.tensors.size() + i]},
                   .cost_us = static_cast<double>(1 + random() % 20),
                   .demand = 0.5});
        rank_of.push_back(rank);
      }
    }
    for (unsigned rank = 0; rank < ranks; ++rank) {
      reduced.push_back(add_all_reduces(graph, layout, gradients, options));
      rank_of.resize(graph.ops().size(), rank);
    }
  }
};

TEST(Overlapped, starts_each_all_reduce_when_the_last_gradient_of_all_ranks_is_there) {
  auto random = test::generator(2);
  for (int round = 0; round < 100; ++round) {
    const unsigned ranks = 1 + static_cast<unsigned>(random() % 4);
    const auto layout =
        lay_out_buckets(random_sizes(random, 1 + random() % 30, 4000), 4, {.bytes_max = 6000, .first_bytes_max = 1000});
    const AllReduceOptions options{.ranks = ranks + 1, .link = {.latency_us = 1, .gb_per_s = 1}, .demand = 0.1};
    const Simulated one(random, *layout, ranks, options);
    const auto schedule = overlapped(one.graph, one.rank_of);
    ASSERT_TRUE(schedule) << schedule.error().message;
    ASSERT_EQ(schedule->lanes.size(), 2 * ranks);
    const auto valid = validate(one.graph, *schedule);
    ASSERT_TRUE(valid) << valid.error().message;
    const auto timeline = simulate(one.graph, *schedule);
    ASSERT_TRUE(timeline);
    std::vector<schedule::Interval> of(one.graph.ops().size());
    for (const schedule::Interval& interval : timeline->intervals) of[interval.op] = interval;
    for (const auto& buckets : one.reduced) {
      double free_us = 0;
      for (const ReducedBucket& bucket : buckets) {
        double ready_us = free_us;
        for (const schedule::OpId need : one.graph.needs(bucket.op)) ready_us = std::max(ready_us, of[need].end_us);
        ASSERT_NEAR(of[bucket.op].start_us, ready_us, 1e-6) << to_string(one.graph, *schedule);
        ASSERT_NEAR(of[bucket.op].end_us - of[bucket.op].start_us, one.graph.op(bucket.op).cost_us, 1e-6);
        free_us = of[bucket.op].end_us;
      }
    }
    ASSERT_LE(hidden_share(one.graph, *schedule, timeline->makespan_us()), 1 + 1e-9);
  }
}

TEST(Overlapped, issues_an_all_reduce_before_what_is_computed_later) {
  auto random = test::generator(3);
  const auto layout = lay_out_buckets(std::vector<std::size_t>(6, 16), 4, {.bytes_max = 128, .first_bytes_max = 64});
  const Simulated one(random, *layout, 1, {.ranks = 2});
  const auto schedule = overlapped(one.graph);
  ASSERT_TRUE(schedule);
  std::string order;
  for (const schedule::Slot& slot : schedule->slots) order += one.graph.op(slot.op).name + " ";
  EXPECT_EQ(order, "B0 all-reduce 0 B1 B2 all-reduce 1 B3 B4 all-reduce 2 B5 all-reduce 3 ");
  EXPECT_EQ(schedule->lanes[0].name, "compute");
  EXPECT_EQ(schedule->lanes[1].name, "communication");
  EXPECT_GT(schedule->lanes[1].priority, schedule->lanes[0].priority);
}

TEST(Overlapped, hides_what_runs_beside_and_not_the_last) {
  // Four gradients of 100 us, four all-reduces of 50: all but the last beside the next gradient.
  schedule::TaskGraph graph;
  const auto layout = lay_out_buckets(std::vector<std::size_t>(4, 1000), 4, {.bytes_max = 0});
  const auto gradients = add_gradients(graph, *layout);
  for (const schedule::ValueId gradient : gradients)
    graph.add({.name = "B", .outputs = {gradient}, .cost_us = 100, .demand = 0.5});
  add_all_reduces(graph, *layout, gradients, {.ranks = 2, .link = {.latency_us = 50}, .demand = 0.1});
  const auto schedule = overlapped(graph);
  const auto timeline = simulate(graph, *schedule);
  ASSERT_TRUE(timeline);
  EXPECT_NEAR(timeline->makespan_us(), 450, 1e-6);
  EXPECT_NEAR(hidden_share(graph, *schedule, timeline->makespan_us()), 0.75, 1e-9);
  const auto afterwards = sequential(graph);
  const auto exposed = simulate(graph, *afterwards);
  EXPECT_NEAR(hidden_share(graph, *afterwards, exposed->makespan_us()), 0, 1e-9) << "one lane hides nothing";
}

TEST(Overlapped, refuses_a_circle_and_a_wrong_number_of_ranks) {
  schedule::TaskGraph graph;
  const schedule::ValueId a = graph.add_value("a", 1);
  const schedule::ValueId b = graph.add_value("b", 1);
  graph.add({.name = "x", .inputs = {a}, .outputs = {b}});
  graph.add({.name = "y", .inputs = {b}, .outputs = {a}});
  EXPECT_EQ(overlapped(graph).error().code, ErrorCode::kInvalidArgument);
  schedule::TaskGraph fine;
  fine.add({.name = "x"});
  const std::vector<unsigned> two{0, 0};
  EXPECT_EQ(overlapped(fine, two).error().code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(overlapped(fine));
}

// ----- run by ranks -------------------------------------------------------------------------------------------------

/// What the backward pass of `rank` makes of `tensor` in run `run`: any floats.
template <class T>
std::vector<T> made(std::uint64_t seed, unsigned rank, std::size_t tensor, unsigned run, std::size_t size) {
  std::mt19937_64 random(((seed * 131 + rank) * 1031 + tensor) * 11 + run);
  std::normal_distribution<float> normal;
  std::vector<T> values(size);
  for (T& value : values) value = T(normal(random));
  return values;
}

/// A backward pass as one rank runs it: kernels that write their gradients, all-reduces beside them, and readers of the
/// reduced buckets in the lane that computes.
template <class T>
struct Backward {
  std::uint64_t seed;
  Communicator& all;
  std::vector<std::size_t> sizes;
  GradientBuckets<T> buckets;
  schedule::TaskGraph graph;
  std::atomic<unsigned> run{0};
  std::vector<std::vector<T>> read;             // by bucket
  std::function<Status(std::size_t)> before{};  // the gradient of a tensor

  Backward(std::uint64_t seeded, Communicator& ranks, device::Stream& stream, Reduction reduction)
      : seed(seeded), all(ranks) {
    std::mt19937_64 random(seed);
    sizes = random_sizes(random, 5 + random() % 20, 3000);
    auto made_buckets = GradientBuckets<T>::create(sizes, stream, {.bytes_max = 4096, .first_bytes_max = 1024});
    EXPECT_TRUE(made_buckets);
    buckets = std::move(*made_buckets);
    const auto gradients = add_gradients(graph, buckets.layout());
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      graph.add({.name = "backward " + std::to_string(i),
                 .kind = schedule::OpKind::kWeightGradient,
                 .outputs = {gradients[i]},
                 .issue = [this, i](device::Stream& lane) {
                   lane.run("backward", [this, i]() -> Status {
                     if (before) {
                       if (Status fine = before(i); !fine) return fine;
                     }
                     const auto values = made<T>(seed, all.rank(), i, run, sizes[i]);
                     std::memcpy(buckets.gradient(i).device_data(), values.data(), values.size() * sizeof(T));
                     return {};
                   });
                 }});
    }
    const auto reduced = add_all_reduces(graph, buckets, gradients, all, {.reduction = reduction});
    read.resize(reduced.size());
    for (std::size_t b = 0; b < reduced.size(); ++b) {
      read[b].resize(buckets.bucket(b).size());
      graph.add({.name = "update " + std::to_string(b),
                 .kind = schedule::OpKind::kUpdate,
                 .inputs = {reduced[b].value},
                 .issue = [this, b](device::Stream& lane) { download(read[b], buckets.bucket(b), lane); }});
    }
  }

  /// Sums in the order of the ranks, in float, rounded once.
  [[nodiscard]] std::vector<T> expected(std::size_t tensor, unsigned of_run, Reduction reduction) const {
    std::vector<float> sums(sizes[tensor]);
    for (unsigned rank = 0; rank < all.size(); ++rank) {
      const auto values = made<T>(seed, rank, tensor, of_run, sizes[tensor]);
      for (std::size_t i = 0; i < sums.size(); ++i)
        sums[i] = rank == 0 ? static_cast<float>(values[i]) : sums[i] + static_cast<float>(values[i]);
    }
    std::vector<T> rounded(sums.size());
    const float scale = reduction == Reduction::kMean ? 1.0F / static_cast<float>(all.size()) : 1.0F;
    for (std::size_t i = 0; i < sums.size(); ++i) rounded[i] = T(sums[i] * scale);
    return rounded;
  }
};

template <class T>
void check_overlapped(Communicator& all, device::Device device, std::uint64_t seed, Reduction reduction,
                      bool as_graph) {
  auto stream = device::Stream::create(device);
  ASSERT_TRUE(stream);
  Backward<T> backward(seed, all, *stream, reduction);
  const auto schedule = overlapped(backward.graph);
  ASSERT_TRUE(schedule) << schedule.error().message;
  auto executor = schedule::Executor::create(device, backward.graph, *schedule, {.as_graph = as_graph});
  ASSERT_TRUE(executor) << executor.error().message;
  for (unsigned run = 0; run < 3; ++run) {
    backward.run = run;
    executor->run(*stream);
    const Status done = stream->synchronize();
    ASSERT_TRUE(done) << done.error().message;
    std::vector<T> meanwhile(backward.buckets.span().size());
    download(meanwhile, backward.buckets.span(), *stream);
    // The same gradients, reduced afterwards, all at once.
    std::vector<T> at_once(meanwhile.size(), T(0.0F));
    for (std::size_t i = 0; i < backward.sizes.size(); ++i)
      std::ranges::copy(made<T>(seed, all.rank(), i, run, backward.sizes[i]),
                        at_once.begin() + static_cast<std::ptrdiff_t>(backward.buckets.layout().tensors[i].begin));
    auto whole = device::Buffer<T>::create(at_once.size(), *stream);
    upload(whole->span(), at_once, *stream);
    all.all_reduce(whole->span(), reduction, *stream);
    std::vector<T> afterwards(at_once.size());
    download(afterwards, whole->span(), *stream);
    ASSERT_TRUE(stream->synchronize());
    ASSERT_EQ(std::memcmp(meanwhile.data(), afterwards.data(), meanwhile.size() * sizeof(T)), 0) << "run " << run;
    for (std::size_t i = 0; i < backward.sizes.size(); ++i) {
      const auto expected = backward.expected(i, run, reduction);
      const std::size_t begin = backward.buckets.layout().tensors[i].begin;
      ASSERT_EQ(std::memcmp(meanwhile.data() + begin, expected.data(), expected.size() * sizeof(T)), 0)
          << "tensor " << i << " in run " << run;
    }
    for (std::size_t b = 0; b < backward.read.size(); ++b)
      ASSERT_EQ(std::memcmp(backward.read[b].data(), meanwhile.data() + backward.buckets.layout().buckets[b].begin,
                            backward.read[b].size() * sizeof(T)),
                0)
          << "what the update read of bucket " << b;
  }
}

void check_all_overlapped(Communicator& all, device::Device device, std::uint64_t seed) {
  for (std::uint64_t round = 0; round < 4; ++round) {
    for (const bool as_graph : {false, true}) {
      ASSERT_NO_FATAL_FAILURE(check_overlapped<float>(all, device, seed + round, Reduction::kSum, as_graph));
      ASSERT_NO_FATAL_FAILURE(check_overlapped<device::Bf16>(all, device, seed + round, Reduction::kSum, as_graph));
      ASSERT_NO_FATAL_FAILURE(check_overlapped<float>(all, device, seed + round, Reduction::kMean, as_graph));
      ASSERT_NO_FATAL_FAILURE(check_overlapped<device::Bf16>(all, device, seed + round, Reduction::kMean, as_graph));
    }
  }
}

/// Runs `rank` for each rank, in a thread of its own, which owns its end.
void in_threads(unsigned ranks, const CommunicatorOptions& options, const std::function<void(Communicator)>& rank) {
  auto ends = Communicator::threads(ranks, options);
  ASSERT_TRUE(ends);
  std::vector<std::thread> threads;
  for (Communicator& end : *ends)
    threads.emplace_back([&rank, end = std::move(end)]() mutable { rank(std::move(end)); });
  for (std::thread& thread : threads) thread.join();
}

TEST(ThreadRanks, get_the_same_bits_meanwhile_as_afterwards) {
  for (const unsigned ranks : {1U, 2U, 4U})
    in_threads(ranks, {}, [](Communicator all) {
      check_all_overlapped(all, device::Device::cpu(all.rank()), test::seed() % 1000000);
    });
}

TEST(ThreadRanks, are_told_when_one_fails_in_the_middle_of_its_backward_pass) {
  // Nobody waits for the timeout: what a failed stream drops will never come, and that is known.
  in_threads(3, {.timeout = 600s}, [](Communicator all) {
    const device::Device device = device::Device::cpu(all.rank());
    auto stream = device::Stream::create(device);
    Backward<float> backward(test::seed() % 1000000, all, *stream, Reduction::kSum);
    const std::size_t middle = backward.sizes.size() / 2;
    backward.before = [&](std::size_t tensor) -> Status {
      if (all.rank() == 1 && tensor == middle) return make_error(ErrorCode::kCorrupt, "not a number");
      return {};
    };
    const auto schedule = overlapped(backward.graph);
    auto executor = schedule::Executor::create(device, backward.graph, *schedule);
    ASSERT_TRUE(executor);
    executor->run(*stream);
    const Status done = stream->synchronize();
    ASSERT_FALSE(done);
    if (all.rank() == 1) {
      EXPECT_EQ(done.error().message, "operation 'backward' failed: not a number");
      return;
    }
    EXPECT_EQ(done.error().code, ErrorCode::kPeerLost);
    const std::string bucket = std::to_string(backward.buckets.layout().tensors[middle].bucket);
    EXPECT_NE(done.error().message.find("rank 1 has dropped all-reduce number " + bucket), std::string::npos)
        << done.error().message;
    EXPECT_FALSE(all.check());
  });
}

TEST(ThreadRanks, are_told_when_one_dies_in_the_middle_of_its_backward_pass) {
  in_threads(3, {.timeout = 600s}, [](Communicator all) {
    const device::Device device = device::Device::cpu(all.rank());
    auto stream = device::Stream::create(device);
    Backward<device::Bf16> backward(test::seed() % 1000000, all, *stream, Reduction::kMean);
    if (all.rank() == 2) {
      // It comes as far as the first bucket, and goes.
      all.all_reduce(backward.buckets.bucket(0), Reduction::kMean, *stream);
      EXPECT_TRUE(stream->synchronize());
      return;
    }
    ASSERT_GT(backward.buckets.layout().buckets.size(), 1U);
    const auto schedule = overlapped(backward.graph);
    auto executor = schedule::Executor::create(device, backward.graph, *schedule);
    ASSERT_TRUE(executor);
    executor->run(*stream);
    const Status done = executor->synchronize();
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code, ErrorCode::kPeerLost);
    EXPECT_NE(done.error().message.find("rank 2 has left the job before all-reduce number 1"), std::string::npos)
        << done.error().message;
    (void)stream->synchronize();
  });
}

// ----- processes: mpirun -n N ranks_gradient_buckets_test --gtest_filter='Processes.*' ---

class Processes : public ::testing::Test {
 protected:
  void SetUp() override {
    if (std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr && std::getenv("PMI_SIZE") == nullptr)
      GTEST_SKIP() << "not under mpirun";
  }
  /// The seed of rank 0 is everybody's.
  static std::uint64_t common_seed(Communicator& all) {
    auto stream = device::Stream::create(device::Device::cpu());
    auto seed = device::Buffer<float>::create(1, *stream);
    std::vector<float> value{static_cast<float>(test::seed() % 1000000)};
    upload(seed->span(), value, *stream);
    all.broadcast(seed->span(), 0, *stream);
    download(value, seed->span(), *stream);
    EXPECT_TRUE(stream->synchronize());
    return static_cast<std::uint64_t>(value[0]);
  }
};

TEST_F(Processes, get_the_same_bits_meanwhile_as_afterwards) {
  auto all = Communicator::mpi();
  ASSERT_TRUE(all) << all.error().message;
  check_all_overlapped(*all, device::Device::cpu(), common_seed(*all));
  std::printf("rank %u of %u has overlapped\n", all->rank(), all->size());
}

/// The last test of its process, for MPI can't be used again: only when it is asked for.
TEST_F(Processes, are_told_when_one_dies_in_the_middle_of_its_backward_pass) {
  if (std::getenv("DUNNOCK_LOSE_A_RANK") == nullptr) GTEST_SKIP() << "DUNNOCK_LOSE_A_RANK is not set";
  auto all = Communicator::mpi({.timeout = 2s});
  ASSERT_TRUE(all) << all.error().message;
  auto stream = device::Stream::create(device::Device::cpu());
  Backward<float> backward(common_seed(*all), *all, *stream, Reduction::kSum);
  backward.before = [&](std::size_t tensor) -> Status {
    if (all->rank() == 0 && tensor == backward.sizes.size() / 2) {
      std::this_thread::sleep_for(6s);  // The others talk first: mpirun ends them with the first that goes.
      std::_Exit(0);
    }
    return {};
  };
  const auto schedule = overlapped(backward.graph);
  auto executor = schedule::Executor::create(device::Device::cpu(), backward.graph, *schedule);
  ASSERT_TRUE(executor);
  executor->run(*stream);
  const Status done = stream->synchronize();
  std::printf("rank %u: %s\n", all->rank(), done ? "no error" : done.error().message.c_str());
  std::fflush(stdout);
  std::this_thread::sleep_for(1s);
  std::_Exit(0);
}

}  // namespace
}  // namespace dunnock::ranks
