// Loaders: batches of tokens or of images, prepared by a thread while the caller computes.
//
//   thread   [batch 4: being filled] --> ready: [batch 3] [batch 2] --> next() --> the caller has [batch 1]
//              ^                                                                        |
//              +--------------------- when the caller's batch is destroyed -------------+
//
// Batch number n is a function of only the options and n: orders are pseudo-random permutations keyed by the seed and
// the epoch, without a generator that keeps state. So a position is two numbers, a run that is resumed there sees the
// same batches as one that never stopped, and the ranks of a data-parallel run divide each batch among themselves
// without communication: their rows, in the order of the ranks, are the same whatever the number of ranks.
//
// Batches are in pinned memory. A batch that is being uploaded must not be destroyed before the stream has passed the
// copy.
//
// Threads: one thread at a time calls a loader; batches may be destroyed on any thread, even after the loader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/data/idx.hpp"
#include "dunnock/data/token_file.hpp"
#include "dunnock/device/device.hpp"

namespace dunnock::data {

namespace detail {
struct TokenSlot;
struct ImageSlot;
template <class Slot>
class Prefetch;
template <class Slot>
class Lease;
}  // namespace detail

/// Identifies the next batch. Plain data: save its bytes with the weights.
struct LoaderPosition {
  std::uint64_t setup = 0;  ///< Hash of the data, the order, the seed and the batch, but not of the ranks.
  std::uint64_t epoch = 0;
  std::uint64_t batch = 0;  ///< Batch within the epoch, below batches_per_epoch().
  friend bool operator==(const LoaderPosition&, const LoaderPosition&) = default;
};
static_assert(sizeof(LoaderPosition) == 24);

enum class Order : std::uint8_t {
  kSequential,  ///< In the order of the data.
  kShuffled,    ///< Each once per epoch, in another order each time.
  /// Tokens only: windows that begin anywhere, with repetitions (as nanoGPT does). An epoch is as many batches as
  /// would hold the tokens once.
  kAnywhere,
};

/// Which part of each batch this rank gets: rows rank * rows / ranks to (rank + 1) * rows / ranks.
struct Shard {
  unsigned rank = 0;
  unsigned ranks = 1;
};

// ----- tokens -------------------------------------------------------------------------------------------------------

struct TokenLoaderOptions {
  std::size_t batch = 1;   ///< Rows per batch, of all ranks together.
  std::size_t tokens = 1;  ///< Tokens per row: what the model sees at once.
  /// kShuffled: windows of tokens + 1 that overlap by one, from another first token each epoch, so that the cuts vary.
  /// What is left at the end and fills no batch is not seen in that epoch.
  Order order = Order::kShuffled;
  std::uint64_t seed = 0;
  Shard shard = {};
  unsigned buffers = 3;  ///< 2 or more. The caller must hold fewer at a time.
};

/// This rank's rows of a batch. Move-only; when it is destroyed, the loader fills its memory again.
class TokenBatch {
 public:
  TokenBatch(TokenBatch&&) noexcept;
  TokenBatch& operator=(TokenBatch&&) noexcept;
  ~TokenBatch();

  [[nodiscard]] std::size_t rows() const noexcept;
  [[nodiscard]] std::size_t tokens() const noexcept;
  /// (rows, tokens + 1): the windows.
  [[nodiscard]] std::span<const std::int32_t> windows() const noexcept;
  /// (rows, tokens): each window without its last token.
  [[nodiscard]] std::span<const std::int32_t> inputs() const noexcept;
  /// (rows, tokens): each window without its first token, which the model must predict.
  [[nodiscard]] std::span<const std::int32_t> targets() const noexcept;
  /// The position of this batch, not of the next one.
  [[nodiscard]] const LoaderPosition& position() const noexcept;

