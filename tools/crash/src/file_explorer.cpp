#include "file_explorer.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>
#include <unordered_map>
#include <unordered_set>

#include "dunnock/base/check.hpp"
#include "dunnock/base/file.hpp"

namespace dunnock::crash {
namespace {

using Event = SimMemory::Event;
using EventKind = SimMemory::EventKind;
using CallKind = SimFile::CallKind;

constexpr std::uint64_t kSector = 512;
constexpr std::uint64_t kPage = 4096;
constexpr std::uint32_t kNone = ~0U;

/// What the disk may hold at a moment of a record.
class DiskWalk {
 public:
  /// `structure_bytes`: whole pages, in units of `unit_bytes`; the rest of the file in sectors.
  DiskWalk(const std::vector<std::byte>& base, std::uint64_t structure_bytes, std::uint64_t unit_bytes)
      : structure_bytes_(structure_bytes),
        unit_bytes_(unit_bytes),
        structure_units_(static_cast<std::uint32_t>(structure_bytes / unit_bytes)),
        durable_(base),
        newest_(base),
        units_(structure_units_ + (base.size() - structure_bytes) / kSector),
        dirty_(base.size() / kPage) {}

  /// The unit that has just got a new version, or kNone.
  std::uint32_t step(const Event& event, const std::vector<SimFile::Call>& calls) {
    switch (event.kind) {
      case EventKind::kStore: {
        if (frozen_) break;
        return put_word(event.word * sizeof(Word), event.value);
      }
      case EventKind::kCall: {
        const SimFile::Call& call = calls[event.word];
        if (call.kind == CallKind::kFreeze)
          frozen_ = true;
        else if (event.value == 0)
          begin(call, event.word);
        else
          end(call, event.word);
        break;
      }
      default: break;
    }
    return kNone;
  }

  [[nodiscard]] bool frozen() const noexcept { return frozen_; }
  [[nodiscard]] std::uint64_t structure_bytes() const noexcept { return structure_bytes_; }
  [[nodiscard]] bool is_structure(std::uint32_t unit) const noexcept { return unit < structure_units_; }
  /// Units that may hold several things.
  [[nodiscard]] const std::vector<std::uint32_t>& open_units() const noexcept { return open_; }
  [[nodiscard]] std::size_t pending(std::uint32_t unit) const noexcept { return units_[unit].pending.size(); }
  [[nodiscard]] const std::vector<std::byte>& durable() const noexcept { return durable_; }
  /// Changes whenever what the journal and the root may hold does.
  [[nodiscard]] std::uint64_t journal_version() const noexcept { return journal_version_; }

  [[nodiscard]] std::uint64_t offset_of(std::uint32_t unit) const noexcept {
    return unit < structure_units_ ? unit * unit_bytes_ : structure_bytes_ + (unit - structure_units_) * kSector;
  }
  [[nodiscard]] std::uint64_t bytes_of(std::uint32_t unit) const noexcept {
    return unit < structure_units_ ? unit_bytes_ : kSector;
  }
  /// Gives the unit in `image`, which is as what is durable, the first `count` of its pending versions.
  void apply(std::byte* image, std::uint32_t unit, std::size_t count) const {
    const Unit& one = units_[unit];
    if (count == one.pending.size()) {
      const std::uint64_t at = offset_of(unit);
      std::memcpy(image + at, newest_.data() + at, bytes_of(unit));
      return;
    }
    for (std::size_t i = 0; i < count; ++i) put(image, unit, one.pending[i]);
  }

 private:
  /// A store of a word, or what a call wrote to the unit.
  struct Version {
    const SimFile::Call* call;
    std::uint64_t offset, value;
  };
  struct Unit {
    std::vector<Version> pending;
    std::size_t settled = 0;  // versions that are durable for sure
    std::uint32_t open_at = kNone;
  };
  struct Promise {
    std::uint32_t unit;
    std::size_t versions;  // settled and pending
  };

