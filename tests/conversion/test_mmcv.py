# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import json

import pytest

from hf_segmodels.conversion import ConversionError
from hf_segmodels.conversion.mmcv_config import label_fields, parse_mmcv_config, read_mmseg_config


TEXT = """
'''A comment.'''
norm_cfg = dict(type='LN', eps=1e-06)
size = (64, 32)
model = dict(backbone=dict(img_size=size, out_indices=[-1, 3], norm_cfg=norm_cfg), pretrained=None)
data = {'crop': size, 2: [True, 'x']}
rules = dict({'.ln': dict(decay_mult=0.0)}, custom=-1)
test_cfg = dict(mode='slide')
"""


def test_values_are_read_without_running_the_text():
    assert parse_mmcv_config(TEXT, "here") == {
        "norm_cfg": {"type": "LN", "eps": 1e-6},
        "size": (64, 32),
        "model": {
            "backbone": {"img_size": (64, 32), "out_indices": [-1, 3], "norm_cfg": {"type": "LN", "eps": 1e-6}},
            "pretrained": None,
        },
        "data": {"crop": (64, 32), 2: [True, "x"]},
        "rules": {".ln": {"decay_mult": 0.0}, "custom": -1},
        "test_cfg": {"mode": "slide"},
    }


@pytest.mark.parametrize(
    "code",
    [
        "import os",
        "x = open('f', 'w')",
        "x = dict(**y)",
        "x = {**{}}",
        "x = dict([(1, 2)])",
        "x = unknown",
        "x = [i for i in (1, 2)]",
        "x.y = 1",
        "x = y = 1",
        "print(1)",
        "x = dict(a=__import__('os').getcwd())",
        "for x in (1,): pass",
    ],
)
def test_code_is_refused(code):
    with pytest.raises(ConversionError, match="Line 2 of the configuration in here is more than values"):
        parse_mmcv_config(f"z = 1\n{code}", "here")


def test_other_text_is_refused():
    with pytest.raises(ConversionError, match="is not Python text"):
        parse_mmcv_config("x = (", "here")


def test_configuration_comes_from_file_or_checkpoint(tmp_path):
    from_meta = read_mmseg_config(None, {"config": TEXT})
    assert from_meta is not None
    assert from_meta["test_cfg"] == {"mode": "slide"}

    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model": {"type": "EncoderDecoder", "test_cfg": {"mode": "whole"}}}))
    from_json = read_mmseg_config(path, {"config": TEXT})
    assert from_json is not None
    assert from_json["model"]["type"] == "EncoderDecoder"
    assert from_json["test_cfg"] == {"mode": "whole"}

    path = tmp_path / "config.py"
    path.write_text(TEXT)
    assert read_mmseg_config(path, {}) == from_meta
    assert read_mmseg_config(None, {}) is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "is not valid JSON"),
        ("a.json", "[]", "has no `model`"),
        ("a.py", "_base_ = ['x.py']", "has no `model`"),
        ("a.py", None, "There is no file"),
    ],
)
def test_bad_configuration(tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConversionError, match=message):
        read_mmseg_config(path, {})


@pytest.mark.parametrize(
    ("number", "dataset_type", "first"),
    [
        (150, "ADE20KDataset", "wall"),
        (19, "CityscapesDataset", "road"),
        (60, "PascalContextDataset", "background"),
        (59, "PascalContextDataset59", "aeroplane"),
        (171, "COCOStuffDataset", "person"),
    ],
)
def test_classes_are_named_by_the_checkpoint_or_its_data_set(number, dataset_type, first):
    config = {"dataset_type": dataset_type}
    fields = label_fields(number, (), config)
    assert (fields["id2label"][0], len(fields["id2label"]), fields["label2id"][first]) == (first, number, 0)
    assert label_fields(number, [f"class {index}" for index in range(number)], config)["id2label"][0] == "class 0"
    # names of other classes, or a data set with others, name none
    assert label_fields(7, ["x"], config) == {"num_labels": 7}
    # nor does the number alone
    for other in ({}, {"dataset_type": None}, {"dataset_type": "CustomDataset"}):
        assert label_fields(number, (), other) == {"num_labels": number}
