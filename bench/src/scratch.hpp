// Where a benchmark's files go, and how to end when the environment refuses.
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

/// The path of a file that is not there yet. The file goes with the object.
struct ScratchFile {
  explicit ScratchFile(std::filesystem::path at) : path(std::move(at)) { remove(); }
  ~ScratchFile() { remove(); }
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;
  void remove() const {
    std::error_code error;
    std::filesystem::remove(path, error);
  }
  const std::filesystem::path path;
};

/// A directory, which goes with the object.
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
