# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Conversion of SegViT: configurations, image processors, unused weights, errors."""

import json
from pathlib import Path

import pytest
import torch

from common.convert_command import main
from common.original_segvit import SHRUNK_CONFIG, TINY_CONFIG, write_checkpoint
from hf_segmodels.conversion import ConversionError, convert
from hf_segmodels.conversion.formats.segvit import SegViTFormat
from hf_segmodels.conversion.mmcv_config import parse_mmcv_config


UNUSED = ["backbone.cls_token", "backbone.pos_embed[:, :1]", "decode_head.loss_decode.criterion.empty_weight"]


def change_weights(checkpoint: Path, change) -> None:
    contents = torch.load(checkpoint, weights_only=True)
    change(contents["state_dict"])
    torch.save(contents, checkpoint)


def test_configuration_in_the_checkpoint(tmp_path: Path):
    conversion = convert(write_checkpoint(tmp_path))
    config = conversion.model.config
    assert (config.decoder_type, config.decoder_hidden_size, config.decoder_num_hidden_layers) == ("cascade", 32, 2)
    assert (config.decoder_num_attention_heads, config.decoder_intermediate_size) == (4, 128)
    assert (config.prediction_size, config.odd_size_mode, config.small_image_mode) == ([64, 64], "resize", "none")
    assert (config.window_size, config.window_stride, config.min_scaled_size) == ([64, 64], [43, 43], 64)
    assert list(config.id2label.values()) == list("abcde")
    backbone = config.backbone_config
    assert (backbone.hidden_size, backbone.num_hidden_layers, backbone.num_attention_heads) == (64, 3, 2)
    assert (backbone.position_grid, backbone.drop_path_rate, backbone.layer_norm_eps) == ((4, 4), 0.3, 1e-6)
    assert (backbone.use_cls_token, backbone.final_norm, backbone.query_downsampling_layer) == (False, "none", None)
    assert backbone.out_features == ["stage1", "stage3"]
    # the original takes squares only, so both rules agree
    assert backbone.position_embedding_resize_rule == "grid"
    processor = conversion.image_processor
    assert dict(processor.size) == {"shortest_edge": 64}  # min_size: the original looks at the shorter edge only
    assert [list(processor.image_mean), list(processor.image_std)] == [[0.5] * 3, [0.5] * 3]
    assert processor.do_reduce_labels
    assert conversion.dropped_keys == UNUSED
    assert conversion.notes == []


def test_shrunk_configuration(tmp_path: Path):
    conversion = convert(write_checkpoint(tmp_path, SHRUNK_CONFIG, shrunk=True))
    config = conversion.model.config
    assert (config.decoder_type, config.query_grid) == ("shrunk", [4, 4])
    assert config.backbone_config.query_downsampling_layer == 1
    assert conversion.dropped_keys == [*UNUSED, "decode_head.atm.loss_decode.criterion.empty_weight"]


@pytest.mark.parametrize("shrunk", [False, True])
def test_tiny_checkpoint_verifies(shrunk: bool, tmp_path: Path, capsys):
    checkpoint = write_checkpoint(tmp_path / "original", SHRUNK_CONFIG if shrunk else TINY_CONFIG, shrunk)
    arguments = ["--method", "segvit", "--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "new")]
    assert main([*arguments, "--verify"]) == 0
    report = json.loads((tmp_path / "new" / "parity_report.json").read_text())
    assert [case["shape"] for case in report["cases"].values()] == [[1, 5, 64, 64], [2, 5, 59, 35]]
    assert f"left out (not used for segmentation): {', '.join(UNUSED)}" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".json", ".py"])
def test_configuration_file_overrides_the_checkpoints_own(suffix: str, tmp_path: Path):
    text = TINY_CONFIG.replace("out_indices=[0, 2]", "out_indices=(1, -1)").replace("eps=1e-06", "eps=1e-05")
    text = text.replace("min_size=64", "ratio_range=None").replace(
        "loss_weight=1.0", "loss_weight=2.0, mask_weight=5.0"
    )
    path = tmp_path / f"config{suffix}"
    path.write_text(text if suffix == ".py" else json.dumps(parse_mmcv_config(text, "here")))
    conversion = convert(write_checkpoint(tmp_path), path)
    config = conversion.model.config
    assert config.backbone_config.out_features == ["stage2", "stage3"]
    assert config.backbone_config.layer_norm_eps == 1e-5
    assert config.min_scaled_size is None
    assert dict(conversion.image_processor.size) == {"shortest_edge": 48, "longest_edge": 256}
    assert (config.class_loss_weight, config.mask_loss_weight, config.dice_loss_weight) == (2.0, 10.0, 2.0)


