# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import unittest

from transformers.testing_utils import torch_device

from common.vision_suite import BackboneSuite, VisionModelTester
from hf_segmodels import ResNetV1cBackbone, ResNetV1cConfig


class ResNetV1cModelTester(VisionModelTester):
    config_class = ResNetV1cConfig

    def get_config(self) -> ResNetV1cConfig:
        return ResNetV1cConfig(
            embedding_size=8, hidden_sizes=[16, 16, 24, 32], depths=[1, 1, 1, 1], out_features=["stage3", "stage4"]
        )


class ResNetV1cBackboneTest(BackboneSuite, unittest.TestCase):
    model_tester_class = ResNetV1cModelTester
    config_class = ResNetV1cConfig
    all_model_classes = (ResNetV1cBackbone,)
    has_attentions = False

    def test_hidden_states_output(self):
        # the suite's version wants sequences of tokens
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for from_config in (False, True):
            config.output_hidden_states = from_config
            model = ResNetV1cBackbone(config).to(torch_device).eval()
            outputs = model(**inputs, **({} if from_config else {"output_hidden_states": True}))
            shapes = [tuple(state.shape[1:]) for state in outputs.hidden_states]
            self.assertEqual(shapes, [(8, 8, 8), (16, 8, 8), (16, 4, 4), (24, 4, 4), (32, 4, 4)])

    def test_retain_grad_hidden_states_attentions(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        outputs = ResNetV1cBackbone(config).to(torch_device)(**inputs, output_hidden_states=True)
        outputs.hidden_states[0].retain_grad()
        outputs.feature_maps[-1].flatten()[0].backward()
        self.assertIsNotNone(outputs.hidden_states[0].grad)
