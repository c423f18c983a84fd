// The rule about what the documents and comments say: whatever they name is there, and what speaks of a test names it.
//
//   `tests/tidy/tidy_test.cpp`, `stream.hpp`    a file or folder of the tree; from its root, beside the text or, of a
//                                               header, as it is included. `*`, `<name>` and `{a,b}` stand for others
//   `device_stream_test`, `stream_test`         a test program, by its whole name or without its layer
//   `crash.explore.*`, `ctest -R crash`         tests of ctest
//   `Suite.says_what_it_does`                   a test of GoogleTest
//   `journal_fuzz`                              a fuzzer
//   `dunnock-crash explore --images 5`          a program of the tree, its command and its options; `./run test` too
//
// A paragraph, an item of a list or a row of a table that speaks of a test, a checker or a fuzzer (speaks_of_tests())
// has to name one of these that tests something.
//
// What there is, is read from the sources: TEST(...), add_test(...), add_option("--...") and the like. Not a parser of
// C++ or CMake: it knows the forms that the tree uses.
#pragma once

#include <algorithm>
#include <cctype>
#include <map>
#include <optional>
#include <regex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "tidy/rules.hpp"

namespace dunnock::tidy {

/// A program that people call.
struct Tool {
  std::set<std::string> commands;                           // "explore"; of a nested one "checkpoint list"
  std::map<std::string, std::set<std::string>> options_of;  // by command, where it is known
  std::set<std::string> options;                            // of all commands together
};

/// What the tree has.
struct Names {
  std::set<std::string> files;  // and folders, from the root
  std::set<std::string> file_names;
  std::set<std::string> programs;  // "device_stream_test" and "stream_test"
  std::set<std::string> ctests;    // "crash.explore.*": '*' is what CMake puts there
  std::set<std::string> tests;     // "Suite.name"
  std::set<std::string> fuzzers;   // "journal_fuzz"
  std::map<std::string, Tool> tools;
  std::vector<std::string> structures;  // of dunnock-crash
};

// ----- words --------------------------------------------------------------------------------------------------------

/// Does `text` fit the pattern, or the pattern another one? '*' in either is any text without a blank.
[[nodiscard]] inline bool fits(std::string_view a, std::string_view b) {
  if (a.empty() && b.empty()) return true;
  if (!a.empty() && a.front() == '*') return fits(a.substr(1), b) || (!b.empty() && fits(a, b.substr(1)));
  if (!b.empty() && b.front() == '*') return fits(a, b.substr(1)) || (!a.empty() && fits(a.substr(1), b));
  return !a.empty() && !b.empty() && a.front() == b.front() && fits(a.substr(1), b.substr(1));
}
[[nodiscard]] inline bool fits_one(const std::set<std::string>& names, const std::string& pattern) {
  if (pattern.find('*') == std::string::npos && names.contains(pattern)) return true;
  return std::ranges::any_of(names, [&](const std::string& name) {
    return (pattern.find('*') != std::string::npos || name.find('*') != std::string::npos) && fits(name, pattern);
  });
}

/// "a/{b,c}.hpp": both. Of the first braces; there are no more.
[[nodiscard]] inline std::vector<std::string> alternatives_of(const std::string& word) {
  const std::size_t open = word.find('{');
  const std::size_t close = word.find('}', open);
  if (open == std::string::npos || close == std::string::npos) return {word};
  std::vector<std::string> all;
  for (std::size_t at = open; at < close;) {
    const std::size_t end = std::min(word.find(',', at + 1), close);
    all.push_back(word.substr(0, open) + word.substr(at + 1, end - at - 1) + word.substr(close + 1));
    at = end;
  }
  return all;
}

[[nodiscard]] inline std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  for (std::size_t at = 0; at < text.size();) {
    at = text.find_first_not_of(" \t\n", at);
    if (at == std::string_view::npos) break;
    const std::size_t end = std::min(text.find_first_of(" \t\n", at), text.size());
    words.emplace_back(text.substr(at, end - at));
    at = end;
  }
  return words;
}

/// All first groups of the expression in the text.
[[nodiscard]] inline std::vector<std::string> matches_of(const std::string& text, const std::regex& expression) {
  std::vector<std::string> all;
  for (std::sregex_iterator at(text.begin(), text.end(), expression), end; at != end; ++at)
    all.push_back((*at)[1].matched ? (*at)[1].str() : (*at)[0].str());
  return all;
}

