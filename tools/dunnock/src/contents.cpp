#include "contents.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <set>

#include "dunnock/filter/format.hpp"
#include "dunnock/index/index_format.hpp"

namespace dunnock::tool {

std::string_view to_string(Kind kind) noexcept {
  switch (kind) {
    case Kind::kFilter: return "filter";
    case Kind::kIndex: return "index";
    case Kind::kLog: return "log";
    case Kind::kStore: return "store";
    case Kind::kCheckpoints: return "checkpoints";
  }
  return "?";
}

Contents contents_of(const Pool& pool) {
  Contents contents;
  const std::vector<RegionInfo> regions = pool.regions();
  const auto there = [&regions](const std::string& name) {
    return std::any_of(regions.begin(), regions.end(), [&name](const RegionInfo& one) { return one.name == name; });
  };
  std::set<std::string> used;
  // Bytes of a structure, by what its regions' names end with.
  const auto take = [&](const std::string& name, std::initializer_list<std::string_view> ends) {
    std::uint64_t bytes = 0;
    for (const RegionInfo& region : regions) {
      const bool mine = std::any_of(ends.begin(), ends.end(),
                                    [&](std::string_view end) { return region.name == name + std::string(end); });
      const bool segment = region.name.starts_with(name + ".s") && there(name + ".meta") &&
                           region.name.find_first_not_of("0123456789", name.size() + 2) == std::string::npos;
      if ((mine || segment) && used.insert(region.name).second) bytes += region.bytes;
    }
    return bytes;
  };
  const auto name_before = [](const std::string& region, std::string_view end) {
    return region.ends_with(end) ? region.substr(0, region.size() - end.size()) : std::string();
  };
  for (const RegionInfo& region : regions) {
    const std::string name = name_before(region.name, ".catalog");
    if (name.empty() || !there(name + ".data.meta") || !there(name + ".data.log")) continue;
    std::uint64_t bytes = take(name, {".catalog"});
    bytes += take(name + ".data", {".meta", ".log", ".logmeta"});
    contents.structures.push_back({name, Kind::kCheckpoints, bytes});
  }
  for (const RegionInfo& region : regions) {
    const std::string name = name_before(region.name, ".meta");
    if (name.empty() || used.contains(region.name)) continue;
    const auto meta = pool.open_region(region.name);
    std::uint64_t magic = 0;
    if (meta && meta->bytes() >= sizeof magic) std::memcpy(&magic, meta->at(0), sizeof magic);
    if (there(name + ".table")) {
      contents.structures.push_back({name, Kind::kFilter, take(name, {".meta", ".table"})});
    } else if (magic == kIndexMagic || there(name + ".s0")) {
      const bool with_log = there(name + ".log") && there(name + ".logmeta");
      const std::uint64_t bytes = with_log ? take(name, {".meta", ".log", ".logmeta"}) : take(name, {".meta"});
      contents.structures.push_back({name, with_log ? Kind::kStore : Kind::kIndex, bytes});
    }
  }
  for (const RegionInfo& region : regions) {
    const std::string name = name_before(region.name, ".log");
    if (name.empty() || used.contains(region.name) || !there(name + ".logmeta")) continue;
    contents.structures.push_back({name, Kind::kLog, take(name, {".log", ".logmeta"})});
  }
  std::sort(contents.structures.begin(), contents.structures.end(),
            [](const Structure& a, const Structure& b) { return a.name < b.name; });
  for (const RegionInfo& region : regions) {
    if (!used.contains(region.name)) contents.unfinished.push_back(region);
  }
  return contents;
}

Result<Structure> find_structure(const Pool& pool, std::string_view name, std::vector<Kind> kinds) {
  std::string wanted;
  for (const Kind kind : kinds) wanted += (wanted.empty() ? "" : " or ") + std::string(to_string(kind));
  std::vector<Structure> fitting;
  for (Structure& one : contents_of(pool).structures) {
    if (one.name == name && std::find(kinds.begin(), kinds.end(), one.kind) == kinds.end())
      return make_error(ErrorCode::kInvalidArgument, "'" + one.name + "' is a " + std::string(to_string(one.kind)) +
                                                         ", but this command needs a " + wanted);
    if ((name.empty() || one.name == name) && std::find(kinds.begin(), kinds.end(), one.kind) != kinds.end())
      fitting.push_back(std::move(one));
  }
  if (fitting.empty())
    return make_error(ErrorCode::kNotFound,
                      pool.path() + " has no " + wanted + (name.empty() ? "" : " '" + std::string(name) + "'"));
  if (fitting.size() > 1)
    return make_error(ErrorCode::kInvalidArgument, pool.path() + " has more than one " + wanted + ": give the name ('" +
                                                       fitting[0].name + "', '" + fitting[1].name + "'" +
                                                       (fitting.size() > 2 ? ", ...)" : ")"));
  return fitting.front();
}

std::uint64_t segment_bytes_for(std::uint64_t capacity_bytes, std::uint64_t least) noexcept {
  const std::uint64_t wanted = std::clamp<std::uint64_t>(capacity_bytes / 32, 1 << 20, 32 << 20);
  return std::bit_ceil(std::max(std::bit_floor(wanted), least));
}

std::string human_bytes(std::uint64_t bytes) {
  constexpr std::array units{"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1024 && unit + 1 < units.size(); ++unit) value /= 1024;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, units[unit]);
}

}  // namespace dunnock::tool
