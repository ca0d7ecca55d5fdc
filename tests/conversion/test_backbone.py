# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Pre-trained encoders in AugReg's, DeiT's and timm's formats."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.procedural_weights import procedural_state_dict
from safetensors.torch import save_file
from transformers import AutoImageProcessor

from common.convert_command import main
from common.original_unept import TINY_RESNET, network, unept_shapes
from hf_segmodels import ResNetV1cConfig, UNEPTConfig, UNEPTForSemanticSegmentation
from hf_segmodels.conversion import ConversionError, load_backbone_weights
from hf_segmodels.conversion.formats.backbone import BackboneFormat
from hf_segmodels.conversion.formats.resnet_v1c import MMSEG_RESNET_V1C
from hf_segmodels.conversion.key_mapping import rename
from hf_segmodels.plain_vit import PlainViTBackbone, PlainViTConfig
from hf_segmodels.plain_vit.embeddings import resize_position_embeddings
from hf_segmodels.segmenter import SegmenterConfig, SegmenterForSemanticSegmentation


timm = pytest.importorskip("timm", reason="timm makes the state dicts")

TIMM_MODELS = {
    "vit": lambda: _small_vit(timm.models.vision_transformer.VisionTransformer),
    "deit": lambda: _small_vit(timm.models.deit.VisionTransformerDistilled),
    "hybrid": lambda: _small_hybrid(),
}


def _small_vit(model_class: type) -> torch.nn.Module:
    return model_class(img_size=64, patch_size=16, embed_dim=128, depth=2, num_heads=2, num_classes=10)


def _small_hybrid() -> torch.nn.Module:
    from timm.models.vision_transformer_hybrid import HybridEmbed, VisionTransformer, _resnetv2

    return VisionTransformer(
        img_size=96,
        patch_size=1,
        embed_dim=128,
        depth=2,
        num_heads=2,
        num_classes=10,
        embed_layer=lambda **kwargs: HybridEmbed(_resnetv2((2, 1)), **kwargs),
    )


@pytest.fixture(params=TIMM_MODELS)
def timm_model(request: pytest.FixtureRequest) -> torch.nn.Module:
    """A small timm model with random weights, so that each of them has an effect."""
    torch.manual_seed(0)
    model = TIMM_MODELS[request.param]().eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.05)
    return model


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., Path]:
    """Runs the command with `--verify` and gives the new folder."""

    def run(checkpoint: Path, *options: str) -> Path:
        folder = tmp_path / "converted"
        arguments = ["--method", "backbone", "--checkpoint", str(checkpoint), "--output_dir", str(folder), "--verify"]
        assert main([*arguments, *options]) == 0
        return folder

    return run


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
def test_timm_state_dicts_give_timms_features(file: str, timm_model: torch.nn.Module, tmp_path: Path, convert):
    checkpoint = tmp_path / file
    if checkpoint.suffix == ".pth":
        torch.save({"model": timm_model.state_dict()}, checkpoint)
    else:
        save_file(timm_model.state_dict(), checkpoint)
    backbone = PlainViTBackbone.from_pretrained(convert(checkpoint))

    pixel_values = torch.randn(2, 3, *timm_model.patch_embed.img_size)
    with torch.no_grad():
        expected = timm_model.forward_features(pixel_values)[:, timm_model.num_prefix_tokens :]
        features = backbone(pixel_values).feature_maps[-1].flatten(2).mT
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_small_r26_s32_224", "vit_small_patch32_224"],
)
def test_timm_models_of_real_size(name: str, tmp_path: Path, convert):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    checkpoint = tmp_path / f"{name}.pth"
    torch.save(model.state_dict(), checkpoint)
    backbone = PlainViTBackbone.from_pretrained(convert(checkpoint))
    pixel_values = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model.forward_features(pixel_values)[:, model.num_prefix_tokens :]
        features = backbone(pixel_values).feature_maps[-1].flatten(2).mT
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)


