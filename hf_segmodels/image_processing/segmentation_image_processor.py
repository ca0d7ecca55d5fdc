# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Image processors shared by all methods, for both backends of transformers. The processor of a method only sets defaults:

    class SegmenterImageProcessor(SegmentationImageProcessor):
        image_mean = IMAGENET_STANDARD_MEAN
"""

from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    is_valid_image,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

from ..inference import upsample_argmax
from ..inference.window_grid import as_sizes
from .label_maps import check_label_map, label_map_to_tensor, reduce_labels
from .resizing import resize_image, resize_label_map, resized_size
from .rgb_images import image_to_tensor


class SegmentationImageProcessorKwargs(ImagesKwargs, total=False):
    """Arguments that the image processors of transformers do not have. See [`SegmentationImageProcessor`]."""

    antialias: bool | None
    do_reduce_labels: bool | None
    ignore_index: int | None
    num_labels: int | None


def both_backends(reference: str) -> dict[str, str]:
    """
    Return the `auto_map` entry of an image processor, from the `MODULE.CLASS` of either backend. Names follow the
    pattern of [`SegmenterImageProcessor`] and [`SegmenterImageProcessorPil`].
    """
    module, _, name = reference.partition(".")
    method, name = module.removeprefix("image_processing_").removeprefix("pil_"), name.removesuffix("Pil")
    return {
        "torchvision": f"image_processing_{method}.{name}",
        "pil": f"image_processing_pil_{method}.{name}Pil",
    }


class SegmentationImageProcessorBase(BaseImageProcessor):
    """
    Image processor for semantic segmentation: prepares images and label maps, and turns scores into label maps. The
    backend of transformers that follows in the class order rescales, normalizes and pads the pixels.

    Args:
        do_resize (`bool`, *optional*, defaults to `True`): Whether to resize images and label maps.
        size (`dict[str, int]`, *optional*, defaults to `{"shortest_edge": 512, "longest_edge": 2048}`):
            `{"height", "width"}` for a fixed size, `{"shortest_edge"}` or `{"shortest_edge", "longest_edge"}` to keep
            the aspect ratio. An integer sets the shortest edge.
        resample (`PILImageResampling`, *optional*, defaults to `PILImageResampling.BILINEAR`):
            Filter for images: nearest, bilinear or bicubic. Label maps always use nearest.
        antialias (`bool`, *optional*, defaults to `False`): Whether to antialias when shrinking. The original
            pipelines (OpenCV) do not.
        do_rescale (`bool`, *optional*, defaults to `True`): Whether to multiply by `rescale_factor`.
        rescale_factor (`float`, *optional*, defaults to `1 / 255`): Factor of the pixel values.
        do_normalize (`bool`, *optional*, defaults to `True`): Whether to subtract `image_mean` and divide by
            `image_std`.
        image_mean (`list[float]`, *optional*): Mean of each channel. Defaults to ImageNet's, or to the method's.
        image_std (`list[float]`, *optional*): Standard deviation of each channel. Defaults like `image_mean`.
        do_convert_rgb (`bool`, *optional*, defaults to `True`): Whether to convert images to RGB.
        do_reduce_labels (`bool`, *optional*, defaults to `False`):
            Whether label 0 means "unlabeled" and classes start at 1, as in ADE20K's files: 0 becomes `ignore_index`, k
            becomes k - 1, `ignore_index` stays.
        do_pad (`bool`, *optional*, defaults to `False`):
            Whether to pad at the bottom and right: images with 0 after normalizing, label maps with `ignore_index`.
        pad_size (`dict[str, int]`, *optional*): Size to pad to. Defaults to the largest size of the batch.
        ignore_index (`int`, *optional*, defaults to 255): Label of ignored pixels.
        num_labels (`int`, *optional*): Number of classes. If set, a label that is neither a class nor `ignore_index` is
            an error.
    """

    valid_kwargs = SegmentationImageProcessorKwargs
    model_input_names = ["pixel_values"]

    do_resize = True
    size = {"shortest_edge": 512, "longest_edge": 2048}
    default_to_square = False
    resample = PILImageResampling.BILINEAR
    antialias = False
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_convert_rgb = True
    do_reduce_labels = False
    do_pad = False
    pad_size = None
    ignore_index = 255
    num_labels = None

    def __init__(self, **kwargs: Unpack[SegmentationImageProcessorKwargs]) -> None:
        super().__init__(**kwargs)  # type: ignore[misc]

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[SegmentationImageProcessorKwargs],
    ) -> BatchFeature:
        """
        Prepare images, and optionally label maps, for a model.

        Args:
            images (`ImageInput`):
                One image or a list of images (PIL, numpy or torch), with values from 0 to 255 unless
                `do_rescale=False`. More than three channels need `do_convert_rgb=False`, `input_data_format`, and as
                many values in `image_mean` and `image_std`.
            segmentation_maps (`ImageInput`, *optional*):
                One label map for each image, of the same size, in a format of [`label_map_to_tensor`].
            kwargs:
                Arguments of the processor, for this call only, and `return_tensors` ("pt", "np" or `None` for lists).

        Returns:
            `BatchFeature`: `pixel_values (batch_size, num_channels, height, width)`, float32, and with
            `segmentation_maps`, `labels (batch_size, height, width)`, int64. Inputs are never changed.

        Raises:
            ValueError: if `images` is empty; if the number or size of the label maps differs from the images'; if a
                label is not a class; if the number of channels differs from the length of `image_mean`; if images of
                different sizes would be stacked.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: "list[tuple[int, int]] | torch.Tensor | None" = None,
        return_segmentation_scores: bool = False,
    ) -> "list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]":
        """
        Turn a model's outputs into label maps.

        Args:
            outputs: Output of the model, with `logits (batch_size, num_labels, height, width)`.
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor` of shape `(batch_size, 2)`, *optional*):
                Target `(height, width)` of each image, usually its original size. Defaults to the size of the logits.
            return_segmentation_scores (`bool`, *optional*, defaults to `False`):
                Whether to also return the resized logits, `num_labels * height * width` floats for each image. Label
                maps alone need far less memory and time.

        Returns:
            `list[torch.Tensor]` of shape `(height, width)`, int64; or a list of
            `SemanticSegmentationPostProcessorOutput` with `segmentation (height, width)` and
            `segmentation_scores (num_labels, height, width)`.

        Raises:
            ValueError: if the number of target sizes differs from the number of images.
        """
        logits = outputs.logits
        if target_sizes is None:
            target_sizes = [tuple(logits.shape[-2:])] * len(logits)
        sizes = as_sizes(target_sizes, len(logits))
        if return_segmentation_scores:
            scores = [
                F.interpolate(image_logits[None], size=size, mode="bilinear", align_corners=False)[0]
                for image_logits, size in zip(logits, sizes, strict=True)
            ]
            return [
                SemanticSegmentationPostProcessorOutput(
                    data={"segmentation": image_scores.argmax(dim=0), "segmentation_scores": image_scores}
                )
                for image_scores in scores
            ]
        if len(set(sizes)) == 1:
            return list(upsample_argmax(logits, sizes[0]))
        return [upsample_argmax(image_logits[None], size)[0] for image_logits, size in zip(logits, sizes, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """
        Serialize the processor. Code from the Hub is saved for both backends; transformers alone would save the backend
        in use. Such code has this module and the module of the class in one folder.
        """
        fields = super().to_dict()
        auto_map = fields.get("auto_map") or {}
        reference = auto_map.get("AutoImageProcessor")
        if isinstance(reference, str) and type(self).__module__.rpartition(".")[0] == __name__.rpartition(".")[0]:
            auto_map["AutoImageProcessor"] = both_backends(reference)
        return fields

    # The methods below override steps of transformers' `BaseImageProcessor`, in the order of their execution.

    def _validate_preprocess_kwargs(self, do_center_crop: bool | None = None, **kwargs: Any) -> None:  # type: ignore[override]
        super()._validate_preprocess_kwargs(**kwargs)
        if do_center_crop:
            raise ValueError(
                "`do_center_crop` is not supported, because it would not crop the labels: crop both beforehand."
            )

    def _preprocess_image_like_inputs(  # type: ignore[override]
        self,
        images: Any,
        segmentation_maps: Any = None,
        *,
        do_convert_rgb: bool | None,
        input_data_format: str | ChannelDimension | None,
        return_tensors: str | TensorType | None,
        device: "str | torch.device | None" = None,
        **kwargs: Any,
    ) -> BatchFeature:
        images = self._prepare_image_like_inputs(
            images, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, device=device
        )
        if kwargs["do_normalize"]:
            _check_channels(images, kwargs["image_mean"], kwargs["image_std"])
        in_sizes = [tuple(image.shape[-2:]) for image in images]
        if kwargs["do_resize"]:
            size, resample, antialias = kwargs["size"], kwargs["resample"], bool(kwargs["antialias"])
            images = [self.resize(image, size, resample=resample, antialias=antialias) for image in images]
        data = self._preprocess(images, return_tensors=None, **kwargs | {"do_resize": False}).data
        pixel_values = data["pixel_values"]
        targets = self._extra_inputs(images, **kwargs)
        if segmentation_maps is not None:
            targets |= self._training_targets(_prepare_labels(segmentation_maps, in_sizes, **kwargs), **kwargs)
        for name, (maps, padding_value) in targets.items():
            data[name] = []
            for target, padded in zip(maps, pixel_values, strict=True):
                # at the bottom and right
                padding = (0, padded.shape[-1] - target.shape[1], 0, padded.shape[-2] - target.shape[0])
                data[name].append(self._from_tensor(F.pad(target, padding, value=padding_value), device))
        if return_tensors is not None:
            _check_equal_shapes(pixel_values)
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list:
        if _is_gray_array(images):
            return [images]
        if isinstance(images, (list, tuple)) and images and all(_is_gray_array(image) for image in images):
            return list(images)  # transformers only knows arrays with a channel axis
        images = super()._prepare_images_structure(images, expected_ndims=expected_ndims)
        if len(images) == 0:
            raise ValueError("`images` is empty: pass at least one image.")
        return images

    def process_image(
        self,
        image: "PIL.Image.Image | np.ndarray | torch.Tensor",
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: "str | torch.device | None" = None,
        **kwargs: Any,
    ) -> "torch.Tensor | np.ndarray":
        """Convert one image to the backend's array type, channels first; see [`image_to_tensor`]."""
        return self._from_tensor(image_to_tensor(image, do_convert_rgb, input_data_format), device)

    def resize(
        self,
        image: "torch.Tensor | np.ndarray",
        size: SizeDict,
        resample: "PILImageResampling | int | None" = None,
        antialias: bool = False,
        **kwargs: Any,
    ) -> "torch.Tensor | np.ndarray":
        """Resize one image of shape `(num_channels, height, width)`; see [`resized_size`] and [`resize_image`]."""
        height, width = image.shape[-2:]
        resized = resize_image(torch.as_tensor(image), resized_size(height, width, size), resample, antialias)
        return self._from_tensor(resized)

    def _extra_inputs(self, images: list, **kwargs: Any) -> dict[str, tuple[list[torch.Tensor], int]]:
        """
        Return the inputs that a model needs in addition to `pixel_values` by name, as maps `(height, width)` of the
        resized images, and the padding value of each.
        """
        return {}

    def _training_targets(
        self, labels: list[torch.Tensor], *, ignore_index: int, **kwargs: Any
    ) -> dict[str, tuple[list[torch.Tensor], int]]:
        """
        Return the training targets by name, and the padding value of each. Methods that need more than label maps
        override this.

        Args:
            labels (`list[torch.Tensor]`, each of shape `(height, width)`, int64): Resized label maps.
        """
        return {"labels": (labels, ignore_index)}

    def _from_tensor(
        self, tensor: torch.Tensor, device: "str | torch.device | None" = None
    ) -> "torch.Tensor | np.ndarray":
        """Convert a tensor to the backend's array type."""
        raise NotImplementedError


class SegmentationImageProcessor(SegmentationImageProcessorBase, TorchvisionBackend):  # type: ignore[misc]
    """Image processor for semantic segmentation on transformers' torchvision backend (torch tensors, any device)."""

    def _from_tensor(self, tensor: torch.Tensor, device: "str | torch.device | None" = None) -> torch.Tensor:
        return tensor if device is None else tensor.to(device)


class SegmentationImageProcessorPil(SegmentationImageProcessorBase, PilBackend):  # type: ignore[misc]
    """[`SegmentationImageProcessor`] on transformers' PIL backend (numpy arrays): same values, without torchvision."""

    def _from_tensor(self, tensor: torch.Tensor, device: "str | torch.device | None" = None) -> np.ndarray:
        return tensor.cpu().numpy()


def _is_gray_array(image: Any) -> bool:
    return not isinstance(image, PIL.Image.Image) and is_valid_image(image) and image.ndim == 2


def _prepare_labels(
    segmentation_maps: Any,
    in_sizes: list[tuple[int, ...]],
    *,
    do_resize: bool | None,
    size: SizeDict,
    do_reduce_labels: bool | None,
    num_labels: int | None,
    ignore_index: int,
    **kwargs: Any,
) -> list[torch.Tensor]:
    """Convert label maps `(height, width)` of `in_sizes` to int64 tensors, resized like the images."""
    maps = [
        label_map_to_tensor(label_map, f"segmentation_maps[{index}]")
        for index, label_map in enumerate(_flatten_label_maps(segmentation_maps, len(in_sizes)))
    ]
    if len(maps) != len(in_sizes):
        raise ValueError(
            f"Got {len(maps)} segmentation maps for {len(in_sizes)} images: pass one map (height, width) of class ids "
            "for each image."
        )
    labels = []
    for index, (label_map, in_size) in enumerate(zip(maps, in_sizes, strict=True)):
        name = f"segmentation_maps[{index}]"
        if label_map.shape != in_size:
            raise ValueError(
                f"{name} has (height, width) {tuple(label_map.shape)} but images[{index}] has {in_size}: each pixel "
                "needs a label. Resize, crop or transpose both alike before calling the processor."
            )
        if do_reduce_labels:
            label_map = reduce_labels(label_map, ignore_index)
        if num_labels is not None:
            check_label_map(label_map, num_labels, ignore_index, f"{name}{' (reduced)' if do_reduce_labels else ''}")
        if do_resize:
            label_map = resize_label_map(label_map, resized_size(in_size[0], in_size[1], size))
        labels.append(label_map)
    return labels


def _flatten_label_maps(segmentation_maps: Any, num_images: int) -> list:
    """Convert one map, a list (of lists) of maps, or an array of maps to a list of maps."""
    if isinstance(segmentation_maps, (list, tuple)):
        if segmentation_maps and all(isinstance(maps, (list, tuple)) for maps in segmentation_maps):
            return [label_map for maps in segmentation_maps for label_map in maps]
        return list(segmentation_maps)
    shape: tuple[int, ...] = getattr(segmentation_maps, "shape", ())
    if len(shape) == 4 or (len(shape) == 3 and num_images > 1 and 1 not in (shape[0], shape[-1])):
        return list(segmentation_maps)
    return [segmentation_maps]


def _check_channels(images: list, *statistics: float | tuple[float, ...]) -> None:
    for name, values in zip(("image_mean", "image_std"), statistics, strict=True):
        if values is None or isinstance(values, (int, float)):
            continue
        for index, image in enumerate(images):
            if image.shape[0] != len(values):
                raise ValueError(
                    f"images[{index}] has {image.shape[0]} channels but `{name}` has {len(values)} values: set one "
                    "value for each channel in `image_mean` and `image_std`. For images that are not RGB, also set "
                    "`do_convert_rgb=False`, and `input_data_format` unless there are 1, 3 or 4 channels."
                )


def _check_equal_shapes(pixel_values: list) -> None:
    shapes = sorted({tuple(image.shape) for image in pixel_values})
    if len(shapes) > 1:
        raise ValueError(
            f"The images of this batch have different shapes (num_channels, height, width) and cannot be stacked: "
            f"{', '.join(map(str, shapes[:5]))}{', ...' if len(shapes) > 5 else ''}. Either pad them (`do_pad=True`, with "
            "`pad_size` for a fixed size) or resize them to one size (`size={'height': ..., 'width': ...}`)."
        )
