# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Train a segmentation model with transformers' Trainer, from the same recipes as `run_segmentation_accelerate.py`.

    python training/run_segmentation_trainer.py RECIPE.yaml [key=value ...]

The same as `hf-segmodels train --trainer`. The loop is in `hf_segmodels/training/trainer_loop.py`, the settings of a recipe are
in `hf_segmodels/training/recipe.py`.
"""

import sys

from hf_segmodels.cli.main import main


if __name__ == "__main__":
    sys.exit(main(["train", "--trainer", *sys.argv[1:]]))
