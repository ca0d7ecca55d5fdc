// Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
//
// CPU kernels. A task owns one head of one image: it copies that head's cells into a tile of its own, channels
// innermost, in the type that is computed in, with a border of zeros. Every point then reads four cells without
// a test, and points outside the level read zeros. In the backward pass a task owns one level of one head, so
// gradients are summed without atomics, and results do not depend on the number of threads. Where its two tiles, of
// values and of their gradients, would be large beside the results, it takes one after the other, and few channels of
// the gradients at a time: slower, but the threads hold little.
#include "arguments.h"
#include "torch_binding.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include <sys/mman.h>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU
#endif
// inlined into each of those versions
#define INLINE inline __attribute__((always_inline))

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace sparse_attention {
namespace {

// 64 bytes of what is computed in; the compiler splits it where registers are smaller
template <typename Real>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(64)));
  typedef float quarter __attribute__((vector_size(16)));
  static constexpr int lanes = 16;
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(64)));
  static constexpr int lanes = 8;
};

// Storage types. Conversions are written without branches so that loops over them become vector code.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename To, typename From>
INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

INLINE float load(float stored) { return stored; }
INLINE double load(double stored) { return stored; }
INLINE float load(BFloat16 stored) { return bits_as<float>(static_cast<uint32_t>(stored.bits) << 16); }
INLINE float load(Float16 stored) {
  const uint32_t magnitude = static_cast<uint32_t>(stored.bits & 0x7fffu) << 13;
  // the exponent's bias grows from 15 to 127; this also normalizes what is subnormal in half precision
  const uint32_t finite = bits_as<uint32_t>(bits_as<float>(magnitude) * 0x1p112f);
  const uint32_t result = magnitude >= (0x7c00u << 13) ? (magnitude | 0x7f800000u) : finite;
  return bits_as<float>(result | (static_cast<uint32_t>(stored.bits & 0x8000u) << 16));
}

INLINE void store(float& stored, float value) { stored = value; }
INLINE void store(double& stored, double value) { stored = value; }
INLINE void store(BFloat16& stored, float value) {
  const uint32_t bits = bits_as<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  stored.bits = static_cast<uint16_t>(is_nan ? ((bits >> 16) | 0x40u) : rounded);
}
INLINE void store(Float16& stored, float value) {
  const uint32_t bits = bits_as<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  // adding 0.5 leaves multiples of 2^-24, half precision's subnormal step, in the low bits
  const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  stored.bits = static_cast<uint16_t>(result | ((bits >> 16) & 0x8000u));
}

template <typename Stored>
struct ComputedIn {
  using type = float;
};
template <>
struct ComputedIn<double> {
  using type = double;
};

// A level's tile: rows -2 ... height, columns -1 ... width, all zero but for the cells themselves. Row -2 is for
// points outside: their four cells, from (-2, -1) on, are zero.
INLINE int64_t tile_columns(const Level& level) { return level.width + 2; }
INLINE int64_t tile_cells(const Level& level) { return (level.height + 3) * tile_columns(level); }

struct Problem {
  Sizes sizes;
  const Level* levels;
  int64_t padded;  // channels of a cell in a tile, whole vectors
};

// Some channels of each cell, from the one that `value` points to.
template <typename Stored, typename Real>
INLINE void fill_tile(Real* tile, const Stored* value, const Problem& problem, const Level& level, int64_t channels) {
  const int64_t padded = problem.padded, columns = tile_columns(level);
  const int64_t step = problem.sizes.heads * problem.sizes.channels;
  std::memset(tile, 0, sizeof(Real) * static_cast<size_t>(tile_cells(level) * padded));
  for (int64_t y = 0; y < level.height; ++y) {
    const Stored* from = value + (level.start + y * level.width) * step;
    Real* to = tile + ((y + 2) * columns + 1) * padded;
    for (int64_t x = 0; x < level.width; ++x, from += step, to += padded) {
      for (int64_t channel = 0; channel < channels; ++channel) to[channel] = load(from[channel]);
    }
  }
}

