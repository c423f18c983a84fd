#include "peers.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>

#ifdef DUNNOCK_HAVE_LMDB
#include <lmdb.h>
#endif
#ifdef DUNNOCK_HAVE_LEVELDB
#include <leveldb/cache.h>
#include <leveldb/db.h>
#include <leveldb/filter_policy.h>
#include <leveldb/write_batch.h>
#endif
#ifdef DUNNOCK_HAVE_ROCKSDB
#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>
#endif

namespace dunnock::bench {
namespace {

[[maybe_unused]] void require(bool fine, const std::string& what) {
  if (fine) return;
  std::fprintf(stderr, "a peer failed: %s\n", what.c_str());
  std::exit(3);
}

[[maybe_unused]] const char* bytes_of(const PeerKey& key) { return reinterpret_cast<const char*>(key.data()); }

#ifdef DUNNOCK_HAVE_LMDB
class Lmdb : public Peer {
 public:
  Lmdb(const std::string& directory, bool sync) {
    require(mdb_env_create(&environment_) == 0, "lmdb: create");
    require(mdb_env_set_mapsize(environment_, 16ULL << 30) == 0, "lmdb: map size");
    const unsigned flags = MDB_NOTLS | MDB_NORDAHEAD | (sync ? 0U : static_cast<unsigned>(MDB_NOSYNC));
    check(mdb_env_open(environment_, directory.c_str(), flags, 0644));
    MDB_txn* transaction = nullptr;
    check(mdb_txn_begin(environment_, nullptr, 0, &transaction));
    check(mdb_dbi_open(transaction, nullptr, 0, &database_));
    check(mdb_txn_commit(transaction));
  }
  ~Lmdb() override { mdb_env_close(environment_); }
  [[nodiscard]] std::string name() const override { return "lmdb"; }
  void put(const PeerKey& key, std::string_view value, bool) override { put_batch({&key, 1}, value, true); }
  void put_batch(std::span<const PeerKey> keys, std::string_view value, bool) override {
    MDB_txn* transaction = nullptr;
    check(mdb_txn_begin(environment_, nullptr, 0, &transaction));
    for (const PeerKey& key : keys) {
      MDB_val key_value = value_of(key);
      MDB_val data{value.size(), const_cast<char*>(value.data())};
      check(mdb_put(transaction, database_, &key_value, &data, 0));
    }
    check(mdb_txn_commit(transaction));
  }
  std::size_t get_all(std::span<const PeerKey> keys, unsigned) override {
    // One transaction for all of them: a snapshot, which is the fastest that LMDB has.
    MDB_txn* transaction = nullptr;
    check(mdb_txn_begin(environment_, nullptr, MDB_RDONLY, &transaction));
    std::size_t found = 0;
    for (const PeerKey& key : keys) {
      MDB_val key_value = value_of(key);
      MDB_val data;
      if (mdb_get(transaction, database_, &key_value, &data) != 0) continue;
      // Its first byte is read, for the others copy their values.
      [[maybe_unused]] const volatile char first = *static_cast<const char*>(data.mv_data);
      ++found;
    }
    mdb_txn_abort(transaction);
    return found;
  }

 private:
  static void check(int error) { require(error == 0, std::string("lmdb: ") + mdb_strerror(error)); }
  static MDB_val value_of(const PeerKey& key) { return {sizeof key, const_cast<std::uint64_t*>(key.data())}; }
  MDB_env* environment_ = nullptr;
  MDB_dbi database_ = 0;
};
#endif

#ifdef DUNNOCK_HAVE_LEVELDB
class LevelDb : public Peer {
 public:
  explicit LevelDb(const std::string& directory)
      : filter_(leveldb::NewBloomFilterPolicy(10)), cache_(leveldb::NewLRUCache(2ULL << 30)) {
    leveldb::Options options;
    options.create_if_missing = true;
    options.filter_policy = filter_.get();
    options.block_cache = cache_.get();
    options.write_buffer_size = 64 << 20;
    options.compression = leveldb::kNoCompression;
    leveldb::DB* database = nullptr;
    check(leveldb::DB::Open(options, directory, &database));
    database_.reset(database);
  }
  [[nodiscard]] std::string name() const override { return "leveldb"; }
  void put(const PeerKey& key, std::string_view value, bool durable) override {
    leveldb::WriteOptions options;
    options.sync = durable;
    check(database_->Put(options, {bytes_of(key), sizeof key}, {value.data(), value.size()}));
  }
  void put_batch(std::span<const PeerKey> keys, std::string_view value, bool durable) override {
    leveldb::WriteOptions options;
    options.sync = durable;
    leveldb::WriteBatch batch;
    for (const PeerKey& key : keys) batch.Put({bytes_of(key), sizeof key}, {value.data(), value.size()});
    check(database_->Write(options, &batch));
  }
  std::size_t get_all(std::span<const PeerKey> keys, unsigned) override {
    std::size_t found = 0;
    std::string value;
    for (const PeerKey& key : keys)
      found += database_->Get(leveldb::ReadOptions(), {bytes_of(key), sizeof key}, &value).ok() ? 1 : 0;
    return found;
  }
  void settle() override { database_->CompactRange(nullptr, nullptr); }

