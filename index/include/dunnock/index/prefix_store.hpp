// PrefixStore: KV-cache blocks of an inference server, found again by the tokens before them, also after a crash.
//
// What it is for: a prompt is cut into blocks of tokens; the attention keys and values of a block depend on all tokens
// up to its end, so every prompt that begins with the same tokens can reuse a block. The store holds such blocks under
// a hash of everything they depend on, bounded in bytes, and finds the longest prefix that it has.
// It may lose a block. It never returns a wrong one: every read verifies the bytes.
//
//   tokens   | block 0      | block 1      | block 2      |       h_i = H(h_{i-1}, tokens of block i)
//   keys     | h_0          | h_1          | h_2          |       h_-1 = H(secret, model, dtype, layout, shard, tenant)
//
//   tree     h_0 -- h_1 -- h_2            Eviction takes only leaves, least recently used first, and a block is put
//                     \--- h_2'           only under a stored one. So if block i is stored, all blocks before it are,
//                                         at any moment and after any crash. The longest prefix is found by bisection
//                                         on fingerprints, and one record is read to be sure.
//
// The blocks' records say which blocks belong together; the tree is volatile and is built when the first block is put
// after opening. Lookups do not need it, so a restarted server answers at once.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/filter/cuckoo_filter.hpp"
#include "dunnock/index/detail/key_hash.hpp"
#include "dunnock/index/detail/media_mutex.hpp"
#include "dunnock/index/kv_store.hpp"
#include "dunnock/index/prefix_points.hpp"

namespace dunnock {

/// Everything besides the tokens that the contents of a block depend on, or that must keep blocks apart.
struct PrefixDomain {
  IndexKey model_digest;    ///< Digest of the weights.
  std::string dtype;        ///< Element type of keys and values.
  std::string layout;       ///< How keys and values are arranged in a block.
  std::uint32_t shard = 0;  ///< Which part of the heads or layers the blocks hold.
  std::uint32_t shards = 1;
  std::string tenant;  ///< Owner of the blocks; other tenants do not find them.
};

enum class Admission : std::uint8_t {
  kAlways,
  kSecondTime,  ///< A block is kept only if it was offered before, not too long ago: one-time prompts leave no trace.
};

struct PrefixOptions {
  std::uint64_t capacity_bytes = 0;        ///< Size of the log.
  std::uint64_t segment_bytes = 32 << 20;  ///< Segment size of the log; no block is longer than this less 64.
  std::uint64_t blocks_max = 1 << 20;      ///< Maximum number of stored blocks, at least 1.
  double fill_max = 0.85;                  ///< Share of the log to fill, above 0 up to 1; compaction needs the rest.
  Admission admission = Admission::kAlways;
  HashSeed seed = HashSeed::random();  ///< Seed of the index, and the secret in all keys.
};

struct PrefixStats {
  std::uint64_t blocks = 0;
  std::uint64_t bytes = 0;  ///< Bytes of blocks, with headers.
  std::uint64_t lookups = 0;
  std::uint64_t blocks_asked = 0;
  std::uint64_t blocks_found = 0;
  std::uint64_t probes = 0;        ///< Probes of fingerprints.
  std::uint64_t record_reads = 0;  ///< Reads of a record to confirm a probe.
  std::uint64_t evicted = 0;
  std::uint64_t not_admitted = 0;
  std::uint64_t healed = 0;       ///< Blocks that were found damaged when put again, and rewritten.
  std::uint64_t quarantined = 0;  ///< Blocks dropped because one failed its checksum.
};

enum class PutBlock : std::uint8_t {
  kStored,       ///< The block is new, or was rewritten because the stored one was damaged.
  kThere,        ///< The block was stored already, and is intact.
  kNoParent,     ///< The block before it is missing (by now); or another thread is putting or evicting this one.
  kNotAdmitted,  ///< The admission policy refused the block.
  kFull,         ///< Everything is pinned or needed, or the block is too long.
  kIo,           ///< The medium has failed: nothing is stored any more.
};

/// Threads: any number of threads may call all functions except check at any time.
/// Crashes: a block whose put has returned is kept, unless it was evicted. A put or an eviction that a crash interrupts
/// takes effect completely or not at all.
template <Media M>
class PrefixStore {
  struct Shared;

 public:
  class Match;
  /// A block's verified bytes; they stay as they are while this lives, even if the block is evicted.
  struct Block {
    GetState state = GetState::kMissing;
    std::span<const std::byte> bytes;
    KvValue<M> value;
    explicit operator bool() const noexcept { return state == GetState::kFound; }
  };

