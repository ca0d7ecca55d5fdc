# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`hf-segmodels segment-dataset`: the same labels as image by image, and each shard once, also after interruptions."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.images import make_image
from common.segmentation_folders import write_ade20k
from common.tiny_segmenter import save_tiny_segmenter
from hf_segmodels.cli.main import main
from hf_segmodels.data.shards import ImageRow, open_image_shards
from hf_segmodels.image_processing import read_image
from hf_segmodels.inference import shard_writer
from hf_segmodels.inference.predictor import Predictor, load_predictor
from hf_segmodels.inference.segment_dataset import BatchSegmenter, segment_rows


datasets = pytest.importorskip("datasets")
pyarrow_parquet = pytest.importorskip("pyarrow.parquet")

SIZES = ((40, 50), (40, 60), (50, 40), (40, 50), (40, 60), (40, 50), (36, 50))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return save_tiny_segmenter(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def predictor(model_folder) -> Predictor:
    return load_predictor(str(model_folder))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "results"


def make_folder(root: Path) -> Path:
    """Seven images of four sizes, some in a folder inside; with shards of three there are three, the last of one image."""
    for index, size in enumerate(SIZES):
        make_image(root / ("x" if index % 2 else "") / f"{index}.png", *size[::-1], index)
    return root


def make_parquet(root: Path, rows_of_files: tuple[int, ...] = (3, 1, 2), row_group_size: int = 2) -> Path:
    """A data set as the Hub has it: files of images, without names, and a column of numbers."""
    features = datasets.Features({"image": datasets.Image(), "number": datasets.Value("int64")})
    root.mkdir(parents=True)
    number = 0
    for index, count in enumerate(rows_of_files):
        rows = []
        for _ in range(count):
            content = make_image(
                root.parent / "images" / f"{number}.png", *SIZES[number % 7][::-1], number
            ).read_bytes()
            rows.append({"image": {"bytes": content, "path": None}, "number": number})
            number += 1
        table = datasets.Dataset.from_list(rows, features=features).with_format("arrow")[:]
        path = root / f"train-{index:05d}-of-{len(rows_of_files):05d}.parquet"
        pyarrow_parquet.write_table(table, path, row_group_size=row_group_size)
    return root


def segment(*arguments: str | Path) -> int:
    return main(["segment-dataset", *map(str, arguments)])


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def read_back(output: Path) -> list[dict]:
    return list(datasets.load_dataset("parquet", data_files=str(output / "*.parquet"), split="train"))


def names(output: Path) -> list[str]:
    return sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())


def contents(output: Path) -> dict[str, bytes]:
    return {name: (output / name).read_bytes() for name in names(output)}


def states(output: Path) -> dict[str, int]:
    return {name: (output / name).stat().st_mtime_ns for name in names(output)}


