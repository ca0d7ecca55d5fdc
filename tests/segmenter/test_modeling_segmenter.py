# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import Dinov2Config

from common.model_tester import SegmentationModelTester, random_images, random_labels
from hf_segmodels import PlainViTConfig, SegmenterConfig, SegmenterForSemanticSegmentation


class TestSegmenterMask(SegmentationModelTester):
    model_class = SegmenterForSemanticSegmentation
    config_class = SegmenterConfig
    without_dropout = {"decoder_dropout_prob": 0.0}

    def test_attention_maps_of_encoder_and_decoder(self):
        model = self.model()
        model.set_attn_implementation("eager")
        with torch.no_grad():
            outputs = model(random_images(1, 3, 64, 96), output_attentions=True)
        num_patches = 4 * 6
        assert [tuple(a.shape) for a in outputs.attentions] == [(1, 2, 1 + num_patches, 1 + num_patches)] * 2
        num_tokens = num_patches + self.num_labels
        assert [tuple(a.shape) for a in outputs.decoder_attentions] == [(1, 1, num_tokens, num_tokens)] * 2
        for attention in (*outputs.attentions, *outputs.decoder_attentions):
            torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))

    def test_decoder_follows_the_attention_implementation(self):
        model = SegmenterForSemanticSegmentation._from_config(self.config(), attn_implementation="eager")
        assert model.decoder.encoder.config._attn_implementation == "eager"
        model.set_attn_implementation("sdpa")
        assert model.decoder.encoder.config._attn_implementation == "sdpa"

    @pytest.mark.parametrize(("width", "heads"), [(32, 1), (128, 2), (160, 2)])
    def test_one_decoder_head_for_every_64_channels(self, width, heads):
        model = self.model(decoder_hidden_size=width)
        assert model.decoder.encoder.layers[0].attention.num_attention_heads == heads

    def test_decoder_dropout_is_active_in_training_only(self):
        torch.manual_seed(0)
        model = self.model_class(SegmenterConfig(backbone_config=self.config().backbone_config, num_labels=5))
        images = random_images(1, 3, 64, 64)
        with torch.no_grad():
            assert not torch.equal(model.train()(images).logits, model(images).logits)
            assert torch.equal(model.eval()(images).logits, model(images).logits)


class TestSegmenterLinear(SegmentationModelTester):
    model_class = SegmenterForSemanticSegmentation
    config_class = SegmenterConfig

    def config(self, **overrides):
        return super().config(decoder_type="linear", **overrides)

    def test_scores_are_a_linear_map_of_the_patch_tokens(self):
        model = self.model()
        with torch.no_grad():
            images = random_images(1, 3, 64, 64)
            features = model.backbone(images).feature_maps[-1]
            classifier = model.decoder.classifier
            expected = torch.einsum("kd,bdhw->bkhw", classifier.weight, features) + classifier.bias[:, None, None]
            torch.testing.assert_close(model(images).logits, expected, atol=1e-5, rtol=1e-5)


def test_loss_is_the_mean_over_valid_pixels():
    torch.manual_seed(0)
    backbone = PlainViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=1, image_size=64)
    model = SegmenterForSemanticSegmentation(SegmenterConfig(backbone_config=backbone, num_labels=4)).eval()
    images, labels = random_images(2, 3, 70, 90), random_labels(4, 2, 70, 90)
    labels[1] = 255
    outputs = model(images, labels=labels)
    expected = torch.nn.functional.cross_entropy(outputs.logits, labels, ignore_index=255)
    torch.testing.assert_close(outputs.loss, expected)


def test_only_weight_matrices_decay():
    backbone = PlainViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=1, image_size=64)
    model = SegmenterForSemanticSegmentation(SegmenterConfig(backbone_config=backbone, num_labels=4))
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {g["weight_decay"]: {names[p] for p in g["params"]} for g in model.get_optimizer_param_groups(1.0, 0.05)}
    assert set(groups) == {0.05, 0.0}
    assert {"backbone.encoder.layers.0.mlp.fc1.weight", "decoder.patch_projection"} <= groups[0.05]
    assert {
        "backbone.embeddings.cls_token",
        "backbone.embeddings.position_embeddings",
        "backbone.encoder.layers.0.mlp.fc1.bias",
        "backbone.encoder.layers.0.layernorm_before.weight",
        "decoder.class_embeddings",
    } <= groups[0.0]


def test_defaults_are_those_of_the_released_code():
    config = SegmenterConfig()
    assert config.num_labels == 150
    assert (config.decoder_num_hidden_layers, config.decoder_dropout_prob) == (2, 0.1)
    backbone = config.backbone_config
    assert (backbone.hidden_size, backbone.num_hidden_layers, backbone.num_attention_heads) == (768, 12, 12)
    assert (backbone.layer_norm_eps, backbone.position_embedding_interpolation) == (1e-5, "bilinear")
    assert backbone.drop_path_rate == 0.1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window_stride": 32}, r"`window_stride` 32 needs a `window_size`"),
        ({"decoder_hidden_size": 100, "decoder_num_attention_heads": 3}, "multiple of `decoder_num_attention_heads`"),
        ({"decoder_num_attention_heads": 5}, r"`decoder_hidden_size` \(768.*`decoder_num_attention_heads` \(5"),
        ({"decoder_hidden_size": 200}, r"`decoder_hidden_size` \(200.*`decoder_num_attention_heads` \(3"),
        ({"decoder_num_hidden_layers": 0}, "`decoder_num_hidden_layers` must be at least 1"),
        ({"num_labels": 0}, "`num_labels` must be at least 1"),
        ({"window_size": -5}, "`window_size` must be an integer or"),
        ({"window_size": 32, "window_stride": 64}, "must be from 1 to `window_size`"),
        ({"decoder_type": "mlp"}, "'mask_transformer', 'linear'"),
        ({"small_image_mode": "crop"}, "'upscale', 'pad', 'none'"),
    ],
)
def test_bad_config(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        SegmenterConfig(**fields)


def test_decoder_heads_that_do_not_fit_another_encoder():
    backbone = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=56)
    with pytest.raises(ValueError, match=r"`decoder_hidden_size` \(32.*`decoder_num_attention_heads` \(3"):
        SegmenterForSemanticSegmentation(SegmenterConfig(backbone_config=backbone, decoder_num_attention_heads=3))


def test_unknown_backbone():
    with pytest.raises(ValueError, match="'nope', which transformers does not know"):
        SegmenterConfig(backbone_config={"model_type": "nope"})
