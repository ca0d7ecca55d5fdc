# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The command: files in, a folder out, or a message and nothing."""

import io
import json
import os
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from common.convert_command import main
from common.original_segmenter import tiny_network, write_checkpoint
from hf_segmodels.cli import main as cli
from hf_segmodels.cli.convert import METHODS
from hf_segmodels.conversion import converter
from hf_segmodels.conversion.formats import FORMATS
from hf_segmodels.conversion.reference.segmenter import segmenter_forward


def run(checkpoint: Path, folder: Path, *options: str, method: str | None = "segmenter") -> int:
    chosen = [] if method is None else ["--method", method]
    return main([*chosen, "--checkpoint", str(checkpoint), "--output_dir", str(folder), *options])


def assert_refused(code: int, message: str, folder: Path, capsys) -> None:
    """A message of one line, no traceback, and nothing left behind."""
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert not folder.exists()
    assert not list(folder.parent.glob(".*partial*"))


def test_verified_conversion_leaves_a_report(checkpoint: Path, tmp_path: Path, capsys):
    folder = tmp_path / "new" / "converted"
    assert run(checkpoint, folder, "--verify") == 0
    report = json.loads((folder / "parity_report.json").read_text())
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert report["passed"]
    assert report["num_parameters"] == model.num_parameters()
    assert report["dropped_keys"] == ["encoder.head.weight", "encoder.head.bias"]
    assert [case["shape"] for case in report["cases"].values()] == [[1, 5, 64, 64], [2, 5, 59, 35]]
    assert all(case["max_abs_difference"] < 1e-4 for case in report["cases"].values())
    assert all(case["labels_equal_percent"] == 100 for case in report["cases"].values())
    out = capsys.readouterr().out
    assert "encoder.head.weight, encoder.head.bias" in out
    assert "max |d|" in out
    assert not list(folder.parent.glob(".*partial*"))


@pytest.mark.parametrize("decoder", ["linear", "mask_transformer"])
@pytest.mark.parametrize("distilled", [False, True])
def test_every_kind_of_model_verifies(decoder: str, distilled: bool, tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "original", tiny_network(decoder, distilled=distilled))
    assert run(checkpoint, tmp_path / "converted", "--verify") == 0


def test_verification_compares_whole_images_even_with_small_windows(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "original", window=(32, 16))
    assert run(checkpoint, tmp_path / "converted", "--verify") == 0


def test_stored_outputs_beside_the_checkpoint_are_compared(checkpoint: Path, tmp_path: Path, capsys):
    pixel_values = torch.randn(1, 3, 70, 50)
    weights = torch.load(checkpoint, weights_only=True)["model"]
    logits = segmenter_forward(weights, pixel_values, num_heads=2, patch_size=16, grid=(4, 4))
    np.save(checkpoint.with_name("input.npy"), pixel_values.numpy())
    np.save(checkpoint.with_name("logits.npy"), logits.numpy())
    assert run(checkpoint, tmp_path / "right", "--verify") == 0
    report = json.loads((tmp_path / "right" / "parity_report.json").read_text())
    assert "stored logits of the original" in report["cases"]

    np.save(checkpoint.with_name("logits.npy"), logits.numpy() + 0.01)
    assert run(checkpoint, tmp_path / "wrong", "--verify") == 1
    captured = capsys.readouterr()
    assert "FAILED stored logits" in captured.out
    assert captured.err.splitlines()[-1].startswith("error: the converted model differs")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("mistake", ["layer_norm_eps", "position_embedding_interpolation", "weights"])
def test_verification_finds_mistakes(mistake: str, checkpoint: Path, tmp_path: Path, monkeypatch, capsys):
    """A wrong conversion does not pass its own parity check."""
    convert = converter.convert

    def convert_wrongly(*arguments):
        conversion = convert(*arguments)
        config = conversion.model.config.backbone_config
        if mistake == "layer_norm_eps":
            config.layer_norm_eps = 1e-2
        elif mistake == "position_embedding_interpolation":
            config.position_embedding_interpolation = "bicubic"
        else:
            conversion.model.decoder.class_projection.data = (
                conversion.model.decoder.class_projection.data.T.contiguous()
            )
        return conversion

    monkeypatch.setattr(converter, "convert", convert_wrongly)
    assert run(checkpoint, tmp_path / "converted", "--verify") == 1
    assert "FAILED noise at an odd size" in capsys.readouterr().out
    assert not (tmp_path / "converted").exists()


def test_written_files_follow_the_umask(checkpoint: Path, tmp_path: Path):
    old_umask = os.umask(0o027)
    try:
        assert run(checkpoint, tmp_path / "out") == 0
    finally:
        os.umask(old_umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {0o640}, modes


def test_full_folders_are_kept(checkpoint: Path, tmp_path: Path, capsys):
    folder = tmp_path / "converted"
    folder.mkdir()
    assert run(checkpoint, folder) == 0  # an empty one is fine
    (folder / "notes.txt").write_text("mine")
    before = (folder / "model.safetensors").read_bytes()
    assert run(checkpoint, folder) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == before

    (folder / "parity_report.json").write_text("of an earlier conversion")
    other = write_checkpoint(tmp_path / "other", tiny_network("linear", n_cls=9))
    assert run(other, folder, "--overwrite") == 0
    assert AutoModelForSemanticSegmentation.from_pretrained(folder).config.num_labels == 9
    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder / "parity_report.json").exists()

    (tmp_path / "broken.pth").write_bytes(b"no weights")
    assert run(tmp_path / "broken.pth", folder, "--overwrite") == 2
    assert AutoModelForSemanticSegmentation.from_pretrained(folder).config.num_labels == 9


