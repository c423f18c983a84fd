// What dunnock-crash knows of each structure. A new structure adds one entry to structures.cpp.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "dunnock/crash/explorer.hpp"

namespace dunnock::crash {

/// A planted bug with a name for people.
struct Mutant {
  std::string name;
  Mutation mutation;
};

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
  double recovery_ms_max = 0;  // opening the pool and the filter
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

/// A step whose planted bug a test of its own catches: the explorer's histories would need more images than it has time
/// for to come across what shows it.
struct CaughtElsewhere {
  Mutation::Kind left_out_by;
  Point point;
  std::string_view test;
};

struct Structure {
  std::string_view name;
  std::function<std::unique_ptr<Subject>(std::uint64_t seed, unsigned threads, unsigned operations, unsigned bits,
                                         bool eadr)>
      subject;
  std::function<std::vector<Mutant>()> mutants;
  std::function<std::string_view(Point)> point_name;
  std::function<KillResult(const KillOptions&)> kill;
  std::function<std::vector<CorruptCase>(const CorruptOptions&)> corrupt;
  unsigned first_point = 1;  ///< Steps below are those of a structure that it uses, which has mutants of its own.
  std::vector<CaughtElsewhere> elsewhere{};
};

[[nodiscard]] const std::vector<Structure>& structures();
/// nullptr: there is none of that name.
[[nodiscard]] const Structure* find_structure(std::string_view name);

}  // namespace dunnock::crash
