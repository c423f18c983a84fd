// The kinds of filters that histories are recorded on. Each width is compiled by itself, in filter_kinds_<bits>.cpp: it
// takes longer than all the rest.
#pragma once

#include <memory>

#include "sim_file.hpp"
#include "structures.hpp"
#include "structures/any_filter.hpp"

namespace dunnock::crash {

template <unsigned kBits>
std::unique_ptr<FilterKind> filter_kind_of(const SubjectOptions& options) {
  // In memory, every fifth history on groups of half a line.
  const bool small = options.workload.seed % 5 == 0;
  switch (options.recording) {
    case Recording::kFile: return std::make_unique<FilterKindOf<kBits, SimFileMedia>>();
    case Recording::kEadr:
      if (small) return std::make_unique<FilterKindOf<kBits, SimEadrMedia, 4>>();
      return std::make_unique<FilterKindOf<kBits, SimEadrMedia>>();
    case Recording::kMemory: break;
  }
  if (small) return std::make_unique<FilterKindOf<kBits, SimMedia, 4>>();
  return std::make_unique<FilterKindOf<kBits, SimMedia>>();
}

extern template std::unique_ptr<FilterKind> filter_kind_of<8>(const SubjectOptions& options);
extern template std::unique_ptr<FilterKind> filter_kind_of<12>(const SubjectOptions& options);
extern template std::unique_ptr<FilterKind> filter_kind_of<16>(const SubjectOptions& options);

}  // namespace dunnock::crash