// For each point of a level: the upper left of its four cells in the tile, how far it lies from there, its weight.
// The same border cases as grid_sample: a point counts while any of its cells is inside; NaN does not.
template <typename Real>
INLINE void locate(int64_t points, const Level& level, const Real* locations, const Real* weights, int32_t* cells,
                   Real* right, Real* down, Real* weight) {
  const Real height = static_cast<Real>(level.height), width = static_cast<Real>(level.width);
  const int32_t columns = level.width + 2;
  for (int64_t point = 0; point < points; ++point) {
    Real x = locations[2 * point] * width - Real(0.5), y = locations[2 * point + 1] * height - Real(0.5);
    const bool inside = (x >= Real(-1)) & (x < width) & (y >= Real(-1)) & (y < height);
    x = inside ? x : Real(-1);
    y = inside ? y : Real(-2);
    const Real left = std::floor(x), top = std::floor(y);
    cells[point] = (static_cast<int32_t>(top) + 2) * columns + static_cast<int32_t>(left) + 1;
    right[point] = x - left;
    down[point] = y - top;
    weight[point] = inside ? weights[point] : Real(0);
  }
}

// A head's queries lie too far apart for the processor to foresee the next one.
template <typename Item>
INLINE void prefetch(const Item* items, int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(items);
  for (int64_t byte = 0; byte < count * static_cast<int64_t>(sizeof(Item)); byte += 64) __builtin_prefetch(bytes + byte);
}
constexpr int64_t kQueriesAhead = 3;

struct ForwardTask {
  Problem problem;
  const void *value, *locations, *weights;
  void* output;
  int64_t image, head, first_query, last_query;
  void *tile, *reals;
  int32_t* cells;
};

// Sums the points of one query for `COUNT` vectors of channels.
template <int COUNT, typename Real>
INLINE void gather(const ForwardTask& task, int64_t first_vector, Real* row) {
  using Vec = typename Vector<Real>::type;
  const Problem& problem = task.problem;
  const int64_t points = problem.sizes.points, samples = problem.sizes.levels * points;
  const Real* shares = static_cast<const Real*>(task.reals);
  const Real* tile = static_cast<const Real*>(task.tile) + first_vector * Vector<Real>::lanes;
  Vec sums[COUNT] = {};
  int64_t sample = 0;
  for (int64_t index = 0; index < problem.sizes.levels; ++index) {
    const int64_t below = tile_columns(problem.levels[index]) * problem.padded;
    for (int64_t point = 0; point < points; ++point, ++sample) {
      const Real* upper = tile + task.cells[sample] * problem.padded;
      const Real* lower = upper + below;
      const Real upper_left = shares[sample], upper_right = shares[samples + sample];
      const Real lower_left = shares[2 * samples + sample], lower_right = shares[3 * samples + sample];
      for (int part = 0; part < COUNT; ++part) {
        // one sum per point first: the chain of additions from point to point stays short
        Vec sum = upper_left * reinterpret_cast<const Vec*>(upper)[part];
        sum += upper_right * reinterpret_cast<const Vec*>(upper + problem.padded)[part];
        sum += lower_left * reinterpret_cast<const Vec*>(lower)[part];
        sum += lower_right * reinterpret_cast<const Vec*>(lower + problem.padded)[part];
        sums[part] += sum;
      }
    }
    tile += tile_cells(problem.levels[index]) * problem.padded;
  }
  for (int part = 0; part < COUNT; ++part) {
    reinterpret_cast<Vec*>(row)[first_vector + part] = sums[part];
  }
}

