// The tokenizer of llama2.c: files, and the tokens of its own way to merge.
#include "dunnock/data/llama2c_tokenizer.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <random>

#include "support/seed.hpp"
#include "support/temporary_folder.hpp"

namespace dunnock::data {
namespace {

using test::TemporaryFolder;

struct Entry {
  std::string text;
  float score = 0;
};

std::string hex_name(unsigned byte) {
  char name[8];
  std::snprintf(name, sizeof name, "<0x%02X>", byte);
  return name;
}
std::vector<Entry> fixed_entries() {
  std::vector<Entry> entries{{"<unk>"}, {"\n<s>\n"}, {"\n</s>\n"}};
  for (unsigned byte = 0; byte < 256; ++byte) entries.push_back({hex_name(byte)});
  return entries;
}
std::string file_of(const std::vector<Entry>& entries, std::uint32_t longest = 20) {
  std::string file(reinterpret_cast<const char*>(&longest), sizeof longest);
  for (const Entry& entry : entries) {
    const auto bytes = static_cast<std::int32_t>(entry.text.size());
    file.append(reinterpret_cast<const char*>(&entry.score), 4).append(reinterpret_cast<const char*>(&bytes), 4);
    file += entry.text;
  }
  return file;
}
Result<Llama2cTokenizer> parse(const std::string& file) {
  return Llama2cTokenizer::parse(std::as_bytes(std::span(file)));
}

/// As llama2.c goes about it: looks at all pairs, merges the best one, and looks again.
std::vector<std::int32_t> twin(const std::vector<Entry>& entries, const std::string& text) {
  std::map<std::string, std::int32_t> ids;
  for (std::size_t i = 259; i < entries.size(); ++i) ids[entries[i].text] = static_cast<std::int32_t>(i);
  std::vector<std::int32_t> tokens;
  const auto add = [&](const std::string& character) {
    if (const auto found = ids.find(character); found != ids.end()) return tokens.push_back(found->second);
    for (const char c : character) tokens.push_back(3 + static_cast<unsigned char>(c));
  };
  if (!text.empty()) add(" ");
  std::string character;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xC0U) != 0x80U) character.clear();
    character.push_back(text[i]);
    const bool goes_on = i + 1 < text.size() && (static_cast<unsigned char>(text[i + 1]) & 0xC0U) == 0x80U;
    if (goes_on && character.size() < 4) continue;
    add(character);
    character.clear();
  }
  while (true) {
    float best_score = -std::numeric_limits<float>::infinity();
    std::size_t best = tokens.size();
    std::int32_t merged = 0;
    for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
      const auto text_of = [&](std::size_t at) { return entries[static_cast<std::size_t>(tokens[at])].text; };
      const auto found = ids.find(text_of(i) + text_of(i + 1));
      if (found == ids.end() || entries[static_cast<std::size_t>(found->second)].score <= best_score) continue;
      best_score = entries[static_cast<std::size_t>(found->second)].score;
      best = i;
      merged = found->second;
    }
    if (best == tokens.size()) return tokens;
    tokens[best] = merged;
    tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST(Llama2cTokenizer, agrees_with_its_twin_on_random_vocabularies) {
  auto generator = test::generator(1);
  for (int round = 0; round < 50; ++round) {
    std::vector<Entry> entries = fixed_entries();
    std::vector<std::string> all{"a", "b", "\u00e9"};
    if (round % 2 == 0) all.emplace_back(" ");
    for (int i = 0; i < 40; ++i) {
      const std::string both = all[generator() % all.size()] + all[generator() % all.size()];
      if (both.size() <= 12 && std::ranges::find(all, both) == all.end()) all.push_back(both);
    }
    for (const std::string& text : all) entries.push_back({text, -static_cast<float>(generator() % 30)});
    const auto tokenizer = parse(file_of(entries));
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    for (int i = 0; i < 30; ++i) {
      std::string text;
      for (std::size_t length = generator() % 80; text.size() < length;) {
        if (generator() % 10 == 0) text.push_back(static_cast<char>(generator()));
        text += std::vector<std::string>{"a", "b", "\u00e9", " ", "\u4e2d"}[generator() % 5];
      }
      const auto tokens = tokenizer->encode(text, {.begin = false});
      ASSERT_EQ(tokens, twin(entries, text)) << text;
      const auto whole = tokenizer->encode(text, {.begin = true, .end = true});
      EXPECT_EQ(whole.front(), 1);
      EXPECT_EQ(whole.back(), 2);
      EXPECT_EQ(whole.size(), tokens.size() + 2);
      EXPECT_EQ(tokenizer->decode(whole), text);
    }
  }
}

