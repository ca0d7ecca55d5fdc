# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The operators as torch sees them: shapes, gradients, and the function that users call."""

from collections.abc import Sequence

import torch

from ._ops import add_op_namespace_prefix, ops


@torch.library.register_fake(add_op_namespace_prefix("forward"))
def _forward_fake(value, spatial_shapes, sampling_locations, attention_weights):
    batch_size, _, num_heads, head_dim = value.shape
    return value.new_empty(batch_size, sampling_locations.shape[1], num_heads * head_dim)


@torch.library.register_fake(add_op_namespace_prefix("backward"))
def _backward_fake(grad_output, value, spatial_shapes, sampling_locations, attention_weights, deterministic):
    return torch.empty_like(value), torch.empty_like(sampling_locations), torch.empty_like(attention_weights)


def _save_for_backward(ctx, inputs, output):
    value, ctx.spatial_shapes, sampling_locations, attention_weights = inputs
    ctx.save_for_backward(value, sampling_locations, attention_weights)


def _backward(ctx, grad_output):
    value, sampling_locations, attention_weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = ops.backward(
        grad_output.contiguous(),
        value,
        ctx.spatial_shapes,
        sampling_locations,
        attention_weights,
        torch.are_deterministic_algorithms_enabled(),
    )
    return grad_value, None, grad_locations, grad_weights


def _no_second_order(ctx, *grad_outputs):
    raise RuntimeError(
        "sparse_attention can be differentiated once only: for second derivatives, use the same operation through "
        "torch.nn.functional.grid_sample."
    )


torch.library.register_autograd(add_op_namespace_prefix("forward"), _backward, setup_context=_save_for_backward)
# without a formula of its own, the gradient's gradient would be wrong in silence
torch.library.register_autograd(add_op_namespace_prefix("backward"), _no_second_order)


def supports(device_type: str) -> bool:
    """Whether this build has kernels for a type of device, `"cpu"` or `"cuda"`."""
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(add_op_namespace_prefix("forward"), key)


def sparse_attention(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """
    For each query and head, the weighted sum of values that are sampled bilinearly from the levels of a pyramid.

    Args:
        value (`torch.Tensor` of shape `(batch_size, num_values, num_heads, head_dim)`):
            The levels, each flattened row by row, one after the other: float16, bfloat16, float32 or float64.
        spatial_shapes (`list[tuple[int, int]]`):
            `(height, width)` of each level, as numbers; their areas add up to `num_values`.
        sampling_locations (`torch.Tensor` of shape `(batch_size, num_queries, num_heads, num_levels, num_points, 2)`):
            Points as `(x, y)`: 0 is the left or upper border of the level, 1 the right or lower one, and the first
            cell's center lies at half a cell (`align_corners=False`). Cells outside the level count as zeros; a point
            at NaN or infinity counts as outside and gets no gradient. At least float32.
        attention_weights (`torch.Tensor` of shape `(batch_size, num_queries, num_heads, num_levels, num_points)`):
            Weight of each point.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_queries, num_heads * head_dim)`, in the dtype of `value`. Sums are
        taken in float32 (float64 for float64), also those of the gradients.

    Raises:
        TypeError: for half-precision locations, which cannot tell the cells of a large level apart.
        RuntimeError: for arguments that do not fit together, and for second derivatives.
    """
    if sampling_locations.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"`sampling_locations` of dtype {sampling_locations.dtype} cannot tell the cells of a level apart: compute "
            "them in float32 (also under autocast)."
        )
    precise = torch.promote_types(value.dtype, torch.float32)
    return ops.forward(
        value.contiguous(),
        [size for shape in spatial_shapes for size in shape],
        sampling_locations.to(precise).contiguous(),
        attention_weights.to(precise).contiguous(),
    )
