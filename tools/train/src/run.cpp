#include "run.hpp"

#include <fmt/core.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <optional>
#include <utility>
#include <vector>

#include "data.hpp"
#include "dunnock/gpu/kernels/matmul.hpp"
#include "dunnock/training/checkpoints.hpp"
#include "dunnock/training/trainer.hpp"
#include "dunnock/training/weights_file.hpp"
#include "log.hpp"
#include "plot.hpp"
#include "progress.hpp"
#include "sampling.hpp"

namespace dunnock::train {
namespace {

using Clock = std::chrono::steady_clock;
using training::StepInput;

volatile std::sig_atomic_t g_signal = 0;

void on_signal(int number) {
  if (g_signal != 0) {
    std::signal(number, SIG_DFL);
    std::raise(number);
  }
  g_signal = number;
}

tl::unexpected<Error> invalid(std::string what) { return make_error(ErrorCode::kInvalidArgument, std::move(what)); }

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

std::uint64_t memory_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

/// Floating point operations a second of a product of 1024 x 1024 matrices: what a share of the peak is a share of.
Result<double> measured_peak(gpu::Device device, NumberType type, unsigned threads) {
  constexpr std::size_t kSide = 1024;
  auto stream = gpu::Stream::create(device, {.threads = threads});
  if (!stream) return tl::unexpected(stream.error());
  const auto measure = [&]<class T>(T /*type*/) -> Result<double> {
    const gpu::MatmulShape shape{.rows = kSide, .columns = kSide, .inner = kSide};
    auto values = gpu::Buffer<T>::create(3 * kSide * kSide, *stream);
    auto workspace =
        gpu::Buffer<std::byte>::create(std::max<std::size_t>(1, gpu::matmul_workspace_bytes(shape, device)), *stream);
    if (!values) return tl::unexpected(values.error());
    if (!workspace) return tl::unexpected(workspace.error());
    gpu::fill_bytes(values->span(), std::byte{0}, *stream);
    const auto part = [&](std::size_t i) { return values->span().subspan(i * kSide * kSide, kSide * kSide); };
    double best_s = 1e30;
    for (int round = 0; round < 5; ++round) {
      if (Status done = stream->synchronize(); !done) return tl::unexpected(done.error());
      const auto begin = Clock::now();
      gpu::matmul<T, T>(part(0), part(1), part(2), shape, {}, workspace->span(), *stream);
      if (Status done = stream->synchronize(); !done) return tl::unexpected(done.error());
      if (round > 0) best_s = std::min(best_s, seconds_since(begin));
    }
    return 2.0 * kSide * kSide * kSide / best_s;
  };
  return type == NumberType::kF32 ? measure(float{}) : measure(gpu::Bf16{});
}

training::TrainerOptions trainer_options(const TrainConfig& config, const training::ModelOptions& model,
                                         const RunOptions& options) {
  const RunConfig& run = config.run;
  const OptimizerConfig& optimizer = config.optimizer;
  const auto narrow = [](double value) { return static_cast<float>(value); };
  training::TrainerOptions made{
      .model = model,
      .type = config.model.dtype == NumberType::kF32 ? training::DataType::kF32 : training::DataType::kBf16,
      .rows = run.batch / run.data_parallel / run.micro_batches,
      .micro_batches = run.micro_batches,
      .seed = run.seed,
      .optimizer = {.kind = optimizer.kind == OptimizerKind::kAdamw ? training::OptimizerKind::kAdamw
                                                                    : training::OptimizerKind::kSgd,
                    .beta1 = narrow(optimizer.beta1),
                    .beta2 = narrow(optimizer.beta2),
                    .epsilon = narrow(optimizer.epsilon),
                    .weight_decay = narrow(optimizer.weight_decay),
                    .momentum = narrow(optimizer.momentum),
                    .nesterov = optimizer.nesterov,
                    .clip = narrow(optimizer.clip)},
      .schedule = run.schedule,
      .window = run.window,
      .threads = run.threads,
      .as_graph = run.as_graph,
      .measures = !options.trace.empty(),
      .measures_costs = run.measure_costs};
  made.plan.message_bytes = run.bucket_kib << 10;
  if (run.memory_limit_mib != 0) made.plan.memory_limit_bytes = run.memory_limit_mib << 20;
  made.plan.link = {.latency_us = 30, .gb_per_s = 2};  // Processes of one machine, over MPI.
  return made;
}

/// The groups of a rank: rank = stage * data_parallel + data rank.
struct Groups {
  std::optional<gpu::Communicator> data;
  std::optional<gpu::Communicator> pipeline;
  std::optional<gpu::Communicator> pipeline_sums;

