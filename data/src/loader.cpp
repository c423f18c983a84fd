#include "dunnock/data/loader.hpp"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <string>

#include "dunnock/base/check.hpp"
#include "dunnock/device/memory.hpp"
#include "permutation.hpp"
#include "prefetch.hpp"

namespace dunnock::data {

namespace detail {

struct TokenSlot {
  device::PinnedBuffer<std::int32_t> windows;  // (rows, tokens + 1)
  device::PinnedBuffer<std::int32_t> inputs;   // (rows, tokens)
  device::PinnedBuffer<std::int32_t> targets;  // (rows, tokens)
  std::size_t rows = 0;
  std::size_t tokens = 0;
  LoaderPosition position;
};

struct ImageSlot {
  device::PinnedBuffer<float> images;         // (rows, channels, height, width)
  device::PinnedBuffer<std::int32_t> labels;  // (rows)
  std::size_t rows = 0;
  std::size_t pixels = 0;
  LoaderPosition position;
};

}  // namespace detail

namespace {

tl::unexpected<Error> refuse(const std::string& what) { return make_error(ErrorCode::kInvalidArgument, what); }

/// Which items batch n has: all that tokens and images have in common.
struct BatchPlan {
  std::uint64_t items = 0;  // Of an epoch.
  std::uint64_t batch = 0;
  std::uint64_t batches = 0;  // Of an epoch.
  std::uint64_t setup = 0;
  /// Of positions from before there were checksums of all formats of token files, where there may be such.
  std::optional<std::uint64_t> setup_without_checksum;
  Shard shard;

  [[nodiscard]] LoaderPosition position(std::uint64_t number) const {
    return {setup, number / batches, number % batches};
  }
  /// This rank's items of a batch: first and count, counted through the epoch.
  struct Part {
    std::uint64_t first, count;
  };
  [[nodiscard]] Part part(std::uint64_t batch_of_epoch) const {
    const std::uint64_t first = batch_of_epoch * batch, rows = std::min(batch, items - first);
    const std::uint64_t begin = rows * shard.rank / shard.ranks, end = rows * (shard.rank + 1ULL) / shard.ranks;
    return {first + begin, end - begin};
  }
  [[nodiscard]] std::uint64_t rows_max() const { return (batch + shard.ranks - 1) / shard.ranks; }
};

constexpr std::uint64_t kBatchMax = std::uint64_t{1} << 31;

Status check_common(std::uint64_t batch, const Shard& shard, unsigned buffers) {
  if (batch == 0 || batch > kBatchMax) return refuse("a batch needs 1 to 2^31 rows, not " + std::to_string(batch));
  if (shard.ranks == 0 || shard.rank >= shard.ranks)
    return refuse("rank " + std::to_string(shard.rank) + " is out of range: the number of ranks is " +
                  std::to_string(shard.ranks));
  if (shard.ranks > batch)
    return refuse("a batch of " + std::to_string(batch) + " rows can't be divided among " +
                  std::to_string(shard.ranks) + " ranks");
  if (buffers < 2 || buffers > 1024) return refuse("a loader needs 2 to 1024 buffers, not " + std::to_string(buffers));
  return {};
}

Result<std::uint64_t> first_number(const BatchPlan& plan, const LoaderPosition* start) {
  if (start == nullptr) return std::uint64_t{0};
  if (start->setup != plan.setup && start->setup != plan.setup_without_checksum)
    return refuse("the position belongs to other data or to another order, seed or batch size");
  std::uint64_t number = 0;
  if (start->batch >= plan.batches || __builtin_mul_overflow(start->epoch, plan.batches, &number) ||
      __builtin_add_overflow(number, start->batch, &number))
    return refuse("the position is out of range: epoch " + std::to_string(start->epoch) + ", batch " +
                  std::to_string(start->batch) + " of " + std::to_string(plan.batches));
  return number;
}

/// A key for one use of a seed in one epoch.
enum class Use : std::uint64_t { kOrder = 1, kPhase = 2, kBegins = 3 };
std::uint64_t key_of(std::uint64_t seed, std::uint64_t epoch, Use use) {
  return detail::mixed(detail::mixed(seed, epoch), static_cast<std::uint64_t>(use));
}

template <std::size_t N>
std::uint64_t setup_of(const std::array<std::uint64_t, N>& numbers) {
  return XXH3_64bits(numbers.data(), sizeof numbers);
}

// ----- tokens -------------------------------------------------------------------------------------------------------

/// Where window `item` of an epoch begins.
struct Windows {
  TokenRange range;
  std::uint64_t tokens = 0;
  Order order = Order::kSequential;
  std::uint64_t seed = 0;

