# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import json
import math
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import entropy

from benchmarks.region_entropies import main, region_entropies
from hf_segmodels import PlainViTConfig, RegProxyConfig, RegProxyForSemanticSegmentation, RegProxyImageProcessorPil


def test_entropy_of_pure_mixed_and_empty_regions():
    histograms = torch.tensor([[[8.0, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 2, 5]]])
    found = region_entropies(histograms)
    assert found.tolist() == pytest.approx([0, math.log(2), entropy([1, 2, 5])])


def test_script_measures_regions_and_draws_them(repository, tmp_path):
    torch.manual_seed(0)
    encoder = PlainViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=64)
    # windows smaller than the image, which the script has to leave out
    config = RegProxyConfig(backbone_config=encoder, token_head_depth=0, num_labels=2, window_size=32)
    RegProxyForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    size = {"shortest_edge": 64, "longest_edge": 256}
    RegProxyImageProcessorPil(size=size, do_reduce_labels=False).save_pretrained(tmp_path / "model")
    # two classes, and two colors, side by side: no square cell is mixed, because the edge lies between two cells
    labels = np.zeros((64, 96), np.uint8)
    labels[:, 48:] = 1
    image = Image.fromarray(np.repeat(labels[..., None] * 200, 3, axis=2).astype(np.uint8))
    image.save(tmp_path / "photo.png")
    rows = {"image": [image, image], "label": [Image.fromarray(labels)] * 2}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "validation.parquet")

    command = [sys.executable, repository / "benchmarks/region_entropies.py", tmp_path / "model", tmp_path / "data"]
    options = ["--limit", "1", "--picture", tmp_path / "photo.png", "--output", tmp_path / "output"]
    subprocess.run([*map(str, command), *map(str, options)], check=True, timeout=300)

    report = json.loads((tmp_path / "output/region_entropies.json").read_text())
    assert report["images"] == 1
    assert report["square cells"] == {"regions": 24, "mean entropy": 0.0, "pure": 1.0}
    assert report["superpixels"]["pure"] > 0.8
    # an untrained model distributes pixels over cells of both classes
    assert 0 < report["learned regions"]["pure"] < 1
    # four rows of cells, each drawn at least 24 pixels high
    assert Image.open(tmp_path / "output/regions.png").size == (192, 128)
    assert Image.open(tmp_path / "output/region_entropies.png").size[0] > 100


def test_a_limit_of_no_images_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["region_entropies.py", "model", "data", "--limit", "0"])
    with pytest.raises(SystemExit):
        main()
    assert "--limit must be at least 1" in capsys.readouterr().err


def test_columns_that_are_missing_are_named(tmp_path, monkeypatch, capsys):
    encoder = PlainViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=64)
    RegProxyForSemanticSegmentation(
        RegProxyConfig(backbone_config=encoder, token_head_depth=0, num_labels=2)
    ).save_pretrained(tmp_path / "model")
    RegProxyImageProcessorPil().save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict({"image": [1], "annotation": [1]}).to_parquet(tmp_path / "data" / "validation.parquet")
    monkeypatch.setattr(
        "sys.argv", ["region_entropies.py", str(tmp_path / "model"), str(tmp_path / "data"), "--split", "validation"]
    )
    with pytest.raises(SystemExit):
        main()
    assert "has the columns ['image', 'annotation'], but `image` and `label` are needed" in capsys.readouterr().err
