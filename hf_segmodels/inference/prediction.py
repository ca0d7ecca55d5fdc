# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`predict` and the sliding `forward` shared by the models."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from ..configuration_utils import check_windows
from .upsampled_argmax import UpsampledScores
from .window_grid import WindowAxis, WindowGrid, as_sizes, run_windows


# floats of a band of rows in which the probabilities of several inputs are averaged
_BAND = 1 << 21


class LazyScores(Protocol):
    """
    Scores of one image, merged over windows and resized to the target size when they are needed.

    Implemented by [`UpsampledScores`] (grids of logits), [`MaskScores`] (queries with masks) and UN-EPT's `RefinedScores`.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(num_labels, height, width)`"""

    def evaluate(self, top: int = 0, bottom: int | None = None) -> torch.Tensor:
        """Scores `(num_labels, bottom - top, width)`, float32, of a band of rows, by default of all rows."""

    def argmax(self) -> torch.Tensor:
        """The label map `(height, width)`, int64: `evaluate().argmax(0)` without full-resolution scores."""


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
    Segment ready-made inputs: the same images at several scales, mirrored where `flips` is true.

    One input gives its scores, averaged over windows and resized to the target. Several inputs give the mean of their
    softmax maps (Segmenter, section 4.2; the released code of the other methods does the same).

    Args:
        model ([`DensePredictionMixin`]): The model; its mode (eval or training) and gradients are left unchanged.
        inputs (`list[torch.Tensor]`, each of shape `(batch_size, num_channels, height, width)`): Normalized images.
        flips (`list[bool]`): For each input, whether it is mirrored horizontally.
        target_sizes, window_size, window_stride, return_scores, max_windows: See [`~DensePredictionMixin.predict`].

    Returns:
        `list[torch.Tensor]`: For each image a label map `(height, width)`, int64, or scores `(num_labels, height, width)`,
        float32.

    Raises:
        ValueError: if `inputs`, `flips` and `target_sizes` differ in length or are empty, if an input has another number
            of dimensions or channels, if the stride exceeds the window, or if `max_windows` is below 1.
    """
    windows = choose_windows(model.config, window_size, window_stride)
    if len(inputs) == 0 or len(inputs) != len(flips):
        raise ValueError(
            f"Got {len(inputs)} inputs and {len(flips)} flips: give at least one input, and a flip for each."
        )
    for pixel_values in inputs:
        _check_images(pixel_values, model.config)
        sizes = as_sizes(target_sizes, len(pixel_values))
    if max_windows < 1:
        raise ValueError(f"`max_windows` must be at least 1, got {max_windows}.")
    views = []
    for pixel_values, flip in zip(inputs, flips, strict=True):
        size = pixel_values.shape[-2], pixel_values.shape[-1]
        window, stride = windows or (size, size)
        grid = WindowGrid(size, window, stride, model.config.small_image_mode, bool(flip))
        views.append(model._window_scores(pixel_values, sizes, grid, max_windows))
    if len(views) == 1:
        return [scores.evaluate() if return_scores else scores.argmax() for scores in views[0]]
    if return_scores:
        return [_mean_probabilities(image_views) for image_views in zip(*views, strict=True)]
    return [_argmax_of_mean(image_views) for image_views in zip(*views, strict=True)]


def choose_windows(
    config: Any, window_size: int | Sequence[int] | None = None, window_stride: int | Sequence[int] | None = None
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """
    Window and stride as pairs, by default from `config`; `None` for whole images.

    Raises:
        ValueError: if a size is negative or not a pair, if the stride exceeds the window, or if there is a stride without
            a window.
    """
    if window_size is None:
        window_size = config.window_size
        window_stride = config.window_stride if window_stride is None else window_stride
    return check_windows(window_size, window_stride)


def _check_images(pixel_values: torch.Tensor, config: Any) -> None:
    """Check whole images: the network only sees windows of them."""
    num_channels = getattr(config.backbone_config, "num_channels", 3)
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels or pixel_values.numel() == 0:
        raise ValueError(
            f"Expected `pixel_values` of shape (batch_size, {num_channels}, height, width) with at least one pixel, got "
            f"{tuple(pixel_values.shape)}: convert images to {num_channels} channels, and put a single one into a batch "
            "with `pixel_values[None]`."
        )


def _mean_probabilities(views: Sequence[LazyScores], top: int = 0, bottom: int | None = None) -> torch.Tensor:
    """Mean softmax map `(num_labels, bottom - top, width)` of the inputs of one image, in a band of rows."""
    probabilities = (view.evaluate(top, bottom).softmax(dim=0) for view in views)
    return functools.reduce(torch.add, probabilities) / len(views)


def _argmax_of_mean(views: Sequence[LazyScores]) -> torch.Tensor:
    num_labels, height, width = views[0].shape
    band = max(1, _BAND // (num_labels * width))
    bands = [_mean_probabilities(views, top, top + band).argmax(dim=0) for top in range(0, height, band)]
    return torch.cat(bands)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode within a `with` block."""
    # each module gets its own mode back: some may be frozen in eval mode while others are training
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


