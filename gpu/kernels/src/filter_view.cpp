#include "dunnock/kernels/filter_view.hpp"

#include <atomic>
#include <memory>
#include <string>

#include "filter_launchers.hpp"

namespace dunnock::kernels {
namespace {

struct HostAccess {
  static std::uint64_t load(const std::uint64_t* word) noexcept {
    return std::atomic_ref(*const_cast<std::uint64_t*>(word)).load(std::memory_order_acquire);
  }
  // acq_rel: a thread that sees what a mark announces also sees the mark, which was raised before.
  static bool swap(std::uint64_t* word, std::uint64_t expected, std::uint64_t desired) noexcept {
    return std::atomic_ref(*word).compare_exchange_strong(expected, desired, std::memory_order_acq_rel,
                                                          std::memory_order_acquire);
  }
  template <unsigned kWords>
  static void load_group(const std::uint64_t* words, std::uint64_t (&values)[kWords]) noexcept {
    for (unsigned i = 0; i < kWords; ++i) values[i] = load(words + i);
  }
  static void fence() noexcept {}  // Loads acquire and swaps do both: nothing passes them that matters.
};

detail::FilterSeed seed_of(const FilterShape& shape) noexcept {
  return {{shape.seed[0], shape.seed[1], shape.seed[2], shape.seed[3]}};
}

/// The CPU's twin of the kernels: one key after the other, with the homes of the next ones on their way.
template <class Key>
void on_host(detail::FilterOperation operation, const FilterShape& shape, std::uint64_t* words, const Key* keys,
             std::size_t count, std::uint8_t* answers) {
  constexpr std::size_t kAhead = 32;
  const detail::FilterSeed seed = seed_of(shape);
  detail::with_words<HostAccess>(shape, words, [&](const auto& filter) {
    const auto moves = std::make_unique<detail::Move[]>(detail::kMovesMax);
    Place places[kAhead];
    for (std::size_t begin = 0; begin < count; begin += kAhead) {
      const std::size_t many = std::min(kAhead, count - begin);
      for (std::size_t i = 0; i < many; ++i) {
        places[i] = filter.place(detail::hash_of(seed, keys[begin + i]));
        __builtin_prefetch(words + places[i].bucket);
      }
      for (std::size_t i = 0; i < many; ++i) {
        bool yes = false;
        if (operation == detail::FilterOperation::kContains) {
          yes = filter.contains(places[i], filter.home_of(places[i]));
        } else if (operation == detail::FilterOperation::kInsert) {
          yes = filter.insert_near(places[i]) == detail::Insertion::kAccepted ||
                filter.insert_aside(places[i]) == detail::Insertion::kAccepted ||
                filter.insert_far(places[i], moves.get()) == detail::Insertion::kAccepted;
        } else {
          yes = filter.erase(places[i], filter.home_of(places[i]));
        }
        answers[begin + i] = yes ? 1 : 0;
      }
    }
  });
}

template <class Key>
void operate(detail::FilterOperation operation, std::string_view name, const FilterShape& shape,
             device::Span<std::uint64_t> words, device::Span<const Key> keys, device::Span<std::uint8_t> answers,
             device::Stream& stream) {
  DUNNOCK_CHECK(keys.size() == answers.size(), "there is an answer for each key");
  if (keys.empty()) return;
  if constexpr (kHasCuda) {
    if (stream.device().backend() == device::Backend::kCuda)
      return detail::cuda::filter_operation(operation, shape, words.device_data(), keys, answers, stream);
  }
  stream.run(name, [=] {
    on_host(operation, shape, words.device_data(), keys.device_data(), keys.size(), answers.device_data());
    return Status{};
  });
}

}  // namespace

Result<FilterView> FilterView::create(const FilterShape& shape, device::Span<std::uint64_t> words) {
  const auto invalid = [](std::string what) { return make_error(ErrorCode::kInvalidArgument, std::move(what)); };
  if (shape.fingerprint_bits != 8 && shape.fingerprint_bits != 12 && shape.fingerprint_bits != 16)
    return invalid("a fingerprint needs 8, 12 or 16 bits, not " + std::to_string(shape.fingerprint_bits));
  if (shape.group_words != 4 && shape.group_words != 8)
    return invalid("a group needs 4 or 8 words, not " + std::to_string(shape.group_words));
  if (shape.groups == 0 || shape.groups > (1ULL << 36) / shape.group_words)
    return invalid("a filter needs 1 to 2^36 words, not " + std::to_string(shape.groups) + " groups of " +
                   std::to_string(shape.group_words));
  if (words.size() != shape.groups * shape.group_words)
    return invalid(std::to_string(words.size()) + " words do not make " + std::to_string(shape.groups) + " groups of " +
                   std::to_string(shape.group_words));
  if (reinterpret_cast<std::uintptr_t>(words.device_data()) % kWordsAlignment != 0)
    return invalid("a filter's words must begin at a multiple of " + std::to_string(kWordsAlignment) + " bytes");
  return FilterView(shape, words);
}

void FilterView::contains(device::Span<const std::uint64_t> keys, device::Span<std::uint8_t> answers,
                          device::Stream& stream) const {
  operate(detail::FilterOperation::kContains, "filter contains", shape_, words_, keys, answers, stream);
}
void FilterView::contains(device::Span<const Key128> keys, device::Span<std::uint8_t> answers,
                          device::Stream& stream) const {
  operate(detail::FilterOperation::kContains, "filter contains", shape_, words_, keys, answers, stream);
}
void FilterView::insert(device::Span<const std::uint64_t> keys, device::Span<std::uint8_t> accepted,
                        device::Stream& stream) const {
  operate(detail::FilterOperation::kInsert, "filter insert", shape_, words_, keys, accepted, stream);
}
void FilterView::insert(device::Span<const Key128> keys, device::Span<std::uint8_t> accepted,
                        device::Stream& stream) const {
  operate(detail::FilterOperation::kInsert, "filter insert", shape_, words_, keys, accepted, stream);
}
void FilterView::erase(device::Span<const std::uint64_t> keys, device::Span<std::uint8_t> erased,
                       device::Stream& stream) const {
  operate(detail::FilterOperation::kErase, "filter erase", shape_, words_, keys, erased, stream);
}
void FilterView::erase(device::Span<const Key128> keys, device::Span<std::uint8_t> erased,
                       device::Stream& stream) const {
  operate(detail::FilterOperation::kErase, "filter erase", shape_, words_, keys, erased, stream);
}

void FilterView::longest_prefix(device::Span<const Key128> hashes, device::Span<const std::uint32_t> first,
                                device::Span<std::uint32_t> lengths, device::Stream& stream) const {
  DUNNOCK_CHECK(first.size() == lengths.size() + 1, "each request begins where the one before it ends");
  if (lengths.empty()) return;
  if constexpr (kHasCuda) {
    if (stream.device().backend() == device::Backend::kCuda)
      return detail::cuda::filter_longest_prefix(shape_, words_.device_data(), hashes, first, lengths, stream);
  }
  stream.run("filter longest prefix", [=, shape = shape_, words = words_.device_data()] {
    const detail::FilterSeed seed = seed_of(shape);
    detail::with_words<HostAccess>(shape, words, [&](const auto& filter) {
      for (std::size_t r = 0; r < lengths.size(); ++r) {
        const std::uint32_t begin = first.device_data()[r];
        const std::uint32_t blocks = first.device_data()[r + 1] - begin;
        lengths.device_data()[r] = detail::longest_prefix(blocks, [&](std::uint32_t block) {
          const Place place = filter.place(detail::hash_of(seed, hashes.device_data()[begin + block]));
          return filter.contains(place, filter.home_of(place));
        });
      }
    });
    return Status{};
  });
}

}  // namespace dunnock::kernels