  [[nodiscard]] std::uint64_t items() const {
    if (range.count <= tokens) return 0;
    // Shuffled, up to tokens - 1 are left out in front.
    return (range.count - (order == Order::kShuffled ? tokens : 1)) / tokens;
  }
  [[nodiscard]] std::uint64_t begin(std::uint64_t epoch, std::uint64_t item) const {
    switch (order) {
      case Order::kSequential: return range.first + item * tokens;
      case Order::kShuffled: {
        const std::uint64_t phase = detail::below(tokens, key_of(seed, epoch, Use::kPhase));
        const detail::Permutation permutation(items(), key_of(seed, epoch, Use::kOrder));
        return range.first + phase + permutation(item) * tokens;
      }
      case Order::kAnywhere:
        return range.first +
               detail::below(range.count - tokens, detail::mixed(key_of(seed, epoch, Use::kBegins), item));
    }
    return range.first;
  }
};

Status fill_tokens(const TokenFile& file, const BatchPlan& plan, const Windows& windows, std::uint64_t number,
                   detail::TokenSlot& slot) {
  slot.position = plan.position(number);
  const auto part = plan.part(slot.position.batch);
  slot.rows = part.count;
  const std::size_t tokens = windows.tokens;
  for (std::size_t row = 0; row < slot.rows; ++row) {
    const auto window = slot.windows.span().subspan(row * (tokens + 1), tokens + 1);
    auto copied = file.copy(windows.begin(slot.position.epoch, part.first + row), window);
    if (!copied) return copied;
    std::copy_n(window.begin(), tokens, slot.inputs.span().begin() + static_cast<std::ptrdiff_t>(row * tokens));
    std::copy_n(window.begin() + 1, tokens, slot.targets.span().begin() + static_cast<std::ptrdiff_t>(row * tokens));
  }
  return {};
}

// ----- images -------------------------------------------------------------------------------------------------------

/// What becomes of a pixel, channel by channel.
using PixelTable = std::vector<std::array<float, 256>>;

Result<PixelTable> pixel_table(const ImageLoaderOptions& options, std::size_t channels) {
  const auto fits = [channels](const std::vector<float>& values) {
    return values.size() == 1 || values.size() == channels;
  };
  if (!fits(options.mean) || !fits(options.deviation))
    return refuse("mean and deviation need 1 value or one for each of " + std::to_string(channels) + " channels, not " +
                  std::to_string(options.mean.size()) + " and " + std::to_string(options.deviation.size()));
  PixelTable table(channels);
  for (std::size_t channel = 0; channel < channels; ++channel) {
    const float mean = options.mean[options.mean.size() == 1 ? 0 : channel];
    const float deviation = options.deviation[options.deviation.size() == 1 ? 0 : channel];
    if (!(mean >= -1e6F && mean <= 1e6F)) return refuse("the mean must be -1e6 to 1e6, not " + std::to_string(mean));
    if (!(deviation > 0 && deviation <= 1e6F))
      return refuse("the deviation must be above 0 and at most 1e6, not " + std::to_string(deviation));
    for (unsigned pixel = 0; pixel < 256; ++pixel)
      table[channel][pixel] = (static_cast<float>(pixel) / 255.0F - mean) / deviation;
  }
  return table;
}

void fill_images(const ImageSet& images, const BatchPlan& plan, const ImageLoaderOptions& options,
                 const PixelTable& table, std::uint64_t number, detail::ImageSlot& slot) {
  slot.position = plan.position(number);
  const auto part = plan.part(slot.position.batch);
  slot.rows = part.count;
  const detail::Permutation permutation(plan.items, key_of(options.seed, slot.position.epoch, Use::kOrder));
  const std::size_t plane = images.height() * images.width();
  for (std::size_t row = 0; row < slot.rows; ++row) {
    const std::uint64_t item = part.first + row;
    const std::uint64_t index = options.order == Order::kShuffled ? permutation(item) : item;
    const std::uint8_t* from = images.image(index).data();
    float* to = slot.images.span().data() + row * slot.pixels;
    for (std::size_t channel = 0; channel < images.channels(); ++channel) {
      const auto& values = table[channel];
      for (std::size_t i = 0; i < plane; ++i) *to++ = values[*from++];
    }
    slot.labels.span()[row] = images.label(index);
  }
}

}  // namespace

// ----- TokenLoader --------------------------------------------------------------------------------------------------

struct TokenLoader::State {
  BatchPlan plan;
  std::uint64_t number = 0;  // Of the batch that next() gives next.
  bool start_lacks_checksum = false;
  std::shared_ptr<detail::Prefetch<detail::TokenSlot>> prefetch;

