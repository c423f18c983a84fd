// dunnock-bench training: steps of the training runtime, beside PyTorch's where there is one (training_peer.py), round
// by round in turn; what saving checkpoints costs a run; and schedules of one device beside each other.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "commands.hpp"
#include "dunnock/kernels/elementwise.hpp"
#include "dunnock/kernels/matmul.hpp"
#include "dunnock/training/checkpoints.hpp"
#include "dunnock/training/trainer.hpp"
#include "report.hpp"
#include "scratch.hpp"
#include "torch_peer.hpp"
#include "training_inputs.hpp"

namespace dunnock::bench {
namespace {

using namespace training;
using nlohmann::json;

struct Options {
  std::string json;
  std::vector<std::string> models = {"mlp", "cnn", "resnet", "densenet", "gpt"};
  std::vector<std::string> parts = {"steps", "schedules", "checkpoints"};
  std::vector<std::string> types = {"f32"};
  unsigned threads = 0;
  unsigned rounds = 7;
  double seconds = 1;     // of a round, ours and theirs
  double save_every = 5;  // seconds of training
  unsigned saves = 6;
  std::string directory = "/tmp";
  std::string python;
  std::string script;
  bool compile = false;
  bool without_torch = false;
  bool quick = false;
};

constexpr float kLearningRate = 1e-3F;
constexpr unsigned kWindow = 4;
/// The other's threads may still wait for work at the processors' expense.
constexpr std::chrono::milliseconds kPause{250};

struct ModelCase {
  std::string family;
  std::string name;
  model::ModelOptions model;
  std::size_t rows = 1;
  json peer;  // training_peer.py's words for the model
};

json image_json(const model::ImageShape& image) {
  return {{"height", image.height}, {"width", image.width}, {"channels", image.channels}};
}
json json_of(const model::MlpOptions& mlp) {
  return {{"kind", "mlp"}, {"inputs", mlp.inputs}, {"hidden", mlp.hidden}, {"classes", mlp.classes}};
}
json json_of(const model::CnnOptions& cnn) {
  return {{"kind", "cnn"},        {"image", image_json(cnn.image)},
          {"stages", cnn.stages}, {"batch_norm", cnn.batch_norm},
          {"hidden", cnn.hidden}, {"classes", cnn.classes}};
}
json json_of(const model::ResNetOptions& net) {
  return {{"kind", "resnet"},      {"image", image_json(net.image)}, {"blocks", net.blocks},
          {"width", net.width},    {"bottleneck", net.bottleneck},   {"large_stem", net.large_stem},
          {"classes", net.classes}};
}
json json_of(const model::DenseNetOptions& net) {
  return {{"kind", "densenet"},           {"image", image_json(net.image)}, {"blocks", net.blocks},
          {"growth", net.growth},         {"stem_width", net.stem_width},   {"bottleneck", net.bottleneck},
          {"large_stem", net.large_stem}, {"classes", net.classes}};
}
json json_of(const model::GptOptions& gpt) {
  return {{"kind", "gpt"},
          {"vocabulary", gpt.vocabulary},
          {"context", gpt.context},
          {"layers", gpt.layers},
          {"heads", gpt.heads},
          {"width", gpt.width},
          {"mlp_ratio", gpt.mlp_ratio},
          {"positions", gpt.positions == model::Positions::kRotary ? "rotary" : "learned"}};
}

std::vector<ModelCase> model_cases(const Options& options) {
  std::vector<ModelCase> cases;
  const auto add = [&](const std::string& family, std::string name, const auto& model, std::size_t rows) {
    if (std::ranges::find(options.models, family) == options.models.end()) return;
    cases.push_back({family, std::move(name) + ", batch " + std::to_string(rows), model, rows, json_of(model)});
  };
  if (options.quick) {
    add("mlp", "MLP tiny", model::MlpOptions{.inputs = 20, .hidden = {16, 12}, .classes = 5}, 8);
    add("cnn", "CNN tiny", model::CnnOptions{.image = {12, 12, 1}, .stages = {{4}, {8}}, .hidden = {16}, .classes = 5},
        4);
    add("resnet", "ResNet tiny", model::ResNetOptions{.image = {8, 8, 3}, .blocks = {1, 1}, .width = 4}, 4);
    add("densenet", "DenseNet tiny",
        model::DenseNetOptions{.image = {8, 8, 3}, .blocks = {2, 2}, .growth = 4, .stem_width = 8}, 4);
    add("gpt", "GPT tiny", model::GptOptions{.vocabulary = 29, .context = 12, .layers = 2, .heads = 2, .width = 16}, 4);
    return cases;
  }
  add("mlp", "MLP 784-512-512-10", model::MlpOptions{}, 128);
  add("cnn", "CNN 32-32-64-64", model::CnnOptions{}, 64);
  add("cnn", "CNN 32-32-64-64", model::CnnOptions{}, 128);
  add("resnet", "ResNet-20", model::ResNetOptions{.blocks = {3, 3, 3}}, 32);
  add("densenet", "DenseNet-40-like, growth 12",
      model::DenseNetOptions{.blocks = {6, 6, 6}, .growth = 12, .stem_width = 24}, 32);
  add("gpt", "GPT 1.2 M", model::GptOptions{}, 32);
  add("gpt", "GPT 10.8 M", model::GptOptions{.context = 256, .layers = 6, .heads = 6, .width = 384}, 8);
  return cases;
}

/// The rate of a square product on this many threads, in GFLOP/s: the peak that shares refer to.
template <class T>
class Peak {
 public:
  Peak(unsigned threads, std::size_t side)
      : side_(side), stream_(std::move(*device::Stream::create(device::Device::cpu(), {.threads = threads}))) {
    for (device::Buffer<T>* one : {&a_, &b_, &c_}) {
      auto made = device::Buffer<T>::create(side * side, stream_);
      if (!made) fail(made.error().message);
      *one = std::move(*made);
      kernels::run(kernels::Fill<T>{.y = one->span(), .value = 0.5F}, stream_);
    }
    auto workspace = device::Buffer<std::byte>::create(
        std::max<std::size_t>(1, kernels::matmul_workspace_bytes(shape(), stream_.device())), stream_);
    if (!workspace) fail(workspace.error().message);
    workspace_ = std::move(*workspace);
    (void)gflop_per_s();  // Makes its plan.
  }
  /// The best of some.
  double gflop_per_s() {
    double best = 0;
    for (int i = 0; i < 5; ++i) {
      const double ns = ns_of([&] {
        kernels::run(kernels::Matmul<T, T>{.a = a_.span(),
                                           .b = b_.span(),
                                           .c = c_.span(),
                                           .shape = shape(),
                                           .epilogue = {},
                                           .workspace = workspace_.span()},
                     stream_);
        if (const Status done = stream_.synchronize(); !done) fail(done.error().message);
      });
      const auto n = static_cast<double>(side_);
      best = std::max(best, 2 * n * n * n / ns);
    }
    return best;
  }

