// The chained hash of a PrefixStore's keys.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "dunnock/filter/hash.hpp"
#include "dunnock/index/index_format.hpp"

namespace dunnock::detail {

/// 128 bits of XXH3 of `before` and the bytes.
[[nodiscard]] IndexKey chained_hash(const IndexKey& before, std::span<const std::byte> bytes) noexcept;
/// The hash that a chain begins with: the hash of a secret.
[[nodiscard]] IndexKey chain_start(const HashSeed& secret) noexcept;

}  // namespace dunnock::detail
