# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Data sets of images and label maps: native layouts, folders, parquet and the Hub; and a doctor for their labels."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule


_import_structure = {
    "checks.runner": ["check_data", "quick_check"],
    "checks.report": ["FAULTS", "DataReport", "Fault", "SplitReport"],
    "layouts": ["LAYOUTS", "detect_layouts"],
    "loading": ["find_id2label", "load_segmentation_dataset"],
    "recipe_fields": ["DataFields", "read_data_fields"],
    "dataset": ["SegmentationData"],
}

if TYPE_CHECKING:
    from .checks.report import FAULTS, DataReport, Fault, SplitReport
    from .checks.runner import check_data, quick_check
    from .dataset import SegmentationData
    from .layouts import LAYOUTS, detect_layouts
    from .loading import find_id2label, load_segmentation_dataset
    from .recipe_fields import DataFields, read_data_fields
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, _import_structure, module_spec=__spec__)
