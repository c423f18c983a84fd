// The tool `dunnock` as a user runs it: what it prints, what it leaves, and its exit status.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <string>
#include <thread>

#include "dunnock/filter/cuckoo_filter.hpp"
#include "dunnock/index/checkpoint_store.hpp"
#include "dunnock/index/kv_store.hpp"
#include "support/seed.hpp"

namespace dunnock {
namespace {

struct Ran {
  int status;
  std::string output;  // standard output and error
};

/// `redirected`: of the shell, where standard output goes to.
Ran run(const std::string& arguments, const std::string& redirected = {}) {
  std::FILE* pipe = popen((std::string(DUNNOCK_TOOL) + " " + arguments + " 2>&1" + redirected).c_str(), "r");
  Ran ran{-1, {}};
  std::array<char, 4096> buffer;
  while (const std::size_t got = std::fread(buffer.data(), 1, buffer.size(), pipe))
    ran.output.append(buffer.data(), got);
  const int status = pclose(pipe);
  if (WIFEXITED(status)) ran.status = WEXITSTATUS(status);
  return ran;
}

class DunnockTool : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  [[nodiscard]] std::string at(const std::string& name) const { return (directory_ / name).string(); }
  static std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream all;
    all << file.rdbuf();
    return all.str();
  }
  static void write(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }
  /// A pool with one structure of each kind.
  void make_pool(const std::string& path) const {
    auto pool = Pool::create(path, {.bytes = 192 << 20});
    ASSERT_TRUE(pool) << pool.error().message;
    auto filter = CuckooFilter<8, ProcessMedia>::create(*pool, "seen", {.slots = 1000}, {});
    ASSERT_TRUE(filter) << filter.error().message;
    for (std::uint64_t key = 0; key < 100; ++key) ASSERT_TRUE(filter->insert(key));
    filter->close();
    auto index = KvIndex<ProcessMedia>::create(*pool, "where", {.entries = 1000, .bytes_max = 16 << 20}, {});
    ASSERT_TRUE(index) << index.error().message;
    index->put({1, 2}, IndexValue::of(Locator{12, 34, 56}));
    index->put({0x8899aabbccddeeff, 0x0011223344556677}, IndexValue::of(std::uint64_t{7}));
    index->close();
    auto store = KvStore<ProcessMedia>::create(*pool, "data",
                                               {.index = {.entries = 1000, .bytes_max = 16 << 20},
                                                .log = {.capacity_bytes = 8 << 20, .segment_bytes = 1 << 20}},
                                               {});
    ASSERT_TRUE(store) << store.error().message;
    std::mt19937_64 random(test::seed());
    for (std::uint64_t key = 0; key < 500; ++key) {
      std::vector<std::byte> value(key * 7 % 300);
      for (std::byte& one : value) one = static_cast<std::byte>(random());
      ASSERT_NE(store->put({key, ~key}, value), PutResult::kFull);
    }
    store->close();
    auto checkpoints = CheckpointStore<ProcessMedia>::create(
        *pool, "runs", {.capacity_bytes = 8 << 20, .chunk_bytes = 4096, .segment_bytes = 1 << 20}, {});
    ASSERT_TRUE(checkpoints) << checkpoints.error().message;
    std::vector<std::byte> bytes(100000);
    for (std::uint64_t version = 1; version <= 4; ++version) {
      bytes[version * 5000] = std::byte{1};
      const std::array sources{TensorSource{{"w", Dtype::kF32, {250, 100}}, bytes, {}, {}}};
      ASSERT_TRUE(checkpoints->save("model", version, sources, {.notes = {{"step", std::to_string(version)}}}));
    }
    checkpoints->close();
  }

  std::filesystem::path directory_ =
      std::filesystem::temp_directory_path() / ("dunnock_tool_test." + std::to_string(getpid()));
};

TEST_F(DunnockTool, says_what_a_pool_holds_and_that_it_is_sound) {
  make_pool(at("p"));
  const Ran info = run("info --json " + at("p"));
  ASSERT_EQ(info.status, 0) << info.output;
  const auto json = nlohmann::json::parse(info.output);
  ASSERT_EQ(json["structures"].size(), 4u) << info.output;
  EXPECT_EQ(json["structures"][0]["name"], "data");
  EXPECT_EQ(json["structures"][0]["kind"], "store");
  EXPECT_EQ(json["structures"][0]["entries"], 500);
  EXPECT_EQ(json["structures"][1]["kind"], "checkpoints");
  EXPECT_EQ(json["structures"][1]["checkpoints"], 4);
  EXPECT_EQ(json["structures"][2]["kind"], "filter");
  EXPECT_EQ(json["structures"][2]["fingerprint_bits"], 8);
  EXPECT_EQ(json["structures"][2]["items"], 100);
  EXPECT_EQ(json["structures"][3]["kind"], "index");
  EXPECT_EQ(json["structures"][3]["entries"], 2);
  EXPECT_FALSE(json.contains("other_regions")) << info.output;
  EXPECT_EQ(run("info " + at("p")).status, 0);
  const Ran check = run("check " + at("p"));
  EXPECT_EQ(check.status, 0) << check.output;
  EXPECT_NE(check.output.find("checkpoints 'runs': sound"), std::string::npos) << check.output;
  EXPECT_EQ(run("check " + at("p") + " data seen").status, 0);
  EXPECT_EQ(run("check " + at("p") + " nothing").status, 3);
}

