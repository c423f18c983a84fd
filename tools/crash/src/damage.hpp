// What is done to pool files, and what has become of the structure in them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "dunnock/pmem/pool.hpp"
#include "structures.hpp"

namespace dunnock::crash {

/// What a process that uses a damaged pool ends with.
enum Outcome : int { kRefused = 10, kFound = 11, kUnharmed = 12, kApproximate = 13, kLostSilently = 14 };

/// A part of the pool to be damaged in particular.
struct DamagedArea {
  std::string name;
  std::uint64_t magic;   ///< Of the header that it follows.
  std::uint64_t offset;  ///< From there.
  std::uint64_t bytes;
};

/// Something to be attempted in a pool that is whole, and the error that it must end with.
struct Refusal {
  std::string name;
  ErrorCode expected;
  std::function<Result<void>(Pool&)> attempt;
};

/// A structure in a pool that is damaged.
struct DamageSystem {
  std::uint64_t pool_bytes = 0;
  std::function<std::string(Pool&)> create;  ///< And fills it, and closes it. A sentence when that fails.
  /// Opens it and uses everything in it. Returns an Outcome; an error goes to `error`.
  std::function<int(Pool&, std::string& error)> use;
  std::vector<std::uint64_t> magics;  ///< Of its headers, to be damaged in particular.
  std::vector<DamagedArea> areas{};
  std::vector<Refusal> refusals{};
  /// Whether pages in use are zeroed and misplaced; else pages anywhere are zeroed. Not for structures without
  /// checksums over what they hold.
  bool damages_whole_pages = true;
};
[[nodiscard]] std::vector<CorruptCase> run_damage(const CorruptOptions& options, const DamageSystem& system);

/// For DamageSystem::use: the error in words, and the outcome that it is.
[[nodiscard]] int refuse(const Error& error, std::string& words);

/// Whether that worked.
template <class T>
[[nodiscard]] Result<void> status_of(const Result<T>& result) {
  if (result) return {};
  return tl::unexpected(result.error());
}

}  // namespace dunnock::crash
