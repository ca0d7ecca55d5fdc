# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`hf-segmodels segment`: files, output, exit codes, and files that it must not change."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from common.images import make_image
from common.tiny_segmenter import CLASS_NAMES, save_tiny_segmenter
from hf_segmodels.cli.main import main
from hf_segmodels.image_processing import read_image
from hf_segmodels.inference.predictor import load_predictor
from hf_segmodels.visualization import palette_for


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return save_tiny_segmenter(tmp_path_factory.mktemp("model"))


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "results"


def segment(*arguments: str | Path) -> int:
    return main(["segment", *map(str, arguments)])


def read_summary(output: Path) -> dict:
    return json.loads((output / "summary.json").read_text())


def read_labels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def test_overlay_labels_and_summary(tmp_path, model_folder, output, capsys):
    path = make_image(tmp_path / "photo.jpg")
    assert segment(path, "--model", model_folder, "--output", output) == 0

    labels = Image.open(output / "photo_labels.png")
    assert (labels.mode, labels.size) == ("P", (50, 40))
    predictor = load_predictor(str(model_folder))
    expected = predictor(read_image(path))
    assert len(np.unique(expected)) > 1
    assert (np.array(labels) == expected).all()
    palette = palette_for(predictor.model.config)
    assert (np.array(labels.convert("RGB")) == palette[expected]).all()
    overlay = Image.open(output / "photo_overlay.png")
    assert overlay.height >= 40
    assert overlay.width > 50

    (entry,) = read_summary(output)["images"]
    assert (entry["image"], entry["height"], entry["width"]) == (str(path), 40, 50)
    for item in entry["classes"]:
        assert item["name"] == CLASS_NAMES[item["index"]]
        assert item["pixels"] == (expected == item["index"]).sum()
    assert sum(item["share"] for item in entry["classes"]) == pytest.approx(1)
    captured = capsys.readouterr()
    assert f"{entry['classes'][0]['name']} {100 * entry['classes'][0]['share']:.1f} %" in captured.out
    assert str(output) in captured.out
    assert captured.err == ""


def test_options_reach_predict(tmp_path, model_folder, output):
    path = make_image(tmp_path / "photo.png", 90, 70)
    options = ["--window", "32x48", "--stride", "16", "--scales", "0.5", "1", "--flip"]
    assert segment(path, "--model", model_folder, "--output", output, *options) == 0

    predictor = load_predictor(
        str(model_folder), window_size=(32, 48), window_stride=(16, 16), scales=(0.5, 1.0), flip=True
    )
    expected = predictor(read_image(path))
    assert (read_labels(output / "photo_labels.png") == expected).all()
    assert (load_predictor(str(model_folder))(read_image(path)) != expected).any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_nearly_the_same_labels(tmp_path, model_folder, output, dtype):
    path = make_image(tmp_path / "photo.png")
    assert segment(path, "--model", model_folder, "--output", output, "--dtype", dtype, "--device", "cpu") == 0
    expected = load_predictor(str(model_folder))(read_image(path))
    assert (read_labels(output / "photo_labels.png") == expected).mean() > 0.95


def test_alpha_zero_shows_the_image_unchanged(tmp_path, model_folder, output):
    path = make_image(tmp_path / "photo.png", 300, 200)
    assert segment(path, "--model", model_folder, "--output", output, "--alpha", "0") == 0
    overlay = np.array(Image.open(output / "photo_overlay.png"))
    assert (overlay[:200, :300] == np.array(Image.open(path))).all()


def test_more_than_256_classes_are_written_in_16_bits(tmp_path, output):
    names = [f"class {index}" for index in range(300)]
    model_folder = save_tiny_segmenter(tmp_path / "model", class_names=names)
    path = make_image(tmp_path / "photo.png")
    assert segment(path, "--model", model_folder, "--output", output) == 0
    assert Image.open(output / "photo_labels.png").mode == "I;16"
    expected = load_predictor(str(model_folder))(read_image(path))
    assert expected.max() > 255
    assert (read_labels(output / "photo_labels.png") == expected).all()


