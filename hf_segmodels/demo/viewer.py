# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
The demo's picture of a result, a Gradio component. Photograph and class indices travel to the browser once; opacity, the
name of the class under the pointer and a class that is picked from the legend are drawn there.
"""

from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np
from gradio.processing_utils import save_pil_to_cache
from PIL import Image

from ..visualization import ClassShare


@dataclass(frozen=True)
class SegmentedImage:
    """
    An image with its label map.

    Args:
        image (`PIL.Image.Image`): RGB.
        label_map (`np.ndarray` of shape `(height, width)`): Class of each of its pixels.
        shares (`list[ClassShare]`): The classes in it, largest first.
        palette (`np.ndarray` of shape `(num_labels, 3)`): Colors from 0 to 255.
    """

    image: Image.Image
    label_map: np.ndarray
    shares: list[ClassShare]
    palette: np.ndarray


def label_map_viewer(**options: Any) -> gr.HTML:
    """
    The component. Its value is what [`viewer_value`] gives; its event `select` has as `index` the `(x, y)` of a click in
    units of width and height. It is no class of its own: Gradio writes a file beside the source of each.
    """
    return gr.HTML(html_template=_HTML, css_template=_CSS, js_on_load=_JAVASCRIPT, apply_default_css=False, **options)


def viewer_value(segmented: SegmentedImage, cache: str) -> dict[str, Any]:
    """
    Args:
        segmented ([`SegmentedImage`]): What to show.
        cache (`str`): Folder that Gradio serves files from, the component's `GRADIO_CACHE`.
    """
    labels = segmented.label_map.astype(np.uint16)
    # low byte, high byte, nothing: a browser gives 8 bits a channel
    channels = np.stack([labels & 255, labels >> 8, np.zeros_like(labels)], axis=-1).astype(np.uint8)
    return {
        "image": gr.FileData(path=save_pil_to_cache(segmented.image, cache, format="jpeg")).model_dump(),
        "labels": gr.FileData(path=save_pil_to_cache(Image.fromarray(channels), cache, format="png")).model_dump(),
        "width": segmented.image.width,
        "height": segmented.image.height,
        "classes": [
            {
                "index": share.index,
                "name": share.name,
                "percent": share.percent,
                "color": [int(part) for part in segmented.palette[share.index]],
            }
            for share in segmented.shares
        ],
    }


_HTML = """
<figure class="viewer empty">
  <div class="stage">
    <img class="photo" alt="The segmented image" draggable="false">
    <canvas class="colors" aria-hidden="true"></canvas>
    <div class="marker" hidden></div>
    <div class="tip" role="status" hidden></div>
  </div>
  <p class="placeholder">The segmented image appears here.</p>
  <figcaption class="legend" aria-label="Classes in the image"></figcaption>
</figure>
"""

_CSS = """
.viewer { margin: 0; }
.placeholder {
  display: none; margin: 0; min-height: 20rem; align-items: center; justify-content: center; text-align: center;
  color: var(--body-text-color-subdued); border: 1px dashed var(--border-color-primary);
  border-radius: var(--block-radius);
}
.viewer.empty .placeholder { display: flex; }
.viewer.empty .stage, .viewer.empty .legend { display: none; }
.stage {
  position: relative; margin: 0 auto; width: min(100%, calc(62vh * var(--aspect, 1)));
  aspect-ratio: var(--aspect, 1); cursor: crosshair; border-radius: var(--radius-md); overflow: hidden;
  touch-action: pan-y pinch-zoom;
}
.photo, .colors { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; user-select: none; }
.colors { opacity: var(--overlay-opacity, 0.5); pointer-events: none; }
.viewer.picked .colors { opacity: max(var(--overlay-opacity, 0.5), 0.7); }
.tip {
  position: absolute; z-index: 2; pointer-events: none; max-width: 80%; padding: 0.2rem 0.5rem; white-space: nowrap;
  overflow: hidden; text-overflow: ellipsis; font-size: 0.85rem; line-height: 1.4; color: #fff;
  background: rgba(15, 23, 42, 0.9); border-radius: 0.35rem;
}
.marker {
  position: absolute; z-index: 1; width: 14px; height: 14px; margin: -7px 0 0 -7px; border-radius: 50%;
  border: 2px solid #fff; box-shadow: 0 0 0 1.5px #000, inset 0 0 0 1px #000; pointer-events: none;
}
.legend { display: flex; flex-wrap: wrap; gap: 0.4rem; margin-top: 0.75rem; max-height: 16rem; overflow-y: auto; }
.legend button {
  display: inline-flex; align-items: center; gap: 0.45rem; padding: 0.25rem 0.65rem; font-size: 0.85rem;
  line-height: 1.3; color: var(--body-text-color); background: var(--block-background-fill);
  border: 1px solid var(--border-color-primary); border-radius: 999px; cursor: pointer;
}
.legend button:hover, .legend button.under { border-color: var(--body-text-color-subdued); }
.legend button[aria-pressed="true"] { border-color: var(--color-accent); box-shadow: 0 0 0 1px var(--color-accent); }
.legend button:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 1px; }
.legend i {
  flex: none; width: 0.85rem; height: 0.85rem; border-radius: 0.2rem; border: 1px solid rgba(128, 128, 128, 0.7);
}
.legend small { color: var(--body-text-color-subdued); font-size: inherit; font-variant-numeric: tabular-nums; }
.tip[hidden], .marker[hidden] { display: none; }
"""

_JAVASCRIPT = """
const find = (selector) => element.querySelector(selector);
const viewer = find('.viewer'), stage = find('.stage'), photo = find('.photo'), canvas = find('.colors');
const tip = find('.tip'), marker = find('.marker'), legend = find('.legend');
let value = null, labels = null, pinned = null, request = 0;