  static Result<Groups> split(gpu::Communicator& world, const RunConfig& run) {
    Groups groups;
    const unsigned stage = world.rank() / run.data_parallel;
    const unsigned data_rank = world.rank() % run.data_parallel;
    const auto part = [&](unsigned color, unsigned key, std::optional<gpu::Communicator>& to) -> Status {
      auto made = world.split(color, key);
      if (!made) return tl::unexpected(made.error());
      to.emplace(std::move(*made));
      return {};
    };
    if (Status done = part(stage, data_rank, groups.data); !done) return tl::unexpected(done.error());
    if (Status done = part(data_rank, stage, groups.pipeline); !done) return tl::unexpected(done.error());
    if (Status done = part(data_rank, stage, groups.pipeline_sums); !done) return tl::unexpected(done.error());
    return groups;
  }
  [[nodiscard]] training::Ranks ranks() {
    const auto some = [](std::optional<gpu::Communicator>& group) {
      return group && group->size() > 1 ? &*group : nullptr;
    };
    return {some(data), some(pipeline), some(pipeline_sums)};
  }
};

class Runner {
 public:
  Runner(const LoadedConfig& loaded, const RunOptions& options, gpu::Communicator* world)
      : loaded_(loaded),
        config_(loaded.config),
        options_(options),
        world_(world),
        progress_(stderr, progress_options(options, world)) {}

  ~Runner() {
    if (events_ != nullptr) std::fclose(events_);
  }
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  Result<RunResult> go() {
    if (first() && !options_.events.empty()) {
      events_ = std::fopen(options_.events.c_str(), "ae");
      if (events_ == nullptr) return make_error(ErrorCode::kIo, options_.events + " can't be written");
    }
    if (Status done = set_up(); !done) return tl::unexpected(done.error());
    event(resumed_ ? "resumed" : "started");
    auto result = train();
    if (!result) return result;
    event(result->interrupted ? "stopped" : "done", fmt::format(", \"seconds\": {:.3f}", seconds_since(begun_)));
    if (Status done = finish(*result); !done) return tl::unexpected(done.error());
    return result;
  }

 private:
  static Progress::Options progress_options(const RunOptions& options, const gpu::Communicator* world) {
    Progress::Options made = Progress::options_for(stderr);
    if (options.quiet || (world != nullptr && world->rank() != 0)) made.seconds_between = 1e30;
    return made;
  }
  [[nodiscard]] bool first() const { return world_ == nullptr || world_->rank() == 0; }
  void say(const std::string& line) {
    if (first() && !options_.quiet) progress_.print(line);
  }

  void event(std::string_view name, const std::string& more = {}) { event_at(name, step_, more); }
  void event_at(std::string_view name, std::uint64_t step, const std::string& more) {
    if (events_ == nullptr) return;
    // Who watches may be gone, or his disk full: training goes on.
    const std::string line = fmt::format("{{\"event\": \"{}\", \"step\": {}{}}}\n", name, step, more);
    std::fwrite(line.data(), 1, line.size(), events_);
    std::fflush(events_);
  }

