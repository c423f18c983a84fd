// What creation refuses to write, attaching refuses to believe: every field of every header over the values at the
// edges of what it may be, with a checksum that is right.
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cstring>
#include <functional>
#include <optional>
#include <random>
#include <vector>

#include "dunnock/filter/cuckoo_filter.hpp"
#include "dunnock/index/checkpoint_store.hpp"
#include "support/seed.hpp"

namespace dunnock {
namespace {

using Filter = CuckooFilter<12, DramMedia>;
using Index = KvIndex<DramMedia>;
using Log = ValueLog<DramMedia>;
using Store = CheckpointStore<DramMedia>;

/// Zeroed memory, and regions of it.
class Memory {
 public:
  explicit Memory(std::uint64_t bytes) : owned_(std::move(*VolatileRegion::create(bytes))) {}
  [[nodiscard]] Region region() const { return owned_.region(); }
  void clear() { std::memset(owned_.region().at(0), 0, owned_.region().bytes()); }

 private:
  VolatileRegion owned_;
};

std::vector<std::uint64_t> edge_values() {
  std::vector<std::uint64_t> values{0, 5, 6, 7, 10, 48, 63, 65, 96, 1000, 1023, 1536, 4095, ~0ULL, ~0ULL - 1};
  for (unsigned bit = 0; bit < 64; ++bit) values.push_back(1ULL << bit);
  for (const unsigned bit : {5U, 6U, 10U, 12U, 20U, 30U, 36U, 48U, 63U}) {
    values.push_back((1ULL << bit) - 1);
    values.push_back((1ULL << bit) + 1);
  }
  return values;
}

/// Tries a header with each of its words, and each half of a word, replaced by each of the values, and with random
/// words replaced together. `attach` says whether the header that lies in memory is believed; `creates`, whether
/// creation would have written it. `what`: for messages. The magic word and the checksum are never replaced.
template <class Header>
void try_headers(std::byte* memory, const std::function<bool()>& attach,
                 const std::function<bool(const Header&)>& creates, const char* what) {
  std::array<std::byte, 4096> sound;
  std::memcpy(sound.data(), memory, sound.size());
  constexpr std::size_t kWords = sizeof(Header) / 8;
  unsigned believed = 0;
  const auto try_one = [&](const std::array<std::uint64_t, kWords>& words) {
    Header header;
    std::memcpy(static_cast<void*>(&header), words.data(), sizeof header);
    header.checksum = checksum_of(header);
    std::memcpy(memory, sound.data(), sound.size());
    std::memcpy(memory, &header, sizeof header);
    if (!attach()) return;
    ++believed;
    EXPECT_TRUE(creates(header)) << what
                                 << ": a header is believed that is never written: " << testing::PrintToString(words);
  };
  std::array<std::uint64_t, kWords> words;
  std::memcpy(words.data(), sound.data(), sizeof words);
  const std::vector<std::uint64_t> values = edge_values();
  for (std::size_t i = 1; i + 1 < kWords; ++i) {
    for (const std::uint64_t value : values) {
      auto changed = words;
      changed[i] = value;
      try_one(changed);
      changed[i] = (words[i] & ~0xffffffffULL) | (value & 0xffffffffULL);
      try_one(changed);
      changed[i] = (words[i] & 0xffffffffULL) | value << 32;
      try_one(changed);
    }
  }
  auto random = test::generator(7);
  for (unsigned round = 0; round < 20000; ++round) {
    auto changed = words;
    for (int n = 0; n < 2; ++n) changed[1 + random() % 4] = values[random() % values.size()];
    try_one(changed);
  }
  EXPECT_GT(believed, 0u) << what << ": the sound one is not tried";
  std::memcpy(memory, sound.data(), sound.size());
}

TEST(Headers, of_a_log_are_believed_only_if_creation_writes_such) {
  const LogOptions options{.capacity_bytes = 8 << 10, .segment_bytes = 1024};
  const Memory meta(1 << 16), data(1 << 20);
  ASSERT_TRUE(Log::format(meta.region(), data.region(), options, {}));
  try_headers<LogHeader>(
      meta.region().at(0), [&] { return Log::attach(meta.region(), data.region(), {}).has_value(); },
      [&](const LogHeader& header) {
        Memory again(1 << 16), again_data(1 << 20);
        const LogOptions same{.capacity_bytes = header.segments * header.segment_bytes,
                              .segment_bytes = header.segment_bytes};
        if (!Log::format(again.region(), again_data.region(), same, {})) return false;
        return std::memcmp(again.region().at(0), &header, sizeof header) == 0;
      },
      "log");
}

TEST(Headers, of_a_log_never_let_a_record_be_written_past_its_segment) {
  const LogOptions options{.capacity_bytes = 8 << 10, .segment_bytes = 1024};
  const Memory meta(1 << 16), data(1 << 20);
  ASSERT_TRUE(Log::format(meta.region(), data.region(), options, {}));
  LogHeader header;
  std::memcpy(&header, meta.region().at(0), sizeof header);
  for (std::uint64_t bytes = 0; bytes < 1024; ++bytes) {
    header.segment_bytes = bytes;
    header.checksum = checksum_of(header);
    std::memcpy(meta.region().at(0), &header, sizeof header);
    const auto attached = Log::attach(meta.region(), data.region(), {});
    ASSERT_FALSE(attached) << bytes;
    EXPECT_EQ(attached.error().code, ErrorCode::kCorrupt);
  }
}

TEST(Headers, of_a_filter_are_believed_only_if_creation_writes_such) {
  for (const std::uint64_t slots : {1, 1000}) {
    const FilterOptions options{.slots = slots, .seed = HashSeed::from(1)};
    const Memory meta(kFilterMetaBytes), table(Filter::table_bytes(slots));
    ASSERT_TRUE(Filter::format(meta.region(), table.region(), options, {}));
    try_headers<FilterHeader>(
        meta.region().at(0), [&] { return Filter::attach(meta.region(), table.region(), {}).has_value(); },
        [&](const FilterHeader& header) {
          const Memory again(kFilterMetaBytes), again_table(Filter::table_bytes(slots));
          const FilterOptions same{.slots = header.slots, .seed = header.seed};
          if (!Filter::format(again.region(), again_table.region(), same, {})) return false;
          return std::memcmp(again.region().at(0), &header, sizeof header) == 0;
        },
        "filter");
  }
}

IndexMemory chunks_of(const Memory& memory) {
  const auto chunk = [&memory](unsigned number, std::uint64_t bytes) -> Result<Region> {
    if (number != 0 || bytes > memory.region().bytes()) return make_error(ErrorCode::kNotFound, "no such chunk");
    return memory.region();
  };
  return {chunk, chunk};
}

TEST(Headers, of_an_index_are_believed_only_if_creation_writes_such) {
  const IndexOptions options{.entries = 1000, .bytes_max = 1 << 20, .segment_groups = 4, .seed = HashSeed::from(1)};
  const Memory meta(1 << 16), memory(4 << 20);
  ASSERT_TRUE(Index::format(meta.region(), chunks_of(memory), options, {}));
  Memory again(1 << 16), again_memory(4 << 20);
  try_headers<IndexHeader>(
      meta.region().at(0), [&] { return Index::attach(meta.region(), chunks_of(memory), {}).has_value(); },
      [&](const IndexHeader& header) {
        again.clear();
        again_memory.clear();
        const std::uint64_t per_segment = header.segment_groups * 40ULL * 3 / 5;
        const IndexOptions same{
            .entries = header.initial_segments == 1 ? 0 : header.initial_segments / 2 * per_segment + 1,
            .bytes_max = header.segments_max * Index::segment_bytes(header.segment_groups),
            .segment_groups = header.segment_groups,
            .seed = header.seed};
        if (!Index::format(again.region(), chunks_of(again_memory), same, {})) return false;
        return std::memcmp(again.region().at(0), &header, sizeof header) == 0;
      },
      "index");
}

TEST(Headers, of_a_checkpoint_store_are_believed_only_if_creation_writes_such) {
  const CheckpointOptions options{
      .capacity_bytes = 8 << 10, .chunk_bytes = 256, .segment_bytes = 1024, .checkpoints_max = 20};
  const LogOptions log{.capacity_bytes = options.capacity_bytes, .segment_bytes = options.segment_bytes};
  const IndexOptions index{.bytes_max = 1 << 20, .segment_groups = 4, .seed = HashSeed::from(1)};
  const Memory catalog(1 << 16), log_meta(1 << 14), log_data(1 << 14), index_meta(1 << 14), index_data(1 << 20);
  ASSERT_TRUE(Log::format(log_meta.region(), log_data.region(), log, {}));
  ASSERT_TRUE(Index::format(index_meta.region(), chunks_of(index_data), index, {}));
  const auto data = [&] {
    return KvStore<DramMedia>(std::move(Index::attach(index_meta.region(), chunks_of(index_data), {})->index),
                              std::move(*Log::attach(log_meta.region(), log_data.region(), {})));
  };
  ASSERT_TRUE(Store::format(catalog.region(), data(), options, {}, "c"));
  try_headers<CatalogHeader>(
      catalog.region().at(0), [&] { return Store::attach(catalog.region(), data(), {}).has_value(); },
      [&](const CatalogHeader& header) {
        const Memory again(1 << 16);
        CheckpointOptions same = options;
        same.chunk_bytes = header.chunk_bytes;
        same.checkpoints_max = header.lines;
        if (!Store::format(again.region(), data(), same, {}, "c")) return false;
        CatalogHeader written;
        std::memcpy(&written, again.region().at(0), sizeof written);
        written.id = header.id;  // Of the name, which any may be; open() compares it.
        written.checksum = checksum_of(written);
        return std::memcmp(&written, &header, sizeof header) == 0;
      },
      "checkpoint store");
}

}  // namespace
}  // namespace dunnock
