# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Label checks: each issue is planted in data that is otherwise clean, and has to be the only one that is found."""

import datasets
import numpy as np
import pytest
from PIL import Image

from common.segmentation_folders import (
    SIZE,
    label_map,
    write_ade20k,
    write_cityscapes,
    write_folders,
    write_image,
    write_labels,
)
from hf_segmodels import SegmenterImageProcessor
from hf_segmodels.data import ISSUES, DatasetSpec, LabelSpec, SegmentationData, check_data, quick_check
from hf_segmodels.data.checks import runner


CLEAN = {"a": label_map(0, 1, 255), "b": label_map(2, 1), "c": label_map(0, 2, 1), "d": label_map(1)}


@pytest.fixture
def folder(tmp_path):
    """Three classes, and void."""
    return write_folders(tmp_path / "data", CLEAN)


def check(folder, num_labels=3, *, layout="folder", label_mapping=None, streaming=False, num_workers=0, **labels):
    split = "validation" if layout == "ade20k" else "train"
    dataset = DatasetSpec(str(folder), layout, label_mapping=label_mapping, streaming=streaming)
    return check_data(dataset, [split], LabelSpec(num_labels, **labels), num_workers=num_workers).splits[0]


def issues(report, warnings=False):
    return [issue.name for issue in report.issues if issue.is_warning == warnings]


def only_issue(report, name, count=None):
    """The single issue, by its name."""
    assert issues(report) == [name], str(report)
    (issue,) = (issue for issue in report.issues if not issue.is_warning)
    assert count is None or issue.count == count
    return issue


def test_clean_data(folder):
    report = check(folder, id2label={0: "road", 1: "sky", 2: "tree"})
    assert report.issues == []
    assert (report.num_samples, report.num_read) == (4, 4)
    assert report.image_sizes == report.label_sizes == {"8x6": 4}
    assert report.label_modes == {"PNG L": 4}
    expected = np.bincount(np.concatenate([labels.ravel() for labels in CLEAN.values()]), minlength=256)
    assert report.pixels == expected[:3].tolist()
    assert report.ignored_pixels == expected[255]
    assert report.images == [2, 4, 2]
    assert "sky" in str(report)


def test_workers_find_the_same(folder):
    write_folders(folder, {f"e{index}": label_map(index % 5, 1) for index in range(60)})
    (folder / "labels" / "c.png").write_bytes(b"x")
    assert check(folder, num_workers=2) == check(folder)


def test_streams_are_checked_too(folder):
    write_folders(folder, {"e": label_map(7, 1)})
    assert check(folder, streaming=True) == check(folder)


def test_missing_label(folder):
    write_image(folder / "images" / "extra.jpg")
    assert only_issue(check(folder), "missing-label", 1).examples == ["extra"]
    for index in range(9):
        write_image(folder / "images" / f"extra{index}.jpg")
    report = check(folder)
    assert len(only_issue(report, "missing-label", 10).examples) == 10
    assert "extra3, ..." in str(report)


def test_missing_image(folder):
    write_labels(folder / "labels" / "extra.png", label_map(1))
    assert only_issue(check(folder), "missing-image", 1).examples == ["extra"]


def test_several_files_of_one_name(folder):
    write_labels(folder / "labels" / "a.tif", label_map(1))
    assert only_issue(check(folder), "duplicate-files", 1).examples == ["a"]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_image_cut_off(tmp_path, suffix):
    folder = write_folders(tmp_path, {name: np.tile(labels, (40, 40)) for name, labels in CLEAN.items()}, suffix)
    path = folder / "images" / f"b{suffix}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    issue = only_issue(check(folder), "unreadable-image", 1)
    assert "truncated" in issue.message
    assert issue.examples[0].endswith("b.png")


def test_image_with_more_behind_its_end(folder):
    path = folder / "images" / "b.jpg"
    path.write_bytes(path.read_bytes() + b"\0" * 9000)
    assert issues(check(folder)) == []


