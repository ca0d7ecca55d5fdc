# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""UN-EPT (https://huggingface.co/papers/2107.14209): sparse attention over a pyramid, with boundary refinement."""

from .boundary_refinement import refine
from .boundary_targets import compute_boundary_targets, flip_boundary_targets, read_boundary_targets
from .configuration_unept import UNEPTConfig
from .image_processing_pil_unept import UNEPTImageProcessorPil
from .image_processing_unept import UNEPTImageProcessor
from .loss_unept import unept_losses
from .modeling_unept import UNEPTForSemanticSegmentation, UNEPTOutput, UNEPTPreTrainedModel


__all__ = [
    "UNEPTConfig",
    "UNEPTForSemanticSegmentation",
    "UNEPTImageProcessor",
    "UNEPTImageProcessorPil",
    "UNEPTOutput",
    "UNEPTPreTrainedModel",
    "compute_boundary_targets",
    "flip_boundary_targets",
    "read_boundary_targets",
    "refine",
    "unept_losses",
]
