// Fuzzes the reader of dumps: whatever the text is, the answer is an error or entries that are written as they were
// read.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "dump_text.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace dunnock::tool;
  std::string_view text(reinterpret_cast<const char*>(data), size);
  DumpReader reader;
  std::string again = dump_header();
  while (true) {
    const std::size_t end = text.find('\n');
    const auto entry = reader.line(text.substr(0, end));
    if (!entry) return 0;
    if (*entry) {
      const auto* bytes = std::get_if<0>(&(*entry)->value);
      again +=
          bytes != nullptr ? dump_line((*entry)->key, *bytes) : dump_line((*entry)->key, std::get<1>((*entry)->value));
    }
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + 1);
  }
  if (!reader.end()) return 0;
  again += dump_end(reader.entries());
  // What was read and written is read once more, line by line, without an error.
  DumpReader second;
  std::string_view rest = again;
  for (std::size_t end = rest.find('\n'); end != std::string_view::npos; end = rest.find('\n')) {
    if (!second.line(rest.substr(0, end))) std::abort();
    rest.remove_prefix(end + 1);
  }
  if (!second.end() || second.entries() != reader.entries()) std::abort();
  return 0;
}
