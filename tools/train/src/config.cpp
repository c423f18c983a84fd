#include "config.hpp"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <concepts>
#include <filesystem>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <type_traits>
#include <utility>

#include "dunnock/base/check.hpp"
#include "dunnock/base/input_file.hpp"
#include "dunnock/training/schedules.hpp"

// Errors as values, as everywhere here. In release builds toml++ 3.3 tells the compiler to assume what it asserts, but
// a file may say otherwise ("[=" begins no key, found by tests/fuzz). Where an assertion is nothing, its code goes on
// to find the error.
#pragma push_macro("NDEBUG")
#undef NDEBUG
#define TOML_EXCEPTIONS 0
#define TOML_ASSERT(condition) static_cast<void>(0)
#include <toml++/toml.h>
#pragma pop_macro("NDEBUG")

namespace dunnock::train {
namespace {

using data::Order;
using training::RateSchedule;
using TokenFormat = data::TokenFile::Format;
using Names = std::span<const std::string_view>;
using namespace std::string_view_literals;

// ----- words --------------------------------------------------------------------------------------------------------

// The names of each enumeration, in its order.
constexpr std::array kModelKinds = {"gpt"sv, "mlp"sv, "cnn"sv, "resnet"sv, "densenet"sv};
constexpr std::array kDataTypes = {"f32"sv, "bf16"sv};
constexpr std::array kPositions = {"learned"sv, "rotary"sv};
constexpr std::array kPresets = {""sv, "gpt2"sv, "gpt2-medium"sv, "gpt2-large"sv, "gpt2-xl"sv};
constexpr std::array kStems = {"small"sv, "large"sv};
constexpr std::array kTokenizers = {"bytes"sv, "gpt2"sv, "llama2c"sv};
constexpr std::array kOptimizers = {"adamw"sv, "sgd"sv};
constexpr std::array kDevices = {"cpu"sv, "cuda"sv};
constexpr std::array kTokenFormats = {"dunnock"sv, "raw16"sv, "raw32"sv, "llm.c"sv};
constexpr std::array kOrders = {"sequential"sv, "shuffled"sv, "anywhere"sv};
constexpr std::array kRateSchedules = {"constant"sv, "cosine"sv, "linear"sv, "step"sv};
constexpr std::array kMedia = {"auto"sv, "file"sv, "direct"sv, "eadr"sv, "process"sv};

constexpr Names names_of(ModelKind) { return kModelKinds; }
constexpr Names names_of(DataType) { return kDataTypes; }
constexpr Names names_of(Positions) { return kPositions; }
constexpr Names names_of(Preset) { return kPresets; }
constexpr Names names_of(Stem) { return kStems; }
constexpr Names names_of(TokenizerKind) { return kTokenizers; }
constexpr Names names_of(OptimizerKind) { return kOptimizers; }
constexpr Names names_of(DeviceKind) { return kDevices; }
constexpr Names names_of(TokenFormat) { return kTokenFormats; }
constexpr Names names_of(Order) { return kOrders; }
constexpr Names names_of(RateSchedule) { return kRateSchedules; }

template <class E>
std::string_view name_of(E value) noexcept {
  return names_of(value)[static_cast<std::size_t>(value)];
}

Names schedules() {
  static const std::vector<std::string_view> names = [] {
    std::vector<std::string_view> all;
    for (const training::ScheduleName& one : training::schedule_names()) all.push_back(one.name);
    return all;
  }();
  return names;
}

/// As TOML has it: in double quotes, with what may not stand there escaped.
std::string in_quotes(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    switch (c) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
          constexpr std::string_view kDigits = "0123456789ABCDEF";
          out += "\\u00";
          out += kDigits[static_cast<unsigned char>(c) >> 4];
          out += kDigits[static_cast<unsigned char>(c) & 15];
        } else {
          out += c;
        }
    }
  }
  return out + "\"";
}

/// The shortest text that is read back as the same number, and always as a floating-point one.
std::string text_of_number(double value) {
  std::array<char, 32> text{};
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value).ptr;
  std::string out(text.data(), end);
  if (out.find_first_of(".en") == std::string::npos) out += ".0";  // Neither a fraction nor an exponent, inf or nan.
  return out;
}

std::string listed(Names names) {
  std::string out;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (i > 0) out += i + 1 == names.size() ? " or " : ", ";
    out += in_quotes(names[i]);
  }
  return out;
}

/// How many characters must be changed, inserted or deleted (Levenshtein 1966).
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t changed = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = std::exchange(row[j + 1], std::min({row[j + 1] + 1, row[j] + 1, changed}));
    }
  }
  return row[b.size()];
}

std::string_view nearest(std::string_view name, Names names) {
  return *std::ranges::min_element(names, {}, [name](std::string_view known) { return distance(name, known); });
}

// ----- the table ----------------------------------------------------------------------------------------------------

constexpr std::uint64_t kWholeMax = std::numeric_limits<std::int64_t>::max();

/// What a key may hold and when it counts.
struct Key {
  std::string_view name;
  bool applies = true;
  std::string_view when{};  // ... and of what it is, in words.
  bool written = true;      // False: the dump leaves it out, for it is not used.
  bool identity = false;
  bool path = false;
  std::uint64_t min = 0, max = kWholeMax;       // whole numbers
  double low = 0, high = 1e30;                  // others, both included
  bool above = false, below = false;            // ... but for low, or high
  Names choices{};                              // texts
  std::size_t length_min = 0, length_max = 64;  // lists

  explicit Key(std::string_view key) : name(key) {}
  Key& when_is(bool is, std::string_view words) {
    applies = is;
    when = words;
    return *this;
  }
  Key& determines(bool yes = true) { return identity = yes, *this; }
  Key& is_path() { return path = true, *this; }
  Key& whole(std::uint64_t least, std::uint64_t most) { return min = least, max = most, *this; }
  Key& real(double least, double most) { return low = least, high = most, *this; }
  Key& more_than_low() { return above = true, *this; }
  Key& less_than_high() { return below = true, *this; }
  Key& one_of(Names names) { return choices = names, *this; }
  Key& lengths(std::size_t least, std::size_t most) { return length_min = least, length_max = most, *this; }
};