class TestResults:
    def test_parquet_contains_the_labels_of_single_images(self, tmp_path, model_folder, predictor, output, capsys):
        folder = make_folder(tmp_path / "in")
        options = ["--shard-size", "3", "--batch-size", "3", "--keep-columns", "image"]
        assert segment(folder, "--model", model_folder, "--output", output, *options) == 0

        rows = read_back(output)
        assert [row["name"] for row in rows] == ["0.png", "2.png", "4.png", "6.png", "x/1.png", "x/3.png", "x/5.png"]
        assert [row["index"] for row in rows] == [0, 1, 2, 0, 1, 2, 0]
        for row in rows:
            expected = predictor(read_image(folder / row["name"]))
            assert len(np.unique(expected)) > 1
            assert (np.array(row["label_map"]) == expected).all()
            assert (row["height"], row["width"]) == expected.shape
            assert {item["index"]: item["pixels"] for item in row["classes"]} == {
                label: (expected == label).sum() for label in np.unique(expected)
            }
            assert (np.array(row["image"]) == np.array(Image.open(folder / row["name"]))).all()
        summary = read_json(output / "summary.json")
        assert (summary["images"], summary["shards"], summary["failed"]) == (7, 3, [])
        pixels = sum(height * width for height, width in SIZES)
        assert sum(item["pixels"] for item in summary["classes"]) == pixels
        captured = capsys.readouterr()
        largest = summary["classes"][0]
        assert f"{largest['name']} " in captured.out
        assert f"{100 * largest['share']:.1f} %" in captured.out
        assert captured.out.count("7 images in 3 shards") == 1

    def test_png_is_a_folder_of_label_maps(self, tmp_path, model_folder, predictor, output):
        folder = make_folder(tmp_path / "in")
        make_image(folder / "x" / "1.jpg", seed=9)
        options = ["--format", "png", "--shard-size", "4"]
        assert segment(folder, "--model", model_folder, "--output", output, *options) == 0
        entries = [
            entry | {"path": path.parent / entry["file_name"]}
            for path in sorted(output.glob("shard-*/metadata.jsonl"))
            for entry in map(json.loads, path.read_text().splitlines())
        ]
        assert len(entries) == len({entry["path"] for entry in entries}) == 8
        assert entries[0]["file_name"] == "0_labels.png"
        assert entries[-1]["file_name"] == "x/5_labels.png"
        for entry in entries:
            labels = Image.open(entry["path"])
            assert labels.mode == "P"
            assert (np.array(labels) == predictor(read_image(folder / entry["name"]))).all()
        read = datasets.load_dataset("imagefolder", data_dir=str(output), split="train")
        assert sorted(row["name"] for row in read) == sorted(entry["name"] for entry in entries)

    def test_files_of_a_data_set_are_shards(self, tmp_path, model_folder, predictor, output):
        data = make_parquet(tmp_path / "data")
        options = ["--batch-size", "2", "--keep-columns", "number"]
        assert segment(data, "--model", model_folder, "--output", output, *options) == 0
        rows = read_back(output)
        assert [row["number"] for row in rows] == list(range(6))
        assert [row["index"] for row in rows] == [0, 1, 2, 0, 0, 1]
        for row in rows:
            expected = predictor(read_image(tmp_path / "images" / f"{row['number']}.png"))
            assert (np.array(row["label_map"]) == expected).all()
        records = [read_json(output / f"shard-{index:05d}.json") for index in range(3)]
        assert [record["shard"] for record in records] == [f"train-{index:05d}-of-00003.parquet" for index in range(3)]
        assert [record["images"] for record in records] == [3, 1, 2]

        (file, *_) = sorted(data.iterdir())
        assert segment(file, "--model", model_folder, "--output", output.with_name("other"), "--format", "png") == 0
        assert "shard-00000/00000002_labels.png" in names(output.with_name("other"))

    def test_layouts_need_no_labels(self, tmp_path, model_folder, output):
        labels = np.zeros((40, 50), dtype=np.uint8)
        root = write_ade20k(tmp_path, {"a": labels, "b": labels})
        (root / "annotations" / "validation" / "b.png").unlink()
        assert segment(root, "--layout", "ade20k", "--model", model_folder, "--output", output) == 0
        assert [row["name"] for row in read_back(output)] == ["images/validation/a.jpg", "images/validation/b.jpg"]
        assert read_json(output / "manifest.json")["split"] == "validation"

    def test_split_of_a_folder_is_a_folder_in_it(self, tmp_path, model_folder, output):
        folder = make_folder(tmp_path / "in")
        assert segment(folder, "--split", "x", "--model", model_folder, "--output", output) == 0
        assert [row["name"] for row in read_back(output)] == ["x/1.png", "x/3.png", "x/5.png"]

    def test_image_files_of_a_repository_are_sharded_as_in_a_folder(self, tmp_path, monkeypatch):
        # stands in for the Hub
        folder = make_folder(tmp_path / "in")
        builder = datasets.load_dataset_builder("imagefolder", data_dir=str(folder))
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda source: builder)
        opened = open_image_shards("user/photos", shard_size=3)
        assert [shard.num_images for shard in opened.shards] == [3, 3, 1]
        assert sorted(row.name for shard in opened.shards for row in shard.read()) == [f"{i}.png" for i in range(7)]

    def test_folder_with_a_table_of_its_images(self, tmp_path, model_folder, output):
        folder = make_folder(tmp_path / "in")
        lines = [json.dumps({"file_name": name, "caption": f"of {name}"}) for name in ("0.png", "x/1.png", "2.png")]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
        options = ["--keep-columns", "caption", "image"]
        assert segment(folder, "--model", model_folder, "--output", output, *options) == 0
        rows = {row["name"]: row for row in read_back(output)}
        assert {"0.png", "x/1.png", "2.png"} <= set(rows)
        assert rows["x/1.png"]["caption"] == "of x/1.png"
        assert (np.array(rows["x/1.png"]["image"]) == np.array(Image.open(folder / "x" / "1.png"))).all()

    def test_columns_of_unknown_types(self, tmp_path, model_folder, output, monkeypatch):
        # as streams of CSV files are
        folder = make_folder(tmp_path / "in")
        (tmp_path / "rows.csv").write_text(f"image,note\n{folder / '0.png'},\n{folder / 'x' / '1.png'},late\n")
        builder = datasets.load_dataset_builder("csv", data_files=str(tmp_path / "rows.csv"))
        assert builder.as_streaming_dataset(split="train").features is None
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda source: builder)
        arguments = ["--model", model_folder, "--output", output, "--keep-columns", "note"]
        assert segment("user/notes", *arguments) == 0
        assert [row["note"] for row in read_back(output)] == [None, "late"]

    def test_options_reach_predict(self, tmp_path, model_folder, output):
        path = make_image(tmp_path / "in" / "a.png", 90, 70)
        options = ["--window", "32x48", "--stride", "16", "--scales", "0.5", "1", "--flip"]
        assert segment(tmp_path / "in", "--model", model_folder, "--output", output, *options) == 0
        chosen = {"window_size": (32, 48), "window_stride": (16, 16), "scales": (0.5, 1.0), "flip": True}
        expected = load_predictor(str(model_folder), **chosen)(read_image(path))
        (row,) = read_back(output)
        assert (np.array(row["label_map"]) == expected).all()

    def test_workers_change_nothing(self, tmp_path, model_folder, output):
        folder = make_folder(tmp_path / "in")
        (folder / "broken.png").write_text("no image")
        other = output.with_name("other")
        arguments = [folder, "--model", model_folder, "--shard-size", "5", "--batch-size", "2"]
        assert segment(*arguments, "--output", output) == 1
        assert segment(*arguments, "--output", other, "--num-workers", "2") == 1
        assert contents(output) == contents(other)

    def test_images_are_turned_upright_and_become_rgb(self, tmp_path, model_folder, predictor, output):
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees
        path = make_image(tmp_path / "in" / "a.jpg", 60, 40, exif=exif)
        assert segment(tmp_path / "in", "--model", model_folder, "--output", output) == 0
        (row,) = read_back(output)
        assert (row["height"], row["width"]) == (60, 40)
        assert (np.array(row["label_map"]) == predictor(read_image(path))).all()

    def test_names_stay_in_the_folder(self, tmp_path, model_folder, output):
        content = make_image(tmp_path / "a.png").read_bytes()
        paths = ["../../a.png", "/somewhere/a.png", "..", "C:\\x\\b?.png", "hf://datasets/x/y@z/c.png", "", "d" * 300]
        rows = [{"image": {"bytes": content, "path": path}} for path in paths]
        features = datasets.Features({"image": datasets.Image()})
        table = datasets.Dataset.from_list(rows, features=features).with_format("arrow")[:]
        pyarrow_parquet.write_table(table, tmp_path / "data.parquet")
        arguments = ["--model", model_folder, "--output", output, "--format", "png"]
        assert segment(tmp_path / "data.parquet", *arguments) == 0
        labels = {path.relative_to(output / "shard-00000") for path in output.rglob("*.png")}
        assert len(labels) == len(paths)
        assert {"a_labels.png", "a_1_labels.png", "C_/x/b__labels.png", "c_labels.png"} <= set(map(str, labels))
        assert set(tmp_path.rglob("*_labels.png")) == set(output.rglob("*_labels.png"))


