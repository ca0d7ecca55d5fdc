# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`python -m hf_segmodels.demo`: picture, output and errors."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.tiny_segmenter import save_tiny_segmenter
from hf_segmodels.demo.__main__ import main


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return save_tiny_segmenter(tmp_path_factory.mktemp("model"))


def test_the_sample_photograph_and_the_packaged_model(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="scikit-learn ships the photograph")
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    out = capsys.readouterr().out
    path = tmp_path / "demo_output" / "china_overlay.png"
    assert str(path) in out
    assert "CC BY 2.0" in out
    assert Image.open(path).width > 2 * 640
    assert sum(float(share) for share in re.findall(r"(\d+\.\d) %", out)) == pytest.approx(100, abs=1)
    # the largest parts of the picture
    found = {name for name, share in re.findall(r"^  (.+?) +(\d+\.\d) %$", out, re.MULTILINE) if float(share) >= 5}
    assert {"sky", "building", "tree"} <= {name.lower() for name in found}


def test_another_image(tmp_path, model_folder, capsys):
    photo = tmp_path / "mine.png"
    Image.linear_gradient("L").save(photo)
    output = tmp_path / "new" / "out.png"
    assert main(["--image", str(photo), "--output", str(output), "--model", str(model_folder)]) == 0
    picture = np.asarray(Image.open(output))
    assert (picture[:256, :256] == np.asarray(Image.open(photo))[..., None]).all()
    out = capsys.readouterr().out
    assert str(output) in out
    assert "CC BY" not in out


def test_without_scikit_learn(tmp_path, model_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["--model", str(model_folder), "--output", str(tmp_path / "out.png")]) == 2
    err = capsys.readouterr().err
    assert "pip install 'hf_segmodels[demo]'" in err
    assert "--image" in err


def test_invalid_paths(tmp_path, model_folder, capsys):
    photo = tmp_path / "mine.png"
    Image.linear_gradient("L").save(photo)
    before = photo.read_bytes()
    model = ["--model", str(model_folder)]
    assert main(["--image", str(photo), "--output", str(photo), *model]) == 2
    assert photo.read_bytes() == before
    assert main(["--image", str(tmp_path / "no.png"), *model]) == 2
    assert main(["--image", str(photo), "--output", str(tmp_path / "out.xyz"), *model]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in errors] == [True] * 3
    assert "no.png" in errors[1]
    assert ".xyz" in errors[2]
