# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Converted checkpoints give what the original Segmenter gave."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.procedural_weights import procedural_input, procedural_state_dict

from common.convert_command import main
from common.golden_cases import check_architecture, load, load_npz, on_meta, upsample, without_dropout
from common.original_segmenter import segmenter_shapes, variant_yml
from hf_segmodels import conversion
from hf_segmodels.conversion import load_backbone_weights
from hf_segmodels.conversion.formats.segmenter import SEGMENTER, SegmenterFormat
from hf_segmodels.conversion.key_mapping import rename
from hf_segmodels.plain_vit import PlainViTBackbone, PlainViTConfig
from hf_segmodels.segmenter import SegmenterConfig, SegmenterForSemanticSegmentation


SMALL_CASES = (
    "linear_vit16",
    "mask_vit16",
    "mask_vit16_pad_nonsquare",
    "linear_deit16_dist",
    "mask_deit16_dist_interp",
    "linear_vit32_nonsquare",
    "mask_vit16_slide",
    "pos_embed_same_token_count_quirk",
)
FULL_SIZE_CASES = (
    "config_ade20k__vit_tiny_patch16_384__linear",
    "ade20k_seg_tiny_mask",
    # about 8 s
    pytest.param("ade20k_seg_base_deit_linear", marks=pytest.mark.slow),
)
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "segmenter"
RELEASED = json.loads((FIXTURES / "released.json").read_text())


def encoder_tokens(backbone: PlainViTBackbone, pixel_values: torch.Tensor) -> torch.Tensor:
    """All tokens after the final norm."""
    return backbone.layernorm(backbone(pixel_values, output_hidden_states=True).hidden_states[-1])


def assert_same_training(model: SegmenterForSemanticSegmentation, pixel_values, labels, expected: dict) -> None:
    """The loss and each parameter's gradient norm, by their original names, with dropout and drop path off."""
    without_dropout(model)
    model.train()
    loss = model(pixel_values, labels=labels).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    renamed, dropped = rename(list(expected["grad_l2_norms"]), SEGMENTER)
    norms = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
    assert norms.keys() == set(renamed.values())
    assert dropped == []
    for original, ours in renamed.items():
        assert norms[ours] == pytest.approx(expected["grad_l2_norms"][original], rel=1e-5), original


def full_size_model(name: str, folder: Path) -> SegmenterForSemanticSegmentation:
    network = RELEASED[name]["net_kwargs"]
    checkpoint = folder / "checkpoint.pth"
    torch.save({"model": procedural_state_dict(segmenter_shapes(network))}, checkpoint)
    checkpoint.with_name("variant.yml").write_text(variant_yml(network))
    return conversion.convert(checkpoint).model


# In a fresh clone


def test_small_model_gives_the_stored_outputs(convert):
    case = FIXTURES / "mask_deit16_dist_interp"
    model = convert(case / "checkpoint.pth", window_size=None, window_stride=None)
    stored = load_npz(case / "outputs.npz")

    with torch.no_grad():
        logits = model(stored["pixel_values"]).logits
        tokens = encoder_tokens(model.backbone, stored["pixel_values"])
    torch.testing.assert_close(logits, stored["masks"], atol=2e-5, rtol=0)
    torch.testing.assert_close(tokens, stored["encoder_tokens"], atol=2e-5, rtol=0)
    full_size = upsample(logits, tuple(stored["pixel_values"].shape[-2:]))
    torch.testing.assert_close(full_size[..., ::8, ::8], stored["logits"], atol=2e-5, rtol=0)
    expected = json.loads((case / "losses.json").read_text())
    assert_same_training(model, stored["pixel_values"], stored["labels"].long(), expected)


@pytest.mark.parametrize("name", FULL_SIZE_CASES)
def test_full_size_model_gives_the_stored_outputs(name: str, tmp_path: Path):
    model = full_size_model(name, tmp_path)
    pixel_values = procedural_input(512)
    stored = np.load(FIXTURES / f"{name}.npz")
    with torch.no_grad():
        logits = upsample(model(pixel_values).logits, (512, 512))[..., ::64, ::64]
        tokens = encoder_tokens(model.backbone, pixel_values)[:, ::16, ::32]
    torch.testing.assert_close(logits, torch.from_numpy(stored["logits"]), atol=2e-4, rtol=0)
    torch.testing.assert_close(tokens, torch.from_numpy(stored["encoder_tokens"]), atol=2e-4, rtol=0)


def check_released(network: dict, shapes: dict[str, tuple[int, ...]], **fields) -> None:
    variant = {
        "net_kwargs": network,
        "inference_kwargs": {"window_size": network["image_size"][0], "window_stride": fields["window_stride"]},
        "dataset_kwargs": {"dataset": fields["dataset"]},
    }
    mapped = check_architecture(SegmenterFormat(), on_meta(shapes), variant, fields["num_parameters"])
    assert {key.split(".")[1] for key in mapped.dropped_keys} <= {"head", "head_dist"}
    assert mapped.config.id2label[0] != "LABEL_0"


@pytest.mark.parametrize("name", RELEASED)
def test_every_released_checkpoint_has_its_architecture(name: str):
    fields = dict(RELEASED[name])
    network = fields.pop("net_kwargs")
    check_released(network, segmenter_shapes(network), **fields)


