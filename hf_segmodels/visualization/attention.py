# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Attention maps over the image, as in figures 1 and 6 of the Segmenter paper (appendix B): the attention of one patch, or of
one class of the mask transformer, to all patches.

Models return attention weights with `output_attentions=True` if they were loaded with `attn_implementation="eager"`.
"""

import numpy as np
import torch
from PIL import Image


# dark violet, purple, red, orange, light yellow: increasing lightness, so that the map is also readable in gray
_HEAT = np.array([[10, 7, 46], [92, 18, 110], [190, 49, 87], [244, 125, 35], [252, 236, 145]])


def attention_map(
    attention: torch.Tensor,
    grid: tuple[int, int],
    *,
    patch: tuple[int, int] | None = None,
    class_index: int | None = None,
    token: int | None = None,
    num_prefix_tokens: int = 0,
    head: int | None = None,
) -> torch.Tensor:
    """
    Return the attention of one query token to each patch.

    In the encoder, `num_prefix_tokens` class and distillation tokens precede the patches. In the decoder of a mask
    transformer there are no prefix tokens, and the classes follow the patches.

    Args:
        attention (`torch.Tensor` of shape `(..., num_heads, num_tokens, num_tokens)`):
            Attention weights of one layer, for example `outputs.attentions[-1]` or `outputs.decoder_attentions[-1][0]`.
        grid (`tuple[int, int]`):
            `(height, width)` of the patch grid, for example `outputs.logits.shape[-2:]`.
        patch (`tuple[int, int]`, *optional*):
            Row and column of the query patch; see [`patch_at`].
        class_index (`int`, *optional*):
            Query class (decoder).
        token (`int`, *optional*):
            Position of the query token in the sequence, 0 for the class token. Exactly one of `patch`, `class_index` and
            `token` must be given.
        num_prefix_tokens (`int`, *optional*, defaults to 0):
            Number of tokens before the patches.
        head (`int`, *optional*):
            Attention head. Defaults to the mean of all heads.

    Returns:
        `torch.Tensor` of shape `(..., height, width)`, float32, of the size of the grid. The sum is 1 minus the attention to
        tokens that are not patches.

    Raises:
        ValueError: if there are fewer tokens than grid and prefix need, or the query token does not exist.

    Example:

    ```python
    >>> import torch
    >>> from hf_segmodels.visualization import attention_map

    >>> attention = torch.full((1, 3, 17, 17), 1 / 17)  # cls and 4 x 4 patches
    >>> attention_map(attention, (4, 4), patch=(2, 1), num_prefix_tokens=1).shape
    torch.Size([1, 4, 4])
    ```
    """
    rows, columns = grid
    num_tokens, num_patches = attention.shape[-1], rows * columns
    if attention.ndim < 3 or attention.shape[-2] != num_tokens or num_tokens < num_prefix_tokens + num_patches:
        raise ValueError(
            f"`attention` of shape {tuple(attention.shape)} does not fit {num_prefix_tokens} prefix tokens and a `grid` of "
            f"{rows} x {columns} patches: give the weights of one layer (..., num_heads, num_tokens, num_tokens), and the grid "
            "of the padded image. Window attention (Swin) is not supported."
        )
    if [patch, class_index, token].count(None) != 2:
        raise ValueError("Give exactly one of `patch`, `class_index` and `token` as the query.")
    if patch is not None:
        if not (0 <= patch[0] < rows and 0 <= patch[1] < columns):
            raise ValueError(f"`patch` {tuple(patch)} is outside the grid of {rows} rows and {columns} columns.")
        token = num_prefix_tokens + patch[0] * columns + patch[1]
    elif class_index is not None:
        token = num_prefix_tokens + num_patches + class_index
        if class_index < 0 or token >= num_tokens:
            raise ValueError(
                f"`class_index` {class_index} is not among the {num_tokens - num_prefix_tokens - num_patches} class tokens "
                "after the patches: give the attention of the decoder of a mask transformer."
            )
    elif token is not None and not 0 <= token < num_tokens:
        raise ValueError(f"`token` {token} is not among the {num_tokens} tokens.")
    # (..., heads, tokens, tokens) -> (..., heads, patches)
    weights = attention[..., token, num_prefix_tokens : num_prefix_tokens + num_patches].detach().float()
    weights = weights.mean(dim=-2) if head is None else weights[..., head, :]
    # (..., patches) -> (..., rows, columns)
    return weights.unflatten(-1, (rows, columns))


def patch_at(
    point: tuple[float, float],
    size: tuple[int, int],
    grid: tuple[int, int],
    coverage: tuple[float, float] = (1.0, 1.0),
) -> tuple[int, int]:
    """
    Return row and column of the patch at a point of the image.

    Args:
        point (`tuple[float, float]`): `(x, y)` in pixels of the image.
        size (`tuple[int, int]`): `(height, width)` of the image.
        grid (`tuple[int, int]`): `(height, width)` of the patch grid.
        coverage (`tuple[float, float]`, *optional*): See [`overlay_heat_map`].

    Raises:
        ValueError: if the point is outside the image.
    """
    (x, y), (height, width) = point, size
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(
            f"The point (x, y) = {tuple(point)} is outside the image of height {height} and width {width}."
        )
    return int(y / height / coverage[0] * grid[0]), int(x / width / coverage[1] * grid[1])


def check_coverage(coverage: tuple[float, float]) -> None:
    """Raise `ValueError` if a map with this `coverage` leaves pixels of the image out."""
    if min(coverage) < 1:
        raise ValueError(
            f"`coverage` {tuple(coverage)} must be at least 1, so that the map extends over the whole image."
        )


def overlay_heat_map(
    image: Image.Image,
    heat_map: "torch.Tensor | np.ndarray",
    alpha: float = 0.6,
    coverage: tuple[float, float] = (1.0, 1.0),
    limits: tuple[float, float] | None = None,
) -> Image.Image:
    """
    Overlay a heat map on an image, from dark violet (the lowest value) to light yellow (the highest value).

    Args:
        image (`PIL.Image.Image`):
            Image of any size.
        heat_map (`torch.Tensor` or `np.ndarray` of shape `(rows, columns)`):
            Values of any range; scaled up bilinearly.
        alpha (`float`, *optional*, defaults to 0.6):
            Opacity of the heat map, from 0 to 1.
        coverage (`tuple[float, float]`, *optional*, defaults to `(1.0, 1.0)`):
            Extent of the heat map in units of the height and width of the image. It is above 1 if the image was padded to
            whole patches: `(padded_height / height, padded_width / width)`.
        limits (`tuple[float, float]`, *optional*):
            Values of the darkest and the lightest color. Defaults to the lowest value and the 99.5th percentile, since one
            strong patch would darken all others.

    Returns:
        `PIL.Image.Image`: RGB image of the same size.

    Raises:
        ValueError: if `heat_map` is not two-dimensional or empty, or `coverage` is below 1.
    """
    values = heat_map.detach().cpu().numpy() if isinstance(heat_map, torch.Tensor) else np.asarray(heat_map)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"`heat_map` must have the shape (rows, columns) and at least one value, got {values.shape}.")
    check_coverage(coverage)
    values = values.astype(np.float32)
    low, high = limits or (values.min(), np.quantile(values, 0.995))
    scaled = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)
    # the part of the heat map over the image, in cells
    box = (0, 0, values.shape[1] / coverage[1], values.shape[0] / coverage[0])
    large = np.asarray(Image.fromarray(scaled).resize(image.size, Image.Resampling.BILINEAR, box=box))
    stops = np.linspace(0, 1, len(_HEAT))
    # (height, width) -> (height, width, 3)
    colors = np.stack([np.interp(large, stops, channel) for channel in _HEAT.T], axis=-1)
    return Image.blend(image.convert("RGB"), Image.fromarray(colors.round().astype(np.uint8)), alpha)
