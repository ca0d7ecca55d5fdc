# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import ResNetConfig

from common.model_tester import TINY, TRANSFORMERS_BACKBONES, SegmentationModelTester, random_images, random_labels
from hf_segmodels import PlainViTConfig, SegViTConfig, SegViTForSemanticSegmentation


TINY_DECODER = {"decoder_hidden_size": 24, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 2}


def encoder(**fields) -> PlainViTConfig:
    return PlainViTConfig(**{**TINY, "image_size": 64, "use_cls_token": False, "final_norm": "none", **fields})


class SegViTModelTester(SegmentationModelTester):
    model_class = SegViTForSemanticSegmentation
    config_class = SegViTConfig
    without_dropout = {"decoder_dropout_prob": 0.0}
    learning_rate = 1e-2

    def config(self, **overrides):
        overrides.setdefault("backbone_config", encoder(out_indices=[1, 2]))
        return super().config(**{**TINY_DECODER, **overrides})

    def logits_size(self, model, size):
        return size

    def exported_logits(self, model, images):
        return model(images).logits

    def test_all_ignored_labels(self):
        """Classes are absent then, which is something to learn; masks are not."""
        model = self.model().train()
        outputs = model(random_images(1, 3, 64, 64), labels=torch.full((1, 64, 64), 255))
        outputs.loss.backward()
        assert outputs.loss_dict["loss_ce"] > 0
        assert outputs.loss_dict["loss_mask"] == outputs.loss_dict["loss_dice"] == 0
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
        assert model.decoder.classifier.weight.grad.abs().sum() > 0


