# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Boundaries: training targets from label maps (as SegFix makes them), and the refinement of scores along predicted ones.

A distance map holds each pixel's distance in pixels to the edge of its class region, an angle map the direction in which
that distance grows, toward the interior: degrees from -180 to 180, 0 to the right, 90 downwards.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import nn


# (down, right) steps of the eight directions; direction i is centerd at -180 + 45 i degrees
DIRECTION_STEPS = ((0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1))
# What padding holds in both maps: no boundary, and an angle that counts as direction 0.
PADDING_VALUE = 255
# Angles are kept in steps of two degrees, as the offline files have them in a byte.
_ANGLE_STEP = 2


def _scipy() -> Any:
    try:
        import scipy.io
        import scipy.ndimage
    except ImportError as error:
        raise ImportError(
            "Boundary targets need SciPy: `pip install scipy`, or give ready-made `distance_maps` and `angle_maps`."
        ) from error
    return scipy


def _gradient_kernel() -> torch.Tensor:
    """Gradient over 5 x 5 pixels, `(2, 1, 5, 5)`: downwards and to the right, each weighed by its squared distance."""
    y, x = torch.meshgrid(torch.arange(-2.0, 3.0), torch.arange(-2.0, 3.0), indexing="ij")
    squared = (y.square() + x.square()).clamp(min=1)
    return torch.stack([y / squared, x / squared])[:, None]


