// dunnock-bench checkpoint: saving and restoring a model beside plain copies, files and whole-file saving.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <random>

#include "commands.hpp"
#include "dunnock/index/checkpoint_saver.hpp"
#include "dunnock/pmem/detect.hpp"
#include "report.hpp"
#include "scratch.hpp"

namespace dunnock::bench {
namespace {

struct Options {
  std::string model = "gpt2";
  double scale = 1;
  std::string directory = "/dev/shm";
  std::vector<unsigned> unchanged = {0, 50, 90, 100};
  std::vector<unsigned> threads = {1, 2};
  std::uint64_t chunk_bytes = 1 << 20;
  unsigned repeat = 3;
  unsigned steps = 6;
  std::uint64_t seed = 1;
  std::string json;
};

/// The parameters of GPT-2 small (OpenAI, 2019): 124.4 M in float32, with the names of its published files. Of "bert":
/// BERT base (Devlin et al., 2018), 109.5 M.
std::vector<TensorSpec> shapes_of(const std::string& model, double scale) {
  std::vector<TensorSpec> all;
  const auto add = [&](std::string name, std::vector<std::uint64_t> shape) {
    // A smaller copy for a quick look: fewer rows.
    if (shape.size() > 1)
      shape[0] = std::max<std::uint64_t>(1, static_cast<std::uint64_t>(static_cast<double>(shape[0]) * scale));
    all.push_back({std::move(name), Dtype::kF32, std::move(shape)});
  };
  const std::uint64_t d = 768;
  const auto norm = [&](const std::string& name) {
    add(name + ".weight", {d});
    add(name + ".bias", {d});
  };
  const auto linear = [&](const std::string& name, std::uint64_t in, std::uint64_t out) {
    add(name + ".weight", {in, out});
    add(name + ".bias", {out});
  };
  if (model == "gpt2") {
    add("wte.weight", {50257, d});
    add("wpe.weight", {1024, d});
    for (int layer = 0; layer < 12; ++layer) {
      const std::string h = "h." + std::to_string(layer) + ".";
      norm(h + "ln_1");
      linear(h + "attn.c_attn", d, 3 * d);
      linear(h + "attn.c_proj", d, d);
      norm(h + "ln_2");
      linear(h + "mlp.c_fc", d, 4 * d);
      linear(h + "mlp.c_proj", 4 * d, d);
    }
    norm("ln_f");
  } else {
    add("embeddings.word_embeddings.weight", {30522, d});
    add("embeddings.position_embeddings.weight", {512, d});
    add("embeddings.token_type_embeddings.weight", {2, d});
    norm("embeddings.LayerNorm");
    for (int layer = 0; layer < 12; ++layer) {
      const std::string h = "encoder.layer." + std::to_string(layer) + ".";
      for (const char* name :
           {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"})
        linear(h + name, d, d);
      norm(h + "attention.output.LayerNorm");
      linear(h + "intermediate.dense", d, 4 * d);
      linear(h + "output.dense", 4 * d, d);
      norm(h + "output.LayerNorm");
    }
    linear("pooler.dense", d, d);
  }
  return all;
}

struct Model {
  std::vector<TensorSpec> specs;
  std::vector<std::vector<std::byte>> bytes;
  std::uint64_t total = 0;

  explicit Model(std::vector<TensorSpec> of) : specs(std::move(of)) {
    for (const TensorSpec& spec : specs) {
      bytes.emplace_back(*spec.bytes());
      total += bytes.back().size();
    }
  }
  [[nodiscard]] std::vector<TensorSource> sources() const {
    std::vector<TensorSource> all;
    for (std::size_t i = 0; i < specs.size(); ++i) all.push_back({specs[i], bytes[i], {}, {}});
    return all;
  }
  [[nodiscard]] std::vector<TensorSink> sinks() {
    std::vector<TensorSink> all;
    for (std::size_t i = 0; i < specs.size(); ++i) all.push_back({specs[i], bytes[i], {}});
    return all;
  }
  /// New bytes for a tensor, as an optimizer's step would give it.
  void change(std::size_t tensor, std::uint64_t seed) {
    std::uint64_t x = seed * 0x9e3779b97f4a7c15ULL + tensor;
    std::vector<std::byte>& one = bytes[tensor];
    for (std::size_t at = 0; at + 8 <= one.size(); at += 8) {
      x = x * 6364136223846793005ULL + 1442695040888963407ULL;
      const std::uint64_t value = x ^ x >> 31;
      std::memcpy(one.data() + at, &value, 8);
    }
  }
  /// Changes tensors, in random order, until no more than that share of the bytes is as it was. Returns their bytes.
  std::uint64_t change_all_but(unsigned unchanged_percent, std::uint64_t seed) {
    std::vector<std::size_t> order(specs.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
    std::uint64_t kept = 0, changed = 0;
    for (const std::size_t tensor : order) {
      if ((kept + bytes[tensor].size()) * 100 <= total * unchanged_percent) {
        kept += bytes[tensor].size();
        continue;
      }
      change(tensor, seed);
      changed += bytes[tensor].size();
    }
    return changed;
  }
};

void check(bool fine, const std::string& what) {
  if (!fine) fail(what + ": " + std::strerror(errno));
}

/// Calls work(tensor, from, to) for pieces of up to 1 MiB of all tensors, on `threads` threads.
void in_pieces(const Model& model, unsigned threads,
               const std::function<void(std::size_t, std::uint64_t, std::uint64_t)>& work) {
  struct Piece {
    std::size_t tensor;
    std::uint64_t from, to;
  };
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i < model.bytes.size(); ++i) {
    for (std::uint64_t at = 0; at < model.bytes[i].size(); at += 1 << 20)
      pieces.push_back({i, at, std::min<std::uint64_t>(model.bytes[i].size(), at + (1 << 20))});
  }
  std::atomic<std::size_t> next = 0;
  on_threads(threads, [&](unsigned) {
    for (std::size_t at = next++; at < pieces.size(); at = next++)
      work(pieces[at].tensor, pieces[at].from, pieces[at].to);
  });
}

void write_all(int file, const std::byte* from, std::uint64_t bytes, std::uint64_t at) {
  while (bytes != 0) {
    const ssize_t put = pwrite(file, from, bytes, static_cast<off_t>(at));
    check(put > 0, "write");
    from += put;
    at += static_cast<std::uint64_t>(put);
    bytes -= static_cast<std::uint64_t>(put);
  }
}

/// One file, written over and over in place, without a crash in mind: the floor.
void plain_copy(const Model& model, const std::string& path, unsigned threads) {
  const int file = open(path.c_str(), O_CREAT | O_RDWR, 0644);
  check(file >= 0, path);
  std::vector<std::uint64_t> begins{0};
  for (const auto& one : model.bytes) begins.push_back(begins.back() + one.size());
  in_pieces(model, threads, [&](std::size_t tensor, std::uint64_t from, std::uint64_t to) {
    write_all(file, model.bytes[tensor].data() + from, to - from, begins[tensor] + from);
  });
  check(fsync(file) == 0, "fsync");
  close(file);
}

/// A file a tensor, each synced, in a directory that is renamed when it is whole.
void files_and_fsync(const Model& model, const std::string& directory) {
  std::filesystem::remove_all(directory + ".new");
  std::filesystem::create_directories(directory + ".new");
  for (std::size_t i = 0; i < model.bytes.size(); ++i) {
    const std::string path = directory + ".new/" + model.specs[i].name;
    const int file = open(path.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0644);
    check(file >= 0, path);
    write_all(file, model.bytes[i].data(), model.bytes[i].size(), 0);
    check(fsync(file) == 0, "fsync");
    close(file);
  }
  std::filesystem::remove_all(directory);
  std::filesystem::rename(directory + ".new", directory);
}

/// As torch.save does, with what it leaves out for a crash: one new file, written from the front, synced, renamed.
void whole_file(const Model& model, const std::string& path) {
  std::FILE* file = std::fopen((path + ".new").c_str(), "w");
  check(file != nullptr, path);
  for (const auto& one : model.bytes) check(std::fwrite(one.data(), 1, one.size(), file) == one.size(), "write");
  check(std::fflush(file) == 0 && fsync(fileno(file)) == 0, "fsync");
  std::fclose(file);
  check(std::rename((path + ".new").c_str(), path.c_str()) == 0, "rename");
}

/// Reads the plain copy back and hashes every piece.
void read_and_checksum(Model& model, const std::string& path, unsigned threads) {
  const int file = open(path.c_str(), O_RDONLY);
  check(file >= 0, path);
  std::vector<std::uint64_t> begins{0};
  for (const auto& one : model.bytes) begins.push_back(begins.back() + one.size());
  std::atomic<std::uint64_t> sum = 0;
  in_pieces(model, threads, [&](std::size_t tensor, std::uint64_t from, std::uint64_t to) {
    check(pread(file, model.bytes[tensor].data() + from, to - from, static_cast<off_t>(begins[tensor] + from)) ==
              static_cast<ssize_t>(to - from),
          "read");
    sum += XXH3_64bits(model.bytes[tensor].data() + from, to - from);
  });
  close(file);
}

std::string on(unsigned threads) { return std::to_string(threads) + " threads"; }

/// Our store on a medium, in turn with files in the same directory.
template <class M>
class Comparison {
 public:
  Comparison(const Options& options, Pool& pool, M media, const CheckpointOptions& sizes, const Scratch& scratch,
             Report& report)
      : options_(options),
        plain_(scratch.at("plain")),
        whole_(scratch.at("whole")),
        files_(scratch.at("files")),
        report_(report),
        model_(shapes_of(options.model, options.scale)),
        store_(make(pool, sizes, media)),
        seed_(options.seed * 1000) {
    for (std::size_t i = 0; i < model_.specs.size(); ++i) model_.change(i, options.seed);
    // Everything is written once before it is measured: files have their pages, the log has used its segments.
    for (int i = 0; i < 4; ++i) {
      (void)model_.change_all_but(0, ++seed_);
      (void)save(1);
      keep_last();
    }
    plain_copy(model_, plain_, 1);
    whole_file(model_, whole_);
    files_and_fsync(model_, files_);
  }

  void run() {
    for (unsigned round = 0; round < options_.repeat; ++round) {
      for (const unsigned unchanged : options_.unchanged) {
        for (const unsigned threads : options_.threads) {
          measure_save(unchanged, threads);
          if (unchanged == options_.unchanged.front()) measure_files(unchanged, threads);
        }
      }
      plain_copy(model_, plain_, 1);
      for (const unsigned threads : options_.threads) measure_restore(threads);
    }
    measure_training();
  }
  /// Percent that a save wrote beyond what had changed, at most.
  [[nodiscard]] double worst_extra() const { return worst_extra_; }

 private:
  using Store = CheckpointStore<M>;

  static Store make(Pool& pool, const CheckpointOptions& sizes, M media) {
    auto made = Store::create(pool, "checkpoints", sizes, media);
    if (!made) fail(made.error().message);
    return std::move(*made);
  }
  SaveReport save(unsigned threads) {
    auto saved = store_.save("model", ++version_, model_.sources(), {.threads = threads, .notes = {}});
    if (!saved) fail(saved.error().message);
    return *saved;
  }
  void keep_last() { (void)store_.retain("model", {.keep_last = 1}); }
  static std::string name_of_save(unsigned unchanged) { return "save, " + std::to_string(unchanged) + " % unchanged"; }
  /// Adds the rate at which the model's bytes were saved or restored.
  void add_rate(const std::string& what, unsigned threads, const char* system, double ns) {
    report_.add(what, on(threads), system, "GB/s", static_cast<double>(model_.total) / ns);
  }

  void measure_save(unsigned unchanged, unsigned threads) {
    const std::string what = name_of_save(unchanged);
    const std::uint64_t changed = model_.change_all_but(unchanged, ++seed_);
    const SaveReport saved = save(threads);
    add_rate(what, threads, "dunnock", saved.seconds * 1e9);
    // Manifest and headers; nothing else may be written besides what has changed.
    if (changed != 0) {
      const double extra = static_cast<double>(saved.bytes_written) / static_cast<double>(changed) - 1;
      report_.add(what, "bytes beyond the changed", "dunnock", "%", 100 * extra);
      worst_extra_ = std::max(worst_extra_, 100 * extra);
    } else {
      report_.add(what, "bytes written", "dunnock", "B", static_cast<double>(saved.bytes_written));
    }
    keep_last();
  }

  void measure_files(unsigned unchanged, unsigned threads) {
    const std::string what = name_of_save(unchanged);
    add_rate(what, threads, "plain copy", ns_of([&] { plain_copy(model_, plain_, threads); }));
    if (threads != options_.threads.front()) return;
    add_rate(what, threads, "whole file, fsync", ns_of([&] { whole_file(model_, whole_); }));
    add_rate(what, threads, "files, fsync", ns_of([&] { files_and_fsync(model_, files_); }));
  }

  void measure_restore(unsigned threads) {
    Model back(shapes_of(options_.model, options_.scale));
    const auto restored = store_.restore("model", kLatestVersion, back.sinks(), threads);
    if (!restored) fail(restored.error().message);
    // The second time its memory is there, as it is for the other.
    const auto again = store_.restore("model", kLatestVersion, back.sinks(), threads);
    if (!again || back.bytes != model_.bytes) fail("the restored tensors differ from the saved ones");
    add_rate("restore", threads, "dunnock", again->seconds * 1e9);
    add_rate("restore", threads, "plain read + checksum", ns_of([&] { read_and_checksum(back, plain_, threads); }));
  }

  /// A training loop: forward and backward read the weights, the optimizer's step writes them, every step is saved.
  void measure_training() {
    const std::uint64_t staging = std::max<std::uint64_t>(model_.total / 4, staging_bytes_min(1, options_.chunk_bytes));
    (void)model_.change_all_but(0, ++seed_);
    const double save_seconds = save(1).seconds;
    keep_last();
    for (const double step_seconds : {save_seconds, 2 * save_seconds}) {
      for (const std::uint64_t memory : {std::uint64_t{0}, staging}) {
        const std::string system =
            memory == 0 ? "saver, no copies" : "saver, copies in " + std::to_string(memory >> 20) + " MiB";
        report_.add("training stalled",
                    step_seconds == save_seconds ? "steps as long as a save" : "steps twice as long", system, "%",
                    train(step_seconds, memory));
      }
    }
  }
  /// Percent of the time of the saves in which training stood still.
  double train(double step_seconds, std::uint64_t staging_bytes) {
    auto saver =
        CheckpointSaver<M>::create(store_, {.staging_bytes = staging_bytes, .retention = Retention{.keep_last = 1}});
    if (!saver) fail(saver.error().message);
    double stalled = 0, saving = 0;
    std::vector<PendingSave> saves;
    for (unsigned step = 0; step < options_.steps; ++step) {
      read_weights(step_seconds);
      if (step != 0) stalled += ns_of([&] { saves.back().wait_captured(); }) / 1e9;
      (void)model_.change_all_but(0, ++seed_);
      stalled += ns_of([&] { saves.push_back((*saver)->save("model", ++version_, model_.sources())); }) / 1e9;
    }
    for (std::size_t i = 0; i < saves.size(); ++i) {
      const auto done = saves[i].wait();
      if (!done) fail(done.error().message);
      if (i + 1 != saves.size()) saving += done->seconds;  // Nobody waits for the last one.
    }
    return 100 * stalled / saving;
  }
  void read_weights(double seconds) const {
    static std::atomic<std::uint64_t> sink = 0;
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    while (std::chrono::steady_clock::now() < end) {
      for (const auto& one : model_.bytes) {
        for (std::size_t at = 0; at < one.size(); at += 4096) sink += std::to_integer<std::uint64_t>(one[at]);
        if (std::chrono::steady_clock::now() >= end) break;
      }
    }
  }

  const Options& options_;
  const std::string plain_, whole_, files_;
  Report& report_;
  Model model_;
  Store store_;
  std::uint64_t version_ = 0;
  std::uint64_t seed_;
  double worst_extra_ = 0;
};

int checkpoint_command(const Options& options) {
  Report report;
  const Model model(shapes_of(options.model, options.scale));
  report.note("model", options.model);
  report.note("tensors", model.specs.size());
  report.note("tensor_bytes", model.total);
  report.note("directory", options.directory);
  report.note("repeat", options.repeat);
  Scratch scratch(options.directory);
  const CheckpointOptions sizes{.capacity_bytes = model.total * 4 + (256 << 20),
                                .chunk_bytes = static_cast<std::uint32_t>(options.chunk_bytes)};
  auto pool = Pool::create(scratch.at("pool"), {.bytes = CheckpointStore<DirectMedia>::pool_bytes(sizes)});
  if (!pool) fail(pool.error().message);
  // In memory: what a pool on persistent memory does. On a disk: what this file calls for.
  const auto detected = detect_media(*pool);
  if (!detected) fail(detected.error().message);
  const bool in_memory = options.directory.starts_with("/dev/shm");
  const MediaKind kind = in_memory ? MediaKind::kDirect : detected->kind;
  report.note("media", to_string(kind));
  std::printf("%s: %zu tensors, %.1f MB of float32, in %s, media %s\n", options.model.c_str(), model.specs.size(),
              static_cast<double>(model.total) / 1e6, options.directory.c_str(), std::string(to_string(kind)).c_str());
  double worst_extra = 0;
  const auto compare = [&]<class M>(M media) {
    Comparison<M> comparison(options, *pool, media, sizes, scratch, report);
    comparison.run();
    worst_extra = comparison.worst_extra();
  };
  if (kind == MediaKind::kFile)
    compare(pool->file_media());
  else
    compare(DirectMedia{});
  report.print_rows();
  std::printf("\n");

  report.target("bytes written beyond the changed ones, at most, %", worst_extra, at_most(5));
  const std::string all = "save, " + std::to_string(options.unchanged.front()) + " % unchanged";
  for (const unsigned threads : options.threads) {
    const std::string setting = on(threads);
    const double saved = 100 / report.times(all, setting, "plain copy");
    report.target("save, " + setting + ", % of a plain copy's speed", saved, at_least(80));
    const double restored = 100 / report.times("restore", setting, "plain read + checksum");
    report.target("restore, " + setting + ", % of plain read + checksum", restored, at_least(80));
  }
  const double stalled = report.median("training stalled", "steps twice as long", "saver, no copies");
  report.target("training stalled, steps twice as long as a save, % of the save", stalled, at_most(10));
  return report.write_json(options.json, "checkpoint");
}

}  // namespace

void add_checkpoint_command(CLI::App& app, Run& run) {
  static Options options;
  CLI::App* checkpoint = app.add_subcommand("checkpoint", "saving a model beside plain copies and files");
  checkpoint->add_option("--model", options.model, "whose shapes: gpt2 or bert")
      ->check(CLI::IsMember({"gpt2", "bert"}))
      ->capture_default_str();
  checkpoint->add_option("--scale", options.scale, "share of the rows, for a quick look")
      ->check(CLI::Range(0.001, 1.0))
      ->capture_default_str();
  checkpoint->add_option("--directory", options.directory, "for pool and files")->capture_default_str();
  checkpoint->add_option("--unchanged", options.unchanged, "percent of the bytes; the first is compared with files")
      ->delimiter(',')
      ->check(CLI::Range(0, 100))
      ->capture_default_str();
  checkpoint->add_option("--threads", options.threads)
      ->delimiter(',')
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  checkpoint->add_option("--chunk", options.chunk_bytes, "bytes of a chunk")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(64, 16 << 20))
      ->capture_default_str();
  checkpoint->add_option("--repeat", options.repeat, "rounds; medians are reported")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  checkpoint->add_option("--steps", options.steps, "of the training loop")
      ->check(CLI::Range(2, 1000))
      ->capture_default_str();
  checkpoint->add_option("--seed", options.seed)->capture_default_str();
  checkpoint->add_option("--json", options.json, "Google-Benchmark-compatible file");
  checkpoint->callback([&run] { run = [] { return checkpoint_command(options); }; });
}

}  // namespace dunnock::bench
