#include "dunnock/training/checkpoints.hpp"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <future>
#include <numeric>
#include <utility>

#include "dunnock/index/checkpoint_saver.hpp"

namespace dunnock::training {
namespace {

constexpr std::string_view kStore = "training";
constexpr std::string_view kRun = "run";

std::string tensor_name(const model::StateTensor& tensor) {
  switch (tensor.what) {
    case model::StateTensor::What::kFirstMoment: return "optimizer.first_moment." + tensor.name;
    case model::StateTensor::What::kSecondMoment: return "optimizer.second_moment." + tensor.name;
    case model::StateTensor::What::kWeight:
    case model::StateTensor::What::kStatistic: break;
  }
  return tensor.name;
}

std::uint64_t size_of(const model::StateTensor& tensor) {
  return std::accumulate(tensor.shape.begin(), tensor.shape.end(), std::uint64_t{1}, std::multiplies<>());
}

TensorSpec spec_of(const model::StateTensor& tensor) {
  TensorSpec spec{tensor_name(tensor), Dtype::kF32, {tensor.shape.begin(), tensor.shape.end()}};
  // As it lies.
  if (tensor.positions > 1) {
    const std::uint64_t out = tensor.shape.front();
    spec.shape = {out, tensor.positions, size_of(tensor) / out / tensor.positions};
  }
  return spec;
}

/// Infinities and NaN have all bits of the exponent.
bool all_finite(std::span<const float> values) {
  constexpr std::uint32_t kExponent = 0x7F800000;
  std::uint32_t found = 0;
  for (const float value : values) found |= (std::bit_cast<std::uint32_t>(value) & kExponent) == kExponent ? 1 : 0;
  return found == 0;
}

/// Rank 0 does the work, and all return what it returns. The others hear from it meanwhile, for ranks that wait for
/// another for long would call it lost.
Status on_first(ranks::Communicator* world, const std::function<Status()>& work) {
  constexpr std::chrono::milliseconds kRound{20};
  if (world == nullptr) return work();
  const bool works = world->rank() == 0;
  DUNNOCK_TRY(auto stream, device::Stream::create(device::Device::cpu()));
  std::future<Status> result;
  if (works) result = std::async(std::launch::async, work);
  Status status;
  struct Words {
    std::uint64_t done = 0;
    std::uint64_t failed = 0;
    std::uint64_t code = 0;
    char message[240] = {};
  } words;
  while (words.done == 0) {
    if (works && result.wait_for(kRound) == std::future_status::ready) {
      words.done = 1;
      status = result.get();
      if (!status) {
        words.failed = 1;
        words.code = static_cast<std::uint64_t>(status.error().code);
        status.error().message.copy(words.message, sizeof(words.message) - 1);
      }
    }
    world->broadcast<std::byte>({reinterpret_cast<std::byte*>(&words), sizeof(words)}, 0, stream);
    DUNNOCK_TRY(stream.synchronize());
  }
  if (words.failed != 0 && !works) return make_error(static_cast<ErrorCode>(words.code), words.message);
  return status;
}

/// Bytes of rank 0 to all; the others have room for as many.
Status tell(ranks::Communicator* world, std::span<std::byte> bytes) {
  if (world == nullptr) return {};
  DUNNOCK_TRY(auto stream, device::Stream::create(device::Device::cpu()));
  world->broadcast<std::byte>({bytes.data(), bytes.size()}, 0, stream);
  return stream.synchronize();
}
Status tell(ranks::Communicator* world, std::uint64_t& word) {
  return tell(world, std::as_writable_bytes(std::span(&word, 1)));
}
Status tell(ranks::Communicator* world, std::string& text) {
  std::uint64_t size = text.size();
  DUNNOCK_TRY(tell(world, size));
  text.resize(size);
  return size == 0 ? Status() : tell(world, std::as_writable_bytes(std::span(text)));
}

TensorSpec position_spec() { return {"training.position", Dtype::kU8, {sizeof(Position)}}; }

}  // namespace

/// What does the work on rank 0, whatever the media.
class Checkpoints::Impl {
 public:
  class Disk {
   public:
    virtual ~Disk() = default;
    [[nodiscard]] virtual Status restore(std::uint64_t version, std::span<const TensorSink> sinks) const = 0;
    [[nodiscard]] virtual PendingSave save(std::uint64_t version, std::vector<TensorSource> sources,
                                           CheckpointNotes notes) = 0;
    /// All, ascending, also those that can't be read, of which some may have no version that can be told.
    [[nodiscard]] virtual std::vector<CheckpointInfo> list() const = 0;
    [[nodiscard]] virtual Status verify(std::uint64_t version) const = 0;
    /// All newer ones, the newest first, and damaged lines of the catalog.
    [[nodiscard]] virtual Status forget_newer(std::uint64_t version) = 0;
    /// Removes those that the retention does not keep: it may be another one than that of the run before.
    virtual void retain() = 0;

