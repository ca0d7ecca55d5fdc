# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Label maps as pictures: overlays, legends, panels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .palettes import check_palette


LabelMap = np.ndarray | Image.Image | torch.Tensor

_BACKGROUND = (255, 255, 255)
_TEXT = (32, 32, 32)


@dataclass(frozen=True)
class ClassShare:
    """Number and share of the pixels of one class in a label map."""

    index: int
    name: str
    pixels: int
    share: float
    """Share of the pixels that are not ignored, from 0 to 1."""

    @property
    def percent(self) -> str:
        return "< 0.1 %" if self.share < 0.0005 else f"{100 * self.share:.1f} %"


def to_label_array(label_map: LabelMap) -> np.ndarray:
    """
    Convert a label map of torch, numpy or PIL to an integer array `(height, width)`.

    Raises:
        ValueError: if the label map is not two-dimensional, or its values are not integers.
    """
    if isinstance(label_map, torch.Tensor):
        label_map = label_map.detach().cpu().numpy()
    labels = np.asarray(label_map)
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"`label_map` must be an integer array of shape (height, width), got {labels.shape} of {labels.dtype}: give one "
            "label map that `predict` or `post_process_semantic_segmentation` returned."
        )
    return labels


def _count_labels(labels: np.ndarray) -> dict[int, int]:
    """Return the number of pixels of each label in the label map, in ascending order of labels."""
    if labels.size and labels.min() < 0:
        raise ValueError(f"`label_map` has the label {labels.min()}: labels start at 0, and 255 means no class.")
    counts = np.bincount(labels.ravel())
    return {int(label): int(counts[label]) for label in counts.nonzero()[0]}


def class_shares(label_map: LabelMap, id2label: Mapping[int, str], ignore_index: int | None = 255) -> list[ClassShare]:
    """
    Return the classes in a label map, largest first.

    Args:
        label_map (`torch.Tensor`, `np.ndarray` or `PIL.Image.Image` of shape `(height, width)`):
            Class of each pixel.
        id2label (`Mapping[int, str]`):
            Class names, as in the configuration of a model.
        ignore_index (`int`, *optional*, defaults to 255):
            Label of pixels that do not count.
    """
    labels = to_label_array(label_map)
    pixels = {index: number for index, number in _count_labels(labels).items() if index != ignore_index}
    total = sum(pixels.values())
    shares = [
        ClassShare(index, id2label.get(index, f"class {index}"), count, count / total)
        for index, count in pixels.items()
    ]
    return sorted(shares, key=lambda item: (-item.pixels, item.index))


def color_label_map(label_map: LabelMap, palette: np.ndarray, ignore_index: int | None = 255) -> Image.Image:
    """
    Color each pixel by its class; ignored pixels are black.

    Args:
        label_map, ignore_index: See [`class_shares`].
        palette (`np.ndarray` of shape `(num_labels, 3)`):
            Colors from 0 to 255; see [`palette_for`].

    Returns:
        `PIL.Image.Image`: RGB image of the size of the label map.

    Raises:
        ValueError: if a label has no color.
    """
    labels, palette = to_label_array(label_map), check_palette(palette)
    missing = [label for label in _count_labels(labels) if label >= len(palette) and label != ignore_index]
    if missing:
        raise ValueError(
            f"`label_map` has the labels {missing[:5]}, but `palette` has colors for 0 to {len(palette) - 1} only: give the "
            "palette of the same model, or `ignore_index` if the label means no class."
        )
    colors = np.zeros((max(len(palette), (ignore_index or 0) + 1), 3), dtype=np.uint8)
    colors[: len(palette)] = palette
    if ignore_index is not None:
        colors[ignore_index] = 0
    # (height, width) -> (height, width, 3)
    return Image.fromarray(colors[labels]) if len(colors) > 256 else label_image(labels, colors).convert("RGB")


def overlay(
    image: Image.Image,
    label_map: LabelMap,
    palette: np.ndarray,
    alpha: float = 0.5,
    ignore_index: int | None = 255,
) -> Image.Image:
    """
    Overlay the colors of the classes on an image.

    Args:
        image (`PIL.Image.Image`):
            Segmented image.
        label_map, palette:
            See [`color_label_map`].
        alpha (`float`, *optional*, defaults to 0.5):
            Opacity of the colors, from 0 (image only) to 1 (colors only).
        ignore_index (`int`, *optional*, defaults to 255):
            Label of pixels that stay unchanged.

    Returns:
        `PIL.Image.Image`: RGB image of the same size.

    Raises:
        ValueError: if the sizes differ, a label has no color, or `alpha` is not between 0 and 1.
    """
    labels = to_label_array(label_map)
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must be from 0 (image only) to 1 (colors only), got {alpha}.")
    if labels.shape != (image.height, image.width):
        raise ValueError(
            f"`label_map` has (height, width) {labels.shape}, but the image has {(image.height, image.width)}: pass "
            "`target_sizes=[(image.height, image.width)]` to `predict` or `post_process_semantic_segmentation`."
        )
    # (height, width), 0 at ignored pixels
    opacity = np.where(labels == ignore_index, 0, round(alpha * 255)).astype(np.uint8)
    return Image.composite(
        color_label_map(labels, palette, ignore_index), image.convert("RGB"), Image.fromarray(opacity)
    )


