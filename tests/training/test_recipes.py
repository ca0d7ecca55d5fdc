# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The recipes of the papers' tables: each builds the model, the schedule and the protocol that it names."""

import dataclasses
import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from common.original_regproxy import regproxy_shapes
from common.original_segmenter import segmenter_shapes
from common.original_segvit import segvit_shapes
from hf_segmodels.conversion.backbone_weights import ARCHITECTURE
from hf_segmodels.conversion.formats.backbone import NORMALIZATIONS, BackboneFormat
from hf_segmodels.conversion.formats.regproxy import RELEASES as REGPROXY
from hf_segmodels.conversion.formats.regproxy import RegProxyFormat
from hf_segmodels.conversion.formats.segmenter import SegmenterFormat
from hf_segmodels.conversion.formats.segvit import RELEASES as SEGVIT
from hf_segmodels.conversion.formats.segvit import SegViTFormat
from hf_segmodels.conversion.mmcv_config import image_processor_fields
from hf_segmodels.labels import load_labels
from hf_segmodels.plain_vit import PlainViTConfig
from hf_segmodels.training.accelerate_loop import train
from hf_segmodels.training.factory import (
    build_model,
    build_optimizer,
    synchronize_norms,
)
from hf_segmodels.training.recipe import Recipe
from hf_segmodels.training.schedules import learning_rate_factor


REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "training" / "recipes"
FIXTURES = REPOSITORY / "tests" / "fixtures"
RECIPES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.glob("*/*.yaml"))
FROZEN = [name for name in RECIPES if name.endswith("_frozen")]
OF_PAPERS = [name for name in RECIPES if name not in FROZEN]

# Parameters of the original models, without ImageNet classifiers and tokens that no layer sees.
PARAMETERS = {
    "regproxy/ade20k_b16": 87261990,
    "regproxy/ade20k_l16": 306102566,
    "regproxy/ade20k_r26_s32": 36392038,
    "regproxy/ade20k_r50_l32": 329692518,
    "regproxy/ade20k_s16": 22249254,
    "regproxy/ade20k_ti16": 5779494,
    "regproxy/cityscapes_b16": 88144291,
    "regproxy/cityscapes_l16": 306689187,
    "regproxy/cityscapes_s16": 22690339,
    "regproxy/cityscapes_ti16": 5999971,
    "segmenter/ade20k_b16_linear": 86549910,
    "segmenter/ade20k_b16_mask": 102497580,
    "segmenter/ade20k_b32_linear": 87729558,
    "segmenter/ade20k_b32_mask": 103677228,
    "segmenter/ade20k_b8_linear": 88466838,
    "segmenter/ade20k_deit_b16_linear": 86551446,
    "segmenter/ade20k_deit_b16_mask": 102499116,
    "segmenter/ade20k_l16_linear": 304303254,
    "segmenter/ade20k_l16_mask": 333234476,
    "segmenter/ade20k_s16_linear": 22041366,
    "segmenter/ade20k_s16_mask": 26033964,
    "segmenter/ade20k_s32_linear": 22631190,
    "segmenter/ade20k_ti16_linear": 5712342,
    "segmenter/ade20k_ti16_mask": 6713388,
    "segmenter/cityscapes_deit_b16_linear": 87433747,
    "segmenter/cityscapes_deit_b16_mask": 103381286,
    "segmenter/cityscapes_l16_linear": 305479699,
    "segmenter/cityscapes_l16_mask": 321224742,
    "segmenter/pascal_deit_b16_linear": 86387004,
    "segmenter/pascal_deit_b16_mask": 102334584,
    "segmenter/pascal_l16_linear": 304084028,
    "segmenter/pascal_l16_mask": 332425336,
    "segvit/ade20k_b16": 108734743,
    "segvit/ade20k_l16": 344303255,
    "segvit/ade20k_l16_shrunk": 344596631,
    "segvit/coco_stuff_10k_l16": 343734956,
    "segvit/coco_stuff_10k_l16_shrunk": 343733420,
    "segvit/pascal_59_l16": 343493180,
    "segvit/pascal_59_l16_shrunk": 343428156,
    "segvit/pascal_l16": 343494205,
    "segvit/pascal_l16_shrunk": 343429181,
}
# Here the counts are of a decoder with dense self-attention (UN-EPT), or the paper's, in millions (RegProxy's Table 6).
ROUGH_PARAMETERS = {
    "regproxy/pascal_b16": 87e6,
    "regproxy/pascal_l16": 305e6,
    "unept/ade20k_deit_b16": 94842326,
    "unept/ade20k_resnet50": 32357942,
    "unept/pascal_deit_b16": 94819196,
}
# The parameters of these are not published.
UNKNOWN_PARAMETERS = {"unept/cityscapes_deit_b16", "unept/cityscapes_resnet50", "unept/pascal_resnet50"}