template <typename Stored>
INLINE void forward_task(const ForwardTask& task) {
  using Real = typename ComputedIn<Stored>::type;
  constexpr int lanes = Vector<Real>::lanes;
  const Problem& problem = task.problem;
  const Sizes& sizes = problem.sizes;
  const int64_t points = sizes.points, samples = sizes.levels * points, vectors = problem.padded / lanes;

  const Stored* value = static_cast<const Stored*>(task.value) +
                        (task.image * sizes.values * sizes.heads + task.head) * sizes.channels;
  Real* tile = static_cast<Real*>(task.tile);
  for (int64_t index = 0; index < sizes.levels; ++index) {
    fill_tile(tile, value, problem, problem.levels[index], sizes.channels);
    tile += tile_cells(problem.levels[index]) * problem.padded;
  }

  Real* shares = static_cast<Real*>(task.reals);  // four of each sample, then a row of channels
  Real* row = shares + (4 * samples + lanes - 1) / lanes * lanes;
  for (int64_t query = task.first_query; query < task.last_query; ++query) {
    const int64_t position = (task.image * sizes.queries + query) * sizes.heads + task.head;
    const Real* locations = static_cast<const Real*>(task.locations) + position * samples * 2;
    const Real* weights = static_cast<const Real*>(task.weights) + position * samples;
    if (query + kQueriesAhead < task.last_query) {
      prefetch(locations + kQueriesAhead * sizes.heads * samples * 2, samples * 2);
      prefetch(weights + kQueriesAhead * sizes.heads * samples, samples);
    }
    for (int64_t index = 0; index < sizes.levels; ++index) {
      const int64_t first = index * points;
      Real *right = shares + first, *down = right + samples, *weight = down + samples;
      locate(points, problem.levels[index], locations + 2 * first, weights + first, task.cells + first, right, down,
             weight);
    }
    for (int64_t sample = 0; sample < samples; ++sample) {
      const Real right = shares[sample], down = shares[samples + sample], weight = shares[2 * samples + sample];
      const Real lower = weight * down, upper = weight - lower;
      shares[sample] = upper - upper * right;
      shares[samples + sample] = upper * right;
      shares[2 * samples + sample] = lower - lower * right;
      shares[3 * samples + sample] = lower * right;
    }
    int64_t vector = 0;
    for (; vector + 2 <= vectors; vector += 2) gather<2, Real>(task, vector, row);
    if (vector < vectors) gather<1, Real>(task, vector, row);
    Stored* output = static_cast<Stored*>(task.output) + position * sizes.channels;
    for (int64_t channel = 0; channel < sizes.channels; ++channel) store(output[channel], row[channel]);
  }
}

struct BackwardTask {
  Problem problem;
  const void *grad_output, *value, *locations, *weights;
  void *grad_value, *grad_locations, *grad_weights;
  int64_t image, head, level, first_channel;
  void *tile, *grad_tile, *reals;
  int32_t* cells;
};

// Lanes of four vectors added up, in one order everywhere.
INLINE void add_lanes(const Vector<float>::type (&vectors)[4], float* sums) {
  using Quarter = Vector<float>::quarter;
  Quarter folded[4];
  for (int index = 0; index < 4; ++index) {
    const auto& all = vectors[index];
    folded[index] = (__builtin_shufflevector(all, all, 0, 1, 2, 3) + __builtin_shufflevector(all, all, 4, 5, 6, 7)) +
                    (__builtin_shufflevector(all, all, 8, 9, 10, 11) + __builtin_shufflevector(all, all, 12, 13, 14, 15));
  }
  // four sums at once: a transposition, then additions
  const Quarter low01 = __builtin_shufflevector(folded[0], folded[1], 0, 4, 1, 5);
  const Quarter high01 = __builtin_shufflevector(folded[0], folded[1], 2, 6, 3, 7);
  const Quarter low23 = __builtin_shufflevector(folded[2], folded[3], 0, 4, 1, 5);
  const Quarter high23 = __builtin_shufflevector(folded[2], folded[3], 2, 6, 3, 7);
  const Quarter pair01 = low01 + high01, pair23 = low23 + high23;
  const Quarter even = __builtin_shufflevector(pair01, pair23, 0, 1, 4, 5);
  const Quarter odd = __builtin_shufflevector(pair01, pair23, 2, 3, 6, 7);
  const Quarter total = even + odd;
  std::memcpy(sums, &total, sizeof total);
}
INLINE void add_lanes(const Vector<double>::type (&vectors)[4], double* sums) {
  for (int index = 0; index < 4; ++index) {
    double parts[8];
    std::memcpy(parts, &vectors[index], sizeof parts);
    sums[index] = ((parts[0] + parts[1]) + (parts[2] + parts[3])) + ((parts[4] + parts[5]) + (parts[6] + parts[7]));
  }
}

