// TrainingData: what a config's [data] names, as batches for the trainer, and texts of tokens.
//
//   text    --tokenizer--> tokens (in a file of their own, unnamed) --+--> training part  --TokenLoader--> batches
//   tokens  --------------------------------------------------------- +--> validation part, read in its order
//   images, labels --ImageSet--+--> ImageLoader --> batches
//   test images, or the last of the others ------> validation
//
// Not for keeping batches: a step's input stays until the next call of next().
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "config.hpp"
#include "dunnock/data/loader.hpp"
#include "dunnock/model/models.hpp"
#include "dunnock/training/trainer.hpp"

namespace dunnock::train {

class TrainingData {
 public:
  /// Opens the files, of which this rank gets the rows of `shard`. Errors: those of the files, naming the key; and
  /// InvalidArgument where the data does not fit the config (too little of it, images of another kind).
  [[nodiscard]] static Result<TrainingData> open(const LoadedConfig& loaded, const data::Shard& shard);
  TrainingData(TrainingData&&) noexcept;
  TrainingData& operator=(TrainingData&&) noexcept;
  ~TrainingData();

  /// The model's sizes, with what the data decides.
  [[nodiscard]] const model::ModelOptions& model() const;
  [[nodiscard]] std::uint64_t batches_per_epoch() const;
  [[nodiscard]] std::string_view items() const;         ///< "tokens" or "images"
  [[nodiscard]] std::uint64_t items_per_batch() const;  ///< Of all ranks.

  /// Begins with this batch; none: from the beginning. Errors: InvalidArgument: a position in other data.
  [[nodiscard]] Status start(const data::LoaderPosition* position);
  /// Whether that position can't say which tokens it is of: TokenLoader::start_lacks_checksum().
  [[nodiscard]] bool start_lacks_checksum() const;
  /// Of the batch that comes next.
  [[nodiscard]] data::LoaderPosition position() const;
  /// This rank's rows of the next `count` batches; they stay until the next call. Errors: Corrupt.
  [[nodiscard]] Result<std::vector<training::StepInput>> next(std::size_t count);

  /// Evaluates this rank's part of at most `batches` validation batches (0: all). Empty: there is no validation data.
  /// Calls `stops` after each micro-batch, and returns the result so far if that is true; it must return the same on
  /// all ranks. Errors: those of Trainer::evaluate() and of `stops`.
  [[nodiscard]] Result<std::optional<training::Evaluation>> evaluate(training::Trainer& trainer, std::uint64_t batches,
                                                                     const std::function<Result<bool>()>& stops);

  /// Tokens that texts have; the model may have room for more. Of tokens only.
  [[nodiscard]] std::size_t vocabulary() const;
  /// Of text. Errors: InvalidArgument: the token file has tokens that the tokenizer does not.
  [[nodiscard]] Result<std::vector<std::int32_t>> encode(std::string_view text) const;
  [[nodiscard]] Result<std::string> decode(std::span<const std::int32_t> tokens) const;

 private:
  struct State;
  explicit TrainingData(std::unique_ptr<State> state) noexcept;
  std::unique_ptr<State> state_;
};

}  // namespace dunnock::train
