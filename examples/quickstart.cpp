// The shortest program that keeps a filter across restarts: run it twice with the same path.
//
// Not for speed: it inserts one key at a time, and a single insert into an ordinary file waits for the disk.
// insert_bulk shares that wait among many keys; durable_words.cpp shows it.
#include <fmt/core.h>

#include <filesystem>
#include <string>

// [README
#include <dunnock/filter/cuckoo_filter.hpp>
#include <dunnock/pmem/pool.hpp>

// 12-bit fingerprints (about 1 false positive in 800 lookups), durable in an ordinary file.
using Filter = dunnock::CuckooFilter<12, dunnock::FileMedia>;

dunnock::Status remember(const std::string& path) {
  const bool is_new = !std::filesystem::exists(path);
  auto pool = is_new ? dunnock::Pool::create(path, {.bytes = 64 << 20}) : dunnock::Pool::open(path);
  if (!pool) return tl::unexpected(pool.error());
  if (is_new) {
    auto created = Filter::create(*pool, "seen", {.slots = 1'000'000}, pool->file_media());
    if (!created) return tl::unexpected(created.error());
    created->close();
  }
  auto opened = Filter::open(*pool, "seen", pool->file_media());  // Recovers, should the last run have crashed.
  if (!opened) return tl::unexpected(opened.error());

  Filter& seen = opened->filter;
  fmt::print("robin: {}\n", seen.contains("robin") ? "probably seen before" : "certainly new");
  if (!seen.insert("robin")) fmt::print("the filter is full\n");  // After a true, not even a power cut undoes it.
  fmt::print("{} items\n", seen.size());
  seen.close();  // Optional: saves the next open one count of the table.
  return {};
}
// README]

int main(int argc, char** argv) {
  if (argc != 2) {
    fmt::print(stderr, "usage: dunnock-quickstart POOL_FILE\n");
    return 2;
  }
  const dunnock::Status status = remember(argv[1]);
  if (!status) fmt::print(stderr, "{}: {}\n", dunnock::to_string(status.error().code), status.error().message);
  return status ? 0 : 1;
}
