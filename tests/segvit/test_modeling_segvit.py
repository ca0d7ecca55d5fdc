# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import SwinConfig

from common.model_tester import TINY, TRANSFORMERS_BACKBONES, SegmentationModelTester, random_images, random_labels
from hf_segmodels import PlainViTConfig, SegViTConfig, SegViTForSemanticSegmentation


TINY_DECODER = {"decoder_hidden_size": 24, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 2}


def encoder(**fields) -> PlainViTConfig:
    return PlainViTConfig(**{**TINY, "image_size": 64, "use_cls_token": False, "final_norm": "none", **fields})


class SegViTModelTester(SegmentationModelTester):
    model_class = SegViTForSemanticSegmentation
    config_class = SegViTConfig
    without_dropout = {"decoder_dropout_prob": 0.0}

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
    pass


class TestShrunkSegViT(SegViTModelTester):
    def config(self, **overrides):
        shrunk = encoder(out_indices=[1, 2], query_downsampling_layer=1)
        overrides.setdefault("backbone_config", shrunk)
        return super().config(**{"decoder_type": "shrunk", "query_grid": 4, **overrides})


class TestSegViTOfFixedSize(SegViTModelTester):
    def config(self, **overrides):
        return super().config(**{"prediction_size": 64, **overrides})
