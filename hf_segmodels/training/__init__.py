# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Training of a model from a recipe: `train(recipe, **overrides)`."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule


# `check-data` reads recipes without importing Accelerate and the loop.
_import_structure = {
    "accelerate_loop": ["train"],
    "recipe": ["Recipe"],
    "samplers": ["AugmentedData", "AugmentedStream", "TrainingBatches", "TrainingCollator"],
}

if TYPE_CHECKING:
    from .accelerate_loop import train
    from .recipe import Recipe
    from .samplers import AugmentedData, AugmentedStream, TrainingBatches, TrainingCollator
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, _import_structure, module_spec=__spec__)
