#include "dunnock/training/weights_file.hpp"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <string_view>
#include <utility>

#include "dunnock/gpu/bf16.hpp"
#include "dunnock/index/checkpoint_files.hpp"

namespace dunnock::training {
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

std::string_view without_prefix(std::string_view name) {
  for (const std::string_view prefix : {std::string_view("transformer."), std::string_view("model.")}) {
    if (name.starts_with(prefix)) return name.substr(prefix.size());
  }
  return name;
}

Result<std::vector<float>> read_floats(const SafetensorsFile& file, const SafetensorsEntry& entry) {
  const std::size_t bytes = *entry.spec.bytes();
  std::vector<std::byte> raw(bytes);
  if (!file.read(entry.begin_bytes, raw))
    return make_error(ErrorCode::kIo, "tensor '" + entry.spec.name + "' can't be read");
  std::vector<float> values(bytes / bytes_of(entry.spec.dtype));
  switch (entry.spec.dtype) {
    case Dtype::kF32: std::memcpy(values.data(), raw.data(), bytes); return values;
    case Dtype::kF16:
    case Dtype::kBF16: break;
    default:
      return make_error(ErrorCode::kUnsupported, "tensor '" + entry.spec.name + "' is " +
                                                     std::string(name_of(entry.spec.dtype)) +
                                                     ": weights are F32, F16 or BF16");
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, raw.data() + 2 * i, 2);
    values[i] = entry.spec.dtype == Dtype::kF16 ? from_half(bits) : std::bit_cast<float>(std::uint32_t{bits} << 16);
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

Status load_weights(Trainer& trainer, const std::string& path) {
  const auto file = SafetensorsFile::open(path);
  if (!file) return tl::unexpected(file.error());
  const std::vector<StateTensor> whole = trainer.whole_state();
  std::vector<std::vector<float>> values(whole.size());
  for (std::size_t i = 0; i < whole.size(); ++i) {
    if (!is_seen(whole[i])) continue;
    const SafetensorsEntry* entry = nullptr;
    for (const SafetensorsEntry& one : file->header().tensors) {
      if (without_prefix(one.spec.name) == whole[i].name) entry = &one;
    }
    if (entry == nullptr) return make_error(ErrorCode::kNotFound, path + " has no tensor '" + whole[i].name + "'");
    const std::vector<std::uint64_t> shape(whole[i].shape.begin(), whole[i].shape.end());
    if (entry->spec.shape != shape) {
      const TensorSpec wanted{entry->spec.name, entry->spec.dtype, shape};
      return make_error(ErrorCode::kInvalidArgument, "tensor '" + entry->spec.name + "' of " + path + " is " +
                                                         describe(entry->spec) + ", and the model's is " +
                                                         describe(wanted));
    }
    auto seen = read_floats(*file, *entry);
    if (!seen) return tl::unexpected(seen.error());
    values[i] = *seen;
    if (whole[i].positions > 1) to_lying_order(order_of(whole[i]), *seen, values[i]);
  }
  return trainer.load(values);
}

Status save_weights(Trainer& trainer, const std::string& path) {
  const std::vector<StateTensor> whole = trainer.whole_state();
  auto values = trainer.gather();
  if (!values) return tl::unexpected(values.error());
  if (values->empty()) return {};  // Another rank's matter.
  std::vector<TensorSpec> specs;
  for (const StateTensor& tensor : whole) {
    if (is_seen(tensor))
      specs.push_back({tensor.name, Dtype::kF32, std::vector<std::uint64_t>(tensor.shape.begin(), tensor.shape.end())});
  }
  const std::array<std::pair<std::string, std::string>, 1> notes{{{"format", "pt"}}};
  auto writer = SafetensorsWriter::create(path, specs, notes);
  if (!writer) return tl::unexpected(writer.error());
  std::size_t number = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    if (!is_seen(whole[i])) continue;
    std::vector<float> seen((*values)[i].size());
    if (whole[i].positions > 1) {
      to_seen_order(order_of(whole[i]), (*values)[i], seen);
    } else {
      seen = (*values)[i];
    }
    if (!writer->write(number++, 0, std::as_bytes(std::span(seen))))
      return make_error(ErrorCode::kIo, "tensor '" + whole[i].name + "' can't be written to " + path);
  }
  return writer->commit();
}

}  // namespace dunnock::training
