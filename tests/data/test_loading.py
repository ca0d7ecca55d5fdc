# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Data sets of the `datasets` library, label mappings, streams and shards."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image

from common.segmentation_folders import label_map, write_ade20k, write_folders
from hf_segmodels.data import DatasetSpec, find_id2label, load_segmentation_dataset


def write_parquet(folder, maps, image="image", label="label", name="train", shards=1):
    folder.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({"id": datasets.Value("int64"), image: datasets.Image(), label: datasets.Image()})
    rows = {
        "id": list(range(len(maps))),
        image: [Image.fromarray(np.full((*labels.shape, 3), index, np.uint8)) for index, labels in enumerate(maps)],
        label: [Image.fromarray(labels) for labels in maps],
    }
    dataset = datasets.Dataset.from_dict(rows, features=features)
    for index in range(shards):
        dataset.shard(shards, index, contiguous=True).to_parquet(folder / f"{name}-{index:05d}-of-{shards:05d}.parquet")
    return str(folder)


def values(dataset):
    return [np.unique(np.array(row["label"])).tolist() for row in dataset]


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_any_name(tmp_path, streaming):
    # as unlucky as can be: each has the other's name
    source = write_parquet(tmp_path / "data", [label_map(1, 255)], image="label", label="image")
    spec = DatasetSpec(source, image_column="label", label_column="image", streaming=streaming)
    dataset = load_segmentation_dataset(spec, "train")
    (row,) = dataset
    assert row.keys() == {"image", "label"}
    assert row["image"].mode == "RGB"
    assert np.unique(np.array(row["label"])).tolist() == [1, 255]


def test_columns_that_are_missing(tmp_path):
    source = write_parquet(tmp_path / "data", [label_map(1)], image="photo")
    with pytest.raises(ValueError, match=r"no column \['image'\]: set .* to two of \['id', 'photo', 'label'\]"):
        load_segmentation_dataset(source, "train")


def test_hints_at_the_layout(tmp_path):
    write_folders(tmp_path / "data", {"a": label_map(0)})
    # `datasets` takes the folders' names for classes
    with pytest.raises(ValueError, match="has one class for each image, .* or `layout` to folder"):
        load_segmentation_dataset(tmp_path / "data", "train")


def test_label_maps_as_arrays(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Array2D((6, 8), "int64")})
    rows = {"image": [Image.new("RGB", (8, 6))], "label": [label_map(0, 300, dtype=np.int64)]}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "train.parquet")
    (row,) = load_segmentation_dataset(tmp_path / "data", "train")
    assert np.array_equal(np.array(row["label"]), rows["label"][0])


@pytest.mark.parametrize("streaming", [False, True])
def test_mapping(tmp_path, streaming):
    source = write_parquet(tmp_path / "data", [label_map(0, 7, 255), label_map(9)])
    mapping = {0: None, 255: None, 7: 0, 9: 1}
    (tmp_path / "mapping.json").write_text(json.dumps(mapping))
    for given in (mapping, str(tmp_path / "mapping.json")):
        dataset = load_segmentation_dataset(DatasetSpec(source, label_mapping=given, streaming=streaming), "train")
        assert values(dataset) == [[0, 255], [1]]
    # labels that need a sign
    spec = DatasetSpec(source, label_mapping=mapping, streaming=streaming)
    dataset = load_segmentation_dataset(spec, "train", ignore_index=-100)
    assert values(dataset) == [[-100, 0], [1]]
    # `select_columns` leaves images undecoded
    if not streaming:
        assert dataset.select_columns("label")[1].keys() == {"label"}


def test_mapping_replaces_that_of_the_layout(tmp_path):
    write_ade20k(tmp_path, {"a": label_map(0, 1, 2)})
    mapping = {0: None, 1: 1, 2: 0}
    dataset = load_segmentation_dataset(DatasetSpec(tmp_path, "ade20k", label_mapping=mapping), "validation")
    assert np.array(dataset[0]["label"])[0, :3].tolist() == [255, 1, 0]