constexpr std::uint64_t kWidthMax = 1 << 16;
constexpr std::uint64_t kStepsMax = std::uint64_t{1} << 40;
constexpr std::uint64_t kMibMax = std::uint64_t{1} << 40;  // Its bytes are below 2^63.

/// Calls visit(key, member) for every key, kinds before what depends on them: visit may set the member.
template <class Config, class Visit>
void each_key(Config& config, Visit&& visit) {
  auto& m = config.model;
  const auto for_kind = [&](std::string_view name, std::initializer_list<ModelKind> kinds, std::string_view words) {
    return Key(name).when_is(std::ranges::find(kinds, m.kind) != kinds.end(), words).determines();
  };
  const auto gpt = [&](std::string_view name) { return for_kind(name, {ModelKind::kGpt}, "model.kind = \"gpt\""); };
  const auto images = [&](std::string_view name) {
    return for_kind(name, {ModelKind::kMlp, ModelKind::kCnn, ModelKind::kResnet, ModelKind::kDensenet},
                    "models of images");
  };
  const auto residual = [&](std::string_view name) {
    return for_kind(name, {ModelKind::kResnet, ModelKind::kDensenet}, "model.kind = \"resnet\" or \"densenet\"");
  };
  const auto densenet = [&](std::string_view name) {
    return for_kind(name, {ModelKind::kDensenet}, "model.kind = \"densenet\"");
  };
  visit(Key("model.kind").determines(), m.kind);
  visit(Key("model.dtype").determines(), m.dtype);
  visit(gpt("model.preset").determines(false), m.preset);
  visit(gpt("model.vocabulary").whole(0, std::uint64_t{1} << 31), m.vocabulary);
  visit(gpt("model.context").whole(1, 1 << 20), m.context);
  visit(gpt("model.layers").whole(1, 1024), m.layers);
  visit(gpt("model.heads").whole(1, 1024), m.heads);
  visit(for_kind("model.width", {ModelKind::kGpt, ModelKind::kResnet}, "model.kind = \"gpt\" or \"resnet\"")
            .whole(1, kWidthMax),
        m.width);
  visit(gpt("model.mlp_ratio").whole(1, 64), m.mlp_ratio);
  visit(gpt("model.positions"), m.positions);
  visit(
      for_kind("model.hidden", {ModelKind::kMlp, ModelKind::kCnn}, "model.kind = \"mlp\" or \"cnn\"").whole(1, 1 << 20),
      m.hidden);
  visit(for_kind("model.stages", {ModelKind::kCnn}, "model.kind = \"cnn\"").whole(1, kWidthMax).lengths(1, 16),
        m.stages);
  visit(for_kind("model.batch_norm", {ModelKind::kCnn}, "model.kind = \"cnn\""), m.batch_norm);
  visit(residual("model.blocks").whole(1, 1024).lengths(1, 16), m.blocks);
  visit(residual("model.bottleneck"), m.bottleneck);
  visit(residual("model.stem"), m.stem);
  visit(densenet("model.growth").whole(1, kWidthMax), m.growth);
  visit(densenet("model.stem_width").whole(0, kWidthMax), m.stem_width);
  visit(densenet("model.compression").real(0, 1).more_than_low(), m.compression);

  auto& d = config.data;
  visit(gpt("data.text").is_path(), d.text);
  visit(gpt("data.tokens").is_path(), d.tokens);
  visit(gpt("data.token_format"), d.token_format);
  visit(gpt("data.tokenizer"), d.tokenizer);
  // gpt2: a tokenizer.json, or the two files of before. What is not named is not written, nor part of the identity.
  const bool gpt2 = m.kind == ModelKind::kGpt && d.tokenizer == TokenizerKind::kGpt2;
  const bool llama2c = m.kind == ModelKind::kGpt && d.tokenizer == TokenizerKind::kLlama2c;
  const auto of_gpt2 = [&](std::string_view name) {
    Key key = gpt(name).when_is(gpt2, "data.tokenizer = \"gpt2\"").is_path();
    key.written = !gpt2 || d.tokenizer_file.empty();
    return key;
  };
  visit(of_gpt2("data.vocabulary"), d.vocabulary);
  visit(of_gpt2("data.merges"), d.merges);
  Key tokenizer_file =
      gpt("data.tokenizer_file").when_is(gpt2 || llama2c, "data.tokenizer = \"gpt2\" or \"llama2c\"").is_path();
  tokenizer_file.written = !gpt2 || !d.tokenizer_file.empty();
  visit(tokenizer_file, d.tokenizer_file);
  visit(Key("data.validation_share").determines().real(0, 1).less_than_high(), d.validation_share);
  visit(images("data.images").is_path(), d.images);
  visit(images("data.labels").is_path(), d.labels);
  visit(images("data.test_images").is_path().determines(false), d.test_images);
  visit(images("data.test_labels").is_path().determines(false), d.test_labels);
  visit(images("data.classes").whole(1, 256), d.classes);
  visit(images("data.mean").real(-1e6, 1e6).lengths(1, 64), d.mean);
  visit(images("data.deviation").real(0, 1e6).more_than_low().lengths(1, 64), d.deviation);
  visit(Key("data.order").determines(), d.order);

  auto& o = config.optimizer;
  const auto adamw = [&](std::string_view name) {
    return Key(name).when_is(o.kind == OptimizerKind::kAdamw, "optimizer.kind = \"adamw\"").determines();
  };
  const auto sgd = [&](std::string_view name) {
    return Key(name).when_is(o.kind == OptimizerKind::kSgd, "optimizer.kind = \"sgd\"").determines();
  };
  const auto falls = [&] { return o.schedule == RateSchedule::kCosine || o.schedule == RateSchedule::kLinear; };
  const auto drops = [&](std::string_view name) {
    return Key(name).when_is(o.schedule == RateSchedule::kDrops, "optimizer.schedule = \"step\"").determines();
  };
  visit(Key("optimizer.kind").determines(), o.kind);
  visit(Key("optimizer.learning_rate").determines().real(0, 1000).more_than_low(), o.learning_rate);
  visit(Key("optimizer.weight_decay").determines().real(0, 1000), o.weight_decay);
  visit(adamw("optimizer.beta1").real(0, 1).less_than_high(), o.beta1);
  visit(adamw("optimizer.beta2").real(0, 1).less_than_high(), o.beta2);
  visit(adamw("optimizer.epsilon").real(0, 1).more_than_low(), o.epsilon);
  visit(sgd("optimizer.momentum").real(0, 1).less_than_high(), o.momentum);
  visit(sgd("optimizer.nesterov"), o.nesterov);
  visit(Key("optimizer.clip").determines().real(0, 1e30), o.clip);
  visit(Key("optimizer.schedule").determines(), o.schedule);
  visit(Key("optimizer.warmup").determines().whole(0, kStepsMax), o.warmup);
  visit(Key("optimizer.final_share")
            .when_is(falls(), "optimizer.schedule = \"cosine\" or \"linear\"")
            .determines()
            .real(0, 1),
        o.final_share);
  visit(drops("optimizer.drop_every").whole(1, kStepsMax), o.drop_every);
  visit(drops("optimizer.drop_factor").real(0, 1).more_than_low(), o.drop_factor);

  auto& r = config.run;
  Key steps = Key("run.steps").determines(falls()).whole(1, kStepsMax);
  Key epochs = Key("run.epochs").determines(falls()).whole(1, kStepsMax);
  steps.written = r.epochs == 0;
  epochs.written = r.epochs > 0;
  visit(steps, r.steps);
  visit(epochs, r.epochs);
  visit(Key("run.batch").determines().whole(1, 1 << 24), r.batch);
  visit(Key("run.micro_batches").whole(1, 1 << 16), r.micro_batches);
  visit(Key("run.seed").determines(), r.seed);
  visit(Key("run.schedule").one_of(schedules()), r.schedule);
  visit(Key("run.data_parallel").whole(1, 4096), r.data_parallel);
  visit(Key("run.pipeline").whole(1, 1024), r.pipeline);
  visit(Key("run.window").whole(1, 1000), r.window);  // A loader has 1024 buffers at most.
  visit(Key("run.peer_timeout_s").whole(1, 1 << 20), r.peer_timeout_s);
  visit(Key("run.threads").whole(0, 1024), r.threads);
  visit(Key("run.device"), r.device);
  visit(Key("run.as_graph"), r.as_graph);
  visit(Key("run.measure_costs"), r.measure_costs);
  visit(Key("run.evaluate_every").whole(0, kStepsMax), r.evaluate_every);
  visit(Key("run.evaluate_batches").whole(0, kStepsMax), r.evaluate_batches);
  visit(Key("run.log_every").whole(1, kStepsMax), r.log_every);
  visit(Key("run.bucket_kib").whole(0, 1 << 30), r.bucket_kib);
  visit(Key("run.memory_limit_mib").whole(0, kMibMax), r.memory_limit_mib);

  auto& c = config.checkpoint;
  visit(Key("checkpoint.pool").is_path(), c.pool);
  visit(Key("checkpoint.every").whole(0, kStepsMax), c.every);
  visit(Key("checkpoint.keep_last").whole(1, 1 << 20), c.keep_last);
  visit(Key("checkpoint.keep_every").whole(0, kStepsMax), c.keep_every);
  visit(Key("checkpoint.pool_mib").whole(0, kMibMax), c.pool_mib);
  visit(Key("checkpoint.media").one_of(kMedia), c.media);
  visit(Key("checkpoint.staging_mib").whole(0, kMibMax), c.staging_mib);

  visit(Key("log.csv").is_path(), config.log.csv);
  visit(Key("log.json").is_path(), config.log.json);
  visit(Key("log.plot").is_path(), config.log.plot);

  visit(Key("sample.tokens").whole(0, 1 << 24), config.sample.tokens);
  visit(Key("sample.temperature").real(0, 100), config.sample.temperature);
  visit(Key("sample.top_k").whole(0, std::uint64_t{1} << 31), config.sample.top_k);
  visit(Key("sample.prompt"), config.sample.prompt);
}

