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
"""What the four models share: the backbone behind `backbone_config` and their base class."""

import re
from typing import Any

import torch
from torch import nn
from transformers import AutoBackbone
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import auto_docstring

from .image_processing.label_maps import check_labels
from .inference import DensePredictionMixin
from .plain_vit.configuration_plain_vit import is_plain_vit
from .plain_vit.modeling_plain_vit import PlainViTBackbone, pad_to_multiple
from .resnet_v1c.configuration_resnet_v1c import ResNetV1cConfig
from .resnet_v1c.modeling_resnet_v1c import ResNetV1cBackbone


def build_backbone(backbone_config: PreTrainedConfig) -> PreTrainedModel:
    """The encoder of `backbone_config`, with random weights: a [`PlainViTBackbone`] or any transformers backbone."""
    if is_plain_vit(backbone_config):
        return PlainViTBackbone(backbone_config)
    if backbone_config.model_type == ResNetV1cConfig.model_type:
        return ResNetV1cBackbone(backbone_config)
    if not getattr(backbone_config, "reshape_hidden_states", True):
        raise ValueError("The decoder needs feature maps with rows and columns: set `reshape_hidden_states=True`.")
    return AutoBackbone.from_config(backbone_config)


def get_size_divisor(backbone_config: PreTrainedConfig) -> int:
    """
    Number of pixels that height and width must be a multiple of, so that each feature map covers the image exactly:
    the patch size of a plain ViT (twice that where a layer halves its grid), the total stride of a hierarchical encoder
    (one that has `depths`), which a dilated one states itself.
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
class SegmentationPreTrainedModel(DensePredictionMixin, PreTrainedModel):
    """
    Base class of the four models: an encoder from `config.backbone_config` in `self.backbone`, its freezing, and the
    capabilities that transformers asks for. Hidden states and attentions are captured by the encoder that owns the
    layers, never here: capturing twice would take them from the wrong layers.
    """

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # losses are means over the pixels of a step, so the Trainer has to divide by the accumulation steps itself
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    # (regular expression searched in a parameter's name, learning-rate factor, weight-decay factor): first match wins
    parameter_rules: tuple[tuple[str, float, float], ...] = ()

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.backbone = build_backbone(config.backbone_config)
        self.size_divisor = get_size_divisor(config.backbone_config)

    def post_init(self):
        super().post_init()
        # loading replaces the parameters, but ends with `eval()`, which freezes them again
        self.train(self.training)

    def pad_to_whole_patches(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """
        Pads `(batch_size, num_channels, height, width)` with zeros at the bottom and right to whole patches (whole
        cells of the coarsest feature map).

        Returns:
            The padded images, unpadded where the backbone pads in the same way itself, and the padded
            `(height, width)`.

        Raises:
            ValueError: if there is no image, or one without pixels.
        """
        if not torch.compiler.is_compiling() and pixel_values.numel() == 0:
            raise ValueError(
                f"`pixel_values` {tuple(pixel_values.shape)} holds no pixel: skip empty batches, and check the loading "
                "of images."
            )
        height, width = ((size + self.size_divisor - 1) // self.size_divisor for size in pixel_values.shape[-2:])
        padded_size = (height * self.size_divisor, width * self.size_divisor)
        backbone_config = self.config.backbone_config
        pads_itself = is_plain_vit(backbone_config) and backbone_config.stem_type == "patch"
        if not pads_itself or backbone_config.patch_size != self.size_divisor:
            pixel_values = pad_to_multiple(pixel_values, self.size_divisor)
        return pixel_values, padded_size

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def train(self, mode: bool = True):
        super().train(mode)
        if self.config.freeze_backbone:  # CODEPATH: heads on a frozen encoder; no released checkpoint
            self.backbone.requires_grad_(False).eval()
        return self

    def save_pretrained(self, *args: Any, save_original_format: bool = False, **kwargs: Any) -> None:
        """
        See `PreTrainedModel.save_pretrained`. Files hold the model's own names of weights: with an encoder's names of old
        (`save_original_format=True`), resuming with transformers' Trainer would leave its weights out without a word.
        """
        super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """
        Groups the trainable parameters for a torch optimizer as the method's recipe does (`parameter_rules`): some learn
        faster, some do not decay.

        Args:
            learning_rate (`float`): Learning rate of most parameters.
            weight_decay (`float`): Weight decay of most parameters.

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

    def _check_labels(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> None:
        if labels.shape[-2:] != pixel_values.shape[-2:] or labels.shape[0] != pixel_values.shape[0]:
            raise ValueError(
                f"`labels` {tuple(labels.shape)} must have the batch size, height and width of `pixel_values` "
                f"{tuple(pixel_values.shape)}: give image and label map to the image processor together."
            )
        # reading values would break a compiled graph and stall a GPU; there the processor and the collator check
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            check_labels(labels, self.config.num_labels, self.config.semantic_loss_ignore_index)


__all__ = ["SegmentationPreTrainedModel", "build_backbone", "get_size_divisor"]
