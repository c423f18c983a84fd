// What libpmemobj holds in a pool file, whatever the catalog says: to find leaks.
#pragma once

#include <libpmemobj.h>

#include <cstddef>
#include <string>

namespace dunnock::test {

/// The number of allocations in a closed pool. The pool can't be opened as a pool any more afterwards: its seal is
/// broken.
inline std::size_t objects_in(const std::string& path) {
  PMEMobjpool* const pool = pmemobj_open(path.c_str(), "dunnock");
  if (pool == nullptr) return ~std::size_t{0};
  std::size_t objects = 0;
  for (PMEMoid oid = pmemobj_first(pool); oid.off != 0; oid = pmemobj_next(oid)) ++objects;
  pmemobj_close(pool);
  return objects;
}

}  // namespace dunnock::test
