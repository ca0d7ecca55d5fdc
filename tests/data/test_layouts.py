# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Native layouts, each written as the benchmark has it; ADE20K and Cityscapes also on real samples."""

import json

import numpy as np
import pytest

from common.segmentation_folders import (
    label_map,
    write_ade20k,
    write_cityscapes,
    write_coco_stuff,
    write_folders,
    write_image,
    write_labels,
    write_pascal_context,
)
from hf_segmodels.data import LAYOUTS, DatasetSpec, detect_layouts, load_segmentation_dataset
from hf_segmodels.labels import load_labels


CITYSCAPES_IDS = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}


def labels_of(dataset, index=0):
    return np.array(dataset[index]["label"])


def test_ade20k_is_as_in_its_files(tmp_path):
    maps = {"ADE_val_00000002": label_map(0, 150), "ADE_val_00000001": label_map(1, 2, 0)}
    write_ade20k(tmp_path, maps)
    for source in (tmp_path, tmp_path / "ADEChallengeData2016"):
        dataset = load_segmentation_dataset(DatasetSpec(source, "ade20k"), "val")
        assert dataset.column_names == ["image", "label"]
        assert len(dataset) == 2
        # sorted by name; 0 is left to the image processor
        assert np.array_equal(labels_of(dataset, 0), maps["ADE_val_00000001"])
        assert np.array_equal(labels_of(dataset, 1), maps["ADE_val_00000002"])
        assert dataset[0]["image"].size == (8, 6)


def test_cityscapes_ids_become_the_classes_of_their_names(tmp_path):
    names = load_labels("cityscapes")[0]
    all_ids = np.arange(34, dtype=np.uint8)[None].repeat(2, axis=0)
    write_cityscapes(tmp_path, {"aachen_000000_000019": all_ids})
    mapped = labels_of(load_segmentation_dataset(DatasetSpec(tmp_path, "cityscapes"), "train"))[0]
    assert {names[label]: value for value, label in enumerate(mapped) if label != 255} == CITYSCAPES_IDS


def test_cityscapes_train_ids_are_read_where_all_images_have_them(tmp_path):
    maps = {"aachen_000000_000019": label_map(7, 8, 0), "bonn_000000_000019": label_map(26, 33)}
    write_cityscapes(tmp_path, maps)
    write_cityscapes(tmp_path, {"aachen_000000_000019": label_map(5, 18, 255)}, kind="labelTrainIds")
    dataset = load_segmentation_dataset(DatasetSpec(tmp_path, "cityscapes"), "train")
    assert [np.unique(labels_of(dataset, index)).tolist() for index in (0, 1)] == [[0, 1, 255], [13, 18]]
    write_cityscapes(tmp_path, {"bonn_000000_000019": label_map(2)}, kind="labelTrainIds")
    dataset = load_segmentation_dataset(DatasetSpec(tmp_path, "cityscapes"), "train")
    assert [np.unique(labels_of(dataset, index)).tolist() for index in (0, 1)] == [[5, 18, 255], [2]]


def test_prepared_pascal_context(tmp_path):
    root = write_pascal_context(tmp_path / "VOCdevkit" / "VOC2010", {"2008_000002": label_map(0, 1, 59, 255)}, "val")
    write_image(root / "JPEGImages" / "2008_000003.jpg")
    for layout, expected in (("pascal_context_60", [0, 1, 59, 255]), ("pascal_context_59", [0, 58, 255])):
        dataset = load_segmentation_dataset(DatasetSpec(tmp_path, layout), "validation")
        assert len(dataset) == 1
        assert np.unique(labels_of(dataset)).tolist() == expected


