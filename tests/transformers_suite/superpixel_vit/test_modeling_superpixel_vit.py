# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import unittest

import torch
from transformers.testing_utils import torch_device

from common.vision_suite import SemanticSegmentationSuite, VisionModelTester
from hf_segmodels import SuperpixelViTConfig, SuperpixelViTForSemanticSegmentation


class SuperpixelViTModelTester(VisionModelTester):
    config_class = SuperpixelViTConfig

    def get_config(self) -> SuperpixelViTConfig:
        return SuperpixelViTConfig(
            backbone_config=self.get_encoder_config(),
            max_superpixels=self.seq_length - self.num_prefix_tokens,
            num_labels=self.num_labels,
        )

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        # as many stripes as tokens, of two pixels each
        stripes = torch.arange(self.image_size, device=torch_device) // 2
        inputs["superpixels"] = stripes.expand(self.batch_size, self.image_size, -1).contiguous()
        return config, inputs


class SuperpixelViTForSemanticSegmentationTest(SemanticSegmentationSuite, unittest.TestCase):
    model_tester_class = SuperpixelViTModelTester
    all_model_classes = (SuperpixelViTForSemanticSegmentation,)
    # without it the suite passes pixels alone
    additional_model_inputs = ["superpixels"]