  [[nodiscard]] std::uint32_t unit_of(std::uint64_t offset) const noexcept {
    return offset < structure_bytes_
               ? static_cast<std::uint32_t>(offset / unit_bytes_)
               : structure_units_ + static_cast<std::uint32_t>((offset - structure_bytes_) / kSector);
  }
  void put(std::byte* image, std::uint32_t unit, const Version& version) const {
    if (version.call == nullptr) {
      std::memcpy(image + version.offset, &version.value, sizeof version.value);
      return;
    }
    const std::uint64_t from = std::max(offset_of(unit), version.call->offset);
    const std::uint64_t to = std::min(offset_of(unit) + bytes_of(unit), version.call->offset + version.call->bytes);
    std::memcpy(image + from, version.call->data.data() + (from - version.call->offset), to - from);
  }
  std::uint32_t add(std::uint32_t unit, const Version& version) {
    Unit& one = units_[unit];
    if (one.pending.empty()) {
      one.open_at = static_cast<std::uint32_t>(open_.size());
      open_.push_back(unit);
    }
    one.pending.push_back(version);
    put(newest_.data(), unit, version);
    if (!is_structure(unit)) ++journal_version_;
    return unit;
  }
  std::uint32_t put_word(std::uint64_t offset, std::uint64_t value) {
    dirty_[offset / kPage] = true;
    return add(unit_of(offset), {nullptr, offset, value});
  }

  void begin(const SimFile::Call& call, std::uint32_t number) {
    if (call.kind == CallKind::kSync) {
      std::vector<Promise>& promised = promised_[number];
      for (const std::uint32_t unit : open_) {
        const std::uint64_t at = offset_of(unit);
        const std::uint64_t page = at / kPage;
        // A sync is of whole pages, and writes those that are dirty.
        if (page < call.offset / kPage || page * kPage >= call.offset + call.bytes || !dirty_[page]) continue;
        promised.push_back({unit, units_[unit].settled + units_[unit].pending.size()});
      }
      for (std::uint64_t page = call.offset / kPage; page * kPage < call.offset + call.bytes; ++page)
        dirty_[page] = false;
      return;
    }
    if (call.lost) return;
    std::vector<Promise> promised;
    for (std::uint64_t at = call.offset; at < call.offset + call.bytes;) {
      const std::uint32_t unit = unit_of(at);
      const std::uint64_t end = std::min(offset_of(unit) + bytes_of(unit), call.offset + call.bytes);
      if (is_structure(unit) && at % sizeof(Word) == 0) {
        // The page cache may be written back in the middle of a write to it.
        for (; at < end; at += sizeof(Word)) {
          std::uint64_t value;
          std::memcpy(&value, call.data.data() + (at - call.offset), sizeof value);
          put_word(at, value);
        }
      } else {
        if (call.kind == CallKind::kWrite) dirty_[at / kPage] = true;
        add(unit, {&call, 0, 0});
      }
      promised.push_back({unit, units_[unit].settled + units_[unit].pending.size()});
      at = end;
    }
    if (call.kind == CallKind::kDurableWrite) promised_[number] = std::move(promised);
  }

  void end(const SimFile::Call& call, std::uint32_t number) {
    const auto found = promised_.find(number);
    if (found == promised_.end()) return;
    if (!call.fails) {
      for (const Promise& promise : found->second) {
        Unit& one = units_[promise.unit];
        if (promise.versions > one.settled) settle(promise.unit, promise.versions - one.settled);
      }
    }
    promised_.erase(found);
  }

  void settle(std::uint32_t unit, std::size_t count) {
    Unit& one = units_[unit];
    if (count == one.pending.size()) {
      const std::uint64_t at = offset_of(unit);
      std::memcpy(durable_.data() + at, newest_.data() + at, bytes_of(unit));
      one.pending.clear();
      open_[one.open_at] = open_.back();
      units_[open_.back()].open_at = one.open_at;
      open_.pop_back();
    } else {
      for (std::size_t i = 0; i < count; ++i) put(durable_.data(), unit, one.pending[i]);
      one.pending.erase(one.pending.begin(), one.pending.begin() + static_cast<std::ptrdiff_t>(count));
    }
    one.settled += count;
    if (!is_structure(unit)) ++journal_version_;
  }

  std::uint64_t structure_bytes_, unit_bytes_;
  std::uint32_t structure_units_;
  std::vector<std::byte> durable_, newest_;
  std::vector<Unit> units_;
  std::vector<std::uint32_t> open_;
  std::vector<bool> dirty_;                                           // pages
  std::unordered_map<std::uint32_t, std::vector<Promise>> promised_;  // by call: what it makes durable
  bool frozen_ = false;
  std::uint64_t journal_version_ = 0;
};

/// What media.hpp promises at a moment of a record.
class PromiseWalk {
 public:
  PromiseWalk(const std::byte* base, std::uint64_t bytes) : settled_(base, base + bytes), lines_(bytes / kLineBytes) {}

