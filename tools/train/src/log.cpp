#include "log.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>
#include <type_traits>
#include <utility>

#include "dunnock/base/input_file.hpp"
#include "dunnock/base/output_file.hpp"

namespace dunnock::train {
namespace {

/// Calls visit(name, member) for each column, in the order of the file.
template <class Row, class Visit>
void each_column(Row& row, Visit&& visit) {
  visit("step", row.step);
  visit("epoch", row.epoch);
  visit("loss", row.loss);
  visit("validation_loss", row.validation_loss);
  visit("accuracy", row.accuracy);
  visit("learning_rate", row.learning_rate);
  visit("gradient_norm", row.gradient_norm);
  visit("items_per_second", row.items_per_second);
  visit("peak_share", row.peak_share);
  visit("memory_bytes", row.memory_bytes);
  visit("seconds", row.seconds);
  visit("checkpoint_bytes", row.checkpoint_bytes);
}

constexpr double kNoNumber = std::numeric_limits<double>::quiet_NaN();

template <class Number>
std::string text_of(Number value) {
  std::array<char, 32> text{};
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr};
}
std::string text_of(const std::optional<double>& value) { return value ? text_of(*value) : std::string(); }

template <class Number>
std::string json_of(Number value) {
  return text_of(value);
}
std::string json_of(double value) { return std::isfinite(value) ? text_of(value) : "null"; }
std::string json_of(const std::optional<double>& value) { return json_of(value.value_or(kNoNumber)); }

template <class Number>
bool number_from(std::string_view text, Number& to) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), to);
  return error == std::errc{} && end == text.data() + text.size();
}
bool number_from(std::string_view text, std::optional<double>& to) {
  if (text.empty()) {
    to.reset();
    return true;
  }
  return number_from(text, to.emplace());
}

bool number_from(const nlohmann::json& value, std::uint64_t& to) {
  if (!value.is_number_unsigned()) return false;
  to = value.get<std::uint64_t>();
  return true;
}
bool number_from(const nlohmann::json& value, double& to) {
  if (!value.is_number() && !value.is_null()) return false;
  to = value.is_null() ? kNoNumber : value.get<double>();
  return true;
}
bool number_from(const nlohmann::json& value, std::optional<double>& to) {
  if (!value.is_null()) return number_from(value, to.emplace());
  to.reset();
  return true;
}

std::optional<LogRow> csv_row(std::string_view line) {
  LogRow row;
  bool sound = true, ended = false;
  each_column(row, [&](std::string_view, auto& member) {
    const std::size_t comma = line.find(',');
    sound = sound && !ended && number_from(line.substr(0, comma), member);
    ended = comma == std::string_view::npos;
    line.remove_prefix(ended ? line.size() : comma + 1);
  });
  if (!sound || !ended) return std::nullopt;
  return row;
}

std::optional<LogRow> json_row(std::string_view line) {
  const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
  if (!json.is_object()) return std::nullopt;
  LogRow row;
  bool sound = true;
  std::size_t columns = 0;
  each_column(row, [&](std::string_view name, auto& member) {
    const auto value = json.find(name);
    sound = sound && value != json.end() && number_from(*value, member);
    ++columns;
  });
  if (!sound || json.size() != columns) return std::nullopt;
  return row;
}

struct Lines {
  std::vector<LogRow> rows;
  std::vector<std::size_t> ends;  // Where each row's line ends, in bytes of the file.
  std::size_t first = 0;          // Where the first row begins.
};

/// The whole lines of a log. `step_max`: later rows and what follows them are not looked at.
Result<Lines> lines_of(std::string_view text, LogFormat format, const std::string& path, std::uint64_t step_max) {
  Lines lines;
  std::size_t number = 0, begin = 0;
  for (std::size_t end = text.find('\n'); end != std::string_view::npos; end = text.find('\n', begin)) {
    ++number;
    const std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    if (format == LogFormat::kCsv && number == 1) {
      if (std::string(line) + "\n" != csv_header())
        return make_error(ErrorCode::kCorrupt, path + ":1: this is not the first line of a log of this version");
      lines.first = begin;
      continue;
    }
    const auto row = row_of(line, format);
    if (!row)
      return make_error(ErrorCode::kCorrupt, path + ":" + std::to_string(number) + ": this is not a row of a log");
    if (row->step > step_max) break;
    lines.rows.push_back(*row);
    lines.ends.push_back(begin);
  }
  return lines;
}

