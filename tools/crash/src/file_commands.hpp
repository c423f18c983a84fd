// The commands of dunnock-crash on files: explore and mutants with --media file, and life. Each returns the exit code.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace dunnock::crash {

struct FileCommandOptions {
  std::string media = "memory";
  std::string structure;
  unsigned bits = 12;
  std::uint64_t seed = 1;
  unsigned threads = 4;
  unsigned operations = 24;
  std::uint64_t images = 1000000;
  std::size_t images_per_moment = 8;
  std::size_t recovery_every = 16;
  unsigned jobs = 1;
  bool only_seed = false;
  std::vector<std::size_t> keep;
  std::string mutant;
  std::string json;
  std::uint64_t budget = 2000000;  // images a mutant
  std::uint64_t life_images = 1000;
  std::string life_drop;
};

[[nodiscard]] int explore_files(const FileCommandOptions& options);
[[nodiscard]] int mutants_of_files(const FileCommandOptions& options);
[[nodiscard]] int live(const FileCommandOptions& options);

}  // namespace dunnock::crash