TEST(Llama2cTokenizer, text_never_becomes_a_control_token) {
  std::vector<Entry> entries = fixed_entries();
  for (const char* part : {"<", "0", "x", "4", "1", ">", "<0", "<0x", "<0x4", "<0x41"}) entries.push_back({part, 1});
  const auto tokenizer = parse(file_of(entries));
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("<0x41>", {})), "<0x41>");
}

TEST(Llama2cTokenizer, refuses_files_that_are_not_sound_and_says_why) {
  const auto says = [](const std::string& file, const char* word) {
    const auto tokenizer = parse(file);
    if (tokenizer) return false;
    EXPECT_EQ(tokenizer.error().code, ErrorCode::kCorrupt);
    return tokenizer.error().message.find(word) != std::string::npos;
  };
  std::vector<Entry> entries = fixed_entries();
  EXPECT_TRUE(parse(file_of(entries)));
  entries.push_back({"ab", 1});
  const std::string whole = file_of(entries);
  EXPECT_TRUE(parse(whole));
  EXPECT_TRUE(says("", "no header"));
  EXPECT_TRUE(says("abc", "no header"));
  for (std::size_t cut = 1; cut < 10; ++cut) EXPECT_TRUE(says(whole.substr(0, whole.size() - cut), "259 is truncated"));
  EXPECT_TRUE(says(file_of(entries, 4), "has 5 bytes; its length must be 1 to 4"));
  EXPECT_TRUE(says(file_of({{"<unk>"}}), "token 3 is not <0x00>"));
  auto twice = entries;
  twice.push_back({"ab", 2});
  EXPECT_TRUE(says(file_of(twice), "260 occurs twice"));
  auto empty = entries;
  empty.push_back({"", 2});
  EXPECT_TRUE(says(file_of(empty), "0 bytes"));
  auto negative = whole;
  const std::int32_t minus = -1;
  std::memcpy(negative.data() + negative.size() - 6, &minus, 4);
  EXPECT_TRUE(says(negative, "-1 bytes"));
  auto score = entries;
  score.back().score = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(says(file_of(score), "has the score NaN"));
  auto other = entries;
  other[3 + 65].text = "<0x4x>";
  EXPECT_TRUE(says(file_of(other), "token 68 is not <0x41>"));

  TemporaryFolder folder;
  EXPECT_EQ(Llama2cTokenizer::load(folder.path("none")).error().code, ErrorCode::kNotFound);
  const auto bad = Llama2cTokenizer::load(folder.write("bad", "abc"));
  EXPECT_NE(bad.error().message.find("/bad: not a llama2.c tokenizer"), std::string::npos);
  EXPECT_TRUE(Llama2cTokenizer::load(folder.write("good", whole)));
  const auto tokenizer = parse(whole);
  EXPECT_EQ(tokenizer->decode(std::vector{260}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(tokenizer->decode(std::vector{-1}).error().code, ErrorCode::kInvalidArgument);
}

/// Where the folder of shared data lies, or empty: its files are not shipped.
std::string shared_file(const std::string& name) {
  const char* named = std::getenv("DUNNOCK_SHARED_DATA");
  const std::string path =
      (named != nullptr ? std::string(named) : std::string(DUNNOCK_SOURCE_DIR) + "/../shared/data") + "/" + name;
  return std::filesystem::exists(path) ? path : "";
}

TEST(Llama2cTokenizer, reads_tok512) {
  const std::string path = shared_file("tok512.bin");
  if (path.empty()) GTEST_SKIP() << "no ../shared/data/tok512.bin, and DUNNOCK_SHARED_DATA names no folder with it";
  const auto tokenizer = Llama2cTokenizer::load(path);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  EXPECT_EQ(tokenizer->vocabulary(), 512);
  std::vector<Entry> entries;
  const std::string file = test::file_bytes(path);
  for (std::size_t at = 4; at < file.size();) {
    Entry& entry = entries.emplace_back();
    std::int32_t bytes = 0;
    std::memcpy(&entry.score, file.data() + at, 4);
    std::memcpy(&bytes, file.data() + at + 4, 4);
    entry.text = file.substr(at + 8, static_cast<std::size_t>(bytes));
    at += 8 + static_cast<std::size_t>(bytes);
  }
  const std::string story = "Once upon a time, there was a little girl named Lily. She loved to play outside \u4e2d!\n";
  EXPECT_EQ(tokenizer->encode(story, {.begin = false}), twin(entries, story));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(story, {})), story);
}

}  // namespace
}  // namespace dunnock::data