/// What is not the same for all kinds of models.
void set_defaults(ModelConfig& model) {
  switch (model.kind) {
    case ModelKind::kGpt: break;
    case ModelKind::kMlp: model.hidden = {256}; break;
    case ModelKind::kCnn:
      model.stages = {{32, 32}, {64, 64}};
      model.hidden = {128};
      break;
    case ModelKind::kResnet:
      model.blocks = {2, 2, 2};
      model.width = 16;
      break;
    case ModelKind::kDensenet:
      model.blocks = {6, 12, 24, 16};
      model.bottleneck = true;
      model.stem = Stem::kLarge;
      break;
  }
}

void set_sizes(ModelConfig& model) {
  if (model.preset == Preset::kNone) return;
  const auto sizes = model::gpt_preset(name_of(model.preset));
  DUNNOCK_CHECK(sizes.has_value(), "each preset of a config is one of the models'");
  model.layers = static_cast<unsigned>(sizes->layers);
  model.heads = static_cast<unsigned>(sizes->heads);
  model.width = static_cast<unsigned>(sizes->width);
  model.context = static_cast<unsigned>(sizes->context);
  model.vocabulary = static_cast<unsigned>(sizes->vocabulary);
}

// ----- values: what is expected, reading, writing ------------------------------------------------------------------