// Adds products of a query's gradient with the cells of its points to `products` (points, 4) (`OF_POINTS`), and the
// gradient to the cells (`OF_VALUE`).
template <int COUNT, bool OF_POINTS, bool OF_VALUE, typename Real>
INLINE void scatter(const BackwardTask& task, int64_t first_vector, const Real* row, const Real* right,
                    const Real* down, const Real* weight, Real* products) {
  using Vec = typename Vector<Real>::type;
  const Problem& problem = task.problem;
  const int64_t below = tile_columns(problem.levels[task.level]) * problem.padded;
  const int64_t offset = first_vector * Vector<Real>::lanes;
  Vec gradient[COUNT];
  for (int part = 0; part < COUNT; ++part) gradient[part] = reinterpret_cast<const Vec*>(row + offset)[part];
  for (int64_t point = 0; point < problem.sizes.points; ++point) {
    const int64_t cell = task.cells[point] * problem.padded + offset;
    const Real lower = weight[point] * down[point], upper = weight[point] - lower;
    const Real shares[4] = {upper - upper * right[point], upper * right[point], lower - lower * right[point],
                            lower * right[point]};
    const int64_t corners[4] = {cell, cell + problem.padded, cell + below, cell + below + problem.padded};
    Vec sums[4];
    for (int corner = 0; corner < 4; ++corner) {
      if constexpr (OF_POINTS) {
        const Vec* from = reinterpret_cast<const Vec*>(static_cast<const Real*>(task.tile) + corners[corner]);
        sums[corner] = gradient[0] * from[0];
        for (int part = 1; part < COUNT; ++part) sums[corner] += gradient[part] * from[part];
      }
      if constexpr (OF_VALUE) {
        Vec* to = reinterpret_cast<Vec*>(static_cast<Real*>(task.grad_tile) + corners[corner]);
        for (int part = 0; part < COUNT; ++part) to[part] += shares[corner] * gradient[part];
      }
    }
    if constexpr (OF_POINTS) {
      Real totals[4];
      add_lanes(sums, totals);
      for (int corner = 0; corner < 4; ++corner) products[4 * point + corner] += totals[corner];
    }
  }
}

