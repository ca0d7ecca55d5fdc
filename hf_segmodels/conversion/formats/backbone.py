# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Encoders pre-trained on ImageNet: AugReg ViT, DeiT and timm's as a [`PlainViTBackbone`], and all of them and
mmsegmentation's ResNet-V1c in a segmentation model.
"""

import copy
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.configuration_auto import AutoConfig

from ...plain_vit.configuration_plain_vit import PlainViTConfig
from ...plain_vit.modeling_plain_vit import PlainViTBackbone
from ...resnet_v1c.modeling_resnet_v1c import ResNetV1cBackbone
from ...segmenter.image_processing_pil_segmenter import SegmenterImageProcessorPil
from ..checkpoint_files import ConversionError, check_method, read_checkpoint
from ..converter import Conversion
from ..key_mapping import add_prefix, load_strictly, rename
from ..reference.vit import augreg_tokens, timm_tokens
from .resnet_v1c import load_resnet_v1c_weights


# timm's names, which DeiT and Segmenter share.
TRANSFORMER_LAYER = {
    "norm1.{p}": "layernorm_before.{p}",
    "attn.qkv.{p}": "attention.qkv.{p}",
    "attn.proj.{p}": "attention.o_proj.{p}",
    "norm2.{p}": "layernorm_after.{p}",
    "mlp.fc1.{p}": "mlp.fc1.{p}",
    "mlp.fc2.{p}": "mlp.fc2.{p}",
}
_STEM = "embeddings.patch_embeddings.stem."
# The hybrids' convolutional stem; mmsegmentation's hybrids take timm's.
TIMM_HYBRID_STEM = {
    "patch_embed.backbone.stem.conv.{p}": _STEM + "embedder.convolution.{p}",
    "patch_embed.backbone.stem.norm.{p}": _STEM + "embedder.norm.{p}",
    "patch_embed.backbone.stages.{s}.blocks.{b}.{layer}.{p}": _STEM + "encoder.stages.{s}.layers.{b}.{layer}.{p}",
    "patch_embed.backbone.stages.{s}.blocks.{b}.downsample.{layer}.{p}": (
        _STEM + "encoder.stages.{s}.layers.{b}.downsample.{layer}.{p}"
    ),
    "patch_embed.proj.{p}": "embeddings.patch_embeddings.projection.{p}",
}
TOKENS = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
}
TIMM_VIT = {
    **TOKENS,
    **TIMM_HYBRID_STEM,  # its projection is the plain ViT's as well
    **add_prefix(TRANSFORMER_LAYER, "blocks.{i}.", "encoder.layers.{i}."),
    "norm.{p}": "layernorm.{p}",
}
# The ImageNet classifiers and the layers that exist only for them.
TIMM_DROPPED = ("head.{p}", "head_dist.{p}", "pre_logits.fc.{p}", "fc_norm.{p}")

# AugReg's names. Its arrays change their layout as well: see `_augreg_to_torch`. Queries, keys and values become one.
_AUGREG_LAYER = {
    "LayerNorm_0/scale": "layernorm_before.weight",
    "LayerNorm_0/bias": "layernorm_before.bias",
    "MultiHeadDotProductAttention_1/{part}/kernel": "attention.{part}.weight",
    "MultiHeadDotProductAttention_1/{part}/bias": "attention.{part}.bias",
    "LayerNorm_2/scale": "layernorm_after.weight",
    "LayerNorm_2/bias": "layernorm_after.bias",
    "MlpBlock_3/Dense_0/kernel": "mlp.fc1.weight",
    "MlpBlock_3/Dense_0/bias": "mlp.fc1.bias",
    "MlpBlock_3/Dense_1/kernel": "mlp.fc2.weight",
    "MlpBlock_3/Dense_1/bias": "mlp.fc2.bias",
}
_AUGREG_STEM_BLOCK = {
    "conv{n}/kernel": "conv{n}.weight",
    "gn{n}/scale": "norm{n}.weight",
    "gn{n}/bias": "norm{n}.bias",
}
AUGREG = {
    "cls": "embeddings.cls_token",
    "Transformer/posembed_input/pos_embedding": "embeddings.position_embeddings",
    "embedding/kernel": "embeddings.patch_embeddings.projection.weight",
    "embedding/bias": "embeddings.patch_embeddings.projection.bias",
    **add_prefix(_AUGREG_LAYER, "Transformer/encoderblock_{i}/", "encoder.layers.{i}."),
    "Transformer/encoder_norm/scale": "layernorm.weight",
    "Transformer/encoder_norm/bias": "layernorm.bias",
    # the hybrids' stem, numbered from 1
    "conv_root/kernel": _STEM + "embedder.convolution.weight",
    "gn_root/scale": _STEM + "embedder.norm.weight",
    "gn_root/bias": _STEM + "embedder.norm.bias",
    "block{s}/unit{b}/conv_proj/kernel": _STEM + "encoder.stages.{s-1}.layers.{b-1}.downsample.conv.weight",
    "block{s}/unit{b}/gn_proj/scale": _STEM + "encoder.stages.{s-1}.layers.{b-1}.downsample.norm.weight",
    "block{s}/unit{b}/gn_proj/bias": _STEM + "encoder.stages.{s-1}.layers.{b-1}.downsample.norm.bias",
    **add_prefix(_AUGREG_STEM_BLOCK, "block{s}/unit{b}/", _STEM + "encoder.stages.{s-1}.layers.{b-1}."),
}
AUGREG_DROPPED = ("head/{p}", "pre_logits/{p}")

NORMALIZATIONS = {
    "vit": (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
    "deit": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
}

# Widths whose number of heads is not one for every 64 channels.
_HEADS_BY_WIDTH = {1280: 16}  # ViT-H


@dataclass(frozen=True)
class BackboneWeights:
    """
    The weights of a pre-trained encoder, by our names, and what they tell of its architecture.

    Args:
        config (`PlainViTConfig`): Architecture; its `image_size` gives the grid of the position table.
        tensors (`dict[str, torch.Tensor]`): Parameters of a [`PlainViTBackbone`] with this configuration.
        table (`Mapping[str, str]`): The names' table.
        dropped_keys (`list[str]`): Original names that were left out.
        originals (`dict[str, torch.Tensor]`): The weights as they were.
    """

    config: PlainViTConfig
    tensors: dict[str, torch.Tensor]
    table: Mapping[str, str] = field(default_factory=dict)
    dropped_keys: list[str] = field(default_factory=list)
    originals: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def is_augreg(self) -> bool:
        return self.table is AUGREG


def _augreg_to_torch(name: str, array: torch.Tensor) -> torch.Tensor:
    """An AugReg array, by its original name, in torch's layout."""
    if name.endswith("/kernel"):
        if "/out/" in name:
            array = array.flatten(0, 1)  # (num_heads, head_dim, D) -> (D, D)
        elif "MultiHeadDotProductAttention" in name:
            array = array.flatten(1)  # (D, num_heads, head_dim) -> (D, D)
        # (inputs, outputs) -> (outputs, inputs); (height, width, inputs, outputs) -> (outputs, inputs, height, width)
        return array.permute(3, 2, 0, 1).contiguous() if array.ndim == 4 else array.T.contiguous()
    if name.endswith(("/scale", "/bias")):
        return array.flatten()  # biases of heads (num_heads, head_dim), and the stem's (1, 1, 1, num_channels)
    return array