# With the reference data beside the checkout


def test_every_manifest_maps_completely(golden: Path):
    manifests = sorted((golden / "manifests").glob("*.json"))
    assert len(manifests) > 60
    for manifest in (json.loads(path.read_text()) for path in manifests):
        check_released(
            manifest["net_kwargs"],
            {name: tuple(shape) for name, (shape, _) in manifest["keys"].items()},
            dataset=manifest["dataset"],
            num_parameters=manifest["num_params_without_unused_imagenet_heads"],
            window_stride=manifest["window_stride"]["train_time_eval"],
        )


@pytest.mark.parametrize("name", SMALL_CASES)
def test_golden_outputs(name: str, golden: Path, convert):
    case = golden / name
    model = convert(case / "checkpoint.pth", window_size=None, window_stride=None)
    pixel_values, expected = load(case / "input.npy"), load(case / "logits.npy")
    with torch.no_grad():
        masks = model.decode(model.encode(pixel_values)).logits
        logits = upsample(model(pixel_values).logits, tuple(expected.shape[-2:]))
        tokens = encoder_tokens(model.backbone, pixel_values)
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(masks, load(case / "masks_lowres.npy"), atol=2e-5, rtol=0)
    torch.testing.assert_close(tokens, load(case / "encoder_tokens.npy"), atol=2e-5, rtol=0)
    if (case / "losses.json").is_file():
        expected_training = json.loads((case / "losses.json").read_text())
        assert_same_training(model, pixel_values, load(case / "target.npy"), expected_training)


def test_count_only_rule_is_the_checkpoints_own(golden: Path, convert):
    """A 2x8 grid has as many patches as the stored 4x4 one: the original does not resize then, a fresh model does."""
    case = golden / "pos_embed_same_token_count_quirk"
    model = convert(case / "checkpoint.pth", window_size=None, window_stride=None)
    assert model.config.backbone_config.position_embedding_resize_rule == "token_count"
    model.backbone.embeddings.config.position_embedding_resize_rule = "grid"
    with torch.no_grad():
        logits = upsample(model(load(case / "input.npy")).logits, (32, 128))
    assert (logits - load(case / "logits.npy")).abs().max() > 0.1


@pytest.mark.parametrize("name", FULL_SIZE_CASES)
def test_golden_full_size_outputs(name: str, golden: Path, tmp_path: Path):
    model = full_size_model(name, tmp_path)
    stored = np.load(golden / "fullsize" / f"{name}.npz")
    with torch.no_grad():
        logits = upsample(model(procedural_input(512)).logits, (512, 512))
        tokens = encoder_tokens(model.backbone, procedural_input(512))
    torch.testing.assert_close(logits[..., ::16, ::16], torch.from_numpy(stored["logits_sub"]), atol=2e-4, rtol=0)
    torch.testing.assert_close(tokens[:, ::16, ::8], torch.from_numpy(stored["encoder_tokens_sub"]), atol=2e-4, rtol=0)


def imported_segmenter(distilled: bool) -> SegmenterForSemanticSegmentation:
    backbone_config = PlainViTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        layer_norm_eps=1e-5,
        image_size=64,
        use_distillation_token=distilled,
        position_embedding_interpolation="bilinear",
    )
    return SegmenterForSemanticSegmentation(SegmenterConfig(backbone_config=backbone_config, num_labels=3)).eval()


@pytest.mark.parametrize(
    ("file", "tokens_file"),
    [("pretrained.npz", "encoder_tokens.npy"), ("pretrained_deit.pth", "encoder_tokens_deit.npy")],
)
def test_golden_pretrained_backbone_import(file: str, tokens_file: str, golden: Path):
    case = golden / "pretrained_backbone_import"
    model = imported_segmenter(distilled="deit" in file)
    dropped = load_backbone_weights(model, case / file)
    assert {key.split("/")[0].split(".")[0] for key in dropped} == {"head"} | (
        {"head_dist"} if "deit" in file else set()
    )
    with torch.no_grad():
        tokens = encoder_tokens(model.backbone, load(case / "input.npy"))
    torch.testing.assert_close(tokens, load(case / tokens_file), atol=2e-5, rtol=0)
    if "deit" not in file:
        positions = model.backbone.embeddings.position_embeddings.detach()
        torch.testing.assert_close(positions, load(case / "pos_embed_resized.npy"), atol=1e-6, rtol=0)


def test_golden_backbone_through_a_converted_folder(golden: Path, tmp_path: Path):
    case = golden / "pretrained_backbone_import"
    original = shutil.copyfile(case / "pretrained.npz", tmp_path / "pretrained.npz")
    folder = tmp_path / "backbone"
    arguments = ["--method", "backbone", "--checkpoint", str(original), "--config", str(case / "config.json")]
    assert main([*arguments, "--output_dir", str(folder), "--verify"]) == 0
    assert PlainViTBackbone.from_pretrained(folder).config.image_size == [96, 96]  # the 6x6 table it was trained with

    model = imported_segmenter(distilled=False)
    load_backbone_weights(model, folder)
    with torch.no_grad():
        tokens = encoder_tokens(model.backbone, load(case / "input.npy"))
    torch.testing.assert_close(tokens, load(case / "encoder_tokens.npy"), atol=2e-5, rtol=0)
