#include "dunnock/ranks/gradient_buckets.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <queue>
#include <tuple>
#include <utility>

#include "dunnock/base/check.hpp"

namespace dunnock::ranks {

Result<BucketLayout> lay_out_buckets(std::span<const std::size_t> sizes, std::size_t value_bytes,
                                     const BucketOptions& options) {
  const auto invalid = [](std::string what) { return make_error(ErrorCode::kInvalidArgument, std::move(what)); };
  DUNNOCK_CHECK(value_bytes > 0, "a value has bytes");
  if (!std::has_single_bit(options.alignment_bytes))
    return invalid("the alignment must be a power of two, not " + std::to_string(options.alignment_bytes) + " bytes");
  if (options.alignment_bytes % value_bytes != 0)
    return invalid("the alignment of " + std::to_string(options.alignment_bytes) +
                   " bytes must be a multiple of a value's " + std::to_string(value_bytes));
  const std::size_t alignment = options.alignment_bytes / value_bytes;
  const std::size_t values_max = (SIZE_MAX / 4) / value_bytes - alignment;
  BucketLayout layout;
  layout.value_bytes = value_bytes;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) return invalid("tensor " + std::to_string(i) + " is empty");
    const std::size_t begin = (layout.size + alignment - 1) / alignment * alignment;
    if (sizes[i] > values_max - begin)
      return make_error(ErrorCode::kNoSpace, "tensor " + std::to_string(i) + " exceeds the address space");
    const std::size_t end = begin + sizes[i];
    const std::uint64_t bytes_max =
        layout.buckets.size() <= 1 ? std::min(options.first_bytes_max, options.bytes_max) : options.bytes_max;
    if (layout.buckets.empty() || (end - layout.buckets.back().begin) * value_bytes > bytes_max)
      layout.buckets.push_back({begin, 0, i, 0});
    BucketLayout::Bucket& bucket = layout.buckets.back();
    bucket.size = end - bucket.begin;
    ++bucket.tensors;
    layout.tensors.push_back({begin, sizes[i], layout.buckets.size() - 1});
    layout.size = end;
  }
  return layout;
}

template <class T>
Result<GradientBuckets<T>> GradientBuckets<T>::create(std::span<const std::size_t> sizes, device::Stream& stream,
                                                      const BucketOptions& options) {
  DUNNOCK_TRY(auto layout, lay_out_buckets(sizes, sizeof(T), options));
  DUNNOCK_TRY(auto buffer, device::Buffer<T>::create(layout.size, stream));
  fill_bytes(buffer.span(), std::byte{0}, stream);
  GradientBuckets made;
  made.layout_ = std::move(layout);
  made.buffer_ = std::move(buffer);
  return made;
}

template class GradientBuckets<float>;
template class GradientBuckets<device::Bf16>;

double all_reduce_us(const LinkModel& link, std::uint64_t bytes, unsigned ranks) noexcept {
  if (ranks <= 1) return 0;
  const double moved = 2.0 * (ranks - 1) / ranks * static_cast<double>(bytes);
  return link.latency_us + moved / (link.gb_per_s * 1e3);
}

std::vector<schedule::ValueId> add_gradients(schedule::TaskGraph& graph, const BucketLayout& layout) {
  std::vector<schedule::ValueId> values;
  for (const BucketLayout::Tensor& tensor : layout.tensors)
    values.push_back(
        graph.add_value("gradient " + std::to_string(values.size()), tensor.size * layout.value_bytes, true));
  return values;
}

std::vector<ReducedBucket> add_all_reduces(schedule::TaskGraph& graph, const BucketLayout& layout,
                                           std::span<const schedule::ValueId> gradients,
                                           const AllReduceOptions& options,
                                           const std::function<void(std::size_t, device::Stream&)>& issue) {
  const std::size_t tensors = layout.tensors.size();
  DUNNOCK_CHECK(tensors == 0 || gradients.size() >= tensors, "there is a value for each tensor");
  DUNNOCK_CHECK(tensors == 0 || gradients.size() % tensors == 0, "each rank has a value for each tensor");
  std::vector<ReducedBucket> reduced;
  for (std::size_t b = 0; b < layout.buckets.size(); ++b) {
    const BucketLayout::Bucket& bucket = layout.buckets[b];
    schedule::Op op;
    op.name = "all-reduce " + std::to_string(b);
    op.kind = schedule::OpKind::kCommunication;
    for (std::size_t rank = 0; rank < gradients.size() / tensors; ++rank) {
      const auto of_rank = gradients.subspan(rank * tensors + bucket.first_tensor, bucket.tensors);
      op.inputs.insert(op.inputs.end(), of_rank.begin(), of_rank.end());
    }
    const schedule::ValueId value = graph.add_value("reduced bucket " + std::to_string(b), 0, true);
    op.outputs = {value};
    op.cost_us = all_reduce_us(options.link, layout.bytes_of(bucket), options.ranks);
    op.demand = options.demand;
    if (issue) op.issue = [issue, b](device::Stream& stream) { issue(b, stream); };
    reduced.push_back({graph.add(std::move(op)), value});
  }
  return reduced;
}

