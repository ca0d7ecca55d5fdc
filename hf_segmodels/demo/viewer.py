# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Gradio component that shows a segmented image. The browser gets photograph and class indices once. It draws the opacity,
the name of the class under the pointer and the class selected in the legend by itself (viewer.html, viewer.css, viewer.js).
"""

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.processing_utils import save_pil_to_cache
from PIL import Image

from .session import SegmentedPhoto


OPACITY_JAVASCRIPT = "(percent) => { document.documentElement.style.setProperty('--overlay-opacity', percent / 100); }"
"""Callback of a slider from 0 to 100 that sets the opacity of the colors in the browser."""


def label_map_viewer(**options: Any) -> gr.HTML:
    """
    Create the component. Its value is that of [`viewer_value`]. Its event `select` has the clicked point `(x, y)` as
    `index`, in units of the image's width and height. It is not a subclass: Gradio writes a `.pyi` file next to the source
    of each component class.
    """
    html, css, javascript = (Path(__file__).with_suffix(suffix).read_text() for suffix in (".html", ".css", ".js"))
    return gr.HTML(html_template=html, css_template=css, js_on_load=javascript, apply_default_css=False, **options)


def viewer_value(photo: SegmentedPhoto, cache: str) -> dict[str, Any]:
    """
    Return the value of the component for a segmented image. Gradio serves files from the folder `cache`, the
    `GRADIO_CACHE` of the component.
    """
    labels = photo.label_map.astype(np.uint16)
    # A browser reads 8 bits per channel: low byte, high byte, zeros.
    channels = np.stack([labels & 255, labels >> 8, np.zeros_like(labels)], axis=-1).astype(np.uint8)
    classes = [
        {
            "index": share.index,
            "name": share.name,
            "percent": share.percent,
            "color": photo.palette[share.index].tolist(),
        }
        for share in photo.shares
    ]
    return {
        "image": gr.FileData(path=save_pil_to_cache(photo.image, cache, format="jpeg")).model_dump(),
        "labels": gr.FileData(path=save_pil_to_cache(Image.fromarray(channels), cache, format="png")).model_dump(),
        "width": photo.image.width,
        "height": photo.image.height,
        "classes": classes,
    }
