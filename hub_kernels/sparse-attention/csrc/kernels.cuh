// Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
//
// CUDA kernels, without torch. `LANES` neighboring threads share one head of one query and hold `WIDTH` channels
// each, 16 bytes of what is stored; neighboring groups take neighboring queries of the same head, whose points lie
// close together. With `WHOLE` they cover all channels at once; otherwise `WIDTH` is 1 and they loop.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace sparse_attention {

constexpr int kThreads = 256;
constexpr int kMostLevels = 16;
constexpr unsigned kAllLanes = 0xffffffffu;

struct DeviceLevel {
  int64_t start;
  int32_t height, width;
};

// Passed by value; shapes as in arguments.h.
struct DeviceProblem {
  int64_t batch, values, queries;
  int32_t heads, channels, num_levels, points;
  DeviceLevel levels[kMostLevels];
};

__device__ __forceinline__ float to_real(float stored) { return stored; }
__device__ __forceinline__ double to_real(double stored) { return stored; }
__device__ __forceinline__ float to_real(__half stored) { return __half2float(stored); }
__device__ __forceinline__ float to_real(__nv_bfloat16 stored) { return __bfloat162float(stored); }

__device__ __forceinline__ void from_real(float& stored, float real) { stored = real; }
__device__ __forceinline__ void from_real(double& stored, double real) { stored = real; }
__device__ __forceinline__ void from_real(__half& stored, float real) { stored = __float2half_rn(real); }
__device__ __forceinline__ void from_real(__nv_bfloat16& stored, float real) { stored = __float2bfloat16_rn(real); }

// Read and written in one access.
template <typename Item, int COUNT>
struct alignas(sizeof(Item) * COUNT) Pack {
  Item items[COUNT];
};

template <typename Stored, int COUNT>
__device__ __forceinline__ Pack<Stored, COUNT> read(const Stored* from) {
  return *reinterpret_cast<const Pack<Stored, COUNT>*>(from);
}

// One point: its upper left cell (which may lie one before the level), how far it lies from there, its weight.
// The same border cases as grid_sample: a point counts while any of its cells is inside; NaN does not.
template <typename Real>
struct Point {
  int32_t left, top;
  Real right, down, weight;
  bool inside;
};

template <typename Real>
__device__ __forceinline__ Point<Real> locate(const DeviceLevel& level, const Real* location, Real weight) {
  const Pack<Real, 2> place = read<Real, 2>(location);
  const Real x = place.items[0] * static_cast<Real>(level.width) - Real(0.5);
  const Real y = place.items[1] * static_cast<Real>(level.height) - Real(0.5);
  Point<Real> point{};
  point.inside = x >= Real(-1) && x < static_cast<Real>(level.width) && y >= Real(-1) &&
                 y < static_cast<Real>(level.height);
  if (point.inside) {
    const Real left = floor(x), top = floor(y);
    point.left = static_cast<int32_t>(left);
    point.top = static_cast<int32_t>(top);
    point.right = x - left;
    point.down = y - top;
    point.weight = weight;
  }
  return point;
}

// Which of a point's four cells (upper left, upper right, lower left, lower right) exist, and their shares.
template <typename Real>
struct Corners {
  bool exists[4];
  Real shares[4];
};

template <typename Real>
__device__ __forceinline__ Corners<Real> corners_of(const DeviceLevel& level, const Point<Real>& point) {
  const bool upper = point.inside && point.top >= 0, lower = point.inside && point.top + 1 < level.height;
  const bool left = point.left >= 0, right = point.left + 1 < level.width;
  const Real below = point.weight * point.down, above = point.weight - below;
  return {{upper && left, upper && right, lower && left, lower && right},
          {above - above * point.right, above * point.right, below - below * point.right, below * point.right}};
}

// Their channels, zero where there is no cell. All four reads are under way before the first is used.
template <int COUNT, typename Stored, typename Real>
__device__ __forceinline__ void read_corners(Pack<Stored, COUNT> (&packs)[4], const Stored* upper_left,
                                             const Corners<Real>& corners, int64_t right, int64_t below) {
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    packs[corner] = Pack<Stored, COUNT>{};
    if (corners.exists[corner]) {
      packs[corner] = read<Stored, COUNT>(upper_left + (corner / 2) * below + (corner % 2) * right);
    }
  }
}

__device__ __forceinline__ int64_t cell_of(const DeviceLevel& level, int32_t top, int32_t left) {
  return level.start + static_cast<int64_t>(top) * level.width + left;
}

