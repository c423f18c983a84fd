#include "json.hpp"

#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

namespace dunnock {
namespace {

using Json = nlohmann::json;

constexpr int kDepthMax = 64;

/// Names that occur twice in an object, of which nlohmann's parser keeps the last; and too deep nesting.
class Watch {
 public:
  bool operator()(int depth, Json::parse_event_t event, const Json& parsed) {
    too_deep_ = too_deep_ || depth > kDepthMax;
    if (event == Json::parse_event_t::object_start) names_.emplace_back();
    if (event == Json::parse_event_t::object_end && !names_.empty()) names_.pop_back();
    if (event == Json::parse_event_t::key && !names_.empty()) {
      const auto& name = parsed.get_ref<const std::string&>();
      if (!names_.back().insert(name).second && twice_.empty()) twice_ = "the name '" + name + "' occurs twice in it";
    }
    return true;
  }
  [[nodiscard]] bool too_deep() const { return too_deep_; }
  [[nodiscard]] const std::string& twice() const { return twice_; }

 private:
  std::vector<std::unordered_set<std::string>> names_;  // Of the objects that are open.
  std::string twice_;
  bool too_deep_ = false;
};

/// Only where the first mistake is.
class Place : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return true; }
  bool boolean(bool /*value*/) override { return true; }
  bool number_integer(number_integer_t /*value*/) override { return true; }
  bool number_unsigned(number_unsigned_t /*value*/) override { return true; }
  bool number_float(number_float_t /*value*/, const string_t& /*text*/) override { return true; }
  bool string(string_t& /*value*/) override { return true; }
  bool binary(binary_t& /*value*/) override { return true; }
  bool start_object(std::size_t /*elements*/) override { return true; }
  bool key(string_t& /*name*/) override { return true; }
  bool end_object() override { return true; }
  bool start_array(std::size_t /*elements*/) override { return true; }
  bool end_array() override { return true; }
  bool parse_error(std::size_t at, const std::string& /*token*/, const Json::exception& /*why*/) override {
    byte = at;
    return false;
  }
  std::size_t byte = 0;
};

tl::unexpected<Error> corrupt(std::string what) { return make_error(ErrorCode::kCorrupt, std::move(what)); }

}  // namespace

Result<Json> parse_json(std::string_view text) {
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos)
    return corrupt("it is not valid JSON: byte " + std::to_string(nul) + " is NUL");
  Watch watch;
  Json parsed = Json::parse(
      text.begin(), text.end(),
      [&watch](int depth, Json::parse_event_t event, const Json& value) { return watch(depth, event, value); }, false);
  if (parsed.is_discarded()) {
    Place place;
    (void)Json::sax_parse(text.begin(), text.end(), &place);
    return corrupt("it is not valid JSON: the first error is at byte " + std::to_string(place.byte));
  }
  if (watch.too_deep()) return corrupt("it is nested more than " + std::to_string(kDepthMax) + " levels deep");
  if (!watch.twice().empty()) return corrupt(watch.twice());
  return parsed;
}

}  // namespace dunnock
