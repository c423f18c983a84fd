// The rules about source text that no compiler checks: who may include whom, and the looks of a file.
//
// Not a formatter and not a parser: it looks at lines, with comments taken out where that matters. A rule stands here
// when breaking it has consequences (a layer that sees what it must not, a store that escapes the crash harness) or
// when it keeps changes readable (tabs, widths). Matters of taste do not.
//
//   folder of the file      may include dunnock/...
//   ---------------------------------------------------
//   base                    base
//   pmem                    base, pmem
//   filter                  base, pmem, filter
//   index                   base, pmem, filter, index
//   gpu/device              base, device
//   gpu/kernels             base, device, kernels, and filter/layout.hpp
//   gpu/schedule            base, device, schedule
//   gpu/ranks               base, device, schedule, ranks
//   data                    base, device, data
//   model                   base, pmem, filter, index, device, kernels, model
//   training                all of these
//   tools, bench, tests, examples      everything; nobody includes them
#pragma once

#include <algorithm>
#include <array>
#include <cctype>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

namespace dunnock::tidy {

inline constexpr std::size_t kColumnsMax = 120;

struct Finding {
  std::string path;  // From the root of the tree, with '/'.
  std::size_t line;  // From 1.
  std::string what;
  friend bool operator==(const Finding&, const Finding&) = default;
};

/// A layer: a folder whose code ships, and the layers that it may see, by the last names of their folders.
struct Layer {
  std::string_view folder;
  std::array<std::string_view, 11> sees;
};
inline constexpr std::array kLayers = {
    Layer{"base", {"base"}},
    Layer{"pmem", {"base", "pmem"}},
    Layer{"filter", {"base", "pmem", "filter"}},
    Layer{"index", {"base", "pmem", "filter", "index"}},
    Layer{"gpu/device", {"base", "device"}},
    Layer{"gpu/kernels", {"base", "device", "kernels"}},
    Layer{"gpu/schedule", {"base", "device", "schedule"}},
    Layer{"gpu/ranks", {"base", "device", "schedule", "ranks"}},
    Layer{"data", {"base", "device", "data"}},
    Layer{"model", {"base", "pmem", "filter", "index", "device", "kernels", "model"}},
    Layer{"training",
          {"base", "pmem", "filter", "index", "device", "kernels", "schedule", "ranks", "data", "model", "training"}},
};
/// Headers that a layer may include although it does not see theirs: the words of the filter, which need nothing.
inline constexpr std::string_view kSharedWords = "dunnock/filter/layout.hpp";
inline constexpr std::string_view kSharesWords = "gpu/kernels";
inline constexpr std::array<std::string_view, 4> kFoldersThatSeeAll = {"tools", "bench", "tests", "examples"};

/// Output of a library: it returns reports and leaves printing to tools. One exception: a check that fails says its
/// last words.
inline constexpr std::array<std::string_view, 6> kPrinting = {"std::cout",  "std::cerr", "std::clog",
                                                              "fmt::print", "printf(",   "puts("};
inline constexpr std::string_view kMayPrint = "base/src/check.cpp";

/// Ends a program with a status of CLI11's own; mistakes on a command line are 2, of every program.
inline constexpr std::string_view kStatusOfAnother = "CLI11_PARSE";
inline constexpr std::string_view kMayNameIt = "tests/tidy/";

/// Instructions and calls that make stores durable. Elsewhere than in pmem the crash harness would not see them.
inline constexpr std::array<std::string_view, 8> kPersisting = {"clwb",       "clflush", "sfence",     "mfence",
                                                                "_mm_stream", "msync(",  "fdatasync(", "pmem_persist"};
inline constexpr std::array<std::string_view, 7> kMayPersist = {
    "base/include/dunnock/base/file.hpp", "base/src/file.cpp",        "pmem/",      "tests/pmem/",
    "tools/crash/src/sim_file.cpp",       "tools/crash/src/life.cpp", "tests/tidy/"};

/// Calls that change files or make them durable. In what ships they go through FileSystem, where a harness can see
/// them: as its members, which a '.' or an arrow precedes.
inline constexpr std::array<std::string_view, 14> kWriting = {
    "std::ofstream", "std::fstream", "fopen(",  "rename(",   "renameat(", "renameat2(", "unlink(",
    "fsync(",        "ftruncate(",   "pwrite(", "pwritev2(", "mkostemp(", "mkstemp(",   "fallocate("};
inline constexpr std::array<std::string_view, 2> kProgramsThatShipData = {"tools/dunnock/", "tools/train/"};
/// Itself; and memory that MPI's ranks share, which is no file to anybody.
inline constexpr std::array<std::string_view, 3> kMayWrite = {"base/include/dunnock/base/file.hpp", "base/src/file.cpp",
                                                              "gpu/ranks/src/mpi/"};

// ----- text ---------------------------------------------------------------------------------------------------------

enum class Strings { kKept, kBlanked };

/// The C++ text with comments blanked out, and what stands in string literals too if so asked. Lines stay lines.
[[nodiscard]] inline std::string without_comments(std::string_view text, Strings strings = Strings::kKept) {
  enum class In { kCode, kLine, kBlock, kString, kCharacter, kRaw } in = In::kCode;
  std::string out(text);
  std::string raw_end;
  const auto blank = [&](std::size_t i) {
    if (strings == Strings::kBlanked && i < out.size() && out[i] != '\n') out[i] = ' ';
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const char next = i + 1 < text.size() ? text[i + 1] : '\0';
    const bool after_word = i > 0 && std::isalnum(static_cast<unsigned char>(text[i - 1])) != 0;
    switch (in) {
      case In::kCode:
        if (c == '/' && next == '/') {
          in = In::kLine;
          out[i] = ' ';
        } else if (c == '/' && next == '*') {
          in = In::kBlock;
          out[i] = out[i + 1] = ' ';
          ++i;
        } else if (c == '"' && i > 0 && text[i - 1] == 'R') {
          const std::size_t open = text.find('(', i);
          if (open == std::string_view::npos) return out;
          raw_end.assign(")").append(text.substr(i + 1, open - i - 1)).append("\"");
          in = In::kRaw;
        } else if (c == '"') {
          in = In::kString;
        } else if (c == '\'' && !after_word) {  // After a digit it separates thousands.
          in = In::kCharacter;
        }
        break;
      case In::kLine:
        if (c == '\n') {
          in = In::kCode;
        } else {
          out[i] = ' ';
        }
        break;
      case In::kBlock:
        if (c == '*' && next == '/') {
          out[i] = out[i + 1] = ' ';
          ++i;
          in = In::kCode;
        } else if (c != '\n') {
          out[i] = ' ';
        }
        break;
      case In::kString:
      case In::kCharacter:
        if (c == '\\') {
          blank(i);
          blank(++i);
        } else if (c == (in == In::kString ? '"' : '\'')) {
          in = In::kCode;
        } else {
          blank(i);
        }
        break;
      case In::kRaw:
        if (text.substr(i).starts_with(raw_end)) {
          i += raw_end.size() - 1;
          in = In::kCode;
        } else {
          blank(i);
        }
        break;
    }
  }
  return out;
}

[[nodiscard]] inline std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    lines.push_back(text.substr(0, end));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return lines;
}

