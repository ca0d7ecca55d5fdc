# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The demo without its page: models in memory, segmentation of uploaded files, and views. Imports no Gradio."""

import argparse
import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard
from PIL import Image

from ..image_processing import read_image
from ..inference import choose_windows
from ..inference.predictor import Predictor, load_predictor
from ..inference.window_grid import WindowGrid
from ..utils.arguments import parse_pixels, parse_window
from ..utils.errors import UserError, first_line
from ..visualization import ClassShare, add_legend, class_shares, overlay, palette_for
from .sample import DEMO_MODEL
from .views import MethodView, ViewSelection, method_views


SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
DEFAULT_LONG_EDGE = 2048

_DEMO_MODEL_NAME = "demo model (street scenes)"
# Decoded, this many pixels take 300 MB.
_MAX_PIXELS = 100_000_000
_MAX_ASPECT = 12
_MAX_WINDOWS = 1000


@dataclass
class ModelCache:
    """
    Models by name, loaded on first use. The most recently used models stay in memory while their weights take at most
    `memory_limit` bytes. A larger model stays in memory alone while it is in use.
    """

    sources: dict[str, str]
    """Folder or repository of each model by its name."""
    device: str | None = None
    dtype: str = "float32"
    memory_limit: int = 4 << 30
    loaded: OrderedDict[str, Predictor] = field(default_factory=OrderedDict, init=False)
    """Models in memory by name, least recently used first."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def get(self, name: str) -> Predictor:
        """
        Return a model. Loads it if it is not in memory.

        Raises:
            UserError: if the name is unknown or the model cannot be loaded.
        """
        if name not in self.sources:
            raise UserError(f"there is no model {name!r} here: choose one of {', '.join(self.sources)}.")
        with self._lock:
            if name not in self.loaded:
                self.loaded[name] = load_predictor(self.sources[name], device=self.device, dtype=self.dtype)
            self.loaded.move_to_end(name)
            while len(self.loaded) > 1 and sum(map(_num_bytes, self.loaded.values())) > self.memory_limit:
                self.loaded.popitem(last=False)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            return self.loaded[name]


def _num_bytes(predictor: Predictor) -> int:
    return sum(tensor.nbytes for tensor in (*predictor.model.parameters(), *predictor.model.buffers()))


def name_models(models: Sequence[str]) -> dict[str, str]:
    """
    Map the names shown on the page to the models. Repositories keep their names. Folders are shown by their last part only,
    so that visitors do not learn their location; equal names are numbered. Without models, the packaged model is used.
    """
    names: dict[str, str] = {}
    for model in dict.fromkeys(models or [str(DEMO_MODEL)]):
        path = Path(model).expanduser()
        name = path.resolve().name if path.exists() else model.strip("/")
        if path.resolve() == DEMO_MODEL.resolve():
            name = _DEMO_MODEL_NAME
        candidates = chain([name], (f"{name} ({number})" for number in count(2)))
        names[next(candidate for candidate in candidates if candidate not in names)] = model
    return names


@dataclass(frozen=True)
class PredictOptions:
    """Options of a segmentation, as entered on the page."""

    window: str = ""
    """`"512"`, `"768x1024"`, `"0"` for the whole image, or empty for the model's own window."""
    stride: str = ""
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def for_predict(self) -> dict[str, Any]:
        """
        Return the arguments of `predict` that differ from its defaults.

        Raises:
            UserError: if window or stride is not a number of pixels, or a scale is not one of [`SCALES`].
        """
        options: dict[str, Any] = {}
        windows = ("window_size", self.window, parse_window), ("window_stride", self.stride, parse_pixels)
        for name, text, parse in windows:
            if text and text.strip():
                try:
                    options[name] = parse(text.strip())
                except argparse.ArgumentTypeError as error:
                    raise UserError(f"{error}.") from error
        scales = tuple(sorted(self.scales or (1.0,)))
        if not set(scales) <= set(SCALES):
            raise UserError(f"the scales are {', '.join(map(str, SCALES))}.")
        if scales != (1.0,):
            options["scales"] = scales
        if self.flip:
            options["flip"] = True
        return options


@dataclass(frozen=True)
class SegmentedPhoto:
    """
    A segmented RGB image of one visitor, with its classes, largest first, and the name, views and class names of the
    model. The notes are size, number of classes, time, and scaling, for the page.
    """

    image: Image.Image
    label_map: np.ndarray  # (height, width)
    shares: list[ClassShare]
    palette: np.ndarray  # (num_labels, 3), from 0 to 255
    model: str
    views: tuple[MethodView, ...]
    id2label: dict[int, str]
    notes: tuple[str, ...]

    def view(self, name: str | None) -> MethodView | None:
        """Return the view of that name; `None` if the model does not support it."""
        return next((view for view in self.views if view.name == name), None)

    def picture(self, opacity: float) -> Image.Image:
        """Draw the overlay with a legend. `opacity` is from 0 to 100."""
        labels = self.label_map.astype(np.int64)
        painted = overlay(self.image, labels, self.palette, opacity / 100, ignore_index=None)
        return add_legend(painted, self.shares, self.palette)


