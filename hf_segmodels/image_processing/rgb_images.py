# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Conversion of image files and PIL images of any mode to 8-bit RGB, and of images to tensors."""

from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format


def read_image(path: str | Path) -> PIL.Image.Image:
    """
    Read an image as 8-bit RGB (see [`to_rgb`]), rotated by its EXIF orientation. Animations and files with several
    pages give their first picture.

    Raises:
        OSError: if the file is missing or not an image. Pillow can raise other errors for damaged files.
    """
    with PIL.Image.open(path) as file:
        return to_rgb(PIL.ImageOps.exif_transpose(file))


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """
    Convert an image of any mode to 8-bit RGB. Transparent parts become white. 16-bit grays are divided by 257, 32-bit
    grays are scaled from their lowest to their highest value.
    """
    if image.mode.startswith("I;16"):
        return _gray_to_rgb(np.asarray(image), 0, 65535)
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        return _gray_to_rgb(values, values.min(), values.max())
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _gray_to_rgb(values: np.ndarray, low: float, high: float) -> PIL.Image.Image:
    # Pillow's own conversion clips values above 255
    scaled = (values.astype(np.float64) - low) * (255 / max(high - low, 1e-12))
    return PIL.Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")


def image_to_tensor(
    image: "PIL.Image.Image | np.ndarray | torch.Tensor",
    do_convert_rgb: bool | None = None,
    input_data_format: str | ChannelDimension | None = None,
) -> torch.Tensor:
    """
    Convert one image to a new tensor of shape `(num_channels, height, width)`: uint8 stays, any other dtype becomes
    float32. The input is not changed.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            PIL image of any mode, or array of shape `(height, width)`, `(height, width, num_channels)` or
            `(num_channels, height, width)`.
        do_convert_rgb (`bool`, *optional*):
            Whether to convert PIL images by [`to_rgb`], and arrays likewise: gray is repeated to three channels, an
            alpha channel is composed onto white, other numbers of channels are unchanged.
        input_data_format (`str` or `ChannelDimension`, *optional*):
            Axis of an array's channels. Defaults to the axis of length 1, 3 or 4.

    Raises:
        ValueError: if the image is empty, or if `input_data_format` is needed to find its channel axis.
    """
    if isinstance(image, PIL.Image.Image):
        if do_convert_rgb:
            image = to_rgb(image)
        input_data_format = ChannelDimension.LAST
    if not isinstance(image, torch.Tensor):
        # A copy in C order: torch refuses negative strides (`image[..., ::-1]`) and warns of read-only arrays.
        array = np.array(image, order="C")
        white = 1 if array.dtype.kind == "f" else 255
        image = torch.from_numpy(array if array.dtype == np.uint8 else array.astype(np.float32))
    else:
        white = 1 if image.is_floating_point() else 255
        image = image.detach().to(torch.uint8 if image.dtype == torch.uint8 else torch.float32, copy=True)
    if image.numel() == 0:
        raise ValueError(f"An image has no pixels (shape {tuple(image.shape)}).")

    if image.ndim == 2:
        # (height, width) -> (1, height, width)
        image, input_data_format = image[None], ChannelDimension.FIRST
    if input_data_format is None:
        try:
            input_data_format = infer_channel_dimension_format(image, num_channels=(1, 3, 4))  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(
                f"The channel axis of an image of shape {tuple(image.shape)} is ambiguous: pass "
                "`input_data_format='channels_first'` or `'channels_last'`."
            ) from error
    if ChannelDimension(input_data_format) == ChannelDimension.LAST:
        # (height, width, num_channels) -> (num_channels, height, width)
        image = image.permute(2, 0, 1)
    if do_convert_rgb and image.shape[0] == 1:
        image = image.expand(3, -1, -1)
    elif do_convert_rgb and image.shape[0] == 4:
        image = _compose_on_white(image, white)
    return image.contiguous()


def _compose_on_white(image: torch.Tensor, white: int) -> torch.Tensor:
    """Red, green, blue, alpha `(4, height, width)` of range 0 to `white` -> `(3, height, width)`, same dtype."""
    alpha = image[3:].float() / white
    composed = image[:3] * alpha + (1 - alpha) * white
    return composed.round().to(torch.uint8) if image.dtype == torch.uint8 else composed
