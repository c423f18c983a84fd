// checkpoint list, show, verify, diff, export, import, delete, retain and collect.
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "contents.hpp"
#include "dunnock/base/output_file.hpp"
#include "dunnock/base/paths.hpp"
#include "dunnock/index/checkpoint_files.hpp"
#include "dunnock/index/checkpoint_store.hpp"
#include "options.hpp"
#include "print.hpp"

namespace dunnock::tool {
namespace {

using Json = nlohmann::ordered_json;

struct Title {
  std::string name;
  std::uint64_t version = kLatestVersion;
};

/// "name" or "name@version". A name may have an @ in it when a version follows.
Result<Title> title_of(const std::string& text) {
  Title title{text};
  const std::size_t at = text.rfind('@');
  if (at != std::string::npos) {
    const char* const end = text.data() + text.size();
    const auto [after, error] = std::from_chars(text.data() + at + 1, end, title.version);
    if (error != std::errc() || after != end || title.version == kLatestVersion)
      return make_error(ErrorCode::kInvalidArgument, in_quotes(text) + " needs a version number after its @");
    title.name.resize(at);
  }
  if (title.name.empty())
    return make_error(ErrorCode::kInvalidArgument,
                      "the name of the checkpoint is missing: expected NAME or NAME@VERSION");
  return title;
}

std::string to_text(const std::string& name, std::uint64_t version) { return fmt::format("{}@{}", name, version); }

/// "?": it can't be told.
std::string name_of(const CheckpointInfo& info) { return info.name.empty() ? "?" : info.name; }

std::string time_of(std::uint64_t seconds) {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(static_cast<std::time_t>(seconds)));
}

enum class Access : std::uint8_t {
  kLook,  ///< Also beside a writer.
  kRead,  ///< Changes nothing.
  kWrite,
};

/// Opens the pool's checkpoint store and calls use(store). `access` is what use() needs; kLook: it prints nothing
/// before it has read everything, for it may be called again.
template <class Use>
Result<int> with_checkpoints(const Options& options, Access access, Use&& use) {
  const auto use_pool = [&](Pool& pool) -> Result<int> {
    DUNNOCK_TRY(const auto structure, find_structure(pool, options.name, {Kind::kCheckpoints}));
    return with_durable_media(pool, [&](auto media) -> Result<int> {
      DUNNOCK_TRY(auto store, CheckpointStore<decltype(media)>::open(pool, structure.name, media));
      Result<int> status = use(store);
      store.close();
      return status;
    });
  };
  if (access == Access::kLook) return look_into(options.pool, use_pool);
  DUNNOCK_TRY(auto pool, access == Access::kWrite ? Pool::open(options.pool) : Pool::open_read_only(options.pool));
  return use_pool(pool);
}

/// The same, with the checkpoint that the user named.
template <class Use>
Result<int> with_checkpoint(const Options& options, Access access, Use&& use) {
  DUNNOCK_TRY(const auto title, title_of(options.checkpoint));
  return with_checkpoints(options, access, [&](auto& store) { return use(store, title); });
}

/// Whether writing to the path is writing to standard output, as it is for /dev/stdout.
bool is_standard_output(const std::string& path) {
  struct stat file {
  }, output{};
  return ::stat(path.c_str(), &file) == 0 && ::fstat(STDOUT_FILENO, &output) == 0 && file.st_dev == output.st_dev &&
         file.st_ino == output.st_ino;
}

int print_saved(const SaveReport& report) {
  print_line("{}: {} in {} chunks, {} of them new: {} written in {:.2f} s", to_text(report.name, report.version),
             human_bytes(report.tensor_bytes), report.chunks, report.chunks_written - report.chunks_healed,
             human_bytes(report.bytes_written), report.seconds);
  if (report.chunks_healed != 0)
    print_line("{} chunks were there already and damaged: they are written anew", report.chunks_healed);
  return kFine;
}

/// What can't be read of the store's catalog, in words, for those who asked for something else.
template <class Store>
void complain_of_damage(const Store& store) {
  if (const std::uint64_t lines = store.damaged(); lines != 0)
    complain(
        "dunnock: {} of the catalog's lines can't be read: checkpoint list shows them, checkpoint forget removes them",
        lines);
}

}  // namespace

