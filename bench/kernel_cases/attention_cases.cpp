#include "dunnock/kernels/attention.hpp"

#include <algorithm>
#include <cmath>

#include "dunnock/kernels/paged_attention.hpp"
#include "dunnock/kernels/rotary.hpp"
#include "kernel_case.hpp"

namespace dunnock::bench {
namespace {

using namespace kernels;

std::string text(const AttentionShape& shape) {
  return std::to_string(shape.batch) + " x " + std::to_string(shape.query_tokens) + " x " +
         std::to_string(shape.heads) + " x " + std::to_string(shape.head_dim) + (shape.causal ? " causal" : " full");
}

/// The products that the mask leaves.
double flops_of(const AttentionShape& shape, double products) {
  const auto values = static_cast<double>(shape.batch * shape.heads * shape.query_tokens * shape.head_dim);
  return 2 * products * values * static_cast<double>(shape.key_tokens) / (shape.causal ? 2 : 1);
}

PeerOperation operation_of(const char* op, const AttentionShape& shape) {
  return {op,
          {{"batch", shape.batch},
           {"tokens", shape.query_tokens},
           {"heads", shape.heads},
           {"head", shape.head_dim},
           {"causal", shape.causal ? 1 : 0}}};
}

/// The rounding of p and ds to T, of values that are about 1.
template <class T>
constexpr double kCaseAbsolute = std::is_same_v<T, float> ? 2e-4 : 0.05;

/// q, k and v as a projection leaves them.
template <class T>
AttentionInputs<T> packed(device::Span<const T> qkv, const AttentionShape& shape) {
  const auto part = [&](std::size_t n) {
    return heads_view(qkv, {.tokens = shape.query_tokens,
                            .heads = 3 * shape.heads,
                            .head_dim = shape.head_dim,
                            .first_head = n * shape.heads});
  };
  return {part(0), part(1), part(2)};
}

template <class T>
KernelCase forward(const AttentionShape& shape) {
  KernelCase one;
  one.kernel = "attention";
  one.type = type_name<T>();
  one.shape = text(shape);
  one.flops = flops_of(shape, 2);
  one.operation = operation_of("attention", shape);
  one.relative = kCaseRounding<T>;
  one.absolute = kCaseAbsolute<T>;
  one.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const std::size_t count = shape.batch * shape.query_tokens * shape.heads * shape.head_dim;
    const device::Span<const T> qkv = values.normal<T>(3 * count);
    const auto o = values.result<T>(count);
    const auto lse = values.result<float>(shape.batch * shape.heads * shape.query_tokens);
    return [=](device::Stream& stream, Form form) {
      const auto to = heads_view(o, {.tokens = shape.query_tokens, .heads = shape.heads, .head_dim = shape.head_dim});
      run_form(form, Attention<T>{.in = packed(qkv, shape), .o = to, .lse = lse, .shape = shape}, stream);
    };
  };
  return one;
}

template <class T>
KernelCase backward(const AttentionShape& shape) {
  KernelCase one;
  one.kernel = "attention backward";
  one.type = type_name<T>();
  one.shape = text(shape);
  one.flops = flops_of(shape, 5);
  one.operation = operation_of("attention_backward", shape);
  one.relative = kCaseRounding<T>;
  one.absolute = 4 * kCaseAbsolute<T>;
  one.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const std::size_t count = shape.batch * shape.query_tokens * shape.heads * shape.head_dim;
    const device::Span<const T> qkv = values.normal<T>(3 * count);
    const auto o = values.normal<T>(count, 0, 0.1F);
    const auto o_grad = values.normal<T>(count);
    // Some log-sum of as many normal logits: p is then of the right size.
    const float log_sum = 0.5F + std::log(static_cast<float>(shape.key_tokens));
    const auto lse = values.normal<float>(shape.batch * shape.heads * shape.query_tokens, log_sum, 0.1F);
    const auto gradient = values.result<T>(3 * count);
    const auto space = values.workspace<float>(attention_backward_workspace(shape, values.device()));
    return [=](device::Stream& stream, Form form) {
      const PackedHeads rows{.tokens = shape.query_tokens, .heads = shape.heads, .head_dim = shape.head_dim};
      const auto part = [&](std::size_t n) {
        return heads_view(gradient, {.tokens = shape.query_tokens,
                                     .heads = 3 * shape.heads,
                                     .head_dim = shape.head_dim,
                                     .first_head = n * shape.heads});
      };
      run_form(form,
               AttentionBackward<T>{.in = packed(qkv, shape),
                                    .results = {heads_view(o, rows), heads_view(o_grad, rows), lse},
                                    .gradients = {part(0), part(1), part(2)},
                                    .shape = shape,
                                    .workspace = space},
               stream);
    };
  };
  return one;
}

