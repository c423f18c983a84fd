// What dunnock-crash knows of each structure. structures.inc lists them; src/structures/<name>_structure.cpp has the
// entry of each.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "dunnock/crash/explorer.hpp"
#include "planted_bugs.hpp"
#include "workload.hpp"

namespace dunnock::crash {

/// What a history is recorded on.
enum class Recording : std::uint8_t {
  kMemory,  ///< caches are lost with the power
  kEadr,    ///< caches survive
  kFile,    ///< a file and its disk
};
struct SubjectOptions {
  Workload workload;
  unsigned fingerprint_bits = 12;  // of a filter
  Recording recording = Recording::kMemory;
};

// ----- killed and damaged -------------------------------------------------------------------------------------------

struct KillOptions {
  std::string path;  // of the pool file
  std::uint64_t seed = 1;
  unsigned kills = 20;
  unsigned threads = 3;
  bool process_media = true;  // else the file media
  std::function<void(unsigned)> progress;
};
struct KillResult {
  unsigned kills = 0;
  unsigned kills_at_steps = 0;     // of them by the fuse: between two durable steps
  unsigned kills_in_recovery = 0;  // besides: while the next process was opening
  std::uint64_t acknowledged = 0;  // operations
  std::uint64_t completed_kicks = 0;
  double recovery_ms_max = 0;  // opening the pool and the structure
  std::string violation;       // empty: none
};

struct CorruptOptions {
  std::string directory;
  std::uint64_t seed = 1;
  unsigned rounds = 200;  // random damages of each kind
  std::function<void(unsigned)> progress;
};
struct CorruptCase {
  std::string name;
  unsigned runs = 0;
  unsigned refused = 0;      // a clear error
  unsigned found = 0;        // opened, and check() reports it
  unsigned unharmed = 0;     // opened, and all keys are there
  unsigned approximate = 0;  // opened, and table words differ in a way that no filter can tell from other keys
  std::string example{};     // one of the errors
  std::string violation{};   // empty: none
};

// ----- the structures ---------------------------------------------------------------------------------------------

struct Structure {
  std::string_view name;
  std::unique_ptr<Subject> (*subject)(const SubjectOptions& options);
  std::string_view (*point_name)(Point point);
  PlantedBugs bugs;
  KillResult (*kill)(const KillOptions& options);
  std::vector<CorruptCase> (*corrupt)(const CorruptOptions& options);
};

[[nodiscard]] const std::vector<Structure>& structures();
/// nullptr: there is none of that name.
[[nodiscard]] const Structure* find_structure(std::string_view name);
/// "filter, index or log"
[[nodiscard]] std::string names_of_structures();

// For each row of structures.inc: filter_structure(), kill_filter(), corrupt_filter() and so on.
#define DUNNOCK_STRUCTURE(name)                                      \
  [[nodiscard]] Structure name##_structure();                        \
  [[nodiscard]] KillResult kill_##name(const KillOptions& options);  \
  [[nodiscard]] std::vector<CorruptCase> corrupt_##name(const CorruptOptions& options);
#include "structures.inc"
#undef DUNNOCK_STRUCTURE

}  // namespace dunnock::crash