def write_detail(root, segments, size=(4, 6)):
    """`trainval_merged.json` with one image for each phase, and `segments` in the first: category and mask."""
    run_lengths = pytest.importorskip("pycocotools.mask", reason="part of the `train` and `dev` extras")
    images = [
        {"image_id": 7, "file_name": "2008_000007.jpg", "phase": "train", "height": size[0], "width": size[1]},
        {"image_id": 9, "file_name": "2008_000009.jpg", "phase": "val", "height": size[0], "width": size[1]},
    ]
    annotations = []
    for category, mask in segments:
        encoded = run_lengths.encode(np.asfortranarray(mask.astype(np.uint8)))
        segmentation = {"size": list(size), "counts": encoded["counts"].decode()}
        annotations.append(
            {"id": len(annotations), "image_id": 7, "category_id": category, "segmentation": segmentation}
        )
    for image in images:
        write_image(root / "JPEGImages" / image["file_name"], size)
    content = {"images": images, "annos_segmentation": annotations, "categories": []}
    (root / "trainval_merged.json").write_text(json.dumps(content))


def test_pascal_context_from_segments(tmp_path):
    names = load_labels("pascal_context_60")[0]
    columns = np.arange(6)[None].repeat(4, axis=0)
    # the person covers the sky
    write_detail(tmp_path, [(360, columns < 4), (284, columns == 2), (458, columns == 5)])
    mapped = labels_of(load_segmentation_dataset(DatasetSpec(tmp_path, "pascal_context_60"), "train"))
    assert [names[label] for label in mapped[0]] == ["sky", "sky", "person", "sky", "background", "wood"]
    assert (mapped == mapped[:1]).all()

    without_background = labels_of(load_segmentation_dataset(DatasetSpec(tmp_path, "pascal_context_59"), "train"))
    assert np.array_equal(without_background, np.where(mapped == 0, 255, mapped.astype(int) - 1))
    # the image of the other phase has no segments: all of it is background
    assert not labels_of(load_segmentation_dataset(DatasetSpec(tmp_path, "pascal_context_60"), "val")).any()


def test_coco_stuff_ids_become_the_classes_of_their_names(tmp_path):
    pytest.importorskip("scipy", reason="part of the `train` and `dev` extras")
    names = load_labels("coco_stuff_171")[0]
    ids = {"person": 1, "fire hydrant": 11, "stop sign": 13, "toothbrush": 90, "banner": 92, "wood": 182}
    root = write_coco_stuff(tmp_path / "cocostuff-10k-v1.1", {"COCO_train2014_0": label_map(0, *ids.values())}, "test")
    for source in (tmp_path, root):
        mapped = labels_of(load_segmentation_dataset(DatasetSpec(source, "coco_stuff_10k"), "test"))
        assert mapped[0, 0] == 255
        assert [names[label] for label in mapped[0, 1:7]] == list(ids)


def test_coco_stuff_as_mmsegmentation_prepares_it(tmp_path):
    write_image(tmp_path / "images" / "train2014" / "COCO_train2014_0.jpg")
    path = tmp_path / "annotations" / "train2014" / "COCO_train2014_0_labelTrainIds.png"
    write_labels(path, label_map(0, 1, 171))
    dataset = load_segmentation_dataset(DatasetSpec(tmp_path, "coco_stuff_10k"), "train")
    assert labels_of(dataset)[0, :3].tolist() == [255, 0, 170]


@pytest.mark.parametrize("kind", ["inside", "around", "none"])
def test_own_folders(tmp_path, kind):
    maps = {"a": label_map(0, 1), "street/b": label_map(2)}
    for split, number in (("train", 2), ("val", 1)):
        folder = {"inside": tmp_path, "around": tmp_path / split, "none": tmp_path}[kind]
        place = split if kind == "inside" else "."
        for name in list(maps)[:number]:
            write_image(folder / "images" / place / f"{name}.jpg")
            write_labels(folder / "labels" / place / f"{name}.png", maps[name])
    # what other systems leave behind
    (tmp_path / "train").mkdir(exist_ok=True)
    next(tmp_path.rglob("images")).joinpath("._a.jpg").write_bytes(b"")
    dataset = load_segmentation_dataset(DatasetSpec(tmp_path, "folder"), "training")
    assert [np.unique(labels_of(dataset, index)).tolist() for index in (0, 1)] == [[0, 1], [2]]
    if kind == "none":
        with pytest.raises(ValueError, match="no split 'val': choose one of train"):
            load_segmentation_dataset(DatasetSpec(tmp_path, "folder"), "val")
    else:
        assert len(load_segmentation_dataset(DatasetSpec(tmp_path, "folder"), "validation")) == 1


