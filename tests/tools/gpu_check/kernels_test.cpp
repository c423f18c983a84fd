// Our kernels: the one list that both sides are measured at, the checks beside the twins, times and rows.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "checks.hpp"
#include "kernel_benchmarks.hpp"
#include "support/seed.hpp"

namespace dunnock::gpu_check {
namespace {

using bench::Form;
using bench::KernelCase;
using bench::KernelValues;
using nlohmann::json;

/// Three values, of which the kernel makes `value` the second one; the twin makes it 1.
KernelCase makes(float value) {
  KernelCase one;
  one.kernel = "made up";
  one.type = "f32";
  one.shape = "3";
  one.bytes = 12;
  one.prepare = [value](KernelValues& values) -> KernelCase::Run {
    const auto x = values.result<float>(3);
    return [x, value](device::Stream& stream, Form form) {
      stream.run("made up", [x, form, value] {
        x.device_data()[1] = form == Form::kTwin ? 1.0F : value;
        return Status{};
      });
    };
  };
  return one;
}
json rows(const Report& report) { return json::parse(report.json({})); }

TEST(KernelCases, are_one_list_with_names_that_differ) {
  for (const bool quick : {false, true}) {
    std::set<std::string> names;
    unsigned with_peers = 0;
    for (const KernelCase& one : measured_cases(quick)) {
      EXPECT_TRUE(names.insert(one.name()).second) << one.name() << " comes twice";
      EXPECT_GT(one.bytes + one.flops, 0) << one.name();
      const auto line = json::parse(json_of(one));
      EXPECT_EQ(line["name"], one.name());
      EXPECT_EQ(line["op"], one.operation.op);
      EXPECT_EQ(line["type"], one.type);
      EXPECT_DOUBLE_EQ(line["bytes"], std::round(one.bytes)) << one.name();
      EXPECT_DOUBLE_EQ(line["flops"], std::round(one.flops)) << one.name();
      for (const auto& [size, value] : one.operation.sizes) EXPECT_EQ(line[size], value) << one.name();
      with_peers += one.operation.op.empty() ? 0 : 1;
    }
    EXPECT_GT(with_peers, 80U);
  }
}

TEST(KernelCases, are_ones_that_the_script_knows) {
  std::ifstream file(DUNNOCK_PEERS_SCRIPT);
  const std::string script{std::istreambuf_iterator<char>(file), {}};
  for (const KernelCase& one : measured_cases(false)) {
    if (one.operation.op.empty()) continue;
    EXPECT_NE(script.find("def " + one.operation.op + "(self, case)"), std::string::npos) << one.operation.op;
  }
}

TEST(KernelCases, have_the_sizes_that_targets_are_for) {
  std::set<std::string> names;
  for (const KernelCase& one : measured_cases(false)) names.insert(one.name());
  std::vector<std::string> wanted = {"matmul bf16 8192 x 8192 x 8192", "matmul f32 4096 x 4096 x 4096",
                                     "cross-entropy + gradient bf16 8192 x 50257"};
  for (const std::string head : {"32 x 64", "16 x 128"}) {
    wanted.push_back("attention bf16 4 x 4096 x " + head + " causal");
    wanted.push_back("attention backward bf16 4 x 4096 x " + head + " causal");
  }
  for (const std::string batch : {"1", "8", "64"}) {
    for (const std::string context : {"1024", "8192", "32768"})
      wanted.push_back("paged attention bf16 " + batch + " x " + context + " tokens, 32 on 8 heads of 128");
  }
  for (const std::string& name : wanted) EXPECT_TRUE(names.contains(name)) << name;
}

TEST(KernelChecks, name_the_case_that_differs) {
  const auto cpu = device::Device::cpu();
  EXPECT_EQ(first_that_differs({makes(1), makes(1)}, cpu, test::seed()), "");
  EXPECT_EQ(first_that_differs({makes(1), makes(1.5F)}, cpu, test::seed()),
            "f32 3: result 0 [1] is 1.500000, the twin's 1.000000");
}

TEST(KernelChecks, are_skipped_by_name_when_no_time_is_left) {
  Report report;
  check_kernels(device::Device::cpu(), {.small = true, .seed = 1}, Budget(1), report);
  const json checks = rows(report)["checks"];
  ASSERT_EQ(checks.size(), 1U);
  EXPECT_EQ(checks[0]["name"], kAllKernels);
  EXPECT_EQ(checks[0]["outcome"], "skipped");
}

TEST(KernelTimes, are_of_the_cases_that_run) {
  KernelCase breaks = makes(1);
  breaks.shape = "that breaks";
  breaks.prepare = [](KernelValues&) -> KernelCase::Run {
    return [](device::Stream& stream, Form) {
      stream.run("made up", [] { return Status(make_error(ErrorCode::kDevice, "it is broken")); });
    };
  };
  KernelCase large = makes(1);
  large.shape = "too large";
  large.prepare = [](KernelValues& values) -> KernelCase::Run {
    (void)values.workspace<float>(std::size_t{1} << 56);
    return {};
  };
  Report report;
  const auto times =
      measure_kernels(device::Device::cpu(), {makes(1), breaks, large}, {.quick = true}, Budget(1000), report);
  ASSERT_EQ(times.size(), 1U);
  EXPECT_GT(times.at("made up f32 3"), 0);
  const json checks = rows(report)["checks"];
  ASSERT_EQ(checks.size(), 2U);
  EXPECT_EQ(checks[0]["name"], "made up f32 that breaks is measured");
  EXPECT_EQ(checks[0]["outcome"], "failed");
  EXPECT_NE(std::string(checks[0]["why"]).find("it is broken"), std::string::npos) << checks[0]["why"];
  EXPECT_EQ(checks[1]["name"], "made up f32 too large is measured");
  EXPECT_EQ(checks[1]["outcome"], "skipped");
}

TEST(KernelTimes, are_not_taken_when_no_time_is_left) {
  Report report;
  EXPECT_TRUE(measure_kernels(device::Device::cpu(), {makes(1), makes(1)}, {}, Budget(1), report).empty());
  const json checks = rows(report)["checks"];
  ASSERT_EQ(checks.size(), 1U);
  EXPECT_EQ(checks[0]["outcome"], "skipped");
  EXPECT_EQ(checks[0]["why"], "2 of 2, from made up f32 3 on: no time is left");
}

TEST(KernelRows, stand_beside_their_ceilings_and_peers) {
  const std::string gelu = "GELU tanh bf16 268435456";
  const std::string large = "matmul bf16 8192 x 8192 x 8192";
  const std::string single = "matmul f32 4096 x 4096 x 4096";
  const std::string sum = "sum of squares f32 536870912";
  const std::string decode = "paged attention bf16 64 x 32768 tokens, 32 on 8 heads of 128";
  Report report;
  report.figure({.name = kCopyCeiling, .value = 4000.0, .unit = "GB/s"});
  PeerResults peers;
  peers.ms = {{large, 1.6}, {sum, 1.0}, {single, 3.0}};
  // 0.32 ms of 1.07 GB are 84 % of 4000 GB/s: missed by 1 %. The product is met: 1.65 of 1.6 ms. Decoding is met: 2.6
  // of 2.15 ms are 83 %.
  report_kernels(measured_cases(false), {{gelu, 0.32}, {large, 1.65}, {decode, 2.6}, {single, 3.0}}, peers, report);
  std::map<std::string, json> found;
  const json all = rows(report);
  for (const auto& figure : all["figures"]) found[figure["name"]] = figure;
  ASSERT_EQ(found.size(), 6U) << "the ceiling, and what anybody has measured";
  EXPECT_NEAR(found[gelu]["value"], 4.0 * (1 << 28) / 0.32e6, 1);
  EXPECT_NEAR(found[gelu]["share"], 0.839, 0.001);
  EXPECT_EQ(found[gelu]["met"], false);
  EXPECT_EQ(found[gelu]["target"], ">= 85 % of copy");
  EXPECT_TRUE(found[gelu]["peer"].is_null());
  EXPECT_NEAR(found[large]["value"], 2.0 * 8192 * 8192 * 8192 / 1.65e9, 1);
  EXPECT_NEAR(found[large]["ratio"], 1.6 / 1.65, 0.001);
  EXPECT_NEAR(found[large]["share"], 1.6 / 1.65, 0.001) << "the faster of the two is the ceiling";
  EXPECT_EQ(found[large]["met"], true);
  EXPECT_EQ(found[single]["ceiling"], "the fastest matmul f32") << "each type has its own";
  EXPECT_NEAR(found[single]["share"], 1, 1e-9);
  EXPECT_TRUE(found[single]["target"].is_null());
  EXPECT_EQ(found[decode]["target"], ">= 80 % of copy");
  EXPECT_EQ(found[decode]["met"], true);
  EXPECT_TRUE(found[sum]["value"].is_null());
  EXPECT_TRUE(found[sum]["met"].is_null());
  EXPECT_EQ(found[sum]["peer"], "PyTorch");
}

}  // namespace
}  // namespace dunnock::gpu_check