def augreg_arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """A timm model's weights under the names and in the layouts of AugReg's JAX code."""
    arrays: dict[str, np.ndarray] = {}
    for name, value in model.state_dict().items():
        array = value.numpy()
        if name in ("cls_token", "pos_embed"):
            arrays[{"cls_token": "cls", "pos_embed": "Transformer/posembed_input/pos_embedding"}[name]] = array
            continue
        module, parameter = name.rsplit(".", 1)
        if ".attn.qkv" in module:
            layer = re.search(r"\d+", module)[0]
            width, head_dim = model.embed_dim, model.embed_dim // model.blocks[0].attn.num_heads
            for part, rows in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                target = f"Transformer/encoderblock_{layer}/MultiHeadDotProductAttention_1/{part}"
                if parameter == "weight":
                    arrays[f"{target}/kernel"] = rows.T.reshape(width, -1, head_dim)
                else:
                    arrays[f"{target}/bias"] = rows.reshape(-1, head_dim)
            continue
        for pattern, replacement in (
            (r"^norm$", "Transformer/encoder_norm"),
            (r"^patch_embed\.proj$", "embedding"),
            (r"^patch_embed\.backbone\.stem\.(conv|norm)$", r"\1_root"),
            (r"^patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.", r"block[\1]/unit[\2]/"),
            (r"downsample\.(conv|norm)", r"\1_proj"),
            (r"^blocks\.(\d+)\.", r"Transformer/encoderblock_\1/"),
            (r"norm1$", "LayerNorm_0" if name.startswith("blocks") else "norm1"),
            (r"norm2$", "LayerNorm_2" if name.startswith("blocks") else "norm2"),
            (r"attn\.proj$", "MultiHeadDotProductAttention_1/out"),
            (r"mlp\.fc1$", "MlpBlock_3/Dense_0"),
            (r"mlp\.fc2$", "MlpBlock_3/Dense_1"),
            (r"norm(_root|_proj|\d)$", r"gn\1"),
        ):
            module = re.sub(pattern, replacement, module)
        module = re.sub(r"\[(\d+)\]", lambda match: str(int(match[1]) + 1), module)
        if array.ndim == 1:
            is_stem_norm = re.search(r"gn(_root|_proj|\d)$", module) is not None
            key = f"{module}/{'scale' if parameter == 'weight' else 'bias'}"
            arrays[key] = array.reshape(1, 1, 1, -1) if is_stem_norm else array
        elif module.endswith("/out"):
            arrays[f"{module}/kernel"] = array.T.reshape(model.blocks[0].attn.num_heads, -1, model.embed_dim)
        else:
            arrays[f"{module}/kernel"] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return arrays


@pytest.mark.parametrize("timm_model", ["vit", "hybrid"], indirect=True)
def test_augreg_files_give_the_same_features(timm_model: torch.nn.Module, tmp_path: Path, convert):
    arrays = augreg_arrays(timm_model)
    arrays |= {"pre_logits/kernel": np.zeros((128, 128)), "pre_logits/bias": np.zeros(128)}  # ImageNet-21k files
    checkpoint = tmp_path / "augreg.npz"
    np.savez(checkpoint, **arrays)
    folder = convert(checkpoint)
    backbone = PlainViTBackbone.from_pretrained(folder)
    pixel_values = torch.randn(2, 3, *timm_model.patch_embed.img_size)
    with torch.no_grad():
        expected = timm_model.forward_features(pixel_values)[:, 1:]
        features = backbone(pixel_values).feature_maps[-1].flatten(2).mT
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-5)
    report = json.loads((folder / "parity_report.json").read_text())
    assert set(report["dropped_keys"]) == {"head/kernel", "head/bias", "pre_logits/kernel", "pre_logits/bias"}


def test_hybrid_stem_is_recognized():
    torch.manual_seed(0)
    config = BackboneFormat().map_weights(_small_hybrid().state_dict(), {}).config
    assert (config.stem_type, config.stem_depths, config.stem_hidden_sizes) == ("resnetv2", [2, 1], [256, 512])
    assert (config.patch_size, config.image_size, config.num_channels) == (8, [96, 96], 3)


