// KernelCase: a kernel and a shape, to be measured and to be compared with its twin, on any device. One list serves
// dunnock-bench kernels and dunnock-gpu-check, so it needs dunnock::kernels and nothing else.
//
//   for (const KernelCase& one : norm_cases()) {
//     KernelValues values(stream, seed);        // buffers of the case, the same values on each device
//     auto run = one.prepare(values);
//     run(stream, Form::kKernel);               // as often as one likes
//     values.results(stream);                   // of the buffers that it writes
//   }
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/kernel.hpp"

namespace dunnock::bench {

/// What a case runs: the kernel, its twin in namespace reference (CPU streams only), or its peer where it has one (see
/// KernelCase::peer).
enum class Form : std::uint8_t { kKernel, kTwin, kPeer };

/// Runs the kernel, or its twin. The header of the kernel must be included before this one.
template <class Call>
void run_form(Form form, const Call& call, device::Stream& stream) {
  if (form == Form::kTwin) return kernels::reference::run(call, stream);
  kernels::run(call, stream);
}

/// The buffers of one case on one device. When a device has no room, `failed()` says so and the spans are empty.
class KernelValues {
 public:
  KernelValues(device::Stream& stream, std::uint64_t seed) : stream_(stream), random_(seed) {}

  /// Normally distributed; large buffers repeat 2^20 values. T: float or Bf16.
  template <class T>
  device::Span<T> normal(std::size_t count, float mean = 0, float deviation = 1) {
    std::normal_distribution<float> distribution(mean, deviation);
    return filled<T>(count, [&] { return T(distribution(random_)); });
  }
  /// Integers of 0 .. bound - 1.
  template <class T>
  device::Span<T> integers(std::size_t count, std::uint64_t bound) {
    return filled<T>(count, [&] { return static_cast<T>(random_() % bound); });
  }
  /// Given values.
  template <class T>
  device::Span<T> of(const std::vector<T>& values) {
    const auto span = room<T>(values.size());
    if (!span.empty()) {
      device::upload(span, std::span<const T>(values), stream_);
      (void)stream_.synchronize();
    }
    return span;
  }
  /// What the kernel writes and its twin is compared by; zero at first. T: float, Bf16 or an integer.
  template <class T>
  device::Span<T> result(std::size_t count) {
    return track(filled<T>(count, [] { return T{}; }));
  }
  /// Declares a span that has values as a result too (what is changed in place).
  template <class T>
  device::Span<T> track(device::Span<T> span) {
    results_.push_back([span](device::Stream& stream) {
      std::vector<std::remove_const_t<T>> host(span.size());
      device::download(host, span, stream);
      (void)stream.synchronize();
      std::vector<double> values(host.size());
      for (std::size_t i = 0; i < host.size(); ++i) {
        if constexpr (std::is_integral_v<T>) {
          values[i] = static_cast<double>(host[i]);
        } else {
          values[i] = static_cast<double>(static_cast<float>(host[i]));
        }
      }
      return values;
    });
    return span;
  }
  /// Not initialized, not compared.
  template <class T>
  device::Span<T> workspace(std::size_t count) {
    return room<T>(count);
  }

  [[nodiscard]] std::vector<std::vector<double>> results(device::Stream& stream) const {
    std::vector<std::vector<double>> all;
    for (const auto& one : results_) all.push_back(one(stream));
    return all;
  }
  [[nodiscard]] device::Stream& stream() noexcept { return stream_; }
  [[nodiscard]] device::Device device() const noexcept { return stream_.device(); }
  [[nodiscard]] bool failed() const noexcept { return failed_; }
  /// Of all buffers.
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

 private:
  template <class T>
  device::Span<T> room(std::size_t count) {
    auto buffer = device::Buffer<T>::create(count, stream_);
    if (!buffer) {
      failed_ = true;
      return {};
    }
    bytes_ += count * sizeof(T);
    const auto owner = std::make_shared<device::Buffer<T>>(std::move(*buffer));
    kept_.push_back(owner);
    return owner->span();
  }
  template <class T, class Next>
  device::Span<T> filled(std::size_t count, const Next& next) {
    const auto span = room<T>(count);
    constexpr std::size_t kDistinct = std::size_t{1} << 20;
    std::vector<T> part(std::min(span.size(), kDistinct));
    for (T& value : part) value = next();
    if (part.empty()) return span;
    device::upload(span.subspan(0, part.size()), std::span<const T>(part), stream_);
    for (std::size_t at = part.size(); at < span.size(); at += std::min(at, span.size() - at)) {  // Twice as many each.
      const std::size_t many = std::min(at, span.size() - at);
      device::device_copy(span.subspan(at, many), span.subspan(0, many), stream_);
    }
    (void)stream_.synchronize();
    return span;
  }

