// A filter as the benchmark sees it. What is measured are the loops of a user, and each of them is one virtual call:
// what fills, counts and prints is then compiled once for all filters, and costs them nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "dunnock/base/result.hpp"
#include "filter/cases.hpp"
#include "filter/keys.hpp"

namespace dunnock::bench {

enum class Call : std::uint8_t { kInsert, kContains, kErase };

/// Threads: as many as the filter allows.
class Subject {
 public:
  virtual ~Subject() = default;
  [[nodiscard]] virtual std::uint64_t slots() const = 0;
  [[nodiscard]] virtual std::uint64_t memory_bytes() const = 0;
  [[nodiscard]] virtual bool can_erase() const = 0;

  // A call per key. They return for how many it was true.
  virtual std::uint64_t insert(KeySpan keys) = 0;
  [[nodiscard]] virtual std::uint64_t contains(KeySpan keys) const = 0;
  virtual std::uint64_t erase(KeySpan keys) = 0;
  /// For each key of `moving`: it is erased and inserted again, and one each of `present` and `absent` is looked up.
  virtual std::uint64_t mixed(KeySpan moving, KeySpan present, KeySpan absent) = 0;

  // One call for all. Only filters that have bulk operations are asked for them.
  virtual std::uint64_t insert_bulk(KeySpan keys) = 0;
  [[nodiscard]] virtual std::uint64_t contains_bulk(KeySpan keys, std::uint8_t* found) const = 0;

  /// How many ticks of the time-stamp counter each call takes, reading it included.
  [[nodiscard]] virtual std::vector<std::uint64_t> ticks_of(Call call, KeySpan keys) = 0;
};

/// How a filter is made, besides its case.
struct SubjectOptions {
  unsigned bits = 12;
  std::uint64_t slots = 0;
  std::uint64_t seed = 1;
  NvmSpeed nvm = {};
  std::string pool = {};   // The path of the pool that kProcess and kFile create.
  bool prefaults = false;  // The pages of that pool are there when the first key comes.
};

/// An empty filter. Errors: those of creating pools and filters.
[[nodiscard]] Result<std::unique_ptr<Subject>> make_subject(const Case& one, const SubjectOptions& options);
/// The filter that make_subject left in a pool, on Medium::kProcess.
[[nodiscard]] Result<std::unique_ptr<Subject>> open_subject(unsigned bits, const std::string& pool);

/// Of our filter: how large its table is, and how many slots such a table has.
[[nodiscard]] std::uint64_t table_bytes(unsigned bits, std::uint64_t slots);
[[nodiscard]] std::uint64_t table_slots(unsigned bits, std::uint64_t bytes);

}  // namespace dunnock::bench
