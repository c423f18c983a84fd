#include "kernel_cases.hpp"

#include <algorithm>
#include <array>
#include <cstdio>

#include "benchmarks.hpp"

namespace dunnock::gpu_check {
namespace {

using Sizes = std::vector<std::pair<std::string, long>>;

double bytes_of(const std::string& type) { return type == "bf16" ? 2 : 4; }
double number(long value) { return static_cast<double>(value); }

constexpr const char* kLargeMatmul = "matmul bf16";  // The ceiling of arithmetic is whoever does this one best.

/// Fills a table; each function adds one case.
class Table {
 public:
  explicit Table(bool quick) : quick_(quick) {}
  [[nodiscard]] long pick(long full, long quick) const { return quick_ ? quick : full; }
  [[nodiscard]] std::vector<KernelCase> take() { return std::move(cases_); }

  /// (m x k) times (k x n).
  void matmul(const std::string& name, const std::string& type, long m, long n, long k, double target) {
    KernelCase one =
        arithmetic(name, "matmul", type, {{"m", m}, {"n", n}, {"k", k}}, 2 * number(m) * number(n) * number(k));
    one.bytes = (number(m) * number(k) + number(k) * number(n) + number(m) * number(n)) * bytes_of(type);
    one.target = target;
    cases_.push_back(std::move(one));
  }
  /// (rows x columns) in and out, normalised by row, with one factor a column (layer_norm: and a summand).
  void norm(const std::string& op, const std::string& type, long rows, long columns) {
    memory(op + " " + type, op, type, {{"rows", rows}, {"columns", columns}}, 2 * number(rows) * number(columns));
  }
  /// The mean loss of (rows x classes) logits, and their gradient, from one reading.
  void cross_entropy(const std::string& type, long rows, long classes) {
    memory("softmax cross-entropy with gradient " + type, "cross_entropy", type, {{"rows", rows}, {"classes", classes}},
           2 * number(rows) * number(classes));
  }
  /// n values in, n out.
  void elementwise(const std::string& op, const std::string& type, long n) {
    memory(op + " " + type, op, type, {{"n", n}}, 2 * number(n));
  }
  /// silu(a) * b: two of (rows x columns) in, one out.
  void swiglu(const std::string& type, long rows, long columns) {
    memory("swiglu " + type, "swiglu", type, {{"rows", rows}, {"columns", columns}},
           3 * number(rows) * number(columns));
  }
  /// Weights, gradients and two moments in; weights and moments out.
  void adamw(long n) { memory("AdamW f32", "adamw", "f32", {{"n", n}}, 7 * number(n)); }
  /// `tokens` random rows of a table of (vocabulary x columns).
  void embedding(const std::string& type, long tokens, long vocabulary, long columns) {
    memory("embedding " + type, "embedding", type,
           {{"tokens", tokens}, {"vocabulary", vocabulary}, {"columns", columns}},
           2 * number(tokens) * number(columns));
  }
  /// gather: `count` random rows of (rows x columns) to the first rows of another; scatter: to them, no row twice.
  void rows(const std::string& op, const std::string& type, long count, long rows, long columns) {
    memory(op + " " + type, op, type, {{"count", count}, {"rows", rows}, {"columns", columns}},
           2 * number(count) * number(columns));
  }
  /// One number of n.
  void reduce(const std::string& op, const std::string& type, long n) {
    memory(op + " " + type, op, type, {{"n", n}}, number(n));
  }
  /// One number a column of (rows x columns).
  void column_sum(const std::string& type, long rows, long columns) {
    memory("column sum " + type, "column_sum", type, {{"rows", rows}, {"columns", columns}},
           number(rows) * number(columns));
  }
  /// Causal, of (batch, heads, tokens, head) each. Half of the pairs count. Backward: five products instead of two.
  void attention(bool backward, long batch, long heads, long tokens, long head) {
    const std::string op = backward ? "attention_backward" : "attention";
    const double pairs = number(batch) * number(heads) * number(tokens) * number(tokens) / 2;
    KernelCase one = arithmetic(
        std::string("attention ") + (backward ? "backward" : "forward") + " bf16, head " + std::to_string(head), op,
        "bf16", {{"batch", batch}, {"heads", heads}, {"tokens", tokens}, {"head", head}},
        (backward ? 10 : 4) * pairs * number(head));
    const double values = number(batch) * number(heads) * number(tokens) * number(head);
    one.bytes = (backward ? 8 : 4) * values * 2;
    cases_.push_back(std::move(one));
  }
  /// One new token a request: (batch, heads, 1, head) against (batch, kv_heads, context, head) of keys and of values.
  void decode(long batch, long context, long heads, long kv_heads, long head) {
    memory("decode attention bf16, batch " + std::to_string(batch) + ", context " + std::to_string(context),
           "decode_attention", "bf16",
           {{"batch", batch}, {"context", context}, {"heads", heads}, {"kv_heads", kv_heads}, {"head", head}},
           2 * number(batch) * number(context) * number(kv_heads) * number(head) +
               2 * number(batch) * number(heads) * number(head));
    cases_.back().target = 0.8;
  }
  /// Square images and kernels, any layout that is best. Backward: of the images and of the kernels.
  void convolution(bool backward, long batch, long in, long out, long side, long kernel, long stride, long padding) {
    const long out_side = (side + 2 * padding - kernel) / stride + 1;
    const double products = number(batch) * number(out) * number(out_side) * number(out_side) * number(in) *
                            number(kernel) * number(kernel);
    cases_.push_back(arithmetic(std::string("convolution ") + (backward ? "backward" : "forward") + " bf16, " +
                                    std::to_string(in) + " to " + std::to_string(out) + ", " + std::to_string(side) +
                                    " wide, kernel " + std::to_string(kernel),
                                backward ? "conv2d_backward" : "conv2d", "bf16",
                                {{"batch", batch},
                                 {"in", in},
                                 {"out", out},
                                 {"side", side},
                                 {"kernel", kernel},
                                 {"stride", stride},
                                 {"padding", padding}},
                                (backward ? 4 : 2) * products));
    cases_.back().bytes = 2 * (number(batch) * number(in) * number(side) * number(side) +
                               number(out) * number(in) * number(kernel) * number(kernel) +
                               number(batch) * number(out) * number(out_side) * number(out_side));
  }
  /// Largest of 3 x 3, every second one.
  void max_pool(long batch, long channels, long side) {
    const long out_side = (side + 2 - 3) / 2 + 1;
    memory("max pooling bf16", "max_pool", "bf16", {{"batch", batch}, {"channels", channels}, {"side", side}},
           number(batch) * number(channels) * (number(side) * number(side) + number(out_side) * number(out_side)));
  }