class TestBatches:
    def rows(self, folder: Path) -> list[ImageRow]:
        return [ImageRow(path.name, str(path)) for path in sorted(folder.rglob("*.png"))]

    def spy(self, monkeypatch, fail=lambda inputs: None) -> list[int]:
        sizes = []
        original = Predictor.predict

        def predict(self, inputs, target_sizes):
            sizes.append(len(inputs))
            fail(inputs)
            return original(self, inputs, target_sizes)

        monkeypatch.setattr(Predictor, "predict", predict)
        return sizes

    def test_images_of_one_size_run_together(self, tmp_path, predictor, monkeypatch):
        rows = self.rows(make_folder(tmp_path))
        expected = [predictor(read_image(row.image)) for row in rows]
        sizes = self.spy(monkeypatch)
        images = list(segment_rows(rows, predictor, batch_size=2))
        assert sorted(sizes) == [1, 1, 1, 2, 2]
        assert [image.name for image in images] == [row.name for row in rows]
        for image, label_map in zip(images, expected, strict=True):
            assert (image.label_map == label_map).all()

    def test_batch_dependent_models_get_single_images(self, tmp_path, predictor, monkeypatch):
        monkeypatch.setattr(predictor.model.config, "decoder_self_attention", "across_batch", raising=False)
        sizes = self.spy(monkeypatch)
        assert len(list(segment_rows(self.rows(make_folder(tmp_path)), predictor, batch_size=4))) == 7
        assert set(sizes) == {1}

    def test_a_batch_that_fails_is_tried_one_by_one(self, tmp_path, predictor, monkeypatch):
        def fail(inputs):
            if len(inputs) > 1 or inputs[0]["pixel_values"].shape[-1] < 36:
                raise torch.OutOfMemoryError("CUDA out of memory")

        self.spy(monkeypatch, fail)
        images = list(segment_rows(self.rows(make_folder(tmp_path)), predictor, batch_size=4))
        failed = [image for image in images if image.error]
        assert [image.name for image in failed] == ["2.png"]
        assert "--window" in failed[0].error

    def test_a_lost_device_stops_the_run(self, tmp_path, predictor, monkeypatch):
        def fail(inputs):
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")

        self.spy(monkeypatch, fail)
        with pytest.raises(torch.AcceleratorError):
            list(segment_rows(self.rows(make_folder(tmp_path)), predictor))

    def test_little_of_a_stream_is_read_ahead(self, tmp_path, predictor):
        common = make_image(tmp_path / "common.png")
        rare = make_image(tmp_path / "rare.png", 70, 40)
        num_read = 0

        def rows():
            nonlocal num_read
            for index in range(60):
                num_read += 1
                yield ImageRow(None, str(rare if index == 1 else common))

        for index, image in enumerate(segment_rows(rows(), predictor, batch_size=2)):
            assert image.index == index
            assert num_read - index <= 20
        assert index == 59

    def test_results_are_written_in_row_groups(self, tmp_path, model_folder, output, monkeypatch):
        monkeypatch.setattr(shard_writer, "_ROWS_PER_GROUP", 3)
        assert segment(make_folder(tmp_path / "in"), "--model", model_folder, "--output", output) == 0
        metadata = pyarrow_parquet.read_metadata(output / "shard-00000.parquet")
        assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [3, 3, 1]


