#include "structures.hpp"

#include <algorithm>

namespace dunnock::crash {

const std::vector<Structure>& structures() {
  static const std::vector<Structure> kAll = {
#define DUNNOCK_STRUCTURE(name) name##_structure(),
#include "structures.inc"
#undef DUNNOCK_STRUCTURE
  };
  return kAll;
}

const Structure* find_structure(std::string_view name) {
  const std::vector<Structure>& all = structures();
  const auto found = std::find_if(all.begin(), all.end(), [&](const Structure& one) { return one.name == name; });
  return found == all.end() ? nullptr : &*found;
}

std::string names_of_structures() {
  std::string names;
  const std::vector<Structure>& all = structures();
  for (std::size_t i = 0; i < all.size(); ++i) {
    names += i == 0 ? "" : i + 1 == all.size() ? " or " : ", ";
    names += all[i].name;
  }
  return names;
}

}  // namespace dunnock::crash