def test_models_of_transformers_itself(tmp_path, output, capsys):
    config = SegformerConfig(
        num_labels=3,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 8, 8],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=8,
    )
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    path = make_image(tmp_path / "photo.png")
    assert segment(path, "--model", tmp_path / "model", "--output", output) == 0
    assert read_labels(output / "photo_labels.png").shape == (40, 50)
    assert segment(path, "--model", tmp_path / "model", "--output", output, "--window", "32", "--flip") == 2
    assert "does not support --window, --flip" in capsys.readouterr().err


class TestFilesAndFolders:
    def test_other_files_in_a_folder_are_skipped(self, tmp_path, model_folder, output):
        make_image(tmp_path / "in" / "a.png")
        make_image(tmp_path / "in" / "B.JPG")
        make_image(tmp_path / "in" / ".hidden.png")
        make_image(tmp_path / "in" / "deeper" / "c.png")
        (tmp_path / "in" / "notes.txt").write_text("no image")
        assert segment(tmp_path / "in", "--model", model_folder, "--output", output) == 0
        assert sorted(path.name for path in output.glob("*_labels.png")) == ["B_labels.png", "a_labels.png"]

    def test_recursive_keeps_the_folders(self, tmp_path, model_folder, output):
        for name in ("a.png", "x/a.png", "x/y/a.png"):
            make_image(tmp_path / "in" / name)
        assert segment(tmp_path / "in", "--recursive", "--model", model_folder, "--output", output) == 0
        for name in ("a_labels.png", "x/a_labels.png", "x/y/a_labels.png"):
            assert (output / name).is_file()

    def test_images_of_the_same_name_do_not_overwrite_each_other(self, tmp_path, model_folder, output):
        one = make_image(tmp_path / "one" / "a.png", 40, 40)
        two = make_image(tmp_path / "two" / "a.png", 50, 40)
        other_suffix = make_image(tmp_path / "two" / "a.jpg", 60, 40)
        capitals = make_image(tmp_path / "three" / "A.png", 70, 40)
        assert segment(one, two, other_suffix, capitals, two, "--model", model_folder, "--output", output) == 0
        images = read_summary(output)["images"]
        assert {entry["image"] for entry in images} == {str(path) for path in (one, two, other_suffix, capitals)}
        assert len({entry["labels"].lower() for entry in images}) == 4
        for entry in images:
            assert Image.open(output / entry["labels"]).size == Image.open(entry["image"]).size

    def test_the_same_holds_over_two_runs(self, tmp_path, model_folder, output):
        one = make_image(tmp_path / "one" / "a.png", 40, 40)
        two = make_image(tmp_path / "two" / "a.png", 50, 40)
        for path in (one, two, one):
            assert segment(path, "--model", model_folder, "--output", output) == 0
        assert Image.open(output / "a_labels.png").size == (40, 40)
        assert Image.open(output / "two_a_labels.png").size == (50, 40)
        assert len(list(output.glob("*_labels.png"))) == 2

    def test_results_in_the_folder_of_the_images_are_not_segmented_again(self, tmp_path, model_folder):
        make_image(tmp_path / "in" / "a.png")
        for _ in range(2):
            assert segment(tmp_path / "in", "--model", model_folder, "--output", tmp_path / "in") == 0
        expected = ["a.png", "a_labels.png", "a_overlay.png", "summary.json"]
        assert sorted(path.name for path in (tmp_path / "in").iterdir()) == expected

    def test_output_inside_a_searched_folder_is_not_searched(self, tmp_path, model_folder):
        make_image(tmp_path / "in" / "a.png")
        make_image(tmp_path / "in" / "results" / "stranger.png")
        output = tmp_path / "in" / "results"
        assert segment(tmp_path / "in", "--recursive", "--model", model_folder, "--output", output) == 0
        assert [entry["name"] for entry in read_summary(output)["images"]] == ["a"]

    def test_an_image_with_the_name_of_a_result_is_not_overwritten(self, tmp_path, model_folder):
        make_image(tmp_path / "in" / "a.png", seed=1)
        victim = make_image(tmp_path / "in" / "a_overlay.png", seed=2)
        before = victim.read_bytes()
        assert segment(tmp_path / "in", "--model", model_folder, "--output", tmp_path / "in") == 0
        assert victim.read_bytes() == before
        assert len(read_summary(tmp_path / "in")["images"]) == 2

    def test_skip_existing_segments_missing_images(self, tmp_path, model_folder, output, capsys):
        paths = [make_image(tmp_path / name, seed=seed) for seed, name in enumerate(("a.png", "b.png", "c.png"))]
        arguments = ["--model", model_folder, "--output", output, "--skip-existing"]
        assert segment(*paths[:2], *arguments) == 0
        (output / "b_labels.png").unlink()
        before = (output / "a_labels.png").stat().st_mtime_ns
        capsys.readouterr()
        assert segment(*paths, *arguments) == 0
        assert "2 segmented, 1 skipped" in capsys.readouterr().out
        assert (output / "a_labels.png").stat().st_mtime_ns == before
        assert (output / "b_labels.png").is_file()
        assert len(read_summary(output)["images"]) == 3


