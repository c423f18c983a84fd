// Graph: operations that are recorded once and issued together repeatedly.
//
// Why: issuing costs the host microseconds per operation, more than a small kernel takes. A graph of a thousand
// operations is issued by one call.
//
//   auto graph = Graph::capture(stream, [&] { forward(stream); backward(stream, side); });
//   for (...) graph->launch(stream);
//
// The recorded operations use the buffers that they were given: these must stay where they are. No buffer can be made
// while a stream records. On CUDA this is a CUDA graph, and what was recorded on several streams runs on several; on
// the CPU it is the list of operations, run in the order in which they were issued.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "dunnock/base/result.hpp"
#include "dunnock/device/stream.hpp"

namespace dunnock::device {

/// Move-only. Threads: one at a time.
class Graph {
 public:
  /// Records what `issue` issues on `stream` and on streams that wait for an event of it; `stream` must wait for those
  /// before `issue` returns. Nothing runs. Errors: InvalidArgument (a stream that was not waited for, or that records
  /// already), Device.
  [[nodiscard]] static Result<Graph> capture(Stream& stream, const std::function<void()>& issue);
  Graph(Graph&&) noexcept;
  Graph& operator=(Graph&&) noexcept;
  ~Graph();

  /// Issues the whole graph on `stream`, which may be another one of the same device.
  void launch(Stream& stream);
  /// Number of operations, without waits and records.
  [[nodiscard]] std::size_t size() const noexcept;

 private:
  explicit Graph(std::unique_ptr<detail::GraphImpl> impl) noexcept;
  std::unique_ptr<detail::GraphImpl> impl_;
};

}  // namespace dunnock::device
