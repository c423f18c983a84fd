// The device beside the CPU's twins, on random inputs.
#include <algorithm>
#include <random>
#include <vector>

#include "dunnock/gpu/communicator.hpp"
#include "dunnock/gpu/filter_view.hpp"
#include "dunnock/gpu/graph.hpp"
#include "dunnock/gpu/memory.hpp"
#include "report.hpp"

namespace dunnock::gpu_check {
namespace {

using namespace dunnock::gpu;

/// A filter's words on a device.
class Words {
 public:
  Words(Device device, const FilterShape& shape, const std::vector<std::uint64_t>& words)
      : stream_(std::move(*Stream::create(device))),
        buffer_(std::move(*Buffer<std::uint64_t>::create(words.size(), stream_))),
        view_(*FilterView::create(shape, buffer_.span())) {
    upload(buffer_.span(), words, stream_);
    (void)stream_.synchronize();
  }
  using Operation = void (FilterView::*)(DeviceSpan<const std::uint64_t>, DeviceSpan<std::uint8_t>, Stream&) const;
  std::vector<std::uint8_t> call(Operation operation, const std::vector<std::uint64_t>& keys) {
    auto in = std::move(*Buffer<std::uint64_t>::create(keys.size(), stream_));
    auto out = std::move(*Buffer<std::uint8_t>::create(keys.size(), stream_));
    upload(in.span(), keys, stream_);
    (view_.*operation)(in.span(), out.span(), stream_);
    std::vector<std::uint8_t> answers(keys.size(), 9);
    download(answers, out.span(), stream_);
    if (const Status done = stream_.synchronize(); !done) error = done.error().message;
    return answers;
  }
  std::vector<std::uint64_t> words() {
    std::vector<std::uint64_t> words(buffer_.size());
    download(words, buffer_.span(), stream_);
    if (const Status done = stream_.synchronize(); !done) error = done.error().message;
    return words;
  }
  std::string error;