def test_no_image(folder):
    (folder / "images" / "b.jpg").write_text("<html>404</html>")
    assert "cannot identify" in only_issue(check(folder), "unreadable-image", 1).message


def test_label_map_cut_off(folder):
    noise = np.random.default_rng(0).integers(0, 3, (200, 200), dtype=np.uint8)
    write_folders(folder, {"b": noise})
    path = folder / "labels" / "b.png"
    path.write_bytes(path.read_bytes()[:2000])
    assert "truncated" in only_issue(check(folder), "unreadable-label", 1).message


def test_label_map_of_no_image(folder):
    (folder / "labels" / "c.png").write_bytes(b"")
    only_issue(check(folder), "unreadable-label", 1)


def test_sizes_that_differ(folder):
    write_labels(folder / "labels" / "a.png", label_map(0, 1, 255, size=(6, 9)))
    assert "8x6 and 9x6" in only_issue(check(folder), "size-mismatch", 1).message


def test_images_that_exif_data_turns(folder):
    exif = Image.Exif()
    exif[0x0112] = 3
    write_image(folder / "images" / "a.jpg", exif=exif)
    report = check(folder)
    assert issues(report) == []
    assert issues(report, warnings=True) == ["exif-rotation"]
    # by 90 degrees, the sizes differ as well
    exif[0x0112] = 6
    write_image(folder / "images" / "a.jpg", exif=exif)
    assert "6x8 and 8x6" in only_issue(check(folder), "size-mismatch", 1).message