TEST_F(DunnockTool, a_check_of_nothing_is_not_a_pass) {
  {
    auto pool = Pool::create(at("q"), {.bytes = 128 << 20});
    ASSERT_TRUE(pool) << pool.error().message;
  }
  for (const char* command : {"check ", "check --json "}) {
    const Ran empty = run(command + at("q"));
    EXPECT_EQ(empty.status, 3) << empty.output;
    EXPECT_NE(empty.output.find("holds no structure to check"), std::string::npos) << empty.output;
  }
  {
    auto pool = Pool::open(at("q"));
    ASSERT_TRUE(pool) << pool.error().message;
    auto store = CheckpointStore<ProcessMedia>::create(
        *pool, "runs", {.capacity_bytes = 4 << 20, .chunk_bytes = 4096, .segment_bytes = 1 << 20}, {});
    ASSERT_TRUE(store) << store.error().message;
    store->close();
  }
  const Ran none = run("checkpoint verify " + at("q"));
  EXPECT_EQ(none.status, 3) << none.output;
  EXPECT_NE(none.output.find("holds no checkpoint"), std::string::npos) << none.output;
  EXPECT_EQ(run("check " + at("q")).output, "checkpoints 'runs': sound\n") << "a store of none is one";
  {
    auto pool = Pool::open(at("q"));
    ASSERT_TRUE(pool) << pool.error().message;
    const std::array specs{RegionSpec{.name = "stray", .bytes = 4096}};
    ASSERT_TRUE(pool->create_regions(specs));
  }
  const Ran stray = run("check " + at("q"));
  EXPECT_EQ(stray.status, 1) << stray.output;
  EXPECT_EQ(stray.output, "checkpoints 'runs': sound\nregion 'stray', 4.0 KiB: of no structure, not checked\n");
  const Ran json = run("check --json " + at("q"));
  EXPECT_EQ(json.status, 1) << json.output;
  EXPECT_EQ(nlohmann::json::parse(json.output)["other_regions"][0]["name"], "stray");
  EXPECT_EQ(run("check " + at("q") + " runs").status, 0) << "nobody has asked for the region";
}

TEST_F(DunnockTool, finds_damage) {
  make_pool(at("p"));
  // A byte in the middle of a value of the log: its place is found by its contents.
  std::string bytes = read(at("p"));
  const Ran dump = run("dump --name data " + at("p"));
  ASSERT_EQ(dump.status, 0);
  std::string longest;
  std::stringstream lines(dump.output);
  for (std::string line; std::getline(lines, line);) longest = line.size() > longest.size() ? line : longest;
  std::string value;
  for (std::size_t i = 33; i + 1 < longest.size(); i += 2)
    value += static_cast<char>(std::stoi(longest.substr(i, 2), nullptr, 16));
  const std::size_t found = bytes.find(value);
  ASSERT_NE(found, std::string::npos);
  bytes = read(at("p"));
  bytes[found + 5] = static_cast<char>(bytes[found + 5] ^ 4);
  write(at("p"), bytes);
  const Ran check = run("check " + at("p"));
  EXPECT_EQ(check.status, 1) << check.output;
  EXPECT_NE(check.output.find("store 'data': DAMAGED"), std::string::npos) << check.output;
  EXPECT_NE(check.output.find("checkpoints 'runs': sound"), std::string::npos) << check.output;
  const Ran again = run("dump --name data --output " + at("dump") + " " + at("p"));
  EXPECT_EQ(again.status, 1) << again.output;
  EXPECT_NE(again.output.find("1 damaged"), std::string::npos) << again.output;
  EXPECT_NE(read(at("dump")).find("end 499"), std::string::npos);
}

TEST_F(DunnockTool, a_dump_that_is_loaded_is_the_same) {
  make_pool(at("p"));
  const auto sorted = [](const std::string& text) {
    std::stringstream lines(text);
    std::vector<std::string> all;
    for (std::string line; std::getline(lines, line);) all.push_back(line);
    std::sort(all.begin(), all.end());
    return all;
  };
  ASSERT_EQ(run("dump --name data --output " + at("dump") + " " + at("p")).status, 0);
  const Ran loaded = run("load --create --capacity 16m --input " + at("dump") + " " + at("q"));
  ASSERT_EQ(loaded.status, 0) << loaded.output;
  EXPECT_EQ(loaded.output, "500 entries loaded\n");
  const Ran again = run("dump " + at("q"));
  EXPECT_EQ(sorted(again.output), sorted(read(at("dump"))));
  // Through a pipe, into what is there already; locators go from index to index.
  EXPECT_EQ(run("load " + at("q") + " < " + at("dump")).status, 0);
  EXPECT_EQ(sorted(run("dump " + at("q")).output), sorted(again.output));
  const Ran locators = run("dump --name where " + at("p"));
  EXPECT_NE(locators.output.find("00000000000000020000000000000001 @12:34:56\n"), std::string::npos) << locators.output;
  EXPECT_NE(locators.output.find("00112233445566778899aabbccddeeff 0700000000000000\n"), std::string::npos);
  write(at("locators"), locators.output);
  EXPECT_EQ(run("load --name where --input " + at("locators") + " " + at("p")).status, 0);
  EXPECT_EQ(run("load --name data --input " + at("locators") + " " + at("p")).status, 2);
}