template <class T>
constexpr bool kIsText = std::is_enum_v<T> || std::is_same_v<T, std::string>;
template <class T>
constexpr bool kIsWhole = std::unsigned_integral<T> && !std::is_same_v<T, bool>;
template <class T>
constexpr bool kIsList = false;
template <class T>
constexpr bool kIsList<std::vector<T>> = true;

template <class T>
std::string expected(const Key& key) {
  if constexpr (std::is_enum_v<T>) {
    return listed(names_of(T{}));
  } else if constexpr (std::is_same_v<T, std::string>) {
    if (!key.choices.empty()) return listed(key.choices);
    return key.path ? "a path" : "text";
  } else if constexpr (std::is_same_v<T, bool>) {
    return "true or false";
  } else if constexpr (kIsWhole<T>) {
    if (key.max == kWholeMax) return "a whole number of " + std::to_string(key.min) + " or more";
    return "a whole number from " + std::to_string(key.min) + " to " + std::to_string(key.max);
  } else if constexpr (std::is_same_v<T, double>) {
    const auto end = [](double value) {
      std::string text = text_of_number(value);
      if (text.ends_with(".0")) text.resize(text.size() - 2);
      return text;
    };
    return "a number" + (key.above ? " above " + end(key.low) : " from " + end(key.low)) +
           (key.below   ? ", below " + end(key.high)
            : key.above ? ", up to " + end(key.high)
                        : " to " + end(key.high));
  } else {
    using Element = typename T::value_type;
    const std::string length =
        key.length_min > 0 ? "a list of " + std::to_string(key.length_min) + " to " : "a list of at most ";
    return length + std::to_string(key.length_max) + ", each " + expected<Element>(key);
  }
}

std::string described(const toml::node& node) {
  if (const auto* text = node.as_string()) return in_quotes(text->get());
  if (const auto* whole = node.as_integer()) return std::to_string(whole->get());
  if (const auto* real = node.as_floating_point()) return text_of_number(real->get());
  if (const auto* yes = node.as_boolean()) return yes->get() ? "true" : "false";
  if (const auto* list = node.as_array()) return "a list of " + std::to_string(list->size());
  if (node.is_table()) return "a table";
  return "a date or time";
}

/// Null, and `to` is set; or the node that is not as expected.
template <class T>
const toml::node* read(const Key& key, const toml::node& from, T& to) {
  if constexpr (kIsText<T>) {
    const auto* text = from.as_string();
    if (text == nullptr) return &from;
    if constexpr (std::is_enum_v<T>) {
      const auto at = std::ranges::find(names_of(T{}), std::string_view(text->get()));
      if (at == names_of(T{}).end()) return &from;
      to = static_cast<T>(at - names_of(T{}).begin());
    } else {
      const std::string& value = text->get();
      if (!key.choices.empty() && std::ranges::find(key.choices, std::string_view(value)) == key.choices.end())
        return &from;
      if (key.path && value.find('\0') != std::string::npos) return &from;
      to = value;
    }
  } else if constexpr (std::is_same_v<T, bool>) {
    if (!from.is_boolean()) return &from;
    to = from.as_boolean()->get();
  } else if constexpr (kIsWhole<T>) {
    if (!from.is_integer()) return &from;
    const std::int64_t value = from.as_integer()->get();
    if (value < 0) return &from;
    const auto whole = static_cast<std::uint64_t>(value);
    if (whole < key.min || whole > key.max || whole > std::numeric_limits<T>::max()) return &from;
    to = static_cast<T>(whole);
  } else if constexpr (std::is_same_v<T, double>) {
    if (!from.is_number()) return &from;
    const double value =
        from.is_integer() ? static_cast<double>(from.as_integer()->get()) : from.as_floating_point()->get();
    const bool high_enough = key.above ? value > key.low : value >= key.low;  // False for NaN.
    const bool low_enough = key.below ? value < key.high : value <= key.high;
    if (!high_enough || !low_enough) return &from;
    to = value + 0.0;  // -0.0 becomes 0.0, which it equals.
  } else {
    const auto* list = from.as_array();
    if (list == nullptr || list->size() < key.length_min || list->size() > key.length_max) return &from;
    T values;
    for (const toml::node& one : *list) {
      typename T::value_type value{};
      if (const toml::node* wrong = read(key, one, value)) return wrong;
      values.push_back(std::move(value));
    }
    to = std::move(values);
  }
  return nullptr;
}

template <class T>
std::string written(const T& value) {
  if constexpr (std::is_enum_v<T>) {
    return in_quotes(name_of(value));
  } else if constexpr (std::is_same_v<T, std::string>) {
    return in_quotes(value);
  } else if constexpr (std::is_same_v<T, bool>) {
    return value ? "true" : "false";
  } else if constexpr (kIsWhole<T>) {
    return std::to_string(value);
  } else if constexpr (std::is_same_v<T, double>) {
    return text_of_number(value);
  } else {
    std::string out = "[";
    for (const auto& one : value) out.append(out.size() > 1 ? ", " : "").append(written(one));
    return out + "]";
  }
}

// ----- reading ------------------------------------------------------------------------------------------------------

std::vector<std::string_view> all_keys() {
  std::vector<std::string_view> keys;
  TrainConfig config;
  each_key(config, [&](const Key& key, auto&) { keys.push_back(key.name); });
  return keys;
}

/// Keys that had another name in version 0.1. Files and --set may still say the former one, with a note.
struct FormerKey {
  std::string_view former, now;
};
constexpr FormerKey kFormerKeys[] = {{"data.tokeniser", "data.tokenizer"},
                                     {"data.tokeniser_file", "data.tokenizer_file"}};

/// The key's name now.
std::string name_now(std::string_view key) {
  const auto* const found = std::ranges::find(kFormerKeys, key, &FormerKey::former);
  return std::string(found == std::end(kFormerKeys) ? key : found->now);
}

/// The key's name in version 0.1.
std::string former_name(std::string_view key) {
  const auto* const found = std::ranges::find(kFormerKeys, key, &FormerKey::now);
  return std::string(found == std::end(kFormerKeys) ? key : found->former);
}

