// Errors of the outside world as values: Result<T>, Status and Error.
//
// Not for programmer errors (see check.hpp) and not for ordinary answers such as "the filter is full" (a bool).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#if defined(DUNNOCK_DEVICE_ONLY)
// Where only CUDA is available: the same class from CUDA's own standard library.
#include <cuda/std/expected>
namespace tl = ::cuda::std;
#else
#include <tl/expected.hpp>
#endif

namespace dunnock {

/// What went wrong, coarse enough to act on. `Error::message` has the details in words.
enum class ErrorCode : std::uint8_t {
  kInvalidArgument,  ///< The caller's options contradict each other or are out of range.
  kNotFound,         ///< No such file, region or structure.
  kAlreadyExists,    ///< Creating would overwrite something.
  kAlreadyOpen,      ///< Another handle (here or in another process) holds the pool.
  kNotADunnockPool,  ///< The file is not one of ours: foreign, truncated or zeroed.
  kWrongVersion,     ///< Ours, but in a format version that this build does not read.
  kWrongLayout,      ///< Ours, but with another structure or parameter (e.g. the fingerprint width).
  kCorrupt,          ///< Ours, but a checksum or an invariant does not hold. Nothing was changed.
  kNoSpace,          ///< The pool, the disk or the memory is exhausted.
  kReadOnly,         ///< The file or the directory can't be written.
  kUnsupported,      ///< This machine can't do that (e.g. no DAX here).
  kPeerLost,         ///< Another rank is gone or has not answered in time.
  kDevice,           ///< A GPU, or an operation on a device, has failed.
  kIo,               ///< Any other refusal by the operating system.
};

/// The name of a code as in the source, without the `k`, e.g. "NotFound".
[[nodiscard]] std::string_view to_string(ErrorCode code) noexcept;

struct Error {
  ErrorCode code;
  std::string message;  // One sentence that includes the path or number concerned.
};

template <class T>
using Result = tl::expected<T, Error>;
using Status = Result<void>;

[[nodiscard]] inline tl::unexpected<Error> make_error(ErrorCode code, std::string message) {
  return tl::unexpected<Error>(Error{code, std::move(message)});
}

}  // namespace dunnock

/// Passes an error on to the caller. The function must return a Result, a Status or a tl::unexpected<Error>.
///
///   DUNNOCK_TRY(check(options));                  // for a Status, or a Result whose value is not needed
///   DUNNOCK_TRY(auto pool, Pool::open(path));     // declares `pool`, the value itself
///   DUNNOCK_TRY(options.bytes, parse(text));      // assigns
///
/// The second form is several statements: not for the only statement of an `if`. A lambda needs its return type.
#define DUNNOCK_TRY(first, ...) DUNNOCK_DETAIL_TRY##__VA_OPT__(_VALUE)(first __VA_OPT__(, ) __VA_ARGS__)

#define DUNNOCK_DETAIL_TRY(...)                                                              \
  do {                                                                                       \
    auto&& dunnock_tried = __VA_ARGS__;                                                      \
    if (!dunnock_tried) [[unlikely]]                                                         \
      return ::tl::unexpected(std::forward<decltype(dunnock_tried)>(dunnock_tried).error()); \
  } while (false)
#define DUNNOCK_DETAIL_TRY_VALUE(target, ...) DUNNOCK_DETAIL_TRY_AT(__LINE__, target, __VA_ARGS__)
#define DUNNOCK_DETAIL_TRY_AT(line, target, ...) DUNNOCK_DETAIL_TRY_PASTED(line, target, __VA_ARGS__)
#define DUNNOCK_DETAIL_TRY_PASTED(line, target, ...) DUNNOCK_DETAIL_TRY_NAMED(dunnock_tried_##line, target, __VA_ARGS__)
#define DUNNOCK_DETAIL_TRY_NAMED(tried, target, ...)   \
  auto tried = __VA_ARGS__;                            \
  if (!tried) [[unlikely]]                             \
    return ::tl::unexpected(std::move(tried).error()); \
  target = *std::move(tried)
