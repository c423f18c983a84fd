#include "mpi/rounds.hpp"

#include <algorithm>
#include <array>

namespace dunnock::ranks::detail::mpi {

Status run_rounds(Operation& op, const Rounds& what, int tag) {
  const unsigned ranks = op.size();
  const unsigned me = op.rank();
  const MPI_Comm comm = op.job().world->comm;
  const std::size_t width = bytes_of(what.element);
  const std::size_t segment = kSegmentBytes / width;
  const auto part = [&](unsigned rank) { return what.begin(rank + 1, ranks) - what.begin(rank, ranks); };
  std::size_t longest = 0;
  for (unsigned rank = 0; rank < ranks; ++rank) longest = std::max(longest, part(rank));
  const std::size_t segments = (longest + segment - 1) / segment;
  const auto values_of = [&](unsigned rank, std::size_t s) {
    const std::size_t begin = std::min(s * segment, part(rank));
    return std::min(segment, part(rank) - begin);
  };
  const auto at = [&](unsigned rank, std::size_t s) { return (what.begin(rank, ranks) + s * segment) * width; };
  const auto theirs = [&](unsigned rank, std::size_t s) {
    return op.scratch() + ((s % 2) * (ranks - 1) + (rank < me ? rank : rank - 1)) * kSegmentBytes;
  };
  const bool is_root = what.root == me;
  const std::array<Group*, 2> first = {&op.group(), &op.group()};
  const std::array<Group*, 2> second = {&op.group(), &op.group()};
  const auto receive_first = [&](std::size_t s) {
    const std::size_t mine = values_of(me, s) * width;
    for (unsigned step = 1; step < ranks; ++step) {
      const unsigned from = op.before(step);
      if (mine == 0 || (what.root && from != *what.root)) continue;
      std::byte* const to = what.root ? what.own + s * segment * width : theirs(from, s);
      op.receive(to, mine, from, tag, comm, *first[s % 2]);
    }
  };
  const auto send_first = [&](std::size_t s) {
    for (unsigned step = 1; step < ranks; ++step) {
      const unsigned to = op.behind(step);
      const std::size_t bytes = values_of(to, s) * width;
      if (bytes != 0 && (!what.root || is_root)) op.send(what.in + at(to, s), bytes, to, tag, comm, *first[s % 2]);
    }
  };
  const auto receive_second = [&](std::size_t s) {
    for (unsigned step = 1; step < ranks; ++step) {
      const unsigned from = op.before(step);
      const std::size_t bytes = values_of(from, s) * width;
      if (bytes != 0 && !is_root) op.receive(what.out + at(from, s), bytes, from, tag + 1, comm, *second[s % 2]);
    }
  };
  const auto send_second = [&](std::size_t s) {
    const std::size_t mine = values_of(me, s) * width;
    for (unsigned step = 1; step < ranks; ++step) {
      const unsigned to = op.behind(step);
      if (mine != 0 && what.root != to)
        op.send(what.own + s * segment * width, mine, to, tag + 1, comm, *second[s % 2]);
    }
  };
  Group& greetings = op.group();
  for (unsigned step = 1; step < ranks; ++step) op.be_greeted(op.before(step), tag, comm, greetings);
  for (unsigned step = 1; step < ranks; ++step) op.greet(nullptr, 0, op.behind(step), tag, comm, greetings);
  if (segments != 0) what.first ? send_first(0) : send_second(0);
  DUNNOCK_TRY(op.wait(greetings));
  std::vector<const void*> inputs(ranks);
  if (what.first && segments != 0) receive_first(0);
  for (std::size_t s = 0; s < segments; ++s) {
    if (what.first) {
      if (s + 1 < segments) {
        receive_first(s + 1);
        send_first(s + 1);
      }
      DUNNOCK_TRY(op.wait(*first[s % 2]));
      if (what.reduction) {
        for (unsigned rank = 0; rank < ranks; ++rank)
          inputs[rank] = rank == me ? static_cast<const void*>(what.in + at(me, s)) : theirs(rank, s);
        reduce_all(what.own + s * segment * width, inputs, values_of(me, s), what.element, *what.reduction);
      }
    }
    if (!what.second) continue;
    const bool is_sent = s == 0 && !what.first;  // Already, and waits for its receivers.
    if (!is_sent) {
      DUNNOCK_TRY(op.wait(*second[s % 2]));
    }
    receive_second(s);
    if (!is_sent) send_second(s);
  }
  for (Group* const group : second) {
    DUNNOCK_TRY(op.wait(*group));
  }
  return {};
}

}  // namespace dunnock::ranks::detail::mpi
