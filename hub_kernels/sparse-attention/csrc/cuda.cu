// Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
//
// Launches the kernels of kernels.cuh on torch's current stream.
#include "arguments.h"
#include "kernels.cuh"
#include "torch_binding.h"

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <limits>
#include <type_traits>

// declared by torch only where USE_CUDA is defined
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace sparse_attention {
namespace {

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

DeviceProblem problem_of(const Sizes& sizes, const std::vector<Level>& levels) {
  STD_TORCH_CHECK(sizes.levels <= kMostLevels, "sparse_attention: at most ", kMostLevels,
                  " levels are supported on CUDA, got ", sizes.levels, ".");
  const auto most = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(sizes.heads <= most && sizes.channels <= most && sizes.points <= most,
                  "sparse_attention: heads, channels and points must fit into 32 bits.");
  DeviceProblem problem{};
  problem.batch = sizes.batch;
  problem.values = sizes.values;
  problem.queries = sizes.queries;
  problem.heads = static_cast<int32_t>(sizes.heads);
  problem.channels = static_cast<int32_t>(sizes.channels);
  problem.num_levels = static_cast<int32_t>(sizes.levels);
  problem.points = static_cast<int32_t>(sizes.points);
  for (int64_t index = 0; index < sizes.levels; ++index) {
    problem.levels[index] = {levels[index].start, levels[index].height, levels[index].width};
  }
  return problem;
}

unsigned grid_of(int64_t blocks) {
  STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(),
                  "sparse_attention: too many queries for one call, split the batch.");
  return static_cast<unsigned>(blocks);
}

int64_t blocks_of(const DeviceProblem& problem, int lanes) {
  const int64_t groups = kThreads / lanes;
  return problem.batch * problem.heads * ((problem.queries + groups - 1) / groups);
}

// Tensors that start in the middle of a storage may not be aligned to whole accesses.
bool is_aligned(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0; }

// Calls `run` with the channels a thread holds, the threads of a group, and whether they cover all channels.
template <int WIDTH, int LANES, bool WHOLE>
struct Layout {
  static constexpr int width = WIDTH, lanes = LANES;
  static constexpr bool whole = WHOLE;
};

template <typename Stored, typename Run>
void with_layout(int32_t channels, bool aligned, const Run& run) {
  if constexpr (!std::is_same_v<Stored, double>) {
    constexpr int width = 16 / sizeof(Stored);
    if (aligned && channels == 4 * width) return run(Layout<width, 4, true>{});
    if (aligned && channels == 8 * width) return run(Layout<width, 8, true>{});
    if (aligned && channels == 16 * width) return run(Layout<width, 16, true>{});
  }
  run(Layout<1, 32, false>{});
}

template <typename Run>
void with_type(ScalarType type, const Run& run) {
  switch (type) {
    case ScalarType::Double: return run(double{}, double{});
    case ScalarType::Half: return run(__half{}, float{});
    case ScalarType::BFloat16: return run(__nv_bfloat16{}, float{});
    default: return run(float{}, float{});
  }
}

}  // namespace
}  // namespace sparse_attention

using namespace sparse_attention;

Tensor forward_cuda(Tensor value, std::vector<int64_t> spatial_shapes, Tensor sampling_locations,
                    Tensor attention_weights) {
  const Sizes sizes = check_arguments(value, spatial_shapes, sampling_locations, attention_weights, nullptr);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  Tensor output = torch::stable::new_empty(value, {sizes.batch, sizes.queries, sizes.heads * sizes.channels});
  if (output.numel() == 0) return output;

  const DeviceProblem problem = problem_of(sizes, levels_of(spatial_shapes));
  const cudaStream_t stream = current_stream(value);
  with_type(value.scalar_type(), [&](auto stored, auto real) {
    using Stored = decltype(stored);
    using Real = decltype(real);
    const bool aligned = is_aligned(value) && is_aligned(output) && is_aligned(sampling_locations);
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(sampling_locations.const_data_ptr()) % (2 * sizeof(Real)) == 0,
                    "sparse_attention: `sampling_locations` is not aligned, clone it.");
    with_layout<Stored>(problem.channels, aligned, [&](auto layout) {
      using L = decltype(layout);
      forward_kernel<Stored, Real, L::width, L::lanes, L::whole>
          <<<grid_of(blocks_of(problem, L::lanes)), kThreads, 0, stream>>>(
              problem, static_cast<const Stored*>(value.const_data_ptr()),
              static_cast<const Real*>(sampling_locations.const_data_ptr()),
              static_cast<const Real*>(attention_weights.const_data_ptr()),
              static_cast<Stored*>(output.mutable_data_ptr()));
    });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return output;
}

Gradients backward_cuda(Tensor grad_output, Tensor value, std::vector<int64_t> spatial_shapes,
                        Tensor sampling_locations, Tensor attention_weights, bool deterministic) {
  const Sizes sizes = check_arguments(value, spatial_shapes, sampling_locations, attention_weights, &grad_output);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  Tensor grad_locations = torch::stable::empty_like(sampling_locations);
  Tensor grad_weights = torch::stable::empty_like(attention_weights);
  const ScalarType type = value.scalar_type();
  // half precision is summed in float32 and rounded once
  const ScalarType real_type = type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor sums = torch::stable::new_zeros(value, value.sizes(), real_type);
  if (value.numel() == 0 || grad_output.numel() == 0) {
    torch::stable::zero_(grad_locations);
    torch::stable::zero_(grad_weights);
    return {torch::stable::to(sums, type), grad_locations, grad_weights};
  }

  const DeviceProblem problem = problem_of(sizes, levels_of(spatial_shapes));
  const cudaStream_t stream = current_stream(value);
  with_type(type, [&](auto stored, auto real) {
    using Stored = decltype(stored);
    using Real = decltype(real);
    const bool aligned = is_aligned(value) && is_aligned(grad_output) && is_aligned(sampling_locations);
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(sampling_locations.const_data_ptr()) % (2 * sizeof(Real)) == 0,
                    "sparse_attention: `sampling_locations` is not aligned, clone it.");
    const auto* gradient = static_cast<const Stored*>(grad_output.const_data_ptr());
    const auto* locations = static_cast<const Real*>(sampling_locations.const_data_ptr());
    const auto* weights = static_cast<const Real*>(attention_weights.const_data_ptr());
    auto* grad_value = static_cast<Real*>(sums.mutable_data_ptr());
    with_layout<Stored>(problem.channels, aligned, [&](auto layout) {
      using L = decltype(layout);
      const auto kernel = deterministic ? backward_kernel<Stored, Real, L::width, L::lanes, L::whole, false>
                                        : backward_kernel<Stored, Real, L::width, L::lanes, L::whole, true>;
      kernel<<<grid_of(blocks_of(problem, L::lanes)), kThreads, 0, stream>>>(
          problem, gradient, static_cast<const Stored*>(value.const_data_ptr()), locations, weights, grad_value,
          static_cast<Real*>(grad_locations.mutable_data_ptr()), static_cast<Real*>(grad_weights.mutable_data_ptr()));
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    if (deterministic) {
      int64_t rows = 0;
      for (int32_t index = 0; index < problem.num_levels; ++index) rows += problem.levels[index].height;
      const int64_t warps = problem.batch * problem.heads * rows, warps_per_block = kThreads / 32;
      ordered_grad_value_kernel<Stored, Real>
          <<<grid_of((warps + warps_per_block - 1) / warps_per_block), kThreads, 0, stream>>>(
              problem, gradient, locations, weights, grad_value);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  });
  return {torch::stable::to(sums, type), grad_locations, grad_weights};
}