  Status set_up() {
    const RunConfig& run = config_.run;
    if (run.as_graph && !options_.trace.empty())
      return invalid("--trace: the operations of a recorded graph are not measured; run it without run.as_graph");
    const unsigned ranks = world_ == nullptr ? 1 : world_->size();
    if (run.data_parallel * run.pipeline != ranks)
      return invalid("run.data_parallel x run.pipeline is " + std::to_string(run.data_parallel) + " x " +
                     std::to_string(run.pipeline) + ", and there are " + std::to_string(ranks) +
                     " processes: start it with mpirun -n " + std::to_string(run.data_parallel * run.pipeline));
    if (run.batch % (run.data_parallel * run.micro_batches) != 0)
      return invalid(loaded_.where("run.batch") + ": " + std::to_string(run.batch) + " rows can't be divided among " +
                     std::to_string(run.data_parallel) + " ranks x " + std::to_string(run.micro_batches) +
                     " micro-batches");
    if (world_ != nullptr) {
      auto groups = Groups::split(*world_, run);
      if (!groups) return tl::unexpected(groups.error());
      groups_ = std::move(*groups);
    }
    const unsigned data_rank = world_ == nullptr ? 0 : world_->rank() % run.data_parallel;
    auto data = TrainingData::open(loaded_, {data_rank, run.data_parallel});
    if (!data) return tl::unexpected(data.error());
    data_.emplace(std::move(*data));
    if (config_.sample.tokens > 0 && data_->items() == "tokens") {
      if (const auto prompt = data_->encode(config_.sample.prompt); !prompt)
        return make_error(prompt.error().code, loaded_.where("sample.tokens") + ": " + prompt.error().message);
    }
    steps_ = run.steps != 0 ? run.steps : run.epochs * data_->batches_per_epoch();

    gpu::Device device = gpu::Device::cpu();
    if (run.device == DeviceKind::kCuda) {
      const unsigned rank = world_ == nullptr ? 0 : world_->rank();
      auto cuda = gpu::Device::cuda(gpu::Device::cuda_count() > 0 ? rank % gpu::Device::cuda_count() : 0);
      if (!cuda) return tl::unexpected(cuda.error());
      device = *cuda;
      if (world_ != nullptr) {
        if (Status done = use_nccl(device); !done) return done;
      }
    }
    auto trainer =
        training::Trainer::create(device, trainer_options(config_, data_->model(), options_), groups_.ranks());
    if (!trainer) return tl::unexpected(trainer.error());
    trainer_ = std::move(*trainer);
    say(fmt::format("{}; {} parameters, {}, schedule {}{}", to_string(data_->model()),
                    rate_text(static_cast<double>(training::parameter_count(data_->model()))),
                    to_string(config_.model.dtype), run.schedule,
                    trainer_->plan().choice.empty() ? "" : " (" + trainer_->plan().choice + ")"));
    if (ranks == 1) {
      // Of all threads that compute; multi-stream has two lanes of them.
      auto peak = measured_peak(device, config_.model.dtype, run.threads * (run.schedule == "multi-stream" ? 2 : 1));
      if (!peak) return tl::unexpected(peak.error());
      peak_ = *peak;
    }
    if (!options_.weights.empty()) {
      const auto loaded = training::load_weights(*trainer_, options_.weights);
      if (!loaded) return tl::unexpected(loaded.error());
      if (!loaded->left_out.empty())
        say(fmt::format("{}: {} tensors are no weights and are left out: {}", options_.weights, loaded->left_out.size(),
                        fmt::join(loaded->left_out, ", ")));
    }
    return open_checkpoints();
  }

  Status use_nccl(gpu::Device device) {
    for (auto* group : {&groups_.data, &groups_.pipeline, &groups_.pipeline_sums}) {
      if ((*group)->size() < 2) continue;
      auto made = gpu::Communicator::nccl(device, **group, {.timeout = peer_timeout(config_.run)});
      if (!made) return tl::unexpected(made.error());
      host_groups_.push_back(std::move(**group));
      group->emplace(std::move(*made));
    }
    return {};
  }

