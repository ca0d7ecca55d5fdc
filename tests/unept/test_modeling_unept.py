# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import copy
import logging

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import ResNetConfig, SwinConfig, Trainer, TrainingArguments

from common.model_tester import TINY, TINY_RESNET_V1C, TINY_UNEPT, SegmentationModelTester, random_images, random_labels
from hf_segmodels import PlainViTConfig, ResNetV1cConfig, UNEPTConfig, UNEPTForSemanticSegmentation
from hf_segmodels.inference import dense_prediction
from hf_segmodels.sparse_attention import SparseAttention
from hf_segmodels.unept import compute_boundary_targets, refine


SMALL = {**TINY_UNEPT, "image_size": 64}
WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def tiny_vit(**overrides) -> PlainViTConfig:
    return PlainViTConfig(**TINY, image_size=64, final_norm="none", **overrides)


def tiny_resnet() -> ResNetV1cConfig:
    return ResNetV1cConfig(**TINY_RESNET_V1C)


class UNEPTTester(SegmentationModelTester):
    model_class = UNEPTForSemanticSegmentation
    config_class = UNEPTConfig
    without_dropout = WITHOUT_DROPOUT

    def config(self, **overrides):
        overrides.setdefault("backbone_config", tiny_vit(out_indices=[1, 2]))
        return super().config(**{**SMALL, **overrides})

    def model(self, **overrides):
        model = super().model(**overrides)
        # an untrained head predicts no boundary: give it scores around 0.5 with a std of 1
        head, weight = model.boundary_head, model.boundary_head.classifier.weight
        with torch.no_grad():
            context = model.spatial_branch(random_images(1, model.spatial_branch.convolutions[0].in_channels, 64, 64))
            weight /= head(context).std()
            features = head.norm(head.convolution(context)).relu()
            weight += ((0.5 - head(context).mean((0, 2, 3))) / features.sum(1).mean())[:, None, None, None]
        return model

    def logits_size(self, model, size):
        return size if model.config.refine_at_inference else (size[0] // 8, size[1] // 8)

    def exported_logits(self, model, images):
        return model(images).logits if model.config.refine_at_inference else super().exported_logits(model, images)

    @pytest.mark.slow
    def test_runs_in_onnx_runtime(self, exported):
        super().test_runs_in_onnx_runtime(exported)

    def trainer(self, model, output_dir, **arguments) -> Trainer:
        # batch norm and class weights see the batch: equal samples make a batch of 2 equal one of 8
        sample = {"pixel_values": random_images(3, 32, 32), "labels": random_labels(self.num_labels, 32, 32)}
        defaults = {"learning_rate": 1e-2, "use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 0}
        settings = TrainingArguments(output_dir, **{**defaults, **arguments})
        return Trainer(model=model, args=settings, train_dataset=[sample] * 8)


class TestUNEPT(UNEPTTester):
    # one of the four belongs to the everyday tests
    test_runs_in_onnx_runtime = SegmentationModelTester.test_runs_in_onnx_runtime

    def test_outputs_have_the_shapes_they_are_known_for(self):
        model = self.model()
        with torch.no_grad():
            outputs = model(random_images(2, 3, 64, 96))
        assert outputs.logits.shape == (2, 5, 64, 96)
        assert outputs.boundary_logits.shape == (2, 2, 8, 12)
        assert outputs.direction_logits.shape == (2, 8, 8, 12)

    def test_refined_logits_are_the_coarse_ones_refined(self):
        model = self.model()
        images = random_images(1, 3, 64, 96)
        with torch.no_grad():
            refined = model(images)
            model.config.refine_at_inference = False
            coarse = model(images)
        assert coarse.logits.shape == (1, 5, 8, 12)
        full = nn.functional.interpolate(coarse.logits, size=(64, 96), mode="bilinear", align_corners=False)
        expected = refine(full, coarse.boundary_logits, coarse.direction_logits)
        torch.testing.assert_close(refined.logits, expected)
        moved = (refined.logits != full).any(1).float().mean()
        assert 0.1 < moved < 0.9

    def test_a_training_step_leaves_scores_as_coarse_as_they_are(self):
        model, images = self.model(), random_images(2, 3, 64, 96)
        labels = random_labels(self.num_labels, 2, 64, 96)
        assert model(images, labels=labels).logits.shape == (2, 5, 64, 96)
        model.train()
        assert model(images).logits.shape == (2, 5, 64, 96)
        assert model(images, labels=labels).logits.shape == (2, 5, 8, 12)

    def test_the_decoder_attends_to_sampled_points_only(self):
        model = self.model()
        assert isinstance(model.decoder.layers[0].self_attention, SparseAttention)
        assert not any("qkv" in name for name, _ in model.decoder.named_parameters())

    def test_query_embeddings_fit_every_size(self):
        model = self.model(image_size=[64, 96])
        assert torch.equal(model.decoder.interpolate_query_embeddings(8, 12), model.decoder.query_embeddings)
        grid = model.decoder.query_embeddings.T.unflatten(1, (8, 12))[None]
        expected = nn.functional.interpolate(grid, size=(4, 10), mode="bilinear", align_corners=False)[0].flatten(1).T
        torch.testing.assert_close(model.decoder.interpolate_query_embeddings(4, 10), expected)

    def test_targets_from_the_processor_equal_those_made_on_the_way(self):
        model = self.model()
        images, labels = random_images(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.long)
        labels[0, :, 20:], labels[1, 40:] = 1, 2
        labels[:, :2] = 255
        distances, angles = (torch.stack(maps) for maps in zip(*map(compute_boundary_targets, labels), strict=True))
        with torch.no_grad():
            given = model(images, labels=labels, distance_maps=distances, angle_maps=angles).loss
            torch.testing.assert_close(model(images, labels=labels).loss, given)
            other = model(images, labels=labels, distance_maps=distances + 9, angle_maps=angles).loss
        assert given != other

    @pytest.mark.slow
    def test_training_compiles_with_targets_from_the_processor(self):
        model, images, labels = self.model(), random_images(1, 3, 64, 64), random_labels(self.num_labels, 1, 64, 64)
        targets = dict(
            zip(("distance_maps", "angle_maps"), (t[None] for t in compute_boundary_targets(labels[0])), strict=True)
        )
        torch.compiler.reset()
        compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")
        expected = model(images, labels=labels, **targets).loss
        torch.testing.assert_close(compiled(images, labels=labels, **targets).loss, expected, atol=1e-5, rtol=1e-5)

    def test_autocast_gives_a_float32_loss_close_to_the_exact_one(self):
        model, images, labels = self.model(), random_images(1, 3, 64, 64), random_labels(self.num_labels, 1, 64, 64)
        expected = model(images, labels=labels).loss
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(images, labels=labels).loss
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected, atol=0, rtol=0.02)
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())

    def test_losses_are_weighted_as_the_config_says(self):
        images, labels = random_images(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.long)
        labels[:, 20:, 30:] = 1
        weights = ("coarse_loss_weight", "refined_loss_weight", "boundary_loss_weight", "direction_loss_weight")
        terms = []
        for chosen in weights:
            model = self.model(**{name: float(name == chosen) for name in weights})
            terms.append(model(images, labels=labels).loss.item())
        paper = dict(zip(weights, (1, 1.5, 3, 0.7), strict=True))
        loss = self.model(**paper)(images, labels=labels).loss.item()
        assert loss == pytest.approx(sum(w * term for w, term in zip(paper.values(), terms, strict=True)), rel=1e-5)
        assert min(terms) > 0
        assert len(set(terms)) == 4

    def test_mean_over_valid_pixels(self):
        images, labels = random_images(1, 3, 64, 64), random_labels(self.num_labels, 1, 64, 64)
        labels[:, :48] = 255
        only_coarse = {"refined_loss_weight": 0, "boundary_loss_weight": 0, "direction_loss_weight": 0}
        over_all = self.model(**only_coarse)(images, labels=labels).loss
        over_valid = self.model(semantic_loss_reduction="valid_mean", **only_coarse)(images, labels=labels).loss
        torch.testing.assert_close(over_valid, 4 * over_all)

    def test_boundaries_reach_as_far_as_the_config_says(self):
        images, labels = random_images(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.long)
        labels[..., 30:] = 1
        losses = {n: self.model(boundary_distance=n)(images, labels=labels).loss.item() for n in (2, 5)}
        assert losses[2] != losses[5]

    def test_spatial_branch_can_end_in_a_relu(self):
        images = random_images(1, 3, 64, 64)
        with torch.no_grad():
            context = self.model().spatial_branch(images)
            rectified = self.model(spatial_final_activation=True).spatial_branch(images)
        assert context.min() < 0
        assert torch.equal(rectified, context.relu())

    def test_whole_encoder_levels_and_strides(self):
        swin = SwinConfig(
            embed_dim=16,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            image_size=64,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        resnet = ResNetConfig(
            embedding_size=8, hidden_sizes=[16, 16, 24, 32], depths=[1, 1, 1, 1], out_features=["stage2", "stage4"]
        )
        for backbone_config, num_levels in ((swin, 4), (resnet, 2), (tiny_resnet(), 3), (tiny_vit(), 1)):
            model = self.model(backbone_config=backbone_config)
            assert model.encoder.level_embeddings.shape[0] == num_levels
            outputs = model(random_images(2, 3, 70, 90), labels=random_labels(self.num_labels, 2, 70, 90))
            assert outputs.logits.shape == (2, 5, 70, 90)
            outputs.loss.backward()
            assert all(parameter.grad.abs().sum() > 0 for parameter in model.projections.parameters())

    def test_levels_that_disagree(self):
        with pytest.raises(ValueError, match=r"is 3, but the encoder returns 2 feature maps \(stage1, stage2\)"):
            self.model(num_feature_levels=3)

    @pytest.mark.parametrize("name", ["distance_maps", "angle_maps"])
    def test_targets_of_another_size_or_missing(self, name):
        model, images, labels = self.model(), random_images(1, 3, 64, 64), random_labels(self.num_labels, 1, 64, 64)
        maps = {"distance_maps": labels, "angle_maps": labels, name: labels[:, :32]}
        with pytest.raises(ValueError, match=rf"`{name}` \(1, 32, 64\) must have the shape of `labels`"):
            model(images, labels=labels, **maps)
        with pytest.raises(ValueError, match="need both `distance_maps` and `angle_maps`"):
            model(images, labels=labels, **{name: labels})

    def test_merged_windows_of_refined_scores(self):
        model = self.model(window_size=32, window_stride=20, small_image_mode="pad").eval()
        images = random_images(2, 3, 50, 70)
        with torch.no_grad():
            # what the windows give, one by one
            total, count = torch.zeros(2, 5, 50, 70), torch.zeros(50, 70)
            for top in (0, 18):
                for left in (0, 20, 38):
                    crop = images[..., top : top + 32, left : left + 32]
                    total[..., top : top + 32, left : left + 32] += model(crop).logits
                    count[top : top + 32, left : left + 32] += 1
            expected = total / count
            merged = torch.stack(model.predict(images, return_scores=True))
            torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(model(images).logits, expected, atol=1e-5, rtol=1e-5)

            sizes = [(64, 41), (33, 100)]
            scores = model.predict(images, target_sizes=sizes, return_scores=True)
            labels = model.predict(images, target_sizes=sizes)
            for index, size in enumerate(sizes):
                resized = nn.functional.interpolate(expected[index : index + 1], size=size, mode="bilinear")[0]
                torch.testing.assert_close(scores[index], resized, atol=1e-5, rtol=1e-5)
                assert (labels[index] == resized.argmax(0)).float().mean() > 0.999

            mirrored = dense_prediction(model, [images.flip(-1)], [True], [(50, 70)] * 2, return_scores=True)
            slid = model(images.flip(-1)).logits.flip(-1)
            torch.testing.assert_close(torch.stack(mirrored), slid, atol=1e-5, rtol=1e-5)

            small = images[..., :20, :]
            padded = nn.functional.pad(small, (0, 0, 0, 12))
            scores = model.predict(small, return_scores=True)[0]
            torch.testing.assert_close(scores, model.predict(padded, return_scores=True)[0][:, :20])

    def test_bands_of_rows_do_not_change_labels(self, monkeypatch):
        model, images = self.model(), random_images(1, 3, 64, 64)
        expected = model.predict(images, target_sizes=[(100, 90)])
        monkeypatch.setattr("hf_segmodels.unept.refined_scores._BAND", 5 * 90 * 7)
        assert torch.equal(model.predict(images, target_sizes=[(100, 90)])[0], expected[0])

    def test_batch_norms_get_their_gradients_from_a_single_image(self):
        # torch's batch norm on CPUs mistakes the layout of some gradients of a batch of one
        model = self.model(backbone_config=tiny_resnet()).train()
        gradients = {}

        def record(name):
            def keep(gradient):
                gradients[name] = gradient.double().sum((0, 2, 3))

            return lambda module, inputs, output: output.register_hook(keep) and None

        norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
        for name, module in norms.items():
            module.register_forward_hook(record(name))
        model(random_images(1, 3, 64, 64), labels=random_labels(self.num_labels, 1, 64, 64)).loss.backward()
        for name, module in norms.items():
            torch.testing.assert_close(module.bias.grad.double(), gradients[name], atol=1e-5, rtol=1e-4, msg=name)


class TestUNEPTWithoutRefinement(UNEPTTester):
    def config(self, **overrides):
        return super().config(refine_at_inference=False, **overrides)


class TestUNEPTDense(UNEPTTester):
    def config(self, **overrides):
        return super().config(decoder_self_attention="dense", **overrides)

    def test_attention_dropout(self):
        attention = self.model().decoder.layers[0].self_attention
        attention.attention_dropout = 0.5
        queries = torch.randn(1, 10, 32)
        assert torch.equal(attention(queries)[0], attention(queries)[0])
        attention.train()
        assert not torch.allclose(attention(queries)[0], attention(queries)[0])


class TestUNEPTOnResNet(UNEPTTester):
    def config(self, **overrides):
        return super().config(**{"backbone_config": tiny_resnet(), **overrides})

    def test_output_flags_of_the_config(self, tmp_path):
        self.model().save_pretrained(tmp_path)
        loaded = UNEPTForSemanticSegmentation.from_pretrained(
            tmp_path, output_attentions=True, output_hidden_states=True
        )
        with torch.no_grad():
            outputs = loaded(random_images(1, 3, 64, 64))
        assert outputs.attentions is None  # there are none
        assert len(outputs.hidden_states) == 5


def released_model(**overrides) -> UNEPTForSemanticSegmentation:
    torch.manual_seed(0)
    fields = {"decoder_self_attention": "across_batch", "backbone_config": tiny_vit(), **overrides}
    return UNEPTForSemanticSegmentation(UNEPTConfig(num_labels=5, **SMALL, **WITHOUT_DROPOUT, **fields)).eval()


@pytest.mark.parametrize("self_attention", ["dense", "across_batch"])
def test_self_attention_is_multi_head_attention_over_queries_or_over_the_batch(self_attention):
    layer = released_model(decoder_self_attention=self_attention).decoder.layers[0]
    attention = layer.self_attention
    expected = nn.MultiheadAttention(32, 4, batch_first=self_attention == "dense")
    weights = [attention.qkv.weight, attention.qkv.bias, attention.o_proj.weight, attention.o_proj.bias]
    names = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
    expected.load_state_dict(dict(zip(names, weights, strict=True)))
    queries = torch.randn(3, 10, 32)
    found = layer.attend_to_queries(queries, points=None, query_shape=None)
    torch.testing.assert_close(found, expected(queries, queries, queries)[0], atol=1e-5, rtol=1e-5)


def test_released_mode_mixes_images_and_says_so(caplog):
    from hf_segmodels.unept import modeling_unept

    modeling_unept.logger.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        model = released_model()
    assert "attends over the images of a batch" in caplog.text
    images = random_images(2, 3, 64, 64)
    with torch.no_grad():
        together = model(images).logits
        alone = torch.cat([model(image[None]).logits for image in images])
    assert (together - alone).abs().max() > 1e-3


@pytest.mark.parametrize("refine_at_inference", [False, True])
def test_released_mode_never_mixes_windows(refine_at_inference):
    model = released_model(window_size=32, window_stride=16, refine_at_inference=refine_at_inference)
    image = random_images(1, 3, 64, 64)
    seen = []
    forward = model.decoder.forward
    model.decoder.forward = lambda context, *inputs: (seen.append(len(context)), forward(context, *inputs))[1]
    with torch.no_grad():
        model.predict(image)
        assert seen == [1] * 9
        # images of a batch attend to each other, as in the original, whatever the number of windows
        seen.clear()
        model.predict(torch.cat([image, image, image]), max_windows=5)
    assert seen == [3] * 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 36, "num_attention_heads": 8}, "multiple of `num_attention_heads`"),
        ({"hidden_size": 6, "num_attention_heads": 2}, "and of 4"),
        ({"image_size": 100}, r"`image_size` \(100\) must be a multiple of 8, such as \[96, 96\]"),
        ({"image_size": [64, 4]}, r"must be a multiple of 8, such as \[64, 8\]"),
        ({"num_points": 0}, "`num_points` must be at least 1"),
        ({"num_feature_levels": 0}, "`num_feature_levels` must be at least 1"),
        ({"spatial_hidden_sizes": [8]}, "after the first and second convolution"),
        ({"decoder_self_attention": "full"}, "'sparse', 'dense', 'across_batch'"),
        ({"semantic_loss_reduction": "sum"}, "'pixel_mean', 'valid_mean'"),
    ],
)
def test_bad_config(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        UNEPTConfig(**fields)


def test_defaults_are_the_papers_model_with_the_released_losses():
    config = UNEPTConfig()
    assert (config.decoder_self_attention, config.refine_at_inference) == ("sparse", True)
    weights = ("coarse_loss_weight", "refined_loss_weight", "boundary_loss_weight", "direction_loss_weight")
    assert [getattr(config, name) for name in weights] == [0.8, 1.0, 5.0, 0.6]
    assert (config.semantic_loss_reduction, config.ignore_unlabeled_boundaries) == ("pixel_mean", False)
    backbone = config.backbone_config
    assert (backbone.out_indices, backbone.image_size, backbone.use_distillation_token) == ([4, 8, 12], 480, True)
    assert (config.num_points, config.num_attention_heads, config.hidden_size, config.query_grid) == (
        16,
        8,
        256,
        (60, 60),
    )


@pytest.mark.parametrize(
    ("backbone_config", "self_attention", "millions"),
    [
        (None, "across_batch", 94.842326),
        (None, "sparse", 94.842326 + 2 * (2 * 65792 + 65792 + 32896 - 263168) / 1e6),
        (ResNetV1cConfig(out_indices=[2, 3, 4]), "across_batch", 32.357942),
    ],
)
def test_number_of_parameters(backbone_config, self_attention, millions):
    with torch.device("meta"):
        config = UNEPTConfig(backbone_config=backbone_config, decoder_self_attention=self_attention)
        model = UNEPTForSemanticSegmentation(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == round(millions * 1e6)


def test_the_encoder_learns_at_a_tenth_of_the_rate_and_everything_decays():
    model = released_model()
    slow, fast = sorted(model.get_optimizer_param_groups(1e-4, 1e-4), key=lambda group: group["lr"])
    assert (slow["lr"], fast["lr"]) == (pytest.approx(1e-5), 1e-4)
    assert slow["weight_decay"] == fast["weight_decay"] == 1e-4
    assert [id(parameter) for parameter in slow["params"]] == [id(p) for p in model.backbone.parameters()]


def test_new_self_attention_for_a_released_checkpoint(tmp_path):
    released_model().save_pretrained(tmp_path)
    model, info = UNEPTForSemanticSegmentation.from_pretrained(
        tmp_path, decoder_self_attention="sparse", output_loading_info=True
    )
    assert all("self_attention" in name for name in (*info["missing_keys"], *info["unexpected_keys"]))
    offsets = model.decoder.layers[0].self_attention.sampling_offsets
    assert (offsets.weight.abs().max(), offsets.bias.abs().max()) == (0, SMALL["num_points"])


def test_initialization():
    torch.manual_seed(0)
    model = UNEPTForSemanticSegmentation(UNEPTConfig(backbone_config=tiny_vit(), image_size=320)).eval()
    for embeddings in (model.decoder.query_embeddings, model.encoder.level_embeddings):
        assert embeddings.std().item() == pytest.approx(1, abs=0.1)
    layer = model.encoder.layers[0]
    assert layer.attention.sampling_offsets.weight.abs().max() == 0
    assert layer.attention.sampling_offsets.bias.abs().max() == 16
    bound = (6 / (256 + 2048)) ** 0.5
    assert 0.99 * bound < layer.feed_forward.fc1.weight.abs().max() <= bound
    assert layer.attention.attention_weights.weight.abs().max() == 0
    convolution = model.boundary_head.convolution.weight
    assert 0.99 * 256**-0.5 < convolution.abs().max() <= 256**-0.5
