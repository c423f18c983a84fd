// dunnock-bench prefix: a trace of requests is played, the process is killed in its middle, and what is reused then is
// counted, beside an index that does not survive.
#include <cstring>
#include <filesystem>
#include <optional>
#include <random>
#include <unordered_set>

#include "child.hpp"
#include "commands.hpp"
#include "dunnock/index/prefix_store.hpp"
#include "report.hpp"
#include "scratch.hpp"

namespace dunnock::bench {
namespace {

struct Options {
  std::string trace;
  std::string directory = "/dev/shm";
  std::uint64_t block_bytes = 4096;
  std::uint64_t capacity_bytes = 0;
  std::uint64_t after = 500;
  std::uint64_t seed = 1;
  unsigned repeat = 3;
  std::string json;
};

/// The blocks of each request, by numbers that stand for their tokens.
using Trace = std::vector<std::vector<std::uint64_t>>;

/// The `hash_ids` of each line of a Mooncake trace.
Trace read_trace(const std::string& path) {
  std::ifstream file(path);
  if (!file) fail("can't read " + path);
  Trace trace;
  for (std::string line; std::getline(file, line);) {
    const auto request = nlohmann::json::parse(line, nullptr, false);
    if (request.is_discarded() || !request.contains("hash_ids") || !request["hash_ids"].is_array())
      fail(path + " line " + std::to_string(trace.size() + 1) + " is not a request with hash_ids");
    trace.push_back(request["hash_ids"].get<std::vector<std::uint64_t>>());
  }
  return trace;
}

/// Conversations: a few system prompts, many users, each request goes on with an old conversation or starts a new one.
Trace make_trace(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uint64_t next = 0;
  std::vector<std::vector<std::uint64_t>> systems(8), talks;
  for (auto& system : systems) {
    for (std::uint64_t i = 0, blocks = 1 + random() % 6; i < blocks; ++i) system.push_back(next++);
  }
  Trace trace;
  for (int request = 0; request < 10000; ++request) {
    std::size_t talk = talks.size();
    if (!talks.empty() && random() % 100 < 45)
      talk = talks.size() - 1 - random() % std::min<std::size_t>(talks.size(), 1500);
    else
      talks.push_back(systems[random() % systems.size()]);
    for (std::uint64_t i = 0, blocks = 1 + random() % 30; i < blocks; ++i) talks[talk].push_back(next++);
    trace.push_back(talks[talk]);
  }
  return trace;
}

using Store = PrefixStore<DirectMedia>;

std::vector<IndexKey> keys_of(const IndexKey& root, const std::vector<std::uint64_t>& blocks) {
  std::vector<IndexKey> keys;
  IndexKey key = root;
  for (const std::uint64_t block : blocks) {
    const std::array tokens{static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32)};
    keys.push_back(key = Store::next_key(key, tokens));
  }

