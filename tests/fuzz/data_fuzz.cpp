// Fuzzes the readers of training data: IDX files, token files, tokenizers of llama2.c. The first byte says which.
// Whatever the bytes are, the answer is an error or something sound that comes back when it is written and read again.
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "dunnock/data/idx.hpp"
#include "dunnock/data/llama2c_tokenizer.hpp"
#include "dunnock/data/token_file.hpp"

namespace {

using namespace dunnock;

void require(bool sound) {
  if (!sound) std::abort();
}

void idx(std::span<const std::byte> bytes) {
  const auto array = data::parse_idx(bytes, 1 << 20);
  if (!array) return;
  std::uint64_t expected = bytes_of(array->type);
  for (const std::uint32_t length : array->shape) expected *= length;
  require(array->data.size() == expected);
  const auto again = data::parse_idx(encode_idx(*array));
  require(again && *again == *array);
}

void tokens(std::span<const std::byte> bytes, data::TokenFile::Format format) {
  const int file = memfd_create("tokens", MFD_CLOEXEC);
  require(file >= 0);
  std::vector<std::byte> content(bytes.begin(), bytes.end());
  data::TokenFileHeader header;
  if (format == data::TokenFile::Format::kDunnock && content.size() >= sizeof header) {
    // With the header's own checksum and magic, or nothing would come through.
    std::memcpy(&header, content.data(), sizeof header);
    header.magic = data::TokenFileHeader::kMagic;
    header.version = data::TokenFileHeader::kVersion;
    header.checksum = XXH3_64bits(&header, offsetof(data::TokenFileHeader, checksum));
    std::memcpy(content.data(), &header, sizeof header);
  }
  require(write(file, content.data(), content.size()) == static_cast<ssize_t>(content.size()));
  const auto opened = data::TokenFile::open("/proc/self/fd/" + std::to_string(file),
                                            {.format = format, .vocabulary = 300, .verify = false});
  if (opened) {
    require(opened->count() * opened->width_bytes() <= content.size());
    std::vector<std::int32_t> all(opened->count());
    if (opened->copy(0, all)) {
      for (const std::int32_t token : all)
        require(token >= 0 && static_cast<std::uint64_t>(token) < opened->vocabulary());
    }
  }
  close(file);
}

void llama2c(std::span<const std::byte> bytes) {
  (void)data::Llama2cTokenizer::parse(bytes);  // As it is,
  // and after the tokens of bytes, which no fuzzer would find.
  std::string file("\x14\0\0\0", 4);
  const auto add = [&file](const std::string& text) {
    const auto length = static_cast<std::uint32_t>(text.size());
    file.append(4, '\0').append(reinterpret_cast<const char*>(&length), 4).append(text);
  };
  for (const char* text : {"<unk>", "\n<s>\n", "\n</s>\n"}) add(text);
  for (unsigned byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    add(name);
  }
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  file += text;
  const auto tokenizer = data::Llama2cTokenizer::parse(std::as_bytes(std::span(file)));
  if (!tokenizer) return;
  require(tokenizer->decode(tokenizer->encode(text, {})) == text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto bytes = std::as_bytes(std::span(data, size)).subspan(1);
  switch (data[0] % 6) {
    case 0: idx(bytes); break;
    case 1: llama2c(bytes); break;
    case 2: tokens(bytes, data::TokenFile::Format::kDunnock); break;
    case 3: tokens(bytes, data::TokenFile::Format::kRaw16); break;
    case 4: tokens(bytes, data::TokenFile::Format::kRaw32); break;
    case 5: tokens(bytes, data::TokenFile::Format::kLlmC); break;
  }
  return 0;
}
