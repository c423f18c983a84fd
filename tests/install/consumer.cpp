// The smallest user of an installed dunnock.
#include <dunnock/filter/cuckoo_filter.hpp>

#include <cstdio>

int main() {
  auto filter = dunnock::CuckooFilter<12, dunnock::DramMedia>::create_volatile({.slots = 1000});
  if (!filter || !filter->insert(7)) return 1;
  std::printf("found %d\n", filter->contains(7) ? 1 : 0);
  return 0;
}