class TestResume:
    def interrupt(self, monkeypatch, after: int, error: type[BaseException]) -> None:
        """Raises once so many images are segmented."""
        original, count = Predictor.predict, iter(range(10**6))

        def predict(self, inputs, target_sizes):
            if next(count) == after:
                raise error
            return original(self, inputs, target_sizes)

        monkeypatch.setattr(Predictor, "predict", predict)

    @pytest.mark.parametrize("format", ["parquet", "png"])
    def test_complete_shards_are_kept(self, tmp_path, model_folder, output, monkeypatch, capsys, format):
        folder = make_folder(tmp_path / "in")
        arguments = [folder, "--model", model_folder, "--shard-size", "3", "--format", format]
        whole = output.with_name("whole")
        assert segment(*arguments, "--output", whole) == 0
        with monkeypatch.context() as patch:
            self.interrupt(patch, 4, KeyboardInterrupt)
            assert segment(*arguments, "--output", output) == 130
        before = states(output)
        assert {Path(name).parts[0].split(".")[0] for name in before} == {"manifest", "shard-00000"}
        capsys.readouterr()
        assert segment(*arguments, "--output", output) == 0
        assert "2 shards done, 1 skipped" in capsys.readouterr().out
        assert before.items() <= states(output).items()
        assert contents(output) == contents(whole)

        before = states(output)
        assert segment(*arguments, "--output", output) == 0
        assert "0 shards done, 3 skipped" in capsys.readouterr().out
        assert states(output) == before

    def test_missing_results_are_written_again(self, tmp_path, model_folder, output):
        arguments = [make_folder(tmp_path / "in"), "--model", model_folder, "--output", output, "--shard-size", "3"]
        assert segment(*arguments) == 0
        before = contents(output)
        (output / "shard-00001.parquet").unlink()
        (output / "shard-00002.json").write_text('{"manifest"')
        assert segment(*arguments) == 0
        assert contents(output) == before

    @pytest.mark.slow
    def test_killed(self, tmp_path, model_folder, output):
        folder = make_folder(tmp_path / "in")
        arguments = ["segment-dataset", str(folder), "--model", str(model_folder), "--shard-size", "3"]
        whole = output.with_name("whole")
        assert main([*arguments, "--output", str(whole)]) == 0
        script = (
            "import os, signal, sys\n"
            "from hf_segmodels.cli.main import main\n"
            "from hf_segmodels.inference.shard_writer import ShardResults\n"
            "write = ShardResults.write\n"
            "def kill(self, image):\n"
            "    write(self, image)\n"
            "    if image.name == 'x/1.png': os.kill(os.getpid(), signal.SIGKILL)\n"
            "ShardResults.write = kill\n"
            "main(sys.argv[1:])\n"
        )
        command = [sys.executable, "-c", script, *arguments, "--output", str(output)]
        assert subprocess.run(command, timeout=300).returncode == -9
        assert any(name.endswith(".part") for name in names(output))
        before = {name: state for name, state in states(output).items() if not name.endswith(".part")}
        assert set(before) == {"manifest.json", "shard-00000.json", "shard-00000.parquet"}
        assert main([*arguments, "--output", str(output)]) == 0
        assert before.items() <= states(output).items()
        assert contents(output) == contents(whole)


