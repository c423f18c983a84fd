// Fuzzes configs of dunnock-train: a TOML file and overrides, each after a byte 0. Whatever the bytes are, the answer
// is an error with words or a config that is written and read back equal.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "config.hpp"
#include "dunnock/training/schedules.hpp"

// One name of each family, so that neither the schedules nor the device layer need be built here.
const std::vector<dunnock::training::ScheduleName>& dunnock::training::schedule_names() {
  static const std::vector<ScheduleName> names = {{"conventional", Family::kOneDevice, ""},
                                                  {"overlap", Family::kDataParallel, ""},
                                                  {"gpipe", Family::kPipeline, ""}};
  return names;
}

namespace {

void require(bool sound) {
  if (!sound) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace dunnock::train;
  const std::string all(reinterpret_cast<const char*>(data), size);
  std::vector<std::string> parts(1);
  for (const char c : all) {
    if (c == '\0') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  const auto loaded = parse_config(parts[0], "a.toml", std::span(parts).subspan(1));
  if (!loaded) {
    require(!loaded.error().message.empty());
    return 0;
  }
  const std::string text = to_toml(loaded->config);
  const auto again = parse_config(text, "b.toml");
  require(again && again->config == loaded->config);
  require(to_toml(again->config) == text);
  require(identity_of(again->config) == identity_of(loaded->config));
  (void)check_ready(*loaded);
  return 0;
}