def test_normalization_follows_the_kind_of_model(tmp_path: Path):
    torch.manual_seed(0)
    means = {}
    for kind, file in (("vit", "augreg.pth"), ("deit", "weights.pth"), ("vit", "deit_small_patch16_224.pth")):
        torch.save(TIMM_MODELS[kind]().state_dict(), tmp_path / file)
        folder = tmp_path / Path(file).stem
        arguments = ["--method", "backbone", "--checkpoint", str(tmp_path / file), "--output_dir", str(folder)]
        assert main(arguments) == 0
        means[file] = AutoImageProcessor.from_pretrained(folder).image_mean[0]
    assert means == {"augreg.pth": 0.5, "weights.pth": 0.485, "deit_small_patch16_224.pth": 0.485}


def small_segmenter(**fields) -> SegmenterForSemanticSegmentation:
    backbone_fields = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": [96, 48]}
    return SegmenterForSemanticSegmentation(
        SegmenterConfig(backbone_config=PlainViTConfig(**backbone_fields | fields), num_labels=3)
    )


@pytest.mark.parametrize("timm_model", ["vit"], indirect=True)
def test_backbone_weights_go_into_a_model_of_another_size(timm_model: torch.nn.Module, tmp_path: Path, convert):
    checkpoint = tmp_path / "vit.pth"
    torch.save(timm_model.state_dict(), checkpoint)
    models = {source: small_segmenter(position_embedding_interpolation="bilinear") for source in ("file", "folder")}
    parameters = list(models["file"].parameters())
    assert load_backbone_weights(models["file"], checkpoint) == ["head.weight", "head.bias"]
    load_backbone_weights(models["folder"], convert(checkpoint))

    backbone = models["file"].backbone
    assert all(old is new for old, new in zip(parameters, models["file"].parameters(), strict=True))  # for optimizers
    assert torch.equal(backbone.encoder.layers[1].mlp.fc1.weight, timm_model.blocks[1].mlp.fc1.weight)
    # (1, 1 + 4 * 4, 128) -> (1, 1 + 6 * 3, 128)
    positions = backbone.embeddings.position_embeddings
    assert torch.equal(positions[:, 0], timm_model.pos_embed[:, 0])
    grid = timm_model.pos_embed[:, 1:].mT.unflatten(2, (4, 4))
    resized = torch.nn.functional.interpolate(grid, size=(6, 3), mode="bilinear", align_corners=False)
    torch.testing.assert_close(positions[:, 1:].mT.unflatten(2, (6, 3)), resized)
    for name, parameter in models["folder"].backbone.named_parameters():
        assert torch.equal(parameter, backbone.get_parameter(name)), name


@pytest.mark.parametrize("timm_model", ["vit"], indirect=True)
def test_a_model_without_final_norm_leaves_it_out(timm_model: torch.nn.Module, tmp_path: Path):
    torch.save(timm_model.state_dict(), tmp_path / "vit.pth")
    dropped = load_backbone_weights(small_segmenter(final_norm="none"), tmp_path / "vit.pth")
    assert dropped == ["head.weight", "head.bias", "layernorm.weight", "layernorm.bias"]


@pytest.mark.parametrize("timm_model", ["vit"], indirect=True)
def test_a_model_without_class_token_leaves_it_and_its_position_out(
    timm_model: torch.nn.Module, tmp_path: Path, convert
):
    torch.save(timm_model.state_dict(), tmp_path / "vit.pth")
    unused = ["embeddings.cls_token", "embeddings.position_embeddings[:, :1]"]
    model = small_segmenter(use_cls_token=False, image_size=64)
    assert load_backbone_weights(model, tmp_path / "vit.pth") == ["head.weight", "head.bias", *unused]
    assert torch.equal(model.backbone.embeddings.position_embeddings, timm_model.pos_embed[:, 1:])
    assert load_backbone_weights(model, convert(tmp_path / "vit.pth")) == unused