  device::Stream& stream_;
  std::mt19937_64 random_;
  std::vector<std::shared_ptr<void>> kept_;
  std::vector<std::function<std::vector<double>(device::Stream&)>> results_;
  std::size_t bytes_ = 0;
  bool failed_ = false;
};

/// The same work as an operation of PyTorch: what tools/gpu-check/peers.py makes of it, and measures in the same run.
struct PeerOperation {
  std::string op;                                          ///< A method of peers.py; empty: there is none.
  std::vector<std::pair<std::string, std::size_t>> sizes;  ///< By the names that this method takes.
};

struct KernelCase {
  using Run = std::function<void(device::Stream&, Form)>;

  std::string kernel;  ///< "layer norm"
  std::string type;    ///< "f32" or "bf16"
  std::string shape;   ///< "8192 x 768"
  double bytes = 0;    ///< That must be read and written at least; 0: the floor is arithmetic.
  double flops = 0;    ///< Of matrix products; 0: the floor is memory.
  /// Makes the buffers; the case runs on the stream's device. Running it again gives the same results, unless
  /// `changes_itself` says that it works in place on what it reads (then compare after one run).
  std::function<Run(KernelValues&)> prepare;
  /// What one would use instead, as a row of its own; empty: there is none. CPU streams only.
  std::string peer;
  /// The same for a GPU. Filled for every size, so that a rehearsal has it too.
  PeerOperation operation;
  /// How far a result may be from the twin's: absolute + relative * |twin's|.
  double relative = 0;
  double absolute = 0;
  bool changes_itself = false;

  [[nodiscard]] std::string name() const { return kernel + " " + type + " " + shape; }
};

/// What to expect of the sizes: small ones to compare with the (slow) twin, or those that are measured on a CPU or a
/// GPU.
enum class CaseSize : std::uint8_t { kTiny, kCpu, kGpu };

/// One function a family, in <family>_cases.cpp. kernel_cases.cpp puts them together.
[[nodiscard]] std::vector<KernelCase> activation_cases(CaseSize size);
[[nodiscard]] std::vector<KernelCase> attention_cases(CaseSize size);
[[nodiscard]] std::vector<KernelCase> convolution_cases(CaseSize size);
[[nodiscard]] std::vector<KernelCase> cross_entropy_cases(CaseSize size);
[[nodiscard]] std::vector<KernelCase> elementwise_cases(CaseSize size);
[[nodiscard]] std::vector<KernelCase> embedding_cases(CaseSize size);
[[nodiscard]] std::vector<KernelCase> gather_cases(CaseSize size);
[[nodiscard]] std::vector<KernelCase> matmul_cases(CaseSize size);
[[nodiscard]] std::vector<KernelCase> norm_cases(CaseSize size);
[[nodiscard]] std::vector<KernelCase> optimizer_cases(CaseSize size);
[[nodiscard]] std::vector<KernelCase> random_cases(CaseSize size);
[[nodiscard]] std::vector<KernelCase> reduce_cases(CaseSize size);
[[nodiscard]] std::vector<KernelCase> all_kernel_cases(CaseSize size);

template <class T>
[[nodiscard]] std::string type_name() {
  return std::is_same_v<T, float> ? "f32" : "bf16";
}
/// A unit in the last place of bf16; some of float.
template <class T>
inline constexpr double kCaseRounding = std::is_same_v<T, float> ? 1e-5 : 1.0 / 127;

/// Runs the case on `device` and its twin on the CPU, once each; empty: they agree, else the first that differs.
[[nodiscard]] std::string compare_with_twin(const KernelCase& one, device::Device device, std::uint64_t seed);

}  // namespace dunnock::bench
