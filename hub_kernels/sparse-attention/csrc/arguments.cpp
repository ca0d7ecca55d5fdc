// Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
#include "arguments.h"

#include <torch/headeronly/util/Exception.h>

#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace sparse_attention {
namespace {

template <typename... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  message << "sparse_attention: ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << '(';
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) text << (axis ? ", " : "") << tensor.size(axis);
  text << ')';
  return text.str();
}

const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    default: return "another type";
  }
}

void require_contiguous(const Tensor& tensor, const char* name) {
  require(tensor.is_contiguous(), "`", name, "` must be contiguous, call .contiguous() on it.");
}

void require_together(const Tensor& tensor, const Tensor& value, const char* name) {
  require(tensor.is_cpu() == value.is_cpu() && tensor.is_cuda() == value.is_cuda() &&
              (value.is_cpu() || tensor.get_device_index() == value.get_device_index()),
          "`", name, "` and `value` must be on the same device.");
}

}  // namespace

std::vector<Level> levels_of(const std::vector<int64_t>& spatial_shapes) {
  std::vector<Level> levels;
  int64_t start = 0;
  for (size_t index = 0; index + 1 < spatial_shapes.size(); index += 2) {
    const int64_t height = spatial_shapes[index], width = spatial_shapes[index + 1];
    levels.push_back({start, static_cast<int32_t>(height), static_cast<int32_t>(width)});
    start += height * width;
  }
  return levels;
}

Sizes check_arguments(const Tensor& value, const std::vector<int64_t>& spatial_shapes, const Tensor& locations,
                      const Tensor& weights, const Tensor* grad_output) {
  require(value.dim() == 4, "`value` must have shape (batch, values, heads, channels), got ", shape_of(value), ".");
  require(locations.dim() == 6 && locations.size(5) == 2,
          "`sampling_locations` must have shape (batch, queries, heads, levels, points, 2), got ",
          shape_of(locations), ".");
  const Sizes sizes{value.size(0),     value.size(1),     value.size(2),    value.size(3),
                    locations.size(1), locations.size(3), locations.size(4)};
  require(locations.size(0) == sizes.batch && locations.size(2) == sizes.heads, "`value` ", shape_of(value),
          " and `sampling_locations` ", shape_of(locations), " must have the same batch size and number of heads.");
  require(weights.dim() == 5, "`attention_weights` must have shape (batch, queries, heads, levels, points), got ",
          shape_of(weights), ".");
  for (int64_t axis = 0; axis < 5; ++axis) {
    require(weights.size(axis) == locations.size(axis), "`attention_weights` ", shape_of(weights),
            " must have the shape of `sampling_locations` ", shape_of(locations), " without its last axis.");
  }

  require(static_cast<int64_t>(spatial_shapes.size()) == 2 * sizes.levels,
          "`spatial_shapes` must hold height and width of ", sizes.levels, " levels, got ", spatial_shapes.size(),
          " numbers.");
  // cells are numbered in 32 bits, with a margin for the border that the kernels add
  constexpr int64_t most_cells = std::numeric_limits<int32_t>::max() / 4;
  int64_t cells = 0;
  for (int64_t level = 0; level < sizes.levels; ++level) {
    const int64_t height = spatial_shapes[2 * level], width = spatial_shapes[2 * level + 1];
    require(height > 0 && width > 0 && height <= most_cells && width <= most_cells / height,
            "each level must have between 1 and ", most_cells, " cells, got ", height, " x ", width, ".");
    cells += height * width;
  }
  require(cells == sizes.values, "the levels have ", cells, " cells, `value` has ", sizes.values, ".");
  require(sizes.values <= most_cells, "`value` has ", sizes.values, " cells, at most ", most_cells, " are supported.");

  const ScalarType type = value.scalar_type();
  require(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16 ||
              type == ScalarType::Double,
          "`value` must be float16, bfloat16, float32 or float64.");
  const ScalarType precise = type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  require(locations.scalar_type() == precise, "`sampling_locations` must be ", name_of(precise), " where `value` is ",
          name_of(type), ", got ", name_of(locations.scalar_type()), ".");
  require(weights.scalar_type() == precise, "`attention_weights` must be ", name_of(precise), " where `value` is ",
          name_of(type), ", got ", name_of(weights.scalar_type()), ".");

  require_together(locations, value, "sampling_locations");
  require_together(weights, value, "attention_weights");
  require_contiguous(value, "value");
  require_contiguous(locations, "sampling_locations");
  require_contiguous(weights, "attention_weights");

  if (grad_output != nullptr) {
    require(grad_output->dim() == 3 && grad_output->size(0) == sizes.batch && grad_output->size(1) == sizes.queries &&
                grad_output->size(2) == sizes.heads * sizes.channels,
            "`grad_output` must have shape (", sizes.batch, ", ", sizes.queries, ", ", sizes.heads * sizes.channels,
            "), got ", shape_of(*grad_output), ".");
    require(grad_output->scalar_type() == type, "`grad_output` must be ", name_of(type), " as `value` is, got ",
            name_of(grad_output->scalar_type()), ".");
    require_together(*grad_output, value, "grad_output");
    require_contiguous(*grad_output, "grad_output");
  }
  return sizes;
}

}  // namespace sparse_attention
