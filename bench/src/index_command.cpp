// dunnock-bench index: the durable index and store beside LMDB, RocksDB and LevelDB.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <optional>

#include "commands.hpp"
#include "counting_media.hpp"
#include "dunnock/index/kv_store.hpp"
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

std::uint64_t mix(std::uint64_t x) {  // SplitMix64's finalizer
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

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

/// Gets and puts on a memory-like medium: everything lies in files of a file system in memory.
void in_memory(const Options& options, unsigned value_bytes, Report& report) {
  Scratch scratch(options.memory_directory);
  const std::string value(value_bytes, 'v');
  const std::string size = std::to_string(value_bytes) + " B";
  const std::uint64_t rounds = options.repeat;
  // Fresh keys of all put rounds of all systems.
  const std::uint64_t updates = options.operations * rounds * 6;
  Pool direct_pool = make_pool(scratch.at("direct"), options.entries + updates, value_bytes, updates);
  Pool relaxed_pool = make_pool(scratch.at("relaxed"), options.entries + updates, value_bytes, updates);
  const auto direct =
      make_ours(direct_pool, options.entries + options.operations * rounds, value_bytes, updates, DirectMedia{});
  const auto relaxed =
      make_ours(relaxed_pool, options.entries + options.operations * rounds, value_bytes, updates, ProcessMedia{});
  std::vector<std::unique_ptr<Peer>> peers;
  for (const std::string& name : options.peers) peers.push_back(open_peer(name, scratch.at(name), true));
  // What LMDB holds has one durability; for relaxed puts it gets another environment.
  std::unique_ptr<Peer> relaxed_lmdb;
  for (const auto& peer : peers) {
    if (peer->name() == "lmdb") relaxed_lmdb = open_peer("lmdb", scratch.at("lmdb-relaxed"), false);
  }
  for (std::uint64_t at = 0; at < options.entries; at += 1000) {
    const auto keys = keys_of(options, at, std::min<std::uint64_t>(1000, options.entries - at));
    direct->put_batch(keys, value);
    relaxed->put_batch(keys, value);
    for (const auto& peer : peers) peer->put_batch(keys, value, false);
    if (relaxed_lmdb) relaxed_lmdb->put_batch(keys, value, false);
  }
  for (const auto& peer : peers) peer->settle();

  for (unsigned round = 0; round < rounds; ++round) {
    for (const bool there : {true, false}) {
      const auto keys = there ? random_keys(options, round, options.entries)
                              : keys_of(options, (1ULL << 40) + round * options.operations, options.operations);
      const std::string what = there ? "get, hit" : "get, miss";
      for (const unsigned threads : options.threads) {
        const std::string setting = size + ", " + std::to_string(threads) + " threads";
        const auto measure = [&](const std::string& system, const auto& get_all) {
          std::atomic<std::size_t> found = 0;
          const double ns = ns_of([&] {
            on_threads(threads, [&](unsigned thread) {
              const std::size_t from = keys.size() * thread / threads;
              const std::size_t to = keys.size() * (thread + 1) / threads;
              found += get_all(std::span(keys).subspan(from, to - from), thread);
            });
          });
          if (found != (there ? keys.size() : 0)) fail(system + " finds " + std::to_string(found) + " keys");
          report.add(what, setting, system, "ns", ns / static_cast<double>(keys.size()));
        };
        measure("dunnock", [&](auto some, unsigned) { return direct->get_all(some); });
        if (value_bytes <= 16) measure("dunnock, bulk", [&](auto some, unsigned) { return direct->get_bulk(some); });
        for (const auto& peer : peers)
          measure(peer->name(), [&](auto some, unsigned thread) { return peer->get_all(some, thread); });
      }
    }
    // Peers are so much slower that they get fewer keys; all of them are new, or all are there.
    for (const bool fresh : {true, false}) {
      const std::string what = fresh ? "put, new" : "put, there";
      for (const unsigned threads : options.threads) {
        const std::string setting = size + ", " + std::to_string(threads) + " threads";
        const std::uint64_t first = options.entries + round * options.operations;
        const auto measure = [&](const std::string& system, const std::string& how, std::uint64_t count,
                                 const auto& put) {
          // The last thread counts start at other keys, so that new ones are new to all.
          const std::uint64_t shift = fresh && threads != options.threads.front() ? options.operations / 2 : 0;
          const auto keys = fresh ? keys_of(options, first + shift, std::min(count, options.operations / 2))
                                  : random_keys(options, 1000 + round, options.entries);
          const std::size_t used = std::min<std::size_t>(count, keys.size());
          const double ns = ns_of([&] {
            on_threads(threads, [&](unsigned thread) {
              for (std::size_t i = used * thread / threads; i < used * (thread + 1) / threads; ++i) put(keys[i]);
            });
          });
          report.add(what + ", " + how, setting, system, "ns", ns / static_cast<double>(used));
        };
        const std::uint64_t few = options.operations / 10;
        measure("dunnock", "durable", options.operations, [&](const PeerKey& key) { direct->put(key, value); });
        for (const auto& peer : peers)
          measure(peer->name(), "durable", few, [&](const PeerKey& key) { peer->put(key, value, true); });
        measure("dunnock", "relaxed", options.operations, [&](const PeerKey& key) { relaxed->put(key, value); });
        for (const auto& peer : peers) {
          if (peer->name() == "lmdb")
            measure("lmdb", "relaxed", few, [&](const PeerKey& key) { relaxed_lmdb->put(key, value, false); });
          else
            measure(peer->name(), "relaxed", few, [&](const PeerKey& key) { peer->put(key, value, false); });
        }
      }
    }
  }
}

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

/// Runs `work(tell)` in a child, kills it some time after it has told, and returns when it is gone.
template <class Work>
void kill_in_the_middle(const Work& work) {
  std::array<int, 2> ends;
  if (pipe(ends.data()) != 0) fail("no pipe");
  const pid_t child = fork();
  if (child == 0) {
    close(ends[0]);
    work([&] {
      if (write(ends[1], "x", 1) != 1) _exit(1);
    });
    _exit(1);
  }
  close(ends[1]);
  char ready = 0;
  const bool told = read(ends[0], &ready, 1) == 1;
  usleep(200000);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  close(ends[0]);
  if (!told) fail("a child that was to be killed has ended before");
}

/// How long it takes until a get is answered after the process that was putting was killed.
void reopen(const Options& options, Report& report) {
  Scratch scratch(options.memory_directory);
  const std::string value(16, 'v');
  const std::uint64_t all = options.reopen_entries;
  const auto fill = [&](const auto& tell, const auto& put_batch) {
    for (std::uint64_t at = 0;; at += 1000) {
      put_batch(keys_of(options, at, 1000));
      if (at + 1000 >= all && at < all) tell();
    }
  };
  // All children first: a process that has peers open must not fork.
  kill_in_the_middle([&](const auto& tell) {
    Pool pool = make_pool(scratch.at("pool"), all + 4000000, 16, 0);
    const auto ours = make_ours(pool, all, 16, 0, DirectMedia{});
    fill(tell, [&](const auto& keys) { ours->put_batch(keys, value); });
  });
  for (const std::string& name : options.peers) {
    kill_in_the_middle([&](const auto& tell) {
      const auto peer = open_peer(name, scratch.at(name), false);
      fill(tell, [&](const auto& keys) { peer->put_batch(keys, value, false); });
    });
  }
  const std::string setting = std::to_string(all) + " entries";
  const PeerKey some = key_of(options.seed, all / 2);
  // The first opening finds what the kill left; it is all that can be measured once.
  report.add("reopen after kill", setting, "dunnock", "ms", ns_of([&] {
                                                              auto pool = Pool::open(scratch.at("pool"));
                                                              if (!pool) fail(pool.error().message);
                                                              OurIndex<DirectMedia> ours(*pool, all, {});
                                                              if (ours.get_all({&some, 1}) != 1) fail("a key is lost");
                                                              // What follows is not part of opening.
                                                            }) / 1e6);
  for (const std::string& name : options.peers) {
    std::unique_ptr<Peer> peer;
    report.add("reopen after kill", setting, name, "ms", ns_of([&] {
                                                           peer = open_peer(name, scratch.at(name), true);
                                                           if (peer->get_all({&some, 1}, 0) != 1) fail("a key is lost");
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
  for (const unsigned bytes : options.value_bytes) in_memory(options, bytes, report);
  if (options.disk_seconds > 0) on_disk(options, report);
  report.print_rows();
  std::printf("\n");

  const auto least = [&](const std::string& what, const std::string& setting, double wanted, const std::string& text) {
    for (const std::string& name : options.peers) {
      const double times = report.times(what, setting, name);
      const std::string target = name == "leveldb" ? "" : ">= " + std::to_string(static_cast<int>(wanted));
      report.target(text + ", times " + name, times, target, target.empty() || times >= wanted);
    }
  };
  const std::string one = std::to_string(options.value_bytes.front()) + " B, 1 threads";
  const auto against_lmdb = [&](const std::string& what, double wanted) {
    const double times = report.times(what, one, "lmdb");
    report.target(what + ", times lmdb", times, ">= " + std::to_string(static_cast<int>(wanted)), times >= wanted);
  };
  against_lmdb("get, hit", 2);
  against_lmdb("get, miss", 10);
  least("put, new, durable", one, 10, "durable put, new, memory-like");
  least("put, there, durable", one, 10, "durable put, there, memory-like");
  least("put, durable, " + std::to_string(options.disk_threads) + " threads", "16 B, disk file", 2,
        "durable puts of " + std::to_string(options.disk_threads) + " threads, disk");
  least("put, durable, batches of 256", "16 B, disk file", 2, "durable batches of 256, disk");
  const double flushes = report.median("put, there", "counted", "dunnock, flushed lines");
  report.target("flushed lines of a put that is there", flushes, "<= 3", flushes <= 3);
  const double fences = report.median("put, there", "counted", "dunnock, fences");
  report.target("fences of a put that is there", fences, "<= 2", fences <= 2);
  const double opened =
      report.median("reopen after kill", std::to_string(options.reopen_entries) + " entries", "dunnock");
  report.target("reopen after a kill, ms", opened, "<= 100", opened <= 100);
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
