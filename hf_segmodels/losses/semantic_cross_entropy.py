# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Cross-entropy of upsampled scores without the upsampled scores where these are many, and the check of label maps."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from ..image_processing.label_maps import check_label_map
from ..inference.upsampled_argmax import resize_rows


# Scores evaluated at a time: what the caches of a CPU hold; enough to fill a GPU.
_CHUNK_ON_CPU, _CHUNK = 1 << 19, 1 << 25
# Columns upsampled at a time on a CPU, where most entries of the whole matrix would be multiplied for nothing.
_COLUMNS_ON_CPU = 64
# On CPUs torch takes the softmax of fewer classes than this one number at a time where they lie side by side. Up to so many
# upsampled scores (64 MiB in float32), holding them is two to four times as fast then.
_FEW_CLASSES, _MAX_HELD = 16, 1 << 24


def check_labels(labels: torch.Tensor, num_labels: int, ignore_index: int = 255) -> None:
    """
    Checks that a batch of label maps holds classes and ignored pixels only.

    Args:
        labels (`torch.Tensor` of shape `(batch_size, height, width)`, integer):
            Class of each pixel, or `ignore_index`.
        num_labels (`int`): Number of classes.
        ignore_index (`int`, *optional*, defaults to 255): Label of pixels that do not count.

    Raises:
        ValueError: if a label is neither; says which values, and where the first one is.
    """
    if labels.ndim != 3 or labels.is_floating_point():
        raise ValueError(
            f"Expected integer `labels` of shape (batch_size, height, width), got {tuple(labels.shape)} of "
            f"{labels.dtype}. One-hot or float label maps have to become class indices (`argmax`, `.long()`)."
        )
    for index, label_map in enumerate(labels):
        check_label_map(label_map, num_labels, ignore_index, name=f"labels[{index}]")


