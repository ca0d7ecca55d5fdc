# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
What the README and the pages in docs/ show has to work: Python examples run, commands run or at least parse, recipes train,
numbers are those of the results files, links lead somewhere.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import Dinov2Backbone, Dinov2Config

from common import original_regproxy, original_segmenter, original_segvit, original_unept
from common.segmentation_folders import label_map, write_ade20k, write_image, write_labels
from hf_segmodels import (
    PlainViTConfig,
    RegProxyConfig,
    RegProxyForSemanticSegmentation,
    RegProxyImageProcessor,
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    SegmenterImageProcessor,
    SegViTConfig,
    SegViTForSemanticSegmentation,
    SegViTImageProcessor,
    UNEPTConfig,
    UNEPTForSemanticSegmentation,
    UNEPTImageProcessor,
)
from hf_segmodels.cli import main as cli
from hf_segmodels.training.recipe import Recipe


REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *sorted(path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("docs/*.md"))]
LINKING = [*PAGES, "CONTRIBUTING.md", "training/README.md"]
# programs of others: what they are given cannot be tried here
EXTERNAL = {"cd", "curl", "git", "hf", "kernel-builder", "kernels", "nix"}
# commands of ours that have to run for real, page by page
RUN = {
    "README.md": {"segment", "convert", "check-data", "evaluate", "publish"},
    "docs/conversion.md": {"convert"},
    "docs/data.md": {"check-data"},
    "docs/evaluation.md": {"evaluate"},
    "docs/inference.md": {"segment"},
    "docs/publish.md": {"publish"},
    "docs/regproxy.md": {"convert"},
    "docs/segment_dataset.md": {"segment-dataset"},
    "docs/segmenter.md": {"convert"},
    "docs/segvit.md": {"convert"},
    "docs/unept.md": {"convert"},
}


def read(page: str) -> str:
    return (REPOSITORY / page).read_text()


def code_blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language, also those in tabs, which are indented."""
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^\1```", text, flags=re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in blocks]


def pages_with(language: str) -> list[str]:
    return [page for page in PAGES if code_blocks(read(page), language)]


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of each command in the text's bash blocks."""
    for block in code_blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                yield words[:end]
                words = words[end + 1 :]


def save_models(folder: Path) -> None:
    """`METHOD`: a tiny model, and its image processor with labels as ADE20K has them."""
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(["sky", "building", "road"])), "window_size": 64}

    def encoder(**fields) -> PlainViTConfig:
        return PlainViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=64, **fields)

    pyramid = encoder(use_cls_token=False, final_norm="none", out_indices=[1, 2])
    sizes = {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2}
    unept_sizes = {"hidden_size": 32, "intermediate_size": 64, "num_points": 2, "spatial_hidden_sizes": (8, 16)}
    segmenter = SegmenterConfig(backbone_config=encoder(), **names)
    segvit = SegViTConfig(backbone_config=pyramid, **sizes, **names | {"window_size": None})
    regproxy = RegProxyConfig(backbone_config=encoder(), token_head_depth=1, **names)
    unept = UNEPTConfig(backbone_config=pyramid, image_size=64, **unept_sizes, **names)
    for model, processor_class in (
        (SegmenterForSemanticSegmentation(segmenter), SegmenterImageProcessor),
        (SegViTForSemanticSegmentation(segvit), SegViTImageProcessor),
        (RegProxyForSemanticSegmentation(regproxy), RegProxyImageProcessor),
        (UNEPTForSemanticSegmentation(unept), UNEPTImageProcessor),
    ):
        method = model.config.model_type
        model.save_pretrained(folder / method)
        processor_class(size={"shortest_edge": 64}, do_reduce_labels=True).save_pretrained(folder / method)


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of, but `path/to/model`, which is a model of the page's method."""
    folder = tmp_path_factory.mktemp("things")
    save_models(folder / "models")
    shutil.copytree(folder / "models" / "segmenter", folder / "runs" / "my_model")
    SegmenterImageProcessor(size={"shortest_edge": 64}).save_pretrained(folder / "runs" / "my_model")
    write_image(folder / "photo.jpg", (48, 80))
    write_image(folder / "folder" / "other.png", (48, 80))
    (folder / "my_recipe.yaml").write_text(code_blocks(read("README.md"), "yaml")[0])
    for split in ("train", "validation"):
        for name in ("a", "b"):
            write_image(folder / "my_data" / "images" / split / f"{name}.jpg", (48, 80))
            write_labels(folder / "my_data" / "labels" / split / f"{name}.png", label_map(0, 1, 2, 255, size=(48, 80)))
    for root in (folder, folder / "data"):
        for split in ("training", "validation"):
            write_ade20k(root, {"ADE_1": label_map(0, 1, 2, size=(48, 80))}, split)
    original_segmenter.write_checkpoint(folder / "seg_base_mask")
    for writer, name in (
        (original_regproxy, "regproxy-s16.pth"),
        (original_segvit, "ade_51.3.pth"),
        (original_unept, "iter_160000.pth"),
    ):
        writer.write_checkpoint(folder / "made").rename(folder / name)
    return folder


