// info, check, dump and load.
#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "contents.hpp"
#include "dump_text.hpp"
#include "dunnock/base/input_file.hpp"
#include "dunnock/base/output_file.hpp"
#include "dunnock/filter/cuckoo_filter.hpp"
#include "dunnock/index/checkpoint_store.hpp"
#include "dunnock/index/kv_store.hpp"
#include "options.hpp"
#include "print.hpp"

namespace dunnock::tool {
namespace {

using Json = nlohmann::ordered_json;
constexpr std::size_t kLoadBatch = 256;  // Entries that share a fence.

/// Opens the filter with the fingerprint width that it has and calls use(filter).
template <class M, class Use>
Status with_filter(Pool& pool, const std::string& name, M media, Use&& use) {
  auto wide = CuckooFilter<16, M>::open(pool, name, media);
  if (wide) return use(wide->filter), Status();
  if (wide.error().code != ErrorCode::kWrongLayout) return tl::unexpected(wide.error());
  auto middle = CuckooFilter<12, M>::open(pool, name, media);
  if (middle) return use(middle->filter), Status();
  if (middle.error().code != ErrorCode::kWrongLayout) return tl::unexpected(middle.error());
  auto narrow = CuckooFilter<8, M>::open(pool, name, media);
  if (narrow) return use(narrow->filter), Status();
  return tl::unexpected(narrow.error());
}

Json json_of(const IndexStats& stats) {
  return {{"entries", stats.entries},
          {"slots", stats.slots},
          {"segments", stats.segments},
          {"index_bytes", stats.bytes},
          {"dead_lanes", stats.dead_lanes}};
}

Json json_of(const LogStats& stats) {
  return {{"log_segments", stats.segments},
          {"log_segments_free", stats.segments_free},
          {"log_segment_bytes", stats.segment_bytes},
          {"log_live_bytes_at_most", stats.live_bytes}};
}

/// What a structure says of itself.
template <class M>
Result<Json> describe(Pool& pool, const Structure& structure, M media) {
  Json json;
  switch (structure.kind) {
    case Kind::kFilter: {
      Status done = with_filter(pool, structure.name, media, [&json](auto& filter) {
        using Filter = std::remove_reference_t<decltype(filter)>;
        const FilterStats stats = filter.stats();
        json = {{"fingerprint_bits", 60 / Filter::L::kLanes}, {"slots", stats.slots}, {"items", stats.items}};
        filter.close();
      });
      DUNNOCK_TRY(done);
      return json;
    }
    case Kind::kIndex: {
      DUNNOCK_TRY(auto opened, KvIndex<M>::open(pool, structure.name, media));
      json = json_of(opened.index.stats());
      json["clean_shutdown"] = opened.report.clean_shutdown;
      opened.index.close();
      return json;
    }
    case Kind::kLog: {
      DUNNOCK_TRY(auto log, ValueLog<M>::open(pool, structure.name, media));
      return json_of(log.stats());
    }
    case Kind::kStore: {
      DUNNOCK_TRY(auto opened, KvStore<M>::open(pool, structure.name, media));
      const StoreStats stats = opened.store.stats();
      json = json_of(stats.index);
      json.update(json_of(stats.log));
      json["clean_shutdown"] = opened.report.clean_shutdown;
      opened.store.close();
      return json;
    }
    case Kind::kCheckpoints: {
      DUNNOCK_TRY(auto store, CheckpointStore<M>::open(pool, structure.name, media));
      const StoreStats stats = store.stats();
      std::uint64_t sound = 0, damaged = 0;
      for (const CheckpointInfo& one : store.list()) ++(one.status ? sound : damaged);
      json = {{"checkpoints", sound}, {"checkpoints_damaged", damaged}, {"chunk_bytes", store.chunk_bytes()}};
      json.update(json_of(stats.index));
      json.update(json_of(stats.log));
      store.close();
      return json;
    }
  }
  return json;
}

/// What is wrong with a structure: sentences.
template <class M>
Result<std::vector<std::string>> violations_of(Pool& pool, const Structure& structure, M media) {
  std::vector<std::string> found;
  switch (structure.kind) {
    case Kind::kFilter: {
      Status done = with_filter(pool, structure.name, media, [&found](auto& filter) {
        found = filter.check().violations;
        filter.close();
      });
      DUNNOCK_TRY(done);
      return found;
    }
    case Kind::kIndex: {
      DUNNOCK_TRY(auto opened, KvIndex<M>::open(pool, structure.name, media));
      found = opened.index.check().violations;
      opened.index.close();
      return found;
    }
    case Kind::kLog: {
      DUNNOCK_TRY(auto log, ValueLog<M>::open(pool, structure.name, media));
      if (std::string what = log.check(); !what.empty()) found.push_back(std::move(what));
      return found;
    }
    case Kind::kStore: {
      DUNNOCK_TRY(auto opened, KvStore<M>::open(pool, structure.name, media));
      found = opened.store.check().violations;
      opened.store.close();
      return found;
    }
    case Kind::kCheckpoints: {
      DUNNOCK_TRY(auto store, CheckpointStore<M>::open(pool, structure.name, media));
      found = store.check().violations;
      store.close();
      return found;
    }
  }
  return found;
}

struct CloseFile {
  void operator()(std::FILE* file) const noexcept { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

/// A file, or standard output, whose failures main() reports.
class Output {
 public:
  static Result<Output> create(const std::string& path) {
    Output output;
    if (path.empty() || path == "-") return Result<Output>(std::move(output));
    DUNNOCK_TRY(auto file, OutputFile::create(path));
    output.file_.emplace(std::move(file));
    return Result<Output>(std::move(output));
  }
  /// What fails is remembered.
  void write(std::string_view text) {
    if (!file_) return write_standard_output(text);
    buffer_ += text;
    if (buffer_.size() >= kBufferBytes) flush();
  }
  Status commit() {
    if (!file_) return {};
    flush();
    return status_ ? file_->commit() : status_;
  }

 private:
  static constexpr std::size_t kBufferBytes = 1 << 20;
  Output() = default;
  void flush() {
    if (status_) status_ = file_->append(buffer_);
    buffer_.clear();
  }
  std::optional<OutputFile> file_;
  std::string buffer_;
  Status status_;
};

/// A dump to be read: an ordinary file, which can be read twice, or standard input, which can't.
struct Dump {
  std::string path;  ///< "-": standard input.
  File file;         ///< None: standard input.
};

/// Errors: those of open_to_read().
Result<Dump> open_dump(const std::string& path) {
  if (path == "-") return Dump{path, nullptr};
  std::uint64_t bytes = 0;
  auto opened = open_to_read(path, bytes);
  if (!opened && opened.error().code == ErrorCode::kInvalidArgument)
    return make_error(ErrorCode::kInvalidArgument,
                      opened.error().message + "; give a dump from a pipe or a device on standard input");
  DUNNOCK_TRY(opened);
  File file(::fdopen(opened->get(), "r"));
  if (!file) return system_error("can't read " + path, errno);
  (void)opened->release();
  return Dump{path, std::move(file)};
}

/// Calls use(entry) for every entry of a dump, in order, until it fails.
template <class Use>
Result<std::uint64_t> for_each_entry(const Dump& dump, Use&& use, std::uint64_t* damaged = nullptr) {
  std::FILE* const from = dump.file ? dump.file.get() : stdin;
  if (dump.file) std::rewind(from);
  DumpReader reader;
  std::unique_ptr<char, decltype(&std::free)> line(nullptr, &std::free);
  char* buffer = nullptr;
  std::size_t room = 0;
  for (ssize_t got = 0; (got = getline(&buffer, &room, from)) >= 0;) {
    (void)line.release();
    line.reset(buffer);
    std::string_view text(buffer, static_cast<std::size_t>(got));
    if (text.ends_with('\n')) text.remove_suffix(1);
    DUNNOCK_TRY(auto entry, reader.line(text));
    if (!entry) continue;
    DUNNOCK_TRY(use(std::move(*entry)));
  }
  if (std::ferror(from) != 0) return system_error("can't read all of " + dump.path, errno);
  DUNNOCK_TRY(reader.end());
  if (damaged != nullptr) *damaged = reader.damaged();
  return reader.entries();
}

Result<int> dump_index_entry(Output& output, const IndexKey& key, const IndexValue& value) {
  output.write(value.is_locator() ? dump_line(key, value.locator()) : dump_line(key, value.bytes()));
  return kFine;
}

struct Loaded {
  std::uint64_t entries = 0;
  std::uint64_t damaged = 0;  // Entries that the dump lacks, as it says itself.
  bool kept = true;           // On an error, for they do not go with the store.
};

tl::unexpected<Error> no_room(const Loaded& loaded) {
  return make_error(ErrorCode::kNoSpace,
                    fmt::format("the pool has no room after {} entries, {}", loaded.entries,
                                loaded.kept ? "which are kept" : "and none is kept: --capacity must be larger"));
}

template <class M>
Result<int> load_store(KvStore<M>& store, const Dump& dump, Loaded& loaded) {
  std::vector<DumpEntry> entries;
  const auto flush = [&]() -> Status {
    std::vector<typename KvStore<M>::Item> items;
    for (const DumpEntry& entry : entries) items.push_back({entry.key, std::get<0>(entry.value)});
    const bool put = store.put_bulk(items);
    DUNNOCK_TRY(store.status());
    if (!put) return no_room(loaded);
    loaded.entries += entries.size();
    entries.clear();
    return {};
  };
  auto all = for_each_entry(
      dump,
      [&](DumpEntry entry) -> Status {
        if (entry.value.index() != 0)
          return make_error(ErrorCode::kInvalidArgument, "a store can't hold a locator without a value");
        if (std::get<0>(entry.value).size() > store.log().value_bytes_max())
          return make_error(ErrorCode::kInvalidArgument,
                            fmt::format("a value of {} bytes does not fit in a segment of the store's log",
                                        std::get<0>(entry.value).size()));
        // A key that occurs again must win, and a bulk call knows no order.
        const bool again =
            std::any_of(entries.begin(), entries.end(), [&](const auto& one) { return one.key == entry.key; });
        if (again || entries.size() == kLoadBatch) {
          DUNNOCK_TRY(flush());
        }
        entries.push_back(std::move(entry));
        return {};
      },
      &loaded.damaged);
  DUNNOCK_TRY(all);
  DUNNOCK_TRY(flush());
  return kFine;
}

template <class M>
Result<int> load_index(KvIndex<M>& index, const Dump& dump, Loaded& loaded) {
  auto all = for_each_entry(
      dump,
      [&](const DumpEntry& entry) -> Status {
        const auto* bytes = std::get_if<0>(&entry.value);
        if (bytes != nullptr && bytes->size() > IndexValue::kInlineBytesMax)
          return make_error(ErrorCode::kInvalidArgument,
                            "an index holds values of at most 16 bytes; load the dump into a store");
        const IndexValue value = bytes != nullptr ? IndexValue::of(*bytes) : IndexValue::of(std::get<1>(entry.value));
        const PutResult put = index.put(entry.key, value);
        if (put == PutResult::kIo) return index.status();
        if (put == PutResult::kFull) return no_room(loaded);
        ++loaded.entries;
        return {};
      },
      &loaded.damaged);
  DUNNOCK_TRY(all);
  return kFine;
}

/// What info says. Errors: Corrupt: beside a writer, something that may be sound a moment later.
Result<Json> describe_all(const Options& options, Pool& pool, int& status) {
  const Contents contents = contents_of(pool);
  return with_durable_media(pool, [&](auto media) -> Result<Json> {
    status = kFine;
    Json json = {{"pool", options.pool},
                 {"bytes", pool.bytes()},
                 {"open_for_writing", pool.beside_writer()},
                 {"structures", Json::array()}};
    for (const Structure& structure : contents.structures) {
      const auto described = describe(pool, structure, media);
      if (!described && pool.beside_writer()) return tl::unexpected(described.error());
      Json one = {{"name", structure.name}, {"kind", to_string(structure.kind)}, {"bytes", structure.bytes}};
      if (described) one.update(*described);
      if (!described) one["error"] = described.error().message;
      if (!described || one.value("checkpoints_damaged", 0) != 0) status = kDamaged;
      json["structures"].push_back(std::move(one));
    }
    for (const RegionInfo& region : contents.unfinished)
      json["other_regions"].push_back({{"name", region.name}, {"bytes", region.bytes}});
    return json;
  });
}

void print_as_text(const Json& json) {
  print_line("{}: {}{}", json["pool"].get<std::string>(), human_bytes(json["bytes"].get<std::uint64_t>()),
             json["open_for_writing"].get<bool>() ? ", open for writing by another process" : "");
  for (const Json& one : json["structures"]) {
    print_line("");
    print_line("{} '{}', {}", one["kind"].get<std::string>(), one["name"].get<std::string>(),
               human_bytes(one["bytes"].get<std::uint64_t>()));
    for (const auto& [key, value] : one.items()) {
      if (key != "name" && key != "kind" && key != "bytes")
        print_line("  {:<24} {}", key, value.is_string() ? value.get<std::string>() : value.dump());
    }
  }
  if (!json.contains("other_regions")) return;
  for (const Json& region : json["other_regions"]) {
    print_line("");
    print_line("region '{}' of no structure, {}", region["name"].get<std::string>(),
               human_bytes(region["bytes"].get<std::uint64_t>()));
  }
}

}  // namespace

Result<int> info(const Options& options) {
  int status = kFine;
  const auto json = look_into(options.pool, [&](Pool& pool) { return describe_all(options, pool, status); });
  DUNNOCK_TRY(json);
  if (options.json)
    print_json(*json);
  else
    print_as_text(*json);
  return status;
}

Result<int> check(const Options& options) {
  DUNNOCK_TRY(auto pool, Pool::open_read_only(options.pool));
  auto [structures, others] = contents_of(pool);
  if (!options.names.empty()) {
    std::vector<Structure> wanted;
    for (const std::string& name : options.names) {
      const auto found = std::find_if(structures.begin(), structures.end(),
                                      [&name](const Structure& structure) { return structure.name == name; });
      if (found == structures.end())
        return make_error(ErrorCode::kNotFound, options.pool + " has no structure '" + name + "'");
      wanted.push_back(*found);
    }
    structures = std::move(wanted);
    others.clear();
  }
  // Nothing that was looked at is not a pass.
  if (structures.empty() && others.empty())
    return make_error(ErrorCode::kNotFound, options.pool + " holds no structure to check");
  return with_durable_media(pool, [&, &structures = structures, &others = others](auto media) -> Result<int> {
    int status = kFine;
    Json json = {{"pool", options.pool}, {"structures", Json::array()}};
    for (const Structure& structure : structures) {
      auto found = violations_of(pool, structure, media);
      // One that can't be opened does not keep the others from being looked at.
      if (!found) found = std::vector{found.error().message};
      if (!found->empty()) status = kDamaged;
      json["structures"].push_back(
          {{"name", structure.name}, {"kind", to_string(structure.kind)}, {"violations", *found}});
      if (options.json) continue;
      print_line("{} '{}': {}", to_string(structure.kind), structure.name, found->empty() ? "sound" : "DAMAGED");
      for (const std::string& one : *found) print_line("  {}", one);
    }
    for (const RegionInfo& region : others) {
      status = kDamaged;
      json["other_regions"].push_back({{"name", region.name}, {"bytes", region.bytes}});
      if (options.json) continue;
      print_line("region '{}', {}: of no structure, not checked", region.name, human_bytes(region.bytes));
    }
    if (options.json) print_json(json);
    return status;
  });
}

Result<int> dump(const Options& options) {
  DUNNOCK_TRY(auto pool, Pool::open_read_only(options.pool));
  DUNNOCK_TRY(const auto structure, find_structure(pool, options.name, {Kind::kStore, Kind::kIndex}));
  DUNNOCK_TRY(auto output, Output::create(options.file));
  output.write(dump_header());
  std::uint64_t entries = 0;
  std::uint64_t damaged = 0;
  const auto done = with_durable_media(pool, [&](auto media) -> Result<int> {
    using M = decltype(media);
    if (structure.kind == Kind::kIndex) {
      DUNNOCK_TRY(auto opened, KvIndex<M>::open(pool, structure.name, media));
      damaged = opened.index.for_each([&](const IndexKey& key, const IndexValue& value) {
        (void)dump_index_entry(output, key, value);
        ++entries;
      });
      opened.index.close();
      return kFine;
    }
    DUNNOCK_TRY(auto opened, KvStore<M>::open(pool, structure.name, media));
    const std::uint64_t unreadable = opened.store.index().for_each([&](const IndexKey& key, const IndexValue&) {
      const auto value = opened.store.get(key);
      if (!value) {
        output.write(dump_damaged(key));
        ++damaged;
        return;
      }
      output.write(dump_line(key, value.bytes()));
      ++entries;
    });
    damaged += unreadable;
    opened.store.close();
    return kFine;
  });
  if (!done) return done;
  if (damaged != 0) output.write(dump_damaged(damaged));
  output.write(dump_end(entries));
  DUNNOCK_TRY(output.commit());
  if (damaged != 0) complain("dunnock: {} damaged entries are not in the dump", damaged);
  return damaged == 0 ? kFine : kDamaged;
}

Result<int> load(const Options& options) {
  DUNNOCK_TRY(const auto dump, open_dump(options.file));
  // A file is read twice: what is cut off or wrong is refused before anything is changed.
  if (dump.file) {
    const auto sound = for_each_entry(dump, [](const DumpEntry&) { return Status(); });
    if (!sound) return make_error(sound.error().code, options.file + ": " + sound.error().message);
  }
  std::error_code unseen;
  const bool fresh = !std::filesystem::exists(options.pool, unseen);
  if (unseen) return make_error(ErrorCode::kIo, "can't access " + options.pool + ": " + unseen.message());
  if (fresh && !options.create)
    return make_error(ErrorCode::kNotFound, options.pool + " does not exist; --create creates it");
  const StoreOptions sizes{
      .index = {.bytes_max = std::max<std::uint64_t>(options.capacity_bytes / 4, 32 << 20)},
      .log = {.capacity_bytes = options.capacity_bytes, .segment_bytes = segment_bytes_for(options.capacity_bytes, 0)}};
  const std::string name = options.name.empty() ? "data" : options.name;
  Loaded loaded;
  // A store whose first entries are refused is not made.
  const auto make_store = [&](Pool& pool) -> Status {
    loaded.kept = false;
    const auto made = with_durable_media(pool, [&](auto media) -> Result<int> {
      DUNNOCK_TRY(auto store, KvStore<decltype(media)>::create(pool, name, sizes, media));
      Result<int> status = load_store(store, dump, loaded);
      store.close();
      return status;
    });
    return made ? Status() : tl::unexpected(made.error());
  };
  const auto load_into = [&](Pool& pool, const Structure& structure) -> Result<int> {
    return with_durable_media(pool, [&](auto media) -> Result<int> {
      using M = decltype(media);
      if (structure.kind == Kind::kStore) {
        DUNNOCK_TRY(auto opened, KvStore<M>::open(pool, structure.name, media));
        Result<int> status = load_store(opened.store, dump, loaded);
        opened.store.close();
        return status;
      }
      DUNNOCK_TRY(auto opened, KvIndex<M>::open(pool, structure.name, media));
      Result<int> status = load_index(opened.index, dump, loaded);
      opened.index.close();
      return status;
    });
  };
  if (fresh) {  // Sizes that can't be are refused before a file is made.
    DUNNOCK_TRY(KvStore<DirectMedia>::check_options(sizes));
  }
  const std::array regions{sizes.log.capacity_bytes, sizes.index.bytes_max};
  DUNNOCK_TRY(auto pool, fresh ? Pool::create_with(options.pool, {.bytes = Pool::bytes_for(regions)}, make_store)
                               : Pool::open(options.pool));
  if (!fresh) {
    const auto structure = find_structure(pool, options.name, {Kind::kStore, Kind::kIndex});
    if (!structure && options.create && structure.error().code == ErrorCode::kNotFound) {
      DUNNOCK_TRY(make_or_undo(pool, make_store));
    } else {
      DUNNOCK_TRY(structure);
      DUNNOCK_TRY(load_into(pool, *structure));
    }
  }
  DUNNOCK_TRY(pool.close());
  print_line("{} entries loaded", loaded.entries);
  if (loaded.damaged == 0) return kFine;
  complain("dunnock: {} entries were damaged when the dump was written, and are not in it", loaded.damaged);
  return kDamaged;
}

Result<int> copy(const Options& options) {
  if (Status copied = Pool::copy(options.pool, options.file); !copied) {
    if (copied.error().code != ErrorCode::kAlreadyOpen) return tl::unexpected(copied.error());
    return make_error(ErrorCode::kAlreadyOpen,
                      copied.error().message + "; the process that has it open can copy it (Pool::copy_to)");
  }
  return kFine;
}

}  // namespace dunnock::tool
