#include "dunnock/training/schedules.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <utility>

#include "families.hpp"

namespace dunnock::training {
namespace {

struct Known {
  ScheduleName name;
  std::function<Result<Plan>(const Step&, const PlanOptions&)> make;
};

Known one_device(const ScheduleName& name, OneDevice kind) {
  return {name, [kind](const Step& step, const PlanOptions& options) { return plan_one_device(kind, step, options); }};
}
Known data_parallel(const ScheduleName& name, DataParallel kind) {
  return {name,
          [kind](const Step& step, const PlanOptions& options) { return plan_data_parallel(kind, step, options); }};
}
Known pipeline(const PipelineSchedule& of) {
  return {{of.name, Family::kPipeline, of.what},
          [of](const Step& step, const PlanOptions& options) { return plan_pipeline(of, step, options); }};
}

constexpr Family kOne = Family::kOneDevice;
constexpr Family kData = Family::kDataParallel;

/// The pipelines. A new one is a row here and a function in pipeline_orders.cpp.
const PipelineSchedule kPipelines[] = {
    {.name = "gpipe", .what = "all forwards, then all backwards (GPipe 2019)", .splits = false, .draw = gpipe_orders},
    {.name = "1f1b",
     .what = "one forward, one backward (PipeDream-flush, DAPPLE 2021)",
     .splits = false,
     .draw = one_forward_one_backward_orders},
    {.name = "interleaved-1f1b",
     .what = "1F1B on several chunks per device (Megatron-LM 2021)",
     .deal = Deal::kRoundRobin,
     .chunks_per_device = 2,
     .splits = false,
     .draw = interleaved_orders},
    {.name = "modulo",
     .what = "GPipe's order, layers dealt to devices in turn (out-of-order backprop 2022)",
     .deal = Deal::kRoundRobin,
     .chunks_per_device = kOnePerLayer,
     .splits = false,
     .draw = forwards_first_orders},
    {.name = "gpipe-fast-forwarding",
     .what = "GPipe's order, dO before dW (out-of-order backprop 2022)",
     .draw = forwards_first_orders},
    {.name = "gpipe-fast-forwarding-modulo",
     .what = "GPipe's order, dO before dW, layers dealt in turn",
     .deal = Deal::kRoundRobin,
     .chunks_per_device = kOnePerLayer,
     .draw = forwards_first_orders},
    {.name = "fast-forwarding",
     .what = "dO as soon as its gradient is there, before forwards; dW when nothing else is",
     .draw = fast_forwarding_orders},
    {.name = "fast-forwarding-modulo",
     .what = "the same, layers dealt in turn",
     .deal = Deal::kRoundRobin,
     .chunks_per_device = kOnePerLayer,
     .draw = fast_forwarding_orders},
    {.name = "zb-h1", .what = "1F1B's memory, dW fill the bubbles (zero bubble, 2024)", .draw = zb_h1_orders},
    {.name = "zb-h2", .what = "no bubble for up to twice 1F1B's memory (zero bubble, 2024)", .draw = zb_h2_orders},
    {.name = "zb-v",
     .what = "no bubble in 1F1B's memory: two chunks per device, there and back (2024)",
     .deal = Deal::kThereAndBack,
     .chunks_per_device = 2,
     .draw = zb_v_orders},
    {.name = "dualpipe-v",
     .what = "ZB-V's chunks; forwards of one chunk paired with gradients of the other (DeepSeek 2025)",
     .deal = Deal::kThereAndBack,
     .chunks_per_device = 2,
     .draw = dual_pipe_v_orders},
    {.name = "zb-auto",
     .what = "searched with the true costs under the memory limit (zero bubble, 2024)",
     .draw = automatic_orders},
};

const std::vector<Known>& known() {
  static const std::vector<Known> all = [] {
    std::vector<Known> rows = {
        one_device({"conventional", kOne, "one lane: each layer's dO and then its dW"}, OneDevice::kConventional),
        one_device({.name = "multi-stream",
                    .family = kOne,
                    .what = "dW beside regions of the dO chain and of the next forward (out-of-order backprop 2022)",
                    .lanes_compute = 2,
                    .wants_measured_costs = true},
                   OneDevice::kMultiStream),
        data_parallel({"no-overlap", kData, "all gradients are summed after the backward pass"},
                      DataParallel::kNoOverlap),
        data_parallel({"overlap", kData, "buckets are summed during the backward pass; the next forward waits for all"},
                      DataParallel::kOverlap),
        data_parallel({"priority", kData,
                       "slices, first layers first; each layer's forward waits for its own (ByteScheduler 2019)"},
                      DataParallel::kPriority),
        data_parallel({"reverse-first-k", kData,
                       "priority, and the first k layers' dW in reverse order (out-of-order backprop 2022)"},
                      DataParallel::kReverseFirstK),
    };
    for (const PipelineSchedule& row : kPipelines) rows.push_back(pipeline(row));
    return rows;
  }();
  return all;
}

Status check(const PlanOptions& options) {
  const auto invalid = [](const char* what) { return make_error(ErrorCode::kInvalidArgument, what); };
  if (options.devices == 0) return invalid("a schedule needs at least one device");
  if (options.micro_batches == 0) return invalid("a schedule needs at least one micro-batch");
  if (options.iterations == 0) return invalid("a schedule needs at least one iteration");
  if (options.data_parallel == 0) return invalid("a stage needs at least one device");
  if (!(options.launch_us >= 0)) return invalid("the launch time must not be negative or NaN");
  if (!(options.link.latency_us >= 0)) return invalid("a link's latency must not be negative or NaN");
  if (!(options.link.gb_per_s >= 0)) return invalid("a link's bandwidth must not be negative or NaN");
  return {};
}

}  // namespace

std::string_view to_string(Family family) noexcept {
  switch (family) {
    case Family::kOneDevice: return "one device";
    case Family::kDataParallel: return "data-parallel";
    case Family::kPipeline: return "pipeline";
  }
  return "unknown";
}

const std::vector<ScheduleName>& schedule_names() {
  static const std::vector<ScheduleName> names = [] {
    std::vector<ScheduleName> some;
    for (const Known& one : known()) some.push_back(one.name);
    return some;
  }();
  return names;
}

const ScheduleName* find_schedule(std::string_view name) {
  const auto one = std::ranges::find(schedule_names(), name, &ScheduleName::name);
  return one == schedule_names().end() ? nullptr : &*one;
}

Result<Plan> make_plan(std::string_view name, const Step& step, const PlanOptions& options) {
  const auto one = std::ranges::find_if(known(), [name](const Known& known) { return known.name.name == name; });
  if (one == known().end()) {
    std::string message = "unknown schedule '" + std::string(name) + "': expected one of";
    for (const Known& other : known())
      message += (&other == &known().front() ? " " : ", ") + std::string(other.name.name);
    return make_error(ErrorCode::kNotFound, message);
  }
  DUNNOCK_TRY(check(step));
  DUNNOCK_TRY(check(options));
  Result<Plan> plan = one->make(step, options);
  if (!plan) return plan;
  plan->name = plan->schedule.name = name;
  plan->family = one->name.family;
  DUNNOCK_TRY(schedule::validate(plan->graph, plan->schedule));
  return plan;
}

Result<Figures> figures_of(const Plan& plan) {
  auto timeline = schedule::simulate(plan.graph, plan.schedule, {.launch_us = plan.launch_us});
  DUNNOCK_TRY(timeline);
  Figures figures;
  figures.step_us = timeline->makespan_us();
  constexpr double kNever = std::numeric_limits<double>::infinity();
  struct Device {
    double first_us = kNever;  // Of the whole.
    double last_us = 0;
    double last_but_one_begins_us = kNever;  // First forward of the last iteration but one.
    double last_begins_us = kNever;
  };
  std::vector<Device> devices(plan.devices);
  for (const schedule::Interval& one : timeline->intervals) {
    const OpTag& tag = plan.tags[one.op];
    if (plan.graph.op(one.op).kind == schedule::OpKind::kCommunication) continue;
    if (tag.iteration == 0) figures.work_us += plan.graph.op(one.op).cost_us;
    Device& device = devices[tag.device];
    device.first_us = std::min(device.first_us, one.start_us);
    device.last_us = std::max(device.last_us, one.end_us);
    if (tag.part != Part::kForward) continue;
    if (tag.iteration + 2 == plan.iterations)
      device.last_but_one_begins_us = std::min(device.last_but_one_begins_us, one.start_us);
    if (tag.iteration + 1 == plan.iterations) device.last_begins_us = std::min(device.last_begins_us, one.start_us);
  }
  for (const Device& device : devices) {
    const double us =
        plan.iterations == 1 ? device.last_us - device.first_us : device.last_begins_us - device.last_but_one_begins_us;
    figures.iteration_us = std::max(figures.iteration_us, us);
  }
  if (figures.iteration_us > 0)
    figures.bubble_share = 1 - figures.work_us / (static_cast<double>(plan.devices) * figures.iteration_us);
  figures.peak_bytes.assign(timeline->peak_bytes.begin(), timeline->peak_bytes.begin() + plan.devices);
  figures.timeline = std::move(*timeline);
  return figures;
}

void Best::offer(Plan plan, std::size_t number) {
  const auto refuse = [this](const Error& error) {
    if (!refused_) refused_ = error;
  };
  const auto figures = figures_of(plan);
  if (!figures) return refuse(figures.error());
  if (best_ && figures->iteration_us >= iteration_us_) return;
  best_ = std::move(plan);
  number_ = number;
  iteration_us_ = figures->iteration_us;
}

Result<Plan> Best::take() {
  if (!best_) return tl::unexpected(refused_.value_or(Error{ErrorCode::kInvalidArgument, "no plan was offered"}));
  return std::move(*best_);
}

}  // namespace dunnock::training