# Recipe -> released checkpoint.
RELEASED = {
    "regproxy/ade20k_b16": "regproxy-b16-ade20k",
    "regproxy/ade20k_l16": "regproxy-l16-ade20k",
    "regproxy/ade20k_r26_s32": "regproxy-r26-s32-ade20k",
    "regproxy/ade20k_r50_l32": "regproxy-r50-l32-ade20k",
    "regproxy/ade20k_s16": "regproxy-s16-ade20k",
    "regproxy/ade20k_ti16": "regproxy-ti16-ade20k",
    "regproxy/cityscapes_b16": "regproxy-b16-cityscapes",
    "regproxy/cityscapes_l16": "regproxy-l16-cityscapes",
    "regproxy/cityscapes_s16": "regproxy-s16-cityscapes",
    "regproxy/cityscapes_ti16": "regproxy-ti16-cityscapes",
    "segvit/ade20k_b16": "segvit-vit-b-ade20k",
    "segvit/ade20k_l16": "segvit-vit-l-ade20k",
    "segvit/ade20k_l16_shrunk": "segvit-vit-l-shrunk-ade20k",
    "segvit/coco_stuff_10k_l16": "segvit-vit-l-coco-stuff10k",
    "segvit/coco_stuff_10k_l16_shrunk": "segvit-vit-l-shrunk-coco-stuff10k",
    "segvit/pascal_59_l16": "segvit-vit-l-pascal-context59",
    "segvit/pascal_59_l16_shrunk": "segvit-vit-l-shrunk-pascal-context59",
    "segvit/pascal_l16": "segvit-vit-l-pascal-context60",
    "segvit/pascal_l16_shrunk": "segvit-vit-l-shrunk-pascal-context60",
    "segmenter/ade20k_b16_mask": "ade20k_seg_base_mask",
    "segmenter/ade20k_b8_linear": "ade20k_seg_base_patch8",
    "segmenter/ade20k_deit_b16_linear": "ade20k_seg_base_deit_linear",
    "segmenter/ade20k_deit_b16_mask": "ade20k_seg_base_deit_mask",
    "segmenter/ade20k_l16_mask": "ade20k_seg_large_mask_640",
    "segmenter/ade20k_s16_mask": "ade20k_seg_small_mask",
    "segmenter/ade20k_ti16_linear": "config_ade20k__vit_tiny_patch16_384__linear",
    "segmenter/ade20k_ti16_mask": "ade20k_seg_tiny_mask",
    "segmenter/cityscapes_l16_mask": "cityscapes_seg_large_mask",
    "segmenter/pascal_l16_mask": "pascal_context_seg_large_mask",
}

