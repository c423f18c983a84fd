// dunnock-bench index: the durable index and store beside LMDB, RocksDB and LevelDB.
#include <atomic>
#include <cstring>
#include <filesystem>
#include <optional>

#include "child.hpp"
#include "commands.hpp"
#include "counting_media.hpp"
#include "dunnock/index/kv_store.hpp"
#include "mix.hpp"
#include "peers.hpp"
#include "report.hpp"
#include "scratch.hpp"

namespace dunnock::bench {
namespace {

struct Options {
  std::uint64_t entries = 2000000;
  std::vector<unsigned> value_bytes = {16, 256};
  std::uint64_t operations = 200000;
  std::vector<unsigned> threads = {1, 2};
  unsigned repeat = 5;
  std::string memory_directory = "/dev/shm";
  std::string disk_directory = std::filesystem::temp_directory_path();
  unsigned disk_threads = 16;
  double disk_seconds = 1;
  std::uint64_t reopen_entries = 10000000;
  std::vector<std::string> peers = peer_names();
  std::uint64_t seed = 1;
  std::string json;
};

/// The key with that number. Numbers from 2^40: never stored.
PeerKey key_of(std::uint64_t seed, std::uint64_t number) { return {mix(seed << 48 ^ number), mix(mix(number) ^ seed)}; }
IndexKey index_key(const PeerKey& key) { return {key[0], key[1]}; }

std::vector<PeerKey> keys_of(const Options& options, std::uint64_t first, std::uint64_t count) {
  std::vector<PeerKey> keys(count);
  for (std::uint64_t i = 0; i < count; ++i) keys[i] = key_of(options.seed, first + i);
  return keys;
}
/// Keys that are there, each drawn anew.
std::vector<PeerKey> random_keys(const Options& options, std::uint64_t salt, std::uint64_t among) {
  std::vector<PeerKey> keys(options.operations);
  for (std::uint64_t i = 0; i < keys.size(); ++i) keys[i] = key_of(options.seed, mix(salt << 32 | i) % among);
  return keys;
}

/// Ours, as the benchmark uses it. Values of up to 16 bytes: KvIndex. Longer ones: KvStore.
class System {
 public:
  virtual ~System() = default;
  virtual void put(const PeerKey& key, std::string_view value) = 0;
  virtual void put_batch(std::span<const PeerKey> keys, std::string_view value) = 0;
  virtual std::size_t get_all(std::span<const PeerKey> keys) = 0;
  virtual std::size_t get_bulk(std::span<const PeerKey> keys) = 0;
};

template <class M>
class OurIndex : public System {
 public:
  OurIndex(Pool& pool, std::uint64_t entries, M media) {
    if (auto opened = KvIndex<M>::open(pool, "index", media)) {
      index_.emplace(std::move(opened->index));
      return;
    }
    auto made = KvIndex<M>::create(pool, "index", {.entries = entries}, media);
    if (!made) fail(made.error().message);
    index_.emplace(std::move(*made));
  }
  void put(const PeerKey& key, std::string_view value) override {
    if (index_->put(index_key(key), IndexValue::of(std::as_bytes(std::span(value)))) == PutResult::kFull)
      fail("the index is full");
  }
  void put_batch(std::span<const PeerKey> keys, std::string_view value) override {
    std::vector<typename KvIndex<M>::Entry> entries;
    for (const PeerKey& key : keys)
      entries.push_back({index_key(key), IndexValue::of(std::as_bytes(std::span(value)))});
    std::vector<PutResult> results(keys.size());
    index_->put_bulk(entries, results.data());
    if (std::find(results.begin(), results.end(), PutResult::kFull) != results.end()) fail("the index is full");
  }
  std::size_t get_all(std::span<const PeerKey> keys) override {
    std::size_t found = 0;
    for (const PeerKey& key : keys) found += index_->get(index_key(key)) ? 1 : 0;
    return found;
  }
  std::size_t get_bulk(std::span<const PeerKey> keys) override {
    std::array<IndexKey, 256> some;
    std::array<GetResult, 256> results;
    std::size_t found = 0;
    for (std::size_t from = 0; from < keys.size(); from += some.size()) {
      const std::size_t count = std::min(some.size(), keys.size() - from);
      for (std::size_t i = 0; i < count; ++i) some[i] = index_key(keys[from + i]);
      found += index_->get_bulk(std::span(some).first(count), results.data());
    }
    return found;
  }

