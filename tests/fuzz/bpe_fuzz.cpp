// Fuzzes byte pairs: vocabularies and lists of merges, which are refused or sound, and training on any bytes, after
// which any bytes come back. The first byte says which.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "dunnock/data/bpe.hpp"

namespace {

using namespace dunnock;

using data::Bpe;

void require(bool sound) {
  if (!sound) std::abort();
}

void gives_back(const Bpe& bpe, std::string_view text) {
  const auto tokens = bpe.encode(text);
  require(tokens.size() <= text.size());
  require(bpe.decode(tokens) == text);
}

void is_the_same_when_read_again(const Bpe& bpe) {
  const std::string vocabulary = bpe.vocabulary_json(), merges = bpe.merges_text();
  const auto again = Bpe::parse({.vocabulary = vocabulary, .merges = merges});
  require(again && again->vocabulary_json() == vocabulary && again->merges_text() == merges);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  static const std::string bytes = [] {
    // The 256 bytes and some more, without the closing brace.
    std::string json = Bpe::train("ababab abcabc", {.vocabulary = 300})->vocabulary_json();
    json.erase(json.find_last_of('}'));
    return json;
  }();
  switch (data[0] % 4) {
    case 0: (void)Bpe::parse({.vocabulary = text, .merges = ""}); break;
    case 1:
      if (const auto bpe = Bpe::parse({.vocabulary = bytes + std::string(text), .merges = "a b\n"})) {
        is_the_same_when_read_again(*bpe);
        gives_back(*bpe, text);
      }
      break;
    case 2:
      if (const auto bpe = Bpe::parse({.vocabulary = bytes + "}", .merges = text})) {
        is_the_same_when_read_again(*bpe);
        gives_back(*bpe, text);
      }
      break;
    case 3: {
      const auto bpe = Bpe::train(text.substr(0, text.size() / 2), {.vocabulary = 300});
      is_the_same_when_read_again(*bpe);
      gives_back(*bpe, text);
      break;
    }
  }
  return 0;
}