 private:
  static KernelCase arithmetic(std::string name, std::string op, std::string type, Sizes sizes, double flops) {
    KernelCase one;
    one.name = std::move(name);
    one.op = std::move(op);
    one.type = std::move(type);
    one.sizes = std::move(sizes);
    one.bound = Bound::kArithmetic;
    one.flops = flops;
    return one;
  }
  /// `values`: of the type, that are read or written.
  void memory(std::string name, std::string op, std::string type, Sizes sizes, double values) {
    KernelCase one;
    one.name = std::move(name);
    one.op = std::move(op);
    one.type = std::move(type);
    one.sizes = std::move(sizes);
    one.bytes = values * bytes_of(one.type);
    one.target = 0.85;
    cases_.push_back(std::move(one));
  }

  bool quick_;
  std::vector<KernelCase> cases_;
};

}  // namespace

long KernelCase::size(const std::string& which) const {
  for (const auto& [known, value] : sizes) {
    if (known == which) return value;
  }
  return 0;
}
double KernelCase::rate(double ms) const { return bound == Bound::kMemory ? bytes / ms * 1e-6 : flops / ms * 1e-9; }

std::vector<KernelCase> kernel_cases(bool quick) {
  Table table(quick);
  const long side = table.pick(8192, 128);
  table.matmul(kLargeMatmul, "bf16", side, side, side, 0.95);
  const long half = table.pick(4096, 96);
  table.matmul("matmul f32", "f32", half, half, half, 0);
  for (const char* const type : {"bf16", "f32"}) {
    table.norm("layer_norm", type, table.pick(16384, 32), table.pick(4096, 256));
    table.norm("rms_norm", type, table.pick(16384, 32), table.pick(4096, 256));
    table.cross_entropy(type, table.pick(8192, 32), table.pick(32000, 500));
  }
  const long many = table.pick(1L << 27, 1L << 14);
  table.elementwise("gelu", "bf16", many);
  table.elementwise("dropout", "bf16", many);
  table.swiglu("bf16", table.pick(8192, 32), table.pick(11008, 200));
  table.adamw(table.pick(1L << 26, 1L << 14));
  table.embedding("bf16", table.pick(65536, 64), table.pick(50304, 500), table.pick(4096, 64));
  table.rows("gather_rows", "f32", table.pick(1L << 18, 64), table.pick(1L << 20, 256), table.pick(512, 64));
  table.rows("scatter_rows", "f32", table.pick(1L << 18, 64), table.pick(1L << 20, 256), table.pick(512, 64));
  table.reduce("sum", "f32", many);
  table.reduce("max", "f32", many);
  table.column_sum("f32", table.pick(1L << 15, 64), table.pick(4096, 64));
  for (const long head : {64L, 128L}) {
    for (const bool backward : {false, true})
      table.attention(backward, table.pick(4, 1), table.pick(2048, 128) / head, table.pick(4096, 64), head);
  }
  for (const long batch : {1L, 8L, 64L}) {
    for (const long context : {1024L, 8192L, 32768L})
      table.decode(table.pick(batch, batch / 8 + 1), table.pick(context, context / 256), 32, 8, 128);
  }
  for (const bool backward : {false, true}) {
    const long batch = table.pick(128, 1);
    table.convolution(backward, batch, 3, 64, table.pick(224, 32), 7, 2, 3);
    table.convolution(backward, batch, 64, 64, table.pick(56, 14), 3, 1, 1);
    table.convolution(backward, batch, 64, 256, table.pick(56, 14), 1, 1, 0);
    table.convolution(backward, batch, 128, 128, table.pick(28, 7), 3, 1, 1);
    table.convolution(backward, batch, 256, 256, table.pick(14, 7), 3, 1, 1);
    table.convolution(backward, batch, 512, 512, table.pick(7, 5), 3, 1, 1);
  }
  table.max_pool(table.pick(256, 1), 64, table.pick(112, 16));
  return table.take();
}

std::string json_of(const KernelCase& one) {
  std::string line = "{\"name\": \"" + one.name + "\", \"op\": \"" + one.op + "\", \"type\": \"" + one.type + "\"";
  for (const auto& [name, value] : one.sizes) line += ", \"" + name + "\": " + std::to_string(value);
  std::array<char, 96> costs{};
  std::snprintf(costs.data(), costs.size(), ", \"bytes\": %.0f, \"flops\": %.0f}", one.bytes, one.flops);
  return line + costs.data();
}

void report_kernels(const std::vector<KernelCase>& cases, const std::map<std::string, double>& ours,
                    const PeerResults& peers, Report& report) {
  const auto ms_in = [](const std::map<std::string, double>& times, const std::string& name) -> std::optional<double> {
    const auto found = times.find(name);
    return found == times.end() ? std::nullopt : std::optional(found->second);
  };
  const double copy = report.value_of(kCopyCeiling).value_or(0);
  double matmul = 0;
  for (const KernelCase& one : cases) {
    if (one.name != kLargeMatmul) continue;
    for (const auto& ms : {ms_in(ours, one.name), ms_in(peers.ms, one.name)})
      matmul = std::max(matmul, ms ? one.rate(*ms) : 0);
  }
  for (const KernelCase& one : cases) {
    const auto mine = ms_in(ours, one.name);
    const auto theirs = ms_in(peers.ms, one.name);
    if (!mine && !theirs) continue;
    Figure figure{.name = one.name, .unit = one.unit()};
    if (mine) figure.value = one.rate(*mine);
    if (theirs) figure.peer = Peer{"PyTorch", one.rate(*theirs)};
    const bool by_memory = one.bound == Bound::kMemory;
    if (by_memory && copy > 0) {
      figure.ceiling = kCopyCeiling;
      figure.ceiling_value = copy;
    } else if (!by_memory && one.type == "bf16" && matmul > 0) {
      figure.ceiling = kLargeMatmul;
      figure.ceiling_value = matmul;
    }
    const int percent = static_cast<int>(100 * one.target + 0.5);
    if (one.target > 0 && by_memory) {
      figure.target = ">= " + std::to_string(percent) + " % of copy";
      figure.met = figure.share().value_or(0) >= one.target;
    } else if (one.target > 0 && theirs) {
      figure.target = ">= " + std::to_string(percent) + " % of PyTorch";
      figure.met = figure.ratio().value_or(0) >= one.target;
    }
    report.figure(std::move(figure));
  }
}

}  // namespace dunnock::gpu_check
