// dunnock-gpu-check: is the device layer right on this machine's GPU, and how near is it to what the GPU can do?
#include <cstdio>
#include <cstring>
#include <string>

#include "report.hpp"

namespace dunnock::gpu_check {

void Report::check(const std::string& name, const std::string& why_not) {
  checks_.push_back({name, why_not.empty(), why_not});
  std::printf("%-8s %s%s%s\n", why_not.empty() ? "right" : "WRONG", name.c_str(), why_not.empty() ? "" : ": ",
              why_not.c_str());
  std::fflush(stdout);
}

void Report::figure(Figure figure) { figures_.push_back(std::move(figure)); }

bool Report::all_passed() const noexcept {
  for (const Check& one : checks_) {
    if (!one.passed) return false;
  }
  return true;
}

void Report::print() const {
  std::printf("\n%-58s %14s %-10s %-34s\n", "what", "measured", "", "target");
  for (const Figure& one : figures_) {
    std::printf("%-58s %14.4g %-10s %-34s %s\n", one.name.c_str(), one.value, one.unit.c_str(), one.target.c_str(),
                one.target.empty() ? ""
                : one.met          ? "met"
                                   : "MISSED");
  }
}

bool Report::write_json(const std::string& path, const gpu::DeviceInfo& device) const {
  std::FILE* const file = std::fopen(path.c_str(), "w");
  if (file == nullptr) return false;
  const auto plain = [](const std::string& text) {  // Names and reasons are ours; quotes in them become apostrophes.
    std::string out;
    for (const char c : text) out += c == '"' || c == '\\' ? '\'' : static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    return out;
  };
  std::fprintf(file, "{\"device\": \"%s\", \"checks\": [", plain(device.name).c_str());
  for (std::size_t i = 0; i < checks_.size(); ++i) {
    std::fprintf(file, "%s\n  {\"name\": \"%s\", \"passed\": %s, \"why\": \"%s\"}", i == 0 ? "" : ",",
                 plain(checks_[i].name).c_str(), checks_[i].passed ? "true" : "false", plain(checks_[i].why).c_str());
  }
  std::fprintf(file, "],\n\"figures\": [");
  for (std::size_t i = 0; i < figures_.size(); ++i) {
    const Figure& one = figures_[i];
    std::fprintf(file, "%s\n  {\"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\", \"target\": \"%s\", \"met\": %s}",
                 i == 0 ? "" : ",", plain(one.name).c_str(), one.value, one.unit.c_str(), plain(one.target).c_str(),
                 one.met ? "true" : "false");
  }
  std::fprintf(file, "]}\n");
  return std::fclose(file) == 0;
}

namespace {

int usage(int code) {
  std::printf(
      "dunnock-gpu-check [--quick] [--rehearse] [--json FILE]\n"
      "  --quick     small sizes: does it run?\n"
      "  --rehearse  on the CPU backend, where there is no GPU; its figures say nothing about one\n"
      "Exit codes: 0 all is right, 1 a check failed, 2 usage, 3 no GPU.\n");
  return code;
}

int run(int argc, char** argv) {
  bool quick = false;
  bool rehearse = false;
  std::string json;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) {
      quick = true;
    } else if (std::strcmp(argv[i], "--rehearse") == 0) {
      rehearse = true;
    } else if (std::strcmp(argv[i], "--json") == 0 && i + 1 < argc) {
      json = argv[++i];
    } else {
      return usage(std::strcmp(argv[i], "--help") == 0 ? 0 : 2);
    }
  }
  if (!rehearse && gpu::Device::cuda_count() == 0) {
    std::printf("No GPU: %s\n", gpu::Device::why_no_cuda().c_str());
    return 3;
  }
  const gpu::Device device = rehearse ? gpu::Device::cpu() : *gpu::Device::cuda();
  std::printf("%s: %s, %u processors, %.1f GiB\n", device.label().c_str(), device.info().name.c_str(),
              device.info().processors, static_cast<double>(device.info().memory_bytes) / (1 << 30));
  Report report;
  run_checks(device, report);
  run_benchmarks(device, quick || rehearse, report);
  report.print();
  if (!json.empty() && !report.write_json(json, device.info())) {
    std::fprintf(stderr, "%s can't be written\n", json.c_str());
    return 2;
  }
  return report.all_passed() ? 0 : 1;
}

}  // namespace
}  // namespace dunnock::gpu_check

int main(int argc, char** argv) { return dunnock::gpu_check::run(argc, argv); }