Result<int> checkpoint_list(const Options& options) {
  std::optional<std::vector<CheckpointInfo>> all;
  const auto looked = with_checkpoints(options, Access::kLook, [&](auto& store) -> Result<int> {
    all = store.list();
    for (const CheckpointInfo& one : *all) {
      // Beside a writer, one that may be sound a moment later.
      if (!one.status) return make_error(ErrorCode::kCorrupt, one.status.error().message);
    }
    return kFine;
  });
  if (!looked && (!all || looked.error().code != ErrorCode::kCorrupt)) return looked;
  Json json = Json::array();
  int status = kFine;
  if (!options.json) print_line("{:<32} {:>12} {:>8} {:>12}  {}", "name", "version", "tensors", "bytes", "created");
  for (const CheckpointInfo& one : *all) {
    if (!one.status) status = kDamaged;
    const bool known = one.version != kLatestVersion;
    Json entry = {{"name", one.name}, {"version", one.version}};
    if (one.name.empty()) entry["name"] = nullptr;
    if (!known) entry["version"] = nullptr;
    if (one.status) entry["tensors"] = one.tensors;
    if (known) {
      entry["bytes"] = one.tensor_bytes;
      entry["created_seconds"] = one.created_seconds;
    }
    if (!one.status) entry["error"] = one.status.error().message;
    json.push_back(std::move(entry));
    if (options.json) continue;
    print_line("{:<32} {:>12} {:>8} {:>12}  {}{}", name_of(one), known ? std::to_string(one.version) : "?",
               one.status ? std::to_string(one.tensors) : "?", known ? human_bytes(one.tensor_bytes) : "?",
               known ? time_of(one.created_seconds) : "?",
               one.status ? std::string() : "  DAMAGED: " + one.status.error().message);
  }
  if (options.json) print_json(json);
  return status;
}

Result<int> checkpoint_show(const Options& options) {
  return with_checkpoint(options, Access::kLook, [&](auto& store, const Title& title) -> Result<int> {
    DUNNOCK_TRY(const auto manifest, store.manifest(title.name, title.version));
    Json json = {
        {"name", manifest.name},     {"version", manifest.version}, {"created_seconds", manifest.created_seconds},
        {"bytes", manifest.bytes()}, {"notes", Json::object()},     {"tensors", Json::array()}};
    for (const auto& [key, value] : manifest.notes) json["notes"][key] = value;
    for (const ManifestTensor& tensor : manifest.tensors)
      json["tensors"].push_back({{"name", tensor.spec.name},
                                 {"dtype", name_of(tensor.spec.dtype)},
                                 {"shape", tensor.spec.shape},
                                 {"bytes", tensor.spec.bytes().value_or(0)}});
    if (options.json) {
      print_json(json);
      return kFine;
    }
    print_line("{}, {}, {} tensors, {}", to_text(manifest.name, manifest.version), time_of(manifest.created_seconds),
               manifest.tensors.size(), human_bytes(manifest.bytes()));
    for (const auto& [key, value] : manifest.notes) print_line("  {} = {}", key, value);
    for (const ManifestTensor& tensor : manifest.tensors)
      print_line("  {:<48} {:<24} {:>12}", tensor.spec.name, dunnock::describe(tensor.spec),
                 human_bytes(tensor.spec.bytes().value_or(0)));
    return kFine;
  });
}

Result<int> checkpoint_verify(const Options& options) {
  return with_checkpoints(options, Access::kRead, [&](auto& store) -> Result<int> {
    std::vector<CheckpointInfo> all;
    if (!options.checkpoint.empty()) {
      DUNNOCK_TRY(const auto title, title_of(options.checkpoint));
      CheckpointInfo& one = all.emplace_back();
      one.name = title.name;
      one.version = title.version;
      if (one.version == kLatestVersion) {
        DUNNOCK_TRY(const auto latest, store.latest(one.name));
        if (latest) one.version = *latest;
      }
    } else {
      all = store.list();
    }
    if (all.empty()) return make_error(ErrorCode::kNotFound, options.pool + " holds no checkpoint to verify");
    int status = kFine;
    for (const CheckpointInfo& one : all) {
      const Status sound = one.status ? store.verify(one.name, one.version) : one.status;
      if (!sound && one.status && sound.error().code != ErrorCode::kCorrupt) return tl::unexpected(sound.error());
      const std::string title = one.version == kLatestVersion ? name_of(one) : to_text(name_of(one), one.version);
      print_line("{}: {}", title, sound ? "sound" : "DAMAGED: " + sound.error().message);
      if (!sound) status = kDamaged;
    }
    return status;
  });
}

Result<int> checkpoint_diff(const Options& options) {
  DUNNOCK_TRY(const auto other, title_of(options.other));
  return with_checkpoint(options, Access::kRead, [&](auto& store, const Title& title) -> Result<int> {
    DUNNOCK_TRY(const auto diff, store.diff(title.name, title.version, other.name, other.version));
    if (options.json) {
      const Json json = {{"added", diff.added},     {"removed", diff.removed}, {"reshaped", diff.reshaped},
                         {"changed", diff.changed}, {"same", diff.same},       {"changed_bytes", diff.changed_bytes}};
      print_json(json);
      return kFine;
    }
    for (const auto& [sign, names] : {std::pair{'+', &diff.added}, std::pair{'-', &diff.removed},
                                      std::pair{'!', &diff.reshaped}, std::pair{'~', &diff.changed}}) {
      for (const std::string& name : *names) print_line("{} {}", sign, name);
    }
    print_line("{} added, {} removed, {} of another shape, {} changed, {} the same; {} in new chunks",
               diff.added.size(), diff.removed.size(), diff.reshaped.size(), diff.changed.size(), diff.same.size(),
               human_bytes(diff.changed_bytes));
    return kFine;
  });
}