    /// Versions that can be read, ascending.
    [[nodiscard]] std::vector<std::uint64_t> versions() const;
    /// The version itself, or the newest; none: there is none at all. Errors: NotFound; Corrupt (it is damaged, or it
    /// may be among what can't be read).
    [[nodiscard]] Result<std::optional<std::uint64_t>> find(std::optional<std::uint64_t> version) const;
  };

  Impl(Trainer& trainer, ranks::Communicator* world) : trainer_(trainer), world_(world) {}
  ~Impl() {
    if (pending_) (void)pending_->wait();
  }

  Status open(const CheckpointsOptions& options);
  Result<std::optional<Position>> resume(std::optional<std::uint64_t> step, std::uint64_t setup);
  Status remove_newer(std::uint64_t step);
  Status verify(std::optional<std::uint64_t> step);
  Result<std::optional<SaveReport>> save(const Position& position, CheckpointNotes notes);
  Result<std::optional<SaveReport>> wait();
  Result<std::optional<std::uint64_t>> newest_sound(std::uint64_t below);
  Result<SaveReport> save_held(const Position& position, CheckpointNotes notes, const std::function<void()>& captured);
  [[nodiscard]] const Disk* disk() const { return disk_.get(); }

 private:
  [[nodiscard]] bool works() const { return world_ == nullptr || world_->rank() == 0; }
  [[nodiscard]] bool in_place() const;
  /// `position` must stay as long as the sources. Errors: InvalidArgument: values that are not finite.
  [[nodiscard]] Result<std::vector<TensorSource>> sources_of(const Position& position,
                                                             const std::vector<model::StateTensor>& mine) const;
  Status wait_for_save();
  [[nodiscard]] Status together(const std::function<Status()>& work) const;
  Result<std::optional<Position>> read(std::optional<std::uint64_t> step, std::uint64_t setup,
                                       std::vector<std::vector<float>>& whole) const;

  Trainer& trainer_;
  ranks::Communicator* world_;
  std::optional<Pool> pool_;
  std::unique_ptr<Disk> disk_;
  std::optional<PendingSave> pending_;
  Position saved_;  // Read by the save under way, as are the next.
  Position held_;
  std::vector<std::vector<float>> gathered_;
};

namespace {

template <Media M>
class DiskOf final : public Checkpoints::Impl::Disk {
 public:
  DiskOf(CheckpointStore<M> store) : store_(std::move(store)) {}
  ~DiskOf() override {
    saver_.reset();
    store_.close();
  }
  Status start(const SaverOptions& options) {
    DUNNOCK_TRY(auto saver, CheckpointSaver<M>::create(store_, options));
    saver_ = std::move(saver);
    retention_ = options.retention;
    return {};
  }
  void retain() override {
    if (!retention_) return;
    const auto retained = store_.retain(kRun, *retention_);
    if (retained && retained->removed != 0)
      (void)store_.collect();  // While something is damaged, nothing is given back.
  }

  Status restore(std::uint64_t version, std::span<const TensorSink> sinks) const override {
    DUNNOCK_TRY(const auto restored, store_.restore(kRun, version, sinks));
    return {};
  }
  PendingSave save(std::uint64_t version, std::vector<TensorSource> sources, CheckpointNotes notes) override {
    return saver_->save(kRun, version, std::move(sources), std::move(notes));
  }
  std::vector<CheckpointInfo> list() const override { return store_.list(kRun); }
  Status verify(std::uint64_t version) const override { return store_.verify(kRun, version); }
  Status forget_newer(std::uint64_t version) override {
    const std::vector<CheckpointInfo> all = store_.list(kRun);
    for (auto newest = all.rbegin(); newest != all.rend(); ++newest) {
      if (newest->version == kLatestVersion || newest->version <= version) continue;
      DUNNOCK_TRY(store_.remove(kRun, newest->version));
    }
    store_.forget_damaged();
    retain();
    (void)store_.collect();  // What can't be read has just gone.
    return {};
  }

