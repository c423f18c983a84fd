// KvStore: a small key-value program on a KvIndex and a ValueLog: values of any size, verified when they are read.
//
//   dunnock-value-store POOL_FILE put KEY < VALUE     get KEY > VALUE     erase KEY     stats
//
// A value of more than 16 bytes is in the log, after a header with its key, length and checksum; the index has its
// locator. What is replaced or erased is collected when space runs out.
#include <fmt/core.h>

#include <cstdio>
#include <iostream>
#include <iterator>
#include <string>
#include <string_view>

#include <dunnock/index/kv_store.hpp>

namespace {

using Store = dunnock::KvStore<dunnock::FileMedia>;

constexpr std::uint64_t kCapacityBytes = 64 << 20;

int put(Store& store, const dunnock::IndexKey& key) {
  const std::string value(std::istreambuf_iterator<char>(std::cin), {});
  const dunnock::PutResult result = store.put(key, std::as_bytes(std::span(value)));
  if (result == dunnock::PutResult::kFull)
    fmt::print(stderr, "there is no room for {} bytes; what was there is there still\n", value.size());
  if (result == dunnock::PutResult::kIo) fmt::print(stderr, "{}\n", store.status().error().message);
  return result == dunnock::PutResult::kInserted || result == dunnock::PutResult::kReplaced ? 0 : 1;
}

int get(const Store& store, const dunnock::IndexKey& key) {
  const dunnock::KvValue<dunnock::FileMedia> value = store.get(key);
  if (value.state == dunnock::GetState::kDamaged) {
    fmt::print(stderr, "the value is damaged\n");  // Bytes that fail their checksum are never handed out.
    return 1;
  }
  if (value.state == dunnock::GetState::kIo) {
    fmt::print(stderr, "{}\n", store.status().error().message);
    return 1;
  }
  if (!value) {
    fmt::print(stderr, "the key does not exist\n");
    return 1;
  }
  std::fwrite(value.bytes().data(), 1, value.bytes().size(), stdout);  // They stay while `value` lives.
  return 0;
}

int erase(Store& store, const dunnock::IndexKey& key) {
  if (store.erase(key)) return 0;
  fmt::print(stderr, "the key does not exist\n");
  return 1;
}

int stats(const Store& store) {
  const dunnock::StoreStats stats = store.stats();
  fmt::print("{} values, {} of {} log segments free\n", stats.index.entries, stats.log.segments_free,
             stats.log.segments);
  return 0;
}

int fail(const dunnock::Error& error) {
  fmt::print(stderr, "{}: {}\n", dunnock::to_string(error.code), error.message);
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view command = argc > 2 ? argv[2] : "";
  const bool with_key = command == "put" || command == "get" || command == "erase";
  if (argc != (with_key ? 4 : 3) || (!with_key && command != "stats")) {
    fmt::print(stderr, "usage: dunnock-value-store POOL_FILE put KEY < VALUE | get KEY | erase KEY | stats\n");
    return 2;
  }
  const std::string path = argv[1];
  auto opened = Store::open_or_create(path, "values", {.index = {}, .log = {.capacity_bytes = kCapacityBytes}});
  if (!opened) return fail(opened.error());

  Store& store = **opened;
  const dunnock::IndexKey key = dunnock::IndexKey::of(with_key ? argv[3] : "");
  int status = 0;
  if (command == "put") status = put(store, key);
  if (command == "get") status = get(store, key);
  if (command == "erase") status = erase(store, key);
  if (command == "stats") status = stats(store);
  if (const dunnock::Status closed = opened->close(); !closed) return fail(closed.error());
  return status;
}