def boundary_targets(
    label_map: torch.Tensor, ignore_index: int = 255, min_class_pixels: int = 100, max_distance: int = 250
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Distance and angle map of a label map, equal to those that SegFix's generator writes to files. Pixels without a class,
    and of classes with too few pixels, have distance 0 and angle 0.

    Args:
        label_map (`torch.Tensor` of shape `(height, width)`, integer): Class of each pixel.
        ignore_index (`int`, *optional*, defaults to 255): Label of pixels without a class.
        min_class_pixels (`int`, *optional*, defaults to 100): Smaller classes are left out.
        max_distance (`int`, *optional*, defaults to 250): Bound of the distances.

    Returns:
        `distance_map` and `angle_map`, each `(height, width)`, int64, on the CPU.

    Raises:
        ImportError: without SciPy.
        ValueError: if it is no integer map.
    """
    if label_map.ndim != 2 or label_map.is_floating_point():
        raise ValueError(
            f"Expected an integer label map of shape (height, width), got {tuple(label_map.shape)} of {label_map.dtype}."
        )
    distance_transform = _scipy().ndimage.distance_transform_edt
    labels = label_map.detach().cpu().long().numpy()
    distance = np.zeros(labels.shape, dtype=np.float64)
    gradient = torch.zeros(2, *labels.shape)
    kernel = _gradient_kernel()
    for label, num_pixels in zip(*np.unique(labels, return_counts=True), strict=True):
        if label == ignore_index or num_pixels < min_class_pixels:
            continue
        mask = labels == label
        # the nearest pixel of another class is at most one pixel outside the region's bounding box
        occupied = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        box = tuple(slice(max(indices[0] - 1, 0), indices[-1] + 2) for indices in occupied)
        mask = mask[box]
        # a region that fills the image has no edge
        class_distance = np.full(mask.shape, max_distance) if num_pixels == labels.size else distance_transform(mask)
        distance[box] += class_distance
        # (height, width) -> (2, height, width), of the box
        class_gradient = nn.functional.conv2d(torch.from_numpy(class_distance).float()[None, None], kernel, padding=2)[
            0
        ]
        gradient[:, *box] += class_gradient * torch.from_numpy(mask)
    distance_map = torch.from_numpy(np.minimum(distance, max_distance).astype(np.int64))
    degrees = np.degrees(np.arctan2(gradient[0].numpy(), gradient[1].numpy())) + 180
    return distance_map, torch.from_numpy((degrees / _ANGLE_STEP).astype(np.int64)) * _ANGLE_STEP - 180


def batch_boundary_targets(labels: torch.Tensor, ignore_index: int = 255) -> tuple[torch.Tensor, torch.Tensor]:
    """[`boundary_targets`] of each of `labels (batch_size, height, width)`, stacked, on the device of `labels`."""
    distances, angles = zip(*(boundary_targets(label_map, ignore_index) for label_map in labels), strict=True)
    return torch.stack(distances).to(labels.device), torch.stack(angles).to(labels.device)


def read_boundary_targets(
    path: "str | PathLike[str]", size: Sequence[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Reads a `.mat` file of SegFix's generator.

    Args:
        path (`str` or `PathLike`): The file, with `depth`, `dir_deg` and `deg_reduce`.
        size (`tuple[int, int]`, *optional*): `(height, width)` that it must have: that of the image.

    Returns:
        `distance_map` and `angle_map`, each `(height, width)`, int64.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: without SciPy.
        ValueError: if it holds something else, or maps of another size.
    """
    load = _scipy().io.loadmat
    try:
        contents = load(str(path), appendmat=False)
        depth, steps, step = (_numbers(contents[name]) for name in ("depth", "dir_deg", "deg_reduce"))
        angles = steps * step.item() - 180
        if step <= 0:
            raise ValueError(f"`deg_reduce` is {step.item()}")
    except FileNotFoundError:
        raise
    except Exception as error:  # SciPy raises anything for damaged files
        raise ValueError(
            f"{path} is no file of boundary targets ({' '.join(str(error).split())}): expected a .mat file with `depth`, "
            "`dir_deg` and `deg_reduce`."
        ) from error
    if depth.ndim != 2 or depth.shape != angles.shape or (size is not None and depth.shape != tuple(size)):
        wanted = "" if size is None else f"; the image has (height, width) {tuple(size)}"
        raise ValueError(
            f"{path} holds a distance map of shape {depth.shape} and an angle map of shape {angles.shape}{wanted}. Give "
            "the file of this image, made at the image's own size."
        )
    # written so that nan is refused, too
    if not (((depth >= 0) & (depth < np.inf)).all() and ((angles >= -180) & (angles <= 180)).all()):
        raise ValueError(
            f"{path} holds distances from {depth.min()} to {depth.max()} and angles from {angles.min()} to {angles.max()} "
            "degrees; expected distances from 0, and angles `deg_reduce * dir_deg - 180` from -180 to 180. Make the file anew."
        )
    return torch.from_numpy(depth.astype(np.int64)), torch.from_numpy(angles.astype(np.int64))


def _numbers(array: Any) -> np.ndarray:
    """A real array of a file in float64, in which arithmetic does not wrap around."""
    return np.asarray(array).astype(np.float64, casting="same_kind")


def flip_boundary_targets(distance_map: torch.Tensor, angle_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mirrors maps `(..., height, width)` from left to right, and with them the directions: what pointed left points right.
    (The released code mirrors the maps alone.) Targets computed from a mirrored label map need no such step.
    """
    angles = angle_map.flip(-1)
    mirrored = 180 - angles
    mirrored = torch.where(mirrored > 180, mirrored - 360, mirrored)
    distances = distance_map.flip(-1)
    # pixels without a class, and padding, have no direction
    has_direction = (distances > 0) & (angles != PADDING_VALUE)
    return distances, torch.where(has_direction, mirrored, angles)


def boundary_labels(distance_map: torch.Tensor, boundary_distance: int = 5) -> torch.Tensor:
    """1 for boundary pixels, those at most `boundary_distance` from the edge of their class, otherwise 0; int64."""
    return ((distance_map >= 0) & (distance_map <= boundary_distance)).long()


def direction_labels(angle_map: torch.Tensor) -> torch.Tensor:
    """The direction, 0 to 7, of each angle in degrees: sectors of 45 degrees, open below and closed above; int64."""
    # the sector around -180 goes on at 157.5
    return ((angle_map.float() + 157.5) / 45).ceil().long().clamp(0, 8) % 8


def _resize(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return nn.functional.interpolate(maps.float(), size=size, mode="bilinear", align_corners=True)


def resize_boundary_maps(
    boundary_logits: torch.Tensor, direction_logits: torch.Tensor, size: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both maps `(batch_size, 2 or 8, h, w)` in float32 at `size`, with corner pixels on corner pixels."""
    return _resize(boundary_logits, size), _resize(direction_logits, size)


def refinement_steps(boundary_logits: torch.Tensor, direction_logits: torch.Tensor) -> torch.Tensor:
    """
    Where each pixel takes its scores from: one pixel into the interior where a boundary is predicted (the released code
    compares the raw logit with 0.5), otherwise from itself.

    Args:
        boundary_logits (`torch.Tensor` of shape `(batch_size, 2, height, width)`): No boundary, boundary.
        direction_logits (`torch.Tensor` of shape `(batch_size, 8, height, width)`): Scores of the directions.

    Returns:
        `torch.Tensor` of shape `(batch_size, height, width, 2)`, int64: steps downwards and to the right.
    """
    steps = torch.tensor(DIRECTION_STEPS, device=boundary_logits.device)[direction_logits.argmax(dim=1)]
    return steps * (boundary_logits[:, 1] > 0.5).unsqueeze(-1)


def take_steps(scores: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """
    Gives each pixel the scores of the pixel that its step leads to; steps across the border stay on it.

    Args:
        scores (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`): Scores.
        steps (`torch.Tensor` of shape `(batch_size, height, width, 2)`): See [`refinement_steps`].

    Returns:
        `torch.Tensor` of the shape of `scores`.
    """
    height, width = scores.shape[-2:]
    rows = torch.arange(height, device=scores.device)[:, None] + steps[..., 0]
    columns = torch.arange(width, device=scores.device) + steps[..., 1]
    # (batch_size, height, width) -> (batch_size, 1, height * width)
    source = (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).flatten(1)[:, None]
    taken = scores.flatten(2).gather(2, source.expand(-1, scores.shape[1], -1))
    return taken.unflatten(2, (height, width))


def refine(scores: torch.Tensor, boundary_logits: torch.Tensor, direction_logits: torch.Tensor) -> torch.Tensor:
    """
    Boundary refinement (section 3.2): scores of boundary pixels are replaced by those of the pixel next to them in the
    predicted direction. No gradient reaches the boundary and direction logits.

    Args:
        scores (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`): Scores at full resolution.
        boundary_logits (`torch.Tensor` of shape `(batch_size, 2, h, w)`): At any resolution.
        direction_logits (`torch.Tensor` of shape `(batch_size, 8, h, w)`): At any resolution.

    Returns:
        `torch.Tensor` of the shape of `scores`.
    """
    boundaries, directions = resize_boundary_maps(boundary_logits, direction_logits, scores.shape[-2:])
    return take_steps(scores, refinement_steps(boundaries, directions))


__all__ = [
    "DIRECTION_STEPS",
    "batch_boundary_targets",
    "boundary_labels",
    "boundary_targets",
    "direction_labels",
    "flip_boundary_targets",
    "read_boundary_targets",
    "refine",
    "refinement_steps",
    "resize_boundary_maps",
    "take_steps",
]
