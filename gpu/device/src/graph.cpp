#include "dunnock/device/graph.hpp"

#include "driver.hpp"

namespace dunnock::device {

Result<Graph> Graph::capture(Stream& stream, const std::function<void()>& issue) {
  DUNNOCK_TRY(stream.impl().begin_capture());
  issue();
  DUNNOCK_TRY(auto impl, stream.impl().end_capture());
  return Graph(std::move(impl));
}
Graph::Graph(std::unique_ptr<detail::GraphImpl> impl) noexcept : impl_(std::move(impl)) {}
Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;
Graph::~Graph() = default;
void Graph::launch(Stream& stream) { stream.impl().launch(*impl_); }
std::size_t Graph::size() const noexcept { return impl_->size(); }

}  // namespace dunnock::device
