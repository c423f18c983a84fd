// Data-parallel steps: one device of a ring, whose others do the same at the same time, and its link.
//
//   compute  U1 F1 U2 F2 ... dO4 dW4 dO3 dW3 dO2 dW2 dW1          each U waits for its layer's sums, not for all
//   link                         S4      S3      S2  S1
//
// - No overlap: the sums follow the whole backward pass, and the next forward pass follows all of them.
// - Overlap: buckets of gradients are added up as soon as they are whole, in the order of the backward pass; the next
//   forward pass waits for all (DistributedDataParallel's way).
// - Priority: slices of gradients; when the link is free, that of the first layer which is ready goes (ByteScheduler's
//   way; a slice on its way is not stopped). Each layer's forward pass waits for its own sums.
// - Reverse first-k (out-of-order backprop, EuroSys 2022): as priority, and the weight gradients of the first k layers
//   are computed after the dO chain, the first layer's first. k is searched in the simulator.
#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "families.hpp"
#include "layer_graph.hpp"
#include "names.hpp"

namespace dunnock::training {
namespace {

constexpr unsigned kCompute = 0;
constexpr unsigned kLink = 1;

/// The backward pass: (is it dW, layer).
struct Backward {
  bool weight = false;
  unsigned layer = 0;
};

std::vector<Backward> backward_of(const Step& step, unsigned first_k) {
  std::vector<Backward> order;
  for (auto i = static_cast<unsigned>(step.layers.size()); i-- > 0;) {
    // dW needs the gradient of the layer's output only, but conventional order has dO first.
    if (i > 0) order.push_back({false, i});
    if (i >= first_k && has_weights(step.layers[i])) order.push_back({true, i});
  }
  for (unsigned i = 0; i < first_k; ++i) {
    if (has_weights(step.layers[i])) order.push_back({true, i});
  }
  return order;
}

std::vector<Message> buckets_of(const Step& step, std::uint64_t bucket_bytes) {
  std::vector<Message> messages;
  for (auto i = static_cast<unsigned>(step.layers.size()); i-- > 0;) {
    if (!has_weights(step.layers[i])) continue;
    if (messages.empty() || messages.back().bytes >= bucket_bytes) messages.emplace_back();
    messages.back().layers.push_back(i);
    messages.back().bytes += step.layers[i].gradient_bytes;
  }
  return messages;
}

/// Neighbors whose gradients are small go together, for a message has its latency; large gradients are cut.
std::vector<Message> slices_of(const Step& step, std::uint64_t slice_bytes) {
  std::vector<Message> messages;
  Message small;
  const auto flush = [&] {
    std::ranges::reverse(small.layers);
    if (!small.layers.empty()) messages.push_back(std::exchange(small, {}));
  };
  for (unsigned i = 0; i < step.layers.size(); ++i) {
    if (!has_weights(step.layers[i])) continue;
    const std::uint64_t bytes = step.layers[i].gradient_bytes;
    if (small.bytes + bytes > slice_bytes) flush();
    if (bytes <= slice_bytes) {
      small.layers.push_back(i);
      small.bytes += bytes;
      continue;
    }
    const std::uint64_t count = (bytes + slice_bytes - 1) / slice_bytes;
    // Cut at lines.
    const auto cut = [&](std::uint64_t n) { return n == count ? bytes : bytes * n / count / 64 * 64; };
    for (std::uint64_t n = 0; n < count; ++n) messages.push_back({{i}, cut(n + 1) - cut(n), cut(n)});
  }
  flush();
  return messages;
}

/// The order of the messages on the link: the first layers that are ready, whenever the link is free.
std::vector<std::size_t> by_priority(const Step& step, const std::vector<Backward>& backward,
                                     const std::vector<Message>& messages, unsigned ring, const Link& link) {
  std::vector<double> ready_us(step.layers.size());
  double now_us = 0;
  for (const Backward& one : backward) {
    const Layer& layer = step.layers[one.layer];
    now_us += one.weight ? layer.weight_gradient.us : layer.output_gradient.us;
    if (one.weight) ready_us[one.layer] = now_us;
  }
  const auto ready = [&](std::size_t i) {
    double us = 0;
    for (const unsigned layer : messages[i].layers) us = std::max(us, ready_us[layer]);
    return us;
  };
  std::vector<std::size_t> left;  // Those first that are awaited first.
  for (std::size_t i = 0; i < messages.size(); ++i) left.push_back(i);
  const auto awaited_by = [&](std::size_t i) {
    unsigned first = std::numeric_limits<unsigned>::max();
    for (const unsigned layer : messages[i].layers) first = std::min(first, step.awaited_by(layer));
    return first;
  };
  std::ranges::stable_sort(left, {}, awaited_by);
  std::vector<std::size_t> order;
  double free_us = 0;
  while (!left.empty()) {
    double first_us = std::numeric_limits<double>::infinity();
    for (const std::size_t i : left) first_us = std::min(first_us, ready(i));
    free_us = std::max(free_us, first_us);
    const auto next = std::ranges::find_if(left, [&](std::size_t i) { return ready(i) <= free_us; });
    free_us += link.all_reduce_us(messages[*next].bytes, ring);
    order.push_back(*next);
    left.erase(next);
  }
  return order;
}

struct Choices {
  std::uint64_t message_bytes = 0;
  unsigned first_k = 0;
  bool by_priority = false;
  bool overlaps = true;
  bool barrier = false;
};

Plan plan_of(const Step& step, const PlanOptions& options, const Choices& choices) {
  const std::vector<Backward> backward = backward_of(step, choices.first_k);
  const std::vector<Message> messages =
      choices.by_priority ? slices_of(step, choices.message_bytes) : buckets_of(step, choices.message_bytes);
  std::vector<std::size_t> link_order;
  for (std::size_t i = 0; i < messages.size(); ++i) link_order.push_back(i);
  if (choices.by_priority) link_order = by_priority(step, backward, messages, options.devices, options.link);
  LayerGraph made = make_layer_graph(step, options.iterations, messages, options.devices, options.link);

  Plan plan;
  schedule::Schedule& schedule = plan.schedule;
  schedule.memory_limit_bytes = options.memory_limit_bytes;
  // The link is no part of the device: what it carries slows down nothing.
  schedule.lanes = {{"compute", 0, 1}, {"link", 1, 0}};
  unsigned normed = 0;  // Iterations whose norm there is.
  const auto update = [&](unsigned t, std::size_t layer) {
    const schedule::OpId op = made.ops[t][layer].update;
    if (op == schedule::kNoOp) return;
    if (step.clips && t >= normed) {
      schedule.slots.push_back({made.norms[t], kCompute, {}});
      normed = t + 1;
    }
    schedule.slots.push_back({op, kCompute, {}});
    if (choices.barrier && !made.messages[t].empty())
      schedule.slots.back().waits.push_back(made.messages[t][link_order.back()]);
  };
  for (unsigned t = 0; t < options.iterations; ++t) {
    if (choices.barrier && t > 0) {
      for (std::size_t i = 0; i < step.layers.size(); ++i) update(t - 1, i);
    }
    for (std::size_t i = 0; i < step.layers.size(); ++i) {
      if (!choices.barrier && t > 0) update(t - 1, i);
      schedule.slots.push_back({made.ops[t][i].forward, kCompute, {}});
    }
    std::vector<bool> computed(step.layers.size());
    std::size_t sent = 0;
    const auto send = [&](schedule::OpId behind) {
      for (; sent < link_order.size(); ++sent) {
        const Message& message = messages[link_order[sent]];
        if (!std::ranges::all_of(message.layers, [&](unsigned layer) { return computed[layer]; })) break;
        schedule.slots.push_back({made.messages[t][link_order[sent]], kLink, {}});
        if (behind != schedule::kNoOp) schedule.slots.back().waits.push_back(behind);
      }
    };
    for (const Backward& one : backward) {
      const LayerOps& ops = made.ops[t][one.layer];
      schedule.slots.push_back({one.weight ? ops.weight_gradient : ops.output_gradient, kCompute, {}});
      computed[one.layer] = computed[one.layer] || one.weight;
      if (choices.overlaps) send(schedule::kNoOp);
    }
    if (!choices.overlaps) send(schedule.slots.back().op);
  }
  for (std::size_t i = 0; i < step.layers.size(); ++i) update(options.iterations - 1, i);
  schedule::add_waits(made.graph, schedule);
  plan.graph = std::move(made.graph);
  plan.tags = std::move(made.tags);
  plan.messages = messages;
  plan.iterations = options.iterations;
  plan.launch_us = options.launch_us;
  return plan;
}

}  // namespace

Result<Plan> plan_data_parallel(DataParallel kind, const Step& step, const PlanOptions& options) {
  Choices choices;
  choices.by_priority = kind == DataParallel::kPriority || kind == DataParallel::kReverseFirstK;
  choices.overlaps = kind != DataParallel::kNoOverlap;
  choices.barrier = !choices.by_priority;
  const auto layers = static_cast<unsigned>(step.layers.size());
  const bool searches_k = kind == DataParallel::kReverseFirstK;
  std::vector<std::uint64_t> sizes;
  for (std::uint64_t bytes = 256 << 10; bytes <= 256 << 20; bytes *= 4) sizes.push_back(bytes);
  if (options.message_bytes != 0) sizes = {options.message_bytes};

  PlanOptions searched = options;  // The sums are waited for in the next iteration, so one tells nothing.
  searched.iterations = std::max(3U, options.iterations);
  std::vector<Choices> tried;
  Best best;
  const auto offer = [&](std::uint64_t bytes, unsigned k) {
    choices.message_bytes = bytes;
    choices.first_k = k;
    tried.push_back(choices);
    best.offer(plan_of(step, searched, choices), tried.size() - 1);
  };
  // Each size with a grid of k, and then, of the best size, all k near the best.
  const unsigned stride = searches_k ? std::max(1U, layers / 16) : layers + 1;
  for (const std::uint64_t bytes : sizes) {
    for (unsigned k = 0; k <= layers; k += stride) offer(bytes, k);
  }
  if (!best.number()) return best.take();
  if (searches_k) {
    const Choices found = tried[*best.number()];
    for (unsigned k = found.first_k - std::min(found.first_k, stride - 1);
         k <= std::min(layers, found.first_k + stride - 1); ++k)
      offer(found.message_bytes, k);
  }
  const Choices found = tried[*best.number()];
  Plan plan = plan_of(step, options, found);
  plan.choice = named("messages of ", std::to_string(found.message_bytes >> 10)) + " KiB";
  if (searches_k) plan.choice += named(", k = ", std::to_string(found.first_k));
  return plan;
}

}  // namespace dunnock::training