 private:
  CheckpointStore<M> store_;
  std::unique_ptr<CheckpointSaver<M>> saver_;
  std::optional<Retention> retention_;
};

std::string list_of(const std::vector<std::uint64_t>& versions) {
  std::string list;
  for (const std::uint64_t version : versions) list += (list.empty() ? "" : ", ") + std::to_string(version);
  return list;
}

std::uint64_t whole_bytes(const Trainer& trainer) {
  std::uint64_t bytes = sizeof(Position);
  for (const model::StateTensor& tensor : trainer.whole_state()) bytes += size_of(tensor) * sizeof(float);
  return bytes;
}

}  // namespace

std::vector<std::uint64_t> Checkpoints::Impl::Disk::versions() const {
  std::vector<std::uint64_t> readable;
  for (const CheckpointInfo& info : list()) {
    if (info.status) readable.push_back(info.version);
  }
  return readable;
}

Result<std::optional<std::uint64_t>> Checkpoints::Impl::Disk::find(std::optional<std::uint64_t> version) const {
  const std::vector<CheckpointInfo> all = list();
  std::vector<std::uint64_t> there;
  std::uint64_t lines = 0;  // of the catalog that can't be read
  std::optional<std::uint64_t> newest;
  for (const CheckpointInfo& info : all) {
    if (info.status) there.push_back(info.version);
    if (info.version == kLatestVersion) {
      ++lines;
      continue;
    }
    newest = info.version;
    if (version && info.version == *version) {
      if (info.status) return version;
      return make_error(info.status.error().code, "the checkpoint of step " + std::to_string(*version) +
                                                      " is damaged: " + info.status.error().message);
    }
  }
  const std::string unread = std::to_string(lines) + " of the catalog's lines can't be read";
  if (version) {
    const std::string others =
        there.empty() ? "; nor is there any other" : "; there are checkpoints of steps " + list_of(there);
    if (lines == 0)
      return make_error(ErrorCode::kNotFound, "there is no checkpoint of step " + std::to_string(*version) + others);
    return make_error(ErrorCode::kCorrupt, "there is no checkpoint of step " + std::to_string(*version) +
                                               " that can be read" + others + "; " + unread +
                                               ", and it may be one of them");
  }
  // One that was saved is not to be passed over without a word.
  if (lines != 0)
    return make_error(ErrorCode::kCorrupt, unread + ", so the newest checkpoint may be missing; " +
                                               (there.empty() ? "no other can be read"
                                                              : "those of these steps can be read: " + list_of(there)));
  return newest;  // If it is damaged, reading it reports that.
}

Status Checkpoints::Impl::open(const CheckpointsOptions& options) {
  const auto open_here = [&]() -> Status {
    const std::uint64_t state_bytes = whole_bytes(trainer_);
    CheckpointOptions store_options{.chunk_bytes = options.chunk_bytes};
    // A log lives on free segments, and the newest checkpoints stay while the next is written.
    store_options.segment_bytes = std::clamp<std::uint64_t>(std::bit_ceil(state_bytes / 4), 4 << 20, 32 << 20);
    store_options.capacity_bytes =
        options.capacity_bytes != 0
            ? options.capacity_bytes
            : std::max((options.retention.keep_last + 4) * state_bytes, 8 * store_options.segment_bytes);
    std::error_code unseen;  // What can't be looked at can't be made either, which says why.
    const bool there = std::filesystem::exists(options.path, unseen);
    const auto with_its_media = [&](Pool& pool, auto&& use) -> Status {
      MediaKind kind = MediaKind::kFile;
      if (options.media) {
        kind = *options.media;
      } else {
        DUNNOCK_TRY(const auto detected, detect_media(pool));
        kind = detected.kind;
      }
      return with_media(pool, kind, use);
    };
    const auto make_store = [&](Pool& pool) -> Status {
      return with_its_media(pool, [&]<class M>(M media) -> Status {
        DUNNOCK_TRY(auto store, CheckpointStore<M>::create(pool, kStore, store_options, media));
        store.close();
        return {};
      });
    };
    if (!there) {  // Sizes that can't be are refused before a file is made.
      DUNNOCK_TRY(CheckpointStore<FileMedia>::check_options(store_options));
    }
    DUNNOCK_TRY(auto pool, there ? Pool::open(options.path)
                                 : Pool::create_with(options.path,
                                                     {.bytes = CheckpointStore<FileMedia>::pool_bytes(store_options)},
                                                     make_store));
    pool_.emplace(std::move(pool));
    return with_its_media(*pool_, [&]<class M>(M media) -> Status {
      // One of other sizes goes on as it is.
      auto store = CheckpointStore<M>::open(*pool_, kStore, media);
      if (!store && store.error().code == ErrorCode::kNotFound)
        store = CheckpointStore<M>::create(*pool_, kStore, store_options, media);
      DUNNOCK_TRY(store);
      const std::uint64_t least = staging_bytes_min(1, store->chunk_bytes());
      const std::uint64_t staging = options.staging_bytes != 0
                                        ? options.staging_bytes
                                        : std::min<std::uint64_t>(state_bytes + 4 * least, 256 << 20);
      auto disk = std::make_unique<DiskOf<M>>(std::move(*store));
      if (Status started = disk->start({.staging_bytes = std::max(staging, least), .retention = options.retention});
          !started)
        return started;
      disk_ = std::move(disk);
      return {};
    });
  };
  return together(open_here);
}

Result<std::optional<Position>> Checkpoints::Impl::read(std::optional<std::uint64_t> step, std::uint64_t setup,
                                                        std::vector<std::vector<float>>& whole) const {
  DUNNOCK_TRY(const auto found, disk_->find(step));
  if (!found) return std::nullopt;
  const std::uint64_t version = *found;
  Position position;
  const std::vector<TensorSink> first{{position_spec(), std::as_writable_bytes(std::span(&position, 1)), {}}};
  DUNNOCK_TRY(disk_->restore(version, first));
  if (position.version != Position{}.version)
    return make_error(ErrorCode::kWrongVersion, "the checkpoint has version " + std::to_string(position.version));
  if (position.setup != setup)
    return make_error(ErrorCode::kInvalidArgument, "the checkpoint of step " + std::to_string(position.step) +
                                                       " belongs to another model, other data or another optimizer");
  std::vector<TensorSink> sinks;
  const std::vector<model::StateTensor> tensors = trainer_.whole_state();
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    whole[i].resize(size_of(tensors[i]));
    sinks.push_back({spec_of(tensors[i]), std::as_writable_bytes(std::span(whole[i])), {}});
  }
  DUNNOCK_TRY(disk_->restore(version, sinks));
  return position;
}

