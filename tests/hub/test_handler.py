# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Endpoint handler: answers, refused requests, and robustness under load and with malformed requests."""

import base64
import http.server
import io
import json
import logging
import random
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import InferenceClient
from PIL import Image, PngImagePlugin
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from common.tiny_models import METHODS, save_tiny_model, smooth_image
from common.tiny_segmenter import CLASS_NAMES, save_tiny_segmenter
from hf_segmodels.hub import export_for_hub
from hf_segmodels.hub.endpoint.download import fetch, is_public
from hf_segmodels.hub.endpoint.handler import EndpointHandler, RequestError, ServerError
from hf_segmodels.hub.endpoint.requests import PARAMETERS, Settings
from hf_segmodels.image_processing import read_image


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, format=format, **options)
        return buffer.getvalue()


def decode(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def to_label_map(segments: list[dict]) -> np.ndarray:
    """Masks as one label map, -1 outside of all masks; fails if masks overlap."""
    masks = np.stack([decode(segment["mask"]) for segment in segments])
    assert set(np.unique(masks)) <= {0, 255}
    assert ((masks == 255).sum(axis=0) <= 1).all()
    indices = np.array([CLASS_NAMES.index(segment["label"]) for segment in segments])
    return np.where((masks == 255).any(axis=0), indices[masks.argmax(axis=0)], -1)


def predict(folder: Path, image: Image.Image, **options) -> np.ndarray:
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    inputs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    (result,) = model.predict(**inputs, target_sizes=[(image.height, image.width)], **options)
    return result.numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny exported Segmenter."""
    saved = save_tiny_segmenter(tmp_path_factory.mktemp("saved"))
    model = AutoModelForSemanticSegmentation.from_pretrained(saved)
    image_processor = AutoImageProcessor.from_pretrained(saved)
    return export_for_hub(model, image_processor, tmp_path_factory.mktemp("model"), card="A card.")


@pytest.fixture(scope="module")
def handler(folder) -> EndpointHandler:
    return EndpointHandler(str(folder))


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return smooth_image()


class TestAnswers:
    @pytest.mark.parametrize("method", METHODS)
    def test_masks_are_those_of_predict(self, method, tmp_path, image):
        folder = save_tiny_model(method, tmp_path, window_size=32, window_stride=16)
        handler = EndpointHandler(str(folder))
        for parameters, options in [
            ({}, {}),
            ({"window_size": 0}, {"window_size": 0}),
            (
                {"window_size": [32, 40], "window_stride": [20, 10]},
                {"window_size": (32, 40), "window_stride": (20, 10)},
            ),
            ({"scales": [0.75, 1.5], "flip": True}, {"scales": (0.75, 1.5), "flip": True}),
        ]:
            expected = predict(folder, image, **options)
            segments = handler({"inputs": image, "parameters": parameters})
            np.testing.assert_array_equal(to_label_map(segments), expected)
            shares = {segment["label"]: segment["share"] for segment in segments}
            assert shares == {CLASS_NAMES[label]: (expected == label).mean() for label in np.unique(expected)}
            assert list(shares.values()) == sorted(shares.values(), reverse=True)
            assert all(segment["score"] is None for segment in segments)

    @pytest.mark.parametrize("method", METHODS)
    def test_threshold(self, method, tmp_path, image):
        folder = save_tiny_model(method, tmp_path)
        handler = EndpointHandler(str(folder))
        scores = torch.from_numpy(predict(folder, image, return_scores=True))
        # several queries may predict the same class
        probabilities = scores.clamp(max=1) if method == "SegViT" else scores.softmax(dim=0)
        confidence, labels = probabilities.amax(dim=0).numpy(), scores.argmax(dim=0).numpy()
        threshold = float(np.median(confidence))
        segments = handler({"inputs": image, "parameters": {"threshold": threshold}})
        np.testing.assert_array_equal(to_label_map(segments), np.where(confidence < threshold, -1, labels))
        for segment in segments:
            mask = decode(segment["mask"]) == 255
            assert segment["score"] == pytest.approx(confidence[mask].mean(), rel=1e-5)
        assert sum(segment["share"] for segment in segments) == pytest.approx((confidence >= threshold).mean())

    def test_no_pixel_above_the_threshold(self, handler, image):
        assert handler({"inputs": image, "parameters": {"threshold": 1.0}}) == []
        answer = handler({"inputs": image, "parameters": {"threshold": 1.0, "output": "label_map"}})
        assert (decode(answer["label_map"]) == 255).all()
        assert (answer["classes"], answer["unlabeled"]) == ([], {"index": 255, "share": 1.0})

    def test_threshold_of_averaged_inputs(self, folder, handler, image):
        options = {"scales": (0.5, 1.0), "flip": True}
        confidence = predict(folder, image, return_scores=True, **options).max(axis=0)
        threshold = float(np.median(confidence))
        segments = handler({"inputs": image, "parameters": {"threshold": threshold, **options}})
        np.testing.assert_array_equal(to_label_map(segments) == -1, confidence < threshold)

    def test_threshold_of_averaged_queries_is_refused(self, tmp_path, image):
        handler = EndpointHandler(str(save_tiny_model("SegViT", tmp_path)))
        with pytest.raises(RequestError, match="leave `threshold` out"):
            handler({"inputs": image, "parameters": {"threshold": 0.5, "flip": True}})

    def test_label_map(self, folder, handler, image):
        expected = predict(folder, image)
        answer = handler({"inputs": image, "parameters": {"output": "label_map"}})
        np.testing.assert_array_equal(decode(answer["label_map"]), expected)
        assert (answer["height"], answer["width"]) == (40, 50)
        assert answer["unlabeled"] == {"index": 255, "share": 0.0}
        colors = Image.open(io.BytesIO(base64.b64decode(answer["label_map"]))).convert("RGB")
        for item in answer["classes"]:
            assert item["label"] == CLASS_NAMES[item["index"]]
            assert item["share"] == (expected == item["index"]).mean()
            assert (np.asarray(colors)[expected == item["index"]] == item["color"]).all()
        assert len({tuple(item["color"]) for item in answer["classes"]}) == len(answer["classes"]) > 1

    @pytest.mark.parametrize(("num_labels", "unlabeled"), [(255, 255), (256, 65535)])
    def test_label_map_of_many_classes_with_unlabeled_pixels(self, num_labels, unlabeled, tmp_path, image):
        folder = save_tiny_segmenter(tmp_path, class_names=[f"class {index}" for index in range(num_labels)])
        scores = torch.from_numpy(predict(folder, image, return_scores=True)).softmax(dim=0)
        confidence, labels = (values.numpy() for values in scores.max(dim=0))
        threshold = float(np.median(confidence))
        parameters = {"output": "label_map", "threshold": threshold}
        answer = EndpointHandler(str(folder))({"inputs": image, "parameters": parameters})
        expected = np.where(confidence < threshold, unlabeled, labels)
        np.testing.assert_array_equal(decode(answer["label_map"]), expected)
        assert answer["unlabeled"] == {"index": unlabeled, "share": (expected == unlabeled).mean()}

    def test_palette_of_the_configuration(self, tmp_path, image):
        palette = [[index, 7, 200 - index] for index in range(len(CLASS_NAMES))]
        handler = EndpointHandler(str(save_tiny_segmenter(tmp_path, palette=palette)))
        answer = handler({"inputs": image, "parameters": {"output": "label_map"}})
        assert all(item["color"] == palette[item["index"]] for item in answer["classes"])

    def test_requests_are_not_changed(self, handler, image):
        data = {"inputs": to_base64(encode(image)), "parameters": {"scales": [1.0], "flip": True}}
        before = json.dumps(data)
        handler(data)
        assert json.dumps(data) == before

    def test_null_is_the_default(self, handler, image):
        parameters = dict.fromkeys(["window_size", "window_stride", "scales", "flip", "threshold", "output", "subtask"])
        assert handler({"inputs": image, "parameters": parameters}) == handler({"inputs": image, "parameters": None})

    def test_parameters_of_a_query_are_text(self, handler, image):
        as_text = {"scales": "[0.5, 1]", "flip": "true", "threshold": "0.4", "output": "label_map", "window_size": "32"}
        values = {"scales": [0.5, 1], "flip": True, "threshold": 0.4, "output": "label_map", "window_size": 32}
        expected = handler({"inputs": image, "parameters": values})
        assert handler({"inputs": image, "parameters": as_text}) == expected

    def test_data_types(self, folder, image, monkeypatch):
        monkeypatch.setenv("HF_SEGMODELS_DTYPE", "bfloat16")
        handler = EndpointHandler(str(folder))
        assert handler.model.dtype == torch.bfloat16
        found = to_label_map(handler({"inputs": image}))
        assert (found == predict(folder, image)).mean() > 0.95


@pytest.fixture(scope="module")
def image_files(image) -> dict[str, bytes]:
    """Image files of many formats and modes; the first picture of animations is `image`."""
    values = np.asarray(image.convert("L"))
    transparent = image.copy()
    transparent.putalpha(Image.fromarray(values))
    turned = Image.Exif()
    turned[0x0112] = 6
    other = smooth_image(seed=1)
    png = PngImagePlugin.PngInfo()
    return {
        "jpeg": encode(image, "JPEG"),
        "turned": encode(image, "JPEG", exif=turned.tobytes()),
        "cmyk": encode(image.convert("CMYK"), "JPEG"),
        "transparent": encode(transparent),
        "palette": encode(image.quantize(16)),
        "transparent palette": encode(image.quantize(16), transparency=3, pnginfo=png),
        "16 bits": encode(Image.fromarray(values.astype(np.uint16) * 257)),
        "float": encode(Image.fromarray(values.astype(np.float32) / 7), "TIFF"),
        "gray and alpha": encode(transparent.convert("LA")),
        "1 bit": encode(image.convert("1")),
        "gif": encode(image, "GIF", save_all=True, append_images=[other]),
        "webp": encode(image, "WEBP", lossless=True, save_all=True, append_images=[other]),
        "pages": encode(image, "TIFF", save_all=True, append_images=[other]),
        "bmp": encode(image, "BMP"),
        "jpeg 2000": encode(image, "JPEG2000"),
    }


class TestImages:
    def test_same_pixels_as_read_image(self, image_files, folder, handler, tmp_path):
        for name, data in image_files.items():
            path = tmp_path / "image"
            path.write_bytes(data)
            expected = predict(folder, read_image(path))
            np.testing.assert_array_equal(to_label_map(handler({"inputs": data})), expected, err_msg=name)
        assert expected.shape == (40, 50)

    def test_exif_orientation(self, image_files, handler):
        assert decode(handler({"inputs": image_files["turned"]})[0]["mask"]).shape == (50, 40)

    def test_forms_of_inputs(self, handler, image):
        data = encode(image)
        text = to_base64(data)
        in_lines = base64.encodebytes(data).decode()
        assert "\n" in in_lines.strip()
        expected = handler({"inputs": data})
        for inputs in (bytearray(data), image, text, in_lines, f"data:image/png;base64,{text}"):
            assert handler({"inputs": inputs}) == expected

    def test_image_decoded_by_the_server(self, image_files, handler):
        """The inference toolkit converts to RGB but keeps the EXIF data."""
        image = Image.open(io.BytesIO(image_files["turned"])).convert("RGB")
        assert handler({"inputs": image}) == handler({"inputs": image_files["turned"]})


BAD_PARAMETERS = {
    "window_size": [-1, 1.5, True, "wide", [32], [32, 0], [32, 32, 32], [32, "a"], 10**9, 10**5000, {}, float("nan")],
    "window_stride": [0, -4, 64, [32, 64], [16, 0], "x", False],
    "scales": [0, -1, [], [1, "2"], ["a"], [float("inf")], [float("nan")], 1e300, [1] * 17, {"a": 1}, True, [[1]]],
    "flip": [1, 0, "yes", [], 0.5],
    "threshold": [-0.1, 1.1, float("nan"), "high", [0.5], True, 10**400],
    "output": ["mask", 3, [], "", {}],
    "subtask": ["panoptic", 1],
}


class TestRefusals:
    @pytest.mark.parametrize("name", BAD_PARAMETERS)
    def test_bad_parameters(self, name, tmp_path, image):
        handler = EndpointHandler(str(save_tiny_segmenter(tmp_path, window_size=32)))
        for value in BAD_PARAMETERS[name]:
            with pytest.raises(RequestError, match=name) as caught:
                handler({"inputs": image, "parameters": {name: value}})
            assert caught.value.status_code in (400, 413)
            assert len(str(caught.value)) < 300
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (None, "send JSON with the key `inputs`"),
            ([], "send JSON with the key `inputs`"),
            ({}, "send JSON with the key `inputs`"),
            ({"inputs": None}, "send JSON with the key `inputs`"),
            ({"instances": ["a"]}, "send JSON with the key `inputs`"),
            ({"inputs": ["a", "b"]}, "one image for each request"),
            ({"inputs": 5}, "`inputs` is 5"),
            ({"inputs": {"image": "a"}}, "send an image file"),
            ({"inputs": ""}, "not a readable image"),
            ({"inputs": b""}, "not a readable image"),
            ({"inputs": "?!"}, "neither base64 nor a URL"),
            ({"inputs": "aGVsbG8"}, "neither base64 nor a URL"),
            ({"inputs": "aGVsbG8h"}, "not a readable image"),
            ({"inputs": "a photo \ud800"}, "neither base64 nor a URL"),
            ({"inputs": "file:///etc/passwd"}, "only http:// and https:// are fetched"),
            ({"inputs": "ftp://example.com/a.png"}, "only http:// and https:// are fetched"),
            ({"inputs": "data:image/png,abc"}, "not in base64"),
            ({"inputs": "data:image/png;base64"}, "not in base64"),
            ({"inputs": "http://"}, "the URL in `inputs` is not valid"),
            ({"inputs": "http://[::1/a.png"}, "the URL in `inputs` is not valid"),
            ({"inputs": "http://example.com:port/"}, "the URL in `inputs` is not valid"),
            ({"inputs": "http://a..b/"}, "the URL in `inputs` is not valid"),
            ({"inputs": "http://user:word@example.com/a.png"}, "the URL in `inputs` is not valid"),
            ({"inputs": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, "not a readable image"),
            ({"inputs": b"GIF89a", "threshold": 0.5}, "unknown key 'threshold' next to `inputs`"),
            ({"inputs": b"GIF89a", "parameters": [1]}, "send an object"),
            ({"inputs": b"GIF89a", "parameters": {"mask_threshold": 0.5}}, "unknown parameter 'mask_threshold'"),
            ({"inputs": b"GIF89a", "parameters": {"x" * 10000: 1}}, "unknown parameter 'xxx"),
        ],
    )
    def test_bad_requests(self, handler, data, message):
        with pytest.raises(RequestError, match=message) as caught:
            handler(data)
        assert caught.value.status_code == 400
        assert len(str(caught.value)) < 300

    def test_damaged_images(self, handler, image):
        for data in (encode(image)[:-40], encode(image, "JPEG")[:-200], encode(image, "GIF")[:200]):
            with pytest.raises(RequestError, match="damaged|not a readable image"):
                handler({"inputs": data})

    @pytest.mark.parametrize(
        ("variable", "value", "parameters", "message"),
        [
            ("MAX_BYTES", "1000", {}, "1000 bytes"),
            ("MAX_PIXELS", "1999", {}, "1999 pixels"),
            ("MAX_NETWORK_PIXELS", "4000", {"scales": [1, 2]}, "send a larger `window_stride`"),
            ("MAX_NETWORK_PIXELS", "9000", {"window_size": 32, "window_stride": 1}, "send a larger `window_stride`"),
            ("MAX_NETWORK_PIXELS", "2000", {"flip": True}, "send a larger `window_stride`"),
            ("MAX_NETWORK_PIXELS", "20000", {"window_size": 500}, "send a larger `window_stride`"),
            ("MAX_SCORES", "9999", {"threshold": 0.5}, "for at most 1999 pixels"),
        ],
    )
    def test_limits(self, variable, value, parameters, message, folder, monkeypatch, image):
        monkeypatch.setenv(f"HF_SEGMODELS_{variable}", value)
        handler = EndpointHandler(str(folder))
        for inputs in (encode(image), to_base64(encode(image))):
            with pytest.raises(RequestError, match=message) as caught:
                handler({"inputs": inputs, "parameters": parameters})
            assert caught.value.status_code == 413
        if parameters:
            assert handler({"inputs": image})
        assert handler({"inputs": smooth_image(9, 8)})

    def test_limits_are_exact(self, folder, monkeypatch, image):
        """The processor resizes 40 x 50 pixels to 32 x 40; 28 x 36 windows start at 2 rows and 3 columns."""
        for variable, limit, parameters in [
            ("MAX_BYTES", len(encode(image)), {}),
            ("MAX_PIXELS", 2000, {}),
            ("MAX_NETWORK_PIXELS", 2 * 32 * 40, {"flip": True}),
            ("MAX_NETWORK_PIXELS", 2 * 3 * 28 * 36, {"window_size": [28, 36], "window_stride": [4, 2]}),
            ("MAX_SCORES", 10000, {"threshold": 0.5}),
        ]:
            with monkeypatch.context() as patch:
                patch.setenv(f"HF_SEGMODELS_{variable}", str(limit))
                EndpointHandler(str(folder))({"inputs": encode(image), "parameters": parameters})
                patch.setenv(f"HF_SEGMODELS_{variable}", str(limit - 1))
                with pytest.raises(RequestError):
                    EndpointHandler(str(folder))({"inputs": encode(image), "parameters": parameters})

    def test_a_decompression_bomb_is_not_decoded(self, handler, monkeypatch):
        bomb = encode(Image.new("1", (7000, 7000)))
        assert len(bomb) < 100_000
        monkeypatch.setattr(Image.Image, "load", lambda *args: pytest.fail("decoded"))
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *args: pytest.fail("decoded"))
        with pytest.raises(RequestError, match="25000000 pixels allowed"):
            handler({"inputs": bomb})

    def test_an_image_of_one_row_does_not_become_huge(self, tmp_path):
        handler = EndpointHandler(str(save_tiny_segmenter(tmp_path, size={"shortest_edge": 512})))
        with pytest.raises(RequestError, match="too narrow"):
            handler({"inputs": Image.new("RGB", (50000, 1))})

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: not enough memory: you tried to allocate"
            ),
            MemoryError(),
        ],
    )
    def test_out_of_memory(self, error, handler, image, monkeypatch):
        expected = handler({"inputs": image})

        def fail(*args, **kwargs):
            raise error

        monkeypatch.setattr(handler.model, "predict", fail)
        with pytest.raises(ServerError, match="out of memory: send a smaller") as caught:
            handler({"inputs": image})
        assert caught.value.status_code == 507
        monkeypatch.undo()
        assert handler({"inputs": image}) == expected

    def test_allocation_that_fails(self, handler, image, monkeypatch):
        monkeypatch.setattr(handler.model, "predict", lambda **options: torch.empty(2**60, dtype=torch.uint8))
        with pytest.raises(ServerError, match="out of memory"):
            handler({"inputs": image})
        monkeypatch.undo()
        assert handler({"inputs": image})

    def test_an_error_in_the_model_is_logged_and_answered(self, handler, image, monkeypatch, caplog):
        def fail(*args, **kwargs):
            raise RuntimeError("shapes differ\nat line 5")

        monkeypatch.setattr(handler.model, "predict", fail)
        with caplog.at_level(logging.ERROR), pytest.raises(ServerError, match="failed on this image: shapes differ$"):
            handler({"inputs": image})
        assert "at line 5" in caplog.text


class TestSettings:
    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("MAX_BYTES", "20MB"),
            ("MAX_PIXELS", "0"),
            ("MAX_CONCURRENT", "-1"),
            ("URL_TIMEOUT", "inf"),
            ("URLS", "all"),
            ("DTYPE", "int8"),
        ],
    )
    def test_invalid_values_are_refused_at_the_start(self, variable, value, folder, monkeypatch):
        monkeypatch.setenv(f"HF_SEGMODELS_{variable}", value)
        with pytest.raises(ValueError, match=f"HF_SEGMODELS_{variable} is '{value}'"):
            EndpointHandler(str(folder))

    def test_documented(self, repository):
        text = (repository / "docs/endpoints.md").read_text(encoding="utf-8")
        for name, setting in Settings.__dataclass_fields__.items():
            default = f"{setting.default:,}" if isinstance(setting.default, int) else str(setting.default)
            (line,) = [line for line in text.splitlines() if line.startswith(f"| `HF_SEGMODELS_{name.upper()}` |")]
            assert default in line or name == "device"
        for name in PARAMETERS:
            assert f"| `{name}` |" in text

    def test_models_without_predict(self, tmp_path):
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        config = SegformerConfig(hidden_sizes=[8, 8, 8, 8], depths=[1] * 4, decoder_hidden_size=8)
        SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="Segformer.* has no `predict`"):
            EndpointHandler(str(tmp_path))


class Files(http.server.BaseHTTPRequestHandler):
    """`/image`, `/missing`, `/redirect`, `/large`, `/endless`, `/slow`."""

    image: bytes

    def do_GET(self) -> None:
        if self.path.startswith("/redirect"):
            self.send_response(302)
            self.send_header("Location", "/image")
            self.end_headers()
        elif self.path.startswith("/missing"):
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            try:
                if self.path.startswith("/image"):
                    self.wfile.write(self.image)
                while self.path.startswith("/endless"):
                    self.wfile.write(b"0" * 65536)
                while self.path.startswith("/slow"):
                    self.wfile.write(b"0")
                    self.wfile.flush()
                    time.sleep(0.05)
            except OSError:
                pass

    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def file_server(image) -> Iterator[str]:
    Files.image = encode(image)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class TestURLs:
    @pytest.fixture
    def open_handler(self, folder, monkeypatch) -> EndpointHandler:
        monkeypatch.setenv("HF_SEGMODELS_URLS", "any")
        monkeypatch.setenv("HF_SEGMODELS_URL_TIMEOUT", "0.5")
        return EndpointHandler(str(folder))

    def test_an_image(self, file_server, open_handler, image):
        expected = open_handler({"inputs": image})
        for url in (
            f"{file_server}/image",
            f"HTTP{file_server[4:]}/image/ä b.png?q=ü x",
            f" {file_server}/image#part\n",
        ):
            assert open_handler({"inputs": url}) == expected

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("/missing", "status 404"),
            ("/redirect", "status 302 .redirects are not followed"),
            ("/slow", "took too long"),
            ("/endless", "more than the 20000000 bytes"),
        ],
    )
    def test_failed_downloads(self, path, message, file_server, open_handler):
        start = time.monotonic()
        with pytest.raises(RequestError, match=message):
            open_handler({"inputs": file_server + path})
        assert time.monotonic() - start < 5

    def test_a_host_that_does_not_answer(self, open_handler):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            with pytest.raises(RequestError, match="cannot fetch"):
                open_handler({"inputs": f"http://127.0.0.1:{port}/image"})
            listener.listen()
            for scheme in ("http", "https"):
                with pytest.raises(RequestError, match="took too long"):
                    open_handler({"inputs": f"{scheme}://127.0.0.1:{port}/image"})

    def test_private_addresses_are_refused(self, file_server, handler):
        port = file_server.rpartition(":")[2]
        for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"):
            with pytest.raises(RequestError, match="not public|cannot fetch"):
                handler({"inputs": f"http://{host}:{port}/image"})

    def test_name_with_a_private_address(self, file_server, handler, monkeypatch):
        """A private address among public ones is enough, and there is no connection."""
        port = int(file_server.rpartition(":")[2])
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("93.184.216.34", "127.0.0.1")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
        monkeypatch.setattr(socket, "create_connection", lambda *args, **kwargs: pytest.fail("connected"))
        with pytest.raises(RequestError, match="not public"):
            handler({"inputs": f"http://photos.example:{port}/image"})

    def test_the_checked_address_is_used(self, monkeypatch):
        """A second look-up of a name may give another address."""
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))]
        connected = []

        def connect(address, timeout):
            connected.append(address)
            raise OSError("unreachable")

        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
        monkeypatch.setattr(socket, "create_connection", connect)
        with pytest.raises(RequestError, match="unreachable"):
            fetch("http://photos.example/image", 1000, 1.0, True)
        assert connected == [("93.184.216.34", 80)]

    @pytest.mark.parametrize(
        ("address", "expected"),
        [
            ("93.184.216.34", True),
            ("2606:2800:220:1::1", True),
            ("::ffff:93.184.216.34", True),
            ("10.0.0.1", False),
            ("172.16.9.9", False),
            ("192.168.1.1", False),
            ("127.0.0.1", False),
            ("169.254.169.254", False),
            ("100.64.0.1", False),
            ("0.0.0.0", False),
            ("224.0.0.1", False),
            ("240.0.0.1", False),
            ("::1", False),
            ("::", False),
            ("fe80::1%eth0", False),
            ("fd00::1", False),
            ("ff02::1", False),
            ("::ffff:169.254.169.254", False),
            ("2002:7f00:1::", False),
            ("2001:0:7f00:1::", False),
            ("64:ff9b::7f00:1", False),
        ],
    )
    def test_public_addresses(self, address, expected):
        assert is_public(address) is expected

    def test_none(self, folder, monkeypatch):
        monkeypatch.setenv("HF_SEGMODELS_URLS", "none")
        with pytest.raises(RequestError, match="fetches no URLs"):
            EndpointHandler(str(folder))({"inputs": "https://example.com/photo.jpg"})


def test_concurrent_calls(handler):
    images = [smooth_image(50 + seed, 40, seed) for seed in range(8)]
    expected = [handler({"inputs": image}) for image in images]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: handler({"inputs": image}), images * 4))
    assert found == expected * 4


def test_max_concurrent(folder, monkeypatch, image):
    monkeypatch.setenv("HF_SEGMODELS_MAX_CONCURRENT", "2")
    handler = EndpointHandler(str(folder))
    running, most, lock, predict = 0, 0, threading.Lock(), handler.model.predict

    def counted(*args, **kwargs):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        result = predict(*args, **kwargs)
        with lock:
            running -= 1
        return result

    monkeypatch.setattr(handler.model, "predict", counted)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda _: handler({"inputs": image}), range(16)))) == 16
    assert most == 2


# With a server. fastapi and uvicorn are dependencies of Gradio.


def send(address: str, body: bytes, content_type: str = "application/json") -> tuple[int, Any]:
    """Status and content of the answer."""
    request = urllib.request.Request(address, body, {"Content-Type": content_type})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture(scope="module")
def address(folder) -> Iterator[str]:
    pytest.importorskip("fastapi")
    from common.endpoint_server import create_app, load_handler, serve_in_thread

    with serve_in_thread(create_app(load_handler(folder))) as address:
        yield address


class TestServer:
    def test_inference_client(self, folder, address, image, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        expected = predict(folder, image)
        path = tmp_path / "photo.png"
        path.write_bytes(encode(image))
        client = InferenceClient(model=address, token="none")
        for inputs, options in [(encode(image), {}), (path, {}), (encode(image), {"threshold": 0.0})]:
            elements = client.image_segmentation(inputs, **options)
            assert [element.label for element in elements]
            for element in elements:
                assert (element.mask.mode, element.mask.size) == ("L", (50, 40))
                label = CLASS_NAMES.index(element.label)
                np.testing.assert_array_equal(np.asarray(element.mask) == 255, expected == label)
                assert (element.score is None) == (not options)

    def test_json_and_query(self, address, image):
        data, parameters = encode(image), {"threshold": 0.4, "flip": True, "output": "label_map"}
        as_json = send(address, json.dumps({"inputs": to_base64(data), "parameters": parameters}).encode())
        as_file = send(f"{address}?threshold=0.4&flip=true&output=label_map", data, "image/png")
        assert as_json == as_file
        assert as_json[0] == 200

    def test_errors(self, address, image):
        for body, expected in [
            ({"inputs": "?"}, 400),
            ({"inputs": to_base64(encode(image)), "parameters": {"size": 3}}, 400),
            ({"inputs": to_base64(encode(Image.new("1", (7000, 7000))))}, 413),
        ]:
            status, content = send(address, json.dumps(body).encode())
            assert status == expected
            assert list(content) == ["error"]


def requests_of(number: int, seed: int) -> list[tuple[bytes, str, bool]]:
    """Bodies with content type and whether they are valid; images differ in size and content."""
    generator = random.Random(seed)
    requests = []
    for index in range(number):
        image = smooth_image(generator.randint(20, 60), generator.randint(20, 60), seed=index % 16)
        data = encode(image, "JPEG" if index % 2 else "PNG")
        kind = generator.choice(["file", "json", "json", "damaged", "text", "parameters", "no json"])
        if kind == "file":
            requests.append((data, "image/png", True))
        elif kind == "damaged":
            requests.append((data[: len(data) // 2], "image/png", False))
        else:
            body = {
                "json": {"inputs": to_base64(data), "parameters": {"flip": index % 3 == 0}},
                "text": {"inputs": "no image"},
                "parameters": {"inputs": to_base64(data), "parameters": {"scales": [-1]}},
            }.get(kind, {})
            text = "{" if kind == "no json" else json.dumps(body)
            requests.append((text.encode(), "application/json", kind == "json"))
    return requests


def direct_answer(handler: EndpointHandler, body: bytes, content_type: str) -> list:
    return handler(json.loads(body) if content_type == "application/json" else {"inputs": body})


def send_all(address: str, requests: list[tuple[bytes, str, bool]], workers: int) -> list[tuple[int, Any]]:
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda request: send(address, *request[:2]), requests))


def resident_bytes(pid: int) -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


@pytest.mark.slow
class TestLoad:
    def test_200_concurrent_requests_some_of_them_invalid(self, folder, handler, tmp_path):
        """
        Each request gets its own answer. After a first round, two more rounds add less than 48 MiB to the process.
        """
        pytest.importorskip("fastapi")
        from common.endpoint_server import serve_in_process

        requests = requests_of(200, seed=0)
        counts = Counter(is_good for _, _, is_good in requests)
        assert min(counts.values()) >= 50
        expected = [direct_answer(handler, *r[:2]) if r[2] else None for r in requests]
        with serve_in_process(folder, tmp_path / "log", OMP_NUM_THREADS="1") as (address, pid):
            sizes = []
            for _ in range(3):
                answers = send_all(address, requests, workers=200)
                sizes.append(resident_bytes(pid))
                for (_, _, is_good), (status, content), answer in zip(requests, answers, expected, strict=True):
                    assert status == (200 if is_good else 400)
                    if is_good:
                        assert content == answer
                    else:
                        assert list(content) == ["error"]
        assert sizes[-1] - sizes[0] < 48 * 2**20, sizes
        assert "Traceback" not in (tmp_path / "log").read_text()


def mutate_bytes(data: bytes, generator: random.Random) -> bytes:
    """Change, remove, repeat or insert some bytes."""
    mutated = bytearray(data)
    for _ in range(generator.choice([1, 2, 5, 20])):
        place = generator.randrange(len(mutated) + 1)
        length = generator.choice([1, 2, 4, 30, 300])
        kind = generator.choice(["change", "bit", "cut", "double", "insert", "end"])
        if kind == "change":
            mutated[place : place + length] = generator.randbytes(length)
        elif kind == "bit" and place < len(mutated):
            mutated[place] ^= 1 << generator.randrange(8)
        elif kind == "cut":
            del mutated[place : place + length]
        elif kind == "double":
            mutated[place:place] = mutated[place : place + length]
        elif kind == "insert":
            mutated[place:place] = generator.choice(
                [b"\0" * length, b"\xff" * length, b'"', b"{", b"[" * length, b"1e9"]
            )
        elif generator.random() < 0.2:
            del mutated[place:]
    return bytes(mutated)


STRANGE = [
    *(None, True, False, 0, -1, 1, 10**30, -(10**30), 0.5, 1e308, float("inf"), float("nan"), "", " ", "\0", "é" * 50),
    *(
        [],
        {},
        [[]],
        [None],
        {"a": []},
        "data:",
        "data:,",
        "http://",
        "https://[",
        "http://127.0.0.1/",
        "file:///",
        "A" * 4000,
    ),
    *("null", "[1]", "true", "1e999", "[" * 100000, [0] * 1000),
]


def mutate_value(value: object, generator: random.Random) -> object:
    """Change a value, add a key or remove a key somewhere in JSON."""
    if isinstance(value, dict) and value and generator.random() < 0.85:
        changed = dict(value)
        key = generator.choice(list(changed))
        kind = generator.random()
        if kind < 0.1:
            del changed[key]
        elif kind < 0.2:
            changed[generator.choice(["", "input", "size", "threshold", "\ud83d"])] = generator.choice(STRANGE)
        else:
            changed[key] = mutate_value(changed[key], generator)
        return changed
    if isinstance(value, list) and value and generator.random() < 0.6:
        changed = list(value)
        changed[generator.randrange(len(changed))] = generator.choice(STRANGE)
        return changed
    if isinstance(value, str) and len(value) > 100 and generator.random() < 0.6:
        return mutate_bytes(value.encode(), generator).decode("utf-8", "replace")
    if type(value) in (int, float) and generator.random() < 0.4:
        return value * generator.choice([-1, 0, 0.01, 3, 100, 10**6])
    return generator.choice(STRANGE)


def mutated_requests(number: int, seed: int) -> Iterator[tuple[bytes, str]]:
    """Image files and JSON requests with random changes."""
    generator = random.Random(seed)
    formats = ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "PPM"]
    for index in range(number):
        data = encode(smooth_image(30, 20, index % 5), formats[index % len(formats)])
        if index % 3 == 0:
            yield mutate_bytes(data, generator), "image/png"
            continue
        parameters = {
            "window_size": generator.choice([16, [24, 32], 0]),
            "window_stride": generator.choice([8, [12, 16]]),
            "scales": [0.5, 1.0],
            "flip": True,
            "threshold": 0.3,
            "output": generator.choice(["masks", "label_map"]),
        }
        names = generator.sample(list(parameters), generator.randint(0, 6))
        body: object = {"inputs": to_base64(data), "parameters": {name: parameters[name] for name in names}}
        for _ in range(generator.choice([1, 1, 2, 3])):
            body = mutate_value(body, generator)
        text = json.dumps(body).encode()
        yield (mutate_bytes(text, generator) if index % 3 == 1 else text), "application/json"


def check_fuzzed_answer(answer: tuple[int, Any]) -> int:
    status, content = answer
    assert status in (200, 400, 413), content
    if status == 200:
        assert isinstance(content, list) or "label_map" in content
    else:
        assert list(content) == ["error"]
        assert 0 < len(content["error"]) < 1000
        assert "Traceback" not in content["error"]
    return status


def test_some_mutated_requests(address):
    statuses = Counter(check_fuzzed_answer(send(address, *request)) for request in mutated_requests(40, seed=1))
    assert statuses[200] > 3
    assert statuses[400] > 10


@pytest.mark.slow
def test_500_mutated_requests(folder, handler, tmp_path):
    pytest.importorskip("fastapi")
    from common.endpoint_server import serve_in_process

    requests = [(body, content_type, False) for body, content_type in mutated_requests(500, seed=0)]
    with serve_in_process(folder, tmp_path / "log", OMP_NUM_THREADS="1") as (address, _):
        answers = send_all(address, requests, workers=8)
        statuses = Counter(map(check_fuzzed_answer, answers))
        (body, content_type, _), *_ = [r for r in requests_of(9, seed=0) if r[2]]
        (answer,) = send_all(address, [(body, content_type, True)], workers=1)
        assert answer == (200, direct_answer(handler, body, content_type))
    assert statuses[200] > 50
    assert statuses[400] > 200
    assert "Traceback" not in (tmp_path / "log").read_text()
