// Pieces and byte pairs: the same as other people's code gives (data/make_fixtures.py), the same as a plain twin gives
// on random merges, and back to any bytes.
#include "dunnock/data/bpe.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "dunnock/data/byte_tokenizer.hpp"
#include "dunnock/data/pieces.hpp"
#include "support/seed.hpp"
#include "support/temporary_folder.hpp"

namespace dunnock::data {
namespace {

using test::file_bytes;
using test::TemporaryFolder;

std::string source(const std::string& path) { return std::string(DUNNOCK_SOURCE_DIR) + "/" + path; }

std::vector<std::string> pieces_of(std::string_view text) {
  std::vector<std::string> pieces;
  while (!text.empty()) {
    const std::size_t bytes = first_piece_bytes(text);
    EXPECT_GT(bytes, 0u);
    EXPECT_LE(bytes, text.size());
    pieces.emplace_back(text.substr(0, bytes));
    text.remove_prefix(bytes);
  }
  return pieces;
}

TEST(Pieces, are_words_numbers_marks_and_spaces) {
  using Pieces = std::vector<std::string>;
  EXPECT_EQ(pieces_of("Hello world"), (Pieces{"Hello", " world"}));
  EXPECT_EQ(pieces_of("we'll don't I'M 'tis"), (Pieces{"we", "'ll", " don", "'t", " I", "'", "M", " '", "tis"}));
  EXPECT_EQ(pieces_of("a  b\n\n c \n"), (Pieces{"a", " ", " b", "\n\n", " c", " \n"}));
  EXPECT_EQ(pieces_of("x1,000!! "), (Pieces{"x", "1", ",", "000", "!!", " "}));
  EXPECT_EQ(pieces_of("a\u00a0b"), (Pieces{"a", "\u00a0", "b"}));
  EXPECT_EQ(pieces_of("\u00e9t\u00e9 \u4e2d\u6587 \U0001F600"),
            (Pieces{"\u00e9t\u00e9", " \u4e2d\u6587", " \U0001F600"}));
  EXPECT_EQ(first_piece_bytes(""), 0u);
}

TEST(Pieces, are_those_of_the_regular_expression) {
  std::istringstream lines(file_bytes(source("tests/data/data/pieces.txt")));
  std::size_t count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    std::istringstream words(line);
    std::string hex, text;
    words >> hex;
    for (std::size_t i = 0; i + 1 < hex.size(); i += 2)
      text.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    std::vector<std::size_t> expected, found;
    for (std::size_t bytes = 0; words >> bytes;) expected.push_back(bytes);
    for (const std::string& piece : pieces_of(text)) found.push_back(piece.size());
    EXPECT_EQ(found, expected) << hex;
  }
  EXPECT_EQ(count, 300u);
}

TEST(Bpe, gives_the_tokens_that_tiktoken_gives) {
  const auto fixture = nlohmann::json::parse(file_bytes(source("tests/data/data/bpe.json")));
  const auto vocabulary = fixture["vocabulary"].get<std::string>(), merges = fixture["merges"].get<std::string>();
  const auto bpe = Bpe::parse({.vocabulary = vocabulary, .merges = merges});
  ASSERT_TRUE(bpe) << bpe.error().message;
  ASSERT_EQ(fixture["cases"].size(), 100u);
  for (const auto& one : fixture["cases"]) {
    const auto text = one["text"].get<std::string>();
    const auto tokens = bpe->encode(text);
    EXPECT_EQ(tokens, one["tokens"].get<std::vector<std::int32_t>>()) << text;
    EXPECT_EQ(bpe->decode(tokens), text);
  }
}

TEST(Bpe, trains_the_same_from_the_same_text) {
  const auto fixture = nlohmann::json::parse(file_bytes(source("tests/data/data/bpe.json")));
  const auto bpe = Bpe::train(file_bytes(source("examples/data/shakespeare.txt")), {.vocabulary = 512});
  ASSERT_TRUE(bpe) << bpe.error().message;
  EXPECT_EQ(bpe->vocabulary_json(), fixture["vocabulary"].get<std::string>());
  EXPECT_EQ(bpe->merges_text(), fixture["merges"].get<std::string>());
  EXPECT_EQ(bpe->end_of_text(), 511);
}

/// GPT-2's own files are not shipped: DUNNOCK_GPT2 names a folder with vocab.json and merges.txt.
TEST(Bpe, gives_the_tokens_of_gpt2) {
  const char* folder = std::getenv("DUNNOCK_GPT2");
  if (folder == nullptr) GTEST_SKIP() << "DUNNOCK_GPT2 names no folder with GPT-2's vocab.json and merges.txt";
  const auto bpe =
      Bpe::load({.vocabulary = std::string(folder) + "/vocab.json", .merges = std::string(folder) + "/merges.txt"});
  ASSERT_TRUE(bpe) << bpe.error().message;
  EXPECT_EQ(bpe->vocabulary(), 50257);
  EXPECT_EQ(bpe->end_of_text(), 50256);
  EXPECT_EQ(bpe->encode("Hello world"), (std::vector<std::int32_t>{15496, 995}));
}

/// As GPT-2's encoder goes about it, with strings: the lowest rank of all, wherever it occurs, from the left.
class Twin {
 public:
  Twin(const Bpe& bpe, const std::vector<std::pair<std::string, std::string>>& merges) : bpe_(bpe) {
    for (std::size_t rank = 0; rank < merges.size(); ++rank) ranks_[merges[rank]] = rank;
  }
  [[nodiscard]] std::vector<std::int32_t> encode(const std::string& text) const {
    std::vector<std::int32_t> tokens;
    for (const std::string& piece : pieces_of(text)) {
      std::vector<std::string> parts;
      for (const char c : piece) parts.emplace_back(1, c);
      while (true) {
        auto best = ranks_.end();
        for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
          const auto found = ranks_.find({parts[i], parts[i + 1]});
          if (found != ranks_.end() && (best == ranks_.end() || found->second < best->second)) best = found;
        }
        if (best == ranks_.end()) break;
        std::vector<std::string> merged;
        for (std::size_t i = 0; i < parts.size(); ++i) {
          if (i + 1 < parts.size() && parts[i] == best->first.first && parts[i + 1] == best->first.second) {
            merged.push_back(parts[i] + parts[i + 1]);
            ++i;
          } else {
            merged.push_back(parts[i]);
          }
        }
        parts = merged;
      }
      for (const std::string& part : parts) tokens.push_back(*bpe_.token_of(part));
    }
    return tokens;
  }

