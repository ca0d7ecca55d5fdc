# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Requests to the endpoint handler: its limits, the parameters of a request, and the image in it."""

import base64
import binascii
import contextlib
import json
import math
import os
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from io import BytesIO
from typing import Any

import PIL.Image
import PIL.ImageOps

from ...image_processing.rgb_images import to_rgb
from ...utils.errors import first_line
from .download import fetch
from .errors import RequestError, is_out_of_memory


# Formats that Pillow decodes itself. For others, such as EPS, Pillow runs external programs.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_MAX_SIDE, _MAX_SCALES, _MAX_SCALE = 1 << 16, 16, 16.0


@dataclass(frozen=True)
class Settings:
    """Settings of a handler. Each is read from an environment variable: `HF_SEGMODELS_` and the name in capitals."""

    device: str = ""  # CUDA if it is available, otherwise the CPU
    dtype: str = "float32"  # or "bfloat16", "float16"
    max_bytes: int = 20_000_000  # size of an image file
    max_pixels: int = 25_000_000  # size of an image
    max_network_pixels: int = 100_000_000  # all windows of one request, at all scales, flipped copies included
    max_scores: int = 250_000_000  # classes times pixels, for requests that need scores
    max_concurrent: int = 1  # images that are decoded and segmented at the same time; other requests wait
    urls: str = "public"  # which URLs are fetched: "public" addresses, "any" or "none"
    url_timeout: float = 10.0  # seconds for a whole download

    @classmethod
    def from_environment(cls) -> "Settings":
        """
        Read the settings from the environment; an unset or empty variable keeps the default.

        Raises:
            ValueError: if a variable is not one of the allowed values, or not a positive finite number.
        """
        choices = {"urls": ("public", "any", "none"), "dtype": ("float32", "bfloat16", "float16")}
        values: dict[str, Any] = {}
        for item in fields(cls):
            name = f"HF_SEGMODELS_{item.name.upper()}"
            text = os.environ.get(name, "").strip()
            if not text:
                continue
            if item.name in choices and text not in choices[item.name]:
                raise ValueError(f"{name} is {text!r}: set it to one of {', '.join(choices[item.name])}.")
            default: Any = item.default
            try:
                values[item.name] = value = type(default)(text)
            except ValueError:
                value = math.nan
            if not isinstance(value, str) and not 0 < value < math.inf:
                raise ValueError(f"{name} is {text!r}: set it to a number above 0, such as {default}.")
        return cls(**values)


@dataclass(frozen=True)
class Parameters:
    """The `parameters` of a request. Sizes are pixels or `[height, width]`; the model has defaults for them."""

    window_size: int | list[int] | None = None  # 0 is the whole image
    window_stride: int | list[int] | None = None  # `window_size`, if only that is set
    scales: tuple[float, ...] = (1.0,)  # factors that the image is resized by
    flip: bool = False  # whether to average with flipped copies
    threshold: float | None = None  # confidence below which a pixel gets no class; by default all pixels get one
    output: str = "masks"  # or "label_map"

    @property
    def is_averaged(self) -> bool:
        """Whether the model averages the softmax maps of several inputs."""
        return len(self.scales) > 1 or self.flip


def read_request(data: Any, settings: Settings) -> tuple["bytes | PIL.Image.Image", Parameters]:
    """
    Check a request, and get its image file by download or from base64. Returns the file or image, not decoded yet, and
    the parameters.

    Raises:
        RequestError: if there is no image, a key or parameter is unknown or invalid, or the file is too large.
    """
    if not isinstance(data, dict) or data.get("inputs") is None:
        raise RequestError("there is no image: send JSON with the key `inputs`, or an image file.")
    unknown = sorted(map(str, data.keys() - {"inputs", "parameters", "options"}))
    if unknown:
        raise RequestError(f"unknown key {_short(unknown[0])} next to `inputs`: put options into `parameters`.")
    parameters = read_parameters(data.get("parameters"))
    source = data["inputs"]
    if isinstance(source, list):
        raise RequestError("`inputs` is a list: send one image for each request.")
    if isinstance(source, str):
        source = _read_text(source.strip(), settings)
    if isinstance(source, (bytes, bytearray, memoryview)):
        source = bytes(source)
        _check_bytes(len(source), settings)
    elif not isinstance(source, PIL.Image.Image):
        raise RequestError(f"`inputs` is {_short(source)}: send an image file, as bytes, in base64 or as a URL.")
    return source, parameters


def _check_bytes(number: int, settings: Settings) -> None:
    limit = settings.max_bytes
    if number > limit:
        raise RequestError(f"the image file has more than the {limit} bytes allowed: send a smaller one.", 413)