// ----- prose --------------------------------------------------------------------------------------------------------

/// A paragraph, an item, a row of a table, or a line of code.
struct Prose {
  std::size_t line = 0;  // Of its first line, from 1.
  std::string text;
  bool code = false;  // A line of a block of code.
};

/// Of a document.
[[nodiscard]] inline std::vector<Prose> prose_of_document(std::string_view text) {
  std::vector<Prose> all;
  bool fenced = false;
  bool open = false;  // The last one goes on.
  const auto lines = lines_of(text);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const std::string_view line = lines[i];
    const std::string_view words = trimmed(line);
    const std::size_t indent = line.size() - words.size();
    const auto starts_item = [&] {
      if (words.starts_with("- ") || words.starts_with("* ")) return true;
      const std::size_t dot = words.find(". ");
      return dot != std::string_view::npos && dot > 0 && dot < 3 &&
             std::ranges::all_of(words.substr(0, dot), [](unsigned char c) { return std::isdigit(c) != 0; });
    };
    if (words.starts_with("```")) {
      fenced = !fenced;
      open = false;
    } else if (words.empty()) {
      open = false;
    } else if (fenced || (!open && indent >= 4)) {
      all.push_back({i + 1, std::string(words), true});
    } else if (words.starts_with("|") || words.starts_with("#")) {
      all.push_back({i + 1, std::string(words)});
      open = false;
    } else if (open && !starts_item()) {
      all.back().text.append("\n").append(words);
    } else {
      all.push_back({i + 1, std::string(words)});
      open = true;
    }
  }
  return all;
}

/// The comments of C++: what stands in neighboring lines is one, a line of comment without words parts it.
[[nodiscard]] inline std::vector<Prose> prose_of_cpp(std::string_view text) {
  std::vector<Prose> all;
  bool open = false;
  const std::string bare = without_comments(text);
  const auto code = lines_of(bare);
  const auto lines = lines_of(text);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const std::size_t at = lines[i].find("//");
    const bool comment = at != std::string_view::npos && at < code[i].size() && code[i][at] == ' ';
    if (!comment) {
      open = false;
      continue;
    }
    const bool alone = trimmed(code[i]).empty();
    const std::string_view words =
        trimmed(lines[i].substr(std::min(lines[i].find_first_not_of("/<", at), lines[i].size())));
    if (words.empty() || words.starts_with("-----")) {
      open = false;
    } else if (open && alone) {
      all.back().text.append("\n").append(words);
    } else {
      all.push_back({i + 1, std::string(words)});
      open = true;
    }
  }
  return all;
}

/// What stands between backquotes.
[[nodiscard]] inline std::vector<std::string> quoted_in(const std::string& text) {
  static const std::regex kQuoted("`([^`]+)`");
  return matches_of(text, kQuoted);
}

// ----- what is there ------------------------------------------------------------------------------------------------

[[nodiscard]] inline bool starts_with_one(std::string_view word, std::initializer_list<std::string_view> beginnings) {
  return std::ranges::any_of(beginnings, [&](std::string_view beginning) { return word.starts_with(beginning); });
}

/// The program that the options of a source file belong to; empty: of none.
[[nodiscard]] inline std::string tool_of(const std::string& path) {
  static const std::map<std::string, std::string> kTools = {{"tools/crash/", "dunnock-crash"},
                                                            {"tools/dunnock/", "dunnock"},
                                                            {"tools/train/", "dunnock-train"},
                                                            {"tools/gpu-check/", "dunnock-gpu-check"},
                                                            {"bench/src/micro.cpp", "dunnock-microbench"},
                                                            {"bench/src/", "dunnock-bench"},
                                                            {"examples/killed_training.cpp", "dunnock-demo"},
                                                            {"examples/durable_words.cpp", "dunnock-filter-demo"}};
  std::string tool;
  std::size_t longest = 0;
  for (const auto& [beginning, name] : kTools) {
    if (path.starts_with(beginning) && beginning.size() > longest) {
      tool = name;
      longest = beginning.size();
    }
  }
  return tool;
}

