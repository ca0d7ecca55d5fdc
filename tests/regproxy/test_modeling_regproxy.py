# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import SwinConfig

from common.model_tester import (
    TINY,
    TRANSFORMERS_BACKBONES,
    SegmentationModelTester,
    random_images,
    random_labels,
)
from hf_segmodels import PlainViTConfig, RegProxyConfig, RegProxyForSemanticSegmentation, SegmenterConfig
from hf_segmodels.regproxy import homogeneity_loss


class TestRegProxy(SegmentationModelTester):
    model_class = RegProxyForSemanticSegmentation
    config_class = RegProxyConfig
    without_batch_norm = {"affinity_conv": "none"}

    def config(self, **overrides):
        # the stages of Swin differ in size, so that regions and classes come from the last one
        is_hierarchical = isinstance(overrides.get("backbone_config"), SwinConfig)
        overrides.setdefault("token_head_depth", 4 if is_hierarchical else 1)
        return super().config(**overrides)

    def logits_size(self, model, size):
        height, width = super().logits_size(model, size)
        cell_height, cell_width = model.config.cell_size
        return height * cell_height, width * cell_width

    @pytest.mark.parametrize("resolution", [1, 2, 8, 16, (2, 4), [3, 1]])
    def test_any_region_resolution(self, resolution):
        model = self.model(region_resolution=resolution)
        with torch.no_grad():
            outputs = model(random_images(2, 3, 48, 80))
        h, w = model.config.cell_size
        assert outputs.logits.shape == (2, self.num_labels, 3 * h, 5 * w)
        assert outputs.affinity.shape == (2, 9, h, w, 3, 5)
        assert outputs.token_logits.shape == (2, 15, self.num_labels)

    def test_affinities_are_probabilities_of_the_tokens_that_exist(self):
        with torch.no_grad():
            affinity = self.model()(random_images(1, 3, 48, 80)).affinity
        torch.testing.assert_close(affinity.sum(1), torch.ones_like(affinity[:, 0]))
        rows_above, rows_below = affinity[:, :3, ..., 0, :], affinity[:, 6:, ..., -1, :]
        columns_left, columns_right = affinity[:, [0, 3, 6], ..., 0], affinity[:, [2, 5, 8], ..., -1]
        for outside in (rows_above, rows_below, columns_left, columns_right):
            assert (outside == 0).all()
        assert (affinity == 0).sum() == sum(map(torch.numel, (rows_above, columns_left))) * 2 - 4 * 16

    def test_without_the_border_mask_neighbors_outside_take_their_share(self):
        model = self.model(mask_border=False)
        with torch.no_grad():
            outputs = model(random_images(1, 3, 32, 32))
            model.decoder.classifier.weight.zero_()
            model.decoder.classifier.bias.fill_(1.0)
            logits = model(random_images(1, 3, 32, 32)).logits
        assert (outputs.affinity > 0).all()
        assert (logits < 1).all()  # in a grid of 2x2 each token is at the border
        assert (self.model()(random_images(1, 3, 32, 32)).affinity == 0).any()

    def test_regions_come_from_early_layers(self):
        images = random_images(1, 3, 64, 64)
        for depth in (0, 1, 2):
            model = self.model(token_head_depth=depth)
            assert model.backbone.out_features[0] == ("stem", "stage1", "stage2")[depth]
            with torch.no_grad():
                before = model(images)
                for parameter in model.backbone.encoder.layers[1].parameters():
                    parameter.mul_(1.5)
                after = model(images)
            assert torch.equal(before.affinity, after.affinity) is (depth < 2)
            assert not torch.equal(before.token_logits, after.token_logits)

    def test_classifier_takes_several_layers(self):
        model = self.model(classifier_layers=[2, 1])
        assert model.decoder.classifier.in_features == 2 * TINY["hidden_size"]
        images = random_images(1, 3, 64, 64)
        with torch.no_grad():
            early, late = model.backbone(images).feature_maps
            tokens = torch.cat([late, early], dim=1).flatten(2).transpose(1, 2)
            torch.testing.assert_close(model(images).token_logits, model.decoder.classifier(tokens))

    @pytest.mark.parametrize(
        ("affinity_conv", "shapes"),
        [
            ("depthwise", {"spatial_conv": (32, 1, 3, 3), "pointwise_conv": (32, 32, 1, 1)}),
            ("plain", {"spatial_conv": (32, 32, 3, 3)}),
            ("none", {}),
        ],
    )
    def test_forms_of_the_affinity_head(self, affinity_conv, shapes):
        model = self.model(affinity_conv=affinity_conv)
        head = model.decoder.affinity_head
        convolutions = {
            name: tuple(p.shape) for name, p in head.named_parameters() if name.endswith("convolution.weight")
        }
        assert convolutions == {f"{name}.convolution.weight": shape for name, shape in shapes.items()}
        images, labels = random_images(2, 3, 64, 64), random_labels(self.num_labels, 2, 64, 64)
        model.train()(images, labels=labels).loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())

    def test_odd_sizes_are_squeezed_as_the_original_does(self):
        model = self.model(odd_size_mode="resize")
        images = random_images(1, 3, 70, 90)
        with torch.no_grad():
            resized = model(images).logits
            padded = model(nn.functional.pad(images, (0, 6, 0, 10))).logits
            assert torch.equal(resized, padded)  # 20 x 24 cells, whatever size they stand for
            (scores,) = model.predict(images, return_scores=True)
            expected = nn.functional.interpolate(resized, (70, 90), mode="bilinear", align_corners=False)
            torch.testing.assert_close(scores, expected[0], atol=1e-5, rtol=1e-5)
            (cropped,) = self.model().predict(images, return_scores=True)
        assert (cropped - scores).abs().max() > 1e-3

    @pytest.mark.parametrize("name", ["dinov2", "swin"])
    def test_odd_sizes_are_squeezed_on_other_encoders_too(self, name):
        model = self.model(odd_size_mode="resize", backbone_config=TRANSFORMERS_BACKBONES[name]())
        images, labels = random_images(1, 3, 70, 90), random_labels(self.num_labels, 1, 70, 90)
        divisor = model.size_divisor
        with torch.no_grad():
            outputs = model(images, labels=labels)
        assert outputs.logits.shape[2:] == (-(-70 // divisor) * 4, -(-90 // divisor) * 4)
        full = nn.functional.interpolate(outputs.logits, (70, 90), mode="bilinear", align_corners=False)
        expected = nn.functional.cross_entropy(full, labels, ignore_index=255, reduction="sum") / labels.numel()
        torch.testing.assert_close(outputs.loss, expected)

    def test_layers_of_several_sizes_are_refused(self):
        model = self.model(backbone_config=TRANSFORMERS_BACKBONES["swin"](), token_head_depth=2)
        with pytest.raises(ValueError, match=r"differ in size, \[\(2, 2\), \(8, 8\)\].*the same stage"):
            model(random_images(1, 3, 64, 64))

    def test_loss_counts_ignored_pixels_unless_told_otherwise(self):
        images, labels = random_images(2, 3, 70, 90), random_labels(self.num_labels, 2, 70, 90)
        labels[1, :40] = 255
        valid_fraction = (labels != 255).float().mean()
        with torch.no_grad():
            released = self.model()(images, labels=labels)
            valid_mean = self.model(loss_reduction="valid_mean")(images, labels=labels)
        expected = nn.functional.cross_entropy(released.logits, labels, ignore_index=255)
        torch.testing.assert_close(valid_mean.loss, expected)
        torch.testing.assert_close(released.loss, expected * valid_fraction)

    def test_homogeneity_loss_is_added_with_its_weight(self):
        images, labels = random_images(2, 3, 70, 90), random_labels(self.num_labels, 2, 70, 90)
        losses = []
        for weight in (0.0, 0.5, 1.0):
            model = self.model(homogeneity_loss_weight=weight)
            losses.append(model(images, labels=labels).loss)
        torch.testing.assert_close(losses[2] - losses[0], 2 * (losses[1] - losses[0]))
        assert losses[1] > losses[0] + 0.05
        # it reaches regions, not classes
        homogeneity_loss(model(images).affinity, labels, self.num_labels).backward()
        assert model.decoder.affinity_head.predictor.weight.grad.abs().sum() > 0
        assert model.decoder.classifier.weight.grad is None

    def test_training_with_the_homogeneity_loss_makes_regions_homogeneous(self):
        images = torch.zeros(1, 3, 64, 64)
        labels = torch.zeros(1, 64, 64, dtype=torch.long)
        labels[:, :, 24:] = 1  # through the middle of a cell
        images[..., 24:] = 1.0
        model = self.model(homogeneity_loss_weight=1.0).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        values = []
        for _ in range(30):
            outputs = model(images, labels=labels)
            values.append(homogeneity_loss(outputs.affinity, labels, self.num_labels).item())
            optimizer.zero_grad()
            outputs.loss.backward()
            optimizer.step()
        assert values[-1] < 0.5 * values[0]

    def test_fields_given_while_loading(self, tmp_path):
        self.model().save_pretrained(tmp_path)
        loaded = RegProxyForSemanticSegmentation.from_pretrained(tmp_path, token_head_depth=0)
        assert loaded.backbone.out_features == ["stem", "stage2"]

    def test_compiled_loss(self):
        model = self.model(homogeneity_loss_weight=0.1).train()
        torch.compiler.reset()
        compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
        images, labels = random_images(1, 3, 64, 96), random_labels(self.num_labels, 1, 64, 96)
        compiled(images, labels=labels).loss.backward()
        model(images, labels=labels).loss.backward()
        gradients = [p.grad for p in compiled.parameters()], [p.grad for p in model.parameters()]
        for compiled_gradient, gradient in zip(*gradients, strict=True):
            torch.testing.assert_close(compiled_gradient, gradient, atol=1e-5, rtol=1e-3)


def test_encoder_of_another_model_is_left_alone():
    encoder = PlainViTConfig(**TINY, image_size=64)
    segmenter = SegmenterConfig(backbone_config=encoder)
    config = RegProxyConfig(backbone_config=encoder, token_head_depth=1)
    assert config.backbone_config.out_features == ["stage1", "stage2"]
    assert segmenter.backbone_config.out_features == encoder.out_features == ["stage2"]


def test_hybrid_stem_gives_cells_of_the_whole_image():
    encoder = PlainViTConfig(
        **TINY,
        image_size=64,
        patch_size=32,
        stem_type="resnetv2",
        stem_depths=[1, 1, 1, 1],
        stem_hidden_sizes=[128] * 4,
        stem_embedding_size=32,
    )
    torch.manual_seed(0)
    images = random_images(1, 3, 64, 90)
    for mode, size in (("crop", (64, 90)), ("resize", (8, 12))):
        config = RegProxyConfig(backbone_config=encoder, token_head_depth=0, odd_size_mode=mode, num_labels=3)
        model = RegProxyForSemanticSegmentation(config).eval()
        with torch.no_grad():
            outputs = model(images)
        assert outputs.logits.shape == (1, 3, *size)
        assert outputs.affinity.shape == (1, 9, 4, 4, 2, 3)


def test_released_weight_decay():
    encoder = PlainViTConfig(**TINY, image_size=64, use_distillation_token=True)
    model = RegProxyForSemanticSegmentation(RegProxyConfig(backbone_config=encoder, token_head_depth=1))
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {g["weight_decay"]: {names[p] for p in g["params"]} for g in model.get_optimizer_param_groups(6e-5, 0.01)}
    assert all(group["lr"] == 6e-5 for group in model.get_optimizer_param_groups(6e-5, 0.01))
    norms = {
        f"backbone.encoder.layers.{i}.layernorm_{w}.{p}"
        for i in (0, 1)
        for w in ("before", "after")
        for p in ("weight", "bias")
    }
    tokens = {f"backbone.embeddings.{name}" for name in ("cls_token", "distillation_token", "position_embeddings")}
    assert groups[0.0] == norms | tokens | {"backbone.layernorm.weight", "backbone.layernorm.bias"}
    assert {"decoder.affinity_head.spatial_conv.normalization.weight", "decoder.classifier.bias"} <= groups[0.01]


def test_initialization():
    torch.manual_seed(0)
    encoder = PlainViTConfig(hidden_size=192, num_hidden_layers=1, num_attention_heads=3, image_size=64)
    model = RegProxyForSemanticSegmentation(RegProxyConfig(backbone_config=encoder, token_head_depth=1))
    head = model.decoder.affinity_head
    assert model.decoder.classifier.weight.std().item() == pytest.approx(0.02, rel=0.15)
    # He: the fan out of a depth-wise convolution is counted over all its outputs
    for conv, fan_out in ((head.spatial_conv.convolution, 9 * 192), (head.predictor, 144)):
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    assert not head.predictor.bias.any()
    assert (head.spatial_conv.normalization.weight == 1).all()
    assert (head.spatial_conv.normalization.running_var == 1).all()


def test_defaults_are_those_of_the_released_code():
    config = RegProxyConfig()
    assert config.num_labels == 150
    assert (config.token_head_depth, config.cell_size, config.affinity_conv) == (5, (4, 4), "depthwise")
    assert (config.loss_reduction, config.homogeneity_loss_weight) == ("pixel_mean", 0.0)
    assert (config.small_image_mode, config.mask_border) == ("pad", True)
    backbone = config.backbone_config
    assert (backbone.hidden_size, backbone.num_hidden_layers, backbone.num_attention_heads) == (768, 12, 12)
    assert (backbone.layer_norm_eps, backbone.position_embedding_interpolation) == (1e-6, "bicubic")
    assert (backbone.drop_path_rate, backbone.use_distillation_token) == (0.1, True)
    assert backbone.out_features == ["stage5", "stage12"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_head_depth": 13}, r"`token_head_depth` \(13\) must be from 0 to 12"),
        ({"token_head_depth": -1}, r"`token_head_depth` \(-1\) must be from 0 to 12"),
        ({"classifier_layers": [6, 13]}, r"`classifier_layers` \(\[6, 13\]\) must be from 1 to 12"),
        ({"classifier_layers": [6, 6]}, "each layer once"),
        ({"classifier_layers": []}, "each layer once"),
        ({"region_resolution": 0}, "`region_resolution` must be .* at least 1"),
        ({"region_resolution": [4, 4, 4]}, "`region_resolution` must be an integer or"),
        ({"num_labels": 0}, "`num_labels` must be at least 1"),
        ({"affinity_conv": "3x3"}, "'depthwise', 'plain', 'none'"),
        ({"odd_size_mode": "pad"}, "'crop', 'resize'"),
        ({"loss_reduction": "mean"}, "'pixel_mean', 'valid_mean'"),
    ],
)
def test_bad_config(fields, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        RegProxyConfig(**fields)
