// Structures in a pool, by name: created completely or not at all, opened, or whichever of the two is called for.
//
// What it is for: the part of a durable structure's life that does not depend on the structure. It says how many
// regions it needs and formats them; this decides when it exists. What it is not for: what is in the regions
// (header.hpp has the first bytes of it).
//
//   create           PendingRegions, create_in(pending), finish           an error or a crash leaves nothing
//   open             regions by their names, the header                   NotFound, or what the header says
//   open_or_create   open within the turn of a creation; create if NotFound
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/pmem/media.hpp"
#include "dunnock/pmem/pool.hpp"
#include "dunnock/pmem/region.hpp"

namespace dunnock {

/// A media that needs nothing but an open pool.
template <class M>
concept PoolMedia = Media<M> && !kIsReadOnly<M> && (std::same_as<M, FileMedia> || std::default_initializable<M>);

namespace detail {
/// The structure in what its open_or_create returns: itself, or a struct with a report.
template <class Opened>
[[nodiscard]] auto& structure_in(Opened& opened) noexcept {
  if constexpr (requires { opened.structure(); }) {
    return opened.structure();
  } else {
    return opened;
  }
}
}  // namespace detail

/// A structure and the pool that it is in, opened together by a structure's open_or_create(path, ...).
///
/// `Opened`: the structure, or a struct with it, a report and `created`.
/// Threads: as the structure. close() and the destructor need exclusive use.
template <class Opened>
class InPool {
 public:
  InPool(std::unique_ptr<Pool> pool, Opened opened) : pool_(std::move(pool)), opened_(std::move(opened)) {}
  InPool(InPool&&) noexcept = default;
  InPool& operator=(InPool&&) = delete;  // The old structure would outlive its pool.

  /// The structure.
  [[nodiscard]] auto& operator*() noexcept { return detail::structure_in(opened_); }
  [[nodiscard]] auto* operator->() noexcept { return &detail::structure_in(opened_); }
  /// What opening found: as the structure's open_or_create(pool, ...) returns it.
  [[nodiscard]] const Opened& opened() const noexcept { return opened_; }
  [[nodiscard]] Pool& pool() noexcept { return *pool_; }

  /// Closes the structure, where it has a close(), and the pool. Neither must be used afterwards.
  /// Errors: those of Pool::close.
  [[nodiscard]] Status close() {
    if constexpr (requires { (**this).close(); }) (**this).close();
    return pool_->close();
  }

 private:
  std::unique_ptr<Pool> pool_;  // Structures point to it. It is declared first, so it is destroyed last.
  Opened opened_;
};

namespace detail {

/// "index 'name' in pool.path()": for messages.
[[nodiscard]] std::string about(std::string_view kind, std::string_view name, const Pool& pool);

/// A parameter of a structure: what it was created with, and what its user asks for.
struct Agreed {
  std::string_view what;
  std::uint64_t has;
  std::uint64_t asked;
};
/// Errors: WrongLayout: the first parameter that differs. `about`: see there.
[[nodiscard]] Status check_agreed(const std::string& about, std::span<const Agreed> all);

/// Of these regions, those that exist. Creations in pools of format version 2 and before named the regions first, so a
/// crash left them without a structure. `holds_nothing(name, region)`: is there no data in it?
/// Errors: AlreadyExists: there is data in one of them.
[[nodiscard]] Result<std::vector<std::string>> left_over_regions(
    const Pool& pool, std::span<const std::string> names,
    const std::function<bool(const std::string& name, const Region& region)>& holds_nothing);

/// NotFound: what left_over_regions has found is all that there is of the structure.
[[nodiscard]] tl::unexpected<Error> never_finished(const std::string& about);

/// Creates a structure. create_in(pending) makes its regions and formats them.
template <class CreateIn>
auto create_structure(Pool& pool, CreateIn&& create_in) -> std::invoke_result_t<CreateIn, PendingRegions&> {
  PendingRegions pending(pool);
  auto made = create_in(pending);
  if (!made) return made;
  DUNNOCK_TRY(pending.finish(made->status()));
  return made;
}

/// Opens a structure, or creates it if open() answers NotFound. Others that create something in this pool wait
/// meanwhile, so of threads that do this at once, one creates the structure.
template <class Open, class CreateIn>
auto open_or_create_structure(Pool& pool, Open&& open, CreateIn&& create_in) -> std::invoke_result_t<Open> {
  using Opened = typename std::invoke_result_t<Open>::value_type;
  using Structure = typename std::invoke_result_t<CreateIn, PendingRegions&>::value_type;
  PendingRegions pending(pool);
  auto opened = open();
  if (opened || opened.error().code != ErrorCode::kNotFound) return opened;
  DUNNOCK_TRY(Structure made, create_in(pending));
  DUNNOCK_TRY(pending.finish(made.status()));
  if constexpr (std::is_same_v<Opened, Structure>) {
    return made;
  } else {
    return Opened{std::move(made), {.clean_shutdown = true}, true};
  }
}

template <PoolMedia M>
[[nodiscard]] M media_of(const Pool& pool) noexcept {
  if constexpr (std::same_as<M, FileMedia>) {
    return pool.file_media();
  } else {
    return M{};
  }
}

/// Opens a structure in the pool in `path`, and makes both if there is no such file: then the file gets its name when
/// the structure is in it. open_or_create_in(pool): of the structure, in a pool that is open.
template <class OpenOrCreateIn>
auto open_or_create_in_file(const std::string& path, std::uint64_t pool_bytes, OpenOrCreateIn&& open_or_create_in)
    -> Result<InPool<typename std::invoke_result_t<OpenOrCreateIn, Pool&>::value_type>> {
  using Opened = typename std::invoke_result_t<OpenOrCreateIn, Pool&>::value_type;
  bool created = false;
  const auto make = [&](Pool& unnamed) -> Status {
    DUNNOCK_TRY(auto made, open_or_create_in(unnamed));
    if constexpr (requires { structure_in(made).close(); }) structure_in(made).close();  // It is opened again below.
    created = true;
    return {};
  };
  DUNNOCK_TRY(auto named, Pool::open_or_create_with(path, {.bytes = pool_bytes}, make));
  auto pool = std::make_unique<Pool>(std::move(named));
  DUNNOCK_TRY(auto opened, open_or_create_in(*pool));
  if constexpr (requires { opened.created; }) opened.created = opened.created || created;
  return InPool<Opened>(std::move(pool), std::move(opened));
}

}  // namespace detail
}  // namespace dunnock