def test_a_folder_that_lacks_weights_is_refused(tmp_path: Path):
    backbone = small_segmenter().backbone
    weights = backbone.state_dict()
    del weights["encoder.layers.1.mlp.fc1.weight"]
    backbone.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ConversionError, match=re.escape("lacks weights: encoder.layers.1.mlp.fc1.weight")):
        load_backbone_weights(small_segmenter(), tmp_path)


RESNET = {"embedding_size": 8, "hidden_sizes": (16, 32, 64, 128), "out_features": ["stage2", "stage3", "stage4"]}


@pytest.mark.parametrize("kind", ["file", "file_without_counters", "folder"])
def test_resnet_weights_go_into_a_model(kind: str, tmp_path: Path):
    shapes = unept_shapes(network(TINY_RESNET), 3, 64)
    originals = procedural_state_dict({key: shape for key, shape in shapes.items() if key.startswith("backbone.")})
    originals = {key.removeprefix("backbone."): tensor for key, tensor in originals.items()}
    if kind == "file_without_counters":
        originals = {key: tensor for key, tensor in originals.items() if not key.endswith("num_batches_tracked")}
    classifier = {"fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10)}
    torch.save({"state_dict": originals | classifier}, tmp_path / "resnet.pth")
    model = UNEPTForSemanticSegmentation(UNEPTConfig(backbone_config=ResNetV1cConfig(**RESNET), num_labels=3))
    assert load_backbone_weights(model, tmp_path / "resnet.pth") == ["fc.weight", "fc.bias"]
    if kind == "folder":
        model.backbone.save_pretrained(tmp_path / "folder")
        model = UNEPTForSemanticSegmentation(model.config)
        assert load_backbone_weights(model, tmp_path / "folder") == []
    renamed, _ = rename(list(originals), MMSEG_RESNET_V1C)
    weights = model.backbone.state_dict()
    assert {ours for ours in weights if "num_batches_tracked" not in ours} <= set(renamed.values())
    for original, ours in renamed.items():
        assert torch.equal(weights[ours], originals[original]), original


def test_other_weights_do_not_go_into_a_resnet(timm_model: torch.nn.Module, tmp_path: Path):
    model = UNEPTForSemanticSegmentation(UNEPTConfig(backbone_config=ResNetV1cConfig(**RESNET), num_labels=3))
    torch.save(timm_model.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(ConversionError, match="have no counterpart in the model: cls_token"):
        load_backbone_weights(model, tmp_path / "vit.pth")
    small_segmenter().backbone.save_pretrained(tmp_path / "folder")
    with pytest.raises(ConversionError, match="type 'plain_vit'; expected a ResNetV1cBackbone"):
        load_backbone_weights(model, tmp_path / "folder")
    weights = {key: tensor for key, tensor in model.backbone.state_dict().items() if "stages.3" not in key}
    model.backbone.save_pretrained(tmp_path / "half", state_dict=weights)
    with pytest.raises(ConversionError, match=r"half lacks weights: stages\.3"):
        load_backbone_weights(model, tmp_path / "half")


def test_bicubic_positions_differ_from_bilinear_ones():
    table = torch.randn(1, 1 + 16, 8)
    resized = [resize_position_embeddings(table, 1, (4, 4), (6, 5), mode) for mode in ("bilinear", "bicubic")]
    assert resized[0].shape == (1, 31, 8)
    assert not torch.allclose(resized[0], resized[1])
    assert resize_position_embeddings(table, 1, (4, 4), (4, 4), "bicubic") is table


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 64}, "`hidden_size` 128 against the model's 64"),
        ({"use_distillation_token": True}, "`use_distillation_token` False against the model's True"),
        ({"patch_size": 8}, "`patch_size` 16 against the model's 8"),
    ],
)
@pytest.mark.parametrize("timm_model", ["vit"], indirect=True)
def test_another_architecture_is_refused(timm_model: torch.nn.Module, fields: dict, message: str, tmp_path: Path):
    torch.save(timm_model.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(ConversionError, match=re.escape(message)):
        load_backbone_weights(small_segmenter(**fields), tmp_path / "vit.pth")


def test_other_encoders_and_folders_are_refused(tmp_path: Path):
    model = small_segmenter()
    model.save_pretrained(tmp_path / "segmenter")
    with pytest.raises(ConversionError, match="model of type 'segmenter'"):
        load_backbone_weights(model, tmp_path / "segmenter")
    with pytest.raises(ConversionError, match="neither a file of weights nor a folder"):
        load_backbone_weights(model, tmp_path / "nothing")
    with pytest.raises(ConversionError, match="fit a PlainViTBackbone only"):
        load_backbone_weights(torch.nn.Linear(1, 1), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("blocks.1.mlp.fc1.bias"), "missing: blocks.1.mlp.fc1.bias"),
        (lambda weights: weights.pop("patch_embed.proj.weight"), "patch_embeddings.projection.weight' is missing"),
        (
            lambda weights: weights.update({"blocks.0.ls1.gamma": torch.ones(128)}),
            "no counterpart in the model: blocks.0.ls1.gamma",
        ),
        (lambda weights: weights.update({"norm.weight": torch.ones(3)}), r"norm.weight (3,) instead of (128,)"),
        (
            lambda weights: weights.update({"pos_embed": torch.ones(1, 16, 128)}),
            "are of 15 patches, which is not 3 x 3",
        ),
    ],
)
def test_incomplete_weights_are_refused(change: Callable, message: str, tmp_path: Path, capsys):
    torch.manual_seed(0)
    weights = dict(TIMM_MODELS["vit"]().state_dict())
    change(weights)
    torch.save(weights, tmp_path / "vit.pth")
    folder = tmp_path / "converted"
    arguments = ["--method", "backbone", "--checkpoint", str(tmp_path / "vit.pth"), "--output_dir", str(folder)]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()


