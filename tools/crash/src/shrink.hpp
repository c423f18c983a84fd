// Takes operations away from a history while what is wrong with it stays.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace dunnock::crash {

/// `fails(keep)`: does a history of these operations still violate? Returns the ones that are needed.
template <class Fails>
std::vector<std::size_t> shrink_while(std::vector<std::size_t> keep, const Fails& fails) {
  // Halves first, then smaller pieces, then one by one (delta debugging, Zeller 1999, in its simplest form).
  for (std::size_t piece = keep.size() / 2; piece >= 1; piece /= 2) {
    for (std::size_t at = 0; at < keep.size();) {
      std::vector<std::size_t> fewer;
      for (std::size_t i = 0; i < keep.size(); ++i) {
        if (i < at || i >= at + piece) fewer.push_back(keep[i]);
      }
      if (fewer.size() < keep.size() && fails(fewer)) {
        keep = std::move(fewer);
      } else {
        at += piece;
      }
    }
  }
  return keep;
}

}  // namespace dunnock::crash
