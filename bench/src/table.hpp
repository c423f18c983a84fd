// A table whose rows have many figures: its columns are declared once, for the terminal, for CSV and for JSON.
#pragma once

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

namespace dunnock::bench {

template <class Row>
struct Column {
  const char* name;                     ///< In files; empty: on the terminal only.
  const char* heading;                  ///< On the terminal; empty: in files only.
  int width;                            ///< Negative: to the left.
  int digits;                           ///< Of a number, after the point.
  nlohmann::json (*value)(const Row&);  ///< A word or a number. NaN: was not measured.
};

inline bool is_missing(const nlohmann::json& value) {
  return value.is_number_float() && std::isnan(value.get<double>());
}

inline std::string text_of(const nlohmann::json& value, const char* float_format, int digits) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_number_float()) return value.dump();
  char text[64];
  std::snprintf(text, sizeof text, float_format, digits, value.get<double>());
  return text;
}

/// A heading, and a line per row. What was not measured is a dash.
template <class Row, class Rows>
void print_table(std::span<const Column<Row>> columns, const Rows& rows) {
  const auto print = [&](const auto& cell_of) {
    const char* separator = "";
    for (const Column<Row>& column : columns) {
      if (*column.heading == '\0') continue;
      std::printf("%s%*s", separator, column.width, cell_of(column).c_str());
      separator = " ";
    }
    std::printf("\n");
  };
  print([](const Column<Row>& column) { return std::string(column.heading); });
  for (const Row& row : rows) {
    print([&](const Column<Row>& column) {
      const nlohmann::json value = column.value(row);
      return is_missing(value) ? std::string("-") : text_of(value, "%.*f", column.digits);
    });
  }
}

/// A line of names, and a line per row. What was not measured is empty.
template <class Row, class Rows>
std::string csv_of(std::span<const Column<Row>> columns, const Rows& rows) {
  std::string text;
  const auto add = [&](const auto& cell_of) {
    const char* separator = "";
    for (const Column<Row>& column : columns) {
      if (*column.name == '\0') continue;
      text += separator + cell_of(column);
      separator = ",";
    }
    text += '\n';
  };
  add([](const Column<Row>& column) { return std::string(column.name); });
  for (const Row& row : rows) {
    add([&](const Column<Row>& column) {
      const nlohmann::json value = column.value(row);
      return is_missing(value) ? std::string() : text_of(value, "%.*g", 6);
    });
  }
  return text;
}

/// A row by the names of its columns. What was not measured is null.
template <class Row>
nlohmann::json json_of(std::span<const Column<Row>> columns, const Row& row) {
  nlohmann::json object;
  for (const Column<Row>& column : columns) {
    if (*column.name != '\0') object[column.name] = column.value(row);
  }
  return object;
}

}  // namespace dunnock::bench
