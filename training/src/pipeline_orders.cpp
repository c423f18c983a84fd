#include "pipeline_orders.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <tuple>
#include <utility>

namespace dunnock::training {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

/// When what a chunk needs of a micro-batch is there, as far as it is known.
class Arrivals {
 public:
  explicit Arrivals(const Pipe& pipe)
      : pipe_(pipe),
        forward_us_(pipe.chunks.size(), std::vector<double>(pipe.micro_batches, kNever)),
        backward_us_(forward_us_),
        weights_us_(forward_us_),
        kept_us_(forward_us_) {
    std::ranges::fill(forward_us_.front(), 0.0);
  }

  [[nodiscard]] double of(const Action& action) const {
    const auto [move, chunk, micro_batch] = action;
    switch (move) {
      case Move::kForward: return forward_us_[chunk][micro_batch];
      case Move::kBackward: return std::max(backward_us_[chunk][micro_batch], kept_us_[chunk][micro_batch]);
      case Move::kWeights: return weights_us_[chunk][micro_batch];
    }
    return kNever;
  }

  /// `action` ends at that time. Returns the device that gets something by it, or the action's own.
  unsigned end(const Action& action, double end_us) {
    const auto [move, chunk, micro_batch] = action;
    const Chunk& here = pipe_.chunks[chunk];
    switch (move) {
      case Move::kForward:
        kept_us_[chunk][micro_batch] = end_us;
        if (chunk + 1 == pipe_.chunks.size()) {
          backward_us_[chunk][micro_batch] = end_us;
          return here.device;
        }
        forward_us_[chunk + 1][micro_batch] = end_us + here.send_activation_us;
        return pipe_.chunks[chunk + 1].device;
      case Move::kBackward:
        weights_us_[chunk][micro_batch] = end_us;
        return pipe_.splits ? send_gradient(action, end_us) : here.device;
      case Move::kWeights: return pipe_.splits ? here.device : send_gradient(action, end_us);
    }
    return here.device;
  }

 private:
  unsigned send_gradient(const Action& action, double end_us) {
    const Chunk& here = pipe_.chunks[action.chunk];
    if (action.chunk == 0) return here.device;
    backward_us_[action.chunk - 1][action.micro_batch] = end_us + here.send_gradient_us;
    return pipe_.chunks[action.chunk - 1].device;
  }

  const Pipe& pipe_;
  std::vector<std::vector<double>> forward_us_;   // [chunk][micro-batch]: its input is there.
  std::vector<std::vector<double>> backward_us_;  // The gradient of its output is there.
  std::vector<std::vector<double>> weights_us_;   // Its B is done.
  std::vector<std::vector<double>> kept_us_;      // Its F is done.
};

/// list_schedule() at work.
class Lister {
 public:
  Lister(const Pipe& pipe, const Rules& rules)
      : pipe_(pipe),
        rules_(rules),
        arrivals_(pipe),
        devices_(pipe.devices),
        done_(pipe.chunks.size()),
        orders_(pipe.devices) {
    for (unsigned chunk = 0; chunk < pipe.chunks.size(); ++chunk)
      devices_[pipe.chunks[chunk].device].chunks.push_back(chunk);
    for (unsigned d = 0; d < pipe.devices; ++d) look(d);
  }

  std::optional<Orders> run() {
    const std::size_t actions = 3 * pipe_.chunks.size() * pipe_.micro_batches;
    for (std::size_t n = 0; n < actions; ++n) {
      const auto next = std::ranges::min_element(devices_, {}, [](const Device& device) { return device.start_us; });
      if (next->start_us == kNever) return std::nullopt;
      take(static_cast<unsigned>(next - devices_.begin()));
    }
    return std::move(orders_);
  }

 private:
  struct Device {
    std::vector<unsigned> chunks;
    double free_us = 0;
    unsigned unfinished = 0;  // F without their W.
    std::uint64_t kept_bytes = 0;
    Action next{};
    double start_us = kNever;       // Of `next`; never: there is none.
    std::optional<Action> bound{};  // W that follows its B.
  };
  struct Done {
    std::array<unsigned, 3> moves{};
    [[nodiscard]] unsigned& of(Move move) { return moves[static_cast<std::size_t>(move)]; }
    [[nodiscard]] unsigned of(Move move) const { return moves[static_cast<std::size_t>(move)]; }
  };

