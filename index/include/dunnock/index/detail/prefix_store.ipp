// The functions of PrefixStore.
#pragma once

#include <algorithm>
#include <cstring>

#include "dunnock/base/check.hpp"
#include "dunnock/index/prefix_hash.hpp"
namespace dunnock {

// ----- life ---------------------------------------------------------------------------------------------------------

template <Media M>
Status PrefixStore<M>::check_options(const PrefixOptions& options) {
  if (options.blocks_max == 0 || options.blocks_max > 1ULL << 32)
    return make_error(ErrorCode::kInvalidArgument,
                      "a prefix store needs 1 to 2^32 blocks, not " + std::to_string(options.blocks_max));
  if (!(options.fill_max > 0) || options.fill_max > 1)  // NaN, too.
    return make_error(ErrorCode::kInvalidArgument,
                      "fill_max must be above 0 and at most 1, not " + std::to_string(options.fill_max));
  return {};
}

template <Media M>
StoreOptions PrefixStore<M>::store_options(const PrefixOptions& options) noexcept {
  StoreOptions store;
  store.log = {.capacity_bytes = options.capacity_bytes, .segment_bytes = options.segment_bytes};
  store.index.entries = std::min<std::uint64_t>(options.blocks_max, 1 << 16);  // It grows.
  store.index.segment_groups = 64;
  store.index.bytes_max =
      std::max(options.blocks_max * 4 * kLineBytes, 16 * KvIndex<M>::segment_bytes(store.index.segment_groups));
  store.index.seed = options.seed;
  return store;
}

template <Media M>
std::uint64_t PrefixStore<M>::pool_bytes(const PrefixOptions& options) noexcept {
  const StoreOptions store = store_options(options);
  const std::array regions{store.log.capacity_bytes, ValueLog<M>::meta_bytes(store.log),
                           KvIndex<M>::meta_bytes(store.index), store.index.bytes_max};
  return Pool::bytes_for(regions);
}

/// The volatile state of a store with these options. Errors: InvalidArgument (options), NoSpace (memory).
template <Media M>
auto PrefixStore<M>::make_shared(const PrefixOptions& options, const M& media) -> Result<std::unique_ptr<Shared>> {
  DUNNOCK_TRY(check_options(options));
  auto shared = std::make_unique<Shared>(media);
  if (options.admission != Admission::kSecondTime) return shared;
  const FilterOptions filter{.slots = std::max<std::uint64_t>(1024, options.blocks_max), .seed = options.seed};
  for (auto* keys : {&shared->offered, &shared->offered_before}) {
    DUNNOCK_TRY(auto made, CuckooFilter<12, DramMedia>::create_volatile(filter));
    keys->emplace(std::move(made));
  }
  return shared;
}

template <Media M>
auto PrefixStore<M>::attach(KvStore<M> data, const PrefixOptions& options) -> Result<PrefixStore> {
  DUNNOCK_TRY(auto shared, make_shared(options, data.log().media()));
  return PrefixStore(std::move(data), options, std::move(shared));
}

template <Media M>
auto PrefixStore<M>::create_in(PendingRegions& pending, std::string_view name, const PrefixOptions& options, M media)
    -> Result<PrefixStore> {
  DUNNOCK_TRY(auto shared, make_shared(options, media));
  DUNNOCK_TRY(auto data, KvStore<M>::create_in(pending, name, store_options(options), std::move(media)));
  return PrefixStore(std::move(data), options, std::move(shared));
}

template <Media M>
auto PrefixStore<M>::create(Pool& pool, std::string_view name, const PrefixOptions& options, M media)
    -> Result<PrefixStore> {
  return detail::create_structure(
      pool, [&](PendingRegions& pending) { return create_in(pending, name, options, std::move(media)); });
}

template <Media M>
auto PrefixStore<M>::open(Pool& pool, std::string_view name, const PrefixOptions& options, M media)
    -> Result<PrefixStore> {
  DUNNOCK_TRY(check_options(options));
  DUNNOCK_TRY(auto opened, KvStore<M>::open(pool, name, std::move(media)));
  return attach(std::move(opened.store), options);
}

template <Media M>
auto PrefixStore<M>::open_or_create(Pool& pool, std::string_view name, const PrefixOptions& options, M media)
    -> Result<PrefixStore> {
  DUNNOCK_TRY(check_options(options));
  const StoreOptions store = store_options(options);
  DUNNOCK_TRY(KvStore<M>::check_options(store));
  const auto open = [&]() -> Result<PrefixStore> {
    DUNNOCK_TRY(auto opened, KvStore<M>::open_as(pool, name, {.index = nullptr, .log = &store.log}, media));
    return attach(std::move(opened.store), options);
  };
  return detail::open_or_create_structure(
      pool, open, [&](PendingRegions& pending) { return create_in(pending, name, options, media); });
}

template <Media M>
auto PrefixStore<M>::open_or_create(const std::string& path, std::string_view name, const PrefixOptions& options)
    -> Result<InPool<PrefixStore>>
requires PoolMedia<M> {
  DUNNOCK_TRY(check_options(options));
  DUNNOCK_TRY(KvStore<M>::check_options(store_options(options)));
  return detail::open_or_create_in_file(path, pool_bytes(options), [&](Pool& pool) {
    return open_or_create(pool, name, options, detail::media_of<M>(pool));
  });
}

// ----- keys ---------------------------------------------------------------------------------------------------------

template <Media M>
IndexKey PrefixStore<M>::root(const PrefixDomain& domain) const {
  IndexKey key = detail::chain_start(data_.index().seed());
  // One link per field, so that different sets of fields can't give the same hash.
  for (const std::string* text : {&domain.dtype, &domain.layout, &domain.tenant})
    key = detail::chained_hash(key, std::as_bytes(std::span(*text)));
  const std::uint64_t numbers[] = {domain.model_digest.low, domain.model_digest.high, domain.shard, domain.shards};
  return detail::chained_hash(key, std::as_bytes(std::span(numbers)));
}

template <Media M>
IndexKey PrefixStore<M>::next_key(const IndexKey& before, std::span<const std::uint32_t> tokens) noexcept {
  return detail::chained_hash(before, std::as_bytes(tokens));
}

template <Media M>
std::vector<IndexKey> PrefixStore<M>::keys_of(const IndexKey& root, std::span<const std::uint32_t> tokens,
                                              std::size_t block_tokens) {
  DUNNOCK_CHECK(block_tokens != 0, "a block has at least one token");
  std::vector<IndexKey> keys;
  IndexKey key = root;
  for (; tokens.size() >= block_tokens; tokens = tokens.subspan(block_tokens)) {
    key = next_key(key, tokens.first(block_tokens));
    keys.push_back(key);
  }
  return keys;
}

// ----- lookup -------------------------------------------------------------------------------------------------------

/// Is there a valid record of this block, at this depth, under this parent (null: not known)?
template <Media M>
bool PrefixStore<M>::is_block(const IndexKey& key, const IndexKey* parent, std::uint64_t depth) const {
  for (GetResult found = data_.index().get(key);;) {
    if (!found || !found.value.is_locator()) return false;
    BlockHeader header;
    if (data_.peek(key, found.value.locator(), std::as_writable_bytes(std::span(&header, 1))))
      return header.depth == depth && (parent == nullptr || header.parent == *parent);
    // Compaction may have moved it in between; if not, it is damaged.
    const GetResult again = data_.index().get(key);
    if (again && again.value == found.value) return false;
    found = again;
  }
}

template <Media M>
auto PrefixStore<M>::lookup(std::span<const IndexKey> keys) const -> Match {
  if (!status()) return {};
  Shared& shared = *shared_;
  std::uint64_t probes = 0, reads = 0;
  // Blocks [0, low) are stored and block `high` is not, according to fingerprints. The last one found is then verified;
  // if it was a false positive, the search continues below it.
  std::size_t low = 0, high = keys.size();
  for (;;) {
    low = 0;
    while (low < high) {
      const std::size_t middle = low + (high - low) / 2;
      ++probes;
      if (data_.may_contain(keys[middle])) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    if (low == 0) break;
    ++reads;
    if (is_block(keys[low - 1], low > 1 ? &keys[low - 2] : nullptr, low - 1)) break;
    high = low - 1;
  }
  Match match;
  {
    const std::lock_guard<Mutex> lock(shared.mutex);
    // It may have been evicted since; then the blocks before it still exist.
    while (low > 0 && shared.tree_known && is_taken(data_.log().media(), prefix_point::kStillThere)) {
      const auto node = shared.nodes.find(keys[low - 1]);
      if (node != shared.nodes.end() && !node->second.leaving) break;
      --low;
    }
    if (low > 0) {
      ++shared.pins[keys[low - 1]];
      match.shared_ = &shared;
      match.key_ = keys[low - 1];
      touch(keys.first(low));
    }
  }
  match.blocks_ = status() ? low : 0;
  shared.lookups.fetch_add(1, std::memory_order_relaxed);
  shared.blocks_asked.fetch_add(keys.size(), std::memory_order_relaxed);
  shared.blocks_found.fetch_add(low, std::memory_order_relaxed);
  shared.probes.fetch_add(probes, std::memory_order_relaxed);
  shared.record_reads.fetch_add(reads, std::memory_order_relaxed);
  return match;
}

template <Media M>
void PrefixStore<M>::unpin(Shared& shared, const IndexKey& key) {
  if (!media_ok(shared.mutex.media())) return;  // Nothing is evicted any more.
  const std::lock_guard<Mutex> lock(shared.mutex);
  const auto pin = shared.pins.find(key);
  if (pin != shared.pins.end() && --pin->second == 0) shared.pins.erase(pin);
}

/// Notes that the blocks were used now. Under the mutex.
template <Media M>
void PrefixStore<M>::touch(std::span<const IndexKey> keys) const {
  Shared& shared = *shared_;
  if (!shared.tree_known) return;
  const std::uint64_t now = shared.clock++;
  for (const IndexKey& key : keys) {
    const auto node = shared.nodes.find(key);
    if (node == shared.nodes.end()) continue;
    const bool leaf = shared.leaves.erase({node->second.used, key}) != 0;
    node->second.used = now;
    if (leaf) shared.leaves.insert({now, key});
  }
}

template <Media M>
auto PrefixStore<M>::get(const IndexKey& key) const -> Block {
  Block block;
  block.value = data_.get(key);
  block.state = block.value.state;
  if (block && block.value.bytes().size() < sizeof(BlockHeader)) block.state = GetState::kDamaged;
  if (block) {
    block.bytes = block.value.bytes().subspan(sizeof(BlockHeader));
  } else if (block.state == GetState::kDamaged) {
    quarantine(key);
  }
  return block;
}

// ----- the tree -----------------------------------------------------------------------------------------------------

/// Reads every block's header, once after opening. Under the mutex. A block that can't be read, and its descendants,
/// would neither be found nor ever be evicted: they are dropped here. (Records that the index itself can't read have no
/// key any more; check() reports them.)
template <Media M>
void PrefixStore<M>::know_tree() const {
  Shared& shared = *shared_;
  if (shared.tree_known) return;
  shared.tree_known = true;
  std::vector<IndexKey> doomed;
  std::vector<std::pair<std::uint64_t, IndexKey>> by_depth;
  (void)data_.index().for_each([&](const IndexKey& key, const IndexValue& value) {
    BlockHeader header;
    if (!value.is_locator() || !data_.peek(key, value.locator(), std::as_writable_bytes(std::span(&header, 1)))) {
      doomed.push_back(key);
      return;
    }
    const std::uint64_t bytes = ValueLog<M>::record_bytes(value.locator().length);
    shared.nodes[key] = {header.parent, header.depth, header.age, bytes, 0, false};
    by_depth.emplace_back(header.depth, key);
  });
  std::sort(by_depth.begin(), by_depth.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [depth, key] : by_depth) {
    const auto node = shared.nodes.find(key);
    const auto parent = depth == 0 ? shared.nodes.end() : shared.nodes.find(node->second.parent);
    if (depth != 0 && (parent == shared.nodes.end() || parent->second.depth != depth - 1)) {
      doomed.push_back(key);
      shared.nodes.erase(node);
      continue;
    }
    if (depth != 0) ++parent->second.children;
    shared.bytes += node->second.bytes;
    shared.clock = std::max(shared.clock, node->second.used + 1);
  }
  // Children come after their parents.
  for (auto one = doomed.rbegin(); one != doomed.rend(); ++one) {
    if (data_.erase(*one)) shared.quarantined.fetch_add(1, std::memory_order_relaxed);
  }
  for (const auto& [key, node] : shared.nodes) {
    if (node.children == 0) shared.leaves.insert({node.used, key});
  }
}

template <Media M>
void PrefixStore<M>::add_child(Node& parent, const IndexKey& key) const {
  if (parent.children++ == 0) shared_->leaves.erase({parent.used, key});
}

template <Media M>
void PrefixStore<M>::drop_child(const IndexKey& key) const {
  const auto parent = shared_->nodes.find(key);
  if (parent == shared_->nodes.end() || --parent->second.children != 0 || parent->second.leaving) return;
  shared_->leaves.insert({parent->second.used, key});
}

/// Forgets a node that has no children. Under the mutex.
template <Media M>
void PrefixStore<M>::remove_node(const IndexKey& key) const {
  Shared& shared = *shared_;
  const auto at = shared.nodes.find(key);
  if (at == shared.nodes.end()) return;
  const Node node = at->second;
  shared.leaves.erase({node.used, key});
  shared.nodes.erase(at);
  shared.bytes -= node.bytes;
  if (node.depth != 0) drop_child(node.parent);
}

/// Evicts the least recently used leaf that is not pinned. False: there is none. Releases the lock meanwhile.
template <Media M>
bool PrefixStore<M>::evict_one(std::unique_lock<Mutex>& lock) const {
  Shared& shared = *shared_;
  const auto leaf = std::find_if(shared.leaves.begin(), shared.leaves.end(), [&](const Leaf& one) {
    return !shared.pins.contains(one.key) || !is_taken(data_.log().media(), prefix_point::kEvictUnpinned);
  });
  if (leaf == shared.leaves.end()) return false;
  const IndexKey key = leaf->key;
  shared.nodes.find(key)->second.leaving = true;
  shared.leaves.erase(leaf);
  const bool leaf_first = is_taken(data_.log().media(), prefix_point::kLeafFirst);
  if (!leaf_first) remove_node(key);
  lock.unlock();
  data_.erase(key);  // Durable before its parent may be evicted.
  lock.lock();
  if (leaf_first) remove_node(key);
  shared.evicted.fetch_add(1, std::memory_order_relaxed);
  return true;
}

template <Media M>
std::size_t PrefixStore<M>::evict(std::size_t blocks_max) const {
  if constexpr (kIsReadOnly<M>) return 0;
  if (!status()) return 0;
  std::unique_lock<Mutex> lock(shared_->mutex);
  know_tree();
  std::size_t gone = 0;
  while (gone < blocks_max && evict_one(lock) && status()) ++gone;
  return gone;
}

/// Drops a block that can't be read, and all that follow it, last ones first. Rare, so it scans everything.
template <Media M>
void PrefixStore<M>::quarantine(const IndexKey& key) const {
  Shared& shared = *shared_;
  std::unique_lock<Mutex> lock(shared.mutex);
  know_tree();
  std::unordered_map<IndexKey, std::vector<IndexKey>, detail::KeyHash> children;
  for (const auto& [child, node] : shared.nodes) {
    if (node.depth != 0) children[node.parent].push_back(child);
  }
  std::vector<IndexKey> doomed{key};
  for (std::size_t i = 0; i < doomed.size(); ++i) {
    const auto found = children.find(doomed[i]);
    if (found != children.end()) doomed.insert(doomed.end(), found->second.begin(), found->second.end());
  }
  for (auto one = doomed.rbegin(); one != doomed.rend(); ++one) {
    if (data_.erase(*one)) shared.quarantined.fetch_add(1, std::memory_order_relaxed);
    remove_node(*one);
  }
}

// ----- putting ------------------------------------------------------------------------------------------------------

/// Was it offered before? Under the mutex.
template <Media M>
bool PrefixStore<M>::admit(const IndexKey& key) const {
  if (options_.admission == Admission::kAlways) return true;
  Shared& shared = *shared_;
  if (shared.offered->contains(key.low) || shared.offered_before->contains(key.low)) return true;
  if (shared.offered->load() > 0.5 || !shared.offered->insert(key.low)) {
    std::swap(shared.offered, shared.offered_before);  // The older half is forgotten.
    shared.offered->clear();
    (void)shared.offered->insert(key.low);
  }
  shared.not_admitted.fetch_add(1, std::memory_order_relaxed);
  return false;
}

template <Media M>
PutBlock PrefixStore<M>::put(std::span<const IndexKey> keys, std::size_t at, std::span<const std::byte> bytes) {
  DUNNOCK_CHECK(at < keys.size(), "the block that is put is one of the keys");
  if constexpr (kIsReadOnly<M>) return PutBlock::kIo;
  Shared& shared = *shared_;
  if (!status()) return PutBlock::kIo;
  const IndexKey key = keys[at];
  const std::uint64_t needed = ValueLog<M>::record_bytes(sizeof(BlockHeader) + bytes.size());
  const auto budget = static_cast<std::uint64_t>(options_.fill_max * static_cast<double>(data_.log().capacity_bytes()));
  std::unique_lock<Mutex> lock(shared.mutex);
  know_tree();
  if (const auto node = shared.nodes.find(key); node != shared.nodes.end()) {
    if (node->second.leaving) return PutBlock::kNoParent;
    return heal(lock, key, {at > 0 ? keys[at - 1] : IndexKey{}, at, shared.clock++}, bytes);
  }
  if (at > 0) {
    const auto parent = shared.nodes.find(keys[at - 1]);
    if (parent == shared.nodes.end() || parent->second.depth != at - 1) return PutBlock::kNoParent;
    if (parent->second.leaving && is_taken(data_.log().media(), prefix_point::kParentStays)) return PutBlock::kNoParent;
    if (!admit(key)) return PutBlock::kNotAdmitted;
    add_child(parent->second, keys[at - 1]);  // Not evicted from here on.
  } else if (!admit(key)) {
    return PutBlock::kNotAdmitted;
  }
  const auto refuse = [&](PutBlock why) {
    remove_node(key);
    return why;
  };
  // It counts from here on, and no other thread puts it; but it is not a leaf, and not found, until it is durable.
  const std::uint64_t now = shared.clock++;
  shared.nodes[key] = {at > 0 ? keys[at - 1] : IndexKey{}, at, now, needed, 0, true};
  shared.bytes += needed;
  if (sizeof(BlockHeader) + bytes.size() > data_.log().value_bytes_max()) return refuse(PutBlock::kFull);
  while (shared.bytes > budget || shared.nodes.size() > options_.blocks_max) {
    if (!evict_one(lock)) return refuse(PutBlock::kFull);
  }
  lock.unlock();

  const PutResult result = write(lock, key, {at > 0 ? keys[at - 1] : IndexKey{}, at, now}, bytes);
  if (result > PutResult::kReplaced) return refuse(result == PutResult::kIo ? PutBlock::kIo : PutBlock::kFull);
  const auto node = shared.nodes.find(key);
  if (node == shared.nodes.end()) {  // What it hangs from was thrown away meanwhile.
    data_.erase(key);
    return PutBlock::kNoParent;
  }
  node->second.leaving = false;
  if (node->second.children == 0) shared.leaves.insert({node->second.used, key});
  return PutBlock::kStored;
}

/// Puts a block that is already stored: damaged bytes are rewritten, since the caller has correct ones. Intact bytes
/// stay, whatever they are: computing a block again may give different bytes by rounding.
template <Media M>
PutBlock PrefixStore<M>::heal(std::unique_lock<Mutex>& lock, const IndexKey& key, const BlockHeader& header,
                              std::span<const std::byte> bytes) {
  Shared& shared = *shared_;
  ++shared.pins[key];  // Not evicted meanwhile.
  lock.unlock();
  const auto is_sound = [&] {
    const KvValue<M> there = data_.get(key);
    if (!there || there.bytes().size() < sizeof(BlockHeader)) return false;
    BlockHeader stored;
    std::memcpy(&stored, there.bytes().data(), sizeof stored);
    return stored.parent == header.parent && stored.depth == header.depth;
  };
  PutBlock result = PutBlock::kThere;
  if (!is_sound()) {
    const PutResult written = write(lock, key, header, bytes);
    result = written == PutResult::kIo     ? PutBlock::kIo
             : written == PutResult::kFull ? PutBlock::kFull
                                           : PutBlock::kStored;
    shared.healed.fetch_add(result == PutBlock::kStored ? 1 : 0, std::memory_order_relaxed);
  } else {
    lock.lock();
  }
  if (const auto pin = shared.pins.find(key); pin != shared.pins.end() && --pin->second == 0) shared.pins.erase(pin);
  if (shared.nodes.contains(key)) return result;
  data_.erase(key);  // What it hangs from was thrown away meanwhile.
  return PutBlock::kNoParent;
}

/// Writes the block's record, evicting others if it must. Called without the lock, returns with it. kFull: no room.
template <Media M>
PutResult PrefixStore<M>::write(std::unique_lock<Mutex>& lock, const IndexKey& key, const BlockHeader& header,
                                std::span<const std::byte> bytes) {
  std::vector<std::byte> value(sizeof header + bytes.size());
  std::memcpy(value.data(), &header, sizeof header);
  if (!bytes.empty()) std::memcpy(value.data() + sizeof header, bytes.data(), bytes.size());
  PutResult result = data_.put(key, value);
  lock.lock();
  while (result == PutResult::kFull) {
    if (!evict_one(lock)) return result;
    lock.unlock();
    result = data_.put(key, value);
    lock.lock();
  }
  return result;
}

// ----- the whole -----------------------------------------------------------------------------------------------------

template <Media M>
PrefixStats PrefixStore<M>::stats() const {
  if (!status()) return {};
  const Shared& shared = *shared_;
  const std::lock_guard<Mutex> lock(shared_->mutex);
  PrefixStats stats;
  stats.blocks = data_.size();
  stats.bytes = shared.bytes;
  stats.lookups = shared.lookups.load(std::memory_order_relaxed);
  stats.blocks_asked = shared.blocks_asked.load(std::memory_order_relaxed);
  stats.blocks_found = shared.blocks_found.load(std::memory_order_relaxed);
  stats.probes = shared.probes.load(std::memory_order_relaxed);
  stats.record_reads = shared.record_reads.load(std::memory_order_relaxed);
  stats.evicted = shared.evicted.load(std::memory_order_relaxed);
  stats.not_admitted = shared.not_admitted.load(std::memory_order_relaxed);
  stats.healed = shared.healed.load(std::memory_order_relaxed);
  stats.quarantined = shared.quarantined.load(std::memory_order_relaxed);
  return stats;
}

template <Media M>
IndexCheck PrefixStore<M>::check() const {
  IndexCheck report = data_.check();
  (void)data_.index().for_each([&](const IndexKey& key, const IndexValue& value) {
    BlockHeader header;
    if (!value.is_locator() || !data_.peek(key, value.locator(), std::as_writable_bytes(std::span(&header, 1)))) {
      report.violations.push_back("an entry of the prefix store is no block");
    } else if (header.depth != 0 && !is_block(header.parent, nullptr, header.depth - 1)) {
      report.violations.push_back("the block before block " + std::to_string(header.depth) + " is not there");
    }
  });
  return report;
}

}  // namespace dunnock
