# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Data of training: layouts, mappings and streams; and the labels of a recipe."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSemanticSegmentation

from common.interrupted_training import train_until_first_checkpoint
from common.segmentation_folders import write_folders
from hf_segmodels import SegmenterImageProcessor
from hf_segmodels.data import DatasetSpec, SegmentationData, find_id2label, load_segmentation_dataset
from hf_segmodels.training import AugmentedStream
from hf_segmodels.training import accelerate_loop as script
from hf_segmodels.training.factory import build_data, build_model
from hf_segmodels.training.recipe import Recipe


NUMBER = 12


@pytest.fixture
def numbered(tmp_path):
    """A stream of samples, each of which has its number as its class."""
    maps = {f"{index:02d}": np.full((6, 8), index, np.uint8) for index in range(NUMBER)}
    folder = write_folders(tmp_path / "numbered", maps)
    return SegmentationData(DatasetSpec(folder, "folder", streaming=True), "train")


def flip_at_random(image, label_map):
    return (image.flip(-1) if torch.rand(()) < 0.5 else image), label_map


def batches_of(data, start=0, stop=9, num_workers=0, **options):
    """Images of each batch, and the samples' numbers."""
    stream = AugmentedStream(data, flip_at_random, seed=3, batch_size=2, start=start, stop=stop, **options)
    loaded = list(DataLoader(stream, batch_size=2, num_workers=num_workers))
    return [images for images, _ in loaded], [labels[:, 0, 0].tolist() for _, labels in loaded]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streams_go_on_where_they_stopped(numbered, num_workers):
    images, numbers = batches_of(numbered, num_workers=num_workers)
    assert len(numbers) == 9
    # both epochs have every sample, in another order
    epochs = [list(itertools.chain(*part)) for part in (numbers[:6], numbers[6:])]
    if num_workers == 0:
        assert sorted(epochs[0]) == list(range(NUMBER))
        assert epochs[0] != sorted(epochs[0])
        assert epochs[1] != epochs[0][: len(epochs[1])]
    assert batches_of(numbered, num_workers=num_workers)[1] == numbers
    rest_of_images, rest = batches_of(numbered, start=4, num_workers=num_workers)
    assert rest == numbers[4:]
    assert all(torch.equal(a, b) for a, b in zip(rest_of_images, images[4:], strict=True))


def test_processes_split_a_stream(numbered):
    shards = [batches_of(numbered, stop=3, process_index=index, num_processes=2)[1] for index in range(2)]
    assert sorted(itertools.chain(*shards[0], *shards[1])) == list(range(NUMBER))


def test_more_workers_than_shards_are_refused(numbered):
    with pytest.raises(ValueError, match=r"12 shards of the streamed data: set `num_workers` to at most 1"):
        batches_of(numbered, num_workers=2, num_processes=8)


@pytest.fixture
def camera_in_folders(camera, tmp_path):
    """The files of `camera`: streaming those, `datasets` sleeps after each epoch."""
    for split in ("train", "validation"):
        for index, row in enumerate(load_segmentation_dataset(camera, split)):
            for column in ("image", "label"):
                path = tmp_path / "camera" / f"{column}s" / split / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                row[column].save(path)
    return tmp_path / "camera"


def test_streamed_runs_learn_and_resume(recipe, camera_in_folders):
    # the model has no dropout: what differs can only be the data
    fields = {"dataset": str(camera_in_folders), "layout": "folder", "id2label": {0: "dark", 1: "bright"}}
    fields |= {"streaming": True, "max_steps": 20, "checkpoint_steps": 10}
    whole = recipe("whole", **fields)
    scores = script.train(whole)
    assert scores["losses"][-1] < 0.5 * scores["losses"][0]
    assert scores["mean_iou"] > 0.9

    part = recipe("part", **fields)
    train_until_first_checkpoint(script.train, part, script, "save_checkpoint")
    part.resume = True
    assert script.train(part)["losses"] == scores["losses"]
    states = [AutoModelForSemanticSegmentation.from_pretrained(run.output_dir).state_dict() for run in (whole, part)]
    assert all(torch.equal(values, states[1][name]) for name, values in states[0].items())


def test_layout_and_mapping_of_a_recipe(recipe, tmp_path):
    maps = {"a": np.resize(np.array([0, 7, 9], np.uint8), (6, 9)), "b": np.full((6, 9), 7, np.uint8)}
    fields = {"dataset": str(write_folders(tmp_path / "own", maps)), "layout": "folder", "id2label": {0: "x", 1: "y"}}
    run = recipe(**fields, label_mapping={0: None, 7: 0, 9: 1})
    processor = SegmenterImageProcessor(num_labels=2)
    assert build_data(run, processor, "train").class_counts(2).tolist() == [18 + 54, 18]
    # without the mapping, the quick look stops the run
    with pytest.raises(ValueError, match="outside-classes"):
        build_data(recipe(**fields), processor, "train")


def test_classes_are_those_of_the_layout(recipe):
    run = recipe(layout="cityscapes", dataset="nowhere")
    assert find_id2label(run.dataset_spec, run.id2label)[0] == "road"
    with torch.device("meta"):
        model, processor = build_model(run)
    assert model.config.num_labels == processor.num_labels == 19


def test_labels_of_recipes_are_those_of_their_models(repository):
    recipes = sorted((repository / "training" / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        recipe = Recipe.read(path)
        labels = recipe.label_spec()
        with torch.device("meta"):
            model, processor = build_model(recipe)
        assert labels.num_labels == model.config.num_labels
        assert labels.id2label == model.config.id2label
        for name in ("do_reduce_labels", "ignore_index"):
            assert getattr(labels, name) == getattr(processor, name), (path, name)
        for name in ("layout", "image_column", "label_column", "label_mapping", "streaming"):
            assert getattr(recipe.dataset_spec, name) == getattr(recipe, name), (path, name)
        assert recipe.dataset_spec.source == recipe.dataset
        assert recipe.splits == list(dict.fromkeys([recipe.train_split, recipe.eval_split]))


def test_defaults_of_a_recipe(tmp_path):
    path = Path(tmp_path / "recipe.yaml")
    path.write_text("dataset: x\nmodel: {model_type: segmenter}\n")
    recipe = Recipe.read(path)
    assert recipe.dataset_spec == DatasetSpec("x")
    with torch.device("meta"):
        assert recipe.label_spec().num_labels == build_model(recipe)[0].config.num_labels == 150
