// Random task graphs, and random schedules of them.
#pragma once

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "dunnock/schedule/schedule.hpp"

namespace dunnock::test {

/// A graph of `ops` operations, each reading up to three values of earlier ones. Costs 1 to 20, bytes 1 to 100.
inline schedule::TaskGraph random_graph(std::mt19937_64& random, std::size_t ops) {
  schedule::TaskGraph graph;
  std::vector<schedule::ValueId> values{graph.add_value("input", 10)};
  for (std::size_t i = 0; i < ops; ++i) {
    schedule::Op op;
    op.name = "op" + std::to_string(i);
    for (std::uint64_t n = random() % 4; n > 0; --n) op.inputs.push_back(values[random() % values.size()]);
    for (std::uint64_t n = random() % 2 + (random() % 8 == 0 ? 1 : 0); n > 0; --n)
      op.outputs.push_back(graph.add_value(op.name + "." + std::to_string(n), 1 + random() % 100, random() % 9 == 0));
    op.cost_us = static_cast<double>(1 + random() % 20);
    op.demand = static_cast<double>(1 + random() % 10) / 10;
    op.workspace_bytes = random() % 50;
    const std::vector<schedule::ValueId> outputs = op.outputs;
    graph.add(std::move(op));
    values.insert(values.end(), outputs.begin(), outputs.end());
  }
  return graph;
}

/// A random order that the graph allows, on random lanes of `ranks` ranks, with the waits that it needs.
inline schedule::Schedule random_schedule(const schedule::TaskGraph& graph, std::mt19937_64& random, unsigned lanes,
                                          unsigned ranks) {
  schedule::Schedule schedule;
  schedule.name = "random";
  for (unsigned lane = 0; lane < lanes; ++lane) schedule.lanes.push_back({"lane" + std::to_string(lane), lane % ranks});
  std::vector<bool> placed(graph.ops().size());
  std::vector<schedule::OpId> left;
  for (schedule::OpId op = 0; op < graph.ops().size(); ++op) left.push_back(op);
  while (!left.empty()) {
    std::vector<schedule::OpId> ready;
    for (const schedule::OpId op : left) {
      const auto needs = graph.needs(op);
      if (std::ranges::all_of(needs, [&](schedule::OpId need) { return placed[need]; })) ready.push_back(op);
    }
    const schedule::OpId next = ready[random() % ready.size()];
    placed[next] = true;
    std::erase(left, next);
    schedule.slots.push_back({next, static_cast<unsigned>(random() % lanes), {}});
  }
  schedule::add_waits(graph, schedule);
  return schedule;
}

}  // namespace dunnock::test
