#include "prefix_history.hpp"

#include <iterator>
#include <random>

namespace dunnock::crash {

PrefixHistory::PrefixHistory(const Workload& workload) : HistorySubject(workload) { generate(); }

void PrefixHistory::generate() {
  std::mt19937_64 random(workload_.seed * 0x9e3779b97f4a7c15ULL + 17);
  options_.capacity_bytes = (5 + random() % 3) * 1024;
  options_.segment_bytes = 1024;
  options_.blocks_max = 6 + random() % 10;
  options_.fill_max = 0.6;
  options_.seed = HashSeed::from(workload_.seed);
  prefill_ = random() % 12;
  StoreOptions store = Checked::store_options(options_);
  store.index.entries = 0;
  memory_ = StoreMemory(store);
  for (int n = 0; n < 6; ++n) {
    std::vector<std::uint32_t> tokens(1 + random() % 5);
    for (std::uint32_t& token : tokens) token = static_cast<std::uint32_t>(random() % 2);
    prompt_tokens_.push_back(std::move(tokens));
  }
  switch_every_ = 1 + static_cast<unsigned>(random() % 6);
  static constexpr unsigned kHeld[] = {0, 0, 8, 64, 256};
  for (unsigned n = 0; n < workload_.operations; ++n) {
    operations_.push_back({static_cast<unsigned>(random() % workload_.threads), random() % prompt_tokens_.size(),
                           random() % 6 == 0 ? 1 + random() % 6 : 0, random() % 5 == 0 ? random() % 3 : 100,
                           workload_.threads == 1 ? 0 : kHeld[random() % std::size(kHeld)]});
  }
}

std::vector<std::byte> PrefixHistory::block_of(const IndexKey& key) {
  std::vector<std::byte> bytes(24 + key.low % 60);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(key.high * (i + 1) >> 9);
  return bytes;
}

void PrefixHistory::begin_prefix_record(std::byte* memory) {
  begin_record();
  sure_.clear();
  changes_ = {};
  Checked store = *Checked::attach(std::move(*memory_.format<ImageMedia>(memory, {})), options_);
  const IndexKey root = store.root({});
  prompts_.clear();
  for (const auto& tokens : prompt_tokens_) prompts_.push_back(Checked::keys_of(root, tokens, 1));
  for (std::size_t n = 0; n < prefill_; ++n) serve(store, prompts_[n % prompts_.size()]);
  begin_history(store);
}

void PrefixHistory::begin_history(const Checked& store) {
  calls_.clear();
  time_ = 0;
  tree_ = {};
  tree_.evicts_by_itself = true;
  first_ = {};
  first_.tree = &tree_;
  numbers_.clear();
  for (const auto& keys : prompts_) {
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const auto number = static_cast<std::uint8_t>(numbers_.size());
      if (!numbers_.try_emplace({keys[i].low, keys[i].high}, number).second) continue;
      tree_.parents.push_back(i == 0 ? -1 : number_of(keys[i - 1]));
    }
    const std::size_t there = store.lookup(keys).blocks();
    for (std::size_t i = 0; i < there; ++i) first_.there |= std::uint64_t{1} << number_of(keys[i]);
  }
}

bool PrefixHistory::has_an_order() {
  for (auto& one : calls_) {  // See PrefixTree::Call::contended.
    const bool looks = one.call.what == PrefixTree::What::kLookup;
    if (looks && one.call.count == one.call.blocks.size()) continue;
    const std::uint8_t block = one.call.blocks.empty() ? 0 : one.call.blocks[looks ? one.call.count : 0];
    one.call.contended = std::ranges::any_of(calls_, [&](const auto& other) {
      const bool puts = other.call.what == PrefixTree::What::kPut &&
                        ((tree_.evicts_by_itself && !looks) || other.call.blocks[0] == block);
      return &other != &one && (puts || (other.call.what == PrefixTree::What::kEvict && !looks)) &&
             other.began < one.returned && one.began < other.returned;
    });
  }
  return linearize<PrefixTree>(calls_, first_, 20000).linearizable;
}

std::optional<std::string> PrefixHistory::check(std::byte* image, std::size_t events, std::size_t more) {
  auto opened = attach<ImageMedia>(image, {});
  if (!opened) return "it can't be opened: " + opened.error().message;
  Checked& store = *opened;
  const IndexCheck report = store.check();  // Every block's parent is there, and every value is valid.
  if (!report.ok()) return report.violations.front();
  for (std::size_t prompt = 0; prompt < prompts_.size(); ++prompt) {
    if (auto wrong = check_prompt(store, prompt)) return wrong;
  }
  for (const Sure& one : sure_) {
    // As long as they are pinned nothing of them can be evicted.
    if (more == 0 && one.from <= events && events <= one.to && store.lookup(prompts_[one.prompt]).blocks() < one.blocks)
      return "pinned blocks are lost";
  }
  if (events % 4 != 0) return std::nullopt;
  for (const auto& keys : prompts_) {
    if (auto wrong = serve(store, keys)) return wrong;
  }
  const IndexCheck end = store.check();
  return end.ok() ? std::nullopt : std::optional("after going on: " + end.violations.front());
}

std::optional<std::string> PrefixHistory::check_prompt(const Checked& store, std::size_t prompt) const {
  const std::vector<IndexKey>& keys = prompts_[prompt];
  const auto match = store.lookup(keys);
  for (std::size_t i = 0; i < match.blocks(); ++i) {
    const auto block = store.get(keys[i]);
    if (!block) return "block " + std::to_string(i) + " of prompt " + std::to_string(prompt) + " can't be read";
    if (!std::ranges::equal(block.bytes, block_of(keys[i]))) return "a wrong block was served";
  }
  return std::nullopt;
}

std::string PrefixHistory::describe(std::size_t operation) const {
  const PrefixOperation& op = operations_[operation];
  return "thread " + std::to_string(op.thread) + ": " +
         (op.evicts != 0     ? "evict " + std::to_string(op.evicts)
          : op.blindly < 100 ? "put one block of prompt " + std::to_string(op.prompt)
                             : "serve prompt " + std::to_string(op.prompt));
}

}  // namespace dunnock::crash
