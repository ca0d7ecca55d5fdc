# Copyright the hf_segmodels authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Base class of the segmentation models: an encoder from `backbone_config`, and the steps of `forward` that all share."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoBackbone
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring

from .image_processing.label_maps import check_labels
from .plain_vit.configuration_plain_vit import is_plain_vit
from .plain_vit.embeddings import pad_to_multiple
from .plain_vit.modeling_plain_vit import PlainViTBackbone
from .resnet_v1c.configuration_resnet_v1c import ResNetV1cConfig
from .resnet_v1c.modeling_resnet_v1c import ResNetV1cBackbone
from .utils.export import crop, is_exporting


class EncodedImage(NamedTuple):
    """
    Output of [`SegmentationPreTrainedModel.encode`].

    Args:
        feature_maps (`tuple[torch.Tensor, ...]`, each of shape `(batch_size, num_channels, h, w)`): Feature maps of the
            encoder, one for each of its `out_features`.
        padded_size (`tuple[int, int]`): `(height, width)` in pixels of the area that a map of the decoder extends over.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Padded input of the encoder.
        hidden_states (`tuple[torch.Tensor, ...]`, *optional*): Hidden states of the encoder, if requested.
        attentions (`tuple[torch.Tensor, ...]`, *optional*): Attention weights of the encoder, if requested.
    """

    feature_maps: tuple[torch.Tensor, ...]
    padded_size: tuple[int, int]
    pixel_values: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None
    attentions: tuple[torch.Tensor, ...] | None


def build_backbone(backbone_config: PreTrainedConfig) -> PreTrainedModel:
    """
    Build the encoder of `backbone_config` with random weights.

    Raises:
        ValueError: if the encoder returns tokens instead of feature maps (`reshape_hidden_states=False`).
    """
    if is_plain_vit(backbone_config):
        return PlainViTBackbone(backbone_config)
    if backbone_config.model_type == ResNetV1cConfig.model_type:
        return ResNetV1cBackbone(backbone_config)
    if not getattr(backbone_config, "reshape_hidden_states", True):
        raise ValueError(
            "`backbone_config` has `reshape_hidden_states=False`, but decoders need feature maps with rows and columns: set "
            "`reshape_hidden_states=True`."
        )
    return AutoBackbone.from_config(backbone_config)


def get_size_divisor(backbone_config: PreTrainedConfig) -> int:
    """
    Return the number of pixels that height and width must be a multiple of, so that each feature map extends over exactly
    the image: the largest stride of the feature maps of a plain ViT, the `output_stride` of a dilated encoder, the total
    stride of a hierarchical encoder (an encoder with `depths`), and the patch size of other encoders.
    """
    if is_plain_vit(backbone_config):
        return max(backbone_config.feature_strides)
    output_stride = getattr(backbone_config, "output_stride", None)
    if output_stride is not None:
        return output_stride
    patch_size = getattr(backbone_config, "patch_size", 4)
    patch_size = patch_size if isinstance(patch_size, int) else max(patch_size)
    depths = getattr(backbone_config, "depths", None)
    return patch_size if depths is None else patch_size * 2 ** (len(depths) - 1)


