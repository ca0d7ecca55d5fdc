# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import unittest

from common.image_processor_suite import SegmentationProcessorSuite, SegmentationProcessorTester
from hf_segmodels import SegViTConfig


class SegViTProcessorTester(SegmentationProcessorTester):
    config_class = SegViTConfig


class SegViTImageProcessorTest(SegmentationProcessorSuite, unittest.TestCase):
    image_processor_tester_class = SegViTProcessorTester
