// The bugs that are planted in what is done to a simulated file. They are in the journal, which all structures share.
#pragma once

#include <string>
#include <vector>

#include "sim_file.hpp"

namespace dunnock::crash {

struct FileMutant {
  std::string name;
  FileMutation mutation;
};
[[nodiscard]] std::vector<FileMutant> file_bugs();

}  // namespace dunnock::crash