  void step(const Event& event, const std::vector<SimFile::Call>& calls) {
    switch (event.kind) {
      case EventKind::kStore: add(event.word * sizeof(Word), event.value); break;
      case EventKind::kFlush:
        if (event.thread >= flushed_.size()) flushed_.resize(event.thread + 1U);
        flushed_[event.thread].push_back({event.word, lines_[event.word].settled + lines_[event.word].pending.size()});
        break;
      case EventKind::kFence:
        if (event.thread >= flushed_.size()) break;
        for (const auto& [line, stores] : flushed_[event.thread]) settle(line, stores);
        flushed_[event.thread].clear();
        break;
      case EventKind::kCall: {
        const SimFile::Call& call = calls[event.word];
        if (call.kind != CallKind::kWrite || event.value != 0 || call.offset >= settled_.size()) break;
        for (std::uint64_t at = 0; at < call.bytes; at += sizeof(Word)) {
          std::uint64_t value;
          std::memcpy(&value, call.data.data() + at, sizeof value);
          add(call.offset + at, value);
        }
        break;
      }
      case EventKind::kMark: break;
    }
  }

  /// Is the image as promised? A sentence if not.
  [[nodiscard]] std::optional<std::string> check(const std::byte* image) const {
    if (std::memcmp(image, settled_.data(), settled_.size()) == 0) return std::nullopt;
    for (std::size_t line = 0; line < lines_.size(); ++line) {
      const std::byte* at = image + line * kLineBytes;
      if (std::memcmp(at, settled_.data() + line * kLineBytes, kLineBytes) == 0) continue;
      alignas(8) std::byte prefix[kLineBytes];
      std::memcpy(prefix, settled_.data() + line * kLineBytes, kLineBytes);
      bool found = false;
      for (const auto& [offset, value] : lines_[line].pending) {
        std::memcpy(prefix + offset % kLineBytes, &value, sizeof value);
        found = std::memcmp(prefix, at, kLineBytes) == 0;
        if (found) break;
      }
      if (!found)
        return "line " + std::to_string(line) +
               " lacks a store that was fenced, or has a store without the earlier ones";
    }
    return std::nullopt;
  }

 private:
  struct Line {
    std::vector<std::pair<std::uint64_t, std::uint64_t>> pending;  // offset and value
    std::size_t settled = 0;
  };

  void add(std::uint64_t offset, std::uint64_t value) {
    lines_[offset / kLineBytes].pending.emplace_back(offset, value);
  }
  void settle(std::uint32_t line, std::size_t stores) {
    Line& one = lines_[line];
    if (stores <= one.settled) return;
    const std::size_t count = stores - one.settled;
    for (std::size_t i = 0; i < count; ++i)
      std::memcpy(settled_.data() + one.pending[i].first, &one.pending[i].second, sizeof(Word));
    one.pending.erase(one.pending.begin(), one.pending.begin() + static_cast<std::ptrdiff_t>(count));
    one.settled = stores;
  }

  std::vector<std::byte> settled_;
  std::vector<Line> lines_;
  std::vector<std::vector<std::pair<std::uint32_t, std::size_t>>> flushed_;
};

/// What the journal of an image brings back.
struct Replay {
  bool needed = false;
  std::string error;
  std::vector<std::pair<std::uint64_t, std::array<std::uint64_t, kLineBytes / 8>>> lines;
};

class FileExploration {
 public:
  FileExploration(Subject& subject, const FileExploreOptions& options, FileExploreResult& result)
      : subject_(subject), options_(options), result_(result), random_(options.seed) {}