  /// Creates a store in `pool` under `name` (a KvStore of that name). It exists when this returns; an error or a crash
  /// before that leaves nothing. Errors: those of KvStore::create; NoSpace also when there is no memory for what
  /// Admission::kSecondTime notes (two filters of blocks_max slots).
  [[nodiscard]] static Result<PrefixStore> create(Pool& pool, std::string_view name, const PrefixOptions& options,
                                                  M media);
  /// The same as part of a larger creation: the store exists when that is finished.
  [[nodiscard]] static Result<PrefixStore> create_in(PendingRegions& pending, std::string_view name,
                                                     const PrefixOptions& options, M media);
  /// Opens the store; constant time. `options`: blocks_max, fill_max and admission; the others are in the pool.
  /// Errors: NotFound, WrongVersion, WrongLayout, Corrupt, NoSpace (memory, as in create).
  [[nodiscard]] static Result<PrefixStore> open(Pool& pool, std::string_view name, const PrefixOptions& options,
                                                M media);
  /// Opens the store `name`, or creates it if it does not exist. Of threads that call this at once, one creates it and
  /// the others open it. The seed is that of the creation.
  /// Errors: those of create and open; WrongLayout also when its log was created with another capacity or segments.
  [[nodiscard]] static Result<PrefixStore> open_or_create(Pool& pool, std::string_view name,
                                                          const PrefixOptions& options, M media);
  /// The same in the pool in the file `path`, which is opened with it. If there is no such file, it is made with
  /// pool_bytes(options) bytes, and gets its name when the store is in it: a crash before leaves nothing. For several
  /// structures in one pool, open the pool yourself. Errors: also those of Pool::open_or_create, such as AlreadyOpen.
  [[nodiscard]] static Result<InPool<PrefixStore>> open_or_create(const std::string& path, std::string_view name,
                                                                  const PrefixOptions& options) requires PoolMedia<M>;
  /// Of a KvStore that the caller has made. For crash harnesses and embedding.
  /// Errors: InvalidArgument (options), NoSpace (memory, as in create).
  [[nodiscard]] static Result<PrefixStore> attach(KvStore<M> data, const PrefixOptions& options);
  /// Errors: InvalidArgument (blocks_max, fill_max). Both create and open ask.
  [[nodiscard]] static Status check_options(const PrefixOptions& options);
  [[nodiscard]] static StoreOptions store_options(const PrefixOptions& options) noexcept;
  /// A pool size that holds such a store and nothing else.
  [[nodiscard]] static std::uint64_t pool_bytes(const PrefixOptions& options) noexcept;

  PrefixStore(PrefixStore&&) noexcept = default;

  /// See KvIndex::close.
  void close() { data_.close(); }
  /// Is the structure still usable? After the medium fails nothing is acknowledged any more: puts and gets answer kIo,
  /// and lookups find nothing.
  /// What was acknowledged before is found when the pool is opened again. Errors: Io.
  [[nodiscard]] Status status() const { return data_.status(); }

  // ----- keys -----------------------------------------------------------------------------------------------------

  /// The key from which the first block's key is computed.
  [[nodiscard]] IndexKey root(const PrefixDomain& domain) const;
  /// The key of the block with these tokens after the block (or root) with key `before`.
  [[nodiscard]] static IndexKey next_key(const IndexKey& before, std::span<const std::uint32_t> tokens) noexcept;
  /// The keys of all whole blocks of a prompt. A block has at least one token (checked).
  [[nodiscard]] static std::vector<IndexKey> keys_of(const IndexKey& root, std::span<const std::uint32_t> tokens,
                                                     std::size_t block_tokens);

  // ----- blocks ---------------------------------------------------------------------------------------------------

  /// Finds and pins the longest stored prefix of `keys`; may miss blocks that other threads put meanwhile. About
  /// log2(keys) probes and one record read.
  [[nodiscard]] Match lookup(std::span<const IndexKey> keys) const;
  /// Reads one block of a prefix that was looked up. kDamaged: the block and all that follow it are dropped, and it
  /// counts as missing from now on.
  [[nodiscard]] Block get(const IndexKey& key) const;
  /// Stores block `at` of `keys`, which is one of them (checked), evicting others if it must. The block before it must
  /// be there. One that is there already is read, and written anew if it is damaged.
  PutBlock put(std::span<const IndexKey> keys, std::size_t at, std::span<const std::byte> bytes);
  /// Evicts up to `blocks_max` blocks. Returns how many.
  std::size_t evict(std::size_t blocks_max) const;

  /// What the store holds and has done; zeros after the medium fails.
  [[nodiscard]] PrefixStats stats() const;
  /// Does KvStore::check, and checks that each block's parent is stored. Needs exclusive use of the store.
  [[nodiscard]] IndexCheck check() const;
  [[nodiscard]] const KvStore<M>& data() const noexcept { return data_; }