Result<int> checkpoint_export(const Options& options) {
  return with_checkpoint(options, Access::kRead, [&](auto& store, const Title& title) -> Result<int> {
    DUNNOCK_TRY(const auto report, export_safetensors(store, title.name, title.version, options.file, options.threads));
    const auto line = fmt::format("{}: {} in {:.2f} s", options.file, human_bytes(report.tensor_bytes), report.seconds);
    // What reads the checkpoint from a pipe does not expect more.
    is_standard_output(options.file) ? complain("{}", line) : print_line("{}", line);
    return kFine;
  });
}

Result<int> checkpoint_import(const Options& options) {
  DUNNOCK_TRY(auto title, title_of(options.checkpoint));
  SaveReport saved;
  const auto import = [&](auto& store) -> Result<int> {
    if (title.version == kLatestVersion) {
      const auto latest = store.latest(title.name);
      DUNNOCK_TRY(latest);
      title.version = *latest ? **latest + 1 : 1;
    }
    DUNNOCK_TRY(saved, import_safetensors(store, title.name, title.version, options.file, options.threads));
    return kFine;
  };
  std::error_code unseen;
  const bool fresh = !std::filesystem::exists(options.pool, unseen);
  if (unseen) return make_error(ErrorCode::kIo, "can't access " + options.pool + ": " + unseen.message());
  if (!fresh) {
    const auto done = with_checkpoints(options, Access::kWrite, import);
    if (done) return print_saved(saved);
    if (done.error().code != ErrorCode::kNotFound || !options.create) return done;
  } else if (!options.create) {
    return make_error(ErrorCode::kNotFound, options.pool + " does not exist; --create creates it");
  }
  // Before anything is made: is there something to import?
  DUNNOCK_TRY(SafetensorsFile::open(options.file));
  const CheckpointOptions sizes{.capacity_bytes = options.capacity_bytes,
                                .chunk_bytes = static_cast<std::uint32_t>(options.chunk_bytes),
                                .segment_bytes = segment_bytes_for(options.capacity_bytes, 2 * options.chunk_bytes)};
  // Sizes that can't be are refused before a file is made.
  DUNNOCK_TRY(CheckpointStore<DirectMedia>::check_options(sizes));
  // A store whose first checkpoint is refused is not made.
  const auto make_store = [&](Pool& pool) -> Status {
    const auto made = with_durable_media(pool, [&](auto media) -> Result<int> {
      DUNNOCK_TRY(auto store, CheckpointStore<decltype(media)>::create(
                                  pool, options.name.empty() ? "checkpoints" : options.name, sizes, media));
      Result<int> imported = import(store);
      store.close();
      return imported;
    });
    return made ? Status() : tl::unexpected(made.error());
  };
  DUNNOCK_TRY(auto pool, fresh ? Pool::create_with(options.pool,
                                                   {.bytes = CheckpointStore<DirectMedia>::pool_bytes(sizes)},
                                                   make_store)
                               : Pool::open(options.pool));
  if (!fresh) {
    DUNNOCK_TRY(make_or_undo(pool, make_store));
  }
  DUNNOCK_TRY(pool.close());
  return print_saved(saved);
}

Result<int> checkpoint_delete(const Options& options) {
  return with_checkpoint(options, Access::kWrite, [&](auto& store, const Title& title) -> Result<int> {
    if (title.version == kLatestVersion)
      return make_error(ErrorCode::kInvalidArgument,
                        "the version to delete is missing: expected " + printable(title.name) + "@VERSION");
    DUNNOCK_TRY(store.remove(title.name, title.version));
    print_line("{} deleted", to_text(title.name, title.version));
    return kFine;
  });
}

Result<int> checkpoint_retain(const Options& options) {
  return with_checkpoints(options, Access::kWrite, [&](auto& store) -> Result<int> {
    const auto all = store.list(options.checkpoint);
    if (std::none_of(all.begin(), all.end(), [](const CheckpointInfo& one) { return !one.name.empty(); }))
      return make_error(ErrorCode::kNotFound, "checkpoint " + in_quotes(options.checkpoint) + " does not exist");
    const auto retained =
        store.retain(options.checkpoint, {.keep_last = options.keep_last, .keep_every = options.keep_every});
    DUNNOCK_TRY(retained);
    print_line("{} deleted", retained->removed);
    if (retained->damaged != 0)
      complain("dunnock: {} newer versions are damaged: they were neither counted as kept nor removed",
               retained->damaged);
    complain_of_damage(store);
    return retained->damaged == 0 && store.damaged() == 0 ? kFine : kDamaged;
  });
}

Result<int> checkpoint_collect(const Options& options) {
  return with_checkpoints(options, Access::kWrite, [&](auto& store) -> Result<int> {
    DUNNOCK_TRY(const auto given_back, store.collect());
    print_line("{} values freed", given_back);
    return kFine;
  });
}

Result<int> checkpoint_forget(const Options& options) {
  return with_checkpoints(options, Access::kWrite, [&](auto& store) -> Result<int> {
    print_line("{} damaged lines and checkpoints removed from the catalog", store.forget_damaged());
    return kFine;
  });
}

}  // namespace dunnock::tool