  /// `fixed_moment`: the record is of a recovery after a crash at that moment; then `promised` is what the replayed
  /// image held when the first `unpromised` events, those of the replay, were over.
  bool run(SimFile& file, std::optional<std::size_t> fixed_moment, const std::vector<std::byte>* promised,
           std::size_t unpromised) {
    static constexpr std::uint64_t kUnits[] = {512, 64, 512, 4096};
    extent_ = file.extent();
    root_ = file.root();
    DiskWalk walk(file.base(), extent_.offset, kUnits[options_.seed / 4 % 4]);
    pages_bytes_ = extent_.offset;
    PromiseWalk promise(promised != nullptr ? promised->data() : file.base().data(), pages_bytes_);
    journal_image_ = file.base();
    image_.reset(static_cast<std::byte*>(std::aligned_alloc(kLineBytes, pages_bytes_)));
    const std::vector<Event>& events = file.events();
    const std::vector<SimFile::Call>& calls = file.calls();
    std::optional<std::size_t> frozen_at;
    for (std::size_t i = 0; i < events.size(); ++i) {
      const Event& event = events[i];
      const std::uint32_t newest = walk.step(event, calls);
      // A long write that another thread had begun when the disk refused may still come; it is in flight, as before.
      const bool counts = !walk.frozen() || event.kind == EventKind::kCall;
      if (counts && i >= unpromised) promise.step(event, calls);
      if (event.kind == EventKind::kCall) result_.sites.set(static_cast<std::size_t>(calls[event.word].site));
      if (walk.frozen() && !frozen_at) frozen_at = i + 1;
      const bool last = i + 1 == events.size();
      // Nothing changes after an error, if the code is right; so the end is as good as all that lies before.
      if (frozen_at && *frozen_at != i + 1 && !last) continue;
      const bool call = event.kind == EventKind::kCall;
      if (event.kind != EventKind::kStore && event.kind != EventKind::kMark && !call && !last) continue;
      ++result_.moments;
      std::size_t count = options_.images_per_moment;
      if (call && event.value == 0 && calls[event.word].kind == CallKind::kDurableWrite) count *= 3;
      if (frozen_at) count *= last ? 16 : 4;
      if (event.kind == EventKind::kStore) count = (count + 3) / (subject_.is_unseen(event.point) ? 8 : 4);
      const std::size_t moment = frozen_at.value_or(i + 1);
      if (!images(walk, promise, newest, fixed_moment.value_or(moment), fixed_moment ? moment : 0,
                  std::max<std::size_t>(1, count)))
        return false;
    }
    return true;
  }

 private:
  /// `count` images of one moment, or all when there are fewer. `newest`: a unit whose latest version all of them hold.
  bool images(const DiskWalk& walk, const PromiseWalk& promise, std::uint32_t newest, std::size_t moment,
              std::size_t more, std::size_t count) {
    const std::vector<std::uint32_t>& open = walk.open_units();
    choice_.assign(open.size(), 0);
    double combinations = 1;
    for (std::size_t i = 0; i < open.size() && combinations <= static_cast<double>(count); ++i)
      combinations *= open[i] == newest ? 1 : static_cast<double>(walk.pending(open[i]) + 1);
    if (combinations <= static_cast<double>(count)) {
      for (std::size_t i = 0; i < open.size(); ++i) choice_[i] = open[i] == newest ? walk.pending(open[i]) : 0;
      for (;;) {
        if (!one(walk, promise, moment, more)) return false;
        std::size_t i = 0;
        while (i < open.size() && choice_[i] == walk.pending(open[i])) {
          choice_[i] = open[i] == newest ? choice_[i] : 0;
          ++i;
        }
        if (i == open.size()) return true;
        ++choice_[i];
      }
    }
    ++result_.moments_sampled;
    for (std::size_t n = 0; n < count; ++n) {
      // Pages and journal each in one of several ways, from one moment to the next.
      const std::uint64_t way = ways_++;
      choose(walk, true, way % 6);
      choose(walk, false, way / 6 % 7);
      for (std::size_t i = 0; i < open.size(); ++i) {
        if (open[i] == newest) choice_[i] = walk.pending(newest);
      }
      if (!one(walk, promise, moment, more)) return false;
    }
    return true;
  }

  /// Versions for the units of the structure, or for the others.
  void choose(const DiskWalk& walk, bool structure, std::uint64_t way) {
    const std::vector<std::uint32_t>& open = walk.open_units();
    std::size_t first = ~std::size_t{0}, units = 0;
    for (std::size_t i = 0; i < open.size(); ++i) {
      if (walk.is_structure(open[i]) != structure) continue;
      ++units;
      const std::size_t high = walk.pending(open[i]);
      switch (way) {
        case 0: choice_[i] = 0; break;
        case 1: choice_[i] = high; break;
        case 2: choice_[i] = random_() % 2 == 0 ? 0 : high; break;
        case 3: choice_[i] = random_() % (high + 1); break;
        case 4: choice_[i] = 0; break;
        case 5: choice_[i] = high; break;
        default: {  // All from some place on.
          if (first == ~std::size_t{0}) first = random_() % open.size();
          choice_[i] = i >= first ? high : 0;
          break;
        }
      }
    }
    if (units == 0 || (way != 4 && way != 5)) return;
    // One ahead of the others, or behind.
    std::size_t left = random_() % units;
    for (std::size_t i = 0; i < open.size(); ++i) {
      if (walk.is_structure(open[i]) == structure && left-- == 0) choice_[i] = way == 4 ? walk.pending(open[i]) : 0;
    }
  }

