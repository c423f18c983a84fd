// Fuzzes tokenizer.json: refused or sound. The first byte says whether the bytes are the whole file, or what stands in
// one whose vocabulary has the 256 bytes and some more, which no fuzzer would find: in its merges, its added tokens, or
// beside them. Then the same bytes are a text, whose tokens are of the vocabulary and give it back.
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

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  static const std::string vocabulary = Bpe::train("ababab abcabc", {.vocabulary = 262})->vocabulary_json();
  std::string merges = R"(["a b", ["ab", "c"]])", added, more;
  std::string file = text;
  switch (data[0] % 4) {
    case 0: break;
    case 1: merges = text; break;
    case 2: added = text; break;
    case 3: more = text; break;
  }
  if (data[0] % 4 != 0) {
    file = R"({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}, "added_tokens": [)" + added +
           R"(], "model": {"type": "BPE", "merges": )" + merges + R"(, "vocab": )" + vocabulary + "}" + more + "}";
  }
  const auto bpe = Bpe::parse_json(file);
  if (!bpe) return 0;
  const auto tokens = bpe->encode(text);
  for (const std::int32_t token : tokens) require(token >= 0 && token < bpe->vocabulary());
  const auto back = bpe->decode(tokens);
  require(back.has_value());
  require(!bpe->gives_back() || *back == text);
  return 0;
}