  Status open_checkpoints() {
    const CheckpointConfig& checkpoint = config_.checkpoint;
    std::optional<std::uint64_t> resumed;
    if (!checkpoint.pool.empty()) {
      std::error_code unseen;  // What can't be looked at can't be opened either, which says why.
      if (first() && !resumes() && std::filesystem::exists(checkpoint.pool, unseen)) {
        return make_error(ErrorCode::kAlreadyExists,
                          checkpoint.pool + " is there: go on with --resume, or remove it to begin anew");
      }
      if (first() && options_.resume_step && !std::filesystem::exists(checkpoint.pool, unseen))
        return make_error(ErrorCode::kNotFound, checkpoint.pool + " is not there");
      training::CheckpointsOptions pool{.path = checkpoint.pool,
                                        .capacity_bytes = checkpoint.pool_mib << 20,
                                        // 1: the least that goes.
                                        .staging_bytes = std::max<std::uint64_t>(1, checkpoint.staging_mib << 20),
                                        .retention = {checkpoint.keep_last, checkpoint.keep_every}};
      if (checkpoint.media != "auto") {
        const auto kind = media_kind(checkpoint.media);
        if (!kind) return tl::unexpected(kind.error());
        pool.media = *kind;
      }
      auto opened = training::Checkpoints::open(pool, *trainer_, world_);
      if (!opened) return about_pool(opened.error());
      checkpoints_.emplace(std::move(*opened));
      if (resumes()) {
        const auto begin = Clock::now();
        if (options_.verify) {
          const Status sound = checkpoints_->verify(options_.resume_step);
          if (!sound && sound.error().code != ErrorCode::kNotFound) return about_checkpoint(sound.error());
        }
        auto position = resume();
        if (!position) return about_checkpoint(position.error());
        if (!*position) {
          say(fmt::format("{} holds no checkpoint yet: from the beginning", checkpoint.pool));
        } else {
          step_ = (*position)->step;
          resumed = saved_step_ = tried_step_ = step_;
          resumed_ = true;
          if (Status started = data_->start(&(*position)->next_batch); !started) return started;
          if (data_->start_lacks_checksum())
            say("the checkpoint was made before checksums of such token files were kept: whether data.tokens are the "
                "same tokens can't be said, but that they are as many");
          if (options_.resume_step) {
            // Everything else has agreed by now.
            if (Status usable = check_logs(); !usable) return usable;
            if (Status removed = checkpoints_->remove_newer(step_); !removed) return about_pool(removed.error());
          }
          say(fmt::format("resumed behind step {} in {:.2f} s{}", step_, seconds_since(begin),
                          options_.verify ? ", every byte verified" : ""));
        }
      }
    } else if (resumes()) {
      return invalid("there is nothing to resume from: checkpoint.pool names no pool");
    }
    if (!first()) return {};
    const LogConfig& log = config_.log;
    if (log.csv.empty() && log.json.empty()) return {};
    auto opened = TrainingLog::open({log.csv, log.json}, resumed);
    if (!opened) return tl::unexpected(opened.error());
    log_.emplace(std::move(*opened));
    if (resumed) {
      const auto rows = read_log(log.csv.empty() ? log.json : log.csv);
      if (rows && !rows->empty()) seconds_before_ = rows->back().seconds;
    }
    return {};
  }
  /// Whether the logs are logs, and can be written.
  [[nodiscard]] Status check_logs() const {
    if (!first()) return {};
    for (const std::string& path : {config_.log.csv, config_.log.json}) {
      std::error_code unseen;
      if (path.empty() || !std::filesystem::exists(path, unseen)) continue;
      if (auto rows = read_log(path); !rows) return tl::unexpected(rows.error());
      if (access(path.c_str(), W_OK) != 0) return make_error(ErrorCode::kReadOnly, path + " can't be written");
    }
    return {};
  }
  [[nodiscard]] bool resumes() const { return options_.resume || options_.resume_step; }
  Result<std::optional<training::Position>> resume() {
    const std::uint64_t setup = identity_of(config_);
    if (!options_.resume_step) return checkpoints_->resume(setup);
    auto position = checkpoints_->resume_from(*options_.resume_step, setup);
    if (!position) return tl::unexpected(position.error());
    return *position;
  }
  /// What is damaged is not the end, where there are others.
  [[nodiscard]] tl::unexpected<Error> about_checkpoint(Error error) const {
    if (error.code == ErrorCode::kCorrupt && first() && !checkpoints_->versions().empty())
      error.message +=
          fmt::format(". --resume-step N goes on from another, if that one is sound: there are those of {}",
                      fmt::join(checkpoints_->versions(), ", "));
    return about_pool(error);
  }
  [[nodiscard]] tl::unexpected<Error> about_pool(const Error& error) const {
    return make_error(error.code, config_.checkpoint.pool + ": " + error.message);
  }