  bool one(const DiskWalk& walk, const PromiseWalk& promise, std::size_t moment, std::size_t more) {
    const std::vector<std::uint32_t>& open = walk.open_units();
    std::byte* const image = image_.get();
    std::memcpy(image, walk.durable().data(), pages_bytes_);
    std::uint64_t key = walk.journal_version();
    for (std::size_t i = 0; i < open.size(); ++i) {
      if (!walk.is_structure(open[i])) {
        key = (key ^ (open[i] * 1000003ULL + choice_[i])) * 0x9e3779b97f4a7c15ULL;
      } else if (choice_[i] != 0) {
        walk.apply(image, open[i], choice_[i]);
      }
    }
    const Replay& replay = replay_of(walk, key);
    ++result_.images;
    if (nested_) ++result_.recovery_images;
    result_.replayed += replay.needed ? 1 : 0;
    if (!replay.error.empty()) return wrong(moment, more, "the journal can't be replayed: " + replay.error);
    const bool deeper = !nested_ && random_() % (options_.recovery_every * 64) == 0;
    if (deeper) copy_raw(walk, image);
    for (const auto& [offset, words] : replay.lines) {
      if (offset < pages_bytes_) std::memcpy(image + offset, words.data(), kLineBytes);
    }
    if (auto broken = promise.check(image)) return wrong(moment, more, *broken);
    const bool worth = deeper && (replay.needed || subject_.recovery_has_work(image));
    if (worth) replayed_image_.assign(image, image + pages_bytes_);
    if (auto broken = subject_.check(image, moment, went_on_ ? more : 0)) return wrong(moment, more, *broken);
    if (!worth) return true;
    return recover(moment);
  }

  bool wrong(std::size_t moment, std::size_t more, const std::string& what) {
    result_.violation = "after event " + std::to_string(moment);
    if (more != 0)
      *result_.violation += ", a crash, and event " + std::to_string(more) + " of recovery and what followed";
    *result_.violation += ": " + what;
    return false;
  }

  /// The whole file of this image, as it is before the replay.
  void copy_raw(const DiskWalk& walk, const std::byte* image) {
    raw_ = walk.durable();
    std::memcpy(raw_.data(), image, pages_bytes_);
    put_journal(walk, raw_.data());
  }
  void put_journal(const DiskWalk& walk, std::byte* file) const {
    const std::vector<std::uint32_t>& open = walk.open_units();
    for (std::size_t i = 0; i < open.size(); ++i) {
      if (!walk.is_structure(open[i]) && choice_[i] != 0) walk.apply(file, open[i], choice_[i]);
    }
  }

  /// Most images of a moment have the same journal.
  const Replay& replay_of(const DiskWalk& walk, std::uint64_t key) {
    if (replays_version_ != walk.journal_version()) {
      replays_.clear();
      replays_version_ = walk.journal_version();
      std::memcpy(journal_image_.data() + extent_.offset, walk.durable().data() + extent_.offset,
                  walk.durable().size() - extent_.offset);
    }
    const auto [found, is_new] = replays_.try_emplace(key);
    Replay& replay = found->second;
    if (!is_new) return replay;
    put_journal(walk, journal_image_.data());
    std::uint64_t id = 0;
    std::memcpy(&id, journal_image_.data() + root_, sizeof id);
    replay.needed = id != 0;
    if (id != 0) {
      const Status status = detail::replay_journal(
          std::span<const std::byte>(journal_image_.data() + extent_.offset, extent_.bytes), id, journal_image_.size(),
          extent_, [&replay](std::uint64_t offset, const std::uint64_t* words) {
            auto& [at, copy] = replay.lines.emplace_back();
            at = offset;
            std::memcpy(copy.data(), words, kLineBytes);
          });
      if (!status) replay.error = status.error().message;
    }
    for (const std::uint32_t unit : walk.open_units()) {
      if (walk.is_structure(unit)) continue;
      const std::uint64_t at = walk.offset_of(unit);
      std::memcpy(journal_image_.data() + at, walk.durable().data() + at, walk.bytes_of(unit));
    }
    return replay;
  }

