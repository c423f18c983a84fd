#include "dunnock/model/weights_file.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <utility>
#include <variant>

#include "dunnock/base/input_file.hpp"
#include "dunnock/index/checkpoint_files.hpp"
#include "dunnock/model/parameters.hpp"
#include "json.hpp"

namespace dunnock::model {
namespace {

/// Of a half: sign, 5 bits of exponent, 10 of fraction.
float from_half(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  float value = 0;
  if (exponent == 31) {
    value = fraction == 0 ? INFINITY : NAN;
  } else if (exponent == 0) {
    value = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    value = std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -value : value;
}

constexpr std::string_view kTable = "wte.weight";
constexpr std::string_view kHead = "lm_head.weight";

bool is_gpt(const ModelOptions& model) { return std::holds_alternative<GptOptions>(model); }

/// Names of files, on terminals: what is not printable ASCII is written as \\xNN.
std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7F) {
      out.push_back(c);
    } else {
      constexpr std::string_view kDigits = "0123456789ABCDEF";
      out.append("\\x").append(1, kDigits[byte >> 4]).append(1, kDigits[byte & 15]);
    }
  }
  return out;
}

/// The name without what wrappers have put before it and into it: DistributedDataParallel and DataParallel, compile(),
/// FSDP and activation checkpoints anywhere, "model." and "transformer." in front; any number of them, in any order.
/// No model here has a name with such a part.
std::string plain_name(std::string_view name) {
  constexpr std::string_view kWrappers[] = {"module", "_orig_mod", "_fsdp_wrapped_module",
                                            "_checkpoint_wrapped_module"};
  constexpr std::string_view kOuter[] = {"model", "transformer"};
  std::string plain;
  while (!name.empty()) {
    const std::size_t dot = name.find('.');
    const std::string_view part = name.substr(0, dot);
    name.remove_prefix(dot == std::string_view::npos ? name.size() : dot + 1);
    const bool last = dot == std::string_view::npos;
    const bool wrapper = std::ranges::find(kWrappers, part) != std::end(kWrappers) ||
                         (plain.empty() && std::ranges::find(kOuter, part) != std::end(kOuter));
    if (wrapper && !last) continue;
    plain.append(part).append(last ? "" : ".");
  }
  return plain;
}

/// All that is wrong with a file, which is said at once.
class Problems {
 public:
  Problems(std::string path, std::string model) : path_(std::move(path)), model_(std::move(model)) {}
  void add(ErrorCode code, std::string what) {
    code_ = what_.empty() || code_ == code ? code : ErrorCode::kInvalidArgument;
    what_.push_back(std::move(what));
  }
  [[nodiscard]] bool any() const { return !what_.empty(); }
  [[nodiscard]] tl::unexpected<Error> error() const {
    if (what_.size() == 1) return make_error(code_, path_ + " " + what_.front() + " (" + model_ + ")");
    std::string text = path_ + " does not match the " + model_ + ", for " + std::to_string(what_.size()) + " reasons:";
    for (const std::string& one : what_) text += "\n  it " + one;
    return make_error(code_, text);
  }

 private:
  std::string path_;
  std::string model_;
  ErrorCode code_ = ErrorCode::kInvalidArgument;
  std::vector<std::string> what_;
};

struct WeightsFile {
  std::string path;
  SafetensorsFile file;
};

/// A tensor, and where it stands.
struct FileTensor {
  const WeightsFile* file = nullptr;
  const SafetensorsEntry* entry = nullptr;
  bool one_of_many = false;

  [[nodiscard]] std::string words() const {
    const std::string name = "'" + printable(entry->spec.name) + "'";
    return one_of_many ? name + " (in " + std::filesystem::path(file->path).filename().string() + ")" : name;
  }
};

