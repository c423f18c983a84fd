// Attention of one new token per sequence over keys and values that are kept in pages (decoding), and the kernel that
// stores new keys and values there.
//
// The cache is k and v (blocks, kv_heads, block_tokens, head_dim). Row s of the table names the blocks of sequence s in
// order: token t is in block table[s][t / block_tokens], at t % block_tokens. What one head reads of a block is
// block_tokens * head_dim values in a row (4 KiB at 16 x 128 of Bf16): whole pages of DRAM and 16-byte loads for k and
// v alike, each byte read once for all query heads of the group. (With tokens outside heads the pieces would be rows of
// a head: 256 bytes; with head_dim outside tokens a thread could own a key, but v would need another layout and
// appending would write 2 bytes at a time.)
//
// T is the type of queries and outputs, C that of the cache: (float, float), (Bf16, Bf16) or (float, Bf16). Nothing
// allocates. Spans that do not fit the shape are programmer errors; the contents of tables, lengths and positions are
// not checked before they are used.
// Sources: Kwon et al. 2023, PagedAttention (arXiv 2309.06180); Dao et al. 2023, Flash-Decoding. We differ: the split
// is of all sequences' tokens laid end to end, so that each block of threads gets as much, however ragged the lengths.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/heads_view.hpp"
#include "dunnock/kernels/kernel.hpp"

namespace dunnock::kernels {

struct PagedShape {
  std::size_t sequences = 0;
  std::size_t heads = 0;              ///< of q and o; a multiple of kv_heads
  std::size_t kv_heads = 0;           ///< > 0
  std::size_t head_dim = 0;           ///< 1 .. 256
  std::size_t blocks = 0;             ///< of the cache
  std::size_t block_tokens = 16;      ///< a power of two
  std::size_t blocks_a_sequence = 0;  ///< the table's width: the most blocks per sequence
  float scale = 0;                    ///< >= 0; 0: 1 / sqrt(head_dim)
};

template <class C>
struct PagedCache {
  device::Span<C> k;  // (blocks, kv_heads, block_tokens, head_dim)
  device::Span<C> v;  // (blocks, kv_heads, block_tokens, head_dim)
};

struct PagedSequences {
  device::Span<const std::int32_t> tables;   // (sequences, blocks_a_sequence)
  device::Span<const std::int32_t> lengths;  // (sequences): tokens to attend to, including the newest
};

/// Floats of workspace that PagedAttention needs on this device.
[[nodiscard]] std::size_t paged_attention_workspace(const PagedShape& shape, device::Device device);
/// q (1, sequences, heads, head_dim) -> o (sequences, heads, head_dim). A sequence of length 0 gets zeros. The sums'
/// order depends on the lengths of all sequences, and is the same in each run.
template <class T, class C>
struct PagedAttention {
  HeadsView<const T> q{};
  PagedCache<const C> cache{};
  PagedSequences sequences{};
  device::Span<T> o{};
  PagedShape shape{};
  device::Span<float> workspace{};
};
DUNNOCK_KERNEL_2(PagedAttention);

/// New tokens, of any sequences.
template <class T>
struct NewKeysValues {
  std::size_t tokens = 0;
  HeadsView<const T> k;                          // (1, tokens, kv_heads, head_dim)
  HeadsView<const T> v;                          // (1, tokens, kv_heads, head_dim)
  device::Span<const std::int32_t> sequence_of;  // (tokens); empty: token i is of sequence i
  device::Span<const std::int32_t> positions;    // (tokens): in the sequence; negative: not stored
  device::Span<const std::int32_t> tables;       // (sequences, blocks_a_sequence)
};

/// Stores them where the tables say, rounded to C.
template <class T, class C>
struct AppendToPagedCache {
  NewKeysValues<T> tokens{};
  PagedCache<C> cache{};
  PagedShape shape{};
};
DUNNOCK_KERNEL_2(AppendToPagedCache);

}  // namespace dunnock::kernels