// The gradients of locations and weights (`OF_POINTS`), and those of the values (`OF_VALUE`), for the task's channels.
template <bool OF_POINTS, bool OF_VALUE, typename Stored>
INLINE void backward_task(const BackwardTask& task) {
  using Real = typename ComputedIn<Stored>::type;
  const Problem& problem = task.problem;
  const Sizes& sizes = problem.sizes;
  const Level& level = problem.levels[task.level];
  const int64_t points = sizes.points, channels = std::min(problem.padded, sizes.channels - task.first_channel);
  const int64_t vectors = problem.padded / Vector<Real>::lanes;
  const int64_t first_value =
      (task.image * sizes.values * sizes.heads + task.head) * sizes.channels + task.first_channel;
  const Real height = static_cast<Real>(level.height), width = static_cast<Real>(level.width);

  if constexpr (OF_POINTS) {
    fill_tile(static_cast<Real*>(task.tile), static_cast<const Stored*>(task.value) + first_value, problem, level,
              channels);
  }
  if constexpr (OF_VALUE) {
    std::memset(task.grad_tile, 0, sizeof(Real) * static_cast<size_t>(tile_cells(level) * problem.padded));
  }

  Real* row = static_cast<Real*>(task.reals);
  Real *right = row + problem.padded, *down = right + points, *weight = down + points, *products = weight + points;
  std::fill(row, right, Real(0));
  for (int64_t query = 0; query < sizes.queries; ++query) {
    const int64_t position = (task.image * sizes.queries + query) * sizes.heads + task.head;
    const int64_t first = (position * sizes.levels + task.level) * points;
    const Real* locations = static_cast<const Real*>(task.locations) + 2 * first;
    const Real* weights = static_cast<const Real*>(task.weights) + first;
    const Stored* gradient =
        static_cast<const Stored*>(task.grad_output) + position * sizes.channels + task.first_channel;
    if (query + kQueriesAhead < sizes.queries) {
      const int64_t ahead = kQueriesAhead * sizes.heads;
      prefetch(locations + ahead * sizes.levels * points * 2, points * 2);
      prefetch(weights + ahead * sizes.levels * points, points);
      prefetch(gradient + ahead * sizes.channels, channels);
    }
    locate(points, level, locations, weights, task.cells, right, down, weight);
    for (int64_t channel = 0; channel < channels; ++channel) row[channel] = load(gradient[channel]);
    if constexpr (OF_POINTS) std::fill(products, products + 4 * points, Real(0));
    int64_t vector = 0;
    for (; vector + 2 <= vectors; vector += 2) {
      scatter<2, OF_POINTS, OF_VALUE, Real>(task, vector, row, right, down, weight, products);
    }
    if (vector < vectors) scatter<1, OF_POINTS, OF_VALUE, Real>(task, vector, row, right, down, weight, products);
    if constexpr (!OF_POINTS) continue;

    Real* grad_locations = static_cast<Real*>(task.grad_locations) + 2 * first;
    Real* grad_weights = static_cast<Real*>(task.grad_weights) + first;
    for (int64_t point = 0; point < points; ++point) {
      const Real* product = products + 4 * point;
      const Real upper = product[0] + right[point] * (product[1] - product[0]);
      const Real lower = product[2] + right[point] * (product[3] - product[2]);
      const Real along_x =
          (Real(1) - down[point]) * (product[1] - product[0]) + down[point] * (product[3] - product[2]);
      grad_weights[point] = upper + down[point] * (lower - upper);
      grad_locations[2 * point] = weight[point] * width * along_x;
      grad_locations[2 * point + 1] = weight[point] * height * (lower - upper);
    }
  }

  if constexpr (OF_VALUE) {
    Stored* grad_value = static_cast<Stored*>(task.grad_value) + first_value;
    for (int64_t y = 0; y < level.height; ++y) {
      const Real* from =
          static_cast<const Real*>(task.grad_tile) + ((y + 2) * tile_columns(level) + 1) * problem.padded;
      Stored* to = grad_value + (level.start + y * level.width) * sizes.heads * sizes.channels;
      for (int64_t x = 0; x < level.width; ++x, from += problem.padded, to += sizes.heads * sizes.channels) {
        for (int64_t channel = 0; channel < channels; ++channel) store(to[channel], from[channel]);
      }
    }
  }
}

FOR_EACH_CPU void forward_float(const ForwardTask& task) { forward_task<float>(task); }
FOR_EACH_CPU void forward_double(const ForwardTask& task) { forward_task<double>(task); }
FOR_EACH_CPU void forward_half(const ForwardTask& task) { forward_task<Float16>(task); }
FOR_EACH_CPU void forward_bfloat16(const ForwardTask& task) { forward_task<BFloat16>(task); }
FOR_EACH_CPU void backward_float(const BackwardTask& task) { backward_task<true, true, float>(task); }
FOR_EACH_CPU void backward_double(const BackwardTask& task) { backward_task<true, true, double>(task); }
FOR_EACH_CPU void backward_half(const BackwardTask& task) { backward_task<true, true, Float16>(task); }
FOR_EACH_CPU void backward_bfloat16(const BackwardTask& task) { backward_task<true, true, BFloat16>(task); }
FOR_EACH_CPU void of_points_float(const BackwardTask& task) { backward_task<true, false, float>(task); }
FOR_EACH_CPU void of_points_double(const BackwardTask& task) { backward_task<true, false, double>(task); }
FOR_EACH_CPU void of_points_half(const BackwardTask& task) { backward_task<true, false, Float16>(task); }
FOR_EACH_CPU void of_points_bfloat16(const BackwardTask& task) { backward_task<true, false, BFloat16>(task); }
FOR_EACH_CPU void of_value_float(const BackwardTask& task) { backward_task<false, true, float>(task); }
FOR_EACH_CPU void of_value_double(const BackwardTask& task) { backward_task<false, true, double>(task); }
FOR_EACH_CPU void of_value_half(const BackwardTask& task) { backward_task<false, true, Float16>(task); }
FOR_EACH_CPU void of_value_bfloat16(const BackwardTask& task) { backward_task<false, true, BFloat16>(task); }

