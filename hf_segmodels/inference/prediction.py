# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`predict` and the sliding `forward` that the models share."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..configuration_utils import check_windows
from .upsampled_argmax import Scores
from .window_grid import as_sizes, window_scores


# floats of a band of rows in which several inputs' probabilities are averaged
_BAND = 1 << 21


def dense_prediction(
    model: "DensePredictionMixin",
    inputs: Sequence[torch.Tensor],
    flips: Sequence[bool],
    target_sizes: Sequence[tuple[int, int]] | torch.Tensor,
    window_size: int | Sequence[int] | None = None,
    window_stride: int | Sequence[int] | None = None,
    return_scores: bool = False,
    max_windows: int = 8,
) -> list[torch.Tensor]:
    """
    Predicts from ready-made inputs: the same images resized, and mirrored where `flips` says so.

    One input gives its scores, averaged over windows and resized to the target; several give the mean of their
    softmax maps (Segmenter section 4.2; so do the other three).

    Args:
        model ([`DensePredictionMixin`]): The model, in the mode (eval, gradients) that is wanted.
        inputs (`list[torch.Tensor]`, each of shape `(batch_size, num_channels, height, width)`): Normalized images.
        flips (`list[bool]`): For each input, whether it is mirrored horizontally.
        target_sizes (`list[tuple[int, int]]`): For each image of the batch, the `(height, width)` wanted.
        window_size (`int` or pair, *optional*): Window in pixels; 0 for whole images. The config's by default.
        window_stride (`int` or pair, *optional*): Stride of the window. The config's by default, or the window where
            `window_size` is given.
        return_scores (`bool`, *optional*, defaults to `False`): Scores instead of labels.
        max_windows (`int`, *optional*, defaults to 8): How many windows go through the network together.

    Returns:
        For each image a label map `(height, width)`, int64, or scores `(num_labels, height, width)`, float32.

    Raises:
        ValueError: for inputs, sizes and windows that do not fit together.
    """
    windows = choose_windows(model.config, window_size, window_stride)
    if len(inputs) == 0 or len(inputs) != len(flips):
        raise ValueError(
            f"Got {len(inputs)} inputs and {len(flips)} flips: give at least one input, and a flip for each."
        )
    sizes = as_sizes(target_sizes)
    for pixel_values in inputs:
        _check_images(pixel_values, model.config)
        if pixel_values.shape[0] != len(sizes):
            raise ValueError(
                f"Got {len(sizes)} `target_sizes` for a batch of {pixel_values.shape[0]} images: give one "
                "(height, width) for each image."
            )
    if any(min(size) < 1 for size in sizes):
        raise ValueError(f"`target_sizes` must be (height, width) of at least one pixel each, got {sizes}.")
    if max_windows < 1:
        raise ValueError(f"`max_windows` must be at least 1, got {max_windows}.")
    views = [
        model._window_scores(pixel_values, sizes, windows, bool(flip), max_windows)
        for pixel_values, flip in zip(inputs, flips, strict=True)
    ]
    if len(views) == 1:
        return [scores.evaluate() if return_scores else scores.argmax() for scores in views[0]]
    if return_scores:
        return [_mean_probabilities(image_views) for image_views in zip(*views, strict=True)]
    return [_argmax_of_mean(image_views) for image_views in zip(*views, strict=True)]