 private:
  Stream stream_;
  Buffer<std::uint64_t> buffer_;
  FilterView view_;
};

constexpr Words::Operation kContains = &FilterView::contains;
constexpr Words::Operation kInsert = &FilterView::insert;
constexpr Words::Operation kErase = &FilterView::erase;

std::string check_filter(Device device, unsigned bits, unsigned group_words, double load, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  FilterShape shape;
  shape.fingerprint_bits = bits;
  shape.group_words = group_words;
  shape.groups = 20000 / group_words * 8 / 8 + 3;
  for (auto& word : shape.seed) word = random() | 1;
  const std::uint64_t slots = shape.groups * group_words * (60 / bits);
  std::vector<std::uint64_t> keys(static_cast<std::size_t>(load * static_cast<double>(slots)));
  for (auto& key : keys) key = random();
  std::copy_n(keys.begin(), keys.size() / 100, keys.end() - static_cast<std::ptrdiff_t>(keys.size() / 100));
  std::vector<std::uint64_t> strangers(100000);
  for (auto& key : strangers) key = random();

  Words there(device, shape, std::vector<std::uint64_t>(shape.groups * group_words));
  const auto accepted = there.call(kInsert, keys);
  if (!there.error.empty()) return there.error;
  const auto refused = keys.size() - static_cast<std::size_t>(std::ranges::count(accepted, 1));
  if (refused != 0) return std::to_string(refused) + " of " + std::to_string(keys.size()) + " keys are refused";
  // The same words, looked at by the twin.
  Words here(Device::cpu(), shape, there.words());
  for (const auto* some : {&keys, &strangers}) {
    const auto theirs = there.call(kContains, *some);
    const auto ours = here.call(kContains, *some);
    if (theirs != ours) return "lookups differ from the twin's";
    if (some == &keys && std::ranges::count(ours, 1) != static_cast<std::ptrdiff_t>(keys.size()))
      return "a key that was inserted is not found";
  }
  // Half is erased there, half here; nothing must be left.
  const std::vector<std::uint64_t> half(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(keys.size() / 2));
  const std::vector<std::uint64_t> rest(keys.begin() + static_cast<std::ptrdiff_t>(keys.size() / 2), keys.end());
  if (std::ranges::count(there.call(kErase, half), 1) != static_cast<std::ptrdiff_t>(half.size()))
    return "a key that was inserted can't be erased";
  if (std::ranges::count(there.call(kContains, rest), 1) != static_cast<std::ptrdiff_t>(rest.size()))
    return "a key is gone that was not erased";
  Words last(Device::cpu(), shape, there.words());
  if (std::ranges::count(last.call(kErase, rest), 1) != static_cast<std::ptrdiff_t>(rest.size()))
    return "a key can't be erased by the twin";
  for (const std::uint64_t word : last.words()) {
    if ((word << 4) != 0) return "something is left in an empty filter";
  }
  return there.error;
}

std::string check_streams(Device device) {
  auto one = std::move(*Stream::create(device));
  auto two = std::move(*Stream::create(device));
  auto ready = std::move(*Event::create(device));
  constexpr std::size_t kSize = 10'000'000;
  auto a = std::move(*Buffer<std::uint32_t>::create(kSize, one));
  auto b = std::move(*Buffer<std::uint32_t>::create(kSize, two));
  std::vector<std::uint32_t> back(kSize);
  for (unsigned round = 0; round < 20; ++round) {
    fill_bytes(a.span(), static_cast<std::byte>(round), one);
    one.record(ready);
    two.wait(ready);
    device_copy(b.span(), a.span(), two);
    two.record(ready);
    one.wait(ready);
  }
  download(back, b.span(), two);
  if (const Status done = two.synchronize(); !done) return done.error().message;
  if (const Status done = one.synchronize(); !done) return done.error().message;
  const bool right = std::ranges::all_of(back, [](std::uint32_t value) { return value == 0x13131313U; });
  return right ? "" : "what a stream has written is not what the other reads";
}

std::string check_graph(Device device) {
  auto stream = std::move(*Stream::create(device));
  auto side = std::move(*Stream::create(device));
  auto fork = std::move(*Event::create(device));
  auto join = std::move(*Event::create(device));
  auto a = std::move(*Buffer<std::uint8_t>::create(1 << 20, stream));
  auto b = std::move(*Buffer<std::uint8_t>::create(1 << 20, stream));
  auto graph = Graph::capture(stream, [&] {
    device_copy(b.span(), a.span(), stream);
    stream.record(fork);
    side.wait(fork);
    fill_bytes(a.span(), std::byte{7}, side);
    side.record(join);
    stream.wait(join);
  });
  if (!graph) return graph.error().message;
  fill_bytes(a.span(), std::byte{5}, stream);
  graph->launch(stream);
  std::vector<std::uint8_t> first(1 << 20);
  download(first, b.span(), stream);
  graph->launch(stream);
  std::vector<std::uint8_t> second(1 << 20);
  download(second, b.span(), stream);
  if (const Status done = stream.synchronize(); !done) return done.error().message;
  const auto all = [](const auto& values, std::uint8_t value) {
    return std::ranges::all_of(values, [value](std::uint8_t one) { return one == value; });
  };
  return all(first, 5) && all(second, 7) ? "" : "a graph does not do what was recorded";
}

std::string check_nccl(Device device) {
  if (device.backend() != Backend::kCuda) return "";
  auto alone = Communicator::threads(1);
  auto all = Communicator::nccl(device, alone->front());
  if (!all) return all.error().code == ErrorCode::kUnsupported ? "" : all.error().message;
  auto stream = std::move(*Stream::create(device));
  std::vector<float> values(100'000);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  auto there = std::move(*Buffer<float>::create(values.size(), stream));
  auto gathered = std::move(*Buffer<float>::create(values.size(), stream));
  upload(there.span(), values, stream);
  all->all_reduce(there.span(), Reduction::kSum, stream);
  all->broadcast(there.span(), 0, stream);
  all->all_gather<float>(there.span(), gathered.span(), stream);
  all->barrier(stream);
  std::vector<float> back(values.size());
  download(back, gathered.span(), stream);
  if (const Status done = stream.synchronize(); !done) return done.error().message;
  if (const Status state = all->check(); !state) return state.error().message;
  return back == values ? "" : "a job of one rank does not get its own values back";
}

}  // namespace

void run_checks(Device device, Report& report) {
  report.check("streams wait for each other", check_streams(device));
  report.check("graphs", check_graph(device));
  report.check("collectives of one rank", check_nccl(device));
  std::uint64_t seed = std::random_device{}();
  for (const unsigned bits : {8U, 12U, 16U}) {
    for (const unsigned group_words : {8U, 4U}) {
      for (const double load : {0.3, 0.9}) {
        ++seed;
        report.check("filter of " + std::to_string(bits) + " bits, groups of " + std::to_string(group_words) +
                         ", load " + std::to_string(static_cast<int>(100 * load)) + " %, seed " + std::to_string(seed),
                     check_filter(device, bits, group_words, load, seed));
      }
    }
  }
}

}  // namespace dunnock::gpu_check