# Recipe -> the original's configuration, whose learning rates are stored.
SCHEDULES = {
    **{
        f"regproxy/ade20k_{name}": f"regproxy_ade20k/regproxy-{file}+ade20k.py"
        for name, file in {
            "ti16": "t16-sub4+implicit-mid-4+512x512+160k+adamw-poly",
            "s16": "s16-sub4+implicit-mid-4+512x512+160k+adamw-poly",
            "b16": "b16-sub4+implicit-mid-4+512x512+160k+adamw-cr",
            "l16": "l16-sub4+implicit-mid-9+640x640+160k+adamw-cr",
            "r26_s32": "r26-s32-sub4+implicit-mid-n1+512x512+160k+adamw-poly",
            "r50_l32": "r50-l32-sub4+implicit-mid-n1+640x640+160k+adamw-cr",
        }.items()
    },
    **{
        f"regproxy/cityscapes_{name}": f"regproxy_cityscapes/regproxy-{file}+cityscapes.py"
        for name, file in {
            "ti16": "t16-sub4+implicit-mid-2+768x768+80k+adamw-poly",
            "s16": "s16-sub4+implicit-mid-2+768x768+80k+adamw-poly",
            "b16": "b16-sub4+implicit-mid-2+768x768+80k+adamw-cr",
            "l16": "l16-sub4+implicit-mid-5+768x768+80k+adamw-cr",
        }.items()
    },
    "segvit/ade20k_l16": "segvit/segvit_vit-l_jax_640x640_160k_ade20k.py",
    "segvit/ade20k_l16_shrunk": "segvit/shrink/segvit_vit-l_jax_shrink8_tpnatm.py",
    "segvit/coco_stuff_10k_l16": "segvit/segvit_vit-l_jax_512x512_80k_cocostuff10k.py",
    "segvit/coco_stuff_10k_l16_shrunk": "segvit/shrink/segvit_vit-l_jax_shrink8_tpnatm_coco.py",
    "segvit/pascal_l16": "segvit/segvit_vit-l_jax_480x480_80k_pc.py",
    "segvit/pascal_l16_shrunk": "segvit/shrink/segvit_vit-l_jax_shrink8_tpnatm_pc.py",
}

LAYOUTS = {
    "ade20k": ("ade20k", "ade20k"),
    "cityscapes": ("cityscapes", "cityscapes"),
    "pascal": ("pascal_context_60", "pascal_context_60"),
    "pascal_59": ("pascal_context_59", "pascal_context_59"),
    "coco_stuff_10k": ("coco_stuff_10k", "coco_stuff_171"),
}
# (method, data set) -> bounds of the edges at scale 1, and crop; the method `None` means all others.
SIZES: dict[tuple[str | None, str], tuple[tuple[int, int], int]] = {
    (None, "ade20k"): ((512, 2048), 512),
    (None, "cityscapes"): ((1024, 2048), 768),
    (None, "pascal"): ((520, 520), 480),
    (None, "pascal_59"): ((520, 520), 480),
    (None, "coco_stuff_10k"): ((512, 2048), 512),
    ("segmenter", "pascal"): ((520, 4160), 480),
    ("unept", "ade20k"): ((512, 2048), 480),
}
LARGE_SIZES = {
    "segmenter/ade20k_l16_mask": ((640, 2560), 640),
    "regproxy/ade20k_l16": ((640, 2048), 640),
    "regproxy/ade20k_r50_l32": ((640, 2048), 640),
    "segvit/ade20k_l16": ((640, 2048), 640),
    "segvit/ade20k_l16_shrunk": ((640, 2048), 640),
}
# Learning rate, weight decay of each group of parameters.
GROUPS = {
    "regproxy": {(6e-5, 0.01), (6e-5, 0.0)},
    "segvit/ade20k": {(2e-4, 0.01), (2e-5, 0.01), (2e-5, 0.0)},
    "segvit/coco_stuff_10k": {(2e-4, 0.02), (2e-5, 0.02), (2e-5, 0.0)},
    "segvit/pascal": {(2e-4, 0.03), (2e-5, 0.03), (2e-5, 0.0)},
    "segmenter/ade20k": {(1e-3, 0.0)},
    "segmenter/cityscapes": {(1e-2, 0.0)},
    "segmenter/pascal": {(1e-3, 0.0)},
    "unept": {(1e-4, 1e-4), (1e-5, 1e-4)},
}
# What a converted model has so that it behaves as the code that trained it.
QUIRKS = ("odd_size_mode", "prediction_size", "query_grid", "position_embedding_resize_rule")
_BATCH = re.compile(r"# Batch (\d+): (\d+) processes x (\d+)\W")
_SCORES = re.compile(r"# mIoU: (?:([\d.]+) single scale)?(?:, )?(?:([\d.]+) multi-scale)?; reported by the .+\.")


def head(name: str) -> list[str]:
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("#")]


def read(name: str, *overrides: str) -> Recipe:
    return Recipe.read(FOLDER / f"{name}.yaml", overrides)


@cache
def build(name: str) -> tuple[Any, Any]:
    """Model without values, and image processor."""
    with torch.device("meta"):
        return build_model(read(name, "pretrained_backbone=null"))


def data_set(name: str) -> str:
    file = name.partition("/")[2]
    return max((data for data in LAYOUTS if file.startswith(f"{data}_")), key=len)


