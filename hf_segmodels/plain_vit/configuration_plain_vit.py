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
"""Configuration of the plain vision transformer, the encoder of all methods."""

from typing import Literal, TypeGuard

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import auto_docstring


@auto_docstring(
    custom_intro="""
    Configuration of a [`PlainViTBackbone`]: AugReg ViT, DeiT (with a distillation token) and the hybrids with a
    ResNetV2 stem. The defaults give ViT-B/16 at 512x512.
    """
)
@strict
class PlainViTConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    hidden_size (`int`, *optional*, defaults to 768):
        Hidden size D of the tokens.
    num_hidden_layers (`int`, *optional*, defaults to 12):
        Number L of transformer layers.
    num_attention_heads (`int`, *optional*, defaults to 12):
        Number of attention heads of each layer; must divide `hidden_size`.
    intermediate_size (`int`, *optional*):
        Hidden size of the MLPs. Defaults to four times `hidden_size`.
    hidden_act (`str`, *optional*, defaults to `"gelu"`):
        Activation of the MLPs (`"gelu"` is the exact one).
    hidden_dropout_prob (`float`, *optional*, defaults to 0.0):
        Dropout after the embeddings, after the output projection of the attention and after both MLP layers.
    attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0):
        Dropout on the attention weights.
    drop_path_rate (`float`, *optional*, defaults to 0.0):
        Stochastic depth of the last layer; increases linearly from 0 at the first layer.
    initializer_range (`float`, *optional*, defaults to 0.02):
        Standard deviation of the truncated normal that initializes linear layers, tokens and position embeddings.
    layer_norm_eps (`float`, *optional*, defaults to 1e-06):
        Epsilon of all LayerNorms: 1e-6 in RegProxy, SegViT and UN-EPT, 1e-5 in Segmenter.
    qkv_bias (`bool`, *optional*, defaults to `True`):
        Whether queries, keys and values have a bias.
    image_size (`int` or pair, *optional*, defaults to 512):
        `(height, width)` in pixels whose patch grid is the grid of the stored position embeddings. Images of any size can be
        used: the embeddings are interpolated.
    patch_size (`int`, *optional*, defaults to 16):
        Pixels per side of a token. With a hybrid stem this is the total stride of the stem.
    num_channels (`int`, *optional*, defaults to 3):
        Number of channels of the input.
    use_cls_token (`bool`, *optional*, defaults to `True`):
        Whether a class token is prepended.
    use_distillation_token (`bool`, *optional*, defaults to `False`):
        Whether the distillation token of DeiT follows the class token.
    position_embedding_interpolation (`"bilinear"` or `"bicubic"`, *optional*, defaults to `"bicubic"`):
        Interpolation of position embeddings (half-pixel centers, no antialiasing): bilinear in Segmenter, bicubic in the
        other methods.
    position_embedding_resize_rule (`"grid"` or `"token_count"`, *optional*, defaults to `"grid"`):
        `"grid"` resizes position embeddings whenever the patch grid differs from the stored grid. `"token_count"` resizes
        only when the *number* of tokens differs, as the original repositories do: a stored 4x4 grid is then used unchanged
        for a 2x8 grid. `"token_count"` is meant for checkpoints that must behave as the code that trained them.
    stem_type (`"patch"` or `"resnetv2"`, *optional*, defaults to `"patch"`):
        `"patch"` projects pixel patches; `"resnetv2"` is the convolutional stem of the hybrids.
    stem_depths (`list[int]`, *optional*, defaults to `(2, 2, 2, 2)`):
        Number of bottlenecks of each stage of the hybrid stem: `(2, 2, 2, 2)` for R26, `(3, 4, 6, 3)` for R50.
    stem_hidden_sizes (`list[int]`, *optional*, defaults to `(256, 512, 1024, 2048)`):
        Output channels of each stage; multiples of 128, since bottlenecks have a quarter of the channels and 32 norm groups.
    stem_embedding_size (`int`, *optional*, defaults to 64):
        Channels of the first convolution of the hybrid stem; a multiple of 32.
    final_norm (`"last"`, `"all"` or `"none"`, *optional*, defaults to `"last"`):
        Feature maps that pass the final LayerNorm: the feature map of the last layer (Segmenter, RegProxy), all, or none.
        With `"none"` the model has no final LayerNorm (SegViT, UN-EPT).
    query_downsampling_layer (`int`, *optional*):
        Index, from 0, of a layer that halves the grid of patches in both directions (SegViT, section 3.3, "QD"). All later
        layers run on a quarter of the tokens. The released SegViT-L models have 8. Defaults to `None` (no down-sampling).
    query_downsampling_target (`"query"` or `"query_key_value"`, *optional*, defaults to `"query"`):
        Inputs of the attention of that layer that are down-sampled (SegViT, Table 7): the queries alone, so that all patches
        are attended to, or all three.
    query_downsampling_mode (`"nearest"` or `"convolution"`, *optional*, defaults to `"nearest"`):
        Down-sampling: every second patch of every second row, from the first (the released code), or a learned 3x3
        convolution of stride 2 at the same positions. An odd grid is rounded up.
    out_features (`list[str]`, *optional*):
        Feature maps to return, among `"stem"` (the embeddings), `"stage1"`, ..., `"stageL"` (the layers). Defaults to the
        last layer if `out_indices` is not given either.
    out_indices (`list[int]`, *optional*):
        Feature maps to return by index: 0 is the embeddings, i the output of the i-th layer.

    Example:

    ```python
    >>> from hf_segmodels import PlainViTBackbone, PlainViTConfig

    >>> config = PlainViTConfig(hidden_size=192, num_attention_heads=3, out_features=["stage6", "stage12"])
    >>> backbone = PlainViTBackbone(config)
    >>> backbone.channels
    [192, 192]
    ```
    """

    model_type = "plain_vit"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float | int = 1e-6
    qkv_bias: bool = True
    image_size: int | list[int] | tuple[int, int] = 512
    patch_size: int = 16
    num_channels: int = 3
    use_cls_token: bool = True
    use_distillation_token: bool = False
    position_embedding_interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    position_embedding_resize_rule: Literal["grid", "token_count"] = "grid"
    stem_type: Literal["patch", "resnetv2"] = "patch"
    stem_depths: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    stem_hidden_sizes: list[int] | tuple[int, ...] = (256, 512, 1024, 2048)
    stem_embedding_size: int = 64
    final_norm: Literal["last", "all", "none"] = "last"
    query_downsampling_layer: int | None = None
    query_downsampling_target: Literal["query", "query_key_value"] = "query"
    query_downsampling_mode: Literal["nearest", "convolution"] = "nearest"
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        self.stage_names = ["stem"] + [f"stage{index}" for index in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @property
    def num_prefix_tokens(self) -> int:
        """Number of class and distillation tokens, which precede the patch tokens."""
        return int(self.use_cls_token) + int(self.use_distillation_token)

    @property
    def position_grid(self) -> tuple[int, int]:
        """`(height, width)` of the stored position embeddings, in patches."""
        height, width = (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
        return height // self.patch_size, width // self.patch_size

    @property
    def feature_strides(self) -> list[int]:
        """Pixels per cell of each feature map of `out_features`, down and across."""
        layer = self.query_downsampling_layer
        # stage n is the output of the layer with index n - 1
        return [
            self.patch_size * (2 if layer is not None and self.stage_names.index(name) > layer else 1)
            for name in self.out_features
        ]

    def validate_architecture(self):
        """Check the fields against each other, as part of the `@strict` validation."""
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_channels")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        # imported here: the module imports torch
        from transformers.activations import ACT2FN

        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` is {self.hidden_act!r}, which is not an activation of transformers.")
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) must be a multiple of `num_attention_heads` "
                f"({self.num_attention_heads}): change one of the two."
            )
        if not isinstance(self.image_size, int) and len(self.image_size) != 2:
            raise ValueError(f"`image_size` must be an int or (height, width), got {self.image_size}.")
        if self.patch_size < 1 or min(self.position_grid) < 1:
            raise ValueError(
                f"`image_size` ({self.image_size}) must be at least `patch_size` ({self.patch_size}), and `patch_size` at least 1."
            )
        if not 0.0 <= self.drop_path_rate < 1.0:
            raise ValueError(f"`drop_path_rate` must be in [0, 1), got {self.drop_path_rate}.")
        if self.use_distillation_token and not self.use_cls_token:
            raise ValueError("`use_distillation_token` needs `use_cls_token=True`: DeiT has both tokens.")
        layer = self.query_downsampling_layer
        if layer is not None and not 0 <= layer < self.num_hidden_layers:
            raise ValueError(
                f"`query_downsampling_layer` ({layer}) must be the index of a layer, from 0 to {self.num_hidden_layers - 1}."
            )
        if self.stem_type == "resnetv2":
            self._validate_stem()

    def _validate_stem(self):
        if len(self.stem_depths) != len(self.stem_hidden_sizes) or len(self.stem_depths) == 0:
            raise ValueError(
                f"`stem_depths` {self.stem_depths} and `stem_hidden_sizes` {self.stem_hidden_sizes} must have one entry for "
                "each stage of the hybrid stem."
            )
        stride = 4 * 2 ** (len(self.stem_depths) - 1)
        if self.patch_size != stride:
            raise ValueError(
                f"A hybrid stem of {len(self.stem_depths)} stages has a stride of {stride}: set `patch_size={stride}` "
                f"(got {self.patch_size})."
            )
        if self.stem_embedding_size % 32 != 0 or any(size % 128 != 0 for size in self.stem_hidden_sizes):
            raise ValueError(
                "GroupNorm with 32 groups needs `stem_embedding_size` to be a multiple of 32 and `stem_hidden_sizes` "
                f"of 128, got {self.stem_embedding_size} and {self.stem_hidden_sizes}."
            )


def is_plain_vit(config: PreTrainedConfig) -> TypeGuard[PlainViTConfig]:
    """
    Return whether `config` is a [`PlainViTConfig`], by its `model_type`. `isinstance` would fail for code from the Hub:
    transformers loads it once for configuration, model and processor each, which gives several classes of the same name.
    """
    return config.model_type == PlainViTConfig.model_type


__all__ = ["PlainViTConfig", "is_plain_vit"]
