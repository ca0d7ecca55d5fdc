# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Resizing as in the original data pipelines (mmcv on top of OpenCV): size rule, bilinear images, nearest label maps.

Everything is plain torch, so both image processor backends use it and return the same pixels.
"""

import torch
import torch.nn.functional as F
from transformers.image_utils import SizeDict


# `PILImageResampling` numbers and torchvision's `InterpolationMode` values.
_MODES = {0: "nearest", "nearest": "nearest", 2: "bilinear", "bilinear": "bilinear", 3: "bicubic", "bicubic": "bicubic"}
# OpenCV keeps bilinear weights for 8-bit images as integers with 11 fractional bits.
_WEIGHT_BITS = 11


def resized_size(height: int, width: int, size: SizeDict | dict[str, int]) -> tuple[int, int]:
    """
    Return the height and width of an image after resizing.

    Args:
        height (`int`): Height before resizing.
        width (`int`): Width before resizing.
        size (`SizeDict` or `dict[str, int]`):
            `{"height", "width"}`: a fixed size. `{"shortest_edge", "longest_edge"}`: the aspect ratio is kept, and the
            scale is the largest for which neither edge exceeds its bound (mmcv's `imrescale`). `{"shortest_edge"}`
            alone: the aspect ratio is kept and the longer edge has no bound.

    Raises:
        ValueError: if `size` has other keys, or an edge is below one pixel.
    """
    size = dict(size)
    if min(size.values(), default=1) < 1:
        raise ValueError(f"Cannot resize to `size={size}`: each edge must be at least one pixel.")
    if size.keys() == {"height", "width"}:
        return size["height"], size["width"]
    if size.keys() not in ({"shortest_edge"}, {"shortest_edge", "longest_edge"}):
        raise ValueError(
            f"Cannot resize to `size={size}`. Pass {{'height', 'width'}} for a fixed size, or {{'shortest_edge'}} or "
            "{'shortest_edge', 'longest_edge'} to keep the aspect ratio."
        )
    scale = size["shortest_edge"] / min(height, width)
    if "longest_edge" in size:
        scale = min(scale, size["longest_edge"] / max(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def _bilinear_taps(in_size: int, out_size: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """
    Return the neighbors and integer weights of one axis: `low`, `high` (int64), `low_weight`, `high_weight` (int32),
    each of shape `(out_size,)`. The indices are not clamped to the axis.
    """
    scale = 1 / (out_size / in_size)
    # half-pixel centers, in single precision as in OpenCV
    position = ((torch.arange(out_size, dtype=torch.float64) + 0.5) * scale - 0.5).float()
    low = position.floor()
    fraction = position - low
    one = 1 << _WEIGHT_BITS
    weights = [(weight * one).round().to(torch.int32).to(device) for weight in (1 - fraction, fraction)]
    low = low.long().to(device)
    return low, low + 1, *weights


def _resize_bilinear_uint8(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """
    Bilinear resize of `(..., in_height, in_width)` uint8 without antialiasing, equal to OpenCV's bit for bit: same
    fixed-point weights, same truncations. A float resize differs by one gray level in an eighth of the pixels. Integers
    also make the result independent of the device. (Where OpenCV halves arrays of 2 or of more than 4 channels, it
    differs from this by up to one gray level.)
    """
    in_height, in_width = image.shape[-2:]
    low, high, low_weight, high_weight = _bilinear_taps(in_width, width, image.device)
    # OpenCV sets the weight of columns beyond the border to one, but only clamps the index of rows: truncations differ.
    outside = (low < 0) | (high >= in_width)
    low_weight, high_weight = low_weight.masked_fill(outside, 1 << _WEIGHT_BITS), high_weight.masked_fill(outside, 0)
    # (..., in_height, in_width) -> (..., in_height, width), 11 fractional bits, 4 of them dropped
    rows = image.index_select(-1, low.clamp(0, in_width - 1)).to(torch.int32).mul_(low_weight)
    rows.addcmul_(image.index_select(-1, high.clamp(0, in_width - 1)).to(torch.int32), high_weight)
    rows >>= 4
    # (..., in_height, width) -> (..., height, width), 7 + 11 fractional bits, 16 dropped before and 2 after the sum
    low, high, low_weight, high_weight = _bilinear_taps(in_height, height, image.device)
    upper = rows.index_select(-2, low.clamp(0, in_height - 1)).mul_(low_weight[:, None])
    lower = rows.index_select(-2, high.clamp(0, in_height - 1)).mul_(high_weight[:, None])
    upper >>= 16
    lower >>= 16
    return (upper.add_(lower).add_(2) >> 2).to(torch.uint8)


def _nearest_indices(in_size: int, out_size: int, device: torch.device) -> torch.Tensor:
    """
    OpenCV's rule `floor(i * in / out)` in double precision. Torch's single precision sometimes gives other indices.
    """
    scale = 1 / (out_size / in_size)
    indices = (torch.arange(out_size, dtype=torch.float64) * scale).floor().long()
    return indices.clamp_(max=in_size - 1).to(device)


def resize_label_map(label_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    Nearest-neighbor resize with OpenCV's rounding.

    Args:
        label_map (`torch.Tensor` of shape `(..., in_height, in_width)`): Class ids, any dtype.
        size (`tuple[int, int]`): Target `(height, width)`.

    Returns:
        `torch.Tensor` of shape `(..., height, width)`, same dtype.
    """
    in_height, in_width = label_map.shape[-2:]
    rows = _nearest_indices(in_height, size[0], label_map.device)
    columns = _nearest_indices(in_width, size[1], label_map.device)
    return label_map.index_select(-2, rows).index_select(-1, columns)


def resize_image(
    image: torch.Tensor, size: tuple[int, int], resample: int | str | None = None, antialias: bool = False
) -> torch.Tensor:
    """
    Resize an image as OpenCV does, or with antialiasing as PIL and torchvision do.

    Args:
        image (`torch.Tensor` of shape `(num_channels, in_height, in_width)`, uint8 or float32): The image.
        size (`tuple[int, int]`): Target `(height, width)`.
        resample (`PILImageResampling` or `torchvision.transforms.InterpolationMode`, *optional*):
            Nearest, bilinear or bicubic. Defaults to bilinear.
        antialias (`bool`, *optional*, defaults to `False`): Whether to widen the filter when an edge shrinks.

    Returns:
        `torch.Tensor` of shape `(num_channels, height, width)`, same dtype; uint8 is rounded.

    Raises:
        ValueError: if `resample` is another filter.
    """
    mode = "bilinear" if resample is None else _MODES.get(getattr(resample, "value", resample))
    if mode is None:
        raise ValueError(f"`resample={resample!r}` is not supported: choose nearest (0), bilinear (2) or bicubic (3).")
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    if mode == "nearest":
        return resize_label_map(image, size)
    if mode == "bilinear" and not antialias and image.dtype == torch.uint8:
        return _resize_bilinear_uint8(image, *size)
    resized = F.interpolate(image[None].float(), size=size, mode=mode, antialias=antialias)[0]
    return resized.round().clamp(0, 255).to(torch.uint8) if image.dtype == torch.uint8 else resized