 private:
  std::optional<KvIndex<M>> index_;
};

template <class M>
class OurStore : public System {
 public:
  OurStore(Pool& pool, std::uint64_t entries, std::uint64_t capacity_bytes, M media) {
    auto made = KvStore<M>::create(pool, "store",
                                   {.index = {.entries = entries}, .log = {.capacity_bytes = capacity_bytes}}, media);
    if (!made) fail(made.error().message);
    store_.emplace(std::move(*made));
  }
  void put(const PeerKey& key, std::string_view value) override {
    if (store_->put(index_key(key), std::as_bytes(std::span(value))) == PutResult::kFull) fail("the store is full");
  }
  void put_batch(std::span<const PeerKey> keys, std::string_view value) override {
    std::vector<typename KvStore<M>::Item> items;
    for (const PeerKey& key : keys) items.push_back({index_key(key), std::as_bytes(std::span(value))});
    if (!store_->put_bulk(items)) fail("the store is full");
  }
  std::size_t get_all(std::span<const PeerKey> keys) override {
    std::size_t found = 0;
    for (const PeerKey& key : keys) found += store_->get(index_key(key)) ? 1 : 0;
    return found;
  }
  std::size_t get_bulk(std::span<const PeerKey> keys) override { return get_all(keys); }

 private:
  std::optional<KvStore<M>> store_;
};

Pool make_pool(const std::string& path, std::uint64_t entries, unsigned value_bytes, std::uint64_t updates) {
  // Records at a third of their room, and a log with room for updates.
  const std::uint64_t index = entries * 3 * 64 + (64 << 20);
  const std::uint64_t log = value_bytes <= 16 ? 0 : (entries + updates) * (value_bytes + 64) + (64 << 20);
  const std::array regions{index, log};
  auto pool = Pool::create(path, {.bytes = Pool::bytes_for(regions)});
  if (!pool) fail(pool.error().message);
  return std::move(*pool);
}

template <class M>
std::unique_ptr<System> make_ours(Pool& pool, std::uint64_t entries, unsigned value_bytes, std::uint64_t updates,
                                  M media) {
  if (value_bytes <= 16) return std::make_unique<OurIndex<M>>(pool, entries, media);
  return std::make_unique<OurStore<M>>(pool, entries, (entries + updates) * (value_bytes + 64ULL) + (32 << 20), media);
}

/// Our structures and the peers on a memory-like medium: everything is in files of a file system in memory.
class InMemory {
 public:
  InMemory(const Options& options, unsigned value_bytes, Report& report)
      : options_(options),
        report_(report),
        scratch_(options.memory_directory),
        value_(value_bytes, 'v'),
        // Fresh keys of all put rounds of all systems.
        updates_(options.operations * options.repeat * 6),
        direct_pool_(make_pool(scratch_.at("direct"), options.entries + updates_, value_bytes, updates_)),
        relaxed_pool_(make_pool(scratch_.at("relaxed"), options.entries + updates_, value_bytes, updates_)),
        direct_(make_ours(direct_pool_, entries_max(), value_bytes, updates_, DirectMedia{})),
        relaxed_(make_ours(relaxed_pool_, entries_max(), value_bytes, updates_, ProcessMedia{})) {
    for (const std::string& name : options.peers) {
      peers_.push_back(open_peer(name, scratch_.at(name), true));
      // What LMDB holds has one durability; for relaxed puts it gets another environment.
      if (name == "lmdb") relaxed_lmdb_ = open_peer("lmdb", scratch_.at("lmdb-relaxed"), false);
    }
    load();
  }
  void run() {
    for (unsigned round = 0; round < options_.repeat; ++round) {
      for (const bool there : {true, false}) get(round, there);
      // All keys are new, or all are there.
      for (const bool fresh : {true, false}) put(round, fresh);
    }
  }

 private:
  [[nodiscard]] std::uint64_t entries_max() const { return options_.entries + options_.operations * options_.repeat; }
  [[nodiscard]] std::string setting(unsigned threads) const {
    return std::to_string(value_.size()) + " B, " + std::to_string(threads) + " threads";
  }

  void load() {
    for (std::uint64_t at = 0; at < options_.entries; at += 1000) {
      const auto keys = keys_of(options_, at, std::min<std::uint64_t>(1000, options_.entries - at));
      direct_->put_batch(keys, value_);
      relaxed_->put_batch(keys, value_);
      for (const auto& peer : peers_) peer->put_batch(keys, value_, false);
      if (relaxed_lmdb_) relaxed_lmdb_->put_batch(keys, value_, false);
    }
    for (const auto& peer : peers_) peer->settle();
  }