  /// Steps until something is to be done between two windows.
  [[nodiscard]] std::size_t next_steps() const {
    std::uint64_t until = steps_ - step_;
    for (const std::uint64_t every : {config_.run.evaluate_every, config_.checkpoint.every, config_.run.log_every}) {
      if (every != 0) until = std::min(until, every - step_ % every);
    }
    return static_cast<std::size_t>(std::min<std::uint64_t>(until, config_.run.window));
  }

  /// Whether all ranks stop here. One that has got a signal tells the others.
  Result<bool> stops() {
    const bool wants = g_signal != 0 || (options_.seconds_max > 0 && seconds_since(begun_) > options_.seconds_max);
    if (world_ == nullptr) return wants;
    auto stream = gpu::Stream::create(gpu::Device::cpu());
    if (!stream) return tl::unexpected(stream.error());
    float flag = wants ? 1 : 0;
    world_->all_reduce<float>({&flag, 1}, gpu::Reduction::kMax, *stream);
    if (Status done = stream->synchronize(); !done) return tl::unexpected(done.error());
    return flag != 0;
  }

  Result<RunResult> train() {
    const training::LearningRate rate = learning_rate_of(config_, steps_);
    begun_ = Clock::now();
    first_step_ = step_;
    double loss_sum = 0;
    std::size_t loss_count = 0;
    std::optional<double> norm;
    auto row_begun = Clock::now();
    std::uint64_t row_step = step_;
    while (step_ < steps_) {
      const auto stopped = stops();
      if (!stopped) return tl::unexpected(stopped.error());
      if (*stopped) break;
      auto inputs = data_->next(next_steps());
      if (!inputs) return tl::unexpected(inputs.error());
      for (std::size_t i = 0; i < inputs->size(); ++i)
        (*inputs)[i].learning_rate = static_cast<float>(training::learning_rate_at(rate, step_ + i));
      const auto results = trainer_->run(*inputs);
      if (!results) return tl::unexpected(results.error());
      for (std::size_t i = 0; i < results->size(); ++i) {
        const training::StepResult& result = (*results)[i];
        const bool finite =
            std::isfinite(result.loss) && (!result.gradient_norm || std::isfinite(*result.gradient_norm));
        if (!finite) return not_a_number(step_ + i + 1, result);
        loss_sum += result.loss;
        ++loss_count;
        norm = result.gradient_norm;
      }
      step_ += results->size();
      const bool evaluates = config_.run.evaluate_every != 0 && step_ % config_.run.evaluate_every == 0;
      const bool logs = config_.run.log_every != 0 && step_ % config_.run.log_every == 0;
      const double seconds = seconds_since(row_begun);
      LogRow row{.step = step_,
                 .epoch = static_cast<double>(step_) / static_cast<double>(data_->batches_per_epoch()),
                 .loss = loss_sum / static_cast<double>(loss_count),
                 .learning_rate = training::learning_rate_at(rate, step_ - 1),
                 .gradient_norm = norm,
                 .items_per_second = static_cast<double>((step_ - row_step) * data_->items_per_batch()) / seconds,
                 .memory_bytes = memory_bytes(),
                 .seconds = seconds_before_ + seconds_since(begun_)};
      if (peak_ > 0)
        row.peak_share = trainer_->flops_per_step() * static_cast<double>(step_ - row_step) / seconds / peak_;
      if (evaluates || step_ == steps_) {
        if (Status done = evaluate(row); !done) return tl::unexpected(done.error());
      }
      if (logs || evaluates || step_ == steps_) {
        if (Status done = write(row); !done) say("the log: " + done.error().message);
        loss_sum = 0;
        loss_count = 0;
        row_begun = Clock::now();
        row_step = step_;
      }
      show(row);
      if (checkpoints_ && config_.checkpoint.every != 0 && step_ % config_.checkpoint.every == 0) save();
    }
    RunResult result{step_, step_ < steps_};
    // What was interrupted goes on from here.
    if (checkpoints_) {
      if (tried_step_ != step_) save();
      take(checkpoints_->wait());
      result.saved = !save_failed_;
    }
    if (Status done = sync_ranks(); !done) return tl::unexpected(done.error());
    return result;
  }

