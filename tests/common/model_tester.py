# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The tests that every model of the package has to pass. A new model's test names its classes and a tiny config."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    BeitConfig,
    Dinov2Config,
    DINOv3ViTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SwinConfig,
    Trainer,
    TrainingArguments,
)

from hf_segmodels import PlainViTConfig


TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_RESNET_V1C = {
    "embedding_size": 8,
    "hidden_sizes": [16, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "out_features": ["stage2", "stage3", "stage4"],
}
# what follows the encoder
TINY_SEGVIT = {"decoder_hidden_size": 24, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 2}
TINY_UNEPT = {
    "hidden_size": 32,
    "encoder_num_hidden_layers": 1,
    "decoder_num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_points": 2,
    "intermediate_size": 64,
    "spatial_hidden_sizes": [8, 16],
}
TRANSFORMERS_BACKBONES = {
    "dinov2": lambda: Dinov2Config(**TINY, image_size=56, patch_size=14),
    "dinov3": lambda: DINOv3ViTConfig(**TINY, intermediate_size=64, out_features=["stage2"]),
    "beit": lambda: BeitConfig(**TINY, intermediate_size=64, image_size=64, out_features=["stage2"]),
    "swin": lambda: SwinConfig(
        embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, image_size=64, out_features=["stage4"]
    ),
}


def random_labels(num_labels: int, *shape: int, seed: int = 0) -> torch.Tensor:
    labels = torch.randint(0, num_labels, shape, generator=torch.Generator().manual_seed(seed))
    labels[..., :3, :5] = 255
    return labels


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class SegmentationModelTester:
    """Inherit from it, name it `Test...`, and set what is marked below."""

    model_class: type[PreTrainedModel]
    config_class: type[PreTrainedConfig]
    num_labels = 5

    def config(self, **overrides) -> PreTrainedConfig:
        """A tiny configuration without dropout, on a tiny `plain_vit` unless `backbone_config` is given."""
        overrides.setdefault("backbone_config", PlainViTConfig(**TINY, image_size=64))
        return self.config_class(num_labels=self.num_labels, **self.without_dropout, **overrides)

    without_dropout: dict[str, float] = {}
    learning_rate = 3e-3
    # fields without which the model has batch norms: their statistics depend on how a batch is split
    without_batch_norm: dict[str, str] = {}

    def logits_size(self, model: PreTrainedModel, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the logits of an image of whole patches."""
        return size[0] // model.size_divisor, size[1] // model.size_divisor

    # two cells of the coarsest feature map: a graph does not hold for a single row or column
    smallest_exported = 32

    def exported_logits(self, model: PreTrainedModel, images: torch.Tensor) -> torch.Tensor:
        """What an exported model gives for an image of no whole patches."""
        return model.decode(model.encode(images)).logits

    def model(self, **overrides) -> PreTrainedModel:
        torch.manual_seed(0)
        return self.model_class(self.config(**overrides)).eval()

    # What a user gets

    @pytest.mark.parametrize("size", [(64, 64), (32, 128), (70, 90), (10, 7)])
    def test_any_size_gives_logits_for_the_whole_image(self, size):
        model = self.model()
        with torch.no_grad():
            logits = model(random_images(2, 3, *size)).logits
        assert logits.shape[:2] == (2, self.num_labels)
        is_whole = all(side % model.size_divisor == 0 for side in size)
        assert logits.shape[2:] == (self.logits_size(model, size) if is_whole else size)
        assert torch.isfinite(logits).all()

    def test_padding_does_not_reach_across_the_image(self):
        model = self.model()
        with torch.no_grad():
            whole = model(nn.functional.pad(random_images(1, 3, 60, 64), (0, 0, 0, 4))).logits
            whole = nn.functional.interpolate(whole, size=(64, 64), mode="bilinear", align_corners=False)
            cropped = model(random_images(1, 3, 60, 64)).logits
        torch.testing.assert_close(cropped, whole[:, :, :60], atol=1e-5, rtol=1e-5)

    def test_each_image_is_independent_of_its_batch(self):
        model = self.model()
        images = random_images(3, 3, 64, 64)
        with torch.no_grad():
            alone = torch.cat([model(image[None]).logits for image in images])
            torch.testing.assert_close(model(images).logits, alone, atol=1e-5, rtol=1e-5)

    def test_loss_of_a_few_steps_falls(self):
        model = self.model().train()
        images, labels = random_images(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.long)
        labels[:, 32:] = 1
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.learning_rate)
        losses = []
        for _ in range(12):
            loss = model(images, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_round_trip_through_the_auto_classes(self, tmp_path):
        model = self.model()
        model.save_pretrained(tmp_path)
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
        assert type(loaded) is self.model_class
        config = AutoConfig.from_pretrained(tmp_path)
        assert type(config) is self.config_class
        assert config.backbone_config.to_dict() == model.config.backbone_config.to_dict()
        images = random_images(1, 3, 64, 96)
        with torch.no_grad():
            assert torch.equal(model(images).logits, loaded(images).logits)

    @pytest.mark.parametrize("num_labels", [1, 2])
    def test_round_trip_with_few_classes(self, num_labels, tmp_path):
        config = self.config()
        config.num_labels = num_labels
        config.save_pretrained(tmp_path)
        loaded = self.config_class.from_pretrained(tmp_path)
        assert (loaded.num_labels, loaded.id2label) == (num_labels, config.id2label)

    def test_tuple_output(self):
        model = self.model()
        images = random_images(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(model(images, return_dict=False)[0], model(images).logits)

    def test_the_loss_is_the_sum_of_its_named_terms(self):
        model = self.model()
        with torch.no_grad():
            outputs = model(random_images(2, 3, 70, 90), labels=random_labels(self.num_labels, 2, 70, 90))
        assert all(name.startswith("loss_") for name in outputs.loss_dict)
        torch.testing.assert_close(outputs.loss, sum(outputs.loss_dict.values()), atol=0, rtol=1e-6)
        assert model.config.keys_to_ignore_at_inference == ["loss_dict"]

    def test_forward_is_encode_and_decode(self):
        model, images = self.model(), random_images(2, 3, 70, 90)
        with torch.no_grad():
            encoded = model.encode(images, output_hidden_states=True)
            decoded, outputs = model.decode(encoded), model(images, output_hidden_states=True)
        for name in set(outputs) - {"logits", "hidden_states"}:
            torch.testing.assert_close(outputs[name], decoded[name], msg=name)
        assert len(decoded.hidden_states) == len(outputs.hidden_states) > 0
        assert all(side >= size for side, size in zip(encoded.padded_size, (70, 90), strict=True))

    def test_output_flags_of_the_config(self, tmp_path):
        self.model().save_pretrained(tmp_path)
        loaded = AutoModelForSemanticSegmentation.from_pretrained(
            tmp_path, output_attentions=True, output_hidden_states=True, attn_implementation="eager"
        )
        with torch.no_grad():
            outputs = loaded(random_images(1, 3, 64, 64))
        assert len(outputs.attentions) == TINY["num_hidden_layers"]
        assert len(outputs.hidden_states) == TINY["num_hidden_layers"] + 1

    def test_new_classes_for_a_trained_model(self, tmp_path):
        self.model().save_pretrained(tmp_path)
        loaded = self.model_class.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
        with torch.no_grad():
            assert loaded(random_images(1, 3, 64, 64)).logits.shape[1] == 3

    @pytest.mark.parametrize("name", list(TRANSFORMERS_BACKBONES))
    @pytest.mark.parametrize("freeze", [False, True])
    def test_transformers_backbones(self, name, freeze, tmp_path):
        model = self.model(backbone_config=TRANSFORMERS_BACKBONES[name](), freeze_backbone=freeze)
        images, labels = random_images(2, 3, 70, 90), random_labels(self.num_labels, 2, 70, 90)
        model.train()
        model(images, labels=labels).loss.backward()
        assert model.backbone.training is not freeze
        has_gradient = any(parameter.grad is not None for parameter in model.backbone.parameters())
        assert has_gradient is not freeze
        assert all(parameter.grad is not None for parameter in model.decoder.parameters())

        model.eval().save_pretrained(tmp_path)
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
        assert all(parameter.requires_grad is not freeze for parameter in loaded.backbone.parameters())
        with torch.no_grad():
            torch.testing.assert_close(loaded(images).logits, model(images).logits, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("num_channels", [1, 4, 13])
    def test_number_of_channels(self, num_channels):
        model = self.model(backbone_config=PlainViTConfig(**TINY, image_size=64, num_channels=num_channels))
        with torch.no_grad():
            assert model(random_images(1, num_channels, 64, 64)).logits.shape[1] == self.num_labels

    # Bad input

    def test_wrong_number_of_channels(self):
        with pytest.raises(ValueError, match=r"\(batch_size, 3, height, width\), got \(1, 4, 64, 64\).*num_channels"):
            self.model()(random_images(1, 4, 64, 64))

    def test_empty_batch(self):
        with pytest.raises(ValueError, match="holds no pixel"):
            self.model()(torch.empty(0, 3, 64, 64))

    def test_label_outside_the_classes(self):
        labels = random_labels(self.num_labels, 2, 64, 64)
        labels[1, 7, 9] = 200
        with pytest.raises(
            ValueError, match=r"labels\[1\] holds .* 200; the first one, 200, at y=7, x=9.*do_reduce_labels"
        ):
            self.model()(random_images(2, 3, 64, 64), labels=labels)

    def test_labels_of_another_size(self):
        with pytest.raises(ValueError, match=r"`labels` \(2, 32, 64\) must have .* of `pixel_values` \(2, 3, 64, 64\)"):
            self.model()(random_images(2, 3, 64, 64), labels=random_labels(self.num_labels, 2, 32, 64))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
    def test_labels_of_any_integer_type(self, dtype):
        model, images, labels = self.model(), random_images(1, 3, 64, 64), random_labels(self.num_labels, 1, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(model(images, labels=labels.to(dtype)).loss, model(images, labels=labels).loss)

    def test_backbone_that_gives_tokens_instead_of_maps(self):
        backbone_config = TRANSFORMERS_BACKBONES["dinov2"]()
        backbone_config.reshape_hidden_states = False
        with pytest.raises(ValueError, match="set `reshape_hidden_states=True`"):
            self.model(backbone_config=backbone_config)

    def test_all_ignored_labels(self):
        model = self.model().train()
        loss = model(random_images(1, 3, 64, 64), labels=torch.full((1, 64, 64), 255)).loss
        loss.backward()
        assert loss.item() == 0.0
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())

    # Training

    def test_optimizer_param_groups_hold_each_trainable_parameter_once(self):
        model = self.model()
        next(model.parameters()).requires_grad_(False)
        groups = model.get_optimizer_param_groups(learning_rate=0.5, weight_decay=0.1)
        grouped = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
        assert len({(group["lr"], group["weight_decay"]) for group in groups}) == len(groups)
        torch.optim.AdamW(groups)  # has what an optimizer wants

    def test_gradient_checkpointing_gives_the_same_gradients(self):
        model = self.model().train()
        images, labels = random_images(1, 3, 64, 64), random_labels(self.num_labels, 1, 64, 64)
        model(images, labels=labels).loss.backward()
        expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        model.zero_grad()
        model.gradient_checkpointing_enable()
        model(images, labels=labels).loss.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], msg=name)

    def trainer(self, model, output_dir, **arguments) -> Trainer:
        data = [
            {
                "pixel_values": random_images(3, 32, 32, seed=seed),
                "labels": random_labels(self.num_labels, 32, 32, seed=seed),
            }
            for seed in range(8)
        ]
        defaults = {"learning_rate": 1e-2, "use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 0}
        settings = TrainingArguments(output_dir, **{**defaults, **arguments})
        return Trainer(model=model, args=settings, train_dataset=data)

    def test_accumulated_steps_equal_one_large_batch(self, tmp_path):
        models = []
        for batch_size, steps in ((8, 1), (2, 4)):
            model = self.model(**self.without_batch_norm)
            self.trainer(
                model,
                tmp_path,
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=steps,
                max_steps=1,
                optim="sgd",
                max_grad_norm=0.0,
                save_strategy="no",
            ).train()
            models.append(model)
        start = self.model(**self.without_batch_norm)
        for name, parameter in models[0].named_parameters():
            step = parameter - start.get_parameter(name)
            other_step = models[1].get_parameter(name) - start.get_parameter(name)
            torch.testing.assert_close(other_step, step, atol=1e-6, rtol=1e-3, msg=name)

    def test_resumed_training_equals_uninterrupted(self, tmp_path):
        uninterrupted = self.model()
        arguments = {"per_device_train_batch_size": 2, "max_steps": 4, "save_steps": 2}
        self.trainer(uninterrupted, tmp_path, **arguments).train()
        resumed = self.model()
        self.trainer(resumed, tmp_path, **arguments).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        for name, parameter in uninterrupted.named_parameters():
            assert torch.equal(parameter, resumed.get_parameter(name)), name

    # Precision, attention and graphs

    def test_bfloat16_stays_close(self):
        model = self.model()
        images = random_images(1, 3, 64, 64)
        with torch.no_grad():
            expected = model(images).logits
            logits = model.to(torch.bfloat16)(images.to(torch.bfloat16)).logits.float()
        assert logits.isfinite().all()
        error = (logits - expected).pow(2).mean().sqrt()
        assert error < 0.05 * expected.std()

    @pytest.mark.parametrize("implementation", ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
    def test_attention_implementations_agree(self, implementation):
        model = self.model()
        images = random_images(1, 3, 64, 64)
        with torch.no_grad():
            expected = model(images).logits
            model.set_attn_implementation(implementation)
            assert model.backbone.config._attn_implementation == implementation
            torch.testing.assert_close(model(images).logits, expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(
        ("backend", "size"),
        [pytest.param("inductor", (64, 96), marks=pytest.mark.slow), ("eager", (64, 96)), ("eager", (70, 90))],
    )
    def test_compiles_without_graph_breaks(self, backend, size):
        model = self.model()
        torch.compiler.reset()
        compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend=backend)
        images = random_images(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(compiled(images).logits, model(images).logits, atol=1e-4, rtol=1e-4)

    @pytest.fixture
    def exported(self):
        model = self.model()
        dynamic = torch.export.Dim.DYNAMIC
        shapes = {"pixel_values": {0: dynamic, 2: dynamic, 3: dynamic}}
        with torch.no_grad():
            return model, torch.export.export(model, (random_images(2, 3, 64, 96),), dynamic_shapes=shapes)

    def test_exports_with_dynamic_sizes(self, exported):
        model, program = exported
        for size in ((64, 64), (128, 80), (self.smallest_exported, 160)):
            images = random_images(1, 3, *size)
            with torch.no_grad():
                logits = program.module()(images).logits
                torch.testing.assert_close(logits, model(images).logits, atol=1e-4, rtol=1e-4)
        # no whole patches: often patch-level logits all the same, where the model itself gives them at full resolution
        images = random_images(1, 3, 33, 41)
        with torch.no_grad():
            logits = program.module()(images).logits
            torch.testing.assert_close(logits, self.exported_logits(model, images), atol=1e-4, rtol=1e-4)

    def test_runs_in_onnx_runtime(self, exported):
        onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is part of the `dev` extra")
        model, program = exported
        buffer = io.BytesIO()
        torch.onnx.export(program, dynamo=True, verbose=False).save(buffer)
        session = onnxruntime.InferenceSession(buffer.getvalue())
        for size in ((64, 64), (128, 80)):
            images = random_images(2, 3, *size)
            with torch.no_grad():
                expected = model(images).logits.numpy()
            (logits,) = session.run([session.get_outputs()[0].name], {session.get_inputs()[0].name: images.numpy()})
            np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=1e-3)
