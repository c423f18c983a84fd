#include "dunnock/index/safetensors.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "dunnock/base/printable.hpp"

namespace dunnock {
namespace {

using Json = nlohmann::json;
constexpr std::string_view kNotes = "__metadata__";

tl::unexpected<Error> corrupt(const std::string& what) {
  return make_error(ErrorCode::kCorrupt, "not a safetensors header: " + what);
}

/// Watches the parser for what the finished value does not show any more: names that occur twice, and depth.
class Watch {
 public:
  bool operator()(int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kDepthMost) too_deep_ = true;
    if (event == Json::parse_event_t::object_start) names_.emplace_back();
    if (event == Json::parse_event_t::object_end && !names_.empty()) names_.pop_back();
    if (event == Json::parse_event_t::key && !names_.empty()) {
      if (!names_.back().insert(parsed.get<std::string>()).second && twice_.empty()) twice_ = parsed.get<std::string>();
    }
    return !too_deep_;
  }
  [[nodiscard]] const std::string& twice() const { return twice_; }
  [[nodiscard]] bool too_deep() const { return too_deep_; }

 private:
  static constexpr int kDepthMost = 100;  // Members that we do not know may hold anything.
  std::vector<std::set<std::string>> names_;
  std::string twice_;
  bool too_deep_ = false;
};

/// Whether its elements can be counted from the left in 64 bits: other readers do so, even where one length is 0.
bool countable(const std::vector<std::uint64_t>& shape) {
  std::uint64_t elements = 1;
  for (const std::uint64_t length : shape) {
    if (__builtin_mul_overflow(elements, length, &elements)) return false;
  }
  return true;
}

Result<SafetensorsEntry> parse_entry(const std::string& name, const Json& json) {
  const auto wrong = [&name](const char* what) { return corrupt("tensor '" + printable(name) + "' " + what); };
  if (!json.is_object()) return wrong("is not an object");
  const auto dtype = json.find("dtype");
  const auto shape = json.find("shape");
  const auto offsets = json.find("data_offsets");
  if (dtype == json.end() || !dtype->is_string()) return wrong("has no dtype");
  if (shape == json.end() || !shape->is_array()) return wrong("has no shape");
  if (offsets == json.end() || !offsets->is_array() || offsets->size() != 2) return wrong("has no data_offsets");
  SafetensorsEntry entry;
  entry.spec.name = name;
  const auto known = dtype_of(dtype->get<std::string>());
  if (!known)
    return make_error(ErrorCode::kUnsupported, "tensor '" + printable(name) + "' has the unknown dtype '" +
                                                   printable(dtype->get<std::string>()) + "'");
  entry.spec.dtype = *known;
  if (shape->size() > 255) return wrong("has more than 255 dimensions");
  for (const Json& length : *shape) {
    if (!length.is_number_unsigned()) return wrong("has a shape that is not of whole numbers");
    entry.spec.shape.push_back(length.get<std::uint64_t>());
  }
  if (!countable(entry.spec.shape)) return wrong("has a shape that is too large");
  for (const Json& offset : *offsets) {
    if (!offset.is_number_unsigned()) return wrong("has offsets that are not whole numbers");
  }
  entry.begin_bytes = (*offsets)[0].get<std::uint64_t>();
  const auto end = (*offsets)[1].get<std::uint64_t>();
  const auto bytes = entry.spec.bytes();
  if (!bytes) return wrong("is too large or does not fill whole bytes");
  if (end < entry.begin_bytes || end - entry.begin_bytes != *bytes)
    return wrong("has offsets that do not match its shape");
  return entry;
}

}  // namespace

