# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoBackbone, AutoConfig

from hf_segmodels import PlainViTBackbone, PlainViTConfig


TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64}
HYBRID = {"stem_type": "resnetv2", "patch_size": 32, "stem_embedding_size": 32, "stem_hidden_sizes": (128,) * 4}


def build(**fields) -> PlainViTBackbone:
    torch.manual_seed(0)
    return PlainViTBackbone(PlainViTConfig(**{**TINY, **fields})).eval()


@torch.no_grad()
def feature_maps(backbone: PlainViTBackbone, *shape: int) -> tuple[torch.Tensor, ...]:
    return backbone(torch.randn(*shape, generator=torch.Generator().manual_seed(1))).feature_maps


@pytest.mark.parametrize("patch_size", [8, 16, 32])
@pytest.mark.parametrize("size", [(64, 64), (70, 90), (32, 200)])
def test_feature_maps_cover_any_size(patch_size, size):
    (features,) = feature_maps(build(patch_size=patch_size), 2, 3, *size)
    assert features.shape == (2, 32, *(-(-side // patch_size) for side in size))


@pytest.mark.parametrize("size", [(64, 64), (70, 90), (33, 129)])
def test_hybrid_feature_maps_cover_any_size(size):
    (features,) = feature_maps(build(**HYBRID), 2, 3, *size)
    assert features.shape == (2, 32, *(-(-side // 32) for side in size))


@pytest.mark.parametrize(("depths", "num_parameters"), [((2, 2, 2, 2), 13_946_176), ((3, 4, 6, 3), 23_508_032)])
def test_hybrid_stems_have_the_size_of_r26_and_r50(depths, num_parameters):
    with torch.device("meta"):
        config = PlainViTConfig(stem_type="resnetv2", stem_depths=depths, patch_size=32)
        stem = PlainViTBackbone(config).embeddings.patch_embeddings.stem
    assert sum(parameter.numel() for parameter in stem.parameters()) == num_parameters


def test_hybrid_stem_of_three_stages_has_stride_16():
    fields = {**HYBRID, "patch_size": 16, "stem_depths": (1, 1, 1), "stem_hidden_sizes": (128, 128, 128)}
    (features,) = feature_maps(build(**fields), 1, 3, 64, 96)
    assert features.shape == (1, 32, 4, 6)


def test_branches_of_a_new_hybrid_stem_start_as_zero():
    norms = [p for name, p in build(**HYBRID).named_parameters() if name.endswith("norm3.weight")]
    assert len(norms) == 8
    assert not any(norm.any() for norm in norms)


def test_taps_are_the_outputs_of_the_layers():
    backbone = build(out_indices=[0, 2, 3])
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        outputs = backbone(images, output_hidden_states=True)
    assert len(outputs.hidden_states) == 4
    for features, index in zip(outputs.feature_maps, (0, 2, 3), strict=True):
        tokens = outputs.hidden_states[index]
        tokens = backbone.layernorm(tokens) if index == 3 else tokens
        # (1, 1 + 24, 32) -> (1, 32, 4, 6)
        expected = tokens[:, 1:].transpose(1, 2).reshape(1, 32, 4, 6)
        torch.testing.assert_close(features, expected)


def test_asking_for_hidden_states_changes_nothing_afterwards():
    """Hooks that are installed twice would take the taps from the wrong layers."""
    backbone = build(out_features=["stage1", "stage3"])
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = backbone(images).feature_maps
        for _ in range(2):
            assert len(backbone(images, output_hidden_states=True).hidden_states) == 4
        after = backbone(images)
    assert after.hidden_states is None
    for first, second in zip(before, after.feature_maps, strict=True):
        assert torch.equal(first, second)
    backbone.train()(images).feature_maps[-1].sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.encoder.layers[-1].parameters())


def test_final_norm():
    images = torch.randn(1, 3, 64, 64)
    taps = {"out_features": ["stage2", "stage3"]}
    maps = {}
    for mode in ("last", "all", "none"):
        backbone = build(final_norm=mode, **taps)
        with torch.no_grad():
            maps[mode] = backbone(images).feature_maps
        assert any(name == "layernorm.weight" for name, _ in backbone.named_parameters()) is (mode != "none")

    def norm(features):
        return nn.functional.layer_norm(features.permute(0, 2, 3, 1), (32,), eps=1e-6).permute(0, 3, 1, 2)

    torch.testing.assert_close(maps["last"], (maps["none"][0], norm(maps["none"][1])))
    torch.testing.assert_close(maps["all"], tuple(map(norm, maps["none"])))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_position_embeddings_are_resized_by_grid(mode):
    embeddings = build(position_embedding_interpolation=mode, use_distillation_token=True).embeddings
    resized = embeddings.interpolate_position_embeddings(2, 8)
    prefix, grid = embeddings.position_embeddings[:, :2], embeddings.position_embeddings[:, 2:]
    grid = grid.reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(2, 8), mode=mode, align_corners=False)
    torch.testing.assert_close(resized, torch.cat([prefix, grid.permute(0, 2, 3, 1).reshape(1, 16, 32)], dim=1))
    assert embeddings.interpolate_position_embeddings(4, 4) is embeddings.position_embeddings


def test_position_embeddings_by_token_count_keep_a_grid_of_the_same_size():
    embeddings = build(position_embedding_resize_rule="token_count").embeddings
    assert embeddings.interpolate_position_embeddings(2, 8) is embeddings.position_embeddings
    assert embeddings.interpolate_position_embeddings(2, 9).shape == (1, 1 + 18, 32)


def test_non_square_position_grid():
    backbone = build(image_size=(32, 128))
    assert backbone.embeddings.position_embeddings.shape == (1, 1 + 2 * 8, 32)
    assert backbone.embeddings.interpolate_position_embeddings(2, 8) is backbone.embeddings.position_embeddings


@pytest.mark.parametrize(("tokens", "count"), [((False, False), 0), ((True, False), 1), ((True, True), 2)])
def test_prefix_tokens_take_part_and_are_removed(tokens, count):
    use_cls_token, use_distillation_token = tokens
    backbone = build(use_cls_token=use_cls_token, use_distillation_token=use_distillation_token)
    with torch.no_grad():
        outputs = backbone(torch.randn(1, 3, 64, 64), output_hidden_states=True)
    assert outputs.hidden_states[0].shape[1] == count + 16
    assert outputs.feature_maps[0].shape == (1, 32, 4, 4)


def test_drop_path_drops_whole_residuals_per_image_and_keeps_the_mean():
    backbone = build(drop_path_rate=0.5)
    layers = backbone.encoder.layers
    assert [layer.drop_path.drop_prob for layer in layers] == [0.0, 0.25, 0.5]
    drop_path = layers[-1].drop_path.train()
    dropped = drop_path(torch.ones(4000, 3, 2))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    assert abs(dropped.mean().item() - 1.0) < 0.1
    assert torch.equal(drop_path.eval()(torch.ones(4, 3, 2)), torch.ones(4, 3, 2))


@pytest.mark.parametrize("fields", [{}, HYBRID])
def test_round_trip(fields, tmp_path):
    backbone = build(out_indices=[1, 3], **fields)
    backbone.save_pretrained(tmp_path)
    loaded = PlainViTBackbone.from_pretrained(tmp_path)
    assert type(AutoBackbone.from_config(loaded.config)) is PlainViTBackbone
    assert AutoConfig.from_pretrained(tmp_path).out_features == ["stage1", "stage3"]
    for first, second in zip(feature_maps(backbone, 1, 3, 64, 64), feature_maps(loaded, 1, 3, 64, 64), strict=True):
        assert torch.equal(first, second)


def test_wrong_number_of_channels():
    with pytest.raises(ValueError, match=r"Expected `pixel_values` of shape \(batch_size, 3, height, width\)"):
        feature_maps(build(), 1, 1, 64, 64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 5}, "multiple of `num_attention_heads`"),
        ({"num_attention_heads": 0}, "`num_attention_heads` must be at least 1"),
        ({"num_channels": 0}, "`num_channels` must be at least 1"),
        ({"hidden_act": "nope"}, "`hidden_act` is 'nope'"),
        ({"image_size": 8}, "must be at least `patch_size`"),
        ({"image_size": [64]}, r"`image_size` must be an int or \(height, width\)"),
        ({"drop_path_rate": 1.0}, r"must be in \[0, 1\)"),
        ({"use_cls_token": False, "use_distillation_token": True}, "DeiT has both tokens"),
        ({"stem_type": "resnetv2"}, "set `patch_size=32`"),
        ({**HYBRID, "stem_depths": (2, 2)}, "one entry for each stage"),
        ({**HYBRID, "stem_hidden_sizes": (64,) * 4}, "GroupNorm with 32 groups"),
        ({"out_indices": [4]}, "out_indices"),
    ],
)
def test_bad_config(fields, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        PlainViTConfig(**{**TINY, **fields})


# Down-sampling of queries

TAPS = {"out_indices": [1, 2, 3]}


@pytest.mark.parametrize("target", ["query", "query_key_value"])
@pytest.mark.parametrize("mode", ["nearest", "convolution"])
@pytest.mark.parametrize("size", [(64, 64), (80, 48), (16, 16), (70, 200)])
@pytest.mark.parametrize("prefix", [{}, {"use_cls_token": False}, {"use_distillation_token": True}])
def test_feature_maps_behind_a_downsampling_layer_have_half_the_grid(target, mode, size, prefix):
    fields = {"query_downsampling_target": target, "query_downsampling_mode": mode, **TAPS, **prefix}
    backbone = build(query_downsampling_layer=1, **fields)
    assert backbone.config.feature_strides == [16, 32, 32]
    assert backbone.channels == [32, 32, 32]
    maps = feature_maps(backbone, 2, 3, *size)
    for features, stride in zip(maps, backbone.config.feature_strides, strict=True):
        grid = [math.ceil(math.ceil(side / 16) * 16 / stride) for side in size]
        assert features.shape == (2, 32, *grid)
        assert features.isfinite().all()


def test_downsampling_keeps_every_second_patch_and_attends_to_all():
    """Against the plain layer, whose queries do not know of each other: the rows that are kept are the same."""
    plain, halved = build(out_indices=[1, 2]), build(out_indices=[1, 2], query_downsampling_layer=1)
    halved.load_state_dict(plain.state_dict())
    (early, late), (same, sampled) = feature_maps(plain, 1, 3, 80, 112), feature_maps(halved, 1, 3, 80, 112)
    torch.testing.assert_close(same, early)
    torch.testing.assert_close(sampled, late[..., ::2, ::2])  # 5 x 7 -> 3 x 4

    all_halved = build(out_indices=[1, 2], query_downsampling_layer=1, query_downsampling_target="query_key_value")
    all_halved.load_state_dict(plain.state_dict())
    _, other = feature_maps(all_halved, 1, 3, 80, 112)
    assert (other - sampled).abs().max() > 1e-3
    # without the patches left out: the layer on its own, over every second patch and the class token
    with torch.no_grad():
        images = torch.randn(1, 3, 80, 112, generator=torch.Generator().manual_seed(1))
        tokens = plain(images, output_hidden_states=True).hidden_states[1]
        kept = tokens[:, 1:].unflatten(1, (5, 7))[:, ::2, ::2].flatten(1, 2)
        expected = plain.encoder.layers[1](torch.cat([tokens[:, :1], kept], dim=1))[:, 1:]
    torch.testing.assert_close(other[0], expected[0].T.unflatten(1, (3, 4)))


def test_convolution_samples_where_nearest_does():
    nearest = build(query_downsampling_layer=0)
    convolution = build(query_downsampling_layer=0, query_downsampling_mode="convolution")
    names = {name for name, _ in convolution.named_parameters()} - {name for name, _ in nearest.named_parameters()}
    assert names == {f"encoder.layers.0.downsampling.convolution.{part}" for part in ("weight", "bias")}
    convolution.load_state_dict(nearest.state_dict(), strict=False)
    kernel = convolution.encoder.layers[0].downsampling.convolution
    with torch.no_grad():
        before = feature_maps(convolution, 1, 3, 48, 80)[0]
        kernel.weight.zero_()[:, :, 1, 1] = torch.eye(32)
        kernel.bias.zero_()
    assert (before - feature_maps(nearest, 1, 3, 48, 80)[0]).abs().max() > 1e-3
    torch.testing.assert_close(feature_maps(convolution, 1, 3, 48, 80), feature_maps(nearest, 1, 3, 48, 80))


@pytest.mark.parametrize("implementation", ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_attention_implementations_agree_behind_a_downsampling_layer(implementation):
    backbone = build(query_downsampling_layer=1, **TAPS)
    expected = feature_maps(backbone, 1, 3, 80, 64)
    backbone.set_attn_implementation(implementation)
    torch.testing.assert_close(feature_maps(backbone, 1, 3, 80, 64), expected, atol=1e-5, rtol=1e-5)


def test_downsampling_layer_learns_and_is_restored(tmp_path):
    backbone = build(
        query_downsampling_layer=1, query_downsampling_mode="convolution", qkv_bias=False, final_norm="none"
    )
    backbone.train()(torch.randn(1, 3, 48, 48)).feature_maps[0].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in backbone.parameters())
    assert backbone.encoder.layers[1].attention.qkv.weight.grad.abs().sum(dim=1).min() > 0
    backbone.eval().save_pretrained(tmp_path)
    loaded = PlainViTBackbone.from_pretrained(tmp_path)
    torch.testing.assert_close(feature_maps(loaded, 1, 3, 48, 48), feature_maps(backbone, 1, 3, 48, 48))


def test_hidden_states_and_attentions_of_a_downsampling_layer():
    backbone = build(query_downsampling_layer=1, attn_implementation="eager")
    outputs = backbone(torch.randn(1, 3, 64, 64), output_hidden_states=True, output_attentions=True)
    assert [states.shape[1] for states in outputs.hidden_states] == [17, 17, 5, 5]
    assert [tuple(weights.shape[2:]) for weights in outputs.attentions] == [(17, 17), (5, 17), (5, 5)]


@pytest.mark.parametrize("layer", [-1, 3])
def test_downsampling_layer_that_does_not_exist(layer):
    with pytest.raises(StrictDataclassError, match=rf"`query_downsampling_layer` \({layer}\) must be .* from 0 to 2"):
        build(query_downsampling_layer=layer)
