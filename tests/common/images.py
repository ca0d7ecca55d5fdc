# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Image files for tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def make_image(path: Path, width: int = 50, height: int = 40, seed: int = 0, **save_options) -> Path:
    """Writes a smooth random image: blobs of colors."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path, **save_options)
    return path
