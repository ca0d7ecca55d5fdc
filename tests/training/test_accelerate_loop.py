# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The loop on Accelerate, on a few synthetic images."""

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation

from common.interrupted_training import train_until_first_checkpoint
from hf_segmodels import (
    PlainViTBackbone,
    PlainViTConfig,
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    SegmenterImageProcessor,
)
from hf_segmodels.cli.main import main
from hf_segmodels.data import SegmentationData, find_id2label
from hf_segmodels.evaluation import evaluate_model
from hf_segmodels.training import AugmentedData, TrainingBatches, trainer_loop
from hf_segmodels.training import accelerate_loop as script
from hf_segmodels.training.accelerate_loop import train
from hf_segmodels.training.augmentation import training_augmentation
from hf_segmodels.training.factory import build_model, build_optimizer
from hf_segmodels.training.recipe import Recipe
from hf_segmodels.training.schedules import learning_rate_factor


def weights(folder):
    return AutoModelForSemanticSegmentation.from_pretrained(folder).state_dict()


def assert_equal_weights(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert torch.equal(values, second[name]), name


UNEPT = {
    "model_type": "unept",
    "backbone_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    | {"image_size": 32},
    "spatial_hidden_sizes": [8, 8],
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_points": 2,
    "intermediate_size": 32,
    "image_size": 32,
}


def test_boundary_targets_are_made_on_the_way(recipe):
    scores = train(recipe(model=UNEPT, max_steps=20))
    assert sum(scores["losses"][-5:]) < 0.85 * sum(scores["losses"][:5])
    assert scores["mean_iou"] > 0.6


@pytest.mark.parametrize(("loop", "fields"), [(script, {"ema_decay": 0.9}), (trainer_loop, {})])
def test_learns_and_saves_what_auto_classes_load(recipe, loop, fields):
    run = recipe(max_steps=30, photometric_distortion=True, **fields)
    scores = loop.train(run)
    assert scores["losses"][-1] < 0.5 * scores["losses"][0]
    assert scores["mean_iou"] > 0.9

    model = AutoModelForSemanticSegmentation.from_pretrained(run.output_dir)
    assert model.config.id2label == {0: "dark", 1: "bright"}
    processor = AutoImageProcessor.from_pretrained(run.output_dir)
    assert not processor.do_resize
    results = json.loads(Path(run.output_dir, "results.json").read_text())
    assert results["mean_iou"] == scores["mean_iou"]
    assert [entry["loss"] for entry in results["history"] if "loss" in entry] == scores["losses"]
    assert results["cpu_seconds"] >= 1
    assert results["recipe"]["max_steps"] == 30
    assert results["torch"] == version("torch")


@pytest.mark.parametrize("class_weighting", ["none", "median_frequency"])
def test_superpixels_are_made_of_the_augmented_images(recipe, class_weighting):
    pytest.importorskip("skimage", reason="scikit-image is part of the `superpixels` and `dev` extras")
    backbone = recipe().model["backbone_config"]
    run = recipe(
        max_steps=20,
        model={"model_type": "superpixel_vit", "backbone_config": backbone},
        # the images are noisy: at a lower compactness few superpixels are left
        image_processor={"do_resize": False, "pixels_per_segment": 32, "compactness": 60.0},
        class_weighting=class_weighting,
    )
    scores = train(run)
    assert scores["losses"][-1] < 0.5 * scores["losses"][0]
    assert scores["mean_iou"] > 0.9


def test_resumed_run_equals_uninterrupted_one(recipe):
    fields = {"ema_decay": 0.9, "warmup_steps": 1, "checkpoint_steps": 2}
    # dropout draws from the global random state, which a checkpoint has to hold too
    fields["model"] = recipe().model | {"decoder_type": "mask_transformer", "decoder_num_hidden_layers": 1}
    whole = recipe("whole", **fields)
    losses = train(whole)["losses"]

    part = recipe("part", **fields)
    train_until_first_checkpoint(train, part, script, "save_checkpoint")
    torch.manual_seed(123)
    part.resume = True
    assert train(part)["losses"] == losses

    assert_equal_weights(whole.output_dir, part.output_dir)
    states = [torch.load(f"{run.output_dir}/checkpoint-4/optimizer.bin", weights_only=True) for run in (whole, part)]
    for index, state in states[0]["state"].items():
        for name, values in state.items():
            assert torch.equal(values, states[1]["state"][index][name]), (index, name)


@pytest.mark.parametrize("loop", [script, trainer_loop])
def test_accumulated_gradients_equal_those_of_a_large_batch(recipe, loop):
    # scale 1, a crop of the image's size and flips keep the number of valid pixels equal in all samples
    fields = {"scale_range": [1.0, 1.0], "crop_size": [32, 40], "optimizer": "sgd", "learning_rate": 0.1}
    large = recipe("large", batch_size=8, max_steps=2, **fields)
    small = recipe("small", batch_size=4, max_steps=2, gradient_accumulation_steps=2, **fields)
    losses = [loop.train(run)["losses"] for run in (large, small)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    first, second = weights(large.output_dir), weights(small.output_dir)
    for name, values in first.items():
        torch.testing.assert_close(values, second[name], rtol=1e-4, atol=1e-6)


def test_weights_do_not_replace_a_loss_that_trains_more_than_scores(recipe):
    with pytest.raises(ValueError, match="learn from angle_maps and distance_maps"):
        train(recipe(model=UNEPT, label_smoothing=0.1))


def test_class_weights_and_smoothing_train_too(recipe):
    run = recipe(max_steps=20, class_weighting="median_frequency", label_smoothing=0.1)
    losses = train(run)["losses"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("loop", [script, trainer_loop])
def test_stops_on_a_loss_that_is_not_finite(recipe, loop):
    with pytest.raises(FloatingPointError, match="Lower `learning_rate`"):
        loop.train(recipe(learning_rate=1e30, optimizer="sgd", max_steps=20))


def test_reduced_labels_train_and_evaluate_like_those_that_start_at_0(recipe, camera_from_one):
    fields = {"class_weighting": "median_frequency"}
    plain = recipe("plain", **fields)
    reduced = recipe("reduced", **fields, dataset=str(camera_from_one))
    reduced.image_processor = reduced.image_processor | {"do_reduce_labels": True}
    scores = [train(run) for run in (plain, reduced)]
    assert scores[0] == scores[1]
    assert_equal_weights(plain.output_dir, reduced.output_dir)
    assert AutoImageProcessor.from_pretrained(reduced.output_dir).do_reduce_labels


def test_labels_that_are_no_classes_stop_the_run(recipe, camera_from_one):
    run = recipe(dataset=str(camera_from_one))
    with pytest.raises(
        ValueError, match=r"Label issues were found in train.*\n.*not-reduced.*`do_reduce_labels` to true"
    ):
        train(run)


def test_labels_that_are_no_classes_are_named(recipe, camera_from_one):
    source = recipe(dataset=str(camera_from_one)).dataset
    data = SegmentationData(source, "train", processor=SegmenterImageProcessor(num_labels=2))
    message = r"label map of sample 0 in train holds labels outside the 2 classes .*: 2; .* y=\d.*do_reduce_labels=True"
    with pytest.raises(ValueError, match=message):
        data[0]


def test_label_maps_are_checked_in_their_own_type_and_by_file(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    Image.new("RGB", (3, 2)).save(folder / "street.png")
    # in 8 bits 256 would become 0, and 0 - 1 would become 255
    Image.fromarray(np.array([[0, 1, 2], [255, 256, 1]], dtype=np.uint16)).save(folder / "street_labels.png")
    (folder / "metadata.csv").write_text("image_file_name,label_file_name\nstreet.png,street_labels.png\n")

    def read(**fields):
        processor = SegmenterImageProcessor(do_reduce_labels=True, **fields)
        return SegmentationData(str(tmp_path / "images"), "train", processor=processor)

    message = r"sample 0 in train \(.*street_labels.png\) \(reduced\) .* 254, 255; .* y=1, x=0"
    with pytest.raises(ValueError, match=message):
        read(num_labels=2, ignore_index=-1)[0]
    data = read(num_labels=256, ignore_index=-1)
    assert data[0][1].tolist() == [[-1, 0, 1], [254, 255, 0]]
    assert data.class_counts(256).nonzero().flatten().tolist() == [0, 1, 254, 255]


def test_evaluation_refuses_labels_read_in_another_way(recipe):
    model, processor = build_model(recipe())
    processor.do_reduce_labels = True
    with pytest.raises(ValueError, match="processor=image_processor"):
        evaluate_model(model, processor, SegmentationData(recipe().dataset, "validation"))


def test_the_loss_ignores_what_the_labels_are_read_with(recipe):
    run = recipe(image_processor={"ignore_index": 0})
    model, processor = build_model(run)
    assert model.config.semantic_loss_ignore_index == processor.ignore_index == 0
    images, labels = torch.zeros(1, 3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.long)
    assert model(images, labels=labels).loss == 0
    with pytest.raises(ValueError, match=r"set only `image_processor.ignore_index`"):
        build_model(recipe(model=run.model | {"semantic_loss_ignore_index": 254}))


def test_pretrained_model_gets_a_new_set_of_classes(recipe):
    first = recipe("first")
    train(first)
    _, processor = build_model(recipe(pretrained=first.output_dir, model={}, id2label={0: "a", 1: "b", 2: "c"}))
    assert processor.num_labels == 3
    assert not processor.do_resize


def test_starts_from_a_pretrained_encoder(recipe, tmp_path):
    fields = recipe().model["backbone_config"]
    # trained at another size: its positions are resized
    encoder = PlainViTBackbone(PlainViTConfig(**fields | {"image_size": 48}))
    encoder.save_pretrained(tmp_path / "encoder")
    model, _ = build_model(recipe(pretrained_backbone=str(tmp_path / "encoder")))
    ours, theirs = model.backbone.state_dict(), encoder.state_dict()
    assert ours.pop("embeddings.position_embeddings").shape == (1, 16, 32)
    assert theirs.pop("embeddings.position_embeddings").shape == (1, 36, 32)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(values, theirs[name]) for name, values in ours.items())


def test_augmented_samples_depend_on_seed_epoch_and_index_only(recipe):
    data = SegmentationData(recipe().dataset, "train")
    samples = AugmentedData(data, training_augmentation([32, 40], [24, 24]), seed=0)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = samples[(3, 2)]
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    again = samples[(3, 2)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(first[0], samples[(epoch, 2)][0]) for epoch in (4, 5))
    assert set(first[1].unique().tolist()) <= {0, 1, 255}


def test_processes_split_each_global_batch():
    whole = list(TrainingBatches(10, batch_size=4, start=1, stop=6, seed=7))
    parts = [
        list(TrainingBatches(10, batch_size=2, start=1, stop=6, process_index=rank, num_processes=2, seed=7))
        for rank in range(2)
    ]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole
    epoch = [index for batch in TrainingBatches(10, batch_size=5, start=2, stop=4, seed=7) for _, index in batch]
    assert sorted(epoch) == list(range(10))


@pytest.mark.parametrize(
    ("name", "max_steps", "learning_rate"), [("lr_1e3_iters20", 20, 1e-3), ("lr_1e2_iters13", 13, 1e-2)]
)
def test_learning_rate_is_the_original_schedule(repository, name, max_steps, learning_rate):
    expected = json.loads((repository / "tests/fixtures/training/lr_schedule.json").read_text())[name]
    recipe = Recipe(dataset="x", model={"model_type": "segmenter"}, max_steps=max_steps, learning_rate=learning_rate)
    factor = learning_rate_factor(recipe)
    ours = [learning_rate * factor(step) for step in range(len(expected))]
    assert ours == pytest.approx(expected, rel=1e-9)


def test_default_optimizer_is_the_original_one(repository):
    expected = json.loads((repository / "tests/fixtures/training/lr_schedule.json").read_text())["sgd_group"]
    recipe = Recipe(dataset="x", model={"model_type": "segmenter"})
    encoder = PlainViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1)
    model = SegmenterForSemanticSegmentation(SegmenterConfig(backbone_config=encoder))
    groups = build_optimizer(model, recipe).param_groups
    assert len(groups) == 2
    for group in groups:
        assert group["lr"] == expected["initial_lr"]
        for field in ("momentum", "dampening", "weight_decay", "nesterov", "maximize"):
            assert group[field] == expected[field], field


@pytest.mark.parametrize(
    ("fields", "overrides", "message"),
    [
        ({"dataset": "x", "model": {}, "learning_rat": 1}, [], "did you mean `learning_rate`"),
        ({"model": {"model_type": "segmenter"}}, [], "needs `dataset`"),
        ({"dataset": "x"}, [], "needs `model`"),
        ({"dataset": "x", "pretrained": "y", "pretrained_backbone": "z"}, [], "`pretrained` includes an encoder"),
        ({"dataset": "x", "pretrained": "y"}, ["optimizer=lamb"], "one of adamw, sgd"),
        ({"dataset": "x", "pretrained": "y"}, ["learning_rate=fast"], "must be a number"),
        ({"dataset": "x", "pretrained": "y"}, ["learning_rate=0"], "greater than 0"),
        ({"dataset": "x", "pretrained": "y"}, ["max_steps=1.5"], "whole number"),
        ({"dataset": "x", "pretrained": "y"}, ["batch_size=0"], "at least 1"),
        ({"dataset": "x", "pretrained": "y"}, ["learning_rate=[1]"], "must be a number"),
        ({"dataset": "x", "pretrained": "y"}, ["log_steps=0"], "`log_steps` must be at least 1"),
        ({"dataset": "x", "pretrained": "y"}, ["num_workers=-1"], "`num_workers` must be at least 0"),
        ({"dataset": "x", "pretrained": "y"}, ["ema_decay=1"], "less than 1"),
        ({"dataset": "x", "pretrained": "y"}, ["streaming=maybe"], "true or false"),
        ({"dataset": "x", "pretrained": "y"}, ["image_processor=small"], "`image_processor` must be a mapping"),
        (
            {"dataset": "x", "pretrained": "y"},
            ["evaluation.flop=true"],
            "Unknown key `flop` in `evaluation`: did you mean `flip`?",
        ),
        ({"dataset": "x", "pretrained": "y"}, ["crop_size=512"], "`crop_size` must be two whole numbers"),
        ({"dataset": "x", "pretrained": "y"}, ["base_size=[512, 0]"], "`base_size` must be two whole numbers"),
        ({"dataset": "x", "pretrained": "y"}, ["scale_range=[2, 0.5]"], "[lowest, highest]"),
        ({"dataset": "x", "pretrained": "y"}, ["seed=["], "is not valid YAML"),
        ({"dataset": "x", "pretrained": "y"}, ["seed"], "key=value"),
        (["dataset"], [], "is not a recipe"),
    ],
)
def test_bad_recipes_are_refused(tmp_path, capsys, fields, overrides, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields))
    assert main(["train", str(path), *overrides]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--trainer"]])
def test_errors_of_a_run_are_one_line(tmp_path, capsys, options):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"dataset": "x", "pretrained": "y", "output_dir": str(tmp_path / "run")}))
    (tmp_path / "run" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-3" / "trainer_state.json").write_text("{}")
    assert main(["train", str(path), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "holds checkpoint-3 of an earlier run" in error
    assert error.count("\n") == 1


def test_a_file_that_is_not_valid_yaml_is_refused(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("dataset: [")
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 2
    assert "recipe.yaml is not valid YAML" in capsys.readouterr().err


def test_recipes_are_files_mappings_or_recipes(tmp_path):
    values = {"dataset": "x", "model": {"model_type": "segmenter"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    overrides = {"max_steps": 3, "model.window_size": 64}
    for source in (tmp_path / "recipe.yaml", values, Recipe(**values)):
        recipe = Recipe.read(source, overrides)
        assert (recipe.max_steps, recipe.model) == (3, {"model_type": "segmenter", "window_size": 64})
    assert values["model"] == {"model_type": "segmenter"}
    with pytest.raises(ValueError, match=r"Unknown key `max_step` in the recipe: did you mean `max_steps`\?"):
        train(values, max_step=3)


@pytest.mark.parametrize("options", [[], ["--trainer"]])
def test_command_trains(recipe, tmp_path, options):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(dataclasses.asdict(recipe())))
    assert main(["train", *options, str(tmp_path / "recipe.yaml"), "max_steps=1"]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["step"] == 1


def test_every_setting_is_documented():
    assert all(field.metadata["help"].endswith(".") for field in dataclasses.fields(Recipe))


def test_values_are_what_yaml_makes_of_them(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("dataset: x\nmodel: {model_type: segmenter}\nscale_range: [5e-1, 2]\n")
    recipe = Recipe.read(path, ["mixed_precision=no", "report_to=tensorboard"])
    assert (recipe.mixed_precision, recipe.report_to, recipe.scale_range) == ("no", ["tensorboard"], (0.5, 2.0))


def test_overrides_reach_into_fields(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("dataset: x\nmodel: {model_type: segmenter}\nlearning_rate: 1e-3\n")
    recipe = Recipe.read(path, ["model.decoder_type=linear", "crop_size=[64, 96]", "ema_decay=0.5"])
    assert recipe.model == {"model_type": "segmenter", "decoder_type": "linear"}
    assert (recipe.learning_rate, recipe.crop_size, recipe.ema_decay) == (1e-3, [64, 96], 0.5)


def test_shipped_recipes_are_short_and_build_their_models(repository):
    recipes = sorted((repository / "training" / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert len(path.read_text().splitlines()) <= 30
        recipe = Recipe.read(path)
        with torch.device("meta"):
            model, processor = build_model(recipe)
        assert model.config.num_labels == len(find_id2label(recipe.dataset_spec, recipe.id2label) or range(150))
        assert processor.num_labels == model.config.num_labels


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1]),
        ({"schedule": "constant", "warmup_steps": 2, "schedule_options": {"warmup_factor": 0.5}}, [0.5, 0.75, 1, 1]),
        ({"schedule": "step", "schedule_options": {"milestones": [1, 3], "factor": 0.5}}, [1, 0.5, 0.5, 0.25]),
        ({"schedule": "poly", "schedule_options": {"power": 1.0}, "min_learning_rate": 0.0}, [1, 0.75, 0.5, 0.25]),
        ({"schedule": "cosine", "min_learning_rate": 0.0}, [1, 0.853553, 0.5, 0.146447]),
        (
            {"schedule": "cosine", "schedule_options": {"periods": [2, 2], "restart_factors": [1, 0.1]}},
            [1, 0.55, 0.19, 0.145],
        ),
    ],
)
def test_recipes_name_schedules(fields, expected):
    fields = {"min_learning_rate": 0.1} | fields
    factor = learning_rate_factor(
        Recipe(dataset="x", model={"model_type": "segmenter"}, max_steps=4, learning_rate=1.0, **fields)
    )
    assert [factor(step) for step in range(4)] == pytest.approx(expected, abs=1e-6)


def test_unknown_options_of_a_schedule_are_named():
    recipe = Recipe(dataset="x", model={"model_type": "segmenter"}, schedule_options={"powr": 1.0})
    with pytest.raises(ValueError, match="`schedule_options` of 'poly'.*powr"):
        learning_rate_factor(recipe)


def test_recipes_replace_the_parameter_rules(recipe):
    run = recipe(parameter_rules=[["norm", 0.5, 0.0]], learning_rate=0.1, weight_decay=0.2)
    model, _ = build_model(run)
    groups = build_optimizer(model, run).param_groups
    rates = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == ((0.05, 0.0) if "norm" in name else (0.1, 0.2)), name


def test_starts_from_a_transformers_backbone(recipe, tmp_path):
    fields = {"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    fields |= {"patch_size": 8, "image_size": 32}
    encoder = AutoBackbone.from_config(AutoConfig.for_model(**fields))
    encoder.save_pretrained(tmp_path / "encoder")
    model = recipe().model | {"backbone_config": fields}
    built, _ = build_model(recipe(model=model, pretrained_backbone=str(tmp_path / "encoder")))
    for name, values in encoder.state_dict().items():
        assert torch.equal(built.backbone.state_dict()[name], values), name

    other = model | {"backbone_config": fields | {"num_hidden_layers": 2}}
    with pytest.raises(ValueError, match=r"does not fit the recipe's Dinov2Backbone: \d+ weights are missing"):
        build_model(recipe(model=other, pretrained_backbone=str(tmp_path / "encoder")))
