# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Model cards: they match the model and its results, their examples run, and the cards in the repository are up to date."""

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from common.original_regproxy import regproxy_shapes
from common.original_segmenter import segmenter_shapes
from common.original_segvit import segvit_shapes
from common.segmentation_folders import label_map, write_folders
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
    SuperpixelViTConfig,
    SuperpixelViTForSemanticSegmentation,
    UNEPTConfig,
    UNEPTForSemanticSegmentation,
    UNEPTImageProcessor,
)
from hf_segmodels.cli.main import create_parser, main
from hf_segmodels.conversion.formats.regproxy import RELEASES as REGPROXY
from hf_segmodels.conversion.formats.segvit import RELEASES as SEGVIT
from hf_segmodels.hub import create_model_card
from hf_segmodels.hub.cards.facts import DATASETS, METHODS
from hf_segmodels.labels import load_labels
from model_cards import make_cards


NAMES = {0: "road", 1: "tree", 2: "sky"}


def tiny_encoder(**fields: Any) -> PlainViTConfig:
    return PlainViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=1, image_size=32, patch_size=8, **fields
    )


def tiny_model(method: str, **fields: Any) -> tuple[Any, Any]:
    """Model and image processor."""
    fields = {"id2label": NAMES, "window_size": [32, 32], "window_stride": [24, 24], **fields}
    if method == "segmenter":
        config = SegmenterConfig(backbone_config=tiny_encoder(), decoder_type="linear", **fields)
        model, processor = SegmenterForSemanticSegmentation(config), SegmenterImageProcessor
    elif method == "segvit":
        encoder = tiny_encoder(use_cls_token=False, final_norm="none", out_indices=[1, 2])
        fields |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
        model = SegViTForSemanticSegmentation(SegViTConfig(backbone_config=encoder, **fields))
        processor = SegViTImageProcessor
    elif method == "regproxy":
        config = RegProxyConfig(backbone_config=tiny_encoder(), token_head_depth=1, **fields)
        model, processor = RegProxyForSemanticSegmentation(config), RegProxyImageProcessor
    else:
        fields |= {
            "backbone_config": tiny_encoder(final_norm="none", out_indices=[1, 2]),
            "num_feature_levels": 2,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_points": 2,
            "intermediate_size": 32,
            "encoder_num_hidden_layers": 1,
            "decoder_num_hidden_layers": 1,
            "spatial_hidden_sizes": [8, 16],
            "image_size": 32,
        }
        model, processor = UNEPTForSemanticSegmentation(UNEPTConfig(**fields)), UNEPTImageProcessor
    return model.eval(), processor(size={"shortest_edge": 32, "longest_edge": 64}, num_labels=3)


def results(**changes: Any) -> dict[str, Any]:
    """What `hf-segmodels evaluate --output` writes, for three classes."""
    return {
        "model": "somewhere/model",
        "dataset": "/data/sets/streets",
        "layout": "folder",
        "split": "validation",
        "protocol": {"window_size": [32, 32], "window_stride": [16, 16], "scales": [0.5, 1.0], "flip": True},
        "mean_iou": 0.4567,
        "mean_accuracy": 0.5,
        "overall_accuracy": 0.75,
        "per_category_iou": [0.5, 0.25, math.nan],
        "per_category_accuracy": [0.5, 0.5, math.nan],
        "mean_boundary_iou": 0.125,
        "images": 7,
        "dtype": "float32",
        "processes": 1,
        "torch": "9.9",
        "device": "CPU, 1 threads",
        "commit": "abc",
        **changes,
    }


RECIPE = {
    "dataset": "/data/sets/camvid",
    "layout": None,
    "model": {"model_type": "segmenter"},
    "pretrained_backbone": "data/backbones/some_vit.npz",
    "batch_size": 2,
    "gradient_accumulation_steps": 4,
    "crop_size": [240, 320],
    "optimizer": "adamw",
    "learning_rate": 0.001,
    "schedule": "poly",
    "warmup_steps": 10,
    "weight_decay": 0.05,
    "mixed_precision": "bf16",
    "seed": 3,
}


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def segmenter() -> tuple[Any, Any]:
    return tiny_model("segmenter")