void run_forward(ScalarType type, const ForwardTask& task) {
  switch (type) {
    case ScalarType::Double: return forward_double(task);
    case ScalarType::Half: return forward_half(task);
    case ScalarType::BFloat16: return forward_bfloat16(task);
    default: return forward_float(task);
  }
}

void run_backward(ScalarType type, bool of_points, bool of_value, const BackwardTask& task) {
  const auto run = [&](auto both, auto points, auto value) {
    (of_points && of_value ? both : of_points ? points : value)(task);
  };
  switch (type) {
    case ScalarType::Double: return run(backward_double, of_points_double, of_value_double);
    case ScalarType::Half: return run(backward_half, of_points_half, of_value_half);
    case ScalarType::BFloat16: return run(backward_bfloat16, of_points_bfloat16, of_value_bfloat16);
    default: return run(backward_float, of_points_float, of_value_float);
  }
}

constexpr int64_t kVectorBytes = 64;
// one thread's two tiles of the backward pass are large where they take more than a 50th of what it gives
constexpr int64_t kLargeTiles = 50;

int64_t whole_vectors(int64_t bytes) { return (bytes + kVectorBytes - 1) / kVectorBytes * kVectorBytes; }

int64_t bytes_of_real(ScalarType type) { return type == ScalarType::Double ? sizeof(double) : sizeof(float); }

// What the threads of one call hold. It comes from the system and goes back to it at once: what `malloc` keeps for
// later can weigh as much as a tenth of the results.
class Scratch {
 public:
  explicit Scratch(int64_t bytes)
      : bytes_(static_cast<size_t>(bytes)),
        start_(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
    if (start_ == MAP_FAILED) throw std::bad_alloc();
  }
  ~Scratch() { munmap(start_, bytes_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* get() const { return static_cast<char*>(start_); }

 private:
  size_t bytes_;
  void* start_;
};

// Calls `work(next, scratch)` once on each thread of torch's pool; `next()` hands out task numbers until it returns
// `count`, `scratch` is the thread's own `bytes`, whole vectors.
template <typename Work>
void share_out(int64_t count, int64_t bytes, const Work& work) {
  const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  const Scratch scratch(threads * bytes);
  std::atomic<int64_t> taken{0};
  const auto next = [&]() { return std::min(count, taken.fetch_add(1)); };
  torch::stable::parallel_for(
      0, threads, 1, [&](int64_t thread, int64_t) { work(next, scratch.get() + thread * bytes); });
}

}  // namespace
}  // namespace sparse_attention

using namespace sparse_attention;

Tensor forward_cpu(Tensor value, std::vector<int64_t> spatial_shapes, Tensor sampling_locations,
                   Tensor attention_weights) {
  const Sizes sizes = check_arguments(value, spatial_shapes, sampling_locations, attention_weights, nullptr);
  Tensor output = torch::stable::new_empty(value, {sizes.batch, sizes.queries, sizes.heads * sizes.channels});
  if (output.numel() == 0) return output;

  const std::vector<Level> levels = levels_of(spatial_shapes);
  const ScalarType type = value.scalar_type();
  const int64_t real = bytes_of_real(type), samples = sizes.levels * sizes.points;
  const Problem problem{sizes, levels.data(), whole_vectors(real * sizes.channels) / real};
  int64_t cells = 0;
  for (const Level& level : levels) cells += tile_cells(level);
  const int64_t tile_bytes = real * cells * problem.padded;
  const int64_t real_bytes = whole_vectors(real * 4 * samples) + real * problem.padded;
  const int64_t cell_bytes = whole_vectors(samples * static_cast<int64_t>(sizeof(int32_t)));

  // with fewer heads than threads a head's queries are shared out; each result stays the work of one thread
  const int64_t threads = torch::stable::get_num_threads(), heads = sizes.batch * sizes.heads;
  const int64_t shares = std::max<int64_t>(1, std::min((threads + heads - 1) / heads, sizes.queries / 64));
  ForwardTask base{};
  base.problem = problem;
  base.value = value.const_data_ptr();
  base.locations = sampling_locations.const_data_ptr();
  base.weights = attention_weights.const_data_ptr();
  base.output = output.mutable_data_ptr();
  share_out(heads * shares, tile_bytes + real_bytes + cell_bytes, [&](const auto& next, char* scratch) {
    ForwardTask task = base;
    task.tile = scratch;
    task.reals = scratch + tile_bytes;
    task.cells = reinterpret_cast<int32_t*>(scratch + tile_bytes + real_bytes);
    for (int64_t index = next(); index < heads * shares; index = next()) {
      const int64_t head = index / shares, share = index % shares;
      task.image = head / sizes.heads;
      task.head = head % sizes.heads;
      task.first_query = sizes.queries * share / shares;
      task.last_query = sizes.queries * (share + 1) / shares;
      run_forward(type, task);
    }
  });
  return output;
}