  return keys;
}

/// What a block with that key holds: a reader that gets another block's bytes is noticed.
void fill_block(const IndexKey& key, std::span<std::byte> block) {
  std::uint64_t x = key.low;
  for (std::size_t at = 0; at + 8 <= block.size(); at += 8) {
    x = x * 6364136223846793005ULL + key.high;
    std::memcpy(block.data() + at, &x, 8);
  }
}

struct Played {
  std::uint64_t asked = 0, reused = 0, wrong = 0, lost = 0;
  double lookup_ns = 0, put_ns = 0;
  std::uint64_t puts = 0;
};

/// Plays the requests [first, last): looks up, verifies what is reused, stores the rest. `stored`: what must be there.
Played play(Store& store, const IndexKey& root, const Trace& trace, std::size_t first, std::size_t last,
            std::uint64_t block_bytes, std::unordered_set<std::uint64_t>* stored) {
  Played played;
  std::vector<std::byte> expected(block_bytes), block(block_bytes);
  for (std::size_t at = first; at < last; ++at) {
    const auto& blocks = trace[at];
    const auto keys = keys_of(root, blocks);
    std::size_t there = 0;
    Store::Match match;
    played.lookup_ns += ns_of([&] {
      match = store.lookup(keys);
      there = match.blocks();
    });
    played.asked += keys.size();
    played.reused += there;
    if (stored != nullptr) {
      std::size_t should = 0;
      while (should < blocks.size() && stored->contains(blocks[should])) ++should;
      played.lost += should > there ? should - there : 0;
    }
    for (std::size_t i = 0; i < there; ++i) {
      const auto found = store.get(keys[i]);
      fill_block(keys[i], expected);
      if (!found || found.bytes.size() != block_bytes ||
          std::memcmp(found.bytes.data(), expected.data(), block_bytes) != 0)
        ++played.wrong;
    }
    for (std::size_t i = there; i < keys.size(); ++i) {
      fill_block(keys[i], block);
      PutBlock result{};
      played.put_ns += ns_of([&] { result = store.put(keys, i, block); });
      ++played.puts;
      if (result == PutBlock::kNoParent || result == PutBlock::kFull) break;
      if (stored != nullptr) stored->insert(blocks[i]);
    }
  }
  return played;
}

double share(const Played& played) {
  return 100.0 * static_cast<double>(played.reused) / static_cast<double>(played.asked);
}

/// Plays the first half in a process that is killed when its last block is stored.
void play_and_die(const Options& options, const std::string& path, const Trace& trace, const PrefixOptions& sizes,
                  const PrefixDomain& domain) {
  const bool was_killed = run_and_kill([&](const auto& die) {
    auto pool = Pool::create(path, {.bytes = Store::pool_bytes(sizes)});
    if (!pool) fail(pool.error().message);
    auto store = Store::create(*pool, "kv", sizes, DirectMedia{});
    if (!store) fail(store.error().message);
    (void)play(*store, store->root(domain), trace, 0, trace.size() / 2, options.block_bytes, nullptr);
    die();
  });
  if (!was_killed) fail("the process failed before it could be killed");
}

/// What all rounds play.
struct Play {
  const Options& options;
  Trace trace;
  std::size_t half;                          // The process is killed after this many requests.
  std::size_t last;                          // Requests up to this one follow.
  std::unordered_set<std::uint64_t> stored;  // What must be there then, when nothing is evicted.
  std::size_t distinct_blocks;
  PrefixOptions sizes;
  PrefixDomain domain{{1, 2}, "bf16", "paged", 0, 1, "bench"};