@pytest.mark.parametrize("windows", [{}, {"window_size": None, "window_stride": None}], ids=["windows", "whole"])
@pytest.mark.parametrize("method", METHODS)
def test_the_examples_run(method: str, windows: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    model, processor = tiny_model(method, **windows)
    model.save_pretrained(tmp_path / "me" / "tiny")
    processor.save_pretrained(tmp_path / "me" / "tiny")
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    snippets = code_blocks(create_model_card(model, processor, repo_id="me/tiny").text, "python")
    assert len(snippets) == 3
    namespace: dict[str, Any] = {}
    exec(snippets[0], namespace)
    assert "(56, 40)" in capsys.readouterr().out
    exec(snippets[1], namespace)
    plain = namespace.pop("labels")
    assert plain.shape == (40, 56)
    exec(snippets[2], namespace)
    assert namespace["labels"].shape == (40, 56)
    assert {int(label) for label in namespace["labels"].unique()} <= set(NAMES)


def test_examples_with_remote_code_do_not_import_the_package(segmenter):
    snippets = code_blocks(create_model_card(*segmenter, repo_id="me/tiny", remote_code=True).text, "python")
    assert len(snippets) == 3
    assert "hf_segmodels" not in "".join(snippets)
    # pipeline, processor and model
    assert "".join(snippets).count('"me/tiny", trust_remote_code=True)') == 3


def test_metadata_and_scores_match_the_results_file(segmenter, tmp_path: Path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(results()))
    card = create_model_card(
        *segmenter, repo_id="me/tiny", results=path, dataset="me/streets", license="cc-by-nc-4.0", base_model="me/base"
    )
    card.save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-segmentation")
    assert (data.license, data.base_model, data.datasets) == ("cc-by-nc-4.0", "me/base", ["me/streets"])
    assert {"semantic-segmentation", "segmenter"} <= set(data.tags)
    assert data.model_name == "tiny"
    measured = {result.metric_type: result for result in data.eval_results}
    written = json.loads(path.read_text())
    assert {name: result.metric_value for name, result in measured.items()} == {
        name: written[name] for name in ("mean_iou", "mean_accuracy", "overall_accuracy", "mean_boundary_iou")
    }
    for result in measured.values():
        assert (result.dataset_name, result.dataset_split) == ("streets", "validation")
        assert result.metric_args == written["protocol"]
    row = "| streets, validation (7 images) | windows of 32x32 pixels every 16, mean over scales 0.5, 1, with flipped copies, in float32"
    assert f"{row} | 45.67 | 50.00 | 75.00 | 12.50 |" in card.text
    assert "| road | 50.0 |" in card.text
    assert "| sky | does not occur |" in card.text
    assert "`scores.json`, torch 9.9, CPU, 1 threads, commit abc" in card.text
    # paths of data and model are private
    assert "/data" not in str(card)
    assert "somewhere" not in str(card)


def test_results_of_the_command(segmenter, tmp_path: Path):
    pytest.importorskip("accelerate", reason="part of the `train` and `dev` extras")
    write_folders(tmp_path / "streets" / "validation", {"a": label_map(0, 1, 2, size=(32, 40))})
    for part in segmenter:
        part.save_pretrained(tmp_path / "model")
    options = [
        "--layout",
        "folder",
        "--device",
        "cpu",
        "--window",
        "24",
        "--flip",
        "--output",
        str(tmp_path / "scores.json"),
    ]
    assert main(["evaluate", "--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "streets"), *options]) == 0
    card = create_model_card(*segmenter, results=tmp_path / "scores.json")
    row = "| streets, validation (1 images) | windows of 24x24 pixels every 24, with flipped copies, in float32 |"
    score = 100 * json.loads((tmp_path / "scores.json").read_text())["mean_iou"]
    assert f"{row} {score:.2f} |" in card.text


def test_results_of_a_training_script(segmenter):
    plain = {key: value for key, value in results().items() if key not in ("dataset", "layout", "protocol", "dtype")}
    card = create_model_card(*segmenter, results=[{**plain, "recipe": RECIPE | {"dataset": "x/my_set"}, "step": 1200}])
    assert "| Trained on | my_set |" in card.text
    # windows of the model's configuration
    assert "windows of 32x32 pixels every 24, in bfloat16" in card.text
    (arguments,) = {str(result.metric_args) for result in card.data.eval_results}
    assert arguments == str({"window_size": [32, 32], "window_stride": [24, 24], "scales": [1.0], "flip": False})
    for line in (
        "Starts from `some_vit.npz`.",
        "1,200 training steps with 8 crops of 320x240 pixels per process.",
        "adamw, learning rate 0.001 (poly, 10 warm-up steps), weight decay 0.05.",
        "Mixed precision (bf16).",
        "Seed 3.",
    ):
        assert f"- {line}\n" in card.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_category_iou": [0.5] * 4}, "The model has 3 classes, but `results` has scores of 4"),
        ({"mean_iou": math.nan}, "`mean_iou` in `results` is nan.*Nothing was counted"),
        ({"mean_iou": None}, "`mean_iou` in `results` is None.*Nothing was counted"),
        ({"mean_iou": 45.67}, "`mean_iou` in `results` is 45.67, but scores are numbers from 0 to 1"),
        ({"overall_accuracy": None}, "`overall_accuracy` in `results` is None"),
        ({"mean_boundary_iou": math.inf}, "`mean_boundary_iou` in `results` is inf"),
        ({"per_category_iou": [50.0, 25.0, 1.0]}, "`per_category_iou` in `results` must hold scores from 0 to 1"),
        ({"per_category_iou": None}, "must hold `mean_iou` and `per_category_iou`.*hf-segmodels evaluate --output"),
        (
            {"recipe": RECIPE | {"model": {"model_type": "segvit"}}},
            "is of type 'segmenter', but the recipe in `results` is of type 'segvit'",
        ),
    ],
)
def test_results_of_other_models_are_refused(segmenter, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        create_model_card(*segmenter, results=results(**changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "Cannot read the results"), ("{", "is not valid JSON"), ("[1]", "does not hold results")],
)
def test_other_files_are_refused(segmenter, text: str | None, message: str, tmp_path: Path):
    path = tmp_path / "scores.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=f"{message}.*results.json"):
        create_model_card(*segmenter, results=path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "ade20k"}, "ADE20K .* has 150 classes, the model has 3"),
        ({"license": "other"}, "needs a name: set `license_name`"),
        ({"license": "mit", "license_name": "mine"}, 'need `license="other"`'),
        ({"license_link": "https://example.org"}, 'need `license="other"`'),
    ],
)
def test_contradictory_options_are_refused(segmenter, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        create_model_card(*segmenter, **options)


def test_model_type_without_cards():
    encoder = tiny_encoder()
    model = SuperpixelViTForSemanticSegmentation(SuperpixelViTConfig(backbone_config=encoder, num_labels=3))
    with pytest.raises(ValueError, match="no cards for 'superpixel_vit' models, only for segmenter"):
        create_model_card(model, SegmenterImageProcessor())


def test_without_jinja(segmenter, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.repocard.is_jinja_available", lambda: False)
    with pytest.raises(ImportError, match="pip install Jinja2"):
        create_model_card(*segmenter)


def test_missing_facts_are_unknown(segmenter):
    card = create_model_card(*segmenter)
    assert card.data.license == "unknown"
    assert (card.data.datasets, card.data.base_model, card.data.eval_results) == (None, None, None)
    assert "Weights: **unknown**" in card.text
    assert "| Trained on | unknown |" in card.text
    assert "Data: the terms of the data set are unknown" in card.text
    assert "Not measured." in card.text


@pytest.mark.parametrize(
    ("dataset", "shown", "on_the_hub"),
    [
        ("me/streets", "me/streets", ["me/streets"]),
        ("/data/sets/streets", "streets", None),
        ("streets", "streets", None),
    ],
)
def test_names_of_data_sets(segmenter, dataset: str, shown: str, on_the_hub: list[str] | None):
    card = create_model_card(*segmenter, dataset=dataset)
    assert f"| Trained on | {shown} |" in card.text
    assert card.data.datasets == on_the_hub
    assert "/data" not in str(card)


def test_self_attention_across_the_batch_is_a_limit():
    model, processor = tiny_model("unept", decoder_self_attention="across_batch")
    warning = "the images of a batch influence each other"
    assert warning in create_model_card(model, processor).text
    assert warning not in create_model_card(*tiny_model("unept")).text


def test_names_cannot_break_tables(segmenter):
    model, processor = segmenter
    model.config.id2label = {0: "a|b", 1: "<b>", 2: "c\nd"}
    text = create_model_card(model, processor, results=results(dataset="x|y")).text
    assert "| a\\|b | 50.0 |\n| &lt;b> | 25.0 |\n| c d | does not occur |" in text
    assert "| x\\|y, validation" in text


@pytest.mark.parametrize("name", DATASETS)
def test_facts_of_data_sets(name: str):
    labels = {"coco_stuff_10k": "coco_stuff_171"}.get(name, name)
    if name != "camvid":
        assert DATASETS[name].num_classes == len(load_labels(labels)[0])


# ------------------------------------------------------------------------------------------ the cards in the repository


_, CHECKPOINTS = make_cards.read_checkpoints()


def read_card(name: str) -> ModelCard:
    return ModelCard.load(make_cards.FOLDER / f"{name}.md")


@pytest.fixture(scope="module")
def files() -> dict[Path, str]:
    return make_cards.make_cards()


def test_no_card_is_stale(files: dict[Path, str]):
    assert make_cards.stale_files(files) == []
    assert len(files) == len(CHECKPOINTS) + 2


def test_stale_cards_are_found_and_written(files: dict[Path, str], tmp_path: Path, monkeypatch, capsys):
    moved = {tmp_path / path.name: text for path, text in files.items() if path.parent == make_cards.FOLDER}
    monkeypatch.setattr(make_cards, "FOLDER", tmp_path)
    monkeypatch.setattr(make_cards, "REPOSITORY", tmp_path)
    monkeypatch.setattr(make_cards, "make_cards", lambda: moved)
    assert make_cards.main([]) == 0
    assert make_cards.main(["--check"]) == 0
    changed, gone, *_ = sorted(moved)
    changed.write_text(moved[changed] + "more\n")
    gone.unlink()
    (tmp_path / "of-nothing.md").write_text("# A model\n")
    capsys.readouterr()
    assert make_cards.main(["--check"]) == 1
    reported = capsys.readouterr().err
    for name in (changed.name, gone.name, "of-nothing.md"):
        assert f"stale: {name}\n" in reported
    assert "of-nothing.md" in {path.name for path in tmp_path.iterdir()}
    assert make_cards.main([]) == 0
    assert make_cards.main(["--check"]) == 0
    assert not (tmp_path / "of-nothing.md").exists()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_convert_command_parses(name: str):
    commands = [line for block in code_blocks(read_card(name).text, "bash") for line in block.splitlines()]
    (command,) = (shlex.split(line) for line in commands if line.startswith("hf-segmodels"))
    assert command[:2] == ["hf-segmodels", "convert"]
    arguments = create_parser().parse_args(command[1:])
    assert arguments.method == CHECKPOINTS[name]["recipe"].partition("/")[0]
    assert arguments.verify
    # the examples load the output of the command
    assert f'from_pretrained("{arguments.output_dir}")' in read_card(name).text
    if arguments.method == "segmenter":
        # the command reads the downloaded file, with variant.yml next to it
        downloads = [shlex.split(line) for line in commands if line.startswith("curl")]
        targets = {Path(words[words.index("--output") + 1]) for words in downloads}
        assert targets == {arguments.checkpoint, arguments.checkpoint.with_name("variant.yml")}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_cards_have_no_measured_scores(name: str):
    card = read_card(name)
    assert card.data.eval_results is None
    assert card.data.metrics is None
    assert "Not measured here. Reported by others:" in card.text
    assert "Measured with" not in card.text


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_reported_scores_match_the_recipe(name: str):
    """Both were copied from the papers independently."""
    recipe = (make_cards.RECIPES / f"{CHECKPOINTS[name]['recipe']}.yaml").read_text()
    (line,) = (line for line in recipe.splitlines() if line.startswith("# mIoU: "))
    scores = {protocol: score for score, protocol in re.findall(r"([\d.]+) (single scale|multi-scale)", line)}
    reported = {protocol: str(score) for score, protocol, _ in CHECKPOINTS[name]["reported"]}
    assert reported == {protocol: scores[protocol] for protocol in reported}
    tables = {source for *_, source in CHECKPOINTS[name]["reported"]} - {"README"}
    assert all(table in line for table in tables)


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if not name.startswith("segmenter")])
def test_windows_and_classes_match_the_converter(name: str):
    release = {**REGPROXY, **SEGVIT}[name]
    stride = getattr(release, "stride", release.crop_size if release.num_labels == 150 else 512)
    text = read_card(name).text
    assert f"| windows of {release.crop_size}x{release.crop_size} pixels every {stride}" in text
    assert f"| Classes | {release.num_labels} |" in text
    assert f"vision transformer: {release.num_layers} layers, hidden size" in text