/// Characters, not bytes: a continuation byte of UTF-8 takes no column.
[[nodiscard]] inline std::size_t columns_of(std::string_view line) {
  return static_cast<std::size_t>(
      std::count_if(line.begin(), line.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

/// Does `word` stand in `line`, not as the end of a longer name (`snprintf(` is not `printf(`)?
[[nodiscard]] inline bool has_word(std::string_view line, std::string_view word) {
  for (std::size_t at = line.find(word); at != std::string_view::npos; at = line.find(word, at + 1)) {
    if (at == 0) return true;
    const char before = line[at - 1];
    if (std::isalnum(static_cast<unsigned char>(before)) == 0 && before != '_') return true;
  }
  return false;
}

[[nodiscard]] inline std::string_view trimmed(std::string_view line) {
  return line.substr(std::min(line.find_first_not_of(' '), line.size()));
}

/// The layer of `#include <dunnock/LAYER/...>` or its quoted form; empty for other lines.
[[nodiscard]] inline std::string_view included_layer(std::string_view line) {
  constexpr std::string_view kPrefix = "dunnock/";
  if (!trimmed(line).starts_with("#include")) return {};
  const std::size_t open = line.find_first_of("<\"");
  if (open == std::string_view::npos || !line.substr(open + 1).starts_with(kPrefix)) return {};
  const std::string_view rest = line.substr(open + 1 + kPrefix.size());
  return rest.substr(0, rest.find_first_of("/>\""));
}

// ----- the rules ----------------------------------------------------------------------------------------------------

/// Rules for text of any kind.
[[nodiscard]] inline std::vector<Finding> check_text(const std::string& path, std::string_view text) {
  std::vector<Finding> findings;
  const auto lines = lines_of(text);
  const bool prose = path.ends_with(".md");  // Tables and links do not wrap.
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (lines[i].find('\t') != std::string_view::npos) findings.push_back({path, i + 1, "a tab"});
    if (lines[i].ends_with(' ') || lines[i].ends_with('\r')) findings.push_back({path, i + 1, "space at the end"});
    if (!prose && columns_of(lines[i]) > kColumnsMax) {
      findings.push_back({path, i + 1, "longer than " + std::to_string(kColumnsMax) + " columns"});
    }
  }
  if (text.empty() || text.back() != '\n') findings.push_back({path, lines.size(), "no newline at the end"});
  return findings;
}

/// Does the line call it otherwise than as a member of an object?
[[nodiscard]] inline bool calls_directly(std::string_view line, std::string_view word) {
  for (std::size_t at = line.find(word); at != std::string_view::npos; at = line.find(word, at + 1)) {
    const std::string_view before = line.substr(0, at);
    const bool part_of_a_word =
        !before.empty() && (std::isalnum(static_cast<unsigned char>(before.back())) != 0 || before.back() == '_');
    const bool member = before.ends_with('.') || before.ends_with("->") || before.ends_with("FileSystem::");
    if (!part_of_a_word && !member) return true;
  }
  return false;
}

/// Is it the beginning of a test, whose own name begins with a capital letter?
[[nodiscard]] inline bool names_test_in_camel_case(std::string_view line) {
  const std::string_view begin = line.substr(0, line.find('('));
  if (begin != "TEST" && begin != "TEST_F" && begin != "TEST_P" && begin != "RC_GTEST_PROP") return false;
  const std::string_view name = trimmed(line.substr(std::min(line.find(','), line.size() - 1) + 1));
  return !name.empty() && std::isupper(static_cast<unsigned char>(name.front())) != 0;
}

/// The layer that the file belongs to; null: none.
[[nodiscard]] inline const Layer* layer_of(const std::string& path) {
  const auto* const layer =
      std::ranges::find_if(kLayers, [&](const Layer& one) { return path.starts_with(std::string(one.folder) + "/"); });
  return layer == kLayers.end() ? nullptr : layer;
}

/// Rules for C++: of layers, headers, printing, exceptions and persistence.
[[nodiscard]] inline std::vector<Finding> check_cpp(const std::string& path, std::string_view text) {
  std::vector<Finding> findings;
  const std::string code_text = without_comments(text, Strings::kKept);
  const std::string bare_text = without_comments(text, Strings::kBlanked);
  const auto code = lines_of(code_text);
  const auto bare = lines_of(bare_text);
  const bool header = path.ends_with(".hpp") || path.ends_with(".ipp") || path.ends_with(".cuh");
  const Layer* const layer = layer_of(path);
  const bool in_layer = layer != nullptr;
  const std::string folder = in_layer ? std::string(layer->folder) : path.substr(0, path.find('/'));
  if (!in_layer && std::ranges::find(kFoldersThatSeeAll, folder) == kFoldersThatSeeAll.end()) {
    findings.push_back({path, 1, "no layer is known for this folder: add it to tests/tidy/rules.hpp"});
  }
  if (header && !text.starts_with("// ")) {
    findings.push_back({path, 1, "a header starts by saying what it is for"});
  }
  if (header && std::ranges::find(code, "#pragma once") == code.end()) {
    findings.push_back({path, 1, "no #pragma once"});
  }
  const bool may_persist =
      std::ranges::any_of(kMayPersist, [&](std::string_view prefix) { return path.starts_with(prefix); });
  const auto starts_path = [&](std::string_view prefix) { return path.starts_with(prefix); };
  const bool ships_data = in_layer || std::ranges::any_of(kProgramsThatShipData, starts_path);
  const bool may_write = !ships_data || std::ranges::any_of(kMayWrite, starts_path);
  for (std::size_t i = 0; i < code.size(); ++i) {
    const auto find = [&](std::string what) { findings.push_back({path, i + 1, std::move(what)}); };
    const std::string_view included = included_layer(code[i]);
    const bool shared = folder == kSharesWords && code[i].find(kSharedWords) != std::string_view::npos;
    if (in_layer && !included.empty() && !shared && std::ranges::find(layer->sees, included) == layer->sees.end()) {
      find(folder + " must not include " + std::string(included));
    }
    if (code[i].starts_with("#include \"../")) find("an include that climbs out of its folder");
    if (header && code[i].starts_with("using namespace")) find("using namespace in a header");
    if (names_test_in_camel_case(code[i])) find("a test's name is a sentence in snake_case");
    if (in_layer && has_word(code[i], "throw")) find("a library function throws");
    for (const std::string_view word : kPrinting) {
      if (in_layer && path != kMayPrint && has_word(code[i], word)) find("a library prints: " + std::string(word));
    }
    if (!path.starts_with(kMayNameIt) && has_word(code[i], kStatusOfAnother))
      find("a mistake on the command line ends with a status of CLI11's own, not with 2");
    for (const std::string_view word : kWriting) {
      if (!may_write && calls_directly(bare[i], word)) find("writes past the FileSystem: " + std::string(word));
    }
    for (const std::string_view word : kPersisting) {
      // In a string it is an instruction only when assembly stands around it; elsewhere it is a word for people.
      const std::string_view line = code[i].find("asm") == std::string_view::npos ? bare[i] : code[i];
      if (!may_persist && line.find(word) != std::string_view::npos) {
        find("persists past the media: " + std::string(word));
      }
    }
  }
  return findings;
}

[[nodiscard]] inline bool is_cpp(std::string_view path) {
  return std::ranges::any_of(std::array<std::string_view, 5>{".hpp", ".ipp", ".cpp", ".cu", ".cuh"},
                             [&](std::string_view ending) { return path.ends_with(ending); });
}

[[nodiscard]] inline std::vector<Finding> check_file(const std::string& path, std::string_view text) {
  std::vector<Finding> findings = check_text(path, text);
  if (is_cpp(path)) std::ranges::move(check_cpp(path, text), std::back_inserter(findings));
  return findings;
}

// ----- the tree -----------------------------------------------------------------------------------------------------

/// Our own text files under `root`, sorted: not what is built, not what others wrote (data, licenses).
[[nodiscard]] inline std::vector<std::string> files_of(const std::filesystem::path& root) {
  constexpr std::array<std::string_view, 11> kEndings = {".hpp", ".ipp", ".cpp", ".cu",   ".cuh", ".cmake",
                                                         ".in",  ".sh",  ".md",  ".json", ".py"};
  constexpr std::array<std::string_view, 4> kNames = {"CMakeLists.txt", "run", ".gitignore", ".clang-format"};
  std::vector<std::string> files;
  for (auto at = std::filesystem::recursive_directory_iterator(root); at != std::filesystem::end(at); ++at) {
    const std::string name = at->path().filename().string();
    const std::string path = std::filesystem::relative(at->path(), root).generic_string();
    if (at->is_directory() && (name == ".git" || name.starts_with("build") || path == "examples/data" ||
                               path == "tests/data/data" || path == "tests/model/data")) {
      at.disable_recursion_pending();
      continue;
    }
    const bool ours = std::ranges::find(kNames, name) != kNames.end() ||
                      std::ranges::any_of(kEndings, [&](std::string_view ending) { return name.ends_with(ending); });
    if (at->is_regular_file() && ours) files.push_back(path);
  }
  std::ranges::sort(files);
  return files;
}

[[nodiscard]] inline std::string read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

}  // namespace dunnock::tidy