@pytest.fixture
def folder(request: pytest.FixtureRequest, things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the page speaks of."""
    work = tmp_path / "work"
    shutil.copytree(things, work)
    method = Path(request.node.callspec.params["page"]).stem
    model = work / "models" / method
    (work / "path" / "to").mkdir(parents=True)
    (model if model.is_dir() else work / "models" / "segmenter").rename(work / "path" / "to" / "model")
    monkeypatch.chdir(work)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, filename, revision=None: filename)
    return work


# what Gradio takes to import
SLOW = {"docs/demo.md"}


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in pages_with("python")]
)
def test_python_examples(page: str, folder: Path, capsys: pytest.CaptureFixture):
    namespace: dict = {}
    for block in code_blocks(read(page), "python"):
        exec(compile(block, page, "exec"), namespace)
    if page == "README.md":
        assert "(80, 48)" in capsys.readouterr().out  # one of them prints the masks' sizes
    if page == "README.md":
        assert namespace["labels"].shape == (427, 640)  # of the sample photograph
        assert Image.open(folder / "overlay.png").size == (640, 427)
        (folder / "overlay.png").unlink()
    if page in ("docs/segmenter.md", "docs/segvit.md"):
        assert namespace["labels"].shape == (48, 80)
    for picture in folder.glob("*.png"):
        assert Image.open(picture).size == (80, 48)


def parse(words: list[str]) -> argparse.Namespace:
    """The arguments of `hf-segmodels`; mistakes raise or exit."""
    return cli.create_parser().parse_args(words)


def has_inputs(arguments: argparse.Namespace) -> bool:
    """Whether everything that a command reads is there."""
    if getattr(arguments, "filename", None):
        return Path(arguments.filename).exists()
    names = ("checkpoint", "dataset", "folder", "images", "model", "source")
    values = [value for name in names if (value := getattr(arguments, name, None)) is not None]
    paths = [path for value in values for path in (value if isinstance(value, list) else [value])]
    return bool(paths) and all(Path(path).exists() for path in paths)


def run_ours(words: list[str]) -> str | None:
    """Runs a command of ours where that can be done here; its name if it ran."""
    if "--help" in words or "..." in words:
        return None
    arguments = parse(words)
    serves_or_uploads = words[0] == "demo" or (words[0] == "publish" and "--dry-run" not in words)
    if serves_or_uploads or not has_inputs(arguments):
        return None
    assert cli.main(words) == 0, words
    return words[0]


def check_script(words: list[str]) -> None:
    """A script of the repository exists and knows the options."""
    script = REPOSITORY / words[0]
    assert script.is_file(), words
    for option in (word for word in words[1:] if word.startswith("--")):
        assert f'"{option}"' in script.read_text(), words


@pytest.mark.parametrize("page", pages_with("bash"))
def test_commands(page: str, folder: Path):
    targets = make_targets()
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    ran = set()
    for program, *words in command_lines(read(page)):
        if program == "accelerate":
            assert words.pop(0) == "launch"
            program = "python"
            if "-m" in words:
                module = words.index("-m") + 1
                assert words[module] == "hf_segmodels.cli", words
                program, words = "hf-segmodels", words[module + 1 :]
        if program == "hf-segmodels":
            ran.add(run_ours(words))
        elif program == "make":
            assert set(words) <= targets, words
        elif program == "pip":
            named = {extra for word in words for group in re.findall(r"\[(.*)\]", word) for extra in group.split(",")}
            assert named <= set(extras), words
        elif program == "python" and words[0] != "-m":
            check_script(words)
        elif program == "python" and words[1] == "conversion.convert":
            ran.add(run_ours(["convert", *words[2:]]))
        elif program == "python" and words[1].startswith("hf_segmodels."):
            check_script([words[1].replace(".", "/") + ".py", *words[2:]])
        else:
            assert program in EXTERNAL, (program, *words)
    assert RUN.get(page, set()) <= ran
    if page == "README.md":
        assert len(list((folder / "results").glob("*_overlay.png"))) == 2
        assert json.loads((folder / "converted" / "parity_report.json").read_text())["passed"]
        assert 0 <= json.loads((folder / "my_scores.json").read_text())["mean_iou"] <= 1
        assert (folder / "exported" / "modeling_segmenter.py").is_file()


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", read("Makefile"), flags=re.MULTILINE))


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_recipes_parse(page: str, tmp_path: Path):
    for block in code_blocks(read(page), "yaml"):
        (tmp_path / "recipe.yaml").write_text(block)
        Recipe.read(tmp_path / "recipe.yaml")


def test_recipe_trains(things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The recipe for one's own data, with a smaller encoder and for two training steps."""
    from hf_segmodels.training.accelerate_loop import train

    monkeypatch.chdir(tmp_path)
    shutil.copytree(things / "my_data", tmp_path / "my_data")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    Dinov2Backbone(Dinov2Config(patch_size=14, **sizes)).save_pretrained(tmp_path / "encoder")
    overrides = [f"model.backbone_config.{name}={value}" for name, value in sizes.items()]
    overrides += ["pretrained_backbone=encoder", "base_size=[42, 168]", "crop_size=[28, 28]", "batch_size=2"]
    overrides += ["max_steps=2", "image_processor.size={shortest_edge: 42}"]
    recipe = Recipe.read(things / "my_recipe.yaml", overrides)
    train(recipe)
    results = json.loads((tmp_path / "runs" / "my_model" / "results.json").read_text())
    assert results["step"] == 2
    model = SegmenterForSemanticSegmentation.from_pretrained(tmp_path / "runs" / "my_model")
    assert model.config.id2label == {0: "background", 1: "road", 2: "car"}
    frozen = Dinov2Backbone.from_pretrained(tmp_path / "encoder").state_dict()
    assert all(torch.equal(value, frozen[name]) for name, value in model.backbone.state_dict().items())


def ratio(file: str, *keys: str) -> Callable[[], float]:
    def read_ratio() -> float:
        value = json.loads(read(f"benchmarks/results/{file}"))
        for key in keys:
            value = value[key]
        return value

    return read_ratio


SEGMENT = "segment_image_cpu.json"
SPEED_UPS = {
    "images per second, 512x512, low-entropy logits (as of a trained model)": ratio(
        SEGMENT, "512x512", "ratios", "images per second, speed-up, low-entropy logits"
    ),
    "images per second, 512x512, logits of random weights": ratio(
        SEGMENT, "512x512", "ratios", "images per second, speed-up, random weights"
    ),
    "images per second, 2048x1024 in windows of 768": ratio(
        SEGMENT, "2048x1024", "ratios", "images per second, speed-up"
    ),
    "labels from patch-level logits, low-entropy (random weights)": ratio(
        SEGMENT, "512x512", "ratios", "labels, speed-up, low-entropy logits"
    ),
    "extra peak memory from logits to labels": ratio(
        SEGMENT, "memory", "ratios", "extra peak memory, relative to the baseline"
    ),
}


def test_speed_ups_are_those_of_the_results():
    rows = dict(re.findall(r"^\| ([^|]+) \| ([\d.]+)x[^|]* \|$", read("docs/performance.md"), flags=re.MULTILINE))
    assert set(rows) == set(SPEED_UPS)
    for text, printed in rows.items():
        decimals = len(printed.partition(".")[2])
        assert float(printed) == round(SPEED_UPS[text](), decimals), text


def test_the_table_of_methods_is_that_of_the_results():
    results = json.loads(read("benchmarks/results/compare_models_cpu.json"))["small"]["rows"]
    measured = {row["model"]: row for row in results if row["mode"] == "sdpa"}
    rows = re.findall(r"\| ([\w+-]+(?:/16)?) \| ([\d.]+) \|[^|]*\| ([\d.]+) \|$", read("README.md"), re.MULTILINE)
    assert len(rows) == 8
    for model, parameters, speed in rows:
        assert float(parameters) == round(measured[model]["parameters"] / 1e6, 1), model
        assert float(speed) == round(measured[model]["images_per_second"], 2), model


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING)
def test_links_and_names_lead_somewhere(page: str):
    text = read(page)
    for link in re.findall(r"\]\((?!http|mailto)([^)\s]+)", text):
        place, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / place if place else REPOSITORY / page
        assert target.exists(), link
        if anchor:
            assert anchor in slugs(target.read_text()), link
    for line in re.findall(r"`?make ([a-z][a-z -]*)", "\n".join(re.findall(r"`[^`]*`|^make .*$", text, re.M))):
        assert set(line.split()) <= make_targets(), f"make {line}"
    for path in re.findall(r"(?:hf_segmodels|training|tests|benchmarks)/[\w/]+\.(?:py|md|json)", text):
        assert "NAME" in path or (REPOSITORY / path).exists(), path
    (subparsers,) = (action for action in cli.create_parser()._actions if action.dest == "command")
    known = set(subparsers.choices)
    for name in re.findall(r"hf-segmodels ([a-z][a-z-]*)", text):
        assert name in known, name


def test_site_builds_without_warnings(tmp_path: Path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers.python")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    finished = subprocess.run(
        command,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    fields = (tmp_path / "site" / "api" / "configurations" / "index.html").read_text()
    assert "region_resolution" in fields
    settings = (tmp_path / "site" / "recipe_settings" / "index.html").read_text()
    assert "gradient_accumulation_steps" in settings
    assert "Forward passes per training step." in settings
    options = (tmp_path / "site" / "command_line" / "index.html").read_text()
    assert all(f'id="{command}"' in options for command in ("segment", "train", "convert", "check-data"))
    assert "--window" in options
    models = (tmp_path / "site" / "api" / "models" / "index.html").read_text()
    assert "pixel_values" in models
