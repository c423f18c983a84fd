// What each device of a pipeline computes, in order. Chunks are runs of layers, 0 to chunks - 1; F goes up through
// them, B (dO) comes down, and W (dW) of a chunk may come any time after its B.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace dunnock::training {

enum class Move : std::uint8_t { kForward, kBackward, kWeights };

struct Action {
  Move move = Move::kForward;
  unsigned chunk = 0;
  unsigned micro_batch = 0;
  friend bool operator==(const Action&, const Action&) = default;
};

using Orders = std::vector<std::vector<Action>>;  // [device]

/// Costs of a chunk, for one micro-batch.
struct Chunk {
  unsigned device = 0;
  double forward_us = 0;
  double backward_us = 0;
  double weights_us = 0;
  double send_activation_us = 0;  // To the next chunk's device; 0 on the same.
  double send_gradient_us = 0;    // To the device of the chunk before.
  std::uint64_t kept_bytes = 0;
  std::uint64_t kept_for_weights_bytes = 0;
  [[nodiscard]] double us(Move move) const {
    return move == Move::kForward ? forward_us : move == Move::kBackward ? backward_us : weights_us;
  }
};

struct Pipe {
  unsigned devices = 1;
  unsigned micro_batches = 1;
  /// W is apart from B, and the gradient leaves after B. Without: W follows its B, and the gradient leaves after W.
  bool splits = true;
  /// What F may leave on a device, at most. Orders drawn by hand do not look at it.
  std::uint64_t kept_bytes_max = std::numeric_limits<std::uint64_t>::max();
  std::vector<Chunk> chunks{};
  /// The same with F = B = W and sends in no time: what the hand-made schedules are drawn for. A chunk costs 1.
  [[nodiscard]] Pipe with_unit_costs() const;
};

inline constexpr unsigned kNoMaximum = std::numeric_limits<unsigned>::max();

/// How list_schedule() chooses.
struct Rules {
  bool forwards_first = false;             // No B before all F of the device.
  std::vector<unsigned> in_flight_max{};   // [chunk]: F without their B.
  std::vector<unsigned> unfinished_max{};  // [device]: F without their W, all chunks.
  /// One F, one B, in turn, once in_flight_max F are there; and no W while F are left, unless unfinished_max asks for
  /// it.
  bool alternates = false;
  /// How patient a device is when only a W is ready: it waits for an F or B that comes before this share of the W's
  /// time is over. 0: a W fills every gap; 1: only gaps that it fits into.
  double gap_share = 0;
  /// Bytes that F keep on a device, at most; F of a chunk leaves room for one of each later chunk of its device.
  std::uint64_t kept_bytes_max = std::numeric_limits<std::uint64_t>::max();
};

/// Runs the pipe in made-up time: when a device is free it takes, of what is ready, B first, then F, then W; of the
/// same, the earliest micro-batch, and of that the furthest chunk. None: the rules leave a device with nothing that it
/// may do. Time: actions x (devices + chunks of a device).
[[nodiscard]] std::optional<Orders> list_schedule(const Pipe& pipe, const Rules& rules);

/// When everything is done, with each device following its order; empty: the orders deadlock.
/// `span`: the longest time from a device's first start to its last end.
struct Run {
  double makespan_us = 0;
  double span_us = 0;
};
[[nodiscard]] std::optional<Run> run_orders(const Pipe& pipe, const Orders& orders);

/// What a schedule decides: the orders, and what it chose ("ZB-H2's order") if it searched.
struct Drawn {
  Orders orders;
  std::string choice{};
};

// A function per schedule; those that differ only in where the chunks lie, or in whether W is apart, share one. None:
// what F keep does not fit `kept_bytes_max`.

using Draw = std::optional<Drawn> (*)(const Pipe&);

[[nodiscard]] std::optional<Drawn> gpipe_orders(const Pipe& pipe);
[[nodiscard]] std::optional<Drawn> one_forward_one_backward_orders(const Pipe& pipe);
/// Chunks dealt to devices in turn. If the micro-batches are not a multiple of the devices, warm-up forwards are added
/// until there is no deadlock.
[[nodiscard]] std::optional<Drawn> interleaved_orders(const Pipe& pipe);
/// By list_schedule(), all F of a device before its first B.
[[nodiscard]] std::optional<Drawn> forwards_first_orders(const Pipe& pipe);
/// By list_schedule(), with as many micro-batches in flight as `kept_bytes_max` allows.
[[nodiscard]] std::optional<Drawn> fast_forwarding_orders(const Pipe& pipe);
[[nodiscard]] std::optional<Drawn> zb_h1_orders(const Pipe& pipe);
[[nodiscard]] std::optional<Drawn> zb_h2_orders(const Pipe& pipe);
/// ZB-V: chunk c and chunk 2 devices - 1 - c on device c.
[[nodiscard]] std::optional<Drawn> zb_v_orders(const Pipe& pipe);
/// DualPipeV: chunks as ZB-V has them. F of one chunk of a device is followed by B and W of its other chunk, so that
/// transfers of either can overlap the computation of the other.
[[nodiscard]] std::optional<Drawn> dual_pipe_v_orders(const Pipe& pipe);
/// The memory-bounded automatic scheduler: list scheduling with the true costs under `kept_bytes_max`, with several
/// bounds for what is in flight and several degrees of patience for the next B, and the orders of ZB-H1 and ZB-H2. The
/// shortest span of a device wins. (After the heuristic of Zero Bubble Pipeline Parallelism, ICLR 2024, which also
/// tries all its switches.)
[[nodiscard]] std::optional<Drawn> automatic_orders(const Pipe& pipe);

}  // namespace dunnock::training
