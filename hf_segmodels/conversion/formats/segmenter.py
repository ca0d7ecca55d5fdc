# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Format of Segmenter's checkpoints: `checkpoint.pth` with its `variant.yml`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from ...labels import load_labels
from ...plain_vit import PlainViTConfig
from ...segmenter import SegmenterConfig, SegmenterForSemanticSegmentation, SegmenterImageProcessorPil
from ...utils.errors import first_line
from ..checkpoint_files import ConversionError, OriginalCheckpoint
from ..checkpoint_format import CheckpointFormat, MappedWeights, Weights
from ..key_mapping import add_prefix, count_parts
from ..mmcv_config import label_fields
from ..reference.segmenter import segmenter_forward
from .backbone import NORMALIZATIONS
from .vit import TIMM_VIT, TRANSFORMER_LAYER


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


class Dataset(NamedTuple):
    edge_ratio: int  # upper bound of the ratio of an image's longer edge to the shorter one
    reduce_labels: bool  # whether 0 means "unlabeled" in the label maps
    labels: str  # name of the class names in `hf_segmodels.labels`


DATASETS = {
    "ade20k": Dataset(edge_ratio=4, reduce_labels=True, labels="ade20k"),
    "pascal_context": Dataset(edge_ratio=8, reduce_labels=False, labels="pascal_context_60"),
    "cityscapes": Dataset(edge_ratio=2, reduce_labels=False, labels="cityscapes"),
}


class _VariantLoader(yaml.SafeLoader):
    """YAML without code, and the one Python tag that the original writes: a tuple of numbers."""


def _read_tuple(loader: yaml.SafeLoader, node: Any) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


_VariantLoader.add_constructor("tag:yaml.org,2002:python/tuple", _read_tuple)


