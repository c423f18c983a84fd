#include "dunnock/training/learning_rate.hpp"

#include <array>
#include <cmath>
#include <numbers>

#include "dunnock/base/check.hpp"

namespace dunnock::training {

std::string_view to_string(RateSchedule schedule) noexcept {
  constexpr std::array<std::string_view, 4> kNames = {"constant", "cosine", "linear", "step"};
  return kNames[static_cast<std::size_t>(schedule)];
}

double learning_rate_at(const LearningRate& rate, std::uint64_t step) {
  DUNNOCK_CHECK(rate.drop_every > 0, "drop_every is at least 1");
  if (step < rate.warmup_steps)
    return rate.peak * (static_cast<double>(step) + 1) / (static_cast<double>(rate.warmup_steps) + 1);
  const std::uint64_t behind = step - rate.warmup_steps;
  // 0 to 1 between the warm-up and the end.
  const double part =
      step >= rate.steps ? 1 : static_cast<double>(behind) / static_cast<double>(rate.steps - rate.warmup_steps);
  switch (rate.schedule) {
    case RateSchedule::kConstant: break;
    case RateSchedule::kCosine:
      return rate.peak * (rate.final_share + (1 - rate.final_share) * (1 + std::cos(std::numbers::pi * part)) / 2);
    case RateSchedule::kLinear: return rate.peak * (1 - (1 - rate.final_share) * part);
    case RateSchedule::kDrops:
      return rate.peak * std::pow(rate.drop_factor, static_cast<double>(behind / rate.drop_every));
  }
  return rate.peak;
}

}  // namespace dunnock::training
