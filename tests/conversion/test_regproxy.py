# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Conversion of RegProxy: configurations, image processors, errors."""

import json
from pathlib import Path

import pytest
import torch

from common.convert_command import main
from common.original_regproxy import TINY_CONFIG, write_checkpoint
from hf_segmodels.conversion import ConversionError, convert
from hf_segmodels.conversion.formats.regproxy import RegProxyFormat
from hf_segmodels.conversion.mmcv_config import parse_mmcv_config


def test_configuration_in_the_checkpoint(tmp_path: Path):
    conversion = convert(write_checkpoint(tmp_path))
    config = conversion.model.config
    assert (config.token_head_depth, config.region_resolution, config.batch_norm_eps) == (1, [4, 2], 1e-5)
    assert (config.odd_size_mode, config.loss_reduction, config.small_image_mode) == ("resize", "pixel_mean", "pad")
    assert (config.window_size, config.window_stride) == ([64, 48], [32, 48])
    assert list(config.id2label.values()) == list("abcde")
    backbone = config.backbone_config
    assert (backbone.hidden_size, backbone.num_hidden_layers, backbone.num_attention_heads) == (64, 3, 2)
    assert (backbone.position_grid, backbone.drop_path_rate, backbone.layer_norm_eps) == ((4, 3), 0.1, 1e-6)
    assert backbone.position_embedding_resize_rule == "token_count"
    processor = conversion.image_processor
    assert dict(processor.size) == {"shortest_edge": 64, "longest_edge": 256}
    assert [list(processor.image_mean), list(processor.image_std)] == [[0.2, 0.4, 0.5], [0.1, 0.2, 0.25]]
    assert processor.do_reduce_labels
    assert processor.num_labels == 5
    assert conversion.dropped_keys == []


def test_tiny_checkpoint_verifies(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "original")
    arguments = ["--method", "regproxy", "--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "new")]
    assert main([*arguments, "--verify"]) == 0
    report = json.loads((tmp_path / "new" / "parity_report.json").read_text())
    assert [case["shape"] for case in report["cases"].values()] == [[1, 5, 64, 48], [2, 5, 59, 27]]


@pytest.mark.parametrize("suffix", [".json", ".py"])
def test_configuration_file_overrides_the_checkpoints_own(suffix: str, tmp_path: Path):
    text = TINY_CONFIG.replace("out_indices=(0, 2)", "out_indices=(-1, 2)").replace("eps=1e-06", "eps=1e-05")
    path = tmp_path / f"config{suffix}"
    path.write_text(text if suffix == ".py" else json.dumps(parse_mmcv_config(text, "here")))
    config = convert(write_checkpoint(tmp_path), path).model.config
    assert config.token_head_depth == 0
    assert config.backbone_config.layer_norm_eps == 1e-5


@pytest.mark.parametrize("text", [TINY_CONFIG, None, "import os"])
def test_configuration_without_pipelines(text: str | None, tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model": parse_mmcv_config(TINY_CONFIG, "here")["model"]}))
    conversion = convert(write_checkpoint(tmp_path, text), path)
    shortest_edge = 64 if text == TINY_CONFIG else 512  # the checkpoint's own, or ADE20K's
    assert conversion.image_processor.size["shortest_edge"] == shortest_edge
    assert conversion.image_processor.do_reduce_labels is (text == TINY_CONFIG)
    assert any("no pipelines" in note for note in conversion.notes) is (text != TINY_CONFIG)


def test_whole_images_and_unnamed_classes(tmp_path: Path):
    text = TINY_CONFIG.replace("mode='slide'", "mode='whole'")
    config = convert(write_checkpoint(tmp_path, text, CLASSES=("too", "few"))).model.config
    assert config.window_size is None
    assert config.id2label[4] == "LABEL_4"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_layers=3", "num_layers=4", "`num_layers of the encoder` 4 against 3"),
        ("embed_dims=64", "embed_dims=32", "`embed_dims of the encoder` 32 against 64"),
        ("num_classes=5", "num_classes=6", "`num_classes` 6 against 5"),
        ("region_res=(4, 2)", "region_res=(4, 4)", "`9 times the area of region_res` 144 against 72"),
        ("out_indices=(0, 2)", "out_indices=(0, 1)", "`the last of out_indices` 1 against 2"),
        ("out_indices=(0, 2)", "out_indices=(2,)", "does not describe .*index out of range"),
        ("in_index=(-2, -1)", "align_corners=True", "`align_corners` True against False"),
        ("img_size=(64, 48)", "img_size=(64, 64)", "are of 12 patches, which is not 4 x 4"),
        ("interpolate_mode='bicubic'", "interpolate_mode='nearest'", "does not describe .*'bilinear', 'bicubic'"),
        ("region_res=(4, 2)", "channels=64", "'region_res' is missing"),
    ],
)
def test_configuration_of_another_model_is_refused(old: str, new: str, message: str, tmp_path: Path):
    assert old in TINY_CONFIG
    with pytest.raises(ConversionError, match=message):
        convert(write_checkpoint(tmp_path, TINY_CONFIG.replace(old, new)))


def test_unknown_model_without_a_configuration(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path, config=None)
    assert RegProxyFormat().recognize(torch.load(checkpoint, weights_only=True)["state_dict"]) is None
    with pytest.raises(
        ConversionError, match="holds no configuration, and no released checkpoint has its keys and shapes"
    ):
        convert(checkpoint)


def test_code_in_the_configuration_is_not_run(tmp_path: Path):
    with pytest.raises(ConversionError, match="is more than values and was not run"):
        convert(write_checkpoint(tmp_path, "import os"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("backbone.ln1.bias"), r"missing: backbone\.ln1\.bias"),
        (lambda weights: weights.update({"decode_head.conv_seg.bias": torch.zeros(5)}), r"decode_head\.conv_seg\.bias"),
        (lambda weights: weights.pop("backbone.pos_embed"), "'embeddings.position_embeddings' is missing"),
    ],
)
def test_missing_and_left_over_weights_are_named(change, message: str, tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path)
    contents = torch.load(checkpoint, weights_only=True)
    change(contents["state_dict"])
    torch.save(contents, checkpoint)
    with pytest.raises(ConversionError, match=message):
        convert(checkpoint)