  void get(unsigned round, bool there) {
    const auto keys = there ? random_keys(options_, round, options_.entries)
                            : keys_of(options_, (1ULL << 40) + round * options_.operations, options_.operations);
    for (const unsigned threads : options_.threads) {
      const auto measure = [&](const std::string& system, const auto& get_all) {
        std::atomic<std::size_t> found = 0;
        const double ns = ns_of([&] {
          on_threads(threads, [&](unsigned thread) {
            const std::size_t from = keys.size() * thread / threads;
            const std::size_t to = keys.size() * (thread + 1) / threads;
            found += get_all(std::span(keys).subspan(from, to - from), thread);
          });
        });
        if (found != (there ? keys.size() : 0)) fail(system + " found only " + std::to_string(found) + " keys");
        report_.add(there ? "get, hit" : "get, miss", setting(threads), system, "ns",
                    ns / static_cast<double>(keys.size()));
      };
      measure("dunnock", [&](auto some, unsigned) { return direct_->get_all(some); });
      if (value_.size() <= 16) measure("dunnock, bulk", [&](auto some, unsigned) { return direct_->get_bulk(some); });
      for (const auto& peer : peers_)
        measure(peer->name(), [&](auto some, unsigned thread) { return peer->get_all(some, thread); });
    }
  }

  void put(unsigned round, bool fresh) {
    for (const unsigned threads : options_.threads) {
      const auto measure = [&](const std::string& system, const char* how, std::uint64_t count, const auto& put_one) {
        // The last thread counts start at other keys, so that new ones are new to all.
        const std::uint64_t shift = fresh && threads != options_.threads.front() ? options_.operations / 2 : 0;
        const std::uint64_t first = options_.entries + round * options_.operations + shift;
        const auto keys = fresh ? keys_of(options_, first, std::min(count, options_.operations / 2))
                                : random_keys(options_, 1000 + round, options_.entries);
        const std::size_t used = std::min<std::size_t>(count, keys.size());
        const double ns = ns_of([&] {
          in_parts(threads, used, [&](std::size_t from, std::size_t to) {
            for (std::size_t i = from; i < to; ++i) put_one(keys[i]);
          });
        });
        report_.add(std::string(fresh ? "put, new, " : "put, there, ") + how, setting(threads), system, "ns",
                    ns / static_cast<double>(used));
      };
      // Peers are so much slower that they get fewer keys.
      const std::uint64_t few = options_.operations / 10;
      measure("dunnock", "durable", options_.operations, [&](const PeerKey& key) { direct_->put(key, value_); });
      for (const auto& peer : peers_)
        measure(peer->name(), "durable", few, [&](const PeerKey& key) { peer->put(key, value_, true); });
      measure("dunnock", "relaxed", options_.operations, [&](const PeerKey& key) { relaxed_->put(key, value_); });
      for (const auto& peer : peers_) {
        Peer& relaxed = peer->name() == "lmdb" ? *relaxed_lmdb_ : *peer;
        measure(peer->name(), "relaxed", few, [&](const PeerKey& key) { relaxed.put(key, value_, false); });
      }
    }
  }