class TestBadImages:
    def test_a_broken_image_is_reported_and_does_not_stop_the_others(self, tmp_path, model_folder, output, capsys):
        good = make_image(tmp_path / "in" / "b.jpg", 200, 200)
        (tmp_path / "in" / "a.jpg").write_bytes(good.read_bytes()[:-1000])
        (tmp_path / "in" / "c.png").write_text("no image at all")
        (tmp_path / "in" / "d.png").touch()
        assert segment(tmp_path / "in", "--model", model_folder, "--output", output) == 1
        assert [entry["name"] for entry in read_summary(output)["images"]] == ["b"]
        failed = {Path(entry["image"]).name: entry["error"] for entry in read_summary(output)["failed"]}
        assert set(failed) == {"a.jpg", "c.png", "d.png"}
        assert "truncated" in failed["a.jpg"]
        captured = capsys.readouterr()
        assert "3 of 4" in captured.err
        assert all(name in captured.err for name in failed)
        assert "Traceback" not in captured.err
        assert "1 segmented" in captured.out

    def test_out_of_memory_is_reported_for_that_image(self, tmp_path, model_folder, output, capsys, monkeypatch):
        def fail(*arguments, **options):
            raise torch.OutOfMemoryError("CUDA out of memory")

        path = make_image(tmp_path / "a.png")
        monkeypatch.setattr("hf_segmodels.inference.predictor.Predictor.__call__", fail)
        assert segment(path, "--model", model_folder, "--output", output) == 1
        assert "--window" in capsys.readouterr().err


class TestReadImage:
    def test_exif_orientation_turns_the_image(self, tmp_path, model_folder, output):
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees
        path = make_image(tmp_path / "a.jpg", 60, 40, exif=exif)
        assert read_image(path).size == (40, 60)
        assert segment(path, "--model", model_folder, "--output", output) == 0
        assert Image.open(output / "a_labels.png").size == (40, 60)

    @pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "I;16", "F"])
    def test_any_mode_becomes_rgb(self, tmp_path, mode):
        path = tmp_path / "a.tif"
        image = Image.linear_gradient("L").resize((30, 20))
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
        image.save(path)
        read = read_image(path)
        assert (read.mode, read.size) == ("RGB", (30, 20))
        if mode != "1":
            assert len(np.unique(np.asarray(read))) > 10

    def test_16_bits_are_not_cut_off(self, tmp_path):
        values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / "a.png")
        assert np.asarray(read_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 1, 128, 255]

    def test_transparent_parts_are_white(self, tmp_path):
        Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "a.png")
        assert (np.asarray(read_image(tmp_path / "a.png")) == 255).all()
        palette = Image.new("P", (2, 2), 0)
        palette.save(tmp_path / "b.gif", transparency=0)
        assert (np.asarray(read_image(tmp_path / "b.gif")) == 255).all()


