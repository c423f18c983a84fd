// media_ok() of media.hpp as a Status: may a structure still acknowledge anything?
#pragma once

#include "dunnock/base/result.hpp"
#include "dunnock/pmem/media.hpp"

namespace dunnock {

/// Errors: Io: the medium has failed permanently.
template <Media M>
[[nodiscard]] Status media_status(const M& media) {
  if (media_ok(media)) return {};
  return make_error(ErrorCode::kIo, "the storage has failed: nothing is acknowledged until the pool is opened again");
}

}  // namespace dunnock
