// The smallest user of an installed dunnock: a template of each layer, and what is compiled into its libraries.
#include <dunnock/filter/cuckoo_filter.hpp>
#include <dunnock/index/checkpoint_saver.hpp>
#include <dunnock/index/kv_index.hpp>
#include <dunnock/index/prefix_store.hpp>
#include <dunnock/index/safetensors.hpp>

#include <cstdio>

int main() {
  auto filter = dunnock::CuckooFilter<12, dunnock::DramMedia>::create_volatile({.slots = 1000});
  if (!filter || !filter->insert(7)) return 1;
  auto index = dunnock::KvIndex<dunnock::DramMedia>::create_volatile({});
  const dunnock::IndexKey key = dunnock::IndexKey::of("key");
  if (!index || index->put(key, dunnock::IndexValue::of(7)) != dunnock::PutResult::kInserted) return 1;
  if (index->get(key).value.number() != 7) return 1;
  if (dunnock::CheckpointStore<dunnock::FileMedia>::pool_bytes({.capacity_bytes = 1 << 20}) == 0) return 1;
  std::printf("found %d\n", filter->contains(7) ? 1 : 0);
  return 0;
}