class TestUserErrors:
    """Each is one line on stderr, exit code 2, and no results."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--window", "3x"], "--window"),
            (["--window", "-5"], "--window"),
            (["--stride", "0"], "--stride"),
            (["--window", "16", "--stride", "32"], "skips pixels"),
            (["--window", "0", "--stride", "8"], "needs a `window_size`"),
            (["--stride", "8"], "needs a `window_size`"),
            (["--scales", "0"], "--scales"),
            (["--scales", "1", "0.001"], "between 0.1 and 10"),
            (["--scales", "-1"], "--scales"),
            (["--scales", "nan"], "--scales"),
            (["--scales", "big"], "not a number"),
            (["--alpha", "50"], "between 0 and 1"),
            (["--dtype", "int8"], "--dtype"),
            (["--device", "tpu9"], "--device cpu"),
            (["--device", "meta"], "--device cpu"),
            (["--device", "xla"], "--device cpu"),
            (["--nonsense"], "--nonsense"),
        ],
    )
    def test_options(self, tmp_path, model_folder, output, capsys, arguments, message):
        path = make_image(tmp_path / "a.png")
        assert segment(path, "--model", model_folder, "--output", output, *arguments) == 2
        self.check_one_line(capsys, message)
        assert list(output.glob("*")) == []

    def test_stride_larger_than_the_window_of_the_model(self, tmp_path, output, capsys):
        model_folder = save_tiny_segmenter(tmp_path / "model", window_size=16)
        path = make_image(tmp_path / "a.png")
        capsys.readouterr()
        assert segment(path, "--model", model_folder, "--output", output, "--stride", "24") == 2
        self.check_one_line(capsys, "`window_stride` (24, 24) must be from 1 to `window_size` (16, 16)")

    def check_one_line(self, capsys, message):
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert message in captured.err

    def test_missing_arguments(self, capsys):
        assert main(["segment", "a.png"]) == 2
        self.check_one_line(capsys, "--model, --output")
        assert main([]) == 2
        self.check_one_line(capsys, "COMMAND")
        assert main(["paint"]) == 2
        self.check_one_line(capsys, "paint")

    def test_images_that_do_not_exist(self, tmp_path, model_folder, output, capsys):
        assert segment(tmp_path / "no.png", "--model", model_folder, "--output", output) == 2
        self.check_one_line(capsys, "no.png")
        (tmp_path / "empty" / "deeper").mkdir(parents=True)
        make_image(tmp_path / "empty" / "deeper" / "a.png")
        assert segment(tmp_path / "empty", "--model", model_folder, "--output", output) == 2
        self.check_one_line(capsys, "--recursive")

    def test_invalid_models(self, tmp_path, model_folder, output, capsys):
        path = make_image(tmp_path / "a.png")
        assert segment(path, "--model", tmp_path / "no_model", "--output", output) == 2
        self.check_one_line(capsys, "there is no folder")
        assert segment(path, "--model", tmp_path, "--output", output) == 2
        self.check_one_line(capsys, "config.json")
        assert segment(path, "--model", path, "--output", output) == 2
        self.check_one_line(capsys, "is a file")

        broken = tmp_path / "broken"
        broken.mkdir()
        for file in model_folder.iterdir():
            content = file.read_bytes()
            (broken / file.name).write_bytes(content[:-100] if file.suffix == ".safetensors" else content)
        assert segment(path, "--model", broken, "--output", output) == 2
        self.check_one_line(capsys, "cannot load")
        (broken / "config.json").write_text('{"model_type": "bert"}')
        assert segment(path, "--model", broken, "--output", output) == 2
        self.check_one_line(capsys, "cannot load")

    def test_a_model_without_a_trained_decoder(self, tmp_path, model_folder, output, capsys):
        weights = load_file(model_folder / "model.safetensors")
        for file in model_folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        without_decoder = {name: weight for name, weight in weights.items() if not name.startswith("decoder.")}
        save_file(without_decoder, tmp_path / "model.safetensors", metadata={"format": "pt"})
        path = make_image(tmp_path / "a.png")
        assert segment(path, "--model", tmp_path, "--output", output) == 2
        assert "lacks weights that segmentation needs (decoder.classifier.bias" in capsys.readouterr().err

    def test_output_that_cannot_be_used(self, tmp_path, model_folder, capsys):
        path = make_image(tmp_path / "a.png")
        assert segment(path, "--model", model_folder, "--output", path) == 2
        self.check_one_line(capsys, "output folder")
        (tmp_path / "summary.json").write_text('{"mine": 1}')
        assert segment(path, "--model", model_folder, "--output", tmp_path) == 2
        self.check_one_line(capsys, "summary.json")
        assert json.loads((tmp_path / "summary.json").read_text()) == {"mine": 1}