template <class T, class C>
KernelCase decoding(PagedShape shape, std::size_t context) {
  shape.blocks_a_sequence = (context + shape.block_tokens - 1) / shape.block_tokens;
  shape.blocks = shape.sequences * shape.blocks_a_sequence;
  KernelCase one;
  one.kernel = "paged attention";
  one.type = type_name<C>();
  one.shape = std::to_string(shape.sequences) + " x " + std::to_string(context) + " tokens, " +
              std::to_string(shape.heads) + " on " + std::to_string(shape.kv_heads) + " heads of " +
              std::to_string(shape.head_dim);
  one.bytes = 2.0 * sizeof(C) * static_cast<double>(shape.sequences * context * shape.kv_heads * shape.head_dim);
  if (std::is_same_v<T, C>)
    one.operation = {"decode_attention",
                     {{"batch", shape.sequences},
                      {"context", context},
                      {"heads", shape.heads},
                      {"kv_heads", shape.kv_heads},
                      {"head", shape.head_dim}}};
  one.relative = kCaseRounding<T>;
  one.absolute = 2e-5;
  one.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const std::size_t cached = shape.blocks * shape.kv_heads * shape.block_tokens * shape.head_dim;
    const device::Span<const T> q = values.normal<T>(shape.sequences * shape.heads * shape.head_dim);
    const device::Span<const C> k = values.normal<C>(cached);
    const device::Span<const C> v = values.normal<C>(cached);
    std::vector<std::int32_t> blocks(shape.blocks);
    for (std::size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<std::int32_t>(i);
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937_64(7));
    const auto tables = values.of(blocks);
    const auto lengths = values.of(std::vector<std::int32_t>(shape.sequences, static_cast<std::int32_t>(context)));
    const auto o = values.result<T>(q.size());
    const auto space = values.workspace<float>(paged_attention_workspace(shape, values.device()));
    return [=](device::Stream& stream, Form form) {
      const auto view = heads_view(q, {.tokens = shape.sequences, .heads = shape.heads, .head_dim = shape.head_dim});
      run_form(
          form,
          PagedAttention<T, C>{
              .q = view, .cache = {k, v}, .sequences = {tables, lengths}, .o = o, .shape = shape, .workspace = space},
          stream);
    };
  };
  return one;
}