// Deterministic as it is.
Gradients backward_cpu(Tensor grad_output, Tensor value, std::vector<int64_t> spatial_shapes,
                       Tensor sampling_locations, Tensor attention_weights, bool) {
  const Sizes sizes = check_arguments(value, spatial_shapes, sampling_locations, attention_weights, &grad_output);
  Tensor grad_value = torch::stable::empty_like(value);
  Tensor grad_locations = torch::stable::empty_like(sampling_locations);
  Tensor grad_weights = torch::stable::empty_like(attention_weights);
  if (value.numel() == 0) {
    torch::stable::zero_(grad_locations);
    torch::stable::zero_(grad_weights);
    return {grad_value, grad_locations, grad_weights};
  }

  const std::vector<Level> levels = levels_of(spatial_shapes);
  const ScalarType type = value.scalar_type();
  const int64_t real = bytes_of_real(type), all_channels = whole_vectors(real * sizes.channels) / real;
  int64_t cells = 0;
  for (const Level& level : levels) cells = std::max(cells, tile_cells(level));
  const int64_t cell_bytes = whole_vectors(sizes.points * static_cast<int64_t>(sizeof(int32_t)));

  BackwardTask base{};
  base.grad_output = grad_output.const_data_ptr();
  base.value = value.const_data_ptr();
  base.locations = sampling_locations.const_data_ptr();
  base.weights = attention_weights.const_data_ptr();
  base.grad_value = grad_value.mutable_data_ptr();
  base.grad_locations = grad_locations.mutable_data_ptr();
  base.grad_weights = grad_weights.mutable_data_ptr();
  const int64_t samples = sizes.batch * sizes.queries * sizes.heads * sizes.levels * sizes.points;
  const int64_t result_bytes = real * (value.numel() + grad_output.numel() + 3 * samples);
  const bool is_split = 2 * real * cells * all_channels > result_bytes / kLargeTiles;
  const auto run = [&](bool of_points, bool of_value, int64_t padded) {
    base.problem = {sizes, levels.data(), padded};
    const int64_t parts = all_channels / padded, count = sizes.batch * sizes.heads * sizes.levels * parts;
    const int64_t tile_bytes = real * cells * padded, grad_offset = of_points ? tile_bytes : 0;
    const int64_t real_offset = grad_offset + (of_value ? tile_bytes : 0);
    const int64_t cell_offset = real_offset + real * padded + whole_vectors(real * 7 * sizes.points);
    share_out(count, cell_offset + cell_bytes, [&](const auto& next, char* scratch) {
      BackwardTask task = base;
      task.tile = scratch;
      task.grad_tile = scratch + grad_offset;
      task.reals = scratch + real_offset;
      task.cells = reinterpret_cast<int32_t*>(scratch + cell_offset);
      for (int64_t index = next(); index < count; index = next()) {
        const int64_t own = index / parts;
        task.image = own / (sizes.heads * sizes.levels);
        task.head = own / sizes.levels % sizes.heads;
        task.level = own % sizes.levels;
        task.first_channel = index % parts * padded;
        run_backward(type, of_points, of_value, task);
      }
    });
  };
  if (is_split) {
    // in this order: `grad_value` takes no memory before it is written to
    run(true, false, all_channels);
    run(false, true, kVectorBytes / real);
  } else {
    run(true, true, all_channels);
  }
  return {grad_value, grad_locations, grad_weights};
}