def scores(name: str) -> tuple[str, str] | None:
    """Single scale and multi-scale as the head has them, "" for none; None where nothing is reported."""
    (line,) = (line for line in head(name) if line.startswith("# mIoU"))
    match = _SCORES.fullmatch(line)
    return (match[1] or "", match[2] or "") if match else None


def as_pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def comparable(config: Any) -> dict[str, Any]:
    """A configuration's fields in one form, without quirks, names and what has no value."""
    fields = {key: value for key, value in config.to_dict().items() if key not in QUIRKS and value is not None}
    for key in ("architectures", "palette", "id2label", "label2id", "dtype", "transformers_version", "_name_or_path"):
        fields.pop(key, None)
    for key in ("window_size", "window_stride", "image_size", "region_resolution"):
        if key in fields:
            fields[key] = as_pair(fields[key])
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}


def released_config(name: str) -> tuple[Any, dict[str, Any]]:
    """What the converter makes of the released checkpoint of a recipe: configuration and fields of the processor."""
    method, release = name.partition("/")[0], RELEASED[name]
    fields = json.loads((FIXTURES / method / "released.json").read_text())[release]
    if method == "segmenter":
        network = fields["net_kwargs"]
        weights = {key: torch.empty(shape, device="meta") for key, shape in segmenter_shapes(network).items()}
        # set on the command line, together with the crop
        short_edge = 640 if release.endswith("_640") else fields["im_size"]
        inference = {"window_size": network["image_size"][0], "window_stride": fields["window_stride"]}
        variant = {
            "net_kwargs": network,
            "inference_kwargs": inference | {"im_size": short_edge},
            "dataset_kwargs": {"dataset": fields["dataset"], "normalization": network["normalization"]},
        }
        config = SegmenterFormat().map_weights(weights, variant).config
        processor = SegmenterFormat().image_processor(config, variant)
        names = ("size", "image_mean", "image_std", "do_reduce_labels")
        return config, {name: getattr(processor, name) for name in names}
    names = ["width", "num_layers", "num_classes", "grid"]
    if method == "regproxy":
        shapes = regproxy_shapes(**{key: fields[key] for key in (*names, "distilled", "stem")})
        checkpoint_format, values = RegProxyFormat(), REGPROXY[release].config()
    else:
        shapes = segvit_shapes(**{key: fields[key] for key in (*names, "decoder_width", "num_stages", "shrunk")})
        checkpoint_format, values = SegViTFormat(), SEGVIT[release].config()
    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    return checkpoint_format.map_weights(weights, values).config, image_processor_fields(values)


@pytest.mark.parametrize("name", RECIPES)
def test_heads_give_command_batch_and_scores(name: str):
    path = FOLDER / f"{name}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 120
    script, recipe = re.fullmatch(r"#   accelerate launch (\S+\.py) (\S+\.yaml)", lines[1]).groups()
    assert (REPOSITORY / script).is_file()
    assert REPOSITORY / recipe == path
    batch, processes, per_process = map(int, _BATCH.match(lines[2]).groups())
    assert per_process == read(name).batch_size
    assert batch == processes * per_process * read(name).gradient_accumulation_steps
    if name in FROZEN:
        assert "# mIoU: not measured; not from a paper." in lines
    else:
        assert any(scores(name))
    # where a run goes is its own place
    assert read(name).output_dir == f"runs/{name}"


def test_every_recipe_is_compared_with_something():
    assert {*PARAMETERS, *ROUGH_PARAMETERS, *UNKNOWN_PARAMETERS} == set(OF_PAPERS)
    # and no method is without one on a frozen encoder
    assert {name.partition("/")[0] for name in FROZEN} == {"segmenter", "regproxy", "segvit", "unept"}


@pytest.mark.parametrize("name", [*PARAMETERS, *ROUGH_PARAMETERS])
def test_models_have_the_originals_size(name: str):
    model, _ = build(name)
    count = sum(parameter.numel() for parameter in model.parameters())
    if name in PARAMETERS:
        assert count == PARAMETERS[name]
    else:
        assert count == pytest.approx(ROUGH_PARAMETERS[name], rel=0.01)


