# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import unittest

from transformers import Dinov2Config

from common.vision_suite import SemanticSegmentationSuite, VisionModelTester
from hf_segmodels import SegmenterConfig, SegmenterForSemanticSegmentation


class SegmenterModelTester(VisionModelTester):
    config_class = SegmenterConfig

    def get_config(self) -> SegmenterConfig:
        return SegmenterConfig(
            backbone_config=self.get_encoder_config(),
            decoder_hidden_size=24,
            decoder_num_attention_heads=2,
            num_labels=self.num_labels,
        )


class LinearSegmenterModelTester(SegmenterModelTester):
    def get_config(self) -> SegmenterConfig:
        config = super().get_config()
        config.decoder_type = "linear"
        return config


class SegmenterForSemanticSegmentationTest(SemanticSegmentationSuite, unittest.TestCase):
    model_tester_class = SegmenterModelTester
    all_model_classes = (SegmenterForSemanticSegmentation,)


class LinearSegmenterForSemanticSegmentationTest(SegmenterForSemanticSegmentationTest):
    model_tester_class = LinearSegmenterModelTester


class SegmenterOnDinov2ModelTester(SegmenterModelTester):
    def get_config(self) -> SegmenterConfig:
        config = super().get_config()
        config.backbone_config = Dinov2Config(
            use_mask_token=False,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            image_size=self.image_size,
            patch_size=self.patch_size,
        )
        return config


class SegmenterOnDinov2Test(SegmenterForSemanticSegmentationTest):
    model_tester_class = SegmenterOnDinov2ModelTester