Result<std::optional<Position>> Checkpoints::Impl::resume(std::optional<std::uint64_t> step, std::uint64_t setup) {
  // What is still being copied must not change under it, nor a newer one appear.
  DUNNOCK_TRY(wait_for_save());
  const std::vector<model::StateTensor> tensors = trainer_.whole_state();
  std::vector<std::vector<float>> whole(tensors.size());
  struct Found {
    std::uint64_t there = 0;
    Position position;
  } found;
  const Status shared = together([&]() -> Status {
    DUNNOCK_TRY(auto position, read(step, setup, whole));
    if (position) found = {1, *position};
    return {};
  });
  DUNNOCK_TRY(shared);
  if (world_ != nullptr) {
    DUNNOCK_TRY(auto stream, device::Stream::create(device::Device::cpu()));
    world_->broadcast<std::byte>({reinterpret_cast<std::byte*>(&found), sizeof(found)}, 0, stream);
    DUNNOCK_TRY(stream.synchronize());
    if (found.there != 0) {
      for (std::size_t i = 0; i < tensors.size(); ++i) {
        whole[i].resize(size_of(tensors[i]));
        world_->broadcast<float>({whole[i].data(), whole[i].size()}, 0, stream);
      }
      DUNNOCK_TRY(stream.synchronize());
    }
  }
  if (found.there == 0) return std::nullopt;
  DUNNOCK_TRY(trainer_.load(whole));
  trainer_.set_steps_done(found.position.step);
  if (!step) {
    const Status retained = together([&]() -> Status {
      disk_->retain();
      return {};
    });
    DUNNOCK_TRY(retained);
  }
  return found.position;
}