def test_values_without_a_class_are_refused(tmp_path):
    source = write_folders(tmp_path, {"a": label_map(0, 1), "b": label_map(3, 0, 200)})
    dataset = load_segmentation_dataset(DatasetSpec(source, "folder", label_mapping={0: 0, 1: 1}), "train")
    assert np.unique(np.array(dataset[0]["label"])).tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"b.png\) holds values that have no class in the label mapping: 3, 200\. Add"):
        dataset[1]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "must map values"),
        ({"road": 0}, "not 'road' to 0"),
        ({0: "road"}, "not 0 to 'road'"),
        ({0: 0, 2**21: 1}, "spans 2097153 values"),
        ("missing.json", "missing.json, the `label_mapping`, cannot be read"),
    ],
)
def test_mappings_that_are_none(tmp_path, mapping, message):
    write_folders(tmp_path, {"a": label_map(0)})
    with pytest.raises(ValueError, match=message):
        load_segmentation_dataset(DatasetSpec(tmp_path, "folder", label_mapping=mapping), "train")


@pytest.mark.parametrize("mapping", [None, {value: value for value in range(10)}])
def test_streams_have_the_same_rows(tmp_path, mapping):
    write_folders(tmp_path, {f"{index:02d}": label_map(index) for index in range(10)})
    rows, stream = (
        load_segmentation_dataset(DatasetSpec(tmp_path, "folder", label_mapping=mapping, streaming=streaming), "train")
        for streaming in (False, True)
    )
    assert isinstance(stream, datasets.IterableDataset)
    assert values(stream) == values(rows) == [[index] for index in range(10)]
    for row, streamed in zip(rows, stream, strict=True):
        assert np.array_equal(np.array(row["image"]), np.array(streamed["image"]))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("num_processes", [2, 3])
@pytest.mark.parametrize("layout", ["folder", None])
def test_shards_of_processes(tmp_path, streaming, num_processes, layout):
    maps = [label_map(index) for index in range(10)]
    if layout:
        write_folders(tmp_path / "data", {f"{index:02d}": labels for index, labels in enumerate(maps)})
    else:
        write_parquet(tmp_path / "data", maps, shards=2)
    spec = DatasetSpec(tmp_path / "data", layout, streaming=streaming)
    shards = [
        values(load_segmentation_dataset(spec, "train", process_index=index, num_processes=num_processes))
        for index in range(num_processes)
    ]
    assert sorted(value for shard in shards for value in shard) == [[index] for index in range(10)]
    assert max(map(len, shards)) - min(map(len, shards)) <= 2


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path):
    write_folders(tmp_path, {"a": label_map(0), "b": label_map(1)})
    (tmp_path / "labels" / "b.png").write_bytes(b"no image")
    dataset = load_segmentation_dataset(DatasetSpec(tmp_path, "folder"), "train")
    assert dataset[0]["label"].size == (8, 6)
    with pytest.raises(OSError, match="cannot identify"):
        dataset[1]


def test_class_names(tmp_path):
    assert find_id2label(tmp_path) is None
    assert len(find_id2label(DatasetSpec(tmp_path, "cityscapes"))) == 19
    assert find_id2label(DatasetSpec(tmp_path, "folder")) is None
    (tmp_path / "id2label.json").write_text('{"0": "dark", "1": "bright"}')
    assert find_id2label(DatasetSpec(tmp_path, "cityscapes")) == {0: "dark", 1: "bright"}
    assert find_id2label("elsewhere", str(tmp_path / "id2label.json")) == {0: "dark", 1: "bright"}
    assert find_id2label(tmp_path, {"0": "a"}) == {0: "a"}


@pytest.mark.parametrize("names", [["a", "b"], {1: "a", 2: "b"}, {"a": 0}, {}])
def test_class_names_that_are_none(tmp_path, names):
    for layout in (None, "cityscapes"):
        with pytest.raises(ValueError, match="`id2label` must name the classes from 0 on"):
            find_id2label(DatasetSpec(tmp_path, layout), names)
    (tmp_path / "id2label.json").write_text(json.dumps(names))
    with pytest.raises(ValueError, match=r"id2label.json, the class names, must name the classes from 0 on"):
        find_id2label(DatasetSpec(tmp_path, "cityscapes"))
    (tmp_path / "id2label.json").write_text("road, sky")
    with pytest.raises(ValueError, match=r"id2label.json, the class names, cannot be read"):
        find_id2label(tmp_path)