  const Options& options_;
  Report& report_;
  Scratch scratch_;
  const std::string value_;
  const std::uint64_t updates_;
  Pool direct_pool_, relaxed_pool_;
  std::unique_ptr<System> direct_, relaxed_;
  std::vector<std::unique_ptr<Peer>> peers_;
  std::unique_ptr<Peer> relaxed_lmdb_;
};

/// Durable puts on an ordinary disk: threads that share the disk's writes, and batches.
void on_disk(const Options& options, Report& report) {
  Scratch scratch(options.disk_directory);
  const std::string value(16, 'v');
  Pool pool = make_pool(scratch.at("pool"), 2000000, 16, 0);
  const auto ours = make_ours(pool, 1000000, 16, 0, pool.file_media());
  std::vector<std::unique_ptr<Peer>> peers;
  for (const std::string& name : options.peers) peers.push_back(open_peer(name, scratch.at(name), true));
  std::atomic<std::uint64_t> next = 0;
  const auto measure = [&](const std::string& what, const std::string& system, unsigned threads, unsigned batch,
                           const auto& put) {
    std::atomic<std::uint64_t> done = 0;
    const double ns = ns_of([&] {
      const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(options.disk_seconds);
      on_threads(threads, [&](unsigned) {
        while (std::chrono::steady_clock::now() < end) {
          put(keys_of(options, next.fetch_add(batch), batch));
          done += batch;
        }
      });
    });
    report.add(what, "16 B, disk file", system, "us", ns / 1000 / static_cast<double>(done));
  };
  const std::string shared = "put, durable, " + std::to_string(options.disk_threads) + " threads";
  for (unsigned round = 0; round < options.repeat; ++round) {
    measure("put, durable, 1 thread", "dunnock", 1, 1, [&](const auto& keys) { ours->put(keys[0], value); });
    measure(shared, "dunnock", options.disk_threads, 1, [&](const auto& keys) { ours->put(keys[0], value); });
    measure("put, durable, batches of 256", "dunnock", 1, 256, [&](const auto& keys) { ours->put_batch(keys, value); });
    for (const auto& peer : peers) {
      measure("put, durable, 1 thread", peer->name(), 1, 1, [&](const auto& keys) { peer->put(keys[0], value, true); });
      measure(shared, peer->name(), options.disk_threads, 1,
              [&](const auto& keys) { peer->put(keys[0], value, true); });
      measure("put, durable, batches of 256", peer->name(), 1, 256,
              [&](const auto& keys) { peer->put_batch(keys, value, true); });
    }
  }
}

/// How long it takes until a get is answered after the process that was putting was killed.
void reopen(const Options& options, Report& report) {
  Scratch scratch(options.memory_directory);
  const std::string value(16, 'v');
  const std::uint64_t all = options.reopen_entries;
  const auto fill = [&](const auto& report_ready, const auto& put_batch) {
    for (std::uint64_t at = 0;; at += 1000) {
      put_batch(keys_of(options, at, 1000));
      if (at + 1000 >= all && at < all) report_ready();
    }
  };
  // All children first: a process that has peers open must not fork.
  const auto kill_while = [&](const auto& work) {
    if (!kill_in_the_middle(work)) fail("the child exited before it could be killed");
  };
  kill_while([&](const auto& report_ready) {
    Pool pool = make_pool(scratch.at("pool"), all + 4000000, 16, 0);
    const auto ours = make_ours(pool, all, 16, 0, DirectMedia{});
    fill(report_ready, [&](const auto& keys) { ours->put_batch(keys, value); });
  });
  for (const std::string& name : options.peers) {
    kill_while([&](const auto& report_ready) {
      const auto peer = open_peer(name, scratch.at(name), false);
      fill(report_ready, [&](const auto& keys) { peer->put_batch(keys, value, false); });
    });
  }
  const std::string setting = std::to_string(all) + " entries";
  const PeerKey some = key_of(options.seed, all / 2);
  // The first opening finds what the kill left; it is all that can be measured once.
  report.add("reopen after kill", setting, "dunnock", "ms", ns_of([&] {
                                                              auto pool = Pool::open(scratch.at("pool"));
                                                              if (!pool) fail(pool.error().message);
                                                              OurIndex<DirectMedia> ours(*pool, all, {});
                                                              if (ours.get_all({&some, 1}) != 1)
                                                                fail("a key is lost after the kill");
                                                              // What follows is not part of opening.
                                                            }) / 1e6);
  for (const std::string& name : options.peers) {
    std::unique_ptr<Peer> peer;
    report.add("reopen after kill", setting, name, "ms", ns_of([&] {
                                                           peer = open_peer(name, scratch.at(name), true);
                                                           if (peer->get_all({&some, 1}, 0) != 1)
                                                             fail("a key is lost after the kill");
                                                         }) / 1e6);
  }
}

/// Flushes and fences of one put, counted.
void count(const Options& options, Report& report) {
  auto made = KvIndex<CountingMedia<DirectMedia>>::create_volatile({.entries = 200000});
  if (!made) fail(made.error().message);
  auto& index = *made;
  for (const bool fresh : {true, false}) {
    Counter::here() = {};
    constexpr std::uint64_t kPuts = 100000;
    for (std::uint64_t i = 0; i < kPuts; ++i) {
      Counter::here().begin_operation();
      index.put(index_key(key_of(options.seed, i)), IndexValue::of(i + (fresh ? 0 : 1)));
    }
    const Counts counts = Counter::here().counts;
    const std::string what = fresh ? "put, new" : "put, there";
    const auto each = [](std::uint64_t all) { return static_cast<double>(all) / kPuts; };
    report.add(what, "counted", "dunnock, flushed lines", "", each(counts.flushes));
    report.add(what, "counted", "dunnock, fences", "", each(counts.fences));
    report.add(what, "counted", "dunnock, lines touched", "", each(counts.lines));
  }
  for (const bool there : {true, false}) {
    Counter::here() = {};
    for (std::uint64_t i = 0; i < 100000; ++i) {
      Counter::here().begin_operation();
      (void)index.get(index_key(key_of(options.seed, there ? i : (1ULL << 40) + i)));
    }
    report.add(there ? "get, hit" : "get, miss", "counted", "dunnock, lines touched", "",
               static_cast<double>(Counter::here().counts.lines) / 100000);
  }
}

int index_command(const Options& options) {
  Report report;
  report.note("entries", options.entries);
  report.note("repeat", options.repeat);
  report.note("seed", options.seed);
  report.note("memory_directory", options.memory_directory);
  report.note("disk_directory", options.disk_directory);
  for (const std::string& name : options.peers) {
    std::printf("%s: %s\n", name.c_str(), peer_settings(name).c_str());
    report.note(name, peer_settings(name));
  }
  if (options.reopen_entries != 0) reopen(options, report);
  count(options, report);
  for (const unsigned bytes : options.value_bytes) InMemory(options, bytes, report).run();
  if (options.disk_seconds > 0) on_disk(options, report);
  report.print_rows();
  std::printf("\n");

  const auto least = [&](const std::string& what, const std::string& setting, double wanted, const std::string& text) {
    for (const std::string& name : options.peers) {
      report.target(text + ", times " + name, report.times(what, setting, name),
                    name == "leveldb" ? no_bound() : at_least(wanted));
    }
  };
  const std::string one = std::to_string(options.value_bytes.front()) + " B, 1 threads";
  report.target("get, hit, times lmdb", report.times("get, hit", one, "lmdb"), at_least(2));
  report.target("get, miss, times lmdb", report.times("get, miss", one, "lmdb"), at_least(10));
  least("put, new, durable", one, 10, "durable put, new, memory-like");
  least("put, there, durable", one, 10, "durable put, there, memory-like");
  least("put, durable, " + std::to_string(options.disk_threads) + " threads", "16 B, disk file", 2,
        "durable puts of " + std::to_string(options.disk_threads) + " threads, disk");
  least("put, durable, batches of 256", "16 B, disk file", 2, "durable batches of 256, disk");
  report.target("flushed lines of a put that is there",
                report.median("put, there", "counted", "dunnock, flushed lines"), at_most(3));
  report.target("fences of a put that is there", report.median("put, there", "counted", "dunnock, fences"), at_most(2));
  report.target("reopen after a kill, ms",
                report.median("reopen after kill", std::to_string(options.reopen_entries) + " entries", "dunnock"),
                at_most(100));
  return report.write_json(options.json, "index");
}

}  // namespace

void add_index_command(CLI::App& app, Run& run) {
  static Options options;
  CLI::App* index = app.add_subcommand("index", "the durable index and store beside LMDB, RocksDB and LevelDB");
  index->add_option("--entries", options.entries, "that there are before anything is measured")
      ->check(CLI::Range(std::uint64_t{1000}, std::uint64_t{1} << 32))
      ->capture_default_str();
  index->add_option("--value-bytes", options.value_bytes, "of a value; up to 16: KvIndex, longer: KvStore")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  index->add_option("--operations", options.operations, "of a round")
      ->check(CLI::Range(1000, 100000000))
      ->capture_default_str();
  index->add_option("--threads", options.threads)->delimiter(',')->check(CLI::Range(1, 256))->capture_default_str();
  index->add_option("--repeat", options.repeat, "rounds; medians are reported")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  index->add_option("--memory-directory", options.memory_directory, "of a file system in memory")
      ->capture_default_str();
  index->add_option("--disk-directory", options.disk_directory, "of a file system on a disk")->capture_default_str();
  index->add_option("--disk-threads", options.disk_threads, "that put side by side")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  index->add_option("--disk-seconds", options.disk_seconds, "of each row on the disk; 0: none")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  index->add_option("--reopen-entries", options.reopen_entries, "when the process is killed; 0: is not measured")
      ->capture_default_str();
  index->add_option("--peers", options.peers, "to run beside")->delimiter(',')->check(CLI::IsMember(peer_names()));
  index->add_option("--seed", options.seed)->capture_default_str();
  index->add_option("--json", options.json, "Google-Benchmark-compatible file");
  index->callback([&run] { run = [] { return index_command(options); }; });
}

}  // namespace dunnock::bench