def test_links_to_folders_are_followed(tmp_path):
    write_folders(tmp_path / "elsewhere", {"a": label_map(1)})
    root = write_folders(tmp_path / "own", {"b": label_map(0)})
    for kind in ("images", "labels"):
        (root / kind / "more").symlink_to(tmp_path / "elsewhere" / kind)
    dataset = load_segmentation_dataset(DatasetSpec(root, "folder"), "train")
    assert [np.unique(labels_of(dataset, index)).tolist() for index in range(len(dataset))] == [[0], [1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "labels" / "b.png").unlink(), "1 images without a label map: b"),
        (lambda root: (root / "images" / "a.jpg").unlink(), "1 label maps without an image: a"),
        (lambda root: write_image(root / "images" / "a.png"), "1 names that several files share: a"),
        (lambda root: [path.unlink() for path in root.rglob("*.png")], "no images with label maps"),
    ],
)
def test_files_without_a_partner_are_refused(tmp_path, change, message):
    change(write_folders(tmp_path, {"a": label_map(0), "b": label_map(1)}))
    with pytest.raises(ValueError, match=message):
        load_segmentation_dataset(DatasetSpec(tmp_path, "folder"), "train")


def test_other_layouts_are_refused(tmp_path):
    for layout in LAYOUTS:
        with pytest.raises(ValueError, match=rf"does not have the layout '{layout}': it needs"):
            load_segmentation_dataset(DatasetSpec(tmp_path, layout), "train")
    with pytest.raises(ValueError, match="no layout 'ade': choose one of ade20k, cityscapes"):
        load_segmentation_dataset(DatasetSpec(tmp_path, "ade"), "train")
    write_ade20k(tmp_path, {"a": label_map(1)})
    with pytest.raises(ValueError, match="no split 'train': choose one of validation"):
        load_segmentation_dataset(DatasetSpec(tmp_path, "ade20k"), "train")


def test_layouts_are_recognized(tmp_path):
    folders = {name: tmp_path / name for name in ("ade", "city", "voc", "coco", "own", "none")}
    write_ade20k(folders["ade"], {"a": label_map(1)})
    write_cityscapes(folders["city"], {"a_0_0": label_map(1)})
    write_pascal_context(folders["voc"], {"a": label_map(1)})
    write_image(folders["coco"] / "images" / "train2014" / "a.jpg")
    write_labels(folders["coco"] / "annotations" / "train2014" / "a_labelTrainIds.png", label_map(1))
    write_folders(folders["own"], {"a": label_map(1)})
    folders["none"].mkdir()
    assert {name: detect_layouts(folder) for name, folder in folders.items()} == {
        "ade": ["ade20k"],
        "city": ["cityscapes"],
        "voc": ["pascal_context_59", "pascal_context_60"],
        "coco": ["coco_stuff_10k"],
        "own": ["folder"],
        "none": [],
    }


def test_real_ade20k(shared):
    dataset = load_segmentation_dataset(DatasetSpec(shared / "data" / "ade20k_samples", "ade20k"), "validation")
    assert len(dataset) == 3
    names = load_labels("ade20k")[0]
    for row in dataset:
        assert row["image"].size == row["label"].size
    # the first is a street
    present = {names[value - 1] for value in np.unique(labels_of(dataset)) if value}
    assert {"building", "sky", "road"} <= present


def test_real_cityscapes(shared):
    source = shared / "data" / "cityscapes_samples"
    assert [
        len(load_segmentation_dataset(DatasetSpec(source, "cityscapes"), split)) for split in ("train", "validation")
    ] == [2, 1]
    labels = labels_of(load_segmentation_dataset(DatasetSpec(source, "cityscapes"), "train"))
    assert labels.shape == (1024, 2048)
    counted = np.bincount(labels.ravel(), minlength=256)
    assert counted[19:255].sum() == 0
    # the car's bonnet below is void, and most of what is left road
    assert counted[:19].argmax() == load_labels("cityscapes")[0].index("road")
    assert (labels[-20:] == 255).mean() > 0.5
