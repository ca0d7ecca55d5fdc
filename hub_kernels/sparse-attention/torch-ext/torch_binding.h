// Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>
#include <vector>

// Shapes are those of arguments.h; `spatial_shapes` is flat: height, width of each level.
using Gradients = std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor>;

torch::stable::Tensor forward_cpu(torch::stable::Tensor value, std::vector<int64_t> spatial_shapes,
                                  torch::stable::Tensor sampling_locations, torch::stable::Tensor attention_weights);
Gradients backward_cpu(torch::stable::Tensor grad_output, torch::stable::Tensor value,
                       std::vector<int64_t> spatial_shapes, torch::stable::Tensor sampling_locations,
                       torch::stable::Tensor attention_weights, bool deterministic);

torch::stable::Tensor forward_cuda(torch::stable::Tensor value, std::vector<int64_t> spatial_shapes,
                                   torch::stable::Tensor sampling_locations, torch::stable::Tensor attention_weights);
Gradients backward_cuda(torch::stable::Tensor grad_output, torch::stable::Tensor value,
                        std::vector<int64_t> spatial_shapes, torch::stable::Tensor sampling_locations,
                        torch::stable::Tensor attention_weights, bool deterministic);
