// Learning rates as a function of the step: warm-up, then constant, cosine, linear or in drops.
//
//   rate
//   peak      _______ . cosine, linear: down to final_share * peak at step `steps`, and constant from there
//            /         ` . _
//   _______ /                `- . ___
//          0   warmup_steps       steps
//
// Steps count from 0. With s the step, w = warmup_steps, n = steps, p = peak, f = final_share:
//   warm-up, s < w    p (s + 1) / (w + 1)
//   constant          p
//   cosine            p (f + (1 - f) (1 + cos(pi t)) / 2),  t = min(1, (s - w) / (n - w))
//   linear            p (1 - (1 - f) t),                    the same t
//   drops             p drop_factor^floor((s - w) / drop_every)
// So step w is the first, and with cosine and linear the only one, at the peak.
// Source of cosine: Loshchilov, Hutter: SGDR (ICLR 2017, arXiv 1608.03983), without restarts.
#pragma once

#include <cstdint>
#include <string_view>

namespace dunnock::training {

enum class RateSchedule : std::uint8_t { kConstant, kCosine, kLinear, kDrops };
/// "constant", "cosine", "linear", "step": kDrops is commonly called a step schedule.
[[nodiscard]] std::string_view to_string(RateSchedule schedule) noexcept;

struct LearningRate {
  RateSchedule schedule = RateSchedule::kConstant;
  double peak = 1e-3;
  std::uint64_t warmup_steps = 0;
  std::uint64_t steps = 0;       ///< Steps of the run with its warm-up (cosine, linear). <= warmup_steps: t is 1.
  double final_share = 0;        ///< Share of the peak at the end (cosine, linear).
  std::uint64_t drop_every = 1;  ///< Steps between drops; 1 or more.
  double drop_factor = 0.1;
  friend bool operator==(const LearningRate&, const LearningRate&) = default;
};

/// The rate of step 0, 1, 2, ... A pure function, so a resumed run needs only its step.
[[nodiscard]] double learning_rate_at(const LearningRate& rate, std::uint64_t step);

}  // namespace dunnock::training