def test_a_file_is_refused_as_output_folder(checkpoint: Path, tmp_path: Path, capsys):
    (tmp_path / "file").write_text("mine")
    assert run(checkpoint, tmp_path / "file", "--overwrite") == 2
    assert "is a file" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


class _Evil:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_not_run(zipped: bool, checkpoint: Path, tmp_path: Path, capsys):
    torch.save({"model": _Evil()}, checkpoint, _use_new_zipfile_serialization=zipped)
    code = run(checkpoint, tmp_path / "converted")
    captured = capsys.readouterr()
    assert "code ran" not in captured.out
    assert "save its weights alone" in captured.err
    assert code == 2
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("kept", [0, 10, 1000, 100_000])
def test_truncated_checkpoints_are_refused(kept: int, checkpoint: Path, tmp_path: Path, capsys):
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    assert_refused(run(checkpoint, tmp_path / "converted"), "download it again", tmp_path / "converted", capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>sign in</html>", "is damaged or not a checkpoint"),
        (pickle.dumps([1, 2, 3]), "is damaged or not a checkpoint"),
    ],
)
def test_other_files_are_refused(content: bytes, message: str, checkpoint: Path, tmp_path: Path, capsys):
    checkpoint.write_bytes(content)
    assert_refused(run(checkpoint, tmp_path / "converted"), message, tmp_path / "converted", capsys)


@pytest.mark.parametrize("content", [{"model": {}}, {"epoch": 3}, [1, 2], torch.ones(3)])
def test_checkpoints_without_weights_are_refused(content, checkpoint: Path, tmp_path: Path, capsys):
    torch.save(content, checkpoint)
    assert_refused(run(checkpoint, tmp_path / "converted"), "holds no weights", tmp_path / "converted", capsys)


def test_damaged_and_pickled_arrays_are_refused(tmp_path: Path, capsys):
    file = tmp_path / "weights.npz"
    file.write_bytes(b"PK nothing")
    folder = tmp_path / "converted"
    assert_refused(run(file, folder, method="backbone"), "download it again", folder, capsys)
    buffer = io.BytesIO()
    np.savez(buffer, cls=np.array([_Evil()], dtype=object))
    file.write_bytes(buffer.getvalue())
    assert_refused(run(file, folder, method="backbone"), "holds pickled Python objects", folder, capsys)
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"nothing")
    assert_refused(run(file, folder, method="backbone"), "download it again", folder, capsys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["backbone.cls_token", "decode_head.affinity_head.0.weight"], "looks like RegProxy; use `--method regproxy`"),
        (
            ["backbone.cls_token", "decode_head.q.weight", "decode_head.class_embed.bias"],
            "looks like SegViT; use `--method segvit`",
        ),
        (
            ["backbone.cls_token", "context_branch.level_embed", "query_embed.weight"],
            "looks like UN-EPT; use `--method unept`",
        ),
        (["backbone.conv1.weight", "decode_head.conv_seg.weight"], "looks like an mmsegmentation model"),
        (["cls_token", "patch_embed.proj.weight"], "use `--method backbone`"),
        (["fc.weight"], "looks like nothing that is known here"),
    ],
)
def test_checkpoints_of_other_methods_are_recognized(keys, message, checkpoint: Path, tmp_path: Path, capsys):
    torch.save({"meta": {}, "state_dict": {key: torch.ones(1) for key in keys}}, checkpoint)
    assert_refused(run(checkpoint, tmp_path / "converted"), message, tmp_path / "converted", capsys)


@pytest.mark.parametrize("method", METHODS)
def test_method_is_recognized_from_the_keys(method: str, tmp_path: Path, capsys):
    if method == "backbone":
        timm = pytest.importorskip("timm", reason="timm makes the state dict")
        vit = timm.models.vision_transformer.VisionTransformer(
            img_size=32, patch_size=16, embed_dim=64, depth=1, num_heads=1
        )
        checkpoint = tmp_path / "vit.pth"
        torch.save(vit.state_dict(), checkpoint)
    else:
        checkpoint = import_module(f"common.original_{method}").write_checkpoint(tmp_path / "original")
    assert run(checkpoint, tmp_path / "converted", method=None) == 0
    assert f"--method {method}" in capsys.readouterr().out


def test_every_format_is_a_method():
    assert tuple(known.method for known in FORMATS) == METHODS


def test_unknown_checkpoints_without_a_method_are_refused(checkpoint: Path, tmp_path: Path, capsys):
    torch.save({"fc.weight": torch.ones(1)}, checkpoint)
    code = run(checkpoint, tmp_path / "converted", method=None)
    message = "is not a checkpoint that can be converted: it looks like nothing that is known here"
    assert_refused(code, message, tmp_path / "converted", capsys)


def test_a_segmenter_is_not_a_backbone(checkpoint: Path, tmp_path: Path, capsys):
    folder = tmp_path / "converted"
    assert_refused(run(checkpoint, folder, method="backbone"), "use `--method segmenter`", folder, capsys)


def test_missing_checkpoint(tmp_path: Path, capsys):
    folder = tmp_path / "converted"
    assert_refused(run(tmp_path / "checkpoint.pth", folder), "There is no file", folder, capsys)


def test_one_command_under_two_names(checkpoint: Path, tmp_path: Path, repository: Path):
    arguments = ["--method", "segmenter", "--checkpoint", str(checkpoint), "--output_dir"]
    assert cli.main(["convert", *arguments, str(tmp_path / "a")]) == 0
    command = [sys.executable, "-m", "conversion.convert", *arguments, str(tmp_path / "b")]
    finished = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_help_and_mistakes_in_arguments(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    for arguments in (["--method", "segvat"], []):
        assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "variant.yml" in captured.out
    assert "invalid choice: 'segvat'" in captured.err
