# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Converted checkpoints give what the original SegViT gave."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.procedural_weights import procedural_state_dict

from common.convert_command import main
from common.golden_cases import Arrays, check_architecture, load_folder, load_npz, on_meta, without_dropout
from common.original_segvit import segvit_shapes
from hf_segmodels.conversion.formats.segvit import RELEASES, SEGVIT, SEGVIT_SHRUNK, SegViTFormat
from hf_segmodels.conversion.key_mapping import rename
from hf_segmodels.inference import dense_prediction
from hf_segmodels.segvit import (
    SegViTForSemanticSegmentation,
    SegViTImageProcessor,
    SegViTImageProcessorPil,
    attention_to_mask_loss,
)


WHOLE_CASES = (
    "single_atm",
    "cascade3",
    "cascade3_resized_input",
    "naive_shrunk",
    "shrunk",
    "shrunk_oddgrid",
    "loss_edge_cases",
)
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "segvit"
RELEASED = json.loads((FIXTURES / "released.json").read_text())


def assert_same_outputs(model: SegViTForSemanticSegmentation, arrays: Arrays, step: int = 1) -> None:
    pixel_values = arrays["input"]
    with torch.no_grad():
        outputs = model(pixel_values)
        features = model.backbone(pixel_values).feature_maps
    close = {"atol": 2e-5, "rtol": 0}
    torch.testing.assert_close(outputs.logits[..., ::step, ::step], arrays["logits"], **close)

    # (batch_size, stages, ...) -> (stages, batch_size, ...)
    classes, masks = outputs.class_queries_logits[None], outputs.masks_queries_logits[None]
    if outputs.auxiliary_class_queries_logits is not None:
        classes = torch.cat([outputs.auxiliary_class_queries_logits.transpose(0, 1), classes])
        masks = torch.cat([outputs.auxiliary_masks_queries_logits.transpose(0, 1), masks])
    torch.testing.assert_close(classes, arrays["stage_class_logits"], **close)
    is_shrunk = model.config.decoder_type == "shrunk"
    similarity = arrays["stage_similarity"].unflatten(3, tuple(masks.shape[-2:]))
    torch.testing.assert_close(masks, similarity if is_shrunk else similarity.cumsum(0), **close)
    if "aux_masks" in arrays:
        torch.testing.assert_close(masks[:-1], arrays["aux_masks"], **close)
    for index, ours in enumerate(features):
        # vit_shrink's features are sequences (batch_size, h * w, D)
        expected = arrays[f"feat_{index}"]
        ours = ours if expected.ndim == 4 else ours.flatten(2).transpose(1, 2)
        torch.testing.assert_close(ours, expected, **close)


def assert_same_loss(model: SegViTForSemanticSegmentation, arrays: Arrays, expected: dict) -> None:
    """Every term and gradient norm, with dropout and drop path off."""
    without_dropout(model)
    model.train().zero_grad()
    outputs = model(arrays["input"], labels=arrays["target"].long())
    outputs.loss.backward()
    assert outputs.loss.item() == pytest.approx(expected["total_loss"], rel=1e-5)
    terms = dict(expected["terms_as_returned_weighted"])
    del terms["decode.acc_seg"]
    ours = {f"decode.{name}": term.item() for name, term in outputs.loss_dict.items()}
    assert ours == pytest.approx(terms, rel=1e-5)

    table = SEGVIT_SHRUNK if model.config.decoder_type == "shrunk" else SEGVIT
    renamed, dropped = rename(list(expected["grad_norms"]), table)
    assert not dropped
    for original, name in renamed.items():
        norm = model.get_parameter(name).grad.norm().item()
        assert norm == pytest.approx(expected["grad_norms"][original], rel=1e-5), original
    total = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
    assert total == pytest.approx(expected["grad_norm_total"], rel=1e-5)


# In a fresh clone


def test_small_shrunk_model_gives_the_stored_outputs(convert):
    case = FIXTURES / "shrunk_oddgrid"
    model = convert(case / "checkpoint.pth.gz", window_size=None, window_stride=None)
    arrays = load_npz(case / "outputs.npz")
    assert_same_outputs(model, arrays, step=4)
    assert_same_loss(model, arrays, json.loads((case / "losses.json").read_text()))