template <class T>
KernelCase turning(const RotaryShape& shape) {
  KernelCase one;
  one.kernel = "rotary";
  one.type = type_name<T>();
  one.shape = std::to_string(shape.tokens) + " x " + std::to_string(shape.heads) + " x " +
              std::to_string(shape.head_dim) + (shape.form == RotaryForm::kHalves ? " halves" : " interleaved");
  one.bytes = 2.0 * sizeof(T) * static_cast<double>(shape.tokens * shape.heads * shape.head_dim);
  one.relative = kCaseRounding<T>;
  one.absolute = 1e-5;
  one.changes_itself = true;
  one.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const auto x = values.track(values.normal<T>(shape.tokens * shape.heads * shape.head_dim));
    const auto table = values.workspace<float>(shape.tokens * shape.rotary_dim);
    // The twin's on the CPU, so that both turn by the same angles.
    auto host = std::move(*device::Stream::create(device::Device::cpu()));
    std::vector<float> turns(shape.tokens * shape.rotary_dim);
    reference::run(kernels::RotaryTable{.table = {turns.data(), turns.size()},
                                        .shape = {.positions = shape.tokens, .rotary_dim = shape.rotary_dim}},
                   host);
    (void)host.synchronize();
    if (!table.empty()) upload(table, std::span<const float>(turns), values.stream());
    std::vector<std::int32_t> places(shape.tokens);
    for (std::size_t i = 0; i < places.size(); ++i) places[i] = static_cast<std::int32_t>(i);
    const auto positions = values.of(places);
    (void)values.stream().synchronize();  // `turns` may go.
    return [=](device::Stream& stream, Form form) {
      const auto view = heads_view(x, {.tokens = shape.tokens, .heads = shape.heads, .head_dim = shape.head_dim});
      run_form(form, Rotary<T>{.x = view, .table = table, .positions = positions, .shape = shape}, stream);
    };
  };
  return one;
}

}  // namespace

std::vector<KernelCase> attention_cases(CaseSize size) {
  const bool tiny = size == CaseSize::kTiny;
  std::vector<KernelCase> cases;
  for (const bool causal : {true, false}) {
    std::vector<AttentionShape> shapes = {
        {.batch = 8, .query_tokens = 256, .key_tokens = 256, .heads = 4, .kv_heads = 4, .head_dim = 32},
        {.batch = 2, .query_tokens = 1024, .key_tokens = 1024, .heads = 12, .kv_heads = 12, .head_dim = 64}};
    // Each width of a head has kernels of its own on CUDA.
    if (tiny)
      shapes = {{.batch = 1, .query_tokens = 45, .key_tokens = 45, .heads = 2, .kv_heads = 2, .head_dim = 32},
                {.batch = 2, .query_tokens = 131, .key_tokens = 131, .heads = 2, .kv_heads = 2, .head_dim = 64},
                {.batch = 1, .query_tokens = 70, .key_tokens = 70, .heads = 1, .kv_heads = 1, .head_dim = 128}};
    if (size == CaseSize::kGpu) {
      for (const std::size_t dim : {std::size_t{64}, std::size_t{128}})
        shapes.push_back({.batch = 4,
                          .query_tokens = 4096,
                          .key_tokens = 4096,
                          .heads = 2048 / dim,
                          .kv_heads = 2048 / dim,
                          .head_dim = dim});
    }
    for (AttentionShape& shape : shapes) {
      shape.causal = causal;
      cases.push_back(forward<float>(shape));
      cases.push_back(forward<device::Bf16>(shape));
      cases.push_back(backward<float>(shape));
      cases.push_back(backward<device::Bf16>(shape));
    }
  }
  std::vector<std::size_t> batches = {1, 8};
  std::vector<std::size_t> contexts = {4096};
  if (tiny) batches = {3}, contexts = {150, 1100};
  if (size == CaseSize::kGpu) batches = {1, 8, 64}, contexts = {1024, 8192, 32768};
  for (const std::size_t batch : batches) {
    for (const std::size_t context : contexts) {
      const PagedShape alone{.sequences = batch, .heads = 8, .kv_heads = 8, .head_dim = 128};
      const PagedShape grouped{.sequences = batch, .heads = 32, .kv_heads = 8, .head_dim = 128};
      cases.push_back(decoding<float, float>(alone, context));
      cases.push_back(decoding<device::Bf16, device::Bf16>(alone, context));
      cases.push_back(decoding<device::Bf16, device::Bf16>(grouped, context));
    }
  }
  for (const RotaryForm form : {RotaryForm::kHalves, RotaryForm::kInterleaved}) {
    const RotaryShape shape{
        .batch = 1, .tokens = tiny ? 9U : 8192U, .heads = 16, .head_dim = 128, .rotary_dim = 128, .form = form};
    cases.push_back(turning<float>(shape));
    cases.push_back(turning<device::Bf16>(shape));
  }
  return cases;
}

}  // namespace dunnock::bench
