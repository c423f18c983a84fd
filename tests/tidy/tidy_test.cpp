// The tree keeps the rules of rules.hpp, and the rules notice what breaks them.
#include <gtest/gtest.h>

#include "tidy/cycles.hpp"
#include "tidy/references.hpp"
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
const std::string kDevice = "gpu/device/include/dunnock/device/a.hpp";
const std::string kKernels = "gpu/kernels/include/dunnock/kernels/a.hpp";
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

TEST(Tree, has_what_its_documents_and_comments_name) {
  const std::filesystem::path root = DUNNOCK_SOURCE_DIR;
  const auto files = files_of(root);
  const Names names = names_of(root, files);
  EXPECT_TRUE(names.tests.contains("Tree.has_what_its_documents_and_comments_name"));
  EXPECT_TRUE(names.programs.contains("tidy_test"));
  EXPECT_TRUE(names.ctests.contains("tidy.tidy_test"));
  EXPECT_TRUE(names.ctests.contains("crash.explore.*"));
  EXPECT_EQ(names.structures.front(), "filter");
  EXPECT_TRUE(names.fuzzers.contains("journal_fuzz"));
  EXPECT_TRUE(names.tools.at("dunnock-crash").options.contains("--images"));
  EXPECT_TRUE(names.tools.at("dunnock").commands.contains("checkpoint list"));
  EXPECT_TRUE(names.tools.at("dunnock-bench").options_of.at("kernels").contains("--only"));
  EXPECT_TRUE(names.tools.at("dunnock-gpu-check").options.contains("--rehearse"));
  EXPECT_TRUE(names.tools.at("run").commands.contains("nightly"));
  for (const std::string& file : files) {
    if (!has_references(file)) continue;
    for (const Finding& finding : check_references(file, read(root / file), names)) {
      ADD_FAILURE_AT(file.c_str(), static_cast<int>(finding.line)) << finding.what;
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
  EXPECT_TRUE(complains(kDevice, "#include <dunnock/index/kv_index.hpp>"));
}

TEST(Layers, of_the_gpu_see_what_is_below_them) {
  EXPECT_TRUE(accepts(kKernels, "#include <dunnock/device/stream.hpp>"));
  EXPECT_TRUE(complains(kDevice, "#include <dunnock/kernels/norm.hpp>"));
  EXPECT_TRUE(complains(kKernels, "#include <dunnock/ranks/communicator.hpp>"));
  EXPECT_TRUE(accepts("gpu/ranks/src/a.cpp", "#include <dunnock/schedule/schedule.hpp>"));
  EXPECT_TRUE(complains("gpu/schedule/src/a.cpp", "#include <dunnock/ranks/communicator.hpp>"));
  EXPECT_TRUE(complains("model/src/a.cpp", "#include <dunnock/training/step.hpp>"));
  EXPECT_TRUE(complains("data/src/a.cpp", "#include <dunnock/model/models.hpp>"));
}

TEST(Layers, of_kernels_see_the_words_of_the_filter_and_nothing_else_of_it) {
  EXPECT_TRUE(accepts(kKernels, "#include <dunnock/filter/layout.hpp>"));
  EXPECT_TRUE(complains(kDevice, "#include <dunnock/filter/layout.hpp>"));
  EXPECT_TRUE(complains(kKernels, "#include <dunnock/filter/cuckoo_filter.hpp>"));
  EXPECT_TRUE(complains(kKernels, "#include <dunnock/training/step.hpp>"));
  EXPECT_TRUE(accepts(kTraining, "#include <dunnock/schedule/schedule.hpp>"));
  EXPECT_TRUE(accepts(kTraining, "#include <dunnock/index/checkpoint_store.hpp>"));
  EXPECT_TRUE(complains("gpu/kernels/src/cuda/a.cu", "#include <dunnock/filter/cuckoo_filter.hpp>"));
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
  EXPECT_EQ(check_file("base/include/dunnock/base/a.ipp", "#pragma once\n").size(), 1U) << "a part of a header";
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

// ----- what documents and comments name -----------------------------------------------------------------------------

/// A tree with one of everything.
Names some_names() {
  Names names;
  names.files = {
      "tests",       "tests/gpu",       "tests/gpu/device",          "tests/gpu/device/stream_test.cpp",
      "tools/crash", "docs/testing.md", "gpu/device/src/driver.hpp", "gpu/device/include/dunnock/device/stream.hpp",
      "build"};
  names.file_names = {"stream_test.cpp", "testing.md", "driver.hpp", "stream.hpp"};
  names.programs = {"stream_test", "device_stream_test"};
  names.ctests = {"crash.explore.*", "device.stream_test", "headers"};
  names.tests = {"Streams.run_in_order"};
  names.fuzzers = {"journal_fuzz"};
  names.structures = {"filter", "index"};
  Tool& crash = names.tools["dunnock-crash"];
  crash.commands = {"explore", "kill"};
  crash.options = {"--help", "--images", "--kills"};
  crash.options_of["kill"] = {"--help", "--kills"};
  names.tools["dunnock"].commands = {"info", "checkpoint", "checkpoint list"};
  names.tools["dunnock"].options = {"--json"};
  names.tools["run"].commands = {"test"};
  return names;
}

std::vector<Finding> named_wrong(const std::string& text, const std::string& path = "docs/a.md") {
  return check_references(path, text, some_names());
}
/// The only thing that is wrong.
std::string wrong(const std::string& text, const std::string& path = "docs/a.md") {
  const auto findings = named_wrong(text, path);
  return findings.size() == 1 ? findings[0].what : std::to_string(findings.size()) + " findings";
}

TEST(References, to_what_is_there_are_accepted) {
  for (const char* text :
       {"See `tests/gpu/device/stream_test.cpp`, tests/gpu, `stream.hpp`, `device/stream.hpp` and docs/testing.md.\n",
        "`tests/gpu/device/*_test.cpp`, `tests/<layer>`, `gpu/device/src/{driver,driver}.hpp`, `stream_test`, "
        "device_stream_test\n",
        "`crash.explore.index`, `crash.explore.*`, `device.stream_test`, `Streams.run_in_order`, `journal_fuzz`\n",
        "`dunnock-crash explore --images 5`, `./run test -R stream`, `ctest -R explore`, `dunnock checkpoint list P`\n",
        "    OMP_NUM_THREADS=1 mpirun -n 4 build/release/bin/dunnock-crash kill --kills=5   # words for people\n",
        "```\ndunnock-crash kill --kills 3\n```\n", "    dunnock info result.csv --json > out.hpp\n",
        "Write `--anything` of another program, `mpirun --help` or `run.steps`.\n"}) {
    for (const Finding& finding : named_wrong(text)) ADD_FAILURE() << text << finding.what;
  }
  EXPECT_TRUE(
      named_wrong("// See driver.hpp and tests/gpu/device/stream_test.cpp.\nint a;  // b/c.d\n", "gpu/device/src/a.cpp")
          .empty());
}

TEST(References, to_files_that_are_not_there_are_found) {
  EXPECT_EQ(wrong("See `tests/gpu/device/river_test.cpp`.\n"), "there is no tests/gpu/device/river_test.cpp");
  EXPECT_EQ(wrong("See docs/river.md.\n"), "there is no docs/river.md");
  EXPECT_EQ(wrong("Start with `river.hpp`.\n"), "there is no river.hpp");
  EXPECT_EQ(wrong("`gpu/device/src/{driver,river}.hpp`\n"), "there is no gpu/device/src/river.hpp");
  EXPECT_EQ(wrong("`tests/gpu/device/*_river.cpp`\n"), "there is no tests/gpu/device/*_river.cpp");
  EXPECT_EQ(wrong("// As river.hpp does.\nint a;\n", "gpu/device/src/a.cpp"), "there is no river.hpp");
  EXPECT_EQ(wrong("/// In tests/river.\nint a;\n", "gpu/device/src/a.cpp"), "there is no tests/river");
}

TEST(References, to_tests_that_are_not_there_are_found) {
  EXPECT_EQ(wrong("As `river_test` shows.\n"), "there is no test river_test");
  EXPECT_EQ(wrong("As device_river_test shows.\n"), "there is no test device_river_test");
  EXPECT_EQ(wrong("As `river_fuzz` shows.\n"), "there is no test river_fuzz");
  EXPECT_EQ(wrong("As `Streams.run_up_hill` shows.\n"), "there is no test Streams.run_up_hill");
  EXPECT_EQ(wrong("As `crash.implode.index` shows.\n"), "ctest has no test crash.implode.index");
  EXPECT_EQ(wrong("Call `ctest -R river`.\n"), "ctest has no test river");
  EXPECT_EQ(wrong("Call `./run test -R river`.\n"), "ctest has no test river");
}

TEST(References, to_commands_and_options_that_are_not_there_are_found) {
  EXPECT_EQ(wrong("Call `dunnock-crash implode`.\n"), "`dunnock-crash` has no command implode");
  EXPECT_EQ(wrong("Call `dunnock-crash explore --rivers 5`.\n"), "`dunnock-crash explore` has no --rivers");
  EXPECT_EQ(wrong("    dunnock-crash kill --images 5\n"), "`dunnock-crash kill` has no --images");
  EXPECT_EQ(wrong("Call `dunnock checkpoint sink P`.\n"), "`dunnock` has no command checkpoint sink");
  EXPECT_EQ(wrong("Call `dunnock info|sink P`.\n"), "`dunnock` has no command sink");
  EXPECT_EQ(wrong("Call `./run river`.\n"), "`run` has no command river");
  EXPECT_EQ(wrong("Call `dunnock-river`.\n"), "there is no program dunnock-river");
}

TEST(References, are_needed_where_a_text_speaks_of_a_test) {
  for (const std::string text :
       {"This is tested.", "The order is also tested.", "A test compares them.", "The tests prove it.",
        "The checker knows.", "All parsers have fuzzers.", "Each planted bug is caught.",
        "Every point is dropped, and a test must notice.", "It was fuzzed.", "tested with ThreadSanitizer",
        "A history checker searches an order."}) {
    EXPECT_TRUE(wrong(text + "\n").starts_with("speaks of a test and names none: ")) << text;
    EXPECT_TRUE(wrong("// " + text + "\nint a;\n", "gpu/device/src/a.hpp").starts_with("speaks of a test")) << text;
    EXPECT_TRUE(wrong("| row | " + text + " |\n| other | `tests/gpu` |\n").starts_with("speaks of a test")) << text;
    EXPECT_TRUE(wrong("- " + text + "\n- `tests/gpu`\n").starts_with("speaks of a test")) << text;
    EXPECT_TRUE(wrong(text + "\n\nSee `tests/gpu`.\n").starts_with("speaks of a test"))
        << "another paragraph: " << text;
    for (const std::string name :
         {"`tests/gpu/device/stream_test.cpp`", "`stream_test`", "`Streams.run_in_order`", "`headers`",
          "`dunnock-crash explore`", "`./run test`", "`crash.explore.*`", "`journal_fuzz`"})
      EXPECT_TRUE(named_wrong(text + "\nSee " + name + ".\n").empty()) << text << name;
    EXPECT_FALSE(named_wrong(text + " See `docs/testing.md` and `stream.hpp`.\n").empty()) << "no tests: " << text;
  }
  for (const std::string text : {"The test images are kept apart.", "For tests and replays.", "A test set of digits.",
                                 "It contests the latest.", "Where a reader looks, nothing is lost.", "Attested."}) {
    EXPECT_TRUE(named_wrong(text + "\n").empty()) << text;
  }
}

TEST(References, know_the_forms_of_the_sources) {
  EXPECT_EQ(ctests_in("add_test(NAME fuzz.parsers COMMAND a)\ndunnock_crash_test(kill.${structure}.file b)\n"),
            (std::set<std::string>{"fuzz.parsers", "crash.kill.*.file"}));
  Tool tool;
  add_options(tool,
              R"(app.add_subcommand("one", "x"); c->add_option("--images", i)->check(x); c->add_flag("--all", a);)");
  EXPECT_EQ(tool.commands, std::set<std::string>{"one"});
  EXPECT_EQ(tool.options_of.at("one"), (std::set<std::string>{"--all", "--help", "--images"}));
  EXPECT_TRUE(fits("crash.*.index", "crash.explore.*"));
  EXPECT_FALSE(fits("crash.*.index", "crash.explore.log"));
  const auto prose = prose_of_document("# Head\none\ntwo\n- three\n  four\n\n    code\n| row |\n");
  ASSERT_EQ(prose.size(), 5U);
  EXPECT_EQ(prose[1].text, "one\ntwo");
  EXPECT_EQ(prose[2].text, "- three\nfour");
  EXPECT_TRUE(prose[3].code);
  const auto comments = prose_of_cpp("// one\n// two\n//\n// three\nint a = 0;  // four\nconst char* b = \"// no\";\n");
  ASSERT_EQ(comments.size(), 3U);
  EXPECT_EQ(comments[0].text, "one\ntwo");
  EXPECT_EQ(comments[2].text, "four");
}

TEST(Tests, have_names_in_snake_case) {
  EXPECT_TRUE(complains("tests/a.hpp", "TEST(Streams, RunInOrder) {}"));
  EXPECT_TRUE(complains("tests/a.hpp", "TEST_P(Streams, RunInOrder) {}"));
  EXPECT_TRUE(accepts("tests/a.hpp", "TEST(Streams, run_in_order) {}"));
  EXPECT_TRUE(accepts("tests/a.hpp", "// TEST(Streams, RunInOrder) {}"));
}

// ----- cycles -------------------------------------------------------------------------------------------------------

TEST(Cycles, of_includes_are_found) {
  const Includes chain = {{"a", {"b"}}, {"b", {"c"}}, {"c", {}}};
  EXPECT_TRUE(cycle_in(chain).empty());
  const Includes circle = {{"a", {"b"}}, {"b", {"c"}}, {"c", {"b"}}};
  EXPECT_EQ(cycle_in(circle), (std::vector<std::string>{"b", "c", "b"}));
}

TEST(Cycles, of_includes_are_nowhere_in_the_tree) {
  const std::filesystem::path root = DUNNOCK_SOURCE_DIR;
  const Includes includes = includes_of(root, files_of(root));
  EXPECT_TRUE(includes.at("training/src/trainer.cpp").contains("training/include/dunnock/training/trainer.hpp"));
  EXPECT_TRUE(includes.at("gpu/kernels/src/cuda/norm.cu").contains("gpu/kernels/src/cuda/device_code.hpp"));
  std::string cycle;
  for (const std::string& file : cycle_in(includes)) cycle += (cycle.empty() ? "" : " -> ") + file;
  EXPECT_EQ(cycle, "");
}

TEST(Persistence, goes_through_the_media) {
  EXPECT_TRUE(complains(kFilter, "void f(char* p) { asm volatile(\"clwb %0\" : : \"m\"(*p)); }"));
  EXPECT_TRUE(complains("tools/a.hpp", "void f() { _mm_sfence(); }"));
  EXPECT_TRUE(complains("bench/a.hpp", "void f() { msync(0, 0, 0); }"));
  EXPECT_TRUE(accepts(kPmem, "void f() { msync(0, 0, 0); }"));
  EXPECT_TRUE(accepts(kFilter, "// one clwb and one sfence"));
  EXPECT_TRUE(accepts("bench/a.hpp", "const char* kTitle = \"store + clwb\";"));
}

TEST(Files, are_changed_through_the_file_system) {
  EXPECT_TRUE(complains(kFilter, "void f() { std::ofstream(\"a\") << 1; }"));
  EXPECT_TRUE(complains("tools/dunnock/src/a.hpp", "void f() { ::unlink(\"a\"); }"));
  EXPECT_TRUE(complains("tools/train/src/a.hpp", "void f() { std::filesystem::rename(\"a\", \"b\"); }"));
  EXPECT_TRUE(complains("training/src/a.hpp", "int f(int file) { return fsync(file); }"));
  EXPECT_TRUE(accepts("training/src/a.hpp", "int f(int file) { return file_system().fsync(file); }"));
  EXPECT_TRUE(accepts("pmem/src/a.hpp", "int f(FileSystem* files) { return files->unlink(1, \"a\"); }"));
  EXPECT_TRUE(accepts("pmem/src/a.hpp", "// as rename(2) does"));
  EXPECT_TRUE(accepts("bench/a.hpp", "int f(int file) { return fsync(file); }"));
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
