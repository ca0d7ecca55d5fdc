# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""A few synthetic images, and a recipe that trains a tiny model on them."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_segmodels.training.recipe import Recipe


MODEL = {
    "model_type": "segmenter",
    "decoder_type": "linear",
    "backbone_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    | {"image_size": 32, "use_cls_token": False},
}


def write_images(folder, first_class):
    """A data set of 8 + 2 images: the first class is dark, the second bright, the first row is void."""
    generator = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    for split, length in (("train", 8), ("validation", 2)):
        labels = generator.integers(0, 2, (length, 4, 5), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
        noise = generator.integers(0, 60, (*labels.shape, 3), dtype=np.uint8)
        images = labels[..., None] * np.uint8(180) + noise
        labels += np.uint8(first_class)
        labels[:, 0] = 255
        labels[:, 0, :20] = 255 if first_class == 0 else 0
        rows = {"image": list(map(Image.fromarray, images)), "label": list(map(Image.fromarray, labels))}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    (folder / "id2label.json").write_text(json.dumps({0: "dark", 1: "bright"}))
    return folder


@pytest.fixture(scope="session")
def camera(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("camera"), first_class=0)


@pytest.fixture(scope="session")
def camera_from_one(tmp_path_factory):
    """The same images with classes from 1 and 0 for unlabeled, as ADE20K has them."""
    return write_images(tmp_path_factory.mktemp("camera_from_one"), first_class=1)


@pytest.fixture
def recipe(camera, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def make(name="run", **fields):
        defaults = {
            "dataset": str(camera),
            "model": MODEL,
            "output_dir": str(tmp_path / name),
            "image_processor": {"do_resize": False},
            "base_size": [32, 40],
            "crop_size": [32, 32],
            "scale_range": [0.8, 1.2],
            "photometric_distortion": False,
            "max_class_ratio": 1.0,
            "batch_size": 4,
            "max_steps": 4,
            "optimizer": "adamw",
            "learning_rate": 0.01,
            "log_steps": 1,
        }
        return Recipe(**(defaults | fields))

    return make
