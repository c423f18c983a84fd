// Floor: each byte of the sequences' keys and values read once, at the device's bandwidth; the rest is small. So a warp
// copies rows to shared memory two stages ahead (a stage is 4 KiB; 16 warps a multiprocessor have 128 KiB in flight),
// the grid is as many blocks as fit at once, and each gets as many tokens (see Partials). A second kernel adds up what
// several blocks have of one sequence.
//
// A row of a head is 16 bytes a lane; lanes that share a row have parts of its dimensions, of the keys and of o alike.
// Each such group of lanes has its own maximum, and they are merged when the piece is over. All query heads of a group
// of heads (up to 8) are in registers, so keys and values are read once.
#include <limits>

#include "cuda/device_code.hpp"
#include "paged_attention_parts.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {
namespace {

using namespace device_code;

constexpr unsigned kWarps = 4;
constexpr unsigned kThreads = kWarps * kWarp;
constexpr unsigned kStages = 3;
constexpr unsigned kStageBytes = 2048;  // of keys; as many of values
constexpr unsigned kBlocksAtOnce = 4;   // a multiprocessor: 48 KiB of shared memory each
constexpr std::size_t kSharedBytes = std::size_t{kWarps} * kStages * 2 * kStageBytes;
constexpr unsigned kGroupMax = 8;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504F;

__device__ float exp2_fast(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

template <class T, class C>
struct PagedArgs {
  const T* q;
  std::size_t q_token, q_head;  // strides
  const C* k;
  const C* v;
  const std::int32_t* tables;
  const std::int32_t* lengths;
  Partials partials;
  T* o;
  unsigned sequences, heads, kv_heads, head_dim, block_shift, blocks_a_sequence, parts;
  bool aligned;  // rows of the cache are whole packs of 16 bytes, aligned
  float scale;   // times log2(e)
};

/// Sum over the warp.
__device__ inline unsigned long long warp_total(unsigned long long value) {
#pragma unroll
  for (unsigned mask = kWarp / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

/// Units of the sequences before `sequence`. By a whole warp.
__device__ inline std::size_t units_before(const std::int32_t* lengths, unsigned sequence) {
  unsigned long long units = 0;
  for (unsigned s = threadIdx.x % kWarp; s < sequence; s += kWarp) units += units_of_length(lengths[s]);
  return static_cast<std::size_t>(warp_total(units));
}

/// The sequence that has a unit, and the units before it. By a whole warp; there is one.
struct Found {
  unsigned sequence;
  std::size_t before;
};
__device__ inline Found find_unit(const std::int32_t* lengths, unsigned sequences, std::size_t unit) {
  const unsigned lane = threadIdx.x % kWarp;
  std::size_t before = 0;
  for (unsigned first = 0; first < sequences; first += kWarp) {
    unsigned long long end = first + lane < sequences ? units_of_length(lengths[first + lane]) : 0;
#pragma unroll
    for (unsigned distance = 1; distance < kWarp; distance *= 2) {
      const unsigned long long lower = shuffle(end, lane >= distance ? lane - distance : lane);
      if (lane >= distance) end += lower;
    }
    const unsigned behind = ballot(before + end > unit);  // Ends rise, so the first lane is the one.
    if (behind != 0) {
      const unsigned found = static_cast<unsigned>(__ffs(static_cast<int>(behind))) - 1;
      const unsigned long long start = shuffle(end, found == 0 ? 0 : found - 1);
      return {first + found, before + (found == 0 ? 0 : static_cast<std::size_t>(start))};
    }
    before += static_cast<std::size_t>(shuffle(end, kWarp - 1));
  }
  return {sequences, before};
}

/// Block (x, y): part x of the line; heads of keys, and which kGroup of the heads that read them.
template <class T, class C, unsigned kDim, unsigned kGroup>
__global__ void __launch_bounds__(kThreads, kGroup == 1 ? kBlocksAtOnce : 2)
    paged_attention_kernel(PagedArgs<T, C> args) {
  constexpr unsigned kWidth = kPack<C>;
  constexpr unsigned kRowPacks = kDim / kWidth;
  constexpr unsigned kRowLanes = kRowPacks < kWarp ? kRowPacks : kWarp;
  constexpr unsigned kPacks = kRowPacks / kRowLanes;              // of a lane
  constexpr unsigned kRows = kWarp / kRowLanes;                   // at a time
  constexpr unsigned kTokens = kStageBytes / (kDim * sizeof(C));  // of a stage
  constexpr unsigned kSteps = kTokens / kRows;
  constexpr unsigned kValues = kPacks * kWidth;
  static_assert(kSteps * kRows == kTokens && kSteps > 0);
  DUNNOCK_DYNAMIC_SHARED(unsigned char, shared);
  const unsigned warp = threadIdx.x / kWarp;
  const unsigned lane = threadIdx.x % kWarp;
  C* const ring = reinterpret_cast<C*>(shared + std::size_t{warp} * kStages * 2 * kStageBytes);
  const unsigned group = args.heads / args.kv_heads;
  const unsigned tiles = (group + kGroup - 1) / kGroup;
  const unsigned kv_head = blockIdx.y / tiles;
  const unsigned first_head = kv_head * group + blockIdx.y % tiles * kGroup;
  const unsigned heads = group - blockIdx.y % tiles * kGroup < kGroup ? group - blockIdx.y % tiles * kGroup : kGroup;
  const std::size_t units = units_before(args.lengths, args.sequences);
  const std::size_t parts = parts_used(args.parts, units);
  if (blockIdx.x >= parts) return;
  std::size_t unit = first_unit(blockIdx.x, parts, units);
  const std::size_t last = first_unit(blockIdx.x + 1, parts, units);
  Found at = find_unit(args.lengths, args.sequences, unit);

  while (unit < last) {
    const std::int32_t length = args.lengths[at.sequence];
    const std::size_t end = at.before + units_of_length(length);
    if (end <= unit) {  // A sequence without tokens.
      ++at.sequence;
      continue;
    }
    const unsigned token_first = static_cast<unsigned>(unit - at.before) * kUnitTokens;
    const unsigned token_last =
        end <= last ? static_cast<unsigned>(length) : static_cast<unsigned>(last - at.before) * kUnitTokens;
    const unsigned chunks = (token_last - token_first + kTokens - 1) / kTokens;
    const std::int32_t* const table = args.tables + std::size_t{at.sequence} * args.blocks_a_sequence;

    // Begins to copy a chunk of rows; zeros past the last token.
    const auto load = [&](unsigned chunk, unsigned stage) {
      if (chunk >= chunks) return;
      C* const k_to = ring + stage * (2 * kStageBytes / sizeof(C));
      C* const v_to = k_to + kStageBytes / sizeof(C);
      const auto row_of = [&](unsigned token) {
        const auto block = static_cast<std::size_t>(__ldg(table + (token >> args.block_shift)));
        const unsigned inside = token & ((1U << args.block_shift) - 1);
        return (((block * args.kv_heads + kv_head) << args.block_shift) + inside) * args.head_dim;
      };
      if (args.aligned) {
#pragma unroll
        for (unsigned i = 0; i < kTokens * kRowPacks; i += kWarp) {
          const unsigned token = token_first + chunk * kTokens + (i + lane) / kRowPacks;
          const unsigned d = (i + lane) % kRowPacks * kWidth;
          const bool there = token < token_last && d < args.head_dim;
          const std::size_t row = there ? row_of(token) + d : 0;
          copy_async_16(k_to + (i + lane) * kWidth, args.k + row, there);
          copy_async_16(v_to + (i + lane) * kWidth, args.v + row, there);
        }
      } else {
        for (unsigned i = lane; i < kTokens * kDim; i += kWarp) {
          const unsigned token = token_first + chunk * kTokens + i / kDim;
          const bool there = token < token_last && i % kDim < args.head_dim;
          const std::size_t row = there ? row_of(token) + i % kDim : 0;
          k_to[i] = there ? args.k[row] : from_float<C>(0.0F);
          v_to[i] = there ? args.v[row] : from_float<C>(0.0F);
        }
      }
    };
#pragma unroll
    for (unsigned i = 0; i + 1 < kStages; ++i) {
      load(warp + i * kWarps, i);
      copies_commit();
    }
    float q[kGroup][kValues];
    float o[kGroup][kValues];
    float max[kGroup];
    float sum[kGroup];
#pragma unroll
    for (unsigned h = 0; h < kGroup; ++h) {
      max[h] = kMinusInfinity;
      sum[h] = 0;
#pragma unroll
      for (unsigned i = 0; i < kValues; ++i) {
        const unsigned d = (i / kWidth * kRowLanes + lane % kRowLanes) * kWidth + i % kWidth;
        q[h][i] = h < heads && d < args.head_dim
                      ? to_float(args.q[at.sequence * args.q_token + (first_head + h) * args.q_head + d]) * args.scale
                      : 0.0F;
        o[h][i] = 0;
      }
    }
    unsigned stage = 0;
    for (unsigned chunk = warp; chunk < chunks; chunk += kWarps) {
      load(chunk + (kStages - 1) * kWarps, stage == 0 ? kStages - 1 : stage - 1);
      copies_commit();
      copies_wait<kStages - 1>();
      sync_warp();
      const C* const k = ring + stage * (2 * kStageBytes / sizeof(C));
      const C* const v = k + kStageBytes / sizeof(C);
      float s[kGroup][kSteps];
#pragma unroll
      for (unsigned step = 0; step < kSteps; ++step) {
        const unsigned row = step * kRows + lane / kRowLanes;
        const bool there = token_first + chunk * kTokens + row < token_last;
        float key[kValues];
#pragma unroll
        for (unsigned p = 0; p < kPacks; ++p) {
          const auto pack = load_pack<kWidth>(k + row * kDim + (p * kRowLanes + lane % kRowLanes) * kWidth);
#pragma unroll
          for (unsigned i = 0; i < kWidth; ++i) key[p * kWidth + i] = to_float(pack.values[i]);
        }
#pragma unroll
        for (unsigned h = 0; h < kGroup; ++h) {
          float dot = 0;
#pragma unroll
          for (unsigned i = 0; i < kValues; ++i) dot += q[h][i] * key[i];
          dot = warp_reduce<Sum, kRowLanes>(dot);
          s[h][step] = there ? dot : kMinusInfinity;
        }
      }
#pragma unroll
      for (unsigned h = 0; h < kGroup; ++h) {
        float highest = max[h];
#pragma unroll
        for (unsigned step = 0; step < kSteps; ++step) highest = Max{}(highest, s[h][step]);
        const float from = highest == kMinusInfinity ? 0.0F : highest;  // exp2(-infinity - 0) is 0.
        const float factor = exp2_fast(max[h] - from);
        max[h] = highest;
        sum[h] *= factor;
#pragma unroll
        for (unsigned i = 0; i < kValues; ++i) o[h][i] *= factor;
#pragma unroll
        for (unsigned step = 0; step < kSteps; ++step) {
          s[h][step] = exp2_fast(s[h][step] - from);
          sum[h] += s[h][step];
        }
      }
#pragma unroll
      for (unsigned step = 0; step < kSteps; ++step) {
        const unsigned row = step * kRows + lane / kRowLanes;
#pragma unroll
        for (unsigned p = 0; p < kPacks; ++p) {
          const auto pack = load_pack<kWidth>(v + row * kDim + (p * kRowLanes + lane % kRowLanes) * kWidth);
#pragma unroll
          for (unsigned h = 0; h < kGroup; ++h) {
#pragma unroll
            for (unsigned i = 0; i < kWidth; ++i) o[h][p * kWidth + i] += s[h][step] * to_float(pack.values[i]);
          }
        }
      }
      sync_warp();  // The stage may be filled again.
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    copies_wait<0>();

    // The groups of lanes, then the warps: through shared memory, (kWarps, kGroup, kDim + 2).
    __syncthreads();
    float* const merged = reinterpret_cast<float*>(shared);
#pragma unroll
    for (unsigned h = 0; h < kGroup; ++h) {
      float highest = max[h];
#pragma unroll
      for (unsigned mask = kRowLanes; mask < kWarp; mask *= 2) highest = Max{}(highest, shuffle_xor(highest, mask));
      const float factor = highest == kMinusInfinity ? 0.0F : exp2_fast(max[h] - highest);
      float total = sum[h] * factor;
#pragma unroll
      for (unsigned mask = kRowLanes; mask < kWarp; mask *= 2) total += shuffle_xor(total, mask);
      float* const mine = merged + (warp * kGroup + h) * (kDim + 2);
#pragma unroll
      for (unsigned i = 0; i < kValues; ++i) {
        float value = o[h][i] * factor;
#pragma unroll
        for (unsigned mask = kRowLanes; mask < kWarp; mask *= 2) value += shuffle_xor(value, mask);
        if (lane < kRowLanes) mine[(i / kWidth * kRowLanes + lane) * kWidth + i % kWidth] = value;
      }
      if (lane == 0) {
        mine[kDim] = highest;
        mine[kDim + 1] = total;
      }
    }
    __syncthreads();
    const std::size_t piece = std::size_t{blockIdx.x} + at.sequence;
    for (unsigned n = threadIdx.x; n < heads * args.head_dim; n += kThreads) {
      const unsigned h = n / args.head_dim;
      const unsigned d = n % args.head_dim;
      float highest = kMinusInfinity;
#pragma unroll
      for (unsigned w = 0; w < kWarps; ++w) highest = Max{}(highest, merged[(w * kGroup + h) * (kDim + 2) + kDim]);
      float value = 0;
      float total = 0;
#pragma unroll
      for (unsigned w = 0; w < kWarps; ++w) {
        const float* const theirs = merged + (w * kGroup + h) * (kDim + 2);
        const float factor = exp2_fast(theirs[kDim] - highest);  // A piece has a token, so `highest` is finite.
        value += theirs[d] * factor;
        total += theirs[kDim + 1] * factor;
      }
      const std::size_t row = piece * args.heads + first_head + h;
      args.partials.sums[row * args.head_dim + d] = value;
      if (d == 0) {
        args.partials.stats[row * 2] = highest;
        args.partials.stats[row * 2 + 1] = total;
      }
    }
    __syncthreads();  // The ring may be filled again.
    unit = end <= last ? end : last;
    at.before = end;
    ++at.sequence;
  }
}

/// Block (x, y): sequence x, head y.
template <class T, class C>
__global__ void __launch_bounds__(kThreads) merge_kernel(PagedArgs<T, C> args) {
  const unsigned sequence = blockIdx.x;
  const unsigned h = blockIdx.y;
  const std::size_t units = units_before(args.lengths, args.sequences);
  const std::size_t before = units_before(args.lengths, sequence);
  const std::size_t mine = units_of_length(args.lengths[sequence]);
  T* const o = args.o + (std::size_t{sequence} * args.heads + h) * args.head_dim;
  if (mine == 0) {
    for (unsigned d = threadIdx.x; d < args.head_dim; d += kThreads) o[d] = from_float<T>(0.0F);
    return;
  }
  const std::size_t parts = parts_used(args.parts, units);
  const std::size_t first = part_of_unit(before, parts, units) + sequence;
  const std::size_t last = part_of_unit(before + mine - 1, parts, units) + sequence;
  float highest = kMinusInfinity;
  for (std::size_t piece = first; piece <= last; ++piece)
    highest = Max{}(highest, args.partials.stats[(piece * args.heads + h) * 2]);
  for (unsigned d = threadIdx.x; d < args.head_dim; d += kThreads) {
    float value = 0;
    float total = 0;
#pragma unroll 4
    for (std::size_t piece = first; piece <= last; ++piece) {
      const std::size_t row = piece * args.heads + h;
      const float factor = exp2_fast(args.partials.stats[row * 2] - highest);
      value += args.partials.sums[row * args.head_dim + d] * factor;
      total += args.partials.stats[row * 2 + 1] * factor;
    }
    o[d] = from_float<T>(value / total);
  }
}

/// A thread: kWidth values of a head of a token, of k and of v.
template <class T, class C, unsigned kWidth>
__global__ void __launch_bounds__(256)
    append_kernel(const T* __restrict__ k, const T* __restrict__ v, std::size_t k_token, std::size_t k_head,
                  std::size_t v_token, std::size_t v_head, const std::int32_t* sequence_of,
                  const std::int32_t* positions, const std::int32_t* tables, C* k_cache, C* v_cache,
                  std::size_t packs_all, unsigned kv_heads, unsigned head_dim, unsigned block_shift,
                  unsigned blocks_a_sequence) {
  const std::size_t n = std::size_t{blockIdx.x} * 256 + threadIdx.x;
  if (n >= packs_all) return;
  const unsigned packs = head_dim / kWidth;
  const unsigned d = static_cast<unsigned>(n % packs) * kWidth;
  const unsigned h = static_cast<unsigned>(n / packs % kv_heads);
  const std::size_t token = n / packs / kv_heads;
  const std::int32_t position = positions[token];
  if (position < 0) return;
  const std::size_t sequence = sequence_of == nullptr ? token : static_cast<std::size_t>(sequence_of[token]);
  const auto at = static_cast<unsigned>(position);
  const auto block = static_cast<std::size_t>(tables[sequence * blocks_a_sequence + (at >> block_shift)]);
  const unsigned inside = at & ((1U << block_shift) - 1);
  const std::size_t to = (((block * kv_heads + h) << block_shift) + inside) * head_dim + d;
  const auto put = [](const T* from, C* where) {
    const auto in = load_pack<kWidth>(from);
    Pack<C, kWidth> out;
#pragma unroll
    for (unsigned i = 0; i < kWidth; ++i) out.values[i] = from_float<C>(to_float(in.values[i]));
    store_pack(where, out);
  };
  put(k + token * k_token + h * k_head + d, k_cache + to);
  put(v + token * v_token + h * v_head + d, v_cache + to);
}

unsigned shift_of(std::size_t power) { return static_cast<unsigned>(std::countr_zero(power)); }

unsigned group_tile(std::size_t group) { return group == 1 ? 1U : (group <= 4 ? 4U : kGroupMax); }

std::size_t parts_of(const PagedShape& shape, unsigned processors) {
  const std::size_t group = shape.heads / shape.kv_heads;
  const std::size_t others = shape.kv_heads * blocks_for(group, group_tile(group));
  const std::size_t tokens = shape.sequences * shape.blocks_a_sequence * shape.block_tokens;
  const std::size_t wanted = (std::size_t{processors} * kBlocksAtOnce + others - 1) / others;
  return std::clamp<std::size_t>(wanted, 1, std::max<std::size_t>(1, tokens / (4 * kUnitTokens)));
}

template <class T, class C, unsigned kGroup>
void launch_paged(const PagedArgs<T, C>& args, dim3 blocks, device::Stream& stream) {
  const auto with = [&](auto dim) {
    launch("paged attention", paged_attention_kernel<T, C, dim(), kGroup>, {blocks, dim3(kThreads), kSharedBytes},
           stream, args);
  };
  if (args.head_dim <= 32) {
    with(std::integral_constant<unsigned, 32>{});
  } else if (args.head_dim <= 64) {
    with(std::integral_constant<unsigned, 64>{});
  } else if (args.head_dim <= 128) {
    with(std::integral_constant<unsigned, 128>{});
  } else {
    with(std::integral_constant<unsigned, 256>{});
  }
}

}  // namespace

std::size_t paged_attention_workspace(const PagedShape& shape, unsigned processors) {
  return partial_floats(shape, parts_of(shape, processors));
}

template <class T, class C>
void run(const PagedAttention<T, C>& call, device::Stream& stream) {
  const std::size_t parts = parts_of(call.shape, multiprocessors(stream));
  const PagedArgs<T, C> args{
      .q = call.q.values.device_data(),
      .q_token = call.q.token_stride,
      .q_head = call.q.head_stride,
      .k = call.cache.k.device_data(),
      .v = call.cache.v.device_data(),
      .tables = call.sequences.tables.device_data(),
      .lengths = call.sequences.lengths.device_data(),
      .partials = partials_in(call.workspace, call.shape, parts),
      .o = call.o.device_data(),
      .sequences = static_cast<unsigned>(call.shape.sequences),
      .heads = static_cast<unsigned>(call.shape.heads),
      .kv_heads = static_cast<unsigned>(call.shape.kv_heads),
      .head_dim = static_cast<unsigned>(call.shape.head_dim),
      .block_shift = shift_of(call.shape.block_tokens),
      .blocks_a_sequence = static_cast<unsigned>(call.shape.blocks_a_sequence),
      .parts = static_cast<unsigned>(parts),
      .aligned = call.shape.head_dim % kPack<C> == 0 && is_aligned(call.cache.k.device_data()) &&
                 is_aligned(call.cache.v.device_data()),
      .scale = attention_scale(call.shape.scale, call.shape.head_dim) * kLog2E,
  };
  const std::size_t group = call.shape.heads / call.shape.kv_heads;
  const unsigned tile = group_tile(group);
  const dim3 blocks(args.parts, args.kv_heads * blocks_for(group, tile));
  if (tile == 1) {
    launch_paged<T, C, 1>(args, blocks, stream);
  } else if (tile == 4) {
    launch_paged<T, C, 4>(args, blocks, stream);
  } else {
    launch_paged<T, C, kGroupMax>(args, blocks, stream);
  }
  launch("paged attention merge", merge_kernel<T, C>, {dim3(args.sequences, args.heads), dim3(kThreads)}, stream, args);
}

template <class T, class C>
void run(const AppendToPagedCache<T, C>& call, device::Stream& stream) {
  constexpr unsigned kWide = sizeof(T) == 2 ? 8 : 4;
  const auto fits = [](const HeadsView<const T>& view) {
    return is_aligned(view.values.device_data()) && view.token_stride % kWide == 0 && view.head_stride % kWide == 0;
  };
  const bool wide = call.shape.head_dim % kWide == 0 && fits(call.tokens.k) && fits(call.tokens.v) &&
                    is_aligned(call.cache.k.device_data()) && is_aligned(call.cache.v.device_data());
  const auto with_width = [&](auto width) {
    const std::size_t packs = call.tokens.tokens * call.shape.kv_heads * (call.shape.head_dim / width());
    launch("append to paged cache", append_kernel<T, C, width()>, {dim3(blocks_for(packs, 256)), dim3(256)}, stream,
           call.tokens.k.values.device_data(), call.tokens.v.values.device_data(), call.tokens.k.token_stride,
           call.tokens.k.head_stride, call.tokens.v.token_stride, call.tokens.v.head_stride,
           call.tokens.sequence_of.device_data(), call.tokens.positions.device_data(), call.tokens.tables.device_data(),
           call.cache.k.device_data(), call.cache.v.device_data(), packs, static_cast<unsigned>(call.shape.kv_heads),
           static_cast<unsigned>(call.shape.head_dim), shift_of(call.shape.block_tokens),
           static_cast<unsigned>(call.shape.blocks_a_sequence));
  };
  if (wide) {
    with_width(std::integral_constant<unsigned, kWide>{});
  } else {
    with_width(std::integral_constant<unsigned, 1>{});
  }
}

DUNNOCK_INSTANTIATE_KERNEL_NARROWING(PagedAttention);
DUNNOCK_INSTANTIATE_KERNEL_NARROWING(AppendToPagedCache);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
