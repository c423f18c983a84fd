#include "dunnock/schedule/executor.hpp"

#include <optional>
#include <utility>

#include "driver.hpp"

namespace dunnock::schedule {
namespace {

/// What is issued in its scope, for profilers.
class NamedRange {
 public:
  NamedRange(device::Stream& stream, const std::string& name) : stream_(stream.impl()) { stream_.begin_range(name); }
  NamedRange(const NamedRange&) = delete;
  NamedRange& operator=(const NamedRange&) = delete;
  ~NamedRange() { stream_.end_range(); }

 private:
  device::detail::StreamImpl& stream_;
};

}  // namespace

struct Executor::State {
  const TaskGraph* graph = nullptr;
  Schedule schedule;
  ExecutorOptions options;
  std::vector<std::optional<device::Stream>> streams;  // by lane; those of this rank
  std::vector<std::optional<device::Event>> done;      // by operation; of those that are waited for
  std::vector<device::Event> lane_done;
  std::vector<std::pair<device::Event, device::Event>> measured;  // by slot of this rank: begin, end
  std::optional<device::Event> begun;
  std::optional<device::Graph> recorded;
  bool has_run = false;

  [[nodiscard]] bool is_mine(const Slot& slot) const { return schedule.lanes[slot.lane].rank == options.rank; }
  void issue(device::Stream& stream);
};

Executor::Executor(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
Executor::Executor(Executor&&) noexcept = default;
Executor& Executor::operator=(Executor&&) noexcept = default;
Executor::~Executor() = default;

Result<Executor> Executor::create(device::Device device, const TaskGraph& graph, const Schedule& schedule,
                                  const ExecutorOptions& options) {
  const auto invalid = [](std::string what) { return make_error(ErrorCode::kInvalidArgument, std::move(what)); };
  DUNNOCK_TRY(validate(graph, schedule));
  if (options.measures && options.as_graph) return invalid("the operations of a recorded graph can't be measured");

  auto state = std::make_unique<State>();
  state->graph = &graph;
  state->schedule = schedule;
  state->options = options;
  state->streams.resize(schedule.lanes.size());
  state->done.resize(graph.ops().size());
  for (std::size_t i = 0; i < schedule.lanes.size(); ++i) {
    if (schedule.lanes[i].rank != options.rank) continue;
    DUNNOCK_TRY(auto stream,
                device::Stream::create(device, {.priority = schedule.lanes[i].priority, .threads = options.threads}));
    stream.impl().set_name(schedule.lanes[i].name);
    state->streams[i].emplace(std::move(stream));
    DUNNOCK_TRY(auto event, device::Event::create(device));
    state->lane_done.push_back(std::move(event));
  }
  std::vector<unsigned> rank_of(graph.ops().size());
  for (const Slot& slot : schedule.slots) rank_of[slot.op] = schedule.lanes[slot.lane].rank;
  for (const Slot& slot : schedule.slots) {
    if (!state->is_mine(slot)) continue;
    const std::string& name = graph.op(slot.op).name;
    if (!graph.op(slot.op).issue) return invalid("operation '" + name + "' has no function that issues it");
    for (const OpId op : slot.waits) {
      if (rank_of[op] != options.rank)
        return invalid("operation '" + name + "' waits for '" + graph.op(op).name + "', which runs on another rank");
      if (state->done[op]) continue;
      DUNNOCK_TRY(auto event, device::Event::create(device));
      state->done[op].emplace(std::move(event));
    }
    if (!options.measures) continue;
    auto begin = device::Event::create(device);
    auto end = device::Event::create(device);
    DUNNOCK_TRY(begin);
    DUNNOCK_TRY(end);
    state->measured.emplace_back(std::move(*begin), std::move(*end));
  }
  DUNNOCK_TRY(auto begun, device::Event::create(device));
  state->begun.emplace(std::move(begun));
  if (options.as_graph) {
    DUNNOCK_TRY(auto stream, device::Stream::create(device));
    auto recorded = device::Graph::capture(stream, [&] { state->issue(stream); });
    DUNNOCK_TRY(recorded);
    state->recorded.emplace(std::move(*recorded));
  }
  return Executor(std::move(state));
}

void Executor::State::issue(device::Stream& stream) {
  stream.record(*begun);
  for (auto& lane : streams) {
    if (lane) lane->wait(*begun);
  }
  std::size_t mine = 0;
  for (const Slot& slot : schedule.slots) {
    if (!is_mine(slot)) continue;
    device::Stream& lane = *streams[slot.lane];
    for (const OpId op : slot.waits) lane.wait(*done[op]);
    if (options.measures) lane.record(measured[mine].first);
    {
      const NamedRange range(lane, graph->op(slot.op).name);
      graph->op(slot.op).issue(lane);
    }
    if (options.measures) lane.record(measured[mine].second);
    if (done[slot.op]) lane.record(*done[slot.op]);
    ++mine;
  }
  std::size_t event = 0;
  for (auto& lane : streams) {
    if (!lane) continue;
    lane->record(lane_done[event]);
    stream.wait(lane_done[event]);
    ++event;
  }
}

void Executor::run(device::Stream& stream) {
  const NamedRange range(stream, state_->schedule.name);
  state_->has_run = true;
  if (state_->recorded) {
    state_->recorded->launch(stream);
  } else {
    state_->issue(stream);
  }
}

Status Executor::synchronize() {
  Status first;
  for (auto& lane : state_->streams) {
    if (!lane) continue;
    if (const Status done = lane->synchronize(); !done && first) first = done;
  }
  return first;
}

Result<Timeline> Executor::last_run() const {
  const State& state = *state_;
  if (!state.options.measures)
    return make_error(ErrorCode::kInvalidArgument, "this executor was created without measures");
  if (!state.has_run) return make_error(ErrorCode::kInvalidArgument, "nothing has run yet");
  Timeline timeline;
  std::size_t mine = 0;
  for (const Slot& slot : state.schedule.slots) {
    if (!state.is_mine(slot)) continue;
    const auto& [begin, end] = state.measured[mine++];
    timeline.intervals.push_back(
        {slot.op, slot.lane, 1e3 * begin.ms_since(*state.begun), 1e3 * end.ms_since(*state.begun)});
  }
  return timeline;
}

}  // namespace dunnock::schedule
