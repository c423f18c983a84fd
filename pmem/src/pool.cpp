#include "dunnock/pmem/pool.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <libpmemobj.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <unordered_map>

#include "dax.hpp"
#include "journal.hpp"
#include "line_copy.hpp"
#include "pool_file.hpp"
#include "pool_format.hpp"
#include "pool_guard.hpp"

namespace dunnock {
namespace {

using detail::CatalogEntry;
using detail::PoolRoot;

std::uint64_t checksum_of(const CatalogEntry& entry) noexcept {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&entry);
  return XXH3_64bits(bytes + offsetof(CatalogEntry, name),
                     offsetof(CatalogEntry, checksum) - offsetof(CatalogEntry, name));
}

/// `pool_bytes`: 0 if it is not known yet.
Status check_journal_bytes(std::uint64_t journal_bytes, std::uint64_t pool_bytes = 0) {
  if (journal_bytes != kJournalBytesAuto && pool_bytes != 0 && journal_bytes > pool_bytes / 2)
    return make_error(ErrorCode::kInvalidArgument, "a journal of " + std::to_string(journal_bytes) +
                                                       " bytes takes more than half of the pool, which has " +
                                                       std::to_string(pool_bytes));
  if (journal_bytes == 0 || journal_bytes >= detail::kJournalBytesMin) return {};
  return make_error(ErrorCode::kInvalidArgument, "a journal needs 0 bytes (no journal) or at least " +
                                                     std::to_string(detail::kJournalBytesMin) + ", not " +
                                                     std::to_string(journal_bytes));
}

std::uint64_t journal_bytes_for(std::uint64_t pool_bytes) noexcept {
  return std::clamp<std::uint64_t>(pool_bytes / 8, 8 << 20, 64 << 20);
}

/// Does libpmemobj take the mapping for persistent memory? It asks libpmem, which it has loaded; so do we.
bool is_taken_for_pmem(const void* base, std::uint64_t bytes) noexcept {
  using Ask = int (*)(const void*, std::size_t);
  const auto ask = reinterpret_cast<Ask>(dlsym(RTLD_DEFAULT, "pmem_is_pmem"));
  if (ask != nullptr) return ask(base, bytes) != 0;
  const char* const forced = std::getenv("PMEM_IS_PMEM_FORCE");
  return forced != nullptr && std::strcmp(forced, "1") == 0;
}

/// libpmemobj makes its own part durable in a way that the environment can turn off for the whole process. Then
/// nothing in an ordinary file could be promised.
Status check_libpmemobj(const detail::PoolFile& file, const void* base) {
  struct statfs info {};
  if (fstatfs(file.fd(), &info) == 0 && (info.f_type == TMPFS_MAGIC || info.f_type == RAMFS_MAGIC))
    return {};  // A file in memory survives no power failure anyway.
  if (!is_taken_for_pmem(base, file.bytes()) || detail::is_dax(file.fd())) return {};
  return make_error(ErrorCode::kUnsupported, file.path() +
                                                 " is a regular file, but PMDK treats it as persistent memory: unset "
                                                 "PMEM_IS_PMEM_FORCE, or nothing here survives a power failure");
}

/// A pool's file that is open for the time of a call: the child of a fork meanwhile does not keep it locked.
class GuardedFile {
 public:
  /// `open` returns a Result<PoolFile>.
  template <class Open>
  static Result<std::unique_ptr<GuardedFile>> of(const Open& open) {
    const auto forks_kept_out = detail::PoolGuard::keep_forks_out();
    DUNNOCK_TRY(auto file, open());
    return std::unique_ptr<GuardedFile>(new GuardedFile(std::move(file), forks_kept_out));
  }
  GuardedFile(const GuardedFile&) = delete;
  GuardedFile& operator=(const GuardedFile&) = delete;
  ~GuardedFile() {
    guard_.end(detail::PoolGuard::keep_forks_out(), [this] { file_.reset(); });
  }
  [[nodiscard]] detail::PoolFile& file() noexcept { return *file_; }

 private:
  GuardedFile(detail::PoolFile file, const detail::PoolGuard::Lock& forks_kept_out)
      : file_(std::move(file)), guard_({.file = file_->fd(), .catch_sigbus = false}, forks_kept_out) {}
  std::optional<detail::PoolFile> file_;
  detail::PoolGuard guard_;
};

}  // namespace

