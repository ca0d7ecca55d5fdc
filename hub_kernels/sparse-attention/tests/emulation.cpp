// Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
//
// Runs the CUDA kernels on a CPU, thread by thread: the 32 threads of a warp take turns, and wait for each other where
// they exchange values. It shows that the kernels compute what they should, not how fast, and finds no races between
// warps (which share nothing but the atomic additions).
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <vector>

#include <ucontext.h>

// what nvcc gives to device code
#include <cuda_runtime.h>
struct Place {
  unsigned x = 0;
};
static Place emulated_thread, emulated_block;
#define threadIdx emulated_thread
#define blockIdx emulated_block
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __global__
#define __global__
#undef __device__
#define __device__
#undef __forceinline__
#define __forceinline__ inline
using std::floor;

namespace {

struct Warp {
  ucontext_t scheduler;
  std::vector<ucontext_t> lanes = std::vector<ucontext_t>(32);
  std::vector<std::vector<char>> stacks = std::vector<std::vector<char>>(32, std::vector<char>(64 * 1024));
  bool done[32];
  int current;
  // exchanged values, in turns: a thread is never more than one exchange ahead of the others
  double slots[2][32];
  int turn[32];
} warp;

void (*body)();

void run_lane() {
  body();
  warp.done[warp.current] = true;
  swapcontext(&warp.lanes[warp.current], &warp.scheduler);
}

void run_warp(unsigned first_thread) {
  for (int lane = 0; lane < 32; ++lane) {
    warp.done[lane] = false;
    warp.turn[lane] = 0;
    getcontext(&warp.lanes[lane]);
    warp.lanes[lane].uc_stack.ss_sp = warp.stacks[lane].data();
    warp.lanes[lane].uc_stack.ss_size = warp.stacks[lane].size();
    warp.lanes[lane].uc_link = nullptr;
    makecontext(&warp.lanes[lane], run_lane, 0);
  }
  for (bool busy = true; busy;) {
    busy = false;
    for (int lane = 0; lane < 32; ++lane) {
      if (warp.done[lane]) continue;
      warp.current = lane;
      emulated_thread.x = first_thread + lane;
      swapcontext(&warp.scheduler, &warp.lanes[lane]);
      busy = true;
    }
  }
}

const double* exchange(double value) {
  const int lane = warp.current, turn = warp.turn[lane] % 2;
  warp.slots[turn][lane] = value;
  swapcontext(&warp.lanes[lane], &warp.scheduler);
  ++warp.turn[lane];
  // a thread that left could not have taken part
  for (int other = 0; other < 32; ++other) {
    if (warp.done[other] && warp.turn[other] < warp.turn[lane]) std::abort();
  }
  return warp.slots[turn];
}

}  // namespace

template <typename Value>
Value __shfl_xor_sync(unsigned, Value value, int distance) {
  return static_cast<Value>(exchange(static_cast<double>(value))[warp.current ^ distance]);
}
template <typename Value>
Value __shfl_sync(unsigned, Value value, int source) {
  return static_cast<Value>(exchange(static_cast<double>(value))[source]);
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  const double* votes = exchange(vote);
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane) result |= votes[lane] != 0 ? 1u << lane : 0u;
  return result;
}
inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
template <typename Value>
void atomicAdd(Value* to, Value value) {
  *to += value;
}

#include "kernels.cuh"

using namespace sparse_attention;