Result<UniqueFd> open_for_writing(const std::string& path, int flags) {
  // Without O_NONBLOCK, opening a FIFO would wait for a reader.
  UniqueFd file(file_system().open(AT_FDCWD, path.c_str(), O_WRONLY | O_NONBLOCK | flags, 0666));
  if (!file) return system_error("can't open " + path, errno);
  return file;
}

}  // namespace

std::string csv_header() {
  std::string header;
  LogRow row;
  each_column(row, [&](std::string_view name, auto&) { header.append(header.empty() ? "" : ",").append(name); });
  return header + "\n";
}

std::string to_line(const LogRow& row, LogFormat format) {
  std::string line;
  each_column(row, [&](std::string_view name, const auto& member) {
    if (format == LogFormat::kCsv) {
      line.append(name == "step" ? "" : ",").append(text_of(member));
    } else {
      line.append(name == "step" ? "{\"" : ", \"").append(name).append("\": ").append(json_of(member));
    }
  });
  return line + (format == LogFormat::kCsv ? "\n" : "}\n");
}

std::optional<LogRow> row_of(std::string_view line, LogFormat format) {
  return format == LogFormat::kCsv ? csv_row(line) : json_row(line);
}

Result<std::vector<LogRow>> read_log(const std::string& path) {
  DUNNOCK_TRY(const auto file, read_file(path));
  const std::string_view text = file;
  const LogFormat format = text.starts_with('{') ? LogFormat::kJsonLines : LogFormat::kCsv;
  DUNNOCK_TRY(auto lines, lines_of(text, format, path, std::numeric_limits<std::uint64_t>::max()));
  return std::move(lines.rows);
}

Result<TrainingLog> TrainingLog::open(const LogPaths& paths, std::optional<std::uint64_t> resumed_step) {
  TrainingLog log;
  for (const auto& [path, format] :
       {std::pair(paths.csv, LogFormat::kCsv), std::pair(paths.json, LogFormat::kJsonLines)}) {
    if (path.empty()) continue;
    DUNNOCK_TRY(auto file, resumed_step ? resume(path, format, *resumed_step) : begin(path, format));
    log.files_.push_back(std::move(file));
  }
  return log;
}

Result<TrainingLog::File> TrainingLog::begin(const std::string& path, LogFormat format) {
  struct stat info {};
  // Only ordinary files: /dev/null keeps its name.
  if (stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0) {
    const std::string old = path + ".old";
    if (file_system().rename(AT_FDCWD, path.c_str(), AT_FDCWD, old.c_str(), 0) != 0)
      return system_error("can't rename " + path + " to " + old, errno);
  }
  DUNNOCK_TRY(auto descriptor, open_for_writing(path, O_CREAT));
  return File{path, format, std::move(descriptor)};
}

Result<TrainingLog::File> TrainingLog::resume(const std::string& path, LogFormat format, std::uint64_t step) {
  std::string kept;
  {
    const auto file = read_file(path);
    if (!file && file.error().code == ErrorCode::kNotFound) return begin(path, format);
    DUNNOCK_TRY(file);
    const std::string_view text = *file;
    DUNNOCK_TRY(const auto lines, lines_of(text, format, path, step));
    const std::size_t end = lines.ends.empty() ? lines.first : lines.ends.back();
    if (end == text.size()) {
      DUNNOCK_TRY(auto descriptor, open_for_writing(path, 0));
      return File{path, format, std::move(descriptor), end};
    }
    kept = text.substr(0, end);
  }
  // A new file takes the old one's place, so that a crash leaves either.
  DUNNOCK_TRY(write_output_file(path, kept));
  DUNNOCK_TRY(auto descriptor, open_for_writing(path, 0));
  return File{path, format, std::move(descriptor), kept.size()};
}

Status TrainingLog::append(File& file, const LogRow& row) {
  std::string text = to_line(row, file.format);
  if (file.bytes == 0 && file.format == LogFormat::kCsv) text = csv_header() + text;
  if (!file_system().pwrite(file.descriptor.get(), text.data(), text.size(), file.bytes)) {
    const int error = errno;
    // If this fails too, the next row is written over the rest, or a resumed run cuts it off.
    (void)file_system().truncate(file.descriptor.get(), file.bytes);
    return system_error("can't write " + file.path + " (training continues)", error);
  }
  file.bytes += text.size();
  return {};
}

Status TrainingLog::add(const LogRow& row) {
  Status first;
  bool lost = false;
  for (File& file : files_) {
    Status done = append(file, row);
    lost = lost || !done;
    const bool told = std::exchange(file.failing, !done);
    if (!done && !told && first) first = std::move(done);
  }
  if (lost) ++rows_lost_;
  return first;
}

}  // namespace dunnock::train
