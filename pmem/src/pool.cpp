#include "dunnock/pmem/pool.hpp"

#include <fcntl.h>
#include <libpmemobj.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <mutex>

#include "journal.hpp"
#include "pool_format.hpp"

namespace dunnock {
namespace {

using detail::CatalogEntry;
using detail::PoolRoot;

std::uint64_t checksum_of(const CatalogEntry& entry) noexcept {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&entry);
  return XXH3_64bits(bytes + offsetof(CatalogEntry, name),
                     offsetof(CatalogEntry, checksum) - offsetof(CatalogEntry, name));
}

std::uint64_t checksum_of(const PoolRoot& root) noexcept {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&root);
  return XXH3_64bits(bytes + offsetof(PoolRoot, format_version),
                     offsetof(PoolRoot, checksum) - offsetof(PoolRoot, format_version));
}

ErrorCode code_of(int error) noexcept {
  switch (error) {
    case ENOENT:
    case ENOTDIR: return ErrorCode::kNotFound;
    case EEXIST: return ErrorCode::kAlreadyExists;
    case EWOULDBLOCK: return ErrorCode::kAlreadyOpen;
    case EACCES:
    case EPERM:
    case EROFS: return ErrorCode::kReadOnly;
    case ENOSPC:
    case EFBIG:
    case EDQUOT:
    case ENOMEM: return ErrorCode::kNoSpace;
    default: return ErrorCode::kIo;
  }
}

tl::unexpected<Error> system_error(const std::string& what, int error) {
  return make_error(code_of(error), what + ": " + std::strerror(error));
}

/// XXH3 of the first `length` bytes of a file. False: it can't be read.
bool hash_file(int fd, std::uint64_t length, std::uint64_t& hash) {
  XXH3_state_t* state = XXH3_createState();
  XXH3_64bits_reset(state);
  std::vector<char> buffer(1 << 20);
  std::uint64_t at = 0;
  while (at < length) {
    const ssize_t got =
        pread(fd, buffer.data(), std::min<std::uint64_t>(buffer.size(), length - at), static_cast<off_t>(at));
    if (got <= 0) break;
    XXH3_64bits_update(state, buffer.data(), static_cast<std::size_t>(got));
    at += static_cast<std::uint64_t>(got);
  }
  hash = XXH3_64bits_digest(state);
  XXH3_freeState(state);
  return at == length;
}

/// Reads the root's head without libpmemobj. False: it is not where it should be.
bool read_root_head(int fd, std::uint64_t& root_offset, PoolRoot& root) {
  const auto head = static_cast<ssize_t>(offsetof(PoolRoot, catalog));
  return pread(fd, &root_offset, sizeof root_offset, detail::kRootOffsetAt) ==
             static_cast<ssize_t>(sizeof root_offset) &&
         root_offset < (1ULL << 62) &&
         pread(fd, &root, static_cast<std::size_t>(head), static_cast<off_t>(root_offset)) == head &&
         root.magic == detail::kPoolMagic && root.checksum == checksum_of(root);
}

/// Seals a pool that has just been closed. What fails here only leaves the pool without a seal.
void seal(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  std::uint64_t root_offset = 0;
  auto root = std::make_unique<PoolRoot>();
  if (flock(fd, LOCK_EX | LOCK_NB) == 0 && read_root_head(fd, root_offset, *root) &&
      hash_file(fd, root_offset, root->seal)) {
    root->sealed = 1;
    static_assert(offsetof(PoolRoot, seal) == offsetof(PoolRoot, sealed) + sizeof root->sealed);
    // A torn write leaves a seal that does not fit; the two words share a sector.
    const char* words = reinterpret_cast<const char*>(root.get()) + offsetof(PoolRoot, sealed);
    if (pwrite(fd, words, 2 * sizeof root->sealed, static_cast<off_t>(root_offset + offsetof(PoolRoot, sealed))) > 0)
      fdatasync(fd);
  }
  ::close(fd);
}

std::string journal_path(const std::string& pool) { return pool + ".journal"; }