class TestOtherResults:
    """Results of other runs are replaced only with --overwrite."""

    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        return make_folder(tmp_path / "in")

    def check_refused(self, capsys, output, message, *arguments):
        before = states(output)
        capsys.readouterr()
        assert segment(*arguments, "--output", output) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "--overwrite" in error
        assert error.count("\n") == 1
        assert states(output) == before

    def test_options_model_and_data(self, tmp_path, model_folder, folder, output, capsys):
        arguments = [folder, "--model", model_folder, "--shard-size", "3"]
        assert segment(*arguments, "--output", output) == 0
        for option, message in (
            (["--flip"], "flip (unset then, true now)"),
            (["--window", "32"], "window_size (unset then, [32, 32] now)"),
            (["--dtype", "bfloat16"], 'dtype ("float32" then, "bfloat16" now)'),
            (["--keep-columns", "image"], "keep_columns"),
            (["--shard-size", "4"], "the data"),
            (["--split", "x"], "the data"),
        ):
            self.check_refused(capsys, output, message, *arguments, *option)
        self.check_refused(capsys, output, 'format ("parquet" then, "png" now)', *arguments, "--format", "png")

        # A model or data set may move, but not change.
        shutil.copytree(model_folder, tmp_path / "copy")
        folder.rename(tmp_path / "moved")
        assert segment(tmp_path / "moved", "--model", tmp_path / "copy", "--shard-size", "3", "--output", output) == 0
        assert "3 skipped" in capsys.readouterr().out
        arguments = [tmp_path / "moved", "--model", tmp_path / "copy", "--shard-size", "3"]
        make_image(tmp_path / "moved" / "0.png", seed=99)
        self.check_refused(capsys, output, "differs in the data:", *arguments)
        assert segment(*arguments, "--output", output, "--overwrite") == 0
        model = load_predictor(str(tmp_path / "copy")).model
        torch.nn.init.zeros_(model.decoder.classifier.weight)
        model.save_pretrained(tmp_path / "copy")
        self.check_refused(capsys, output, "differs in the model:", *arguments)

    def test_other_parquet_files(self, tmp_path, model_folder, output, capsys):
        data = make_parquet(tmp_path / "data")
        assert segment(data, "--model", model_folder, "--output", output) == 0
        shutil.copy(data / "train-00000-of-00003.parquet", data / "train-00002-of-00003.parquet")
        self.check_refused(capsys, output, "the data", data, "--model", model_folder)

    def test_overwrite_removes_all_earlier_results(self, tmp_path, model_folder, folder, output):
        arguments = [folder, "--model", model_folder, "--output", output]
        assert segment(*arguments, "--shard-size", "1", "--format", "png") == 0
        (output / "notes.txt").write_text("mine")
        assert segment(*arguments, "--shard-size", "5", "--flip", "--overwrite") == 0
        shards = [f"shard-0000{index}.{suffix}" for index in range(2) for suffix in ("json", "parquet")]
        assert names(output) == ["manifest.json", "notes.txt", *shards, "summary.json"]
        before = states(output)
        assert segment(*arguments, "--shard-size", "5", "--flip", "--overwrite") == 0
        assert not any(state == states(output)[name] for name, state in before.items() if name.startswith("shard"))

    def test_foreign_files(self, model_folder, folder, output, capsys):
        output.mkdir()
        (output / "shard-00000.parquet").write_text("mine")
        self.check_refused(capsys, output, "shard-00000.parquet", folder, "--model", model_folder)
        (output / "manifest.json").write_text("[]")
        assert segment(folder, "--model", model_folder, "--output", output) == 2
        assert "not from this command" in capsys.readouterr().err


