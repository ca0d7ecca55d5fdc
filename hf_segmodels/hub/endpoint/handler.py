# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Hosted inference: the custom handler of Hugging Face Inference Endpoints, for a model folder of hf_segmodels.

A copy of this file lies as `handler.py` in an exported folder and has to run where hf_segmodels is not installed. So it
imports nothing of it, and reads images by itself as `hf_segmodels.image_processing.read_image` does.

Requests, answers, limits and the environment variables that set them: docs/endpoints.md in hf_segmodels.
"""

import base64
import binascii
import contextlib
import gc
import http.client
import importlib
import ipaddress
import json
import logging
import math
import os
import reprlib
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation


logger = logging.getLogger(__name__)

# What Pillow decodes by itself: others, such as EPS, run programs.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_MAX_SIDE, _MAX_SCALES, _MAX_SCALE = 1 << 16, 16, 16.0
# floats of a band of rows in which confidences are computed
_BAND = 1 << 21


class RequestError(ValueError):
    """
    A request that cannot be answered, and what to do about it. Servers of the contract answer any `ValueError` with
    status 400 and its text; one that looks for `status_code` can be more precise.
    """

    def __init__(self, message: str, status_code: int = 400):
        super().__init__(message)
        self.status_code = status_code


class ServerError(RuntimeError):
    """What is not the request's fault: no memory (`status_code` 507), or an error in the model (500)."""

    def __init__(self, message: str, status_code: int = 500):
        super().__init__(message)
        self.status_code = status_code


@dataclass(frozen=True)
class Settings:
    """Each is read from the environment variable `HF_SEGMODELS_` and its name in capitals."""

    device: str = ""
    """CUDA where there is one if empty, otherwise the CPU."""
    dtype: str = "float32"
    max_bytes: int = 20_000_000
    """Of an image file."""
    max_pixels: int = 25_000_000
    """Of an image."""
    max_network_pixels: int = 100_000_000
    """That go through the network for one request: of all windows, at all scales, mirrored ones too."""
    max_scores: int = 250_000_000
    """Classes times pixels, where scores are needed."""
    max_concurrent: int = 1
    """Images that are decoded and segmented at the same time; others wait."""
    urls: str = "public"
    """Which are fetched: `public` addresses, `any` or `none`."""
    url_timeout: float = 10.0
    """Seconds, for the whole download."""

    @classmethod
    def from_environment(cls) -> "Settings":
        """
        Raises:
            ValueError: for a variable with a value that it cannot have.
        """
        values: dict[str, Any] = {}
        for item in fields(cls):
            name = f"HF_SEGMODELS_{item.name.upper()}"
            text = os.environ.get(name, "").strip()
            if not text:
                continue
            default: Any = item.default
            kind = type(default)
            try:
                values[item.name] = kind(text)
            except ValueError:
                raise ValueError(f"{name} is {text!r}: set it to a number such as {default}.") from None
            if kind is not str and not 0 < values[item.name] < math.inf:
                raise ValueError(f"{name} is {text!r}: set it to a number above 0.")
        settings = cls(**values)
        if settings.urls not in ("public", "any", "none"):
            raise ValueError(f"HF_SEGMODELS_URLS is {settings.urls!r}: set it to public, any or none.")
        if settings.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(
                f"HF_SEGMODELS_DTYPE is {settings.dtype!r}: set it to one of float32, bfloat16 and float16."
            )
        return settings


