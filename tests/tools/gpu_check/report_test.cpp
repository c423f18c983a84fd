// What a report says of its figures, and that its JSON is JSON whatever is in it.
#include "report.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

namespace dunnock::gpu_check {
namespace {

using nlohmann::json;

RunFacts some_facts() {
  RunFacts facts;
  facts.device.info.name = "a \"GPU\" \\ of sorts";
  facts.device.info.processors = 132;
  facts.device.info.memory_bytes = 150'000'000'000;
  facts.device.driver = "NVRM version\t580";
  facts.device.clock_mhz = 1980;
  facts.date = "2026-11-24T00:00:00Z";
  return facts;
}

TEST(Figures, know_their_share_and_their_ratio) {
  Figure rate{.name = "rate", .value = 8.0, .ceiling = "copy", .ceiling_value = 10.0, .peer = Peer{"other", 4.0}};
  EXPECT_DOUBLE_EQ(*rate.share(), 0.8);
  EXPECT_DOUBLE_EQ(*rate.ratio(), 2.0);
  Figure time = rate;
  time.better = Better::kLower;
  EXPECT_DOUBLE_EQ(*time.share(), 1.25);
  EXPECT_DOUBLE_EQ(*time.ratio(), 0.5);
}

TEST(Figures, have_none_where_something_is_missing) {
  const Figure alone{.name = "alone", .value = 8.0};
  EXPECT_FALSE(alone.share());
  EXPECT_FALSE(alone.ratio());
  const Figure only_peer{.name = "peer", .ceiling = "copy", .ceiling_value = 10.0, .peer = Peer{"other", 4.0}};
  EXPECT_FALSE(only_peer.share());
  EXPECT_FALSE(only_peer.ratio());
  EXPECT_FALSE((Figure{.name = "zero", .value = 1.0, .ceiling = "none", .peer = Peer{"other", 0}}.share()));
  EXPECT_FALSE((Figure{.name = "zero", .value = 1.0, .ceiling = "none", .peer = Peer{"other", 0}}.ratio()));
}

TEST(Reports, pass_when_something_was_checked_and_nothing_has_failed) {
  Report report;
  EXPECT_FALSE(report.all_passed()) << "nothing was checked";
  report.skip("absent", "not on this machine");
  EXPECT_FALSE(report.all_passed()) << "nothing was checked";
  report.check("good", "");
  EXPECT_TRUE(report.all_passed());
  report.check("bad", "it is wrong");
  EXPECT_FALSE(report.all_passed());
}

TEST(Reports, say_everything_in_json) {
  Report report;
  report.check("good", "");
  report.check("bad", "line 1\nline \"2\" \\ \x01 \xff");
  report.skip("absent", "not on this machine");
  report.peers("PyTorch 2.8.0 on it");
  report.figure({.name = "rate",
                 .value = 8.0,
                 .unit = "GB/s",
                 .ceiling = "copy",
                 .ceiling_value = 10,
                 .peer = Peer{"PyTorch", 4},
                 .target = ">= 85 % of copy",
                 .met = false});
  report.figure({.name = "only the peer's", .unit = "GB/s", .peer = Peer{"PyTorch", 4}, .target = ">= 1"});
  report.figure({.name = "broken", .value = std::numeric_limits<double>::quiet_NaN()});
  EXPECT_EQ(report.value_of("rate"), 8.0);
  EXPECT_FALSE(report.value_of("rates"));

  const json all = json::parse(report.json(some_facts()));
  EXPECT_EQ(all["format"], 1);
  EXPECT_EQ(all["date"], "2026-11-24T00:00:00Z");
  EXPECT_EQ(all["device"]["name"], "a \"GPU\" \\ of sorts");
  EXPECT_EQ(all["device"]["driver"], "NVRM version\t580");
  EXPECT_EQ(all["device"]["clock_mhz"], 1980);
  EXPECT_EQ(all["device"]["memory_bytes"], 150'000'000'000);
  EXPECT_EQ(all["peers"], "PyTorch 2.8.0 on it");
  ASSERT_EQ(all["checks"].size(), 3U);
  EXPECT_EQ(all["checks"][0]["outcome"], "passed");
  EXPECT_EQ(all["checks"][1]["outcome"], "failed");
  EXPECT_EQ(all["checks"][1]["why"], "line 1\nline \"2\" \\ \x01 ?");
  EXPECT_EQ(all["checks"][2]["outcome"], "skipped");
  ASSERT_EQ(all["figures"].size(), 3U);
  const json& rate = all["figures"][0];
  EXPECT_EQ(rate["value"], 8);
  EXPECT_EQ(rate["ceiling"], "copy");
  EXPECT_EQ(rate["ceiling_value"], 10);
  EXPECT_EQ(rate["share"], 0.8);
  EXPECT_EQ(rate["peer"], "PyTorch");
  EXPECT_EQ(rate["peer_value"], 4);
  EXPECT_EQ(rate["ratio"], 2);
  EXPECT_EQ(rate["target"], ">= 85 % of copy");
  EXPECT_EQ(rate["met"], false);
  EXPECT_TRUE(all["figures"][1]["value"].is_null());
  EXPECT_TRUE(all["figures"][1]["met"].is_null()) << "what was not measured has not missed";
  EXPECT_TRUE(all["figures"][2]["value"].is_null()) << "JSON has no NaN";
  EXPECT_TRUE(all["figures"][2]["target"].is_null());
}

TEST(Reports, judge_no_target_in_a_rehearsal) {
  Report report;
  report.figure({.name = "rate", .value = 8.0, .target = ">= 5"});
  RunFacts facts = some_facts();
  EXPECT_EQ(json::parse(report.json(facts))["figures"][0]["met"], true);
  facts.rehearsal = true;
  EXPECT_TRUE(json::parse(report.json(facts))["figures"][0]["met"].is_null());
}

TEST(Reports, say_when_they_cannot_be_written) {
  const Report report;
  EXPECT_FALSE(report.write_json("/no/such/folder/report.json", some_facts()));
  const auto path = std::filesystem::temp_directory_path() / ("dunnock-report-" + std::to_string(getpid()));
  ASSERT_TRUE(report.write_json(path.string(), some_facts()));
  std::ifstream file(path);
  EXPECT_TRUE(json::parse(file)["checks"].empty());
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace dunnock::gpu_check
