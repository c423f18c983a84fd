// A probabilistic model of lines touched per operation against load, for the filter and for the textbook one
// (the kind of model that AniFilter, section 4, gives for its own buckets; the derivation here is ours).
//
// Mean field: a bin holds up to c items (a group: c = 40; a textbook bucket: c = 4). Arrivals choose a bin at random.
// One that finds its bin full ends, directly or by kicks, in a random bin that is not full. With x_i the fraction of
// bins with i items, F = x_c, and t arrivals per bin so far:
//
//     dx_i/dt = (x_{i-1} - x_i) * (1 + F / (1 - F))   for i < c,      dx_c/dt = x_{c-1} * (1 + F / (1 - F))
//
// A negative lookup reads a second line if its bucket is marked as overflowed for its half of the fingerprints. A mark
// admits two of a bucket's four or so home fingerprints, one of which often leaves at once; the other may go later
// without a new mark. With S such fingerprints and M marks in a mean group, an arrival in a full group (F) finds
// c = min(4, S / F) of them (the filter looks at four) and room for none with probability F^c. Then one more mark is
// set, and S grows by one; otherwise S shrinks by one:
//
//     dM/dt = F * F^c        dS/dt = F * (2 F^c - 1)
//
// and M / 16 of all lookups pay: a mark is for one bucket of eight and half of its fingerprints.
//
// An insert touches its own line. In a full group it goes straight to the other one if it may (a = M / 16 F). Otherwise
// it looks at groups where a neighbor could go: at up to c if its fingerprint is even, at up to 4 if it is odd, for
// then any even neighbor will do. One that has room costs a log line too. If none has, or if the other group is full,
// then E = 1 + F (1 / (1 - F) + 1) more lines are searched and logged:
//
//     look(n) = (1 - F^n) / (1 - F) + (1 - F^n) + F^n E       1 + F (a E + (1 - a) (look(c) + look(4)) / 2)
//
// The textbook's touches its own, with probability F its other, with probability F^2 one of 1 / (1 - F) victims' lines.
// A positive lookup reads a second line if its item lives there: the mean of F over the arrivals so far.
//
// What it leaves out: a word takes at most three foreign fingerprints, so a group counts as full a little earlier; a
// random walk meets full buckets more often than F, so the textbook's kicks come out too few above 90 %.
#pragma once

#include <algorithm>
#include <cmath>
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
  double marks = 0;      // M
  double offers = 0;     // S
};

/// F^c: no neighbor of an arrival in a full group can go elsewhere without a new mark.
inline double stuck(const Bins& bins) {
  return bins.full <= 0 ? 1 : std::pow(bins.full, std::min(4.0, bins.offers / bins.full));
}

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
    bins.full = full;
    const double none = stuck(bins);
    bins.marks += full * none * kStep;
    bins.offers = std::max(0.0, bins.offers + full * (2 * none - 1) * kStep);
  }
  bins.full = x[capacity];
  bins.full_mean = t > 0 ? full_sum / t : 0;
  return bins;
}

inline double insert_lines(const Bins& bins) {
  const double full = bins.full;
  if (full <= 0) return 1;
  const double admitted = std::min(1.0, bins.marks / full / 16);
  const double elsewhere = 1 + full * (1 / (1 - full) + 1);
  const auto look = [full, elsewhere](double none) { return (1 - none) / (1 - full) + (1 - none) + none * elsewhere; };
  return 1 + full * (admitted * elsewhere + (1 - admitted) * (look(stuck(bins)) + look(std::pow(full, 4))) / 2);
}

inline double textbook_insert_lines(double full) { return 1 + full + full * full / (1 - full); }

}  // namespace detail_model

/// The model at a load in [0, 0.96].
inline ModelPoint model_at(double load) {
  using detail_model::Bins;
  using detail_model::fill;
  const Bins ours = fill(40, load);
  const Bins textbook = fill(4, load);
  ModelPoint point;
  point.insert_lines = detail_model::insert_lines(ours);
  point.negative_lines = 1 + ours.marks / 16;
  point.positive_lines = 1 + ours.full_mean;
  point.textbook_insert_lines = detail_model::textbook_insert_lines(textbook.full);
  return point;
}

}  // namespace dunnock::bench
