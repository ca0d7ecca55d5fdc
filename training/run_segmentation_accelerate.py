# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Train a segmentation model with Accelerate.

    accelerate launch training/run_segmentation_accelerate.py RECIPE.yaml [key=value ...]

The same as `hf-segmodels train`. The loop is in `hf_segmodels/training/accelerate_loop.py`, the settings of a recipe are in
`hf_segmodels/training/recipe.py`.
"""

import sys

from hf_segmodels.cli.main import main


if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
