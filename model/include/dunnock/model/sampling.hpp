// Sampler: the next token from a model's logits: the likeliest one, or a random one of the likeliest.
//
//   logits --(top-k)--> the k largest --(/ temperature, softmax)--> probabilities --(Philox)--> a token
//
// A function of the logits, the options, the seed and the token's number: the same text again for the same seed, also
// when it is generated from the middle on. Not for beams, penalties or batches.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dunnock/base/result.hpp"

namespace dunnock::model {

struct SamplingOptions {
  double temperature = 1;  ///< 0: the likeliest token, of equals the first.
  unsigned top_k = 0;      ///< Only this many of the likeliest tokens, of equals the first; 0: all.
  std::uint64_t seed = 0;
};

class Sampler {
 public:
  /// The temperature is finite, and not below 0.
  explicit Sampler(const SamplingOptions& options);

  /// Token number `position` (its own random numbers: block `position` of the seed's) from logits (vocabulary).
  /// -infinity is a token that never comes. O(vocabulary). Errors: Corrupt: a logit is NaN or +infinity, or all
  /// are -infinity. `logits` has at least one.
  [[nodiscard]] Result<std::int32_t> token(std::span<const float> logits, std::uint64_t position);

 private:
  SamplingOptions options_;
  std::vector<std::int32_t> candidates_;  // Scratch: tokens ...
  std::vector<double> sums_;              // ... and the sums of their weights up to each.
};

}  // namespace dunnock::model
