# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Conversion of Segmenter's checkpoints: `checkpoint.pth` with its `variant.yml`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError

from ...labels import load_labels
from ...plain_vit.configuration_plain_vit import PlainViTConfig
from ...segmenter.configuration_segmenter import SegmenterConfig
from ...segmenter.image_processing_pil_segmenter import SegmenterImageProcessorPil
from ...segmenter.modeling_segmenter import SegmenterForSemanticSegmentation
from ...utils.errors import first_line
from ..checkpoint_files import ConversionError, check_method, read_checkpoint
from ..converter import Conversion, full_size_logits
from ..key_mapping import add_prefix, load_strictly, rename
from ..reference.vit import segmenter_forward
from .backbone import NORMALIZATIONS, TIMM_VIT, TRANSFORMER_LAYER


SEGMENTER = {
    **add_prefix(TIMM_VIT, "encoder.", "backbone."),
    # linear decoder
    "decoder.head.{p}": "decoder.classifier.{p}",
    # mask transformer
    "decoder.proj_dec.{p}": "decoder.projection.{p}",
    "decoder.cls_emb": "decoder.class_embeddings",
    **add_prefix(TRANSFORMER_LAYER, "decoder.blocks.{i}.", "decoder.encoder.layers.{i}."),
    "decoder.decoder_norm.{p}": "decoder.layernorm.{p}",
    "decoder.proj_patch": "decoder.patch_projection",
    "decoder.proj_classes": "decoder.class_projection",
    "decoder.mask_norm.{p}": "decoder.mask_norm.{p}",
}
# The ImageNet classifiers, which segmentation does not use.
DROPPED = ("encoder.head.{p}", "encoder.head_dist.{p}")


@dataclass(frozen=True)
class Dataset:
    """
    What a data set means for the image processor.

    Args:
        edge_ratio (`int`): Bound of an image's longer edge, as a multiple of the shorter one's.
        reduce_labels (`bool`): Whether 0 means "unlabeled" in its label maps.
        labels (`str`): Name of its class names.
    """

    edge_ratio: int
    reduce_labels: bool
    labels: str


DATASETS = {
    "ade20k": Dataset(edge_ratio=4, reduce_labels=True, labels="ade20k"),
    "pascal_context": Dataset(edge_ratio=8, reduce_labels=False, labels="pascal_context_60"),
    "cityscapes": Dataset(edge_ratio=2, reduce_labels=False, labels="cityscapes"),
}


class _VariantLoader(yaml.SafeLoader):
    """Plain YAML, and the one Python tag that the original writes: a tuple of numbers."""


def _read_tuple(loader: yaml.SafeLoader, node: Any) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


_VariantLoader.add_constructor("tag:yaml.org,2002:python/tuple", _read_tuple)


def read_variant(path: Path) -> dict[str, Any]:
    """
    Reads a `variant.yml`.

    Raises:
        ConversionError: if there is no such file, it is no such YAML, or has tags that would run code.
    """
    if not path.is_file():
        raise ConversionError(
            f"There is no {path}. Segmenter's architecture stands in the variant.yml that was saved beside its "
            "checkpoint.pth: put it there, or give its path with --config."
        )
    try:
        variant = yaml.load(path.read_text(encoding="utf-8"), Loader=_VariantLoader)
    except yaml.constructor.ConstructorError as error:
        raise ConversionError(
            f"{path} holds a YAML tag that is not read, because it could run code ({error.problem}). A variant.yml of "
            "the original has plain values and `!!python/tuple` only."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path} is no YAML ({first_line(error)}). Give Segmenter's variant.yml.") from error
    if not isinstance(variant, dict) or not isinstance(variant.get("net_kwargs"), dict):
        raise ConversionError(f"{path} has no `net_kwargs`. Give the variant.yml that belongs to the checkpoint.")
    return variant


def _count_decoder_layers(keys: Mapping[str, Any]) -> int:
    return len({match[1] for key in keys if (match := re.match(r"decoder\.blocks\.(\d+)\.", key))})


def _num_classes(state_dict: Mapping[str, torch.Tensor]) -> int:
    if "decoder.head.weight" in state_dict:
        return state_dict["decoder.head.weight"].shape[0]
    if "decoder.cls_emb" in state_dict:
        return state_dict["decoder.cls_emb"].shape[1]
    raise ConversionError(
        "The checkpoint has neither `decoder.head.weight` (linear decoder) nor `decoder.cls_emb` (mask transformer): it "
        "is no Segmenter, or not all of one."
    )