/// A file in memory for as long as this lives.
class Mapped {
 public:
  Mapped(int fd, std::uint64_t bytes, int protection)
      : bytes_(bytes), address_(bytes == 0 ? MAP_FAILED : mmap(nullptr, bytes, protection, MAP_SHARED, fd, 0)) {}
  ~Mapped() {
    if (*this) munmap(address_, bytes_);
  }
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;
  explicit operator bool() const noexcept { return address_ != MAP_FAILED; }
  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {static_cast<std::byte*>(address_), bytes_}; }

 private:
  std::uint64_t bytes_;
  void* address_;
};

/// Brings what a crash has left in the journal `id` into the pool's file, durably, and forgets the journal. A crash in
/// the middle leaves the journal, to be replayed again.
Status replay(int fd, const std::string& path, std::uint64_t root_offset, std::uint64_t id) {
  const std::string from = journal_path(path);
  const int journal = ::open(from.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat pool_info {};
  struct stat journal_info {};
  if (journal < 0 || fstat(journal, &journal_info) != 0 || fstat(fd, &pool_info) != 0) {
    const int error = errno;
    if (journal >= 0) ::close(journal);
    if (error != ENOENT) return system_error("can't read " + from, error);
    return make_error(ErrorCode::kCorrupt,
                      path + " was not closed, and its journal " + from + " is missing: what was fenced last is there");
  }
  const auto pool_bytes = static_cast<std::uint64_t>(pool_info.st_size);
  Status replayed;
  {
    const Mapped source(journal, static_cast<std::uint64_t>(journal_info.st_size), PROT_READ);
    const Mapped target(fd, pool_bytes, PROT_READ | PROT_WRITE);
    ::close(journal);
    if (!source && journal_info.st_size != 0) return system_error("can't map " + from, errno);
    if (!target) return system_error("can't map " + path, errno);
    replayed = detail::replay_journal(source ? source.bytes() : std::span<std::byte>(), id, pool_bytes,
                                      [&target](std::uint64_t offset, const std::uint64_t* words) {
                                        std::memcpy(target.bytes().data() + offset, words, kLineBytes);
                                      });
  }
  if (!replayed)
    return make_error(replayed.error().code, "the journal " + from + " can't be replayed: " + replayed.error().message);
  const std::uint64_t none = 0;
  const auto at = static_cast<off_t>(root_offset + offsetof(PoolRoot, journal));
  if (fdatasync(fd) != 0 || pwrite(fd, &none, sizeof none, at) != static_cast<ssize_t>(sizeof none) ||
      fdatasync(fd) != 0)
    return system_error("can't write to " + path, errno);
  unlink(from.c_str());
  return {};
}

/// Refuses what libpmemobj should not even map, and completes the file after a crash.
Status check_file(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return system_error("can't open " + path, errno);
  if (!S_ISREG(info.st_mode) && !S_ISCHR(info.st_mode)) {
    return make_error(ErrorCode::kNotADunnockPool, path + " is not a file");
  }
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return system_error("can't open " + path + " for writing", errno);
  char signature[8] = {};
  const ssize_t got = pread(fd, signature, sizeof signature, 0);
  std::uint64_t root_offset = 0;
  std::uint64_t seal_now = 0;
  auto root = std::make_unique<PoolRoot>();
  const bool free = flock(fd, LOCK_EX | LOCK_NB) == 0;
  const bool has_root = free && read_root_head(fd, root_offset, *root);
  const bool broken_seal = has_root && root->sealed != 0 &&
                           (root->sealed != 1 || !hash_file(fd, root_offset, seal_now) || seal_now != root->seal);
  if (has_root && root->format_version == detail::kPoolFormatVersion && root->sealed == 0 && root->journal != 0) {
    if (Status replayed = replay(fd, path, root_offset, root->journal); !replayed) {
      ::close(fd);
      return replayed;
    }
  }
  if (has_root && !broken_seal && root->sealed == 1) {
    // Broken durably before libpmemobj changes anything: a crash right after that must not look like damage.
    const std::uint64_t open_now = 0;
    const auto at = static_cast<off_t>(root_offset + offsetof(PoolRoot, sealed));
    if (pwrite(fd, &open_now, sizeof open_now, at) != static_cast<ssize_t>(sizeof open_now) || fdatasync(fd) != 0) {
      const int error = errno;
      ::close(fd);
      return system_error("can't write to " + path, error);
    }
  }
  ::close(fd);
  if (!free)
    return make_error(ErrorCode::kAlreadyOpen, "the pool " + path + " is open already, here or in another process");
  if (got != static_cast<ssize_t>(sizeof signature) || std::memcmp(signature, "PMEMOBJ", 8) != 0) {
    return make_error(ErrorCode::kNotADunnockPool, path + " does not start like a libpmemobj pool");
  }
  if (S_ISREG(info.st_mode) && static_cast<std::uint64_t>(info.st_size) < PMEMOBJ_MIN_POOL) {
    return make_error(ErrorCode::kNotADunnockPool, path + " is shorter than any pool: it was truncated");
  }
  if (broken_seal) {
    return make_error(ErrorCode::kCorrupt,
                      path + " was closed cleanly but is not as it was closed: its head is damaged");
  }
  return {};
}

/// Removes what a crash has left of a pool in the making. Error: AlreadyOpen (somebody is making it), Io.
Status remove_unfinished(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) {
    if (errno == ENOENT) return {};
    return system_error("can't remove " + path, errno);
  }
  // libpmemobj holds this lock while it has the pool open.
  const bool free = flock(fd, LOCK_EX | LOCK_NB) == 0;
  const bool gone = free && unlink(path.c_str()) == 0;
  const int error = errno;
  ::close(fd);
  if (!free) return make_error(ErrorCode::kAlreadyOpen, "another process is creating " + path);
  return gone ? Status{} : Status(system_error("can't remove " + path, error));
}