struct Pool::Impl {
  explicit Impl(detail::PoolFile opened) : path(opened.path()), bytes(opened.bytes()), file(std::move(opened)) {}

  std::string path;
  std::uint64_t bytes = 0;
  std::optional<detail::PoolFile> file;  // until the pool is closed
  detail::ForkMark fork;
  bool is_read_only = false;
  bool is_beside_writer = false;

  PMEMobjpool* handle = nullptr;  // null: opened for reading
  MappedFile mapped;              // for reading
  std::byte* base = nullptr;
  PoolRoot* root = nullptr;
  std::uint64_t root_offset = 0;
  std::uint64_t journal_bytes = 0;  // as wished for
  std::unique_ptr<detail::FileSync> sync;
  std::optional<detail::PoolGuard> guard;
  std::atomic<bool> lost_a_page{false};
  std::mutex catalog_mutex;
  std::mutex creation_mutex;  // Held by PendingRegions while it lives; taken before the catalog's.
  std::mutex allocating;      // Held by the fence that allocates the journal; taken after catalog_mutex.
  Status closed_with;         // what close() has answered

  ~Impl() { (void)close(); }

  Status close() {
    if (!file) return closed_with;
    const bool is_child = fork.is_child();
    if (sync && !is_read_only && !is_child) (void)has_its_size();
    if (sync) closed_with = sync->close();
    const auto finish = [&] {
      // libpmemobj keeps pointers of its own in the file's first pages; where pages are lost it is not called any more,
      // and what it holds stays with the process.
      if (handle != nullptr && !lost_a_page) pmemobj_close(handle);
      handle = nullptr;
      mapped = {};
      // Only what opened without an error is sealed, and nothing after an error: the next opening has work to do.
      if (closed_with && lost_a_page) closed_with = make_error(ErrorCode::kIo, "a page of " + path + " can't be read");
      if (closed_with && root != nullptr && !is_read_only && !is_child) closed_with = file->seal();
      root = nullptr;
      file.reset();
    };
    // A child of fork() would keep the file locked; who is still opening keeps forks out himself.
    if (guard)
      guard->end(detail::PoolGuard::keep_forks_out(), finish);
    else
      finish();
    return closed_with;
  }

  /// A file that was cut off has lost pages; touching them in libpmemobj could end the process.
  [[nodiscard]] bool has_its_size() {
    struct stat info {};
    const bool is_known = fstat(file->fd(), &info) == 0 && S_ISREG(info.st_mode);
    if (!is_known || static_cast<std::uint64_t>(info.st_size) >= bytes) return true;
    lost_a_page = true;
    sync->fail(EIO);
    return false;
  }

  [[nodiscard]] Status status() const {
    if (!file) return closed_with;
    if (fork.is_child()) return make_error(ErrorCode::kIo, path + " was opened by a parent process");
    if (sync->ok()) return {};
    return make_error(ErrorCode::kIo, path + " has failed (" + std::strerror(sync->error()) +
                                          "): nothing has been acknowledged since; close it and open it again");
  }

  /// Errors: that the pool has failed, or can't be written at all.
  [[nodiscard]] Status writable() {
    if (is_read_only) return make_error(ErrorCode::kReadOnly, path + " is open read-only");
    if (file && !fork.is_child()) (void)has_its_size();
    return status();
  }

  /// Where libpmemobj or the mapping has put things. The pool is guarded from here on.
  void start(const detail::PoolGuard::Lock& forks_kept_out, bool abort_on_error, bool catch_sigbus) {
    detail::FileSync::Options options;
    options.file = file->fd();
    options.abort_on_error = abort_on_error;
    if (is_read_only) options.freeze = [] {};  // The mapping is private already, and holds what was replayed.
    if (journal_bytes != 0 && !is_read_only)
      options.journal_extent = [this](bool& fresh) { return journal_extent(fresh); };
    options.note_journal = [this](std::uint64_t id) { return file->note_journal(root_offset, id); };
    sync = std::make_unique<detail::FileSync>(base, bytes, std::move(options));
    guard.emplace(detail::PoolGuard::Guarded{base, bytes, file->fd(), sync.get(), &allocating, &catalog_mutex,
                                             catch_sigbus, &lost_a_page},
                  forks_kept_out);
  }

  [[nodiscard]] std::uint64_t journal_allocation() const noexcept {
    return detail::CheckedOffset::read(root->head.journal_allocation).value_or(0);
  }

