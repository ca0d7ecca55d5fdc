# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Memory-saving operator behind [`semantic_cross_entropy`].

Upsampling is linear and acts on rows and columns separately: for each class, `scores = rows @ grid @ columns.T`. The
operator evaluates the scores of one band of pixel rows, turns them into the loss and its gradient, and multiplies the
gradient by the transposed matrices before the next band reuses the memory. Compilers do not look into a custom
operator.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn

from ..inference.upsampled_argmax import resize_rows


# Scores evaluated at a time: as many as fit into the caches of a CPU; enough to occupy a GPU.
_CHUNK_ON_CPU, _CHUNK = 1 << 19, 1 << 25
# Columns upsampled at a time on a CPU. Most entries of the whole matrix are zeros, and multiplying them takes longer.
_COLUMNS_ON_CPU = 64


class LossOptions(NamedTuple):
    """Options of [`semantic_cross_entropy`], in the order of the operator's arguments."""

    weight: torch.Tensor | None
    pixel_offsets: torch.Tensor | None
    padded_size: Sequence[int]
    ignore_index: int
    label_smoothing: float
    align_corners: bool


def loss_dtype(logits: torch.Tensor) -> torch.dtype:
    """Return the dtype in which the loss of `logits` is computed."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def check_targets(labels: torch.Tensor, num_labels: int, ignore_index: int) -> None:
    """
    Check that all labels are classes, among them those of ignored pixels. `ignore_index` is for the error message.

    Raises:
        IndexError: if a label is not a class. On CUDA devices, an assertion fails asynchronously instead.
    """
    is_class = (labels >= 0) & (labels < num_labels)
    if labels.device.type == "cuda":
        # without waiting for the device
        torch._assert_async(is_class.all())
    elif not is_class.all():
        raise IndexError(
            f"`labels` hold values from {labels.min()} to {labels.max()}, but there are {num_labels} classes (0 to "
            f"{num_labels - 1}) and only {ignore_index} is ignored. `check_labels` of "
            "`hf_segmodels.image_processing.label_maps` finds the pixels."
        )


@torch.library.custom_op("hf_segmodels::upsampled_cross_entropy", mutates_args=())
def upsampled_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    with_gradient: bool,
    weight: torch.Tensor | None,
    pixel_offsets: torch.Tensor | None,
    padded_size: Sequence[int],
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return the sum of the pixels' losses, of shape `()`, and its gradient with respect to `logits` (an empty tensor unless
    `with_gradient`), without holding all upsampled scores.
    """
    num_labels, grid_height, grid_width = logits.shape[1:]
    height, width = padded_size
    dtype, device = loss_dtype(logits), logits.device
    weight = None if weight is None else weight.to(dtype)
    options = LossOptions(weight, pixel_offsets, padded_size, ignore_index, label_smoothing, align_corners)
    padding = (0, width - labels.shape[2], 0, height - labels.shape[1])
    labels = nn.functional.pad(labels.long(), padding, value=ignore_index)
    is_valid = labels != ignore_index
    labels = labels.where(is_valid, 0)
    check_targets(labels, num_labels, ignore_index)

    chunk, columns_per_band = (_CHUNK_ON_CPU, _COLUMNS_ON_CPU) if device.type == "cpu" else (_CHUNK, width)
    rows_per_band = max(1, min(height, chunk // (num_labels * max(width, 1))))
    row_bands = _cut_axis(grid_height, height, rows_per_band, align_corners, dtype, device)
    has_all_columns = grid_width == width
    column_bands: tuple[_Band, ...] = ()
    if not has_all_columns:
        column_bands = _cut_axis(grid_width, width, columns_per_band, align_corners, dtype, device)

    gradient = torch.zeros_like(logits, dtype=dtype) if with_gradient else logits.new_empty(0, dtype=dtype)
    # Allocated once: an allocator does not always return the same memory for such sizes.
    band_buffers = logits.new_empty(2, rows_per_band * width, num_labels, dtype=dtype)
    wide_buffers = logits.new_empty(2, 0 if has_all_columns else grid_height, width, num_labels, dtype=dtype)
    losses = [logits.new_zeros((), dtype=dtype)]
    with torch.autocast(device.type, enabled=False):
        for image in range(len(logits)):
            # (num_labels, grid_height, grid_width) -> (grid_height, grid_width, num_labels)
            grid = logits[image].permute(1, 2, 0)
            grad_grid = gradient[image].permute(1, 2, 0) if with_gradient else None
            wide, grad_wide = grid, grad_grid
            if not has_all_columns:
                # (grid_height, grid_width, num_labels) -> (grid_height, width, num_labels)
                wide, grad_wide = wide_buffers[0], wide_buffers[1].zero_() if with_gradient else None
                grid = grid.to(dtype)
                for left, right, first, last, weights in column_bands:
                    torch.matmul(weights, grid[:, first:last], out=wide[:, left:right])
            offsets = None if pixel_offsets is None else pixel_offsets[image]
            targets = _ImageTargets(labels[image], is_valid[image], offsets)
            losses += _run_bands(wide, grad_wide, row_bands, targets, options, band_buffers)
            if grad_grid is not None and grad_wide is not None:
                for left, right, first, last, weights in column_bands:
                    grad_grid[:, first:last] += weights.T @ grad_wide[:, left:right]
    return torch.stack(losses).sum(), gradient


@upsampled_cross_entropy.register_fake
def _fake_outputs(
    logits: torch.Tensor, labels: torch.Tensor, with_gradient: bool, *options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = loss_dtype(logits)
    gradient = torch.empty_like(logits, dtype=dtype) if with_gradient else logits.new_empty(0, dtype=dtype)
    return logits.new_empty((), dtype=dtype), gradient


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype
    ctx.num_inputs = len(inputs)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_total: torch.Tensor | None, grad_gradient: torch.Tensor | None) -> tuple[Any, ...]:
    if grad_gradient is not None:
        raise RuntimeError(
            "semantic_cross_entropy can be differentiated once only. For second derivatives, use "
            "torch.nn.functional.cross_entropy of torch.nn.functional.interpolate."
        )
    (gradient,) = ctx.saved_tensors
    grad_logits = None if grad_total is None else (grad_total * gradient).to(ctx.dtype)
    return grad_logits, *[None] * (ctx.num_inputs - 1)


upsampled_cross_entropy.register_autograd(_backward, setup_context=_setup_context)


class _Band(NamedTuple):
    """
    Rows of pixels from `start` to `stop`, which depend on the grid's rows from `first` to `last` with `weights (stop -
    start, last - first)`; or columns.
    """

    start: int
    stop: int
    first: int
    last: int
    weights: torch.Tensor


# `inference_mode(False)`: cached tensors may later take part in autograd
@lru_cache(maxsize=32)
@torch.inference_mode(False)
@torch.no_grad()
def _cut_axis(
    num_entries: int,
    num_pixels: int,
    pixels_per_band: int,
    align_corners: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[_Band, ...]:
    """Cut bilinear resizing along one axis into bands of pixels."""
    weights = resize_rows(torch.eye(num_entries, dtype=dtype, device="cpu"), num_pixels, align_corners)
    bands = []
    for start in range(0, num_pixels, pixels_per_band):
        stop = min(start + pixels_per_band, num_pixels)
        used = (weights[start:stop] != 0).any(dim=0).nonzero()
        first, last = int(used[0]), int(used[-1]) + 1
        bands.append(_Band(start, stop, first, last, weights[start:stop, first:last].to(device)))
    return tuple(bands)


class _ImageTargets(NamedTuple):
    """
    Targets of one image at the padded size.

    Args:
        labels (`torch.LongTensor` of shape `(height, width)`): Classes. Ignored pixels hold any class.
        is_valid (`torch.BoolTensor` of shape `(height, width)`): Pixels that are not ignored.
        pixel_offsets (`torch.LongTensor` of shape `(height, width, 2)`, *optional*): See [`semantic_cross_entropy`].
    """

    labels: torch.Tensor
    is_valid: torch.Tensor
    pixel_offsets: torch.Tensor | None


class _BandTargets(NamedTuple):
    """
    Targets of the pixels whose scores lie in one band.

    Args:
        sources (`torch.LongTensor` of shape `(targets,)`): Index of the target's scores among the pixels of the band.
        labels (`torch.LongTensor` of shape `(targets,)`): Class of the target.
        weights (`torch.Tensor` of shape `(targets,)`): Weight of the target; 0 if it is ignored.
        source_weights (`torch.Tensor` of shape `(pixels,)`): Sum of `weights` over the targets of a source.
        source_counts (`torch.Tensor` of shape `(pixels,)`): Number of targets of a source that are not ignored.
    """

    sources: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    source_weights: torch.Tensor
    source_counts: torch.Tensor


def _band_targets(
    image: _ImageTargets, start: int, stop: int, weight: torch.Tensor | None, dtype: torch.dtype
) -> _BandTargets:
    """Select the targets of an image whose scores lie in the rows from `start` to `stop`."""
    height, width = image.labels.shape
    num_pixels = (stop - start) * width
    # an offset leads into the band from at most one row outside
    reach = 0 if image.pixel_offsets is None else 1
    rows = slice(max(start - reach, 0), min(stop + reach, height))
    labels, is_valid = image.labels[rows].flatten(), image.is_valid[rows].flatten()
    if image.pixel_offsets is None:
        sources = torch.arange(num_pixels, device=labels.device)
    else:
        y, x = image.pixel_offsets[rows].unbind(-1)
        y = (y + torch.arange(rows.start, rows.stop, device=y.device)[:, None]).clamp(0, height - 1)
        x = (x + torch.arange(width, device=x.device)).clamp(0, width - 1)
        is_valid = is_valid & ((y >= start) & (y < stop)).flatten()
        sources = ((y - start) * width + x).flatten().where(is_valid, 0)
    counts = is_valid.to(dtype)
    weights = counts if weight is None else counts * weight[labels]
    if image.pixel_offsets is None:
        return _BandTargets(sources, labels, weights, weights, counts)
    sums = (values.new_zeros(num_pixels).index_add_(0, sources, values) for values in (weights, counts))
    return _BandTargets(sources, labels, weights, *sums)


def _run_bands(
    grid: torch.Tensor,
    grad_grid: torch.Tensor | None,
    bands: tuple[_Band, ...],
    image: _ImageTargets,
    options: LossOptions,
    buffers: torch.Tensor,
) -> list[torch.Tensor]:
    """
    Upsample the rows of one image band by band, for the losses and their gradient.

    Args:
        grid (`torch.Tensor` of shape `(grid_height, width, num_labels)`): Scores with all columns of pixels.
        grad_grid (`torch.Tensor` of shape `(grid_height, width, num_labels)`, *optional*): The gradient is added to it.
        buffers (`torch.Tensor` of shape `(2, pixels, num_labels)`): Memory for the largest band.

    Returns:
        The sum of the losses of each band, of shape `()`.
    """
    width, num_labels = grid.shape[1:]
    has_all_rows = len(grid) == bands[-1].stop
    losses = []
    for start, stop, first, last, weights in bands:
        num_rows = stop - start
        scores, grad_scores = buffers[:, : num_rows * width]
        # (used rows, width, num_labels) -> (rows, width * num_labels) -> (pixels, num_labels)
        if has_all_rows:
            scores.view(num_rows, width, num_labels).copy_(grid[first:last])
        else:
            used = grid[first:last].to(buffers.dtype).reshape(last - first, -1)
            torch.matmul(weights, used, out=scores.view(num_rows, -1))
        targets = _band_targets(image, start, stop, options.weight, buffers.dtype)
        losses.append(_band_loss(scores, grad_scores, targets, options, with_gradient=grad_grid is not None))
        if grad_grid is not None:
            # (pixels, num_labels) -> (rows, width * num_labels) -> (used rows, width, num_labels)
            grad_rows = grad_scores.view(num_rows, -1)
            grad_rows = grad_rows if has_all_rows else weights.T @ grad_rows
            grad_grid[first:last] += grad_rows.view(last - first, width, num_labels)
    return losses


def _band_loss(
    scores: torch.Tensor, grad_scores: torch.Tensor, targets: _BandTargets, options: LossOptions, with_gradient: bool
) -> torch.Tensor:
    """
    Return the sum of the losses of a band, of shape `()`, from its `scores (pixels, num_labels)`. Overwrite `grad_scores`,
    `with_gradient` with their gradient.
    """
    num_labels = scores.shape[1]
    smoothing, sharp = options.label_smoothing / num_labels, 1 - options.label_smoothing
    class_weights = scores.new_ones(num_labels) if options.weight is None else options.weight
    log_probabilities = torch.log_softmax(scores, dim=-1, out=grad_scores)
    indices = targets.sources * num_labels + targets.labels
    loss = -sharp * (log_probabilities.view(-1)[indices] * targets.weights).sum()
    if smoothing > 0:
        loss = loss - smoothing * (targets.source_counts * (log_probabilities @ class_weights)).sum()
    if not with_gradient:
        return loss

    # With probabilities p, the pixel's weight w and the classes' weights W, of sum |W|, the gradient is
    # sharp * w * (p - one_hot) + smoothing * (|W| * p - W).
    factors = sharp * targets.source_weights
    if smoothing > 0:
        factors = factors + smoothing * class_weights.sum() * targets.source_counts
    grad_scores.exp_().mul_(factors[:, None])
    if smoothing > 0:
        grad_scores.addr_(targets.source_counts, class_weights, alpha=-smoothing)
    grad_scores.view(-1).scatter_add_(0, indices, -sharp * targets.weights)
    return loss