  [[nodiscard]] bool may_forward(const Device& device, unsigned chunk) const {
    const unsigned in_flight = done_[chunk].of(Move::kForward) - done_[chunk].of(Move::kBackward);
    if (!rules_.in_flight_max.empty() && in_flight >= rules_.in_flight_max[chunk]) return false;
    if (!rules_.unfinished_max.empty() && device.unfinished >= rules_.unfinished_max[pipe_.chunks[chunk].device])
      return false;
    std::uint64_t bytes = pipe_.chunks[chunk].kept_bytes;
    for (const unsigned other : device.chunks) bytes += other > chunk ? pipe_.chunks[other].kept_bytes : 0;
    return bytes <= rules_.kept_bytes_max - std::min(rules_.kept_bytes_max, device.kept_bytes);
  }
  [[nodiscard]] bool may_backward(const Device& device, unsigned chunk) const {
    if (rules_.alternates) {
      const std::uint64_t before = std::uint64_t{done_[chunk].of(Move::kBackward)} + rules_.in_flight_max[chunk];
      if (done_[chunk].of(Move::kForward) < std::min<std::uint64_t>(before, pipe_.micro_batches)) return false;
    }
    if (!rules_.forwards_first) return true;
    return std::ranges::all_of(device.chunks,
                               [&](unsigned c) { return done_[c].of(Move::kForward) == pipe_.micro_batches; });
  }

  [[nodiscard]] bool may_weights(const Device& device, unsigned chunk) const {
    if (!pipe_.splits) return false;
    if (!rules_.alternates || done_[chunk].of(Move::kForward) == pipe_.micro_batches) return true;
    return device.unfinished >= rules_.unfinished_max[pipe_.chunks[chunk].device];
  }

  /// What the device does next, and when, as far as it is known now.
  void look(unsigned d) {
    Device& device = devices_[d];
    device.start_us = kNever;
    if (device.bound) {
      device.next = *device.bound;
      device.start_us = device.free_us;
      return;
    }
    std::array<Action, 3> best{};
    std::array<double, 3> ready{kNever, kNever, kNever};  // The best of each move by what `better` says.
    const auto offer = [&](Move move, unsigned chunk) {
      const unsigned micro_batch = done_[chunk].of(move);
      if (micro_batch == pipe_.micro_batches) return;
      const Action action{move, chunk, micro_batch};
      const double at = std::max(device.free_us, arrivals_.of(action));
      if (at == kNever) return;
      const auto i = static_cast<std::size_t>(move);
      // Who is there first; of those that are, the earliest micro-batch, and then who is furthest on the way.
      const bool forward = move == Move::kForward;
      const auto rank = [&](double us, const Action& a) {
        return std::tuple(us, a.micro_batch, forward ? pipe_.chunks.size() - a.chunk : a.chunk);
      };
      if (ready[i] == kNever || rank(at, action) < rank(ready[i], best[i])) {
        best[i] = action;
        ready[i] = at;
      }
    };
    for (const unsigned chunk : device.chunks) {
      if (may_backward(device, chunk)) offer(Move::kBackward, chunk);
      if (may_forward(device, chunk)) offer(Move::kForward, chunk);
      if (may_weights(device, chunk)) offer(Move::kWeights, chunk);
    }
    const double forward = ready[0];
    const double backward = ready[1];
    const double weights = ready[2];
    const double start = std::min({forward, backward, weights});
    if (start == kNever) return;
    const auto choose = [&](Move move) {
      device.next = best[static_cast<std::size_t>(move)];
      device.start_us = ready[static_cast<std::size_t>(move)];
    };
    if (backward <= start) return choose(Move::kBackward);
    if (forward <= start) return choose(Move::kForward);
    const double patience = start + rules_.gap_share * pipe_.chunks[best[2].chunk].weights_us;
    if (backward < patience && backward <= forward) return choose(Move::kBackward);
    if (forward < patience) return choose(Move::kForward);
    choose(Move::kWeights);
  }

