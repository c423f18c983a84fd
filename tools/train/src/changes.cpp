#include "changes.hpp"

#include <algorithm>
#include <array>

namespace dunnock::train {
namespace {

using namespace std::string_view_literals;

constexpr std::string_view kConfigNote = "config";
constexpr std::string_view kBeforeNote = "config.before_changes";

constexpr std::array kMayChange = {"optimizer.learning_rate"sv,
                                   "optimizer.weight_decay"sv,
                                   "optimizer.beta1"sv,
                                   "optimizer.beta2"sv,
                                   "optimizer.epsilon"sv,
                                   "optimizer.momentum"sv,
                                   "optimizer.nesterov"sv,
                                   "optimizer.clip"sv,
                                   "optimizer.schedule"sv,
                                   "optimizer.warmup"sv,
                                   "optimizer.final_share"sv,
                                   "optimizer.drop_every"sv,
                                   "optimizer.drop_factor"sv,
                                   "run.steps"sv,
                                   "run.epochs"sv,
                                   "run.evaluate_every"sv,
                                   "run.evaluate_batches"sv,
                                   "run.log_every"sv,
                                   "checkpoint.every"sv,
                                   "checkpoint.keep_last"sv,
                                   "checkpoint.keep_every"sv,
                                   "log.csv"sv,
                                   "log.json"sv,
                                   "log.plot"sv,
                                   "sample.tokens"sv,
                                   "sample.temperature"sv,
                                   "sample.top_k"sv,
                                   "sample.prompt"sv};

std::string_view why_not(std::string_view key) {
  if (key.starts_with("model.")) return "the weights in the checkpoint belong to its model";
  if (key.starts_with("data.") || key == "run.batch" || key == "run.seed")
    return "it decides which rows come next, and these belong to the run of the checkpoint";
  if (key == "optimizer.kind") return "the moments in the checkpoint belong to its optimizer";
  if (key.starts_with("checkpoint.")) return "it describes the pool, which holds the checkpoint already";
  return "it does not change the run and is not kept with it: use --set";
}

bool is_changeable(std::string_view key) { return std::ranges::find(kMayChange, key) != kMayChange.end(); }

tl::unexpected<Error> invalid(std::string what) { return make_error(ErrorCode::kInvalidArgument, std::move(what)); }

std::string key_of(const std::string& change) {
  const std::size_t first = change.find_first_not_of(" \t");
  const std::size_t equals = change.find('=');
  if (first == std::string::npos || equals == std::string::npos || first >= equals) return {};
  const std::size_t last = change.find_last_not_of(" \t", equals - 1);
  return change.substr(first, last - first + 1);
}

const std::string* note(const Notes& notes, std::string_view name) {
  const auto at = std::ranges::find(notes, name, [](const auto& one) { return std::string_view(one.first); });
  return at == notes.end() ? nullptr : &at->second;
}

/// "KEY = VALUE", a line each; VALUE is empty where the key did not apply.
std::map<std::string, std::string> before_of(const std::string& text) {
  std::map<std::string, std::string> before;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    const std::size_t equals = line.find(" = ");
    if (equals != std::string::npos && is_changeable(line.substr(0, equals)))
      before[line.substr(0, equals)] = line.substr(equals + 3);
  }
  return before;
}

std::string value_or_none(const TrainConfig& config, const std::string& key) {
  return value_of(config, key).value_or("");
}

}  // namespace

Status may_change(std::string_view key) {
  const auto keys = known_keys();
  if (std::ranges::none_of(keys, [key](const KeyDescription& one) { return one.name == key; }))
    return invalid("key " + std::string(key) + " does not exist");
  if (is_changeable(key)) return {};
  return invalid(std::string(key) + " can't be changed in a resumed run: " + std::string(why_not(key)));
}

Notes Resolved::notes() const {
  std::string text;
  for (const auto& [key, value] : before) text.append(key).append(" = ").append(value).append("\n");
  return {{std::string(kConfigNote), to_toml(loaded.config)}, {std::string(kBeforeNote), std::move(text)}};
}