def test_small_cascade_gives_the_stored_outputs_in_windows(convert):
    case = FIXTURES / "slide"
    model = convert(case / "checkpoint.pth.gz", "--verify")
    assert (model.config.window_size, model.config.window_stride) == ([64, 64], [43, 43])
    arrays = load_npz(case / "outputs.npz")
    with torch.no_grad():
        logits = model(arrays["input"]).logits
    torch.testing.assert_close(logits[..., ::3, ::3], arrays["logits"], atol=2e-5, rtol=0)
    (scores,) = model.predict(arrays["input"], target_sizes=[(90, 162)], return_scores=True)
    torch.testing.assert_close(scores.softmax(0)[None, :, ::3, ::3], arrays["probs"], atol=2e-5, rtol=0)
    (labels,) = model.predict(arrays["input"], target_sizes=[(90, 162)])
    assert torch.equal(labels, scores.argmax(0))


def test_loss_of_stored_masks():
    """One, two and all classes in an image, and an image that is ignored as a whole."""
    arrays = load_npz(FIXTURES / "loss_edge_cases.npz")
    expected = json.loads((FIXTURES / "loss_edge_cases.json").read_text())
    target = arrays["target"].long()
    for stage, suffix in enumerate(("_0", "")):
        terms = attention_to_mask_loss(arrays["class_logits"][stage], arrays["masks"][stage], target)
        terms["loss_mask"] *= 20
        for name, term in terms.items():
            stored = expected["terms_as_returned_weighted"][f"decode.{name}{suffix}"]
            assert term.item() == pytest.approx(stored, rel=1e-5)


