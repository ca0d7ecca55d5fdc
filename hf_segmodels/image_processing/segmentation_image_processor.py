# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
The image processors that all methods stand on, for both of transformers' backends.

A method's own processor only sets defaults:

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
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
    is_valid_image,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

from ..inference import upsample_argmax
from ..inference.window_grid import as_sizes
from .label_maps import check_label_map, label_map_to_tensor, reduce_labels
from .resizing import resize_image, resize_label_map, resized_size
from .rgb_images import to_rgb


class SegmentationImageProcessorKwargs(ImagesKwargs, total=False):
    """
    antialias (`bool`, *optional*, defaults to `self.antialias`):
        Whether shrinking averages over all pixels underneath. The original pipelines (OpenCV) do not.
    do_reduce_labels (`bool`, *optional*, defaults to `self.do_reduce_labels`):
        Whether label 0 means "unlabeled" and classes start at 1 (ADE20K): 0 becomes `ignore_index`, k becomes k - 1,
        `ignore_index` stays.
    ignore_index (`int`, *optional*, defaults to `self.ignore_index`):
        Label of pixels that do not count; also fills the padding of label maps.
    num_labels (`int`, *optional*, defaults to `self.num_labels`):
        Number of classes. When set, a label that is neither a class nor `ignore_index` raises an error.
    """

    antialias: bool | None
    do_reduce_labels: bool | None
    ignore_index: int | None
    num_labels: int | None