/// The options and commands that a source file of a tool registers: CLI11's, or compared by hand. A file with one
/// command says which options are that command's.
inline void add_options(Tool& tool, const std::string& text) {
  static const std::regex kOption(R"re((?:add_option|add_flag|set_version_flag)\("([^"]+)")re");
  static const std::regex kCompared(R"re((?:name|argument) == "(--[a-z-]+)")re");
  static const std::regex kCommand(R"re((?:add_subcommand\(|add\(app, )\s*"([a-z-]+)")re");
  static const std::regex kNested(R"re(add_checkpoint\("([a-z]+)")re");
  std::set<std::string> options{"--help"};
  for (const std::string& one : matches_of(text, kOption)) options.insert(one);
  for (const std::string& one : matches_of(text, kCompared)) options.insert(one);
  const auto commands = matches_of(text, kCommand);
  tool.options.insert(options.begin(), options.end());
  tool.commands.insert(commands.begin(), commands.end());
  for (const std::string& nested : matches_of(text, kNested)) tool.commands.insert("checkpoint " + nested);
  if (commands.size() == 1) tool.options_of[commands.front()] = options;
}

/// The tests that a CMakeLists.txt gives to ctest. A function or loop of its own that names them by a variable makes
/// a pattern.
[[nodiscard]] inline std::set<std::string> ctests_in(const std::string& text) {
  static const std::regex kTest(R"re((?:add_test\(NAME|dunnock_crash_test\()\s*([A-Za-z0-9_.${}]+))re");
  static const std::regex kVariable(R"re(\$\{[a-z_]+\})re");
  std::set<std::string> names;
  for (std::sregex_iterator at(text.begin(), text.end(), kTest), end; at != end; ++at) {
    std::string name = std::regex_replace((*at)[1].str(), kVariable, "*");
    if ((*at)[0].str().starts_with("dunnock_crash_test")) name.insert(0, "crash.");
    // Every program is one, and has a name of its own.
    if (name != "*.*" && name != "crash.*") names.insert(name);
  }
  return names;
}

/// Reads what `files` (of files_of()) say.
[[nodiscard]] inline Names names_of(const std::filesystem::path& root, const std::vector<std::string>& files) {
  static const std::regex kTest(R"re(\b(?:TEST|TEST_F|TEST_P|TYPED_TEST)\((\w+),\s*(\w+)\))re");
  static const std::regex kProperty(R"re(\bRC_GTEST_(?:PROP|FIXTURE_PROP)\((\w+),\s*(\w+),)re");
  Names names;
  for (auto at = std::filesystem::recursive_directory_iterator(root); at != std::filesystem::end(at); ++at) {
    const std::string name = at->path().filename().string();
    if (at->is_directory() && (name == ".git" || name.starts_with("build"))) {
      at.disable_recursion_pending();
      continue;
    }
    names.files.insert(std::filesystem::relative(at->path(), root).generic_string());
    names.file_names.insert(name);
  }
  names.files.insert("build");  // Where what is built goes.
  for (const std::string& path : files) {
    const std::filesystem::path file(path);
    const std::string stem = file.stem().string();
    if (path.starts_with("tests/") && stem.ends_with("_test")) {
      const std::string layer = file.parent_path().filename().string();
      names.programs.insert(stem);
      names.programs.insert(layer + "_" + stem);
      if (path.ends_with(".cpp")) names.ctests.insert(layer + "." + stem);
    }
    if (path.starts_with("tests/fuzz/") && stem.ends_with("_fuzz")) names.fuzzers.insert(stem);
    if (file.filename() == "CMakeLists.txt") names.ctests.merge(ctests_in(read(root / file)));
    if (!is_cpp(path)) continue;
    const std::string text = read(root / file);
    if (path.starts_with("tests/")) {
      for (const std::regex& expression : {kTest, kProperty}) {
        for (std::sregex_iterator test(text.begin(), text.end(), expression), end; test != end; ++test)
          names.tests.insert((*test)[1].str() + "." + (*test)[2].str());
      }
    }
    if (const std::string tool = tool_of(path); !tool.empty()) add_options(names.tools[tool], text);
  }
  static const std::regex kStructure(R"re(\nDUNNOCK_STRUCTURE\(([a-z_]+)\))re");
  names.structures = matches_of(read(root / "tools/crash/src/structures.inc"), kStructure);
  Tool& run = names.tools["run"];
  static const std::regex kCase(R"re(\n  ([a-z-]+)\)\n)re");
  for (const std::string& command : matches_of(read(root / "run"), kCase)) run.commands.insert(command);
  return names;
}

// ----- the rule -----------------------------------------------------------------------------------------------------

/// Endings of sources: a file of ours with one is in the tree. Others are also what programs read and write.
inline constexpr std::array<std::string_view, 9> kSourceEndings = {".hpp", ".ipp", ".cpp", ".cu",  ".cuh",
                                                                   ".py",  ".sh",  ".md",  ".supp"};

/// Of another project, and written like a test of ours.
[[nodiscard]] inline bool is_of_others(const std::string& word) { return starts_with_one(word, {"GPT2LMHeadModel."}); }

/// Is it there, as a text at `from` may name it?
[[nodiscard]] inline bool has_path(const Names& names, const std::string& from, std::string word) {
  static const std::regex kPlaceholder("<[a-z_]+>");
  word = std::regex_replace(word, kPlaceholder, "*");
  while (word.ends_with('/')) word.pop_back();
  std::vector<std::string> places{word, "tests/" + word};
  if (const std::size_t slash = word.find('/'); slash != std::string::npos) {
    for (const std::string above : {"", "gpu/", "tools/"}) {
      places.push_back(above + word.substr(0, slash) + "/include/dunnock/" + word);
      places.push_back(above + word.substr(0, slash) + "/src" + word.substr(slash));
      if (!word.starts_with("dunnock/")) continue;
      const std::string rest = word.substr(slash + 1);
      places.push_back(above + rest.substr(0, rest.find('/')) + "/include/" + word);
    }
  }
  for (std::filesystem::path folder = std::filesystem::path(from).parent_path();; folder = folder.parent_path()) {
    places.push_back((folder / word).lexically_normal().generic_string());
    const std::string layer = folder.filename().string();
    places.push_back((folder / "include/dunnock" / layer / word).generic_string());
    places.push_back((folder / "src" / word).generic_string());
    if (folder.empty()) break;
  }
  return std::ranges::any_of(places, [&](const std::string& place) { return fits_one(names.files, place); });
}

/// Does `ctest -R word` select a test of this name? '*' in it is a structure of dunnock-crash, or some number.
[[nodiscard]] inline bool selects_one(const Names& names, const std::string& name, const std::string& word) {
  const auto selects = [&word](std::string_view whole) { return fits(whole, "*" + word + "*"); };
  const std::size_t star = name.find('*');
  if (star == std::string::npos) return selects(name);
  return std::ranges::any_of(names.structures, [&](const std::string& structure) {
    const std::string end = name.substr(star + 1);
    return selects(name.substr(0, star) + structure + end.substr(0, end.find('*')));
  });
}

/// What is wrong with a command line, if it is one of ours: "dunnock-crash explode".
[[nodiscard]] inline std::optional<std::string> check_command(const Names& names, const std::string& line) {
  std::vector<std::string> words = words_of(line);
  // "NAME=value mpirun -n 4 PYTHON build/release/bin/dunnock-bench": the program is the first that is ours.
  const auto name_of = [](const std::string& word) { return word.substr(word.rfind('/') + 1); };
  std::size_t at = 0;
  const auto leads = [&](const std::string& word) {
    return word.find('=') != std::string::npos || starts_with_one(word, {"mpirun", "-n", "-np", "timeout", "sudo"}) ||
           std::ranges::all_of(word, [](unsigned char c) { return std::isdigit(c) != 0; });
  };
  while (at < words.size() && leads(words[at])) ++at;
  if (at == words.size()) return std::nullopt;
  std::string name = name_of(words[at]);
  if (name == "run" && words[at] != "./run") return std::nullopt;
  const auto found = names.tools.find(name);
  if (found == names.tools.end()) return std::nullopt;
  const Tool& tool = found->second;
  std::string command;
  const std::set<std::string>* options = &tool.options;
  static const std::regex kCommand("[a-z][a-z-]*(\\|[a-z][a-z-]*)*");
  bool takes_options = true;
  for (++at; at < words.size(); ++at) {
    std::string word = words[at];
    if (word == "#" || word == "|" || word == ">" || word == "(") break;  // Words for people, or another program.
    if (word.starts_with("--")) {
      word = word.substr(0, word.find_first_of("=,;:)]"));
      if (name == "run" || !takes_options) continue;  // They go to another program.
      if (!options->contains(word)) return "`" + name + (command.empty() ? "" : " " + command) + "` has no " + word;
      continue;
    }
    const bool nested = command == "checkpoint" && name == "dunnock";
    if ((command.empty() || nested) && !tool.commands.empty() && std::regex_match(word, kCommand)) {
      const std::string before = nested ? "checkpoint " : "";
      for (std::size_t begin = 0; begin <= word.size();) {
        const std::size_t end = std::min(word.find('|', begin), word.size());
        const std::string one = before + word.substr(begin, end - begin);
        if (!tool.commands.contains(one)) return "`" + name + "` has no command " + one;
        command = one;
        begin = end + 1;
      }
      if (const auto own = tool.options_of.find(command); own != tool.options_of.end()) options = &own->second;
    } else if (words[at - 1].find("--") != 0 && command.empty()) {
      return std::nullopt;  // No command line, but a sentence.
    }
  }
  return std::nullopt;
}

/// Does it speak of tests, so that it should name one? Not of images, parts of data and the like that are called test.
[[nodiscard]] inline bool speaks_of_tests(const std::string& text) {
  static const std::regex kSpeaks(
      "\\b(?:(?:is|are|was|were|been|be)(?: [a-z]+)? (?:tested|fuzzed)|tested (?:by|on|in|apart|with|thread)|"
      "(?:a|the|its|our|each|every|one|stress|property) tests?\\b(?! (?:image|set|data|label|part|accurac|above))|"
      "(?:^|[^-\\w])tests? (?:would |must |may |can |that "
      ")?(?:check|compare|measure|show|prove|find|count|notice|refuse|see|cover|run|"
      "train|look|fail|reach|draw|insert|print)(?:s|es)?\\b|"
      "(?:a|the|its|each|history) (?:checker|fuzzer|explorer|emulator)\\b|fuzzers?\\b|mutants?\\b|planted bugs?\\b)",
      std::regex::icase);
  constexpr std::array<std::string_view, 8> kParts = {"est",   "TEST",   "uzz",   "hecker",
                                                      "utant", "lanted", "xplor", "mulator"};
  const bool may =
      std::ranges::any_of(kParts, [&](std::string_view part) { return text.find(part) != std::string::npos; });
  return may && std::regex_search(text, kSpeaks);
}

/// What `text` names that tests something.
[[nodiscard]] inline bool names_a_test(const Names& names, const std::string& text) {
  static const std::regex kPath(
      R"re(\b(tools/(?:crash|gpu-check)\b|(?:tests|examples)(?:/[\w.*<>{},-]*[\w*>}])+|\w+_(?:test|fuzz)\b))re");
  static const std::regex kRun(R"re((?:\./run|run) (test|asan|tsan|nightly|gpu-check|demo)\b)re");
  static const std::regex kCtest(R"re([a-z_]+(?:\.[a-z0-9_*]+)+|headers|install)re");
  for (const std::string& word : matches_of(text, kPath)) {
    if (names.programs.contains(word) || names.fuzzers.contains(word) || fits_one(names.files, word)) return true;
  }
  if (std::regex_search(text, kRun)) return true;
  for (const std::string& quoted : quoted_in(text)) {
    if (names.tests.contains(quoted)) return true;
    const std::string first = words_of(quoted).empty() ? "" : words_of(quoted).front();
    if (first == "dunnock-crash" || first == "dunnock-gpu-check" || first == "dunnock-demo") return true;
    for (const std::string& word : matches_of(quoted, kCtest)) {
      if (fits_one(names.ctests, word)) return true;
    }
  }
  return text.find("dunnock-crash ") != std::string::npos;
}

/// All of the rule, for a document or a source with comments.
[[nodiscard]] inline std::vector<Finding> check_references(const std::string& path, std::string_view text,
                                                           const Names& names) {
  static const std::regex kPath(
      R"re((?:^|[^\w./<-])((?:base|pmem|filter|index|gpu|data|model|training|tools|bench|tests|examples|docs|cmake)/)re"
      R"re([\w.*<>{},/-]*[\w*>}/]))re");
  static const std::regex kProgram(R"re((?:^|[^\w./-])(\w+_(?:test|fuzz))\b(?!\.|/))re");
  static const std::regex kFile(
      R"re((?:^|[^\w./*<>{}-])([\w*{][\w*<>{},-]*(?:/[\w.*<>{},-]+)*\.(?:hpp|ipp|cpp|cu|cuh|py|sh|md|supp))\b)re");
  static const std::regex kGoogle(R"re(^[A-Z][A-Za-z0-9]*\.[a-z][A-Za-z0-9]*_\w+$)re");
  static const std::regex kCtest(
      R"re(^(?:base|pmem|filter|index|device|kernels|schedule|ranks|gpu|gpu_check|training|train|dunnock|)re"
      R"re(bench|crash|tidy|fuzz|examples|sanitized|harness)(?:\.[a-z0-9_*]+)+$|^(?:data|model)\.\w+_test$)re");
  static const std::regex kSelected(R"re((?:ctest|run test|run asan|run tsan)(?: [^`]*)? -R '?([\w.*]+))re");
  static const std::regex kOurs(R"re(^dunnock-[a-z][a-z-]*$)re");
  const bool document = path.ends_with(".md");
  // The sources of what tests speak of nothing else.
  const bool tester = !document && starts_with_one(path, {"tools/crash/", "tools/gpu-check/"});
  std::vector<Finding> findings;
  for (const Prose& prose : document ? prose_of_document(text) : prose_of_cpp(text)) {
    const auto find = [&](const std::string& what) { findings.push_back({path, prose.line, what}); };
    std::set<std::string> paths;
    const auto may = [&](char part) { return prose.text.find(part) != std::string::npos; };
    if (may('/')) {
      for (const std::string& word : matches_of(prose.text, kPath)) paths.insert(word);
    }
    if (may('.')) {
      for (const std::string& word : matches_of(prose.text, kFile)) paths.insert(word);
    }
    for (const std::string& word : paths) {
      for (const std::string& one : alternatives_of(word)) {
        const bool alone = one.find('/') == std::string::npos;
        if (alone ? fits_one(names.file_names, one) || has_path(names, path, one) : has_path(names, path, one))
          continue;
        if (alone && document && prose.code) continue;  // What an example reads or writes.
        find("there is no " + one);
      }
    }
    for (const std::string& word : may('_') ? matches_of(prose.text, kProgram) : std::vector<std::string>()) {
      if (!names.programs.contains(word) && !names.fuzzers.contains(word)) find("there is no test " + word);
    }
    const bool selects = prose.text.find(" -R ") != std::string::npos;
    for (const std::string& word : selects ? matches_of(prose.text, kSelected) : std::vector<std::string>()) {
      const bool any =
          std::ranges::any_of(names.ctests, [&](const std::string& name) { return selects_one(names, name, word); });
      if (!any) find("ctest has no test " + word);
    }
    std::vector<std::string> quoted = quoted_in(prose.text);
    if (prose.code) quoted = {prose.text};
    for (const std::string& words : quoted) {
      if (const auto wrong = check_command(names, words)) find(*wrong);
      if (prose.code) continue;
      if (std::regex_match(words, kGoogle) && !names.tests.contains(words) && !is_of_others(words))
        find("there is no test " + words);
      const bool file = std::ranges::any_of(kSourceEndings, [&](std::string_view end) { return words.ends_with(end); });
      if (!file && std::regex_match(words, kCtest) && !fits_one(names.ctests, words) &&
          !std::ranges::any_of(names.file_names, [&](const std::string& name) { return name == words; }))
        find("ctest has no test " + words);
      if (std::regex_match(words, kOurs) && !names.tools.contains(words)) find("there is no program " + words);
    }
    if (!tester && !prose.code && !prose.text.starts_with("#") && speaks_of_tests(prose.text) &&
        !names_a_test(names, prose.text))
      find("speaks of a test and names none: " + prose.text.substr(0, 100));
  }
  return findings;
}

/// Documents, and the sources that ship: their comments. The changelog speaks of what there was.
[[nodiscard]] inline bool has_references(const std::string& path) {
  if (path == "CHANGELOG.md" || path.starts_with("tests/tidy/")) return false;
  return path.ends_with(".md") || (is_cpp(path) && !path.starts_with("tests/"));
}

}  // namespace dunnock::tidy