namespace {

struct Call {
  DeviceProblem problem;
  const void *grad_output, *value, *locations, *weights;
  void *output, *grad_value, *grad_locations, *grad_weights;
};
Call call;

void run_blocks(int64_t blocks, void (*kernel)()) {
  body = kernel;
  for (int64_t block = 0; block < blocks; ++block) {
    emulated_block.x = static_cast<unsigned>(block);
    for (unsigned first = 0; first < kThreads; first += 32) run_warp(first);
  }
}

template <typename Stored, typename Real, int WIDTH, int LANES, bool WHOLE>
struct Kernels {
  static void forward() {
    forward_kernel<Stored, Real, WIDTH, LANES, WHOLE>(
        call.problem, static_cast<const Stored*>(call.value), static_cast<const Real*>(call.locations),
        static_cast<const Real*>(call.weights), static_cast<Stored*>(call.output));
  }
  template <bool ADD>
  static void backward() {
    backward_kernel<Stored, Real, WIDTH, LANES, WHOLE, ADD>(
        call.problem, static_cast<const Stored*>(call.grad_output), static_cast<const Stored*>(call.value),
        static_cast<const Real*>(call.locations), static_cast<const Real*>(call.weights),
        static_cast<Real*>(call.grad_value), static_cast<Real*>(call.grad_locations),
        static_cast<Real*>(call.grad_weights));
  }
  static void ordered() {
    ordered_grad_value_kernel<Stored, Real>(
        call.problem, static_cast<const Stored*>(call.grad_output), static_cast<const Real*>(call.locations),
        static_cast<const Real*>(call.weights), static_cast<Real*>(call.grad_value));
  }
  static void run(bool deterministic) {
    const DeviceProblem& problem = call.problem;
    const int64_t groups = kThreads / LANES;
    const int64_t blocks = problem.batch * problem.heads * ((problem.queries + groups - 1) / groups);
    run_blocks(blocks, forward);
    run_blocks(blocks, deterministic ? backward<false> : backward<true>);
    if (deterministic) {
      int64_t rows = 0;
      for (int32_t index = 0; index < problem.num_levels; ++index) rows += problem.levels[index].height;
      const int64_t warps = problem.batch * problem.heads * rows;
      run_blocks((warps + kThreads / 32 - 1) / (kThreads / 32), ordered);
    }
  }
};

template <typename Stored, typename Real>
void run_type(bool whole, bool deterministic) {
  constexpr int width = sizeof(Stored) == 8 ? 1 : 16 / sizeof(Stored);
  if (!whole) return Kernels<Stored, Real, 1, 32, false>::run(deterministic);
  switch (call.problem.channels / width) {
    case 4: return Kernels<Stored, Real, width, 4, true>::run(deterministic);
    case 8: return Kernels<Stored, Real, width, 8, true>::run(deterministic);
    default: return Kernels<Stored, Real, width, 16, true>::run(deterministic);
  }
}

}  // namespace

// Forward and backward, `type` 0 float32, 1 float64, 2 float16, 3 bfloat16. `tensors`: grad_output, value, locations,
// weights, output, grad_value (zeros, float32 or float64), grad_locations, grad_weights.
extern "C" void emulate(int type, int whole, int deterministic, const int64_t* sizes, const int64_t* shapes,
                        void** tensors) {
  DeviceProblem problem{};
  problem.batch = sizes[0];
  problem.values = sizes[1];
  problem.heads = static_cast<int32_t>(sizes[2]);
  problem.channels = static_cast<int32_t>(sizes[3]);
  problem.queries = sizes[4];
  problem.num_levels = static_cast<int32_t>(sizes[5]);
  problem.points = static_cast<int32_t>(sizes[6]);
  int64_t start = 0;
  for (int32_t level = 0; level < problem.num_levels; ++level) {
    problem.levels[level] = {start, static_cast<int32_t>(shapes[2 * level]), static_cast<int32_t>(shapes[2 * level + 1])};
    start += shapes[2 * level] * shapes[2 * level + 1];
  }
  call = {problem, tensors[0], tensors[1], tensors[2], tensors[3], tensors[4], tensors[5], tensors[6], tensors[7]};
  switch (type) {
    case 0: return run_type<float, float>(whole, deterministic);
    case 1: return run_type<double, double>(false, deterministic);
    case 2: return run_type<__half, float>(whole, deterministic);
    default: return run_type<__nv_bfloat16, float>(whole, deterministic);
  }
}
