#include "pool_file.hpp"

#include <libpmemobj.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "pool_guard.hpp"

namespace dunnock::detail {
namespace {

constexpr char kSignature[] = "PMEMOBJ";  // with its 0, the first eight bytes of the file

/// A lock of the open file description. False and errno EWOULDBLOCK: somebody holds one.
bool lock_description(int fd, short kind) noexcept {
  struct flock lock {};
  lock.l_type = kind;
  lock.l_whence = SEEK_SET;
  if (fcntl(fd, F_OFD_SETLK, &lock) == 0) return true;
  if (errno == EACCES) errno = EWOULDBLOCK;
  return false;
}

/// Does libpmemobj, in whatever program, have the file open? It holds a lock of the other kind then.
bool is_open_by_libpmemobj(int fd, int kind) noexcept {
  if (flock(fd, kind | LOCK_NB) != 0) return errno == EWOULDBLOCK;
  flock(fd, LOCK_UN);
  return false;
}

tl::unexpected<Error> already_open(const std::string& path) {
  return make_error(ErrorCode::kAlreadyOpen, "the pool " + path + " is already open in this process or in another one");
}

/// XXH3 of the first `length` bytes of a file. False: it can't be read.
bool hash_file(int fd, std::uint64_t length, std::uint64_t& hash) {
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(), &XXH3_freeState);
  XXH3_64bits_reset(state.get());
  std::vector<char> buffer(1 << 20);
  std::uint64_t at = 0;
  while (at < length) {
    const ssize_t got =
        pread(fd, buffer.data(), std::min<std::uint64_t>(buffer.size(), length - at), static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    XXH3_64bits_update(state.get(), buffer.data(), static_cast<std::size_t>(got));
    at += static_cast<std::uint64_t>(got);
  }
  hash = XXH3_64bits_digest(state.get());
  return at == length;
}

bool read_exactly(int fd, void* to, std::size_t bytes, std::uint64_t offset) noexcept {
  return pread(fd, to, bytes, static_cast<off_t>(offset)) == static_cast<ssize_t>(bytes);
}

/// Is `name` in that folder the file `fd`?
bool is_named(int folder, const std::string& name, int fd) noexcept {
  struct stat named {};
  struct stat open {};
  return fstatat(folder, name.c_str(), &named, AT_SYMLINK_NOFOLLOW) == 0 && fstat(fd, &open) == 0 &&
         named.st_dev == open.st_dev && named.st_ino == open.st_ino;
}

/// Removes what a crash has left of a pool in the making. False and errno: EWOULDBLOCK if somebody is at it.
bool remove_unfinished(int folder, const std::string& name) noexcept {
  const UniqueFd fd(openat(folder, name.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!fd) return errno == ENOENT;
  if (!lock_description(fd.get(), F_WRLCK)) return false;
  if (is_open_by_libpmemobj(fd.get(), LOCK_EX)) {
    errno = EWOULDBLOCK;
    return false;
  }
  // Under the lock: what is removed is what was found to be nobody's.
  return !is_named(folder, name, fd.get()) || file_system().unlink(folder, name.c_str()) == 0;
}

/// Removes the journal beside a pool of version 2, if it is that of this pool. (It is not needed any more; what stays
/// is in nobody's way.)
void remove_side_journal(int folder, const std::string& pool_name, const PoolHead& head) noexcept {
  if (head.format_version != kSideJournalVersion || head.journal == 0) return;
  const std::string name = pool_name + ".journal";
  const UniqueFd journal(openat(folder, name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  JournalHead found;
  if (journal && read_exactly(journal.get(), &found, sizeof found, 0) && found.magic == kSideJournalMagic &&
      found.id == head.journal && is_named(folder, name, journal.get()))
    file_system().unlink(folder, name.c_str());
}

}  // namespace

JournalExtent journal_extent(int fd, const PoolHead& head, std::uint64_t file_bytes) {
  const std::uint64_t allocation = CheckedOffset::read(head.journal_allocation).value_or(0);
  if (allocation == 0 || allocation > file_bytes - kRegionAlignment) return {};
  const std::uint64_t offset = (allocation + kRegionAlignment - 1) / kRegionAlignment * kRegionAlignment;
  JournalHead journal;
  if (!read_exactly(fd, &journal, sizeof journal, offset)) return {};
  if (journal.magic != kJournalMagic || journal.half_bytes > file_bytes || journal.half_bytes % kJournalBlock != 0)
    return {};
  const std::uint64_t bytes = kJournalBlock + 2 * journal.half_bytes;
  if (bytes < kJournalBytesMin / 2 || bytes > file_bytes - offset) return {};
  return {offset, bytes};
}

PoolFile::PoolFile(PoolFile&& other) noexcept
    : fd_(std::move(other.fd_)),
      path_(std::move(other.path_)),
      bytes_(other.bytes_),
      folder_(std::move(other.folder_)),
      name_(std::move(other.name_)),
      has_name_(std::exchange(other.has_name_, true)),
      unfinished_name_(std::move(other.unfinished_name_)) {}

PoolFile::~PoolFile() {
  if (!has_name_ && !unfinished_name_.empty() && is_named(folder_.get(), unfinished_name_, fd_.get()))
    file_system().unlink(folder_.get(), unfinished_name_.c_str());
}

std::string PoolFile::self() const { return "/proc/self/fd/" + std::to_string(fd_.get()); }

Status PoolFile::lock(PoolAccess access) {
  if (access == PoolAccess::kLook) return {};
  const bool write = access == PoolAccess::kWrite;
  const auto try_to = [&] { return lock_description(fd_.get(), write ? F_WRLCK : F_RDLCK); };
  // A child that was born a moment ago may still hold what its parent had.
  if (!try_to() && !(errno == EWOULDBLOCK && PoolGuard::wait_for_children() && try_to())) {
    if (errno == EWOULDBLOCK) return already_open(path_);
    return system_error("can't lock " + path_, errno);
  }
  if (is_open_by_libpmemobj(fd_.get(), write ? LOCK_EX : LOCK_SH)) return already_open(path_);
  return {};
}

Result<PoolFile> PoolFile::open(const std::string& path, PoolAccess access) {
  const bool write = access == PoolAccess::kWrite;
  // Not to be stopped by a named pipe.
  UniqueFd fd(::open(path.c_str(), (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK));
  if (!fd) {
    if (errno == EISDIR || errno == ENXIO)
      return make_error(ErrorCode::kNotADunnockPool, path + " is not a regular file");
    return system_error("can't open " + path + (write ? " for writing" : ""), errno);
  }
  struct stat info {};
  if (fstat(fd.get(), &info) != 0) return system_error("can't open " + path, errno);
  if (!S_ISREG(info.st_mode) && !S_ISCHR(info.st_mode))
    return make_error(ErrorCode::kNotADunnockPool, path + " is not a regular file");
  PoolFile file(std::move(fd), path);
  DUNNOCK_TRY(file.lock(access));
  // What was read before the lock was held says nothing.
  if (fstat(file.fd(), &info) != 0) return system_error("can't open " + path, errno);
  if (write && info.st_nlink == 0)
    return make_error(ErrorCode::kNotFound, path + " was removed while it was being opened");
  file.bytes_ = static_cast<std::uint64_t>(info.st_size);
  char signature[sizeof kSignature] = {};
  if (!read_exactly(file.fd(), signature, sizeof signature, 0) ||
      std::memcmp(signature, kSignature, sizeof signature) != 0)
    return make_error(ErrorCode::kNotADunnockPool, path + " does not begin like a libpmemobj pool");
  if (S_ISREG(info.st_mode) && file.bytes_ < PMEMOBJ_MIN_POOL)
    return make_error(ErrorCode::kNotADunnockPool,
                      path + " was truncated to " + std::to_string(file.bytes_) + " bytes, fewer than any pool has");
  return file;
}

Result<PoolFile> PoolFile::create(const std::string& path, std::uint64_t bytes, mode_t mode) {
  const auto [folder_path, name] = split_path(path);
  DUNNOCK_TRY(auto folder, open_folder(folder_path));
  struct stat info {};
  if (name.empty() || fstatat(folder.get(), name.c_str(), &info, AT_SYMLINK_NOFOLLOW) == 0)
    return system_error("can't create a pool in " + path, EEXIST);
  FileSystem& files = file_system();
  UniqueFd fd(files.open(folder.get(), ".", O_TMPFILE | O_RDWR, mode));
  std::string unfinished_name;
  if (!fd && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT)) {
    // This file system knows no file without a name.
    unfinished_name = name + ".new";
    if (!remove_unfinished(folder.get(), unfinished_name)) {
      if (errno == EWOULDBLOCK) return make_error(ErrorCode::kAlreadyOpen, "another process is creating " + path);
      return system_error("can't remove " + path + ".new", errno);
    }
    fd = UniqueFd(files.open(folder.get(), unfinished_name.c_str(), O_CREAT | O_EXCL | O_RDWR | O_NOFOLLOW, mode));
    if (!fd && errno == EEXIST) return make_error(ErrorCode::kAlreadyOpen, "another process is creating " + path);
  }
  if (!fd) return system_error("can't create a pool in " + path, errno);
  PoolFile file(std::move(fd), path);
  file.folder_ = std::move(folder);
  file.name_ = name;
  file.has_name_ = false;
  file.unfinished_name_ = std::move(unfinished_name);
  DUNNOCK_TRY(file.lock(PoolAccess::kWrite));
  if (files.truncate(file.fd(), bytes) != 0 || files.allocate(file.fd(), 0, bytes) != 0)
    return system_error("can't create a pool in " + path, errno);
  file.bytes_ = bytes;
  return file;
}

Result<PoolFile> PoolFile::create_like(const std::string& path, const PoolFile& other) {
  struct stat info {};
  if (fstat(other.fd(), &info) != 0) return system_error("can't read " + other.path(), errno);
  auto file = create(path, other.bytes(), info.st_mode & 0777);
  if (!file) return file;
  // The owner first: a mode for others must not hold for a moment for others than those.
  if (fchown(file->fd(), info.st_uid, info.st_gid) == 0 && fchmod(file->fd(), info.st_mode & 0777) != 0)
    return system_error("can't set the mode of " + path, errno);
  return file;
}

Status PoolFile::publish() {
  FileSystem& files = file_system();
  const auto refuse = [this](int error) { return system_error("can't create a pool in " + path_, error); };
  // libpmemobj does not say whether its own syncs have succeeded.
  if (files.fsync(fd()) != 0) return refuse(errno);
  const int named = unfinished_name_.empty() ? files.name_file(fd(), folder_.get(), name_.c_str())
                                             : files.rename(folder_.get(), unfinished_name_.c_str(), folder_.get(),
                                                            name_.c_str(), RENAME_NOREPLACE);
  if (named != 0) {
    if (unfinished_name_.empty() || (errno != EINVAL && errno != ENOSYS)) return refuse(errno);
    // This file system can't; it can make a second name, which is as good. The destructor takes the first.
    if (files.name_file(fd(), folder_.get(), name_.c_str()) != 0) return refuse(errno);
    files.unlink(folder_.get(), unfinished_name_.c_str());
  }
  if (sync_folder(folder_.get()) != 0) {
    const int error = errno;
    if (is_named(folder_.get(), name_, fd())) files.unlink(folder_.get(), name_.c_str());
    return refuse(error);
  }
  has_name_ = true;
  return {};
}

Status PoolFile::remove(const std::string& path) {
  const auto forks_kept_out = PoolGuard::keep_forks_out();  // A child would keep it locked.
  const auto [folder_path, name] = split_path(path);
  DUNNOCK_TRY(auto folder, open_folder(folder_path));
  UniqueFd fd(openat(folder.get(), name.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW));
  const auto refuse = [&path](int error) { return system_error("can't remove " + path, error); };
  if (!fd) {
    if (errno != EACCES && errno != EROFS) {
      return errno == ELOOP || errno == EISDIR || errno == ENXIO
                 ? Status(make_error(ErrorCode::kNotADunnockPool, path + " is not a regular file"))
                 : Status(refuse(errno));
    }
    fd = UniqueFd(openat(folder.get(), name.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW));
    if (!fd) return refuse(errno);
  }
  PoolFile file(std::move(fd), path);
  struct stat info {};
  char signature[sizeof kSignature] = {};
  if (fstat(file.fd(), &info) != 0) return refuse(errno);
  if (!S_ISREG(info.st_mode) || !read_exactly(file.fd(), signature, sizeof signature, 0) ||
      std::memcmp(signature, kSignature, sizeof signature) != 0)
    return make_error(ErrorCode::kNotADunnockPool, path + " does not begin like a libpmemobj pool");
  // A description for reading can't hold a writer's lock; a reader's keeps writers away as well.
  const bool may_write = (fcntl(file.fd(), F_GETFL) & O_ACCMODE) == O_RDWR;
  DUNNOCK_TRY(file.lock(may_write ? PoolAccess::kWrite : PoolAccess::kRead));
  if (!is_named(folder.get(), name, file.fd()))
    return make_error(ErrorCode::kNotFound, path + " was removed or replaced while it was being opened");
  const std::optional<FoundHead> found = file.read_head();
  if (file_system().unlink(folder.get(), name.c_str()) != 0) return refuse(errno);
  if (found) remove_side_journal(folder.get(), name, found->head);
  if (sync_folder(folder.get()) != 0) return refuse(errno);
  return {};
}

std::optional<FoundHead> PoolFile::read_head() const {
  FoundHead found{};
  if (!read_exactly(fd(), &found.root_offset, sizeof found.root_offset, kRootOffsetAt) || found.root_offset > bytes_ ||
      bytes_ - found.root_offset < sizeof(PoolRoot) ||
      !read_exactly(fd(), &found.head, sizeof found.head, found.root_offset) || found.head.magic != kPoolMagic)
    return std::nullopt;
  return found;
}

Status PoolFile::check_head(const FoundHead& found) const {
  const std::uint32_t version = found.head.format_version;
  if (version != kPoolFormatVersion && version != kSideJournalVersion)
    return make_error(ErrorCode::kWrongVersion, path_ + " has pool format version " + std::to_string(version) +
                                                    ", expected " + std::to_string(kPoolFormatVersion));
  if (found.head.checksum != checksum_of(found.head) || found.head.entries != kCatalogEntries ||
      (version == kPoolFormatVersion && !CheckedOffset::read(found.head.journal_allocation)))
    return make_error(ErrorCode::kCorrupt, "the root of " + path_ + " fails its checksum");
  if (found.head.file_bytes > bytes_)
    return make_error(ErrorCode::kCorrupt, path_ + " was truncated from " + std::to_string(found.head.file_bytes) +
                                               " to " + std::to_string(bytes_) + " bytes");
  if (found.head.sealed != 0) {
    std::uint64_t seal = 0;
    if (!hash_file(fd(), found.root_offset, seal)) return system_error("can't read " + path_, errno != 0 ? errno : EIO);
    if (found.head.sealed != 1 || seal != found.head.seal)
      return make_error(ErrorCode::kCorrupt, path_ + " was closed cleanly but has changed since: its head is damaged");
  }
  return {};
}

Status PoolFile::fill_holes() const {
  struct stat info {};
  if (fstat(fd(), &info) != 0) return system_error("can't open " + path_, errno);
  if (!S_ISREG(info.st_mode)) return {};
  const auto end = static_cast<off_t>(bytes_);
  for (off_t at = 0; at < end;) {
    const off_t hole = lseek(fd(), at, SEEK_HOLE);
    if (hole < 0 || hole >= end) return {};  // Also where the file system can't tell.
    off_t data = lseek(fd(), hole, SEEK_DATA);
    if (data < 0 || data > end) data = end;
    if (file_system().allocate(fd(), static_cast<std::uint64_t>(hole), static_cast<std::uint64_t>(data - hole)) != 0)
      return system_error(path_ + " has holes, as in a sparse copy, and they can't be filled", errno);
    at = data;
  }
  return {};
}

Status PoolFile::replay(const FoundHead& found,
                        const std::function<void(std::uint64_t, const std::uint64_t*)>& apply) const {
  const PoolHead& head = found.head;
  if (head.sealed != 0 || head.journal == 0) return {};
  if (found.head.format_version == kSideJournalVersion) {
    const std::string from = side_journal();
    const UniqueFd journal(::open(from.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    struct stat info {};
    if (!journal || fstat(journal.get(), &info) != 0) {
      if (errno != ENOENT) return system_error("can't read " + from, errno);
      return make_error(ErrorCode::kCorrupt, path_ + " was not closed, and its journal " + from +
                                                 " is missing: it holds what was fenced last");
    }
    const MappedFile bytes(journal.get(), static_cast<std::uint64_t>(info.st_size), PROT_READ, MAP_PRIVATE);
    if (!bytes && info.st_size != 0) return system_error("can't map " + from, errno);
    Status replayed = replay_journal(bytes.bytes(), head.journal, bytes_, {}, apply);
    if (!replayed)
      return make_error(replayed.error().code,
                        "the journal " + from + " can't be replayed: " + replayed.error().message);
    return {};
  }
  const JournalExtent extent = journal_extent(fd(), head, bytes_);
  if (extent.bytes == 0) return make_error(ErrorCode::kCorrupt, path_ + " was not closed, and its journal is damaged");
  const std::unique_ptr<std::byte[]> bytes(new (std::nothrow) std::byte[extent.bytes]);
  if (!bytes) return make_error(ErrorCode::kNoSpace, "can't allocate memory for the journal of " + path_);
  for (std::uint64_t at = 0; at < extent.bytes;) {
    const ssize_t got = pread(fd(), bytes.get() + at, extent.bytes - at, static_cast<off_t>(extent.offset + at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return system_error("can't read the journal of " + path_, got == 0 ? EIO : errno);
    at += static_cast<std::uint64_t>(got);
  }
  Status replayed = replay_journal({bytes.get(), extent.bytes}, head.journal, bytes_, extent, apply);
  if (!replayed)
    return make_error(replayed.error().code,
                      "the journal of " + path_ + " can't be replayed: " + replayed.error().message);
  return {};
}

Status PoolFile::recover(const FoundHead& found) const {
  FileSystem& files = file_system();
  const auto refuse = [this](int error) { return system_error("can't write to " + path_, error); };
  // Lines that follow each other are one write.
  std::vector<std::byte> run;
  std::uint64_t run_offset = 0;
  bool fine = true;
  const auto write_run = [&] {
    if (fine && !run.empty()) fine = files.pwrite(fd(), run.data(), run.size(), run_offset);
    run.clear();
  };
  Status replayed = replay(found, [&](std::uint64_t offset, const std::uint64_t* words) {
    if (!run.empty() && (run_offset + run.size() != offset || run.size() >= 1 << 20)) write_run();
    if (run.empty()) run_offset = offset;
    const auto* bytes = reinterpret_cast<const std::byte*>(words);
    run.insert(run.end(), bytes, bytes + kLineBytes);
  });
  if (!replayed) return replayed;
  write_run();
  // The lines are durable before the head says that the journal is not needed.
  if (!fine || files.fdatasync(fd()) != 0) return refuse(errno);
  PoolHead head = found.head;
  head.format_version = kPoolFormatVersion;
  head.checksum = checksum_of(head);
  head.sealed = 0;
  head.seal = 0;
  head.journal = 0;
  if (found.head.format_version == kSideJournalVersion) head.journal_allocation = 0;
  // Broken durably before libpmemobj changes anything: a crash right after that must not look like damage.
  if (!files.pwrite(fd(), &head, sizeof head, found.root_offset) || files.fdatasync(fd()) != 0) return refuse(errno);
  const auto [folder_path, name] = split_path(path_);
  if (auto folder = open_folder(folder_path); folder) remove_side_journal(folder->get(), name, found.head);
  return {};
}

Status PoolFile::seal() const {
  const auto refuse = [this](int error) { return system_error("can't mark as closed " + path_, error); };
  FileSystem& files = file_system();
  // First what libpmemobj has written last: it does not say whether its own syncs have succeeded.
  if (files.fdatasync(fd()) != 0) return refuse(errno);
  const std::optional<FoundHead> found = read_head();
  if (!found) return refuse(EIO);
  std::array<std::uint64_t, 2> words{1, 0};
  static_assert(offsetof(PoolHead, seal) == offsetof(PoolHead, sealed) + sizeof words[0]);
  errno = 0;
  if (!hash_file(fd(), found->root_offset, words[1])) return refuse(errno != 0 ? errno : EIO);
  // A torn write leaves a seal that does not fit, or none; the two words share a sector.
  if (!files.pwrite(fd(), words.data(), sizeof words, found->root_offset + offsetof(PoolHead, sealed)) ||
      files.fdatasync(fd()) != 0)
    return refuse(errno);
  return {};
}

bool PoolFile::note_journal(std::uint64_t root_offset, std::uint64_t id) const noexcept {
  FileSystem& files = file_system();
  return files.pwrite(fd(), &id, sizeof id, root_offset + offsetof(PoolHead, journal)) && files.fdatasync(fd()) == 0;
}

}  // namespace dunnock::detail