std::string_view section_of(std::string_view key) { return key.substr(0, key.find('.')); }
std::string_view last_of(std::string_view key) { return key.substr(key.find('.') + 1); }

/// The known key that looks most like it; one of another section counts as one more difference.
std::string_view nearest_key(std::string_view key) {
  const std::vector<std::string_view> keys = all_keys();
  return *std::ranges::min_element(keys, {}, [key](std::string_view known) {
    return std::min(2 * distance(key, known), 2 * distance(last_of(key), last_of(known)) + 1);
  });
}

/// The first character beyond ASCII that stands neither in quotes nor in a comment. TOML has none there, and toml++ 3.3
/// must not see one: where it looks for other kinds of spaces, it runs into what it calls unreachable (found by
/// tests/fuzz). Agrees with TOML's grammar up to the first mistake, where toml++ stops.
std::optional<std::size_t> stray_character(std::string_view text) {
  constexpr std::string_view kMark = "\xEF\xBB\xBF";  // A byte order mark may come first.
  std::size_t i = text.starts_with(kMark) ? kMark.size() : 0;
  while (i < text.size()) {
    const char c = text[i];
    if (c == '#') {
      i = std::min(text.find('\n', i), text.size());
    } else if (c == '"' || c == '\'') {
      const std::string_view rest = text.substr(i);
      const bool several_lines = rest.starts_with("\"\"\"") || rest.starts_with("'''");
      const std::string_view quote = rest.substr(0, several_lines ? 3 : 1);
      i += quote.size();
      while (i < text.size() && !text.substr(i).starts_with(quote) && (several_lines || text[i] != '\n'))
        i += c == '"' && text[i] == '\\' ? 2 : 1;
      i += quote.size();
      // Up to two quotes more belong to what they end.
      for (int more = 0; several_lines && more < 2 && i < text.size() && text[i] == c; ++more) ++i;
    } else if (static_cast<unsigned char>(c) >= 0x80) {
      return i;
    } else {
      ++i;
    }
  }
  return std::nullopt;
}

class Parser {
 public:
  Parser(std::string_view text, std::string name) : text_(text), name_(std::move(name)) {}

  Result<LoadedConfig> parse(std::span<const Override> overrides) {
    if (const auto stray = stray_character(text_)) {
      const std::string_view before = text_.substr(0, *stray);
      const auto lines = std::ranges::count(before, '\n');
      const std::size_t column = before.size() - (before.rfind('\n') + 1);  // npos + 1 is 0.
      return make_error(ErrorCode::kInvalidArgument, name_ + ":" + std::to_string(lines + 1) + ":" +
                                                         std::to_string(column + 1) +
                                                         ": this character is allowed only in quotes and comments");
    }
    file_ = toml::parse(text_, std::string_view(name_));
    if (!file_) {
      const toml::parse_error& error = file_.error();
      return make_error(ErrorCode::kInvalidArgument, at(error.source()) + ": " + std::string(error.description()));
    }
    collect(file_.table());
    for (const Override& one : overrides) override_by(one);
    // What an override takes the place of.
    if (is_overridden("run.epochs") && !is_overridden("run.steps")) given_.erase("run.steps");
    if (is_overridden("run.steps") && !is_overridden("run.epochs")) given_.erase("run.epochs");

    LoadedConfig loaded;
    loaded.name = name_;
    loaded.text = text_;
    loaded.overrides.assign(overrides.begin(), overrides.end());
    loaded.folder = std::filesystem::path(name_).parent_path().string();
    TrainConfig& config = loaded.config;
    // Defaults depend on the kind, and on the preset; then each key that is given has its say.
    each_key(config, [&](const Key& key, auto& member) { read_if(key, member, "model.kind"); });
    set_defaults(config.model);
    if (config.model.kind == ModelKind::kGpt) {
      each_key(config, [&](const Key& key, auto& member) { read_if(key, member, "model.preset"); });
      set_sizes(config.model);
    }
    each_key(config, [&](const Key& key, auto& member) { take(key, member); });
    for (const std::string& key : passed_over_) given_.erase(key);
    for (const auto& [key, given] : given_) loaded.places[key] = given.place;
    loaded.notes = std::move(notes_);
    if (given_.contains("run.epochs") && !given_.contains("run.steps")) config.run.steps = 0;
    if (problems_.empty()) check(config);
    if (!problems_.empty()) return make_error(ErrorCode::kInvalidArgument, all_problems());
    return loaded;
  }

 private:
  using Position = std::pair<std::uint64_t, std::uint64_t>;  // Line and column; overrides behind all lines.
  struct Given {
    const toml::node* node;
    std::string place;
    Position position;
    bool is_override;
  };

  [[nodiscard]] std::string at(const toml::source_region& source) const {
    return name_ + ":" + std::to_string(source.begin.line) + ":" + std::to_string(source.begin.column);
  }
  static Position position(const toml::source_region& source) { return {source.begin.line, source.begin.column}; }

  [[nodiscard]] bool is_overridden(const std::string& key) const {
    const auto given = given_.find(key);
    return given != given_.end() && given->second.is_override;
  }
  /// Has an override chosen another kind of what this section is about? Then the file's keys of its own kind are void.
  [[nodiscard]] bool has_another_kind(std::string_view section) const {
    if (section == "model") return is_overridden("model.kind");
    if (section == "data") return is_overridden("model.kind") || is_overridden("data.tokenizer");
    return is_overridden("optimizer.kind") || is_overridden("optimizer.schedule");
  }

  /// The name that the key has now; a note, if that is another one.
  std::string current(const std::string& key, const std::string& place) {
    std::string now = name_now(key);
    if (now != key)
      notes_.push_back(place + ": " + key + " is now called " + now + "; the next version refuses the former name");
    return now;
  }