/// Renames `from` to `to` unless there is something: then it fails with EEXIST.
int rename_new(const std::string& from, const std::string& to) {
  if (renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return -1;
  // This file system can't; it can make a second name, which is as good.
  if (link(from.c_str(), to.c_str()) != 0) return -1;
  return unlink(from.c_str());
}

int sync_directory_of(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  const int fd = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return -1;
  const int status = fsync(fd);
  const int error = errno;
  ::close(fd);
  errno = error;
  return status != 0 && error == EINVAL ? 0 : status;  // EINVAL: a file system that has nothing to sync.
}

}  // namespace

struct Pool::Impl {
  std::string path;
  PMEMobjpool* handle = nullptr;
  PoolRoot* root = nullptr;
  std::uint64_t bytes = 0;
  std::unique_ptr<detail::FileSync> sync;
  std::mutex catalog_mutex;
  std::mutex creation_mutex;  // Held by PendingRegions while it lives; taken before the catalog's.

  ~Impl() {
    sync.reset();
    if (handle == nullptr) return;
    pmemobj_close(handle);
    if (root != nullptr) seal(path);  // Only what opened without an error.
  }

  void start_sync(std::uint64_t journal_bytes) {
    if (journal_bytes == kJournalBytesAuto) journal_bytes = std::clamp<std::uint64_t>(bytes / 8, 8 << 20, 64 << 20);
    sync = std::make_unique<detail::FileSync>(
        handle, bytes, detail::FileSync::Options{path, journal_bytes, [this](std::uint64_t id) {
                                                   root->journal = id;
                                                   pmemobj_persist(handle, &root->journal, sizeof root->journal);
                                                 }});
  }

  /// The region of that name. `pending`: also one of a creation that is under way.
  [[nodiscard]] CatalogEntry* find(std::string_view name, bool pending = false) const noexcept {
    for (CatalogEntry& entry : root->catalog) {
      const bool seen = entry.state == detail::kNamed || (pending && entry.state == detail::kPending);
      if (seen && name == entry.name.data()) return &entry;
    }
    return nullptr;
  }
  [[nodiscard]] std::vector<CatalogEntry*> pending() const {
    std::vector<CatalogEntry*> entries;
    for (CatalogEntry& entry : root->catalog) {
      if (entry.state == detail::kPending) entries.push_back(&entry);
    }
    return entries;
  }

  [[nodiscard]] std::byte* at(std::uint64_t offset) const noexcept {
    return reinterpret_cast<std::byte*>(handle) + offset;
  }