class TestSegViT(SegViTModelTester):
    def test_score_of_a_class_counts_every_query_by_its_probability(self):
        with torch.no_grad():
            outputs = self.model()(random_images(2, 3, 48, 80))
        assert outputs.class_queries_logits.shape == (2, self.num_labels, self.num_labels + 1)
        assert outputs.masks_queries_logits.shape == (2, self.num_labels, 3, 5)
        probabilities = outputs.class_queries_logits.softmax(-1)
        masks = nn.functional.interpolate(outputs.masks_queries_logits, (48, 80), mode="bilinear").sigmoid()
        expected = sum(
            probabilities[:, query, : self.num_labels, None, None] * masks[:, query, None]
            for query in range(self.num_labels)
        )
        torch.testing.assert_close(outputs.logits, expected)

    def test_stages_take_the_deepest_map_first_and_add_up_their_masks(self):
        model = self.model()
        images = random_images(1, 3, 64, 96)
        with torch.no_grad():
            before = model(images)
            for parameter in model.decoder.stages[1].parameters():
                parameter.mul_(1.5)
            after = model(images)
        assert torch.equal(before.auxiliary_masks_queries_logits[:, 0], after.auxiliary_masks_queries_logits[:, 0])
        assert not torch.equal(before.masks_queries_logits, after.masks_queries_logits)
        deepest = SegViTForSemanticSegmentation(self.config(backbone_config=encoder(out_indices=[2]))).eval()
        deepest.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("decoder.stages.1.")})
        with torch.no_grad():
            alone = deepest(images)
        assert alone.auxiliary_masks_queries_logits is None
        torch.testing.assert_close(alone.masks_queries_logits, after.auxiliary_masks_queries_logits[:, 0])
        torch.testing.assert_close(alone.class_queries_logits, after.auxiliary_class_queries_logits[:, 0])

    def test_scores_are_those_of_float32_under_autocast(self):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = self.model()(random_images(1, 3, 64, 64))
        assert outputs.masks_queries_logits.dtype == torch.bfloat16
        assert outputs.logits.dtype == torch.float32
        masks = nn.functional.interpolate(outputs.masks_queries_logits.float(), (64, 64), mode="bilinear").sigmoid()
        probabilities = outputs.class_queries_logits.float().softmax(-1)[..., :-1]
        torch.testing.assert_close(outputs.logits, torch.einsum("bqk,bqhw->bkhw", probabilities, masks))

    def test_without_auxiliary_loss(self):
        images, labels = random_images(1, 3, 64, 64), random_labels(self.num_labels, 1, 64, 64)
        with torch.no_grad():
            both = self.model()(images, labels=labels)
            last = self.model(use_auxiliary_loss=False)(images, labels=labels)
        assert last.auxiliary_class_queries_logits is last.auxiliary_masks_queries_logits is None
        assert list(both.loss_dict) == [f"loss_{n}{s}" for s in ("", "_0") for n in ("ce", "mask", "dice")]
        assert list(last.loss_dict) == ["loss_ce", "loss_mask", "loss_dice"]
        torch.testing.assert_close(last.loss, sum(both.loss_dict[name] for name in last.loss_dict))
        torch.testing.assert_close(both.loss, sum(both.loss_dict.values()))

    def test_weights_of_the_terms(self):
        images, labels = random_images(1, 3, 64, 64), random_labels(self.num_labels, 1, 64, 64)
        weights = {"class_loss_weight": 3.0, "mask_loss_weight": 7.0, "dice_loss_weight": 0.5}
        with torch.no_grad():
            released = self.model()(images, labels=labels).loss_dict
            ours = self.model(**weights)(images, labels=labels).loss_dict
        for name, factor in (("loss_ce", 3.0), ("loss_mask", 7 / 20), ("loss_dice", 0.5), ("loss_mask_0", 7 / 20)):
            torch.testing.assert_close(ours[name], factor * released[name])

    def test_training_with_labels_makes_no_scores(self):
        model = self.model().train()
        images, labels = random_images(1, 3, 64, 64), random_labels(self.num_labels, 1, 64, 64)
        assert model(images).logits.requires_grad
        outputs = model(images, labels=labels)
        assert outputs.loss.requires_grad
        assert outputs.logits is None
        assert torch.equal(model.eval()(images, labels=labels).logits, model(images).logits)

    def test_compiled_loss(self):
        """A graph has all masks, also those of absent classes, which must not count."""
        model = self.model().train()
        torch.compiler.reset()
        compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
        images, labels = random_images(2, 3, 64, 96), random_labels(2, 2, 64, 96)
        labels[1, :] = 255
        compiled(images, labels=labels).loss.backward()
        model(images, labels=labels).loss.backward()
        gradients = [p.grad for p in compiled.parameters()], [p.grad for p in model.parameters()]
        for compiled_gradient, gradient in zip(*gradients, strict=True):
            torch.testing.assert_close(compiled_gradient, gradient, atol=1e-5, rtol=1e-3)

    @pytest.mark.parametrize("prediction_size", [40, (48, 64)])
    def test_masks_become_probabilities_at_a_fixed_size(self, prediction_size):
        model = self.model(prediction_size=prediction_size)
        size = model.config.fixed_prediction_size
        with torch.no_grad():
            outputs = model(random_images(1, 3, 80, 96))
        masks = nn.functional.interpolate(outputs.masks_queries_logits, size, mode="bilinear").sigmoid()
        probabilities = outputs.class_queries_logits.softmax(-1)[..., :-1]
        scores = torch.einsum("bqk,bqhw->bkhw", probabilities, masks)
        torch.testing.assert_close(outputs.logits, nn.functional.interpolate(scores, (80, 96), mode="bilinear"))

    @pytest.mark.parametrize("prediction_size", [None, 64])
    def test_odd_sizes_are_squeezed_as_the_original_does(self, prediction_size):
        model = self.model(odd_size_mode="resize", prediction_size=prediction_size)
        images = random_images(1, 3, 90, 90)
        labels = random_labels(self.num_labels, 1, 90, 90)
        with torch.no_grad():
            resized = model(images, labels=labels)
            padded = model(nn.functional.pad(images, (0, 6, 0, 6)))
            cropped = self.model(prediction_size=prediction_size)(images, labels=labels)
            assert torch.equal(resized.masks_queries_logits, padded.masks_queries_logits)
            (scores,) = model.predict(images, return_scores=True)
        torch.testing.assert_close(scores, resized.logits[0], atol=1e-6, rtol=1e-5)
        if prediction_size is not None:
            expected = nn.functional.interpolate(
                model(nn.functional.pad(images, (0, 6, 0, 6))).logits, (96, 96), mode="bilinear"
            )
            torch.testing.assert_close(cropped.logits, expected[..., :90, :90], atol=1e-6, rtol=1e-5)
        assert (resized.logits - cropped.logits).abs().max() > 1e-3
        assert resized.loss != cropped.loss

    @pytest.mark.parametrize("stages", [["stage4"], ["stage1", "stage3"], ["stage1", "stage2", "stage3", "stage4"]])
    def test_maps_of_several_sizes_meet_on_the_finest_grid(self, stages):
        backbone_config = TRANSFORMERS_BACKBONES["swin"]()
        backbone_config.set_output_features_output_indices(out_features=stages, out_indices=None)
        model = self.model(backbone_config=backbone_config)
        images, labels = random_images(1, 3, 70, 90), random_labels(self.num_labels, 1, 70, 90)
        outputs = model(images, labels=labels)
        stride = 4 * 2 ** (int(stages[0][-1]) - 1)
        assert outputs.masks_queries_logits.shape[2:] == (96 // stride, 96 // stride)
        assert outputs.logits.shape[2:] == (70, 90)
        assert len(outputs.loss_dict) == 3 * len(stages)
        outputs.loss.backward()
        assert all(parameter.grad is not None for parameter in model.decoder.parameters())

    def test_naive_shrunk(self):
        model = self.model(backbone_config=encoder(out_indices=[2], query_downsampling_layer=1))
        with torch.no_grad():
            outputs = model(random_images(1, 3, 80, 112))  # 5 x 7 patches, padded to 6 x 8
        assert outputs.masks_queries_logits.shape[2:] == (3, 4)
        assert outputs.logits.shape[2:] == (80, 112)

    def test_scales_stop_shrinking_at_the_smallest_size(self):
        seen = []
        model = self.model(min_scaled_size=48)
        model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[-2:])))
        model.predict(random_images(1, 3, 96, 64), scales=(0.5, 1.0, 1.5))
        model.predict(random_images(1, 3, 40, 32), scales=(0.5, 1.0))
        assert seen == [(72, 48), (96, 64), (144, 96), (40, 32), (40, 32)]