TEST_F(DunnockTool, refuses_a_dump_that_is_wrong_before_it_changes_anything) {
  make_pool(at("p"));
  const std::string key = "0000000000000000000000000000aaaa";
  const std::array<std::string, 9> wrong{
      "",
      "dunnock-dump 2\nend 0\n",
      "dunnock-dump 1\n" + key + " 01\n",
      "dunnock-dump 1\n" + key + " 01\nend 2\n",
      "dunnock-dump 1\n" + key + " 0\nend 1\n",
      "dunnock-dump 1\n" + key + " 0g\nend 1\n",
      "dunnock-dump 1\n" + key.substr(1) + " 01\nend 1\n",
      "dunnock-dump 1\n" + key + " @1:2\nend 1\n",
      "dunnock-dump 1\n" + key + " 01\nend 1\n" + key + " 02\n",
  };
  for (const std::string& text : wrong) {
    write(at("dump"), text);
    const Ran loaded = run("load --name data --input " + at("dump") + " " + at("p"));
    EXPECT_EQ(loaded.status, 1) << text << loaded.output;
    EXPECT_EQ(run("load --create --input " + at("dump") + " " + at("new")).status, 1);
    EXPECT_FALSE(std::filesystem::exists(at("new")));
  }
  EXPECT_EQ(run("dump --name data " + at("p")).output.find(key), std::string::npos);
}

TEST_F(DunnockTool, lists_shows_and_compares_checkpoints) {
  make_pool(at("p"));
  const auto list = nlohmann::json::parse(run("checkpoint list --json " + at("p")).output);
  ASSERT_EQ(list.size(), 4u);
  EXPECT_EQ(list[3]["version"], 4);
  EXPECT_EQ(run("checkpoint list " + at("p")).status, 0);
  const auto show = nlohmann::json::parse(run("checkpoint show --json " + at("p") + " model").output);
  EXPECT_EQ(show["version"], 4);
  EXPECT_EQ(show["notes"]["step"], "4");
  EXPECT_EQ(show["tensors"][0]["dtype"], "F32");
  EXPECT_EQ(run("checkpoint show " + at("p") + " model@2").status, 0);
  const Ran diff = run("checkpoint diff " + at("p") + " model@1 model@2");
  EXPECT_EQ(diff.output, "~ w\n0 added, 0 removed, 0 of another shape, 1 changed, 0 the same; 4.0 KiB in new chunks\n");
  EXPECT_EQ(nlohmann::json::parse(run("checkpoint diff --json " + at("p") + " model@1 model@1").output)["same"][0],
            "w");
  const Ran verify = run("checkpoint verify " + at("p"));
  EXPECT_EQ(verify.status, 0);
  EXPECT_EQ(verify.output, "model@1: sound\nmodel@2: sound\nmodel@3: sound\nmodel@4: sound\n");
}

TEST_F(DunnockTool, exports_imports_and_deletes_checkpoints) {
  make_pool(at("p"));
  ASSERT_EQ(run("checkpoint export " + at("p") + " model@2 " + at("f")).status, 0);
  const Ran imported = run("checkpoint import --create --capacity 8m --chunk 64k " + at("q") + " copy " + at("f"));
  ASSERT_EQ(imported.status, 0) << imported.output;
  EXPECT_EQ(imported.output.substr(0, 27), "copy@1: 97.7 KiB in 2 chunk");
  EXPECT_EQ(run("checkpoint import --threads 2 " + at("q") + " copy " + at("f")).output.substr(0, 7), "copy@2:");
  ASSERT_EQ(run("checkpoint export --threads 2 " + at("q") + " copy@2 " + at("g")).status, 0);
  EXPECT_EQ(read(at("f")), read(at("g")));
  EXPECT_EQ(run("checkpoint import " + at("q") + " copy@2 " + at("f")).status, 3);  // It is there.
  EXPECT_EQ(run("checkpoint delete " + at("q") + " copy@2").status, 0);
  EXPECT_EQ(run("checkpoint delete " + at("q") + " copy@2").status, 3);
  EXPECT_EQ(run("checkpoint delete " + at("q") + " copy").status, 2);
  EXPECT_EQ(run("checkpoint retain --last 1 --every 2 " + at("p") + " model").output, "2 deleted\n");
  EXPECT_EQ(nlohmann::json::parse(run("checkpoint list --json " + at("p")).output).size(), 2u);
  EXPECT_EQ(run("checkpoint collect " + at("p")).output, "0 values freed\n");
  EXPECT_EQ(run("checkpoint forget " + at("p")).output, "0 damaged lines and checkpoints removed from the catalog\n");
  EXPECT_EQ(run("check " + at("p")).status, 0);
  write(at("f"), read(at("f")).substr(0, 500));
  EXPECT_EQ(run("checkpoint import " + at("p") + " cut " + at("f")).status, 1);
  EXPECT_EQ(run("checkpoint import --create " + at("r") + " cut " + at("f")).status, 1);
  EXPECT_FALSE(std::filesystem::exists(at("r")));
}