  void take(unsigned d) {
    Device& device = devices_[d];
    const Action action = device.next;
    const Chunk& chunk = pipe_.chunks[action.chunk];
    device.free_us = device.start_us + chunk.us(action.move);
    ++done_[action.chunk].of(action.move);
    orders_[d].push_back(action);
    device.bound.reset();
    switch (action.move) {
      case Move::kForward:
        ++device.unfinished;
        device.kept_bytes += chunk.kept_bytes;
        break;
      case Move::kBackward:
        device.kept_bytes -= chunk.kept_bytes - chunk.kept_for_weights_bytes;
        if (!pipe_.splits) device.bound = Action{Move::kWeights, action.chunk, action.micro_batch};
        break;
      case Move::kWeights:
        --device.unfinished;
        device.kept_bytes -= chunk.kept_for_weights_bytes;
        break;
    }
    const unsigned other = arrivals_.end(action, device.free_us);
    look(d);
    if (other != d) look(other);
  }

  const Pipe& pipe_;
  const Rules& rules_;
  Arrivals arrivals_;
  std::vector<Device> devices_;
  std::vector<Done> done_;  // [chunk]
  Orders orders_;
};

}  // namespace

Pipe Pipe::with_unit_costs() const {
  Pipe unit = *this;
  for (Chunk& chunk : unit.chunks) {
    chunk = {.device = chunk.device,
             .forward_us = 1,
             .backward_us = 1,
             .weights_us = 1,
             .kept_bytes = chunk.kept_bytes,
             .kept_for_weights_bytes = chunk.kept_for_weights_bytes};
  }
  return unit;
}

std::optional<Orders> list_schedule(const Pipe& pipe, const Rules& rules) { return Lister(pipe, rules).run(); }

std::optional<Run> run_orders(const Pipe& pipe, const Orders& orders) {
  Arrivals arrivals(pipe);
  std::vector<std::size_t> next(pipe.devices);
  std::vector<double> free_us(pipe.devices);
  std::vector<double> first_us(pipe.devices, kNever);
  std::vector<unsigned> ready;  // Devices to look at.
  for (unsigned d = 0; d < pipe.devices; ++d) ready.push_back(d);
  while (!ready.empty()) {
    const unsigned d = ready.back();
    ready.pop_back();
    while (next[d] < orders[d].size()) {
      const Action& action = orders[d][next[d]];
      const double at = arrivals.of(action);
      if (at == kNever) break;
      const double start = std::max(free_us[d], at);
      first_us[d] = std::min(first_us[d], start);
      free_us[d] = start + pipe.chunks[action.chunk].us(action.move);
      ++next[d];
      const unsigned other = arrivals.end(action, free_us[d]);
      if (other != d) ready.push_back(other);
    }
  }
  Run run;
  for (unsigned d = 0; d < pipe.devices; ++d) {
    if (next[d] != orders[d].size()) return std::nullopt;
    if (orders[d].empty()) continue;
    run.makespan_us = std::max(run.makespan_us, free_us[d]);
    run.span_us = std::max(run.span_us, free_us[d] - first_us[d]);
  }
  return run;
}

std::optional<Drawn> gpipe_orders(const Pipe& pipe) {
  Orders orders(pipe.devices);
  for (unsigned chunk = 0; chunk < pipe.chunks.size(); ++chunk) {
    auto& order = orders[pipe.chunks[chunk].device];
    for (unsigned j = 0; j < pipe.micro_batches; ++j) order.push_back({Move::kForward, chunk, j});
  }
  for (auto chunk = static_cast<unsigned>(pipe.chunks.size()); chunk-- > 0;) {
    auto& order = orders[pipe.chunks[chunk].device];
    for (unsigned j = 0; j < pipe.micro_batches; ++j) {
      order.push_back({Move::kBackward, chunk, j});
      order.push_back({Move::kWeights, chunk, j});
    }
  }
  return Drawn{std::move(orders)};
}

