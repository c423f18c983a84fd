// A probabilistic model of lines touched per operation against load, for the filter and for the textbook one
// (the kind of model that AniFilter, section 4, gives for its own buckets; the derivation here is ours).
//
// Mean field: a bin holds up to c items (a group: c = 40; a textbook bucket: c = 4). Arrivals choose a bin at random.
// One that finds its bin full ends, directly or by kicks, in a random bin that is not full. With x_i the fraction of
// bins with i items, F = x_c, and t arrivals per bin so far:
//
//     dx_i/dt = (x_{i-1} - x_i) * (1 + F / (1 - F))   for i < c,      dx_c/dt = x_{c-1} * (1 + F / (1 - F))
//
// An insert touches its own line; with probability F also its other line; with probability F^2 both are full and it
// looks at 1 / (1 - F) groups of victims and at one log line, if each victim's other group is full with probability F.
// A negative lookup reads a second line if its bucket is marked as overflowed. Buckets of full groups get marked by
// arrivals (one in eight is theirs) and by kicks (F of them a time): with U the fraction of buckets that are unmarked
// in full groups, dU/dt = dF/dt - (1 + F) / 8 * U, and F - U are marked.
// A positive lookup reads a second line if its item lives there: the mean of F over the arrivals so far.
//
// What it leaves out: a word takes at most three foreign fingerprints, so a group counts as full a little earlier; a
// random walk meets full buckets more often than F, so the textbook's kicks come out too few above 90 %.
#pragma once

#include <vector>

namespace dunnock::bench {

struct ModelPoint {
  double insert_lines = 1;
  double negative_lines = 1;
  double positive_lines = 1;
  double textbook_insert_lines = 1;
};

namespace detail_model {

struct Bins {
  double full = 0;       // F
  double full_mean = 0;  // mean of F over the arrivals so far
  double unmarked = 0;   // U
};

/// Solves the equations up to `load` with Euler steps.
inline Bins fill(unsigned capacity, double load) {
  std::vector<double> x(capacity + 1, 0.0);
  x[0] = 1;
  Bins bins;
  double full_sum = 0;
  const double end = load * capacity;
  constexpr double kStep = 1e-3;
  double t = 0;
  for (; t < end; t += kStep) {
    const double full = x[capacity];
    const double rate = 1 + full / (1 - full);
    for (unsigned i = capacity; i-- > 0;) {
      const double moved = x[i] * rate * kStep;
      x[i] -= moved;
      x[i + 1] += moved;
    }
    full_sum += full * kStep;
    bins.unmarked += (x[capacity] - full) - (1 + full) / 8 * bins.unmarked * kStep;
  }
  bins.full = x[capacity];
  bins.full_mean = t > 0 ? full_sum / t : 0;
  return bins;
}

inline double insert_lines(double full, double log_lines) {
  return 1 + full + full * full * (1 / (1 - full) + log_lines);
}

}  // namespace detail_model

/// The model at a load in [0, 0.96].
inline ModelPoint model_at(double load) {
  using detail_model::Bins;
  using detail_model::fill;
  using detail_model::insert_lines;
  const Bins ours = fill(40, load);
  const Bins textbook = fill(4, load);
  ModelPoint point;
  point.insert_lines = insert_lines(ours.full, 1);
  point.negative_lines = 1 + ours.full - ours.unmarked;
  point.positive_lines = 1 + ours.full_mean;
  point.textbook_insert_lines = insert_lines(textbook.full, 0);
  return point;
}

}  // namespace dunnock::bench