@pytest.mark.parametrize(
    ("shape", "found"), [((6, 8), []), ((6, 8, 1), []), ((1, 6, 8), []), ((6, 8, 3), ["unreadable-label"])]
)
def test_arrays(tmp_path, shape, found):
    array = datasets.Array2D(shape, "int64") if len(shape) == 2 else datasets.Array3D(shape, "int64")
    features = datasets.Features({"image": datasets.Image(), "label": array})
    rows = {"image": [Image.new("RGB", (8, 6))], "label": [np.arange(np.prod(shape)).reshape(shape) % 3]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    report = check(tmp_path, layout=None)
    assert issues(report) == found
    if not found:
        assert report.label_sizes == {"8x6": 1}
        assert report.pixels == [16, 16, 16]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colors(folder, mode):
    palette = np.array([[128, 64, 128], [70, 130, 180], [107, 142, 35]], dtype=np.uint8)
    labels = np.where(CLEAN["b"] < 3, CLEAN["b"], 0)
    Image.fromarray(palette[labels]).convert(mode).save(folder / "labels" / "b.png")
    issue = only_issue(check(folder), "color-label-map", 1)
    assert mode in issue.message
    assert ("all channels equal" in issue.message) == (mode == "LA")


def test_gray_in_three_channels(folder):
    Image.fromarray(CLEAN["b"]).convert("RGB").save(folder / "labels" / "b.png")
    assert "RGB, all channels equal" in only_issue(check(folder), "color-label-map", 1).message


def test_fractions(folder):
    (folder / "labels" / "b.png").unlink()
    write_labels(folder / "labels" / "b.tif", CLEAN["b"].astype(np.float32))
    assert "floating-point numbers (F)" in only_issue(check(folder), "float-label-map", 1).message


def test_more_bits_than_needed(folder):
    write_labels(folder / "labels" / "b.png", CLEAN["b"].astype(np.uint16))
    report = check(folder)
    assert issues(report) == []
    assert issues(report, warnings=True) == ["16-bit-label-map"]
    assert report.label_modes == {"PNG L": 3, "PNG I;16": 1}
    # where they are needed all is well
    write_folders(folder, {"e": label_map(*range(300), size=(6, 300), dtype=np.uint16)})
    assert issues(check(folder, 300)) == []


def test_jpeg_label_maps(folder):
    (folder / "labels" / "d.png").unlink()
    write_labels(folder / "labels" / "d.jpg", CLEAN["d"])
    only_issue(check(folder), "jpeg-label-map", 1)


def test_palettes_made_for_each_image(folder):
    for name, colors in (("a", [9, 9, 9, 70, 70, 70]), ("b", [9, 9, 9, 200, 0, 0])):
        image = Image.fromarray(label_map(0, 1), mode="P")
        image.putpalette(colors)
        image.save(folder / "labels" / f"{name}.png")
    issue = only_issue(check(folder), "differing-palettes", 1)
    assert "value 1 is (70, 70, 70) and (200, 0, 0)" in issue.message
    # the same palette in all is fine, and indices are classes
    for name in "ab":
        image = Image.fromarray(label_map(0, 1), mode="P")
        image.putpalette([9, 9, 9, 70, 70, 70])
        image.save(folder / "labels" / f"{name}.png")
    report = check(folder)
    assert issues(report) == []
    assert report.label_modes == {"PNG P": 2, "PNG L": 2}


def test_number_of_classes_is_that_of_the_layout(tmp_path):
    write_cityscapes(tmp_path, {"a_0_0": label_map(0, 7, 8)})
    report = check(tmp_path, 150, layout="cityscapes")
    assert "has 19 classes, the model 150" in only_issue(report, "number-of-classes").message


@pytest.mark.parametrize("ignore_index", [255, -1])
def test_masks_of_0_and_255(tmp_path, ignore_index):
    write_folders(tmp_path, {"a": label_map(0, 255), "b": label_map(0), "c": label_map(255, 0)})
    report = check(tmp_path, 2, ignore_index=ignore_index)
    assert "{0: 0, 255: 1}" in only_issue(report, "0-and-255").message
    assert issues(check(tmp_path, 2, label_mapping={0: 0, 255: 1})) == []


@pytest.mark.parametrize(
    ("factor", "dtype", "what"),
    [
        (80, np.uint8, "multiples of 80"),
        (127.5, np.uint8, "evenly from 0 to 255"),
        (257, np.uint16, "multiples of 257"),
    ],
)
def test_stretched_classes(tmp_path, factor, dtype, what):
    maps = {name: np.where(labels == 255, 0, labels) for name, labels in CLEAN.items()}
    write_folders(tmp_path, {name: (labels.astype(float) * factor).astype(dtype) for name, labels in maps.items()})
    assert what in only_issue(check(tmp_path, 3), "rescaled-labels").message


def test_label_ids_read_as_train_ids(tmp_path):
    write_folders(tmp_path, {"a": label_map(7, 8, 26, 0), "b": label_map(7, 11, 23, 33)})
    issue = only_issue(check(tmp_path, 19), "label-ids")
    assert "layout: cityscapes" in issue.message
    # the file names reveal the ids, too
    write_folders(tmp_path / "more", {"a_gtFine_labelIds": label_map(7, 8, 19, 22), "b_gtFine_labelIds": label_map(0)})
    only_issue(check(tmp_path / "more", 19), "label-ids")


def test_train_ids_mapped_as_label_ids(tmp_path):
    write_cityscapes(tmp_path, {"a_0_0": label_map(0, 1, 13, 255), "b_0_0": label_map(2, 10, 18)})
    assert "trainIds already" in only_issue(check(tmp_path, 19, layout="cityscapes"), "train-ids").message


def test_labels_that_are_not_reduced(folder):
    write_folders(folder, {"d": label_map(3)})
    assert "'unlabeled'" in only_issue(check(folder), "not-reduced", 1).message
    assert issues(check(folder, do_reduce_labels=True)) == []


def test_layouts_that_are_to_be_reduced(tmp_path):
    # not a single label is outside the classes
    write_ade20k(tmp_path, {"a": label_map(0, 1, 5), "b": label_map(7)})
    report = check(tmp_path, 150, layout="ade20k")
    assert "`do_reduce_labels` to true" in only_issue(report, "not-reduced").message
    assert issues(check(tmp_path, 150, layout="ade20k", do_reduce_labels=True)) == []


def test_labels_that_are_reduced_twice(folder, tmp_path):
    assert "`do_reduce_labels` to false" in only_issue(check(folder, do_reduce_labels=True), "reduced-twice").message
    # without void, and by a layout
    write_folders(folder, {"a": label_map(0, 1)})
    only_issue(check(folder, do_reduce_labels=True), "reduced-twice")
    write_cityscapes(tmp_path, {"a_0_0": label_map(0, 7, 8)})
    only_issue(check(tmp_path, 19, layout="cityscapes", do_reduce_labels=True), "reduced-twice")


@pytest.mark.parametrize(("value", "ignore_index"), [(255, -1), (255, 0), (250, 255)])
def test_void_that_is_not_the_ignored_label(tmp_path, value, ignore_index):
    write_folders(tmp_path, {"a": label_map(1, value), "b": label_map(2, 1), "c": label_map(value, 0, 2)})
    report = check(tmp_path, 3, ignore_index=ignore_index)
    issue = only_issue(report, "void-value", 2)
    assert f"{value} is neither a class nor the ignored label {ignore_index}" in issue.message
    assert report.other_values.keys() == {value}


def test_values_without_a_class(folder):
    report = check(folder, label_mapping={0: 0, 1: 1, 255: None})
    assert "has no class for 2 (2 label maps)" in only_issue(report, "unmapped-values", 2).message


def test_values_outside_the_classes(folder):
    write_folders(folder, {"c": label_map(0, 4, 9), "d": label_map(9)})
    report = check(folder)
    assert "4 (1 label map), 9 (2 label maps)" in only_issue(report, "outside-classes", 2).message
    # a mapping may lead outside, too
    report = check(folder, label_mapping={0: 0, 1: 1, 2: 2, 4: 5, 9: 6, 255: None})
    assert "4, read as 5 (1 label map)" in only_issue(report, "outside-classes").message


def test_label_maps_in_which_nothing_counts(folder):
    write_folders(folder, {"d": label_map(255)})
    report = check(folder)
    assert issues(report) == []
    assert issues(report, warnings=True) == ["all-ignored"]
    write_folders(folder, {"e": label_map(255), "f": label_map(255), "g": label_map(255)})
    only_issue(check(folder), "all-ignored", 4)


def test_one_class_takes_all(tmp_path):
    write_folders(tmp_path, {"a": label_map(0), "b": label_map(0, 0)})
    report = check(tmp_path)
    assert "belong to class 0 (class 0)" in only_issue(report, "one-class").message


def test_classes_that_never_occur(folder):
    report = check(folder, 5, id2label={3: "boat"})
    assert issues(report) == []
    (issue,) = report.issues
    assert (issue.name, issue.is_warning, issue.count) == ("absent-classes", True, 2)
    assert issue.examples == ["3 (boat)", "4 (class 4)"]


def test_what_a_few_label_maps_lack_is_a_warning(tmp_path, caplog):
    # the last class, the only other one, and any label at all are in one of many label maps
    for name, common, rare, options in (
        ("reduced-twice", (0, 1, 2, 255), 3, {"num_labels": 3, "do_reduce_labels": True}),
        ("one-class", (1,), 0, {}),
        ("all-ignored", (255,), 1, {"num_labels": 3}),
    ):
        maps = {f"{index:03d}": label_map(*common) for index in range(96)} | {"001": label_map(rare)}
        if name == "all-ignored":
            # and in one of those that are read
            maps["003"] = label_map(0, 1, 2)
        folder = write_folders(tmp_path / name, maps)
        processor = SegmenterImageProcessor(**{"num_labels": 2} | options)
        report = quick_check(SegmentationData(DatasetSpec(folder, "folder"), "train", processor=processor))
        assert issues(report, warnings=True) == [name]
        assert f"train: warning: {name}" in caplog.text


def test_several_issues_at_once(folder):
    write_folders(folder, {"b": label_map(3, 1), "c": label_map(200, 1, 0)})
    write_image(folder / "images" / "extra.jpg")
    assert sorted(issues(check(folder))) == ["missing-label", "outside-classes"]


def test_every_issue_has_a_test(request):
    tests = request.path.read_text()
    assert len(ISSUES) >= 12
    for name in ISSUES:
        assert f'"{name}"' in tests, name


def test_nothing_to_read(tmp_path):
    write_folders(tmp_path, {"a": label_map(0)})
    (tmp_path / "labels" / "a.png").unlink()
    with pytest.raises(ValueError, match="no images with label maps"):
        check(tmp_path)


def test_quick_form_reads_a_few(folder, monkeypatch):
    write_folders(folder, {f"e{index:03d}": label_map(0, 1, 2) for index in range(96)})
    read = []
    monkeypatch.setattr(
        runner,
        "read_sample_facts",
        lambda row, index, reader, real=runner.read_sample_facts: read.append(index) or real(row, index, reader),
    )
    processor = SegmenterImageProcessor(num_labels=3)
    report = quick_check(SegmentationData(DatasetSpec(folder, "folder"), "train", processor=processor))
    assert len(read) == report.num_read == 32
    assert report.num_samples == 100
    # spread over the split
    assert read[-1] == 96
    # classes that a few label maps lack are no news
    assert quick_check(SegmentationData(DatasetSpec(folder, "folder"), "train", LabelSpec(9))).issues == []


def test_quick_form_stops_on_issues(folder):
    data = SegmentationData(DatasetSpec(folder, "folder"), "train", processor=SegmenterImageProcessor(num_labels=2))
    with pytest.raises(ValueError, match=r"Label issues were found in train(.|\n)*not-reduced"):
        quick_check(data)
    with pytest.raises(ValueError, match="number of classes is unknown"):
        quick_check(SegmentationData(DatasetSpec(folder, "folder"), "train"))


def test_large_label_maps_are_counted_whole(tmp_path):
    # more than one chunk of a PNG, and edges at odd places
    labels = np.random.default_rng(0).integers(0, 150, (SIZE[0] * 67, SIZE[1] * 41), dtype=np.uint8)
    write_folders(tmp_path, {"a": labels, "b": labels})
    report = check(tmp_path, 150)
    assert report.label_sizes == {"328x402": 2}
    assert report.pixels == (2 * np.bincount(labels.ravel(), minlength=150)).tolist()


def test_real_samples(shared):
    for layout, split, num_labels in (("ade20k", "validation", 150), ("cityscapes", "train", 19)):
        folder = str(shared / "data" / f"{layout}_samples")
        reduce = layout == "ade20k"
        spec = DatasetSpec(folder, layout)
        report = check_data(spec, [split], LabelSpec(num_labels, do_reduce_labels=reduce), num_workers=0)
        assert report.issues() == []
        report = check_data(spec, [split], LabelSpec(num_labels, do_reduce_labels=not reduce), num_workers=0)
        assert [issue.name for issue in report.issues()] == ["not-reduced" if reduce else "reduced-twice"]


def test_real_label_ids_read_as_they_are(shared, tmp_path):
    samples = shared / "data" / "cityscapes_samples"
    for kind, source, ending in (("images", "leftImg8bit", "leftImg8bit"), ("labels", "gtFine", "gtFine_labelIds")):
        (tmp_path / kind).mkdir()
        for path in samples.joinpath(source, "train").rglob(f"*_{ending}.png"):
            (tmp_path / kind / path.name.replace(f"_{ending}", "")).symlink_to(path.resolve())
    only_issue(check(tmp_path, 19), "label-ids", 2)
