# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""SLIC superpixels, and the mixin that adds them to the output of an image processor."""

from typing import Any

import numpy as np
import torch
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.processing_utils import Unpack

from ..inference.region_painting import paint_labels, paint_scores, resize_regions
from ..inference.window_grid import as_sizes
from .segmentation_image_processor import SegmentationImageProcessorBase, SegmentationImageProcessorKwargs


def slic_superpixels(image: torch.Tensor, n_segments: int, compactness: float = 10.0) -> torch.Tensor:
    """
    Cut an image into connected superpixels of similar color with scikit-image's SLIC (Achanta et al., 2012): k-means
    over position and CIELAB color (over unconverted channels unless there are three).

    Args:
        image (`torch.Tensor` of shape `(num_channels, height, width)`):
            Colors of any range. The smallest and largest value are scaled to 0 and 1.
        n_segments (`int`): Approximate number of superpixels.
        compactness (`float`, *optional*, defaults to 10.0): Higher values make superpixels squarer.

    Returns:
        `torch.Tensor` of shape `(height, width)`, int64, on the CPU: the superpixel of each pixel, from 0.

    Raises:
        ImportError: if scikit-image is not installed.
        ValueError: if `n_segments` is below 1, or `compactness` is not greater than 0.
    """
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise ImportError(
            "Superpixels need scikit-image, which is not installed: `pip install 'hf_segmodels[superpixels]'`."
        ) from error
    if n_segments < 1:
        raise ValueError(f"`n_segments` must be at least 1, got {n_segments}.")
    if not compactness > 0:
        raise ValueError(f"`compactness` must be greater than 0, got {compactness}.")
    # (num_channels, height, width) -> (height, width, num_channels)
    pixels = image.detach().cpu().permute(1, 2, 0).numpy().astype(np.float32)
    n_segments = min(n_segments, pixels.shape[0] * pixels.shape[1])
    superpixels = slic(pixels, n_segments=n_segments, compactness=compactness, start_label=0, channel_axis=-1)
    return torch.from_numpy(superpixels.astype(np.int64))


class SuperpixelMixinKwargs(SegmentationImageProcessorKwargs, total=False):
    """Arguments of the superpixels. See [`SuperpixelViTImageProcessor`]."""

    n_segments: int | None
    pixels_per_segment: int | None
    compactness: float | None


class SuperpixelMixin(SegmentationImageProcessorBase):
    """
    Add `superpixels (batch_size, height, width)`, int64, to the output of the image processor that follows in the class
    order: the superpixels of the resized images, and -1 in the padding.
    """

    valid_kwargs = SuperpixelMixinKwargs
    model_input_names = ["pixel_values", "superpixels"]

    n_segments = None
    pixels_per_segment = 256
    compactness = 10.0

    def __init__(self, **kwargs: Unpack[SuperpixelMixinKwargs]) -> None:
        super().__init__(**kwargs)  # type: ignore[misc]

    def _extra_inputs(  # type: ignore[override]
        self,
        images: list,
        *,
        n_segments: int | None,
        pixels_per_segment: int | None,
        compactness: float,
        **kwargs: Any,
    ) -> dict[str, tuple[list[torch.Tensor], int]]:
        tensors = map(torch.as_tensor, images)
        superpixels = [
            self.make_superpixels(image, n_segments, pixels_per_segment, compactness).to(image.device)
            for image in tensors
        ]
        return {"superpixels": (superpixels, -1)}

    def make_superpixels(
        self,
        image: torch.Tensor,
        n_segments: int | None = None,
        pixels_per_segment: int | None = None,
        compactness: float | None = None,
    ) -> torch.Tensor:
        """
        Return the superpixels `(height, width)`, int64, of an image `(num_channels, height, width)` without resizing
        it, for example of a training crop. Settings default to those of the processor.
        """
        if n_segments is None:
            n_segments = self.n_segments
        if n_segments is None:
            pixels = self.pixels_per_segment if pixels_per_segment is None else pixels_per_segment
            if pixels < 1:
                raise ValueError(f"`pixels_per_segment` must be at least 1, got {pixels}.")
            n_segments = max(1, round(image.shape[-2] * image.shape[-1] / pixels))
        return slic_superpixels(image, n_segments, self.compactness if compactness is None else compactness)

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: "list[tuple[int, int]] | torch.Tensor | None" = None,
        return_segmentation_scores: bool = False,
    ) -> "list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]":
        """
        Turn a model's outputs into label maps, with the arguments and return values of the image processor. Outputs
        with `token_logits` and `superpixels` are painted at the target size (by default the size of the model's input),
        which keeps the borders of superpixels sharp and needs no full-resolution scores. Other outputs are resized.
        """
        token_logits, superpixels = getattr(outputs, "token_logits", None), getattr(outputs, "superpixels", None)
        if token_logits is None or superpixels is None:
            return super().post_process_semantic_segmentation(outputs, target_sizes, return_segmentation_scores)
        if target_sizes is None:
            target_sizes = [tuple(superpixels.shape[-2:])] * len(superpixels)
        sizes = as_sizes(target_sizes, len(superpixels))
        regions = [resize_regions(regions[None], size) for regions, size in zip(superpixels, sizes, strict=True)]
        labels = [paint_labels(logits[None], maps)[0] for logits, maps in zip(token_logits, regions, strict=True)]
        if not return_segmentation_scores:
            return labels
        return [
            SemanticSegmentationPostProcessorOutput(
                data={"segmentation": label_map, "segmentation_scores": paint_scores(logits[None], maps)[0]}
            )
            for label_map, logits, maps in zip(labels, token_logits, regions, strict=True)
        ]
