// Histories of a filter: a tiny table, residents, and operations that take every road through it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "any_filter.hpp"
#include "workload.hpp"

namespace dunnock::crash {

struct FilterOperation {
  enum class Kind : std::uint8_t {
    kInsert,
    kErase,
    kContains,
    kInsertBulk,
    kEraseBulk,
    kContainsBulk,
    kReopen,
    kClear
  };
  Kind kind;
  unsigned thread;
  std::vector<std::size_t> keys;  // indices into FilterHistory::keys
  bool follows = false;           // a key that another thread is at instead, if there is one
};

struct FilterHistory {
  std::uint64_t slots = 0;
  bool life = false;  // starts from zeroed memory and lives a life
  bool clean_before = false;
  unsigned switch_every = 1;
  std::size_t prefilled = 0;      // keys[0 .. prefilled) are inserted before the record starts
  std::size_t erased_before = 0;  // this many of them are erased again when keys[erased_at - 1] has been inserted
  std::size_t erased_at = 0;
  std::vector<std::uint64_t> keys;
  std::vector<bool> alone;                         // no other key has this fingerprint and these groups
  std::vector<std::vector<std::size_t>> families;  // keys with the same fingerprint and groups
  std::vector<std::size_t> family_of;
  std::vector<FilterOperation> operations;
};

[[nodiscard]] FilterHistory generate_filter_history(const Workload& workload, const FilterKind& kind);

}  // namespace dunnock::crash
