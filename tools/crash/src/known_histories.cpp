#include "known_histories.hpp"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "dunnock/base/input_file.hpp"
#include "dunnock/base/output_file.hpp"

namespace dunnock::crash {
namespace {

std::string place_of(const Settings& settings) {
  return settings.structure + (settings.media == "memory" ? "" : "." + settings.media);
}

/// The name of a bug in one line of the source, without the number of the line that follows its last colon.
std::string without_line(const std::string& bug) {
  return bug.find(" at ") == std::string::npos ? bug : bug.substr(0, bug.rfind(':'));
}

}  // namespace

Result<KnownHistories> KnownHistories::read(const std::string& path, bool may_be_missing) {
  KnownHistories known;
  const Result<std::string> text = read_file(path);
  if (!text && text.error().code == ErrorCode::kNotFound && may_be_missing) return known;
  if (!text) return tl::unexpected(text.error());
  const auto parsed = nlohmann::json::parse(*text, nullptr, false);
  const auto wrong = [&](const std::string& what) {
    return make_error(ErrorCode::kInvalidArgument, path + " is not a file of known histories: " + what);
  };
  if (parsed.is_discarded() || !parsed.is_object()) return wrong("it is not a JSON object");
  for (const auto& [place, bugs] : parsed.items()) {
    if (!bugs.is_object()) return wrong("'" + place + "' is not an object");
    for (const auto& [bug, seed] : bugs.items()) {
      if (!seed.is_number_unsigned()) return wrong("the seed of '" + bug + "' is not a whole number");
      known.seeds_[place][bug] = seed.get<std::uint64_t>();
    }
  }
  return known;
}

Status KnownHistories::write(const std::string& path) const {
  return write_output_file(path, nlohmann::json(seeds_).dump(1) + "\n");
}

std::vector<std::uint64_t> KnownHistories::of(const Settings& settings, const std::string& bug) const {
  const auto place = seeds_.find(place_of(settings));
  if (place == seeds_.end()) return {};
  if (const auto exactly = place->second.find(bug); exactly != place->second.end()) return {exactly->second};
  std::set<std::uint64_t> seeds;
  for (const auto& [other, seed] : place->second) {
    if (without_line(other) == without_line(bug)) seeds.insert(seed);
  }
  return {seeds.begin(), seeds.end()};
}

std::vector<std::uint64_t> KnownHistories::all_of(const Settings& settings) const {
  const auto place = seeds_.find(place_of(settings));
  if (place == seeds_.end()) return {};
  std::set<std::uint64_t> seeds;
  for (const auto& [bug, seed] : place->second) seeds.insert(seed);
  return {seeds.begin(), seeds.end()};
}

void KnownHistories::forget(const Settings& settings) { seeds_.erase(place_of(settings)); }

void KnownHistories::learn(const Settings& settings, const std::string& bug, std::uint64_t seed) {
  seeds_[place_of(settings)][bug] = seed;
}

}  // namespace dunnock::crash
