# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""UN-EPT (https://huggingface.co/papers/2107.14209): sparse attention over a pyramid, with boundary refinement."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule


_import_structure = {
    "boundary_refinement": ["refine"],
    "boundary_targets": ["compute_boundary_targets", "flip_boundary_targets", "read_boundary_targets"],
    "configuration_unept": ["UNEPTConfig"],
    "image_processing_pil_unept": ["UNEPTImageProcessorPil"],
    "image_processing_unept": ["UNEPTImageProcessor"],
    "loss_unept": ["UNEPTLosses", "unept_losses"],
    "modeling_unept": ["UNEPTForSemanticSegmentation", "UNEPTOutput", "UNEPTPreTrainedModel"],
}

if TYPE_CHECKING:
    from .boundary_refinement import refine
    from .boundary_targets import compute_boundary_targets, flip_boundary_targets, read_boundary_targets
    from .configuration_unept import UNEPTConfig
    from .image_processing_pil_unept import UNEPTImageProcessorPil
    from .image_processing_unept import UNEPTImageProcessor
    from .loss_unept import UNEPTLosses, unept_losses
    from .modeling_unept import UNEPTForSemanticSegmentation, UNEPTOutput, UNEPTPreTrainedModel
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, _import_structure, module_spec=__spec__)