 private:
  /// Precedes the bytes of a block.
  struct BlockHeader {
    IndexKey parent;      // zero for the first block
    std::uint64_t depth;  // 0 for the first block
    std::uint64_t age;    // grows with every put: the order of use after a restart
  };
  static_assert(sizeof(BlockHeader) == 32 && std::is_trivially_copyable_v<BlockHeader>);

  struct Node {
    IndexKey parent;
    std::uint64_t depth = 0;
    std::uint64_t used = 0;  // when
    std::uint64_t bytes = 0;
    std::uint32_t children = 0;  // including puts in progress
    bool leaving = false;        // it is being evicted
  };
  struct Leaf {
    std::uint64_t used;
    IndexKey key;
    friend bool operator<(const Leaf& a, const Leaf& b) noexcept {
      return std::tie(a.used, a.key.low, a.key.high) < std::tie(b.used, b.key.low, b.key.high);
    }
  };
  /// Volatile state that does not move with the object.
  using Mutex = detail::MediaMutex<M>;
  struct Shared {
    explicit Shared(const M& media) : mutex(media) {}
    Mutex mutex;  // of everything below except the counts
    bool tree_known = false;
    std::unordered_map<IndexKey, Node, detail::KeyHash> nodes;
    std::set<Leaf> leaves;  // of nodes without children that are not leaving
    std::unordered_map<IndexKey, std::uint32_t, detail::KeyHash> pins;
    std::uint64_t clock = 1;
    std::uint64_t bytes = 0;
    std::optional<CuckooFilter<12, DramMedia>> offered, offered_before;  // keys, for Admission::kSecondTime
    std::atomic<std::uint64_t> lookups{0}, blocks_asked{0}, blocks_found{0}, probes{0}, record_reads{0}, evicted{0},
        not_admitted{0}, healed{0}, quarantined{0};
  };

  PrefixStore(KvStore<M> data, const PrefixOptions& options, std::unique_ptr<Shared> shared)
      : options_(options), data_(std::move(data)), shared_(std::move(shared)) {}
  [[nodiscard]] static Result<std::unique_ptr<Shared>> make_shared(const PrefixOptions& options, const M& media);
  static void unpin(Shared& shared, const IndexKey& key);
  void know_tree() const;
  void touch(std::span<const IndexKey> keys) const;
  [[nodiscard]] bool admit(const IndexKey& key) const;
  [[nodiscard]] bool evict_one(std::unique_lock<Mutex>& lock) const;
  void remove_node(const IndexKey& key) const;
  void add_child(Node& parent, const IndexKey& key) const;
  void drop_child(const IndexKey& parent_key) const;
  void quarantine(const IndexKey& key) const;
  [[nodiscard]] PutBlock heal(std::unique_lock<Mutex>& lock, const IndexKey& key, const BlockHeader& header,
                              std::span<const std::byte> bytes);
  [[nodiscard]] PutResult write(std::unique_lock<Mutex>& lock, const IndexKey& key, const BlockHeader& header,
                           std::span<const std::byte> bytes);
  [[nodiscard]] bool is_block(const IndexKey& key, const IndexKey* parent, std::uint64_t depth) const;

  PrefixOptions options_;
  mutable KvStore<M> data_;  // Lookups evict what they find damaged.
  std::unique_ptr<Shared> shared_;
};

/// A prefix that was found. Its blocks stay while this lives; it must not outlive the store.
template <Media M>
class PrefixStore<M>::Match {
 public:
  Match() = default;
  Match(Match&& other) noexcept
      : blocks_(other.blocks_), shared_(std::exchange(other.shared_, nullptr)), key_(other.key_) {}
  Match& operator=(Match&& other) noexcept {
    std::swap(blocks_, other.blocks_);
    std::swap(shared_, other.shared_);
    std::swap(key_, other.key_);
    return *this;
  }
  ~Match() {
    if (shared_ != nullptr) unpin(*shared_, key_);
  }
  /// How many blocks of the prompt, from the first on, are stored.
  [[nodiscard]] std::size_t blocks() const noexcept { return blocks_; }

 private:
  friend PrefixStore;
  std::size_t blocks_ = 0;
  Shared* shared_ = nullptr;
  IndexKey key_;
};

}  // namespace dunnock

#include "dunnock/index/detail/prefix_store.ipp"  // IWYU pragma: export
#include "dunnock/index/detail/standard_media.hpp"

namespace dunnock {

DUNNOCK_ON_STANDARD_MEDIA(extern, PrefixStore);

}  // namespace dunnock
