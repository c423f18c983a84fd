// Every operation of a communicator with one rank, where each must return its input: on a GPU this tests the real NCCL,
// its types, sizes and addresses; sums of several ranks are tested by tests/gpu/ranks/communicator_test.cpp.
#include <random>
#include <vector>

#include "checks.hpp"
#include "dunnock/ranks/communicator.hpp"

namespace dunnock::gpu_check {
namespace {

/// The bits of numbers that are no NaN, some of them negative.
template <class T>
std::vector<T> numbers(std::mt19937_64& random, std::size_t count) {
  std::vector<T> values(count);
  for (T& value : values) value = T(static_cast<float>(static_cast<std::int64_t>(random() % 4001) - 2000) / 16);
  return values;
}
template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (static_cast<float>(a[i]) != static_cast<float>(b[i])) return false;
  }
  return true;
}

/// One part of a buffer that begins `offset` values behind an aligned address, and what must not change around it.
template <class T>
class Placed {
 public:
  Placed(std::mt19937_64& random, std::size_t count, std::size_t offset, device::Stream& stream)
      : host_(numbers<T>(random, count + 2 * offset)),
        buffer_(std::move(*device::Buffer<T>::create(host_.size(), stream))),
        offset_(offset),
        stream_(stream) {
    upload(buffer_.span(), host_, stream);
  }
  [[nodiscard]] device::Span<T> span() const { return buffer_.span().subspan(offset_, host_.size() - 2 * offset_); }
  /// Is it, and all around it, what it was made of, with `inner` (or what it was) in the middle?
  [[nodiscard]] bool holds(const std::vector<T>* inner = nullptr) {
    std::vector<T> expected = host_;
    if (inner != nullptr) std::copy(inner->begin(), inner->end(), expected.begin() + offset());
    std::vector<T> back(host_.size());
    download(back, buffer_.span(), stream_);
    return static_cast<bool>(stream_.synchronize()) && same(back, expected);
  }
  [[nodiscard]] std::vector<T> inner() const { return {host_.begin() + offset(), host_.end() - offset()}; }

 private:
  [[nodiscard]] std::ptrdiff_t offset() const { return static_cast<std::ptrdiff_t>(offset_); }
  std::vector<T> host_;
  device::Buffer<T> buffer_;
  std::size_t offset_;
  device::Stream& stream_;
};

template <class T>
std::string check_operations(ranks::Communicator& all, device::Stream& stream, std::mt19937_64& random,
                             std::size_t count, std::size_t offset) {
  for (const ranks::Reduction reduction : {ranks::Reduction::kSum, ranks::Reduction::kMax}) {
    Placed<T> values(random, count, offset, stream);
    all.all_reduce(values.span(), reduction, stream);
    if (!values.holds()) return "all-reduce";
    Placed<T> in(random, count, offset, stream);
    Placed<T> out(random, count, offset, stream);
    all.reduce_scatter<T>(in.span(), out.span(), reduction, stream);
    const auto given = in.inner();
    if (!in.holds() || !out.holds(&given)) return "reduce-scatter";
  }
  Placed<T> in(random, count, offset, stream);
  Placed<T> out(random, count, offset, stream);
  all.all_gather<T>(in.span(), out.span(), stream);
  const auto given = in.inner();
  if (!in.holds() || !out.holds(&given)) return "all-gather";
  all.all_gather<T>(in.span(), in.span(), stream);
  if (!in.holds()) return "all-gather in place";
  all.broadcast(in.span(), 0, stream);
  if (!in.holds()) return "broadcast";
  return "";
}

template <class T>
std::string check_type(ranks::Communicator& all, device::Stream& stream, std::uint64_t seed, bool small) {
  std::mt19937_64 random(seed);
  for (const std::size_t count : {std::size_t{1}, std::size_t{7}, std::size_t{1000}, std::size_t{70'001}}) {
    if (small && count > 1000) break;
    for (const std::size_t offset : {std::size_t{0}, std::size_t{1}, std::size_t{3}}) {
      const std::string wrong = check_operations<T>(all, stream, random, count, offset);
      if (wrong.empty()) continue;
      const Status why = stream.synchronize();
      return wrong + " of " + std::to_string(count) + " values, " + std::to_string(offset) +
             " behind an aligned address" + (why ? "" : ": " + why.error().message);
    }
  }
  return "";
}

/// Collectives of two streams by turns, then a barrier on both.
std::string check_two_streams(ranks::Communicator& all, device::Stream& one, device::Stream& two) {
  std::mt19937_64 random(3);
  std::vector<Placed<float>> values;
  for (unsigned i = 0; i < 20; ++i) values.emplace_back(random, 64, 0, i % 2 == 0 ? one : two);
  for (unsigned i = 0; i < 20; ++i) all.all_reduce(values[i].span(), ranks::Reduction::kSum, i % 2 == 0 ? one : two);
  all.barrier(one);
  all.barrier(two);
  for (Placed<float>& some : values) {
    if (!some.holds()) return "an all-reduce on two streams";
  }
  if (const Status done = one.synchronize(); !done) return done.error().message;
  if (const Status done = two.synchronize(); !done) return done.error().message;
  if (const Status state = all.check(); !state) return state.error().message;
  return "";
}

}  // namespace

void check_collectives(device::Device device, const CheckOptions& options, Report& report) {
  const std::string seed = ", seed " + std::to_string(options.seed);
  auto alone = ranks::Communicator::threads(1);
  auto all = device.backend() == device::Backend::kCuda ? ranks::Communicator::nccl(device, alone->front())
                                                        : Result<ranks::Communicator>(std::move(alone->front()));
  if (!all) {
    if (all.error().code == ErrorCode::kUnsupported) return report.skip("collectives of one rank", all.error().message);
    return report.check("collectives of one rank", all.error().message);
  }
  auto one = std::move(*device::Stream::create(device));
  auto two = std::move(*device::Stream::create(device));
  report.check("collectives of one rank, f32" + seed, check_type<float>(*all, one, options.seed, options.small));
  report.check("collectives of one rank, bf16" + seed,
               check_type<device::Bf16>(*all, one, options.seed, options.small));
  report.check("collectives of one rank on two streams", check_two_streams(*all, one, two));
}

}  // namespace dunnock::gpu_check