  void problem(Position where, std::string text) { problems_.emplace_back(where, std::move(text)); }

  void collect(const toml::table& file) {
    const std::vector<std::string_view> keys = all_keys();
    for (const auto& [section, content] : file) {
      const std::string_view section_name = section.str();
      const bool known = std::ranges::any_of(keys, [&](auto key) { return section_of(key) == section_name; });
      const auto* table = content.as_table();
      if (table == nullptr) {
        problem(position(section.source()),
                at(section.source()) + ": " + std::string(section_name) + ": " +
                    (known ? "expected a section, [" + std::string(section_name) + "], got " + described(content)
                           : "unknown key; the nearest is " + std::string(nearest_key(section_name))));
      } else if (!known) {
        std::vector<std::string_view> sections;
        for (const std::string_view key : keys) sections.push_back(section_of(key));
        problem(position(section.source()), at(section.source()) + ": [" + std::string(section_name) +
                                                "]: unknown section; the nearest is [" +
                                                std::string(nearest(section_name, sections)) + "]");
      } else {
        for (const auto& [key, value] : *table) {
          const std::string name = current(std::string(section_name) + "." + std::string(key.str()), at(key.source()));
          if (std::ranges::find(keys, name) == keys.end()) {
            problem(position(key.source()),
                    at(key.source()) + ": " + name + ": unknown key; the nearest is " + std::string(nearest_key(name)));
          } else if (given_.contains(name)) {
            problem(position(key.source()), at(key.source()) + ": " + name +
                                                ": expected this key or its former name (" + former_name(name) +
                                                "), got both");
          } else {
            given_[name] = {&value, at(value.source()), position(value.source()), false};
          }
        }
      }
    }
  }

  void override_by(const Override& one) {
    const std::string& text = one.text;
    const std::string place = one.by + " " + text;
    const Position where = {std::numeric_limits<std::uint64_t>::max(), ++overrides_};
    const auto trim = [](std::string_view part) {
      const std::size_t first = part.find_first_not_of(" \t");
      if (first == std::string_view::npos) return std::string_view{};
      return part.substr(first, part.find_last_not_of(" \t") - first + 1);
    };
    const std::size_t equals = text.find('=');
    if (equals == std::string::npos) {
      problem(where, place + ": expected section.key=value");
      return;
    }
    const std::string key = current(std::string(trim(std::string_view(text).substr(0, equals))), place);
    std::string value(trim(std::string_view(text).substr(equals + 1)));
    bool known = false;
    TrainConfig defaults;
    each_key(defaults, [&](const Key& of, auto& member) {
      if (of.name != key) return;
      known = true;
      using T = std::remove_reference_t<decltype(member)>;
      const bool plain = kIsText<T> && !value.starts_with('"') && !value.starts_with('\'');
      const auto refuse = [&] {
        problem(where, place + ": " + key + ": expected " + expected<T>(of) + ", got " + value);
      };
      const std::string document = "value = " + (plain ? in_quotes(value) : value);
      if (stray_character(document)) return refuse();
      auto parsed = toml::parse(document, std::string_view(place));
      if (!parsed || parsed.table().size() != 1) return refuse();
      overriding_.push_back(std::make_unique<toml::table>(std::move(parsed).table()));
      const toml::node* node = overriding_.back()->get("value");
      if (node == nullptr) return refuse();
      given_[key] = {node, place, where, true};
    });
    if (!known) problem(where, place + ": unknown key; the nearest is " + std::string(nearest_key(key)));
  }

  template <class T>
  void read_if(const Key& key, T& member, std::string_view name) {
    if (key.name != name) return;
    // What is wrong with it is said by take().
    if (const auto given = given_.find(std::string(name)); given != given_.end())
      (void)read(key, *given->second.node, member);
  }

  template <class T>
  void take(const Key& key, T& member) {
    const auto found = given_.find(std::string(key.name));
    if (found == given_.end()) return;
    const Given& given = found->second;
    const std::string name(key.name);
    if (!key.applies && !given.is_override && has_another_kind(section_of(key.name))) {
      passed_over_.push_back(name);
      return;
    }
    if (!key.applies) {
      problem(given.position, given.place + ": " + name + ": expected only with " + std::string(key.when));
      return;
    }
    const toml::node* wrong = read(key, *given.node, member);
    if (wrong == nullptr) return;
    const bool here = given.is_override || wrong == given.node;
    std::string text = (here ? given.place : at(wrong->source())) + ": " + name + ": expected " + expected<T>(key) +
                       ", got " + described(*wrong);
    const Names names = [&]() -> Names {
      if constexpr (std::is_enum_v<T>) return names_of(T{});
      return key.choices;
    }();
    if (const auto* word = wrong->as_string(); word != nullptr && names.size() > 2)
      text += "; the nearest is " + in_quotes(nearest(word->get(), names));
    problem(given.position, std::move(text));
  }

