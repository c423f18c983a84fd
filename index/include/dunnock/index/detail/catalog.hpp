// The catalog of a checkpoint store in the pool: a header, and one line for each checkpoint.
//
// What it is for: reading lines, and the stores that make a checkpoint exist or vanish. What it is not for: manifests,
// chunks, and locks: callers hold the store's mutex of the catalog. The bytes are in checkpoint_format.hpp.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>

#include "dunnock/index/checkpoint_format.hpp"
#include "dunnock/index/checkpoint_points.hpp"
#include "dunnock/pmem/header.hpp"
#include "dunnock/pmem/media.hpp"
#include "dunnock/pmem/region.hpp"

namespace dunnock::detail {

/// Calls of `find` with this version look for the newest.
inline constexpr std::uint64_t kNewestVersion = ~0ULL;

template <Media M>
class Catalog {
 public:
  static constexpr HeaderKind kKind{"checkpoint store", kCatalogMagic, kCatalogFormatVersion};

  [[nodiscard]] static constexpr std::uint64_t bytes_for(std::uint64_t lines) noexcept {
    return kCatalogLinesOffset + lines * kLineBytes;
  }
  /// Writes an empty catalog durably to a zeroed region. The store exists from then on.
  static void format(const M& media, const Region& region, const CatalogHeader& header) noexcept {
    for (std::uint64_t line = 0; line < header.lines; ++line) {
      Word& state = line_at(region, line).state;
      media.store(checkpoint_point::kFormatLines, state, catalog_free({header.id, line}));
      media.flush(checkpoint_point::kFormatLines, &state);
    }
    write_header(media, {.fields = checkpoint_point::kFormatFields, .magic = checkpoint_point::kFormatMagic}, region,
                 header);
  }
  /// Does the region hold only free lines and part of a header? `id`: CatalogHeader::id.
  [[nodiscard]] static bool is_unformatted(const Region& region, std::uint64_t id) noexcept {
    if (region.bytes() < kCatalogLinesOffset || word_of(region, 0) != 0) return false;
    return is_blank(region, kCatalogLinesOffset, [id](std::uint64_t at) -> std::uint64_t {
      const std::uint64_t in_lines = at - kCatalogLinesOffset;
      return in_lines % kLineBytes == 0 ? catalog_free({id, in_lines / kLineBytes}) : 0;
    });
  }

  Catalog(Region region, const CatalogHeader& header, M media)
      : media_(std::move(media)), lines_(header.lines), id_(header.id), region_(std::move(region)) {}

  [[nodiscard]] std::uint64_t lines() const noexcept { return lines_; }
  [[nodiscard]] bool is_free(std::uint64_t line) const noexcept {
    return media_.load(line_at(region_, line).state) == catalog_free({id_, line});
  }
  /// The fields of a line. Empty: it is free or, with `*damaged` set, fails its checksum.
  [[nodiscard]] std::optional<CatalogFields> read(std::uint64_t line, bool* damaged = nullptr) const noexcept {
    const CatalogLine& at = line_at(region_, line);
    const std::uint64_t state = media_.load(at.state);
    if (state == catalog_free({id_, line})) return std::nullopt;
    const CatalogFields fields{media_.load(at.manifest_id),     media_.load(at.manifest_bytes),
                               media_.load(at.name_hash),       media_.load(at.version),
                               media_.load(at.created_seconds), media_.load(at.tensor_bytes)};
    if (state == catalog_mark(fields, {id_, line})) return fields;
    if (damaged != nullptr) *damaged = true;
    return std::nullopt;
  }
  /// The line of this version, or of the newest, among those that can be read.
  [[nodiscard]] std::optional<std::uint64_t> find(std::string_view name, std::uint64_t version) const {
    const std::uint64_t hash = catalog_name_hash(name);
    std::optional<std::uint64_t> best;
    std::uint64_t best_version = 0;
    for (std::uint64_t line = 0; line < lines_; ++line) {
      const auto fields = read(line);
      if (!fields || fields->name_hash != hash) continue;
      if (fields->version == version) return line;
      if (version != kNewestVersion || (best && fields->version < best_version)) continue;
      best = line;
      best_version = fields->version;
    }
    return best;
  }
  /// Number of lines that fail their checksum.
  [[nodiscard]] std::uint64_t count_damaged() const {
    std::uint64_t count = 0;
    for (std::uint64_t line = 0; line < lines_; ++line) {
      bool damaged = false;
      (void)read(line, &damaged);
      count += damaged ? 1 : 0;
    }
    return count;
  }

  /// Fills a free line, durably. What the checkpoint needs must be durable by now.
  void publish(std::uint64_t line, const CatalogFields& fields) {
    CatalogLine& at = line_at(region_, line);
    media_.store(checkpoint_point::kFields, at.manifest_id, fields.manifest_id);
    media_.store(checkpoint_point::kFields, at.manifest_bytes, fields.manifest_bytes);
    media_.store(checkpoint_point::kFields, at.name_hash, fields.name_hash);
    media_.store(checkpoint_point::kFields, at.version, fields.version);
    media_.store(checkpoint_point::kFields, at.created_seconds, fields.created_seconds);
    media_.store(checkpoint_point::kFields, at.tensor_bytes, fields.tensor_bytes);
    media_.store(checkpoint_point::kPublish, at.state, catalog_mark(fields, {id_, line}));
    media_.flush(checkpoint_point::kPublish, &at);
    media_.fence(checkpoint_point::kPublish);  // The checkpoint exists.
  }
  /// Frees a line, durably.
  void clear(std::uint64_t line) {
    CatalogLine& at = line_at(region_, line);
    media_.store(checkpoint_point::kRemove, at.state, catalog_free({id_, line}));
    media_.flush(checkpoint_point::kRemove, &at);
    media_.fence(checkpoint_point::kRemove);  // The checkpoint is gone.
  }

 private:
  [[nodiscard]] static CatalogLine& line_at(const Region& region, std::uint64_t line) noexcept {
    return *reinterpret_cast<CatalogLine*>(region.at(kCatalogLinesOffset + line * kLineBytes));
  }

  [[no_unique_address]] M media_;
  std::uint64_t lines_;
  std::uint64_t id_;
  Region region_;
};

}  // namespace dunnock::detail