 private:
  static void check(const leveldb::Status& status) { require(status.ok(), "leveldb: " + status.ToString()); }
  std::unique_ptr<const leveldb::FilterPolicy> filter_;
  std::unique_ptr<leveldb::Cache> cache_;
  std::unique_ptr<leveldb::DB> database_;
};
#endif

#ifdef DUNNOCK_HAVE_ROCKSDB
class RocksDb : public Peer {
 public:
  explicit RocksDb(const std::string& directory) {
    rocksdb::Options options;
    options.create_if_missing = true;
    options.compression = rocksdb::kNoCompression;
    options.allow_mmap_reads = true;
    options.max_background_jobs = 2;
    rocksdb::BlockBasedTableOptions table;
    table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10, false));
    table.block_cache = rocksdb::NewLRUCache(2ULL << 30);
    options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
    rocksdb::DB* database = nullptr;
    check(rocksdb::DB::Open(options, directory, &database));
    database_.reset(database);
  }
  [[nodiscard]] std::string name() const override { return "rocksdb"; }
  void put(const PeerKey& key, std::string_view value, bool durable) override {
    rocksdb::WriteOptions options;
    options.sync = durable;
    check(database_->Put(options, {bytes_of(key), sizeof key}, {value.data(), value.size()}));
  }
  void put_batch(std::span<const PeerKey> keys, std::string_view value, bool durable) override {
    rocksdb::WriteOptions options;
    options.sync = durable;
    rocksdb::WriteBatch batch;
    for (const PeerKey& key : keys) check(batch.Put({bytes_of(key), sizeof key}, {value.data(), value.size()}));
    check(database_->Write(options, &batch));
  }
  std::size_t get_all(std::span<const PeerKey> keys, unsigned) override {
    std::size_t found = 0;
    rocksdb::PinnableSlice value;
    for (const PeerKey& key : keys) {
      found +=
          database_->Get(rocksdb::ReadOptions(), database_->DefaultColumnFamily(), {bytes_of(key), sizeof key}, &value)
                  .ok()
              ? 1
              : 0;
      value.Reset();
    }
    return found;
  }
  void settle() override {
    check(database_->Flush(rocksdb::FlushOptions()));
    check(database_->CompactRange(rocksdb::CompactRangeOptions(), nullptr, nullptr));
  }

 private:
  static void check(const rocksdb::Status& status) { require(status.ok(), "rocksdb: " + status.ToString()); }
  std::unique_ptr<rocksdb::DB> database_;
};
#endif

}  // namespace

std::vector<std::string> peer_names() {
  std::vector<std::string> names;
#ifdef DUNNOCK_HAVE_LMDB
  names.emplace_back("lmdb");
#endif
#ifdef DUNNOCK_HAVE_ROCKSDB
  names.emplace_back("rocksdb");
#endif
#ifdef DUNNOCK_HAVE_LEVELDB
  names.emplace_back("leveldb");
#endif
  return names;
}

std::unique_ptr<Peer> open_peer(const std::string& name, const std::string& directory, [[maybe_unused]] bool sync) {
  std::filesystem::create_directories(directory);
#ifdef DUNNOCK_HAVE_LMDB
  if (name == "lmdb") return std::make_unique<Lmdb>(directory, sync);
#endif
#ifdef DUNNOCK_HAVE_ROCKSDB
  if (name == "rocksdb") return std::make_unique<RocksDb>(directory);
#endif
#ifdef DUNNOCK_HAVE_LEVELDB
  if (name == "leveldb") return std::make_unique<LevelDb>(directory);
#endif
  return nullptr;
}

std::string peer_settings(const std::string& name) {
  if (name == "lmdb") return "map of 16 GiB; gets in one read transaction; relaxed: MDB_NOSYNC";
  if (name == "rocksdb")
    return "Bloom filter of 10 bits, block cache of 2 GiB, no compression, mmap reads; compacted before gets";
  if (name == "leveldb")
    return "Bloom filter of 10 bits, block cache of 2 GiB, write buffer of 64 MiB, no compression; compacted before "
           "gets";
  return "";
}

}  // namespace dunnock::bench
