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
"""Configuration of RegProxy."""

import copy
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.utils import auto_docstring

from ..configuration_utils import SegmentationConfig
from ..plain_vit.configuration_plain_vit import PlainViTConfig


@auto_docstring(
    custom_intro="""
    Configuration of [`RegProxyForSemanticSegmentation`]. The defaults give RegProxy-B/16 for ADE20K as the released code
    builds it.
    """
)
@strict
class RegProxyConfig(SegmentationConfig):
    r"""
    backbone_config (`PreTrainedConfig` or `dict`, *optional*):
        Configuration of the encoder: a [`PlainViTConfig`] (the paper's; the distilled DeiT-B/16 with stochastic depth
        0.1 by default), or that of any transformers backbone whose layers keep the size of their input (DINOv2, DINOv3,
        BEiT, ...). Which of its layers are tapped follows from the fields below: `out_features` and `out_indices` of a
        copy are set accordingly.
    token_head_depth (`int`, *optional*, defaults to 5):
        Number M of encoder layers before regions are predicted (section 4.2); 0 predicts them from the embeddings, as
        the hybrids do. The released models have 5 (10 of 24 in L/16) on ADE20K and 3 (6) on Cityscapes. With all layers
        (Table 7) regions and classes come from the same features, behind the final norm.
    region_resolution (`int` or pair, *optional*, defaults to `(4, 4)`):
        `(h, w)`: predictions for each token, down and across; the logits' stride is the patch size divided by them.
    affinity_conv (`"depthwise"`, `"plain"` or `"none"`, *optional*, defaults to `"depthwise"`):
        What comes before the affinity head's 1x1 predictor (Table 9): a depth-wise 3x3 convolution and a 1x1 one (the
        released code), a full 3x3 convolution, or nothing. Batch norm and ReLU follow each.
    mask_border (`bool`, *optional*, defaults to `True`):
        Whether pixels at the border share themselves out among the tokens that exist (the released code), or lose the
        share of neighbors outside the image.
    classifier_layers (`list[int]`, *optional*):
        Layers, from 1, whose outputs are concatenated and classified; the last one when not given. Table 12 has L/2,
        3L/4 and L. Which of them pass the final norm is the encoder's `final_norm`.
    batch_norm_eps (`float`, *optional*, defaults to 1e-05):
        Epsilon of the affinity head's batch norms.
    odd_size_mode (`"crop"` or `"resize"`, *optional*, defaults to `"crop"`):
        What happens to logits of images that were padded to whole patches: the padding is cut off, or they are resized
        into the unpadded size, as the released code does. Only for checkpoints that must behave as that code.
    loss_reduction (`"pixel_mean"` or `"valid_mean"`, *optional*, defaults to `"pixel_mean"`):
        Mean of the cross-entropy over all pixels, ignored ones counting as 0 (the released code), or over those that
        are not ignored.
    homogeneity_loss_weight (`float`, *optional*, defaults to 0.0):
        Weight of the regularization that rewards regions of a single class (equation 11); see [`homogeneity_loss`].
    freeze_backbone (`bool`, *optional*, defaults to `False`):
        Whether the encoder gets no gradients and stays in eval mode while training.
    semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
        Label of pixels that do not count in the loss.
    window_size (`int` or pair, *optional*):
        Sliding window `(height, width)` for `predict` and for `forward` in eval mode; none when not given. The
        released models use their training crop.
    window_stride (`int` or pair, *optional*):
        Stride of the window; the window size when not given.
    small_image_mode (`"upscale"`, `"pad"` or `"none"`, *optional*, defaults to `"pad"`):
        What happens to images smaller than the window: scaled up until the short side fills it, padded with zeros at
        the bottom and right (the released code), or nothing.
    initializer_range (`float`, *optional*, defaults to 0.02):
        Standard deviation of the truncated normal that initializes linear layers.

    Example:

    ```python
    >>> from hf_segmodels import PlainViTConfig, RegProxyConfig, RegProxyForSemanticSegmentation

    >>> # RegProxy-Ti/16 with labels at half the stride
    >>> encoder = PlainViTConfig(hidden_size=192, num_attention_heads=3, drop_path_rate=0.1)
    >>> config = RegProxyConfig(backbone_config=encoder, region_resolution=8, num_labels=19)
    >>> model = RegProxyForSemanticSegmentation(config)
    >>> model.backbone.out_features
    ['stage5', 'stage12']
    ```
    """

    model_type = "regproxy"

    token_head_depth: int = 5
    region_resolution: int | list[int] | tuple[int, int] = (4, 4)
    affinity_conv: Literal["depthwise", "plain", "none"] = "depthwise"
    mask_border: bool = True
    classifier_layers: list[int] | tuple[int, ...] | None = None
    batch_norm_eps: float | int = 1e-5
    odd_size_mode: Literal["crop", "resize"] = "crop"
    loss_reduction: Literal["pixel_mean", "valid_mean"] = "pixel_mean"
    homogeneity_loss_weight: float | int = 0.0
    small_image_mode: Literal["upscale", "pad", "none"] = "pad"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # the encoder may be another model's as well
        self.backbone_config = copy.deepcopy(self.backbone_config)
        self.set_backbone_out_indices()

    @staticmethod
    def _default_backbone_config() -> PlainViTConfig:
        return PlainViTConfig(use_distillation_token=True, drop_path_rate=0.1)

    @property
    def cell_size(self) -> tuple[int, int]:
        """`region_resolution` as `(h, w)`."""
        size = self.region_resolution
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def num_encoder_layers(self) -> int:
        """Layers (stages, in a hierarchical encoder) that can be tapped; the embeddings are number 0."""
        backbone_config: Any = self.backbone_config
        return len(backbone_config.stage_names) - 1

    @property
    def classifier_layer_indices(self) -> tuple[int, ...]:
        """`classifier_layers`, or the encoder's last one."""
        return (self.num_encoder_layers,) if self.classifier_layers is None else tuple(self.classifier_layers)

    @property
    def feature_layers(self) -> list[int]:
        """The layers that regions and classes are predicted from, each one once, in rising order."""
        return sorted({self.token_head_depth, *self.classifier_layer_indices})

    def set_backbone_out_indices(self) -> None:
        """
        Makes the encoder give the feature maps that regions and classes are predicted from.

        Raises:
            ValueError: for layers that it does not have.
        """
        num_layers = self.num_encoder_layers
        for name, layers, lowest in (
            ("token_head_depth", (self.token_head_depth,), 0),
            ("classifier_layers", self.classifier_layer_indices, 1),
        ):
            if not layers or len(set(layers)) < len(layers) or not all(lowest <= n <= num_layers for n in layers):
                raise ValueError(
                    f"`{name}` ({getattr(self, name)}) must be from {lowest} to {num_layers}, the number of layers (stages) "
                    "of the encoder, each one once."
                )
        backbone_config: Any = self.backbone_config
        backbone_config.set_output_features_output_indices(out_features=None, out_indices=self.feature_layers)

    def validate_architecture(self):
        """Part of the `@strict` validation: checks fields against each other."""
        size = self.region_resolution
        if not isinstance(size, int) and len(size) != 2:
            raise ValueError(f"`region_resolution` must be an int or (h, w), got {size}.")
        if min(self.cell_size) < 1:
            raise ValueError(f"`region_resolution` must be at least 1, got {size}.")
        self._check_at_least_one()


__all__ = ["RegProxyConfig"]
