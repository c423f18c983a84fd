#include <string>

#include "dunnock/model/models.hpp"

namespace dunnock::model {

Result<GptOptions> gpt_preset(std::string_view name) {
  // Radford et al. 2019, table 2, with the heads of the published weights.
  struct Preset {
    std::string_view name;
    std::size_t layers, heads, width;
  };
  constexpr Preset kPresets[] = {
      {"gpt2", 12, 12, 768}, {"gpt2-medium", 24, 16, 1024}, {"gpt2-large", 36, 20, 1280}, {"gpt2-xl", 48, 25, 1600}};
  std::string known;
  for (const Preset& preset : kPresets) {
    if (preset.name == name) {
      return GptOptions{
          .vocabulary = 50257, .context = 1024, .layers = preset.layers, .heads = preset.heads, .width = preset.width};
    }
    known += (known.empty() ? "" : ", ") + std::string(preset.name);
  }
  return make_error(ErrorCode::kNotFound, "unknown model '" + std::string(name) + "': expected one of " + known);
}

}  // namespace dunnock::model