template <typename Stored, typename Real, int WIDTH, int LANES, bool WHOLE>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const DeviceProblem problem, const Stored* __restrict__ value, const Real* __restrict__ locations,
                   const Real* __restrict__ weights, Stored* __restrict__ output) {
  constexpr int groups = kThreads / LANES;
  const int lane = threadIdx.x % LANES;
  const int64_t blocks_per_head = (problem.queries + groups - 1) / groups;
  const int64_t image_head = blockIdx.x / blocks_per_head;
  const int64_t query = blockIdx.x % blocks_per_head * groups + threadIdx.x / LANES;
  if (query >= problem.queries) return;

  const int64_t image = image_head / problem.heads, head = image_head % problem.heads;
  const int64_t position = (image * problem.queries + query) * problem.heads + head;
  const int64_t row = static_cast<int64_t>(problem.heads) * problem.channels;
  const int32_t last_channel = WHOLE ? 1 : problem.channels;
  for (int32_t chunk = WHOLE ? 0 : lane; chunk < last_channel; chunk += LANES) {
    const int32_t channel = WHOLE ? lane * WIDTH : chunk;
    const Stored* cells = value + (image * problem.values * problem.heads + head) * problem.channels + channel;
    const int64_t samples = static_cast<int64_t>(problem.num_levels) * problem.points;
    const Real* location = locations + position * samples * 2;
    const Real* weight = weights + position * samples;
    Real sums[WIDTH] = {};
    for (int32_t index = 0; index < problem.num_levels; ++index) {
      const DeviceLevel level = problem.levels[index];
      // several points' loads are under way at a time
#pragma unroll 2
      for (int32_t number = 0; number < problem.points; ++number, location += 2, ++weight) {
        const Point<Real> point = locate(level, location, *weight);
        const Corners<Real> corners = corners_of(level, point);
        const Stored* upper_left = cells + cell_of(level, point.top, point.left) * row;
        Pack<Stored, WIDTH> packs[4];
        read_corners(packs, upper_left, corners, row, level.width * row);
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
#pragma unroll
          for (int item = 0; item < WIDTH; ++item) {
            sums[item] += corners.shares[corner] * to_real(packs[corner].items[item]);
          }
        }
      }
    }
    Pack<Stored, WIDTH> result;
#pragma unroll
    for (int item = 0; item < WIDTH; ++item) from_real(result.items[item], sums[item]);
    *reinterpret_cast<Pack<Stored, WIDTH>*>(output + position * problem.channels + channel) = result;
  }
}

template <int COUNT, typename Real>
__device__ __forceinline__ void add_atomically(Real* to, const Real (&items)[COUNT], Real share) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool by_four = sizeof(Real) == 4 && COUNT % 4 == 0;
#else
  constexpr bool by_four = false;
#endif
  if constexpr (by_four) {
#pragma unroll
    for (int item = 0; item < COUNT; item += 4) {
      atomicAdd(reinterpret_cast<float4*>(to + item),
                make_float4(share * items[item], share * items[item + 1], share * items[item + 2],
                            share * items[item + 3]));
    }
  } else {
#pragma unroll
    for (int item = 0; item < COUNT; ++item) atomicAdd(to + item, share * items[item]);
  }
}

template <int LANES, typename Real>
__device__ __forceinline__ Real sum_of_group(Real part) {
#pragma unroll
  for (int distance = LANES / 2; distance > 0; distance /= 2) {
    part += __shfl_xor_sync(kAllLanes, part, distance);
  }
  return part;
}