@pytest.mark.parametrize("name", RELEASED)
def test_models_are_those_of_the_released_checkpoints(name: str):
    model, processor = build(name)
    config, processor_fields = released_config(name)
    ours, theirs = comparable(model.config), comparable(config)
    encoder, released_encoder = comparable(model.config.backbone_config), comparable(config.backbone_config)
    for fields in (ours, theirs):
        del fields["backbone_config"]
    # the converter writes down what follows from other fields
    assert ours == {key: value for key, value in theirs.items() if key in ours or not key.startswith("decoder_")}
    assert encoder == released_encoder
    if read(name).layout in ("coco_stuff_10k", "pascal_context_59"):
        # the layout already leaves out what the original's files have as 0
        assert processor_fields.pop("do_reduce_labels")
        assert not processor.do_reduce_labels
    for key, value in processor_fields.items():
        ours_value = getattr(processor, key)
        assert (dict(ours_value) if key == "size" else ours_value) == pytest.approx(value), key


@pytest.mark.parametrize("name", RECIPES)
def test_data_images_and_crops_are_the_originals(name: str):
    recipe = read(name)
    method, data = name.partition("/")[0], data_set(name)
    layout, labels = LAYOUTS[data]
    assert (recipe.layout, recipe.id2label) == (layout, labels)
    assert (recipe.train_split, recipe.eval_split) == ("train", "test" if layout == "coco_stuff_10k" else "validation")
    model, processor = build(name)
    names, palette = load_labels(labels)
    assert list(model.config.id2label.values()) == names
    assert [tuple(color) for color in model.config.palette] == palette
    assert processor.num_labels == len(names)
    # only ADE20K's files have 0 for "unlabeled" and reach the processor unchanged
    assert processor.do_reduce_labels == (layout == "ade20k")
    is_augreg = str(recipe.pretrained_backbone).endswith(".npz")
    mean, std = NORMALIZATIONS["vit" if is_augreg and method in ("segmenter", "segvit") else "deit"]
    assert (list(processor.image_mean), list(processor.image_std)) == (list(mean), list(std))
    assert (recipe.scale_range, recipe.max_class_ratio, recipe.photometric_distortion) == ((0.5, 2.0), 0.75, True)
    height, width = recipe.crop_size
    assert height == width == as_pair(model.config.window_size)[0]
    if name in OF_PAPERS:
        expected = LARGE_SIZES.get(name) or SIZES.get((method, data)) or SIZES[None, data]
        assert (tuple(recipe.base_size), height) == expected
        image_size = getattr(model.config.backbone_config, "image_size", height)
        assert as_pair(image_size) == [height, width]


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_are_the_originals(name: str):
    recipe = read(name)
    schedules = json.loads((FIXTURES / name.partition("/")[0] / "schedules.json").read_text())
    expected = schedules[SCHEDULES[name]]
    assert recipe.max_steps == expected["max_iters"]
    factor = learning_rate_factor(recipe)
    rates = {step: recipe.learning_rate * factor(int(step)) for step in expected["lr_at_iter"]}
    assert rates == pytest.approx(expected["lr_at_iter"], rel=1e-6)


@pytest.mark.parametrize("name", [name for name in OF_PAPERS if name.startswith("segmenter/")])
def test_segmenter_trains_for_whole_epochs_at_the_originals_learning_rate(name: str):
    # epochs, images, batch; a last batch that is not full counts
    epochs, images, batch = {"ade20k": (64, 20210, 8), "cityscapes": (216, 2975, 8), "pascal": (256, 4996, 16)}[
        data_set(name)
    ]
    assert read(name).max_steps == epochs * math.ceil(images / batch)
    assert int(_BATCH.match(head(name)[2])[1]) == batch
    case, steps = ("lr_1e2_iters13", 13) if data_set(name) == "cityscapes" else ("lr_1e3_iters20", 20)
    expected = json.loads((FIXTURES / "training" / "lr_schedule.json").read_text())[case]
    recipe = read(name, f"max_steps={steps}")
    factor = learning_rate_factor(recipe)
    assert [recipe.learning_rate * factor(step) for step in range(len(expected))] == pytest.approx(expected, rel=1e-9)
    assert recipe.optimizer == "sgd"


