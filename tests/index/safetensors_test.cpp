// Safetensors headers and files: what is sound is read and written, what is not is refused with a reason.
#include "dunnock/index/safetensors.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dunnock/index/checkpoint_files.hpp"

namespace dunnock {
namespace {

Result<SafetensorsHeader> parse(const std::string& json, std::uint64_t data_bytes) {
  return parse_safetensors_header(std::as_bytes(std::span(json)), data_bytes);
}
std::string reason(const std::string& json, std::uint64_t data_bytes) {
  const auto header = parse(json, data_bytes);
  return header ? "accepted" : header.error().message;
}

TEST(Safetensors, reads_what_other_tools_write) {
  const auto header =
      parse(R"({"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},"__metadata__":{"format":"pt"},)"
            R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
            R"("e":{"dtype":"I64","shape":[0],"data_offsets":[20,20]}}   )",
            20);
  ASSERT_TRUE(header) << header.error().message;
  ASSERT_EQ(header->tensors.size(), 3u);
  EXPECT_EQ(header->tensors[0].spec, (TensorSpec{"a", Dtype::kF32, {2}}));
  EXPECT_EQ(header->tensors[1].spec, (TensorSpec{"b", Dtype::kBF16, {2, 3}}));
  EXPECT_EQ(header->tensors[1].begin_bytes, 8u);
  ASSERT_EQ(header->notes.size(), 1u);
  EXPECT_EQ(header->notes[0].second, "pt");
}

TEST(Safetensors, refuses_what_is_not_sound_and_says_why) {
  const auto one = [](const std::string& body) { return "{\"a\":" + body + "}"; };
  EXPECT_NE(reason("", 0).find("begin"), std::string::npos);
  EXPECT_NE(reason("[]", 0).find("begin"), std::string::npos);
  EXPECT_NE(reason("{", 0).find("JSON"), std::string::npos);
  EXPECT_NE(reason("{} x", 0).find("JSON"), std::string::npos);
  EXPECT_EQ(reason("{}", 0), "accepted");
  EXPECT_NE(reason("{}", 4).find("follow"), std::string::npos);
  EXPECT_NE(reason(one("{\"dtype\":\"F32\",\"shape\":[1]}"), 4).find("data_offsets"), std::string::npos);
  const auto tensor = [&one](const char* dtype, const char* shape, const char* offsets) {
    return one(std::string("{\"dtype\":") + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}");
  };
  EXPECT_EQ(reason(tensor("\"F32\"", "[1]", "[0,4]"), 4), "accepted");
  EXPECT_NE(reason(tensor("\"F31\"", "[1]", "[0,4]"), 4).find("F31"), std::string::npos);
  EXPECT_NE(reason(tensor("7", "[1]", "[0,4]"), 4).find("dtype"), std::string::npos);
  EXPECT_NE(reason(tensor("\"F32\"", "[-1]", "[0,4]"), 4).find("whole"), std::string::npos);
  EXPECT_NE(reason(tensor("\"F32\"", "[1.5]", "[0,4]"), 4).find("whole"), std::string::npos);
  EXPECT_NE(reason(tensor("\"F32\"", "1", "[0,4]"), 4).find("shape"), std::string::npos);
  EXPECT_NE(reason(tensor("\"F32\"", "[2]", "[0,4]"), 4).find("do not match its shape"), std::string::npos);
  EXPECT_NE(reason(tensor("\"F32\"", "[1]", "[4,0]"), 4).find("do not match its shape"), std::string::npos);
  EXPECT_NE(reason(tensor("\"F32\"", "[1]", "[0,4,5]"), 4).find("offsets"), std::string::npos);
  EXPECT_NE(reason(tensor("\"F32\"", "[1]", "[1,5]"), 5).find("begin"), std::string::npos);
  EXPECT_NE(reason(tensor("\"F32\"", "[1]", "[0,4]"), 3).find("after the end of the file"), std::string::npos);
  EXPECT_NE(reason(tensor("\"F64\"", "[4294967296,4294967296,2]", "[0,4]"), 4).find("large"), std::string::npos);
  EXPECT_NE(reason(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],)"
                   R"("data_offsets":[1,3]}})",
                   3)
                .find("begin"),
            std::string::npos);
  EXPECT_NE(reason(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],)"
                   R"("data_offsets":[0,1]}})",
                   1)
                .find("twice"),
            std::string::npos);
  EXPECT_NE(reason(R"({"__metadata__":{"a":1}})", 0).find("text"), std::string::npos);
  EXPECT_NE(reason("{\"a\":" + std::string(100000, '['), 0).find("deep"), std::string::npos);
}

std::string tensor(const std::string& dtype, const std::string& shape, std::uint64_t bytes,
                   const std::string& more = {}) {
  return R"({"a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":[0,)" + std::to_string(bytes) +
         "]" + more + "}}";
}