class DensePredictionMixin:
    """
    Mixin for models with sliding-window prediction, [`~DensePredictionMixin.predict`].

    The model provides `config.window_size`, `config.window_stride`, `config.small_image_mode`, `encode` and `decode`. A model
    whose scores are not averages of one grid of logits overrides `_window_scores`.
    """

    config: Any
    training: bool
    encode: Callable[..., Any]
    decode: Callable[..., Any]

    def _scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Height and width of an image at one of the scales of [`~DensePredictionMixin.predict`]."""
        return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)

    def _window_scores(
        self,
        pixel_values: torch.Tensor,
        target_sizes: Sequence[tuple[int, int]],
        grid: WindowGrid,
        max_windows: int,
    ) -> Sequence[LazyScores]:
        """Run the network over the windows of a batch; one [`LazyScores`] per image, at its target size."""
        (logits,), axes = self._run_windows(pixel_values, grid, max_windows, "logits")
        return UpsampledScores.from_windows(logits, axes, target_sizes)

    def _run_windows(
        self, pixel_values: torch.Tensor, grid: WindowGrid, max_windows: int, *names: str
    ) -> tuple[list[torch.Tensor], tuple[WindowAxis, WindowAxis]]:
        """Return fields of the output of `decode` for the windows of a batch, and the axes of the last of these fields."""

        def network(crops: torch.Tensor) -> tuple[list[torch.Tensor], tuple[int, int]]:
            encoded = self.encode(crops)
            outputs = self.decode(encoded)
            return [getattr(outputs, name) for name in names], encoded.padded_size

        fields, padded_size = run_windows(network, pixel_values, grid, max_windows)
        return fields, grid.axes(fields[-1].shape[-2:], padded_size)

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
        Segment images as the original evaluation does: sliding window, several scales, mirrored copies. Dropout and
        stochastic depth are off in any mode of the model. Label maps are found without full-resolution scores.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalized images.
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor` of shape `(batch_size, 2)`, *optional*):
                Target `(height, width)` of each image, usually its size before preprocessing; defaults to the size of
                `pixel_values`.
            window_size (`int` or pair, *optional*):
                Window in pixels, 0 for whole images; defaults to `config.window_size`.
            window_stride (`int` or pair, *optional*):
                Stride of the window; defaults to `config.window_stride`, or to `window_size` if that is given.
            scales (`tuple[float, ...]`, *optional*, defaults to `(1.0,)`):
                Factors by which the images are resized; the results are averaged.
            flip (`bool`, *optional*, defaults to `False`):
                Whether to average over mirrored copies, too.
            return_scores (`bool`, *optional*, defaults to `False`):
                Whether to return scores instead of labels.
            max_windows (`int`, *optional*, defaults to 8):
                Number of windows that go through the network together.

        Returns:
            `list[torch.Tensor]`: For each image a label map `(height, width)`, int64; or, with `return_scores`, scores
            `(num_labels, height, width)`, float32: averaged logits for one input, the mean of softmax maps for several.

        Raises:
            ValueError: if `pixel_values` is empty, not floating-point or of another number of dimensions or channels, if
                the number of `target_sizes` is not the batch size, if the stride exceeds the window, or if a scale leaves
                no pixel.
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
            resized = pixel_values
            if size != (height, width):
                resized = nn.functional.interpolate(resized, size=size, mode="bilinear", align_corners=False)
            inputs += [resized, resized.flip(-1)] if flip else [resized]
            flips += [False, True] if flip else [False]

        with eval_mode(self):  # type: ignore[arg-type]
            return dense_prediction(
                self, inputs, flips, target_sizes, window_size, window_stride, return_scores, max_windows
            )


def slide_when_configured(forward: Callable) -> Callable:
    """
    Decorator for a model's `forward`: slides if `config.window_size` is set, the model is in eval mode, no labels are given,
    neither hidden states nor attentions are requested, and the images are larger than the window. The returned output, of
    the class in `forward`'s return annotation, then holds averaged `logits` at the resolution of the images. Compiled and
    exported graphs never slide.
    """
    output_class = forward.__annotations__["return"]

    @functools.wraps(forward)
    def wrapper(self: Any, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if is_traced or self.training or labels is not None:
            return forward(self, pixel_values, labels=labels, **kwargs)
        windows = check_windows(self.config.window_size, self.config.window_stride)
        returns_internals = any(
            kwargs.get(name, getattr(self.config, name)) for name in ("output_hidden_states", "output_attentions")
        )
        size = pixel_values.shape[-2], pixel_values.shape[-1]
        is_larger = windows is not None and any(side > limit for side, limit in zip(size, windows[0], strict=True))
        if returns_internals or not is_larger:
            return forward(self, pixel_values, **kwargs)
        scores = dense_prediction(self, [pixel_values], [False], [size] * pixel_values.shape[0], return_scores=True)
        return output_class(logits=torch.stack(scores))

    return wrapper