@pytest.mark.parametrize("name", [name for name in OF_PAPERS if name.startswith("unept/")])
def test_unept_cuts_its_learning_rate_once(name: str):
    recipe = read(name)
    factor = learning_rate_factor(recipe)
    # Cityscapes has no released configuration: two thirds, as in the paper
    cut, steps = (53333, 80000) if data_set(name) == "cityscapes" else (126000, 160000)
    assert recipe.max_steps == steps
    assert [factor(step) for step in (0, cut - 1, cut, steps - 1)] == pytest.approx([1, 1, 0.1, 0.1])


@pytest.mark.parametrize("name", OF_PAPERS)
def test_parameters_learn_in_the_originals_groups(name: str):
    recipe = read(name)
    model, _ = build(name)
    optimizer = build_optimizer(model, recipe)
    expected = max((key for key in GROUPS if name.startswith(key)), key=len)
    groups = {(round(group["lr"], 9), group["weight_decay"]) for group in optimizer.param_groups}
    assert groups == GROUPS[expected]
    assert recipe.parameter_rules is None
    assert recipe.max_grad_norm == (35.0 if name.startswith("segvit") else 0.0)
    if recipe.optimizer == "adamw":
        assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.999), 1e-8)


@pytest.mark.parametrize("name", FROZEN)
def test_only_decoders_train_on_frozen_encoders(name: str):
    model, _ = build(name)
    model.train()
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert not model.backbone.training
    assert read(name).pretrained_backbone.startswith("facebook/dino")


@cache
def encoder_of_file(file: str) -> PlainViTConfig:
    timm = pytest.importorskip("timm", reason="timm knows the files' encoders")
    with torch.device("meta"):
        originals = timm.create_model(Path(file).stem).state_dict()
    return BackboneFormat().map_weights(originals, {}).config


@pytest.mark.parametrize("name", [name for name in OF_PAPERS if "resnet50" not in name])
def test_encoders_are_those_of_the_files_they_start_from(name: str):
    theirs = encoder_of_file(read(name).pretrained_backbone)
    ours = build(name)[0].config.backbone_config
    # the class token is left out where no layer sees one
    fields = [field for field in ARCHITECTURE if field != "use_cls_token" or ours.use_cls_token]
    assert {field: getattr(ours, field) for field in fields} == {field: getattr(theirs, field) for field in fields}
    if ours.stem_type == "resnetv2":
        assert list(ours.stem_depths) == list(theirs.stem_depths)


