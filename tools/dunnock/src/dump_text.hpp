// The text that `dunnock dump` writes and `dunnock load` reads: one entry a line, and a last line that counts them.
//
//   dunnock-dump 1                                 the first line: format version 1
//   # anything                                     a comment, anywhere after the first line
//   # damaged 00112233445566778899aabbccddeef2     an entry that could not be read when the dump was written
//   # damaged entries: 2                           how many of them there were, those without a key included
//   00112233445566778899aabbccddeeff 0102ff        key (high word first) and value, in hexadecimal
//   00112233445566778899aabbccddeef0 -             a value of no bytes
//   00112233445566778899aabbccddeef1 @12:34:56     a bare locator: position, length, checksum, in decimal
//   end 3                                          so a file that was cut off is noticed
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/index/index_format.hpp"

namespace dunnock::tool {

struct DumpEntry {
  IndexKey key;
  std::variant<std::vector<std::byte>, Locator> value;
};

/// Lines with their end.
[[nodiscard]] std::string dump_header();
[[nodiscard]] std::string dump_line(const IndexKey& key, std::span<const std::byte> bytes);
[[nodiscard]] std::string dump_line(const IndexKey& key, const Locator& locator);
/// An entry that can't be read, and the number of such entries: comments, for people and for `load`.
[[nodiscard]] std::string dump_damaged(const IndexKey& key);
[[nodiscard]] std::string dump_damaged(std::uint64_t entries);
[[nodiscard]] std::string dump_end(std::uint64_t entries);

/// Takes a dump line by line. Threads: one.
class DumpReader {
 public:
  /// The entry in the next line (without its end), if there is one in it. Errors: Corrupt (what is wrong in which
  /// line).
  [[nodiscard]] Result<std::optional<DumpEntry>> line(std::string_view text);
  /// After the last line. Errors: Corrupt (the end is missing).
  [[nodiscard]] Status end() const;
  [[nodiscard]] std::uint64_t entries() const noexcept { return entries_; }
  /// Entries that are not in the dump because they could not be read, as it says itself.
  [[nodiscard]] std::uint64_t damaged() const noexcept { return damaged_; }

 private:
  std::uint64_t lines_ = 0;
  std::uint64_t entries_ = 0;
  std::uint64_t damaged_ = 0;
  bool ended_ = false;
};

}  // namespace dunnock::tool