TEST_F(DunnockTool, leaves_no_pool_behind_whose_structure_was_refused) {
  make_pool(at("p"));
  ASSERT_EQ(run("dump --name data --output " + at("dump") + " " + at("p")).status, 0);
  ASSERT_EQ(run("checkpoint export " + at("p") + " model@2 " + at("f")).status, 0);
  const std::string load = "load --create --input " + at("dump");
  const std::string long_name(50, 'n');
  for (const std::string& refused :
       {load + " --capacity 1 ", load + " --capacity 2m ", load + " --capacity 16m --name " + long_name + " "}) {
    const Ran ran = run(refused + at("q"));
    EXPECT_EQ(ran.status, 2) << refused << ran.output;
    EXPECT_FALSE(std::filesystem::exists(at("q"))) << refused;
  }
  EXPECT_EQ(run(load + " --capacity 16m " + at("q")).output, "500 entries loaded\n");
  const std::string bytes = read(at("q"));
  EXPECT_EQ(run(load + " --capacity 1 --name other " + at("q")).status, 2);
  EXPECT_EQ(read(at("q")).size(), bytes.size()) << "a pool that was there stays";
  EXPECT_EQ(run("check " + at("q")).status, 0);

  const auto import = [&](const std::string& options) {
    return run("checkpoint import --create " + options + " " + at("r") + " copy " + at("f"));
  };
  for (const char* refused : {"--capacity 1", "--capacity 1m", "--capacity 8m --chunk 1"}) {
    EXPECT_EQ(import(refused).status, 2) << refused << import(refused).output;
    EXPECT_FALSE(std::filesystem::exists(at("r"))) << refused;
  }
  EXPECT_EQ(import("--capacity 8m --chunk 64k --store " + long_name).status, 2);
  EXPECT_FALSE(std::filesystem::exists(at("r")));
  EXPECT_EQ(import("--capacity 8m --chunk 64k").status, 0);
}

/// Flips a bit `offset` bytes after the n-th occurrence of `text` in the file.
void damage(const std::string& path, std::string_view text, std::size_t which, std::size_t offset) {
  std::string all;
  {
    std::ifstream file(path, std::ios::binary);
    all.assign(std::istreambuf_iterator<char>(file), {});
  }
  std::size_t at = all.find(text);
  for (; which > 0 && at != std::string::npos; --which) at = all.find(text, at + 1);
  ASSERT_NE(at, std::string::npos) << text;
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(static_cast<std::streamoff>(at + offset));
  file.put(static_cast<char>(all[at + offset] ^ 4));
}

TEST_F(DunnockTool, lists_and_verifies_checkpoints_that_it_cannot_read_as_damaged) {
  make_pool(at("p"));
  damage(at("p"), "DNNKMAN1", 1, 20);
  const Ran list = run("checkpoint list " + at("p"));
  EXPECT_EQ(list.status, 1);
  EXPECT_NE(list.output.find("DAMAGED: its manifest is damaged or missing"), std::string::npos) << list.output;
  const Ran json = run("checkpoint list --json " + at("p"));
  EXPECT_EQ(json.status, 1);
  const auto all = nlohmann::json::parse(json.output);
  ASSERT_EQ(all.size(), 4u);
  EXPECT_EQ(all[1]["name"], "model");
  EXPECT_EQ(all[1]["version"], 2);
  EXPECT_TRUE(all[1].contains("error"));
  EXPECT_FALSE(all[0].contains("error"));
  const Ran verify = run("checkpoint verify " + at("p"));
  EXPECT_EQ(verify.status, 1);
  EXPECT_NE(verify.output.find("model@1: sound\nmodel@2: DAMAGED"), std::string::npos) << verify.output;
  EXPECT_EQ(run("checkpoint verify " + at("p") + " model@2").status, 1);
  EXPECT_EQ(run("checkpoint show " + at("p") + " model@2").status, 1);
  EXPECT_EQ(run("check " + at("p") + " runs").status, 1);
  const Ran info = run("info --json " + at("p"));
  EXPECT_EQ(info.status, 1);
  EXPECT_EQ(nlohmann::json::parse(info.output)["structures"][1]["checkpoints_damaged"], 1) << info.output;
  EXPECT_EQ(run("checkpoint collect " + at("p")).status, 1) << "what it needs can't be told";
  EXPECT_EQ(run("checkpoint retain " + at("p") + " model --last 2").output, "2 deleted\n")
      << "an old one that is damaged is an old one";
  EXPECT_EQ(run("checkpoint verify " + at("p")).output, "model@3: sound\nmodel@4: sound\n");
}

