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

from ..configuration_utils import SegmentationConfig, as_pair
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
        Configuration of the encoder: a [`PlainViTConfig`] or the configuration of any transformers backbone whose layers keep
        the size of their input (DINOv2, DINOv3, BEiT, ...). Defaults to the distilled DeiT-B/16 with stochastic depth 0.1. The
        configuration is copied, and its `out_features` and `out_indices` are set to the layers that the fields below select.
    token_head_depth (`int`, *optional*, defaults to 5):
        Number M of encoder layers before regions are predicted (section 4.2); 0 predicts them from the embeddings, as the
        hybrids do. The released models have 5 (10 of 24 in L/16) on ADE20K and 3 (6) on Cityscapes. With all layers
        (Table 7) regions and classes come from the same features, after the final norm.
    region_resolution (`int` or pair, *optional*, defaults to `(4, 4)`):
        Number of predictions `(h, w)` for each token, down and across. The stride of the logits is the patch size divided by
        `region_resolution`.
    affinity_conv (`"depthwise"`, `"plain"` or `"none"`, *optional*, defaults to `"depthwise"`):
        Layers before the 1x1 predictor of the affinity head (Table 9): a depth-wise 3x3 convolution and a 1x1 convolution
        (the released code), a full 3x3 convolution, or none. Each convolution is followed by batch norm and ReLU.
    mask_border (`bool`, *optional*, defaults to `True`):
        Whether pixels at the border distribute their affinity over the tokens inside the image (the released code). With
        `False` they lose the affinity to neighbors outside the image.
    classifier_layers (`list[int]`, *optional*):
        Layers, counted from 1, whose outputs are concatenated and classified. Table 12 has L/2, 3L/4 and L. Defaults to the
        last layer. The `final_norm` of the encoder selects the outputs that pass the final norm.
    batch_norm_eps (`float`, *optional*, defaults to 1e-05):
        Epsilon of the batch norms of the affinity head.
    odd_size_mode (`"crop"` or `"resize"`, *optional*, defaults to `"crop"`):
        How logits of images that were padded to whole patches become logits of the image: `"crop"` cuts the padding off,
        `"resize"` resizes them to the unpadded size, as the released code does. `"resize"` is meant for checkpoints that
        must behave as the released code.
    loss_reduction (`"pixel_mean"` or `"valid_mean"`, *optional*, defaults to `"pixel_mean"`):
        Mean of the cross-entropy over all pixels, where ignored pixels count as 0 (the released code), or over the pixels
        that are not ignored.
    homogeneity_loss_weight (`float`, *optional*, defaults to 0.0):
        Weight of the regularization that rewards regions of a single class (equation 11); see [`homogeneity_loss`].
    small_image_mode (`"upscale"`, `"pad"` or `"none"`, *optional*, defaults to `"pad"`):
        How images smaller than the window are enlarged; see [`SegmentationConfig`]. The released code pads.

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
        # the caller may use the same configuration for another model
        self.backbone_config = copy.deepcopy(self.backbone_config)
        self.set_backbone_out_indices()

    @staticmethod
    def _default_backbone_config() -> PlainViTConfig:
        return PlainViTConfig(use_distillation_token=True, drop_path_rate=0.1)

    @property
    def cell_size(self) -> tuple[int, int]:
        """`region_resolution` as `(h, w)`."""
        return as_pair(self.region_resolution, "region_resolution")

    @property
    def num_encoder_layers(self) -> int:
        """Number of layers (stages, in a hierarchical encoder); the embeddings have index 0."""
        backbone_config: Any = self.backbone_config
        return len(backbone_config.stage_names) - 1

    @property
    def classifier_layer_indices(self) -> tuple[int, ...]:
        """`classifier_layers`, or the last layer of the encoder."""
        return (self.num_encoder_layers,) if self.classifier_layers is None else tuple(self.classifier_layers)

    @property
    def feature_layers(self) -> list[int]:
        """Layers that regions and classes are predicted from, each once, in ascending order."""
        return sorted({self.token_head_depth, *self.classifier_layer_indices})

    def set_backbone_out_indices(self) -> None:
        """
        Set the `out_indices` of the encoder to `feature_layers`.

        Raises:
            ValueError: if the encoder does not have one of the layers, or `classifier_layers` repeats a layer.
        """
        num_layers = self.num_encoder_layers
        for name, layers, lowest in (
            ("token_head_depth", (self.token_head_depth,), 0),
            ("classifier_layers", self.classifier_layer_indices, 1),
        ):
            if not layers or len(set(layers)) < len(layers) or not all(lowest <= n <= num_layers for n in layers):
                raise ValueError(
                    f"`{name}` ({getattr(self, name)}) must be from {lowest} to {num_layers}, the number of layers (stages) "
                    "of the encoder, each layer once."
                )
        backbone_config: Any = self.backbone_config
        backbone_config.set_output_features_output_indices(out_features=None, out_indices=self.feature_layers)

    def validate_architecture(self):
        """Check the fields against each other, as part of the `@strict` validation."""
        as_pair(self.region_resolution, "region_resolution", minimum=1)
        self._check_at_least_one()


__all__ = ["RegProxyConfig"]
