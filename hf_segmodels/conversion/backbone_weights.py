# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Loading of an encoder pre-trained on ImageNet into a segmentation model."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from ..plain_vit import PlainViTBackbone, PlainViTConfig
from ..plain_vit.embeddings import resize_position_embeddings
from ..resnet_v1c import ResNetV1cBackbone
from .checkpoint_files import ConversionError, read_checkpoint
from .checkpoint_format import MappedWeights
from .converter import find_format
from .formats.resnet_v1c import RESNET_DROPPED, RESNET_V1C
from .key_mapping import load_strictly, rename
from .mmcv_config import raise_as_conversion_error


_SUFFIXES = (".npz", ".pth", ".pt", ".bin", ".safetensors")
_CLS_TOKEN, _POSITIONS = "embeddings.cls_token", "embeddings.position_embeddings"
# Fields that have to agree for weights to mean the same thing in a model.
ARCHITECTURE = (
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
    Load the weights of a pre-trained encoder into a segmentation model, as the original repositories do before training.
    The model may have another image size: position embeddings are resized to its grid with its
    `position_embedding_interpolation`.

    Args:
        model (`PreTrainedModel`):
            A segmentation model whose `backbone` is a [`PlainViTBackbone`] or [`ResNetV1cBackbone`], or such a backbone
            itself. Changed in place.
        source (`str` or `Path`):
            A folder or repository with such a backbone, or a file: for a plain ViT an encoder that
            `hf-segmodels convert --method backbone` takes, for a ResNet-V1c one of mmsegmentation (`resnet50_v1c`) or
            timm (`resnet50c`).

    Returns:
        `list[str]`: Names of the weights that were left out: ImageNet classifiers, and a final norm or a class token that
        the model does not have.

    Raises:
        ConversionError: if the encoders differ, or a weight is missing, left over or of another shape.

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
    weights = _read_vit(source, config)
    pretrained, tensors, dropped = weights.config, weights.tensors, weights.dropped_keys
    if pretrained.use_cls_token and not config.use_cls_token and not pretrained.use_distillation_token:
        # the layers of such a model see no class token (SegViT)
        pretrained.use_cls_token = False
        del tensors[_CLS_TOKEN]
        # (1, 1 + rows * columns, D) -> (1, rows * columns, D)
        tensors[_POSITIONS] = tensors[_POSITIONS][:, 1:]
        dropped += [_CLS_TOKEN, f"{_POSITIONS}[:, :1]"]
    different = [
        f"`{name}` {getattr(pretrained, name)} against the model's {getattr(config, name)}"
        for name in ARCHITECTURE
        if getattr(pretrained, name) != getattr(config, name)
    ]
    if different:
        raise ConversionError(
            f"The encoder in {source} differs from the model's: {', '.join(different)}. Build the model with a "
            "`PlainViTConfig` of these values."
        )
    if config.final_norm == "none":
        dropped += [name for name in ("layernorm.weight", "layernorm.bias") if tensors.pop(name, None) is not None]
    tensors[_POSITIONS] = resize_position_embeddings(
        tensors[_POSITIONS].float(),
        config.num_prefix_tokens,
        pretrained.position_grid,
        config.position_grid,
        config.position_embedding_interpolation,
    )
    load_strictly(backbone, tensors, weights.key_map)
    return dropped


def _load_resnet_weights(backbone: ResNetV1cBackbone, source: str | Path) -> list[str]:
    """[`load_backbone_weights`] for a ResNet-V1c, whose strides and dilations may differ from the pre-trained ones."""
    if Path(source).suffix not in _SUFFIXES:
        load_strictly(backbone, _read_folder(source, ResNetV1cBackbone, "`save_pretrained` of one").state_dict(), {})
        return []
    weights = {key.removeprefix("backbone."): tensor for key, tensor in read_checkpoint(Path(source)).weights.items()}
    renamed, dropped = rename(list(weights), RESNET_V1C, RESNET_DROPPED)
    tensors = {ours: weights[key] for key, ours in renamed.items()}
    # files of old torch versions lack these counters, which only a batch norm without momentum reads
    counters = {name: count for name, count in backbone.state_dict().items() if name.endswith("num_batches_tracked")}
    load_strictly(backbone, counters | tensors, RESNET_V1C)
    return dropped


def _read_vit(source: str | Path, config: PlainViTConfig) -> MappedWeights:
    path = Path(source)
    if path.suffix not in _SUFFIXES:
        pretrained = _read_folder(source, PlainViTBackbone, "`hf-segmodels convert --method backbone`")
        return MappedWeights(pretrained.config, pretrained.state_dict(), key_map={}, dropped_keys=[], originals={})
    checkpoint = read_checkpoint(path)
    # AugReg's arrays have the heads in a dimension of their own
    fields = {} if path.suffix == ".npz" else {"num_attention_heads": config.num_attention_heads}
    with raise_as_conversion_error(path):
        return find_format(checkpoint, "backbone").map_weights(checkpoint.weights, fields)


def _read_folder(source: str | Path, backbone_class: Any, maker: str) -> Any:
    """A backbone of `backbone_class` from a folder or repository."""
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConversionError(f"{source} is neither a file of weights nor a folder with a model: {error}") from error
    if not isinstance(config, backbone_class.config_class):
        raise ConversionError(
            f"{source} holds a model of type {config.model_type!r}; expected a {backbone_class.__name__}, such as {maker} "
            "writes."
        )
    pretrained, info = backbone_class.from_pretrained(source, output_loading_info=True)
    if info["missing_keys"]:
        raise ConversionError(
            f"{source} lacks weights: {', '.join(sorted(info['missing_keys']))}. Write it again with {maker}."
        )
    return pretrained
