// Which files of the layers include which, and whether there are cycles. `#pragma once` lets a cycle compile, but then
// a header sees of another what happens to stand before the include.
#pragma once

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "tidy/rules.hpp"

namespace dunnock::tidy {

/// By file: the files that it includes, of the layers.
using Includes = std::map<std::string, std::set<std::string>>;

/// The file of a layer that `#include "name"` in `from` means; empty: none.
[[nodiscard]] inline std::string included_file(const std::set<std::string>& files, const std::string& from,
                                               const std::string& name) {
  for (const Layer& layer : kLayers) {
    if (const std::string place = std::string(layer.folder) + "/include/" + name; files.contains(place)) return place;
  }
  const Layer* const own = layer_of(from);
  for (const std::string& folder :
       {std::filesystem::path(from).parent_path().generic_string(), std::string(own->folder) + "/src"}) {
    if (files.contains(folder + "/" + name)) return folder + "/" + name;
  }
  return {};
}

[[nodiscard]] inline Includes includes_of(const std::filesystem::path& root, const std::vector<std::string>& files) {
  constexpr std::string_view kBegin = "#include \"";
  const std::set<std::string> all(files.begin(), files.end());
  Includes includes;
  for (const std::string& file : files) {
    if (layer_of(file) == nullptr || !is_cpp(file)) continue;
    std::set<std::string>& own = includes[file];
    const std::string text = read(root / file);
    for (const std::string_view line : lines_of(text)) {
      if (!line.starts_with(kBegin)) continue;
      const std::string_view name = line.substr(kBegin.size(), line.find('"', kBegin.size()) - kBegin.size());
      if (std::string other = included_file(all, file, std::string(name)); !other.empty()) own.insert(std::move(other));
    }
  }
  return includes;
}

/// The files along a cycle, the first of them once more at the end; empty: there is none.
[[nodiscard]] inline std::vector<std::string> cycle_in(const Includes& includes) {
  std::set<std::string> done;
  std::vector<std::string> way;
  std::vector<std::string> cycle;
  const auto visit = [&](const auto& self, const std::string& file) -> bool {
    if (const auto on_way = std::ranges::find(way, file); on_way != way.end()) {
      cycle.assign(on_way, way.end());
      cycle.push_back(file);
      return true;
    }
    if (!done.insert(file).second) return false;
    way.push_back(file);
    if (const auto found = includes.find(file); found != includes.end()) {
      for (const std::string& next : found->second) {
        if (self(self, next)) return true;
      }
    }
    way.pop_back();
    return false;
  };
  for (const auto& [file, others] : includes) {
    if (visit(visit, file)) break;
  }
  return cycle;
}

}  // namespace dunnock::tidy