class TestFailures:
    def test_broken_images_are_listed(self, tmp_path, model_folder, output, capsys):
        folder = make_folder(tmp_path / "in")
        (folder / "3.png").write_text("no image")
        whole = make_image(tmp_path / "whole.jpg", 200, 200).read_bytes()
        (folder / "x" / "cut.jpg").write_bytes(whole[:-1000])
        arguments = [folder, "--model", model_folder, "--output", output, "--shard-size", "4", "--batch-size", "2"]
        assert segment(*arguments) == 1
        records = [read_json(output / f"shard-{index:05d}.json") for index in range(3)]
        ((first,), (), (cut,)) = (record["failed"] for record in records)
        assert (first["name"], first["index"], cut["name"]) == ("3.png", 2, "x/cut.jpg")
        assert "truncated" in cut["error"]
        assert len(read_back(output)) == 7
        errors = capsys.readouterr().err
        assert "3.png" in errors
        assert "2 of 9 images" in errors
        assert "Traceback" not in errors
        # The shards are complete, but the failures are still reported.
        before = states(output)
        assert segment(*arguments) == 1
        assert "2 of 9 images" in capsys.readouterr().err
        assert {
            name: state for name, state in states(output).items() if name != "summary.json"
        }.items() <= before.items()

    def test_rows_without_an_image(self, tmp_path, model_folder, output, capsys):
        rows = [{"image": None}, {"image": {"bytes": b"no image", "path": None}}]
        content = make_image(tmp_path / "a.png").read_bytes()
        rows.append({"image": {"bytes": content, "path": "a.png"}})
        table = datasets.Dataset.from_list(rows, features=datasets.Features({"image": datasets.Image()}))
        table.to_parquet(tmp_path / "data.parquet")
        assert segment(tmp_path / "data.parquet", "--model", model_folder, "--output", output) == 1
        assert [row["name"] for row in read_back(output)] == ["a.png"]
        errors = capsys.readouterr().err
        assert "image 0" in errors
        assert "2 of 3 images" in errors

    def test_a_shard_that_cannot_be_read_is_tried_again(self, tmp_path, model_folder, output, capsys, monkeypatch):
        data = make_parquet(tmp_path / "data")
        generate = datasets.IterableDataset.__iter__
        failing = True

        def fail(rows):
            for number, row in enumerate(generate(rows)):
                if failing and number == 1:
                    raise ConnectionError("the network is down")
                yield row

        monkeypatch.setattr(datasets.IterableDataset, "__iter__", fail)
        arguments = [data, "--model", model_folder, "--output", output]
        assert segment(*arguments) == 1
        errors = capsys.readouterr().err
        assert errors.count("the network is down") == 2  # the file with one image was read
        assert names(output) == [
            "manifest.json",
            "shard-00000.json",
            "shard-00001.json",
            "shard-00001.parquet",
            "shard-00002.json",
            "summary.json",
        ]
        failing = False
        assert segment(*arguments) == 0
        assert "2 shards done, 1 skipped" in capsys.readouterr().out
        assert len(read_back(output)) == 6

    def test_full_disk_is_one_line(self, tmp_path, model_folder, output, capsys, monkeypatch):
        def fail(self, image):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("hf_segmodels.inference.shard_writer.ShardResults.write", fail)
        assert segment(make_folder(tmp_path / "in"), "--model", model_folder, "--output", output) == 2
        assert capsys.readouterr().err == f"error: cannot write to {output}: No space left on device.\n"
        assert names(output) == ["manifest.json"]