def test_config_sets_what_weights_do_not_hold(tmp_path: Path, convert):
    torch.manual_seed(0)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=(32, 128), patch_size=16, embed_dim=128, depth=1, num_heads=4, num_classes=0
    )
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    fields = {"num_attention_heads": 4, "position_grid": [2, 8], "normalization": "deit", "layer_norm_eps": 1e-5}
    (tmp_path / "fields.json").write_text(json.dumps(fields))
    folder = convert(tmp_path / "vit.pth", "--config", str(tmp_path / "fields.json"))
    config = PlainViTBackbone.from_pretrained(folder).config
    assert (config.num_attention_heads, config.image_size, config.layer_norm_eps) == (4, [32, 128], 1e-5)
    assert AutoImageProcessor.from_pretrained(folder).image_mean[0] == 0.485


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"position_grid": [4]}', "expected [ROWS, COLUMNS]"),
        ('{"position_grid": [2, 3]}', "is not 2 x 3"),
        ('{"num_attention_heads": 3}', "must be a multiple of `num_attention_heads`"),
        ('{"normalization": "bit"}', "expected one of vit, deit"),
        ("[1, 2]", "must hold an object"),
        ("n_heads: 4", "is not valid JSON"),
    ],
)
def test_wrong_configs_are_refused(text: str, message: str, tmp_path: Path, capsys):
    torch.manual_seed(0)
    torch.save(TIMM_MODELS["vit"]().state_dict(), tmp_path / "vit.pth")
    (tmp_path / "fields.json").write_text(text)
    arguments = ["--method", "backbone", "--checkpoint", str(tmp_path / "vit.pth")]
    options = ["--config", str(tmp_path / "fields.json"), "--output_dir", str(tmp_path / "converted")]
    assert main([*arguments, *options]) == 2
    assert message in capsys.readouterr().err
