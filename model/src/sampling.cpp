#include "dunnock/model/sampling.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "dunnock/base/check.hpp"
#include "dunnock/kernels/philox.hpp"

namespace dunnock::model {
namespace {

/// 53 bits as 0 <= u < 1: 24 would never draw the rarest tokens of a large vocabulary.
double uniform(const kernels::PhiloxBlock& block) {
  const std::uint64_t bits = (std::uint64_t{block.words[0]} << 32 | block.words[1]) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

}  // namespace

Sampler::Sampler(const SamplingOptions& options) : options_(options) {
  DUNNOCK_CHECK(std::isfinite(options.temperature), "a temperature is finite");
  DUNNOCK_CHECK(options.temperature >= 0, "a temperature is not negative");
}

Result<std::int32_t> Sampler::token(std::span<const float> logits, std::uint64_t position) {
  DUNNOCK_CHECK(!logits.empty(), "there is at least one logit");
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == std::numeric_limits<float>::infinity()) {
      return make_error(ErrorCode::kCorrupt,
                        "logit " + std::to_string(i) + " is " + (std::isnan(logits[i]) ? "NaN" : "Inf"));
    }
  }
  const auto largest = std::ranges::max_element(logits);  // The first of equals.
  if (std::isinf(*largest)) return make_error(ErrorCode::kCorrupt, "all logits are -Inf");
  if (options_.temperature == 0) return static_cast<std::int32_t>(largest - logits.begin());

  candidates_.resize(logits.size());
  std::iota(candidates_.begin(), candidates_.end(), 0);
  if (options_.top_k > 0 && options_.top_k < logits.size()) {
    const auto likelier = [&](std::int32_t a, std::int32_t b) {
      const float left = logits[static_cast<std::size_t>(a)], right = logits[static_cast<std::size_t>(b)];
      return left != right ? left > right : a < b;
    };
    std::ranges::nth_element(candidates_, candidates_.begin() + options_.top_k - 1, likelier);
    candidates_.resize(options_.top_k);
    std::ranges::sort(candidates_);  // How nth_element leaves them is the library's affair; the token must not be.
  }
  sums_.clear();
  double sum = 0;
  for (const std::int32_t candidate : candidates_) {
    const double behind = static_cast<double>(logits[static_cast<std::size_t>(candidate)]) - *largest;
    sum += std::exp(behind / options_.temperature);  // At most 1, and 1 for the likeliest: neither overflow nor all 0.
    sums_.push_back(sum);
  }
  const double drawn = uniform(kernels::philox_block({.seed = options_.seed}, position)) * sum;
  const auto at = std::ranges::upper_bound(sums_, drawn);  // A weight of 0 is never drawn.
  // Rounding may make `drawn` the sum itself.
  const auto found = at == sums_.end() ? std::ranges::lower_bound(sums_, sum) : at;
  return candidates_[static_cast<std::size_t>(found - sums_.begin())];
}

}  // namespace dunnock::model
