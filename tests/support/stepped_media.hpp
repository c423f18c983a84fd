// A media that asks before each durable step (store, write, flush, fence) whether it is to take place: to kill a
// process at a step, or to leave memory as a crash at a step leaves it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dunnock/pmem/media.hpp"

namespace dunnock::test {

/// `Step::take()` is called before each step. False: the step does not take place.
template <Media Base, class Step>
struct SteppedMedia : Base {
  using Base::Base;
  SteppedMedia(const Base& base) noexcept : Base(base) {}  // NOLINT: it stands for its base.
  void store(Point point, Word& word, std::uint64_t value) const noexcept {
    if (Step::take()) Base::store(point, word, value);
  }
  void write(Point point, void* to, const void* from, std::size_t bytes) const noexcept {
    if (Step::take()) Base::write(point, to, from, bytes);
  }
  void flush(Point point, const void* address) const noexcept {
    if (Step::take()) Base::flush(point, address);
  }
  void fence(Point point) const noexcept {
    if (Step::take()) Base::fence(point);
  }
};

}  // namespace dunnock::test
