#include "dunnock/pmem/named_regions.hpp"

namespace dunnock::detail {

std::string about(std::string_view kind, std::string_view name, const Pool& pool) {
  return std::string(kind) + " '" + std::string(name) + "' in " + pool.path();
}

Status check_agreed(const std::string& about, std::span<const Agreed> all) {
  for (const Agreed& one : all) {
    if (one.has != one.asked)
      return make_error(ErrorCode::kWrongLayout, about + " was created with " + std::string(one.what) + " " +
                                                     std::to_string(one.has) + ", not " + std::to_string(one.asked));
  }
  return {};
}

Result<std::vector<std::string>> left_over_regions(
    const Pool& pool, std::span<const std::string> names,
    const std::function<bool(const std::string& name, const Region& region)>& holds_nothing) {
  std::vector<std::string> left;
  for (const std::string& name : names) {
    const auto there = pool.open_region(name);
    if (!there && there.error().code == ErrorCode::kNotFound) continue;
    DUNNOCK_TRY(there);
    if (!holds_nothing(name, *there))
      return make_error(ErrorCode::kAlreadyExists, "region '" + name + "' already exists in " + pool.path());
    left.push_back(name);
  }
  return left;
}

tl::unexpected<Error> never_finished(const std::string& about) {
  return make_error(ErrorCode::kNotFound, "the creation of " + about + " was interrupted by a crash");
}

}  // namespace dunnock::detail