// Gradients of locations and weights, and with `ADD` of the values, in what is computed in, by atomic additions.
template <typename Stored, typename Real, int WIDTH, int LANES, bool WHOLE, bool ADD>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const DeviceProblem problem, const Stored* __restrict__ grad_output,
                    const Stored* __restrict__ value, const Real* __restrict__ locations,
                    const Real* __restrict__ weights, Real* __restrict__ grad_value,
                    Real* __restrict__ grad_locations, Real* __restrict__ grad_weights) {
  constexpr int groups = kThreads / LANES;
  const int lane = threadIdx.x % LANES;
  const int64_t blocks_per_head = (problem.queries + groups - 1) / groups;
  const int64_t image_head = blockIdx.x / blocks_per_head;
  int64_t query = blockIdx.x % blocks_per_head * groups + threadIdx.x / LANES;
  // no thread may leave: all of a warp take part in its sums
  const bool is_active = query < problem.queries;
  if (!is_active) query = problem.queries - 1;

  const int64_t image = image_head / problem.heads, head = image_head % problem.heads;
  const int64_t position = (image * problem.queries + query) * problem.heads + head;
  const int64_t row = static_cast<int64_t>(problem.heads) * problem.channels;
  const int64_t first_cell = (image * problem.values * problem.heads + head) * problem.channels;
  const int64_t samples = static_cast<int64_t>(problem.num_levels) * problem.points;
  const Real* location = locations + position * samples * 2;
  const Real* weight = weights + position * samples;
  const Stored* gradient = grad_output + position * problem.channels;
  Pack<Real, 2>* location_result = reinterpret_cast<Pack<Real, 2>*>(grad_locations) + position * samples;
  Real* weight_result = grad_weights + position * samples;

  Real gradients[WIDTH];
  if constexpr (WHOLE) {
    const Pack<Stored, WIDTH> pack = read<Stored, WIDTH>(gradient + lane * WIDTH);
#pragma unroll
    for (int item = 0; item < WIDTH; ++item) gradients[item] = to_real(pack.items[item]);
  }
  for (int32_t index = 0; index < problem.num_levels; ++index) {
    const DeviceLevel level = problem.levels[index];
    Real kept_weight = 0, kept_x = 0, kept_y = 0;
    for (int32_t number = 0; number < problem.points; ++number, location += 2, ++weight) {
      const Point<Real> point = locate(level, location, *weight);
      const Corners<Real> corners = corners_of(level, point);
      const int64_t upper_left = first_cell + cell_of(level, point.top, point.left) * row;
      Real products[4] = {};
      const int32_t last_channel = WHOLE ? 1 : problem.channels;
      for (int32_t chunk = WHOLE ? 0 : lane; chunk < last_channel; chunk += LANES) {
        const int32_t channel = WHOLE ? lane * WIDTH : chunk;
        if constexpr (!WHOLE) gradients[0] = to_real(gradient[channel]);
        const int64_t at = upper_left + channel, below = level.width * row;
        Pack<Stored, WIDTH> packs[4];
        read_corners(packs, value + at, corners, row, below);
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
#pragma unroll
          for (int item = 0; item < WIDTH; ++item) {
            products[corner] += gradients[item] * to_real(packs[corner].items[item]);
          }
          if constexpr (ADD) {
            if (is_active && corners.exists[corner]) {
              add_atomically(grad_value + at + (corner / 2) * below + (corner % 2) * row, gradients,
                             corners.shares[corner]);
            }
          }
        }
      }
      const Real upper = products[0] + point.right * (products[1] - products[0]);
      const Real lower = products[2] + point.right * (products[3] - products[2]);
      const Real along_x =
          (Real(1) - point.down) * (products[1] - products[0]) + point.down * (products[3] - products[2]);
      const Real of_weight = sum_of_group<LANES>(upper + point.down * (lower - upper));
      const Real of_x = sum_of_group<LANES>(along_x) * point.weight * static_cast<Real>(level.width);
      const Real of_y = sum_of_group<LANES>(lower - upper) * point.weight * static_cast<Real>(level.height);
      // each lane keeps one point, so that a group writes LANES points at once
      const int32_t turn = number % LANES;
      if (lane == turn) {
        kept_weight = of_weight;
        kept_x = of_x;
        kept_y = of_y;
      }
      if ((turn == LANES - 1 || number == problem.points - 1) && lane <= turn && is_active) {
        const int64_t sample = static_cast<int64_t>(index) * problem.points + number - turn + lane;
        weight_result[sample] = kept_weight;
        location_result[sample] = {kept_x, kept_y};
      }
    }
  }
}

// Gradient of the values in a fixed order: one warp owns one row of cells of one head and level, and adds the points
// that touch it, by query and point.
template <typename Stored, typename Real>
__global__ void __launch_bounds__(kThreads)
    ordered_grad_value_kernel(const DeviceProblem problem, const Stored* __restrict__ grad_output,
                              const Real* __restrict__ locations, const Real* __restrict__ weights,
                              Real* __restrict__ grad_value) {
  const int lane = threadIdx.x % 32;
  int64_t rows = 0;
  for (int32_t index = 0; index < problem.num_levels; ++index) rows += problem.levels[index].height;
  const int64_t number = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int64_t image_head = number / rows;
  // whole warps leave
  if (image_head >= problem.batch * problem.heads) return;
  const int64_t image = image_head / problem.heads, head = image_head % problem.heads;
  int32_t row = static_cast<int32_t>(number % rows), level_index = 0;
  while (row >= problem.levels[level_index].height) row -= problem.levels[level_index++].height;
  const DeviceLevel level = problem.levels[level_index];

  const int64_t step = static_cast<int64_t>(problem.heads) * problem.channels;
  Real* cells = grad_value + (image * problem.values * problem.heads + head) * problem.channels +
                cell_of(level, row, 0) * step;
  const int64_t count = problem.queries * problem.points;
  for (int64_t first = 0; first < count; first += 32) {
    const int64_t own = first + lane;
    Point<Real> point{};
    int64_t position = 0;
    if (own < count) {
      position = (image * problem.queries + own / problem.points) * problem.heads + head;
      const int64_t sample = (position * problem.num_levels + level_index) * problem.points + own % problem.points;
      point = locate(level, locations + 2 * sample, weights[sample]);
    }
    const bool is_upper = point.top == row, touches = point.inside && (is_upper || point.top + 1 == row);
    const Real below = point.weight * point.down, share = is_upper ? point.weight - below : below;
    for (unsigned found = __ballot_sync(kAllLanes, touches); found != 0; found &= found - 1) {
      const int source = __ffs(found) - 1;
      const int64_t from = __shfl_sync(kAllLanes, position, source) * problem.channels;
      const int32_t left = __shfl_sync(kAllLanes, point.left, source);
      const Real total = __shfl_sync(kAllLanes, share, source);
      const Real right_share = total * __shfl_sync(kAllLanes, point.right, source), left_share = total - right_share;
      for (int32_t channel = lane; channel < problem.channels; channel += 32) {
        const Real gradient = to_real(grad_output[from + channel]);
        if (left >= 0) cells[left * step + channel] += left_share * gradient;
        if (left + 1 < level.width) cells[(left + 1) * step + channel] += right_share * gradient;
      }
    }
  }
}

}  // namespace sparse_attention
