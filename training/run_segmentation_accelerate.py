# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Trains a segmentation model with Accelerate.

    accelerate launch training/run_segmentation_accelerate.py RECIPE.yaml [key=value ...]

The code is in `hf_segmodels/training/accelerate_loop.py`, the recipe's fields in `hf_segmodels/training/recipe.py`.
"""

import sys

from hf_segmodels.training.accelerate_loop import train
from hf_segmodels.training.recipe import run_script


if __name__ == "__main__":
    sys.exit(run_script(train, __doc__, sys.argv[1:]))
