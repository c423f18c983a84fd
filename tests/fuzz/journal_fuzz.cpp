// Fuzzes the reader of journals: whatever the bytes are, the answer is an error, or lines that lie in the pool.
#include <xxhash.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "journal.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace dunnock::detail;
  constexpr std::uint64_t kId = 5, kHalf = 4 * kJournalBlock, kPool = 1 << 20;
  std::vector<std::byte> journal(kJournalBlock + 2 * kHalf);
  // Of either format.
  JournalHead head{size % 2 == 0 ? kJournalMagic : kSideJournalMagic, kId, kHalf, 0};
  head.checksum = XXH3_64bits(&head, offsetof(JournalHead, checksum));
  std::memcpy(journal.data(), &head, sizeof head);
  // Each byte places a group; the bytes that follow are its numbers. With checksums, or nothing would come through.
  std::size_t at = 0;
  while (at + 16 <= size) {
    const std::size_t block = data[at] % 8;
    JournalGroup group{kId, data[at + 1], data[at + 2] % 8U, data[at + 3] % 4U, 0, data[at + 5] % 16U, {}};
    std::byte* to = journal.data() + kJournalBlock + block * kJournalBlock;
    const std::size_t body = group.lines * sizeof(JournalLine) + group.revokes * sizeof(JournalRevoke);
    const std::size_t given = std::min(body, size - at - 16);
    std::memcpy(to + sizeof group, data + at + 16, given);
    std::memcpy(to, &group, sizeof group);
    if (data[at + 4] % 8 != 0) {
      const std::size_t length = group.oldest == 0 ? offsetof(JournalGroup, checksum) : sizeof group;
      group.checksum = XXH3_64bits_withSeed(to + sizeof group, body, XXH3_64bits(to, length));
    }
    std::memcpy(to, &group, sizeof group);
    at += 16 + given;
  }
  std::uint64_t last = 0;
  (void)replay_journal(journal, kId, kPool, {}, [&](std::uint64_t offset, const std::uint64_t*) {
    if (offset % dunnock::kLineBytes != 0 || offset > kPool - dunnock::kLineBytes || (last != 0 && offset <= last))
      std::abort();
    last = offset;
  });
  // And bytes as they are.
  (void)replay_journal(std::as_bytes(std::span(data, size)), kId, kPool, {},
                       [](std::uint64_t, const std::uint64_t*) {});
  return 0;
}
