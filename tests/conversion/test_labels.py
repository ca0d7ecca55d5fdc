# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import pytest

from hf_segmodels.labels import DATASETS, load_labels


@pytest.mark.parametrize(
    ("name", "count", "some"),
    [
        ("ade20k", 150, {0: "wall", 12: "person", 149: "flag"}),
        ("cityscapes", 19, {0: "road", 18: "bicycle"}),
        ("coco_stuff_171", 171, {0: "person"}),
        ("pascal_context_59", 59, {0: "aeroplane"}),
        ("pascal_context_60", 60, {0: "background", 1: "aeroplane"}),
    ],
)
def test_labels_of_each_data_set(name: str, count: int, some: dict[int, str]):
    names, palette = load_labels(name)
    assert len(names) == len(set(names)) == len(palette) == count
    assert {index: names[index] for index in some} == some
    assert all(len(color) == 3 and set(color) <= set(range(256)) for color in palette)
    names.clear()  # callers may change what they get
    assert len(load_labels(name)[0]) == count


def test_unknown_data_set_names_the_known_ones():
    with pytest.raises(ValueError, match="'cityscape'.*cityscapes"):
        load_labels("cityscape")
    assert len(DATASETS) == 5