namespace {

/// Forwards and backwards in the given orders: `warm_up` forwards first, then one of each in turn.
std::vector<Action> one_and_one(const std::vector<Action>& forwards, const std::vector<Action>& backwards,
                                std::size_t warm_up) {
  std::vector<Action> order;
  std::size_t f = 0;
  for (; f < std::min(warm_up, forwards.size()); ++f) order.push_back(forwards[f]);
  for (const Action& backward : backwards) {
    if (f < forwards.size()) order.push_back(forwards[f++]);
    order.push_back(backward);
    order.push_back({Move::kWeights, backward.chunk, backward.micro_batch});
  }
  return order;
}

}  // namespace

std::optional<Drawn> one_forward_one_backward_orders(const Pipe& pipe) {
  Orders orders;
  for (unsigned d = 0; d < pipe.devices; ++d) {
    std::vector<Action> forwards;
    std::vector<Action> backwards;
    for (unsigned j = 0; j < pipe.micro_batches; ++j) {
      forwards.push_back({Move::kForward, d, j});
      backwards.push_back({Move::kBackward, d, j});
    }
    orders.push_back(one_and_one(forwards, backwards, pipe.devices - 1 - d));
  }
  return Drawn{std::move(orders)};
}

std::optional<Drawn> interleaved_orders(const Pipe& pipe) {
  const unsigned p = pipe.devices;
  const auto v = static_cast<unsigned>(pipe.chunks.size()) / p;
  // Groups of micro-batches go through all chunks together: as many as there are devices, or a few more.
  const unsigned groups = std::max(1U, pipe.micro_batches / p);
  std::vector<unsigned> begins;
  for (unsigned g = 0; g <= groups; ++g)
    begins.push_back(static_cast<unsigned>(std::uint64_t{pipe.micro_batches} * g / groups));
  const unsigned largest = (pipe.micro_batches + groups - 1) / groups;
  for (unsigned more = 0;; ++more) {
    Orders orders;
    for (unsigned d = 0; d < p; ++d) {
      std::vector<Action> forwards;
      std::vector<Action> backwards;
      for (unsigned g = 0; g < groups; ++g) {
        for (unsigned c = 0; c < v; ++c) {
          for (unsigned j = begins[g]; j < begins[g + 1]; ++j) {
            forwards.push_back({Move::kForward, c * p + d, j});
            backwards.push_back({Move::kBackward, (v - 1 - c) * p + d, j});
          }
        }
      }
      const std::size_t warm_up = (v - 1) * std::size_t{largest} + 2 * std::size_t{p - 1 - d} + more;
      orders.push_back(one_and_one(forwards, backwards, warm_up));
    }
    // With all forwards first there is no deadlock, so this ends.
    if (run_orders(pipe, orders)) return Drawn{std::move(orders)};
  }
}

namespace {

std::optional<Drawn> listed(const Pipe& pipe, const Rules& rules) {
  auto orders = list_schedule(pipe, rules);
  if (!orders) return std::nullopt;
  return Drawn{std::move(*orders)};
}

Rules zb_rules(const Pipe& pipe, bool twice) {
  const unsigned p = pipe.devices;
  Rules rules;
  for (unsigned d = 0; d < p; ++d) rules.in_flight_max.push_back(twice ? 2 * (p - d) - 1 : p - d);
  rules.unfinished_max.assign(p, twice ? 2 * p - 1 : p);
  rules.alternates = !twice;
  return rules;
}

}  // namespace

std::optional<Drawn> forwards_first_orders(const Pipe& pipe) { return listed(pipe, {.forwards_first = true}); }

std::optional<Drawn> fast_forwarding_orders(const Pipe& pipe) {
  return listed(pipe, {.kept_bytes_max = pipe.kept_bytes_max});
}

std::optional<Drawn> zb_h1_orders(const Pipe& pipe) {
  return listed(pipe.with_unit_costs(), zb_rules(pipe, false));
}

std::optional<Drawn> zb_h2_orders(const Pipe& pipe) {
  return listed(pipe.with_unit_costs(), zb_rules(pipe, true));
}

namespace {

/// Moves of the two chunks of a device, each micro-batch after the other; what is not there any more is left out.
class TwoChunks {
 public:
  TwoChunks(unsigned down, unsigned up, unsigned micro_batches) : chunks_{down, up}, micro_batches_(micro_batches) {}