def semantic_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int = 255,
    reduction: Literal["valid_mean", "pixel_mean"] = "valid_mean",
    *,
    padded_size: Sequence[int] | None = None,
    weight: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
    steps: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Pixel-wise cross-entropy of bilinearly upsampled scores: `cross_entropy(interpolate(logits, padded_size)[..., :height,
    :width], labels)`, value and gradient, without holding more than a few rows of the upsampled scores (on a CPU, up to
    16 million of fewer than 16 classes are held: that is faster there).
    `"valid_mean"` is the mean over pixels that are not ignored (Segmenter's released code), `"pixel_mean"` over all
    pixels, ignored ones counting as zero (mmsegmentation's). A batch without any valid pixel gives 0 with a gradient,
    not nan.

    The gradient is computed together with the value, in float32 whatever the dtype of the scores (float64 for float64),
    under autocast too. Matrix products do the upsampling: on GPUs it is as precise as torch is allowed to make these
    (`torch.set_float32_matmul_precision`).

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels, grid_height, grid_width)`): Scores before softmax, at
            any resolution.
        labels (`torch.Tensor` of shape `(batch_size, height, width)`, integer): Classes, or `ignore_index`.
        ignore_index (`int`, *optional*, defaults to 255): Label of pixels that do not count.
        reduction (`"valid_mean"` or `"pixel_mean"`, *optional*, defaults to `"valid_mean"`): See above.
        padded_size (`tuple[int, int]`, *optional*): Height and width that the scores cover, where more than the label
            map's (whole patches); the label map is their top left part.
        weight (`torch.Tensor` of shape `(num_labels,)`, *optional*): Weights of the classes. `"valid_mean"` divides by
            the sum of the pixels' weights, as `cross_entropy` does.
        label_smoothing (`float`, *optional*, defaults to 0.0): Share of the target that is spread over all classes.
        align_corners (`bool`, *optional*, defaults to `False`): See `torch.nn.functional.interpolate`.
        steps (`torch.LongTensor` of shape `(batch_size, *padded_size, 2)`, *optional*): For each pixel, how many rows and
            columns further the scores are that it is judged by: -1, 0 or 1 each; steps across the border stay on it.
            This is UN-EPT's refinement. No gradient reaches them.

    Returns:
        `torch.Tensor` of shape `()`, float32 (float64 for float64 scores).

    Raises:
        ValueError: for shapes that do not fit together, or an option that cannot be.
        IndexError: for a label that is no class (on CUDA devices, as they do, an assertion).
        RuntimeError: from `backward`, for second derivatives, unless the scores were held.
    """
    if logits.ndim != 4 or labels.ndim != 3 or logits.shape[0] != labels.shape[0]:
        raise ValueError(
            "Expected logits of shape (batch_size, num_labels, height, width) and labels of shape (batch_size, height, "
            f"width), got {tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    if reduction not in ("valid_mean", "pixel_mean"):
        raise ValueError(f"`reduction` is {reduction!r}; it must be 'valid_mean' or 'pixel_mean'.")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"`label_smoothing` must be from 0 to 1, got {label_smoothing}.")
    if weight is not None and tuple(weight.shape) != (logits.shape[1],):
        raise ValueError(f"`weight` {tuple(weight.shape)} must hold one number for each of {logits.shape[1]} classes.")
    height, width = labels.shape[1:]
    covered_height, covered_width = (height, width) if padded_size is None else padded_size
    if covered_height < height or covered_width < width:
        raise ValueError(
            f"Scores that cover {covered_height}x{covered_width} pixels cannot be judged by labels of {height}x{width}: "
            "`padded_size` is at least the size of the label map."
        )
    if steps is not None and tuple(steps.shape) != (len(labels), covered_height, covered_width, 2):
        raise ValueError(
            f"`steps` {tuple(steps.shape)} must have the shape (batch_size, height, width, 2) of the covered size, "
            f"{(len(labels), covered_height, covered_width, 2)}."
        )
    num_scores = len(labels) * logits.shape[1] * covered_height * covered_width
    is_small = logits.device.type == "cpu" and logits.shape[1] < _FEW_CLASSES and num_scores <= _MAX_HELD
    if is_small and steps is None and not torch.compiler.is_compiling():
        total = _held_cross_entropy(
            logits, labels, weight, (covered_height, covered_width), ignore_index, label_smoothing, align_corners
        )
    else:
        total, _ = _upsampled_cross_entropy(
            logits,
            labels,
            weight,
            steps,
            [covered_height, covered_width],
            ignore_index,
            label_smoothing,
            align_corners,
            logits.requires_grad and torch.is_grad_enabled(),
        )
    if reduction == "pixel_mean":
        return total / max(labels.numel(), 1)
    is_counted = labels != ignore_index
    if weight is None:
        return total / is_counted.sum().clamp(min=1)
    weights = weight.to(total.dtype)[labels.long().where(is_counted, 0)].where(is_counted, 0)
    count = weights.sum()
    # without any weight there is nothing to average
    return torch.where(count > 0, total / torch.where(count > 0, count, 1), total * 0)


def _computed_dtype(logits: torch.Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _check_classes(labels: torch.Tensor, num_labels: int, ignore_index: int) -> None:
    """Checks labels that hold any class where they are ignored."""
    is_class = (labels >= 0) & (labels < num_labels)
    if labels.device.type == "cuda":
        # without waiting for the device
        torch._assert_async(is_class.all())
    elif not is_class.all():
        raise IndexError(
            f"Labels hold values from {labels.min()} to {labels.max()}, outside the {num_labels} classes, which are not "
            f"ignored ({ignore_index}): see `hf_segmodels.losses.check_labels`."
        )


def _held_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weight: torch.Tensor | None,
    padded_size: tuple[int, int],
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> torch.Tensor:
    """The sum of the pixels' losses, of shape `()`, by way of all the upsampled scores."""
    labels, dtype = labels.long(), _computed_dtype(logits)
    _check_classes(labels.where(labels != ignore_index, 0), logits.shape[1], ignore_index)
    with torch.autocast(logits.device.type, enabled=False):
        scores = nn.functional.interpolate(
            logits.to(dtype), size=padded_size, mode="bilinear", align_corners=align_corners
        )
        return nn.functional.cross_entropy(
            scores[..., : labels.shape[1], : labels.shape[2]],
            labels,
            None if weight is None else weight.to(dtype),
            ignore_index=ignore_index,
            reduction="sum",
            label_smoothing=label_smoothing,
        )


# Upsampling is linear and acts on rows and columns separately: for each class, `scores = rows @ grid @ columns.T`. So a few
# rows of pixels are evaluated, turned into the loss and its gradient, and the gradient is carried back by the transposed
# matrices, before the next rows take their place. An operator of its own is what compilers take as it is.


@torch.library.custom_op("hf_segmodels::upsampled_cross_entropy", mutates_args=())
def _upsampled_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weight: torch.Tensor | None,
    steps: torch.Tensor | None,
    padded_size: Sequence[int],
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The arguments are those of [`semantic_cross_entropy`].

    Returns:
        The sum of the pixels' losses, of shape `()`, and its gradient by `logits` (an empty tensor unless `with_gradient`).
    """
    num_labels = logits.shape[1]
    height, width = padded_size
    dtype, device = _computed_dtype(logits), logits.device
    padding = (0, width - labels.shape[2], 0, height - labels.shape[1])
    labels = nn.functional.pad(labels.long(), padding, value=ignore_index)
    is_valid = labels != ignore_index
    labels = labels.where(is_valid, 0)
    _check_classes(labels, num_labels, ignore_index)
    targets = _Targets(labels, is_valid, None if weight is None else weight.to(dtype), steps, label_smoothing)

    is_wide = logits.shape[3] == width
    chunk = _CHUNK_ON_CPU if device.type == "cpu" else _CHUNK
    rows_per_band = max(1, min(height, chunk // (num_labels * max(width, 1))))
    bands = _cut_axis(logits.shape[2], height, rows_per_band, align_corners, dtype, device)
    columns_per_band = _COLUMNS_ON_CPU if device.type == "cpu" else width
    column_bands = () if is_wide else _cut_axis(logits.shape[3], width, columns_per_band, align_corners, dtype, device)
    gradient = torch.zeros_like(logits, dtype=dtype) if with_gradient else logits.new_empty(0, dtype=dtype)
    # used over and over: memory that is freed and asked for again in such sizes is not always the same memory
    scores, slopes = logits.new_empty(2, rows_per_band * width, num_labels, dtype=dtype)
    wide, wide_gradient = logits.new_empty(2, 0 if is_wide else logits.shape[2], width, num_labels, dtype=dtype)
    sums = [logits.new_zeros((), dtype=dtype)]
    with torch.autocast(device.type, enabled=False):
        for image in range(len(logits)):
            # (num_labels, grid_height, grid_width) -> (grid_height, grid_width, num_labels)
            grid = logits[image].permute(1, 2, 0)
            grid_gradient = gradient[image].permute(1, 2, 0) if with_gradient else None
            if is_wide:
                sums += _run_bands(grid, grid_gradient, bands, targets, image, scores, slopes)
                continue
            # (grid_height, grid_width, num_labels) -> (grid_height, width, num_labels)
            grid = grid.to(dtype)
            for left, right, first, last, weights in column_bands:
                torch.matmul(weights, grid[:, first:last], out=wide[:, left:right])
            if grid_gradient is None:
                sums += _run_bands(wide, None, bands, targets, image, scores, slopes)
                continue
            sums += _run_bands(wide, wide_gradient.zero_(), bands, targets, image, scores, slopes)
            for left, right, first, last, weights in column_bands:
                grid_gradient[:, first:last] += weights.T @ wide_gradient[:, left:right]
    return torch.stack(sums).sum(), gradient


@_upsampled_cross_entropy.register_fake
def _shapes(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weight: torch.Tensor | None,
    steps: torch.Tensor | None,
    padded_size: Sequence[int],
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = _computed_dtype(logits)
    gradient = torch.empty_like(logits, dtype=dtype) if with_gradient else logits.new_empty(0, dtype=dtype)
    return logits.new_empty((), dtype=dtype), gradient


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype
    ctx.set_materialize_grads(False)


def _carry_back(ctx: Any, grad_total: torch.Tensor | None, grad_gradient: torch.Tensor | None) -> tuple[Any, ...]:
    if grad_gradient is not None:
        raise RuntimeError(
            "semantic_cross_entropy can be differentiated once only: for second derivatives, use "
            "torch.nn.functional.cross_entropy on the scores of torch.nn.functional.interpolate."
        )
    (gradient,) = ctx.saved_tensors
    return (None if grad_total is None else (grad_total * gradient).to(ctx.dtype), *[None] * 8)


_upsampled_cross_entropy.register_autograd(_carry_back, setup_context=_keep_gradient)


class _Band(NamedTuple):
    """
    The rows of pixels from `top` to `bottom`, which depend on the grid's rows from `first` to `last`; or columns.

    Args:
        weights (`torch.Tensor` of shape `(bottom - top, last - first)`): How they depend on them.
    """

    top: int
    bottom: int
    first: int
    last: int
    weights: torch.Tensor


# `inference_mode(False)`: what the cache keeps may later take part in autograd


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
    """Cuts bilinear resizing along one axis into bands of pixels."""
    weights = resize_rows(torch.eye(num_entries, dtype=dtype, device="cpu"), num_pixels, align_corners)
    bands = []
    for top in range(0, num_pixels, pixels_per_band):
        bottom = min(top + pixels_per_band, num_pixels)
        used = (weights[top:bottom] != 0).any(dim=0).nonzero()
        first, last = int(used[0]), int(used[-1]) + 1
        bands.append(_Band(top, bottom, first, last, weights[top:bottom, first:last].to(device)))
    return tuple(bands)


class _BandTargets(NamedTuple):
    """
    What the pixels that are judged by one band's scores ask of these.

    Args:
        places (`torch.LongTensor` of shape `(pixels,)`): The pixel's scores among those of the band, in rows.
        labels (`torch.LongTensor` of shape `(pixels,)`): Its class.
        weights (`torch.Tensor` of shape `(pixels,)`): What it counts.
        scored (`torch.Tensor` of shape `(places,)`): The sum of `weights` over all pixels at a place.
        counts (`torch.Tensor` of shape `(places,)`): The number of pixels at a place that are not ignored.
    """

    places: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    scored: torch.Tensor
    counts: torch.Tensor


class _Targets:
    """
    Labels of a batch, band by band.

    Args:
        labels (`torch.LongTensor` of shape `(batch_size, height, width)`): Classes; any one where `is_valid` is false.
        is_valid (`torch.BoolTensor` of that shape): Which pixels count.
        weight, steps, label_smoothing: See [`semantic_cross_entropy`].
    """

    def __init__(
        self,
        labels: torch.Tensor,
        is_valid: torch.Tensor,
        weight: torch.Tensor | None,
        steps: torch.Tensor | None,
        label_smoothing: float,
    ):
        self.labels, self.is_valid, self.weight, self.steps = labels, is_valid, weight, steps
        self.label_smoothing = label_smoothing

    def of_band(self, image: int, top: int, bottom: int, dtype: torch.dtype) -> _BandTargets:
        height, width = self.labels.shape[1:]
        num_places = (bottom - top) * width
        if self.steps is None:
            labels, is_valid = self.labels[image, top:bottom].flatten(), self.is_valid[image, top:bottom].flatten()
            places = torch.arange(num_places, device=labels.device)
        else:
            # those whose step leads into the band start at most one row outside
            first, last = max(top - 1, 0), min(bottom + 1, height)
            labels, is_valid = self.labels[image, first:last].flatten(), self.is_valid[image, first:last].flatten()
            rows, columns = self.steps[image, first:last].unbind(-1)
            rows = (rows + torch.arange(first, last, device=rows.device)[:, None]).clamp(0, height - 1)
            columns = (columns + torch.arange(width, device=rows.device)).clamp(0, width - 1)
            is_valid = is_valid & ((rows >= top) & (rows < bottom)).flatten()
            places = ((rows - top) * width + columns).flatten().where(is_valid, 0)
        counts = is_valid.to(dtype)
        weights = counts if self.weight is None else counts * self.weight[labels]
        if self.steps is None:
            return _BandTargets(places, labels, weights, weights, counts)
        scored, counts = (values.new_zeros(num_places).index_add_(0, places, values) for values in (weights, counts))
        return _BandTargets(places, labels, weights, scored, counts)


def _run_bands(
    grid: torch.Tensor,
    gradient: torch.Tensor | None,
    bands: tuple[_Band, ...],
    targets: _Targets,
    image: int,
    scores: torch.Tensor,
    slopes: torch.Tensor,
) -> list[torch.Tensor]:
    """
    Evaluates the scores of one image band by band, for the losses and their gradient.

    Args:
        grid (`torch.Tensor` of shape `(grid_height, width, num_labels)`): Scores whose columns are the pixels'.
        gradient (`torch.Tensor` of that shape, *optional*): What the gradient is added to.
        scores, slopes (`torch.Tensor` of shape `(pixels, num_labels)`): Space for the largest band.

    Returns:
        Sums of losses, of shape `()` each.
    """
    width, num_labels = grid.shape[1:]
    is_tall = len(grid) == bands[-1].bottom
    smoothing, sharp = targets.label_smoothing / num_labels, 1 - targets.label_smoothing
    dtype = _computed_dtype(grid)
    class_weights = grid.new_ones(num_labels, dtype=dtype) if targets.weight is None else targets.weight
    sums = []
    for top, bottom, first, last, row_weights in bands:
        num_pixels = (bottom - top) * width
        band_scores, slope = scores[:num_pixels], slopes[:num_pixels]
        # (used rows, width, num_labels) -> (rows, width * num_labels) -> (pixels, num_labels)
        if is_tall:
            band_scores.view(bottom - top, width, num_labels).copy_(grid[first:last])
        else:
            used = grid[first:last].to(dtype).reshape(last - first, -1)
            torch.matmul(row_weights, used, out=band_scores.view(bottom - top, -1))
        log_probabilities = torch.log_softmax(band_scores, dim=-1, out=slope)
        target = targets.of_band(image, top, bottom, dtype)
        chosen = target.places * num_labels + target.labels
        sums.append(-sharp * (log_probabilities.view(-1)[chosen] * target.weights).sum())
        if smoothing > 0:
            sums.append(-smoothing * (target.counts * (log_probabilities @ class_weights)).sum())
        if gradient is None:
            continue

        # with p the probabilities, w the pixel's weight and W the classes' weights (sum of them: |W|):
        # sharp * w * (p - one_hot) + smoothing * (|W| * p - W)
        slope.exp_()
        factors = sharp * target.scored
        if smoothing > 0:
            factors = factors + smoothing * class_weights.sum() * target.counts
        slope.mul_(factors[:, None])
        if smoothing > 0:
            slope.addr_(target.counts, class_weights, alpha=-smoothing)
        slope.view(-1).scatter_add_(0, chosen, -sharp * target.weights)
        # (pixels, num_labels) -> (rows, width * num_labels) -> (used rows, width, num_labels)
        carried = slope if is_tall else row_weights.T @ slope.view(bottom - top, -1)
        gradient[first:last] += carried.view(last - first, width, num_labels)
    return sums


__all__ = ["check_labels", "semantic_cross_entropy"]
