// A directory for a benchmark's files, and how to end when the environment refuses.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

namespace dunnock::bench {

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(3);
}

/// Goes with the object.
struct Scratch {
  explicit Scratch(const std::string& in)
      : path(std::filesystem::path(in) / ("dunnock-bench-" + std::to_string(getpid()))) {
    std::error_code error;
    std::filesystem::remove_all(path, error);
    if (!std::filesystem::create_directories(path, error)) fail("can't write to " + in);
  }
  ~Scratch() {
    std::error_code error;
    std::filesystem::remove_all(path, error);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  [[nodiscard]] std::string at(const std::string& name) const { return (path / name).string(); }
  std::filesystem::path path;
};

}  // namespace dunnock::bench