def check_released(shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    weights, expected = on_meta(shapes), RELEASED[name]
    found, values = SegViTFormat().recognize(weights)
    assert found == name
    mapped = check_architecture(SegViTFormat(), weights, values, expected["num_parameters"])
    config = mapped.config
    assert mapped.dropped_keys[:2] == ["backbone.cls_token", "backbone.pos_embed[:, :1]"]
    assert all(key.endswith("criterion.empty_weight") for key in mapped.dropped_keys[2:])
    backbone = config.backbone_config
    assert [index - 1 for index in backbone.out_indices] == expected["out_indices"]
    assert backbone.query_downsampling_layer == expected["shrink_idx"]
    assert backbone.num_attention_heads == expected["num_heads"]
    assert config.decoder_num_attention_heads == expected["decoder_heads"]
    assert (config.window_size, config.window_stride) == (expected["window_size"], expected["window_stride"])
    assert config.id2label[0] == {150: "wall", 171: "person", 59: "aeroplane", 60: "background"}[config.num_labels]


@pytest.mark.parametrize("name", list(RELEASES))
def test_every_checkpoint_of_the_paper_is_recognized_by_keys_and_shapes(name: str):
    fields = RELEASED[name]
    names = ("width", "num_layers", "num_classes", "grid", "decoder_width", "num_stages", "shrunk")
    check_released(segvit_shapes(**{field: fields[field] for field in names}), name)


@pytest.mark.slow  # the encoder is ViT-B, 20 s
def test_a_released_checkpoint_without_a_configuration(tmp_path: Path, capsys):
    fields = RELEASED["segvit-vit-b-single-ade20k"]
    names = ("width", "num_layers", "num_classes", "grid", "decoder_width", "num_stages", "shrunk")
    shapes = segvit_shapes(**{field: fields[field] for field in names})
    torch.save({"state_dict": procedural_state_dict(shapes)}, tmp_path / "c.pth")
    arguments = ["--method", "segvit", "--checkpoint", str(tmp_path / "c.pth"), "--output_dir", str(tmp_path / "new")]
    assert main([*arguments, "--verify"]) == 0
    assert "recognized as segvit-vit-b-single-ade20k" in capsys.readouterr().out
    processor = SegViTImageProcessor.from_pretrained(tmp_path / "new")
    assert dict(processor.size) == {"shortest_edge": 512, "longest_edge": 2048}
    assert processor.do_reduce_labels


@pytest.mark.parametrize("case", ["cascade3", "shrunk"])
def test_optimizer_groups_of_the_original(case: str):
    expected = json.loads((FIXTURES / "optimizer_groups.json").read_text())[case]
    if case == "shrunk":
        shapes = segvit_shapes(64, 5, 6, (4, 4), 32, 2, shrunk=True)
        encoder, head = {"img_size": 64, "out_indices": [1, 4], "shrink_idx": 2}, {"img_size": 64, "num_heads": 4}
    else:
        shapes = segvit_shapes(96, 4, 7, (6, 6), 48, 3)
        encoder, head = {"img_size": 96, "out_indices": [0, 2, 3]}, {"img_size": 96, "num_heads": 6}
    encoder |= {"patch_size": 16, "num_heads": 2, "with_cls_token": False}
    mapped = SegViTFormat().map_weights(on_meta(shapes), {"model": {"backbone": encoder, "decode_head": head}})
    with torch.device("meta"):
        model = SegViTForSemanticSegmentation(mapped.config)
    renamed, dropped = rename(
        [key for key in expected if key not in mapped.dropped_keys], SEGVIT_SHRUNK if case == "shrunk" else SEGVIT
    )
    assert not dropped
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = model.get_optimizer_param_groups(learning_rate=2e-5, weight_decay=0.01)
    ours = {names[p]: [group["lr"], group["weight_decay"]] for group in groups for p in group["params"]}
    # queries, keys and values are one parameter in the original
    split = {}
    for original, name in renamed.items():
        names = [name.replace(".fused.", f".{part}_proj.") for part in "qkv"] if ".fused." in name else [name]
        split |= {name: pytest.approx(expected[original]) for name in names}
    assert ours == split


# With the reference data beside the checkout


def test_every_manifest_maps_completely(golden: Path):
    manifests = sorted((golden / "manifests").glob("*.json"))
    assert {path.stem for path in manifests} == set(RELEASES)
    for path in manifests:
        manifest = json.loads(path.read_text())
        check_released({key: tuple(shape) for key, (shape, _) in manifest["keys"].items()}, path.stem)
        # the class token, and its row in the position table, are learned but not used
        unused = 2 * manifest["model_config"]["backbone"]["embed_dims"]
        assert manifest["num_params"] - unused == RELEASED[path.stem]["num_parameters"]


@pytest.mark.parametrize("source", ["the checkpoint's own configuration", "config.json"])
@pytest.mark.parametrize("name", WHOLE_CASES)
def test_golden_outputs(name: str, source: str, golden: Path, convert):
    case = golden / name
    options = ("--config", str(case / "config.json")) if source == "config.json" else ()
    model = convert(case / "checkpoint.pth", "--verify", *options, window_size=None, window_stride=None)
    assert_same_outputs(model, load_folder(case))


@pytest.mark.parametrize("name", [name for name in WHOLE_CASES if name != "cascade3_resized_input"])
def test_golden_training(name: str, golden: Path, convert):
    case = golden / name
    model = convert(case / "checkpoint.pth", window_size=None, window_stride=None)
    assert_same_loss(model, load_folder(case), json.loads((case / "losses.json").read_text()))


def test_golden_sliding_window_scales_and_flips(golden: Path, convert):
    case = golden / "slide_msflip"
    model, arrays = convert(case / "checkpoint.pth", "--verify"), load_folder(case)
    with torch.no_grad():
        torch.testing.assert_close(model(arrays["input"]).logits, arrays["logits"], atol=2e-5, rtol=0)
    (scores,) = model.predict(arrays["input"], return_scores=True)
    torch.testing.assert_close(scores, arrays["logits"][0], atol=2e-5, rtol=0)
    size = tuple(arrays["aug_pred"].shape[-2:])
    inputs, flips = [arrays[f"aug_input_{index}"] for index in range(4)], [False, True] * 2
    with torch.no_grad():
        (scores,) = dense_prediction(model, [arrays["input"]], [False], [size], return_scores=True)
        torch.testing.assert_close(scores.softmax(0), arrays["probs"][0], atol=1e-5, rtol=0)
        (scores,) = dense_prediction(model, inputs, flips, [size], return_scores=True)
        (labels,) = dense_prediction(model, inputs, flips, [size])
    torch.testing.assert_close(scores, arrays["aug_probs"].view_as(scores), atol=1e-5, rtol=0)
    assert (labels == arrays["aug_pred"].view(size)).float().mean() > 0.999


@pytest.mark.parametrize("processor_class", [SegViTImageProcessor, SegViTImageProcessorPil])
def test_golden_pixel_values(processor_class, golden: Path):
    from PIL import Image

    extra = golden / "_extra"
    image = Image.open(extra / "image.png").convert("RGB")
    shortest = {"min_size_0": 32, "min_size_1": 64, "min_size_2": 96}  # 64 at the scales 0.5, 1 and 1.5
    for name, fields in json.loads((extra / "preprocess.json").read_text()).items():
        if (min_size := fields["resize"].get("min_size")) is None:
            size = {"shortest_edge": min(fields["img_scale"]), "longest_edge": max(fields["img_scale"])}
        else:
            size = {"shortest_edge": max(shortest[name], min_size)}
        processor = processor_class(size=size)
        pixel_values = processor(image, return_tensors="np").pixel_values[0]
        np.testing.assert_allclose(pixel_values, np.load(extra / f"pixel_values_{name}.npy"), rtol=0, atol=2e-6)
    label_map = Image.open(extra / "ade_label.png")
    processor = processor_class(do_resize=False, do_reduce_labels=True, num_labels=150)
    labels = processor(image, label_map, return_tensors="np").labels[0]
    np.testing.assert_array_equal(labels, np.load(extra / "ade_label_reduced.npy"))