def choose_windows(
    config: Any, window_size: int | Sequence[int] | None = None, window_stride: int | Sequence[int] | None = None
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """
    Window and stride as pairs, the config's where they are not given; `None` for whole images.

    Raises:
        ValueError: for windows and strides that make no sense together.
    """
    if window_size is None:
        window_size = config.window_size
        window_stride = config.window_stride if window_stride is None else window_stride
    return check_windows(window_size, window_stride)


def _check_images(pixel_values: torch.Tensor, config: Any) -> None:
    """Checks whole images, since the network only sees windows of them."""
    num_channels = getattr(config.backbone_config, "num_channels", 3)
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels or pixel_values.numel() == 0:
        raise ValueError(
            f"Expected `pixel_values` of shape (batch_size, {num_channels}, height, width) with at least one pixel, got "
            f"{tuple(pixel_values.shape)}: convert images to {num_channels} channels, and put a single one into a batch "
            "with `pixel_values[None]`."
        )


def _mean_probabilities(views: Sequence[Scores], top: int = 0, bottom: int | None = None) -> torch.Tensor:
    """Mean of the softmax maps `(num_labels, bottom - top, width)` of one image's inputs, in a band of rows."""
    total = views[0].evaluate(top, bottom).softmax(dim=0)
    for view in views[1:]:
        total = total + view.evaluate(top, bottom).softmax(dim=0)
    return total / len(views)


def _argmax_of_mean(views: Sequence[Scores]) -> torch.Tensor:
    num_labels, height, width = views[0].shape
    band = max(1, _BAND // (num_labels * width))
    bands = [_mean_probabilities(views, top, top + band).argmax(dim=0) for top in range(0, height, band)]
    return torch.cat(bands)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model into eval mode for a while."""
    # each module gets its own mode back: some may be frozen in eval mode while the rest is in training
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


class DensePredictionMixin:
    """
    Gives a model [`~DensePredictionMixin.predict`].

    The model has `config.window_size`, `config.window_stride` and `config.small_image_mode`, and `_dense_logits`, which
    maps images `(batch_size, num_channels, height, width)` to patch-level logits `(batch_size, num_labels, grid_height,
    grid_width)` and the size in pixels that they cover (the input's, or more where whole patches needed padding).
    """

    config: Any
    training: bool

    def _dense_logits(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        raise NotImplementedError

    def _scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Height and width of an image at one of the scales of [`~DensePredictionMixin.predict`]."""
        return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)

    def _window_scores(
        self,
        pixel_values: torch.Tensor,
        target_sizes: Sequence[tuple[int, int]],
        windows: tuple[tuple[int, int], tuple[int, int]] | None,
        is_flipped: bool,
        max_windows: int,
    ) -> Sequence[Scores]:
        """
        The averaged scores of one input, one object for each image. A model whose scores are no linear function of its
        grid overrides this; its objects are [`Scores`], too.
        """
        mode = self.config.small_image_mode
        return window_scores(self._dense_logits, pixel_values, target_sizes, windows, mode, is_flipped, max_windows)

    @torch.no_grad()
    def predict(
        self,
        pixel_values: torch.Tensor,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        window_size: int | Sequence[int] | None = None,
        window_stride: int | Sequence[int] | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        return_scores: bool = False,
        max_windows: int = 8,
    ) -> list[torch.Tensor]:
        """
        Segments images as the original's evaluation does: sliding window, several scales, mirrored copies. Dropout and
        stochastic depth are off, whatever mode the model is in. Label maps are found without full-resolution scores.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalized images.
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor` of shape `(batch_size, 2)`, *optional*):
                `(height, width)` wanted for each image, usually that before preprocessing. The input's by default.
            window_size (`int` or pair, *optional*):
                Window in pixels; 0 for whole images. The config's by default.
            window_stride (`int` or pair, *optional*):
                Stride of the window. The config's by default, or the window where `window_size` is given.
            scales (`tuple[float, ...]`, *optional*, defaults to `(1.0,)`):
                Factors by which the images are resized; results are averaged.
            flip (`bool`, *optional*, defaults to `False`):
                Whether mirrored copies take part.
            return_scores (`bool`, *optional*, defaults to `False`):
                Whether to return scores instead of labels.
            max_windows (`int`, *optional*, defaults to 8):
                How many windows go through the network together.

        Returns:
            For each image a label map `(height, width)`, int64; or, with `return_scores`, scores `(num_labels, height,
            width)`, float32: averaged logits for one input, the mean of softmax maps for several.

        Raises:
            ValueError: for sizes, windows or scales that make no sense.
        """
        _check_images(pixel_values, self.config)
        if not pixel_values.is_floating_point():
            raise ValueError(f"Expected normalized `pixel_values`, got {pixel_values.dtype}: use the image processor.")
        height, width = pixel_values.shape[-2:]
        scaled_sizes = [self._scaled_size((height, width), scale) for scale in scales]
        if len(scaled_sizes) == 0 or min(map(min, scaled_sizes)) < 1:
            raise ValueError(
                f"`scales` must be factors, such as (0.5, 1.0, 1.5), that leave pixels of {height} x {width}, got {scales}."
            )
        if target_sizes is None:
            target_sizes = [(height, width)] * pixel_values.shape[0]

        inputs, flips = [], []
        for size in scaled_sizes:
            resized = pixel_values if size == (height, width) else _resize_images(pixel_values, size)
            inputs += [resized, resized.flip(-1)] if flip else [resized]
            flips += [False, True] if flip else [False]

        with eval_mode(self):  # type: ignore[arg-type]
            return dense_prediction(
                self, inputs, flips, target_sizes, window_size, window_stride, return_scores, max_windows
            )


def _resize_images(pixel_values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return nn.functional.interpolate(pixel_values, size=size, mode="bilinear", align_corners=False)


def slide_when_configured(forward: Callable) -> Callable:
    """
    Makes a model's `forward` slide where `config.window_size` is set, the model is in eval mode, no labels are given,
    neither hidden states nor attentions are asked for, and the images are larger than the window. The returned output,
    of the class that `forward` is annotated with, then holds averaged `logits` at the images' resolution. Compiled and
    exported graphs never slide.
    """
    output_class = forward.__annotations__["return"]

    @functools.wraps(forward)
    def wrapper(self: Any, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if is_traced or self.training or labels is not None:
            return forward(self, pixel_values, labels=labels, **kwargs)
        windows = check_windows(self.config.window_size, self.config.window_stride)
        wants_internals = any(
            kwargs.get(name, getattr(self.config, name)) for name in ("output_hidden_states", "output_attentions")
        )
        size = pixel_values.shape[-2], pixel_values.shape[-1]
        if (
            windows is None
            or wants_internals
            or all(side <= limit for side, limit in zip(size, windows[0], strict=True))
        ):
            return forward(self, pixel_values, **kwargs)
        scores = dense_prediction(self, [pixel_values], [False], [size] * pixel_values.shape[0], return_scores=True)
        return output_class(logits=torch.stack(scores))

    return wrapper
