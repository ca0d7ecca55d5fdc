# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoBackbone

from hf_segmodels import ResNetV1cBackbone, ResNetV1cConfig, UNEPTConfig, UNEPTForSemanticSegmentation
from hf_segmodels.conversion import ConversionError, load_backbone_weights
from hf_segmodels.conversion.formats.resnet_v1c import MMSEG_RESNET_V1C


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
def test_features_are_timms(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("resnet50c", output_stride=8, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1)
    ours = ResNetV1cBackbone(ResNetV1cConfig(out_indices=[1, 2, 3, 4])).eval()
    weights = theirs.state_dict() | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    torch.save(weights, tmp_path / "resnet50c.pth")
    assert load_backbone_weights(ours, tmp_path / "resnet50c.pth") == ["fc.weight", "fc.bias"]
    images = torch.randn(1, 3, 100, 77)
    with torch.no_grad():
        for expected, found in zip(theirs(images), ours(images).feature_maps, strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_weights_of_mmsegmentation(prefix, tmp_path):
    ours, source = (ResNetV1cBackbone(ResNetV1cConfig(**SMALL, dilations=d)) for d in ([1, 1, 2, 4], [1, 1, 1, 1]))
    names = {ours: mmseg for mmseg, ours in MMSEG_RESNET_V1C.items()}
    weights = {}
    for name, tensor in source.state_dict().items():
        stage, layer = re.findall(r"\d+", name)[:2] if name.startswith("stages") else ("0", "0")
        part = name.rsplit(".", 1)[1]
        pattern = re.sub(r"^stages\.\d+\.layers\.\d+", "stages.{s-1}.layers.{b}", name.removesuffix(part) + "{p}")
        weights[prefix + names[pattern].format(s=int(stage) + 1, b=layer, p=part)] = tensor
    torch.save({"meta": {}, "state_dict": weights | {"head.fc.weight": torch.zeros(3)}}, tmp_path / "resnet.pth")
    model = UNEPTForSemanticSegmentation(
        UNEPTConfig(backbone_config=ours.config, hidden_size=16, num_attention_heads=2, image_size=64)
    )
    assert load_backbone_weights(model, tmp_path / "resnet.pth") == ["head.fc.weight"]
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name

    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "other.pth")
    with pytest.raises(ConversionError, match="no counterpart in the model: conv1.weight"):
        load_backbone_weights(model, tmp_path / "other.pth")
    weights.pop(f"{prefix}layer2.0.bn1.weight")
    torch.save(weights, tmp_path / "part.pth")
    with pytest.raises(ConversionError, match="missing: layer2.0.bn1.weight"):
        load_backbone_weights(model, tmp_path / "part.pth")


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
        ({"depths": [1, 1]}, "must have one entry for each stage"),
        ({"strides": [1, 2, 0, 1]}, "must be at least 1"),
        ({"embedding_size": 7}, "`embedding_size` must be a multiple of 2"),
        ({"hidden_sizes": [16, 18, 24, 32]}, "and `hidden_sizes` of 4"),
    ],
)
def test_bad_config(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        ResNetV1cConfig(**fields)
