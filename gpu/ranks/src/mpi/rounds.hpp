// Collectives in two rounds, segment by segment; and those of few values, which go with the greetings.
//
//   all-reduce, part by part (rank r has part r), segment by segment of the parts:
//     round 0   everybody sends its values of part r to rank r, which reduces them in the order of the ranks
//     round 1   rank r sends the result to everybody
//   Round 0 of the next segment is under way meanwhile. Each rank sends and receives 2 (n - 1) / n of the bytes, the
//   least that there is. Reduce-scatter is round 0, all-gather round 1, and a broadcast has the root's sends in round
//   0. Few values go to everybody at once, and all reduce them: one round.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "mpi/operation.hpp"

namespace dunnock::ranks::detail::mpi {

/// What a rank has of one collective: where each part lies, and what it has to do in the two rounds.
struct Rounds {
  std::size_t count = 0;  // of values of all parts
  Element element = Element::kByte;
  const std::byte* in = nullptr;  // Round 0 sends from here, round 1 from the rank's part of `out`.
  std::byte* out = nullptr;
  std::byte* own = nullptr;  // The rank's own part.
  std::optional<Reduction> reduction{};
  std::optional<unsigned> root{};  // The only one that sends in round 0.
  bool first = true;
  bool second = true;

  [[nodiscard]] std::size_t begin(unsigned rank, unsigned ranks) const noexcept { return count * rank / ranks; }
};

/// Runs the rounds. Errors: those of Operation::wait().
[[nodiscard]] Status run_rounds(Operation& op, const Rounds& what, int tag);

/// Few values, which go with the greetings: values(to) says where they lie. From them: Operation::values_of().
template <class Values>
[[nodiscard]] Status exchange_few(Operation& op, std::size_t bytes, int tag, const Values& values) {
  const MPI_Comm comm = op.job().world->comm;
  Group& group = op.group();
  for (unsigned step = 1; step < op.size(); ++step) op.be_greeted(op.before(step), tag, comm, group);
  for (unsigned step = 1; step < op.size(); ++step)
    op.greet(values(op.behind(step)), bytes, op.behind(step), tag, comm, group);
  return op.wait(group);
}

/// to = the reduction of all ranks' few values, of which this rank has `own`.
inline void reduce_few(Operation& op, std::byte* to, const std::byte* own, std::size_t count, Reduction reduction) {
  std::vector<const void*> inputs(op.size());
  for (unsigned rank = 0; rank < op.size(); ++rank) inputs[rank] = rank == op.rank() ? own : op.values_of(rank);
  reduce_all(to, inputs, count, op.call().element, reduction);
}

}  // namespace dunnock::ranks::detail::mpi
