#include "dunnock/training/weights.hpp"

#include <vector>

namespace dunnock::training {

Result<model::LoadedWeights> load_weights(Trainer& trainer, const std::string& path) {
  DUNNOCK_TRY(auto read, model::read_weights(trainer.options().model, trainer.whole_state(), path));
  DUNNOCK_TRY(trainer.load(read.values));
  return read.loaded;
}

Status save_weights(Trainer& trainer, const std::string& path) {
  DUNNOCK_TRY(const auto values, trainer.gather());
  if (values.empty()) return {};  // Rank 0 of the pipeline writes them.
  return model::write_weights(trainer.whole_state(), values, path);
}

}  // namespace dunnock::training