TEST_F(DunnockTool, never_takes_an_older_checkpoint_for_the_newest_without_a_word) {
  make_pool(at("p"));
  damage(at("p"), "DNNKMAN1", 3, 20);
  for (const char* command : {"show", "verify"})
    EXPECT_EQ(run(std::string("checkpoint ") + command + " " + at("p") + " model").status, 1) << command;
  EXPECT_EQ(run("checkpoint export " + at("p") + " model " + at("f")).status, 1);
  EXPECT_FALSE(std::filesystem::exists(at("f")));
  const Ran retained = run("checkpoint retain " + at("p") + " model --last 1");
  EXPECT_EQ(retained.status, 1);
  EXPECT_NE(retained.output.find("2 deleted\n"), std::string::npos) << retained.output;
  EXPECT_EQ(run("checkpoint verify " + at("p") + " model@3").status, 0) << "the newest that is sound stays";
  EXPECT_EQ(run("checkpoint forget " + at("p")).output, "1 damaged lines and checkpoints removed from the catalog\n");
  EXPECT_EQ(run("checkpoint verify " + at("p")).output, "model@3: sound\n");
}

TEST_F(DunnockTool, dumps_say_what_they_lack) {
  make_pool(at("p"));
  ASSERT_EQ(run("dump --name data --output " + at("whole") + " " + at("p")).status, 0);
  const std::string whole = read(at("whole"));
  const std::string key =
      "fffffffffffffff6"
      "0000000000000009";
  const std::size_t line = whole.find(key);
  ASSERT_NE(line, std::string::npos);
  std::string value;
  for (std::size_t digit = line + 33; digit < line + 33 + 40; digit += 2)
    value += static_cast<char>(std::stoi(whole.substr(digit, 2), nullptr, 16));
  damage(at("p"), value, 0, 3);
  const Ran dumped = run("dump --name data --output " + at("part") + " " + at("p"));
  EXPECT_EQ(dumped.status, 1);
  EXPECT_NE(dumped.output.find("1 damaged entries"), std::string::npos) << dumped.output;
  EXPECT_NE(read(at("part")).find("# damaged " + key + "\n"), std::string::npos);
  EXPECT_NE(read(at("part")).find("# damaged entries: 1\nend 499\n"), std::string::npos);
  const Ran loaded = run("load --create --capacity 16m --input " + at("part") + " " + at("q"));
  EXPECT_EQ(loaded.status, 1);
  EXPECT_NE(loaded.output.find("499 entries loaded\n"), std::string::npos) << loaded.output;
  EXPECT_NE(loaded.output.find("1 entries were damaged when the dump was written"), std::string::npos);
  // Loading what is whole heals it.
  EXPECT_EQ(run("load --name data --input " + at("whole") + " " + at("p")).status, 0);
  EXPECT_EQ(run("check " + at("p") + " data").status, 0);
}

TEST_F(DunnockTool, says_why_what_it_prints_does_not_arrive) {
  make_pool(at("p"));
  ASSERT_EQ(run("checkpoint export " + at("p") + " model@1 " + at("f")).status, 0);
  for (const char* command :
       {"info", "info --json", "check", "check --json", "dump --name data", "checkpoint list", "checkpoint list --json",
        "checkpoint verify", "checkpoint collect", "checkpoint forget"}) {
    const Ran ran = run(std::string(command) + " " + at("p"), " > /dev/full");
    EXPECT_EQ(ran.status, 3) << command;
    EXPECT_NE(ran.output.find("standard output: No space left on device"), std::string::npos) << ran.output;
    EXPECT_NE(run(std::string(command) + " " + at("p"), " >&-").status, 0) << command << " with standard output closed";
  }
  for (const std::string& command :
       {"checkpoint show " + at("p") + " model", "checkpoint diff " + at("p") + " model@1 model@2",
        "checkpoint export " + at("p") + " model@1 " + at("f"), "checkpoint import " + at("p") + " new " + at("f"),
        "checkpoint delete " + at("p") + " new@1", "checkpoint retain " + at("p") + " model --last 9",
        std::string("--help"), std::string("--version")})
    EXPECT_EQ(run(command, " > /dev/full").status, 3) << command;
  EXPECT_EQ(run("check " + at("p")).status, 0);
}

