// IDX files: each type comes back as it was, plain and compressed; what is not whole is refused with a reason.
#include "dunnock/data/idx.hpp"

#include <gtest/gtest.h>
#include <zlib.h>

#include <cstring>
#include <limits>
#include <random>

#include "support/seed.hpp"
#include "support/temporary_folder.hpp"

namespace dunnock::data {
namespace {

using test::TemporaryFolder;

std::string text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string gzip(const std::string& bytes) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(deflateBound(&stream, bytes.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

Result<IdxArray> parse(const std::string& bytes, std::uint64_t bytes_max = kIdxBytesMax) {
  return parse_idx(std::as_bytes(std::span(bytes)), bytes_max);
}
std::string reason(const std::string& bytes) {
  const auto array = parse(bytes);
  if (array) return "accepted";
  EXPECT_EQ(array.error().code, ErrorCode::kCorrupt);
  return array.error().message;
}
bool says(const std::string& reason, const char* word) { return reason.find(word) != std::string::npos; }

/// Bytes 0, 1, 2, .. after a header.
std::string file_of(std::uint8_t type, const std::vector<std::uint32_t>& shape, std::size_t bytes) {
  std::string file{'\0', '\0', static_cast<char>(type), static_cast<char>(shape.size())};
  for (const std::uint32_t length : shape) {
    for (int shift = 24; shift >= 0; shift -= 8) file.push_back(static_cast<char>(length >> shift));
  }
  for (std::size_t i = 0; i < bytes; ++i) file.push_back(static_cast<char>(i));
  return file;
}

TEST(Idx, reads_each_type_in_the_byte_order_of_the_format) {
  EXPECT_EQ(parse(file_of(0x08, {3}, 3))->as<std::uint8_t>()[2], 2);
  EXPECT_EQ(parse(std::string("\0\0\x09\1\0\0\0\1\xfe", 9))->as<std::int8_t>()[0], -2);
  EXPECT_EQ(parse(file_of(0x0B, {2}, 4))->as<std::int16_t>()[1], 0x0203);
  EXPECT_EQ(parse(file_of(0x0C, {1, 2}, 8))->as<std::int32_t>()[1], 0x04050607);
  EXPECT_EQ(parse(std::string("\0\0\x0d\1\0\0\0\1\x3f\xc0\0\0", 12))->as<float>()[0], 1.5F);
  EXPECT_EQ(parse(std::string("\0\0\x0e\1\0\0\0\1\xbf\xf8\0\0\0\0\0\0", 16))->as<double>()[0], -1.5);
  EXPECT_EQ(parse(file_of(0x0C, {1, 2}, 8))->shape, (std::vector<std::uint32_t>{1, 2}));
  const auto empty = parse(file_of(0x0C, {0, 5}, 0));
  ASSERT_TRUE(empty);
  EXPECT_TRUE(empty->data.empty());
}

TEST(Idx, refuses_what_is_not_sound_and_says_why) {
  EXPECT_TRUE(says(reason(""), "header"));
  EXPECT_TRUE(says(reason(std::string("\0\0\x08", 3)), "header"));
  EXPECT_TRUE(says(reason(std::string("\0\1\x08\1\0\0\0\0", 8)), "zero bytes"));
  EXPECT_TRUE(says(reason(file_of(0x0A, {1}, 1)), "unknown type 10"));
  EXPECT_TRUE(says(reason(file_of(0x08, {}, 0)), "no dimensions"));
  EXPECT_TRUE(says(reason(file_of(0x08, {2, 2}, 4).substr(0, 9)), "header is truncated"));
  EXPECT_TRUE(says(reason(file_of(0x08, {2, 2}, 3)), "says 4 bytes, but it has 3"));
  EXPECT_TRUE(says(reason(file_of(0x08, {2, 2}, 5)), "more than the 4 bytes"));
  EXPECT_TRUE(says(reason(file_of(0x0E, {~0U, ~0U, ~0U}, 5)), "too large for any file"));
  // A header that promises 4 GB, and no memory taken for them.
  EXPECT_TRUE(says(reason(file_of(0x08, {4'000'000'000U}, 100)), "but it has 100"));
  EXPECT_TRUE(says(reason(gzip(file_of(0x08, {4'000'000'000U}, 100))), "but it has 100"));
  const auto large = parse(file_of(0x0C, {1000, 1000}, 0), 1'000'000);
  ASSERT_FALSE(large);
  EXPECT_EQ(large.error().code, ErrorCode::kNoSpace);
}

TEST(Idx, refuses_compressed_data_that_is_damaged_or_cut_off) {
  const std::string file = gzip(file_of(0x08, {50, 50}, 2500));
  EXPECT_EQ(reason(file), "accepted");
  for (std::size_t length = 2; length < file.size(); ++length)
    EXPECT_TRUE(says(reason(file.substr(0, length)), "truncated")) << length;
  EXPECT_TRUE(says(reason(file + "x"), "neither"));
  EXPECT_TRUE(says(reason(file + gzip("x")), "more than the 2500"));
  EXPECT_TRUE(says(reason(gzip("").append(file_of(0x08, {1}, 1))), "neither"));
  // The checksum after the data is compared too, although all data has been read by then.
  std::string sum = file;
  sum[sum.size() - 8] = static_cast<char>(sum[sum.size() - 8] ^ 1);
  EXPECT_TRUE(says(reason(sum), "damaged"));
  std::string method = file;
  method[2] = 7;
  EXPECT_TRUE(says(reason(method), "damaged"));
}

TEST(Idx, reads_files_that_are_several_compressed_ones) {
  const std::string file = file_of(0x08, {100}, 100);
  const auto array = parse(gzip(file.substr(0, 6)) + gzip("") + gzip(file.substr(6)));
  ASSERT_TRUE(array) << array.error().message;
  EXPECT_EQ(array->as<std::uint8_t>()[99], 99);
}

TEST(Idx, reads_compressed_files_that_were_filled_up_with_zeros) {
  const std::string file = file_of(0x08, {100}, 100);
  const std::string first = gzip(file.substr(0, 6)), second = gzip(file.substr(6));
  for (const std::size_t zeros : {1U, 511U, 512U, 5000U}) {
    const std::string padding(zeros, '\0');
    for (const std::string& form : {gzip(file) + padding, first + second + padding, first + padding + second,
                                    first + padding + second + padding, gzip(file) + padding + gzip("") + padding}) {
      const auto array = parse(form);
      ASSERT_TRUE(array) << zeros << ": " << array.error().message;
      EXPECT_EQ(array->as<std::uint8_t>()[99], 99);
    }
    for (const std::string& rest : {std::string("x"), std::string("\x1f"), padding + "x", std::string("x") + padding}) {
      const std::string why = reason(gzip(file) + rest);
      EXPECT_TRUE(says(why, "neither compressed data nor zero padding")) << why;
    }
    // Zeros are no data: behind what is not compressed they are refused as ever.
    EXPECT_TRUE(says(reason(file + padding), "it has more than"));
  }
  EXPECT_TRUE(says(reason(gzip(file) + gzip("more")), "it has more than")) << "a member with more than was promised";
  EXPECT_TRUE(says(reason(gzip(file) + gzip("more").substr(0, 10)), "truncated"));
}

TEST(Idx, random_arrays_come_back_as_they_were) {
  auto generator = test::generator(1);
  constexpr std::array kTypes = {IdxType::kU8,  IdxType::kI8,  IdxType::kI16,
                                 IdxType::kI32, IdxType::kF32, IdxType::kF64};
  for (int round = 0; round < 200; ++round) {
    IdxArray array;
    array.type = kTypes[generator() % kTypes.size()];
    std::size_t bytes = bytes_of(array.type);
    for (std::size_t i = 0, dimensions = 1 + generator() % 4; i < dimensions; ++i) {
      array.shape.push_back(static_cast<std::uint32_t>(generator() % 9));
      bytes *= array.shape.back();
    }
    array.data.resize(bytes);
    for (auto& byte : array.data) byte = static_cast<std::byte>(generator());
    const std::string file = text_of(encode_idx(array));
    for (const std::string& form : {file, gzip(file)}) {
      const auto again = parse(form);
      ASSERT_TRUE(again) << again.error().message;
      EXPECT_EQ(*again, array);
    }
    // And none that is one byte longer or shorter.
    EXPECT_FALSE(parse(file + '\0'));
    EXPECT_FALSE(parse(file.substr(0, file.size() - 1)));
  }
}

TEST(Idx, errors_of_files_name_the_path) {
  TemporaryFolder folder;
  EXPECT_EQ(read_idx(folder.path("none")).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(read_idx(folder.path("")).error().code, ErrorCode::kInvalidArgument);
  const auto empty = read_idx(folder.write("empty", ""));
  EXPECT_EQ(empty.error().code, ErrorCode::kCorrupt);
  EXPECT_TRUE(says(empty.error().message, "empty: not an IDX file"));
}

IdxArray images_of(const std::vector<std::uint32_t>& shape) {
  std::size_t bytes = 1;
  for (const std::uint32_t length : shape) bytes *= length;
  return *parse(file_of(0x08, shape, bytes));
}

TEST(ImageSet, is_of_images_and_labels_that_belong_together) {
  const auto set = ImageSet::create(images_of({3, 2, 4, 5}), images_of({3}), 3);
  ASSERT_TRUE(set) << set.error().message;
  EXPECT_EQ(set->count(), 3u);
  EXPECT_EQ(set->channels(), 2u);
  EXPECT_EQ(set->height(), 4u);
  EXPECT_EQ(set->width(), 5u);
  EXPECT_EQ(set->image(2)[1], 81);
  EXPECT_EQ(set->label(2), 2);

  const auto refused = [](IdxArray images, IdxArray labels, unsigned classes) {
    const auto made = ImageSet::create(std::move(images), std::move(labels), classes);
    return made ? "accepted" : made.error().message;
  };
  EXPECT_TRUE(says(refused(*parse(file_of(0x0C, {1, 1, 1}, 4)), images_of({1}), 10), "bytes"));
  EXPECT_TRUE(says(refused(images_of({3, 2}), images_of({3}), 10), "dimensions"));
  EXPECT_EQ(refused(images_of({3, 2, 2}), images_of({3, 1}), 10), "accepted");
  EXPECT_TRUE(says(refused(images_of({3, 2, 2}), images_of({3, 2}), 10), "a row of whole numbers"));
  EXPECT_TRUE(says(refused(images_of({3, 2, 2}), images_of({3, 8}), 100), "not u8 [3, 8]"));
  EXPECT_TRUE(says(refused(images_of({3, 2, 2}), *parse(file_of(0x0D, {3}, 12)), 10), "not f32 [3]"));
  EXPECT_TRUE(says(refused(images_of({3, 2, 2}), images_of({4}), 10), "there are 3 images but 4 labels"));
  EXPECT_TRUE(says(refused(images_of({3, 2, 0}), images_of({3}), 10), "pixels"));
  EXPECT_TRUE(says(refused(images_of({3, 2, 2}), images_of({3}), 0), "classes"));
  EXPECT_TRUE(says(refused(images_of({3, 2, 2}), images_of({3}), 257), "classes"));
  const auto label = ImageSet::create(images_of({3, 2, 2}), images_of({3}), 2);
  EXPECT_EQ(label.error().code, ErrorCode::kCorrupt);
  EXPECT_TRUE(says(label.error().message, "label 2 is 2, which is out of range: the number of classes is 2"));
}

/// Labels of any type, big endian: the first number of each row, and others after it.
IdxArray labels_of(unsigned type, std::size_t columns, const std::vector<int>& labels) {
  IdxArray array{static_cast<IdxType>(type), {static_cast<std::uint32_t>(labels.size())}, {}};
  if (columns > 1) array.shape.push_back(static_cast<std::uint32_t>(columns));
  const std::size_t bytes = bytes_of(array.type);
  for (const int label : labels) {
    for (std::size_t column = 0; column < columns; ++column) {
      const std::int64_t value = column == 0 ? label : 4'000 + static_cast<int>(column);
      for (std::size_t i = 0; i < bytes; ++i) array.data.push_back(static_cast<std::byte>(value >> 8 * i));
    }
  }
  return *parse_idx(encode_idx(array));
}

TEST(ImageSet, takes_labels_of_every_whole_type_and_those_of_qmnist) {
  const std::vector<int> labels{7, 0, 9};
  for (const unsigned type : {0x08U, 0x09U, 0x0BU, 0x0CU}) {
    const auto set = ImageSet::create(images_of({3, 2, 2}), labels_of(type, 1, labels), 10);
    ASSERT_TRUE(set) << type << ": " << set.error().message;
    for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(set->label(i), labels[i]) << type;
    EXPECT_EQ(set->checksum(), ImageSet::create(images_of({3, 2, 2}), labels_of(0x08, 1, labels), 10)->checksum());
  }
  const auto qmnist = ImageSet::create(images_of({3, 2, 2}), labels_of(0x0C, 8, labels), 10);
  ASSERT_TRUE(qmnist) << qmnist.error().message;
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(qmnist->label(i), labels[i]);
  for (const int wrong : {-1, 10, 256, 65536 + 3}) {
    const auto set = ImageSet::create(images_of({3, 2, 2}), labels_of(0x0C, 1, {1, 2, wrong}), 10);
    ASSERT_FALSE(set);
    EXPECT_EQ(set.error().code, ErrorCode::kCorrupt);
    EXPECT_EQ(set.error().message,
              "label 2 is " + std::to_string(wrong) + ", which is out of range: the number of classes is 10");
  }
}

TEST(ImageSet, errors_name_the_file_that_is_wrong) {
  TemporaryFolder folder;
  const std::string images = folder.write("images", file_of(0x08, {3, 2, 2}, 12));
  const std::string labels = folder.write("labels", file_of(0x08, {3}, 3));
  const auto why = [&](const std::string& some, const std::string& others) {
    const auto set = ImageSet::open({.images = some, .labels = others}, 3);
    return set ? "accepted" : set.error().message;
  };
  EXPECT_EQ(why(images, labels), "accepted");
  EXPECT_TRUE(why(images, folder.write("bad", "no labels")).starts_with(folder.path("bad: ")));
  EXPECT_TRUE(why(images, folder.write("bad", file_of(0x08, {3, 3}, 9))).starts_with(folder.path("bad: ")));
  EXPECT_TRUE(
      why(images, folder.write("bad", file_of(0x08, {3}, 2) + '\x05')).starts_with(folder.path("bad: label 2")));
  EXPECT_TRUE(why(folder.write("bad", "no images"), labels).starts_with(folder.path("bad: ")));
  EXPECT_TRUE(why(folder.write("bad", file_of(0x08, {3}, 3)), labels).starts_with(folder.path("bad: ")));
  EXPECT_TRUE(says(why(images, folder.path("nowhere")), "nowhere"));
  EXPECT_TRUE(says(why(images, folder.path("")), "is a directory"));
}

TEST(ImageSet, opens_the_digits_that_are_shipped) {
  const std::string folder = std::string(DUNNOCK_SOURCE_DIR) + "/examples/data/mnist/";
  const auto set = ImageSet::open(
      {.images = folder + "train-images-idx3-ubyte.gz", .labels = folder + "train-labels-idx1-ubyte.gz"}, 10);
  ASSERT_TRUE(set) << set.error().message;
  EXPECT_EQ(set->count(), 500u);
  EXPECT_EQ(set->height(), 28u);
  EXPECT_EQ(set->width(), 28u);
  // The first ones of MNIST.
  const std::vector<int> first{5, 0, 4, 1, 9, 2, 1, 3, 1, 4};
  for (std::size_t i = 0; i < first.size(); ++i) EXPECT_EQ(set->label(i), first[i]);
  const auto test = ImageSet::open(
      {.images = folder + "t10k-images-idx3-ubyte.gz", .labels = folder + "t10k-labels-idx1-ubyte.gz"}, 10);
  ASSERT_TRUE(test) << test.error().message;
  EXPECT_EQ(test->count(), 100u);
  EXPECT_EQ(test->label(0), 7);
  EXPECT_EQ(ImageSet::open({.images = folder + "none", .labels = folder + "none"}, 10).error().code,
            ErrorCode::kNotFound);
  EXPECT_EQ(
      ImageSet::open({.images = folder + "t10k-images-idx3-ubyte.gz", .labels = folder + "none"}, 10).error().code,
      ErrorCode::kNotFound);
  const auto mixed = ImageSet::open(
      {.images = folder + "train-images-idx3-ubyte.gz", .labels = folder + "t10k-labels-idx1-ubyte.gz"}, 10);
  EXPECT_TRUE(says(mixed.error().message, "t10k-labels-idx1-ubyte.gz: there are 500 images but 100 labels"));
}

}  // namespace
}  // namespace dunnock::data