Result<SafetensorsHeader> parse_safetensors_header(std::span<const std::byte> json, std::uint64_t data_bytes) {
  if (json.size() > kSafetensorsHeaderBytesMax) return corrupt("it has more than 100 MB");
  if (json.empty() || json[0] != std::byte{'{'}) return corrupt("it does not begin with {");
  // The parser would take it for the end, and what follows it would be nobody's.
  if (std::find(json.begin(), json.end(), std::byte{0}) != json.end()) return corrupt("it contains a NUL byte");
  Watch watch;
  const auto* text = reinterpret_cast<const char*>(json.data());
  const Json parsed = Json::parse(
      text, text + json.size(),
      [&watch](int depth, Json::parse_event_t event, Json& value) { return watch(depth, event, value); }, false);
  if (watch.too_deep()) return corrupt("it is nested too deeply");
  if (parsed.is_discarded() || !parsed.is_object()) return corrupt("it is not a valid JSON object");
  if (!watch.twice().empty()) return corrupt("the name '" + printable(watch.twice()) + "' occurs twice");

  SafetensorsHeader header;
  header.data_bytes = data_bytes;
  for (const auto& [name, value] : parsed.items()) {
    if (name == kNotes) {
      if (value.is_null()) continue;  // Other readers take it for none.
      if (!value.is_object()) return corrupt("__metadata__ is not an object");
      for (const auto& [key, note] : value.items()) {
        if (!note.is_string()) return corrupt("__metadata__ has a value that is not text");
        header.notes.emplace_back(key, note.get<std::string>());
      }
      continue;
    }
    DUNNOCK_TRY(auto entry, parse_entry(name, value));
    header.tensors.push_back(std::move(entry));
  }
  std::sort(header.tensors.begin(), header.tensors.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    const std::uint64_t a_bytes = a.spec.bytes().value_or(0), b_bytes = b.spec.bytes().value_or(0);
    return std::tie(a.begin_bytes, a_bytes, a.spec.name) < std::tie(b.begin_bytes, b_bytes, b.spec.name);
  });
  std::uint64_t at = 0;
  for (const SafetensorsEntry& entry : header.tensors) {
    if (entry.begin_bytes != at)
      return corrupt("tensor '" + printable(entry.spec.name) + "' does not begin where the previous tensor ends");
    at += entry.spec.bytes().value_or(0);
    if (at > data_bytes) return corrupt("tensor '" + printable(entry.spec.name) + "' ends after the end of the file");
  }
  if (at != data_bytes) return corrupt(std::to_string(data_bytes - at) + " bytes follow the last tensor");
  return header;
}

Result<std::string> safetensors_header(std::span<const TensorSpec> tensors,
                                       std::span<const std::pair<std::string, std::string>> notes) {
  const auto refuse = [](const std::string& what) { return make_error(ErrorCode::kInvalidArgument, what); };
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (!notes.empty()) {
    auto& all = json[std::string(kNotes)];
    for (const auto& [key, value] : notes) all[key] = value;
  }
  std::uint64_t at = 0;
  std::set<std::string_view> names;
  for (const TensorSpec& spec : tensors) {
    const auto bytes = spec.bytes();
    if (!bytes) return refuse("tensor '" + printable(spec.name) + "' is too large or does not fill whole bytes");
    if (at > ~0ULL / 2 - *bytes) return refuse("the tensors are too large for one file");
    if (!countable(spec.shape)) return refuse("tensor '" + printable(spec.name) + "' has a shape that is too large");
    if (spec.name == kNotes || !names.insert(spec.name).second)
      return refuse("the tensor name '" + printable(spec.name) + "' is reserved or occurs twice");
    json[spec.name] = {{"dtype", name_of(spec.dtype)}, {"shape", spec.shape}, {"data_offsets", {at, at + *bytes}}};
    at += *bytes;
  }
  std::string text;
  try {
    text = json.dump();
  } catch (const nlohmann::json::type_error&) {
    return refuse("a name or a note is not valid UTF-8");
  }
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > kSafetensorsHeaderBytesMax) return refuse("the header would have more than 100 MB");
  const std::uint64_t length = text.size();
  std::string header(sizeof length, '\0');
  std::memcpy(header.data(), &length, sizeof length);
  return header + text;
}

}  // namespace dunnock
