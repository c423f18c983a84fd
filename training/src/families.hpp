// What makes the plans of each family; schedules.cpp knows their names.
#pragma once

#include <optional>
#include <string_view>

#include "dunnock/training/schedules.hpp"
#include "pipeline_orders.hpp"

namespace dunnock::training {

enum class OneDevice { kConventional, kMultiStream };
[[nodiscard]] Result<Plan> plan_one_device(OneDevice kind, const Step& step, const PlanOptions& options);

enum class DataParallel { kNoOverlap, kOverlap, kPriority, kReverseFirstK };
[[nodiscard]] Result<Plan> plan_data_parallel(DataParallel kind, const Step& step, const PlanOptions& options);

/// Where chunk c lies, of `devices`: blocks, one per device; c % devices; or c on the way there, and
/// 2 devices - 1 - c on the way back.
enum class Deal { kBlocks, kRoundRobin, kThereAndBack };

/// For chunks_per_device: as many as each device has layers.
inline constexpr unsigned kOnePerLayer = 0;

/// A row of the table in schedules.cpp: what differs between pipelines, apart from the order.
struct PipelineSchedule {
  std::string_view name;
  std::string_view what;
  Deal deal = Deal::kBlocks;
  unsigned chunks_per_device = 1;  ///< PlanOptions::chunks is preferred where chunks are dealt in turn.
  bool splits = true;              ///< See Pipe.
  Draw draw = nullptr;
};
[[nodiscard]] Result<Plan> plan_pipeline(const PipelineSchedule& of, const Step& step, const PlanOptions& options);

/// Of several plans, the one with the shortest iteration; plans that are refused do not count, unless all are. The
/// first of equals.
class Best {
 public:
  void offer(Plan plan, std::size_t number = 0);
  /// Of the best; none when all were refused.
  [[nodiscard]] std::optional<std::size_t> number() const { return best_ ? std::optional(number_) : std::nullopt; }
  /// The best, or why the first was refused.
  [[nodiscard]] Result<Plan> take();

 private:
  std::optional<Plan> best_;
  std::size_t number_ = 0;
  double iteration_us_ = 0;
  std::optional<Error> refused_;
};

}  // namespace dunnock::training
