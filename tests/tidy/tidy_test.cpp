// The tree keeps the rules of rules.hpp, and the rules notice what breaks them.
#include <gtest/gtest.h>

#include "tidy/rules.hpp"

namespace {

using namespace dunnock::tidy;

constexpr std::string_view kGoodHeader = "// What it is for.\n#pragma once\n";

/// What is found wrong with a header of `layer` that contains `line`.
std::vector<Finding> with_line(const std::string& path, const std::string& line) {
  return check_file(path, std::string(kGoodHeader) + line + "\n");
}

bool complains(const std::string& path, const std::string& line) { return with_line(path, line).size() == 1; }
bool accepts(const std::string& path, const std::string& line) { return with_line(path, line).empty(); }

const std::string kBase = "base/include/dunnock/base/a.hpp";
const std::string kPmem = "pmem/include/dunnock/pmem/a.hpp";
const std::string kGpu = "gpu/include/dunnock/gpu/a.hpp";
const std::string kTraining = "training/include/dunnock/training/a.hpp";
const std::string kFilter = "filter/include/dunnock/filter/a.hpp";

TEST(Tree, keeps_the_rules) {
  const std::filesystem::path root = DUNNOCK_SOURCE_DIR;
  const auto files = files_of(root);
  ASSERT_GT(files.size(), 30U) << "the walk misses files";
  ASSERT_NE(std::ranges::find(files, "filter/include/dunnock/filter/cuckoo_filter.hpp"), files.end());
  for (const std::string& file : files) {
    for (const Finding& finding : check_file(file, read(root / file))) {
      ADD_FAILURE_AT(file.c_str(), static_cast<int>(finding.line)) << finding.what;
    }
  }
}

TEST(Tree, shows_in_the_README_the_quickstart_that_is_compiled) {
  const std::filesystem::path root = DUNNOCK_SOURCE_DIR;
  const std::string program = read(root / "examples/quickstart.cpp");
  const std::string_view open = "// [README\n";
  const std::size_t first = program.find(open);
  const std::size_t last = program.find("// README]");
  ASSERT_NE(first, std::string::npos);
  ASSERT_LT(first, last);
  const std::string shown = program.substr(first + open.size(), last - first - open.size());
  EXPECT_NE(read(root / "README.md").find("```cpp\n" + shown + "```\n"), std::string::npos)
      << "README.md should contain this, between ```cpp and ```:\n"
      << shown;
}

TEST(Tree, has_every_file_that_its_documents_link_to) {
  const std::filesystem::path root = DUNNOCK_SOURCE_DIR;
  for (const std::string& file : files_of(root)) {
    if (!file.ends_with(".md")) continue;
    const std::string text = read(root / file);
    for (std::size_t at = text.find("]("); at != std::string::npos; at = text.find("](", at + 2)) {
      std::string target = text.substr(at + 2, text.find(')', at) - at - 2);
      if (target.find("://") != std::string::npos || target.starts_with('#')) continue;
      target = target.substr(0, target.find('#'));
      EXPECT_TRUE(std::filesystem::exists(root / std::filesystem::path(file).parent_path() / target))
          << file << " links to " << target;
    }
  }
}

TEST(Layers, may_include_themselves_and_what_is_below) {
  EXPECT_TRUE(accepts(kBase, "#include \"dunnock/base/check.hpp\""));
  EXPECT_TRUE(accepts(kPmem, "#include \"dunnock/base/check.hpp\""));
  EXPECT_TRUE(accepts(kFilter, "#include <dunnock/pmem/pool.hpp>"));
  EXPECT_TRUE(accepts("tools/crash/src/a.hpp", "#include <dunnock/filter/cuckoo_filter.hpp>"));
}

TEST(Layers, must_not_include_what_is_above) {
  EXPECT_TRUE(complains(kBase, "#include \"dunnock/pmem/pool.hpp\""));
  EXPECT_TRUE(complains(kPmem, "#include <dunnock/filter/layout.hpp>"));
  EXPECT_TRUE(complains(kPmem, "  #include <dunnock/filter/layout.hpp>"));
  EXPECT_TRUE(complains(kFilter, "#include <dunnock/crash/explorer.hpp>"));
  EXPECT_TRUE(complains(kGpu, "#include <dunnock/index/kv_index.hpp>"));
}

TEST(Layers, of_the_gpu_see_the_words_of_the_filter_and_nothing_else_of_it) {
  EXPECT_TRUE(accepts(kGpu, "#include <dunnock/filter/layout.hpp>"));
  EXPECT_TRUE(complains(kGpu, "#include <dunnock/filter/cuckoo_filter.hpp>"));
  EXPECT_TRUE(complains(kGpu, "#include <dunnock/training/step.hpp>"));
  EXPECT_TRUE(accepts(kTraining, "#include <dunnock/gpu/schedule.hpp>"));
  EXPECT_TRUE(accepts(kTraining, "#include <dunnock/index/checkpoint_store.hpp>"));
  EXPECT_TRUE(complains("gpu/src/cuda/a.cu", "#include <dunnock/filter/cuckoo_filter.hpp>"));
}

TEST(Layers, are_not_broken_by_an_include_in_a_comment) {
  EXPECT_TRUE(accepts(kBase, "// #include \"dunnock/pmem/pool.hpp\""));
  EXPECT_TRUE(accepts(kBase, "/* one\n#include \"dunnock/pmem/pool.hpp\"\ntwo */"));
}

TEST(Layers, include_the_folder_of_every_source_file) {
  EXPECT_TRUE(complains("elsewhere/a.hpp", ""));
  EXPECT_TRUE(accepts("bench/a.hpp", ""));
}

TEST(Includes, do_not_climb_out_of_their_folder) { EXPECT_TRUE(complains(kBase, "#include \"../src/private.hpp\"")); }

TEST(Headers, need_pragma_once_and_a_purpose) {
  EXPECT_TRUE(check_file(kBase, kGoodHeader).empty());
  EXPECT_EQ(check_file(kBase, "// What it is for.\n").size(), 1U);
  EXPECT_EQ(check_file(kBase, "// What it is for.\n// #pragma once\n").size(), 1U);
  EXPECT_EQ(check_file(kBase, "#pragma once\n").size(), 1U);
  EXPECT_TRUE(check_file("base/src/a.cpp", "int a;\n").empty());
}

TEST(Headers, do_not_open_namespaces_for_others) {
  EXPECT_TRUE(complains(kBase, "using namespace std;"));
  EXPECT_TRUE(accepts(kBase, "void f() {\n  using namespace std::literals;\n}")) << "a function may do so for itself";
  EXPECT_TRUE(check_file("tests/base/a.cpp", "using namespace std;\n").empty());
}

TEST(Text, has_no_tabs_and_no_spaces_at_the_end) {
  EXPECT_TRUE(complains(kBase, "\tint a;"));
  EXPECT_TRUE(complains(kBase, "int a; "));
  EXPECT_TRUE(complains(kBase, "int a;\r"));
  EXPECT_EQ(check_file("docs/a.md", "words \n").size(), 1U);
}

TEST(Text, ends_with_a_newline) {
  EXPECT_EQ(check_file("docs/a.md", "words").size(), 1U);
  EXPECT_TRUE(check_file("docs/a.md", "words\n").empty());
}

TEST(Text, is_no_wider_than_the_limit_and_counts_characters) {
  const std::string fits = "//" + std::string(kColumnsMax - 2, 'x');
  EXPECT_TRUE(accepts(kBase, fits));
  EXPECT_TRUE(complains(kBase, fits + "x"));
  EXPECT_TRUE(accepts(kBase, fits.substr(0, fits.size() - 2) + "\u00e9\u00e9"));
  EXPECT_TRUE(check_file("docs/a.md", std::string(500, 'x') + "\n").empty()) << "prose may be as wide as it likes";
}

TEST(Libraries, do_not_print) {
  EXPECT_TRUE(complains(kFilter, "void f() { std::cout << 1; }"));
  EXPECT_TRUE(complains(kPmem, "void f() { std::printf(\"\"); }"));
  EXPECT_TRUE(complains(kPmem, "void f() { fmt::print(\"\"); }"));
  EXPECT_TRUE(accepts(kPmem, "void f(char* s) { snprintf(s, 1, \"\"); }"));
  EXPECT_TRUE(accepts(kPmem, "// std::cout is not for us"));
  EXPECT_TRUE(accepts("tools/a.hpp", "void f() { std::printf(\"\"); }"));
}

TEST(Libraries, do_not_throw) {
  EXPECT_TRUE(complains(kFilter, "void f() { throw 1; }"));
  EXPECT_TRUE(accepts(kFilter, "void f(); // does not throw"));
  EXPECT_TRUE(accepts(kFilter, "void overthrow();"));
}

TEST(Programs, end_with_2_when_their_command_line_is_wrong) {
  EXPECT_TRUE(complains("tools/a.hpp", "int main() { CLI11_PARSE(app, argc, argv); }"));
  EXPECT_TRUE(accepts("tools/a.hpp", "// CLI11_PARSE would end with 109"));
}

TEST(Persistence, goes_through_the_media) {
  EXPECT_TRUE(complains(kFilter, "void f(char* p) { asm volatile(\"clwb %0\" : : \"m\"(*p)); }"));
  EXPECT_TRUE(complains("tools/a.hpp", "void f() { _mm_sfence(); }"));
  EXPECT_TRUE(complains("bench/a.hpp", "void f() { msync(0, 0, 0); }"));
  EXPECT_TRUE(accepts(kPmem, "void f() { msync(0, 0, 0); }"));
  EXPECT_TRUE(accepts(kFilter, "// one clwb and one sfence"));
  EXPECT_TRUE(accepts("bench/a.hpp", "const char* kTitle = \"store + clwb\";"));
}

TEST(Comments, are_told_from_strings_characters_and_thousands) {
  EXPECT_EQ(without_comments("a // b\nc"), "a     \nc");
  EXPECT_EQ(without_comments("a /* b\nc */ d"), "a     \n     d");
  EXPECT_EQ(without_comments("\"// no\" // yes"), "\"// no\"       ");
  EXPECT_EQ(without_comments("'\"' // yes"), "'\"'       ");
  EXPECT_EQ(without_comments("'\\'' // yes"), "'\\''       ");
  EXPECT_EQ(without_comments("1'000 // yes"), "1'000       ");
  EXPECT_EQ(without_comments("f(\"a\\\"b\"); // yes", Strings::kBlanked), "f(\"    \");       ");
  EXPECT_EQ(without_comments("R\"(a\nb)\" c", Strings::kBlanked), "R\"  \n )\" c");
  EXPECT_EQ(without_comments("R\"x(// no \" )\" )x\" // yes"), "R\"x(// no \" )\" )x\"       ");
}

}  // namespace