  [[nodiscard]] Region region_of(const CatalogEntry& entry) const {
    std::vector<std::byte*> extents;
    for (std::uint64_t i = 0; i < entry.extents; ++i) {
      auto address = reinterpret_cast<std::uintptr_t>(at(entry.offsets[i]));
      address = (address + detail::kRegionAlignment - 1) / detail::kRegionAlignment * detail::kRegionAlignment;
      extents.push_back(reinterpret_cast<std::byte*>(address));
    }
    return Region(std::move(extents), entry.bytes, entry.extent_bytes);
  }

  /// Is an entry in use what its checksum says, and does it lie in the file?
  [[nodiscard]] bool sound(const CatalogEntry& entry) const noexcept {
    if (entry.checksum != checksum_of(entry)) return false;
    if (entry.extent_bytes < detail::kRegionAlignment || (entry.extent_bytes & (entry.extent_bytes - 1)) != 0)
      return false;
    if (entry.bytes == 0 || entry.extents > detail::kExtentsMax) return false;
    if (entry.extents != (entry.bytes + entry.extent_bytes - 1) / entry.extent_bytes) return false;
    for (std::uint64_t i = 0; i < entry.extents; ++i) {
      const std::uint64_t length = std::min(entry.extent_bytes, entry.bytes - i * entry.extent_bytes);
      if (entry.offsets[i] >= bytes || bytes - entry.offsets[i] < length + detail::kRegionAlignment) return false;
    }
    return true;
  }

  // Under catalog_mutex:
  [[nodiscard]] Result<std::vector<CatalogEntry*>> choose_entries(std::span<const RegionSpec> specs) const;
  [[nodiscard]] Result<std::vector<Region>> allocate(std::span<const RegionSpec> specs, detail::CatalogState state);
  [[nodiscard]] Status free_regions(std::span<CatalogEntry* const> entries);
  void release_unfinished();
};

