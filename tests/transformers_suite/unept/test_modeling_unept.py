# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import unittest

from common.vision_suite import SemanticSegmentationSuite, VisionModelTester
from hf_segmodels import UNEPTConfig, UNEPTForSemanticSegmentation


class UNEPTModelTester(VisionModelTester):
    config_class = UNEPTConfig

    def get_config(self, **overrides) -> UNEPTConfig:
        return UNEPTConfig(
            backbone_config=self.get_encoder_config(final_norm="none", out_indices=[1, 2]),
            hidden_size=16,
            encoder_num_hidden_layers=1,
            decoder_num_hidden_layers=1,
            num_attention_heads=2,
            num_points=2,
            intermediate_size=32,
            spatial_hidden_sizes=[8, 8],
            image_size=self.image_size,
            num_labels=self.num_labels,
            **overrides,
        )


class UNEPTForSemanticSegmentationTest(SemanticSegmentationSuite, unittest.TestCase):
    model_tester_class = UNEPTModelTester
    all_model_classes = (UNEPTForSemanticSegmentation,)


class DenseUNEPTModelTester(UNEPTModelTester):
    def get_config(self) -> UNEPTConfig:
        return super().get_config(decoder_self_attention="dense", refine_at_inference=False)


class DenseUNEPTTest(UNEPTForSemanticSegmentationTest):
    model_tester_class = DenseUNEPTModelTester
