// OptimizerOptions: how weights follow their gradients. The learning rate comes with each step.
#pragma once

#include <cstdint>

namespace dunnock::training {

enum class OptimizerKind : std::uint8_t { kAdamw, kSgd };

/// As torch.optim.AdamW and SGD (kernels/optimizer.hpp has the formulas). Weight decay applies to matrices and
/// convolutions, not to norms and biases.
struct OptimizerOptions {
  OptimizerKind kind = OptimizerKind::kAdamw;
  float beta1 = 0.9F;
  float beta2 = 0.999F;
  float epsilon = 1e-8F;
  float weight_decay = 0;
  float momentum = 0;     ///< SGD
  bool nesterov = false;  ///< SGD; needs a momentum.
  float clip = 0;         ///< If the norm of all gradients together is larger, scales them to it; 0: never.
};

}  // namespace dunnock::training
