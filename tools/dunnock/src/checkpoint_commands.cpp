// checkpoint list, show, verify, diff, export, import, delete, retain and collect.
#include <fmt/chrono.h>
#include <fmt/format.h>

#include <charconv>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "contents.hpp"
#include "dunnock/index/checkpoint_files.hpp"
#include "dunnock/index/checkpoint_store.hpp"
#include "options.hpp"

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
      return make_error(ErrorCode::kInvalidArgument, "'" + text + "' has no number after its @");
    title.name.resize(at);
  }
  if (title.name.empty())
    return make_error(ErrorCode::kInvalidArgument, "a checkpoint has a name: NAME or NAME@VERSION");
  return title;
}

std::string to_text(const std::string& name, std::uint64_t version) { return fmt::format("{}@{}", name, version); }

std::string time_of(std::uint64_t seconds) {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(static_cast<std::time_t>(seconds)));
}

/// Opens the pool's checkpoint store and calls use(store).
template <class Use>
Result<int> with_checkpoints(const Options& options, Use&& use) {
  auto pool = Pool::open(options.pool);
  if (!pool) return tl::unexpected(pool.error());
  const auto structure = find_structure(*pool, options.name, {Kind::kCheckpoints});
  if (!structure) return tl::unexpected(structure.error());
  return with_durable_media(*pool, [&](auto media) -> Result<int> {
    auto store = CheckpointStore<decltype(media)>::open(*pool, structure->name, media);
    if (!store) return tl::unexpected(store.error());
    Result<int> status = use(*store);
    store->close();
    return status;
  });
}

/// The same, with the checkpoint that the user named.
template <class Use>
Result<int> with_checkpoint(const Options& options, Use&& use) {
  const auto title = title_of(options.checkpoint);
  if (!title) return tl::unexpected(title.error());
  return with_checkpoints(options, [&](auto& store) { return use(store, *title); });
}

int print_saved(const SaveReport& report) {
  fmt::print("{}: {} in {} chunks, {} of them new: {} written in {:.2f} s\n", to_text(report.name, report.version),
             human_bytes(report.tensor_bytes), report.chunks, report.chunks_written, human_bytes(report.bytes_written),
             report.seconds);
  return kFine;
}

}  // namespace

Result<int> checkpoint_list(const Options& options) {
  return with_checkpoints(options, [&](auto& store) -> Result<int> {
    Json json = Json::array();
    if (!options.json) fmt::print("{:<32} {:>12} {:>8} {:>12}  {}\n", "name", "version", "tensors", "bytes", "created");
    for (const CheckpointInfo& one : store.list()) {
      json.push_back({{"name", one.name},
                      {"version", one.version},
                      {"tensors", one.tensors},
                      {"bytes", one.tensor_bytes},
                      {"created_seconds", one.created_seconds}});
      if (!options.json)
        fmt::print("{:<32} {:>12} {:>8} {:>12}  {}\n", one.name, one.version, one.tensors,
                   human_bytes(one.tensor_bytes), time_of(one.created_seconds));
    }
    if (options.json) fmt::print("{}\n", json.dump(2));
    return kFine;
  });
}

Result<int> checkpoint_show(const Options& options) {
  return with_checkpoint(options, [&](auto& store, const Title& title) -> Result<int> {
    const auto manifest = store.manifest(title.name, title.version);
    if (!manifest) return tl::unexpected(manifest.error());
    Json json = {
        {"name", manifest->name},     {"version", manifest->version}, {"created_seconds", manifest->created_seconds},
        {"bytes", manifest->bytes()}, {"notes", Json::object()},      {"tensors", Json::array()}};
    for (const auto& [key, value] : manifest->notes) json["notes"][key] = value;
    for (const ManifestTensor& tensor : manifest->tensors)
      json["tensors"].push_back({{"name", tensor.spec.name},
                                 {"dtype", name_of(tensor.spec.dtype)},
                                 {"shape", tensor.spec.shape},
                                 {"bytes", tensor.spec.bytes().value_or(0)}});
    if (options.json) {
      fmt::print("{}\n", json.dump(2, ' ', false, Json::error_handler_t::replace));
      return kFine;
    }
    fmt::print("{}, {}, {} tensors, {}\n", to_text(manifest->name, manifest->version),
               time_of(manifest->created_seconds), manifest->tensors.size(), human_bytes(manifest->bytes()));
    for (const auto& [key, value] : manifest->notes) fmt::print("  {} = {}\n", key, value);
    for (const ManifestTensor& tensor : manifest->tensors)
      fmt::print("  {:<48} {:<24} {:>12}\n", tensor.spec.name, dunnock::describe(tensor.spec),
                 human_bytes(tensor.spec.bytes().value_or(0)));
    return kFine;
  });
}

Result<int> checkpoint_verify(const Options& options) {
  return with_checkpoints(options, [&](auto& store) -> Result<int> {
    std::vector<Title> titles;
    if (!options.checkpoint.empty()) {
      auto title = title_of(options.checkpoint);
      if (!title) return tl::unexpected(title.error());
      titles.push_back(std::move(*title));
    } else {
      for (const CheckpointInfo& one : store.list()) titles.push_back({one.name, one.version});
    }
    int status = kFine;
    for (const Title& title : titles) {
      const auto version = title.version == kLatestVersion ? store.latest(title.name) : title.version;
      const Status sound = store.verify(title.name, title.version);
      if (!sound && sound.error().code != ErrorCode::kCorrupt) return tl::unexpected(sound.error());
      fmt::print("{}: {}\n", to_text(title.name, version.value_or(0)),
                 sound ? "sound" : "DAMAGED: " + sound.error().message);
      if (!sound) status = kDamaged;
    }
    return status;
  });
}

