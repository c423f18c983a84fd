// One conformance suite for every kind of communicator: ranks as threads here, as processes under mpirun, as GPUs where
// there are any. And what happens when a rank is lost.
#include "dunnock/ranks/communicator.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "support/seed.hpp"

namespace dunnock::ranks {
namespace {

using namespace std::chrono_literals;

/// Memory of the device with values in it, and the way back.
template <class T>
class Values {
 public:
  Values(std::vector<T> values, device::Stream& stream)
      : values_(std::move(values)),
        buffer_(std::move(*device::Buffer<T>::create(values_.size(), stream))),
        stream_(stream) {
    upload(buffer_.span(), values_, stream);
  }
  [[nodiscard]] device::Span<T> span() const { return buffer_.span(); }
  [[nodiscard]] std::vector<T> back() {
    download(values_, buffer_.span(), stream_);
    const Status done = stream_.synchronize();
    EXPECT_TRUE(done) << done.error().message;
    return values_;
  }

 private:
  std::vector<T> values_;
  device::Buffer<T> buffer_;
  device::Stream& stream_;
};

/// Small whole numbers, whose sums are exact in any order; the same on every rank that asks.
template <class T>
std::vector<T> numbers(std::uint64_t seed, unsigned rank, std::size_t count) {
  std::mt19937_64 random(seed * 1000 + rank);
  std::vector<T> values(count);
  for (T& value : values) {
    if constexpr (std::is_same_v<T, std::byte>) {
      value = static_cast<std::byte>(random());
    } else {
      value = T(static_cast<float>(random() % 17) - 8.0F);
    }
  }
  return values;
}

template <class T>
void check_reductions(Communicator& all, device::Stream& stream, std::uint64_t seed, std::size_t count) {
  const unsigned ranks = all.size();
  std::vector<std::vector<T>> of_rank;
  for (unsigned rank = 0; rank < ranks; ++rank) of_rank.push_back(numbers<T>(seed, rank, count * ranks));
  const auto reduced = [&](std::size_t i, Reduction reduction) {
    float value = static_cast<float>(of_rank[0][i]);
    for (unsigned rank = 1; rank < ranks; ++rank) {
      const auto other = static_cast<float>(of_rank[rank][i]);
      value = reduction == Reduction::kMax ? std::max(value, other) : value + other;
    }
    // NCCL may scale before it adds; whole numbers over 1, 2 or 4 ranks are exact all the same.
    return T(reduction == Reduction::kMean ? value * (1.0F / static_cast<float>(ranks)) : value);
  };
  for (const Reduction reduction : {Reduction::kSum, Reduction::kMax, Reduction::kMean}) {
    Values<T> whole(of_rank[all.rank()], stream);
    all.all_reduce(whole.span(), reduction, stream);
    const auto sums = whole.back();
    for (std::size_t i = 0; i < sums.size(); ++i) ASSERT_EQ(sums[i], reduced(i, reduction)) << "all-reduce, " << i;

    Values<T> in(of_rank[all.rank()], stream);
    Values<T> out(std::vector<T>(count), stream);
    all.reduce_scatter<T>(in.span(), out.span(), reduction, stream);
    const auto part = out.back();
    for (std::size_t i = 0; i < count; ++i)
      ASSERT_EQ(part[i], reduced(all.rank() * count + i, reduction)) << "reduce-scatter, " << i;

    Values<T> placed(of_rank[all.rank()], stream);
    all.reduce_scatter<T>(placed.span(), placed.span().subspan(all.rank() * count, count), reduction, stream);
    const auto in_place = placed.back();
    for (std::size_t i = 0; i < count; ++i)
      ASSERT_EQ(in_place[all.rank() * count + i], reduced(all.rank() * count + i, reduction)) << "in place, " << i;
  }
}

template <class T>
void check_copies(Communicator& all, device::Stream& stream, std::uint64_t seed, std::size_t count) {
  const unsigned ranks = all.size();
  std::vector<T> everything;
  for (unsigned rank = 0; rank < ranks; ++rank) {
    const auto some = numbers<T>(seed, rank, count);
    everything.insert(everything.end(), some.begin(), some.end());
  }
  const auto mine = numbers<T>(seed, all.rank(), count);
  Values<T> in(mine, stream);
  Values<T> out(std::vector<T>(count * ranks), stream);
  all.all_gather<T>(in.span(), out.span(), stream);
  ASSERT_EQ(out.back(), everything) << "all-gather";

  std::vector<T> placed(count * ranks);
  std::ranges::copy(mine, placed.begin() + static_cast<std::ptrdiff_t>(all.rank() * count));
  Values<T> in_place(placed, stream);
  all.all_gather<T>(in_place.span().subspan(all.rank() * count, count), in_place.span(), stream);
  ASSERT_EQ(in_place.back(), everything) << "all-gather in place";

  for (unsigned root = 0; root < ranks; ++root) {
    Values<T> values(mine, stream);
    all.broadcast(values.span(), root, stream);
    ASSERT_EQ(values.back(), numbers<T>(seed, root, count)) << "broadcast from " << root;
  }
}

/// Every rank sends three messages of different sizes to the next one.
template <class T>
void check_messages(Communicator& all, device::Stream& stream, device::Stream& other, std::uint64_t seed,
                    std::size_t count) {
  if (all.size() == 1) return;
  const unsigned next = (all.rank() + 1) % all.size();
  const unsigned before = (all.rank() + all.size() - 1) % all.size();
  for (std::size_t i = 0; i < 3; ++i) {
    Values<T> out(numbers<T>(seed + i, all.rank(), count + i), stream);
    Values<T> in(std::vector<T>(count + i), other);
    all.send<T>(out.span(), next, stream);
    all.receive(in.span(), before, other);
    ASSERT_EQ(in.back(), numbers<T>(seed + i, before, count + i));
    ASSERT_TRUE(stream.synchronize());
  }
}

/// Sums of any floats: close to what they should be, and the same bits on all ranks.
void check_sums(Communicator& all, device::Stream& stream, std::uint64_t seed, std::size_t count) {
  const auto values_of = [&](unsigned rank) {
    std::mt19937_64 random(seed + rank);
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    return values;
  };
  std::vector<double> expected(count);
  std::vector<double> size(count);
  std::vector<float> in_order(count);
  for (unsigned rank = 0; rank < all.size(); ++rank) {
    const auto values = values_of(rank);
    for (std::size_t i = 0; i < count; ++i) {
      in_order[i] = rank == 0 ? values[i] : in_order[i] + values[i];
      expected[i] += static_cast<double>(values[i]);
      size[i] += std::abs(static_cast<double>(values[i]));
    }
  }
  Values<float> values(values_of(all.rank()), stream);
  all.all_reduce(values.span(), Reduction::kSum, stream);
  const auto sums = values.back();
  for (std::size_t i = 0; i < count; ++i)
    ASSERT_NEAR(static_cast<double>(sums[i]), expected[i], 1e-6 * all.size() * size[i]);
  if (stream.device().backend() == device::Backend::kCpu) {
    ASSERT_EQ(std::memcmp(sums.data(), in_order.data(), count * sizeof(float)), 0) << "in the order of the ranks";
  }
  Values<float> everybodys(std::vector<float>(count * all.size()), stream);
  all.all_gather<float>(values.span(), everybodys.span(), stream);
  const auto back = everybodys.back();
  for (unsigned rank = 0; rank < all.size(); ++rank)
    ASSERT_EQ(std::memcmp(back.data() + rank * count, sums.data(), count * sizeof(float)), 0) << "rank " << rank;
}

/// Collectives that are issued on two streams by turns come to their partners all the same.
void check_streams(Communicator& all, device::Stream& one, device::Stream& two) {
  constexpr std::size_t kRounds = 50;
  std::vector<Values<float>> values;
  for (std::size_t i = 0; i < kRounds; ++i)
    values.emplace_back(std::vector<float>(64, static_cast<float>(i + all.rank())), i % 2 == 0 ? one : two);
  for (std::size_t i = 0; i < kRounds; ++i) all.all_reduce(values[i].span(), Reduction::kSum, i % 2 == 0 ? one : two);
  for (std::size_t i = 0; i < kRounds; ++i) {
    const float ranks = static_cast<float>(all.size());
    ASSERT_EQ(values[i].back()[63], ranks * static_cast<float>(i) + ranks * (ranks - 1) / 2);
  }
}

/// The ranks in the order of the communicator, as they are in another one.
std::vector<float> ranks_of(Communicator& group, unsigned rank, device::Stream& stream) {
  Values<float> mine({static_cast<float>(rank)}, stream);
  Values<float> all(std::vector<float>(group.size()), stream);
  group.all_gather<float>(mine.span(), all.span(), stream);
  return all.back();
}

/// Rows and columns of a grid that is two wide, other orders, groups of groups; used at the same time.
void check_groups(Communicator& all, device::Device device, std::uint64_t seed) {
  const unsigned ranks = all.size();
  const unsigned me = all.rank();
  std::vector<device::Stream> streams;
  for (int i = 0; i < 5; ++i) streams.push_back(std::move(*device::Stream::create(device)));
  auto row = all.split(me / 2, me);
  auto column = all.split(me % 2, 7);
  auto same = all.split(0, 0);
  auto once_more = all.split(0, 0);
  ASSERT_TRUE(row && column && same && once_more);
  std::vector<float> of_row;
  std::vector<float> of_column;
  for (unsigned rank = 0; rank < ranks; ++rank) {
    if (rank / 2 == me / 2) of_row.push_back(static_cast<float>(rank));
    if (rank % 2 == me % 2) of_column.push_back(static_cast<float>(rank));
  }
  ASSERT_EQ(row->size(), of_row.size());
  ASSERT_EQ(row->rank(), me % 2);
  ASSERT_EQ(column->rank(), me / 2);
  ASSERT_EQ(ranks_of(*row, me, streams[0]), of_row);
  ASSERT_EQ(ranks_of(*column, me, streams[0]), of_column) << "keys are alike: the order of the ranks";

  // Each on a stream of its own, different ones of them ahead; long values and short ones.
  std::mt19937_64 random(seed + me);
  std::vector<std::pair<Communicator*, const std::vector<float>*>> groups{{&*row, &of_row}, {&*column, &of_column}};
  std::vector<float> of_all;
  for (unsigned rank = 0; rank < ranks; ++rank) of_all.push_back(static_cast<float>(rank));
  for (Communicator* const everybody : {&all, &*same, &*once_more}) groups.emplace_back(everybody, &of_all);
  constexpr std::size_t kRounds = 20;
  std::vector<std::vector<Values<float>>> values(groups.size());
  const auto count = [](std::size_t i) { return i % 3 == 0 ? std::size_t{30'000} : 10 + i; };
  for (std::size_t issued = 0; issued < kRounds * groups.size();) {
    const std::size_t g = random() % groups.size();
    const std::size_t i = values[g].size();
    if (i == kRounds) continue;
    ++issued;
    values[g].emplace_back(numbers<float>(seed + 100 * g + i, me, count(i)), streams[g]);
    groups[g].first->all_reduce(values[g].back().span(), Reduction::kSum, streams[g]);
  }
  for (std::size_t g = 0; g < groups.size(); ++g) {
    for (std::size_t i = 0; i < kRounds; ++i) {
      std::vector<float> sum(count(i));
      for (const float member : *groups[g].second) {
        const auto theirs = numbers<float>(seed + 100 * g + i, static_cast<unsigned>(member), count(i));
        for (std::size_t k = 0; k < sum.size(); ++k) sum[k] += theirs[k];
      }
      ASSERT_EQ(values[g][i].back(), sum) << "group " << g << ", all-reduce " << i;
    }
  }

  auto backwards = all.split(0, ranks - 1 - me);
  ASSERT_TRUE(backwards);
  ASSERT_EQ(backwards->rank(), ranks - 1 - me);
  std::ranges::reverse(of_all);
  ASSERT_EQ(ranks_of(*backwards, me, streams[0]), of_all);
  // Groups of a group, which its parent need not survive.
  Result<Communicator> half = backwards->split(backwards->rank() % 2, backwards->rank());
  ASSERT_TRUE(half);
  *backwards = std::move(*half);
  std::erase_if(of_all, [&](float rank) { return static_cast<unsigned>(rank) % 2 != me % 2; });
  ASSERT_EQ(ranks_of(*backwards, me, streams[0]), of_all);
  // Everything that can be done with all ranks.
  ASSERT_NO_FATAL_FAILURE(check_reductions<device::Bf16>(*backwards, streams[0], seed, 777));
  ASSERT_NO_FATAL_FAILURE(check_copies<float>(*backwards, streams[0], seed, 777));
  ASSERT_NO_FATAL_FAILURE(check_messages<float>(*backwards, streams[0], streams[1], seed, 777));
  auto alone = all.split(me, 0);
  ASSERT_TRUE(alone);
  ASSERT_EQ(alone->size(), 1U);
  ASSERT_NO_FATAL_FAILURE(check_reductions<float>(*alone, streams[0], seed, 77));
}

/// A pipeline's lanes, each a stream: what comes from the rank before goes on to the one behind, and back. In a ring
/// the last rank sends to the first, too. Sizes are random, the same on all ranks, and so is which way a round begins
/// with: between two ranks both ways may be one. Pauses are random, each rank's own.
void check_lanes(Communicator& all, device::Device device, std::uint64_t seed, bool ring, std::size_t rounds) {
  const unsigned ranks = all.size();
  if (ranks == 1) return;
  const unsigned me = all.rank();
  struct Way {
    unsigned first, last, from, to;
    device::Stream receives, sends;
    std::vector<Values<float>> values;
  };
  const unsigned before = (me + ranks - 1) % ranks;
  const unsigned behind = (me + 1) % ranks;
  std::vector<Way> ways;
  const auto stream = [device] { return std::move(*device::Stream::create(device)); };
  ways.push_back({0, ranks - 1, before, behind, stream(), stream(), {}});
  ways.push_back({ranks - 1, 0, behind, before, stream(), stream(), {}});
  auto received = device::Event::create(device);
  ASSERT_TRUE(received);
  std::mt19937_64 random(seed);
  std::vector<std::size_t> sizes;
  std::vector<bool> turned;
  for (std::size_t i = 0; i < rounds; ++i) {
    sizes.push_back(random() % 4 == 0 ? 1 + random() % 100'000 : 1 + random() % 300);
    turned.push_back(random() % 2 == 0);
  }
  std::mt19937_64 pauses(seed + 1 + me);
  const auto sent = [&](std::size_t way, std::size_t i) { return numbers<float>(seed + 1000 * way + i, 0, sizes[i]); };
  for (std::size_t i = 0; i < rounds; ++i) {
    for (const std::size_t w : {std::size_t{turned[i]}, std::size_t{!turned[i]}}) {
      Way& way = ways[w];
      const bool starts = me == way.first;
      const bool ends = me == way.last;
      // The first one's own values do not wait for those that come round.
      way.values.emplace_back(starts ? sent(w, i) : std::vector<float>(sizes[i]), starts ? way.sends : way.receives);
      if (!starts) {
        all.receive(way.values.back().span(), way.from, way.receives);
        way.receives.record(*received);
        way.sends.wait(*received);
      }
      if (pauses() % 6 == 0) {  // Long enough for the others to fall asleep.
        way.sends.run("pause", [pause = std::chrono::microseconds(pauses() % 3000)] {
          std::this_thread::sleep_for(pause);
          return Status{};
        });
      }
      if (!ends || ring) all.send<float>(way.values.back().span(), way.to, way.sends);
      if (!starts || !ring) continue;
      way.values.emplace_back(std::vector<float>(sizes[i]), way.receives);
      all.receive(way.values.back().span(), way.from, way.receives);
    }
  }
  for (std::size_t w = 0; w < ways.size(); ++w) {
    const Status done = ways[w].sends.synchronize();
    ASSERT_TRUE(done) << done.error().message;
    const std::size_t each = ways[w].values.size() / rounds;
    for (std::size_t i = 0; i < ways[w].values.size(); ++i)
      ASSERT_EQ(ways[w].values[i].back(), sent(w, i / each)) << "way " << w << ", message " << i / each;
  }
}

/// Who waits on four lanes for a rank that is late leaves the processors to others, and gets what it sends then.
void check_waiting(Communicator& all, device::Device device, std::uint64_t seed) {
  if (all.size() == 1) return;
  const std::vector<std::size_t> sizes{1, 1000, 5000, 700'001};
  std::vector<device::Stream> streams;
  for (std::size_t i = 0; i < sizes.size(); ++i) streams.push_back(std::move(*device::Stream::create(device)));
  std::vector<Values<float>> values;
  for (std::size_t i = 0; i < sizes.size(); ++i)
    values.emplace_back(all.rank() == 0 ? numbers<float>(seed + i, 0, sizes[i]) : std::vector<float>(sizes[i]),
                        streams[i]);
  auto aside = std::move(*device::Stream::create(device));
  all.barrier(aside);
  ASSERT_TRUE(aside.synchronize());
  for (std::size_t i = 0; i < sizes.size() && all.rank() != 0; ++i) all.receive(values[i].span(), 0, streams[i]);
  std::this_thread::sleep_for(100ms);        // Ranks that are threads of one process come to this at different times.
  const std::clock_t before = std::clock();  // Of the process.
  std::this_thread::sleep_for(300ms);
  const double used = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
#if defined(__SANITIZE_THREAD__)
  constexpr double kShare = 0.5;  // Its own thread works as well.
#else
  constexpr double kShare = 0.2;  // One lane that stays awake uses 1.
#endif
  EXPECT_LT(used, kShare * 0.3) << "seconds of a processor within 300 ms";
  all.barrier(aside);  // What comes now is not to be counted by ranks that are threads of one process.
  ASSERT_TRUE(aside.synchronize());
  for (std::size_t i = 0; i < sizes.size() && all.rank() == 0; ++i) {
    for (unsigned rank = 1; rank < all.size(); ++rank) all.send<float>(values[i].span(), rank, streams[i]);
  }
  for (std::size_t i = 0; i < sizes.size(); ++i) ASSERT_EQ(values[i].back(), numbers<float>(seed + i, 0, sizes[i]));
}

/// Nothing is a number of values like any other: all ranks come, and go.
void check_nothing(Communicator& all, device::Stream& stream) {
  const device::Span<float> nothing;
  all.all_reduce(nothing, Reduction::kMax, stream);
  all.reduce_scatter<float>(nothing, nothing, Reduction::kSum, stream);
  all.all_gather<float>(nothing, nothing, stream);
  all.broadcast(nothing, all.size() - 1, stream);
  if (all.size() > 1 && all.rank() == 0) all.send<float>(nothing, 1, stream);
  if (all.rank() == 1) all.receive(nothing, 0, stream);
  const Status done = stream.synchronize();
  EXPECT_TRUE(done) << done.error().message;
}

/// All of it, as one rank. `idle`: nothing else runs in its process.
void conform(Communicator& all, device::Device device, std::uint64_t seed, bool idle = true) {
  auto stream = device::Stream::create(device);
  auto other = device::Stream::create(device);
  ASSERT_TRUE(stream && other);
  for (const std::size_t count : {std::size_t{1}, std::size_t{7}, std::size_t{1000}, std::size_t{70'001}}) {
    ASSERT_NO_FATAL_FAILURE(check_reductions<float>(all, *stream, seed, count));
    ASSERT_NO_FATAL_FAILURE(check_reductions<device::Bf16>(all, *stream, seed, count));
    ASSERT_NO_FATAL_FAILURE(check_copies<float>(all, *stream, seed, count));
    ASSERT_NO_FATAL_FAILURE(check_copies<device::Bf16>(all, *stream, seed, count));
    ASSERT_NO_FATAL_FAILURE(check_copies<std::byte>(all, *stream, seed, count));
    ASSERT_NO_FATAL_FAILURE(check_messages<float>(all, *stream, *other, seed, count));
    ASSERT_NO_FATAL_FAILURE(check_messages<device::Bf16>(all, *stream, *other, seed, count));
    ASSERT_NO_FATAL_FAILURE(check_messages<std::byte>(all, *stream, *other, seed, count));
    ASSERT_NO_FATAL_FAILURE(check_sums(all, *stream, seed, count));
  }
  ASSERT_NO_FATAL_FAILURE(check_nothing(all, *stream));
  ASSERT_NO_FATAL_FAILURE(check_streams(all, *stream, *other));
  ASSERT_NO_FATAL_FAILURE(check_groups(all, device, seed));
  for (const bool ring : {false, true}) ASSERT_NO_FATAL_FAILURE(check_lanes(all, device, seed, ring, 60));
  if (idle) ASSERT_NO_FATAL_FAILURE(check_waiting(all, device, seed));
  all.barrier(*stream);
  EXPECT_TRUE(stream->synchronize());
  EXPECT_TRUE(all.check());
}

// ----- ranks that do not call the same: one contract for threads and processes. (NCCL compares nothing.)
// --------------

/// What a rank calls, and how an error names it. `call` returns when the operation is over.
struct Called {
  std::string words;
  std::function<Status(Communicator&, device::Stream&)> call;
};

/// What all ranks call but one, and what that one calls; or what rank 0 sends and rank 1 receives.
struct Disagreement {
  Called most;
  Called odd;
};

/// Memory for operations that fail, which may go on using it: there until the process ends.
template <class T>
device::Span<T> lasting(std::size_t count) {
  static std::mutex mutex;
  static auto& all = *new std::vector<std::unique_ptr<std::vector<T>>>;
  const std::lock_guard lock(mutex);
  all.push_back(std::make_unique<std::vector<T>>(count));
  return device::Span<T>(all.back()->data(), count);
}

template <class T>
std::string counted(const std::string& name, std::size_t count) {
  const char* const what = std::is_same_v<T, float>          ? " f32 values"
                           : std::is_same_v<T, device::Bf16> ? " bf16 values"
                                                             : " bytes";
  return name + " of " + std::to_string(count) + what;
}
std::string named(Reduction reduction) {
  return reduction == Reduction::kSum ? " (sum)" : reduction == Reduction::kMax ? " (max)" : " (mean)";
}

template <class T>
Called all_reduce(std::size_t count, Reduction reduction = Reduction::kSum) {
  return {counted<T>("all-reduce", count) + named(reduction), [=](Communicator& all, device::Stream& stream) {
            all.all_reduce(lasting<T>(count), reduction, stream);
            return stream.synchronize();
          }};
}
template <class T>
Called reduce_scatter(std::size_t count, Reduction reduction = Reduction::kSum) {
  return {counted<T>("reduce-scatter", count) + named(reduction), [=](Communicator& all, device::Stream& stream) {
            all.reduce_scatter<T>(lasting<T>(count * all.size()), lasting<T>(count), reduction, stream);
            return stream.synchronize();
          }};
}
template <class T>
Called all_gather(std::size_t count) {
  return {counted<T>("all-gather", count), [=](Communicator& all, device::Stream& stream) {
            all.all_gather<T>(lasting<T>(count), lasting<T>(count * all.size()), stream);
            return stream.synchronize();
          }};
}
template <class T>
Called broadcast(std::size_t count, unsigned root) {
  return {counted<T>("broadcast", count) + " from rank " + std::to_string(root),
          [=](Communicator& all, device::Stream& stream) {
            all.broadcast(lasting<T>(count), root, stream);
            return stream.synchronize();
          }};
}
Called barrier() {
  return {"barrier", [](Communicator& all, device::Stream& stream) {
            all.barrier(stream);
            return stream.synchronize();
          }};
}
Called split() {
  return {"split", [](Communicator& all, device::Stream&) {
            const auto group = all.split(0, all.rank());
            return group ? Status{} : Status(tl::unexpected(group.error()));
          }};
}
template <class T>
Called send(std::size_t count) {
  return {counted<T>("send", count), [=](Communicator& all, device::Stream& stream) {
            all.send<T>(lasting<T>(count), 1, stream);
            return stream.synchronize();
          }};
}
template <class T>
Called receive(std::size_t count) {
  return {counted<T>("receive", count), [=](Communicator& all, device::Stream& stream) {
            all.receive(lasting<T>(count), 0, stream);
            return stream.synchronize();
          }};
}

/// Other counts (none, few, many, and enough to take another path), types (of as many values, of as many bytes),
/// reductions, roots, and other operations.
std::vector<Disagreement> disagreements() {
  constexpr std::size_t kFew = 10;
  constexpr std::size_t kMany = 100'000;
  std::vector<Disagreement> all;
  for (const auto& [one, two] : {std::pair{kFew, kFew + 1},
                                 {kFew + 1, kFew},
                                 {std::size_t{0}, kFew},
                                 {kFew, kMany},
                                 {kMany, kFew},
                                 {kMany, kMany + 1},
                                 {kMany, 5 * kMany}}) {
    all.push_back({all_reduce<float>(one), all_reduce<float>(two)});
    all.push_back({reduce_scatter<float>(one), reduce_scatter<float>(two)});
    all.push_back({all_gather<float>(one), all_gather<float>(two)});
    all.push_back({broadcast<float>(one, 0), broadcast<float>(two, 0)});
  }
  for (const std::size_t count : {kFew, kMany}) {
    all.push_back({all_reduce<float>(count), all_reduce<device::Bf16>(count)});
    all.push_back({all_reduce<float>(count), all_reduce<device::Bf16>(2 * count)});
    all.push_back({all_gather<float>(count), all_gather<std::byte>(4 * count)});
    all.push_back({broadcast<device::Bf16>(count, 0), broadcast<std::byte>(2 * count, 0)});
    all.push_back({all_reduce<float>(count), all_reduce<float>(count, Reduction::kMax)});
    all.push_back({reduce_scatter<device::Bf16>(count, Reduction::kMean), reduce_scatter<device::Bf16>(count)});
    all.push_back({broadcast<float>(count, 0), broadcast<float>(count, 1)});
    all.push_back({broadcast<float>(count, 1), broadcast<float>(count, 0)});
    all.push_back({all_reduce<float>(count), reduce_scatter<float>(count)});
    all.push_back({all_gather<float>(count), broadcast<float>(count, 0)});
    all.push_back({all_reduce<float>(count), barrier()});
    all.push_back({barrier(), broadcast<float>(count, 0)});
    all.push_back({all_gather<float>(count), split()});
  }
  all.push_back({barrier(), split()});
  all.push_back({split(), all_reduce<float>(kFew)});
  return all;
}
std::vector<Disagreement> messages_that_disagree() {
  constexpr std::size_t kFew = 10;
  constexpr std::size_t kMany = 2'000'000;
  return {{send<float>(kFew), receive<float>(kFew + 1)},    {send<float>(kFew), receive<float>(kFew - 1)},
          {send<float>(0), receive<float>(kFew)},           {send<float>(kFew), receive<float>(0)},
          {send<float>(kFew), receive<float>(kMany)},       {send<float>(kMany), receive<float>(kFew)},
          {send<float>(kMany), receive<float>(kMany + 1)},  {send<float>(kFew), receive<device::Bf16>(kFew)},
          {send<float>(kFew), receive<std::byte>(4 * kFew)}};
}

/// This rank's part of a disagreement: every rank, also one that has no part in it, has an error that names both calls,
/// and no later operation does anything. `must_fail`: the call itself, too.
void disagree(Communicator& all, const Called& most, const Called& odd, const Called* mine, bool must_fail) {
  auto stream = device::Stream::create(device::Device::cpu());
  ASSERT_TRUE(stream);
  const std::string what = most.words + " beside " + odd.words + ", rank " + std::to_string(all.rank());
  if (mine != nullptr) {
    const Status done = mine->call(all, *stream);
    if (must_fail) {
      ASSERT_FALSE(done) << what;
      EXPECT_EQ(done.error().code, ErrorCode::kInvalidArgument) << what << ": " << done.error().message;
    }
  }
  const auto until = std::chrono::steady_clock::now() + 20s;
  while (all.check() && std::chrono::steady_clock::now() < until) std::this_thread::sleep_for(100us);
  const Status found = all.check();
  ASSERT_FALSE(found) << what;
  EXPECT_EQ(found.error().code, ErrorCode::kInvalidArgument) << what << ": " << found.error().message;
  EXPECT_NE(found.error().message.find("calls " + most.words), std::string::npos)
      << what << ": " << found.error().message;
  EXPECT_NE(found.error().message.find("calls " + odd.words), std::string::npos)
      << what << ": " << found.error().message;
  auto later = device::Stream::create(device::Device::cpu());
  ASSERT_TRUE(later);
  all.barrier(*later);
  const Status none = later->synchronize();
  ASSERT_FALSE(none) << what;
  EXPECT_EQ(none.error().code, ErrorCode::kInvalidArgument) << what;
}
void disagree(Communicator& all, const Disagreement& calls, unsigned odd_rank) {
  disagree(all, calls.most, calls.odd, all.rank() == odd_rank ? &calls.odd : &calls.most, true);
}
/// A sender of few values need not wait until they are taken.
void disagree_in_a_message(Communicator& all, const Disagreement& calls) {
  const Called* const mine = all.rank() == 0 ? &calls.most : all.rank() == 1 ? &calls.odd : nullptr;
  disagree(all, calls.most, calls.odd, mine, all.rank() == 1);
}

/// Runs `rank` for each rank, in a thread of its own.
void in_threads(std::vector<Communicator>& ends, const std::function<void(Communicator&)>& rank) {
  std::vector<std::thread> threads;
  for (Communicator& end : ends) threads.emplace_back([&rank, &end] { rank(end); });
  for (std::thread& thread : threads) thread.join();
}

TEST(Threads, conform) {
  for (const unsigned ranks : {1U, 2U, 3U, 5U}) {
    auto ends = Communicator::threads(ranks);
    ASSERT_TRUE(ends);
    in_threads(*ends, [](Communicator& end) { conform(end, device::Device::cpu(end.rank()), test::seed() % 1000000); });
  }
  EXPECT_EQ(Communicator::threads(0).error().code, ErrorCode::kInvalidArgument);
}

TEST(Threads, are_as_far_apart_as_they_are_told) {
  constexpr std::size_t kValues = 2500;  // 10^4 bytes
  auto ends = *Communicator::threads(2, {.added_latency_us = 5000, .added_us_per_mb = 1e6});
  std::vector<double> reduced_ms(2);
  std::vector<double> passed_ms(2);
  std::vector<std::thread> threads;
  for (unsigned rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      device::Stream stream = std::move(*device::Stream::create(device::Device::cpu(rank)));
      std::vector<float> values(kValues, static_cast<float>(rank));
      const device::Span<float> span(values.data(), values.size());
      const auto ms_of = [&](const auto& issue) {
        const auto begin = std::chrono::steady_clock::now();
        issue();
        const Status done = stream.synchronize();
        EXPECT_TRUE(done) << done.error().message;
        return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
      };
      reduced_ms[rank] = ms_of([&] { ends[rank].all_reduce(span, Reduction::kSum, stream); });
      EXPECT_EQ(values, std::vector<float>(kValues, 1));
      passed_ms[rank] =
          ms_of([&] { rank == 0 ? ends[0].send<float>(span, 1, stream) : ends[1].receive<float>(span, 0, stream); });
    });
  }
  for (std::thread& thread : threads) thread.join();
  // Two messages of 5 ms and half of 10 ms each; one of 5 ms and 10 ms.
  for (const double ms : reduced_ms) EXPECT_GE(ms, 20);
  EXPECT_GE(passed_ms[1], 15);
}

TEST(Threads, wait_for_each_other_at_a_barrier) {
  auto ends = Communicator::threads(4);
  ASSERT_TRUE(ends);
  std::atomic<int> before = 0;
  std::atomic<int> wrong = 0;
  in_threads(*ends, [&](Communicator& end) {
    auto stream = device::Stream::create(device::Device::cpu(end.rank()));
    for (int round = 1; round <= 50; ++round) {
      stream->run("before", [&before] {
        ++before;
        return Status{};
      });
      end.barrier(*stream);
      stream->run("behind", [&, round] {
        if (before < 4 * round) ++wrong;
        return Status{};
      });
      end.barrier(*stream);
    }
    EXPECT_TRUE(stream->synchronize());
  });
  EXPECT_EQ(wrong, 0);
}

TEST(Threads, are_told_when_a_rank_does_not_come) {
  auto ends = Communicator::threads(3, {.timeout = 1s});
  ASSERT_TRUE(ends);
  std::atomic<bool> told = false;
  in_threads(*ends, [&told](Communicator& end) {
    auto stream = device::Stream::create(device::Device::cpu(end.rank()));
    Values<float> values(std::vector<float>(10, 1.0F), *stream);
    if (end.rank() == 2) {
      stream->run("late", [&told] {
        while (!told) std::this_thread::sleep_for(1ms);
        return Status{};
      });
    }
    end.all_reduce(values.span(), Reduction::kSum, *stream);
    const Status done = stream->synchronize();
    told = true;
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code, ErrorCode::kPeerLost);
    EXPECT_NE(done.error().message.find("of 3 ranks did not reach all-reduce number 0 within 1000 ms"),
              std::string::npos)
        << done.error().message;
    // All that comes later fails at once.
    end.barrier(*stream);
    EXPECT_EQ(stream->synchronize().error().code, ErrorCode::kPeerLost);
    EXPECT_EQ(end.check().error().code, ErrorCode::kPeerLost);
  });
}

TEST(Threads, are_told_when_a_rank_leaves) {
  for (int round = 0; round < 50; ++round) {                  // Which rank is still leaving the first call differs.
    auto ends = Communicator::threads(3, {.timeout = 600s});  // Nobody waits for it.
    ASSERT_TRUE(ends);
    std::vector<std::thread> threads;
    for (unsigned rank = 0; rank < 3; ++rank) {
      threads.emplace_back([rank, end = std::move((*ends)[rank])]() mutable {
        auto stream = device::Stream::create(device::Device::cpu(rank));
        Values<float> values(std::vector<float>(10, 1.0F), *stream);
        end.all_reduce(values.span(), Reduction::kSum, *stream);
        EXPECT_TRUE(stream->synchronize());
        if (rank == 1) return;
        if (rank == 0) {
          end.receive(values.span(), 1, *stream);
        } else {
          end.all_reduce(values.span(), Reduction::kSum, *stream);
        }
        const Status done = stream->synchronize();
        ASSERT_FALSE(done);
        EXPECT_EQ(done.error().code, ErrorCode::kPeerLost);
        EXPECT_NE(done.error().message.find("rank 1 has left the job"), std::string::npos) << done.error().message;
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
}

TEST(Threads, are_told_when_a_rank_does_not_come_to_split_or_has_left) {
  auto ends = Communicator::threads(3, {.timeout = 1s});
  ASSERT_TRUE(ends);
  std::atomic<bool> told = false;
  in_threads(*ends, [&told](Communicator& end) {
    while (end.rank() == 2 && !told) std::this_thread::sleep_for(1ms);
    const auto group = end.split(0, 0);
    told = true;
    ASSERT_FALSE(group);
    EXPECT_EQ(group.error().code, ErrorCode::kPeerLost);
    EXPECT_NE(group.error().message.find("of 3 ranks did not reach split number 0 within 1000 ms"), std::string::npos)
        << group.error().message;
  });
  ends = Communicator::threads(3, {.timeout = 600s});  // Nobody waits for it.
  ends->pop_back();
  in_threads(*ends, [](Communicator& end) {
    const auto group = end.split(0, 0);
    ASSERT_FALSE(group);
    EXPECT_EQ(group.error().message, "rank 2 has left the job before split number 0");
  });
}

TEST(Threads, lose_a_rank_in_one_group_and_go_on_in_the_other) {
  auto ends = Communicator::threads(4, {.timeout = 600s});
  ASSERT_TRUE(ends);
  std::barrier survivors(3);
  std::vector<std::thread> threads;
  for (unsigned rank = 0; rank < 4; ++rank) {
    threads.emplace_back([rank, &survivors, end = std::move((*ends)[rank])]() mutable {
      auto stream = device::Stream::create(device::Device::cpu(rank));
      auto row = end.split(rank / 2, rank);
      ASSERT_TRUE(row);
      if (rank == 1) return;  // Both of its ends go.
      Values<float> values(std::vector<float>(10, 1.0F), *stream);
      row->all_reduce(values.span(), Reduction::kSum, *stream);
      const Status done = stream->synchronize();
      EXPECT_EQ(done.has_value(), rank != 0);
      EXPECT_EQ(row->check().has_value(), rank != 0);
      if (rank == 0) {
        EXPECT_EQ(done.error().message,
                  "operation 'all-reduce' failed: rank 1 has left the job before all-reduce number 0");
      }
      EXPECT_TRUE(end.check()) << "a group's failures are its own";
      survivors.arrive_and_wait();
      const auto again = end.split(0, 0);
      ASSERT_FALSE(again);
      EXPECT_EQ(again.error().code, ErrorCode::kPeerLost);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Threads, are_told_when_they_do_not_call_the_same) {
  constexpr unsigned kRanks = 3;
  for (const Disagreement& calls : disagreements()) {
    for (unsigned odd = 0; odd < kRanks; ++odd) {
      auto ends = Communicator::threads(kRanks, {.timeout = 600s});
      ASSERT_TRUE(ends);
      in_threads(*ends, [&](Communicator& end) { disagree(end, calls, odd); });
    }
  }
}

TEST(Threads, are_told_when_what_is_sent_is_not_what_is_received) {
  for (const Disagreement& calls : messages_that_disagree()) {
    auto ends = Communicator::threads(3, {.timeout = 600s});
    ASSERT_TRUE(ends);
    in_threads(*ends, [&](Communicator& end) { disagree_in_a_message(end, calls); });
  }
}

TEST(Threads, may_not_write_to_what_is_reduced_or_gathered) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  auto ends = Communicator::threads(1);
  auto stream = device::Stream::create(device::Device::cpu());
  ASSERT_TRUE(ends && stream);
  std::vector<float> memory(16);
  const device::Span<float> all(memory.data(), 16);
  Communicator& one = ends->front();
  EXPECT_DEATH(one.reduce_scatter<float>(all.subspan(0, 8), all.subspan(4, 8), Reduction::kSum, *stream),
               "except in the rank's own part");
  EXPECT_DEATH(one.all_gather<float>(all.subspan(4, 8), all.subspan(0, 8), *stream), "except in the rank's own part");
  one.all_gather<float>(all.subspan(0, 8), all.subspan(8, 8), *stream);
  one.all_gather<float>(all.subspan(0, 8), all.subspan(0, 8), *stream);
  EXPECT_TRUE(stream->synchronize());
}

// ----- processes: mpirun -n N ranks_communicator_test --gtest_filter='Processes.*' ---

class Processes : public ::testing::Test {
 protected:
  void SetUp() override {
    if (std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr && std::getenv("PMI_SIZE") == nullptr)
      GTEST_SKIP() << "not under mpirun";
  }
};

TEST_F(Processes, conform) {
  auto all = Communicator::mpi();
  ASSERT_TRUE(all) << all.error().message;
  // The seed of rank 0 is everybody's.
  auto stream = device::Stream::create(device::Device::cpu());
  Values<float> seed({static_cast<float>(test::seed() % 1000000)}, *stream);
  all->broadcast(seed.span(), 0, *stream);
  conform(*all, device::Device::cpu(), static_cast<std::uint64_t>(seed.back()[0]));
  // How they wait is the same for all; where MPI may not copy from another's memory they have to ask it.
  const bool wake = all->description().find("woken") != std::string::npos;
  Values<float> woken({wake ? 1.0F : 0.0F}, *stream);
  all->all_reduce(woken.span(), Reduction::kSum, *stream);
  EXPECT_EQ(woken.back()[0], wake ? static_cast<float>(all->size()) : 0.0F);
  const char* const copies = std::getenv("OMPI_MCA_btl_vader_single_copy_mechanism");
  if (copies != nullptr && std::string_view(copies) == "none" && all->size() > 1) EXPECT_FALSE(wake);
  std::printf("rank %u of %u has conformed; %s\n", all->rank(), all->size(), all->description().c_str());
}

/// Who waits beside one that computes goes to sleep at once, and is woken by what comes.
TEST_F(Processes, conform_while_they_compute) {
  auto all = Communicator::mpi();
  ASSERT_TRUE(all) << all.error().message;
  auto stream = device::Stream::create(device::Device::cpu());
  auto computes = device::Stream::create(device::Device::cpu(), {.threads = 1});
  Values<float> seed({static_cast<float>(test::seed() % 1000000)}, *stream);
  all->broadcast(seed.span(), 0, *stream);
  std::jthread others([&computes](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      computes->run("compute", [] {
        const auto until = std::chrono::steady_clock::now() + 1ms;
        while (std::chrono::steady_clock::now() < until) {
        }
        return Status{};
      });
      EXPECT_TRUE(computes->synchronize());
    }
  });
  conform(*all, device::Device::cpu(), static_cast<std::uint64_t>(seed.back()[0]) + 1, false);
}

TEST_F(Processes, are_told_when_they_do_not_call_the_same) {
  unsigned odd = 0;  // Each rank is the odd one in turn: an mpirun has not the time for all of all.
  for (const Disagreement& calls : disagreements()) {
    auto all = Communicator::mpi();
    ASSERT_TRUE(all) << all.error().message;
    if (all->size() == 1) GTEST_SKIP() << "alone";
    disagree(*all, calls, odd++ % all->size());
  }
}

TEST_F(Processes, are_told_when_what_is_sent_is_not_what_is_received) {
  for (const Disagreement& calls : messages_that_disagree()) {
    auto all = Communicator::mpi();
    ASSERT_TRUE(all) << all.error().message;
    if (all->size() == 1) GTEST_SKIP() << "alone";
    disagree_in_a_message(*all, calls);
  }
}

TEST_F(Processes, disagree_in_one_group_and_go_on_in_the_others) {
  auto all = Communicator::mpi();
  ASSERT_TRUE(all) << all.error().message;
  if (all->size() < 4) GTEST_SKIP() << "there are no two groups of two";
  auto row = all->split(all->rank() / 2, 0);
  ASSERT_TRUE(row) << row.error().message;
  auto stream = device::Stream::create(device::Device::cpu());
  ASSERT_TRUE(stream);
  if (all->rank() < 2) {
    disagree(*row, {all_reduce<float>(10), all_reduce<float>(20)}, 1);
  } else {
    EXPECT_TRUE(all_reduce<float>(10).call(*row, *stream));
    EXPECT_TRUE(row->check());
  }
  EXPECT_TRUE(all_reduce<float>(10).call(*all, *stream));
  EXPECT_TRUE(all->check()) << "a group's failures are its own";
}

TEST_F(Processes, are_told_when_there_are_no_more_groups) {
  auto all = Communicator::mpi();
  ASSERT_TRUE(all) << all.error().message;
  auto alone = all->split(all->rank(), 0);
  ASSERT_TRUE(alone);
  Status none;
  for (unsigned i = 0; i < 1U << 17 && none && all->rank() == 0; ++i) {
    if (const auto group = alone->split(0, 0); !group) none = tl::unexpected(group.error());
  }
  EXPECT_EQ(none.has_value(), all->rank() != 0);
  // All of the group that rank 0 would be the first of, and no others.
  const auto row = all->split(all->rank() / 2, 0);
  ASSERT_EQ(row.has_value(), all->rank() > 1);
  if (row) return;
  EXPECT_EQ(row.error().code, ErrorCode::kNoSpace);
  EXPECT_NE(row.error().message.find("groups with the same first rank"), std::string::npos);
}

/// The last test of its process, for MPI can't be used again: only when it is asked for.
TEST_F(Processes, are_told_when_a_rank_does_not_come) {
  if (std::getenv("DUNNOCK_LOSE_A_RANK") == nullptr) GTEST_SKIP() << "DUNNOCK_LOSE_A_RANK is not set";
  auto all = Communicator::mpi({.timeout = 2s});
  ASSERT_TRUE(all) << all.error().message;
  auto stream = device::Stream::create(device::Device::cpu());
  all->barrier(*stream);
  ASSERT_TRUE(stream->synchronize());
  auto row = all->split(all->rank() / 2, 0);
  ASSERT_TRUE(row) << row.error().message;
  if (all->rank() == 0) {
    std::this_thread::sleep_for(10s);
    std::_Exit(0);
  }
  Values<float> values(std::vector<float>(10, 1.0F), *stream);
  row->all_reduce(values.span(), Reduction::kSum, *stream);
  const Status in_row = stream->synchronize();
  std::printf("rank %u: its row: %s\n", all->rank(), in_row ? "all there" : in_row.error().message.c_str());
  if (in_row.has_value() != (all->rank() != 1)) std::printf("no error where there is one, or the other way round\n");
  const auto again = all->split(0, 0);
  std::printf("rank %u: %s\n", all->rank(), again ? "no error" : again.error().message.c_str());
  all->all_reduce(values.span(), Reduction::kSum, *stream);
  const Status done = stream->synchronize();
  std::printf("rank %u: %s\n", all->rank(), done ? "no error" : done.error().message.c_str());
  std::fflush(stdout);
  std::this_thread::sleep_for(5s);
  std::_Exit(0);
}

TEST(Gpus, conform) {
  if (device::Device::cuda_count() == 0) GTEST_SKIP() << device::Device::why_no_cuda();
  auto alone = Communicator::threads(1);
  auto all = Communicator::nccl(*device::Device::cuda(), alone->front());
  if (!all && all.error().code == ErrorCode::kUnsupported) GTEST_SKIP() << all.error().message;
  ASSERT_TRUE(all) << all.error().message;
  conform(*all, *device::Device::cuda(), test::seed() % 1000000);
}

TEST(Gpus, are_refused_where_there_are_none) {
  auto alone = Communicator::threads(1);
  EXPECT_EQ(Communicator::nccl(device::Device::cpu(), alone->front()).error().code, ErrorCode::kUnsupported);
}

TEST(Bf16, rounds_to_the_nearest_and_ties_to_even) {
  EXPECT_EQ(static_cast<float>(device::Bf16(1.0F)), 1.0F);
  EXPECT_EQ(static_cast<float>(device::Bf16(-3.5F)), -3.5F);
  EXPECT_EQ(device::Bf16(1.0F + 1.0F / 256).bits, device::Bf16(1.0F).bits) << "a tie, and 1.0 is even";
  EXPECT_EQ(device::Bf16(1.0F + 3.0F / 256).bits, 0x3f82) << "a tie, and the one above is even";
  EXPECT_EQ(device::Bf16(1.0F + 1.1F / 256).bits, 0x3f81);
  EXPECT_TRUE(std::isnan(static_cast<float>(device::Bf16(std::nanf("")))));
  EXPECT_TRUE(std::isinf(static_cast<float>(device::Bf16(INFINITY))));
  EXPECT_TRUE(std::isinf(static_cast<float>(device::Bf16(3.4e38F)))) << "beyond the largest";
  for (unsigned bits = 0; bits < 1U << 16; ++bits) {
    device::Bf16 value;
    value.bits = static_cast<std::uint16_t>(bits);
    const auto number = static_cast<float>(value);
    if (!std::isnan(number)) {
      ASSERT_EQ(device::Bf16(number).bits, bits);
    }
  }
}

}  // namespace
}  // namespace dunnock::ranks
