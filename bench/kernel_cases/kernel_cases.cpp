#include <cmath>

#include "kernel_case.hpp"

namespace dunnock::bench {

std::vector<KernelCase> all_kernel_cases(CaseSize size) {
  std::vector<KernelCase> all;
  // What is asked about most comes first: where time is short, the last ones are left out.
  for (const auto& family : {
           matmul_cases,
           attention_cases,
           norm_cases,
           cross_entropy_cases,
           activation_cases,
           optimizer_cases,
           embedding_cases,
           reduce_cases,
           elementwise_cases,
           gather_cases,
           random_cases,
           convolution_cases,
       }) {
    for (KernelCase& one : family(size)) all.push_back(std::move(one));
  }
  return all;
}

std::string compare_with_twin(const KernelCase& one, device::Device device, std::uint64_t seed) {
  const auto results = [&](device::Device on, Form form, std::string& why) -> std::vector<std::vector<double>> {
    auto stream = device::Stream::create(on);
    if (!stream) {
      why = stream.error().message;
      return {};
    }
    KernelValues values(*stream, seed);
    const KernelCase::Run run = one.prepare(values);
    if (values.failed()) {
      why = "its buffers can't be allocated";
      return {};
    }
    run(*stream, form);
    if (const Status done = stream->synchronize(); !done) {
      why = done.error().message;
      return {};
    }
    return values.results(*stream);
  };
  std::string why;
  const auto is = results(device, Form::kKernel, why);
  if (!why.empty()) return why;
  const auto should = results(device::Device::cpu(), Form::kTwin, why);
  if (!why.empty()) return why;
  for (std::size_t buffer = 0; buffer < should.size(); ++buffer) {
    for (std::size_t i = 0; i < should[buffer].size(); ++i) {
      const double expected = should[buffer][i];
      const double value = is[buffer][i];
      if (std::isnan(expected) && std::isnan(value)) continue;
      if (expected == value) continue;  // Infinities.
      if (!(std::abs(value - expected) <= one.absolute + one.relative * std::abs(expected)))
        return "result " + std::to_string(buffer) + " [" + std::to_string(i) + "] is " + std::to_string(value) +
               ", the twin's " + std::to_string(expected);
    }
  }
  return {};
}

}  // namespace dunnock::bench
