# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Training scripts, their recipes, data and augmentation."""