def segmenter_config(variant: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]) -> SegmenterConfig:
    """
    Configuration of a checkpoint.

    The number of classes and of decoder layers come from the weights: the released Cityscapes model has one layer where
    the original's defaults say two.

    Args:
        variant (`Mapping[str, Any]`): Contents of `variant.yml`.
        state_dict (`Mapping[str, torch.Tensor]`): The weights by their original names; only names and shapes count.

    Raises:
        ConversionError: if a value is missing or contradicts the weights.
    """
    try:
        network = variant["net_kwargs"]
        inference = variant["inference_kwargs"]
        decoder = network["decoder"]
        is_linear = "linear" in decoder["name"]
        num_classes = _num_classes(state_dict)
        if network["n_cls"] != num_classes:
            raise ConversionError(
                f"variant.yml says {network['n_cls']} classes, the weights have {num_classes}: the two do not belong "
                "together. Give the variant.yml of this checkpoint with --config."
            )
        backbone_config = PlainViTConfig(
            hidden_size=network["d_model"],
            num_hidden_layers=network["n_layers"],
            num_attention_heads=network["n_heads"],
            hidden_dropout_prob=network["dropout"],
            attention_probs_dropout_prob=network["dropout"],
            drop_path_rate=network["drop_path_rate"],
            layer_norm_eps=1e-5,
            image_size=list(network["image_size"]),
            patch_size=network["patch_size"],
            use_distillation_token=bool(network.get("distilled", False)),
            position_embedding_interpolation="bilinear",
            # what the code that trained it does; a fresh model compares grids
            position_embedding_resize_rule="token_count",
        )
        decoder_fields: dict[str, Any] = {"decoder_type": "linear" if is_linear else "mask_transformer"}
        if not is_linear:
            width = state_dict["decoder.cls_emb"].shape[2]
            decoder_fields |= {
                "decoder_hidden_size": width,
                "decoder_num_hidden_layers": _count_decoder_layers(state_dict),
                "decoder_num_attention_heads": max(1, width // 64),
                "decoder_dropout_prob": decoder.get("dropout", 0.1),
                "decoder_drop_path_rate": decoder.get("drop_path_rate", 0.0),
            }
        return SegmenterConfig(
            backbone_config=backbone_config,
            window_size=inference["window_size"],
            window_stride=inference["window_stride"],
            small_image_mode="upscale",
            **decoder_fields,
            **_labels(variant, num_classes),
        )
    except (KeyError, TypeError, StrictDataclassError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ConversionError(
            f"variant.yml does not describe this checkpoint: {problem}. Give the variant.yml that was saved beside it "
            "with --config."
        ) from error


def _dataset(variant: Mapping[str, Any]) -> Dataset | None:
    return DATASETS.get((variant.get("dataset_kwargs") or {}).get("dataset", ""))


def _labels(variant: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    dataset = _dataset(variant)
    names = load_labels(dataset.labels)[0] if dataset is not None else []
    if len(names) != num_classes:  # trained on other classes than the data set's own
        return {"num_labels": num_classes}
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def segmenter_image_processor(variant: Mapping[str, Any], num_labels: int) -> SegmenterImageProcessorPil:
    """
    Image processor of a checkpoint: the original's validation pipeline for the data set that it was trained on. Images
    of another data set get no bound for the longer edge.

    Raises:
        ConversionError: if the kind of normalization is not known.
    """
    dataset_fields = variant.get("dataset_kwargs") or {}
    normalization = dataset_fields.get("normalization", variant["net_kwargs"].get("normalization"))
    if normalization not in NORMALIZATIONS:
        raise ConversionError(
            f"variant.yml says `normalization: {normalization}`; expected one of {', '.join(NORMALIZATIONS)}."
        )
    mean, std = NORMALIZATIONS[normalization]
    dataset = _dataset(variant)
    short_edge = variant["inference_kwargs"].get("im_size")
    if not isinstance(short_edge, int):
        raise ConversionError(
            f"variant.yml says `im_size: {short_edge}` under `inference_kwargs`; expected the shorter edge of images in "
            "pixels."
        )
    size = {"shortest_edge": short_edge}
    if dataset is not None:
        size["longest_edge"] = dataset.edge_ratio * size["shortest_edge"]
    return SegmenterImageProcessorPil(
        size=size,
        image_mean=list(mean),
        image_std=list(std),
        do_reduce_labels=dataset is not None and dataset.reduce_labels,
        num_labels=num_labels,
    )


def convert_segmenter(checkpoint: Path, config: Path | None = None) -> Conversion:
    """
    Converts a checkpoint of the original repository; it then behaves as the code that trained it.

    Args:
        checkpoint (`Path`): The `checkpoint.pth`.
        config (`Path`, *optional*): Its `variant.yml`; the one beside it by default.

    Returns:
        [`Conversion`]: model in eval mode, image processor, and what a check of parity needs.

    Raises:
        ConversionError: if a file is missing, damaged or of another method, or a weight missing, left over or of
            another shape.
    """
    state_dict = read_checkpoint(checkpoint)
    check_method(state_dict, "segmenter", checkpoint)
    variant = read_variant(config or checkpoint.with_name("variant.yml"))
    model_config = segmenter_config(variant, state_dict)
    renamed, dropped = rename(list(state_dict), SEGMENTER, DROPPED)
    with torch.device("meta"):
        model = SegmenterForSemanticSegmentation(model_config)
    load_strictly(model, {ours: state_dict[original] for original, ours in renamed.items()}, SEGMENTER)

    backbone = model_config.backbone_config
    return Conversion(
        method="segmenter",
        model=model.eval(),
        image_processor=segmenter_image_processor(variant, model_config.num_labels),
        dropped_keys=dropped,
        image_size=tuple(backbone.image_size),
        reference=lambda pixel_values: segmenter_forward(
            state_dict,
            pixel_values,
            num_heads=backbone.num_attention_heads,
            patch_size=backbone.patch_size,
            grid=backbone.position_grid,
        ),
        model_scores=full_size_logits,
        notes=_notes(variant, model_config),
    )


def _notes(variant: Mapping[str, Any], config: SegmenterConfig) -> list[str]:
    name = (variant.get("dataset_kwargs") or {}).get("dataset")
    dataset = _dataset(variant)
    if dataset is None:
        return [
            f"data set {name!r} is not known: classes are named LABEL_0, ..., and the longer edge of images has no bound"
        ]
    if config.num_labels != len(load_labels(dataset.labels)[0]):
        return [f"classes are named LABEL_0, ...: {config.num_labels} are not the classes of {name}"]
    return []


__all__ = ["DROPPED", "SEGMENTER", "convert_segmenter", "read_variant", "segmenter_config", "segmenter_image_processor"]
