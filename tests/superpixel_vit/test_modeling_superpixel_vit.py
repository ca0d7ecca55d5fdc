# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import copy
import io
import sys

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForSemanticSegmentation, Dinov2Config, Trainer, TrainingArguments

from common.model_tester import TINY, random_images, random_labels
from hf_segmodels import PlainViTBackbone, PlainViTConfig, SuperpixelViTConfig, SuperpixelViTForSemanticSegmentation
from hf_segmodels.conversion import load_backbone_weights
from hf_segmodels.inference.region_painting import paint_labels, paint_scores, resize_regions
from hf_segmodels.superpixel_vit.modeling_superpixel_vit import (
    crop_superpixels,
    superpixel_geometry,
    superpixel_soft_labels,
)


NUM_LABELS = 5


def make_model(**fields) -> SuperpixelViTForSemanticSegmentation:
    encoder = {**TINY, "image_size": 64, "position_embedding_interpolation": "bilinear", **fields.pop("encoder", {})}
    config = SuperpixelViTConfig(backbone_config=PlainViTConfig(**encoder), num_labels=NUM_LABELS, **fields)
    torch.manual_seed(0)
    return SuperpixelViTForSemanticSegmentation(config).eval()


def patches(batch_size: int, height: int, width: int, side: int = 16) -> torch.Tensor:
    """The patches of a plain ViT as superpixels."""
    rows, columns = torch.arange(height) // side, torch.arange(width) // side
    return (rows[:, None] * (width // side) + columns).expand(batch_size, -1, -1)


def cells(number: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Irregular superpixels `(1, height, width)`: the pixels nearest to each of some random points."""
    points = torch.rand(number, 2, generator=torch.Generator().manual_seed(seed)) * torch.tensor([height, width])
    pixels = torch.cartesian_prod(torch.arange(height), torch.arange(width)).float()
    nearest = torch.cdist(pixels, points).argmin(dim=1)
    return nearest.unique(return_inverse=True)[1].view(1, height, width)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images whose numbers of superpixels differ; the second has padding and no superpixel number 3."""
    superpixels = torch.full((2, 64, 80), -1)
    superpixels[0] = cells(30, 64, 80)
    superpixels[1, :50, :70] = cells(17, 50, 70, seed=1)
    superpixels[1][superpixels[1] == 3] = 4
    return random_images(2, 3, 64, 80), superpixels


# The method


class TestTokens:
    @pytest.mark.parametrize("sampling_ratio", [0, 1])
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("size", [(64, 64), (96, 160)])
    def test_patches_as_superpixels_give_the_tokens_of_the_plain_vit(self, size, interpolation, sampling_ratio):
        encoder = {"position_embedding_interpolation": interpolation, "use_distillation_token": True}
        model = make_model(encoder=encoder, roi_align_sampling_ratio=sampling_ratio)
        images = random_images(2, 3, *size)
        with torch.no_grad():
            features = model.backbone(images).feature_maps[-1].flatten(2).transpose(1, 2)
            outputs = model(images, patches(2, *size))
            torch.testing.assert_close(outputs.token_logits, model.classifier(features), atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("final_norm", ["last", "all", "none"])
    def test_earlier_layers_as_for_the_plain_vit(self, final_norm):
        model = make_model(encoder={"out_features": ["stage1"], "final_norm": final_norm})
        images = random_images(1, 3, 64, 64)
        with torch.no_grad():
            features = model.backbone(images).feature_maps[-1].flatten(2).transpose(1, 2)
            token_logits = model(images, patches(1, 64, 64)).token_logits
            torch.testing.assert_close(token_logits, model.classifier(features), atol=1e-6, rtol=1e-6)

    def test_geometry_against_a_loop(self, batch):
        _, superpixels = batch
        boxes, centroids, is_present = superpixel_geometry(superpixels, 30)
        for image in range(2):
            for number in range(30):
                y, x = (superpixels[image] == number).nonzero().unbind(1)
                assert is_present[image, number] == (len(x) > 0)
                if len(x) > 0:
                    box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
                    assert boxes[image, number].tolist() == [int(side) for side in box]
                    centroid = torch.stack([x.double().mean(), y.double().mean()]).float() + 0.5
                    torch.testing.assert_close(centroids[image, number], centroid)
        assert not is_present[1, 3]
        assert not is_present[1, 17:].any()

    def test_larger_boxes_shrink_to_the_patch_size(self):
        image = random_images(1, 3, 48, 48)
        box, size = torch.tensor([[[0, 0, 48, 48]]]), torch.tensor([[48, 48]])
        # every third pixel lies in the middle of nine
        torch.testing.assert_close(crop_superpixels(image, box, size, 16, 1), image[:, :, 1::3, 1::3])
        torch.testing.assert_close(crop_superpixels(image, box, size, 16, 0), nn.functional.avg_pool2d(image, 3))
        wide = torch.tensor([[[0, 8, 32, 24]]])
        expected = nn.functional.interpolate(image[:, :, 8:24, :32], (16, 16), mode="bilinear", align_corners=False)
        torch.testing.assert_close(crop_superpixels(image, wide, size, 16, 1), expected)

    def test_sampling_ratio_of_the_config_is_used(self, batch):
        with torch.no_grad():
            one, adaptive = (make_model(roi_align_sampling_ratio=ratio)(*batch).token_logits for ratio in (1, 0))
        assert not torch.allclose(one, adaptive, atol=1e-4)

    def test_numbering_does_not_matter(self, batch):
        images, superpixels = batch[0][:1], batch[1][:1]
        order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
        model = make_model()
        with torch.no_grad():
            outputs, renumbered = model(images, superpixels), model(images, order[superpixels])
        torch.testing.assert_close(renumbered.token_logits[:, order], outputs.token_logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(renumbered.logits, outputs.logits, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(
        "implementation", ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)]
    )
    def test_an_image_alone_equals_it_padded_in_a_batch(self, batch, implementation):
        images, superpixels = batch
        model = make_model()
        model.set_attn_implementation(implementation)
        labels = random_labels(NUM_LABELS, 2, 64, 80)
        with torch.no_grad():
            together = model(images, superpixels)
            alone = model(images[1:, :, :50, :70], superpixels[1:, :50, :70], labels=labels[1:, :50, :70])
            padded = model(images[1:], superpixels[1:], labels=labels[1:])
        assert together.token_logits.shape[1] == 30
        assert alone.token_logits.shape[1] == 17
        torch.testing.assert_close(together.token_logits[1:, :17], alone.token_logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.logits[1:, :, :50, :70], alone.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(padded.loss, alone.loss)
        assert (together.token_logits[1, 17:] == 0).all()

    def test_absent_superpixels_get_no_attention(self, batch):
        model = make_model()
        model.set_attn_implementation("eager")
        with torch.no_grad():
            outputs = model(*batch, output_attentions=True, output_hidden_states=True)
        assert [tuple(attention.shape) for attention in outputs.attentions] == [(2, 2, 31, 31)] * 2
        assert [tuple(states.shape) for states in outputs.hidden_states] == [(2, 31, 32)] * 3
        for attention in outputs.attentions:
            torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
            assert (attention[1, :, :, [4, *range(18, 31)]] == 0).all()
            assert (attention[0] > 0).all()

    def test_a_fixed_number_of_tokens_changes_nothing(self, batch):
        with torch.no_grad():
            expected, outputs = make_model()(*batch), make_model(max_superpixels=40)(*batch)
        assert outputs.token_logits.shape == (2, 40, NUM_LABELS)
        torch.testing.assert_close(outputs.token_logits[:, :30], expected.token_logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-5, rtol=1e-5)

    def test_weights_of_a_plain_vit_load(self, tmp_path):
        model = make_model()
        torch.manual_seed(1)
        encoder = PlainViTBackbone(model.config.backbone_config).eval()
        encoder.save_pretrained(tmp_path)
        load_backbone_weights(model, tmp_path)
        for name, parameter in encoder.named_parameters():
            assert torch.equal(model.backbone.get_parameter(name), parameter), name


class TestPainting:
    def test_each_pixel_has_the_scores_of_its_superpixel(self, batch):
        images, superpixels = batch
        with torch.no_grad():
            outputs = make_model()(images, superpixels)
        for image, y, x in [(0, 0, 0), (0, 63, 79), (1, 20, 33), (1, 49, 69)]:
            number = superpixels[image, y, x]
            assert torch.equal(outputs.logits[image, :, y, x], outputs.token_logits[image, number])
        assert (outputs.logits[1, :, 50:] == 0).all()
        assert (outputs.logits[1, :, :, 70:] == 0).all()
        assert torch.equal(outputs.superpixels, superpixels)

    @pytest.mark.parametrize("size", [(64, 80), (200, 133), (9, 11)])
    def test_labels_are_those_of_painted_scores(self, batch, size):
        _, superpixels = batch
        scores, regions = torch.randn(2, 30, NUM_LABELS), resize_regions(superpixels, size)
        assert torch.equal(paint_labels(scores, regions), paint_scores(scores, regions).argmax(dim=1))
        assert regions.shape == (2, *size)

    def test_regions_grow_to_whole_blocks(self, batch):
        _, superpixels = batch
        grown = resize_regions(superpixels, (192, 240))
        assert torch.equal(grown, superpixels.repeat_interleave(3, dim=1).repeat_interleave(3, dim=2))


class TestPredict:
    def test_labels_and_scores_of_forward(self, batch):
        model = make_model()
        with torch.no_grad():
            logits = model(*batch).logits
        images, superpixels = batch
        assert torch.equal(torch.stack(model.predict(images, superpixels=superpixels)), logits.argmax(dim=1))
        scores = model.predict(images, superpixels=superpixels, return_scores=True)
        torch.testing.assert_close(torch.stack(scores), logits)

    def test_target_sizes(self, batch):
        images, superpixels = batch
        sizes, model = [(100, 90), (31, 200)], make_model()
        labels = model.predict(images, sizes, superpixels=superpixels)
        scores = model.predict(images, torch.tensor(sizes), superpixels=superpixels, return_scores=True)
        for label_map, score, size in zip(labels, scores, sizes, strict=True):
            assert score.shape == (NUM_LABELS, *size)
            assert torch.equal(score.argmax(dim=0), label_map)

    def test_mode_is_given_back(self, batch):
        model = make_model(encoder={"hidden_dropout_prob": 0.5}, freeze_backbone=True).train()
        first, second = (model.predict(batch[0], superpixels=batch[1], return_scores=True)[0] for _ in range(2))
        assert torch.equal(first, second)
        assert (model.training, model.backbone.training) == (True, False)

    @pytest.mark.parametrize(
        "options", [{"window_size": 32}, {"window_stride": 32}, {"scales": (0.5, 1.0)}, {"flip": True}]
    )
    def test_options_of_the_other_models(self, batch, options):
        with pytest.raises(ValueError, match="leave `window_size`, `window_stride`, `scales` and `flip` out"):
            make_model().predict(batch[0], superpixels=batch[1], **options)

    @pytest.mark.parametrize("sizes", [[(10, 10)], [(10, 10), (0, 5)]])
    def test_bad_target_sizes(self, batch, sizes):
        with pytest.raises(ValueError, match=r"`target_sizes` for a batch of 2 images must be"):
            make_model().predict(batch[0], sizes, superpixels=batch[1])


# Training


class TestLoss:
    def test_soft_labels_against_a_loop(self, batch):
        _, superpixels = batch
        labels = random_labels(NUM_LABELS, 2, 64, 80)
        labels[0][superpixels[0] == 7] = 255
        soft_labels = superpixel_soft_labels(superpixels, labels, 30, NUM_LABELS, ignore_index=255)
        for image in range(2):
            for number in range(30):
                inside = labels[image][superpixels[image] == number]
                inside = inside[inside != 255]
                expected = torch.bincount(inside, minlength=NUM_LABELS) / max(len(inside), 1)
                torch.testing.assert_close(soft_labels[image, number], expected)
        assert soft_labels[0, 7].sum() == 0
        assert soft_labels[0, 8].sum() > 0

    def test_mean_over_superpixels_with_valid_pixels(self, batch):
        images, superpixels = batch
        labels = random_labels(NUM_LABELS, 2, 64, 80)
        labels[0][superpixels[0] == 7] = 255
        outputs = make_model()(images, superpixels, labels=labels)
        losses = []
        for image in range(2):
            for number in superpixels[image].unique().tolist():
                inside = labels[image][(superpixels[image] == number) & (labels[image] != 255)]
                if number >= 0 and len(inside) > 0:
                    scores = outputs.token_logits[image, number].expand(len(inside), -1)
                    losses.append(nn.functional.cross_entropy(scores, inside))
        torch.testing.assert_close(outputs.loss, torch.stack(losses).mean())

    def test_padding_needs_no_ignored_labels(self, batch):
        images, superpixels = batch
        labels = random_labels(NUM_LABELS, 2, 64, 80)
        with torch.no_grad():
            loss = make_model()(images, superpixels, labels=labels).loss
            labels[superpixels < 0] = 255
            torch.testing.assert_close(make_model()(images, superpixels, labels=labels).loss, loss)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
    def test_labels_of_any_integer_type(self, batch, dtype):
        model, labels = make_model(), random_labels(NUM_LABELS, 2, 64, 80)
        with torch.no_grad():
            expected = model(*batch, labels=labels).loss
            torch.testing.assert_close(model(*batch, labels=labels.to(dtype)).loss, expected)

    def test_all_ignored_labels(self, batch):
        model = make_model().train()
        loss = model(*batch, labels=torch.full((2, 64, 80), 255)).loss
        loss.backward()
        assert loss.item() == 0.0
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())

    def test_logits_are_painted_unless_only_the_loss_is_wanted(self, batch):
        model, labels = make_model(), random_labels(NUM_LABELS, 2, 64, 80)
        with torch.no_grad():
            assert model(*batch, labels=labels).logits.shape == (2, NUM_LABELS, 64, 80)
            assert model.train()(*batch).logits.shape == (2, NUM_LABELS, 64, 80)
            assert model(*batch, labels=labels).logits is None

    def test_the_loss_has_one_named_term(self, batch):
        with torch.no_grad():
            outputs = make_model()(*batch, labels=random_labels(NUM_LABELS, 2, 64, 80))
        assert list(outputs.loss_dict) == ["loss_ce"]
        assert torch.equal(outputs.loss, outputs.loss_dict["loss_ce"])

    def test_loss_of_a_few_steps_falls(self, batch):
        model, labels = make_model().train(), torch.zeros(2, 64, 80, dtype=torch.long)
        labels[:, 32:] = 1
        optimizer = torch.optim.AdamW(model.get_optimizer_param_groups(3e-3, 0.01))
        losses = []
        for _ in range(12):
            loss = model(*batch, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_gradient_checkpointing_gives_the_same_gradients(self, batch):
        model, labels = make_model().train(), random_labels(NUM_LABELS, 2, 64, 80)
        model(*batch, labels=labels).loss.backward()
        expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        model.zero_grad()
        model.gradient_checkpointing_enable()
        model(*batch, labels=labels).loss.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], msg=name)

    def test_position_embeddings_tokens_and_norms_do_not_decay(self):
        model = make_model()
        names = {parameter: name for name, parameter in model.named_parameters()}
        groups = {
            g["weight_decay"]: {names[p] for p in g["params"]} for g in model.get_optimizer_param_groups(1.0, 0.01)
        }
        assert groups[0.0] == {name for name in names.values() if "norm" in name} | {
            "backbone.embeddings.cls_token",
            "backbone.embeddings.position_embeddings",
        }
        assert "classifier.bias" in groups[0.01]

    def test_trainer_hands_over_superpixels(self, tmp_path, batch):
        images, superpixels = batch
        labels = random_labels(NUM_LABELS, 2, 64, 80)
        data = [
            {"pixel_values": image, "superpixels": regions, "labels": label_map}
            for image, regions, label_map in zip(images, superpixels, labels, strict=True)
        ]
        settings = TrainingArguments(tmp_path, max_steps=2, use_cpu=True, report_to=[], disable_tqdm=True)
        model = make_model()
        before = model.classifier.weight.clone()
        Trainer(model=model, args=settings, train_dataset=data).train()
        assert not torch.equal(model.classifier.weight, before)


# As part of transformers


def test_round_trip_through_the_auto_classes(tmp_path, batch):
    model = make_model(roi_align_sampling_ratio=0, max_superpixels=30)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(loaded) is SuperpixelViTForSemanticSegmentation
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is SuperpixelViTConfig
    assert (config.roi_align_sampling_ratio, config.max_superpixels) == (0, 30)
    with torch.no_grad():
        assert torch.equal(model(*batch).logits, loaded(*batch).logits)
        assert torch.equal(model(*batch, return_dict=False)[0], model(*batch).logits)


def test_bfloat16_stays_close(batch):
    images, superpixels = batch
    model = make_model()
    with torch.no_grad():
        expected = model(images, superpixels).token_logits
        token_logits = model.to(torch.bfloat16)(images.to(torch.bfloat16), superpixels).token_logits
    assert token_logits.dtype == torch.bfloat16
    assert (token_logits - expected).pow(2).mean().sqrt() < 0.05 * expected.std()


def test_compiles_without_graph_breaks_for_a_fixed_number(batch):
    model = make_model(max_superpixels=32)
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*batch).logits, model(*batch).logits, atol=1e-4, rtol=1e-4)


@pytest.fixture
def exported(batch):
    model = make_model(max_superpixels=32)
    dynamic = torch.export.Dim.DYNAMIC
    shapes = {"pixel_values": {0: dynamic, 2: dynamic, 3: dynamic}, "superpixels": {0: dynamic, 1: dynamic, 2: dynamic}}
    with torch.no_grad():
        return model, torch.export.export(model, batch, dynamic_shapes=shapes)


def test_exports_with_dynamic_sizes(exported):
    model, program = exported
    for size in ((64, 64), (40, 123)):
        images, superpixels = random_images(1, 3, *size), cells(20, *size)
        with torch.no_grad():
            logits = program.module()(images, superpixels).logits
            torch.testing.assert_close(logits, model(images, superpixels).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_runs_in_onnx_runtime(exported):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is part of the `dev` extra")
    model, program = exported
    buffer = io.BytesIO()
    torch.onnx.export(program, dynamo=True, verbose=False).save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue())
    for size in ((64, 64), (40, 123)):
        images, superpixels = random_images(2, 3, *size), cells(20, *size).repeat(2, 1, 1)
        with torch.no_grad():
            expected = model(images, superpixels).logits.numpy()
        names = [node.name for node in session.get_inputs()]
        inputs = dict(zip(names, (images.numpy(), superpixels.numpy()), strict=True))
        (logits,) = session.run([session.get_outputs()[0].name], inputs)
        np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
def test_gpu_agrees_with_cpu(batch):
    model, labels = make_model(), random_labels(NUM_LABELS, 2, 64, 80)
    with torch.no_grad():
        expected = model(*batch, labels=labels)
        inputs = (tensor.cuda() for tensor in (*batch, labels))
        outputs = model.cuda()(*inputs)
    torch.testing.assert_close(outputs.logits.cpu(), expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs.loss.cpu(), expected.loss, atol=1e-4, rtol=1e-4)


# Bad input


def test_missing_superpixels(batch):
    for call in (make_model(), make_model().predict):
        with pytest.raises(ValueError, match="`superpixels` are missing: pass all outputs of the image processor"):
            call(batch[0])


@pytest.mark.parametrize("change", [lambda maps: maps[:, 1:], lambda maps: maps[0], lambda maps: maps.float()])
def test_superpixels_that_do_not_fit(batch, change):
    with pytest.raises(ValueError, match=r"Expected integer `superpixels` with .* of `pixel_values` \(2, 3, 64, 80\)"):
        make_model()(batch[0], change(batch[1]))


def test_only_padding(batch):
    with pytest.raises(ValueError, match="number superpixels from 0"):
        make_model()(batch[0], torch.full_like(batch[1], -1))


def test_more_superpixels_than_allowed(batch):
    with pytest.raises(ValueError, match=r"30 superpixels but `max_superpixels` is 29.*`n_segments`"):
        make_model(max_superpixels=29)(*batch)


def test_wrong_number_of_channels(batch):
    with pytest.raises(ValueError, match=r"\(batch_size, 3, height, width\), got \(2, 4, 64, 80\).*num_channels"):
        make_model()(random_images(2, 4, 64, 80), batch[1])


def test_empty_batch():
    with pytest.raises(ValueError, match="holds no pixel"):
        make_model()(torch.empty(0, 3, 64, 64), torch.empty(0, 64, 64, dtype=torch.long))


def test_label_outside_the_classes(batch):
    labels = random_labels(NUM_LABELS, 2, 64, 80)
    labels[1, 7, 9] = 200
    with pytest.raises(ValueError, match=r"labels\[1\] holds .* 200; the first one, 200, at y=7, x=9"):
        make_model()(*batch, labels=labels)


def test_torchvision_is_named_where_it_is_missing(batch, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    with pytest.raises(ImportError, match="pip install torchvision"):
        make_model()(*batch)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_superpixels": 0}, "`max_superpixels` must be at least 1"),
        ({"roi_align_sampling_ratio": -1}, "`roi_align_sampling_ratio` must be at least 0"),
        ({"window_size": 64}, "there is no sliding window over superpixels"),
        ({"small_image_mode": "pad"}, "there is no sliding window over superpixels"),
        ({"backbone_config": Dinov2Config()}, "must be a `PlainViTConfig` with `stem_type='patch'`, got Dinov2Config"),
        ({"backbone_config": {"stem_type": "resnetv2", "patch_size": 32}}, "`stem_type='patch'`"),
        ({"backbone_config": {"position_embedding_resize_rule": "token_count"}}, "no patch grid"),
        ({"backbone_config": {"query_downsampling_layer": 1}}, "no grid to down-sample"),
    ],
)
def test_bad_config(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        SuperpixelViTConfig(**fields)


def test_defaults_are_the_model_of_the_paper():
    config = SuperpixelViTConfig()
    backbone = config.backbone_config
    assert (backbone.hidden_size, backbone.num_hidden_layers, backbone.patch_size) == (768, 12, 16)
    assert (backbone.position_embedding_interpolation, config.num_labels) == ("bilinear", 150)