def legend(
    shares: Sequence[ClassShare],
    palette: np.ndarray,
    font_size: int = 16,
    height: int | None = None,
    max_columns: int = 2,
) -> Image.Image:
    """
    Draw a list of classes: color, name, share of the pixels.

    Args:
        shares (`Sequence[ClassShare]`):
            Classes in the order of the list; see [`class_shares`].
        palette (`np.ndarray` of shape `(num_labels, 3)`):
            Colors from 0 to 255.
        font_size (`int`, *optional*, defaults to 16):
            Height of the text in pixels.
        height (`int`, *optional*):
            Height in pixels at which a new column begins, after at least six classes. Defaults to a single column.
        max_columns (`int`, *optional*, defaults to 2):
            Number of columns. Classes that do not fit are summed up in a last line.

    Returns:
        `PIL.Image.Image`: RGB image of the size of the list.
    """
    palette, font = check_palette(palette), ImageFont.load_default(font_size)
    margin, line, patch, gap = font_size, round(font_size * 1.7), round(font_size * 1.1), font_size // 2

    # (color or `None`, name, share)
    entries: list[tuple[tuple[int, ...] | None, str, str]] = [
        (tuple(int(value) for value in palette[item.index]), item.name, item.percent) for item in shares
    ]
    rows = len(shares) if height is None else max(6, (height - 2 * margin) // line)
    capacity = rows * max_columns
    if len(entries) > capacity:
        others = shares[capacity - 1 :]
        rest = ClassShare(-1, f"{len(others)} more", 0, sum(item.share for item in others))
        entries[capacity - 1 :] = [(None, rest.name, rest.percent)]
    num_columns = max(1, math.ceil(len(entries) / max(rows, 1)))
    rows = math.ceil(len(entries) / num_columns)
    columns = [entries[start : start + rows] for start in range(0, len(entries), rows or 1)]

    share_width = max((round(font.getlength(share)) for _, _, share in entries), default=0)
    name_widths = [max(round(font.getlength(name)) for _, name, _ in column) for column in columns]
    widths = [patch + gap + name_width + 2 * gap + share_width for name_width in name_widths]
    size = (sum(widths) + margin * (len(widths) + 1), rows * line + 2 * margin)
    picture = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    left = margin
    for column, width in zip(columns, widths, strict=True):
        for row, (color, name, share) in enumerate(column):
            middle = margin + row * line + line // 2
            if color is not None:
                box = (left, middle - patch // 2, left + patch, middle - patch // 2 + patch)
                draw.rounded_rectangle(box, radius=max(2, patch // 5), fill=color, outline=(128, 128, 128))
            draw.text((left + patch + gap, middle), name, fill=_TEXT, font=font, anchor="lm")
            draw.text((left + width, middle), share, fill=_TEXT, font=font, anchor="rm")
        left += width + margin
    return picture


def add_legend(image: Image.Image, shares: Sequence[ClassShare], palette: np.ndarray) -> Image.Image:
    """
    Add a [`legend`] to the right of an image, with a font size that suits the image.

    Args:
        image (`PIL.Image.Image`): Image, usually the result of [`overlay`].
        shares, palette: See [`legend`].
    """
    return side_by_side([image, legend(shares, palette, _font_size(image), height=image.height)], gap=0)


def _font_size(image: Image.Image) -> int:
    return min(max(round(max(image.size) / 40), 13), 48)


def side_by_side(images: Sequence[Image.Image], titles: Sequence[str] | None = None, gap: int = 8) -> Image.Image:
    """
    Place images next to each other, aligned at the top, on a white background.

    Args:
        images (`Sequence[PIL.Image.Image]`): Images of any sizes, from left to right.
        titles (`Sequence[str]`, *optional*): One line of text above each image.
        gap (`int`, *optional*, defaults to 8): Pixels between two images.

    Raises:
        ValueError: if there is no image, or not one title for each image.
    """
    if not images or (titles is not None and len(titles) != len(images)):
        raise ValueError(
            f"Got {len(images)} images and `titles` {titles}: give at least one image, and one title for each image or none."
        )
    font_size = _font_size(images[0])
    font = ImageFont.load_default(font_size)
    top = 0 if titles is None else round(font_size * 1.7)
    titles = titles or [""] * len(images)
    widths = [max(image.width, round(font.getlength(title))) for image, title in zip(images, titles, strict=True)]
    size = (sum(widths) + gap * (len(images) - 1), top + max(image.height for image in images))
    picture = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    left = 0
    for image, title, width in zip(images, titles, widths, strict=True):
        picture.paste(image.convert("RGB"), (left, top))
        draw.text((left, top // 2), title, fill=_TEXT, font=font, anchor="lm")
        left += width + gap
    return picture


def label_image(label_map: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Return class indices as an image: mode "P" with the colors of the classes, or 16-bit gray for more than 256 classes."""
    if len(palette) > 256:
        return Image.fromarray(label_map.astype(np.uint16))
    image = Image.fromarray(label_map.astype(np.uint8))
    image.putpalette(palette.tobytes())
    return image
