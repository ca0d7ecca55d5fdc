# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Decoded samples of data sets."""

import numpy as np
import pytest
import torch

from common.segmentation_folders import label_map, write_ade20k, write_cityscapes, write_folders, write_image
from hf_segmodels import SegmenterImageProcessor
from hf_segmodels.data import DatasetSpec, LabelSpec, SegmentationData


@pytest.fixture
def folder(tmp_path):
    return write_folders(tmp_path, {f"{index}": label_map(index, 255) for index in range(5)})


def test_samples(folder):
    data = SegmentationData(DatasetSpec(folder, "folder"), "train", processor=SegmenterImageProcessor(num_labels=5))
    image, labels = data[3]
    assert (image.shape, image.dtype, labels.dtype) == ((3, 6, 8), torch.uint8, torch.uint8)
    assert np.array_equal(labels, label_map(3, 255))
    assert data.class_counts(5).tolist() == [24] * 5


def test_keeps_samples_up_to_a_limit(folder, monkeypatch):
    decoded = []
    decode = SegmentationData.decode
    monkeypatch.setattr(
        SegmentationData, "decode", lambda self, row, index: decoded.append(index) or decode(self, row, index)
    )
    size = 3 * 48 + 8 * 48
    data = SegmentationData(DatasetSpec(folder, "folder"), "train", max_kept_bytes=2 * size)
    for _ in range(2):
        first = list(data)
    assert decoded == [0, 1, 2, 3, 4, 2, 3, 4]
    assert data.kept_bytes == 2 * size
    assert all(torch.equal(a, b) for a, b in zip(first[0], data[0], strict=True))
    decoded.clear()
    data = SegmentationData(DatasetSpec(folder, "folder"), "train", max_kept_bytes=0)
    assert [len(list(data)) for _ in range(2)] == [5, 5]
    assert len(decoded) == 10


def test_shards_of_processes(folder):
    for streaming in (False, True):
        data = SegmentationData(DatasetSpec(folder, "folder", streaming=streaming), "train")
        shards = [[int(labels[0, 0]) for _, labels in data.shard(rank, 2)] for rank in range(2)]
        assert sorted(shards[0] + shards[1]) == list(range(5))


def test_streams_have_neither_length_nor_index(folder):
    data = SegmentationData(DatasetSpec(folder, "folder", streaming=True), "train")
    with pytest.raises(TypeError, match="streaming=False"):
        len(data)
    with pytest.raises(TypeError, match="streaming=False"):
        data[0]
    rows = SegmentationData(DatasetSpec(folder, "folder"), "train")
    for sample, streamed in zip(rows, data, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(sample, streamed, strict=True))
    assert torch.equal(data.class_counts(5), rows.class_counts(5))


@pytest.mark.parametrize("reduce", [False, True])
def test_reduction_has_to_be_that_of_the_layout(tmp_path, reduce):
    ade = write_ade20k(tmp_path / "ade", {"a": label_map(0, 1, 150)})
    city = write_cityscapes(tmp_path / "city", {"a_0_0": label_map(0, 7)}, split="val")
    processors = [SegmenterImageProcessor(do_reduce_labels=reduce, num_labels=number) for number in (150, 19)]
    for source, layout, processor in ((ade, "ade20k", processors[0]), (city, "cityscapes", processors[1])):
        if reduce == (layout == "ade20k"):
            labels = SegmentationData(DatasetSpec(source, layout), "val", processor=processor)[0][1]
            assert sorted(labels.unique().tolist()) == ([0, 149, 255] if reduce else [0, 255])
        else:
            with pytest.raises(ValueError, match=f"layout '{layout}' .* needs `do_reduce_labels={not reduce}`"):
                SegmentationData(DatasetSpec(source, layout), "val", processor=processor)
    # a custom mapping defines what 0 means
    mapping = {0: 0, 1: 1, 150: 2}
    SegmentationData(DatasetSpec(ade, "ade20k", label_mapping=mapping), "val", processor=processors[0])


def test_void_of_layouts_is_the_ignored_label(tmp_path):
    write_cityscapes(tmp_path, {"a_0_0": label_map(0, 33)}, split="val")
    labels = SegmentationData(DatasetSpec(tmp_path, "cityscapes"), "val", LabelSpec(19, ignore_index=-1))[0][1]
    assert labels.unique().tolist() == [-1, 18]


def test_sizes_have_to_agree(folder):
    write_image(folder / "images" / "2.jpg", (8, 6))
    data = SegmentationData(DatasetSpec(folder, "folder"), "train")
    with pytest.raises(ValueError, match=r"sample 2 in train \(.*2\.png\) has .* \(6, 8\) but its image has \(8, 6\)"):
        data[2]
