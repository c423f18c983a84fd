// A subject on the media that its options name.
#pragma once

#include <memory>

#include "sim_file.hpp"
#include "structures.hpp"

namespace dunnock::crash {

template <template <class> class SubjectOn>
[[nodiscard]] std::unique_ptr<Subject> recorded(const SubjectOptions& options) {
  switch (options.recording) {
    case Recording::kEadr: return std::make_unique<SubjectOn<SimEadrMedia>>(options.workload);
    case Recording::kFile: return std::make_unique<SubjectOn<SimFileMedia>>(options.workload);
    case Recording::kMemory: break;
  }
  return std::make_unique<SubjectOn<SimMedia>>(options.workload);
}

}  // namespace dunnock::crash
