// TaskGraph: operations and the values between them, without an order.
//
//   value x --> [ op A ] --> value y --> [ op B ] --> value z
//                                  \---> [ op C ] --> value w
//
// An operation may run when its inputs are ready; its outputs' memory is taken when it begins, and a value's memory is
// free when the last operation that reads it is done. The schedule (schedule.hpp) decides the order and the streams or
// ranks, so one graph has many schedules.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dunnock/device/stream.hpp"

namespace dunnock::schedule {

enum class OpKind : std::uint8_t {
  kForward,
  kOutputGradient,  ///< dO: the next layer's backward pass waits for it.
  kWeightGradient,  ///< dW: only the update waits for it.
  kUpdate,
  kCommunication,
  kOther,
};
/// "forward", "output gradient", ...
[[nodiscard]] std::string_view to_string(OpKind kind) noexcept;

using OpId = std::uint32_t;
using ValueId = std::uint32_t;
inline constexpr OpId kNoOp = std::numeric_limits<OpId>::max();

/// One operation.
struct Op {
  std::string name;
  OpKind kind = OpKind::kOther;
  std::vector<ValueId> inputs{};   ///< A value that is listed twice counts once.
  std::vector<ValueId> outputs{};  ///< Each is the output of only this operation.
  double cost_us = 0;              ///< Alone on its device.
  /// The share of its device that it keeps busy, 0 < demand <= 1: concurrent operations whose demands add up to more
  /// than one device slow each other down. For the simulator.
  double demand = 1;
  std::uint64_t workspace_bytes = 0;  ///< Besides its outputs, while it runs.
  std::function<void(device::Stream&)>
      issue{};  ///< Issues its kernels. Empty: there is nothing to run, only to simulate.
};

struct Value {
  std::string name;
  std::uint64_t bytes = 0;
  OpId source = kNoOp;          ///< kNoOp: the value exists from the beginning.
  std::vector<OpId> readers{};  ///< In the order in which they were added.
  /// Not freed after its last reader: weights, results. Values without a source are kept.
  bool kept = false;
};

/// Threads: one may change it, or any number may read it.
class TaskGraph {
 public:
  ValueId add_value(std::string name, std::uint64_t bytes, bool kept = false);
  /// Inputs and outputs must have been added. Checked: an output has no other source, no operation reads its own
  /// output.
  OpId add(Op op);

  [[nodiscard]] const std::vector<Op>& ops() const noexcept { return ops_; }
  [[nodiscard]] const std::vector<Value>& values() const noexcept { return values_; }
  [[nodiscard]] const Op& op(OpId id) const { return ops_[id]; }
  [[nodiscard]] const Value& value(ValueId id) const { return values_[id]; }
  /// Costs may be measured after the graph is made.
  void set_cost_us(OpId id, double cost_us) { ops_[id].cost_us = cost_us; }

  /// The operations whose outputs `id` reads, each once, ascending.
  [[nodiscard]] std::vector<OpId> needs(OpId id) const;
  /// An order that keeps every dependency, and the order of adding where possible. Empty: the graph has a cycle.
  [[nodiscard]] std::optional<std::vector<OpId>> any_order() const;

 private:
  std::vector<Op> ops_;
  std::vector<Value> values_;
};

}  // namespace dunnock::schedule
