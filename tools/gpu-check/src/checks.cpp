#include "checks.hpp"

namespace dunnock::gpu_check {

void run_checks(device::Device device, const CheckOptions& options, const Budget& budget, Report& report) {
  check_runtime(device, options, report);
  check_collectives(device, options, report);
  check_filter_view(device, options, report);
  check_baselines(device, options, report);
  check_kernels(device, options, budget, report);
}

}  // namespace dunnock::gpu_check