# trf-ignore: TRF013
@auto_docstring
class SegmentationPreTrainedModel(PreTrainedModel):
    """
    Base class of the segmentation models: the encoder of `config.backbone_config` in `self.backbone`, its freezing, and the
    shared steps of `forward`. Each model adds `decode`, from an [`EncodedImage`] to the output of the model, and
    `compute_loss`, from that output to the named terms of the loss.

    Hidden states and attentions are captured by the encoder alone, which owns the layers: capturing them here as well would
    return those of the wrong layers.
    """

    config: Any  # a `SegmentationConfig`
    predict: Callable[..., list[torch.Tensor]]
    compute_loss: Callable[..., dict[str, torch.Tensor]]

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # losses are means over the pixels of a batch, so the Trainer must divide by the number of accumulation steps itself
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    # (regular expression searched in the name of a parameter, learning-rate factor, weight-decay factor): first match wins
    parameter_rules: tuple[tuple[str, float, float], ...] = ()

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.backbone = build_backbone(config.backbone_config)
        self.size_divisor = get_size_divisor(config.backbone_config)

    def post_init(self):
        super().post_init()
        # loading replaces the parameters, but ends with `eval()`, which freezes them again
        self.train(self.training)

    def encode(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> EncodedImage:
        """
        Pad images to whole patches and run the encoder.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalized images.
            kwargs: `output_hidden_states` and `output_attentions` (default to the fields of the configuration), and other
                keyword arguments of the encoder.

        Raises:
            ValueError: if there are no pixels, or the number of channels is not `num_channels` of the encoder.
        """
        pixel_values, padded_size = self.pad_to_whole_patches(pixel_values)
        outputs = self.backbone.forward_with_filtered_kwargs(pixel_values, **self._with_output_flags(kwargs))
        return EncodedImage(outputs.feature_maps, padded_size, pixel_values, outputs.hidden_states, outputs.attentions)

    def _with_output_flags(self, kwargs: Any) -> dict[str, Any]:
        """Complete the keyword arguments of `forward` with the output flags of the configuration."""
        flags = ("output_attentions", "output_hidden_states")
        return {name: getattr(self.config, name) for name in flags} | kwargs

    def pad_to_whole_patches(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """
        Pad images `(batch_size, num_channels, height, width)` with zeros at the bottom and right to whole patches, or to
        whole cells of the coarsest feature map.

        Returns:
            The padded images, and the padded `(height, width)`. Images stay unpadded if the encoder itself pads in this way.

        Raises:
            ValueError: if there are no pixels.
        """
        self._check_not_empty(pixel_values)
        height, width = ((size + self.size_divisor - 1) // self.size_divisor for size in pixel_values.shape[-2:])
        padded_size = (height * self.size_divisor, width * self.size_divisor)
        backbone_config = self.config.backbone_config
        pads_itself = is_plain_vit(backbone_config) and backbone_config.stem_type == "patch"
        if not pads_itself or backbone_config.patch_size != self.size_divisor:
            pixel_values = pad_to_multiple(pixel_values, self.size_divisor)
        return pixel_values, padded_size

    def crop_padding(self, logits: torch.Tensor, padded_size: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
        """
        Resize logits `(batch_size, num_labels, h, w)` of padded images to `padded_size` and crop them to `size`, both
        `(height, width)` in pixels. Logits of images without padding are returned unchanged. So are all logits during export:
        an exported graph cannot depend on whether a size needed padding.
        """
        if is_exporting() or padded_size == size:
            return logits
        logits = nn.functional.interpolate(logits, size=padded_size, mode="bilinear", align_corners=False)
        return crop(logits, size)

    def add_loss(self, outputs: Any, *targets: Any) -> Any:
        """Return the output of `decode` with the terms of `compute_loss` for these targets in `loss_dict`, and their sum."""
        loss_dict = self.compute_loss(outputs, *targets)
        return replace(outputs, loss=torch.stack(list(loss_dict.values())).sum(), loss_dict=loss_dict)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def train(self, mode: bool = True):
        super().train(mode)
        if self.config.freeze_backbone:  # CODEPATH: heads on a frozen encoder; no released checkpoint
            self.backbone.requires_grad_(False).eval()
        return self

    def save_pretrained(self, *args: Any, save_original_format: bool = False, **kwargs: Any) -> None:
        """
        See `PreTrainedModel.save_pretrained`. Files hold the names of weights that the model has. With the legacy names of
        an encoder (`save_original_format=True`), resuming with the Trainer of transformers would silently skip its weights.
        """
        super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)

    def get_optimizer_param_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """
        Group the trainable parameters for a torch optimizer by the `parameter_rules` of the method: some parameters have
        another learning rate, some have no weight decay.

        Args:
            learning_rate (`float`): Learning rate of parameters without a rule.
            weight_decay (`float`): Weight decay of parameters without a rule.

        Returns:
            Groups with `params`, `lr` and `weight_decay`.
        """
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                factors = next((rule[1:] for rule in self.parameter_rules if re.search(rule[0], name)), (1.0, 1.0))
                groups.setdefault(factors, []).append(parameter)
        return [
            {"params": parameters, "lr": learning_rate * lr_factor, "weight_decay": weight_decay * decay_factor}
            for (lr_factor, decay_factor), parameters in groups.items()
        ]

    @staticmethod
    def _check_not_empty(pixel_values: torch.Tensor) -> None:
        if not torch.compiler.is_compiling() and pixel_values.numel() == 0:
            raise ValueError(
                f"`pixel_values` {tuple(pixel_values.shape)} holds no pixel: skip empty batches, and check the loading "
                "of images."
            )

    def _check_labels(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> None:
        if labels.shape[-2:] != pixel_values.shape[-2:] or labels.shape[0] != pixel_values.shape[0]:
            raise ValueError(
                f"`labels` {tuple(labels.shape)} must have the batch size, height and width of `pixel_values` "
                f"{tuple(pixel_values.shape)}: give image and label map to the image processor together."
            )
        # reading values would break a compiled graph and stall a GPU; image processor and collator check the labels there
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            check_labels(labels, self.config.num_labels, self.config.semantic_loss_ignore_index)


__all__ = ["EncodedImage", "SegmentationPreTrainedModel", "build_backbone", "get_size_divisor"]
