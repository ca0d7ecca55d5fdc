# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What training makes of a data set: augmented samples, in its order, in batches."""

from .collator import TrainingCollator
from .samplers import AugmentedData, AugmentedStream, TrainingBatches


__all__ = ["AugmentedData", "AugmentedStream", "TrainingBatches", "TrainingCollator"]
