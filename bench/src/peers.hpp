// Key-value stores that one would use instead, through their own libraries, behind one interface.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dunnock::bench {

/// 16 bytes.
using PeerKey = std::array<std::uint64_t, 2>;

/// Threads: any number. What goes wrong ends the program: a benchmark of a store that fails measures nothing.
class Peer {
 public:
  virtual ~Peer() = default;
  [[nodiscard]] virtual std::string name() const = 0;
  /// `durable`: on return it survives a power loss as far as the file system keeps its word.
  virtual void put(const PeerKey& key, std::string_view value, bool durable) = 0;
  virtual void put_batch(std::span<const PeerKey> keys, std::string_view value, bool durable) = 0;
  /// Looks keys up as fast as this store can, one after the other; returns how many were there. One thread at a time
  /// may use one `reader`, a number from 0.
  virtual std::size_t get_all(std::span<const PeerKey> keys, unsigned reader) = 0;
  /// Brings what was loaded into the shape that is best for reading.
  virtual void settle() {}
};

/// "lmdb", "rocksdb" and "leveldb", as far as they were there when this was built.
[[nodiscard]] std::vector<std::string> peer_names();
/// Opens or creates a store in the directory. `sync`: LMDB, whose environment has one durability for all, makes every
/// transaction durable; the others are told with each put. Null: there is no such peer.
[[nodiscard]] std::unique_ptr<Peer> open_peer(const std::string& name, const std::string& directory, bool sync);
/// What is set differently from its defaults, in words.
[[nodiscard]] std::string peer_settings(const std::string& name);

}  // namespace dunnock::bench