  /// The extent of the pool's journal, which is allocated at its first use and kept.
  [[nodiscard]] detail::JournalExtent journal_extent(bool& fresh) {
    const std::lock_guard lock(allocating);
    const auto whole = [](std::uint64_t allocation, std::uint64_t length) {
      const std::uint64_t start = (allocation + detail::kRegionAlignment - 1) / detail::kRegionAlignment;
      const std::uint64_t end = (allocation + length) / detail::kRegionAlignment;
      if (end <= start) return detail::JournalExtent{};
      return detail::JournalExtent{start * detail::kRegionAlignment, (end - start) * detail::kRegionAlignment};
    };
    const std::uint64_t wished = journal_bytes == kJournalBytesAuto ? journal_bytes_for(bytes) : journal_bytes;
    const std::uint64_t uuid = pmemobj_oid(root).pool_uuid_lo;
    const std::uint64_t old = journal_allocation();
    if (old != 0) {
      const detail::JournalExtent extent = whole(old, pmemobj_alloc_usable_size(PMEMoid{uuid, old}));
      fresh = false;
      if (journal_bytes == kJournalBytesAuto || extent.bytes / 4096 == wished / 4096) return extent;
    }
    fresh = true;
    for (std::uint64_t length = wished; length >= detail::kJournalBytesMin; length /= 2) {
      std::array<pobj_action, 3> actions;
      std::size_t count = 0;
      // Not from the small ends of libpmemobj's heap, which regions of that size may want.
      const std::uint64_t reserved = std::max(length + detail::kRegionAlignment, detail::kReserveBytesMin);
      const PMEMoid oid = pmemobj_xreserve(handle, &actions[count], reserved, 0, 0);
      if (OID_IS_NULL(oid)) {
        if (journal_bytes != kJournalBytesAuto) break;
        continue;
      }
      ++count;
      pmemobj_set_value(handle, &actions[count++], &root->head.journal_allocation, detail::CheckedOffset::of(oid.off));
      if (old != 0) pmemobj_defer_free(handle, PMEMoid{uuid, old}, &actions[count++]);
      if (pmemobj_publish(handle, actions.data(), count) != 0) break;
      detail::JournalExtent extent = whole(oid.off, reserved);
      extent.bytes = std::min(extent.bytes, length / detail::kJournalBlock * detail::kJournalBlock);
      return extent;
    }
    fresh = false;
    return {};
  }

  /// Is the mapping that of the file? PMDK's environment can make it a private copy.
  [[nodiscard]] Status check_mapping(std::uint64_t root_at) const {
    std::random_device random;
    std::uint64_t seen = 0;
    const std::uint64_t at =
        root_at + offsetof(detail::PoolHead, seal);  // A word of no meaning while the pool is open.
    const std::uint64_t mark = static_cast<std::uint64_t>(random()) << 32 | random();
    *reinterpret_cast<volatile std::uint64_t*>(base + at) = mark;
    if (pread(file->fd(), &seen, sizeof seen, static_cast<off_t>(at)) != static_cast<ssize_t>(sizeof seen))
      return system_error("can't read " + path, errno);
    if (seen == mark) return {};
    return make_error(ErrorCode::kUnsupported,
                      path +
                          " is mapped as a private copy, so no store reaches the file: unset copy_on_write in "
                          "PMEMOBJ_CONF");
  }

  /// Errors: Corrupt.
  [[nodiscard]] Status check_catalog(const PoolRoot& of) const {
    for (const CatalogEntry& entry : of.catalog) {
      if (entry.state == detail::kFree) continue;
      if (entry.state > detail::kPending || !sound(entry))
        return make_error(ErrorCode::kCorrupt, "the catalog of " + path + " fails its checksum");
    }
    return {};
  }

