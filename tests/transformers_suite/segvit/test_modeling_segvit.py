# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import unittest
from typing import Any

from common.vision_suite import SemanticSegmentationSuite, VisionModelTester
from hf_segmodels import SegViTConfig, SegViTForSemanticSegmentation


class SegViTModelTester(VisionModelTester):
    config_class = SegViTConfig
    num_prefix_tokens = 0

    def get_config(self, decoder_type: str = "cascade", **fields: Any) -> SegViTConfig:
        return SegViTConfig(
            backbone_config=self.get_encoder_config(
                use_cls_token=False, final_norm="none", out_indices=[1, 2], **fields
            ),
            decoder_type=decoder_type,
            decoder_hidden_size=24,
            decoder_num_attention_heads=2,
            decoder_num_hidden_layers=2,
            num_labels=self.num_labels,
        )


class SegViTForSemanticSegmentationTest(SemanticSegmentationSuite, unittest.TestCase):
    model_tester_class = SegViTModelTester
    all_model_classes = (SegViTForSemanticSegmentation,)


class ShrunkSegViTModelTester(SegViTModelTester):
    def get_config(self) -> SegViTConfig:
        return super().get_config("shrunk", query_downsampling_layer=1)


class ShrunkSegViTTest(SegViTForSemanticSegmentationTest):
    model_tester_class = ShrunkSegViTModelTester