def _fuse_attention(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`attention.{query,key,value}` of each layer -> one `attention.qkv`, rows in this order; `out` -> `o_proj`."""
    fused: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(encoder\.layers\.\d+\.attention\.)(query|key|value|out)\.(weight|bias)", name)
        if match is None:
            fused[name] = tensor
        elif match[2] == "out":
            fused[f"{match[1]}o_proj.{match[3]}"] = tensor
        elif match[2] == "query":
            parts = [tensors.get(f"{match[1]}{part}.{match[3]}") for part in ("query", "key", "value")]
            if any(part is None for part in parts):
                raise ConversionError(f"The checkpoint lacks keys or values beside {name}: it is damaged or cut off.")
            fused[f"{match[1]}qkv.{match[3]}"] = torch.cat(parts)
    return fused


def read_backbone_weights(path: Path, fields: Mapping[str, Any] | None = None) -> BackboneWeights:
    """
    Reads a pre-trained encoder from a foreign file.

    Args:
        path (`Path`):
            AugReg's `.npz`, DeiT's `.pth` (`{"model"}`), or a timm state dict (`.pth` or `.safetensors`) of a plain ViT,
            a DeiT or a hybrid with a ResNetV2 stem.
        fields (`Mapping[str, Any]`, *optional*):
            What the weights do not tell: `num_attention_heads` (else AugReg's own, or one for every 64 channels),
            `position_grid` (else square), `layer_norm_eps` (else 1e-6).

    Raises:
        ConversionError: if the file is of another kind, or a weight has no place; see [`read_checkpoint`] too.
    """
    fields = dict(fields or {})
    originals = read_checkpoint(path)
    check_method(originals, "backbone", path)
    if path.suffix == ".npz":
        originals = {key.removeprefix("opt/target/"): value for key, value in originals.items()}
        renamed, dropped = rename(list(originals), AUGREG, AUGREG_DROPPED)
        tensors = {ours: _augreg_to_torch(key, originals[key]) for key, ours in renamed.items()}
        tensors = _fuse_attention(tensors)
        query = originals.get("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/bias")
        if query is not None:
            fields.setdefault("num_attention_heads", query.shape[0])
        table = AUGREG
    else:
        if "patch_embed.backbone.conv.weight" in originals:
            raise ConversionError(
                f"{path} is a hybrid whose stem has no stages (R+ViT-Ti/16), which is not supported. The hybrids R26 and "
                "R50 are."
            )
        renamed, dropped = rename(list(originals), TIMM_VIT, TIMM_DROPPED)
        tensors = {ours: originals[key] for key, ours in renamed.items()}
        table = TIMM_VIT
    return BackboneWeights(
        config=infer_config(tensors, fields, path),
        tensors=tensors,
        table=table,
        dropped_keys=dropped,
        originals=originals,
    )


def infer_config(tensors: Mapping[str, torch.Tensor], fields: Mapping[str, Any], path: Path) -> PlainViTConfig:
    """
    Architecture from names and shapes.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): Parameters of an encoder by our names; only shapes count.
        fields (`Mapping[str, Any]`): What they do not tell; see [`read_backbone_weights`].
        path (`Path`): Where they come from, for messages.

    Raises:
        ConversionError: if they make no plain ViT.
    """
    try:
        projection = tensors["embeddings.patch_embeddings.projection.weight"]
        positions = tensors["embeddings.position_embeddings"]
        width = projection.shape[0]
        num_prefix_tokens = sum(f"embeddings.{name}" in tensors for name in ("cls_token", "distillation_token"))
        stem: dict[str, Any] = {}
        patch_size = projection.shape[-1]
        if _STEM + "embedder.convolution.weight" in tensors:
            depths = _stem_depths(tensors)
            last = _STEM + "encoder.stages.{}.layers.0.conv3.weight"
            stem = {
                "stem_type": "resnetv2",
                "stem_depths": depths,
                "stem_hidden_sizes": [tensors[last.format(stage)].shape[0] for stage in range(len(depths))],
                "stem_embedding_size": tensors[_STEM + "embedder.convolution.weight"].shape[0],
            }
            patch_size = 4 * 2 ** (len(depths) - 1)
        rows, columns = _position_grid(positions.shape[1] - num_prefix_tokens, fields.get("position_grid"), path)
        layers = {match[1] for name in tensors if (match := re.match(r"encoder\.layers\.(\d+)\.", name))}
        return PlainViTConfig(
            hidden_size=width,
            num_hidden_layers=len(layers),
            num_attention_heads=fields.get("num_attention_heads", _HEADS_BY_WIDTH.get(width, max(1, width // 64))),
            intermediate_size=tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
            layer_norm_eps=fields.get("layer_norm_eps", 1e-6),
            qkv_bias="encoder.layers.0.attention.qkv.bias" in tensors,
            image_size=[rows * patch_size, columns * patch_size],
            patch_size=patch_size,
            num_channels=tensors.get(_STEM + "embedder.convolution.weight", projection).shape[1],
            use_cls_token="embeddings.cls_token" in tensors,
            use_distillation_token="embeddings.distillation_token" in tensors,
            final_norm="last" if "layernorm.weight" in tensors else "none",
            **stem,
        )
    except KeyError as error:
        raise ConversionError(f"{path} is no whole encoder: {error} is missing.") from error
    except StrictDataclassError as error:
        raise ConversionError(
            f"The weights in {path} do not make a plain ViT: {' '.join(str(error).split())} What the weights do not tell "
            "can be given in a JSON file with --config."
        ) from error


def _stem_depths(tensors: Mapping[str, torch.Tensor]) -> list[int]:
    blocks = [
        re.fullmatch(re.escape(_STEM) + r"encoder\.stages\.(\d+)\.layers\.(\d+)\.conv1\.weight", name)
        for name in tensors
    ]
    pairs = {(int(match[1]), int(match[2])) for match in blocks if match}
    return [sum(stage == number for stage, _ in pairs) for number in range(len({stage for stage, _ in pairs}))]


def _position_grid(num_patches: int, given: Any, path: Path) -> tuple[int, int]:
    if given is None:
        side = math.isqrt(num_patches)
        given = (side, side)
    if not isinstance(given, (list, tuple)) or len(given) != 2 or not all(isinstance(count, int) for count in given):
        raise ConversionError(f"`position_grid` is {given!r}; expected [ROWS, COLUMNS].")
    rows, columns = given
    if rows * columns != num_patches:
        raise ConversionError(
            f"The position table in {path} has {num_patches} patches, which is not {rows} x {columns}. Give its rows and "
            'columns in a JSON file with --config: {"position_grid": [ROWS, COLUMNS]}.'
        )
    return rows, columns


# Fields of a --config file, and other names that they go by.
_FIELDS = {
    "num_attention_heads": ("n_heads",),
    "position_grid": ("pretrain_grid",),
    "layer_norm_eps": (),
    "normalization": (),
}


def _read_fields(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConversionError(f"There is no file {path}. Leave --config out if the weights tell all.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path} is no JSON: {error}.") from error
    if not isinstance(given, dict):
        raise ConversionError(f"{path} must hold an object with any of {', '.join(_FIELDS)}.")
    return {name: given[key] for name, others in _FIELDS.items() for key in (*others, name) if key in given}


def convert_backbone(checkpoint: Path, config: Path | None = None) -> Conversion:
    """
    Converts a pre-trained encoder. Its position table keeps its own grid: the model resizes it to each input.

    Args:
        checkpoint (`Path`): What [`read_backbone_weights`] reads.
        config (`Path`, *optional*):
            JSON file with what the weights do not tell: the fields of [`read_backbone_weights`], and `normalization`,
            `"vit"` (mean and deviation 0.5) or `"deit"` (ImageNet's; the default with a distillation token, and for
            files that have "deit" in their name).

    Raises:
        ConversionError: if the file cannot be converted.
    """
    fields = _read_fields(config)
    weights = read_backbone_weights(checkpoint, fields)
    is_deit = weights.config.use_distillation_token or "deit" in checkpoint.name.lower()
    normalization = fields.get("normalization", "deit" if is_deit else "vit")
    if normalization not in NORMALIZATIONS:
        raise ConversionError(f"`normalization` is {normalization!r}; expected one of {', '.join(NORMALIZATIONS)}.")
    mean, std = NORMALIZATIONS[normalization]
    with torch.device("meta"):
        model = PlainViTBackbone(weights.config)
    load_strictly(model, weights.tensors, weights.table)
    height, width = (side * weights.config.patch_size for side in weights.config.position_grid)
    return Conversion(
        method="backbone",
        model=model.eval(),
        image_processor=SegmenterImageProcessorPil(
            size={"height": height, "width": width}, image_mean=list(mean), image_std=list(std)
        ),
        dropped_keys=weights.dropped_keys,
        image_size=(height, width),
        reference=lambda pixel_values: _reference_features(weights, pixel_values),
        model_scores=lambda model, pixel_values: model(pixel_values).feature_maps[-1],
        notes=[
            f"{weights.config.num_attention_heads} heads, positions for {height}x{width} pixels, mean {list(mean)}, "
            f"deviation {list(std)}; --config can say otherwise"
        ],
    )


@torch.no_grad()
def _reference_features(weights: BackboneWeights, pixel_values: torch.Tensor) -> torch.Tensor:
    """Patch features `(batch_size, D, h, w)` of the original."""
    config = weights.config
    fields: dict[str, Any] = {
        "patch_size": config.patch_size,
        "grid": config.position_grid,
        "eps": config.layer_norm_eps,
        "mode": config.position_embedding_interpolation,
    }
    if weights.is_augreg:
        tokens = augreg_tokens(weights.originals, pixel_values, **fields)
    else:
        tokens = timm_tokens(weights.originals, pixel_values, num_heads=config.num_attention_heads, **fields)
    height, width = (math.ceil(size / config.patch_size) for size in pixel_values.shape[-2:])
    # (batch_size, num_tokens, D) -> (batch_size, D, h, w)
    return tokens[:, config.num_prefix_tokens :].mT.unflatten(2, (height, width))


def resize_position_embeddings(
    position_embeddings: torch.Tensor,
    num_prefix_tokens: int,
    grid: tuple[int, int],
    new_grid: tuple[int, int],
    mode: str,
) -> torch.Tensor:
    """
    Resizes a position table to another grid of patches: half-pixel centers, no antialias, in float32. The prefix tokens'
    embeddings are kept.

    Args:
        position_embeddings (`torch.Tensor` of shape `(1, num_prefix_tokens + rows * columns, hidden_size)`): The table.
        num_prefix_tokens (`int`): Number of class and distillation tokens.
        grid (`tuple[int, int]`): Its rows and columns.
        new_grid (`tuple[int, int]`): The rows and columns wanted.
        mode (`str`): `"bilinear"` or `"bicubic"`.

    Returns:
        `torch.Tensor` of shape `(1, num_prefix_tokens + new_rows * new_columns, hidden_size)`.
    """
    if tuple(grid) == tuple(new_grid):
        return position_embeddings
    prefix, patches = position_embeddings.float().split([num_prefix_tokens, math.prod(grid)], dim=1)
    # (1, rows * columns, D) -> (1, D, rows, columns) -> (1, D, new_rows, new_columns) -> (1, new_rows * new_columns, D)
    patches = F.interpolate(patches.mT.unflatten(2, grid), size=tuple(new_grid), mode=mode, align_corners=False)
    return torch.cat([prefix, patches.flatten(2).mT], dim=1)


_SUFFIXES = (".npz", ".pth", ".pt", ".bin", ".safetensors")
_CLS_TOKEN, _POSITIONS = "embeddings.cls_token", "embeddings.position_embeddings"
# Fields that must agree for weights to mean the same thing in a model.
_ARCHITECTURE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "patch_size",
    "num_channels",
    "use_cls_token",
    "use_distillation_token",
    "stem_type",
)


@torch.no_grad()
def load_backbone_weights(model: PreTrainedModel, source: str | Path) -> list[str]:
    """
    Puts pre-trained encoder weights into a segmentation model, which may have another image size, as the original
    repositories do before training: the position table is resized to the model's grid with the model's
    `position_embedding_interpolation` (bilinear in Segmenter).

    Args:
        model (`PreTrainedModel`):
            A segmentation model whose `backbone` is a [`PlainViTBackbone`] or [`ResNetV1cBackbone`], or such a backbone
            itself. Changed in place.
        source (`str` or `Path`):
            A folder or repository with such a backbone, or a file: for a plain ViT what `hf-segmodels convert --method
            backbone` takes, for a ResNet-V1c one of mmsegmentation (`resnet50_v1c`) or timm (`resnet50c`).

    Returns:
        `list[str]`: Names of the weights that were left out: ImageNet classifiers, and a final norm or a class token that
        the model does not have.

    Raises:
        ConversionError: if the encoders differ, or a weight is missing; says in what.

    Example:

    ```python
    >>> from hf_segmodels import PlainViTConfig, SegmenterConfig, SegmenterForSemanticSegmentation
    >>> from hf_segmodels.conversion import load_backbone_weights

    >>> encoder = PlainViTConfig(
    ...     hidden_size=384, num_attention_heads=6, layer_norm_eps=1e-5, position_embedding_interpolation="bilinear"
    ... )
    >>> model = SegmenterForSemanticSegmentation(SegmenterConfig(backbone_config=encoder, num_labels=19))
    >>> left_out = load_backbone_weights(model, "S_16-i21k-300ep.npz")  # doctest: +SKIP
    ```
    """
    backbone = getattr(model, "backbone", model)
    if isinstance(backbone, ResNetV1cBackbone):
        return _load_resnet_weights(backbone, source)
    if not isinstance(backbone, PlainViTBackbone):
        raise ConversionError(
            f"The model's encoder is a {type(backbone).__name__}; weights of a plain ViT fit a PlainViTBackbone only. Load "
            "other encoders with their own `from_pretrained`."
        )
    config = backbone.config
    weights = _read_source(source, config)
    if not config.use_cls_token and not weights.config.use_distillation_token:
        weights = _without_cls_token(weights)
    different = [
        f"`{name}` {getattr(weights.config, name)} against the model's {getattr(config, name)}"
        for name in _ARCHITECTURE
        if getattr(weights.config, name) != getattr(config, name)
    ]
    if different:
        raise ConversionError(
            f"The encoder in {source} differs from the model's: {', '.join(different)}. Build the model with a "
            "`PlainViTConfig` of these values."
        )
    tensors, dropped = dict(weights.tensors), list(weights.dropped_keys)
    if config.final_norm == "none":
        dropped += [name for name in ("layernorm.weight", "layernorm.bias") if tensors.pop(name, None) is not None]
    tensors[_POSITIONS] = resize_position_embeddings(
        tensors[_POSITIONS],
        config.num_prefix_tokens,
        weights.config.position_grid,
        config.position_grid,
        config.position_embedding_interpolation,
    )
    load_strictly(backbone, tensors, weights.table)
    return dropped


def _without_cls_token(weights: BackboneWeights) -> BackboneWeights:
    """The same for a model whose layers see no class token (SegViT): without it and its position."""
    if not weights.config.use_cls_token:
        return weights
    tensors, config = dict(weights.tensors), copy.deepcopy(weights.config)
    del tensors[_CLS_TOKEN]
    # (1, 1 + rows * columns, D) -> (1, rows * columns, D)
    tensors[_POSITIONS] = tensors[_POSITIONS][:, 1:]
    config.use_cls_token = False
    dropped = [*weights.dropped_keys, _CLS_TOKEN, f"{_POSITIONS}[:, :1]"]
    return replace(weights, config=config, tensors=tensors, dropped_keys=dropped)


def _load_resnet_weights(backbone: ResNetV1cBackbone, source: str | Path) -> list[str]:
    """[`load_backbone_weights`] for a ResNet-V1c."""
    if Path(source).suffix in _SUFFIXES:
        return load_resnet_v1c_weights(backbone, Path(source))
    pretrained = _read_folder(source, ResNetV1cBackbone, "`save_pretrained` of one")
    load_strictly(backbone, pretrained.state_dict(), {})
    return []


def _read_source(source: str | Path, config: PlainViTConfig) -> BackboneWeights:
    if Path(source).suffix in _SUFFIXES:
        fields = {} if Path(source).suffix == ".npz" else {"num_attention_heads": config.num_attention_heads}
        return read_backbone_weights(Path(source), fields)
    pretrained = _read_folder(source, PlainViTBackbone, "`hf-segmodels convert --method backbone`")
    return BackboneWeights(config=pretrained.config, tensors=pretrained.state_dict())


def _read_folder(source: str | Path, backbone_class: Any, maker: str) -> Any:
    """A backbone of that class from a folder or repository."""
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConversionError(f"{source} is neither a file of weights nor a folder with a model: {error}") from error
    if not isinstance(config, backbone_class.config_class):
        raise ConversionError(
            f"{source} holds a model of type {config.model_type!r}; expected a {backbone_class.__name__}, such as {maker} "
            "makes."
        )
    pretrained, info = backbone_class.from_pretrained(source, output_loading_info=True)
    if info["missing_keys"]:
        raise ConversionError(f"{source} lacks weights: {', '.join(sorted(info['missing_keys']))}. Make it again.")
    return pretrained


__all__ = [
    "AUGREG",
    "TIMM_VIT",
    "convert_backbone",
    "infer_config",
    "load_backbone_weights",
    "read_backbone_weights",
]
