// Profiles: steps of well-known networks, with costs derived from shapes for a device described by a few numbers.
// Nothing here is measured. Everything computed from it is *simulated*.
//
// The derivation, for each operation (a matrix product, or a convolution as one, with what follows it point by point):
//
//   tiles   = ceil(rows / 128) x ceil(columns / 128) x splits      of the product's result; 128 x 128 per thread block
//   splits  = clamp(depth / 2048, 1, 16)                           several blocks share a long inner dimension
//   demand  = min(1, tiles / multiprocessors)                      the share of the device that it keeps busy
//   us      = max(flops / (matrix rate x efficiency x demand), bytes / (memory rate x 0.8 x min(1, 2 x demand)))
//             + 2 us                                               the tail and head of a kernel
//
// (half of the multiprocessors are enough to draw all of the memory's bandwidth: hence the 2.)
//
//   operation            rows               columns        depth               flops
//   convolution F        n x out^2          c_out          c_in x k^2          2 rows columns depth
//   its dO               n x in^2           c_in           c_out x k^2         the same
//   its dW               c_in x k^2         c_out          n x out^2           the same
//   linear F / dO / dW   tokens / tokens / in   out / in / out   in / out / tokens   2 tokens in out
//
// Bytes: operands and result at 2 bytes, and twice the output for the point-wise operations that follow (norm,
// activation). Depth-wise convolutions (MobileNet) make no matrix product: their bytes decide. A transformer's block is
// one layer: its products one after the other, and attention scores (forward 4 batch sequence^2 width flops, their
// gradients twice as many, all in dO); its demand is their mean, weighted by time. A block keeps 34 bytes x tokens x
// width, of which 32 stay for dW (Zero Bubble Pipeline Parallelism, 2024; attention without its score matrix).
// Convolutions keep input and output. Weights take 2 bytes each, gradients 2 bytes, and master weights and AdamW's
// moments 12; an update moves them all. Only chains are modeled: shortcuts and concatenations are in the bytes of the
// layers that they enter.
#pragma once

#include <span>
#include <string_view>

#include "dunnock/base/result.hpp"
#include "dunnock/training/step.hpp"

namespace dunnock::training {

struct DeviceModel {
  std::string_view name;
  double matrix_tflops = 0;  ///< Peak with 16-bit operands.
  double efficiency = 0.5;   ///< Share of that peak that a product reaches if it keeps the device busy.
  double memory_gb_per_s = 0;
  unsigned multiprocessors = 1;
  std::uint64_t memory_bytes = 0;
};

/// NVIDIA's data sheet numbers: 125 Tflop/s, 900 GB/s, 80 multiprocessors, 32 GiB; efficiency 0.5 is our assumption.
[[nodiscard]] DeviceModel v100_like() noexcept;
/// 989 Tflop/s (dense), 4800 GB/s, 132 multiprocessors, 141 GB; efficiency 0.5 is our assumption.
[[nodiscard]] DeviceModel h200_like() noexcept;

/// "gpt2-small" (12 blocks of 768), "gpt2-xl" (48 of 1600), "gpt3-like" (96 blocks of 2048: many layers to distribute),
/// "bert-base" (12 of 768), "bert-large" (24 of 1024), "resnet-50", "densenet-121", "mobilenet-v1".
[[nodiscard]] std::span<const std::string_view> profile_names() noexcept;

/// `batch`: sequences (1024 tokens GPT, 512 BERT) or images (224 x 224) of one micro-batch. Errors: NotFound: no such
/// profile, and the message lists all; InvalidArgument: an empty batch.
[[nodiscard]] Result<Step> profile(std::string_view name, const DeviceModel& device, unsigned batch);

}  // namespace dunnock::training