  explicit Play(const Options& of)
      : options(of),
        trace(options.trace.empty() ? make_trace(options.seed) : read_trace(options.trace)),
        half(trace.size() / 2),
        last(std::min<std::size_t>(trace.size(), half + options.after)) {
    if (trace.size() < 2) fail("a trace needs at least two requests");
    for (std::size_t at = 0; at < half; ++at) stored.insert(trace[at].begin(), trace[at].end());
    auto distinct = stored;
    for (std::size_t at = half; at < trace.size(); ++at) distinct.insert(trace[at].begin(), trace[at].end());
    distinct_blocks = distinct.size();
    sizes.blocks_max = distinct_blocks * 5 / 4 + 1000;
    sizes.capacity_bytes = options.capacity_bytes != 0
                               ? options.capacity_bytes
                               : distinct_blocks * (options.block_bytes + 128) * 5 / 4 + (256 << 20);
  }
  [[nodiscard]] bool evicts_nothing() const { return options.capacity_bytes == 0; }
  [[nodiscard]] double requests() const { return static_cast<double>(last - half); }
};

constexpr const char* kSetting = "after the kill";

/// The second half with the store that a killed process has left.
Played measure_ours(const Play& all, const std::string& path, Report& report) {
  play_and_die(all.options, path, all.trace, all.sizes, all.domain);
  std::optional<Pool> pool;
  std::optional<Store> store;
  const double open_ns = ns_of([&] {
    auto opened_pool = Pool::open(path);
    if (!opened_pool) fail(opened_pool.error().message);
    pool.emplace(std::move(*opened_pool));
    auto opened = Store::open(*pool, "kv", all.sizes, DirectMedia{});
    if (!opened) fail(opened.error().message);
    store.emplace(std::move(*opened));
  });
  const IndexKey root = store->root(all.domain);
  // The first request of which a block is there: its blocks are what the next user sees first.
  const double first_ns = ns_of([&] {
    for (std::size_t at = all.half; at < all.last; ++at) {
      const auto keys = keys_of(root, all.trace[at]);
      const auto match = store->lookup(keys);
      if (match.blocks() != 0 && store->get(keys[0])) break;
    }
  });
  const PrefixStats before = store->stats();
  auto known = all.stored;
  const Played played = play(*store, root, all.trace, all.half, all.last, all.options.block_bytes,
                             all.evicts_nothing() ? &known : nullptr);
  const PrefixStats stats = store->stats();
  const auto add = [&](const char* what, const char* unit, double value) {
    report.add(what, kSetting, "dunnock", unit, value);
  };
  add("blocks reused", "%", share(played));
  add("open and recover", "ms", open_ns / 1e6);
  add("then first block", "ms", first_ns / 1e6);
  add("probes a request", "", static_cast<double>(stats.probes - before.probes) / all.requests());
  add("record reads a request", "", static_cast<double>(stats.record_reads - before.record_reads) / all.requests());
  add("lookup", "ns", played.lookup_ns / all.requests());
  add("put, durable", "ns", played.puts == 0 ? NAN : played.put_ns / static_cast<double>(played.puts));
  return played;
}

/// Indexes that do not survive: the same store, empty; and a hash map that is walked block by block.
void measure_volatile(const Play& all, const std::string& path, Report& report) {
  auto pool = Pool::create(path, {.bytes = Store::pool_bytes(all.sizes)});
  if (!pool) fail(pool.error().message);
  auto store = Store::create(*pool, "kv", all.sizes, DirectMedia{});
  if (!store) fail(store.error().message);
  const Played played =
      play(*store, store->root(all.domain), all.trace, all.half, all.last, all.options.block_bytes, nullptr);
  report.add("blocks reused", kSetting, "volatile index", "%", share(played));
  auto map = all.stored;
  std::uint64_t steps = 0;
  for (std::size_t at = all.half; at < all.last; ++at) {
    const auto& blocks = all.trace[at];
    std::size_t there = 0;
    while (there < blocks.size() && map.contains(blocks[there])) ++there;
    steps += there + (there < blocks.size() ? 1 : 0);
    map.insert(blocks.begin(), blocks.end());
  }
  report.add("probes a request", kSetting, "walk, block by block", "", static_cast<double>(steps) / all.requests());
}

int prefix_command(const Options& options) {
  const Play all(options);
  Report report;
  report.note("trace",
              options.trace.empty() ? "made from the seed" : std::filesystem::path(options.trace).filename().string());
  report.note("requests", all.trace.size());
  report.note("distinct_blocks", all.distinct_blocks);
  report.note("block_bytes", options.block_bytes);
  report.note("capacity_bytes", all.sizes.capacity_bytes);
  std::printf("%zu requests, %zu distinct blocks of %llu bytes; killed after %zu requests, then %zu more\n",
              all.trace.size(), all.distinct_blocks, static_cast<unsigned long long>(options.block_bytes), all.half,
              all.last - all.half);
  std::uint64_t wrong = 0, lost = 0;
  for (unsigned round = 0; round < options.repeat; ++round) {
    Scratch scratch(options.directory);
    const Played played = measure_ours(all, scratch.at("pool"), report);
    wrong += played.wrong;
    lost += played.lost;
    measure_volatile(all, scratch.at("fresh"), report);
  }
  report.print_rows();
  std::printf("\n");
  report.target("blocks reused by the requests after the kill, %", report.median("blocks reused", kSetting, "dunnock"),
                at_least(30));
  report.target("index probes a request", report.median("probes a request", kSetting, "dunnock"), at_most(4.5));
  report.target("wrong blocks", static_cast<double>(wrong), exactly(0));
  if (all.evicts_nothing())
    report.target("blocks that were stored and are not found", static_cast<double>(lost), exactly(0));
  const int written = report.write_json(options.json, "prefix");
  return wrong != 0 || lost != 0 ? 1 : written;
}

}  // namespace

void add_prefix_command(CLI::App& app, Run& run) {
  static Options options;
  CLI::App* prefix = app.add_subcommand("prefix", "prefixes of prompts, reused after a kill in the middle of a trace");
  prefix->add_option("--trace", options.trace, "Mooncake trace (JSON lines with hash_ids); left out: one is made up");
  prefix->add_option("--directory", options.directory, "for the pools")->capture_default_str();
  prefix->add_option("--block-bytes", options.block_bytes, "of a block of the cache")
      ->check(CLI::Range(8, 1 << 24))
      ->capture_default_str();
  prefix->add_option("--capacity", options.capacity_bytes, "bytes of the store; 0: all blocks fit")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str();
  prefix->add_option("--after", options.after, "requests after the kill")
      ->check(CLI::Range(1, 1'000'000'000))
      ->capture_default_str();
  prefix->add_option("--repeat", options.repeat, "rounds; medians are reported")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  prefix->add_option("--seed", options.seed, "of a trace that is made up")->capture_default_str();
  prefix->add_option("--json", options.json, "Google-Benchmark-compatible file");
  prefix->callback([&run] { run = [] { return prefix_command(options); }; });
}

}  // namespace dunnock::bench