  tl::unexpected<Error> not_a_number(std::uint64_t step, const training::StepResult& result) {
    std::string what = fmt::format("step {}: the loss is {}", step, result.loss);
    if (result.gradient_norm) what += fmt::format(", the gradients' norm {}", *result.gradient_norm);
    what += ". A smaller optimizer.learning_rate, a longer optimizer.warmup or optimizer.clip may help";
    if (checkpoints_) {
      take(checkpoints_->wait());
      // What was saved the first rank knows; and who ends before it has told would take it along.
      if (Status told = share_saved_step(); !told) return tl::unexpected(told.error());
      what += saved_step_ ? fmt::format("; the checkpoint of step {} is intact", *saved_step_)
                          : std::string("; there is no checkpoint yet");
    }
    return make_error(ErrorCode::kInvalidArgument, what);
  }

  Status evaluate(LogRow& row) {
    auto evaluation = data_->evaluate(*trainer_, config_.run.evaluate_batches);
    if (!evaluation) return tl::unexpected(evaluation.error());
    if (!*evaluation) {
      if (!std::exchange(told_of_validation_, true))
        say("no validation loss: data.validation_share is 0, or too little for a batch");
      return {};
    }
    float sums[3] = {static_cast<float>((*evaluation)->loss), static_cast<float>((*evaluation)->correct),
                     static_cast<float>((*evaluation)->targets)};
    double loss = (*evaluation)->loss / static_cast<double>((*evaluation)->targets);
    double accuracy = static_cast<double>((*evaluation)->correct) / static_cast<double>((*evaluation)->targets);
    if (config_.run.data_parallel > 1) {
      auto stream = gpu::Stream::create(gpu::Device::cpu());
      if (!stream) return tl::unexpected(stream.error());
      host_data().all_reduce<float>({sums, 3}, gpu::Reduction::kSum, *stream);
      if (Status done = stream->synchronize(); !done) return done;
      loss = static_cast<double>(sums[0]) / static_cast<double>(sums[2]);
      accuracy = static_cast<double>(sums[1]) / static_cast<double>(sums[2]);
    }
    row.validation_loss = validation_loss_ = loss;
    if (data_->items() == "images") row.accuracy = accuracy;
    say(fmt::format("step {}: validation loss {:.4f}{}", step_, loss,
                    row.accuracy ? fmt::format(", accuracy {:.2f} %", 100 * accuracy) : ""));
    return {};
  }
  gpu::Communicator& host_data() { return host_groups_.empty() ? *groups_.data : host_groups_.front(); }

  Status write(LogRow& row) {
    row.checkpoint_bytes = std::exchange(written_bytes_, 0);
    rows_.push_back(row);
    if (!log_) return {};
    return log_->add(row);
  }