  static constexpr std::size_t kDown = 0;
  static constexpr std::size_t kUp = 1;

  void forward(std::size_t which) { move(Move::kForward, which, micro_batches_); }
  void backward(std::size_t which) { move(Move::kBackward, which, done(Move::kForward, which)); }
  void weights(std::size_t which) { move(Move::kWeights, which, done(Move::kBackward, which)); }
  void both_gradients(std::size_t which) {
    backward(which);
    weights(which);
  }
  /// W of the earliest B that has none yet, of either chunk.
  void oldest_weights() {
    const auto owed = std::ranges::find_if(order_, [this](const Action& action) {
      return action.move == Move::kBackward && action.micro_batch >= done(Move::kWeights, which_of(action.chunk));
    });
    if (owed != order_.end()) weights(which_of(owed->chunk));
  }
  /// What is left of the gradients: B of the upper chunk before those of the lower, and W last.
  void finish() {
    while (done(Move::kBackward, kUp) < micro_batches_) backward(kUp);
    while (done(Move::kBackward, kDown) < micro_batches_) both_gradients(kDown);
    for (const std::size_t which : {kUp, kDown}) {
      while (done(Move::kWeights, which) < micro_batches_) weights(which);
    }
  }
  [[nodiscard]] unsigned done(Move move, std::size_t which) const {
    return done_[which][static_cast<std::size_t>(move)];
  }
  [[nodiscard]] std::vector<Action> take() { return std::move(order_); }

 private:
  [[nodiscard]] std::size_t which_of(unsigned chunk) const { return chunk == chunks_[kDown] ? kDown : kUp; }
  void move(Move move, std::size_t which, unsigned below) {
    unsigned& done = done_[which][static_cast<std::size_t>(move)];
    if (done < below) order_.push_back({move, chunks_[which], done++});
  }
  std::array<unsigned, 2> chunks_;
  unsigned micro_batches_;
  std::array<std::array<unsigned, 3>, 2> done_{};
  std::vector<Action> order_;
};

/// The drawn orders; with fewer micro-batches than they are drawn for they may deadlock. Then it is scheduled by the
/// same bounds, greedily: `ahead` more F in flight on the chunk where micro-batches begin than ZB-V has.
std::optional<Drawn> there_and_back(const Pipe& pipe, Orders orders, unsigned ahead) {
  if (run_orders(pipe, orders)) return Drawn{std::move(orders)};
  const unsigned p = pipe.devices;
  Rules rules;
  rules.in_flight_max.resize(2 * std::size_t{p});
  for (unsigned d = 0; d < p; ++d) {
    rules.in_flight_max[d] = 2 * p - 1 - d + ahead;
    rules.in_flight_max[2 * p - 1 - d] = d + 1;
  }
  rules.unfinished_max.assign(p, 2 * p + ahead);
  return listed(pipe.with_unit_costs(), rules);
}

}  // namespace

std::optional<Drawn> zb_v_orders(const Pipe& pipe) {
  // With all costs 1, the first micro-batch comes to device d at d, comes back up at 2 p - 1 - d, and its gradient
  // passes at 2 p + d and at 4 p - 1 - d. Each stretch until the next of these is filled with what there is to do.
  constexpr auto kDown = TwoChunks::kDown;
  constexpr auto kUp = TwoChunks::kUp;
  const unsigned p = pipe.devices;
  const unsigned m = pipe.micro_batches;
  Orders orders;
  for (unsigned d = 0; d < p; ++d) {
    TwoChunks moves(d, 2 * p - 1 - d, m);
    for (unsigned n = 0; n < 2 * (p - d) - 1; ++n) moves.forward(kDown);
    for (unsigned n = 0; n < d; ++n) {
      moves.forward(kUp);
      moves.forward(kDown);
    }
    for (unsigned n = 0; n < p - d; ++n) {
      moves.forward(kUp);
      moves.both_gradients(kUp);
    }
    while (moves.done(Move::kForward, kUp) < m) {
      moves.forward(kDown);
      moves.both_gradients(kDown);
      moves.forward(kUp);
      moves.both_gradients(kUp);
    }
    for (unsigned n = 0; n < d; ++n) {
      moves.backward(kDown);
      moves.backward(kUp);
    }
    for (unsigned n = 0; n < p - d; ++n) moves.both_gradients(kDown);
    // Weights, and with few micro-batches backward passes that had no partner above.
    moves.finish();
    orders.push_back(moves.take());
  }
  return there_and_back(pipe, std::move(orders), 0);
}

