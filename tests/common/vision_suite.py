# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
The common suites of transformers, set up for our models: a new model's file states its tiny configuration and classes.

See `tests/transformers_suite/segmenter/test_modeling_segmenter.py` for how little that is.
"""

import tempfile
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES
from transformers.testing_utils import torch_device
from transformers_tests.test_backbone_common import BackboneTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor

from common.pipeline_suite import SegmentationPipelineSuite
from hf_segmodels import PlainViTConfig
from hf_segmodels.modeling_utils import SegmentationPreTrainedModel


class VisionModelTester:
    """Tiny sizes and inputs under the names that transformers' suites look for."""

    config_class: ClassVar[type[PreTrainedConfig]]

    batch_size = 3
    num_channels = 3
    image_size = 32
    patch_size = 8
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    intermediate_size = 37
    num_labels = 5
    num_prefix_tokens = 1
    is_training = True

    def __init__(self, parent: Any):
        self.parent = parent
        self.seq_length = (self.image_size // self.patch_size) ** 2 + self.num_prefix_tokens

    def get_config(self) -> PreTrainedConfig:
        raise NotImplementedError

    def get_encoder_config(self, **fields: Any) -> PlainViTConfig:
        return PlainViTConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            image_size=self.image_size,
            patch_size=self.patch_size,
            **fields,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        shape = [self.batch_size, self.num_channels, self.image_size, self.image_size]
        return self.get_config(), {"pixel_values": floats_tensor(shape)}


class VisionModelSuite(ModelTesterMixin):
    """`ModelTesterMixin` for models that take images, with what it takes for granted about text models replaced."""

    model_tester_class: ClassVar[type[VisionModelTester]]
    config_kwargs: ClassVar[dict[str, Any]] = {}

    # there is no token embedding matrix
    test_resize_embeddings = False
    # the suite checks this for models of 2023 and later, which it tells by the year in their license header
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = self.model_tester_class(self)
        self.config_tester = ConfigTester(
            self,
            config_class=self.model_tester.config_class,
            has_text_modality=False,
            common_properties=[],
            **self.config_kwargs,
        )

    def test_config_common(self):
        self.config_tester.run_common_tests()

    def test_model_get_set_embeddings(self):
        # the suite's version wants an `nn.Embedding`; images have patch embeddings
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), nn.Module)
            self.assertIsNone(model.get_output_embeddings())


class BackboneSuite(VisionModelSuite, BackboneTesterMixin):
    """The suites for a backbone, whose first output is a tuple of feature maps."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        # by this list of names the suite knows that a model has no loss
        for model_class in cls.all_model_classes:
            MODEL_FOR_BACKBONE_MAPPING_NAMES.setdefault(model_class.config_class.model_type, model_class.__name__)

    def test_retain_grad_hidden_states_attentions(self):
        # the suite's version calls `backward` on the first output
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class._from_config(config, attn_implementation="eager").to(torch_device)
            outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
            inner = [outputs.hidden_states[0], outputs.attentions[0]]
            for tensor in inner:
                tensor.retain_grad()
            outputs.feature_maps[-1].flatten()[0].backward()
            for tensor in inner:
                self.assertIsNotNone(tensor.grad)


class SemanticSegmentationSuite(VisionModelSuite, SegmentationPipelineSuite):
    """The suites for a segmentation model: a decoder over the backbone of its `backbone_config`."""

    _is_composite = True

    def test_reverse_loading_mapping(self):
        # our files hold the model's own names (see `SegmentationPreTrainedModel.save_pretrained`); old ones, as transformers
        # writes them for its encoders, have to be right too
        with patch.object(SegmentationPreTrainedModel, "save_pretrained", PreTrainedModel.save_pretrained):
            super().test_reverse_loading_mapping()

    def test_sdpa_can_dispatch_composite_models(self):
        # the suite's version wants a vision tower and a language model
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                for kwargs, expected in (({}, "sdpa"), ({"attn_implementation": "eager"}, "eager")):
                    loaded = model_class.from_pretrained(folder, **kwargs)
                    owners = [module for module in loaded.modules() if isinstance(module, PreTrainedModel)]
                    self.assertGreaterEqual(len(owners), 2)
                    for module in owners:
                        self.assertEqual(module.config._attn_implementation, expected, type(module).__name__)
