// Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace sparse_attention {

// Sizes of one call. All tensors are contiguous:
//   value               (batch, values, heads, channels)
//   sampling_locations  (batch, queries, heads, levels, points, 2) as x, y in [0, 1]
//   attention_weights   (batch, queries, heads, levels, points)
//   output, grad_output (batch, queries, heads * channels)
struct Sizes {
  int64_t batch, values, heads, channels, queries, levels, points;
};

// Cells of one level: where it starts in `value`, and its height and width.
struct Level {
  int64_t start;
  int32_t height, width;
};

// Everything the kernels rely on: ranks, shapes, dtypes, one device, contiguity. The stable ABI checks none of it.
// Locations and weights are float32, or float64 where `value` is. `grad_output` is nullptr in the forward pass.
Sizes check_arguments(const torch::stable::Tensor& value, const std::vector<int64_t>& spatial_shapes,
                      const torch::stable::Tensor& sampling_locations, const torch::stable::Tensor& attention_weights,
                      const torch::stable::Tensor* grad_output);

std::vector<Level> levels_of(const std::vector<int64_t>& spatial_shapes);

}  // namespace sparse_attention