 private:
  friend class TokenLoader;
  explicit TokenBatch(std::unique_ptr<detail::Lease<detail::TokenSlot>> lease) noexcept;
  std::unique_ptr<detail::Lease<detail::TokenSlot>> lease_;
};

class TokenLoader {
 public:
  /// Makes a loader for the tokens in `range` of `file`, which it keeps open; batches are pinned for `device`. It
  /// begins at `start`, a position of a loader with the same data, order, seed and batch, or at the beginning. Errors:
  /// InvalidArgument: the options are out of range, the range is not in the file or has too few tokens for one batch,
  /// or `start` is of another setup; NoSpace.
  [[nodiscard]] static Result<TokenLoader> create(const TokenFile& file, TokenRange range,
                                                  const TokenLoaderOptions& options, device::Device device,
                                                  const LoaderPosition* start = nullptr);
  TokenLoader(TokenLoader&&) noexcept;
  TokenLoader& operator=(TokenLoader&&) noexcept;
  ~TokenLoader();

  /// Waits for the next batch. Errors: InvalidArgument: the caller holds all buffers, and would wait for itself;
  /// Corrupt: the error of TokenFile::copy() for the first batch that can't be read, now and from then on.
  [[nodiscard]] Result<TokenBatch> next();
  /// The position of the batch that next() returns next. Its epoch increases as soon as an epoch's last batch is
  /// returned.
  [[nodiscard]] LoaderPosition position() const noexcept;
  [[nodiscard]] std::uint64_t batches_per_epoch() const noexcept;
  /// Was `start` made when token files in foreign formats had no checksum? It then fits this file's size and
  /// vocabulary, but whether the tokens are the same is unknown. position() has the checksum.
  [[nodiscard]] bool start_lacks_checksum() const noexcept;

 private:
  struct State;
  explicit TokenLoader(std::unique_ptr<State> state) noexcept;
  std::unique_ptr<State> state_;
};

// ----- images -------------------------------------------------------------------------------------------------------

struct ImageLoaderOptions {
  std::size_t batch = 1;           ///< Images per batch, of all ranks together.
  Order order = Order::kShuffled;  ///< Not kAnywhere.
  /// Keeps an epoch's last batch if it has fewer images, for evaluations that see each image once. False: omits it.
  bool keep_remainder = false;
  std::uint64_t seed = 0;
  /// A pixel becomes (pixel / 255 - mean) / deviation; one value for all channels, or one per channel.
  std::vector<float> mean = {0};
  std::vector<float> deviation = {1};
  Shard shard = {};
  unsigned buffers = 3;  ///< 2 or more. The caller must hold fewer at a time.
};

/// This rank's images of a batch. Move-only; when it is destroyed, the loader fills its memory again.
class ImageBatch {
 public:
  ImageBatch(ImageBatch&&) noexcept;
  ImageBatch& operator=(ImageBatch&&) noexcept;
  ~ImageBatch();

  /// May be 0, since the remainder of an epoch is divided among the ranks too.
  [[nodiscard]] std::size_t rows() const noexcept;
  /// (rows, channels, height, width)
  [[nodiscard]] std::span<const float> images() const noexcept;
  /// (rows)
  [[nodiscard]] std::span<const std::int32_t> labels() const noexcept;
  /// The position of this batch, not of the next one.
  [[nodiscard]] const LoaderPosition& position() const noexcept;

 private:
  friend class ImageLoader;
  explicit ImageBatch(std::unique_ptr<detail::Lease<detail::ImageSlot>> lease) noexcept;
  std::unique_ptr<detail::Lease<detail::ImageSlot>> lease_;
};

class ImageLoader {
 public:
  /// Like TokenLoader::create(). Errors: InvalidArgument: the options are out of range, there are too few images for a
  /// batch, or `start` is of another setup; NoSpace.
  [[nodiscard]] static Result<ImageLoader> create(std::shared_ptr<const ImageSet> images,
                                                  const ImageLoaderOptions& options, device::Device device,
                                                  const LoaderPosition* start = nullptr);
  ImageLoader(ImageLoader&&) noexcept;
  ImageLoader& operator=(ImageLoader&&) noexcept;
  ~ImageLoader();

  /// Waits for the next batch. Errors: InvalidArgument: the caller holds all buffers.
  [[nodiscard]] Result<ImageBatch> next();
  [[nodiscard]] LoaderPosition position() const noexcept;  ///< As TokenLoader's.
  [[nodiscard]] std::uint64_t batches_per_epoch() const noexcept;

 private:
  struct State;
  explicit ImageLoader(std::unique_ptr<State> state) noexcept;
  std::unique_ptr<State> state_;
};

}  // namespace dunnock::data