  /// Recovers the image under recording, goes on working, and explores that.
  bool recover(std::size_t moment) {
    SimFile::Options how;
    how.structure_bytes = subject_.bytes();
    how.shape = SimFile::Shape::of(options_.seed);
    how.shape.fences_before_journal = random_() % 3;
    how.seed = options_.seed;
    how.mutation = options_.mutation;
    if (options_.errors && random_() % 4 == 0) {
      how.fail_at = 1 + random_() % 5;
      how.fail_with = EIO;
    }
    SimFile file(how);
    std::memcpy(file.data(), raw_.data(), raw_.size());
    file.start();
    const auto broken = file.replay();
    const bool refused = broken && file.has_failed();
    if (broken && !refused) return wrong(moment, 0, *broken);
    const std::size_t replayed = file.events().size();
    const std::vector<std::byte> promised = replayed_image_;
    if (!refused) subject_.recover(file, moment);
    file.finish();
    file.stop();
    FileExploreOptions options = options_;
    options.images_per_moment = std::max<std::size_t>(1, options_.images_per_moment / 2);
    options.seed = options_.seed + random_() % 1000 * 16;  // The same units.
    FileExploration inner(subject_, options, result_);
    inner.nested_ = true;
    inner.went_on_ = !refused;
    return inner.run(file, moment, &promised, replayed);
  }

  struct Freed {
    void operator()(std::byte* memory) const noexcept { std::free(memory); }
  };

  Subject& subject_;
  const FileExploreOptions options_;
  FileExploreResult& result_;
  std::mt19937_64 random_;
  bool nested_ = false;  // The record is of a recovery,
  bool went_on_ = true;  // which came as far as the structure.
  detail::JournalExtent extent_;
  std::uint64_t root_ = 0;
  std::size_t pages_bytes_ = 0;
  std::unique_ptr<std::byte, Freed> image_;  // of the pages
  std::vector<std::byte> raw_, replayed_image_;
  std::vector<std::byte> journal_image_;  // of the whole file; the journal and the root are used
  std::vector<std::size_t> choice_;       // for each open unit, how many of its versions
  std::uint64_t ways_ = 0;
  std::unordered_map<std::uint64_t, Replay> replays_;
  std::uint64_t replays_version_ = ~0ULL;
};

}  // namespace

FileExploreResult explore_file(Subject& subject, const std::vector<std::size_t>& keep,
                               const FileExploreOptions& options) {
  FileExploreResult result;
  SimFile::Options how;
  how.structure_bytes = subject.bytes();
  how.shape = SimFile::Shape::of(options.seed);
  how.seed = options.seed;
  how.mutation = options.mutation;
  const auto record = [&](SimFile& file) {
    auto wrong = subject.record(file, keep);
    file.finish();
    file.stop();
    return wrong;
  };
  if (options.errors && options.seed % 4 != 0) {
    SimFile fine(how);
    if (auto wrong = record(fine)) {
      result.violation = std::move(wrong);
      return result;
    }
    // Of all that calls are for, one; and of those, one.
    std::vector<std::vector<std::size_t>> by_site(kSites);
    for (std::size_t i = 0; i < fine.fallible().size(); ++i)
      by_site[static_cast<std::size_t>(fine.fallible()[i])].push_back(i + 1);
    std::erase_if(by_site, [](const auto& calls) { return calls.empty(); });
    std::mt19937_64 random(options.seed);
    if (!by_site.empty()) {
      const std::vector<std::size_t>& calls = by_site[random() % by_site.size()];
      how.fail_at = calls[random() % calls.size()];
      how.fail_with = random() % 3 == 0 ? ENOSPC : EIO;
    }
  }
  SimFile file(how);
  const std::optional<std::string> wrong = record(file);
  result.refused += file.has_failed() ? 1 : 0;
  // After an error operations may end as they like; what they acknowledge counts no more.
  if (wrong && (file.ok() || wrong->find("wait for each other") != std::string::npos)) {
    result.violation = wrong;
    return result;
  }
  FileExploration(subject, options, result).run(file, std::nullopt, nullptr, 0);
  return result;
}

}  // namespace dunnock::crash
