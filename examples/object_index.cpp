// KvIndex: where each object of a data file lies, exactly, and still after a power cut. Run it twice with one path.
//
// The values are 16 bytes here (offset and length), so the index needs nothing beside it. An object is moved with
// replace_if, so that two movers never both believe that they have moved it.
#include <fmt/core.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include <dunnock/index/kv_index.hpp>

namespace {

using Index = dunnock::KvIndex<dunnock::FileMedia>;

/// Where an object lies in the data file, in bytes.
struct Extent {
  std::uint64_t offset;
  std::uint64_t length;
};

dunnock::IndexValue value_of(const Extent& extent) {
  return dunnock::IndexValue::of(std::as_bytes(std::span(&extent, 1)));
}

Extent extent_of(const dunnock::IndexValue& value) {
  Extent extent{};
  std::memcpy(&extent, value.bytes().data(), sizeof extent);
  return extent;
}

void print_object(const Index& index, std::string_view name) {
  const dunnock::GetResult found = index.get(dunnock::IndexKey::of(name));
  if (!found) {
    fmt::print("{}: not there\n", name);
    return;
  }
  const auto [offset, length] = extent_of(found.value);
  fmt::print("{}: {} bytes at {}\n", name, length, offset);
}

/// Places objects/0 .. objects/999, one after the other. Many puts share a wait for the disk.
void place_all(Index& index) {
  std::vector<Index::Entry> entries;
  for (std::uint64_t n = 0; n < 1000; ++n) {
    entries.push_back({dunnock::IndexKey::of(fmt::format("objects/{}", n)), value_of({n * 4096, 4096})});
  }
  index.put_bulk(entries);
}

dunnock::Status run(const std::string& path) {
  // As quick after a crash as after close().
  auto opened = Index::open_or_create(path, "objects", {});
  if (!opened) return tl::unexpected(opened.error());
  Index& index = **opened;
  fmt::print("{} objects\n", index.size());
  if (index.size() == 0) place_all(index);

  const dunnock::IndexKey key = dunnock::IndexKey::of("objects/7");
  if (const dunnock::GetResult found = index.get(key)) {
    const Extent old = extent_of(found.value);
    const Extent moved = {old.offset + 4096 * 1000, old.length};
    // False: somebody else has moved or erased it since we looked.
    if (!index.replace_if(key, found.value, value_of(moved))) fmt::print("objects/7 was moved by another\n");
  }
  print_object(index, "objects/7");
  print_object(index, "objects/8");
  if (index.erase(dunnock::IndexKey::of("objects/8"))) fmt::print("erased objects/8\n");
  print_object(index, "objects/1000");  // Most such questions are answered from fingerprints alone.
  return opened->close();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    fmt::print(stderr, "usage: dunnock-object-index POOL_FILE\n");
    return 2;
  }
  const dunnock::Status status = run(argv[1]);
  if (!status) fmt::print(stderr, "{}: {}\n", dunnock::to_string(status.error().code), status.error().message);
  return status ? 0 : 1;
}
