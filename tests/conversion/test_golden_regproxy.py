# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Converted checkpoints give what the original RegProxy gave."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.procedural_weights import procedural_state_dict

from common.convert_command import main
from common.golden_cases import Arrays, check_architecture, load_folder, load_npz, on_meta, upsample, without_dropout
from common.original_regproxy import regproxy_shapes
from hf_segmodels import conversion
from hf_segmodels.conversion.formats.regproxy import REGPROXY, RELEASES, RegProxyFormat
from hf_segmodels.conversion.key_mapping import rename
from hf_segmodels.inference import dense_prediction
from hf_segmodels.regproxy import RegProxyForSemanticSegmentation, RegProxyImageProcessor, RegProxyImageProcessorPil


WHOLE_CASES = (
    "vit_r4_m2",
    "vit_r2_m0_rectpos",
    "vit_r8_m3_posresize",
    "vit_r2x4_oddsize",
    "deit_r4_m1",
    "hybrid_r26_r4",
    "hybrid_r50_r2_nonsquare",
)
SLIDING_CASES = ("slide_overlap_msflip", "slide_pad_smaller_than_window")
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "regproxy"
RELEASED = json.loads((FIXTURES / "released.json").read_text())


def assert_same_outputs(
    model: RegProxyForSemanticSegmentation, arrays: Arrays, tolerance: float, step: int = 1
) -> None:
    pixel_values = arrays["input"]
    with torch.no_grad():
        outputs = model(pixel_values)
        features = model.backbone(pixel_values).feature_maps
    full_size = upsample(outputs.logits, tuple(pixel_values.shape[-2:]))[..., ::step, ::step]
    pairs = {
        "logits": full_size,
        "seg_logits": outputs.logits,
        "affinity": outputs.affinity,
        "token_logits": outputs.token_logits,
        "feat_mid": features[0],
        "feat_last": features[-1],
    }
    for name, ours in pairs.items():
        if name in arrays:
            # a hybrid's features are larger: the original's are 4e-4 from exact arithmetic themselves
            atol = 2 * tolerance if name.startswith("feat") else tolerance
            torch.testing.assert_close(ours, arrays[name], atol=atol, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


def assert_same_training(model: RegProxyForSemanticSegmentation, arrays: Arrays, expected: dict) -> None:
    """Losses and gradient norms with the batch norms' running statistics and with the batch's; drop path is off."""
    without_dropout(model)
    labels = arrays["target"].long()
    for mode, is_training in (("eval_running_stats", False), ("train_batch_stats", True)):
        model.train(is_training).zero_grad()
        loss = model(arrays["input"], labels=labels).loss
        loss.backward()
        assert loss.item() == pytest.approx(expected[mode]["loss_seg"], rel=2e-5)
        renamed, dropped = rename(list(expected[mode]["grad_norms"]), REGPROXY)
        assert not dropped
        for original, ours in renamed.items():
            norm = model.get_parameter(ours).grad.norm().item()
            assert norm == pytest.approx(expected[mode]["grad_norms"][original], rel=1e-4, abs=1e-6), original
        # the stored total was taken without the attention's own parameters
        gradients = [p.grad for name, p in model.named_parameters() if ".attention." not in name]
        total = torch.nn.utils.get_total_norm(gradients).item()
        assert total == pytest.approx(expected[mode]["grad_norm_total"], rel=5e-5)
    norm = model.decoder.affinity_head.spatial_conv.normalization
    after = expected["train_batch_stats"]["after_forward"]
    assert norm.running_mean.sum().item() == pytest.approx(after["depthwise_conv.bn.running_mean_sum"], rel=1e-4)
    assert norm.running_var.sum().item() == pytest.approx(after["depthwise_conv.bn.running_var_sum"], rel=1e-4)
    assert norm.num_batches_tracked.item() == after["num_batches_tracked"]


def assert_same_scores(
    model, inputs: list[torch.Tensor], flips: list[bool], expected: torch.Tensor, atol: float
) -> None:
    """Scores equal the original's, and labels their argmax, except for ties within rounding."""
    sizes = [tuple(expected.shape[-2:])]
    with torch.no_grad():
        (scores,) = dense_prediction(model, inputs, flips, sizes, return_scores=True)
        (labels,) = dense_prediction(model, inputs, flips, sizes)
    torch.testing.assert_close(scores if len(inputs) > 1 else scores.softmax(0), expected[0], atol=atol, rtol=0)
    behind = expected[0].amax(0) - expected[0].gather(0, labels[None])[0]
    assert behind.max() < 2e-5


# In a fresh clone


def test_small_model_gives_the_stored_outputs(convert):
    case = FIXTURES / "vit_r2x4_oddsize"
    model = convert(case / "checkpoint.pth", window_size=None, window_stride=None)
    arrays = load_npz(case / "outputs.npz")
    assert_same_outputs(model, arrays, tolerance=2e-5, step=4)
    assert_same_training(model, arrays, json.loads((case / "losses.json").read_text()))


def test_small_windows_give_the_stored_outputs(convert):
    case = FIXTURES / "slide_pad_smaller_than_window"
    model = convert(case / "checkpoint.pth")
    assert (model.config.window_size, model.config.window_stride) == ([64, 64], [64, 64])
    arrays = load_npz(case / "outputs.npz")
    assert_same_scores(model, [arrays["input"]], [False], arrays["probs"], atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(arrays["input"]).logits, arrays["logits"], atol=2e-5, rtol=0)


def check_released(shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    weights, expected = on_meta(shapes), RELEASED[name]
    found, values = RegProxyFormat().recognize(weights)
    assert found == name
    mapped = check_architecture(RegProxyFormat(), weights, values, expected["num_parameters"])
    assert not mapped.dropped_keys
    config = mapped.config
    assert config.token_head_depth == expected["token_head_depth"]
    assert config.backbone_config.num_attention_heads == expected["num_heads"]
    assert (config.window_size, config.window_stride) == (expected["window_size"], expected["window_stride"])
    assert config.id2label[0] == {150: "wall", 19: "road"}[config.num_labels]


@pytest.mark.parametrize("name", list(RELEASES))
def test_every_released_checkpoint_is_recognized_by_keys_and_shapes(name: str):
    fields = RELEASED[name]
    names = ("width", "num_layers", "num_classes", "grid", "distilled", "stem")
    check_released(regproxy_shapes(**{field: fields[field] for field in names}), name)


def test_a_released_checkpoint_without_a_configuration(tmp_path: Path, capsys):
    fields = RELEASED["regproxy-ti16-ade20k"]
    shapes = regproxy_shapes(fields["width"], fields["num_layers"], fields["num_classes"], fields["grid"])
    torch.save({"meta": {"config": "import os"}, "state_dict": procedural_state_dict(shapes)}, tmp_path / "c.pth")
    arguments = ["--method", "regproxy", "--checkpoint", str(tmp_path / "c.pth"), "--output_dir", str(tmp_path / "new")]
    assert main([*arguments, "--verify"]) == 0
    assert "recognized as regproxy-ti16-ade20k" in capsys.readouterr().out
    processor = RegProxyImageProcessor.from_pretrained(tmp_path / "new")
    assert dict(processor.size) == {"shortest_edge": 512, "longest_edge": 2048}
    assert processor.do_reduce_labels


@pytest.mark.parametrize("case", ["vit_r4_m2", "deit_r4_m1", "hybrid_r26_r4"])
def test_optimizer_groups_of_the_original(case: str):
    expected = json.loads((FIXTURES / "optimizer_groups.json").read_text())[case]
    stem = {"stem": "R26", "stem_channels": (32, (128,) * 4)} if "hybrid" in case else {}
    num_classes = {"vit_r4_m2": 7, "deit_r4_m1": 8, "hybrid_r26_r4": 6}[case]
    shapes = regproxy_shapes(64, 4, num_classes, (4, 4), distilled="deit" in case, **stem)
    renamed, _ = rename(list(expected), REGPROXY)
    assert renamed.keys() <= shapes.keys()
    model = model_of(shapes, hybrid="hybrid" in case)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = model.get_optimizer_param_groups(learning_rate=6e-5, weight_decay=0.01)
    ours = {names[p]: [group["lr"], group["weight_decay"]] for group in groups for p in group["params"]}
    assert ours == {renamed[original]: pytest.approx(values) for original, values in expected.items()}


def model_of(shapes: Mapping[str, tuple[int, ...]], hybrid: bool) -> RegProxyForSemanticSegmentation:
    side, patch_size = (128, 32) if hybrid else (64, 16)
    encoder = {"img_size": side, "patch_size": patch_size, "num_heads": 2, "out_indices": [0, 3]}
    config = {"model": {"backbone": encoder, "decode_head": {"region_res": [4, 4]}}}
    with torch.device("meta"):
        return RegProxyForSemanticSegmentation(RegProxyFormat().map_weights(on_meta(shapes), config).config)


# With the reference data beside the checkout


def test_every_manifest_maps_completely(golden: Path):
    manifests = sorted((golden / "manifests").glob("*.json"))
    assert {path.stem for path in manifests} == set(RELEASES)
    for path in manifests:
        manifest = json.loads(path.read_text())
        check_released({key: tuple(shape) for key, (shape, _) in manifest["keys"].items()}, path.stem)
        assert manifest["num_params"] == RELEASED[path.stem]["num_parameters"]


def tolerance(name: str) -> float:
    # weight standardization and group norm round differently in timm
    return 1e-4 if "hybrid" in name else 2e-5


@pytest.mark.parametrize("source", ["the checkpoint's own configuration", "config.json"])
@pytest.mark.parametrize("name", WHOLE_CASES)
def test_golden_outputs(name: str, source: str, golden: Path, convert):
    case = golden / name
    options = ("--config", str(case / "config.json")) if source == "config.json" else ()
    model = convert(case / "checkpoint.pth", "--verify", *options, window_size=None, window_stride=None)
    assert_same_outputs(model, load_folder(case), tolerance(name))


@pytest.mark.parametrize("name", WHOLE_CASES)
def test_golden_training(name: str, golden: Path, convert):
    case = golden / name
    model = convert(case / "checkpoint.pth", window_size=None, window_stride=None)
    arrays, expected = load_folder(case), json.loads((case / "losses.json").read_text())
    assert_same_training(model, arrays, expected)

    valid_mean = conversion.convert(case / "checkpoint.pth").model
    valid_mean.config.loss_reduction = "valid_mean"
    with torch.no_grad():
        loss = valid_mean(arrays["input"], labels=arrays["target"]).loss
    assert loss.item() == pytest.approx(expected["info_eval_ce_mean_over_valid_pixels"], rel=2e-5)


@pytest.mark.parametrize("name", SLIDING_CASES)
def test_golden_sliding_window(name: str, golden: Path, convert):
    case = golden / name
    model, arrays = convert(case / "checkpoint.pth", "--verify"), load_folder(case)
    with torch.no_grad():
        torch.testing.assert_close(model(arrays["input"]).logits, arrays["logits"], atol=2e-5, rtol=0)
    (scores,) = model.predict(arrays["input"], return_scores=True)
    torch.testing.assert_close(scores, arrays["logits"][0], atol=2e-5, rtol=0)
    assert_same_scores(model, [arrays["input"]], [False], arrays["probs"], atol=1e-5)


def test_golden_scales_and_flips(golden: Path, convert):
    case = golden / "slide_overlap_msflip"
    model, arrays = convert(case / "checkpoint.pth"), load_folder(case)
    inputs = [arrays[f"aug_input_{index}"] for index in range(6)]
    assert_same_scores(model, inputs, [False, True] * 3, arrays["aug_probs"], atol=1e-5)
    with torch.no_grad():
        (labels,) = dense_prediction(model, inputs, [False, True] * 3, [tuple(arrays["aug_pred"].shape[-2:])])
    assert (labels == arrays["aug_pred"].view(labels.shape)).float().mean() > 0.999


@pytest.mark.parametrize("processor_class", [RegProxyImageProcessor, RegProxyImageProcessorPil])
def test_golden_pixel_values(processor_class, golden: Path):
    from PIL import Image

    extra = golden / "_extra"
    image = Image.open(extra / "image.png").convert("RGB")
    for name, fields in json.loads((extra / "preprocess.json").read_text()).items():
        longest, shortest = fields["img_scale"]
        processor = processor_class(size={"shortest_edge": shortest, "longest_edge": longest})
        pixel_values = processor(image, return_tensors="np").pixel_values[0]
        np.testing.assert_allclose(pixel_values, np.load(extra / f"pixel_values_{name}.npy"), rtol=0, atol=2e-6)
    label_map = Image.open(extra / "ade_label.png")
    processor = processor_class(do_resize=False, do_reduce_labels=True, num_labels=150)
    labels = processor(image, label_map, return_tensors="np").labels[0]
    np.testing.assert_array_equal(labels, np.load(extra / "ade_label_reduced.npy"))
