// Part of CheckpointStore: creating and opening.
#pragma once

#include "dunnock/base/printable.hpp"

namespace dunnock {

template <Media M>
CheckpointStore<M>::CheckpointStore(Region catalog, KvStore<M> data, const CatalogHeader& header, M media)
    : media_(std::move(media)),
      chunk_bytes_(header.chunk_bytes),
      catalog_(std::move(catalog), header, media_),
      data_(std::move(data)) {}

/// Checks a header before create() writes it and after attach() reads it. Empty: nothing is wrong.
template <Media M>
std::string CheckpointStore<M>::wrong_with(const CatalogHeader& header, std::uint64_t segment_bytes) {
  if (header.chunk_bytes < 64 || header.chunk_bytes > segment_bytes / 2)
    return "a chunk needs 64 bytes to half a segment of " + std::to_string(segment_bytes) + " bytes, not " +
           std::to_string(header.chunk_bytes);
  if (header.lines == 0 || header.lines > 1U << 20)
    return "a store needs room for 1 to 2^20 checkpoints, not " + std::to_string(header.lines);
  if (header.zero != decltype(header.zero){}) return "its unused fields are not zero";
  return {};
}

template <Media M>
Status CheckpointStore<M>::check_options(const CheckpointOptions& options) {
  if (std::string wrong = wrong_with(header_for(options, {}), options.segment_bytes); !wrong.empty())
    return make_error(ErrorCode::kInvalidArgument, std::move(wrong));
  return KvStore<M>::check_options(store_options(options));
}

template <Media M>
CatalogHeader CheckpointStore<M>::header_for(const CheckpointOptions& options, std::string_view name) {
  CatalogHeader header{};
  header.magic = kCatalogMagic;
  header.format_version = kCatalogFormatVersion;
  header.chunk_bytes = options.chunk_bytes;
  header.lines = options.checkpoints_max;
  header.id = catalog_name_hash(name);
  header.checksum = checksum_of(header);
  return header;
}

template <Media M>
std::uint64_t CheckpointStore<M>::catalog_bytes(const CheckpointOptions& options) noexcept {
  return detail::Catalog<M>::bytes_for(options.checkpoints_max);
}

template <Media M>
StoreOptions CheckpointStore<M>::store_options(const CheckpointOptions& options) noexcept {
  StoreOptions store;
  store.log = {.capacity_bytes = options.capacity_bytes, .segment_bytes = options.segment_bytes};
  // Small tensors make small chunks: room for four times as many entries as there are whole chunks, and it may grow.
  store.index.entries = options.capacity_bytes / options.chunk_bytes;
  store.index.segment_groups = options.index_segment_groups;
  store.index.bytes_max = std::max<std::uint64_t>(16ULL << 20, store.index.entries * 4 * 2 * kLineBytes);
  return store;
}

template <Media M>
std::uint64_t CheckpointStore<M>::pool_bytes(const CheckpointOptions& options) noexcept {
  const StoreOptions store = store_options(options);
  const std::array regions{catalog_bytes(options), store.log.capacity_bytes, ValueLog<M>::meta_bytes(store.log),
                           KvIndex<M>::meta_bytes(store.index), store.index.bytes_max};
  return Pool::bytes_for(regions);
}

template <Media M>
auto CheckpointStore<M>::format(Region catalog, KvStore<M> data, const CheckpointOptions& options, M media,
                                std::string_view name) -> Result<CheckpointStore> {
  DUNNOCK_TRY(check_options(options));
  if (catalog.bytes() < catalog_bytes(options))
    return make_error(ErrorCode::kInvalidArgument, "the catalog's region is too small for its options");
  const CatalogHeader header = header_for(options, name);
  detail::Catalog<M>::format(media, catalog, header);
  return CheckpointStore(std::move(catalog), std::move(data), header, std::move(media));
}

template <Media M>
auto CheckpointStore<M>::attach(Region catalog, KvStore<M> data, M media) -> Result<CheckpointStore> {
  CatalogHeader header;
  DUNNOCK_TRY(read_header(detail::Catalog<M>::kKind, catalog, kCatalogLinesOffset, header));
  const std::uint64_t segment_bytes = data.log().value_bytes_max() + ValueLog<M>::kOverheadBytes;
  if (std::string what = wrong_with(header, segment_bytes); !what.empty())
    return detail::Catalog<M>::kKind.refuse(ErrorCode::kCorrupt, what);
  if ((catalog.bytes() - kCatalogLinesOffset) / kLineBytes < header.lines)
    return detail::Catalog<M>::kKind.refuse(ErrorCode::kCorrupt, "its region is too small for its lines");
  return CheckpointStore(std::move(catalog), std::move(data), header, std::move(media));
}

/// The regions that a crash has left of a creation in a pool of an older format: a catalog without a magic word, which
/// was made first there, and a KvStore in any state but used. Errors: AlreadyExists: other data exists.
template <Media M>
Result<std::vector<std::string>> CheckpointStore<M>::left_over(Pool& pool, std::string_view name) {
  const std::string catalog_name = std::string(name) + ".catalog";
  const std::string data_name = std::string(name) + ".data";
  const auto catalog = pool.open_region(catalog_name);
  // A KvStore without a catalog belongs to someone else. Its own creation handles what is left of one.
  if (!catalog) return std::vector<std::string>();
  if (!detail::Catalog<M>::is_unformatted(*catalog, catalog_name_hash(name)))
    return make_error(ErrorCode::kAlreadyExists,
                      "checkpoint store " + in_quotes(name) + " already exists in " + pool.path());
  auto left = KvStore<M>::left_over(pool, data_name, true);
  if (left) left->push_back(catalog_name);
  return left;
}

template <Media M>
auto CheckpointStore<M>::create_in(PendingRegions& pending, std::string_view name, const CheckpointOptions& options,
                                   M media) -> Result<CheckpointStore> {
  DUNNOCK_TRY(check_options(options));
  Pool& pool = pending.pool();
  DUNNOCK_TRY(const auto left, left_over(pool, name));
  DUNNOCK_TRY(pool.remove_regions(left));
  const std::string catalog_name = std::string(name) + ".catalog";
  DUNNOCK_TRY(auto regions, pending.create(std::array{RegionSpec{catalog_name, catalog_bytes(options)}}));
  DUNNOCK_TRY(auto data, KvStore<M>::create_in(pending, std::string(name) + ".data", store_options(options), media));
  return format(regions.front(), std::move(data), options, std::move(media), name);
}

template <Media M>
auto CheckpointStore<M>::create(Pool& pool, std::string_view name, const CheckpointOptions& options, M media)
    -> Result<CheckpointStore> {
  return detail::create_structure(
      pool, [&](PendingRegions& pending) { return create_in(pending, name, options, std::move(media)); });
}

/// `options`, if not null: what the store must have been created with.
template <Media M>
auto CheckpointStore<M>::open_as(Pool& pool, std::string_view name, const CheckpointOptions* options, M media)
    -> Result<CheckpointStore> {
  DUNNOCK_TRY(auto catalog, pool.open_region(std::string(name) + ".catalog"));
  const std::string about = detail::about("checkpoint store", name, pool);
  if (word_of(catalog, 0) == 0 && left_over(pool, name)) return detail::never_finished(about);
  StoreOptions parts;
  typename KvStore<M>::Agreement agreement;
  if (options != nullptr) {
    CatalogHeader header;
    if (read_header(detail::Catalog<M>::kKind, catalog, kCatalogLinesOffset, header))
      DUNNOCK_TRY(detail::check_agreed(
          about, std::array{detail::Agreed{"chunk_bytes", header.chunk_bytes, options->chunk_bytes},
                            detail::Agreed{"checkpoints_max", header.lines, options->checkpoints_max}}));
    parts = store_options(*options);
    agreement = {.index = &parts.index, .log = &parts.log};
  }
  DUNNOCK_TRY(auto data, KvStore<M>::open_as(pool, std::string(name) + ".data", agreement, media));
  return attach(catalog, std::move(data.store), std::move(media));
}

template <Media M>
auto CheckpointStore<M>::open(Pool& pool, std::string_view name, M media) -> Result<CheckpointStore> {
  return open_as(pool, name, nullptr, std::move(media));
}

template <Media M>
auto CheckpointStore<M>::open_or_create(Pool& pool, std::string_view name, const CheckpointOptions& options, M media)
    -> Result<CheckpointStore> {
  DUNNOCK_TRY(check_options(options));
  return detail::open_or_create_structure(
      pool, [&] { return open_as(pool, name, &options, media); },
      [&](PendingRegions& pending) { return create_in(pending, name, options, media); });
}

template <Media M>
auto CheckpointStore<M>::open_or_create(const std::string& path, std::string_view name,
                                        const CheckpointOptions& options) -> Result<InPool<CheckpointStore>>
requires PoolMedia<M> {
  DUNNOCK_TRY(check_options(options));
  return detail::open_or_create_in_file(path, pool_bytes(options), [&](Pool& pool) {
    return open_or_create(pool, name, options, detail::media_of<M>(pool));
  });
}

}  // namespace dunnock
