# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Pictures of label maps, attention and regions, from and to PIL images without a plotting library."""

from .attention import attention_map, overlay_heat_map, patch_at
from .label_maps import (
    ClassShare,
    add_legend,
    class_shares,
    color_label_map,
    label_image,
    legend,
    overlay,
    side_by_side,
)
from .palettes import generate_palette, palette_for
from .regions import draw_regions, region_maps
from .unept_pictures import (
    DIRECTION_COLORS,
    SampledPoints,
    draw_boundaries,
    draw_directions,
    draw_sampled_points,
    feature_picture,
    pyramid_picture,
    sampled_points,
)


__all__ = [
    "DIRECTION_COLORS",
    "ClassShare",
    "SampledPoints",
    "add_legend",
    "attention_map",
    "class_shares",
    "color_label_map",
    "draw_boundaries",
    "draw_directions",
    "draw_regions",
    "draw_sampled_points",
    "feature_picture",
    "generate_palette",
    "label_image",
    "legend",
    "overlay",
    "overlay_heat_map",
    "palette_for",
    "patch_at",
    "pyramid_picture",
    "region_maps",
    "sampled_points",
    "side_by_side",
]
