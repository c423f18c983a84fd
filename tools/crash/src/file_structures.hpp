// The structures on simulated files, and the bugs that are planted there.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "dunnock/crash/explorer.hpp"
#include "sim_file.hpp"

namespace dunnock::crash {

/// As Structure::subject, on SimFileMedia.
[[nodiscard]] std::unique_ptr<Subject> file_subject(std::string_view structure, std::uint64_t seed, unsigned threads,
                                                    unsigned operations, unsigned bits);

struct FileMutant {
  std::string name;
  FileMutation mutation;
};
[[nodiscard]] std::vector<FileMutant> file_mutants(std::string_view structure);

}  // namespace dunnock::crash
