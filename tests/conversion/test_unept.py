# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Conversion of UN-EPT: configurations, image processors, errors."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from common.convert_command import main
from common.original_unept import (
    CONFIGURATIONS,
    TINY_DEIT,
    TINY_RESNET,
    network,
    unept_shapes,
    write_checkpoint,
)
from hf_segmodels.conversion import ConversionError, convert
from hf_segmodels.conversion.formats.unept import UNEPTFormat
from hf_segmodels.conversion.reference.unept import unept_forward


def run(checkpoint: Path, folder: Path, *options: str) -> int:
    return main(["--method", "unept", "--checkpoint", str(checkpoint), "--output_dir", str(folder), *options])


@pytest.mark.parametrize("backbone", [TINY_DEIT, TINY_RESNET])
def test_converted_models_behave_as_the_original(backbone, tmp_path, capsys):
    names = [f"class{index}" for index in range(5)]
    checkpoint = write_checkpoint(tmp_path / "original", backbone, CLASSES=names)
    assert run(checkpoint, tmp_path / "converted", "--verify") == 0
    report = json.loads((tmp_path / "converted" / "parity_report.json").read_text())
    assert [case["shape"] for case in report["cases"].values()] == [[1, 5, 64, 64], [2, 5, 59, 35]]
    assert all(case["max_abs_difference"] < 1e-4 for case in report["cases"].values())

    config = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "converted").config
    assert (config.decoder_self_attention, config.refine_at_inference) == ("across_batch", False)
    assert (config.window_size, config.window_stride, config.small_image_mode) == ([64, 64], [21, 21], "pad")
    assert list(config.id2label.values()) == names
    assert "its decoder attends over the images of a batch" in capsys.readouterr().out


def test_verification_finds_another_model(tmp_path, monkeypatch, capsys):
    checkpoint = write_checkpoint(tmp_path / "original")
    monkeypatch.setattr(
        "hf_segmodels.conversion.formats.unept.unept_forward",
        lambda *arguments, **fields: unept_forward(*arguments, **{**fields, "num_heads": 4}),
    )
    assert run(checkpoint, tmp_path / "converted", "--verify") == 1
    assert "FAILED" in capsys.readouterr().out
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize(
    ("num_classes", "size", "reduce_labels"),
    [
        (150, {"shortest_edge": 512, "longest_edge": 2048}, True),
        (60, {"shortest_edge": 520, "longest_edge": 520}, False),
        (5, {"shortest_edge": 512, "longest_edge": 2048}, False),
    ],
)
def test_the_number_of_classes_decides_the_processor(num_classes, size, reduce_labels, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "original", num_classes=num_classes)
    assert run(checkpoint, tmp_path / "converted") == 0
    processor = AutoImageProcessor.from_pretrained(tmp_path / "converted")
    assert dict(processor.size) == size
    assert (processor.do_reduce_labels, processor.num_labels) == (reduce_labels, num_classes)
    assert [round(value, 3) for value in processor.image_mean] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_originals_models_are_recognized_without_configuration(name):
    backbone, num_classes, _ = CONFIGURATIONS[name]
    shapes = unept_shapes(network(backbone), num_classes, 480)
    _, known = UNEPTFormat().recognize({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    assert known["dataset_type"] == {150: "ADE20KDataset", 60: "PascalContextDataset"}[num_classes]
    assert known["model"]["backbone_cfg"]["type"] == backbone["type"]
    assert known["test_cfg"] == {"mode": "slide", "crop_size": (480, 480), "stride": (160, 160)}


def without_config(checkpoint: Path) -> None:
    contents = torch.load(checkpoint, weights_only=True)
    contents["meta"].pop("config")
    torch.save(contents, checkpoint)


def test_unknown_models_need_their_configuration(tmp_path):
    checkpoint = write_checkpoint(tmp_path)
    without_config(checkpoint)
    with pytest.raises(
        ConversionError, match="holds no configuration, and no released checkpoint has its keys and shapes"
    ):
        convert(checkpoint)
    config = tmp_path / "config.py"
    config.write_text(f"model = {network(TINY_DEIT, k=2, hidden_dim=64, depth=1)!r}\n")
    model = convert(checkpoint, config).model
    assert model.config.window_size is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 3}, "`k` 3 against 2"),
        ({"L": 4}, "`L` 4 against 3"),
        ({"heads": None}, "does not describe .*'heads' is missing"),
        ({"heads": 0}, "does not describe .*by zero"),
        ({"backbone_cfg": {**TINY_DEIT, "type": "Swin"}}, "'Swin' is not supported: expected one of DeiT, ResNetV1c"),
        ({"backbone_cfg": {**TINY_RESNET}}, "does not describe .*backbone.stem"),
    ],
)
def test_configurations_of_other_models_are_refused(changes, message, tmp_path):
    checkpoint = write_checkpoint(tmp_path)
    config = tmp_path / "config.json"
    values = {**network(TINY_DEIT, k=2, hidden_dim=64, depth=1), **changes}
    config.write_text(json.dumps({"model": {key: value for key, value in values.items() if value is not None}}))
    with pytest.raises(ConversionError, match=message):
        convert(checkpoint, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("mask_head.1.running_var"), "missing: mask_head.1.running_var"),
        (lambda weights: weights.update({"extra.weight": torch.zeros(1)}), "no counterpart in the model: extra.weight"),
        (
            lambda weights: weights.update({"dir_head.3.weight": torch.zeros(4, 256, 1, 1)}),
            r"dir_head.3.weight \(4, 256, 1, 1\) instead of \(8, 256, 1, 1\)",
        ),
        (
            lambda weights: weights.update({"query_embed.weight": torch.zeros(63, 256)}),
            "`the square of the rows of queries` 49 against 63",
        ),
        (lambda weights: weights.update({"cls.weight": torch.zeros(5)}), "does not describe"),
        (lambda weights: weights.update({"query_embed.weight": torch.zeros(())}), "does not describe"),
        (
            lambda weights: [weights.pop(key) for key in list(weights) if key.startswith("layers.")],
            "does not describe",
        ),
    ],
)
def test_changed_weights_are_refused(change, message, tmp_path):
    checkpoint = write_checkpoint(tmp_path)
    contents = torch.load(checkpoint, weights_only=True)
    change(contents["state_dict"])
    contents["meta"]["config"] = contents["meta"]["config"].replace("'num_queries': 64", "'num_queries': None")
    torch.save(contents, checkpoint)
    with pytest.raises(ConversionError, match=message):
        convert(checkpoint)