Status Checkpoints::Impl::remove_newer(std::uint64_t step) {
  return together([&] { return disk_->forget_newer(step); });
}

Status Checkpoints::Impl::verify(std::optional<std::uint64_t> step) {
  return together([&]() -> Status {
    DUNNOCK_TRY(const auto found, disk_->find(step));
    if (!found) return make_error(ErrorCode::kNotFound, "there is no checkpoint");
    return disk_->verify(*found);
  });
}

Status Checkpoints::Impl::wait_for_save() {
  return together([this]() -> Status {
    if (pending_) (void)pending_->wait();  // A caller that needs the result asks again.
    return {};
  });
}

Status Checkpoints::Impl::together(const std::function<Status()>& work) const { return on_first(world_, work); }

Result<std::optional<std::uint64_t>> Checkpoints::Impl::newest_sound(std::uint64_t below) {
  std::uint64_t found[2] = {};  // Whether there is one, and which.
  const Status looked = together([&]() -> Status {
    const std::vector<std::uint64_t> there = disk_->versions();
    for (std::size_t i = there.size(); i-- > 0 && found[0] == 0;) {
      if (there[i] < below && disk_->verify(there[i])) found[0] = 1, found[1] = there[i];
    }
    return {};
  });
  DUNNOCK_TRY(looked);
  for (std::uint64_t& word : found) {
    DUNNOCK_TRY(tell(world_, word));
  }
  return found[0] != 0 ? std::optional(found[1]) : std::nullopt;
}

Result<std::optional<SaveReport>> Checkpoints::Impl::wait() {
  DUNNOCK_TRY(wait_for_save());
  if (!pending_) return std::nullopt;
  auto report = pending_->wait();
  pending_.reset();
  DUNNOCK_TRY(report);
  return *report;
}

bool Checkpoints::Impl::in_place() const {
  const bool one_stage =
      std::ranges::all_of(trainer_.plan().chunk_devices, [](unsigned device) { return device == 0; });
  return trainer_.device().backend() == device::Backend::kCpu && one_stage;
}

Result<std::vector<TensorSource>> Checkpoints::Impl::sources_of(const Position& position,
                                                                const std::vector<model::StateTensor>& mine) const {
  const std::vector<model::StateTensor> tensors = trainer_.whole_state();
  std::vector<TensorSource> sources;
  const auto add = [&sources](TensorSpec spec, std::span<const std::byte> bytes) {
    TensorSource source;
    source.spec = std::move(spec);
    source.bytes = bytes;
    sources.push_back(std::move(source));
  };
  add(position_spec(), std::as_bytes(std::span(&position, 1)));
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    std::span<const float> values;
    if (in_place()) {
      const auto here = std::ranges::find_if(mine, [&](const model::StateTensor& one) {
        return one.what == tensors[i].what && one.name == tensors[i].name;
      });
      values = {here->values.device_data(), here->values.size()};
    } else {
      values = gathered_[i];
    }
    // The loss tells only a step later; and the newest checkpoint is the one that a run goes on from.
    if (!all_finite(values))
      return make_error(ErrorCode::kInvalidArgument, "tensor '" + tensor_name(tensors[i]) +
                                                         "' has values that are not finite after step " +
                                                         std::to_string(position.step));
    add(spec_of(tensors[i]), std::as_bytes(values));
  }
  return sources;
}

Result<std::optional<SaveReport>> Checkpoints::Impl::save(const Position& position, CheckpointNotes notes) {
  Result<std::optional<SaveReport>> before = wait();
  // Where kernels write elsewhere than the host reads, or on several stages, a copy is made first. All stages must say
  // the same: the last one may have as many tensors as there are, one of them a copy of the first one's.
  if (!in_place() && trainer_.data_rank() == 0) {
    DUNNOCK_TRY(auto gathered, trainer_.gather());
    gathered_ = std::move(gathered);
  }
  if (!works()) return before;
  saved_ = position;
  DUNNOCK_TRY(auto sources, sources_of(saved_, trainer_.state()));
  pending_.emplace(disk_->save(position.step, std::move(sources), std::move(notes)));
  if (in_place()) {
    trainer_.before_next_update([pending = *pending_]() -> Status {
      pending.wait_captured();
      return {};
    });
  }
  return before;
}

