// What the command line says, and how every command answers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dunnock/base/result.hpp"

namespace dunnock::tool {

/// Exit statuses. In the manual, too.
inline constexpr int kFine = 0;
inline constexpr int kDamaged = 1;  ///< What was read, or looked at, is not sound.
inline constexpr int kUsage = 2;
inline constexpr int kCannot = 3;  ///< Anything else.

struct Options {
  std::string pool;
  std::string name;                ///< Of a structure; empty: the only one.
  std::vector<std::string> names;  ///< Of several.
  std::string file;                ///< To read or to write; "-": standard input or output.
  bool json = false;
  bool create = false;
  std::uint64_t capacity_bytes = 1ULL << 30;
  unsigned threads = 1;
  // checkpoints
  std::string checkpoint;  ///< "name" or "name@version"
  std::string other;       ///< The same.
  std::uint64_t keep_last = 1;
  std::uint64_t keep_every = 0;
  std::uint64_t chunk_bytes = 1 << 20;
};

/// Each prints to standard output. The result is an exit status; errors are for the caller to print.
[[nodiscard]] Result<int> info(const Options& options);
[[nodiscard]] Result<int> check(const Options& options);
[[nodiscard]] Result<int> dump(const Options& options);
[[nodiscard]] Result<int> load(const Options& options);
[[nodiscard]] Result<int> copy(const Options& options);
[[nodiscard]] Result<int> checkpoint_list(const Options& options);
[[nodiscard]] Result<int> checkpoint_show(const Options& options);
[[nodiscard]] Result<int> checkpoint_verify(const Options& options);
[[nodiscard]] Result<int> checkpoint_diff(const Options& options);
[[nodiscard]] Result<int> checkpoint_export(const Options& options);
[[nodiscard]] Result<int> checkpoint_import(const Options& options);
[[nodiscard]] Result<int> checkpoint_delete(const Options& options);
[[nodiscard]] Result<int> checkpoint_retain(const Options& options);
[[nodiscard]] Result<int> checkpoint_collect(const Options& options);
[[nodiscard]] Result<int> checkpoint_forget(const Options& options);

}  // namespace dunnock::tool
