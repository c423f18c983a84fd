// CuckooFilter of any width and on any media with one face, so that the histories are compiled once for all of them.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <tuple>
#include <utility>

#include "dunnock/filter/cuckoo_filter.hpp"
#include "dunnock/pmem/sim_media.hpp"
#include "image_media.hpp"

namespace dunnock::crash {

class AnyFilter {
 public:
  virtual ~AnyFilter() = default;
  virtual bool insert(std::uint64_t key) = 0;
  virtual bool erase(std::uint64_t key) = 0;
  [[nodiscard]] virtual bool contains(std::uint64_t key) const = 0;
  virtual void insert_bulk(std::span<const std::uint64_t> keys, std::uint8_t* inserted) = 0;
  virtual void erase_bulk(std::span<const std::uint64_t> keys, std::uint8_t* erased) = 0;
  virtual void contains_bulk(std::span<const std::uint64_t> keys, std::uint8_t* found) const = 0;
  virtual void clear() = 0;
  virtual void close() = 0;
  [[nodiscard]] virtual CheckReport check() const = 0;
};

struct OpenedFilter {
  std::unique_ptr<AnyFilter> filter;
  bool clean_shutdown;
};

/// Keys of one class can't be told apart: they share a fingerprint and its two groups.
using FilterClass = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t>;

/// A width, a size of groups and a media, and the filters of that kind.
class FilterKind {
 public:
  virtual ~FilterKind() = default;
  [[nodiscard]] virtual unsigned group_slots() const = 0;
  [[nodiscard]] virtual std::uint64_t home_group(std::uint64_t hash, std::uint64_t groups) const = 0;
  [[nodiscard]] virtual FilterClass class_of(std::uint64_t hash, std::uint64_t groups) const = 0;
  [[nodiscard]] virtual std::uint64_t bytes(std::uint64_t slots) const = 0;

  // On memory of that many bytes; `recording` is the SimMemory that it is part of. None: an image, or what is there
  // before the record.
  [[nodiscard]] virtual Result<std::unique_ptr<AnyFilter>> format(std::byte* memory, const FilterOptions& options,
                                                                  SimMemory* recording) const = 0;
  [[nodiscard]] virtual Result<OpenedFilter> attach(std::byte* memory, std::uint64_t slots,
                                                    SimMemory* recording) const = 0;
};

template <class F>
class FilterOf final : public AnyFilter {
 public:
  explicit FilterOf(F filter) : filter_(std::move(filter)) {}
  bool insert(std::uint64_t key) override { return filter_.insert(key); }
  bool erase(std::uint64_t key) override { return filter_.erase(key); }
  [[nodiscard]] bool contains(std::uint64_t key) const override { return filter_.contains(key); }
  void insert_bulk(std::span<const std::uint64_t> keys, std::uint8_t* inserted) override {
    filter_.insert_bulk(keys, inserted);
  }
  void erase_bulk(std::span<const std::uint64_t> keys, std::uint8_t* erased) override {
    filter_.erase_bulk(keys, erased);
  }
  void contains_bulk(std::span<const std::uint64_t> keys, std::uint8_t* found) const override {
    filter_.contains_bulk(keys, found);
  }
  void clear() override { filter_.clear(); }
  void close() override { filter_.close(); }
  [[nodiscard]] CheckReport check() const override { return filter_.check(); }

 private:
  F filter_;
};

template <unsigned kBits, class Sim, unsigned kGroupWords = 8>
class FilterKindOf final : public FilterKind {
 public:
  using Recorded = CuckooFilter<kBits, Sim, FilterPolicy{.group_words = kGroupWords}>;
  using Checked = CuckooFilter<kBits, ImageMedia, FilterPolicy{.multi_writer = false, .group_words = kGroupWords}>;

  [[nodiscard]] unsigned group_slots() const override { return Checked::kLanes * kGroupWords; }
  [[nodiscard]] std::uint64_t home_group(std::uint64_t hash, std::uint64_t groups) const override {
    return Layout<kBits>::place(hash, groups * kGroupWords).bucket / kGroupWords;
  }
  [[nodiscard]] FilterClass class_of(std::uint64_t hash, std::uint64_t groups) const override {
    const Place place = Layout<kBits>::place(hash, groups * kGroupWords);
    const std::uint64_t group = place.bucket / kGroupWords;
    const std::uint64_t other = Layout<kBits>::other_group(group, place.fingerprint, groups);
    return {place.fingerprint, std::min(group, other), std::max(group, other)};
  }
  [[nodiscard]] std::uint64_t bytes(std::uint64_t slots) const override {
    return Checked::meta_bytes() + Checked::table_bytes(slots);
  }
  [[nodiscard]] Result<std::unique_ptr<AnyFilter>> format(std::byte* memory, const FilterOptions& options,
                                                          SimMemory* recording) const override {
    if (recording == nullptr) return format_on<Checked>(memory, options, ImageMedia{});
    return format_on<Recorded>(memory, options, Sim(*recording));
  }
  [[nodiscard]] Result<OpenedFilter> attach(std::byte* memory, std::uint64_t slots,
                                            SimMemory* recording) const override {
    if (recording == nullptr) return attach_on<Checked>(memory, slots, ImageMedia{});
    return attach_on<Recorded>(memory, slots, Sim(*recording));
  }

 private:
  static Region meta(std::byte* memory) { return Region({memory}, Checked::meta_bytes(), Checked::meta_bytes()); }
  static Region table(std::byte* memory, std::uint64_t slots) {
    const std::uint64_t length = Checked::table_bytes(slots);
    return Region({memory + Checked::meta_bytes()}, length, std::bit_ceil(length));
  }
  template <class F, class M>
  static Result<std::unique_ptr<AnyFilter>> format_on(std::byte* memory, const FilterOptions& options, M media) {
    DUNNOCK_TRY(auto filter, F::format(meta(memory), table(memory, options.slots), options, media));
    return std::make_unique<FilterOf<F>>(std::move(filter));
  }
  template <class F, class M>
  static Result<OpenedFilter> attach_on(std::byte* memory, std::uint64_t slots, M media) {
    DUNNOCK_TRY(auto opened, F::attach(meta(memory), table(memory, slots), media));
    return OpenedFilter{std::make_unique<FilterOf<F>>(std::move(opened.filter)), opened.report.clean_shutdown};
  }
};

}  // namespace dunnock::crash