/// The files that an index names, each once. {"weight_map": {tensor: file, ..}, ..}
Result<std::map<std::string, std::string>> read_index(const std::string& path) {
  DUNNOCK_TRY(const auto text, read_file(path));
  const auto wrong = [&path](const std::string& what) {
    return make_error(ErrorCode::kCorrupt, path + " is not an index of safetensors files: " + what);
  };
  const auto json = dunnock::parse_json(text);
  if (!json) return wrong(json.error().message);
  if (!json->is_object()) return wrong("it is not a JSON object");
  const auto map = json->find("weight_map");
  if (map == json->end() || !map->is_object() || map->empty())
    return wrong("it has no \"weight_map\" from tensors to files");
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    const std::string name = "tensor '" + printable(tensor) + "'";
    if (!file.is_string()) return wrong(name + " has no file name");
    const auto& place = file.get_ref<const std::string&>();
    if (place.empty() || place.find('/') != std::string::npos || place == "." || place == ".." ||
        place.find('\0') != std::string::npos)
      return wrong(name + " is in '" + printable(place) + "', which is not a file in the directory of the index");
    files[tensor] = place;
  }
  return files;
}

struct Files {
  std::vector<WeightsFile> all;
  std::map<std::string, std::string> index;  // Tensor: file; empty where there is none.
};

Result<Files> open_indexed(const std::string& path) {
  auto index = read_index(path);
  DUNNOCK_TRY(index);
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  std::set<std::string> names;
  for (const auto& [tensor, file] : *index) names.insert(file);
  Files files;
  for (const std::string& name : names) {
    const std::string place = (folder / name).string();
    auto file = SafetensorsFile::open(place);
    if (!file) return make_error(file.error().code, path + " names " + name + ": " + file.error().message);
    files.all.push_back({place, std::move(*file)});
  }
  files.index = std::move(*index);
  return files;
}

/// The file, those that an index names, or what lies in a folder as save_pretrained() leaves it.
Result<Files> open_files(const std::string& path) {
  std::error_code unseen;  // What can't be looked at can't be opened either, which says why.
  if (std::filesystem::is_directory(path, unseen)) {
    const std::string one = (std::filesystem::path(path) / "model.safetensors").string();
    const std::string index = one + ".index.json";
    const bool has_one = std::filesystem::exists(one, unseen);
    const bool has_index = std::filesystem::exists(index, unseen);
    if (has_one && has_index)
      return make_error(
          ErrorCode::kInvalidArgument,
          path + " has model.safetensors and model.safetensors.index.json: give the path of one of the two");
    if (!has_one && !has_index)
      return make_error(ErrorCode::kNotFound,
                        path + " is a directory without model.safetensors or model.safetensors.index.json");
    return open_files(has_one ? one : index);
  }
  if (path.ends_with(".json")) return open_indexed(path);
  DUNNOCK_TRY(auto file, SafetensorsFile::open(path));
  Files files;
  files.all.push_back({path, std::move(file)});
  return files;
}

/// By their plain names.
std::map<std::string, FileTensor> tensors_of(const Files& files, Problems& problems) {
  std::map<std::string, FileTensor> tensors;
  std::map<std::string, std::string> missing = files.index;
  for (const WeightsFile& file : files.all) {
    const std::string file_name = std::filesystem::path(file.path).filename().string();
    for (const SafetensorsEntry& entry : file.file.header().tensors) {
      const FileTensor tensor{&file, &entry, !files.index.empty()};
      if (!files.index.empty()) {
        const auto named = files.index.find(entry.spec.name);
        if (named == files.index.end()) {
          problems.add(ErrorCode::kInvalidArgument, "does not name " + tensor.words());
        } else if (named->second == file_name) {
          missing.erase(entry.spec.name);
        }
      }
      const auto [place, is_new] = tensors.emplace(plain_name(entry.spec.name), tensor);
      if (!is_new)
        problems.add(ErrorCode::kInvalidArgument, "has the tensor '" + printable(place->first) + "' twice, as " +
                                                      place->second.words() + " and as " + tensor.words());
    }
  }
  for (const auto& [tensor, file] : missing)
    problems.add(ErrorCode::kInvalidArgument,
                 "says that '" + printable(tensor) + "' is in " + printable(file) + ", which does not contain it");
  return tensors;
}