def test_configuration_without_pipelines(tmp_path: Path):
    """The network comes from the file, the pipelines from the text inside the checkpoint."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model": parse_mmcv_config(TINY_CONFIG, "here")["model"]}))
    conversion = convert(write_checkpoint(tmp_path), path)
    assert dict(conversion.image_processor.size) == {"shortest_edge": 64}
    assert conversion.model.config.min_scaled_size == 64
    assert conversion.notes == []
    conversion = convert(write_checkpoint(tmp_path, config=None), path)
    assert dict(conversion.image_processor.size) == {"shortest_edge": 512, "longest_edge": 2048}
    assert conversion.notes == [
        "the configuration has no pipelines: images are resized and normalized as for ADE20K, 0 is a class"
    ]


def test_encoder_that_keeps_its_class_token(tmp_path: Path):
    text = TINY_CONFIG.replace("with_cls_token=False", "with_cls_token=True")
    conversion = convert(write_checkpoint(tmp_path, text))
    assert conversion.model.config.backbone_config.use_cls_token
    assert conversion.dropped_keys == UNUSED[2:]


@pytest.mark.parametrize(("num_classes", "reduces", "name"), [(59, True, "aeroplane"), (60, False, "background")])
def test_weights_decide_the_number_of_classes(num_classes: int, reduces: bool, name: str, tmp_path: Path):
    """The released Pascal Context checkpoints are named after 59 classes; the configuration has 60."""
    text = TINY_CONFIG.replace("num_classes=5", "num_classes=60").replace("reduce_zero_label=True", "")
    text = text.replace("dict(type='LoadAnnotations', )", "dict(type='LoadAnnotations')")
    text += "dataset_type = 'PascalContextDataset'\n"
    classes = tuple(f"class {index}" for index in range(61))
    conversion = convert(write_checkpoint(tmp_path, text, num_classes=num_classes, CLASSES=classes))
    config = conversion.model.config
    assert config.num_labels == num_classes
    assert config.id2label[0] == name
    assert conversion.image_processor.do_reduce_labels is reduces
    assert conversion.image_processor.num_labels == num_classes
    expected = ["the weights have 59 classes, the configuration 60: the number of the weights is used"]
    assert conversion.notes == (expected if num_classes == 59 else [])


@pytest.mark.parametrize("name", ["mask_embed.layers.0.weight", "mask_embed.0.bias", "mask_embed_2.weight"])
def test_leftovers_of_another_version_are_named(name: str, tmp_path: Path, capsys):
    """zbwxp/SegVit#8"""
    checkpoint = write_checkpoint(tmp_path / "original")
    change_weights(checkpoint, lambda weights: weights.update({f"decode_head.{name}": torch.zeros(2)}))
    arguments = ["--method", "segvit", "--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "new")]
    assert main([*arguments, "--verify"]) == 0
    output = capsys.readouterr().out
    assert f"decode_head.{name}" in output
    assert "note: `mask_embed` layers are left out" in output
    assert "evaluate before you rely on it" in output


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_layers=3", "num_layers=4", "`num_layers of the encoder` 4 against 3"),
        ("embed_dims=64", "embed_dims=48", "`embed_dims of the encoder` 48 against 64"),
        ("out_indices=[0, 2]", "out_indices=[2]", "`number of out_indices` 1 against 2"),
        ("use_stages=2", "use_stages=3", "`use_stages` 3 against 2"),
        ("num_layers=2", "num_layers=3", "`num_layers of the head` 3 against 2"),
        ("embed_dims=32", "embed_dims=64", "`embed_dims of the head` 64 against 32"),
        ("use_stages=2", "CE_loss=True", "`CE_loss` True against False"),
        ("num_classes=5, num_layers=2, num_heads=4", "num_layers=2, num_heads=5", "must be a multiple of"),
        ("img_size=(64, 64)", "img_size=(64, 48)", "are of 16 patches, which is not 4 x 3"),
        ("type='ATMHead', img_size=64", "type='ATMHead'", "'img_size' is missing"),
    ],
)
def test_configuration_of_another_model_is_refused(old: str, new: str, message: str, tmp_path: Path):
    assert old in TINY_CONFIG
    with pytest.raises(ConversionError, match=message):
        convert(write_checkpoint(tmp_path, TINY_CONFIG.replace(old, new)))


def test_queries_of_another_crop_are_refused(tmp_path: Path):
    text = SHRUNK_CONFIG.replace("type='TPNATMHead', img_size=64", "type='TPNATMHead', img_size=96")
    with pytest.raises(ConversionError, match="`rows of `q` in the head` 36 against 16"):
        convert(write_checkpoint(tmp_path, text, shrunk=True))


def test_unknown_model_without_a_configuration(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path, config=None)
    assert SegViTFormat().recognize(torch.load(checkpoint, weights_only=True)["state_dict"]) is None
    with pytest.raises(
        ConversionError, match="holds no configuration, and no released checkpoint has its keys and shapes"
    ):
        convert(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("backbone.pos_embed"), r"position_embeddings' is missing"),
        (lambda weights: weights.pop("backbone.layers.1.ln1.bias"), r"missing: backbone\.layers\.1\.ln1\.bias"),
        (
            lambda weights: weights.pop("decode_head.decoder_2.layers.1.self_attn.in_proj_bias"),
            r"missing: decode_head\.decoder_2\.layers\.1\.self_attn\.in_proj_bias",
        ),
        (lambda weights: weights.update({"decode_head.conv_seg.bias": torch.zeros(5)}), r"decode_head\.conv_seg\.bias"),
        (lambda weights: weights.pop("decode_head.class_embed.weight"), "class_embed.weight' is missing"),
    ],
)
def test_missing_and_left_over_weights_are_named(change, message: str, tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path)
    change_weights(checkpoint, change)
    with pytest.raises(ConversionError, match=message):
        convert(checkpoint)