@dataclass(frozen=True)
class Parameters:
    """A request's `parameters`; a window or stride of `None` is the model's own."""

    window_size: int | list[int] | None = None
    window_stride: int | list[int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    threshold: float | None = None
    output: str = "masks"

    @property
    def is_averaged(self) -> bool:
        """Whether the model averages several inputs, which it does over softmax maps."""
        return len(self.scales) > 1 or self.flip


class EndpointHandler:
    """
    Segments one image for each call. Calls from several threads at a time are fine.

    Args:
        path (`str`, *optional*, defaults to `""`):
            Folder of the model; the one that this file is in if empty. Code that comes with the model is run.
        kwargs: What servers may pass besides is left alone.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is no model of hf_segmodels, or an environment variable has a value that it cannot have.
    """

    def __init__(self, path: str = "", **kwargs: Any):
        self.settings = settings = Settings.from_environment()
        folder = str(path or Path(__file__).resolve().parent)
        with contextlib.suppress(ImportError):
            # registers the models, for folders that come without code
            importlib.import_module("hf_segmodels")
        model = AutoModelForSemanticSegmentation.from_pretrained(
            folder, trust_remote_code=True, dtype=getattr(torch, settings.dtype)
        )
        if not hasattr(model, "predict"):
            raise ValueError(
                f"{type(model).__name__} in {folder} has no `predict`: this handler is for the models of hf_segmodels; "
                "serve others without a handler.py."
            )
        device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(device).eval()
        self.image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
        # scores of queries with masks are sums of probabilities, those of the other methods are logits
        self._has_queries = model.config.model_type == "segvit"
        self._turns = threading.BoundedSemaphore(settings.max_concurrent)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]] | dict[str, Any]:
        """
        Args:
            data (`dict`): Not changed.

                - **inputs** (`bytes`, `str` or `PIL.Image.Image`) -- an image file; that in base64, also as a data URL;
                  the URL of one; or an image.
                - **parameters** (`dict`, *optional*) -- see [`Parameters`].

        Returns:
            With `output` "masks" a list with a `dict` for each class that occurs, largest first:

            - **label** (`str`) -- the class.
            - **score** (`float` or `None`) -- mean confidence of its pixels; only with a `threshold`.
            - **mask** (`str`) -- PNG in base64, of the image's size: 255 where the class is, 0 elsewhere.
            - **share** (`float`) -- of the image's pixels.

            With "label_map" a `dict`:

            - **label_map** (`str`) -- PNG in base64, of the image's size: the index of each pixel's class, 8-bit with
              a palette, or 16-bit gray for more than 255 classes.
            - **height**, **width** (`int`).
            - **classes** (`list[dict]`) -- those that occur, largest first: `index`, `label`, `color` (red, green and
              blue), `share`, `score`.
            - **unlabeled** (`dict`) -- `index` (255 or 65535) and `share` of the pixels below the threshold.

        Raises:
            RequestError: for a request that cannot be answered; a `ValueError`, with `status_code` 400 or 413.
            ServerError: if memory runs out, or the model fails; a `RuntimeError`, with `status_code` 507 or 500.
        """
        try:
            source, parameters = self._check_request(data)
            with self._turns, torch.inference_mode():
                return self._segment(self._read(source), parameters)
        except (RequestError, ServerError):
            raise
        except Exception as error:
            if not _is_out_of_memory(error):
                logger.exception("Cannot answer a request.")
                raise ServerError(f"the model failed on this image: {_first_line(error)}") from None
        # past the handling of the error, whose traceback holds the tensors
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise ServerError("out of memory: send a smaller image, a smaller `window_size` or fewer `scales`.", 507)

    def _check_request(self, data: Any) -> tuple["bytes | PIL.Image.Image", Parameters]:
        """The image file, downloaded or decoded from base64 where need be, or image; and the parameters."""
        if not isinstance(data, dict) or data.get("inputs") is None:
            raise RequestError("there is no image: send JSON with the key `inputs`, or an image file.")
        unknown = sorted(map(str, data.keys() - {"inputs", "parameters", "options"}))
        if unknown:
            raise RequestError(
                f"unknown key {_short(unknown[0])} beside `inputs`: what it should do goes into `parameters`."
            )
        parameters = read_parameters(data.get("parameters"))
        source = data["inputs"]
        if isinstance(source, list):
            raise RequestError("`inputs` is a list: send one image for each request.")
        if isinstance(source, str):
            source = self._read_text(source.strip())
        if isinstance(source, (bytes, bytearray, memoryview)):
            source = bytes(source)
            self._check_bytes(len(source))
        elif not isinstance(source, PIL.Image.Image):
            raise RequestError(f"`inputs` is {_short(source)}: send an image file, that in base64, or the URL of one.")
        return source, parameters

    def _check_bytes(self, number: int) -> None:
        limit = self.settings.max_bytes
        if number > limit:
            raise RequestError(f"the image file has more than the {limit} bytes allowed: send a smaller one.", 413)

    def _read_text(self, text: str) -> bytes:
        settings = self.settings
        scheme = text[:8].partition(":")[0].lower()
        if scheme in ("http", "https"):
            if settings.urls == "none":
                raise RequestError("this server fetches no URLs: send the image itself, as bytes or in base64.")
            return fetch(text, settings.max_bytes, settings.url_timeout, settings.urls == "public")
        if scheme == "data":
            header, comma, text = text.partition(",")
            if not comma or not header[:100].lower().endswith(";base64"):
                raise RequestError("the data URL in `inputs` is not in base64: begin it with `data:image/png;base64,`.")
        elif "://" in text[:32]:
            raise RequestError("the URL in `inputs` begins with neither http:// nor https://: no others are fetched.")
        self._check_bytes(len(text) * 3 // 4 - 2)
        try:
            # line breaks are usual in base64
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            raise RequestError("the text in `inputs` is neither base64 nor a URL.") from None

    def _read(self, source: "bytes | PIL.Image.Image") -> PIL.Image.Image:
        """
        The image as 8-bit RGB, turned upright as its EXIF data says; the first picture of animations and of files with
        several pages. Nothing is decoded before its size is known to be allowed.
        """
        try:
            image = open_image(source) if isinstance(source, bytes) else source
        except PIL.Image.DecompressionBombError:
            raise self._too_many_pixels() from None
        except Exception as error:  # Pillow's readers of damaged files raise anything
            if _is_out_of_memory(error):
                raise
            known = ", ".join(_FORMATS)
            raise RequestError(f"`inputs` is no image that can be read: send one of {known}.") from None
        if image.width * image.height > self.settings.max_pixels:
            raise self._too_many_pixels()
        try:
            return to_rgb(PIL.ImageOps.exif_transpose(image))
        except Exception as error:
            if _is_out_of_memory(error):
                raise
            raise RequestError(f"the image in `inputs` is damaged: {_first_line(error)}") from None

    def _too_many_pixels(self) -> RequestError:
        limit = self.settings.max_pixels
        return RequestError(f"the image has more than the {limit} pixels allowed: send a smaller one.", 413)

    def _segment(self, image: PIL.Image.Image, parameters: Parameters) -> list[dict[str, Any]] | dict[str, Any]:
        with_scores = parameters.threshold is not None
        if with_scores and self._has_queries and parameters.is_averaged:
            raise RequestError(
                "this model's scores are probabilities, whose softmax maps are no confidences: leave `threshold` out, or "
                "`scales` and `flip`."
            )
        num_labels = self.model.config.num_labels
        if with_scores and num_labels * image.width * image.height > self.settings.max_scores:
            pixels = self.settings.max_scores // num_labels
            raise RequestError(
                f"a `threshold` needs the scores of {num_labels} classes, for which {pixels} pixels are allowed: send a "
                "smaller image or leave it out.",
                413,
            )
        self._check_processed_size(image)
        inputs = self.image_processor(images=[image], return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        self._check_network_pixels(inputs["pixel_values"].shape, parameters)
        try:
            (result,) = self.model.predict(
                **inputs,
                target_sizes=[(image.height, image.width)],
                window_size=parameters.window_size,
                window_stride=parameters.window_stride,
                scales=parameters.scales,
                flip=parameters.flip,
                return_scores=with_scores,
            )
        except ValueError as error:
            # windows and scales that make no sense for the model or the image
            raise RequestError(_first_line(error)) from None
        if not with_scores:
            return self._answer(result.cpu().numpy(), None, parameters)
        labels, confidences = self._confidences(result, parameters)
        return self._answer(labels, confidences, parameters)

    def _check_processed_size(self, image: PIL.Image.Image) -> None:
        """Stops images so narrow that making their shorter edge long enough makes the other one huge."""
        if not self.image_processor.do_resize:
            return
        size = dict(self.image_processor.size)
        if size.keys() <= {"shortest_edge", "longest_edge"} and "shortest_edge" in size:
            scale = size["shortest_edge"] / min(image.size)
            scale = min(scale, size.get("longest_edge", math.inf) / max(image.size))
            if image.width * image.height * scale**2 > self.settings.max_network_pixels:
                raise RequestError(
                    f"an image of {image.width} x {image.height} pixels is too narrow for this model: cut it into pieces.",
                    413,
                )

    def _check_network_pixels(self, shape: torch.Size, parameters: Parameters) -> None:
        height, width = shape[-2:]
        config = self.model.config
        window, stride = parameters.window_size, parameters.window_stride
        if window is None:
            window = getattr(config, "window_size", None)
            stride = getattr(config, "window_stride", None) if stride is None else stride
        pixels = 0.0
        for scale in parameters.scales:
            size = (max(round(height * scale), 1), max(round(width * scale), 1))
            pixels += _window_pixels(size, window, stride, getattr(config, "small_image_mode", "none"))
        pixels *= 2 if parameters.flip else 1
        limit = self.settings.max_network_pixels
        if pixels > limit:
            raise RequestError(
                f"windows, scales and mirrored copies have {pixels:.0f} pixels together and {limit} are allowed: send a "
                "larger `window_stride`, fewer or smaller `scales`, or a smaller image.",
                413,
            )

    def _confidences(self, scores: torch.Tensor, parameters: Parameters) -> tuple[np.ndarray, np.ndarray]:
        """Scores `(num_labels, height, width)` -> labels and confidences `(height, width)`."""
        has_logits = not self._has_queries and not parameters.is_averaged
        num_labels, height, width = scores.shape
        band = max(1, _BAND // (num_labels * width))
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
        """From labels and confidences `(height, width)` to what is sent."""
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
            return [
                {
                    "label": item["label"],
                    "score": item["score"],
                    "mask": _png(PIL.Image.fromarray((labels == item["index"]).astype(np.uint8) * np.uint8(255))),
                    "share": item["share"],
                }
                for item in classes
            ]
        palette = _palette(self.model.config, num_labels)
        if unlabeled == 255:
            picture = PIL.Image.fromarray(labels.astype(np.uint8))
            # all 256 colors: with few, PNG would have fewer bits than the index of unlabeled pixels needs
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


# Parameters


def read_parameters(values: Any) -> Parameters:
    """
    Checks a request's `parameters`. Those of a query, `?flip=true`, come as text, which is read as JSON.

    Raises:
        RequestError: for an unknown one, or a value that it cannot have.
    """
    if values is None:
        return Parameters()
    if not isinstance(values, dict):
        raise RequestError(f"`parameters` is {_short(values)}: send an object such as {{}}.")
    options = {}
    for name, value in values.items():
        if name not in _READERS:
            known = ", ".join(_READERS)
            raise RequestError(f"unknown parameter {_short(name)}: known ones are {known}.")
        if value is not None:
            options[name] = _READERS[name](f"parameter `{name}`", _parsed(value))
    options.pop("subtask", None)  # known to clients, but there is only one
    return Parameters(**options)


def _parsed(value: Any) -> Any:
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _is_integer(value: Any, low: int) -> bool:
    return type(value) is int and low <= value <= _MAX_SIDE


def _read_side(name: str, value: Any, low: int) -> int | list[int]:
    if _is_integer(value, low):
        return value
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(_is_integer(side, 1) for side in value):
        return list(value)
    raise RequestError(
        f"{name} is {_short(value)}: send a number from {low} to {_MAX_SIDE}, or [height, width] of them from 1 on."
    )


def _read_scales(name: str, value: Any) -> tuple[float, ...]:
    scales = value if isinstance(value, (list, tuple)) else [value]
    if not 1 <= len(scales) <= _MAX_SCALES or not all(
        type(scale) in (int, float) and 0 < scale <= _MAX_SCALE for scale in scales
    ):
        raise RequestError(
            f"{name} is {_short(value)}: send a list of 1 to {_MAX_SCALES} factors, above 0 and up to {_MAX_SCALE:g}."
        )
    return tuple(float(scale) for scale in scales)


def _read_flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise RequestError(f"{name} is {_short(value)}: send true or false.")
    return value


def _read_fraction(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise RequestError(f"{name} is {_short(value)}: send a number from 0 to 1.")
    return float(value)


def _choice(*known: str) -> Callable[[str, Any], str]:
    def read(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in known:
            raise RequestError(f"{name} is {_short(value)}: send {' or '.join(known)}.")
        return value

    return read


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "window_size": lambda name, value: _read_side(name, value, 0),
    "window_stride": lambda name, value: _read_side(name, value, 1),
    "scales": _read_scales,
    "flip": _read_flag,
    "threshold": _read_fraction,
    "output": _choice("masks", "label_map"),
    "subtask": _choice("semantic"),
}


def _window_pixels(size: tuple[int, int], window: Any, stride: Any, small_image_mode: str) -> float:
    """Pixels of all windows of an image; windows that make no sense are left to the model to refuse."""
    if window is None or window in (0, [0, 0], (0, 0)):
        return size[0] * size[1]
    window = [window, window] if isinstance(window, int) else window
    stride = window if stride is None else [stride, stride] if isinstance(stride, int) else stride
    if small_image_mode == "none":
        window = [min(side, limit) for side, limit in zip(window, size, strict=True)]
    factor = max(1.0, *(limit / side for side, limit in zip(size, window, strict=True)))
    if small_image_mode != "upscale":
        factor = 1.0
    pixels = 1.0
    for side, limit, step in zip(size, window, stride, strict=True):
        pixels *= limit * (1 + math.ceil(max(side * factor - limit, 0) / step))
    return pixels


# Images


def open_image(data: bytes) -> PIL.Image.Image:
    """Reads an image file as far as its header."""
    PIL.Image.init()
    return PIL.Image.open(BytesIO(data), formats=[name for name in _FORMATS if name in PIL.Image.OPEN])


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """
    Converts an image of any mode to 8-bit RGB.

    Transparent parts become white. 16-bit grays are divided by 257; 32-bit ones are scaled from their lowest to their
    highest value.
    """
    if image.mode.startswith("I;16"):
        return _gray_to_rgb(np.asarray(image), 0, 65535)
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        return _gray_to_rgb(values, values.min(), values.max())
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _gray_to_rgb(values: np.ndarray, low: float, high: float) -> PIL.Image.Image:
    # Pillow's own conversion cuts everything above 255 off
    scaled = (values.astype(np.float64) - low) * (255 / max(high - low, 1e-12))
    return PIL.Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")


def _png(image: PIL.Image.Image) -> str:
    with BytesIO() as buffer:
        image.save(buffer, format="PNG", compress_level=3)
        return base64.b64encode(buffer.getvalue()).decode("ascii")


def _palette(config: Any, num_labels: int) -> np.ndarray:
    """Colors `(num_labels, 3)`, uint8: the configuration's, where it has some, or Pascal VOC's without its black."""
    palette = np.asarray(getattr(config, "palette", None) or [])
    if palette.shape == (num_labels, 3):
        return palette.astype(np.uint8)
    index = np.arange(1, num_labels + 1)
    # bits 0, 3, 6, ... of the index are red's from the highest on, then green's and blue's
    bits = [sum((index >> (3 * level + band) & 1) << (7 - level) for level in range(8)) for band in range(3)]
    return np.stack(bits, axis=-1).astype(np.uint8)


# URLs


def fetch(url: str, max_bytes: int, timeout: float, public_only: bool) -> bytes:
    """
    Downloads an image. Redirects are not followed, and the address that was checked is the one connected to.

    Raises:
        RequestError: if the URL is none, its host is not public, there is no answer in time, or it is too large.
    """
    deadline = time.monotonic() + timeout
    try:
        parts = urllib.parse.urlsplit(url)
        host, is_secure = (parts.hostname or "").encode("idna").decode("ascii"), parts.scheme == "https"
        port = parts.port or (443 if is_secure else 80)
    except ValueError:
        host = ""
    if not host or parts.username is not None:
        raise RequestError("the URL in `inputs` cannot be read: send one such as https://example.com/photo.jpg.")
    target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        target += "?" + urllib.parse.quote(parts.query, safe="/?%:@!$&'()*+,;=~-._[]")
    try:
        addresses = [entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        if public_only and not all(is_public(str(address)) for address in addresses):
            raise RequestError("the URL in `inputs` leads to an address that is not public: send the image itself.")
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
        with contextlib.closing(connection):
            connection.sock = _connect(addresses, port, deadline)
            sockets = [connection.sock]  # the connection forgets its own while the answer is still being read
            # a server that sends a byte now and then would not run into the socket's own timeout
            timer = threading.Timer(max(deadline - time.monotonic(), 0), _shut_down, [sockets])
            timer.start()
            try:
                if is_secure:
                    context = ssl.create_default_context()
                    connection.sock = context.wrap_socket(
                        connection.sock, server_hostname=host, do_handshake_on_connect=False
                    )
                    sockets.append(connection.sock)
                    connection.sock.do_handshake()
                return _download(connection, target, max_bytes, deadline)
            finally:
                timer.cancel()
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        if time.monotonic() >= deadline or isinstance(error, TimeoutError):
            raise _timed_out() from None
        raise RequestError(f"cannot fetch the URL in `inputs`: {_first_line(error)}") from None


def _download(connection: http.client.HTTPConnection, target: str, max_bytes: int, deadline: float) -> bytes:
    headers = {"Accept": "image/*", "User-Agent": "hf_segmodels", "Connection": "close"}
    connection.request("GET", target, headers=headers)
    with connection.getresponse() as response:
        if response.status != 200:
            hint = " (redirects are not followed)" if 300 <= response.status < 400 else ""
            raise RequestError(f"the URL in `inputs` answered with status {response.status}{hint}.")
        data = response.read(max_bytes + 1)
    if time.monotonic() >= deadline:  # the answer may be a part of the file
        raise _timed_out()
    if len(data) > max_bytes:
        raise RequestError(
            f"the file at the URL in `inputs` has more than the {max_bytes} bytes allowed: send a smaller one.", 413
        )
    return data


def _timed_out() -> RequestError:
    return RequestError("the URL in `inputs` took too long: send the image itself.")


def _connect(addresses: list[Any], port: int, deadline: float) -> socket.socket:
    """Connects to the first address that answers."""
    error: OSError = OSError("the host has no address")
    for address in addresses:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        try:
            return socket.create_connection((str(address), port), timeout=remaining)
        except OSError as failure:
            error = failure
    raise error


def _shut_down(sockets: list[socket.socket]) -> None:
    for item in sockets:
        with contextlib.suppress(OSError):
            item.shutdown(socket.SHUT_RDWR)


def is_public(address: str) -> bool:
    """Whether an IP address is neither private, loopback, link-local nor reserved, and stands for none that is."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    embedded = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    if embedded is not None:
        return is_public(str(embedded))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


# Errors


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)  # torch's allocator on CPUs raises a plain RuntimeError
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text)


def _short(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # numbers with thousands of digits
        return type(value).__name__


def _first_line(error: BaseException) -> str:
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)