std::string shape_words(const std::vector<std::uint64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

/// A value's place: "[3, 5] (value 773)".
std::string place_words(std::size_t index, const std::vector<std::uint64_t>& shape) {
  std::vector<std::uint64_t> at(shape.size());
  std::uint64_t rest = index;
  for (std::size_t i = shape.size(); i-- > 0;) {
    at[i] = rest % shape[i];
    rest /= shape[i];
  }
  return shape_words(at) + " (index " + std::to_string(index) + ")";
}

void check_tensor(const FileTensor& tensor, const std::vector<std::size_t>& wanted, Problems& problems) {
  const TensorSpec& spec = tensor.entry->spec;
  const std::vector<std::uint64_t> shape(wanted.begin(), wanted.end());
  if (spec.shape != shape) {
    std::string what = "has " + tensor.words() + " of the shape " + shape_words(spec.shape) + ", but the model's is " +
                       shape_words(shape);
    const bool table = shape.size() == 2 && spec.shape.size() == 2 && shape[1] == spec.shape[1] &&
                       (plain_name(spec.name) == kTable || plain_name(spec.name) == kHead);
    if (table) what += ": model.vocabulary=" + std::to_string(spec.shape[0]) + " matches it";
    problems.add(ErrorCode::kInvalidArgument, what);
  }
  if (spec.dtype != Dtype::kF32 && spec.dtype != Dtype::kF16 && spec.dtype != Dtype::kBF16)
    problems.add(ErrorCode::kUnsupported, "has " + tensor.words() + " of the type " + std::string(name_of(spec.dtype)) +
                                              ", but weights must be F32, F16 or BF16");
}

void check_numbers(const FileTensor& tensor, std::span<const float> values, Problems& problems) {
  const auto first = std::ranges::find_if(values, [](float value) { return !std::isfinite(value); });
  if (first == values.end()) return;
  const auto count = std::ranges::count_if(values, [](float value) { return !std::isfinite(value); });
  const auto index = static_cast<std::size_t>(first - values.begin());
  problems.add(ErrorCode::kCorrupt,
               "has " + tensor.words() + " with " +
                   std::string(std::isnan(*first) ? "NaN"
                               : *first > 0       ? "Inf"
                                                  : "-Inf") +
                   " at " + place_words(index, tensor.entry->spec.shape) +
                   (count > 1 ? ", the first of " + std::to_string(count) + " values that are not finite" : ""));
}

/// This model's head is its table. A file whose head is another one is another model's.
void check_tied(const FileTensor& table, std::span<const float> rows, const FileTensor& head,
                std::span<const float> head_rows, Problems& problems) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    // Values that are not finite have been reported before.
    if (rows[i] == head_rows[i] || !std::isfinite(rows[i]) || !std::isfinite(head_rows[i])) continue;
    problems.add(ErrorCode::kInvalidArgument, "has an untied head, but the model's head is its table: " + head.words() +
                                                  " and " + table.words() + " differ, first at " +
                                                  place_words(i, table.entry->spec.shape));
    return;
  }
}

/// What files have besides weights, and what is no weight: masks of GPT-2's attention, counters of batch norms.
bool is_buffer(const std::string& name, const TensorSpec& spec, const ModelOptions& model,
               std::span<const StateTensor> whole) {
  if (const auto* gpt = std::get_if<GptOptions>(&model)) {
    for (std::size_t layer = 0; layer < gpt->layers; ++layer) {
      const std::string attention = "h." + std::to_string(layer) + ".attn.";
      if (name == attention + "masked_bias") return spec.shape.empty() || spec.shape == std::vector<std::uint64_t>{1};
      if (name == attention + "bias")
        return spec.shape.size() == 4 && spec.shape[0] == 1 && spec.shape[1] == 1 && spec.shape[2] == spec.shape[3];
    }
    return false;
  }
  constexpr std::string_view kCounter = "num_batches_tracked";
  if (!name.ends_with(kCounter)) return false;
  const std::string mean = name.substr(0, name.size() - kCounter.size()) + "running_mean";
  return std::ranges::any_of(whole, [&](const StateTensor& tensor) { return tensor.name == mean; });
}

Result<std::vector<float>> read_floats(const FileTensor& tensor) {
  const TensorSpec& spec = tensor.entry->spec;
  const std::size_t bytes = *spec.bytes();
  std::vector<std::byte> raw(bytes);
  if (!tensor.file->file.read(tensor.entry->begin_bytes, raw))
    return make_error(ErrorCode::kIo, tensor.file->path + ": tensor " + tensor.words() + " can't be read");
  std::vector<float> values(bytes / bytes_of(spec.dtype));
  if (spec.dtype == Dtype::kF32) {
    std::memcpy(values.data(), raw.data(), bytes);
    return values;
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, raw.data() + 2 * i, 2);
    values[i] = spec.dtype == Dtype::kF16 ? from_half(bits) : std::bit_cast<float>(std::uint32_t{bits} << 16);
  }
  return values;
}