Pool::Pool(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
Pool::Pool(Pool&&) noexcept = default;
Pool& Pool::operator=(Pool&&) noexcept = default;
Pool::~Pool() = default;

Result<Pool> Pool::create(const std::string& path, const PoolOptions& options) {
  if (options.bytes < PMEMOBJ_MIN_POOL) {
    return make_error(ErrorCode::kInvalidArgument, "a pool has at least " + std::to_string(PMEMOBJ_MIN_POOL) +
                                                       " bytes, not " + std::to_string(options.bytes));
  }
  struct stat info {};
  if (lstat(path.c_str(), &info) == 0) return system_error("can't create a pool in " + path, EEXIST);
  const std::string unfinished = path + ".new";
  if (Status free = remove_unfinished(unfinished); !free) return tl::unexpected(free.error());

  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->bytes = options.bytes / 4096 * 4096;
  impl->handle = pmemobj_create(unfinished.c_str(), detail::kPoolLayout, impl->bytes, 0644);
  if (impl->handle == nullptr) return system_error("can't create a pool in " + path, errno);
  const auto give_up = [&unfinished](const std::string& what, int error) {
    unlink(unfinished.c_str());  // Still open and locked, so it is ours.
    return system_error(what, error);
  };
  const PMEMoid oid = pmemobj_root(impl->handle, sizeof(PoolRoot));
  if (OID_IS_NULL(oid)) return give_up("can't create the root of " + path, errno);
  auto* root = static_cast<PoolRoot*>(pmemobj_direct(oid));
  root->format_version = detail::kPoolFormatVersion;
  root->entries = detail::kCatalogEntries;
  root->file_bytes = impl->bytes;
  root->checksum = checksum_of(*root);
  pmemobj_persist(impl->handle, root, offsetof(PoolRoot, catalog));
  root->magic = detail::kPoolMagic;
  pmemobj_persist(impl->handle, &root->magic, sizeof root->magic);
  unlink(journal_path(path).c_str());  // Of a pool that was removed without it: this one is new.
  if (rename_new(unfinished, path) != 0) return give_up("can't create a pool in " + path, errno);
  if (sync_directory_of(path) != 0) {
    const int error = errno;
    unlink(path.c_str());
    return system_error("can't create a pool in " + path, error);
  }
  impl->root = root;  // The pool exists.
  impl->start_sync(options.journal_bytes);
  return Pool(std::move(impl));
}

Status Pool::remove(const std::string& path) {
  if (unlink(path.c_str()) != 0) return system_error("can't remove " + path, errno);
  unlink(journal_path(path).c_str());
  static_cast<void>(remove_unfinished(path + ".new"));
  return {};
}

Result<Pool> Pool::open(const std::string& path, std::uint64_t journal_bytes) {
  if (Status fine = check_file(path); !fine) return tl::unexpected(fine.error());
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->handle = pmemobj_open(path.c_str(), detail::kPoolLayout);
  if (impl->handle == nullptr) {
    const int error = errno;
    // EINVAL stands for another layout name, another major version and a damaged header alike; the message tells.
    if (error == EINVAL) {
      const std::string reason = pmemobj_errormsg();
      const bool layout = reason.find("layout") != std::string::npos;
      return make_error(layout ? ErrorCode::kWrongLayout : ErrorCode::kNotADunnockPool,
                        path + " can't be opened as a pool: " + reason);
    }
    return system_error("can't open the pool " + path, error);
  }
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return system_error("can't open " + path, errno);
  impl->bytes = static_cast<std::uint64_t>(info.st_size);
  if (pmemobj_root_size(impl->handle) != sizeof(PoolRoot)) {
    return make_error(ErrorCode::kNotADunnockPool, path + " is a libpmemobj pool, but its root is not ours");
  }
  const PMEMoid oid = pmemobj_root(impl->handle, sizeof(PoolRoot));
  if (OID_IS_NULL(oid) || oid.off > impl->bytes || impl->bytes - oid.off < sizeof(PoolRoot)) {
    return make_error(ErrorCode::kCorrupt, "the root of " + path + " is outside of the file");
  }
  auto* root = static_cast<PoolRoot*>(pmemobj_direct(oid));
  if (root->magic != detail::kPoolMagic) {
    return make_error(ErrorCode::kNotADunnockPool,
                      path + " was never finished or is not ours: the root's magic word is missing");
  }
  if (root->format_version != detail::kPoolFormatVersion) {
    return make_error(ErrorCode::kWrongVersion, path + " has pool format version " +
                                                    std::to_string(root->format_version) + ", expected " +
                                                    std::to_string(detail::kPoolFormatVersion));
  }
  if (root->checksum != checksum_of(*root) || root->entries != detail::kCatalogEntries) {
    return make_error(ErrorCode::kCorrupt, "the root of " + path + " fails its checksum");
  }
  if (root->file_bytes > impl->bytes) {
    return make_error(ErrorCode::kCorrupt, path + " was truncated from " + std::to_string(root->file_bytes) + " to " +
                                               std::to_string(impl->bytes) + " bytes");
  }
  for (const CatalogEntry& entry : root->catalog) {
    if (entry.state == detail::kFree) continue;
    if (entry.state > detail::kPending || !impl->sound(entry)) {
      return make_error(ErrorCode::kCorrupt, "the catalog of " + path + " fails its checksum");
    }
  }
  impl->root = root;
  impl->start_sync(journal_bytes);
  impl->release_unfinished();
  return Pool(std::move(impl));
}

// ----- the catalog ---------------------------------------------------------------------------------------------------

/// A free entry for each of the new regions.
Result<std::vector<CatalogEntry*>> Pool::Impl::choose_entries(std::span<const RegionSpec> specs) const {
  std::vector<CatalogEntry*> entries;
  for (const RegionSpec& spec : specs) {
    if (spec.name.empty() || spec.name.size() >= detail::kNameBytes || spec.name.find('\0') != std::string_view::npos) {
      return make_error(ErrorCode::kInvalidArgument,
                        "a region's name has 1 to 47 bytes: '" + std::string(spec.name) + "'");
    }
    if (spec.bytes == 0 || spec.extent_bytes < detail::kRegionAlignment ||
        (spec.extent_bytes & (spec.extent_bytes - 1)) != 0) {
      return make_error(ErrorCode::kInvalidArgument,
                        "region '" + std::string(spec.name) + "' needs bytes and extents of a power of two from 4096");
    }
    if ((spec.bytes + spec.extent_bytes - 1) / spec.extent_bytes > detail::kExtentsMax) {
      return make_error(ErrorCode::kInvalidArgument,
                        "region '" + std::string(spec.name) + "' needs more than 128 extents");
    }
    const auto same_name = [&spec](const RegionSpec& other) { return other.name == spec.name; };
    if (find(spec.name, true) != nullptr || std::count_if(specs.begin(), specs.end(), same_name) != 1) {
      return make_error(ErrorCode::kAlreadyExists, "there is a region '" + std::string(spec.name) + "' in " + path);
    }
    const auto free_entry = std::find_if(root->catalog.begin(), root->catalog.end(), [&](CatalogEntry& entry) {
      return entry.state == detail::kFree && std::find(entries.begin(), entries.end(), &entry) == entries.end();
    });
    if (free_entry == root->catalog.end())
      return make_error(ErrorCode::kNoSpace, "the catalog of " + path + " is full");
    entries.push_back(free_entry);
  }
  return entries;
}

/// All regions in this state, or none.
Result<std::vector<Region>> Pool::Impl::allocate(std::span<const RegionSpec> specs, detail::CatalogState state) {
  const auto chosen = choose_entries(specs);
  if (!chosen) return tl::unexpected(chosen.error());
  const std::vector<CatalogEntry*>& entries = *chosen;

  // Reserved memory exists only in this process until it is published together with the entries' states.
  std::vector<pobj_action> actions;
  const auto give_up = [&](std::string_view name, int error) {
    pmemobj_cancel(handle, actions.data(), actions.size());
    return make_error(error == ENOMEM ? ErrorCode::kNoSpace : code_of(error),
                      "no room for region '" + std::string(name) + "' in " + path);
  };
  for (std::size_t i = 0; i < specs.size(); ++i) {
    CatalogEntry fresh{};
    std::copy(specs[i].name.begin(), specs[i].name.end(), fresh.name.begin());
    fresh.bytes = specs[i].bytes;
    fresh.extent_bytes = specs[i].extent_bytes;
    for (std::uint64_t done = 0; done < fresh.bytes; done += fresh.extent_bytes) {
      const std::uint64_t length = std::min(fresh.extent_bytes, fresh.bytes - done);
      pobj_action action;
      const std::uint64_t reserved = std::max(length + detail::kRegionAlignment, detail::kReserveBytesMin);
      const PMEMoid oid = pmemobj_xreserve(handle, &action, reserved, 0, POBJ_XALLOC_ZERO);
      if (OID_IS_NULL(oid)) return give_up(specs[i].name, errno);
      actions.push_back(action);
      fresh.offsets[fresh.extents++] = oid.off;
    }
    fresh.checksum = checksum_of(fresh);
    std::memcpy(entries[i], &fresh, sizeof fresh);  // state stays kFree
    pmemobj_persist(handle, entries[i], sizeof fresh);
  }
  for (CatalogEntry* entry : entries) {
    pobj_action action;
    pmemobj_set_value(handle, &action, &entry->state, state);
    actions.push_back(action);
  }
  if (pmemobj_publish(handle, actions.data(), actions.size()) != 0) return give_up(specs.front().name, errno);

  std::vector<Region> regions;
  for (const CatalogEntry* entry : entries) regions.push_back(region_of(*entry));
  return regions;
}

/// All of them, or none.
Status Pool::Impl::free_regions(std::span<CatalogEntry* const> entries) {
  if (entries.empty()) return {};
  // What the journal has of them must not come back over what libpmemobj writes there.
  if (sync->has_journal()) sync->write_back_all();
  std::vector<pobj_action> actions;
  const std::uint64_t uuid = pmemobj_oid(root).pool_uuid_lo;
  for (CatalogEntry* entry : entries) {
    for (std::uint64_t i = 0; i < entry->extents; ++i)
      pmemobj_defer_free(handle, PMEMoid{uuid, entry->offsets[i]}, &actions.emplace_back());
    pmemobj_set_value(handle, &actions.emplace_back(), &entry->state, detail::kFree);
  }
  if (pmemobj_publish(handle, actions.data(), actions.size()) == 0) return {};
  const int error = errno;
  pmemobj_cancel(handle, actions.data(), actions.size());
  return system_error("can't free region '" + std::string(entries.front()->name.data()) + "' of " + path, error);
}

/// Frees the regions of creations that were not finished. Those that can't be freed now stay invisible, and the next
/// creation or opening tries again.
void Pool::Impl::release_unfinished() {
  const std::vector<CatalogEntry*> entries = pending();
  (void)free_regions(entries);
}

Result<std::vector<Region>> Pool::create_regions(std::span<const RegionSpec> specs) {
  const std::lock_guard guard(impl_->catalog_mutex);
  return impl_->allocate(specs, detail::kNamed);
}

Result<Region> Pool::open_region(std::string_view name) const {
  const std::lock_guard guard(impl_->catalog_mutex);
  const CatalogEntry* entry = impl_->find(name);
  if (entry == nullptr) {
    return make_error(ErrorCode::kNotFound, "no region '" + std::string(name) + "' in " + impl_->path);
  }
  if (!impl_->sound(*entry)) {
    return make_error(ErrorCode::kCorrupt, "region '" + std::string(name) + "' of " + impl_->path + " is damaged");
  }
  return impl_->region_of(*entry);
}

Status Pool::remove_region(std::string_view name) {
  const std::string one(name);
  return remove_regions({&one, 1});
}

Status Pool::remove_regions(std::span<const std::string> names) {
  const std::lock_guard guard(impl_->catalog_mutex);
  std::vector<CatalogEntry*> entries;
  for (const std::string& name : names) {
    CatalogEntry* entry = impl_->find(name);
    if (entry == nullptr) return make_error(ErrorCode::kNotFound, "no region '" + name + "' in " + impl_->path);
    if (std::find(entries.begin(), entries.end(), entry) == entries.end()) entries.push_back(entry);
  }
  return impl_->free_regions(entries);
}

std::vector<RegionInfo> Pool::regions() const {
  const std::lock_guard guard(impl_->catalog_mutex);
  std::vector<RegionInfo> all;
  for (const CatalogEntry& entry : impl_->root->catalog) {
    if (entry.state == detail::kNamed) all.push_back({entry.name.data(), entry.bytes});
  }
  return all;
}

PendingRegions::PendingRegions(Pool& pool) : pool_(&pool), turn_(pool.impl_->creation_mutex) {
  const std::lock_guard guard(pool.impl_->catalog_mutex);
  pool.impl_->release_unfinished();  // Of a creation that failed, and whose regions could not be freed then.
}

PendingRegions::~PendingRegions() {
  if (!turn_.owns_lock()) return;  // Finished.
  const std::lock_guard guard(pool_->impl_->catalog_mutex);
  pool_->impl_->release_unfinished();
}

Result<std::vector<Region>> PendingRegions::create(std::span<const RegionSpec> specs) {
  DUNNOCK_CHECK(turn_.owns_lock(), "regions are created before finish()");
  const std::lock_guard guard(pool_->impl_->catalog_mutex);
  return pool_->impl_->allocate(specs, detail::kPending);
}

Status PendingRegions::finish(const Status& formatted) {
  DUNNOCK_CHECK(turn_.owns_lock(), "a creation is finished once");
  if (!formatted) return formatted;
  Pool::Impl& impl = *pool_->impl_;
  {
    const std::lock_guard guard(impl.catalog_mutex);
    std::vector<pobj_action> actions;
    for (CatalogEntry* entry : impl.pending())
      pmemobj_set_value(impl.handle, &actions.emplace_back(), &entry->state, detail::kNamed);
    if (!actions.empty() && pmemobj_publish(impl.handle, actions.data(), actions.size()) != 0) {
      const int error = errno;
      pmemobj_cancel(impl.handle, actions.data(), actions.size());
      return system_error("can't give new regions of " + impl.path + " their names", error);
    }
  }
  turn_.unlock();
  return {};
}

const std::string& Pool::path() const noexcept { return impl_->path; }
std::uint64_t Pool::bytes() const noexcept { return impl_->bytes; }
FileMedia Pool::file_media() const noexcept { return FileMedia(*impl_->sync); }

std::uint64_t Pool::bytes_for(std::span<const std::uint64_t> region_bytes) noexcept {
  // libpmemobj: 4 MiB of lanes and headers and 256-KiB chunks; a zone of 16 GiB holds seven extents of 2 GiB.
  std::uint64_t total = 16ULL << 20;
  for (const std::uint64_t bytes : region_bytes) total += bytes + bytes / 6 + (1ULL << 20);
  return (total + (1ULL << 20) - 1) >> 20 << 20;
}

}  // namespace dunnock