def _read_text(text: str, settings: Settings) -> bytes:
    scheme = text[:8].partition(":")[0].lower()
    if scheme in ("http", "https"):
        if settings.urls == "none":
            raise RequestError("this server fetches no URLs: send the image itself, as bytes or in base64.")
        return fetch(text, settings.max_bytes, settings.url_timeout, settings.urls == "public")
    if scheme == "data":
        header, comma, text = text.partition(",")
        if not comma or not header[:100].lower().endswith(";base64"):
            raise RequestError("the data URL in `inputs` is not in base64: start it with `data:image/png;base64,`.")
    elif "://" in text[:32]:
        raise RequestError("the URL in `inputs` has an unsupported scheme: only http:// and https:// are fetched.")
    _check_bytes(len(text) * 3 // 4 - 2, settings)
    try:
        # line breaks are usual in base64
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RequestError("the text in `inputs` is neither base64 nor a URL.") from None


def read_image(source: "bytes | PIL.Image.Image", settings: Settings) -> PIL.Image.Image:
    """
    Decode an image as 8-bit RGB, rotated as its EXIF data says. Animations and files with several pages give their first
    picture. The size is checked before the pixels are decoded.

    Raises:
        RequestError: if the file is damaged or its format is not supported, or the image is too large.
    """
    too_large = RequestError(
        f"the image has more than the {settings.max_pixels} pixels allowed: send a smaller one.", 413
    )
    try:
        if isinstance(source, bytes):
            PIL.Image.init()
            readable = [name for name in _FORMATS if name in PIL.Image.OPEN]
            source = PIL.Image.open(BytesIO(source), formats=readable)  # reads the header
    except PIL.Image.DecompressionBombError:
        raise too_large from None
    except Exception as error:  # Pillow raises errors of any type for damaged files
        if is_out_of_memory(error):
            raise
        raise RequestError(f"`inputs` is not a readable image: send one of {', '.join(_FORMATS)}.") from None
    if source.width * source.height > settings.max_pixels:
        raise too_large
    try:
        return to_rgb(PIL.ImageOps.exif_transpose(source))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise RequestError(f"the image in `inputs` is damaged: {first_line(error)[:300]}") from None


def read_parameters(values: Any) -> Parameters:
    """
    Check the `parameters` of a request. Parameters of a query, such as `?flip=true`, are text and are read as JSON.

    Raises:
        RequestError: if a parameter is unknown or its value is not allowed.
    """
    if values is None:
        return Parameters()
    if not isinstance(values, dict):
        raise RequestError(f"`parameters` is {_short(values)}: send an object such as {{}}.")
    options = {}
    for name, value in values.items():
        if name not in PARAMETERS:
            raise RequestError(f"unknown parameter {_short(name)}: known ones are {', '.join(PARAMETERS)}.")
        if value is None:
            continue
        if isinstance(value, str):
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(value)
        is_allowed, allowed = PARAMETERS[name]
        if not is_allowed(value):
            raise RequestError(f"parameter `{name}` is {_short(value)}: send {allowed}.")
        options[name] = value
    options.pop("subtask", None)  # clients may send it, but there is only one
    if "scales" in options:
        scales = options["scales"]
        options["scales"] = tuple(map(float, scales if isinstance(scales, (list, tuple)) else [scales]))
    return Parameters(**options)


def _is_number(value: Any, low: float, high: float) -> bool:
    # `type`, since `bool` is a subclass of `int`
    return type(value) in (int, float) and low <= value <= high


def _is_size(value: Any, low: int) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) == 2 and all(type(side) is int and 1 <= side <= _MAX_SIDE for side in value)
    return type(value) is int and low <= value <= _MAX_SIDE


def _are_scales(value: Any) -> bool:
    scales = value if isinstance(value, (list, tuple)) else [value]
    return 1 <= len(scales) <= _MAX_SCALES and all(_is_number(s, 0, _MAX_SCALE) and s > 0 for s in scales)


_SIZE = f"a number from {{}} to {_MAX_SIDE}, or [height, width] with numbers from 1"
PARAMETERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "window_size": (lambda value: _is_size(value, 0), _SIZE.format(0)),
    "window_stride": (lambda value: _is_size(value, 1), _SIZE.format(1)),
    "scales": (_are_scales, f"a list of 1 to {_MAX_SCALES} factors, above 0 and up to {_MAX_SCALE:g}"),
    "flip": (lambda value: type(value) is bool, "true or false"),
    "threshold": (lambda value: _is_number(value, 0, 1), "a number from 0 to 1"),
    "output": (lambda value: value in ("masks", "label_map"), "masks or label_map"),
    "subtask": (lambda value: value == "semantic", "semantic"),
}
"""For each parameter, whether a value is allowed, and the allowed values in words."""


def _short(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # numbers with thousands of digits
        return type(value).__name__