ParameterSpec order_of(const StateTensor& tensor) {
  return {.name = tensor.name, .shape = tensor.shape, .positions = tensor.positions};
}

bool is_seen(const StateTensor& tensor) {
  return tensor.what == StateTensor::What::kWeight || tensor.what == StateTensor::What::kStatistic;
}

}  // namespace

Result<ReadWeights> read_weights(const ModelOptions& model, std::span<const StateTensor> whole,
                                 const std::string& path) {
  DUNNOCK_TRY(auto files, open_files(path));
  Problems problems(path, to_string(model));
  std::map<std::string, FileTensor> tensors = tensors_of(files, problems);

  ReadWeights read;
  LoadedWeights& loaded = read.loaded;
  for (const WeightsFile& file : files.all) loaded.files.push_back(file.path);
  // A tied pair is one tensor here, and may have either name there.
  std::optional<FileTensor> head;
  if (const auto found = tensors.find(std::string(kHead)); found != tensors.end() && is_gpt(model)) {
    head = found->second;
    tensors.erase(found);
    if (tensors.emplace(std::string(kTable), *head).second) head.reset();
  }
  std::vector<FileTensor> sources(whole.size());
  for (std::size_t i = 0; i < whole.size(); ++i) {
    if (!is_seen(whole[i])) continue;
    const auto found = tensors.find(whole[i].name);
    if (found == tensors.end()) {
      problems.add(ErrorCode::kNotFound, "has no tensor '" + whole[i].name + "'");
      continue;
    }
    sources[i] = found->second;
    check_tensor(sources[i], whole[i].shape, problems);
    if (head && whole[i].name == kTable) check_tensor(*head, whole[i].shape, problems);
    tensors.erase(found);
  }
  for (const auto& [name, tensor] : tensors) {
    if (is_buffer(name, tensor.entry->spec, model, whole)) {
      loaded.left_out.push_back(tensor.entry->spec.name);
    } else {
      problems.add(ErrorCode::kInvalidArgument,
                   "has a tensor " + tensor.words() + ", but the model has no tensor of this name");
    }
  }
  if (problems.any()) return problems.error();

  std::vector<std::vector<float>>& values = read.values;
  values.resize(whole.size());
  for (std::size_t i = 0; i < whole.size(); ++i) {
    if (!is_seen(whole[i])) continue;
    DUNNOCK_TRY(auto seen, read_floats(sources[i]));
    check_numbers(sources[i], seen, problems);
    if (head && whole[i].name == kTable) {
      DUNNOCK_TRY(const auto other, read_floats(*head));
      check_numbers(*head, other, problems);
      check_tied(sources[i], seen, *head, other, problems);
    }
    values[i] = seen;
    if (whole[i].positions > 1) to_lying_order(order_of(whole[i]), seen, values[i]);
  }
  if (problems.any()) return problems.error();
  return read;
}

Status write_weights(std::span<const StateTensor> whole, std::span<const std::vector<float>> values,
                     const std::string& path) {
  std::vector<TensorSpec> specs;
  for (const StateTensor& tensor : whole) {
    if (is_seen(tensor))
      specs.push_back({tensor.name, Dtype::kF32, std::vector<std::uint64_t>(tensor.shape.begin(), tensor.shape.end())});
  }
  const std::array<std::pair<std::string, std::string>, 1> notes{{{"format", "pt"}}};
  auto writer = SafetensorsWriter::create(path, specs, notes);
  DUNNOCK_TRY(writer);
  std::size_t number = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    if (!is_seen(whole[i])) continue;
    std::vector<float> seen(values[i].size());
    if (whole[i].positions > 1) {
      to_seen_order(order_of(whole[i]), values[i], seen);
    } else {
      seen = values[i];
    }
    if (!writer->write(number++, 0, std::as_bytes(std::span(seen))))
      return make_error(ErrorCode::kIo, "tensor '" + whole[i].name + "' can't be written to " + path);
  }
  return writer->commit();
}

}  // namespace dunnock::model