Result<Resolved> resolve(const LoadedConfig& given, std::span<const std::string> changes,
                         const std::optional<SavedRun>& saved) {
  std::vector<std::string> keys;
  std::vector<Override> wanted;
  for (const std::string& change : changes) {
    keys.push_back(key_of(change));
    if (keys.back().empty()) return invalid("--change " + change + ": expected section.key=value");
    if (Status may = may_change(keys.back()); !may) return invalid("--change " + change + ": " + may.error().message);
    wanted.push_back({change, "--change"});
  }

  Resolved made;
  made.loaded = given;
  // What the checkpoint was made with, if it says so.
  std::optional<TrainConfig> then;
  if (saved) {
    const std::string* config = note(saved->notes, kConfigNote);
    const std::string* before = note(saved->notes, kBeforeNote);
    if (config != nullptr) {
      if (const auto parsed = parse_config(*config, "the checkpoint's config")) then = parsed->config;
    }
    if (then && before != nullptr) made.before = before_of(*before);
  }
  made.hash_only = saved && !then;
  if (then) {
    // What was changed stays so where the config still says what it said then.
    std::vector<Override> kept;
    std::erase_if(made.before, [&](const auto& change) {
      const auto& [key, before] = change;
      const std::string here = value_or_none(given.config, key);
      const std::string now = value_or_none(*then, key);
      if (here != before && here != now) return true;
      if (here != now && !now.empty()) kept.push_back({key + "=" + now, "the checkpoint's"});
      return false;
    });
    DUNNOCK_TRY(auto with, with_overrides(given, kept));
    made.loaded = std::move(with);

    std::string differ;
    std::string would_do;
    const bool another_schedule = std::ranges::find(keys, "optimizer.schedule") != keys.end();
    for (const ConfigDifference& one : differences(made.loaded.config, *then)) {
      if (std::ranges::find(keys, one.key) != keys.end()) continue;
      // What only one of two schedules has.
      const bool of_schedule = is_changeable(one.key) && (one.here == "none" || one.there == "none");
      if (another_schedule && of_schedule) continue;
      differ += (differ.empty() ? "" : ", ") + one.key + " is " + one.here + " here and " + one.there + " there";
      if (is_changeable(one.key) && one.here != "none") would_do += " --change " + one.key + "=" + one.here;
    }
    if (!differ.empty()) {
      std::string what = "the checkpoint of step " + std::to_string(saved->step) +
                         " belongs to another model, other data or another optimizer: " + differ;
      if (!would_do.empty()) what += "; to resume with the changes that are allowed, give" + would_do;
      return invalid(std::move(what));
    }
  }
  made.setup = identity_of(then ? *then : made.loaded.config);

  if (wanted.empty()) return made;
  const TrainConfig unchanged = made.loaded.config;
  DUNNOCK_TRY(auto changed, with_overrides(made.loaded, wanted));
  made.loaded = std::move(changed);
  const double momentum = then ? then->optimizer.momentum : unchanged.optimizer.momentum;
  const double momentum_now = made.loaded.config.optimizer.momentum;
  if (saved && (momentum == 0) != (momentum_now == 0))
    return invalid("optimizer.momentum can't be changed " + std::string(momentum == 0 ? "from" : "to") +
                   " 0 in a resumed run: a checkpoint contains moments only if the momentum is above 0");
  for (const std::string& key : keys) made.before.try_emplace(key, value_or_none(given.config, key));
  return made;
}

std::string command_line(std::span<const std::string> words) {
  constexpr std::string_view kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./=:,@%+-";
  std::string line;
  for (const std::string& word : words) {
    if (!line.empty()) line += ' ';
    if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) {
      line += word;
      continue;
    }
    line += '\'';
    for (const char c : word) line += c == '\'' ? std::string("'\\''") : std::string(1, c);
    line += '\'';
  }
  return line;
}

std::vector<std::string> resuming_command(std::span<const std::string> words, std::uint64_t step,
                                          std::span<const std::string> changes) {
  std::vector<std::string> all;
  const auto is_replaced = [&](const std::string& change) {
    return std::ranges::any_of(changes, [&](const std::string& one) { return key_of(one) == key_of(change); });
  };
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == "--resume" || word.starts_with("--resume-step=")) continue;
    if (word.starts_with("--change=") && is_replaced(word.substr(9))) continue;
    if (word == "--resume-step") {
      ++i;
      continue;
    }
    if (word == "--change" && i + 1 < words.size() && is_replaced(words[i + 1])) {
      ++i;
      continue;
    }
    all.push_back(word);
  }
  all.insert(all.end(), {"--resume-step", std::to_string(step)});
  for (const std::string& change : changes) all.insert(all.end(), {"--change", change});
  return all;
}

}  // namespace dunnock::train