Result<int> checkpoint_diff(const Options& options) {
  const auto other = title_of(options.other);
  if (!other) return tl::unexpected(other.error());
  return with_checkpoint(options, [&](auto& store, const Title& title) -> Result<int> {
    const auto diff = store.diff(title.name, title.version, other->name, other->version);
    if (!diff) return tl::unexpected(diff.error());
    if (options.json) {
      const Json json = {{"added", diff->added},       {"removed", diff->removed},
                         {"reshaped", diff->reshaped}, {"changed", diff->changed},
                         {"same", diff->same},         {"changed_bytes", diff->changed_bytes}};
      fmt::print("{}\n", json.dump(2, ' ', false, Json::error_handler_t::replace));
      return kFine;
    }
    for (const auto& [sign, names] : {std::pair{'+', &diff->added}, std::pair{'-', &diff->removed},
                                      std::pair{'!', &diff->reshaped}, std::pair{'~', &diff->changed}}) {
      for (const std::string& name : *names) fmt::print("{} {}\n", sign, name);
    }
    fmt::print("{} added, {} removed, {} of another shape, {} changed, {} the same; {} in new chunks\n",
               diff->added.size(), diff->removed.size(), diff->reshaped.size(), diff->changed.size(), diff->same.size(),
               human_bytes(diff->changed_bytes));
    return kFine;
  });
}

Result<int> checkpoint_export(const Options& options) {
  return with_checkpoint(options, [&](auto& store, const Title& title) -> Result<int> {
    const auto report = export_safetensors(store, title.name, title.version, options.file, options.threads);
    if (!report) return tl::unexpected(report.error());
    fmt::print("{}: {} in {:.2f} s\n", options.file, human_bytes(report->tensor_bytes), report->seconds);
    return kFine;
  });
}

Result<int> checkpoint_import(const Options& options) {
  auto title = title_of(options.checkpoint);
  if (!title) return tl::unexpected(title.error());
  const auto import = [&](auto& store) -> Result<int> {
    if (title->version == kLatestVersion) {
      const auto latest = store.latest(title->name);
      title->version = latest ? *latest + 1 : 1;
    }
    const auto report = import_safetensors(store, title->name, title->version, options.file, options.threads);
    if (!report) return tl::unexpected(report.error());
    return print_saved(*report);
  };
  std::error_code unseen;
  const bool fresh = !std::filesystem::exists(options.pool, unseen);
  if (unseen) return make_error(ErrorCode::kIo, "can't look at " + options.pool + ": " + unseen.message());
  if (!fresh) {
    auto done = with_checkpoints(options, import);
    if (done || done.error().code != ErrorCode::kNotFound || !options.create) return done;
  } else if (!options.create) {
    return make_error(ErrorCode::kNotFound, "there is no " + options.pool + "; --create makes one");
  }
  // Before anything is made: is there something to import?
  if (const auto file = SafetensorsFile::open(options.file); !file) return tl::unexpected(file.error());
  const CheckpointOptions sizes{.capacity_bytes = options.capacity_bytes,
                                .chunk_bytes = static_cast<std::uint32_t>(options.chunk_bytes),
                                .segment_bytes = segment_bytes_for(options.capacity_bytes, 2 * options.chunk_bytes)};
  auto pool = fresh ? Pool::create(options.pool, {.bytes = CheckpointStore<DirectMedia>::pool_bytes(sizes)})
                    : Pool::open(options.pool);
  if (!pool) return tl::unexpected(pool.error());
  return with_durable_media(*pool, [&](auto media) -> Result<int> {
    auto store = CheckpointStore<decltype(media)>::create(*pool, options.name.empty() ? "checkpoints" : options.name,
                                                          sizes, media);
    if (!store) return tl::unexpected(store.error());
    auto done = import(*store);
    store->close();
    return done;
  });
}

Result<int> checkpoint_delete(const Options& options) {
  return with_checkpoint(options, [&](auto& store, const Title& title) -> Result<int> {
    if (title.version == kLatestVersion)
      return make_error(ErrorCode::kInvalidArgument, "say which version to delete: " + title.name + "@VERSION");
    if (Status removed = store.remove(title.name, title.version); !removed) return tl::unexpected(removed.error());
    fmt::print("{} deleted\n", to_text(title.name, title.version));
    return kFine;
  });
}

Result<int> checkpoint_retain(const Options& options) {
  return with_checkpoints(options, [&](auto& store) -> Result<int> {
    if (!store.latest(options.checkpoint))
      return make_error(ErrorCode::kNotFound, "no checkpoint '" + options.checkpoint + "'");
    const std::uint64_t removed =
        store.retain(options.checkpoint, {.keep_last = options.keep_last, .keep_every = options.keep_every});
    fmt::print("{} deleted\n", removed);
    return kFine;
  });
}

Result<int> checkpoint_collect(const Options& options) {
  return with_checkpoints(options, [&](auto& store) -> Result<int> {
    fmt::print("{} values given back\n", store.collect());
    return kFine;
  });
}

Result<int> checkpoint_forget(const Options& options) {
  return with_checkpoints(options, [&](auto& store) -> Result<int> {
    fmt::print("{} damaged lines of the catalog removed\n", store.forget_damaged());
    return kFine;
  });
}

}  // namespace dunnock::tool