TEST(Safetensors, takes_nothing_behind_the_json_but_white_space) {
  for (const std::string& end : {"", " ", "   \t\r\n "}) EXPECT_EQ(reason("{}" + end, 0), "accepted");
  for (const std::string& end :
       {std::string(1, '\0'), std::string("\0x", 2), std::string(" \0 ", 3), std::string("x"), std::string("{}"),
        std::string("//"), std::string("\v"), std::string("\xef\xbb\xbf"), std::string(",")})
    EXPECT_NE(reason("{}" + end, 0), "accepted") << testing::PrintToString(end);
  EXPECT_NE(reason(tensor("U8", "[1]", 1) + std::string("\0{\"a\":1}", 9), 1), "accepted");
}

TEST(Safetensors, agrees_with_other_readers_on_what_they_take_and_refuse) {
  // Each was tried with safetensors 0.8.0.
  EXPECT_EQ(reason(R"({"__metadata__":null})", 0), "accepted");
  EXPECT_EQ(reason(R"({"__metadata__":{"dtype":"F32"}})", 0), "accepted");
  EXPECT_NE(reason(R"({"__metadata__":{"a":null}})", 0), "accepted");
  EXPECT_NE(reason(R"({"__metadata__":[]})", 0), "accepted");
  EXPECT_NE(reason(R"({"a":null})", 0), "accepted");
  EXPECT_EQ(reason(tensor("U8", "[1]", 1, R"(,"x":[[[[[[[[1]]]]]]]])"), 1), "accepted")
      << "a member that we don't know";
  EXPECT_NE(reason(tensor("U8", "[1]", 1, R"(,"dtype":"U8")"), 1), "accepted");
  EXPECT_EQ(reason(tensor("U8", "[0,9223372036854775807,9223372036854775807]", 0), 0), "accepted");
  EXPECT_NE(reason(tensor("U8", "[9223372036854775807,9223372036854775807,0]", 0), 0), "accepted");
  EXPECT_EQ(reason(tensor("U8", "[18446744073709551615,0]", 0), 0), "accepted");
  EXPECT_NE(reason(tensor("U8", "[18446744073709551616,0]", 0), 0), "accepted");
  for (const char* shape : {"[1.0]", "[1e0]", "[01]", "[-0]"}) EXPECT_NE(reason(tensor("U8", shape, 1), 1), "accepted");
  EXPECT_NE(reason("{\"\\ud800\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1), "accepted");
  EXPECT_NE(reason("{\"\xff\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1), "accepted");
  EXPECT_EQ(reason("{\"\\u0000\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1), "accepted");
}

TEST(Safetensors, knows_every_dtype_of_the_format_and_its_size) {
  constexpr std::pair<const char*, std::uint64_t> kBitsOf[] = {
      {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
      {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
      {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}};
  EXPECT_EQ(std::size(kBitsOf), kDtypeLast);
  for (const auto& [name, bits] : kBitsOf) {
    EXPECT_EQ(reason(tensor(name, "[8]", bits), bits), "accepted") << name;
    EXPECT_NE(reason(tensor(name, "[8]", bits + 1), bits + 1), "accepted") << name;
    for (std::uint64_t elements = 0; elements <= 9; ++elements) {
      const std::uint64_t bytes = (elements * bits + 7) / 8;
      const bool whole = elements * bits % 8 == 0;
      EXPECT_EQ(reason(tensor(name, "[" + std::to_string(elements) + "]", bytes), bytes) == "accepted", whole)
          << elements << " of " << name;
    }
    const std::vector<TensorSpec> specs{{"t", *dtype_of(name), {2, 4}}};
    EXPECT_EQ(specs[0].bytes(), bits);
    EXPECT_TRUE(safetensors_header(specs, {}));
  }
  for (const char* name : {"C128", "f32", "U4", "F6", "F8", "", "BOOL "})
    EXPECT_EQ(parse(tensor(name, "[8]", 8), 8).error().code, ErrorCode::kUnsupported) << name;
  const std::vector<TensorSpec> half{{"t", Dtype::kF4, {3}}};
  EXPECT_EQ(safetensors_header(half, {}).error().code, ErrorCode::kInvalidArgument);
}

TEST(Safetensors, quotes_foreign_names_without_acting_on_the_terminal) {
  const std::string name = R"(\u001b[2J\n)";
  for (const std::string& json :
       {"{\"" + name + "\":1}", "{\"" + name + "\":1,\"" + name + "\":1}", tensor(name, "[1]", 1)}) {
    const std::string why = reason(json, 1);
    EXPECT_EQ(why.find_first_of("\x1b\n"), std::string::npos);
    EXPECT_NE(why.find("\\x1b"), std::string::npos) << why;
  }
}

TEST(Safetensors, writes_what_it_reads) {
  const std::vector<TensorSpec> specs{{"w\"eird\n", Dtype::kF16, {3, 5}}, {"scalar", Dtype::kBool, {}}};
  const std::vector<std::pair<std::string, std::string>> notes{{"k", "v"}};
  const auto text = safetensors_header(specs, notes);
  ASSERT_TRUE(text);
  EXPECT_EQ(text->size() % 8, 0u);
  const auto header = parse(text->substr(8), 31);
  ASSERT_TRUE(header) << header.error().message;
  EXPECT_EQ(header->tensors[0].spec, specs[0]);
  EXPECT_EQ(header->tensors[1].begin_bytes, 30u);
  EXPECT_EQ(header->notes, notes);
  const std::vector<TensorSpec> reserved{{"__metadata__", Dtype::kF16, {3}}};
  EXPECT_EQ(safetensors_header(reserved, {}).error().code, ErrorCode::kInvalidArgument);
  const std::vector<TensorSpec> broken{{"\xff", Dtype::kF16, {3}}};
  EXPECT_EQ(safetensors_header(broken, {}).error().code, ErrorCode::kInvalidArgument);
}

class SafetensorsFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("safetensors_test." + std::to_string(getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  [[nodiscard]] std::string path(const char* name) const { return (folder_ / name).string(); }
  std::filesystem::path folder_;
};

TEST_F(SafetensorsFiles, go_through_a_store_unchanged) {
  auto pool = Pool::create(path("pool"), {.bytes = 64 << 20});
  ASSERT_TRUE(pool);
  auto store = CheckpointStore<ProcessMedia>::create(
      *pool, "c", {.capacity_bytes = 4 << 20, .chunk_bytes = 4096, .segment_bytes = 1 << 16}, {});
  ASSERT_TRUE(store);
  std::vector<std::byte> weights(30000), bias(7);
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<std::byte>(i * i);
  const std::vector<TensorSource> tensors{{{"weights", Dtype::kF32, {75, 100}}, weights, {}},
                                          {{"bias", Dtype::kU8, {7}}, bias, {}}};
  ASSERT_TRUE(store->save("run", 1, tensors, {.notes = {{"format", "pt"}}}));
  ASSERT_TRUE(export_safetensors(*store, "run", 1, path("a.safetensors"), 2));
  for (const auto& entry : std::filesystem::directory_iterator(folder_))
    EXPECT_EQ(entry.path().string().find(".part"), std::string::npos) << entry.path();
  const auto saved = import_safetensors(*store, "copy", 5, path("a.safetensors"), 2);
  ASSERT_TRUE(saved) << saved.error().message;
  EXPECT_EQ(saved->chunks_written, 0u) << "the bytes are there already";
  EXPECT_EQ(store->manifest("copy", 5)->notes, store->manifest("run", 1)->notes);
  ASSERT_TRUE(export_safetensors(*store, "copy", kLatestVersion, path("b.safetensors")));
  const auto all = [](const std::string& file) {
    std::ifstream stream(file, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(stream), {});
  };
  EXPECT_EQ(all(path("a.safetensors")), all(path("b.safetensors")));

  EXPECT_EQ(import_safetensors(*store, "x", 1, path("none")).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(export_safetensors(*store, "none", 1, path("c")).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(export_safetensors(*store, "run", 1, path("no/folder/c")).error().code, ErrorCode::kNotFound);
  // Cut off at every length.
  const std::string whole = all(path("a.safetensors"));
  for (const std::size_t length : {std::size_t{0}, std::size_t{7}, std::size_t{50}, whole.size() - 1}) {
    std::ofstream(path("cut"), std::ios::binary) << whole.substr(0, length);
    EXPECT_EQ(import_safetensors(*store, "x", 1, path("cut")).error().code, ErrorCode::kCorrupt) << length;
  }
  EXPECT_EQ(store->list().size(), 2u);

  // What is no ordinary file is written through, and says why it refuses.
  const auto full = export_safetensors(*store, "run", 1, "/dev/full", 2);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, ErrorCode::kNoSpace);
  EXPECT_NE(full.error().message.find(std::strerror(ENOSPC)), std::string::npos) << full.error().message;
  EXPECT_TRUE(export_safetensors(*store, "run", 1, "/dev/null", 2));
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  std::string piped;
  std::thread reader([&] { piped = all(path("pipe")); });
  const auto through = export_safetensors(*store, "run", 1, path("pipe"), 3);
  reader.join();
  EXPECT_TRUE(through) << through.error().message;
  EXPECT_EQ(piped, whole) << "the same bytes, in order";
}

}  // namespace
}  // namespace dunnock
