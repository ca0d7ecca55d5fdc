# Copyright the hf_segmodels authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Image processor for UN-EPT (PIL backend: works without torchvision)."""

from ..image_processing.segmentation_image_processor import SegmentationImageProcessorPil
from .image_processing_unept import BoundaryTargetsMixin


# trf-ignore: TRF057 (the generated text knows less than this one)
class UNEPTImageProcessorPil(BoundaryTargetsMixin, SegmentationImageProcessorPil):
    """[`UNEPTImageProcessor`] on numpy arrays, without torchvision: same arguments, same values."""


__all__ = ["UNEPTImageProcessorPil"]
