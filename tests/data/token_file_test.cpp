// Token files: what was written is read; what was torn, damaged or is another format's is refused.
#include "dunnock/data/token_file.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <random>

#include "support/seed.hpp"
#include "support/temporary_folder.hpp"

namespace dunnock::data {
namespace {

using test::TemporaryFolder;
using Format = TokenFile::Format;

std::vector<std::int32_t> random_tokens(std::mt19937_64& generator, std::size_t count, std::uint64_t vocabulary) {
  std::vector<std::int32_t> tokens(count);
  for (auto& token : tokens) token = static_cast<std::int32_t>(generator() % vocabulary);
  return tokens;
}
std::string written(const TemporaryFolder& folder, const std::vector<std::int32_t>& tokens, std::uint64_t vocabulary) {
  const std::string path = folder.path("tokens");
  auto writer = TokenFileWriter::create(path, vocabulary);
  EXPECT_TRUE(writer);
  EXPECT_TRUE(writer->append(tokens));
  EXPECT_TRUE(writer->finish());
  return path;
}
std::vector<std::int32_t> all_of(const TokenFile& file) {
  std::vector<std::int32_t> tokens(file.count());
  EXPECT_TRUE(file.copy(0, tokens));
  return tokens;
}
std::string reason(const Result<TokenFile>& file) { return file ? "accepted" : file.error().message; }
bool says(const std::string& reason, const char* word) { return reason.find(word) != std::string::npos; }
template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

TEST(TokenFile, gives_back_what_was_appended_in_parts) {
  auto generator = test::generator(1);
  for (const std::uint64_t vocabulary : {1ULL, 256ULL, 65536ULL, 65537ULL, 1ULL << 31}) {
    TemporaryFolder folder;
    const auto tokens = random_tokens(generator, 700'001, vocabulary);  // More than a buffer.
    auto writer = TokenFileWriter::create(folder.path("tokens"), vocabulary);
    ASSERT_TRUE(writer);
    for (std::size_t at = 0; at < tokens.size();) {
      const std::size_t count = std::min<std::size_t>(generator() % 100'000, tokens.size() - at);
      ASSERT_TRUE(writer->append(std::span(tokens).subspan(at, count)));
      at += count;
    }
    EXPECT_FALSE(std::filesystem::exists(folder.path("tokens"))) << "not before it is whole";
    ASSERT_TRUE(writer->finish());
    EXPECT_FALSE(std::filesystem::exists(folder.path("tokens.part")));
    const auto file = TokenFile::open(folder.path("tokens"));
    ASSERT_TRUE(file) << file.error().message;
    EXPECT_EQ(file->vocabulary(), vocabulary);
    EXPECT_EQ(file->width_bytes(), vocabulary <= 65536 ? 2u : 4u);
    EXPECT_EQ(all_of(*file), tokens);
    std::vector<std::int32_t> some(1000);
    ASSERT_TRUE(file->copy(654'321 - 1000, some));
    EXPECT_TRUE(std::equal(some.begin(), some.end(), tokens.begin() + 653'321));
  }
}

TEST(TokenFile, may_be_empty) {
  TemporaryFolder folder;
  const auto file = TokenFile::open(written(folder, {}, 10));
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->count(), 0u);
}

TEST(TokenFileWriter, refuses_tokens_out_of_the_vocabulary_and_writes_none_of_them) {
  TemporaryFolder folder;
  auto writer = TokenFileWriter::create(folder.path("tokens"), 10);
  ASSERT_TRUE(writer);
  EXPECT_EQ(writer->append(std::vector<std::int32_t>{1, 10}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(writer->append(std::vector<std::int32_t>{1, -1}).error().code, ErrorCode::kInvalidArgument);
  ASSERT_TRUE(writer->append(std::vector<std::int32_t>{9, 0}));
  ASSERT_TRUE(writer->finish());
  EXPECT_EQ(all_of(*TokenFile::open(folder.path("tokens"))), (std::vector<std::int32_t>{9, 0}));
  EXPECT_EQ(TokenFileWriter::create(folder.path("x"), 0).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(TokenFileWriter::create(folder.path("x"), (1ULL << 31) + 1).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(TokenFileWriter::create(folder.path("no/folder/x"), 10).error().code, ErrorCode::kNotFound);
}

TEST(TokenFileWriter, leaves_nothing_without_finish_and_the_old_file_until_then) {
  TemporaryFolder folder;
  {
    auto writer = TokenFileWriter::create(folder.path("tokens"), 10);
    ASSERT_TRUE(writer && writer->append(std::vector<std::int32_t>{1, 2}));
  }
  EXPECT_TRUE(folder.empty());
  const std::string path = written(folder, {1, 2, 3}, 10);
  {
    auto writer = TokenFileWriter::create(path, 10);
    ASSERT_TRUE(writer && writer->append(std::vector<std::int32_t>{4}));
    EXPECT_EQ(TokenFile::open(path)->count(), 3u);
  }
  EXPECT_EQ(TokenFile::open(path)->count(), 3u);
}

TEST(TokenFileWriter, says_when_there_is_no_space) {
  TemporaryFolder folder;
  // What a full disk does, done by the limit for files of this process.
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  auto writer = TokenFileWriter::create(folder.path("tokens"), 10);
  ASSERT_TRUE(writer);
  ASSERT_TRUE(writer->append(std::vector<std::int32_t>(1000, 1)));
  rlimit small = before;
  small.rlim_cur = 500;
  setrlimit(RLIMIT_FSIZE, &small);
  const auto finished = writer->finish();
  const auto appended = writer->append(std::vector<std::int32_t>(1 << 20, 1));
  setrlimit(RLIMIT_FSIZE, &before);
  ASSERT_FALSE(finished);
  EXPECT_EQ(finished.error().code, ErrorCode::kNoSpace);
  ASSERT_FALSE(appended);
  EXPECT_EQ(appended.error().code, ErrorCode::kNoSpace);
}

TEST(TokenFileWriter, says_when_the_name_is_taken_by_a_folder) {
  TemporaryFolder folder;
  auto writer = TokenFileWriter::create(folder.path("tokens"), 10);
  ASSERT_TRUE(writer);
  std::filesystem::create_directories(folder.path("tokens/x"));
  EXPECT_FALSE(writer->finish());
}

TEST(TokenFile, refuses_a_torn_one_at_every_length) {
  TemporaryFolder folder;
  const std::string whole = test::file_bytes(written(folder, {1, 2, 3, 4, 5}, 10));
  ASSERT_EQ(whole.size(), 64u + 10u);
  for (std::size_t length = 0; length < whole.size(); ++length) {
    const auto file = TokenFile::open(folder.write("torn", whole.substr(0, length)));
    ASSERT_FALSE(file) << length;
    EXPECT_EQ(file.error().code, ErrorCode::kCorrupt);
  }
  EXPECT_TRUE(says(reason(TokenFile::open(folder.write("torn", whole + "x"))), "11 bytes follow it"));
  EXPECT_TRUE(says(reason(TokenFile::open(folder.write("torn", whole.substr(0, 72)))), "says 5 tokens"));
  // As a crash leaves it: tokens, and a header of zeros.
  EXPECT_TRUE(says(reason(TokenFile::open(folder.write("torn", std::string(64, '\0') + whole.substr(64)))),
                   "not written completely"));
}

TEST(TokenFile, refuses_every_flipped_bit) {
  TemporaryFolder folder;
  const std::string whole = test::file_bytes(written(folder, {1, 2, 3, 4, 5}, 10));
  for (std::size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ 1 << bit % 8);
    const auto file = TokenFile::open(folder.write("damaged", damaged));
    ASSERT_FALSE(file) << bit;
    const bool version = bit / 32 == 2;
    EXPECT_EQ(file.error().code, version ? ErrorCode::kWrongVersion : ErrorCode::kCorrupt) << bit;
  }
  std::string damaged = whole;
  damaged.back() ^= 1;  // Of a token: now 5 is 0x105, which is not below 10.
  const auto unverified = TokenFile::open(folder.write("damaged", damaged), {.verify = false});
  ASSERT_TRUE(unverified) << unverified.error().message;
  std::vector<std::int32_t> tokens(5);
  const auto copied = unverified->copy(0, tokens);
  ASSERT_FALSE(copied);
  EXPECT_TRUE(says(copied.error().message, "token 261 "));
}

TEST(TokenFile, refuses_headers_that_lie_although_their_checksum_holds) {
  TemporaryFolder folder;
  const std::string whole = test::file_bytes(written(folder, {1, 2, 3, 4, 5}, 10));
  const auto with = [&](auto change) {
    TokenFileHeader header;
    std::memcpy(&header, whole.data(), sizeof header);
    change(header);
    header.checksum = XXH3_64bits(&header, offsetof(TokenFileHeader, checksum));
    std::string file = whole;
    std::memcpy(file.data(), &header, sizeof header);
    return reason(TokenFile::open(folder.write("lie", file)));
  };
  EXPECT_EQ(with([](TokenFileHeader&) {}), "accepted");
  EXPECT_TRUE(says(with([](TokenFileHeader& h) { h.magic = 5; }), "magic word is missing"));
  EXPECT_TRUE(says(with([](TokenFileHeader& h) { h.version = 2; }), "version 2"));
  EXPECT_TRUE(says(with([](TokenFileHeader& h) { h.width_bytes = 3; }), "2 or 4"));
  EXPECT_TRUE(says(with([](TokenFileHeader& h) { h.vocabulary = 0; }), "2^31 tokens, not 0"));
  EXPECT_TRUE(says(with([](TokenFileHeader& h) { h.vocabulary = 1ULL << 32; }), "2^31 tokens, not 4294967296"));
  EXPECT_TRUE(says(with([](TokenFileHeader& h) { h.count = 6; }), "says 6"));
  EXPECT_TRUE(says(with([](TokenFileHeader& h) { h.count = (1ULL << 63) + 5; }), "its header says"));
  EXPECT_TRUE(says(with([](TokenFileHeader& h) { h.width_bytes = 4; }), "says 5 tokens of 4"));
}

TEST(TokenFile, reads_the_files_of_nanogpt) {
  TemporaryFolder folder;
  const std::vector<std::uint16_t> tokens{1, 2, 50256, 4};
  const std::string path = folder.write("train.bin", bytes_of(tokens));
  const auto file = TokenFile::open(path, {.format = Format::kRaw16, .vocabulary = 50257});
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(all_of(*file), (std::vector<std::int32_t>{1, 2, 50256, 4}));
  EXPECT_EQ(TokenFile::open(path, {.format = Format::kRaw16}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(TokenFile::open(path, {.format = Format::kRaw16, .vocabulary = 1ULL << 32}).error().code,
            ErrorCode::kInvalidArgument);
  const auto smaller = TokenFile::open(path, {.format = Format::kRaw16, .vocabulary = 50256, .verify = false});
  ASSERT_TRUE(smaller);
  std::vector<std::int32_t> all(4);
  EXPECT_EQ(smaller->copy(0, all).error().code, ErrorCode::kCorrupt);
  EXPECT_TRUE(smaller->copy(0, std::span(all).first(2))) << "only what is read is looked at";
  const auto odd = TokenFile::open(folder.write("odd", "abc"), {.format = Format::kRaw16, .vocabulary = 10});
  EXPECT_TRUE(says(reason(odd), "3 bytes"));
  EXPECT_FALSE(TokenFile::open(path)) << "no format is guessed";

  const std::vector<std::uint32_t> wide{70000, 1U << 31};
  const auto wide_file = TokenFile::open(folder.write("wide", bytes_of(wide)),
                                         {.format = Format::kRaw32, .vocabulary = 1U << 31, .verify = false});
  ASSERT_TRUE(wide_file);
  std::vector<std::int32_t> two(2);
  EXPECT_EQ(wide_file->copy(0, two).error().code, ErrorCode::kCorrupt);
  ASSERT_TRUE(wide_file->copy(0, std::span(two).first(1)));
  EXPECT_EQ(two[0], 70000);
}

TEST(TokenFile, reads_the_files_of_llm_c) {
  TemporaryFolder folder;
  const auto made = [&](std::uint32_t magic, std::uint32_t version, std::uint32_t count, const std::string& tokens) {
    std::vector<std::uint32_t> header(256, 0);
    header[0] = magic;
    header[1] = version;
    header[2] = count;
    return TokenFile::open(folder.write("llm.bin", bytes_of(header) + tokens),
                           {.format = Format::kLlmC, .vocabulary = 1U << 20});
  };
  const auto narrow = made(20240520, 1, 3, bytes_of(std::vector<std::uint16_t>{7, 8, 50256}));
  ASSERT_TRUE(narrow) << narrow.error().message;
  EXPECT_EQ(all_of(*narrow), (std::vector<std::int32_t>{7, 8, 50256}));
  const auto wide = made(20240801, 7, 2, bytes_of(std::vector<std::uint32_t>{7, 128000}));
  ASSERT_TRUE(wide) << wide.error().message;
  EXPECT_EQ(all_of(*wide), (std::vector<std::int32_t>{7, 128000}));
  EXPECT_TRUE(says(reason(made(20240520, 2, 3, "abcdef")), "begins with"));
  EXPECT_TRUE(says(reason(made(20240520, 1, 4, "abcdef")), "says 4"));
  EXPECT_TRUE(says(reason(made(20240520, 1, 2, "abcdef")), "says 2"));
  EXPECT_TRUE(says(reason(TokenFile::open(folder.write("x", "abc"), {.format = Format::kLlmC, .vocabulary = 5})),
                   "no llm.c header"));
}

TEST(TokenFile, refuses_a_token_that_is_not_below_the_vocabulary_and_says_where_it_stands) {
  auto generator = test::generator(2);
  TemporaryFolder folder;
  // Some blocks of the scan and the border of one.
  for (const std::size_t position :
       {std::size_t{0}, std::size_t{131'071}, std::size_t{131'072}, std::size_t{400'000}}) {
    auto tokens = random_tokens(generator, 400'001, 50257);
    tokens[position] = 50257;
    if (position < 300'000) tokens[position + 100'000] = 60000;  // The first is named.
    const std::vector<std::uint16_t> narrow(tokens.begin(), tokens.end());
    const std::vector<std::uint32_t> wide(tokens.begin(), tokens.end());
    std::vector<std::uint32_t> header(256, 0);
    header[0] = 20240520;
    header[1] = 1;
    header[2] = 400'001;
    const auto refused = [&](const std::string& bytes, Format format) {
      const std::string path = folder.write("bad.bin", bytes);
      const auto file = TokenFile::open(path, {.format = format, .vocabulary = 50257});
      ASSERT_FALSE(file);
      EXPECT_EQ(file.error().code, ErrorCode::kCorrupt);
      EXPECT_EQ(file.error().message, path + ": token number " + std::to_string(position) +
                                          " is 50257, which is out of range: the vocabulary has 50257 tokens");
    };
    refused(bytes_of(narrow), Format::kRaw16);
    refused(bytes_of(wide), Format::kRaw32);
    refused(bytes_of(header) + bytes_of(narrow), Format::kLlmC);
  }
}

TEST(TokenFile, knows_the_largest_token_and_a_checksum_of_every_format) {
  TemporaryFolder folder;
  const auto opened = [&](const std::vector<std::uint16_t>& tokens) {
    return *TokenFile::open(folder.write("train.bin", bytes_of(tokens)), {.format = Format::kRaw16, .vocabulary = 100});
  };
  const std::vector<std::uint16_t> tokens{3, 99, 7};
  EXPECT_EQ(opened(tokens).largest(), 99U);
  EXPECT_EQ(opened(tokens).checksum(), XXH3_64bits(tokens.data(), 6));
  EXPECT_NE(opened({3, 98, 7}).checksum(), opened(tokens).checksum());
  EXPECT_EQ(opened({}).largest(), std::nullopt);
  const auto ours = TokenFile::open(written(folder, {3, 99, 7}, 100));
  EXPECT_EQ(ours->largest(), 99U);
  EXPECT_EQ(ours->checksum(), XXH3_64bits(tokens.data(), 6));
}

TEST(TokenFile, of_our_own_format_with_a_token_above_its_vocabulary_is_refused_although_all_checksums_hold) {
  TemporaryFolder folder;
  std::string whole = test::file_bytes(written(folder, {1, 2, 3, 4, 5}, 10));
  TokenFileHeader header;
  std::memcpy(&header, whole.data(), sizeof header);
  header.vocabulary = 5;
  header.checksum = XXH3_64bits(&header, offsetof(TokenFileHeader, checksum));
  std::memcpy(whole.data(), &header, sizeof header);
  EXPECT_TRUE(says(reason(TokenFile::open(folder.write("lie", whole))),
                   "token number 4 is 5, which is out of range: the vocabulary has 5 tokens"));
}

TEST(TokenFile, says_when_it_can_t_be_opened) {
  TemporaryFolder folder;
  EXPECT_EQ(TokenFile::open(folder.path("none")).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(TokenFile::open(folder.path("")).error().code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(says(reason(TokenFile::open(folder.path(""))), "is a directory"));
  ASSERT_EQ(mkfifo(folder.path("fifo").c_str(), 0600), 0);
  EXPECT_TRUE(says(reason(TokenFile::open(folder.path("fifo"))), "is a FIFO")) << "and nobody waits for a writer";
  EXPECT_TRUE(says(reason(TokenFile::open("/dev/zero")), "is a device"));
}

TEST(TokenFile, notices_that_it_was_cut_off_while_it_was_open) {
  TemporaryFolder folder;
  const std::string path = written(folder, std::vector<std::int32_t>(100'000, 5), 10);
  const auto file = TokenFile::open(path);
  ASSERT_TRUE(file);
  std::filesystem::resize_file(path, 5000);
  std::vector<std::int32_t> tokens(10);
  const auto copied = file->copy(90'000, tokens);
  ASSERT_FALSE(copied);
  EXPECT_TRUE(says(copied.error().message, "truncated"));
}

TEST(TokenSplit, gives_the_end_to_validation) {
  const auto split = split_tokens(1001, 0.1);
  EXPECT_EQ(split.training, (TokenRange{0, 901}));
  EXPECT_EQ(split.validation, (TokenRange{901, 100}));
  EXPECT_EQ(split_tokens(10, 0).validation.count, 0u);
  EXPECT_EQ(split_tokens(10, 1).training.count, 0u);
  EXPECT_EQ(split_tokens(0, 0.5).training.count, 0u);
}

}  // namespace
}  // namespace dunnock::data