  void show(const LogRow& row) {
    const double left = seconds_since(begun_) / static_cast<double>(std::max<std::uint64_t>(1, step_ - first_step_)) *
                        static_cast<double>(steps_ - step_);
    const ProgressFacts facts{.step = step_,
                              .steps = steps_,
                              .loss = row.loss,
                              .validation_loss = validation_loss_,
                              .items_per_second = row.items_per_second,
                              .items = data_->items(),
                              .peak_share = row.peak_share,
                              .memory_bytes = row.memory_bytes,
                              .seconds_left = left};
    if (!first() || options_.quiet) return;
    if (step_ == steps_) {
      progress_.finish(facts);
    } else {
      progress_.show(facts, row.seconds);
    }
  }

  Status share_saved_step() {
    if (world_ == nullptr) return {};
    auto stream = gpu::Stream::create(gpu::Device::cpu());
    if (!stream) return tl::unexpected(stream.error());
    std::uint64_t words[2] = {saved_step_ ? 1U : 0U, saved_step_.value_or(0)};
    world_->broadcast<std::byte>({reinterpret_cast<std::byte*>(words), sizeof(words)}, 0, *stream);
    if (Status done = stream->synchronize(); !done) return done;
    saved_step_ = words[0] != 0 ? std::optional(words[1]) : std::nullopt;
    return {};
  }

  /// A save that fails is told, and training goes on: what was saved before is there.
  void save() {
    const training::Position position{.step = step_, .setup = identity_of(config_), .next_batch = data_->position()};
    take(checkpoints_->wait());
    event("saving");
    pending_step_ = tried_step_ = step_;
    take(checkpoints_->save(position));
  }
  void take(const Result<std::optional<SaveReport>>& report) {
    if (!report) {
      if (first())
        progress_.print(fmt::format(
            "the checkpoint of step {} was not saved: {}; {}", pending_step_.value_or(0), report.error().message,
            saved_step_ ? fmt::format("that of step {} is intact", *saved_step_) : "there is none yet"));
      event_at("save failed", pending_step_.value_or(0), {});
      pending_step_.reset();
      save_failed_ = true;
      return;
    }
    if (!*report) return;
    saved_step_ = (*report)->version;
    save_failed_ = false;
    pending_step_.reset();
    event_at("saved", *saved_step_,
             fmt::format(
                 ", \"seconds\": {:.4f}, \"bytes\": {}, \"tensor_bytes\": {}, \"chunks_written\": {}, \"chunks\": {}",
                 (*report)->seconds, (*report)->bytes_written, (*report)->tensor_bytes, (*report)->chunks_written,
                 (*report)->chunks));
    written_bytes_ += (*report)->bytes_written;
  }

  /// All ranks have come here, so nobody ends while another waits for it.
  Status sync_ranks() {
    if (world_ == nullptr) return {};
    auto stream = gpu::Stream::create(gpu::Device::cpu());
    if (!stream) return tl::unexpected(stream.error());
    world_->barrier(*stream);
    return stream->synchronize();
  }

  Status finish(const RunResult& result) {
    if (!options_.save_weights.empty() && trainer_->data_rank() == 0) {
      if (Status done = training::save_weights(*trainer_, options_.save_weights); !done) return done;
    }
    if (!options_.trace.empty()) {
      if (Status done = write_trace(); !done) return done;
    }
    if (!first()) return {};
    if (!config_.log.plot.empty()) {
      std::vector<LogRow> rows = rows_;
      const std::string& log = config_.log.csv.empty() ? config_.log.json : config_.log.csv;
      if (!log.empty()) {
        if (auto all = read_log(log)) rows = std::move(*all);
      }
      const std::vector<LossCurve> curves{{loaded_.name, std::move(rows)}};
      if (Status done = write_loss_svg(config_.log.plot, curves); !done) return done;
    }
    if (result.interrupted) {
      say(checkpoints_ && !save_failed_ ? fmt::format("stopped behind step {}; it is saved, --resume goes on", step_)
                                        : fmt::format("stopped behind step {}", step_));
      return {};
    }
    if (config_.sample.tokens > 0 && data_->items() == "tokens") return sample();
    return {};
  }

