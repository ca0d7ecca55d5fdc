# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import unittest

from common.vision_suite import BackboneSuite, VisionModelTester
from hf_segmodels import PlainViTBackbone, PlainViTConfig


class PlainViTModelTester(VisionModelTester):
    config_class = PlainViTConfig

    def get_config(self) -> PlainViTConfig:
        return PlainViTConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            image_size=self.image_size,
            patch_size=self.patch_size,
            out_indices=[1, 2],
        )


class PlainViTBackboneTest(BackboneSuite, unittest.TestCase):
    model_tester_class = PlainViTModelTester
    config_class = PlainViTConfig
    all_model_classes = (PlainViTBackbone,)
