# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Format of RegProxy's checkpoints, which mmsegmentation wrote."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ...regproxy import RegProxyConfig, RegProxyForSemanticSegmentation, RegProxyImageProcessorPil
from ..checkpoint_format import Weights
from ..key_mapping import add_prefix, count_parts
from ..mmcv_config import check_config_matches_weights, label_fields, norm_eps, window_fields
from ..reference.regproxy import regproxy_forward
from .mmcv import MMCVFormat, mmseg_vit_config, num_patches
from .vit import MMSEG_VIT, reference_fields


_AFFINITY_HEAD = {
    "0.depthwise_conv.conv.{p}": "spatial_conv.convolution.{p}",
    "0.depthwise_conv.bn.{p}": "spatial_conv.normalization.{p}",
    "0.pointwise_conv.conv.{p}": "pointwise_conv.convolution.{p}",
    "0.pointwise_conv.bn.{p}": "pointwise_conv.normalization.{p}",
    "1.conv.{p}": "predictor.{p}",
}
REGPROXY = {
    **add_prefix(MMSEG_VIT, "backbone.", "backbone."),
    **add_prefix(_AFFINITY_HEAD, "decode_head.affinity_head.", "decoder.affinity_head."),
    "decode_head.mlp.0.0.{p}": "decoder.classifier.{p}",
}


class Release(NamedTuple):
    """A released checkpoint: properties by which it is recognized, and properties that its weights do not hold."""

    hidden_size: int
    num_layers: int  # of the encoder
    num_labels: int
    is_hybrid: bool  # whether the encoder's stem is a ResNet
    crop_size: int  # training crop, also the size of the window
    token_head_depth: int  # layers before the affinity head

    @property
    def patch_size(self) -> int:
        return 32 if self.is_hybrid else 16

    def config(self) -> dict[str, Any]:
        """The parts of the configuration that the weights do not hold, in mmsegmentation's terms."""
        is_ade20k = self.num_labels == 150
        stride = self.crop_size if is_ade20k else 512
        return {
            "dataset_type": "ADE20KDataset" if is_ade20k else "CityscapesDataset",
            "model": {
                "backbone": {
                    "img_size": self.crop_size,
                    "patch_size": self.patch_size,
                    "out_indices": [self.token_head_depth - 1, self.num_layers - 1],
                    "drop_path_rate": 0.1,
                    "norm_cfg": {"type": "LN", "eps": 1e-6},
                    "interpolate_mode": "bicubic",
                },
                "decode_head": {"in_index": [-2, -1], "region_res": [4, 4]},
            },
            "test_cfg": {"mode": "slide", "crop_size": [self.crop_size] * 2, "stride": [stride] * 2},
            "test_pipeline": [{"img_scale": [2048, self.crop_size if is_ade20k else 1024]}],
            "train_pipeline": [{"type": "LoadAnnotations", "reduce_zero_label": is_ade20k}],
        }


RELEASES = {
    "regproxy-ti16-ade20k": Release(192, 12, 150, False, 512, 5),
    "regproxy-s16-ade20k": Release(384, 12, 150, False, 512, 5),
    "regproxy-b16-ade20k": Release(768, 12, 150, False, 512, 5),
    "regproxy-l16-ade20k": Release(1024, 24, 150, False, 640, 10),
    "regproxy-r26-s32-ade20k": Release(384, 12, 150, True, 512, 0),
    "regproxy-r50-l32-ade20k": Release(1024, 24, 150, True, 640, 0),
    "regproxy-ti16-cityscapes": Release(192, 12, 19, False, 768, 3),
    "regproxy-s16-cityscapes": Release(384, 12, 19, False, 768, 3),
    "regproxy-b16-cityscapes": Release(768, 12, 19, False, 768, 3),
    "regproxy-l16-cityscapes": Release(1024, 24, 19, False, 768, 6),
}


class RegProxyFormat(MMCVFormat):
    """mmcv's `.pth` files with `affinity_head` and `mlp` in the head."""

    method = "regproxy"
    title = "RegProxy"
    signature = ("decode_head.affinity_head.",)
    model_class = RegProxyForSemanticSegmentation
    keys = REGPROXY
    image_processor_class = RegProxyImageProcessorPil

    def recognize(self, weights: Weights) -> tuple[str, dict[str, Any]] | None:
        try:
            num_labels, hidden_size = weights["decode_head.mlp.0.0.weight"].shape
            num_scores = weights["decode_head.affinity_head.1.conv.weight"].shape[0]
            patches = num_patches(weights)
        except (KeyError, ValueError, IndexError):
            return None
        num_layers = count_parts(weights, r"backbone\.layers\.(\d+)\.")
        is_hybrid = "backbone.patch_embed.proj.weight" in weights
        found = (hidden_size, num_layers, num_labels, is_hybrid, patches, num_scores)
        for name, release in RELEASES.items():
            if (*release[:4], (release.crop_size // release.patch_size) ** 2, 9 * 4 * 4) == found:
                return name, release.config()
        return None

    def model_config(self, weights: Weights, tensors: Weights, values: Mapping[str, Any]) -> RegProxyConfig:
        encoder, head = values["model"]["backbone"], values["model"]["decode_head"]
        num_labels = weights["decode_head.mlp.0.0.weight"].shape[0]
        num_scores = weights["decode_head.affinity_head.1.conv.weight"].shape[0]
        # the code that trained the checkpoint compares numbers of patches; a fresh model compares grids
        backbone_config = mmseg_vit_config(tensors, encoder, position_embedding_resize_rule="token_count")
        out_indices = list(encoder["out_indices"])
        early, late = (out_indices[index] for index in head.get("in_index", (-2, -1)))
        cell_height, cell_width = head["region_res"]
        check_config_matches_weights(
            ("the last of out_indices", late, backbone_config.num_hidden_layers - 1),
            ("num_classes", head.get("num_classes"), num_labels),
            ("9 times the area of region_res", 9 * cell_height * cell_width, num_scores),
            ("align_corners", head.get("align_corners") or None, False),
        )
        return RegProxyConfig(
            backbone_config=backbone_config,
            token_head_depth=early + 1,
            region_resolution=[cell_height, cell_width],
            batch_norm_eps=norm_eps(head.get("norm_cfg")),
            odd_size_mode="resize",
            **window_fields(values.get("test_cfg") or {}),
            **label_fields(num_labels, values.get("CLASSES") or (), values),
        )

    def reference(self, weights: Weights, config: RegProxyConfig, pixel_values: torch.Tensor) -> torch.Tensor:
        return regproxy_forward(
            weights,
            pixel_values,
            token_head_depth=config.token_head_depth,
            cell_size=config.cell_size,
            batch_norm_eps=config.batch_norm_eps,
            **reference_fields(config.backbone_config),
        )