  /// Is everything that the root names allocated, and once? What libpmemobj is asked to free must be what it gave.
  /// Errors: Corrupt.
  [[nodiscard]] Status check_allocations(const PoolRoot& of) const {
    std::unordered_map<std::uint64_t, std::uint64_t> allocated;
    for (PMEMoid oid = pmemobj_first(handle); !OID_IS_NULL(oid); oid = pmemobj_next(oid))
      allocated.emplace(oid.off, pmemobj_alloc_usable_size(oid));
    const auto take = [&allocated](std::uint64_t offset, std::uint64_t least) {
      const auto found = allocated.find(offset);
      if (found == allocated.end() || found->second < least) return false;
      allocated.erase(found);
      return true;
    };
    bool fine = true;
    for (const CatalogEntry& entry : of.catalog) {
      if (entry.state == detail::kFree) continue;
      for (std::uint64_t i = 0; i < entry.extents; ++i) {
        const std::uint64_t length = std::min(entry.extent_bytes, entry.bytes - i * entry.extent_bytes);
        fine = fine && take(entry.offsets[i], length + detail::kRegionAlignment);
      }
    }
    const auto journal = detail::CheckedOffset::read(of.head.journal_allocation);
    fine = fine && journal && (*journal == 0 || take(*journal, detail::kJournalBytesMin / 2));
    if (fine) return {};
    return make_error(ErrorCode::kCorrupt, "the root of " + path + " names memory that is not allocated for it");
  }

  static Result<Pool> open_to_read(const std::string& path, bool beside_writer);

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

  [[nodiscard]] std::byte* at(std::uint64_t offset) const noexcept { return base + offset; }

  [[nodiscard]] Region region_of(const CatalogEntry& entry) const {
    std::vector<std::byte*> extents;
    for (std::uint64_t i = 0; i < entry.extents; ++i) {
      auto address = reinterpret_cast<std::uintptr_t>(at(entry.offsets[i]));
      address = (address + detail::kRegionAlignment - 1) / detail::kRegionAlignment * detail::kRegionAlignment;
      extents.push_back(reinterpret_cast<std::byte*>(address));
    }
    return Region(std::move(extents), entry.bytes, entry.extent_bytes);
  }

  [[nodiscard]] static std::uint64_t extents_of(std::uint64_t bytes, std::uint64_t extent_bytes) noexcept {
    return bytes / extent_bytes + (bytes % extent_bytes != 0 ? 1 : 0);
  }