  /// What no key alone can say.
  void check(const TrainConfig& config) {
    // At the first of the keys that is given, in the words of the first.
    const auto wrong = [&](std::initializer_list<std::string_view> keys, const std::string& what) {
      for (const std::string_view key : keys) {
        if (const auto given = given_.find(std::string(key)); given != given_.end()) {
          problem(given->second.position, given->second.place + ": " + std::string(key) + ": " + what);
          return;
        }
      }
      problem({}, name_ + ": " + std::string(*keys.begin()) + ": " + what);
    };
    const auto number = [](std::uint64_t value) { return std::to_string(value); };

    const ModelConfig& m = config.model;
    if (m.kind == ModelKind::kGpt) {
      if (m.width % m.heads != 0) {
        wrong({"model.heads", "model.width"}, "expected a width that the heads divide, got width " + number(m.width) +
                                                  " and " + number(m.heads) + " heads");
      } else if (m.positions == Positions::kRotary && m.width / m.heads % 2 != 0) {
        wrong({"model.positions"},
              "expected heads of an even width for rotary positions, got " + number(m.width / m.heads));
      }
    }
    const DataConfig& d = config.data;
    if (!d.text.empty() && !d.tokens.empty()) wrong({"data.tokens"}, "expected text or tokens, got both");
    if (d.tokenizer == TokenizerKind::kGpt2 && !d.tokenizer_file.empty() && !(d.vocabulary.empty() && d.merges.empty()))
      wrong({"data.tokenizer_file"}, "expected this key or data.vocabulary and data.merges, got both");
    if (d.token_format != TokenFormat::kDunnock && m.vocabulary == 0)
      wrong({"data.token_format"}, "expected model.vocabulary too, which files of this format do not contain");
    if (d.images.empty() != d.labels.empty())
      wrong({"data.images", "data.labels"}, "expected images and labels, got one of them");
    if (d.test_images.empty() != d.test_labels.empty())
      wrong({"data.test_images", "data.test_labels"}, "expected test images and test labels, got one of them");
    if (d.order == Order::kAnywhere && m.kind != ModelKind::kGpt)
      wrong({"data.order"}, "expected \"sequential\" or \"shuffled\" for images, got \"anywhere\"");
    if (d.mean.size() != d.deviation.size()) {
      wrong({"data.mean", "data.deviation"}, "expected as many means as deviations, got " + number(d.mean.size()) +
                                                 " and " + number(d.deviation.size()));
    }
    const OptimizerConfig& o = config.optimizer;
    const RunConfig& r = config.run;
    if (o.nesterov && o.momentum == 0)
      wrong({"optimizer.nesterov"}, "expected optimizer.momentum above 0 with it, got 0");
    if (given_.contains("run.steps") && given_.contains("run.epochs"))
      wrong({"run.epochs"}, "expected steps or epochs, got both");
    if (r.steps > 0 && o.warmup > r.steps)
      wrong({"optimizer.warmup", "run.steps"},
            "expected at most run.steps (" + number(r.steps) + "), got " + number(o.warmup));
    if (const std::uint64_t parts = std::uint64_t{r.micro_batches} * r.data_parallel; r.batch % parts != 0) {
      wrong({"run.batch", "run.micro_batches", "run.data_parallel"},
            "expected a batch that is a multiple of micro_batches x data_parallel (" + number(r.micro_batches) + " x " +
                number(r.data_parallel) + "), got " + number(r.batch));
    }
    const training::Family family =
        std::ranges::find(training::schedule_names(), std::string_view(r.schedule), &training::ScheduleName::name)
            ->family;
    const auto needs = [&](training::Family wanted, std::string_view key, unsigned ranks) {
      std::vector<std::string_view> names;
      for (const training::ScheduleName& one : training::schedule_names())
        if (one.family == wanted) names.push_back(one.name);
      wrong({"run.schedule", key}, "expected " + listed(names) + " for " + std::string(key) + " = " + number(ranks) +
                                       ", got " + in_quotes(r.schedule));
    };
    if (r.pipeline > 1 && family != training::Family::kPipeline)
      needs(training::Family::kPipeline, "run.pipeline", r.pipeline);
    else if (r.data_parallel > 1 && family == training::Family::kOneDevice)
      needs(training::Family::kDataParallel, "run.data_parallel", r.data_parallel);

    if (config.checkpoint.every > 0 && config.checkpoint.pool.empty())
      wrong({"checkpoint.every"}, "expected a checkpoint.pool with it, got none");
    const auto same = [](const std::string& a, const std::string& b) { return !a.empty() && a == b; };
    const LogConfig& l = config.log;
    if (same(l.csv, l.json) || same(l.json, l.plot)) wrong({"log.json"}, "expected a file of its own");
    if (same(l.csv, l.plot)) wrong({"log.plot"}, "expected a file of its own");
  }

  std::string all_problems() {
    std::ranges::stable_sort(problems_, {}, &std::pair<Position, std::string>::first);
    std::string text;
    for (const auto& [where, one] : problems_) text.append(text.empty() ? "" : "\n").append(one);
    return text;
  }

  std::string_view text_;
  std::string name_;
  toml::parse_result file_;
  std::vector<std::unique_ptr<toml::table>> overriding_;  // Given::node of overrides lies there.
  std::map<std::string, Given> given_;
  std::vector<std::string> notes_;
  std::vector<std::string> passed_over_;  // Keys of the file that are for another kind than an override's.
  std::vector<std::pair<Position, std::string>> problems_;
  std::uint64_t overrides_ = 0;
};

std::string file_name(const std::string& path) { return std::filesystem::path(path).filename().string(); }

/// What identity_of() is of: keys and values, files by their names.
std::vector<std::pair<std::string, std::string>> identity_values(const TrainConfig& config) {
  std::vector<std::pair<std::string, std::string>> values;
  each_key(config, [&](const Key& key, const auto& member) {
    if (!key.applies || !key.written || !key.identity) return;
    std::string value;
    if constexpr (std::is_same_v<decltype(member), const std::string&>) {
      value = written(key.path ? file_name(member) : member);
    } else {
      value = written(member);
    }
    values.emplace_back(key.name, std::move(value));
  });
  return values;
}

}  // namespace

// ----- public -------------------------------------------------------------------------------------------------------

std::string_view to_string(ModelKind kind) noexcept { return name_of(kind); }
std::string_view to_string(DataType type) noexcept { return name_of(type); }
std::string_view to_string(Positions positions) noexcept { return name_of(positions); }
std::string_view to_string(Preset preset) noexcept { return name_of(preset); }
std::string_view to_string(Stem stem) noexcept { return name_of(stem); }
std::string_view to_string(TokenizerKind kind) noexcept { return name_of(kind); }
std::string_view to_string(OptimizerKind kind) noexcept { return name_of(kind); }
std::string_view to_string(DeviceKind kind) noexcept { return name_of(kind); }

std::string LoadedConfig::path_of(const std::string& path) const {
  return (std::filesystem::path(folder) / path).string();
}