const load = async (file) => {
  const image = new Image();
  image.src = file.url;
  await image.decode();
  return image;
};

const readLabels = (image, width, height) => {
  const hidden = new OffscreenCanvas(width, height);
  const context = hidden.getContext('2d', {willReadFrequently: true});
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, width, height).data;
  const found = new Uint16Array(width * height);
  for (let i = 0; i < found.length; i++) found[i] = pixels[4 * i] | (pixels[4 * i + 1] << 8);
  return found;
};

// all classes, or one of them with the rest in the dark
const paint = (only = null) => {
  const pack = ([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  const colors = new Uint32Array(65536).fill(pack([12, 16, 24]));
  for (const item of value.classes) if (only === null || only === item.index) colors[item.index] = pack(item.color);
  const context = canvas.getContext('2d');
  const picture = context.createImageData(value.width, value.height);
  const pixels = new Uint32Array(picture.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = colors[labels[i]];
  context.putImageData(picture, 0, 0);
  viewer.classList.toggle('picked', only !== null);
};

const drawLegend = () => {
  legend.replaceChildren(...value.classes.map((item) => {
    const button = document.createElement('button');
    const patch = document.createElement('i'), share = document.createElement('small');
    button.type = 'button';
    button.dataset.index = item.index;
    button.setAttribute('aria-pressed', 'false');
    patch.style.background = `rgb(${item.color.join(',')})`;
    share.textContent = item.percent;
    button.append(patch, item.name, share);
    return button;
  }));
};

const press = (index) => {
  pinned = index;
  for (const button of legend.children) button.setAttribute('aria-pressed', Number(button.dataset.index) === index);
  paint(index);
};

const show = async () => {
  const mine = ++request, wanted = props.value;
  marker.hidden = tip.hidden = true;
  if (!wanted || !wanted.image) {
    viewer.classList.add('empty');
    return;
  }
  const [picture, indices] = await Promise.all([load(wanted.image), load(wanted.labels)]);
  if (mine !== request) return;  // a newer result is there
  value = wanted;
  labels = readLabels(indices, value.width, value.height);
  photo.src = picture.src;
  [canvas.width, canvas.height] = [value.width, value.height];
  stage.style.setProperty('--aspect', value.width / value.height);
  drawLegend();
  press(null);
  viewer.classList.remove('empty');
  viewer.dataset.shown = wanted.labels.url;
  // on a phone it is below the fold
  if (matchMedia('(max-width: 768px)').matches) stage.scrollIntoView({behavior: 'smooth', block: 'nearest'});
};

const place = (event) => {
  const box = stage.getBoundingClientRect();
  const inside = (part) => Math.min(Math.max(part, 0), 1 - 1e-6);
  return [inside((event.clientX - box.left) / box.width), inside((event.clientY - box.top) / box.height)];
};

const point = (event) => {
  if (!value) return;
  const [x, y] = place(event);
  const index = labels[Math.floor(y * value.height) * value.width + Math.floor(x * value.width)];
  const item = value.classes.find((one) => one.index === index);
  tip.textContent = `${item.name} · ${item.percent}`;
  tip.hidden = false;
  tip.style.left = x < 0.6 ? `calc(${100 * x}% + 14px)` : 'auto';
  tip.style.right = x < 0.6 ? 'auto' : `calc(${100 * (1 - x)}% + 14px)`;
  tip.style.top = `min(calc(${100 * y}% + 14px), calc(100% - 2rem))`;
  for (const button of legend.children) button.classList.toggle('under', Number(button.dataset.index) === index);
};

stage.addEventListener('pointermove', point);
stage.addEventListener('pointerdown', point);
stage.addEventListener('pointerleave', () => {
  tip.hidden = true;
  for (const button of legend.children) button.classList.remove('under');
});
stage.addEventListener('click', (event) => {
  const [x, y] = place(event);
  marker.style.left = `${100 * x}%`;
  marker.style.top = `${100 * y}%`;
  marker.hidden = false;
  trigger('select', {index: [x, y], value: tip.textContent});
});
const indexOf = (event) => {
  const button = event.target.closest('button');
  return button ? Number(button.dataset.index) : null;
};
legend.addEventListener('click', (event) => {
  const index = indexOf(event);
  if (index !== null) press(index === pinned ? null : index);
});
legend.addEventListener('pointerover', (event) => {
  const index = indexOf(event);
  if (index !== null && event.pointerType === 'mouse') paint(index);
});
legend.addEventListener('pointerleave', (event) => { if (value && event.pointerType === 'mouse') paint(pinned); });

watch('value', show);
show();
"""

OPACITY_JAVASCRIPT = "(percent) => { document.documentElement.style.setProperty('--overlay-opacity', percent / 100); }"
"""For a slider from 0 to 100: sets the opacity of the colors without asking the server."""


__all__ = ["OPACITY_JAVASCRIPT", "SegmentedImage", "label_map_viewer", "viewer_value"]