class TestShrunkSegViT(SegViTModelTester):
    smallest_exported = 64

    def config(self, **overrides):
        overrides.setdefault("backbone_config", encoder(out_indices=[1, 2], query_downsampling_layer=1))
        return super().config(**{"decoder_type": "shrunk", "query_grid": 4, **overrides})

    def test_up_sampling_restores_the_grid_of_patches(self):
        model = self.model()
        for size in ((64, 64), (96, 160)):
            with torch.no_grad():
                outputs = model(random_images(1, 3, *size))
                shallow, deep = model.backbone(random_images(1, 3, *size)).feature_maps
            assert shallow.shape[2:] == (size[0] // 16, size[1] // 16)
            assert deep.shape[2:] == (size[0] // 32, size[1] // 32)
            assert outputs.masks_queries_logits.shape[2:] == shallow.shape[2:]
            # supervision is over the layers of the one stage, whose masks do not add up
            assert outputs.auxiliary_masks_queries_logits.shape[1] == 1

    def test_queries_keep_their_grid_at_a_fixed_size(self):
        model = self.model(prediction_size=64, query_grid=(4, 6))
        assert model.decoder.query_upsampling.queries.shape == (24, 24)
        with torch.no_grad():
            outputs = model(random_images(1, 3, 96, 96))
        assert outputs.masks_queries_logits.shape[2:] == (4, 6)
        assert outputs.logits.shape[2:] == (96, 96)

    def test_interpolated_queries(self):
        module = self.model().decoder.query_upsampling
        queries, grid = module.interpolate_queries(4, 4)
        assert queries.data_ptr() == module.queries.data_ptr()
        assert queries.shape == module.queries.shape
        queries, grid = module.interpolate_queries(8, 2)
        table = module.queries.T.reshape(1, 24, 4, 4)
        expected = nn.functional.interpolate(table, (8, 2), mode="bilinear")[0].flatten(1).T
        assert grid == (8, 2)
        torch.testing.assert_close(queries, expected)

    def test_query_grid_of_the_encoder(self):
        assert self.config(query_grid=None).upsampling_grid == (4, 4)
        assert self.config(query_grid=None, backbone_config=encoder(image_size=(32, 96))).upsampling_grid == (2, 6)
        beit = TRANSFORMERS_BACKBONES["beit"]()
        assert self.config(query_grid=None, backbone_config=beit).upsampling_grid == (4, 4)

    def test_hierarchical_maps_up_to_the_shallowest(self):
        backbone_config = TRANSFORMERS_BACKBONES["swin"]()
        backbone_config.set_output_features_output_indices(out_features=["stage2", "stage4"], out_indices=None)
        with torch.no_grad():
            outputs = self.model(backbone_config=backbone_config)(random_images(1, 3, 64, 96))
        assert outputs.masks_queries_logits.shape[2:] == (8, 12)


# Rows and columns


def transpose_grids(model: SegViTForSemanticSegmentation) -> SegViTForSemanticSegmentation:
    """The model that gives the transposed map for the transposed image: tables of places and kernels are transposed."""
    transposed = copy.deepcopy(model)
    embeddings = transposed.backbone.embeddings
    rows, columns = embeddings.config.position_grid
    with torch.no_grad():
        embeddings.position_embeddings.copy_(
            embeddings.position_embeddings.unflatten(1, (rows, columns)).transpose(1, 2).flatten(1, 2)
        )
        for module in transposed.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(module.weight.transpose(2, 3).contiguous())
        if transposed.decoder.query_upsampling is not None:
            queries = transposed.decoder.query_upsampling.queries
            grid = transposed.decoder.query_upsampling.grid
            queries.copy_(queries.unflatten(0, grid).transpose(0, 1).flatten(0, 1))
            transposed.decoder.query_upsampling.grid = grid[::-1]
    height, width = rows * 16, columns * 16
    transposed.config.backbone_config.image_size = [width, height]
    embeddings.config.image_size = [width, height]
    return transposed


@pytest.mark.parametrize("size", [(64, 64), (32, 128), (96, 48), (75, 41), (16, 256)])
@pytest.mark.parametrize("prediction_size", [None, 64])
@pytest.mark.parametrize(
    ("decoder_type", "fields"),
    [
        ("cascade", {"out_indices": [1, 2]}),
        ("cascade", {"out_indices": [2], "query_downsampling_layer": 1}),
        ("cascade", {"out_indices": [1, 2], "query_downsampling_layer": 1, "query_downsampling_mode": "convolution"}),
        ("shrunk", {"out_indices": [1, 2], "query_downsampling_layer": 1}),
        ("shrunk", {"out_indices": [1, 2], "image_size": (48, 80)}),
    ],
)
def test_transposed_image_gives_the_transposed_map(decoder_type, fields, prediction_size, size):
    torch.manual_seed(0)
    config = SegViTConfig(
        backbone_config=encoder(**fields),
        decoder_type=decoder_type,
        prediction_size=prediction_size,
        num_labels=4,
        **TINY_DECODER,
    )
    model = SegViTForSemanticSegmentation(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # places have to matter
        images = random_images(1, 3, *size)
        outputs, transposed = model(images), transpose_grids(model)(images.transpose(2, 3))
        labels = torch.stack(model.predict(images))
    torch.testing.assert_close(transposed.logits.transpose(2, 3), outputs.logits, atol=1e-3, rtol=1e-3)
    masks = transposed.masks_queries_logits.transpose(2, 3)
    torch.testing.assert_close(masks, outputs.masks_queries_logits, atol=1e-3, rtol=1e-3)
    assert (labels == outputs.logits.argmax(1)).float().mean() > 0.999
    # places do matter: where rows and columns are mixed up, it is not
    with torch.no_grad():
        mixed_up = model(images.flip(2)).logits.flip(2)
    assert (mixed_up - outputs.logits).abs().max() > 1e-2


# Configuration, parameters


def test_optimizer_param_groups_of_the_recipe():
    model = SegViTForSemanticSegmentation(SegViTConfig(backbone_config=encoder(), num_labels=3, **TINY_DECODER))
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {
        (group["lr"], group["weight_decay"]): {names[p] for p in group["params"]}
        for group in model.get_optimizer_param_groups(2e-5, 0.01)
    }
    decoder = groups.pop((2e-5 * 10, 0.01))
    assert groups.keys() == {(2e-5, 0.01), (2e-5, 0.0)}
    assert decoder == {name for name in names.values() if name.startswith("decoder.")}
    assert all("layernorm" in name for name in groups[2e-5, 0.0])
    assert {"backbone.embeddings.position_embeddings", "backbone.encoder.layers.0.mlp.fc1.bias"} <= groups[2e-5, 0.01]


def test_initialization():
    torch.manual_seed(0)
    backbone_config = encoder(hidden_size=128)
    config = SegViTConfig(backbone_config=backbone_config, decoder_type="shrunk", num_labels=150, query_grid=16)
    decoder = SegViTForSemanticSegmentation(config).decoder
    layer = decoder.stages[0].layers[0]
    assert decoder.classifier.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert decoder.class_queries.std().item() == pytest.approx(1.0, rel=0.05)
    assert decoder.query_upsampling.queries.std().item() == pytest.approx(1.0, rel=0.05)
    assert layer.cross_attention.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    xavier = (2 / (384 + 3 * 384)) ** 0.5
    assert layer.self_attention.q_proj.weight.std().item() == pytest.approx(xavier, rel=0.1)
    up_sampling = decoder.query_upsampling.stages[0].layers[0].cross_attention
    assert up_sampling.v_proj.weight.std().item() == pytest.approx(xavier, rel=0.1)
    assert not layer.self_attention.q_proj.bias.any()


def test_defaults_are_those_of_the_released_code():
    config = SegViTConfig()
    assert (config.num_labels, config.decoder_type) == (150, "cascade")
    assert (config.decoder_hidden_size, config.decoder_num_hidden_layers, config.decoder_num_attention_heads) == (
        384,
        3,
        12,
    )
    assert (config.no_object_weight, config.mask_loss_weight, config.small_image_mode) == (0.1, 20.0, "none")
    backbone = config.backbone_config
    assert (backbone.use_cls_token, backbone.final_norm, backbone.drop_path_rate) == (False, "none", 0.1)
    assert (backbone.layer_norm_eps, backbone.position_embedding_interpolation) == (1e-6, "bicubic")
    assert backbone.out_features == ["stage6", "stage8", "stage12"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"decoder_hidden_size": 100},
            r"`decoder_hidden_size` \(100\) must be a multiple of `decoder_num_attention_heads`",
        ),
        ({"decoder_num_hidden_layers": 0}, "`decoder_num_hidden_layers` must be at least 1"),
        ({"prediction_size": 0}, "`prediction_size` must be an integer or"),
        ({"prediction_size": [64, 64, 64]}, "`prediction_size` must be an integer or"),
        ({"query_grid": [4]}, "`query_grid` must be an integer or"),
        ({"mask_loss_weight": -1.0}, "`mask_loss_weight` must not be negative"),
        ({"min_scaled_size": 0}, "`min_scaled_size` must be at least 1"),
        ({"decoder_type": "atm"}, "'cascade', 'shrunk'"),
        ({"odd_size_mode": "pad"}, "'crop', 'resize'"),
        ({"num_labels": 0}, "`num_labels` must be at least 1"),
    ],
)
def test_bad_config(fields, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        SegViTConfig(**fields)


def test_shrunk_decoder_without_a_grid():
    backbone_config = ResNetConfig(depths=[1], hidden_sizes=[16], embedding_size=16)
    with pytest.raises(ValueError, match="`query_grid` must be set .* on ResNetConfig, which has no `image_size`"):
        SegViTForSemanticSegmentation(SegViTConfig(backbone_config=backbone_config, decoder_type="shrunk"))
