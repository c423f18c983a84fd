// Our filter as a subject. Compiling this takes long, so there is a source file for each width of fingerprints, which
// instantiates the two functions at the end.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "counting_media.hpp"
#include "dunnock/filter/cuckoo_filter.hpp"
#include "filter/subject_of.hpp"

namespace dunnock::bench {

/// In plain memory. `nvm`: the model that `media` belongs to, if any.
template <unsigned kBits, FilterPolicy kPolicy, class M>
Result<std::unique_ptr<Subject>> make_in_memory(const SubjectOptions& options, M media,
                                                std::shared_ptr<NvmModel> nvm = nullptr) {
  using F = CuckooFilter<kBits, M, kPolicy>;
  struct Home {
    VolatileRegion meta, table;
    std::shared_ptr<NvmModel> nvm;
  };
  DUNNOCK_TRY(auto meta, VolatileRegion::create(F::meta_bytes()));
  DUNNOCK_TRY(auto table, VolatileRegion::create(F::table_bytes(options.slots)));
  const std::shared_ptr<Home> home(new Home{std::move(meta), std::move(table), std::move(nvm)});
  DUNNOCK_TRY(auto filter, F::format(home->meta.region(), home->table.region(),
                                     {options.slots, HashSeed::from(options.seed)}, media));
  return std::make_unique<SubjectOf<F>>(home, std::move(filter));
}

/// In a new pool. `media_of` makes the media from it.
template <unsigned kBits, class MediaOf>
Result<std::unique_ptr<Subject>> make_in_pool(const SubjectOptions& options, const MediaOf& media_of) {
  using F = CuckooFilter<kBits, decltype(media_of(std::declval<Pool&>()))>;
  const std::uint64_t regions[] = {F::table_bytes(options.slots), F::meta_bytes()};
  DUNNOCK_TRY(auto pool, Pool::create(options.pool, {Pool::bytes_for(regions)}));
  const auto home = std::make_shared<Pool>(std::move(pool));
  DUNNOCK_TRY(auto filter, F::create(*home, "filter", {options.slots, HashSeed::from(options.seed)}, media_of(*home)));
  if (options.prefaults) filter.clear();
  return std::make_unique<SubjectOf<F>>(home, std::move(filter));
}

template <unsigned kBits>
Result<std::unique_ptr<Subject>> make_ours(const Case& one, const SubjectOptions& options) {
  constexpr FilterPolicy kSingle{.multi_writer = false};
  switch (one.medium) {
    case Medium::kDram: break;
    case Medium::kDirect: return make_in_memory<kBits, FilterPolicy{}>(options, DirectMedia{});
    case Medium::kNvm: {
      const auto model = std::make_shared<NvmModel>(options.nvm);
      return make_in_memory<kBits, FilterPolicy{}>(options, EmulatedNvm(*model), model);
    }
    case Medium::kProcess: return make_in_pool<kBits>(options, [](Pool&) { return ProcessMedia{}; });
    case Medium::kFile: return make_in_pool<kBits>(options, [](Pool& pool) { return pool.file_media(); });
    case Medium::kCounted: return make_in_memory<kBits, kSingle>(options, CountingMedia<DirectMedia>{});
  }
  constexpr DramMedia kDram;
  switch (one.design) {
    case Design::kParallel: return make_in_memory<kBits, FilterPolicy{}>(options, kDram);
    case Design::kWithoutSpill:
      return make_in_memory<kBits, FilterPolicy{.multi_writer = false, .spill = false}>(options, kDram);
    case Design::kWithoutLookahead:
      return make_in_memory<kBits, FilterPolicy{.multi_writer = false, .lookahead = false}>(options, kDram);
    case Design::kWithoutPrimacy:
      return make_in_memory<kBits, FilterPolicy{.multi_writer = false, .primacy = false}>(options, kDram);
    case Design::kHalfLineGroups:
      return make_in_memory<kBits, FilterPolicy{.multi_writer = false, .group_words = 4}>(options, kDram);
    default: return make_in_memory<kBits, kSingle>(options, kDram);
  }
}

template <unsigned kBits>
Result<std::unique_ptr<Subject>> open_ours(const std::string& path) {
  using F = CuckooFilter<kBits, ProcessMedia>;
  DUNNOCK_TRY(auto pool, Pool::open(path));
  const auto home = std::make_shared<Pool>(std::move(pool));
  DUNNOCK_TRY(auto opened, F::open(*home, "filter", {}));
  return std::make_unique<SubjectOf<F>>(home, std::move(opened.filter));
}

}  // namespace dunnock::bench
