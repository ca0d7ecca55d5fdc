# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What the README shows has to work: its Python examples run here, and its commands exist."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_segmodels import PlainViTConfig, SegmenterConfig, SegmenterForSemanticSegmentation, SegmenterImageProcessor
from hf_segmodels.cli import main


@pytest.fixture
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text()


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the model and the photograph that the README speaks of."""
    encoder = PlainViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=64)
    config = SegmenterConfig(backbone_config=encoder, num_labels=3, window_size=64)
    SegmenterForSemanticSegmentation(config).save_pretrained(tmp_path / "path/to/model")
    SegmenterImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path / "path/to/model")
    noise = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    (tmp_path / "folder").mkdir()
    Image.fromarray(noise[:, ::-1]).save(tmp_path / "folder" / "other.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_examples(readme: str, folder: Path, capsys: pytest.CaptureFixture):
    namespace = {}
    blocks = code_blocks(readme, "python")
    for block in blocks:
        exec(block, namespace)
    assert len(blocks) >= 3
    assert "(80, 48)" in capsys.readouterr().out  # the first one prints the masks' sizes
    assert namespace["labels"].shape == (48, 80)


def test_segment_command(readme: str, folder: Path):
    (command,) = (
        line for block in code_blocks(readme, "bash") for line in block.splitlines() if "hf-segmodels segment" in line
    )
    assert main(shlex.split(command)[1:]) == 0
    assert len(list((folder / "results").glob("*_overlay.png"))) == 2


def test_commands_and_links_lead_somewhere(readme: str, repository: Path):
    targets = re.findall(r"^([a-z-]+):", (repository / "Makefile").read_text(), flags=re.MULTILINE)
    for document in (readme, (repository / "CONTRIBUTING.md").read_text()):
        for line in re.findall(r"`?make ([a-z][a-z -]*)", "\n".join(re.findall(r"`[^`]*`|^make .*$", document, re.M))):
            assert set(line.split()) <= set(targets), f"make {line}"
        for link in re.findall(r"\]\((?!http)([^)#]+)", document):
            assert (repository / link).exists(), link
        for path in re.findall(r"(?:hf_segmodels|training|tests|benchmarks)/[\w/]+\.(?:py|md)", document):
            assert "NAME" in path or (repository / path).exists(), path
