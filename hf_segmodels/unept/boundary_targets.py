# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Training targets of UN-EPT's boundaries, computed from label maps as SegFix does.

A distance map holds each pixel's distance in pixels to the edge of its class region. An angle map holds the direction
in which that distance grows, toward the interior: degrees from -180 to 180, with 0 to the right and 90 downwards.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import nn


# Padding of both maps: no boundary, and an angle of direction 0.
PADDING_VALUE = 255
# Angles are rounded to steps of two degrees, as in the bytes of SegFix's files.
_ANGLE_STEP = 2


def _scipy() -> Any:
    try:
        import scipy.io
        import scipy.ndimage
    except ImportError as error:
        raise ImportError(
            "Boundary targets need SciPy: `pip install scipy`, or pass precomputed `distance_maps` and `angle_maps`."
        ) from error
    return scipy


def compute_boundary_targets(
    label_map: torch.Tensor, ignore_index: int = 255, min_class_pixels: int = 100, max_distance: int = 250
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Compute the distance and angle map of a label map, as SegFix's generator does. Pixels without a class, and pixels of
    classes with too few pixels, have distance 0 and angle 0.

    Args:
        label_map (`torch.Tensor` of shape `(height, width)`, integer): Class of each pixel.
        ignore_index (`int`, *optional*, defaults to 255): Label of pixels without a class.
        min_class_pixels (`int`, *optional*, defaults to 100): Classes with fewer pixels are left out.
        max_distance (`int`, *optional*, defaults to 250): Upper bound of the distances.

    Returns:
        `distance_map` and `angle_map`, each `(height, width)`, int64, on the CPU.

    Raises:
        ImportError: if SciPy is not installed.
        ValueError: if `label_map` is not an integer map of shape `(height, width)`.
    """
    if label_map.ndim != 2 or label_map.is_floating_point():
        raise ValueError(
            f"Expected an integer label map of shape (height, width), got {tuple(label_map.shape)} of "
            f"{label_map.dtype}."
        )
    distance_transform = _scipy().ndimage.distance_transform_edt
    labels = label_map.detach().cpu().long().numpy()
    distance = np.zeros(labels.shape, dtype=np.float64)
    gradient = torch.zeros(2, *labels.shape)
    # gradient over 5 x 5 pixels, (2, 1, 5, 5): downwards and to the right, divided by the squared distance
    offsets = torch.stack(torch.meshgrid(torch.arange(-2.0, 3.0), torch.arange(-2.0, 3.0), indexing="ij"))
    kernel = (offsets / offsets.square().sum(dim=0).clamp(min=1))[:, None]
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
        # (height, width) -> (1, height, width) -> (2, height, width), of the box
        class_gradient = nn.functional.conv2d(torch.from_numpy(class_distance).float()[None], kernel, padding=2)
        gradient[:, *box] += class_gradient * torch.from_numpy(mask)
    distance_map = torch.from_numpy(np.minimum(distance, max_distance).astype(np.int64))
    degrees = np.degrees(np.arctan2(gradient[0].numpy(), gradient[1].numpy())) + 180
    return distance_map, torch.from_numpy((degrees / _ANGLE_STEP).astype(np.int64)) * _ANGLE_STEP - 180


def read_boundary_targets(
    path: "str | PathLike[str]", size: Sequence[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Read a `.mat` file of SegFix's generator.

    Args:
        path (`str` or `PathLike`): File with `depth`, `dir_deg` and `deg_reduce`.
        size (`tuple[int, int]`, *optional*): Expected `(height, width)`: the size of the image.

    Returns:
        `distance_map` and `angle_map`, each `(height, width)`, int64.

    Raises:
        FileNotFoundError: if `path` does not exist.
        ImportError: if SciPy is not installed.
        ValueError: if the file does not hold boundary targets, or if their size differs from `size`.
    """
    load = _scipy().io.loadmat
    try:
        contents = load(str(path), appendmat=False)
        # arithmetic in float64 does not wrap around
        depth, steps, step = (
            np.asarray(contents[name]).astype(np.float64, casting="same_kind")
            for name in ("depth", "dir_deg", "deg_reduce")
        )
        angles = steps * step.item() - 180
        if step <= 0:
            raise ValueError(f"`deg_reduce` is {step.item()}")
    except FileNotFoundError:
        raise
    except Exception as error:  # SciPy raises anything for damaged files
        raise ValueError(
            f"{path} is not a file of boundary targets ({' '.join(str(error).split())}): expected a .mat file with "
            "`depth`, `dir_deg` and `deg_reduce`."
        ) from error
    if depth.ndim != 2 or depth.shape != angles.shape or (size is not None and depth.shape != tuple(size)):
        expected = "" if size is None else f"; the image has (height, width) {tuple(size)}"
        raise ValueError(
            f"{path} holds a distance map of shape {depth.shape} and an angle map of shape {angles.shape}{expected}. "
            "Use the file of this image, made at the image's own size."
        )
    # a form that also refuses nan
    if not (((depth >= 0) & (depth < np.inf)).all() and ((angles >= -180) & (angles <= 180)).all()):
        raise ValueError(
            f"{path} holds distances from {depth.min()} to {depth.max()} and angles from {angles.min()} to "
            f"{angles.max()} degrees. Expected distances from 0, and angles `deg_reduce * dir_deg - 180` from -180 to "
            "180. Generate the file again."
        )
    return torch.from_numpy(depth.astype(np.int64)), torch.from_numpy(angles.astype(np.int64))


def flip_boundary_targets(distance_map: torch.Tensor, angle_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mirror maps `(..., height, width)` from left to right, and their angles: left becomes right. (The released code
    mirrors only the maps.) Targets that are computed from a mirrored label map need no flip.
    """
    angles = angle_map.flip(-1)
    mirrored = 180 - angles
    mirrored = torch.where(mirrored > 180, mirrored - 360, mirrored)
    distances = distance_map.flip(-1)
    # pixels without a class, and padding, have no direction
    has_direction = (distances > 0) & (angles != PADDING_VALUE)
    return distances, torch.where(has_direction, mirrored, angles)


def boundary_labels(distance_map: torch.Tensor, boundary_distance: int = 5) -> torch.Tensor:
    """Return 1 for pixels at most `boundary_distance` from the edge of their class, otherwise 0; int64."""
    return ((distance_map >= 0) & (distance_map <= boundary_distance)).long()


def direction_labels(angle_map: torch.Tensor) -> torch.Tensor:
    """
    Return the direction, 0 to 7, of each angle in degrees: sectors of 45 degrees, open below and closed above; int64.
    """
    # the sector around -180 continues at 157.5
    return ((angle_map.float() + 157.5) / 45).ceil().long().clamp(0, 8) % 8