TEST_F(DunnockTool, writes_through_what_is_no_ordinary_file) {
  make_pool(at("p"));
  const auto writes = [&](const std::string& file) {
    return std::array{"checkpoint export --threads 3 " + at("p") + " model@1 " + file,
                      "dump --name data --output " + file + " " + at("p")};
  };
  std::filesystem::create_symlink("/dev/null", at("null"));
  for (const std::string& command : writes("/dev/null")) EXPECT_EQ(run(command).status, 0) << command;
  for (const std::string& command : writes(at("null"))) EXPECT_EQ(run(command).status, 0) << command;
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  EXPECT_TRUE(std::filesystem::is_symlink(at("null")));
  for (const std::string& command : writes("/dev/full")) {
    const Ran full = run(command);
    EXPECT_EQ(full.status, 3);
    EXPECT_NE(full.output.find("No space left on device"), std::string::npos) << full.output;
  }
  for (const std::string& command : writes(directory_.string())) EXPECT_EQ(run(command).status, 2) << command;
  for (const int n : {0, 1}) {
    ASSERT_EQ(run(writes(at("plain"))[static_cast<std::size_t>(n)]).status, 0);
    const std::string whole = read(at("plain"));
    ASSERT_EQ(mkfifo(at("pipe").c_str(), 0600), 0);
    const Ran piped = run(writes(at("pipe"))[static_cast<std::size_t>(n)] + " & cat " + at("pipe") + " > " + at("got") +
                          "; wait; true");
    EXPECT_TRUE(read(at("got")) == whole) << piped.output;
    EXPECT_TRUE(std::filesystem::is_fifo(at("pipe")));
    std::filesystem::remove(at("pipe"));
    std::filesystem::create_symlink("plain", at("link"));
    std::ofstream(at("plain")) << "old";
    std::filesystem::permissions(at("plain"), std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
    EXPECT_EQ(run(writes(at("link"))[static_cast<std::size_t>(n)]).status, 0);
    EXPECT_TRUE(std::filesystem::is_symlink(at("link")));
    EXPECT_TRUE(read(at("plain")) == whole);
    EXPECT_EQ(std::filesystem::status(at("plain")).permissions(),
              std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
    std::filesystem::remove(at("link"));
  }
  // To a pipe that is standard output goes nothing but the checkpoint.
  ASSERT_EQ(run("checkpoint export " + at("p") + " model@1 " + at("plain")).status, 0);
  const std::string arguments = "checkpoint export " + at("p") + " model@1 /dev/stdout";
  EXPECT_EQ(run(arguments, " 2> /dev/null | cat > " + at("got") + "; true").status, 0);
  EXPECT_TRUE(read(at("got")) == read(at("plain")));
  for (const auto& entry : std::filesystem::directory_iterator(directory_))
    EXPECT_EQ(entry.path().string().find(".part"), std::string::npos) << entry.path();
}

TEST_F(DunnockTool, keeps_its_hands_off_its_own_pool) {
  make_pool(at("p"));
  std::filesystem::create_symlink("p", at("link"));
  std::filesystem::create_hard_link(at("p"), at("hard"));
  ASSERT_EQ(run("dump --name data --output " + at("d") + " " + at("p")).status, 0);
  ASSERT_EQ(run("checkpoint export " + at("p") + " model@1 " + at("f")).status, 0);
  for (const std::string& name : {at("p"), at("./p"), at("link"), at("hard")}) {
    for (const std::string& command :
         {"checkpoint export " + at("p") + " model@1 " + name, "dump --name data --output " + name + " " + at("p"),
          "load --name data --input " + name + " " + at("p"), "checkpoint import " + at("p") + " x " + name}) {
      const Ran ran = run(command);
      EXPECT_EQ(ran.status, 2) << command;
      EXPECT_NE(ran.output.find("the same file"), std::string::npos) << ran.output;
    }
  }
  EXPECT_EQ(run("checkpoint export " + at("p") + " model@1 " + at("p.journal")).status, 2);
  EXPECT_EQ(run("load --create --capacity 16m --input " + at("d") + " " + at("d")).status, 2);
  const std::string before = read(at("p"));
  EXPECT_EQ(run("info " + at("p"), " >> " + at("p")).status, 2) << "standard output is the pool";
  EXPECT_TRUE(read(at("p")) == before);
  EXPECT_EQ(run("dump --name data --output " + at("d") + " " + at("p"), " >> " + at("d")).status, 2);
  EXPECT_EQ(run("check " + at("p")).status, 0);
}

TEST_F(DunnockTool, takes_no_value_for_everything) {
  make_pool(at("p"));
  for (const char* last :
       {"0", "-1", "\"\"", "x", "1.5", "18446744073709551616", "99999999999999999999999", "1048577"}) {
    const Ran ran = run("checkpoint retain " + at("p") + " model --last " + last);
    EXPECT_EQ(ran.status, 2) << last << ran.output;
    EXPECT_NE(ran.output.find("--last"), std::string::npos) << ran.output;
  }
  for (const char* every : {"-1", "\"\"", "x", "18446744073709551616"})
    EXPECT_EQ(run("checkpoint retain " + at("p") + " model --every " + every).status, 2) << every;
  const std::string path = at("p");
  for (const std::string& command :
       {"checkpoint verify " + path + " \"\"", "checkpoint retain " + path + " \"\"", "check " + path + " \"\"",
        "checkpoint delete " + path + " \"\"", "dump --name \"\" " + path, "dump --name data --output \"\" " + path,
        "checkpoint list --store \"\" " + path, std::string("info \"\"")})
    EXPECT_EQ(run(command).status, 2) << command;
  EXPECT_EQ(nlohmann::json::parse(run("checkpoint list --json " + at("p")).output).size(), 4u);
  for (const char* capacity : {"0", "-1", "1", "x", "18446744073709551616", "17179869184g"}) {
    EXPECT_NE(run("load --create --capacity " + std::string(capacity) + " " + at("new") + " < /dev/null").status, 0)
        << capacity;
  }
  for (const char* size : {"-1", "+1", "-1g", "0x10", "1e6", "g", "1.5g", "1 g"}) {
    for (const char* option : {"--capacity", "--chunk"}) {
      const std::string value = std::string(option) + " '" + size + "' ";
      const Ran ran = run("checkpoint import --create " + value + at("new") + " x " + at("p"));
      EXPECT_EQ(ran.status, 2) << ran.output;
      EXPECT_NE(ran.output.find(std::string(option) + ": " + size + " is no size"), std::string::npos) << ran.output;
    }
  }
}

TEST_F(DunnockTool, prints_nothing_that_acts_on_a_terminal) {
  const std::string evil = "w\x1b]0;owned\x07\nmodel@9: sound\xff\u009b2J\u202e";
  {
    auto pool = Pool::create(at("p"), {.bytes = 64 << 20});
    ASSERT_TRUE(pool);
    auto store = CheckpointStore<ProcessMedia>::create(
        *pool, "runs", {.capacity_bytes = 4 << 20, .chunk_bytes = 4096, .segment_bytes = 1 << 20}, {});
    ASSERT_TRUE(store);
    const std::vector<std::byte> bytes(100);
    const std::array sources{TensorSource{{evil, Dtype::kU8, {100}}, bytes, {}, {}}};
    ASSERT_TRUE(store->save(evil, 1, sources, {.notes = {{evil, evil}}}));
    ASSERT_TRUE(store->save("other", 1, sources));
    store->close();
  }
  write(at("names"), evil + "@1");
  const std::string title = "\"$(cat " + at("names") + ")\"";
  for (const std::string& command :
       {std::string("checkpoint list ") + at("p"), "checkpoint list --json " + at("p"), "checkpoint verify " + at("p"),
        "checkpoint show " + at("p") + " " + title, "checkpoint show --json " + at("p") + " " + title,
        "checkpoint diff " + at("p") + " " + title + " other@1",
        "checkpoint diff --json " + at("p") + " other@1 " + title, "checkpoint verify " + at("p") + " " + title,
        "checkpoint export " + at("p") + " " + title + " /dev/null",
        "checkpoint export " + at("p") + " other@1 " + title, "checkpoint show " + at("p") + " " + title + "0",
        "info " + at("p") + " " + title, "info " + title, "check " + at("p") + " " + title,
        "checkpoint retain " + at("p") + " " + title, "checkpoint delete " + at("p") + " " + title}) {
    const Ran ran = run(command);
    EXPECT_EQ(ran.output.find_first_of("\x1b\x07\xff"), std::string::npos) << command;
    EXPECT_EQ(ran.output.find("\u009b"), std::string::npos) << command;
    EXPECT_EQ(ran.output.find("\u202e"), std::string::npos) << command;
    EXPECT_EQ(ran.output.find("\nmodel@9"), std::string::npos) << "a line of another's making: " << command;
    EXPECT_FALSE(ran.output.empty()) << command;
  }
}

TEST_F(DunnockTool, says_what_is_wrong) {
  make_pool(at("p"));
  EXPECT_EQ(run("").status, 2);
  EXPECT_EQ(run("nothing " + at("p")).status, 2);
  EXPECT_EQ(run("info").status, 2);
  EXPECT_EQ(run("info " + at("missing")).status, 3);
  write(at("text"), "not a pool");
  EXPECT_EQ(run("info " + at("text")).status, 1);
  EXPECT_EQ(run("load " + at("missing") + " < /dev/null").status, 3);
  EXPECT_EQ(run("dump " + at("p")).status, 2);  // There are two that could be meant.
  EXPECT_EQ(run("dump --name seen " + at("p")).status, 2);
  EXPECT_EQ(run("dump --name gone " + at("p")).status, 3);
  EXPECT_EQ(run("dump --name data --output " + at("no/dir") + " " + at("p")).status, 3);
  EXPECT_EQ(run("checkpoint show " + at("p") + " other").status, 3);
  EXPECT_EQ(run("checkpoint show " + at("p") + " model@x").status, 2);
  EXPECT_EQ(run("checkpoint export " + at("p") + " model@1 " + at("no/dir")).status, 3);
  EXPECT_EQ(run("checkpoint list --store data " + at("p")).status, 2);
  auto pool = Pool::open(at("p"));
  ASSERT_TRUE(pool);
  const Ran open = run("check " + at("p"));
  EXPECT_EQ(open.status, 3);
  EXPECT_NE(open.output.find("AlreadyOpen"), std::string::npos) << open.output;
}

TEST_F(DunnockTool, looks_into_a_pool_without_changing_it) {
  make_pool(at("p"));
  ASSERT_EQ(chmod(at("p").c_str(), 0444), 0);
  const std::string before = read(at("p"));
  for (const std::string& command :
       {"info " + at("p"), "check " + at("p"), "dump --name data " + at("p"), "dump --name where " + at("p"),
        "checkpoint list " + at("p"), "checkpoint show " + at("p") + " model", "checkpoint verify " + at("p"),
        "checkpoint diff " + at("p") + " model@1 model@2", "checkpoint export " + at("p") + " model@3 " + at("f")}) {
    const Ran ran = run(command);
    EXPECT_EQ(ran.status, 0) << command << ran.output;
  }
  EXPECT_TRUE(read(at("p")) == before);
  for (const char* name : {"p", "f"}) std::filesystem::remove(at(name));
  EXPECT_TRUE(std::filesystem::is_empty(directory_)) << "nothing is left beside it";
}

// A killed pool is looked into as it is when it has been recovered, and stays as it is.
TEST_F(DunnockTool, looks_into_a_pool_that_was_killed) {
  make_pool(at("p"));
  const pid_t child = fork();
  if (child == 0) {
    auto pool = Pool::open(at("p"));
    auto opened = KvStore<FileMedia>::open(*pool, "data", pool->file_media());
    for (std::uint64_t key = 1000; key < 1100; ++key) {
      if (opened->store.put({key, ~key}, std::vector<std::byte>(40)) == PutResult::kIo) _exit(1);
    }
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  const std::string before = read(at("p"));
  const Ran info = run("info --json " + at("p"));
  ASSERT_EQ(info.status, 0) << info.output;
  EXPECT_EQ(nlohmann::json::parse(info.output)["structures"][0]["entries"], 600) << info.output;
  EXPECT_EQ(run("check " + at("p")).status, 0);
  EXPECT_TRUE(read(at("p")) == before);
}

TEST_F(DunnockTool, looks_beside_a_writer_and_says_so) {
  make_pool(at("p"));
  auto pool = Pool::open(at("p"));
  ASSERT_TRUE(pool) << pool.error().message;
  const FileMedia media = pool->file_media();
  auto opened = KvStore<FileMedia>::open(*pool, "data", media);
  ASSERT_TRUE(opened) << opened.error().message;
  std::atomic<bool> ends = false;
  std::thread writer([&] {
    for (std::uint64_t key = 1000; !ends; ++key)
      ASSERT_LE(opened->store.put({key % 2000, ~key}, std::vector<std::byte>(key % 300)), PutResult::kReplaced);
  });
  for (int look = 0; look < 5; ++look) {
    const Ran info = run("info --json " + at("p"));
    EXPECT_EQ(info.status, 0) << info.output;
    const auto json = nlohmann::json::parse(info.output);
    EXPECT_TRUE(json["open_for_writing"].get<bool>());
    EXPECT_GE(json["structures"][0]["entries"], 500) << "what was there before";
    EXPECT_EQ(json["structures"][1]["checkpoints"], 4);
    const Ran list = run("checkpoint list " + at("p"));
    EXPECT_EQ(list.status, 0) << list.output;
    EXPECT_EQ(std::count(list.output.begin(), list.output.end(), '\n'), 5) << list.output;
    EXPECT_EQ(run("checkpoint show " + at("p") + " model").status, 0);
  }
  for (const std::string& command : {"check " + at("p"), "dump --name data " + at("p"), "checkpoint verify " + at("p"),
                                     "copy " + at("p") + " " + at("q")}) {
    const Ran ran = run(command);
    EXPECT_EQ(ran.status, 3) << command;
    EXPECT_NE(ran.output.find("is already open"), std::string::npos) << ran.output;
  }
  EXPECT_FALSE(std::filesystem::exists(at("q")));
  ends = true;
  writer.join();
}

TEST_F(DunnockTool, copies_a_pool) {
  make_pool(at("p"));
  EXPECT_EQ(run("copy " + at("p") + " " + at("q")).status, 0);
  EXPECT_TRUE(read(at("q")) == read(at("p")));
  EXPECT_EQ(run("check " + at("q")).status, 0);
  const Ran again = run("copy " + at("p") + " " + at("q"));
  EXPECT_EQ(again.status, 3) << "nothing is written over";
  EXPECT_EQ(run("copy " + at("p") + " " + at("p")).status, 2);
  EXPECT_EQ(run("copy " + at("none") + " " + at("r")).status, 3);
  EXPECT_FALSE(std::filesystem::exists(at("r")));
}

TEST_F(DunnockTool, has_a_manual_with_every_command_and_option) {
  const std::string manual = read(std::string(DUNNOCK_SOURCE_DIR) + "/tools/dunnock/man/dunnock.1");
  const auto named = [&manual](const std::string& help) {
    std::stringstream words(help);
    for (std::string word; words >> word;) {
      if (!word.starts_with("--") || word.size() < 4) continue;
      word = word.substr(2, word.find_first_of(",=.[ ", 2) - 2);
      EXPECT_NE(manual.find("Fl -" + word), std::string::npos) << word;
    }
  };
  for (const char* command : {"info", "check", "dump", "load", "copy"}) {
    const Ran help = run(std::string(command) + " --help");
    EXPECT_EQ(help.status, 0);
    EXPECT_NE(manual.find(std::string("Cm ") + command), std::string::npos);
    named(help.output);
  }
  const std::string all = run("checkpoint --help").output;
  for (const char* command :
       {"list", "show", "verify", "diff", "export", "import", "delete", "retain", "collect", "forget"}) {
    EXPECT_NE(all.find(command), std::string::npos);
    EXPECT_NE(manual.find(std::string("Cm checkpoint ") + command), std::string::npos) << command;
    named(run(std::string("checkpoint ") + command + " --help").output);
  }
}

}  // namespace
}  // namespace dunnock