# Sizes at which a recipe trains in seconds: of the model, and of its encoder.
SMALL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "segmenter/ade20k_ti16_mask": ({}, {}),
    "regproxy/ade20k_b16": ({"token_head_depth": 1}, {}),
    "segvit/ade20k_l16_shrunk": (
        {"decoder_hidden_size": 32, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1},
        {"out_indices": [1, 2], "query_downsampling_layer": 1},
    ),
    "unept/ade20k_deit_b16": (
        {"image_size": 32, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "num_points": 2},
        {"out_indices": [1, 2]},
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_trains_a_smaller_model(name: str, camera_from_one, tmp_path):
    folders = [f"dataset={camera_from_one}", f"output_dir={tmp_path}", "layout=null", "id2label=null"]
    sizes = ["base_size=[32, 40]", "crop_size=[32, 32]", "max_steps=2", "num_workers=0", "checkpoint_steps=2"]
    recipe = read(name, *folders, *sizes, "pretrained_backbone=null", "image_processor.do_resize=false")
    fields, encoder = SMALL[name]
    encoder |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    recipe.model |= fields | {"backbone_config": recipe.model["backbone_config"] | encoder}
    recipe.model |= {"window_size": 32, "window_stride": 16}
    assert 0 <= train(recipe)["mean_iou"] <= 1


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_encoders_are_read_in_the_form_of_the_hub(name: str, tmp_path):
    recipe = read(name)
    small = {"hidden_size": 32, "num_attention_heads": 2, "image_size": 28}
    # published as the whole model, not as a backbone
    fields = {key: value for key, value in (recipe.model["backbone_config"] | small).items() if key != "out_indices"}
    encoder = AutoModel.from_config(AutoConfig.for_model(**fields))
    encoder.save_pretrained(tmp_path)
    recipe.model["backbone_config"] |= small
    recipe.pretrained_backbone = str(tmp_path)
    weights = build_model(recipe)[0].backbone.state_dict()
    # transformers may keep the layers of a backbone one level lower
    ours = {name.removeprefix("model."): values for name, values in weights.items()}
    for name, values in encoder.state_dict().items():
        if "pooler" not in name:
            assert torch.equal(ours[name.removeprefix("model.")], values), name


def test_batch_norms_are_synchronized_between_gpus():
    encoder = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
    fields = {"model_type": "regproxy", "token_head_depth": 1, "backbone_config": encoder}
    model, _ = build_model(Recipe(dataset="x", model=fields))
    parameters = dict(model.named_parameters())
    kinds = {type(module) for module in model.modules()}
    for num_processes, device in ((1, "cuda"), (2, "cpu")):
        assert synchronize_norms(model, num_processes, torch.device(device)) is model
        assert {type(module) for module in model.modules()} == kinds
    assert synchronize_norms(model, 2, torch.device("cuda")) is model
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    assert [type(norm) for norm in norms] == [torch.nn.SyncBatchNorm] * 2
    # for optimizers and checkpoints
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


def test_names_and_colors_of_a_benchmark(tmp_path):
    encoder = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
    fields = {"model_type": "segmenter", "decoder_type": "linear", "backbone_config": encoder}
    recipe = Recipe(dataset="x", id2label="cityscapes", model=fields)
    names, palette = load_labels("cityscapes")
    with torch.device("meta"):
        config = build_model(recipe)[0].config
        own = build_model(dataclasses.replace(recipe, model=fields | {"palette": [[1, 2, 3]] * 19}))[0].config
    assert list(config.id2label.values()) == list(own.id2label.values()) == names
    assert config.palette == [list(color) for color in palette]
    assert own.palette == [[1, 2, 3]] * 19
    # from the layout alone, and in a model that has been trained on something else
    model, processor = build_model(Recipe(dataset="x", layout="cityscapes", model=fields))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = build_model(Recipe(dataset="x", layout="ade20k", pretrained=str(tmp_path)))[0].config
    assert (config.num_labels, list(map(tuple, config.palette))) == (150, load_labels("ade20k")[1])
    with pytest.raises(ValueError, match="`id2label` is 'citiscapes': neither a JSON file nor one of ade20k, city"):
        build_model(Recipe(dataset="x", id2label="citiscapes", model=fields))


# The tables of training/README.md


def readme() -> str:
    return (REPOSITORY / "training" / "README.md").read_text(encoding="utf-8")


def row(name: str) -> str:
    model, data = re.fullmatch(r"# (.+) on (.+)\.", head(name)[0]).groups()
    count = sum(parameter.numel() for parameter in build(name)[0].parameters())
    single, multi = scores(name) or ("", "")
    return f"| [{name}](recipes/{name}.yaml) | {model} | {data} | {count / 1e6:.1f} | {single} | {multi} |"


@pytest.mark.parametrize("method", ["segmenter", "regproxy", "segvit", "unept"])
def test_the_readme_lists_every_recipe_with_the_scores_of_its_head(method: str):
    rows = [row(name) for name in RECIPES if name.startswith(f"{method}/")]
    listed = [line for line in readme().splitlines() if line.startswith(f"| [{method}/")]
    assert listed == rows, "\n".join(rows)


def test_the_readme_names_what_exists():
    paths = re.findall(r"\b(?:training|hf_segmodels)/[\w/]+\.\w+", readme())
    paths += [f"training/{link}" for link in re.findall(r"\]\((?!http)([^)#]+)", readme())]
    assert len(paths) > len(RECIPES)
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []
    folders = {read(name).dataset: read(name).layout for name in RECIPES}
    for folder, layout in folders.items():
        assert re.search(rf"^\| .+ \| `{folder}` \| .*`{layout.replace('_59', '_60')}`", readme(), re.M), folder


def test_the_readme_links_each_encoder():
    files = dict(re.findall(r"^\| `(data/backbones/\S+)` \| <(\S+)> \|$", readme(), re.M))
    named = {read(name).pretrained_backbone for name in OF_PAPERS}
    assert files.keys() == named
    timm = pytest.importorskip("timm", reason="timm knows the files' addresses")
    for file, url in files.items():
        name = Path(file).stem
        tag = "fb_in1k" if name.startswith("deit") else "augreg_in21k_ft_in1k"
        if "resnet" not in name:
            assert timm.get_pretrained_cfg(f"{name}.{tag}").url == url
