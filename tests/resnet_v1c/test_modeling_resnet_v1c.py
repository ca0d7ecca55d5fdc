# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoBackbone

from hf_segmodels import ResNetV1cBackbone, ResNetV1cConfig
from hf_segmodels.conversion.key_mapping import add_prefix, load_strictly, rename
from hf_segmodels.conversion.unept import MMSEG_RESNET_V1C


SMALL = {"embedding_size": 8, "hidden_sizes": [16, 16, 24, 32], "depths": [2, 1, 2, 2]}


def dilations(backbone: ResNetV1cBackbone) -> list[list[int]]:
    return [[layer.spatial.convolution.dilation[0] for layer in stage.layers] for stage in backbone.stages]


def test_stages_after_the_second_are_dilated_instead_of_strided():
    backbone = ResNetV1cBackbone(ResNetV1cConfig(**SMALL, out_indices=[0, 1, 2, 3, 4])).eval()
    assert dilations(backbone) == [[1, 1], [1], [1, 2], [2, 4]]
    with torch.no_grad():
        maps = backbone(torch.randn(2, 3, 64, 96)).feature_maps
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 24), (16, 24), (8, 12), (8, 12), (8, 12)]
    assert backbone.config.output_stride == 8


def test_dilation_without_contraction():
    backbone = ResNetV1cBackbone(ResNetV1cConfig(**SMALL, contract_dilation=False))
    assert dilations(backbone) == [[1, 1], [1], [2, 2], [4, 4]]


@pytest.mark.slow
def test_features_are_timms():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("resnet50c", output_stride=8, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1)
    ours = ResNetV1cBackbone(ResNetV1cConfig(out_indices=[1, 2, 3, 4])).eval()
    # timm calls the stem's convolutions `conv1.0` to `conv1.6`, and its last norm `bn1`
    table = {
        "bn1.{p}": "stem.layers.2.normalization.{p}",
        **{key.replace("stem.", "conv1."): value for key, value in MMSEG_RESNET_V1C.items()},
    }
    weights = theirs.state_dict()
    renamed, _ = rename(list(weights), table)
    load_strictly(ours, {name: weights[key] for key, name in renamed.items()}, add_prefix(table, "", ""))
    images = torch.randn(1, 3, 100, 77)
    with torch.no_grad():
        for expected, found in zip(theirs(images), ours(images).feature_maps, strict=True):
            torch.testing.assert_close(found, expected)


def test_auto_class():
    backbone = AutoBackbone.from_config(ResNetV1cConfig(**SMALL, out_features=["stage2", "stage4"]))
    assert type(backbone) is ResNetV1cBackbone
    assert backbone.channels == [16, 32]


def test_wrong_number_of_channels():
    with pytest.raises(ValueError, match=r"\(batch_size, 3, height, width\), got \(1, 4, 64, 64\).*num_channels"):
        ResNetV1cBackbone(ResNetV1cConfig(**SMALL))(torch.zeros(1, 4, 64, 64))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": [1, 1]}, "need one entry a stage"),
        ({"strides": [1, 2, 0, 1]}, "must be at least 1"),
        ({"embedding_size": 7}, "`embedding_size` must be a multiple of 2"),
        ({"hidden_sizes": [16, 18, 24, 32]}, "and `hidden_sizes` of 4"),
    ],
)
def test_bad_config(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        ResNetV1cConfig(**fields)