  Status write_trace() {
    const auto timeline = trainer_->last_run();
    if (!timeline) return tl::unexpected(timeline.error());
    const std::string path = first() ? options_.trace : options_.trace + ".rank" + std::to_string(world_->rank());
    return gpu::write_chrome_json(path, trainer_->rank_graph(), trainer_->rank_schedule(), *timeline);
  }

  Status sample() {
    if (config_.run.pipeline > 1) {
      say("no text is generated from a pipeline: resume it on one rank for that");
      return {};
    }
    const auto& gpt = std::get<training::GptOptions>(data_->model());
    const auto prompt = data_->encode(config_.sample.prompt);
    if (!prompt) return tl::unexpected(prompt.error());
    std::vector<std::int32_t> tokens = prompt->empty() ? std::vector<std::int32_t>{0} : *prompt;
    Sampler sampler({config_.sample.temperature, config_.sample.top_k, config_.run.seed});
    const std::size_t begin = tokens.size();
    for (unsigned i = 0; i < config_.sample.tokens; ++i) {
      // The last tokens, as many as it sees; what is behind them is not looked at, for attention is causal.
      const std::size_t seen = std::min(tokens.size(), gpt.context);
      std::vector<std::int32_t> row(tokens.end() - static_cast<std::ptrdiff_t>(seen), tokens.end());
      row.resize(gpt.context, 0);
      const auto logits = trainer_->logits({.tokens = row});
      if (!logits) return tl::unexpected(logits.error());
      const auto next =
          sampler.token(std::span(*logits).subspan((seen - 1) * gpt.vocabulary, data_->vocabulary()), begin + i);
      if (!next) return tl::unexpected(next.error());
      tokens.push_back(*next);
    }
    const auto text = data_->decode(tokens);
    if (!text) return tl::unexpected(text.error());
    const std::string line = *text + "\n";
    if (std::fwrite(line.data(), 1, line.size(), stdout) != line.size() || std::fflush(stdout) != 0)
      return make_error(ErrorCode::kIo, "the text can't be written");
    return {};
  }

  const LoadedConfig& loaded_;
  const TrainConfig& config_;
  const RunOptions& options_;
  gpu::Communicator* world_;
  Groups groups_;
  std::vector<gpu::Communicator> host_groups_;  // Behind NCCL's.
  std::optional<TrainingData> data_;
  std::unique_ptr<training::Trainer> trainer_;
  std::optional<training::Checkpoints> checkpoints_;  // Reads the trainer's memory until it goes.
  std::optional<TrainingLog> log_;
  Progress progress_;
  std::vector<LogRow> rows_;
  double peak_ = 0;
  std::uint64_t steps_ = 0;
  std::uint64_t step_ = 0;
  std::uint64_t first_step_ = 0;  // Of this process.
  std::optional<std::uint64_t> saved_step_;
  std::optional<std::uint64_t> pending_step_;  // Of the save under way.
  std::optional<std::uint64_t> tried_step_;    // Of the last one; the same on all ranks.
  bool save_failed_ = false;
  bool resumed_ = false;
  std::FILE* events_ = nullptr;
  std::uint64_t written_bytes_ = 0;
  std::optional<double> validation_loss_;
  bool told_of_validation_ = false;
  Clock::time_point begun_ = Clock::now();
  double seconds_before_ = 0;  // Those of the log that is continued.
};

}  // namespace

Result<RunResult> run(const LoadedConfig& loaded, const RunOptions& options, gpu::Communicator* world) {
  return Runner(loaded, options, world).go();
}

void stop_on_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;  // What is being written is written.
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

}  // namespace dunnock::train
