#include "filter/subject.hpp"

#include "counting_media.hpp"
#include "dunnock/filter/cuckoo_filter.hpp"
#include "filter/subject_of.hpp"
#include "textbook_cuckoo_filter.hpp"

namespace dunnock::bench {

// In ours.hpp, instantiated in ours_8.cpp, ours_12.cpp and ours_16.cpp.
template <unsigned kBits>
Result<std::unique_ptr<Subject>> make_ours(const Case& one, const SubjectOptions& options);
template <unsigned kBits>
Result<std::unique_ptr<Subject>> open_ours(const std::string& path);

namespace {

std::unique_ptr<Subject> make_durable_textbook(Medium medium, const SubjectOptions& options) {
  const HashSeed seed = HashSeed::from(options.seed);
  if (medium == Medium::kNvm) {
    const auto model = std::make_shared<NvmModel>(options.nvm);
    return std::make_unique<SubjectOf<DurableTextbookFilter<EmulatedNvm>>>(model, options.slots, seed,
                                                                           EmulatedNvm(*model));
  }
  if (medium == Medium::kCounted) {
    using Media = CountingMedia<DirectMedia>;
    return std::make_unique<SubjectOf<DurableTextbookFilter<Media>>>(nullptr, options.slots, seed, Media{});
  }
  return std::make_unique<SubjectOf<DurableTextbookFilter<DirectMedia>>>(nullptr, options.slots, seed, DirectMedia{});
}

/// Calls work with the width as a constant.
template <class Work>
auto with_bits(unsigned bits, const Work& work) {
  switch (bits) {
    case 8: return work.template operator()<8>();
    case 16: return work.template operator()<16>();
    default: return work.template operator()<12>();
  }
}

}  // namespace

Result<std::unique_ptr<Subject>> make_subject(const Case& one, const SubjectOptions& options) {
  const HashSeed seed = HashSeed::from(options.seed);
  switch (one.design) {
    case Design::kTextbook12:
      return std::make_unique<SubjectOf<TextbookCuckooFilter<12>>>(nullptr, options.slots, seed);
    case Design::kTextbook16:
      return std::make_unique<SubjectOf<TextbookCuckooFilter<16>>>(nullptr, options.slots, seed);
    case Design::kTextbookDurable: return make_durable_textbook(one.medium, options);
    case Design::kBlockedBloom:
      return std::make_unique<SubjectOf<BlockedBloomFilter>>(nullptr, options.slots * BlockedBloomFilter::kBitsPerKey,
                                                             seed);
    default: return with_bits(options.bits, [&]<unsigned kBits>() { return make_ours<kBits>(one, options); });
  }
}

Result<std::unique_ptr<Subject>> open_subject(unsigned bits, const std::string& pool) {
  return with_bits(bits, [&]<unsigned kBits>() { return open_ours<kBits>(pool); });
}

std::uint64_t table_bytes(unsigned bits, std::uint64_t slots) {
  return with_bits(bits, [&]<unsigned kBits>() { return CuckooFilter<kBits, DramMedia>::table_bytes(slots); });
}

std::uint64_t table_slots(unsigned bits, std::uint64_t bytes) {
  return with_bits(bits, [&]<unsigned kBits>() { return bytes / sizeof(Word) * Layout<kBits>::kLanes; });
}

}  // namespace dunnock::bench
