// GradientBuckets: memory for a model's gradients, laid out so that ranks reduce them during the backward pass.
//
//   tensors, in the order in which the backward pass makes them ready:
//
//     | t0 | t1 |   t2    t3    t4   |        t5         |  t6   t7 ...
//     '----v----'---------v----------'---------v---------'------v------
//       bucket 0      bucket 1             bucket 2         bucket 3       one buffer
//       (small)       (<= bytes_max)       (one tensor)
//
//     lane compute        B0  B1  B2  B3  B4  B5  B6  B7
//     lane communication          [0]         [1 ] [ 2 ][3 ]
//
// A kernel writes its gradient in place; one all-reduce reduces a bucket in place as soon as its last gradient is
// ready, and nothing is copied. Large buckets use the link well; a small first one starts it early. Only the last
// bucket can't be hidden: nothing is left to compute while it is reduced.
//
// Not for: choosing the order (the caller knows its backward pass), or sparse gradients.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/ranks/communicator.hpp"
#include "dunnock/schedule/schedule.hpp"

namespace dunnock::ranks {

struct BucketOptions {
  std::uint64_t bytes_max = 25 << 20;       ///< Maximum size of a bucket. A larger tensor has its own bucket.
  std::uint64_t first_bytes_max = 1 << 20;  ///< Maximum size of the first bucket; the lesser of the two applies to it.
  /// Alignment of tensors. A line: kernels load them as vectors, and while one bucket is written another is reduced.
  std::uint64_t alignment_bytes = 64;
};

/// Where each tensor is. Counts and offsets are in values.
struct BucketLayout {
  struct Tensor {
    std::size_t begin = 0;
    std::size_t size = 0;
    std::size_t bucket = 0;
  };
  struct Bucket {
    std::size_t begin = 0;
    std::size_t size = 0;  ///< To the end of its last tensor, including gaps.
    std::size_t first_tensor = 0;
    std::size_t tensors = 0;
  };
  std::vector<Tensor> tensors;
  std::vector<Bucket> buckets;
  std::size_t size = 0;         ///< Size of the buffer.
  std::size_t value_bytes = 0;  ///< Bytes per value.

  [[nodiscard]] std::uint64_t bytes_of(const Bucket& bucket) const noexcept { return bucket.size * value_bytes; }
};

/// Lays out tensors of `sizes` values, in this order, each in the bucket of the one before it while there is room.
/// Errors: InvalidArgument (an empty tensor; an alignment that is not a power of two, or not a multiple of a value),
/// NoSpace (more than the address space). Time: the number of tensors.
[[nodiscard]] Result<BucketLayout> lay_out_buckets(std::span<const std::size_t> sizes, std::size_t value_bytes,
                                                   const BucketOptions& options = {});

/// The gradients' memory. Move-only. T: float or Bf16. Threads: any number may read it.
template <class T>
class GradientBuckets {
 public:
  /// Allocates the memory and zeroes it in the order of `stream`, so that gaps between tensors hold numbers too.
  /// Errors: those of lay_out_buckets() and Buffer::create().
  [[nodiscard]] static Result<GradientBuckets> create(std::span<const std::size_t> sizes, device::Stream& stream,
                                                      const BucketOptions& options = {});

  [[nodiscard]] const BucketLayout& layout() const noexcept { return layout_; }
  /// Where the kernel of the backward pass writes tensor `tensor`.
  [[nodiscard]] device::Span<T> gradient(std::size_t tensor) const {
    return span().subspan(layout_.tensors.at(tensor).begin, layout_.tensors.at(tensor).size);
  }
  [[nodiscard]] device::Span<T> bucket(std::size_t bucket) const {
    return span().subspan(layout_.buckets.at(bucket).begin, layout_.buckets.at(bucket).size);
  }
  /// The whole memory, for one update of everything; gaps between tensors stay zero.
  [[nodiscard]] device::Span<T> span() const noexcept { return buffer_.span(); }

 private:
  BucketLayout layout_;
  device::Buffer<T> buffer_;
};

/// A rank's link to the others.
struct LinkModel {
  double latency_us = 0;                                      ///< Latency of one collective, however small.
  double gb_per_s = std::numeric_limits<double>::infinity();  ///< In each direction at once; 10^9 bytes.
};

/// The time of an all-reduce in which each rank sends and receives 2 (n - 1) / n times its bytes: a ring does this, and
/// no algorithm needs less (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms"). 0 for one rank.
[[nodiscard]] double all_reduce_us(const LinkModel& link, std::uint64_t bytes, unsigned ranks) noexcept;

struct AllReduceOptions {
  unsigned ranks = 1;
  LinkModel link{};
  /// Share of the rank's device: see Op::demand. A few NCCL channels on a GPU of 132 multiprocessors.
  double demand = 0.05;
  Reduction reduction = Reduction::kMean;  ///< Reduction of the operations that are issued.
};

struct ReducedBucket {
  schedule::OpId op = schedule::kNoOp;
  schedule::ValueId value = 0;  ///< For operations that need the reduced gradients, such as an update.
};

/// Adds the gradients of `layout` to a graph as values, with their bytes. They are kept, since their buffer stays.
[[nodiscard]] std::vector<schedule::ValueId> add_gradients(schedule::TaskGraph& graph, const BucketLayout& layout);

/// Adds one communication per bucket, in the order of the buckets; its inputs are the bucket's `gradients`, one value
/// per tensor. Its output has no bytes, since it is the same memory. To simulate several ranks in one graph, pass the
/// gradients of all of them, rank after rank: each bucket then waits for the last rank. `issue` (bucket, stream) may be
/// empty: then there is nothing to run. Checked: the number of gradients.
std::vector<ReducedBucket> add_all_reduces(schedule::TaskGraph& graph, const BucketLayout& layout,
                                           std::span<const schedule::ValueId> gradients,
                                           const AllReduceOptions& options,
                                           const std::function<void(std::size_t, device::Stream&)>& issue = {});

/// The same, but to be run: `all` reduces bucket after bucket, and its size is used as `ranks`. Both must outlive the
/// graph's runs.
template <class T>
std::vector<ReducedBucket> add_all_reduces(schedule::TaskGraph& graph, const GradientBuckets<T>& buckets,
                                           std::span<const schedule::ValueId> gradients, Communicator& all,
                                           AllReduceOptions options = {}) {
  options.ranks = all.size();
  return add_all_reduces(graph, buckets.layout(), gradients, options,
                         [&buckets, &all, reduction = options.reduction](std::size_t bucket, device::Stream& stream) {
                           all.all_reduce(buckets.bucket(bucket), reduction, stream);
                         });
}

/// A schedule with two lanes per rank, "compute" and "communication" (of a higher priority; only if there is any).
/// Computations keep the order in which they were added where possible; a communication is issued as soon as its inputs
/// are, so it begins when its last input and the previous communication are done. Ranks with the same graph issue
/// theirs in the same order, as a Communicator requires. `rank_of`: the rank of each operation; empty: all are of rank
/// 0.
/// Errors: InvalidArgument (a cycle, or the numbers of ranks and operations differ).
[[nodiscard]] Result<schedule::Schedule> overlapped(const schedule::TaskGraph& graph,
                                                    std::span<const unsigned> rank_of = {},
                                                    std::string name = "overlapped");

/// The share of communication that costs no time: 1 - (makespan - compute) / communication, where `compute` and
/// `communication` are the costs of one rank's operations; the worst rank counts. 1 if there is no communication.
[[nodiscard]] double hidden_share(const schedule::TaskGraph& graph, const schedule::Schedule& schedule,
                                  double makespan_us);

}  // namespace dunnock::ranks