Result<schedule::Schedule> overlapped(const schedule::TaskGraph& graph, std::span<const unsigned> rank_of,
                                      std::string name) {
  const std::size_t ops = graph.ops().size();
  if (!rank_of.empty() && rank_of.size() != ops)
    return make_error(ErrorCode::kInvalidArgument, "the number of ranks is " + std::to_string(rank_of.size()) +
                                                       ", expected one for each of " + std::to_string(ops) +
                                                       " operations");
  const auto rank = [&rank_of](schedule::OpId op) { return rank_of.empty() ? 0 : rank_of[op]; };
  const auto communicates = [&graph](schedule::OpId op) {
    return graph.op(op).kind == schedule::OpKind::kCommunication;
  };

  schedule::Schedule schedule;
  schedule.name = std::move(name);
  constexpr unsigned kNoLane = std::numeric_limits<unsigned>::max();
  std::vector<std::array<unsigned, 2>> lane_of;  // by rank: of what computes, of what communicates
  for (schedule::OpId op = 0; op < ops; ++op) {
    while (lane_of.size() <= rank(op)) lane_of.push_back({kNoLane, kNoLane});
    unsigned& lane = lane_of[rank(op)][communicates(op) ? 1 : 0];
    if (lane != kNoLane) continue;
    lane = static_cast<unsigned>(schedule.lanes.size());
    std::string lane_name = communicates(op) ? "communication" : "compute";
    if (!rank_of.empty()) lane_name.append(" ").append(std::to_string(rank(op)));
    schedule.lanes.push_back({std::move(lane_name), rank(op), communicates(op) ? 1 : 0});
  }

  std::vector<std::size_t> missing(ops);
  std::vector<std::vector<schedule::OpId>> followers(ops);
  std::vector<std::size_t> place(ops);  // among the operations of its rank, so that ranks take turns
  std::vector<std::size_t> places(lane_of.size());
  // Communications first, as soon as they can be.
  using Next = std::tuple<bool, std::size_t, schedule::OpId>;
  std::priority_queue<Next, std::vector<Next>, std::greater<>> ready;
  const auto now_ready = [&](schedule::OpId op) { ready.emplace(!communicates(op), place[op], op); };
  for (schedule::OpId op = 0; op < ops; ++op) {
    place[op] = places[rank(op)]++;
    const auto needs = graph.needs(op);
    missing[op] = needs.size();
    for (const schedule::OpId need : needs) followers[need].push_back(op);
    if (needs.empty()) now_ready(op);
  }
  while (!ready.empty()) {
    const schedule::OpId op = std::get<schedule::OpId>(ready.top());
    ready.pop();
    schedule.slots.push_back({op, lane_of[rank(op)][communicates(op) ? 1 : 0], {}});
    for (const schedule::OpId follower : followers[op]) {
      if (--missing[follower] == 0) now_ready(follower);
    }
  }
  if (schedule.slots.size() != ops) return make_error(ErrorCode::kInvalidArgument, "the graph has a cycle");
  add_waits(graph, schedule);
  return schedule;
}

double hidden_share(const schedule::TaskGraph& graph, const schedule::Schedule& schedule, double makespan_us) {
  std::vector<std::array<double, 2>> costs_us;  // by rank: what computes, what communicates
  for (const schedule::Slot& slot : schedule.slots) {
    const unsigned rank = schedule.lanes[slot.lane].rank;
    if (costs_us.size() <= rank) costs_us.resize(rank + 1);
    const schedule::Op& op = graph.op(slot.op);
    costs_us[rank][op.kind == schedule::OpKind::kCommunication ? 1 : 0] += op.cost_us;
  }
  double least = 1;
  for (const auto& [compute, communication] : costs_us) {
    if (communication > 0) least = std::min(least, 1 - (makespan_us - compute) / communication);
  }
  return least;
}

}  // namespace dunnock::ranks