class TestProcesses:
    def test_each_has_its_own_shards_and_the_last_prints_the_totals(
        self, tmp_path, model_folder, output, capsys, monkeypatch
    ):
        folder = make_folder(tmp_path / "in")
        (folder / "y.png").write_text("no image")
        arguments = [folder, "--model", model_folder, "--shard-size", "3", "--output"]
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        assert segment(*arguments, output) == 0
        assert {name[:11] for name in names(output)} == {"manifest.js", "shard-00001"}
        assert capsys.readouterr().out == "process 2 of 2: 1 shard done\n"
        monkeypatch.setenv("RANK", "0")
        # not earlier: launchers end all processes when one fails
        assert segment(*arguments, output) == 1
        captured = capsys.readouterr()
        assert "process 1 of 2: 2 shards done" in captured.out
        assert "8 images in 3 shards" in captured.out
        assert "1 of 8 images" in captured.err
        monkeypatch.delenv("RANK")
        monkeypatch.delenv("WORLD_SIZE")
        assert segment(*arguments, output.with_name("one")) == 1
        assert contents(output) == contents(output.with_name("one"))

    def test_more_processes_than_shards(self, tmp_path, model_folder, output, capsys, caplog, monkeypatch):
        folder = make_folder(tmp_path / "in")
        arguments = [folder, "--model", model_folder, "--output", output]
        monkeypatch.setenv("WORLD_SIZE", "3")
        for rank, shown in (("2", False), ("0", True), ("1", False)):
            monkeypatch.setenv("RANK", rank)
            caplog.clear()
            assert segment(*arguments) == 0
            assert ("7 images in 1 shard;" in capsys.readouterr().out) == shown
            assert ("1 shards are too few for 3 processes" in caplog.text) == shown

    @pytest.mark.slow
    def test_two_write_what_one_writes(self, tmp_path, model_folder, output):
        folder = make_folder(tmp_path / "in")
        (folder / "broken.png").write_text("no image")
        arguments = ["segment-dataset", str(folder), "--model", str(model_folder), "--shard-size", "2"]
        assert main([*arguments, "--output", str(output.with_name("one"))]) == 1
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command = [*launch, "-m", "hf_segmodels.cli", *arguments, "--device", "cpu", "--output", str(output)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, timeout=300, env=environment, capture_output=True, text=True)
        assert run.returncode == 1
        assert run.stdout.count("8 images in 4 shards") == 1
        assert run.stdout.count("2 shards done") == 2
        assert contents(output) == contents(output.with_name("one"))


