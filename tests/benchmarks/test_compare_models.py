# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The comparison with models of transformers, at sizes that say nothing."""

import importlib
import json
import subprocess
import sys

import pytest
import torch


@pytest.fixture(scope="module")
def script(repository):
    # as when it runs: it imports from the script beside it
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository / "benchmarks"))
        yield importlib.import_module("compare_models")
    sys.modules.pop("compare_models")


@pytest.mark.parametrize(
    "family", ["Segmenter", "SegViT", "RegProxy", "UN-EPT", "SegFormer", "DPT", "UperNet", "EoMT", "Mask2Former"]
)
@torch.inference_mode()
def test_every_model_gives_a_label_map(script, family):
    model = script.build(family, "tiny", 64, torch.device("cpu"))
    sdpa, eager, half = (script.Way.of(family, model, mode, 64) for mode in ("sdpa", "eager", "bf16"))
    labels = sdpa()
    assert labels.shape == (64, 64)
    assert labels.dtype == torch.int64
    assert 0 <= labels.min() <= labels.max() < script.NUM_LABELS
    assert eager.model.config._attn_implementation == "eager"
    assert next(eager.model.parameters()) is next(sdpa.model.parameters())
    assert script.agreement(eager.scores(), sdpa.scores()) == 1
    assert next(half.model.parameters()).dtype == torch.bfloat16
    assert next(sdpa.model.parameters()).dtype == torch.float32
    assert half().shape == (64, 64)
    assert script.multiply_adds(sdpa) > 0


def test_agreement(script):
    expected = [torch.ones(1000), torch.ones(10)]
    assert script.agreement([torch.ones(1000), torch.ones(10) + 5e-4], expected) == 1
    assert script.agreement([torch.ones(1000), torch.ones(10)], expected) == 1
    wrong = torch.ones(1000)
    wrong[:20] = 2
    assert script.agreement([wrong, torch.ones(10)], expected) == pytest.approx(0.98)


def test_sizes_are_those_of_the_papers(script):
    """In millions: parameters as the papers have them, or the models' own counts."""
    expected = {"Segmenter-S/16": 26.03, "RegProxy-S/16": 22.25, "SegFormer-B2": 27.46, "EoMT-S/16": 23.72}
    for name, millions in expected.items():
        family, scale = script.names(script.SCALES)[name]
        with torch.device("meta"):
            model = script.FAMILIES[family].build(scale, 512)
        assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.01)


def test_names(script):
    assert list(script.names(["base"], ["Segmenter"])) == ["Segmenter-B/16"]
    assert script.names(["small", "base"], ["DPT-B/16"]) == {"DPT-B/16": ("DPT", "base")}
    assert script.names(["small"], ["DPT-B/16"]) == {}
    assert len(script.names(["small", "base"])) == 18
    with pytest.raises(ValueError, match="'Segmentor' is none of Segmenter, "):
        script.names(["base"], ["Segmentor"])


def run(repository, *options) -> str:
    command = [sys.executable, repository / "benchmarks" / "compare_models.py", *options]
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, timeout=900).stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory on CPUs is read from /proc")
def test_measures_and_draws(script, repository, tmp_path):
    options = ["--scale", "tiny", "--only", "Segmenter", "SegFormer", "--size", 64, "--repeats", 1, "--threads", 1]
    modes = ["eager", "sdpa", "bf16"]
    run(repository, *options, "--modes", *modes, "--output", tmp_path, "--page", tmp_path)
    measured = json.loads((tmp_path / "compare_models_cpu.json").read_text())["tiny"]
    assert {(row["model"], row["mode"]) for row in measured["rows"]} == {
        (model, mode) for model in ("Segmenter-tiny", "SegFormer-tiny") for mode in modes
    }
    for row in measured["rows"]:
        assert row["images_per_second"] == pytest.approx(1 / row["seconds"])
        assert row["parameters"] > 1e4
        assert row["multiply_adds"] > 1e6
        assert row["peak_bytes"] > 0
        assert row["mode"] == "bf16" or row["labels_as_in_sdpa"] >= script.AGREEMENT
    assert (tmp_path / "compare_models_cpu.svg").read_text().startswith("<?xml")
    assert (tmp_path / "benchmarks.md").read_text() == script.page({"cpu": {"tiny": measured}})

    # the command of a row measures that row, and other scales stay
    path = tmp_path / "compare_models_cpu.json"
    path.write_text(json.dumps({"small": {"rows": []}, "tiny": measured}))
    words = next(row for row in measured["rows"] if row["mode"] == "bf16")["command"].split()
    assert words[:2] == ["python", "benchmarks/compare_models.py"]
    run(repository, *words[2:], "--output", tmp_path)
    again = json.loads(path.read_text())
    assert again["small"] == {"rows": []}
    assert [(row["model"], row["mode"]) for row in again["tiny"]["rows"]] == [("Segmenter-tiny", "bf16")]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory on CPUs is read from /proc")
def test_measures_compiled_models(script, repository, tmp_path):
    options = ["--scale", "tiny", "--only", "Segmenter", "--size", 64, "--repeats", 1, "--threads", 1]
    run(repository, *options, "--modes", "compile", "--output", tmp_path)
    (row,) = json.loads((tmp_path / "compare_models_cpu.json").read_text())["tiny"]["rows"]
    assert row["labels_as_in_sdpa"] >= script.AGREEMENT
    assert row["peak_bytes"] > 0


def made_up(model: str, mode: str, is_ours: bool, classes: int = 5) -> dict:
    command = f"python benchmarks/compare_models.py --only {model} --scale small --modes {mode} --size 512 --repeats 3"
    return {
        "model": model,
        "mode": mode,
        "is_ours": is_ours,
        "parameters": 26_033_964,
        "multiply_adds": 38_403_898_368,
        "labels_as_in_sdpa": 0.9714,
        "classes": classes,
        "command": command,
        "seconds": 0.5,
        "images_per_second": 2.0,
        "peak_bytes": 2**27 if is_ours else None,
    }


def test_table(script):
    rows = [made_up("A", "sdpa", True), made_up("A", "bf16", True), made_up("B", "sdpa", False, classes=1)]
    head, _, ours, theirs = script.table(rows)
    assert head == (
        "| model | parameters, M | multiply-adds, G | images/s, sdpa | images/s, bfloat16 | MiB, sdpa | MiB, bfloat16 | "
        "bfloat16 labels as in float32 | repeat with |"
    )
    command = "python benchmarks/compare_models.py --only A --scale small --size 512 --repeats 3"
    assert ours == f"| **A** | 26.0 | 38.4 | 2.00 | 2.00 | 128 | 128 | 97.1 % | `{command}` |"
    assert theirs == f"| B | 26.0 | 38.4 | 2.00 |  |  |  |  | `{command.replace('A', 'B')}` |"


def test_page_is_that_of_the_results(script, repository):
    files = sorted((repository / "benchmarks" / "results").glob("compare_models_*.json"))
    results = {file.stem.removeprefix("compare_models_"): json.loads(file.read_text()) for file in files}
    page = (repository / "docs" / "benchmarks.md").read_text()
    assert page == script.page(results), "run `python benchmarks/compare_models.py --scale --page docs`"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--size", "500"], "--size must be a multiple of 32"),
        (["--only", "Nothing"], "'Nothing' is none of"),
    ],
)
def test_mistakes_are_named(script, options, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["compare_models.py", *options])
    with pytest.raises(SystemExit):
        script.main()
    assert message in capsys.readouterr().err
