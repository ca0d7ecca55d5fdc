# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Data sets of images and label maps: native layouts, folders, parquet and the Hub; and a doctor for their labels."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule


_import_structure = {
    "doctor": ["check_data", "quick_check"],
    "label_report": ["FAULTS", "DataReport", "Fault", "SplitReport"],
    "layouts": ["LAYOUTS", "recognise_layouts"],
    "loading": ["find_id2label", "load_segmentation_dataset"],
    "recipe_fields": ["DataFields", "read_data_fields"],
    "segmentation_data": ["SegmentationData"],
}

if TYPE_CHECKING:
    from .doctor import check_data, quick_check
    from .label_report import FAULTS, DataReport, Fault, SplitReport
    from .layouts import LAYOUTS, recognise_layouts
    from .loading import find_id2label, load_segmentation_dataset
    from .recipe_fields import DataFields, read_data_fields
    from .segmentation_data import SegmentationData
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, _import_structure, module_spec=__spec__)