def test_every_released_checkpoint_has_a_card(repository: Path):
    segmenter = json.loads((repository / "tests/fixtures/segmenter/released.json").read_text())
    released = {key for key in segmenter if not key.startswith("config_")}
    urls = {fields["url"].replace("/", "_") for name, fields in CHECKPOINTS.items() if name.startswith("segmenter")}
    assert urls == released
    assert {name for name in CHECKPOINTS if name.startswith("regproxy")} == set(REGPROXY)
    # the README of the authors' code lists only models with a file
    files = {fields["file"] for name, fields in CHECKPOINTS.items() if name.startswith("segvit")}
    assert len(files) == 7


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_parameters_and_tensors_match_the_original(name: str, repository: Path):
    method, _, _ = CHECKPOINTS[name]["recipe"].partition("/")
    released = json.loads((repository / "tests/fixtures" / method / "released.json").read_text())
    fields = released[CHECKPOINTS[name]["url"].replace("/", "_") if method == "segmenter" else name]
    assert f"| Parameters | {fields['num_parameters']:,} |" in read_card(name).text
    if method == "segmenter":
        shapes = segmenter_shapes(fields["net_kwargs"])
    else:
        sizes = ["width", "num_layers", "num_classes", "grid"]
        sizes += ["distilled", "stem"] if method == "regproxy" else ["decoder_width", "num_stages", "shrunk"]
        write = regproxy_shapes if method == "regproxy" else segvit_shapes
        shapes = write(**{key: fields[key] for key in sizes})
    assert CHECKPOINTS[name]["tensors"] == len(shapes)
    assert f"The file has {len(shapes)} tensors" in read_card(name).text


def test_the_demo_models_card_quotes_its_results(repository: Path):
    card = ModelCard.load(repository / "hf_segmodels/demo/model/README.md")
    measured = json.loads((repository / "benchmarks/results/demo_model_camvid.json").read_text())
    found = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    for split in ("test", "validation"):
        for metric in ("mean_iou", "mean_accuracy", "overall_accuracy"):
            assert found[split, metric] == measured[split][metric]
    assert len(found) == 6
    assert (card.data.license, card.data.license_name) == ("other", "research-use")
    recipe = repository / measured["command"].split()[0]
    fields = yaml.safe_load(recipe.read_text())
    assert fields["model"]["model_type"] == measured["recipe"]["model"]["model_type"]


def test_cards_need_no_weights(segmenter):
    model, processor = segmenter
    with torch.device("meta"):
        empty = SegmenterForSemanticSegmentation(model.config)
    assert str(create_model_card(empty, processor)) == str(create_model_card(model, processor))
