// What a run of dunnock-gpu-check has found: checks that passed or not, and figures beside what they should reach.
#pragma once

#include <string>
#include <vector>

#include "dunnock/gpu/device.hpp"

namespace dunnock::gpu_check {

struct Check {
  std::string name;
  bool passed = false;
  std::string why;  // When it did not.
};

struct Figure {
  std::string name;
  double value = 0;
  std::string unit;
  std::string target;  // In words; empty: none.
  bool met = true;
};

class Report {
 public:
  /// Notes the check, and prints a line of it.
  void check(const std::string& name, const std::string& why_not);
  void figure(Figure figure);
  [[nodiscard]] bool all_passed() const noexcept;
  void print() const;
  /// False: the file can't be written.
  [[nodiscard]] bool write_json(const std::string& path, const gpu::DeviceInfo& device) const;

 private:
  std::vector<Check> checks_;
  std::vector<Figure> figures_;
};

/// Compares the device with the CPU's twins. `device` may be the CPU itself: a rehearsal.
void run_checks(gpu::Device device, Report& report);
/// Measures against ceilings of the same run. `quick`: small sizes, to see whether it runs.
void run_benchmarks(gpu::Device device, bool quick, Report& report);

/// Milliseconds that `device` takes to read 8 bytes of `count` random 32-byte sectors of `words`; less than 0: it
/// can't.
double random_sectors_ms(gpu::Device device, const unsigned long long* words, unsigned long long sectors,
                         unsigned long long count, void* native_stream);

}  // namespace dunnock::gpu_check
