# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import unittest

from transformers import Dinov2Config

from common.vision_suite import SemanticSegmentationSuite, VisionModelTester
from hf_segmodels import RegProxyConfig, RegProxyForSemanticSegmentation


class RegProxyModelTester(VisionModelTester):
    config_class = RegProxyConfig

    def get_config(self) -> RegProxyConfig:
        return RegProxyConfig(
            backbone_config=self.get_encoder_config(),
            token_head_depth=1,
            region_resolution=2,
            num_labels=self.num_labels,
        )


class RegProxyForSemanticSegmentationTest(SemanticSegmentationSuite, unittest.TestCase):
    model_tester_class = RegProxyModelTester
    all_model_classes = (RegProxyForSemanticSegmentation,)


class RegProxyOnDinov2ModelTester(RegProxyModelTester):
    def get_config(self) -> RegProxyConfig:
        return RegProxyConfig(
            backbone_config=Dinov2Config(
                use_mask_token=False,
                hidden_size=self.hidden_size,
                num_hidden_layers=self.num_hidden_layers,
                num_attention_heads=self.num_attention_heads,
                image_size=self.image_size,
                patch_size=self.patch_size,
            ),
            token_head_depth=0,
            region_resolution=2,
            num_labels=self.num_labels,
        )


class RegProxyOnDinov2Test(RegProxyForSemanticSegmentationTest):
    model_tester_class = RegProxyOnDinov2ModelTester
