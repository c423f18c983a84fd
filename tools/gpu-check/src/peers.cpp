#include "peers.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "process.hpp"

namespace dunnock::gpu_check {
namespace {

/// Reads one line from the left. Every function leaves `rest` behind what it has read, or fails.
class Reader {
 public:
  explicit Reader(std::string_view line) : rest_(line) {}

  std::optional<FlatObject> object() {
    FlatObject object;
    if (!take('{')) return std::nullopt;
    if (!take('}')) {
      do {
        std::string name;
        if (!text(name) || !take(':')) return std::nullopt;
        if (!value(object, name)) return std::nullopt;
      } while (take(','));
      if (!take('}')) return std::nullopt;
    }
    skip_space();
    return rest_.empty() ? std::optional(std::move(object)) : std::nullopt;
  }

 private:
  void skip_space() {
    while (!rest_.empty() && (rest_.front() == ' ' || rest_.front() == '\t' || rest_.front() == '\r'))
      rest_.remove_prefix(1);
  }
  bool take(char c) {
    skip_space();
    if (!rest_.starts_with(c)) return false;
    rest_.remove_prefix(1);
    return true;
  }
  bool take_word(std::string_view word) {
    skip_space();
    if (!rest_.starts_with(word)) return false;
    rest_.remove_prefix(word.size());
    return true;
  }
  bool text(std::string& out) {
    if (!take('"')) return false;
    while (!rest_.empty()) {
      char c = rest_.front();
      rest_.remove_prefix(1);
      if (c == '"') return true;
      if (static_cast<unsigned char>(c) < 0x20) return false;
      if (c == '\\') {
        if (rest_.empty()) return false;
        c = rest_.front();
        rest_.remove_prefix(1);
        if (c == 'u') {
          unsigned code = 0;
          if (rest_.size() < 4) return false;
          const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + 4, code, 16);
          if (error != std::errc{} || end != rest_.data() + 4) return false;
          rest_.remove_prefix(4);
          out += code < 0x80 ? static_cast<char>(code) : '?';  // Names are ASCII.
          continue;
        }
        if (c == 'n' || c == 't' || c == 'r' || c == 'b' || c == 'f') {
          c = ' ';
        } else if (c != '"' && c != '\\' && c != '/') {
          return false;
        }
      }
      out += c;
    }
    return false;
  }
  bool value(FlatObject& object, const std::string& name) {
    skip_space();
    if (rest_.starts_with('"')) {
      std::string read;
      if (!text(read)) return false;
      object[name] = std::move(read);
      return true;
    }
    if (take_word("true")) return object[name] = true, true;
    if (take_word("false")) return object[name] = false, true;
    if (take_word("null")) return true;
    // from_chars takes "inf" and "nan" as well, which JSON has not.
    if (rest_.empty() || (rest_.front() != '-' && (rest_.front() < '0' || rest_.front() > '9'))) return false;
    double number = 0;
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), number);
    if (error != std::errc{} || !std::isfinite(number)) return false;
    rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
    object[name] = number;
    return true;
  }

  std::string_view rest_;
};

template <class T>
const T* get(const FlatObject& object, const std::string& name) {
  const auto found = object.find(name);
  return found == object.end() ? nullptr : std::get_if<T>(&found->second);
}

PeerResults none(std::string why) {
  PeerResults results;
  results.about = "none: " + std::move(why);
  return results;
}

/// A file that goes with its scope.
class ScratchFile {
 public:
  explicit ScratchFile(const std::string& text) {
    const char* const folder = std::getenv("TMPDIR");
    path_ = std::string(folder == nullptr ? "/tmp" : folder) + "/dunnock-cases-XXXXXX";
    const int file = mkostemp(path_.data(), O_CLOEXEC);
    if (file < 0) return;
    written_ = write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size());
    written_ = close(file) == 0 && written_;
  }
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;
  ~ScratchFile() { (void)unlink(path_.c_str()); }
  [[nodiscard]] bool written() const noexcept { return written_; }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

 private:
  std::string path_;
  bool written_ = false;
};

}  // namespace

std::optional<FlatObject> parse_flat_object(std::string_view line) { return Reader(line).object(); }

PeerResults read_peers(std::string_view output) {
  PeerResults results;
  while (!output.empty()) {
    const std::size_t end = output.find('\n');
    const std::string_view line = output.substr(0, end);
    output.remove_prefix(end == std::string_view::npos ? output.size() : end + 1);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const auto object = parse_flat_object(line);
    const std::string* const name = object ? get<std::string>(*object, "name") : nullptr;
    const double* const ms = object ? get<double>(*object, "ms") : nullptr;
    const std::string* const error = object ? get<std::string>(*object, "error") : nullptr;
    const std::string* const version = object ? get<std::string>(*object, "version") : nullptr;
    const std::string* const device = object ? get<std::string>(*object, "device") : nullptr;
    if (name != nullptr && *name == "torch" && version != nullptr && device != nullptr) {
      results.about = "PyTorch " + *version + " on " + *device;
    } else if (name != nullptr && ms != nullptr && *ms > 0) {
      results.ms[*name] = *ms;
    } else if (name != nullptr && error != nullptr) {
      results.errors[*name] = *error;
    } else {
      ++results.broken_lines;
    }
  }
  if (results.about.empty()) results.about = "none: peers.py did not say which PyTorch it has";
  return results;
}

PeerResults run_peers(const PeerOptions& options) {
  const std::string python = find_program("python3");
  if (python.empty()) return none("python3 was not found");
  const ScratchFile cases(options.cases);
  if (!cases.written()) return none("the table of cases can't be written to " + cases.path());
  std::vector<std::string> command{python,       options.script, "--cases",
                                   cases.path(), "--seconds",    std::to_string(0.9 * options.seconds_max)};
  if (options.rehearse) command.emplace_back("--rehearse");
  const Finished done = run_process(command, {.seconds_max = options.seconds_max});
  if (done.status == 3) {  // It says why: no PyTorch, no GPU.
    const auto said = parse_flat_object(std::string_view(done.output).substr(0, done.output.find('\n')));
    const std::string* const why = said ? get<std::string>(*said, "error") : nullptr;
    return none(why != nullptr ? *why : "peers.py found no PyTorch");
  }
  PeerResults results = read_peers(done.output);
  if (done.timed_out) {
    results.about += " (its time was over)";
  } else if (done.status != 0) {
    results.about += " (it ended with " + std::to_string(done.status) + ")";
  }
  return results;
}

}  // namespace dunnock::gpu_check