std::string LoadedConfig::where(const std::string& key) const {
  const auto place = places.find(key);
  return (place == places.end() ? name : place->second) + ": " + key;
}

Result<LoadedConfig> read_config(const std::string& path, std::span<const std::string> overrides) {
  constexpr std::size_t kBytesMax = 1 << 20;
  std::uint64_t bytes = 0;
  DUNNOCK_TRY(open_to_read(path, bytes));
  if (bytes > kBytesMax)
    return make_error(ErrorCode::kInvalidArgument, path + " has more than 1 MiB, the limit of a config file");
  DUNNOCK_TRY(const auto text, read_file(path));
  auto loaded = parse_config(text, path, overrides);
  if (loaded) loaded->has_file = true;
  return loaded;
}

Result<LoadedConfig> parse_config(std::string_view text, const std::string& name,
                                  std::span<const std::string> overrides) {
  std::vector<Override> given;
  for (const std::string& one : overrides) given.push_back({one});
  return Parser(text, name).parse(given);
}

Result<LoadedConfig> with_overrides(const LoadedConfig& loaded, std::span<const Override> more) {
  std::vector<Override> all = loaded.overrides;
  all.insert(all.end(), more.begin(), more.end());
  auto again = Parser(loaded.text, loaded.name).parse(all);
  if (again) again->has_file = loaded.has_file;
  return again;
}

Status check_ready(const LoadedConfig& loaded) {
  const DataConfig& d = loaded.config.data;
  const auto missing = [&](const std::string& key, const std::string& why) {
    return make_error(ErrorCode::kInvalidArgument, loaded.where(key) + ": expected a path, got none: " + why);
  };
  const std::string kind = "model.kind = " + in_quotes(to_string(loaded.config.model.kind));
  if (loaded.config.model.kind != ModelKind::kGpt) {
    if (d.images.empty()) return missing("data.images", kind + " is trained on images");
    return {};
  }
  if (d.text.empty() && d.tokens.empty()) return missing("data.text", kind + " is trained on text, or on data.tokens");
  const std::string tokenizer = "data.tokenizer = " + in_quotes(to_string(d.tokenizer)) + " needs it";
  if (d.tokenizer == TokenizerKind::kGpt2 && d.tokenizer_file.empty()) {
    if (d.vocabulary.empty() && d.merges.empty())
      return missing("data.vocabulary", tokenizer + ", or data.tokenizer_file");
    if (d.vocabulary.empty()) return missing("data.vocabulary", tokenizer);
    if (d.merges.empty()) return missing("data.merges", tokenizer);
  }
  if (d.tokenizer == TokenizerKind::kLlama2c && d.tokenizer_file.empty())
    return missing("data.tokenizer_file", tokenizer);
  return {};
}

std::string to_toml(const TrainConfig& config) {
  std::string text;
  std::string_view section;
  each_key(config, [&](const Key& key, const auto& member) {
    if (!key.applies || !key.written) return;
    if (section_of(key.name) != section) {
      section = section_of(key.name);
      text.append(text.empty() ? "[" : "\n[").append(section).append("]\n");
    }
    text.append(last_of(key.name)).append(" = ").append(written(member)).append("\n");
  });
  return text;
}

std::uint64_t identity_of(const TrainConfig& config) {
  std::string text;
  for (const auto& [key, value] : identity_values(config)) {
    // Checkpoints of version 0.1 have the hash of the former names.
    text.append(former_name(key));
    text.append(" = ").append(value).append("\n");
  }
  return XXH3_64bits(text.data(), text.size());
}

std::optional<std::string> value_of(const TrainConfig& config, std::string_view name) {
  std::optional<std::string> value;
  each_key(config, [&](const Key& key, const auto& member) {
    if (key.name == name && key.applies && key.written) value = written(member);
  });
  return value;
}

std::vector<ConfigDifference> differences(const TrainConfig& here, const TrainConfig& there) {
  const auto mine = identity_values(here);
  const auto theirs = identity_values(there);
  const auto find = [](const auto& values, const std::string& key) {
    const auto at = std::ranges::find(values, key, [](const auto& one) -> const std::string& { return one.first; });
    return at == values.end() ? std::string("none") : at->second;
  };
  std::vector<ConfigDifference> found;
  for (const auto& [key, value] : mine) {
    if (const std::string other = find(theirs, key); other != value) found.push_back({key, value, other});
  }
  for (const auto& [key, value] : theirs) {
    if (find(mine, key) == "none") found.push_back({key, "none", value});
  }
  return found;
}

training::LearningRate learning_rate_of(const TrainConfig& config, std::uint64_t steps) {
  const OptimizerConfig& o = config.optimizer;
  return {.schedule = o.schedule,
          .peak = o.learning_rate,
          .warmup_steps = o.warmup,
          .steps = steps,
          .final_share = o.final_share,
          .drop_every = o.drop_every,
          .drop_factor = o.drop_factor};
}

std::vector<KeyDescription> known_keys() {
  std::vector<KeyDescription> keys;
  TrainConfig config;
  each_key(config, [&](const Key& key, auto& member) {
    keys.push_back({std::string(key.name), expected<std::remove_reference_t<decltype(member)>>(key), ""});
  });
  // The default of each, with the first of the kinds that have it.
  for (std::size_t kind = 0; kind < kModelKinds.size(); ++kind) {
    config = {};
    config.model.kind = static_cast<ModelKind>(kind);
    set_defaults(config.model);
    std::size_t i = 0;
    each_key(config, [&](const Key& key, auto& member) {
      KeyDescription& one = keys[i++];
      const bool of_model = key.name.starts_with("model.") || key.name.starts_with("data.");
      if (one.fallback.empty() && (key.applies || !of_model || kind + 1 == kModelKinds.size()))
        one.fallback = key.written ? written(member) : "none";
    });
  }
  return keys;
}

}  // namespace dunnock::train
