# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import unittest
from typing import Any

from common.vision_suite import BackboneSuite, VisionModelTester
from hf_segmodels import PlainViTBackbone, PlainViTConfig


class PlainViTModelTester(VisionModelTester):
    config_class = PlainViTConfig

    def get_config(self, **overrides: Any) -> PlainViTConfig:
        return self.get_encoder_config(out_indices=[1, 2], **overrides)


class PlainViTBackboneTest(BackboneSuite, unittest.TestCase):
    model_tester_class = PlainViTModelTester
    config_class = PlainViTConfig
    all_model_classes = (PlainViTBackbone,)


class DistilledPlainViTModelTester(PlainViTModelTester):
    num_prefix_tokens = 2

    def get_config(self) -> PlainViTConfig:
        return super().get_config(use_distillation_token=True, final_norm="all")


class DistilledPlainViTBackboneTest(PlainViTBackboneTest):
    model_tester_class = DistilledPlainViTModelTester


class HybridPlainViTModelTester(PlainViTModelTester):
    image_size = 16
    patch_size = 4

    def get_config(self) -> PlainViTConfig:
        return super().get_config(
            stem_type="resnetv2", stem_depths=[1], stem_hidden_sizes=[128], stem_embedding_size=32
        )


class HybridPlainViTBackboneTest(PlainViTBackboneTest):
    model_tester_class = HybridPlainViTModelTester


class DownsamplingPlainViTModelTester(PlainViTModelTester):
    def get_config(self) -> PlainViTConfig:
        return super().get_config(query_downsampling_layer=1, query_downsampling_mode="convolution")


class DownsamplingPlainViTBackboneTest(PlainViTBackboneTest):
    model_tester_class = DownsamplingPlainViTModelTester