  ~State() {
    if (prefetch) prefetch->stop();  // Batches that are still out keep the memory, not the thread.
  }
};

Result<TokenLoader> TokenLoader::create(const TokenFile& file, TokenRange range, const TokenLoaderOptions& options,
                                        device::Device device, const LoaderPosition* start) {
  DUNNOCK_TRY(check_common(options.batch, options.shard, options.buffers));
  if (options.tokens == 0 || options.tokens > kBatchMax)
    return refuse("a row needs 1 to 2^31 tokens, not " + std::to_string(options.tokens));
  if (range.first > file.count() || range.count > file.count() - range.first)
    return refuse("tokens " + std::to_string(range.first) + " to " + std::to_string(range.first + range.count) +
                  " are out of range: the file has " + std::to_string(file.count()));
  const Windows windows{range, options.tokens, options.order, options.seed};
  BatchPlan plan{
      .items = windows.items(), .batch = options.batch, .setup_without_checksum = {}, .shard = options.shard};
  plan.batches = plan.items / plan.batch;
  if (plan.batches == 0)
    return refuse(std::to_string(range.count) + " tokens are too few for a batch of " + std::to_string(options.batch) +
                  " rows of " + std::to_string(options.tokens) + " tokens");
  const auto setup_with = [&](std::uint64_t checksum) {
    return setup_of(std::array<std::uint64_t, 10>{1, file.count(), file.vocabulary(), checksum, range.first,
                                                  range.count, options.batch, options.tokens,
                                                  static_cast<std::uint64_t>(options.order), options.seed});
  };
  plan.setup = setup_with(file.checksum());
  if (file.format() != TokenFile::Format::kDunnock) plan.setup_without_checksum = setup_with(0);
  DUNNOCK_TRY(const auto first, first_number(plan, start));

  std::vector<detail::TokenSlot> slots(options.buffers);
  for (detail::TokenSlot& slot : slots) {
    slot.tokens = options.tokens;
    const std::uint64_t count = plan.rows_max() * options.tokens;  // At most 2^62.
    for (auto* buffer : {&slot.windows, &slot.inputs, &slot.targets}) {
      auto made =
          device::PinnedBuffer<std::int32_t>::create(buffer == &slot.windows ? count + plan.rows_max() : count, device);
      DUNNOCK_TRY(made);
      *buffer = std::move(*made);
    }
  }
  auto state = std::make_unique<State>();
  state->plan = plan;
  state->number = first;
  state->start_lacks_checksum = start != nullptr && start->setup != plan.setup;
  state->prefetch = std::make_shared<detail::Prefetch<detail::TokenSlot>>(
      std::move(slots), first, [file, plan, windows](std::uint64_t number, detail::TokenSlot& slot) {
        return fill_tokens(file, plan, windows, number, slot);
      });
  return TokenLoader(std::move(state));
}

TokenLoader::TokenLoader(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
TokenLoader::TokenLoader(TokenLoader&&) noexcept = default;
TokenLoader& TokenLoader::operator=(TokenLoader&&) noexcept = default;
TokenLoader::~TokenLoader() = default;

Result<TokenBatch> TokenLoader::next() {
  DUNNOCK_TRY(const auto slot, state_->prefetch->next());
  ++state_->number;
  return TokenBatch(std::make_unique<detail::Lease<detail::TokenSlot>>(state_->prefetch, slot));
}
LoaderPosition TokenLoader::position() const noexcept { return state_->plan.position(state_->number); }
std::uint64_t TokenLoader::batches_per_epoch() const noexcept { return state_->plan.batches; }
bool TokenLoader::start_lacks_checksum() const noexcept { return state_->start_lacks_checksum; }

TokenBatch::TokenBatch(std::unique_ptr<detail::Lease<detail::TokenSlot>> lease) noexcept : lease_(std::move(lease)) {}
TokenBatch::TokenBatch(TokenBatch&&) noexcept = default;
TokenBatch& TokenBatch::operator=(TokenBatch&&) noexcept = default;
TokenBatch::~TokenBatch() = default;

std::size_t TokenBatch::rows() const noexcept { return lease_->slot().rows; }
std::size_t TokenBatch::tokens() const noexcept { return lease_->slot().tokens; }
std::span<const std::int32_t> TokenBatch::windows() const noexcept {
  return lease_->slot().windows.span().first(rows() * (tokens() + 1));
}
std::span<const std::int32_t> TokenBatch::inputs() const noexcept {
  return lease_->slot().inputs.span().first(rows() * tokens());
}
std::span<const std::int32_t> TokenBatch::targets() const noexcept {
  return lease_->slot().targets.span().first(rows() * tokens());
}
const LoaderPosition& TokenBatch::position() const noexcept { return lease_->slot().position; }

// ----- ImageLoader --------------------------------------------------------------------------------------------------

struct ImageLoader::State {
  BatchPlan plan;
  std::uint64_t number = 0;  // Of the batch that next() gives next.
  std::shared_ptr<detail::Prefetch<detail::ImageSlot>> prefetch;

  ~State() {
    if (prefetch) prefetch->stop();  // Batches that are still out keep the memory, not the thread.
  }
};

Result<ImageLoader> ImageLoader::create(std::shared_ptr<const ImageSet> images, const ImageLoaderOptions& options,
                                        device::Device device, const LoaderPosition* start) {
  DUNNOCK_CHECK(images != nullptr, "a loader of images needs images");
  DUNNOCK_TRY(check_common(options.batch, options.shard, options.buffers));
  if (options.order == Order::kAnywhere) return refuse("the order of images must be sequential or shuffled");
  auto table = pixel_table(options, images->channels());
  DUNNOCK_TRY(table);
  BatchPlan plan{
      .items = images->count(), .batch = options.batch, .setup_without_checksum = {}, .shard = options.shard};
  plan.batches = options.keep_remainder ? (plan.items + plan.batch - 1) / plan.batch : plan.items / plan.batch;
  if (plan.batches == 0)
    return refuse(std::to_string(plan.items) + " images are too few for a batch of " + std::to_string(options.batch));
  plan.setup = setup_of(std::array<std::uint64_t, 9>{
      2, plan.items, images->pixels(), images->channels(), images->checksum(), options.batch,
      options.keep_remainder ? 1U : 0U, static_cast<std::uint64_t>(options.order), options.seed});
  DUNNOCK_TRY(const auto first, first_number(plan, start));

  std::vector<detail::ImageSlot> slots(options.buffers);
  for (detail::ImageSlot& slot : slots) {
    slot.pixels = images->pixels();
    std::size_t count = 0;
    if (__builtin_mul_overflow(plan.rows_max(), slot.pixels, &count)) count = SIZE_MAX;
    DUNNOCK_TRY(auto pixels, device::PinnedBuffer<float>::create(count, device));
    slot.images = std::move(pixels);
    auto labels = device::PinnedBuffer<std::int32_t>::create(plan.rows_max(), device);
    DUNNOCK_TRY(labels);
    slot.labels = std::move(*labels);
  }
  auto state = std::make_unique<State>();
  state->plan = plan;
  state->number = first;
  state->prefetch = std::make_shared<detail::Prefetch<detail::ImageSlot>>(
      std::move(slots), first,
      [images = std::move(images), plan, options, table = std::move(*table)](std::uint64_t number,
                                                                             detail::ImageSlot& slot) {
        fill_images(*images, plan, options, table, number, slot);
        return Status();
      });
  return ImageLoader(std::move(state));
}

ImageLoader::ImageLoader(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
ImageLoader::ImageLoader(ImageLoader&&) noexcept = default;
ImageLoader& ImageLoader::operator=(ImageLoader&&) noexcept = default;
ImageLoader::~ImageLoader() = default;

Result<ImageBatch> ImageLoader::next() {
  DUNNOCK_TRY(const auto slot, state_->prefetch->next());
  ++state_->number;
  return ImageBatch(std::make_unique<detail::Lease<detail::ImageSlot>>(state_->prefetch, slot));
}
LoaderPosition ImageLoader::position() const noexcept { return state_->plan.position(state_->number); }
std::uint64_t ImageLoader::batches_per_epoch() const noexcept { return state_->plan.batches; }

ImageBatch::ImageBatch(std::unique_ptr<detail::Lease<detail::ImageSlot>> lease) noexcept : lease_(std::move(lease)) {}
ImageBatch::ImageBatch(ImageBatch&&) noexcept = default;
ImageBatch& ImageBatch::operator=(ImageBatch&&) noexcept = default;
ImageBatch::~ImageBatch() = default;

std::size_t ImageBatch::rows() const noexcept { return lease_->slot().rows; }
std::span<const float> ImageBatch::images() const noexcept {
  return lease_->slot().images.span().first(rows() * lease_->slot().pixels);
}
std::span<const std::int32_t> ImageBatch::labels() const noexcept { return lease_->slot().labels.span().first(rows()); }
const LoaderPosition& ImageBatch::position() const noexcept { return lease_->slot().position; }

}  // namespace dunnock::data
