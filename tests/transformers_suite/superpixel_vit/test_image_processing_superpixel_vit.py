# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import unittest

from common.image_processor_suite import SegmentationProcessorSuite, SegmentationProcessorTester
from hf_segmodels import SuperpixelViTConfig


class SuperpixelViTProcessorTester(SegmentationProcessorTester):
    config_class = SuperpixelViTConfig


class SuperpixelViTImageProcessorTest(SegmentationProcessorSuite, unittest.TestCase):
    image_processor_tester_class = SuperpixelViTProcessorTester
