#include "dunnock/schedule/task_graph.hpp"

#include <algorithm>
#include <queue>
#include <utility>

#include "dunnock/base/check.hpp"

namespace dunnock::schedule {

std::string_view to_string(OpKind kind) noexcept {
  switch (kind) {
    case OpKind::kForward: return "forward";
    case OpKind::kOutputGradient: return "output gradient";
    case OpKind::kWeightGradient: return "weight gradient";
    case OpKind::kUpdate: return "update";
    case OpKind::kCommunication: return "communication";
    case OpKind::kOther: return "other";
  }
  return "unknown";
}

ValueId TaskGraph::add_value(std::string name, std::uint64_t bytes, bool kept) {
  values_.push_back({std::move(name), bytes, kNoOp, {}, kept});
  return static_cast<ValueId>(values_.size() - 1);
}

OpId TaskGraph::add(Op op) {
  const auto id = static_cast<OpId>(ops_.size());
  DUNNOCK_CHECK(op.demand > 0, "an operation keeps something of its device busy");
  DUNNOCK_CHECK(op.demand <= 1, "an operation keeps at most one device busy");
  DUNNOCK_CHECK(op.cost_us >= 0, "a cost is not negative");
  std::ranges::sort(op.inputs);
  op.inputs.erase(std::ranges::unique(op.inputs).begin(), op.inputs.end());
  for (const ValueId output : op.outputs) {
    DUNNOCK_CHECK(output < values_.size(), "a value is added before its source");
    DUNNOCK_CHECK(values_[output].source == kNoOp, "a value has one source");
    DUNNOCK_CHECK(!std::ranges::binary_search(op.inputs, output), "an operation does not read what it makes");
    values_[output].source = id;
  }
  for (const ValueId input : op.inputs) {
    DUNNOCK_CHECK(input < values_.size(), "a value is added before its readers");
    values_[input].readers.push_back(id);
  }
  ops_.push_back(std::move(op));
  return id;
}

std::vector<OpId> TaskGraph::needs(OpId id) const {
  std::vector<OpId> sources;
  for (const ValueId input : ops_[id].inputs) {
    if (values_[input].source != kNoOp) sources.push_back(values_[input].source);
  }
  std::ranges::sort(sources);
  sources.erase(std::ranges::unique(sources).begin(), sources.end());
  return sources;
}

std::optional<std::vector<OpId>> TaskGraph::any_order() const {
  std::vector<std::size_t> missing(ops_.size());
  std::vector<std::vector<OpId>> followers(ops_.size());
  std::priority_queue<OpId, std::vector<OpId>, std::greater<>> ready;
  for (OpId id = 0; id < ops_.size(); ++id) {
    const auto sources = needs(id);
    missing[id] = sources.size();
    for (const OpId source : sources) followers[source].push_back(id);
    if (sources.empty()) ready.push(id);
  }
  std::vector<OpId> order;
  while (!ready.empty()) {
    order.push_back(ready.top());
    ready.pop();
    for (const OpId follower : followers[order.back()]) {
      if (--missing[follower] == 0) ready.push(follower);
    }
  }
  if (order.size() != ops_.size()) return std::nullopt;
  return order;
}

}  // namespace dunnock::schedule
