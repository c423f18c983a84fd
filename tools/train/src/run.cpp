#include "run.hpp"

#include <fcntl.h>
#include <fmt/core.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "changes.hpp"
#include "data.hpp"
#include "dunnock/base/file.hpp"
#include "dunnock/base/output_file.hpp"
#include "dunnock/base/paths.hpp"
#include "dunnock/base/printable.hpp"
#include "dunnock/kernels/matmul.hpp"
#include "dunnock/model/sampling.hpp"
#include "dunnock/training/checkpoints.hpp"
#include "dunnock/training/trainer.hpp"
#include "dunnock/training/weights.hpp"
#include "log.hpp"
#include "plot.hpp"
#include "progress.hpp"

namespace dunnock::train {
namespace {

using Clock = std::chrono::steady_clock;
using training::StepInput;

volatile std::sig_atomic_t g_signal = 0;
volatile std::sig_atomic_t g_trains = 0;  // Before, there is nothing to save, and nothing to wait for.

void on_signal(int number) {
  if (g_trains == 0) {
    constexpr std::string_view kLine = "dunnock-train: stopped before the first step\n";
    (void)!write(STDERR_FILENO, kLine.data(), kLine.size());
    _exit(kInterrupted);
  }
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
Result<double> measured_peak(device::Device device, DataType type, unsigned threads) {
  constexpr std::size_t kSide = 1024;
  DUNNOCK_TRY(auto stream, device::Stream::create(device, {.threads = threads}));
  const auto measure = [&]<class T>(T /*type*/) -> Result<double> {
    const kernels::MatmulShape shape{.rows = kSide, .columns = kSide, .inner = kSide};
    auto values = device::Buffer<T>::create(3 * kSide * kSide, stream);
    auto workspace = device::Buffer<std::byte>::create(
        std::max<std::size_t>(1, kernels::matmul_workspace_bytes(shape, device)), stream);
    DUNNOCK_TRY(values);
    DUNNOCK_TRY(workspace);
    device::fill_bytes(values->span(), std::byte{0}, stream);
    const auto part = [&](std::size_t i) { return values->span().subspan(i * kSide * kSide, kSide * kSide); };
    double best_s = 1e30;
    for (int round = 0; round < 5; ++round) {
      DUNNOCK_TRY(stream.synchronize());
      const auto begin = Clock::now();
      kernels::run(
          kernels::Matmul<T, T>{
              .a = part(0), .b = part(1), .c = part(2), .shape = shape, .epilogue = {}, .workspace = workspace->span()},
          stream);
      DUNNOCK_TRY(stream.synchronize());
      if (round > 0) best_s = std::min(best_s, seconds_since(begin));
    }
    return 2.0 * kSide * kSide * kSide / best_s;
  };
  return type == DataType::kF32 ? measure(float{}) : measure(device::Bf16{});
}

training::TrainerOptions trainer_options(const TrainConfig& config, const model::ModelOptions& model,
                                         const RunOptions& options) {
  const RunConfig& run = config.run;
  const OptimizerConfig& optimizer = config.optimizer;
  const auto narrow = [](double value) { return static_cast<float>(value); };
  training::TrainerOptions made{
      .model = model,
      .type = config.model.dtype == DataType::kF32 ? model::DataType::kF32 : model::DataType::kBf16,
      .rows = run.batch / run.data_parallel / run.micro_batches,
      .micro_batches = run.micro_batches,
      .seed = run.seed,
      .optimizer = {.kind = optimizer.kind,
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

std::string trace_path(const std::string& path, unsigned rank) {
  return rank == 0 ? path : path + ".rank" + std::to_string(rank);
}

/// The groups of a rank: rank = stage * data_parallel + data rank.
struct Groups {
  std::optional<ranks::Communicator> data;
  std::optional<ranks::Communicator> pipeline;
  std::optional<ranks::Communicator> pipeline_sums;

  static Result<Groups> split(ranks::Communicator& world, const RunConfig& run) {
    Groups groups;
    const unsigned stage = world.rank() / run.data_parallel;
    const unsigned data_rank = world.rank() % run.data_parallel;
    const auto part = [&](unsigned color, unsigned key, std::optional<ranks::Communicator>& to) -> Status {
      DUNNOCK_TRY(auto made, world.split(color, key));
      to.emplace(std::move(made));
      return {};
    };
    DUNNOCK_TRY(part(stage, data_rank, groups.data));
    DUNNOCK_TRY(part(data_rank, stage, groups.pipeline));
    DUNNOCK_TRY(part(data_rank, stage, groups.pipeline_sums));
    return groups;
  }
  [[nodiscard]] training::Ranks ranks() {
    const auto some = [](std::optional<ranks::Communicator>& group) {
      return group && group->size() > 1 ? &*group : nullptr;
    };
    return {some(data), some(pipeline), some(pipeline_sums)};
  }
};

/// A file that a run reads or writes.
struct NamedPath {
  std::string what;  // The key or the option.
  std::string path;
};

std::vector<NamedPath> inputs_of(const LoadedConfig& loaded, const RunOptions& options) {
  const DataConfig& data = loaded.config.data;
  std::vector<NamedPath> inputs;
  if (loaded.has_file) inputs.push_back({"--config", loaded.name});
  const auto add = [&](const char* what, const std::string& path) {
    if (!path.empty()) inputs.push_back({what, loaded.path_of(path)});
  };
  add("data.text", data.text);
  add("data.tokens", data.tokens);
  add("data.vocabulary", data.vocabulary);
  add("data.merges", data.merges);
  add("data.tokenizer_file", data.tokenizer_file);
  add("data.images", data.images);
  add("data.labels", data.labels);
  add("data.test_images", data.test_images);
  add("data.test_labels", data.test_labels);
  if (!options.weights.empty()) inputs.push_back({"--weights", options.weights});
  return inputs;
}

struct Output {
  NamedPath at;
  OutputKind kind = OutputKind::kInPlace;
};

/// What a run writes, and what it makes beside that. `ranks`: processes.
std::vector<Output> outputs_of(const TrainConfig& config, const RunOptions& options, unsigned ranks) {
  std::vector<Output> outputs;
  const auto add = [&](const std::string& what, const std::string& path, OutputKind kind) {
    if (!path.empty()) outputs.push_back({{what, path}, kind});
  };
  add("log.csv", config.log.csv, OutputKind::kInPlace);
  add("log.json", config.log.json, OutputKind::kInPlace);
  add("log.plot", config.log.plot, OutputKind::kReplaced);
  add("--save-weights", options.save_weights, OutputKind::kReplaced);
  add("--events", options.events, OutputKind::kInPlace);
  add("--trace", options.trace, OutputKind::kInPlace);
  for (unsigned rank = 1; rank < ranks && !options.trace.empty(); ++rank)
    add("--trace of rank " + std::to_string(rank), trace_path(options.trace, rank), OutputKind::kInPlace);
  return outputs;
}

/// Names that a run takes besides.
std::vector<NamedPath> side_files_of(const TrainConfig& config, const RunOptions& options) {
  std::vector<NamedPath> files;
  const auto add = [&](const std::string& what, const std::string& path, std::initializer_list<const char*> ends) {
    if (path.empty()) return;
    for (const char* end : ends) files.push_back({"the " + std::string(end) + " file of " + what, path + end});
  };
  add("checkpoint.pool", config.checkpoint.pool, {".journal", ".new"});
  add("log.csv", config.log.csv, {".old", ".resumed"});
  add("log.json", config.log.json, {".old", ".resumed"});
  add("log.plot", config.log.plot, {".new"});
  add("--save-weights", options.save_weights, {".part"});
  return files;
}

/// Every output can be written, and none is another file of the run.
Status check_paths(const LoadedConfig& loaded, const RunOptions& options, unsigned ranks) {
  const std::vector<Output> outputs = outputs_of(loaded.config, options, ranks);
  std::vector<NamedPath> others = inputs_of(loaded, options);
  const auto differs = [](const NamedPath& output, const NamedPath& other) -> Status {
    if (!is_same_file(output.path, other.path)) return {};
    return invalid(output.what + ": " + output.path + " is the same file as " + other.what +
                   (output.path == other.path ? "" : ", " + other.path));
  };
  const std::string& pool = loaded.config.checkpoint.pool;
  // The pool is opened by its own rules, and is nobody else's file.
  if (!pool.empty()) {
    for (const NamedPath& input : others) {
      DUNNOCK_TRY(differs({"checkpoint.pool", pool}, input));
    }
    others.push_back({"checkpoint.pool", pool});
  }
  for (const Output& output : outputs) {
    for (const NamedPath& other : others) {
      DUNNOCK_TRY(differs(output.at, other));
    }
    others.push_back(output.at);
  }
  const std::vector<NamedPath> side_files = side_files_of(loaded.config, options);
  for (std::size_t i = 0; i < side_files.size(); ++i) {
    for (const NamedPath& other : others) {
      DUNNOCK_TRY(differs(side_files[i], other));
    }
    for (std::size_t other = 0; other < i; ++other) {
      DUNNOCK_TRY(differs(side_files[i], side_files[other]));
    }
  }
  for (const Output& output : outputs) {
    if (Status can = check_output(output.at.path, output.kind); !can)
      return make_error(can.error().code, output.at.what + ": " + can.error().message);
  }
  return {};
}

/// What mpirun does with a signal: it ends the ranks, and kills those that are there a moment later.
double seconds_until_killed() {
  const char* const set = std::getenv("OMPI_MCA_odls_base_sigkill_timeout");
  const double seconds = set == nullptr ? 1 : std::atof(set);
  return seconds > 0 ? seconds : 1;
}

/// Where a save can begin while a step is under way: a door that its updates must pass. Between two passages the state
/// is that of the last step, and who closes the door keeps it so.
class Door {
 public:
  /// For the trainer: the gate of hold_updates().
  Status pass() {
    std::unique_lock lock(mutex_);
    opened_.wait(lock, [this] { return !closed_; });
    armed_.reset();
    return {};
  }
  /// A run of a step begins, from here. None: it has ended.
  void arm(std::optional<training::Position> position) {
    std::unique_lock lock(mutex_);
    opened_.wait(lock, [this] { return !closed_; });
    armed_ = position;
  }
  /// Closes it, if a step is under way whose updates have not begun. Where that step began.
  std::optional<training::Position> close() {
    const std::lock_guard lock(mutex_);
    closed_ = armed_.has_value();
    return armed_;
  }
  void open() {
    {
      const std::lock_guard lock(mutex_);
      closed_ = false;
    }
    opened_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable opened_;
  bool closed_ = false;
  std::optional<training::Position> armed_;
};

class Runner {
 public:
  Runner(const Resolved& resolved, const RunOptions& options, ranks::Communicator* world)
      : loaded_(resolved.loaded),
        config_(resolved.loaded.config),
        resolved_(resolved),
        options_(options),
        world_(world),
        progress_(stderr, progress_options(options, world)) {}

  ~Runner() {
    ends_ = true;
    if (watch_.joinable()) watch_.join();
  }
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  Result<RunResult> go() {
    DUNNOCK_TRY(set_up());
    if (first() && !options_.events.empty()) {
      auto opened = open_in_place(options_.events, O_CREAT | O_APPEND);
      if (!opened) return make_error(opened.error().code, "--events: " + opened.error().message);
      events_ = std::move(*opened);
    }
    g_trains = 1;
    event(resumed_ ? "resumed" : "started");
    auto result = train();
    if (!result) return result;
    event(result->interrupted ? "stopped" : "done", fmt::format(", \"seconds\": {:.3f}", seconds_since(begun_)));
    DUNNOCK_TRY(finish(*result));
    result->interrupted = result->interrupted || broken_off_;
    if (const std::uint64_t rows = log_ ? log_->rows_lost() : 0; rows != 0)
      progress_.print(fmt::format("the log: {} rows are missing", rows));
    result->logged = (!log_ || log_->rows_lost() == 0) && events_error_ == 0;
    return result;
  }

 private:
  static Progress::Options progress_options(const RunOptions& options, const ranks::Communicator* world) {
    Progress::Options made = Progress::options_for(stderr);
    if (options.quiet || (world != nullptr && world->rank() != 0)) made.seconds_between = 1e30;
    return made;
  }
  [[nodiscard]] bool first() const { return world_ == nullptr || world_->rank() == 0; }
  void say(const std::string& line) {
    if (first() && !options_.quiet) progress_.print(line);
  }

  void event(std::string_view name, const std::string& more = {}) {
    event_at(name, step_, more);
    if (events_error_ == 0 || std::exchange(told_of_events_, true)) return;
    const auto why = system_error("--events: can't write " + options_.events, events_error_).value().message;
    progress_.print(printable(why) + " (training continues)");
  }
  void event_at(std::string_view name, std::uint64_t step, const std::string& more) {
    if (!events_) return;
    // The terminal may be gone, or the disk full: training continues.
    const std::string line = fmt::format("{{\"event\": \"{}\", \"step\": {}{}}}\n", name, step, more);
    const std::lock_guard lock(events_mutex_);
    if (!file_system().write(events_.get(), line.data(), line.size())) events_error_ = errno;
  }

  Status set_up() {
    const RunConfig& run = config_.run;
    if (run.as_graph && !options_.trace.empty())
      return invalid("--trace: the operations of a recorded graph can't be measured; set run.as_graph = false");
    const unsigned ranks = world_ == nullptr ? 1 : world_->size();
    if (run.data_parallel * run.pipeline != ranks)
      return invalid("run.data_parallel x run.pipeline is " + std::to_string(run.data_parallel) + " x " +
                     std::to_string(run.pipeline) + ", but the number of processes is " + std::to_string(ranks) +
                     ": start it with mpirun -n " + std::to_string(run.data_parallel * run.pipeline));
    if (run.batch % (run.data_parallel * run.micro_batches) != 0)
      return invalid(loaded_.where("run.batch") + ": " + std::to_string(run.batch) + " rows can't be divided among " +
                     std::to_string(run.data_parallel) + " ranks x " + std::to_string(run.micro_batches) +
                     " micro-batches");
    if (first()) {
      DUNNOCK_TRY(check_paths(loaded_, options_, ranks));
    }
    if (world_ != nullptr) {
      DUNNOCK_TRY(auto groups, Groups::split(*world_, run));
      groups_ = std::move(groups);
    }
    const unsigned data_rank = world_ == nullptr ? 0 : world_->rank() % run.data_parallel;
    DUNNOCK_TRY(auto data, TrainingData::open(loaded_, {data_rank, run.data_parallel}));
    data_.emplace(std::move(data));
    if (config_.sample.tokens > 0 && data_->items() == "tokens") {
      if (const auto prompt = data_->encode(config_.sample.prompt); !prompt)
        return make_error(prompt.error().code, loaded_.where("sample.tokens") + ": " + prompt.error().message);
    }
    constexpr std::uint64_t kStepsMax = std::uint64_t{1} << 62;
    if (run.steps == 0 && run.epochs > kStepsMax / std::max<std::uint64_t>(1, data_->batches_per_epoch()))
      return invalid(loaded_.where("run.epochs") + ": " + std::to_string(run.epochs) + " epochs of " +
                     std::to_string(data_->batches_per_epoch()) + " batches are more steps than 2^64 - 1");
    steps_ = run.steps != 0 ? run.steps : run.epochs * data_->batches_per_epoch();

    device::Device device = device::Device::cpu();
    if (run.device == DeviceKind::kCuda) {
      const unsigned rank = world_ == nullptr ? 0 : world_->rank();
      DUNNOCK_TRY(auto cuda,
                  device::Device::cuda(device::Device::cuda_count() > 0 ? rank % device::Device::cuda_count() : 0));
      device = cuda;
      if (world_ != nullptr) {
        DUNNOCK_TRY(use_nccl(device));
      }
    }
    auto trainer =
        training::Trainer::create(device, trainer_options(config_, data_->model(), options_), groups_.ranks());
    DUNNOCK_TRY(trainer);
    trainer_ = std::move(*trainer);
    if (first() && !options_.save_weights.empty()) {
      const std::uint64_t bytes = model::parameter_count(data_->model()) * sizeof(float);
      if (Status room = check_output(options_.save_weights, OutputKind::kReplaced, bytes); !room)
        return make_error(room.error().code, "--save-weights: " + room.error().message);
    }
    say(fmt::format("{}; {} parameters, {}, schedule {}{}", to_string(data_->model()),
                    rate_text(static_cast<double>(model::parameter_count(data_->model()))),
                    to_string(config_.model.dtype), run.schedule,
                    trainer_->plan().choice.empty() ? "" : " (" + trainer_->plan().choice + ")"));
    if (ranks == 1) {
      // Of all threads that compute, in all lanes. The trainer exists, so the schedule does.
      const unsigned lanes = training::find_schedule(run.schedule)->lanes_compute;
      DUNNOCK_TRY(auto peak, measured_peak(device, config_.model.dtype, run.threads * lanes));
      peak_ = peak;
    }
    if (!options_.weights.empty()) {
      const auto loaded = training::load_weights(*trainer_, options_.weights);
      DUNNOCK_TRY(loaded);
      if (!loaded->left_out.empty())
        say(fmt::format("{}: {} tensors are not weights and are left out: {}", options_.weights,
                        loaded->left_out.size(), fmt::join(loaded->left_out, ", ")));
    }
    return open_checkpoints();
  }

  Status use_nccl(device::Device device) {
    for (auto* group : {&groups_.data, &groups_.pipeline, &groups_.pipeline_sums}) {
      if ((*group)->size() < 2) continue;
      DUNNOCK_TRY(auto made, ranks::Communicator::nccl(device, **group, {.timeout = peer_timeout(config_.run)}));
      host_groups_.push_back(std::move(**group));
      group->emplace(std::move(made));
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
                          checkpoint.pool + " already exists: resume it with --resume, or remove it to start again");
      }
      if (first() && options_.resume_step && !std::filesystem::exists(checkpoint.pool, unseen))
        return make_error(ErrorCode::kNotFound, checkpoint.pool + " does not exist");
      training::CheckpointsOptions pool{.path = checkpoint.pool,
                                        .capacity_bytes = checkpoint.pool_mib << 20,
                                        // 1: the least that goes.
                                        .staging_bytes = std::max<std::uint64_t>(1, checkpoint.staging_mib << 20),
                                        .retention = {checkpoint.keep_last, checkpoint.keep_every}};
      if (checkpoint.media != "auto") {
        DUNNOCK_TRY(const auto kind, media_kind(checkpoint.media));
        pool.media = kind;
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
        if (!position) {
          // Its config would have told otherwise.
          if (position.error().code == ErrorCode::kInvalidArgument && resolved_.hash_only)
            position.error().message += ": which key differs is unknown, because it contains only a hash of its config";
          return about_checkpoint(position.error());
        }
        if (!*position) {
          say(fmt::format("{} holds no checkpoint yet: starting from step 0", checkpoint.pool));
        } else {
          step_ = (*position)->step;
          resumed = saved_step_ = tried_step_ = step_;
          resumed_ = true;
          DUNNOCK_TRY(data_->start(&(*position)->next_batch));
          if (data_->start_lacks_checksum())
            say("the checkpoint has no checksum of its token file: data.tokens has the same number of tokens, but "
                "whether they are the same is unknown");
          if (options_.resume_step) {
            // Everything else has agreed by now.
            DUNNOCK_TRY(check_logs());
            if (Status removed = checkpoints_->remove_newer(step_); !removed) return about_pool(removed.error());
          }
          say(fmt::format("resumed after step {} in {:.2f} s{}", step_, seconds_since(begin),
                          options_.verify ? ", every byte verified" : ""));
        }
      }
    } else if (resumes()) {
      return invalid("--resume needs checkpoint.pool, which is empty");
    }
    if (!first()) return {};
    const LogConfig& log = config_.log;
    if (log.csv.empty() && log.json.empty()) return {};
    DUNNOCK_TRY(auto opened, TrainingLog::open({log.csv, log.json}, resumed));
    log_.emplace(std::move(opened));
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
      DUNNOCK_TRY(read_log(path));
      if (access(path.c_str(), W_OK) != 0) return make_error(ErrorCode::kReadOnly, path + " can't be written");
    }
    return {};
  }
  [[nodiscard]] bool resumes() const { return options_.resume || options_.resume_step; }
  Result<std::optional<training::Position>> resume() {
    const std::uint64_t setup = resolved_.setup;
    if (!options_.resume_step) return checkpoints_->resume(setup);
    DUNNOCK_TRY(auto position, checkpoints_->resume_from(*options_.resume_step, setup));
    return position;
  }
  /// What is damaged is not the end, where there are others.
  [[nodiscard]] tl::unexpected<Error> about_checkpoint(Error error) const {
    if (error.code == ErrorCode::kCorrupt && first() && !checkpoints_->versions().empty())
      error.message += fmt::format(
          ". --resume-step N resumes from another checkpoint, if it is intact: there are checkpoints of steps {}",
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
    return static_cast<std::size_t>(std::min<std::uint64_t>(until, long_steps_ ? 1 : config_.run.window));
  }

  /// Whether all ranks stop here. One that has got a signal tells the others.
  Result<bool> stops() {
    const bool wants = g_signal != 0 || (options_.seconds_max && seconds_since(begun_) > *options_.seconds_max);
    if (world_ == nullptr) return wants;
    DUNNOCK_TRY(auto stream, device::Stream::create(device::Device::cpu()));
    std::array<float, 2> most{wants ? 1.0F : 0.0F, static_cast<float>(seconds_of_run_)};
    world_->all_reduce<float>({most.data(), most.size()}, ranks::Reduction::kMax, stream);
    DUNNOCK_TRY(stream.synchronize());
    seconds_of_run_ = static_cast<double>(most[1]);
    return most[0] != 0;
  }

  /// Where a launcher kills a second behind its signal, steps that take as long are made one by one, and the first rank
  /// saves at once: the state before the step. All ranks come here with the same `seconds_of_run_`.
  void take_care_of_long_steps() {
    if (world_ == nullptr || !checkpoints_ || long_steps_) return;
    // Two in a row: the first makes its plans, and another may have been in the way once.
    const bool are_long = seconds_of_run_ > seconds_until_killed() / 2;
    if (!are_long || !std::exchange(was_long_, are_long)) {
      was_long_ = are_long;
      return;
    }
    long_steps_ = true;
    const bool holds = trainer_->hold_updates([this] { return door_.pass(); }).has_value();
    if (holds && first()) watch_ = std::thread([this] { save_when_signalled(); });
    say_how_to_launch(fmt::format("a window of steps takes {:.1f} s{}", seconds_of_run_,
                                  holds ? ", and a signal saves the state from before it" : ""));
  }
  void say_how_to_launch(const std::string& why) {
    if (std::exchange(told_of_launcher_, true) || std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr) return;
    say(
        fmt::format("{}; mpirun kills its processes {:.0f} s after a Ctrl-C: started with mpirun --mca "
                    "odls_base_sigkill_timeout {:.0f}, they can end the step and save it",
                    why, seconds_until_killed(), 10 * std::ceil(seconds_of_run_ + save_seconds_) + 10));
  }
  /// In a thread of its own, of the first rank.
  void save_when_signalled() {
    while (!ends_) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      if (g_signal == 0) continue;
      const auto position = door_.close();
      if (!position) continue;  // Its end is near.
      if (position->step == kept_step_) {
        door_.open();
        return;
      }
      event_at("saving", position->step, {});
      const auto saved = checkpoints_->save_held(*position, resolved_.notes(), [this] { door_.open(); });
      door_.open();
      if (!saved) return;  // The code after the step tries again, and reports why.
      event_at("saved", position->step, fmt::format(", \"seconds\": {:.4f}", saved->seconds));
      if (!options_.quiet)
        fmt::print(stderr, "stopping: the state after step {} is saved, --resume continues\n", position->step);
      return;
    }
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
    if (step_ >= steps_) {
      say(fmt::format("{} steps are already done, and the run has {}", step_, steps_));
      // The last evaluation may have been broken off.
      LogRow row{.step = step_};
      DUNNOCK_TRY(evaluate(row));
    }
    while (step_ < steps_ && !broken_off_) {
      DUNNOCK_TRY(const auto stopped, stops());
      if (stopped) break;
      take_care_of_long_steps();
      const training::Position before = position();
      DUNNOCK_TRY(auto inputs, data_->next(next_steps()));
      for (std::size_t i = 0; i < inputs.size(); ++i)
        inputs[i].learning_rate = static_cast<float>(training::learning_rate_at(rate, step_ + i));
      kept_step_ = tried_step_.value_or(~std::uint64_t{0});
      const auto run_begun = Clock::now();
      if (long_steps_) door_.arm(before);
      const auto results = trainer_->run(inputs);
      if (long_steps_) door_.arm(std::nullopt);
      seconds_of_run_ = seconds_since(run_begun);
      DUNNOCK_TRY(results);
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
        DUNNOCK_TRY(evaluate(row));
      }
      if (logs || evaluates || step_ == steps_) {
        // Also of a quiet run: what is lost here is not found elsewhere.
        if (Status done = write(row); !done) progress_.print("the log: " + printable(done.error().message));
        loss_sum = 0;
        loss_count = 0;
        row_begun = Clock::now();
        row_step = step_;
      }
      show(row);
      if (checkpoints_ && config_.checkpoint.every != 0 && step_ % config_.checkpoint.every == 0) save();
    }
    RunResult result{step_, step_ < steps_ || broken_off_};
    // What was interrupted goes on from here.
    if (checkpoints_) {
      if (tried_step_ != step_) save();
      take(checkpoints_->wait());
      result.saved = !save_failed_;
    }
    DUNNOCK_TRY(sync_ranks());
    return result;
  }

  tl::unexpected<Error> not_a_number(std::uint64_t step, const training::StepResult& result) {
    std::string what = fmt::format("step {}: the loss is {}", step, std::isnan(result.loss) ? NAN : result.loss);
    if (result.gradient_norm) what += fmt::format(", the gradients' norm {}", *result.gradient_norm);
    what += ". A smaller optimizer.learning_rate, a longer optimizer.warmup or optimizer.clip may help";
    if (checkpoints_) {
      take(checkpoints_->wait());
      // Who ends before the first rank has told would take it along.
      // This loss, or this gradient, belongs to the weights after step - 1.
      const auto sound = checkpoints_->newest_sound(step - 1);
      DUNNOCK_TRY(sound);
      DUNNOCK_TRY(const auto last, *sound ? *sound : checkpoints_->newest_sound(step));
      if (*sound) {
        what += fmt::format("; the checkpoint of step {} is intact, and can be resumed with\n  {}", **sound,
                            command_with_less(**sound));
      } else if (last) {
        what += fmt::format(
            "; the checkpoint of step {} is intact, but the next step from it fails the same way, and there is none "
            "before it",
            *last);
      } else {
        what += "; there is no checkpoint yet";
      }
    }
    return make_error(ErrorCode::kInvalidArgument, what);
  }
  /// The command of this run, going on from `step` with a tenth of the learning rate, and clipped.
  [[nodiscard]] std::string command_with_less(std::uint64_t step) const {
    std::vector<std::string> changes{
        fmt::format("optimizer.learning_rate={:.3g}", config_.optimizer.learning_rate / 10)};
    if (config_.optimizer.clip == 0) changes.emplace_back("optimizer.clip=1");
    std::vector<std::string> words = options_.command;
    if (words.empty()) words.emplace_back("dunnock-train");
    words = resuming_command(words, step, changes);
    if (world_ != nullptr) words.insert(words.begin(), {"mpirun", "-n", std::to_string(world_->size())});
    return command_line(words);
  }

  Status evaluate(LogRow& row) {
    auto evaluation = data_->evaluate(*trainer_, config_.run.evaluate_batches, [this]() -> Result<bool> {
      auto stopped = stops();
      if (stopped && *stopped) broken_off_ = true;
      return stopped;
    });
    DUNNOCK_TRY(evaluation);
    if (broken_off_) {
      say(fmt::format("step {}: the evaluation was interrupted", step_));
      return {};
    }
    if (!*evaluation) {
      if (!std::exchange(told_of_validation_, true))
        say("no validation loss: data.validation_share is 0 or too small for a batch");
      return {};
    }
    float sums[3] = {static_cast<float>((*evaluation)->loss), static_cast<float>((*evaluation)->correct),
                     static_cast<float>((*evaluation)->targets)};
    double loss = (*evaluation)->loss / static_cast<double>((*evaluation)->targets);
    double accuracy = static_cast<double>((*evaluation)->correct) / static_cast<double>((*evaluation)->targets);
    if (config_.run.data_parallel > 1) {
      DUNNOCK_TRY(auto stream, device::Stream::create(device::Device::cpu()));
      host_data().all_reduce<float>({sums, 3}, ranks::Reduction::kSum, stream);
      DUNNOCK_TRY(stream.synchronize());
      loss = static_cast<double>(sums[0]) / static_cast<double>(sums[2]);
      accuracy = static_cast<double>(sums[1]) / static_cast<double>(sums[2]);
    }
    row.validation_loss = validation_loss_ = loss;
    if (data_->items() == "images") row.accuracy = accuracy;
    say(fmt::format("step {}: validation loss {:.4f}{}", step_, loss,
                    row.accuracy ? fmt::format(", accuracy {:.2f} %", 100 * accuracy) : ""));
    return {};
  }
  ranks::Communicator& host_data() { return host_groups_.empty() ? *groups_.data : host_groups_.front(); }

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

  /// A save that fails is told, and training goes on: what was saved before is there.
  void save() {
    take(checkpoints_->wait());
    event("saving");
    pending_step_ = tried_step_ = step_;
    take(checkpoints_->save(position(), resolved_.notes()));
  }
  [[nodiscard]] training::Position position() const {
    return {.step = step_, .setup = identity_of(config_), .next_batch = data_->position()};
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
    save_seconds_ = (*report)->seconds;
    if (world_ != nullptr && save_seconds_ > seconds_until_killed() / 2)
      say_how_to_launch(fmt::format("a save takes {:.1f} s", save_seconds_));
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
    DUNNOCK_TRY(auto stream, device::Stream::create(device::Device::cpu()));
    world_->barrier(stream);
    return stream.synchronize();
  }

  Status finish(const RunResult& result) {
    if (!options_.save_weights.empty() && trainer_->data_rank() == 0) {
      DUNNOCK_TRY(training::save_weights(*trainer_, options_.save_weights));
    }
    if (!options_.trace.empty()) {
      DUNNOCK_TRY(write_trace());
    }
    if (!first()) return {};
    if (!config_.log.plot.empty()) {
      std::vector<LogRow> rows = rows_;
      const std::string& log = config_.log.csv.empty() ? config_.log.json : config_.log.csv;
      if (!log.empty()) {
        if (auto all = read_log(log)) rows = std::move(*all);
      }
      const std::vector<LossCurve> curves{{loaded_.name, std::move(rows)}};
      DUNNOCK_TRY(write_loss_svg(config_.log.plot, curves));
    }
    if (result.interrupted) {
      say(checkpoints_ && !save_failed_ ? fmt::format("stopped after step {}; it is saved, --resume continues", step_)
                                        : fmt::format("stopped after step {}", step_));
      return {};
    }
    if (config_.sample.tokens > 0 && data_->items() == "tokens") return sample();
    return {};
  }

  Status write_trace() {
    DUNNOCK_TRY(const auto timeline, trainer_->last_run());
    const std::string path = trace_path(options_.trace, world_ == nullptr ? 0 : world_->rank());
    return schedule::write_chrome_json(path, trainer_->rank_graph(), trainer_->rank_schedule(), timeline);
  }

  Status sample() {
    if (config_.run.pipeline > 1) {
      say("no text is generated from a pipeline: resume the run on one rank to generate it");
      return {};
    }
    const auto& gpt = std::get<model::GptOptions>(data_->model());
    DUNNOCK_TRY(const auto prompt, data_->encode(config_.sample.prompt));
    std::vector<std::int32_t> tokens = prompt.empty() ? std::vector<std::int32_t>{0} : prompt;
    model::Sampler sampler({config_.sample.temperature, config_.sample.top_k, config_.run.seed});
    const std::size_t begin = tokens.size();
    for (unsigned i = 0; i < config_.sample.tokens; ++i) {
      if (g_signal != 0) {
        broken_off_ = true;
        break;
      }
      // The last tokens, as many as the model sees; the padding after them has no effect, since attention is causal.
      const std::size_t seen = std::min(tokens.size(), gpt.context);
      std::vector<std::int32_t> row(tokens.end() - static_cast<std::ptrdiff_t>(seen), tokens.end());
      row.resize(gpt.context, 0);
      DUNNOCK_TRY(const auto logits, trainer_->logits({.tokens = row}));
      const auto next =
          sampler.token(std::span(logits).subspan((seen - 1) * gpt.vocabulary, data_->vocabulary()), begin + i);
      DUNNOCK_TRY(next);
      tokens.push_back(*next);
    }
    DUNNOCK_TRY(const auto text, data_->decode(tokens));
    const std::string line = text + "\n";
    if (std::fwrite(line.data(), 1, line.size(), stdout) != line.size() || std::fflush(stdout) != 0)
      return make_error(ErrorCode::kIo, "the text can't be written");
    if (broken_off_) say(fmt::format("stopped after {} of {} tokens", tokens.size() - begin, config_.sample.tokens));
    return {};
  }

  const LoadedConfig& loaded_;
  const TrainConfig& config_;
  const Resolved& resolved_;
  const RunOptions& options_;
  ranks::Communicator* world_;
  Groups groups_;
  std::vector<ranks::Communicator> host_groups_;  // Behind NCCL's.
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
  // Steps that take long under a launcher.
  bool long_steps_ = false;
  bool was_long_ = false;
  bool told_of_launcher_ = false;
  double seconds_of_run_ = 0;  // Of the last window: the longest of all ranks.
  double save_seconds_ = 0;
  Door door_;
  std::atomic<std::uint64_t> kept_step_ = ~std::uint64_t{0};  // That was saved, or tried to be.
  std::atomic<bool> ends_ = false;
  std::thread watch_;
  bool broken_off_ = false;  // By a signal, with no step missing: an evaluation, or a text.
  UniqueFd events_;
  std::mutex events_mutex_;
  std::atomic<int> events_error_ = 0;  // An errno: something was not written.
  bool told_of_events_ = false;
  std::uint64_t written_bytes_ = 0;
  std::optional<double> validation_loss_;
  bool told_of_validation_ = false;
  Clock::time_point begun_ = Clock::now();
  double seconds_before_ = 0;  // Those of the log that is continued.
};

}  // namespace

Result<RunResult> run(const LoadedConfig& loaded, const RunOptions& options, ranks::Communicator* world) {
  const CheckpointConfig& checkpoint = loaded.config.checkpoint;
  std::optional<SavedRun> saved;
  if ((options.resume || options.resume_step) && !checkpoint.pool.empty()) {
    std::optional<MediaKind> media;
    if (checkpoint.media != "auto") {
      DUNNOCK_TRY(const auto kind, media_kind(checkpoint.media));
      media = kind;
    }
    DUNNOCK_TRY(auto label, training::Checkpoints::label(checkpoint.pool, media, options.resume_step, world));
    if (label) saved = {label->step, std::move(label->notes)};
  }
  const auto resolved = resolve(loaded, options.changes, saved);
  if (!resolved) {
    const bool about_pool = saved && !resolved.error().message.starts_with("--change");
    return make_error(resolved.error().code,
                      (about_pool ? checkpoint.pool + ": " : std::string()) + resolved.error().message);
  }
  return Runner(*resolved, options, world).go();
}

void stop_on_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;  // What is being written is written.
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

}  // namespace dunnock::train
