// PrefixStore: the KV cache of an inference server that is warm after a restart. Run it twice with one path.
//
// Prompts that begin alike share the blocks of what they have in common. `attention` stands in for the model: slow, and
// a function of all tokens up to the end of the block, as real keys and values are.
#include <fmt/core.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include <dunnock/index/prefix_store.hpp>

namespace {

using Store = dunnock::PrefixStore<dunnock::FileMedia>;

constexpr std::size_t kBlockTokens = 16;
constexpr std::size_t kBlockBytes = 64 << 10;  // 16 tokens of a model with 4 KiB of keys and values for each
const dunnock::PrefixOptions kOptions = {
    .capacity_bytes = 64 << 20, .segment_bytes = 4 << 20, .blocks_max = 1024, .seed = dunnock::HashSeed::from(1)};

/// Everything but the tokens that a block depends on.
const dunnock::PrefixDomain kDomain = {.model_digest = dunnock::IndexKey::of("the bytes of the weights"),
                                       .dtype = "BF16",
                                       .layout = "block, head, dim",
                                       .tenant = "everybody"};

/// The keys and values of tokens [16 * block, 16 * block + 16).
std::vector<std::byte> attention(const std::vector<std::uint32_t>& tokens, std::size_t block) {
  std::vector<std::byte> bytes(kBlockBytes);
  std::uint64_t state = 0;
  for (std::size_t t = 0; t < (block + 1) * kBlockTokens; ++t) state = (state ^ tokens[t]) * 0x9e3779b97f4a7c15ULL;
  for (std::size_t at = 0; at < bytes.size(); at += sizeof state) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    std::memcpy(bytes.data() + at, &state, sizeof state);
  }
  return bytes;
}

/// A system prompt of 64 tokens that all share, what a user of this number has said so far, and something new.
std::vector<std::uint32_t> prompt_of(std::uint32_t user, std::uint32_t turn) {
  std::vector<std::uint32_t> tokens;
  for (std::uint32_t t = 0; t < 64; ++t) tokens.push_back(t);
  for (std::uint32_t t = 0; t < 48 * (turn + 1); ++t) tokens.push_back(1000 + user * 100'000 + t);
  return tokens;
}

struct Served {
  std::size_t blocks = 0;
  std::size_t reused = 0;
  bool right = true;
};

/// Reads what is there, computes the rest, and offers it to the store.
void serve(Store& store, const dunnock::IndexKey& root, const std::vector<std::uint32_t>& tokens, Served& served) {
  const std::vector<dunnock::IndexKey> keys = Store::keys_of(root, tokens, kBlockTokens);
  const Store::Match match = store.lookup(keys);  // What it has found stays while this lives.
  std::size_t block = 0;
  while (block < match.blocks()) {
    const Store::Block there = store.get(keys[block]);
    if (!there) break;  // Damaged: a block may be lost, but a wrong one is never given.
    const std::vector<std::byte> expected = attention(tokens, block);
    served.right = served.right && there.bytes.size() == expected.size() &&
                   std::memcmp(there.bytes.data(), expected.data(), expected.size()) == 0;
    ++block;
  }
  served.reused += block;
  served.blocks += keys.size();
  for (; block < keys.size(); ++block) store.put(keys, block, attention(tokens, block));
}

dunnock::Status run(const std::string& path) {
  auto opened = Store::open_or_create(path, "blocks", kOptions);
  if (!opened) return tl::unexpected(opened.error());

  Store& store = **opened;
  const dunnock::IndexKey root = store.root(kDomain);
  Served served;
  for (std::uint32_t turn = 0; turn < 3; ++turn) {
    for (std::uint32_t user = 0; user < 8; ++user) serve(store, root, prompt_of(user, turn), served);
  }
  const dunnock::PrefixStats stats = store.stats();
  fmt::print("{} of {} blocks reused, all {}\n", served.reused, served.blocks, served.right ? "right" : "WRONG");
  fmt::print("{} blocks kept, {:.1f} probes a request\n", stats.blocks,
             static_cast<double>(stats.probes) / static_cast<double>(stats.lookups));
  return opened->close();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    fmt::print(stderr, "usage: dunnock-prefix-cache POOL_FILE\n");
    return 2;
  }
  const dunnock::Status status = run(argv[1]);
  if (!status) fmt::print(stderr, "{}: {}\n", dunnock::to_string(status.error().code), status.error().message);
  return status ? 0 : 1;
}
