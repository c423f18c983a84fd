// The shortest program that keeps a filter across restarts: run it twice with the same path.
//
// Not for speed: it inserts one key at a time, and a single insert into an ordinary file waits for the disk.
// insert_bulk shares that wait among many keys; durable_words.cpp shows it.
#include <fmt/core.h>

#include <string>

// [README
#include <dunnock/filter/cuckoo_filter.hpp>

// 12-bit fingerprints (2 false positives in 1000 lookups at a load of 90 %), durable in an ordinary file.
using Filter = dunnock::CuckooFilter<12, dunnock::FileMedia>;

dunnock::Status remember(const std::string& path) {
  // Recovers, should the last run have crashed, whatever it was doing.
  auto opened = Filter::open_or_create(path, "seen", {.slots = 1'000'000});
  if (!opened) return tl::unexpected(opened.error());

  Filter& seen = **opened;
  fmt::print("robin: {}\n", seen.contains("robin") ? "probably seen before" : "certainly new");
  if (!seen.insert("robin")) fmt::print("the filter is full\n");  // After a true, not even a power cut undoes it.
  fmt::print("items: {}\n", seen.size());
  return opened->close();  // Optional: saves the next open one count of the table.
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