 private:
  [[nodiscard]] kernels::MatmulShape shape() const { return {.rows = side_, .columns = side_, .inner = side_}; }
  std::size_t side_;
  device::Stream stream_;
  device::Buffer<T> a_;  // (side, side), as the next two
  device::Buffer<T> b_;
  device::Buffer<T> c_;
  device::Buffer<std::byte> workspace_;
};

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// A trainer and the steps that it is timed on.
class Timed {
 public:
  /// Errors: those of Trainer::create.
  static Result<std::unique_ptr<Timed>> create(const ModelCase& one, TrainerOptions options) {
    options.model = one.model;
    options.rows = one.rows;
    options.seed = 1;
    options.optimizer = {.weight_decay = 0.01F};
    options.window = kWindow;
    auto timed = std::unique_ptr<Timed>(new Timed(one));
    DUNNOCK_TRY(auto trainer, Trainer::create(device::Device::cpu(), options));
    timed->trainer_ = std::move(trainer);
    for (int i = 0; i < 2; ++i) (void)timed->window_ms();  // Kernels make their plans.
    return timed;
  }
  /// Milliseconds of a step, of a window of some.
  double window_ms() {
    const double ns = ns_of([&] {
      const auto ran = trainer_->run(steps_);
      if (!ran) fail(ran.error().message);
      loss_ = ran->back().loss;
    });
    return ns / 1e6 / kWindow;
  }
  /// The median of `seconds`.
  double round_ms(double seconds) {
    std::vector<double> times;
    (void)window_ms();  // Wakes threads and fills caches.
    const auto begin = std::chrono::steady_clock::now();
    while (times.size() < 3 || (seconds_since(begin) < seconds && times.size() < 10'000)) times.push_back(window_ms());
    return median_of(times);
  }
  [[nodiscard]] Trainer& trainer() { return *trainer_; }
  [[nodiscard]] double loss() const { return loss_; }

 private:
  explicit Timed(const ModelCase& one) : input_(one.model, one.rows, 7), steps_(input_.steps(kWindow, kLearningRate)) {}
  RandomInput input_;
  std::vector<StepInput> steps_;
  std::unique_ptr<Trainer> trainer_;
  double loss_ = 0;
};

model::DataType type_of(const std::string& name) {
  return name == "bf16" ? model::DataType::kBf16 : model::DataType::kF32;
}

void pause(const Options& options) {
  if (!options.quick) std::this_thread::sleep_for(kPause);
}

// ----- steps --------------------------------------------------------------------------------------------------------

void print_steps_header() {
  std::printf("%-38s %-5s %9s %9s %9s %9s %7s %9s %7s %11s %9s %9s\n", "model", "type", "ms", "min", "torch ms", "min",
              "ratio", "GFLOP/s", "of peak", "rate", "MB", "torch MB");
}

/// What PyTorch said when it was asked for a model, and how its memory has grown with it.
struct Peer {
  json ready = json::object();
  double mb = NAN;
  [[nodiscard]] bool is_ready() const { return ready.value("ready", false); }
};

/// Steps of all models and types, in turn with PyTorch's.
class StepTimes {
 public:
  StepTimes(const Options& options, unsigned threads, TorchPeer* torch, Report& report)
      : options_(options), threads_(threads), torch_(torch), report_(report) {}

  /// `peak`: of a matrix product, in GFLOP/s.
  void time(const ModelCase& one, const std::string& type, const std::function<double()>& peak) {
    const std::string setting = one.name + ", " + type;
    device::Device device = device::Device::cpu();
    const std::uint64_t used_before = device.memory_stats().used_bytes;
    device.reset_memory_peak();
    auto timed = Timed::create(one, {.type = type_of(type), .schedule = "conventional", .threads = options_.threads});
    if (!timed) {
      std::printf("%-38s %-5s skipped: %s\n", one.name.c_str(), type.c_str(), timed.error().message.c_str());
      report_.add_skipped(setting, timed.error().message);
      return;
    }
    const double ours_mb = static_cast<double>(device.memory_stats().used_bytes_peak - used_before) / 1e6;
    const Peer peer = torch_ == nullptr ? Peer{} : ask_for(one, type, (*timed)->window_ms());
    for (unsigned round = 0; round < options_.rounds; ++round) {
      pause(options_);
      const double peak_now = peak();
      const double ours = (*timed)->round_ms(options_.seconds);
      add_ours(one, setting, (*timed)->trainer().flops_per_step() / 1e9, ours, peak_now);
      if (peer.is_ready()) add_theirs(one, setting, ours);
    }
    report_.add("memory", setting, "dunnock, buffers", "MB", ours_mb);
    if (peer.is_ready()) {
      report_.add("memory", setting, "PyTorch, resident growth", "MB", peer.mb);
      report_.note("torch way, " + setting, peer.ready.value("way", json()));
      report_.note("torch version", peer.ready.value("torch", json()));
    }
    print(one, type, ours_mb, peer.mb);
  }

 private:
  static double items_of(const ModelCase& one) {
    const double rows = static_cast<double>(one.rows);
    return one.family == "gpt" ? rows * static_cast<double>(std::get<model::GptOptions>(one.model).context) : rows;
  }
  void add_rate(const ModelCase& one, const std::string& setting, const char* system, double ms) {
    report_.add("step", setting, system, "ms", ms);
    report_.add("rate", setting, system, one.family == "gpt" ? "tokens/s" : "images/s", items_of(one) / ms * 1e3);
  }

  Peer ask_for(const ModelCase& one, const std::string& type, double our_ms) {
    const std::size_t before = torch_->resident_bytes();
    const int repeats = std::clamp(static_cast<int>(1e3 * options_.seconds / std::max(our_ms, 1e-3) / 2), 3, 2000);
    const json request{{"model", one.peer},
                       {"dtype", type},
                       {"rows", one.rows},
                       {"threads", threads_},
                       {"compile", options_.compile},
                       {"repeats", repeats},
                       {"optimizer", {{"kind", "adamw"}, {"learning_rate", kLearningRate}, {"weight_decay", 0.01}}}};
    Peer peer{.ready = torch_->ask(request.dump())};
    if (peer.ready.contains("error")) std::printf("  PyTorch: %s\n", peer.ready["error"].get<std::string>().c_str());
    if (peer.ready.contains("torch") && version_ != peer.ready["torch"]) {
      version_ = peer.ready["torch"];
      std::printf("  PyTorch %s, %s\n", version_.get<std::string>().c_str(), torch_->python().c_str());
    }
    peer.mb = (static_cast<double>(torch_->resident_bytes()) - static_cast<double>(before)) / 1e6;
    return peer;
  }

  void add_ours(const ModelCase& one, const std::string& setting, double gflop, double ms, double peak) {
    add_rate(one, setting, "dunnock", ms);
    report_.add("arithmetic", setting, "dunnock", "GFLOP/s", gflop / ms * 1e3);
    report_.add("arithmetic", setting, "matmul, the peak", "GFLOP/s", peak);
    report_.add("share of peak", setting, "dunnock", "", gflop / ms * 1e3 / peak);
  }

  void add_theirs(const ModelCase& one, const std::string& setting, double our_ms) {
    pause(options_);
    const json theirs = torch_->ask("round");
    if (!theirs.contains("milliseconds")) {
      std::printf("  PyTorch: %s\n", theirs.value("error", "no times").c_str());
      return;
    }
    const double ms = theirs["milliseconds"]["median"].get<double>();
    add_rate(one, setting, "PyTorch", ms);
    report_.add("step, times PyTorch's", setting, "dunnock", "", our_ms / ms);
  }

  void print(const ModelCase& one, const std::string& type, double ours_mb, double theirs_mb) const {
    const std::string setting = one.name + ", " + type;
    const auto median = [&](const char* what, const char* system) { return report_.median(what, setting, system); };
    const double ms = median("step", "dunnock");
    std::printf("%-38s %-5s %9.3f %9.3f %9.3f %9.3f %7.3f %9.2f %6.1f%% %11.0f %9.1f %9.1f\n", one.name.c_str(),
                type.c_str(), ms, report_.least("step", setting, "dunnock"), median("step", "PyTorch"),
                report_.least("step", setting, "PyTorch"), median("step, times PyTorch's", "dunnock"),
                median("arithmetic", "dunnock"), 100 * median("share of peak", "dunnock"), items_of(one) / ms * 1e3,
                ours_mb, theirs_mb);
    std::fflush(stdout);
  }

  const Options& options_;
  const unsigned threads_;
  TorchPeer* const torch_;
  Report& report_;
  json version_;
};

void steps(const Options& options, Report& report) {
  std::string why = "not wanted";
  std::unique_ptr<TorchPeer> torch;
  if (!options.without_torch) torch = TorchPeer::start(options.python, options.script, why);
  if (torch == nullptr) std::printf("without PyTorch: %s\n", why.c_str());
  report.note("torch", torch == nullptr ? json("skipped: " + why) : json(torch->python()));
  const unsigned threads = options.threads == 0 ? device::Device::cpu().info().processors : options.threads;
  report.note("threads", threads);
  print_steps_header();
  StepTimes times(options, threads, torch.get(), report);
  const std::size_t side = options.quick ? 64 : 1024;
  for (const std::string& type : options.types) {
    std::optional<Peak<float>> f32;
    std::optional<Peak<device::Bf16>> bf16;
    type == "bf16" ? (void)bf16.emplace(options.threads, side) : (void)f32.emplace(options.threads, side);
    const auto peak = [&] { return f32 ? f32->gflop_per_s() : bf16->gflop_per_s(); };
    for (const ModelCase& one : model_cases(options)) {
      times.time(one, type, peak);
      if (torch == nullptr || options.quick) continue;
      const double ratio = report.median("step, times PyTorch's", one.name + ", " + type, "dunnock");
      const bool asked = one.family == "mlp" || one.family == "cnn" || one.family == "gpt";
      if (asked) report.target("step, times PyTorch's: " + one.name + ", " + type, ratio, at_most(1));
    }
  }
  std::printf("\n");
}

// ----- schedules ----------------------------------------------------------------------------------------------------

void schedules(const Options& options, Report& report) {
  struct Way {
    const char* name;
    const char* schedule;
    unsigned threads;
  };
  const std::vector<Way> ways = {{"1 lane x 1 thread", "conventional", 1},
                                 {"1 lane x 2 threads", "conventional", 2},
                                 {"2 lanes x 1 thread", "multi-stream", 1}};
  std::printf("%-38s %18s %18s %18s %16s  %s\n", "step by schedule, ms", ways[0].name, ways[1].name, ways[2].name,
              "2 lanes / 1 x 2", "found");
  for (const ModelCase& one : model_cases(options)) {
    std::vector<std::unique_ptr<Timed>> timed;
    std::string refused;
    for (const Way& way : ways) {
      auto made = Timed::create(one, {.schedule = way.schedule, .threads = way.threads});
      if (!made) {
        refused = made.error().message;
        break;
      }
      timed.push_back(std::move(*made));
    }
    if (timed.size() < ways.size()) {
      std::printf("%-38s skipped: %s\n", one.name.c_str(), refused.c_str());
      continue;
    }
    std::vector<double> ratios;
    for (unsigned round = 0; round < options.rounds; ++round) {
      std::vector<double> ms;
      for (std::size_t w = 0; w < ways.size(); ++w) {
        ms.push_back(timed[w]->round_ms(options.seconds / 2));
        report.add("step by schedule", one.name, std::string(ways[w].schedule) + ", " + ways[w].name, "ms", ms.back());
      }
      ratios.push_back(ms[2] / ms[1]);
      report.add("step by schedule, 2 lanes over 1 lane of 2 threads", one.name, "dunnock", "", ratios.back());
    }
    const auto median = [&](std::size_t w) {
      return report.median("step by schedule", one.name, std::string(ways[w].schedule) + ", " + ways[w].name);
    };
    std::printf("%-38s %18.3f %18.3f %18.3f %16.3f  %s\n", one.name.c_str(), median(0), median(1), median(2),
                median_of(ratios), timed[2]->trainer().plan().choice.c_str());
    std::fflush(stdout);
  }
  std::printf("\n");
}

// ----- checkpoints --------------------------------------------------------------------------------------------------

void checkpoints(const Options& options, Report& report) {
  std::printf("%-38s %10s %10s %9s %12s %12s %10s\n", "saving while training", "ms a step", "saving", "slower",
              "MB a save", "MB of state", "save s");
  for (const ModelCase& one : model_cases(options)) {
    if (one.family != "gpt") continue;
    auto timed = Timed::create(one, {.threads = options.threads});
    if (!timed) fail(timed.error().message);
    const Scratch scratch(options.directory);
    auto saves = Checkpoints::open({.path = scratch.at("pool")}, (*timed)->trainer());
    if (!saves) fail(saves.error().message);
    Position position;
    const auto save = [&] {
      position.step = (*timed)->trainer().steps_done();
      const auto before = saves->save(position);
      if (!before) fail(before.error().message);
      if (!*before) return;
      report.add("bytes of a save", one.name, "dunnock", "B", static_cast<double>((*before)->bytes_written));
      report.add("bytes of the state", one.name, "dunnock", "B", static_cast<double>((*before)->tensor_bytes));
      report.add("time of a save", one.name, "dunnock", "s", (*before)->seconds);
    };
    save();  // The first makes files.
    const double step_ms = (*timed)->round_ms(options.quick ? 0 : 1);
    const int windows = std::max(1, static_cast<int>(1e3 * options.save_every / (step_ms * kWindow)));
    std::vector<double> slower;
    for (unsigned i = 0; i < options.saves; ++i) {
      double ms[2] = {};
      for (const bool saving : {false, true}) {
        if (const auto done = saves->wait(); !done) fail(done.error().message);
        (void)(*timed)->window_ms();
        const double ns = ns_of([&] {
          if (saving) save();
          for (int w = 0; w < windows; ++w) (void)(*timed)->window_ms();
          // What the save takes beyond its share of training counts as well.
          if (!saving) return;
          const auto done = saves->wait();
          if (!done) fail(done.error().message);
          if (!*done) return;
          report.add("bytes of a save", one.name, "dunnock", "B", static_cast<double>((*done)->bytes_written));
          report.add("bytes of the state", one.name, "dunnock", "B", static_cast<double>((*done)->tensor_bytes));
          report.add("time of a save", one.name, "dunnock", "s", (*done)->seconds);
        });
        ms[saving ? 1 : 0] = ns / 1e6 / (windows * kWindow);
        report.add("step", one.name, saving ? "saving" : "not saving", "ms", ms[saving ? 1 : 0]);
      }
      slower.push_back(100 * (ms[1] / ms[0] - 1));
      report.add("training slowed by a save", one.name, "dunnock", "%", slower.back());
    }
    std::printf("%-38s %10.3f %10.3f %8.2f%% %12.2f %12.2f %10.3f\n", one.name.c_str(),
                report.median("step", one.name, "not saving"), report.median("step", one.name, "saving"),
                median_of(slower), report.median("bytes of a save", one.name, "dunnock") / 1e6,
                report.median("bytes of the state", one.name, "dunnock") / 1e6,
                report.median("time of a save", one.name, "dunnock"));
    if (!options.quick)
      report.target("a save every " + std::to_string(options.save_every).substr(0, 3) + " s slows " + one.name + ", %",
                    median_of(slower), at_most(5));
    std::fflush(stdout);
  }
  std::printf("\n");
}

int training_command(const Options& options) {
  Report report;
  report.note("rounds", options.rounds);
  const auto wants = [&](const char* part) { return std::ranges::find(options.parts, part) != options.parts.end(); };
  if (wants("steps")) steps(options, report);
  if (wants("schedules")) schedules(options, report);
  if (wants("checkpoints")) checkpoints(options, report);
  return report.write_json(options.json, "training");
}

}  // namespace

void add_training_command(CLI::App& app, Run& run) {
  auto options = std::make_shared<Options>();
  CLI::App* const command =
      app.add_subcommand("training", "Training steps beside PyTorch's, schedules of one device, saving while training");
  command->add_option("--json", options->json, "Google-Benchmark-compatible file");
  command->add_option("--models", options->models, "Families")
      ->delimiter(',')
      ->check(CLI::IsMember({"mlp", "cnn", "resnet", "densenet", "gpt"}))
      ->capture_default_str();
  command->add_option("--parts", options->parts, "What is measured")
      ->delimiter(',')
      ->check(CLI::IsMember({"steps", "schedules", "checkpoints"}))
      ->capture_default_str();
  command->add_option("--dtype", options->types, "Of weights and values")
      ->delimiter(',')
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  command->add_option("--threads", options->threads, "Ours and PyTorch's; 0: all processors")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  command->add_option("--rounds", options->rounds, "In turn; medians are reported")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--seconds", options->seconds, "Of a round, of ours and of PyTorch's")
      ->check(CLI::Range(0.001, 600.0))
      ->capture_default_str();
  command->add_option("--save-every", options->save_every, "Seconds of training between saves")
      ->check(CLI::Range(0.001, 3600.0))
      ->capture_default_str();
  command->add_option("--saves", options->saves, "Pairs of windows with and without")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--directory", options->directory, "For the pool of checkpoints")->capture_default_str();
  command->add_option("--python", options->python,
                      "With torch; default: DUNNOCK_TORCH_PYTHON, python3, /usr/bin/python3");
  command->add_option("--peer", options->script, "training_peer.py; default: that of the source tree");
  command->add_flag("--compile", options->compile, "PyTorch may compile its model, too");
  command->add_flag("--no-torch", options->without_torch, "Without PyTorch");
  command->add_flag("--quick", options->quick, "Tiny models: to see whether it runs");
  command->callback([&run, options] {
    if (options->quick) {
      options->rounds = std::min(options->rounds, 2U);
      options->seconds = std::min(options->seconds, 0.01);
      options->save_every = std::min(options->save_every, 0.05);
      options->saves = std::min(options->saves, 2U);
    }
    run = [options] { return training_command(*options); };
  });
}

}  // namespace dunnock::bench