@dataclass
class DemoSession:
    """Actions of the page."""

    models: ModelCache
    long_edge: int = DEFAULT_LONG_EDGE
    """Larger images are scaled down to this long edge."""

    def segment(self, path: str | None, model: str, options: PredictOptions = PredictOptions()) -> SegmentedPhoto:
        """
        Read an image file, and segment it by the model of a name.

        Raises:
            UserError: if there is no file, if file or options cannot be used, or if the model fails.
        """
        if not path:
            raise UserError("choose a photograph first.")
        image, notes = self._read(path)
        predictor = replace(self.models.get(model), options=options.for_predict())
        start = time.perf_counter()
        label_map = _call_model(_predict, predictor, image)
        seconds = time.perf_counter() - start
        shares = class_shares(label_map, predictor.id2label, ignore_index=None)
        num_classes = f"{len(shares)} class{'es' if len(shares) != 1 else ''}"
        return SegmentedPhoto(
            image=image,
            label_map=label_map.astype(np.uint8 if len(predictor.id2label) <= 256 else np.uint16),
            shares=shares,
            palette=palette_for(predictor.model.config),
            model=model,
            views=tuple(method_views(predictor.model)),
            id2label=dict(predictor.id2label),
            notes=(f"{image.width} x {image.height} pixels", num_classes, f"{seconds:.1f} s with {model}", *notes),
        )

    def _read(self, path: str) -> tuple[Image.Image, list[str]]:
        try:
            with Image.open(path) as file:
                width, height = file.size
            if width * height > _MAX_PIXELS:
                raise UserError(
                    f"the image has {width} x {height} pixels, more than {_MAX_PIXELS // 10**6} million: scale it down."
                )
            if max(width, height) > _MAX_ASPECT * min(width, height):
                raise UserError(
                    f"the aspect ratio of the image ({width} x {height} pixels) is too large: crop it to at most "
                    f"{_MAX_ASPECT} times its shorter side."
                )
            image = read_image(path)
        except UserError:
            raise
        except Exception as error:  # decoders raise any exception for damaged files
            reason = first_line(error).replace(str(path), "the file").replace(repr(str(path)), "the file")
            raise UserError(f"the file cannot be read as an image ({reason}): try a JPEG or PNG file.") from error
        image.info.clear()  # results must not contain where and when a photograph was taken
        if max(image.size) <= self.long_edge:
            return image, []
        original = f"{image.width} x {image.height}"
        image.thumbnail((self.long_edge, self.long_edge), Image.Resampling.LANCZOS, reducing_gap=2.0)
        return image, [f"scaled down from {original}"]

    def view(self, photo: SegmentedPhoto, name: str, selection: ViewSelection) -> Image.Image:
        """
        Draw a view into the model.

        Raises:
            UserError: if the model has no view `name`, or fails.
        """
        view = photo.view(name)
        if view is None:
            raise UserError(f"{photo.model} has no view {name!r}: choose another.")
        return _call_model(view.draw, self.models.get(photo.model), photo.image, selection)


def _predict(predictor: Predictor, image: Image.Image) -> np.ndarray:
    inputs = predictor.prepare(image)
    if hasattr(predictor.model, "predict"):
        _check_number_of_windows(predictor, inputs["pixel_values"])
    elif predictor.options:
        raise UserError("this model does not support window, stride, scales and flip: reset them to their defaults.")
    return predictor.predict([inputs], [(image.height, image.width)])[0]


def _check_number_of_windows(predictor: Predictor, pixel_values: torch.Tensor) -> None:
    """Refuse windows so small that other visitors would wait for hours."""
    options = predictor.options
    windows = choose_windows(predictor.model.config, options.get("window_size"), options.get("window_stride"))
    if windows is None:
        return
    total = 0
    for scale in options.get("scales", (1.0,)):
        height, width = (round(side * scale) for side in pixel_values.shape[-2:])
        total += math.prod(WindowGrid((height, width), *windows).num_windows) * (2 if options.get("flip") else 1)
    if total > _MAX_WINDOWS:
        raise UserError(
            f"these options make {total} windows, more than {_MAX_WINDOWS}: choose a larger window or stride."
        )


def _call_model(function: Callable, *arguments: Any) -> Any:
    """Call a function that runs a model. Its failures become [`UserError`]."""
    try:
        return function(*arguments)
    except torch.OutOfMemoryError as error:
        raise UserError("out of memory: try a smaller window, fewer scales, or a smaller image.") from error
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the model failed: {first_line(error)}") from error


def license_note(source: str) -> str:
    """Return the license in the card of a model, a folder or a repository on the Hub, as a line of Markdown."""
    path = Path(source).expanduser()
    try:
        data = ModelCard.load(path / "README.md" if path.is_dir() else source).data.to_dict()
    except Exception:  # offline, no card, or invalid metadata
        return "License of the model: unknown (no model card)."
    # "other" refers to the name of a custom license.
    license = data.get("license_name") if data.get("license") in (None, "other") else data.get("license")
    license = re.sub(r"[^\w .,:+()/-]", "", str(license or "not stated"))
    link = str(data.get("license_link") or "")
    if re.fullmatch(r"https?://[^\s()<>]+", link):
        license = f"[{license}]({link})"
    where = "" if path.is_dir() else f" ([model card](https://huggingface.co/{source}))"
    return f"License of the model: {license}{where}."
