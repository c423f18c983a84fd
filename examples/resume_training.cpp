// CheckpointStore: a training loop that may be killed at any moment and ends with the very same weights.
//
//   dunnock-resume-training POOL_FILE [STEPS] [STEPS_PER_SAVE]      kill -9 it and call it again
//
// It fits a linear model with stochastic gradient descent and momentum. The state (weights, momentum, step) is saved in
// the background by a CheckpointSaver while the next gradients are computed; `embedding` never changes, so it is
// written once. A checkpoint is there wholly or not at all, so the loop resumes from the newest.
#include <fmt/core.h>

#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <dunnock/index/checkpoint_saver.hpp>
#include <dunnock/index/checkpoint_store.hpp>

namespace {

using Store = dunnock::CheckpointStore<dunnock::FileMedia>;
using Saver = dunnock::CheckpointSaver<dunnock::FileMedia>;

constexpr std::size_t kFeatures = 4096;
constexpr std::size_t kBatch = 32;
constexpr std::size_t kFrozen = 1 << 20;
const dunnock::CheckpointOptions kStoreOptions = {.capacity_bytes = 256 << 20, .chunk_bytes = 64 << 10};

struct State {
  std::vector<float> weights = std::vector<float>(kFeatures);
  std::vector<float> momentum = std::vector<float>(kFeatures);
  std::vector<float> embedding = std::vector<float>(kFrozen, 0.5F);  // frozen
  std::uint64_t step = 0;
};

dunnock::TensorSource source(std::string name, const std::vector<float>& of) {
  dunnock::TensorSource source;
  source.spec = {std::move(name), dunnock::Dtype::kF32, {of.size()}};
  source.bytes = std::as_bytes(std::span(of));
  return source;
}

dunnock::TensorSink sink(std::string name, std::vector<float>& into) {
  dunnock::TensorSink sink;
  sink.spec = {std::move(name), dunnock::Dtype::kF32, {into.size()}};
  sink.bytes = std::as_writable_bytes(std::span(into));
  return sink;
}

/// The gradient for one batch, which depends on the step alone: a restarted run sees the same batches.
std::vector<float> gradient(const State& state) {
  std::vector<float> sum(kFeatures);
  std::mt19937 random(static_cast<std::uint32_t>(state.step));
  std::vector<float> x(kFeatures);
  for (std::size_t example = 0; example < kBatch; ++example) {
    float wanted = 0;
    for (std::size_t i = 0; i < kFeatures; ++i) {
      x[i] = static_cast<float>(random() % 2001) / 1000.0F - 1.0F;
      wanted += x[i] * static_cast<float>(i % 7);
    }
    const float error = std::inner_product(x.begin(), x.end(), state.weights.begin(), 0.0F) - wanted;
    for (std::size_t i = 0; i < kFeatures; ++i) sum[i] += error * x[i] / kBatch;
  }
  return sum;
}

void update(State& state, const std::vector<float>& by) {
  for (std::size_t i = 0; i < kFeatures; ++i) {
    state.momentum[i] = 0.9F * state.momentum[i] + by[i];
    state.weights[i] -= 0.0005F * state.momentum[i];
  }
  ++state.step;
}

dunnock::Status train(Store& store, std::uint64_t steps, std::uint64_t steps_per_save) {
  State state;
  const auto newest = store.latest("run");
  if (!newest) return tl::unexpected(newest.error());  // Never an older one without a word.
  if (*newest) {
    const std::vector<dunnock::TensorSink> sinks = {sink("weights", state.weights), sink("momentum", state.momentum),
                                                    sink("embedding", state.embedding)};
    auto restored = store.restore("run", **newest, sinks);
    if (!restored) return tl::unexpected(restored.error());
    state.step = restored->version;
    fmt::print("resumed at step {}\n", state.step);
  }

  // 32 MiB of copies at most; the newest two checkpoints stay.
  auto saver = Saver::create(store, {.staging_bytes = 32 << 20, .retention = dunnock::Retention{.keep_last = 2}});
  if (!saver) return tl::unexpected(saver.error());
  std::optional<dunnock::PendingSave> pending;
  while (state.step < steps) {
    const std::vector<float> by = gradient(state);  // Reads the weights, as the saver does.
    if (pending) pending->wait_captured();          // From here on they change.
    update(state, by);
    if (state.step % steps_per_save != 0 && state.step != steps) continue;
    if (pending) {
      if (auto saved = pending->wait(); !saved) return tl::unexpected(saved.error());
    }
    pending = (*saver)->save(
        "run", state.step,
        {source("weights", state.weights), source("momentum", state.momentum), source("embedding", state.embedding)});
  }
  if (pending) {
    auto saved = pending->wait();
    if (!saved) return tl::unexpected(saved.error());
    fmt::print("step {}: {} of {} chunks were new\n", state.step, saved->chunks_written, saved->chunks);
  }
  const std::string_view bytes(reinterpret_cast<const char*>(state.weights.data()), kFeatures * sizeof(float));
  const dunnock::IndexKey digest = dunnock::IndexKey::of(bytes);
  fmt::print("weights {:016x}{:016x}\n", digest.high, digest.low);
  return {};
}

dunnock::Status run(const std::string& path, std::uint64_t steps, std::uint64_t steps_per_save) {
  auto store = Store::open_or_create(path, "training", kStoreOptions);
  if (!store) return tl::unexpected(store.error());
  const dunnock::Status trained = train(**store, steps, steps_per_save);
  const dunnock::Status closed = store->close();
  return trained ? closed : trained;
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t steps = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 400;
  const std::uint64_t steps_per_save = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 5;
  if (argc < 2 || argc > 4 || steps == 0 || steps_per_save == 0) {
    fmt::print(stderr, "usage: dunnock-resume-training POOL_FILE [STEPS] [STEPS_PER_SAVE]\n");
    return 2;
  }
  const dunnock::Status status = run(argv[1], steps, steps_per_save);
  if (!status) fmt::print(stderr, "{}: {}\n", dunnock::to_string(status.error().code), status.error().message);
  return status ? 0 : 1;
}
