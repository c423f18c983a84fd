// GradientBuckets: where the gradients of a model lie, so that ranks reduce them while the backward pass goes on.
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
// A kernel writes its gradient where it lies; a bucket is reduced in place by one all-reduce as soon as its last
// gradient is there, and nothing is copied. Large buckets use the link well; a small first one starts it early. What no
// bucket hides is the last: nothing is left to compute while it is reduced.
//
// Not for: choosing the order (the caller knows its backward pass), or gradients that are sparse.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/gpu/communicator.hpp"
#include "dunnock/gpu/memory.hpp"
#include "dunnock/gpu/schedule.hpp"

namespace dunnock::gpu {

struct BucketOptions {
  std::uint64_t bytes_max = 25 << 20;       ///< Of a bucket. A larger tensor has a bucket of its own.
  std::uint64_t first_bytes_max = 1 << 20;  ///< Of the first bucket; so with the least of the two.
  /// Where tensors begin. A line: kernels load them as vectors, and while one bucket is written another is reduced.
  std::uint64_t alignment_bytes = 64;
};

/// Where each tensor lies. Counts and offsets are of values.
struct BucketLayout {
  struct Tensor {
    std::size_t begin = 0;
    std::size_t size = 0;
    std::size_t bucket = 0;
  };
  struct Bucket {
    std::size_t begin = 0;
    std::size_t size = 0;  ///< To the end of its last tensor, with what lies between them.
    std::size_t first_tensor = 0;
    std::size_t tensors = 0;
  };
  std::vector<Tensor> tensors;
  std::vector<Bucket> buckets;
  std::size_t size = 0;         ///< Of the buffer.
  std::size_t value_bytes = 0;  ///< Of one value.

  [[nodiscard]] std::uint64_t bytes_of(const Bucket& bucket) const noexcept { return bucket.size * value_bytes; }
};

/// Tensors of `sizes` values, in this order, each into the bucket of the one before it while there is room. Errors:
/// InvalidArgument (an empty tensor; an alignment that is no power of two, or no multiple of a value), NoSpace (more
/// than an address reaches). Time: the number of tensors.
[[nodiscard]] Result<BucketLayout> lay_out_buckets(std::span<const std::size_t> sizes, std::size_t value_bytes,
                                                   const BucketOptions& options = {});

/// The gradients' memory. Move-only. T: float or Bf16. Threads: any number read it.
template <class T>
class GradientBuckets {
 public:
  /// Zeroed in the order of `stream`, so that what lies between the tensors is a number as well. Errors: those of
  /// lay_out_buckets() and Buffer::create().
  [[nodiscard]] static Result<GradientBuckets> create(std::span<const std::size_t> sizes, Stream& stream,
                                                      const BucketOptions& options = {});

  [[nodiscard]] const BucketLayout& layout() const noexcept { return layout_; }
  /// Where the kernel of the backward pass writes tensor `tensor`.
  [[nodiscard]] DeviceSpan<T> gradient(std::size_t tensor) const {
    return span().subspan(layout_.tensors.at(tensor).begin, layout_.tensors.at(tensor).size);
  }
  [[nodiscard]] DeviceSpan<T> bucket(std::size_t bucket) const {
    return span().subspan(layout_.buckets.at(bucket).begin, layout_.buckets.at(bucket).size);
  }
  /// All of it, for one update of everything; what lies between the tensors stays zero.
  [[nodiscard]] DeviceSpan<T> span() const noexcept { return buffer_.span(); }

 private:
  BucketLayout layout_;
  Buffer<T> buffer_;
};

/// A rank's link to the others.
struct LinkModel {
  double latency_us = 0;                                      ///< Of one collective, however small.
  double gb_per_s = std::numeric_limits<double>::infinity();  ///< Each way at a time; 10^9 bytes.
};

/// What an all-reduce takes when each rank sends and receives 2 (n - 1) / n times its bytes, as a ring does and none
/// can do with less (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms"). 0 for one rank.
[[nodiscard]] double all_reduce_us(const LinkModel& link, std::uint64_t bytes, unsigned ranks) noexcept;

struct AllReduceOptions {
  unsigned ranks = 1;
  LinkModel link{};
  /// Of the rank's device: see Op::demand. A few of NCCL's channels on a GPU of 132 multiprocessors.
  double demand = 0.05;
  Reduction reduction = Reduction::kMean;  ///< For what is issued.
};

struct ReducedBucket {
  OpId op = kNoOp;
  ValueId value = 0;  ///< For what needs the reduced gradients, an update say.
};

/// The gradients of `layout` as values of a graph, with their bytes: kept, for their buffer stays.
[[nodiscard]] std::vector<ValueId> add_gradients(TaskGraph& graph, const BucketLayout& layout);

/// One communication a bucket, in the order of the buckets; its inputs are the bucket's `gradients`, a value a tensor.
/// Its output has no bytes, for it is the same memory. To simulate several ranks in one graph, give the gradients of
/// all of them, one rank's behind the other's: then a bucket's waits for the last rank. `issue` (bucket, stream) may be
/// none: then there is nothing to run. Checked: the number of gradients.
std::vector<ReducedBucket> add_all_reduces(TaskGraph& graph, const BucketLayout& layout,
                                           std::span<const ValueId> gradients, const AllReduceOptions& options,
                                           const std::function<void(std::size_t, Stream&)>& issue = {});

/// The same, to run: bucket after bucket is reduced by `all`, whose size counts. Both must outlive the graph's runs.
template <class T>
std::vector<ReducedBucket> add_all_reduces(TaskGraph& graph, const GradientBuckets<T>& buckets,
                                           std::span<const ValueId> gradients, Communicator& all,
                                           AllReduceOptions options = {}) {
  options.ranks = all.size();
  return add_all_reduces(graph, buckets.layout(), gradients, options,
                         [&buckets, &all, reduction = options.reduction](std::size_t bucket, Stream& stream) {
                           all.all_reduce(buckets.bucket(bucket), reduction, stream);
                         });
}

/// A schedule with two lanes a rank, "compute" and "communication" (of a higher priority; only where there is any).
/// What computes keeps the order of adding where it can; a communication is issued as soon as what it needs is, and so
/// begins when its last input and the communication before it are done. Ranks with the same graph issue theirs in the
/// same order, as a Communicator wants. `rank_of`: of each operation; none: all of rank 0. Errors: InvalidArgument (a
/// circle, or another number of ranks than of operations).
[[nodiscard]] Result<Schedule> overlapped(const TaskGraph& graph, std::span<const unsigned> rank_of = {},
                                          std::string name = "overlapped");

/// How much of the communication costs no time: 1 - (makespan - compute) / communication, where `compute` and
/// `communication` are the costs of one rank's operations; the worst rank counts. 1 when there is none.
[[nodiscard]] double hidden_share(const TaskGraph& graph, const Schedule& schedule, double makespan_us);

}  // namespace dunnock::gpu