std::optional<Drawn> dual_pipe_v_orders(const Pipe& pipe) {
  // Drawn for 2 p micro-batches or more. The pipeline fills (the first three stretches), is steady, and drains (the
  // last four); the further a device is from the ends of the model, the shorter are those that wait for others. We
  // differ from the published order in one thing: a gradient leaves after its B even where W follows at once.
  constexpr auto kDown = TwoChunks::kDown;
  constexpr auto kUp = TwoChunks::kUp;
  const unsigned p = pipe.devices;
  const unsigned m = pipe.micro_batches;
  Orders orders;
  for (unsigned d = 0; d < p; ++d) {
    const unsigned near = d + 1;     // Stages from the first device to this one.
    const unsigned far = p - 1 - d;  // Stages from here to the turn.
    TwoChunks moves(d, 2 * p - 1 - d, m);
    for (unsigned n = 0; n < 2 * far; ++n) moves.forward(kDown);
    for (unsigned n = 0; n < near; ++n) {
      moves.forward(kDown);
      moves.forward(kUp);
    }
    for (unsigned n = 0; n < far; ++n) {
      moves.both_gradients(kUp);
      moves.forward(kUp);
    }
    while (moves.done(Move::kForward, kDown) < m) {
      moves.forward(kDown);
      moves.both_gradients(kUp);
      moves.forward(kUp);
      moves.both_gradients(kDown);
    }
    for (unsigned n = 0; n < far; ++n) {
      moves.both_gradients(kUp);
      moves.forward(kUp);
      moves.both_gradients(kDown);
    }
    // Of the last B before the end, the second half leave their W for the gaps.
    for (unsigned n = 0; n < 2 * near; ++n) {
      const auto which = n % 2 == 0 ? kUp : kDown;
      moves.backward(which);
      if (n < near) moves.weights(which);
    }
    for (unsigned n = 0; n < far; ++n) {
      moves.oldest_weights();
      moves.backward(kDown);
    }
    for (unsigned n = 0; n < near; ++n) moves.oldest_weights();
    moves.finish();
    orders.push_back(moves.take());
  }
  return there_and_back(pipe, std::move(orders), 1);
}

std::optional<Drawn> automatic_orders(const Pipe& pipe) {
  const unsigned p = pipe.devices;
  std::optional<Drawn> best;
  double best_us = 0;
  const auto offer = [&](std::optional<Orders> orders, const std::string& choice) {
    if (!orders) return;
    const auto run = run_orders(pipe, *orders);
    if (!run || (best && run->span_us >= best_us)) return;
    best = Drawn{std::move(*orders), choice};
    best_us = run->span_us;
  };
  for (const bool twice : {false, true}) {
    Rules hand = zb_rules(pipe, twice);
    hand.kept_bytes_max = pipe.kept_bytes_max;
    offer(list_schedule(pipe.with_unit_costs(), hand), twice ? "ZB-H2's order" : "ZB-H1's order");
  }
  for (unsigned more = 0; more <= p; ++more) {
    for (const double gap_share : {0.0, 0.5, 1.0}) {
      Rules rules;
      rules.kept_bytes_max = pipe.kept_bytes_max;
      rules.gap_share = gap_share;
      for (unsigned d = 0; d < p; ++d) {
        // From 1F1B's warm-up to twice it; the last: as many as memory holds.
        const double in_flight = (p - d) * (1.0 + static_cast<double>(more) / p);
        rules.in_flight_max.push_back(more == p ? kNoMaximum : static_cast<unsigned>(std::lround(in_flight)));
      }
      offer(list_schedule(pipe, rules), "warm-up + " + std::to_string(more) + "/" + std::to_string(p) + ", patience " +
                                            std::to_string(gap_share).substr(0, 3));
    }
  }
  return best;
}

}  // namespace dunnock::training