def image_to_tensor(
    image: "PIL.Image.Image | np.ndarray | torch.Tensor",
    do_convert_rgb: bool | None = None,
    input_data_format: str | ChannelDimension | None = None,
) -> torch.Tensor:
    """
    Reads one image into a new tensor of shape `(num_channels, height, width)`: uint8 stays, any other dtype becomes
    float32. The input is left alone.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            PIL image of any mode, or array of shape `(height, width)`, `(height, width, num_channels)` or
            `(num_channels, height, width)`.
        do_convert_rgb (`bool`, *optional*):
            Whether PIL images are converted as [`to_rgb`] does, and arrays likewise: gray ones are repeated to three
            channels, those with an alpha channel composed onto white, others left as they are.
        input_data_format (`str` or `ChannelDimension`, *optional*):
            Where the channels of an array are. If unset, the axis of length 1, 3 or 4.

    Raises:
        ValueError: if the image is empty, or its channel axis cannot be told.
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
                f"Cannot tell which axis of an image of shape {tuple(image.shape)} holds the channels: pass "
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


def both_backends(reference: str) -> dict[str, str]:
    """
    What `auto_map` says of an image processor, from the `MODULE.CLASS` of either backend's: their names differ as those of
    [`SegmenterImageProcessor`] and [`SegmenterImageProcessorPil`] do.
    """
    module, _, name = reference.partition(".")
    method, name = module.removeprefix("image_processing_").removeprefix("pil_"), name.removesuffix("Pil")
    return {
        "torchvision": f"image_processing_{method}.{name}",
        "pil": f"image_processing_pil_{method}.{name}Pil",
    }


class _SegmentationImageProcessorBase(BaseImageProcessor):
    """
    What both backends do alike: everything but rescaling, normalizing and padding pixels, which the backend of
    transformers after it in the class order does.
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
        Prepares images, and label maps if given, for a model.

        Args:
            images (`ImageInput`):
                One image or a list of them: PIL, numpy or torch; values 0 to 255 unless `do_rescale=False`. More than
                three channels need `do_convert_rgb=False`, `input_data_format`, and as many values in `image_mean` and
                `image_std`.
            segmentation_maps (`ImageInput`, *optional*):
                One label map for each image, of the same size. See [`label_map_to_tensor`] for what is accepted.
            kwargs:
                Any field of the processor, for this call only, and `return_tensors` ("pt", "np" or `None` for lists).

        Returns:
            `BatchFeature`: `pixel_values (batch_size, num_channels, height, width)` float32, and
            `labels (batch_size, height, width)` int64 if label maps were given. Inputs are never changed.

        Raises:
            ValueError: if there is no image; if maps do not fit the images in number or size, or hold labels that are
                no classes; if the number of channels differs from `image_mean`'s; if images of different sizes are to
                be stacked.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: "list[tuple[int, int]] | torch.Tensor | None" = None,
        return_segmentation_scores: bool = False,
    ) -> "list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]":
        """
        Turns a model's outputs into label maps.

        Args:
            outputs: Output of the model, with `logits (batch_size, num_labels, height, width)`.
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor` of shape `(batch_size, 2)`, *optional*):
                Height and width wanted for each image, usually those before preprocessing. If unset, the logits' size.
            return_segmentation_scores (`bool`, *optional*, defaults to `False`):
                Whether to return the resized logits as well. They take `num_labels * height * width` floats an image;
                label maps alone need far less memory and time.

        Returns:
            `list[torch.Tensor]` of shape `(height, width)`, int64; or a list of
            `SemanticSegmentationPostProcessorOutput` with `segmentation (height, width)` and
            `segmentation_scores (num_labels, height, width)`.

        Raises:
            ValueError: if there is not one target size for each image.
        """
        logits = outputs.logits
        if target_sizes is None:
            sizes = [tuple(logits.shape[-2:])] * len(logits)
        else:
            sizes = as_sizes(target_sizes)
            if len(sizes) != len(logits):
                raise ValueError(
                    f"Got `target_sizes={sizes}` for a batch of {len(logits)} images: give one (height, width) for each."
                )
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
        if target_sizes is None:
            return list(logits.argmax(dim=1))
        if len(set(sizes)) == 1:
            return list(upsample_argmax(logits, sizes[0]))
        return [upsample_argmax(image_logits[None], size)[0] for image_logits, size in zip(logits, sizes, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """
        As in the base class. Code from the Hub (that is where this module and the class's lie in one folder) is saved for both
        backends, which transformers alone would do for the one in use.
        """
        fields = super().to_dict()
        auto_map = fields.get("auto_map") or {}
        reference = auto_map.get("AutoImageProcessor")
        if isinstance(reference, str) and type(self).__module__.rpartition(".")[0] == __name__.rpartition(".")[0]:
            auto_map["AutoImageProcessor"] = both_backends(reference)
        return fields

    # What follows overrides steps of transformers' `BaseImageProcessor`, in the order in which it takes them.

    def _validate_preprocess_kwargs(self, do_center_crop: bool | None = None, **kwargs: Any) -> None:  # type: ignore[override]
        super()._validate_preprocess_kwargs(**kwargs)
        if do_center_crop:
            raise ValueError(
                "`do_center_crop` is not supported, since labels would no longer fit: crop both beforehand."
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
        data = self._preprocess(images, return_tensors=None, **kwargs).data
        pixel_values = data["pixel_values"]
        if segmentation_maps is not None:
            in_sizes = [tuple(image.shape[-2:]) for image in images]
            out_sizes = [tuple(image.shape[-2:]) for image in pixel_values]
            labels = _prepare_labels(segmentation_maps, in_sizes, **kwargs)
            for name, (maps, padding_value) in self._training_targets(labels, **kwargs).items():
                padded = (_pad_to(target, size, padding_value) for target, size in zip(maps, out_sizes, strict=True))
                data[name] = [self._from_tensor(target, device) for target in padded]
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
            raise ValueError("`images` is empty: give at least one image.")
        return images

    def process_image(
        self,
        image: "PIL.Image.Image | np.ndarray | torch.Tensor",
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: "str | torch.device | None" = None,
        **kwargs: Any,
    ) -> "torch.Tensor | np.ndarray":
        """Reads one image into the backend's array type, channels first; see [`image_to_tensor`]."""
        return self._from_tensor(image_to_tensor(image, do_convert_rgb, input_data_format), device)

    def resize(
        self,
        image: "torch.Tensor | np.ndarray",
        size: SizeDict,
        resample: "PILImageResampling | int | None" = None,
        antialias: bool = False,
        **kwargs: Any,
    ) -> "torch.Tensor | np.ndarray":
        """Resizes one image of shape `(num_channels, height, width)`; see [`resized_size`] and [`resize_image`]."""
        height, width = image.shape[-2:]
        resized = resize_image(torch.as_tensor(image), resized_size(height, width, size), resample, antialias)
        return self._from_tensor(resized)

    def _preprocess(
        self,
        images: list,
        do_resize: bool | None,
        size: SizeDict,
        resample: "PILImageResampling | int | None",
        antialias: bool | None,
        **kwargs: Any,
    ) -> BatchFeature:
        if do_resize:
            images = [self.resize(image, size, resample=resample, antialias=bool(antialias)) for image in images]
        return super()._preprocess(images, do_resize=False, size=size, resample=resample, **kwargs)

    def _training_targets(
        self, labels: list[torch.Tensor], *, ignore_index: int, **kwargs: Any
    ) -> dict[str, tuple[list[torch.Tensor], int]]:
        """
        What a model trains on, by its names for it, and what each is padded with. A method that needs more than label maps
        overrides this.

        Args:
            labels (`list[torch.Tensor]`, each of shape `(height, width)`, int64): Resized label maps.
        """
        return {"labels": (labels, ignore_index)}

    def _from_tensor(
        self, tensor: torch.Tensor, device: "str | torch.device | None" = None
    ) -> "torch.Tensor | np.ndarray":
        """Gives a tensor in the backend's array type."""
        raise NotImplementedError


class SegmentationImageProcessor(_SegmentationImageProcessorBase, TorchvisionBackend):  # type: ignore[misc]
    """Image processor for semantic segmentation on transformers' torchvision backend (torch tensors, any device)."""

    def _from_tensor(self, tensor: torch.Tensor, device: "str | torch.device | None" = None) -> torch.Tensor:
        return tensor if device is None else tensor.to(device)


class SegmentationImageProcessorPil(_SegmentationImageProcessorBase, PilBackend):  # type: ignore[misc]
    """The same on transformers' PIL backend (numpy arrays): needs no torchvision and gives the same values."""

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
    """
    Label maps `(height, width)` of `in_sizes` -> int64 tensors, through the same resizing that the images went through.
    """
    maps = [
        label_map_to_tensor(label_map, f"segmentation_maps[{index}]")
        for index, label_map in enumerate(_flatten_label_maps(segmentation_maps, len(in_sizes)))
    ]
    if len(maps) != len(in_sizes):
        raise ValueError(
            f"Got {len(maps)} segmentation maps for {len(in_sizes)} images: give one map (height, width) of class ids for "
            "each image."
        )
    labels = []
    for index, (label_map, in_size) in enumerate(zip(maps, in_sizes, strict=True)):
        name = f"segmentation_maps[{index}]"
        if label_map.shape != in_size:
            raise ValueError(
                f"{name} has (height, width) {tuple(label_map.shape)} but images[{index}] has {in_size}: each pixel "
                "needs its label, so resize, crop or transpose them alike before calling the processor."
            )
        if do_reduce_labels:
            label_map = reduce_labels(label_map, ignore_index)
        if num_labels is not None:
            check_label_map(label_map, num_labels, ignore_index, f"{name}{' (reduced)' if do_reduce_labels else ''}")
        if do_resize:
            label_map = resize_label_map(label_map, resized_size(in_size[0], in_size[1], size))
        labels.append(label_map)
    return labels


def _pad_to(target: torch.Tensor, size: tuple[int, ...], value: int) -> torch.Tensor:
    """Pads `(height, width)` at the bottom and right."""
    height, width = target.shape
    return F.pad(target, (0, size[1] - width, 0, size[0] - height), value=value)


def _flatten_label_maps(segmentation_maps: Any, num_images: int) -> list:
    """One map, a list (of lists) of maps, or an array of maps -> list of maps."""
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
                    f"images[{index}] has {image.shape[0]} channels but `{name}` has {len(values)} values: give one "
                    "value for each channel in `image_mean` and `image_std`. For images that are not RGB also set "
                    "`do_convert_rgb=False`, and `input_data_format` if there are other than 1, 3 or 4 channels."
                )


def _check_equal_shapes(pixel_values: list) -> None:
    shapes = sorted({tuple(image.shape) for image in pixel_values})
    if len(shapes) > 1:
        raise ValueError(
            f"The images of this batch have different shapes (num_channels, height, width) and cannot be stacked: "
            f"{', '.join(map(str, shapes[:5]))}{', ...' if len(shapes) > 5 else ''}. Either pad them (`do_pad=True`, with "
            "`pad_size` for a fixed size) or resize them to one size (`size={'height': ..., 'width': ...}`)."
        )
