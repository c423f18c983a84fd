// Fuzzes what attaching believes: headers of a log, an index, a filter and a catalog with any fields and a checksum
// that is right, on memory that ends where it ends. Whatever is believed is then used, and must stay within its memory.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "dunnock/filter/cuckoo_filter.hpp"
#include "dunnock/index/checkpoint_store.hpp"

namespace {

using namespace dunnock;

/// Memory after which nothing may be touched.
class Memory {
 public:
  explicit Memory(std::size_t bytes)
      : bytes_(bytes), at_(static_cast<std::byte*>(::operator new (bytes, std::align_val_t{64}))) {
    std::memset(at_, 0, bytes);
  }
  Memory(const Memory&) = delete;
  ~Memory() { ::operator delete (at_, std::align_val_t{64}); }
  [[nodiscard]] Region region() const { return Region({at_}, bytes_, std::bit_ceil(bytes_)); }
  [[nodiscard]] std::byte* at() const { return at_; }

 private:
  std::size_t bytes_;
  std::byte* at_;
};

/// Fields of a header from the input: pairs of a word's number and its value, as it is or as a power of two.
template <class Header>
void change(Header& header, const std::uint8_t* data, std::size_t size) {
  std::uint64_t words[sizeof(Header) / 8];
  std::memcpy(words, &header, sizeof header);
  for (; size >= 4; data += 4, size -= 4) {
    const std::size_t word = 1 + data[0] % (sizeof(Header) / 8 - 2);
    std::uint64_t value = data[2] | static_cast<std::uint64_t>(data[3]) << 8;
    if ((data[1] & 1) != 0) value = (1ULL << (data[2] % 64)) + data[3] % 3 - 1;
    if ((data[1] & 2) != 0) value = (words[word] & 0xffffffffULL) | value << 32;
    if ((data[1] & 4) != 0) value = (words[word] & ~0xffffffffULL) | (value & 0xffffffffULL);
    words[word] = value;
  }
  std::memcpy(static_cast<void*>(&header), words, sizeof header);
  header.checksum = checksum_of(header);
}

constexpr LogOptions kLog{.capacity_bytes = 8 << 10, .segment_bytes = 1024};

void use(ValueLog<DramMedia>& log) {
  std::vector<std::byte> bytes(std::min<std::uint64_t>(log.value_bytes_max(), 1 << 16));
  for (std::uint64_t n = 0; n < 64; ++n) {
    const IndexKey key{n, ~n};
    const auto ticket = log.append(key, std::span(bytes).first(bytes.size() >> (n % 8)));
    if (!ticket) break;
    if (log.view(ticket->locator, key).state != ReadState::kFound) __builtin_trap();
  }
}

void fuzz_log(const std::uint8_t* data, std::size_t size) {
  const Memory meta(ValueLog<DramMedia>::meta_bytes(kLog)), segments(kLog.capacity_bytes);
  if (!ValueLog<DramMedia>::format(meta.region(), segments.region(), kLog, {})) __builtin_trap();
  auto* const header = reinterpret_cast<LogHeader*>(meta.at());
  change(*header, data, size);
  auto log = ValueLog<DramMedia>::attach(meta.region(), segments.region(), {});
  if (log) use(*log);
}

void fuzz_index(const std::uint8_t* data, std::size_t size) {
  using Index = KvIndex<DramMedia>;
  const IndexOptions options{
      .entries = 200, .bytes_max = 8 * Index::segment_bytes(2), .segment_groups = 2, .seed = HashSeed::from(1)};
  const Memory meta(Index::meta_bytes(options));
  std::vector<std::unique_ptr<Memory>> chunks;
  const auto chunk = [&](unsigned number, std::uint64_t bytes) -> Result<Region> {
    if (number > chunks.size() || bytes > 1 << 20) return make_error(ErrorCode::kNoSpace, "no more");
    if (number == chunks.size()) chunks.push_back(std::make_unique<Memory>(bytes));
    return chunks[number]->region();
  };
  if (!Index::format(meta.region(), {chunk, chunk}, options, {})) __builtin_trap();
  auto* const header = reinterpret_cast<IndexHeader*>(meta.at());
  change(*header, data, size);
  auto opened = Index::attach(meta.region(), {chunk, chunk}, {});
  if (!opened) return;
  for (std::uint64_t n = 0; n < 2000; ++n) {
    const IndexKey key{n * 0x9e3779b97f4a7c15ULL, n};
    if (opened->index.put(key, IndexValue::of(n)) == PutResult::kFull) break;
    if (opened->index.get(key).state != GetState::kFound) __builtin_trap();
  }
}

void fuzz_filter(const std::uint8_t* data, std::size_t size) {
  using Filter = CuckooFilter<12, DramMedia>;
  const FilterOptions options{.slots = 500, .seed = HashSeed::from(1)};
  const Memory meta(Filter::meta_bytes()), table(Filter::table_bytes(options.slots));
  if (!Filter::format(meta.region(), table.region(), options, {})) __builtin_trap();
  auto* const header = reinterpret_cast<FilterHeader*>(meta.at());
  change(*header, data, size);
  auto opened = Filter::attach(meta.region(), table.region(), {});
  if (!opened) return;
  for (std::uint64_t key = 0; key < 400; ++key) {
    if (opened->filter.insert(key) && !opened->filter.contains(key)) __builtin_trap();
  }
}

void fuzz_catalog(const std::uint8_t* data, std::size_t size) {
  using Store = CheckpointStore<DramMedia>;
  const CheckpointOptions options{
      .capacity_bytes = kLog.capacity_bytes, .chunk_bytes = 256, .segment_bytes = 1024, .checkpoints_max = 5};
  const Memory meta(ValueLog<DramMedia>::meta_bytes(kLog)), segments(kLog.capacity_bytes);
  const Memory catalog(Store::catalog_bytes(options));
  auto log = ValueLog<DramMedia>::format(meta.region(), segments.region(), kLog, {});
  auto index = KvIndex<DramMedia>::create_volatile({.bytes_max = 1 << 18, .segment_groups = 4});
  if (!log || !index) __builtin_trap();
  auto formatted =
      Store::format(catalog.region(), KvStore<DramMedia>(std::move(*index), std::move(*log)), options, {}, "c");
  if (!formatted) __builtin_trap();
  auto* const header = reinterpret_cast<CatalogHeader*>(catalog.at());
  change(*header, data, size);
  log = ValueLog<DramMedia>::attach(meta.region(), segments.region(), {});
  index = KvIndex<DramMedia>::create_volatile({.bytes_max = 1 << 18, .segment_groups = 4});
  if (!log || !index) return;
  auto store = Store::attach(catalog.region(), KvStore<DramMedia>(std::move(*index), std::move(*log)), {});
  if (!store) return;
  const std::vector<std::byte> bytes(1000, std::byte{7});
  std::vector<TensorSource> sources(1);
  sources[0].spec = {"t", Dtype::kU8, {bytes.size()}};
  sources[0].bytes = bytes;
  for (std::uint64_t version = 1; version < 8; ++version) {
    if (store->save("run", version, sources) && !store->verify("run", version)) __builtin_trap();
  }
  (void)store->list();
  (void)store->check();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  switch (data[0] % 4) {
    case 0: fuzz_log(data + 1, size - 1); break;
    case 1: fuzz_index(data + 1, size - 1); break;
    case 2: fuzz_filter(data + 1, size - 1); break;
    default: fuzz_catalog(data + 1, size - 1); break;
  }
  return 0;
}