 private:
  const Bpe& bpe_;
  std::map<std::pair<std::string, std::string>, std::size_t> ranks_;
};

/// The 256 bytes, `more` tokens and these merges, as files.
struct Files {
  std::string vocabulary, merges;
};
Files files_of(const std::vector<std::string>& more, const std::vector<std::pair<std::string, std::string>>& merges) {
  const auto bytes = Bpe::train("", {.vocabulary = 256, .end_of_text = false});
  Files files{bytes->vocabulary_json(), "#version: 0.2\n"};
  files.vocabulary.erase(files.vocabulary.find_last_of('}'));
  for (std::size_t i = 0; i < more.size(); ++i) files.vocabulary += ", \"" + more[i] + "\": " + std::to_string(256 + i);
  files.vocabulary += "}";
  for (const auto& [left, right] : merges) files.merges.append(left).append(" ").append(right).append("\n");
  return files;
}

TEST(Bpe, agrees_with_its_twin_on_random_merges) {
  auto generator = test::generator(2);
  for (int round = 0; round < 60; ++round) {
    // Of few letters, so that merges overlap, make the same bytes by several ways, and undo each other's chances.
    std::vector<std::string> more, all{"a", "b", "c"};
    std::vector<std::pair<std::string, std::string>> merges;
    for (int i = 0; i < 60; ++i) {
      const std::pair<std::string, std::string> pair{all[generator() % all.size()], all[generator() % all.size()]};
      const std::string both = pair.first + pair.second;
      if (both.size() > 12 || std::ranges::find(merges, pair) != merges.end()) continue;
      merges.push_back(pair);
      if (std::ranges::find(all, both) == all.end()) {
        all.push_back(both);
        more.push_back(both);
      }
    }
    std::shuffle(merges.begin(), merges.end(), generator);
    const Files files = files_of(more, merges);
    const auto bpe = Bpe::parse({.vocabulary = files.vocabulary, .merges = files.merges});
    ASSERT_TRUE(bpe) << bpe.error().message;
    const Twin twin(*bpe, merges);
    for (int i = 0; i < 20; ++i) {
      std::string text;
      for (std::size_t length = generator() % 400; text.size() < length;)
        text.push_back(generator() % 100 < 3 ? ' ' : "abc"[generator() % 3]);
      const auto tokens = bpe->encode(text);
      ASSERT_EQ(tokens, twin.encode(text)) << text << "\n" << files.merges;
      ASSERT_EQ(bpe->decode(tokens), text);
    }
  }
}