  /// Is an entry in use what its checksum says, and does it lie in the file?
  [[nodiscard]] bool sound(const CatalogEntry& entry) const noexcept {
    if (entry.checksum != checksum_of(entry)) return false;
    if (entry.extent_bytes < detail::kRegionAlignment || (entry.extent_bytes & (entry.extent_bytes - 1)) != 0)
      return false;
    if (entry.bytes == 0 || entry.bytes > bytes || entry.extents > detail::kExtentsMax) return false;
    if (entry.extents != extents_of(entry.bytes, entry.extent_bytes)) return false;
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
  return create_with(path, options, [](Pool&) { return Status(); });
}

Status Pool::publish() { return impl_->file->publish(); }

Result<Pool> Pool::create_unnamed(const std::string& path, const PoolOptions& options) {
  if (options.bytes < PMEMOBJ_MIN_POOL) {
    return make_error(ErrorCode::kInvalidArgument, "a pool needs at least " + std::to_string(PMEMOBJ_MIN_POOL) +
                                                       " bytes, not " + std::to_string(options.bytes));
  }
  DUNNOCK_TRY(check_journal_bytes(options.journal_bytes, options.bytes));
  if ((options.mode & 0600) != 0600 || (options.mode & ~0777U) != 0)
    return make_error(ErrorCode::kInvalidArgument,
                      "the pool's mode must let its owner read and write, and must have no bits outside 0777");
  const auto forks_kept_out = detail::PoolGuard::keep_forks_out();
  DUNNOCK_TRY(auto file, detail::PoolFile::create(path, options.bytes / 4096 * 4096, options.mode));
  auto impl = std::make_unique<Impl>(std::move(file));
  impl->handle = pmemobj_create(impl->file->self().c_str(), detail::kPoolLayout, 0, 0600);
  if (impl->handle == nullptr) return system_error("can't create a pool in " + path, errno);
  impl->base = reinterpret_cast<std::byte*>(impl->handle);
  DUNNOCK_TRY(check_libpmemobj(*impl->file, impl->handle));
  const PMEMoid oid = pmemobj_root(impl->handle, sizeof(PoolRoot));
  if (OID_IS_NULL(oid)) return system_error("can't create the root of " + path, errno);
  DUNNOCK_CHECK(oid.off / 512 == (oid.off + sizeof(detail::PoolHead) - 1) / 512,
                "the root's head is within one sector");
  auto* root = static_cast<PoolRoot*>(pmemobj_direct(oid));
  root->head.format_version = detail::kPoolFormatVersion;
  root->head.entries = detail::kCatalogEntries;
  root->head.file_bytes = impl->bytes;
  root->head.checksum = checksum_of(root->head);
  pmemobj_persist(impl->handle, root, sizeof root->head);
  root->head.magic = detail::kPoolMagic;
  pmemobj_persist(impl->handle, &root->head.magic, sizeof root->head.magic);
  DUNNOCK_TRY(impl->check_mapping(oid.off));
  impl->root = root;
  impl->root_offset = oid.off;
  impl->journal_bytes = options.journal_bytes;
  impl->start(forks_kept_out, options.abort_on_error, options.catch_sigbus);
  return Pool(std::move(impl));
}

Status Pool::remove(const std::string& path) { return detail::PoolFile::remove(path); }

Result<Pool> Pool::open(const std::string& path, const OpenOptions& options) {
  DUNNOCK_TRY(check_journal_bytes(options.journal_bytes));
  const auto forks_kept_out = detail::PoolGuard::keep_forks_out();
  DUNNOCK_TRY(auto file, detail::PoolFile::open(path, detail::PoolAccess::kWrite));
  DUNNOCK_TRY(check_journal_bytes(options.journal_bytes, file.bytes()));
  DUNNOCK_TRY(file.fill_holes());
  const std::optional<detail::FoundHead> found = file.read_head();
  if (found) {
    DUNNOCK_TRY(file.check_head(*found));
    DUNNOCK_TRY(file.recover(*found));
  }
  // Its name must survive a power failure, too: the process that gave it may have died before that.
  if (auto folder = open_folder(split_path(path).folder); folder && sync_folder(folder->get()) != 0)
    return system_error("can't sync the directory of " + path, errno);
  auto impl = std::make_unique<Impl>(std::move(file));
  impl->handle = pmemobj_open(impl->file->self().c_str(), detail::kPoolLayout);
  if (impl->handle == nullptr) {
    const int error = errno;
    const std::string reason = pmemobj_errormsg();
    // EINVAL stands for another layout name, another major version and a damaged header alike; the message tells.
    if (error == EINVAL && std::getenv("PMEMOBJ_CONF") != nullptr)
      return make_error(ErrorCode::kUnsupported, path + " can't be opened while PMEMOBJ_CONF is set: " + reason);
    if (error == EINVAL) {
      const bool layout = reason.find("layout") != std::string::npos;
      return make_error(layout ? ErrorCode::kWrongLayout : ErrorCode::kNotADunnockPool,
                        path + " can't be opened as a pool: " + reason);
    }
    if (error == EEXIST)
      return make_error(ErrorCode::kAlreadyOpen, path + " is a copy of a pool that this process has open");
    return system_error("can't open the pool " + path, error);
  }
  impl->base = reinterpret_cast<std::byte*>(impl->handle);
  DUNNOCK_TRY(check_libpmemobj(*impl->file, impl->handle));
  if (pmemobj_root_size(impl->handle) != sizeof(PoolRoot)) {
    return make_error(ErrorCode::kNotADunnockPool, path + " is a libpmemobj pool, but its root is not dunnock's");
  }
  const PMEMoid oid = pmemobj_root(impl->handle, sizeof(PoolRoot));
  if (OID_IS_NULL(oid) || oid.off > impl->bytes || impl->bytes - oid.off < sizeof(PoolRoot)) {
    return make_error(ErrorCode::kCorrupt, "the root of " + path + " is outside the file");
  }
  if (!found || oid.off != found->root_offset) {
    return make_error(ErrorCode::kNotADunnockPool,
                      path + " was not created completely or is not a dunnock pool: the root's magic word is missing");
  }
  DUNNOCK_TRY(impl->check_mapping(oid.off));
  auto* root = static_cast<PoolRoot*>(pmemobj_direct(oid));
  DUNNOCK_TRY(impl->check_catalog(*root));
  DUNNOCK_TRY(impl->check_allocations(*root));
  impl->root = root;
  impl->root_offset = oid.off;
  impl->journal_bytes = options.journal_bytes;
  impl->start(forks_kept_out, options.abort_on_error, options.catch_sigbus);
  impl->release_unfinished();
  return Pool(std::move(impl));
}

Result<Pool> Pool::Impl::open_to_read(const std::string& path, bool beside_writer) {
  const auto forks_kept_out = detail::PoolGuard::keep_forks_out();
  auto alone = detail::PoolFile::open(path, detail::PoolAccess::kRead);
  const bool is_beside_writer = !alone && beside_writer && alone.error().code == ErrorCode::kAlreadyOpen;
  DUNNOCK_TRY(auto file, is_beside_writer ? detail::PoolFile::open(path, detail::PoolAccess::kLook) : std::move(alone));
  const std::optional<detail::FoundHead> found = file.read_head();
  if (!found)
    return make_error(ErrorCode::kNotADunnockPool,
                      path + " was not created completely or is not a dunnock pool: the root's magic word is missing");
  DUNNOCK_TRY(file.check_head(*found));
  auto impl = std::make_unique<Impl>(std::move(file));
  impl->mapped = MappedFile(impl->file->fd(), impl->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE);
  if (!impl->mapped) return system_error("can't map " + path, errno);
  impl->base = impl->mapped.bytes().data();
  impl->is_read_only = true;
  impl->is_beside_writer = is_beside_writer;
  // A writer that is at work has everything in the pages.
  if (!is_beside_writer) {
    Status replayed = impl->file->replay(*found, [&](std::uint64_t offset, const std::uint64_t* words) {
      std::memcpy(impl->base + offset, words, kLineBytes);
    });
    DUNNOCK_TRY(replayed);
  }
  auto* root = reinterpret_cast<PoolRoot*>(impl->base + found->root_offset);
  DUNNOCK_TRY(impl->check_catalog(*root));
  impl->root = root;
  impl->root_offset = found->root_offset;
  impl->start(forks_kept_out, false, true);
  return Pool(std::move(impl));
}

Result<Pool> Pool::open_read_only(const std::string& path) { return Impl::open_to_read(path, false); }
Result<Pool> Pool::look(const std::string& path) { return Impl::open_to_read(path, true); }

Status Pool::copy(const std::string& from, const std::string& to) {
  DUNNOCK_TRY(const auto opened,
              GuardedFile::of([&] { return detail::PoolFile::open(from, detail::PoolAccess::kRead); }));
  const detail::PoolFile& file = opened->file();
  const std::optional<detail::FoundHead> found = file.read_head();
  if (!found)
    return make_error(ErrorCode::kNotADunnockPool, from + " was not created completely or is not a dunnock pool");
  DUNNOCK_TRY(file.check_head(*found));
  // In version 2 a crashed pool is not one file.
  if (found->head.format_version == detail::kSideJournalVersion && found->head.sealed == 0 && found->head.journal != 0)
    return make_error(ErrorCode::kWrongVersion,
                      from + " has pool format version 2 and was not closed: open it for writing once, then copy it");
  DUNNOCK_TRY(const auto made, GuardedFile::of([&] { return detail::PoolFile::create_like(to, file); }));
  detail::PoolFile& copy = made->file();
  FileSystem& files = file_system();
  std::vector<std::byte> piece(1 << 20);
  for (std::uint64_t at = 0; at < file.bytes();) {
    const ssize_t got = pread(file.fd(), piece.data(), std::min<std::uint64_t>(piece.size(), file.bytes() - at),
                              static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return system_error("can't read " + from, got == 0 ? EIO : errno);
    if (!files.pwrite(copy.fd(), piece.data(), static_cast<std::size_t>(got), at))
      return system_error("can't write to " + to, errno);
    at += static_cast<std::uint64_t>(got);
  }
  return copy.publish();
}

Status Pool::copy_to(const std::string& path) const {
  Impl& impl = *impl_;
  if (impl.is_read_only) return copy(impl.file->self(), path);
  DUNNOCK_TRY(impl.writable());
  DUNNOCK_TRY(const auto made, GuardedFile::of([&] { return detail::PoolFile::create_like(path, *impl.file); }));
  detail::PoolFile& copy = made->file();
  const std::lock_guard catalog(impl.catalog_mutex);
  // The journal's own extent is no part of the copy, so it is allocated now, if it ever is: a fence that did so in the
  // middle would change what libpmemobj knows while it is copied.
  impl.sync->begin_journal();
  DUNNOCK_TRY(impl.status());
  const std::uint64_t old = impl.journal_allocation();
  const std::uint64_t skip_until =
      old == 0 ? 0 : old + pmemobj_alloc_usable_size(PMEMoid{pmemobj_oid(impl.root).pool_uuid_lo, old});

  bool fine = true;
  std::vector<std::byte> piece(1 << 20);
  const auto copy_lines = [&](std::uint64_t from, std::uint64_t end) {
    while (fine && from < end) {
      const std::uint64_t length = std::min<std::uint64_t>(piece.size(), end - from);
      for (std::uint64_t at = 0; at < length; at += kLineBytes)
        detail::copy_line(impl.base + from + at, reinterpret_cast<std::uint64_t*>(piece.data() + at));
      fine = file_system().pwrite(copy.fd(), piece.data(), length, from);
      from += length;
    }
  };
  // Lines are copied while others go on. What a fence makes durable meanwhile is copied once more at the end, while no
  // fence is at work: so whatever the copy holds, it also holds everything that was fenced before that was stored.
  std::vector<detail::JournalRevoke> touched;
  impl.sync->without_fences([&] { impl.sync->note_touched(&touched); });
  copy_lines(0, old == 0 ? impl.bytes : old / kLineBytes * kLineBytes + kLineBytes);
  if (old != 0) copy_lines(skip_until / kLineBytes * kLineBytes, impl.bytes);
  impl.sync->without_fences([&] {
    impl.sync->note_touched(nullptr);
    for (const detail::JournalRevoke& range : touched)
      copy_lines(range.offset / kLineBytes * kLineBytes,
                 (range.offset + range.bytes + kLineBytes - 1) / kLineBytes * kLineBytes);
  });
  if (!fine) return system_error("can't write to " + path, errno);
  DUNNOCK_TRY(impl.status());
  // All its lines are in its pages.
  detail::PoolHead head = impl.root->head;
  head.sealed = head.seal = head.journal = 0;
  if (!file_system().pwrite(copy.fd(), &head, sizeof head, impl.root_offset))
    return system_error("can't write to " + path, errno);
  return copy.publish();
}

Status Pool::close() { return impl_->close(); }
Status Pool::status() const { return impl_->status(); }
bool Pool::read_only() const noexcept { return impl_->is_read_only; }
bool Pool::beside_writer() const noexcept { return impl_->is_beside_writer; }

// ----- the catalog ---------------------------------------------------------------------------------------------------

/// A free entry for each of the new regions.
Result<std::vector<CatalogEntry*>> Pool::Impl::choose_entries(std::span<const RegionSpec> specs) const {
  std::vector<CatalogEntry*> entries;
  for (const RegionSpec& spec : specs) {
    if (spec.name.empty() || spec.name.size() >= detail::kNameBytes || spec.name.find('\0') != std::string_view::npos) {
      return make_error(ErrorCode::kInvalidArgument,
                        "a region's name needs 1 to 47 bytes without a NUL, not '" + std::string(spec.name) + "'");
    }
    if (spec.bytes == 0 || spec.extent_bytes < detail::kRegionAlignment ||
        (spec.extent_bytes & (spec.extent_bytes - 1)) != 0) {
      return make_error(ErrorCode::kInvalidArgument,
                        "region '" + std::string(spec.name) + "' has " + std::to_string(spec.bytes) +
                            " bytes in extents of " + std::to_string(spec.extent_bytes) +
                            ": it needs at least 1 byte, and extents of a power of two from 4096");
    }
    if (extents_of(spec.bytes, spec.extent_bytes) > detail::kExtentsMax) {
      return make_error(ErrorCode::kInvalidArgument, "region '" + std::string(spec.name) + "' needs " +
                                                         std::to_string(extents_of(spec.bytes, spec.extent_bytes)) +
                                                         " extents; at most 128 are allowed");
    }
    const auto same_name = [&spec](const RegionSpec& other) { return other.name == spec.name; };
    if (find(spec.name, true) != nullptr || std::count_if(specs.begin(), specs.end(), same_name) != 1) {
      return make_error(ErrorCode::kAlreadyExists, "region '" + std::string(spec.name) + "' already exists in " + path);
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
  DUNNOCK_TRY(writable());
  DUNNOCK_TRY(const auto chosen, choose_entries(specs));
  const std::vector<CatalogEntry*>& entries = chosen;

  // Reserved memory exists only in this process until it is published together with the entries' states.
  std::vector<pobj_action> actions;
  const auto give_up = [&](std::string_view name, int error) {
    pmemobj_cancel(handle, actions.data(), actions.size());
    return make_error(error == ENOMEM ? ErrorCode::kNoSpace : error_code_of(error),
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
  if (!sync->check_disk()) return tl::unexpected(status().error());

  std::vector<Region> regions;
  for (const CatalogEntry* entry : entries) regions.push_back(region_of(*entry));
  return regions;
}

/// All of them, or none.
Status Pool::Impl::free_regions(std::span<CatalogEntry* const> entries) {
  if (entries.empty()) return {};
  DUNNOCK_TRY(writable());
  // What the journal has of them must not come back over what libpmemobj writes there.
  if (sync->has_journal()) sync->write_back_all();
  DUNNOCK_TRY(status());
  std::vector<pobj_action> actions;
  const std::uint64_t uuid = pmemobj_oid(root).pool_uuid_lo;
  for (CatalogEntry* entry : entries) {
    for (std::uint64_t i = 0; i < entry->extents; ++i)
      pmemobj_defer_free(handle, PMEMoid{uuid, entry->offsets[i]}, &actions.emplace_back());
    pmemobj_set_value(handle, &actions.emplace_back(), &entry->state, detail::kFree);
  }
  if (pmemobj_publish(handle, actions.data(), actions.size()) == 0) return sync->check_disk() ? Status{} : status();
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
    return make_error(ErrorCode::kNotFound, impl_->path + " has no region '" + std::string(name) + "'");
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
    if (entry == nullptr) return make_error(ErrorCode::kNotFound, impl_->path + " has no region '" + name + "'");
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

PendingRegions::PendingRegions(Pool& pool) : pool_(&pool) {
  // In the child of a fork, who has the turn may not be there; and nothing can be created.
  if (pool.impl_->fork.is_child()) return;
  turn_ = std::unique_lock(pool.impl_->creation_mutex);
  const std::lock_guard guard(pool.impl_->catalog_mutex);
  pool.impl_->release_unfinished();  // Of a creation that failed, and whose regions could not be freed then.
}

PendingRegions::~PendingRegions() {
  if (!turn_.owns_lock()) return;  // Finished.
  const std::lock_guard guard(pool_->impl_->catalog_mutex);
  pool_->impl_->release_unfinished();
}

Result<std::vector<Region>> PendingRegions::create(std::span<const RegionSpec> specs) {
  if (pool_->impl_->fork.is_child()) return tl::unexpected(pool_->status().error());
  DUNNOCK_CHECK(turn_.owns_lock(), "regions are created before finish()");
  const std::lock_guard guard(pool_->impl_->catalog_mutex);
  return pool_->impl_->allocate(specs, detail::kPending);
}

Status PendingRegions::finish(const Status& formatted) {
  if (pool_->impl_->fork.is_child()) return pool_->status();
  DUNNOCK_CHECK(turn_.owns_lock(), "a creation is finished once");
  if (!formatted) return formatted;
  Pool::Impl& impl = *pool_->impl_;
  DUNNOCK_TRY(impl.writable());
  {
    const std::lock_guard guard(impl.catalog_mutex);
    std::vector<pobj_action> actions;
    for (CatalogEntry* entry : impl.pending())
      pmemobj_set_value(impl.handle, &actions.emplace_back(), &entry->state, detail::kNamed);
    if (!actions.empty() && pmemobj_publish(impl.handle, actions.data(), actions.size()) != 0) {
      const int error = errno;
      pmemobj_cancel(impl.handle, actions.data(), actions.size());
      return system_error("can't name the new regions of " + impl.path + "", error);
    }
    if (!impl.sync->check_disk()) return impl.status();
  }
  turn_.unlock();
  return {};
}

const std::string& Pool::path() const noexcept { return impl_->path; }
std::string Pool::path_of_descriptor() const { return impl_->file->self(); }
std::uint64_t Pool::bytes() const noexcept { return impl_->bytes; }
FileMedia Pool::file_media() const noexcept { return FileMedia(*impl_->sync); }

std::uint64_t Pool::bytes_for(std::span<const std::uint64_t> region_bytes) noexcept {
  // libpmemobj: 4 MiB of lanes and headers and 256-KiB chunks; a zone of 16 GiB holds seven extents of 2 GiB.
  std::uint64_t total = 16ULL << 20;
  for (const std::uint64_t bytes : region_bytes) total += bytes + bytes / 6 + (1ULL << 20);
  total += journal_bytes_for(total + total / 7);
  return (total + (1ULL << 20) - 1) >> 20 << 20;
}

}  // namespace dunnock