class TestBatchSegmenter:
    """The callable for Ray Data or Spark, without either."""

    def test_adds_columns(self, tmp_path, model_folder, predictor):
        paths = [make_image(tmp_path / f"{index}.png", *size[::-1], index) for index, size in enumerate(SIZES[:3])]
        segmenter = BatchSegmenter(str(model_folder), batch_size=2, window_size=32)
        kinds = [
            [str(path) for path in paths],
            [path.read_bytes() for path in paths],
            [{"bytes": path.read_bytes(), "path": None} for path in paths],
            [np.array(Image.open(path)) for path in paths],
            [Image.open(path) for path in paths],
        ]
        predictor = load_predictor(str(model_folder), window_size=32)
        for images in kinds:
            column = np.empty(4, dtype=object)
            column[:3] = images
            column[3] = b"no image"
            batch = segmenter({"image": column, "id": np.arange(4)})
            assert batch["id"].tolist() == [0, 1, 2, 3]
            for index, path in enumerate(paths):
                label_map = np.array(Image.open(io.BytesIO(batch["label_map"][index])))
                assert (label_map == predictor(read_image(path))).all()
                assert sum(json.loads(batch["classes"][index]).values()) == pytest.approx(1)
            assert batch["label_map"][3] is None
            assert "cannot identify" in batch["error"][3]
            assert batch["error"][:3].tolist() == [None] * 3


class TestUserErrors:
    """Each is one line on stderr, exit code 2, and no results."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["{}/nothing"], "There is no folder"),
            (["{}/empty"], "no images"),
            (["{}/photo.png"], "is a file"),
            (["{}/pairs"], "--layout folder"),
            (["{}/in", "--layout", "ade"], "ade20k"),
            (["{}/in", "--split", "test"], "no images"),
            (["{}/in", "--keep-columns", "number"], "only have the column 'image'"),
            (["{}/in", "--keep-columns", "image", "--format", "png"], "--format parquet"),
            (["{}/data", "--split", "test"], "choose one of train"),
            (["{}/data", "--image-column", "picture"], "['image', 'number']"),
            (["{}/data", "--image-column", "number"], "set --image-column to image"),
            (["{}/data", "--keep-columns", "name"], "of their own"),
            (["{}/data", "--output", "{}/data/results"], "choose another"),
            (["{}/in", "--output", "{}/in"], "choose another"),
            (["{}/in", "--output", "{}/photo.png"], "cannot use the output folder"),
            (["{}/in", "--batch-size", "0"], "--batch-size"),
            (["{}/in", "--num-workers", "-1"], "--num-workers"),
            (["{}/in", "--window", "16", "--stride", "32"], "skips pixels"),
        ],
    )
    def test_arguments(self, tmp_path, model_folder, output, capsys, arguments, message):
        make_folder(tmp_path / "in")
        make_parquet(tmp_path / "data")
        make_image(tmp_path / "photo.png")
        make_image(tmp_path / "pairs" / "images" / "a.png")
        make_image(tmp_path / "pairs" / "labels" / "a.png")
        (tmp_path / "empty").mkdir()
        capsys.readouterr()
        arguments = [argument.format(tmp_path) for argument in arguments]
        assert segment("--model", model_folder, "--output", output, *arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert message in error
        assert not output.exists()

    @pytest.mark.parametrize(("rank", "world_size"), [("2", "2"), ("x", "2"), ("0", "0")])
    def test_environment(self, tmp_path, model_folder, output, capsys, monkeypatch, rank, world_size):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world_size)
        assert segment(make_folder(tmp_path / "in"), "--model", model_folder, "--output", output) == 2
        assert "WORLD_SIZE" in capsys.readouterr().err