def read_variant(path: Path) -> dict[str, Any]:
    """
    Read a `variant.yml`.

    Raises:
        ConversionError: if the file does not exist, is not such a YAML file, or has tags that would run code.
    """
    if not path.is_file():
        raise ConversionError(
            f"There is no {path}, which holds Segmenter's architecture and was saved beside the checkpoint.pth: put it "
            "there, or give its path with --config."
        )
    try:
        variant = yaml.load(path.read_text(encoding="utf-8"), Loader=_VariantLoader)
    except yaml.constructor.ConstructorError as error:
        raise ConversionError(
            f"{path} holds a YAML tag that is not read, because it could run code ({error.problem}). A variant.yml of "
            "the original has plain values and `!!python/tuple` only."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConversionError(
            f"{path} is not valid YAML ({first_line(error)}). Give Segmenter's variant.yml."
        ) from error
    if not isinstance(variant, dict) or not isinstance(variant.get("net_kwargs"), dict):
        raise ConversionError(f"{path} has no `net_kwargs`. Give the variant.yml that belongs to the checkpoint.")
    return variant


def _num_labels(weights: Weights) -> int:
    if "decoder.head.weight" in weights:
        return weights["decoder.head.weight"].shape[0]
    if "decoder.cls_emb" in weights:
        return weights["decoder.cls_emb"].shape[1]
    raise ConversionError(
        "The checkpoint has neither `decoder.head.weight` (linear decoder) nor `decoder.cls_emb` (mask transformer): it "
        "is not a complete Segmenter."
    )


def _dataset(variant: Mapping[str, Any]) -> Dataset | None:
    return DATASETS.get((variant.get("dataset_kwargs") or {}).get("dataset", ""))


class SegmenterFormat(CheckpointFormat):
    """`checkpoint.pth` with the weights under `"model"`, and `variant.yml` beside it."""

    method = "segmenter"
    title = "Segmenter"
    signature = ("encoder.patch_embed.",)
    model_class = SegmenterForSemanticSegmentation
    keys = SEGMENTER
    # ImageNet classifiers
    dropped = ("encoder.head.{p}", "encoder.head_dist.{p}")

    def read_config(self, checkpoint: OriginalCheckpoint, path: Path | None) -> tuple[dict[str, Any], list[str]]:
        return read_variant(path or checkpoint.path.with_name("variant.yml")), []

    def model_config(self, weights: Weights, tensors: Weights, values: Mapping[str, Any]) -> SegmenterConfig:
        network, inference = values["net_kwargs"], values["inference_kwargs"]
        decoder = network["decoder"]
        is_linear = "linear" in decoder["name"]
        num_labels = _num_labels(weights)
        if network["n_cls"] != num_labels:
            raise ConversionError(
                f"variant.yml has {network['n_cls']} classes, the weights have {num_labels}: the two do not belong "
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
            # the code that trained the checkpoint compares numbers of patches; a fresh model compares grids
            position_embedding_resize_rule="token_count",
        )
        fields: dict[str, Any] = {"decoder_type": "linear" if is_linear else "mask_transformer"}
        if not is_linear:
            hidden_size = weights["decoder.cls_emb"].shape[2]
            fields |= {
                "decoder_hidden_size": hidden_size,
                # the released Cityscapes model has one layer, the original's defaults two
                "decoder_num_hidden_layers": count_parts(weights, r"decoder\.blocks\.(\d+)\."),
                "decoder_num_attention_heads": max(1, hidden_size // 64),
                "decoder_dropout_prob": decoder.get("dropout", 0.1),
                "decoder_drop_path_rate": decoder.get("drop_path_rate", 0.0),
            }
        dataset = _dataset(values)
        class_names = load_labels(dataset.labels)[0] if dataset is not None else ()
        return SegmenterConfig(
            backbone_config=backbone_config,
            window_size=inference["window_size"],
            window_stride=inference["window_stride"],
            small_image_mode="upscale",
            **fields,
            **label_fields(num_labels, class_names, {}),
        )

    def image_processor(self, config: SegmenterConfig, values: Mapping[str, Any]) -> SegmenterImageProcessorPil:
        normalization = (values.get("dataset_kwargs") or {}).get(
            "normalization", values["net_kwargs"].get("normalization")
        )
        if normalization not in NORMALIZATIONS:
            raise ConversionError(
                f"`normalization` in variant.yml is {normalization!r}; expected one of {', '.join(NORMALIZATIONS)}."
            )
        mean, std = NORMALIZATIONS[normalization]
        dataset = _dataset(values)
        shortest_edge = values["inference_kwargs"].get("im_size")
        if not isinstance(shortest_edge, int):
            raise ConversionError(
                f"`im_size` under `inference_kwargs` in variant.yml is {shortest_edge!r}; expected the shorter edge of "
                "images in pixels."
            )
        size = {"shortest_edge": shortest_edge}
        # the longer edge has no upper bound for an unknown data set
        if dataset is not None:
            size["longest_edge"] = dataset.edge_ratio * shortest_edge
        return SegmenterImageProcessorPil(
            size=size,
            image_mean=list(mean),
            image_std=list(std),
            do_reduce_labels=dataset is not None and dataset.reduce_labels,
            num_labels=config.num_labels,
        )

    def reference(self, weights: Weights, config: SegmenterConfig, pixel_values: torch.Tensor) -> torch.Tensor:
        backbone = config.backbone_config
        return segmenter_forward(
            weights,
            pixel_values,
            num_heads=backbone.num_attention_heads,
            patch_size=backbone.patch_size,
            grid=backbone.position_grid,
        )

    def notes(self, mapped: MappedWeights, values: Mapping[str, Any]) -> list[str]:
        name = (values.get("dataset_kwargs") or {}).get("dataset")
        dataset = _dataset(values)
        if dataset is None:
            return [
                f"data set {name!r} is not known: classes are named LABEL_0, ..., and the longer edge of images has no "
                "upper bound"
            ]
        if mapped.config.num_labels != len(load_labels(dataset.labels)[0]):
            return [f"classes are named LABEL_0, ...: {mapped.config.num_labels} are not the classes of {name}"]
        return []