TEST(Bpe, gives_back_any_bytes) {
  auto generator = test::generator(3);
  const std::string prose = file_bytes(source("examples/data/shakespeare.txt"));
  const auto bpe = Bpe::train(prose.substr(0, 100'000), {.vocabulary = 700});
  ASSERT_TRUE(bpe);
  for (int round = 0; round < 300; ++round) {
    std::string text(generator() % 300, '\0');
    for (char& c : text) c = static_cast<char>(generator());
    if (round % 3 == 0) text += prose.substr(generator() % (prose.size() - 500), 500);
    EXPECT_EQ(bpe->decode(bpe->encode(text)), text);
    EXPECT_EQ(ByteTokenizer::decode(ByteTokenizer::encode(text)), text);
  }
  EXPECT_TRUE(bpe->encode("").empty());
}

TEST(Bpe, takes_long_runs_without_becoming_slow) {
  const auto bpe = Bpe::train(std::string(1000, 'a'), {.vocabulary = 300});
  ASSERT_TRUE(bpe);
  const std::string text(1'000'000, 'a');  // Quadratic time would be hours.
  EXPECT_EQ(bpe->decode(bpe->encode(text)), text);
}

TEST(Bpe, never_makes_the_special_token_of_text) {
  const auto bpe = Bpe::train("<|endoftext|> <|endoftext|> <|endoftext|>", {.vocabulary = 400});
  ASSERT_TRUE(bpe);
  const auto tokens = bpe->encode("<|endoftext|>");
  EXPECT_EQ(std::ranges::count(tokens, *bpe->end_of_text()), 0);
  EXPECT_EQ(bpe->decode(std::vector{*bpe->end_of_text()}), "<|endoftext|>");
}

TEST(Bpe, training_stops_where_pairs_are_rare) {
  const auto bpe = Bpe::train("abab cd", {.vocabulary = 1000});
  ASSERT_TRUE(bpe);
  EXPECT_EQ(bpe->vocabulary(), 256 + 1 + 1);
  EXPECT_TRUE(bpe->token_of("ab"));
  EXPECT_EQ(Bpe::train("x", {.vocabulary = 256}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(Bpe::train("x", {.vocabulary = 255, .end_of_text = false}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(Bpe::train("x", {.vocabulary = std::size_t{1} << 40}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_FALSE(Bpe::train("x", {.vocabulary = 256, .end_of_text = false})->end_of_text());
}

TEST(Bpe, is_the_same_after_it_was_saved) {
  TemporaryFolder folder;
  const auto bpe =
      Bpe::train(file_bytes(source("examples/data/shakespeare.txt")).substr(0, 50'000), {.vocabulary = 600});
  ASSERT_TRUE(bpe);
  const Bpe::Paths paths{folder.path("vocab.json"), folder.path("merges.txt")};
  ASSERT_TRUE(bpe->save(paths));
  EXPECT_FALSE(std::filesystem::exists(folder.path("vocab.json.part")));
  const auto again = Bpe::load(paths);
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(again->vocabulary_json(), bpe->vocabulary_json());
  EXPECT_EQ(again->merges_text(), bpe->merges_text());
  EXPECT_EQ(again->encode("to be, or not"), bpe->encode("to be, or not"));

  EXPECT_EQ(bpe->save({folder.path("no/v"), folder.path("m")}).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(bpe->save({folder.path("v"), folder.path("no/m")}).error().code, ErrorCode::kNotFound);
  std::filesystem::create_directories(folder.path("taken/x"));
  EXPECT_FALSE(bpe->save({folder.path("taken"), folder.path("m")}));
  EXPECT_FALSE(std::filesystem::exists(folder.path("taken.part")));
  EXPECT_EQ(Bpe::load({folder.path("none"), paths.merges}).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(Bpe::load({paths.vocabulary, folder.path("none")}).error().code, ErrorCode::kNotFound);
  const auto bad = Bpe::load({paths.merges, paths.vocabulary});
  EXPECT_EQ(bad.error().code, ErrorCode::kCorrupt);
  EXPECT_NE(bad.error().message.find("merges.txt"), std::string::npos);
}

TEST(Bpe, refuses_files_that_are_not_sound_and_says_why) {
  const auto says = [](const Files& files, const char* word) {
    const auto bpe = Bpe::parse({.vocabulary = files.vocabulary, .merges = files.merges});
    if (bpe) return word == nullptr;
    EXPECT_EQ(bpe.error().code, ErrorCode::kCorrupt);
    return word != nullptr && bpe.error().message.find(word) != std::string::npos;
  };
  const Files good = files_of({"ab"}, {{"a", "b"}});
  EXPECT_TRUE(says(good, nullptr));
  const auto vocabulary = [&](std::string text) { return Files{std::move(text), good.merges}; };
  EXPECT_TRUE(says(vocabulary(""), "not valid JSON"));
  EXPECT_TRUE(says(vocabulary("{\"a\": 0"), "not valid JSON"));
  EXPECT_TRUE(says(vocabulary("{\"a\": 0} x"), "not valid JSON"));
  EXPECT_TRUE(says(vocabulary("[1]"), "not a JSON object"));
  EXPECT_TRUE(says(vocabulary("7"), "not a JSON object"));
  EXPECT_TRUE(says(vocabulary("{\"a\": -1}"), "the number of 'a' is not a whole number of 0 or more"));
  EXPECT_TRUE(says(vocabulary("{\"a\": 0.5}"), "the number of 'a' is not a whole number of 0 or more"));
  EXPECT_TRUE(says(vocabulary("{\"a\": \"0\"}"), "the number of 'a' is not a whole number of 0 or more"));
  EXPECT_TRUE(says(vocabulary("{\"a\": {\"b\": 0}}"), "the number of 'a' is not a whole number of 0 or more"));
  EXPECT_TRUE(says(vocabulary("{\"a\": [0]}"), "the number of 'a' is not a whole number of 0 or more"));
  EXPECT_TRUE(says(vocabulary("{\"a\": null}"), "the number of 'a' is not a whole number of 0 or more"));
  EXPECT_TRUE(says(vocabulary("{\"a\": true}"), "the number of 'a' is not a whole number of 0 or more"));
  EXPECT_TRUE(says(vocabulary("{\"a\": 1048576}"), "'a' is token 1048576, but the number of tokens is 1"));
  EXPECT_TRUE(says(vocabulary("{\"a\": 18446744073709551615}"), "'a' is token 18446744073709551615"));
  EXPECT_TRUE(says(vocabulary(std::string("{}\0", 3)), "NUL"));
  EXPECT_TRUE(says(vocabulary("{\"a\": 0, \"b\": 0}"), "two tokens have the number 0"));
  EXPECT_TRUE(says(vocabulary("{\"a\": 0, \"a\": 1}"), "'a' occurs twice"));
  EXPECT_TRUE(says(vocabulary("{\"\": 0}"), "no bytes"));
  EXPECT_TRUE(says(vocabulary("{\" \": 0}"), "no bytes"));
  EXPECT_TRUE(says(vocabulary("{\"\u4e2d\": 0}"), "no bytes"));
  EXPECT_TRUE(says(vocabulary("{\"a\": 0}"), "byte 0 has no token"));
  const auto merges = [&](std::string text) { return Files{good.vocabulary, std::move(text)}; };
  EXPECT_TRUE(says(merges(""), nullptr));
  EXPECT_TRUE(says(merges("a b"), nullptr));
  EXPECT_TRUE(says(merges("a b\n \n"), "line 2 merges a part that is not a token"));
  EXPECT_TRUE(says(merges("a b\n#a b\n"), "line 2 merges a part that is not a token"));
  EXPECT_TRUE(says(merges("ab\n"), "line 1 is not two words"));
  EXPECT_TRUE(says(merges("a b c\n"), "two words"));
  EXPECT_TRUE(says(merges("a b\r\r\n"), "stands for no byte"));
  EXPECT_TRUE(says(merges("ac b\n"), "merges a part that is not a token"));
  EXPECT_TRUE(says(merges("b a\n"), "makes a word that is not a token"));
  EXPECT_TRUE(says(merges("#version: 0.2\na b\na b\n"), "line 3 occurs twice"));
}

TEST(Bpe, reads_merges_that_other_programs_and_systems_have_written) {
  // "# #" is a pair of GPT-2's.
  const Files plain = files_of({"ab", "##", "abc"}, {{"a", "b"}, {"#", "#"}, {"ab", "c"}});
  const auto expected = Bpe::parse({.vocabulary = plain.vocabulary, .merges = plain.merges});
  ASSERT_TRUE(expected) << expected.error().message;
  std::string crlf;
  for (const char c : plain.merges) crlf += c == '\n' ? std::string("\r\n") : std::string(1, c);
  for (const std::string& merges : {
           crlf, "\xEF\xBB\xBF" + plain.merges, "\xEF\xBB\xBF" + crlf + "\r\n\r\n", plain.merges + "\n\n\n",
           "\n# made by hand, for a test\n# twowords\n" + plain.merges + "# the end of it\n",
           plain.merges.substr(plain.merges.find('\n') + 1),  // Without the version.
           plain.merges.substr(0, plain.merges.size() - 1),   // Without the last line's end.
       }) {
    const auto bpe = Bpe::parse({.vocabulary = plain.vocabulary, .merges = merges});
    ASSERT_TRUE(bpe) << merges << ": " << bpe.error().message;
    EXPECT_EQ(bpe->merges_text(), expected->merges_text()) << merges;
  }
  const auto bpe = Bpe::parse({.vocabulary = "\xEF\xBB\xBF" + plain.vocabulary, .merges = plain.merges});
  ASSERT_TRUE(bpe) << bpe.error().message;
  EXPECT_EQ(bpe->vocabulary_json(), expected->vocabulary_json());
}

TEST(Bpe, reads_vocabularies_with_holes) {
  Files files = files_of({}, {});
  files.vocabulary.insert(files.vocabulary.size() - 1, ", \"ab\": 300, \"<|endoftext|>\": 1000");
  const auto bpe = Bpe::parse({.vocabulary = files.vocabulary, .merges = "a b\n"});
  ASSERT_TRUE(bpe) << bpe.error().message;
  EXPECT_EQ(bpe->vocabulary(), 1001);
  EXPECT_EQ(bpe->end_of_text(), 1000);
  EXPECT_EQ(bpe->encode("ab"), std::vector<std::int32_t>{300});
  EXPECT_EQ(bpe->decode(std::vector{300, 299, 1000}), "ab<|endoftext|>") << "no token, no text";
  EXPECT_EQ(bpe->bytes_of(299), "");
  const auto again = Bpe::parse({.vocabulary = bpe->vocabulary_json(), .merges = bpe->merges_text()});
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(again->vocabulary_json(), bpe->vocabulary_json());
}

// ----- tokenizer.json -----------------------------------------------------------------------------------------------

using Json = nlohmann::json;

/// Of the 256 bytes, "ab" and "abc", as tokenizers writes it.
Json small_tokenizer() {
  const Files files = files_of({"ab", "abc"}, {});
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens",
           {{{"id", 258},
             {"content", "<|endoftext|>"},
             {"single_word", false},
             {"lstrip", false},
             {"rstrip", false},
             {"normalized", true},
             {"special", true}}}},
          {"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}}},
          {"post_processor",
           {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", false}, {"use_regex", true}}},
          {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", ""},
            {"end_of_word_suffix", ""},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", false},
            {"vocab", Json::parse(files.vocabulary)},
            {"merges", Json::array({"a b", Json::array({"ab", "c"})})}}}};
}

TEST(TokenizerJson, gives_the_tokens_that_tokenizers_gives) {
  const auto fixture = Json::parse(file_bytes(source("tests/data/data/tokenizers.json")));
  ASSERT_EQ(fixture.size(), 16U);
  for (const auto& one : fixture) {
    const auto bpe = Bpe::parse_json(one["tokenizer"].dump());
    ASSERT_TRUE(bpe) << bpe.error().message;
    for (const auto& [text, tokens] : one["cases"].items()) {
      EXPECT_EQ(bpe->encode(text), tokens.get<std::vector<std::int32_t>>()) << text << "\n" << one["what"];
      if (bpe->gives_back()) {
        EXPECT_EQ(bpe->decode(bpe->encode(text)), text);
      }
    }
  }
}

TEST(TokenizerJson, is_read_with_pairs_as_texts_or_lists_and_finds_added_tokens_in_texts) {
  const auto bpe = Bpe::parse_json(small_tokenizer().dump());
  ASSERT_TRUE(bpe) << bpe.error().message;
  EXPECT_EQ(bpe->vocabulary(), 259);
  EXPECT_EQ(bpe->end_of_text(), 258);
  EXPECT_EQ(bpe->encode("abc<|endoftext|>ab"), (std::vector<std::int32_t>{257, 258, 256}));
  EXPECT_EQ(bpe->decode(std::vector{257, 258, 256}), "abc<|endoftext|>ab");
  TemporaryFolder folder;
  const auto loaded = Bpe::load_json(folder.write("tokenizer.json", small_tokenizer().dump(2)));
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(loaded->encode("abcab"), (std::vector<std::int32_t>{257, 256}));
  EXPECT_EQ(Bpe::load_json(folder.path("none")).error().code, ErrorCode::kNotFound);
  const auto bad = Bpe::load_json(folder.write("bad.json", "{}"));
  ASSERT_FALSE(bad);
  EXPECT_TRUE(bad.error().message.starts_with(folder.path("bad.json: "))) << bad.error().message;
}

TEST(TokenizerJson, merges_in_any_order_as_tokenizers_does) {
  // "b c" comes before "a b", and "ab c" before both: of "abc" only "b c" is there at first, and takes its letters.
  Json json = small_tokenizer();
  json["model"]["vocab"]["bc"] = 258;
  json["added_tokens"][0]["id"] = 259;
  json["model"]["merges"] = {"ab c", "b c", "a b"};
  const auto bpe = Bpe::parse_json(json.dump());
  ASSERT_TRUE(bpe) << bpe.error().message;
  EXPECT_EQ(bpe->encode("abc abcabc"), (std::vector<std::int32_t>{64, 258, 220, 64, 258, 64, 258}));
}

TEST(TokenizerJson, refuses_by_name_what_it_does_not_do) {
  const auto why = [](const std::function<void(Json&)>& change, ErrorCode code = ErrorCode::kUnsupported) {
    Json json = small_tokenizer();
    change(json);
    const auto bpe = Bpe::parse_json(json.dump());
    if (bpe) return std::string("accepted");
    EXPECT_EQ(bpe.error().code, code) << bpe.error().message;
    return bpe.error().message;
  };
  const auto names = [&](const std::string& name, const std::function<void(Json&)>& change) {
    const std::string message = why(change);
    EXPECT_NE(message.find(name), std::string::npos) << message;
  };
  EXPECT_EQ(why([](Json&) {}), "accepted");
  names("\"version\" is \"2.0\"", [](Json& j) { j["version"] = "2.0"; });
  names("\"truncation\"", [](Json& j) { j["truncation"] = {{"max_length", 5}}; });
  names("\"padding\"", [](Json& j) { j["padding"] = {{"strategy", "BatchLongest"}}; });
  names("\"normalizer\" is {\"type\":\"NFC\"}", [](Json& j) { j["normalizer"] = {{"type", "NFC"}}; });
  names("\"pre_tokenizer\"", [](Json& j) { j["pre_tokenizer"] = nullptr; });
  names("Whitespace", [](Json& j) { j["pre_tokenizer"] = {{"type", "Whitespace"}}; });
  names("Digits", [](Json& j) {
    const Json part = j["pre_tokenizer"];
    j["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {{{"type", "Digits"}}, part}}};
  });
  names("pre_tokenizer.what", [](Json& j) { j["pre_tokenizer"]["what"] = 1; });
  names("pre_tokenizer.use_regex", [](Json& j) { j["pre_tokenizer"]["use_regex"] = "yes"; });
  names("\"post_processor\"", [](Json& j) {
    j["post_processor"] = {{"type", "TemplateProcessing"},
                           {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}}};
  });
  names("\"decoder\"", [](Json& j) { j["decoder"] = {{"type", "WordPiece"}}; });
  names("\"model.type\" is \"Unigram\"", [](Json& j) { j["model"]["type"] = "Unigram"; });
  names("\"model.dropout\" is 0.1", [](Json& j) { j["model"]["dropout"] = 0.1; });
  names("model.continuing_subword_prefix", [](Json& j) { j["model"]["continuing_subword_prefix"] = "##"; });
  names("model.end_of_word_suffix", [](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; });
  names("model.new", [](Json& j) { j["model"]["new"] = 1; });
  names("\"new\"", [](Json& j) { j["new"] = 1; });
  names("\"model\"", [](Json& j) { j.erase("model"); });
  names("single_word", [](Json& j) { j["added_tokens"][0]["single_word"] = true; });
  names("added_tokens.new", [](Json& j) { j["added_tokens"][0]["new"] = true; });
  names("begins or ends with white space", [](Json& j) {
    j["added_tokens"][0]["content"] = " <e>";
    j["added_tokens"][0]["rstrip"] = true;
  });
  // What does nothing is no reason to refuse.
  EXPECT_EQ(why([](Json& j) {
              for (const char* name : {"version", "truncation", "padding", "normalizer", "post_processor", "decoder"})
                j.erase(name);
              j["model"].erase("type");
              j["model"]["dropout"] = 0.0;
              j["model"]["unk_token"] = "<|endoftext|>";
              j["model"]["byte_fallback"] = true;
              j["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", Json::array({j["pre_tokenizer"]})}};
            }),
            "accepted");
}

TEST(TokenizerJson, refuses_what_is_damaged_or_contradicts_itself) {
  const auto says = [](const std::string& text, const char* word) {
    const auto bpe = Bpe::parse_json(text);
    ASSERT_FALSE(bpe) << word;
    EXPECT_EQ(bpe.error().code, ErrorCode::kCorrupt) << bpe.error().message;
    EXPECT_NE(bpe.error().message.find(word), std::string::npos) << bpe.error().message;
  };
  const auto changed = [&](const char* word, const std::function<void(Json&)>& change) {
    Json json = small_tokenizer();
    change(json);
    says(json.dump(), word);
  };
  says("", "not valid JSON");
  says("[]", "not a JSON object");
  says("{\"model\": {}, \"model\": {}}", "'model' occurs twice");
  says(small_tokenizer().dump() + std::string(1, '\0'), "NUL");
  says(std::string(1000, '[') + std::string(1000, ']'), "64 levels deep");
  changed("vocab", [](Json& j) { j["model"].erase("vocab"); });
  changed("merges", [](Json& j) { j["model"]["merges"] = "a b"; });
  changed("has no number for 'a'", [](Json& j) { j["model"]["vocab"]["a"] = -1; });
  changed("two tokens have the number 0", [](Json& j) { j["model"]["vocab"]["a"] = 0; });
  changed("byte 97 has no token", [](Json& j) { j["model"]["vocab"].erase("a"); });
  changed("is token 99999999", [](Json& j) { j["model"]["vocab"]["zz"] = 99999999; });
  changed("stands for no bytes", [](Json& j) {
    j["model"]["vocab"]["\u4e2d"] = 300;
    j["added_tokens"][0]["id"] = 259;
  });
  changed("merge 2 makes a word that is not a token", [](Json& j) { j["model"]["merges"].push_back("b a"); });
  changed("merge 2 occurs twice", [](Json& j) { j["model"]["merges"].push_back("a b"); });
  changed("merge 2 is not two words", [](Json& j) { j["model"]["merges"].push_back("a b c"); });
  changed("merge 2 is not a pair", [](Json& j) { j["model"]["merges"].push_back({"a", "b", "c"}); });
  changed("other readers of the file give it the number 258", [](Json& j) { j["added_tokens"][0]["id"] = 300; });
  changed("occurs twice", [](Json& j) {
    j["added_tokens"].push_back(j["added_tokens"][0]);
    j["added_tokens"][1]["id"] = 259;
  });
  changed("no content", [](Json& j) { j["added_tokens"][0]["content"] = ""; });
  changed("no number", [](Json& j) { j["added_tokens"][0]["id"] = "258"; });
  changed("with other bytes", [](Json& j) {
    j["added_tokens"][0] = {{"id", j["model"]["vocab"]["\u0120"]}, {"content", "\u0120"}};
  });
  changed("number of another token", [](Json& j) {
    j["model"]["vocab"].erase("abc");
    j["model"]["merges"] = {"a b"};
    j["model"]["vocab"]["bc"] = 257;
    j["model"]["vocab"]["ab"] = 258;  // A hole at 256: 257 tokens, and 257 is taken.
    j["added_tokens"][0]["id"] = 258;
  });
}

TEST(Tokenizers, refuse_to_decode_what_is_no_token) {
  const auto bpe = Bpe::train("", {.vocabulary = 257});
  ASSERT_TRUE(bpe);
  EXPECT_EQ(bpe->decode(std::vector{257}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(bpe->decode(std::vector{-1}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(ByteTokenizer::decode(std::vector{256}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(ByteTokenizer::decode(std::vector{-1}).error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace dunnock::data
