# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Custom handler of Hugging Face Inference Endpoints for the models of hf_segmodels.

An export flattens this module and its imports next to the model's code, and a `handler.py` that loads them (see
`hf_segmodels.hub.export`). It then runs without hf_segmodels. docs/endpoints.md describes requests, answers and limits.
"""

import base64
import gc
import logging
import math
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from ...inference.prediction import choose_windows
from ...inference.window_grid import WindowGrid
from ...utils.errors import first_line
from .errors import RequestError, ServerError, is_out_of_memory
from .requests import Parameters, Settings, read_image, read_request


logger = logging.getLogger(__name__)

# scores that are converted to confidences at a time
_MAX_BAND_SCORES = 1 << 21


class EndpointHandler:
    """
    Segment one image per call. Calls from several threads are safe.

    Args:
        path (`str`, *optional*, defaults to `""`):
            Folder of the model; if empty, the folder of this file. Code in the folder is run.
        kwargs: Ignored; servers may pass further arguments.

    Raises:
        OSError: if the folder holds no model.
        ValueError: if the model is not one of hf_segmodels, or an environment variable has an invalid value.
    """

    def __init__(self, path: str = "", **kwargs: Any):
        self.settings = settings = Settings.from_environment()
        folder = str(path or Path(__file__).resolve().parent)
        model = AutoModelForSemanticSegmentation.from_pretrained(
            folder, trust_remote_code=True, dtype=getattr(torch, settings.dtype)
        )
        if not hasattr(model, "predict"):
            raise ValueError(
                f"{type(model).__name__} in {folder} has no `predict`: this handler serves models of hf_segmodels only; "
                "serve other models without a handler.py."
            )
        device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(device).eval()
        self.image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
        # SegViT's scores are sums of its queries' probabilities; the scores of the other methods are logits
        self._has_queries = model.config.model_type == "segvit"
        self._slots = threading.BoundedSemaphore(settings.max_concurrent)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]] | dict[str, Any]:
        """
        Answer a request.

        Args:
            data (`dict`): The request; it is not changed.

                - **inputs** (`bytes`, `str` or `PIL.Image.Image`) -- an image file, an image file in base64 (also as a data
                  URL), the URL of an image file, or an image.
                - **parameters** (`dict`, *optional*) -- see [`Parameters`].

        Returns:
            With `output="masks"`, a list with one `dict` per class in the image, largest first:

            - **label** (`str`) -- name of the class.
            - **score** (`float` or `None`) -- mean confidence of the pixels; `None` without a `threshold`.
            - **mask** (`str`) -- PNG in base64, of the image's size: 255 inside the class, 0 outside.
            - **share** (`float`) -- fraction of the image's pixels.

            With `output="label_map"`, a `dict`:

            - **label_map** (`str`) -- PNG in base64, of the image's size: class index of each pixel, 8-bit with a palette,
              or 16-bit gray for more than 255 classes.
            - **height**, **width** (`int`) -- size of the image.
            - **classes** (`list[dict]`) -- classes in the image, largest first: `index`, `label`, `color` (red, green,
              blue), `share`, `score`.
            - **unlabeled** (`dict`) -- `index` (255 or 65535) and `share` of the pixels below the threshold.

        Raises:
            RequestError: if the request is invalid; a `ValueError` with `status_code` 400 or 413.
            ServerError: if memory runs out or the model fails; a `RuntimeError` with `status_code` 507 or 500.
        """
        try:
            source, parameters = read_request(data, self.settings)
            with self._slots, torch.inference_mode():
                return self._segment(read_image(source, self.settings), parameters)
        except (RequestError, ServerError):
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                logger.exception("Cannot answer a request.")
                raise ServerError(f"the model failed on this image: {first_line(error)[:300]}") from None
        # outside of the `except` block, since the traceback of the error keeps the tensors alive
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise ServerError("out of memory: send a smaller image, a smaller `window_size` or fewer `scales`.", 507)

    def _segment(self, image: PIL.Image.Image, parameters: Parameters) -> list[dict[str, Any]] | dict[str, Any]:
        with_scores = parameters.threshold is not None
        if with_scores and self._has_queries and parameters.is_averaged:
            raise RequestError(
                "this model has no confidences for several `scales` or `flip`, since the scores of its queries are already "
                "probabilities: leave `threshold` out, or `scales` and `flip`."
            )
        num_labels = self.model.config.num_labels
        if with_scores and num_labels * image.width * image.height > self.settings.max_scores:
            raise RequestError(
                f"a `threshold` needs the scores of {num_labels} classes, for at most "
                f"{self.settings.max_scores // num_labels} pixels: send a smaller image or leave `threshold` out.",
                413,
            )
        self._check_processed_size(image)
        inputs = self.image_processor(images=[image], return_tensors="pt").to(self.model.device, self.model.dtype)
        height, width = inputs["pixel_values"].shape[-2:]
        try:
            self._check_network_pixels(height, width, parameters)
            (result,) = self.model.predict(
                **inputs,
                target_sizes=[(image.height, image.width)],
                window_size=parameters.window_size,
                window_stride=parameters.window_stride,
                scales=parameters.scales,
                flip=parameters.flip,
                return_scores=with_scores,
            )
        except RequestError:
            raise
        except ValueError as error:
            # windows and scales that do not fit the model or the image
            raise RequestError(first_line(error)[:300]) from None
        labels, confidences = self._confidences(result, parameters) if with_scores else (result.cpu().numpy(), None)
        return self._answer(labels, confidences, parameters)

    def _check_processed_size(self, image: PIL.Image.Image) -> None:
        """Refuse a narrow image whose longer edge becomes huge when the shorter edge is resized."""
        size = dict(self.image_processor.size) if self.image_processor.do_resize else {}
        if size.keys() <= {"shortest_edge", "longest_edge"} and "shortest_edge" in size:
            scale = size["shortest_edge"] / min(image.size)
            scale = min(scale, size.get("longest_edge", math.inf) / max(image.size))
            if image.width * image.height * scale**2 > self.settings.max_network_pixels:
                raise RequestError(
                    f"an image of {image.width} x {image.height} pixels is too narrow for this model: split it into tiles.",
                    413,
                )

    def _check_network_pixels(self, height: int, width: int, parameters: Parameters) -> None:
        config = self.model.config
        windows = choose_windows(config, parameters.window_size, parameters.window_stride)
        pixels = 0
        for scale in parameters.scales:
            size = (max(round(height * scale), 1), max(round(width * scale), 1))
            grid = WindowGrid(size, *(windows or (size, size)), config.small_image_mode)
            pixels += math.prod((*grid.crop_size, *grid.num_windows))
        pixels *= 2 if parameters.flip else 1
        if pixels > self.settings.max_network_pixels:
            raise RequestError(
                f"all windows, scales and flipped copies have {pixels} pixels, at most "
                f"{self.settings.max_network_pixels} are allowed: send a larger `window_stride`, fewer or smaller "
                "`scales`, or a smaller image.",
                413,
            )

    def _confidences(self, scores: torch.Tensor, parameters: Parameters) -> tuple[np.ndarray, np.ndarray]:
        """Scores `(num_labels, height, width)` -> labels and confidences `(height, width)`."""
        has_logits = not self._has_queries and not parameters.is_averaged
        num_labels, height, width = scores.shape
        band = max(1, _MAX_BAND_SCORES // (num_labels * width))
        labels, confidences = [], []
        for top in range(0, height, band):
            rows = scores[:, top : top + band].float()
            best, label = rows.max(dim=0)
            if has_logits:
                best = (best - rows.logsumexp(dim=0)).exp()
            labels.append(label.cpu().numpy())
            confidences.append(best.clamp(0, 1).nan_to_num(0).cpu().numpy())
        return np.concatenate(labels), np.concatenate(confidences)

    def _answer(
        self, labels: np.ndarray, confidences: np.ndarray | None, parameters: Parameters
    ) -> list[dict[str, Any]] | dict[str, Any]:
        """Labels and confidences `(height, width)` -> the answer."""
        num_labels = self.model.config.num_labels
        unlabeled = 255 if num_labels <= 255 else 65535
        if confidences is not None:
            labels = np.where(confidences < parameters.threshold, unlabeled, labels)
        counts = np.bincount(labels.ravel(), minlength=unlabeled + 1)
        totals = None if confidences is None else np.bincount(labels.ravel(), confidences.ravel(), unlabeled + 1)
        classes = [
            {
                "index": int(index),
                "label": self.model.config.id2label[int(index)],
                "score": None if totals is None else float(totals[index] / counts[index]),
                "share": float(counts[index] / labels.size),
            }
            for index in np.argsort(-counts[:num_labels], kind="stable")
            if counts[index]
        ]
        if parameters.output == "masks":
            for item in classes:
                item["mask"] = _png(PIL.Image.fromarray((labels == item.pop("index")).astype(np.uint8) * np.uint8(255)))
            return classes
        palette = _palette(self.model.config, num_labels)
        if unlabeled == 255:
            picture = PIL.Image.fromarray(labels.astype(np.uint8))
            # all 256 colors: with fewer, PNG would use fewer bits than the index of unlabeled pixels needs
            picture.putpalette(palette.tobytes().ljust(768, b"\0"))
        else:
            picture = PIL.Image.fromarray(labels.astype(np.uint16))
        return {
            "label_map": _png(picture),
            "height": labels.shape[0],
            "width": labels.shape[1],
            "classes": [{**item, "color": palette[item["index"]].tolist()} for item in classes],
            "unlabeled": {"index": unlabeled, "share": float(counts[unlabeled] / labels.size)},
        }


def _png(image: PIL.Image.Image) -> str:
    with BytesIO() as buffer:
        image.save(buffer, format="PNG", compress_level=3)
        return base64.b64encode(buffer.getvalue()).decode("ascii")


def _palette(config: Any, num_labels: int) -> np.ndarray:
    """Colors `(num_labels, 3)`, uint8: the palette of the configuration, otherwise Pascal VOC's without its black."""
    palette = np.asarray(getattr(config, "palette", None) or [])
    if palette.shape == (num_labels, 3):
        return palette.astype(np.uint8)
    index = np.arange(1, num_labels + 1)
    # bits 0, 3, 6, ... of the index become the bits of red from the highest on, the next ones those of green and blue
    bits = [sum((index >> (3 * level + band) & 1) << (7 - level) for level in range(8)) for band in range(3)]
    return np.stack(bits, axis=-1).astype(np.uint8)