Result<SaveReport> Checkpoints::Impl::save_held(const Position& position, CheckpointNotes notes,
                                                const std::function<void()>& captured) {
  if (!in_place() || !works())
    return make_error(ErrorCode::kUnsupported,
                      "only the first rank can save alone, and only what is in its own memory");
  held_ = position;
  DUNNOCK_TRY(auto sources, sources_of(held_, trainer_.held_state()));
  const PendingSave pending = disk_->save(position.step, std::move(sources), std::move(notes));
  pending.wait_captured();
  captured();
  return pending.wait();
}

Checkpoints::Checkpoints(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
Checkpoints::Checkpoints(Checkpoints&&) noexcept = default;
Checkpoints& Checkpoints::operator=(Checkpoints&&) noexcept = default;
Checkpoints::~Checkpoints() = default;

Result<Checkpoints> Checkpoints::open(const CheckpointsOptions& options, Trainer& trainer, ranks::Communicator* world) {
  auto impl = std::make_unique<Impl>(trainer, world);
  DUNNOCK_TRY(impl->open(options));
  return Checkpoints(std::move(impl));
}

Result<std::optional<Position>> Checkpoints::resume(std::uint64_t setup) { return impl_->resume({}, setup); }
Status Checkpoints::remove_newer(std::uint64_t step) { return impl_->remove_newer(step); }
Result<Position> Checkpoints::resume_from(std::uint64_t step, std::uint64_t setup) {
  DUNNOCK_TRY(const auto position, impl_->resume(step, setup));
  return *position;
}
Result<std::optional<SaveReport>> Checkpoints::save(const Position& position, CheckpointNotes notes) {
  return impl_->save(position, std::move(notes));
}
Result<std::optional<SaveReport>> Checkpoints::wait() { return impl_->wait(); }
std::vector<std::uint64_t> Checkpoints::versions() const {
  return impl_->disk() == nullptr ? std::vector<std::uint64_t>{} : impl_->disk()->versions();
}
Status Checkpoints::verify(std::optional<std::uint64_t> step) const { return impl_->verify(step); }
Result<std::optional<std::uint64_t>> Checkpoints::newest_sound(std::uint64_t below) const {
  return impl_->newest_sound(below);
}
Result<SaveReport> Checkpoints::save_held(const Position& position, CheckpointNotes notes,
                                          const std::function<void()>& captured) {
  return impl_->save_held(position, std::move(notes), captured);
}

Result<std::optional<CheckpointLabel>> Checkpoints::label(const std::string& path, std::optional<MediaKind> media,
                                                          std::optional<std::uint64_t> step,
                                                          ranks::Communicator* world) {
  CheckpointLabel label;
  std::uint64_t there = 0;
  const auto read = [&](Pool& pool, MediaKind kind) -> Status {
    return with_media(pool, kind, [&]<class M>(M media_of_pool) -> Status {
      auto store = CheckpointStore<M>::open(pool, kStore, media_of_pool);
      if (!store) return {};
      const auto version = step ? step : store->latest(kRun).value_or(std::nullopt);
      if (version) {
        if (auto manifest = store->manifest(kRun, *version)) {
          label = {*version, std::move(manifest->notes)};
          there = 1;
        }
      }
      store->close();
      return {};
    });
  };
  const Status looked = on_first(world, [&]() -> Status {
    std::error_code unseen;
    if (!std::filesystem::exists(path, unseen)) return {};
    auto pool = Pool::open(path);
    if (!pool) return {};
    if (!media) {
      const auto detected = detect_media(*pool);
      if (!detected) return {};
      media = detected->kind;
    }
    (void)read(*pool, *media);
    return {};
  });
  DUNNOCK_TRY(looked);
  std::uint64_t count = label.notes.size();
  for (std::uint64_t* word : {&there, &label.step, &count}) {
    DUNNOCK_TRY(tell(world, *word));
  }
  label.notes.resize(count);
  for (auto& [name, text] : label.notes) {
    DUNNOCK_TRY(tell(world, name));
    DUNNOCK_TRY(tell(world, text));
  }
  return there != 0 ? std::optional(std::move(label)) : std::nullopt;
}

}  // namespace dunnock::training
