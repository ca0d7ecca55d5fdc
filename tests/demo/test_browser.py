# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`hf-segmodels demo` in headless Chromium, as a visitor uses it."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from common.images import make_image
from hf_segmodels.image_processing import read_image
from hf_segmodels.inference.predictor import load_predictor
from hf_segmodels.visualization import palette_for


pytest.importorskip("gradio", reason="the page needs Gradio: pip install '.[app]'")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is part of the `dev` extra")

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def server(segmenter_folder, mask_folder, repository, tmp_path_factory) -> Iterator[str]:
    """Address of the page with two models, served by the command."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [sys.executable, "-m", "hf_segmodels.cli", "demo", "--port", str(port), "--long-edge", "400"]
    environment = os.environ | {
        "PYTHONPATH": str(repository),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        "GRADIO_TEMP_DIR": str(log.parent / "files"),
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--model", str(segmenter_folder), str(mask_folder)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            assert process.poll() is None, log.read_text()
            try:
                urlopen(url, timeout=60).close()
                break
            except URLError:
                time.sleep(1)
        yield url
        assert "Traceback" not in log.read_text()
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Visitor:
    """A page with its requests and errors."""

    def __init__(self, browser, url: str, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(180_000)  # loaded machines
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#segment")

    def upload(self, path: Path) -> None:
        """Upload a file, replacing an earlier one."""
        clear = self.page.locator("#photo button[aria-label='Clear']")
        if clear.count():
            clear.click()
        self.page.set_input_files("#photo input[type=file]", path)

    def shown(self) -> str | None:
        """Address of the shown label map."""
        return self.page.locator("#viewer .viewer").get_attribute("data-shown")

    def wait_for_result(self, before: str | None = None) -> None:
        self.page.wait_for_function(
            "before => (document.querySelector('#viewer .viewer')?.dataset.shown ?? null) !== before", arg=before
        )
        # the download follows the result
        self.page.wait_for_selector("#picture:not([disabled])")

    def to_window(self, x: float, y: float) -> tuple[float, float]:
        """Map a point of the shown image, from 0 to 1, to window coordinates."""
        stage = self.page.locator("#viewer .stage")
        stage.scroll_into_view_if_needed()
        box = stage.bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]


@pytest.fixture
def visitor(browser, server) -> Iterator[Visitor]:
    visitor = Visitor(browser, server, viewport={"width": 1280, "height": 900})
    yield visitor
    visitor.context.close()
    assert visitor.errors == []
    # no requests to other servers: no fonts, scripts or telemetry
    assert [url for url in visitor.requests if not url.startswith((server, "data:", "blob:"))] == []


@pytest.fixture
def photo(tmp_path) -> Path:
    return make_image(tmp_path / "photo.jpg", 240, 160)


def colors(visitor: Visitor) -> np.ndarray:
    """Class colors on the page `(height, width, 3)`, without opacity."""
    pixels = visitor.page.evaluate(
        """() => {
            const canvas = document.querySelector('#viewer .colors');
            const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            return [canvas.height, canvas.width, Array.from(data)];
        }"""
    )
    return np.array(pixels[2], dtype=np.uint8).reshape(pixels[0], pixels[1], 4)[..., :3]


def test_upload_look_and_change(visitor, photo, segmenter_folder, mask_folder, tmp_path):
    page = visitor.page
    page.wait_for_function("document.querySelector('#license').innerText.includes('apache-2.0')")
    visitor.upload(photo)
    visitor.wait_for_result()
    predictor = load_predictor(str(segmenter_folder))
    labels = predictor(read_image(photo))
    palette = palette_for(predictor.model.config)
    assert (colors(visitor) == palette[labels]).all()
    assert "240 x 160 pixels" in page.locator("#status").inner_text()

    # names under the pointer
    for x, y in ((0.1, 0.2), (0.5, 0.5), (0.9, 0.8)):
        page.mouse.move(*visitor.to_window(x, y))
        name = predictor.id2label[int(labels[int(y * 160), int(x * 240)])]
        assert page.locator("#viewer .tip").inner_text().startswith(f"{name} · ")
        assert page.locator("#viewer .legend .under").inner_text().startswith(name)
    # one class from the legend, and all again
    chip = page.locator("#viewer .legend button").first
    chip.click()
    page.mouse.move(0, 0)
    index = int(chip.get_attribute("data-index"))
    only = colors(visitor)
    assert (only[labels == index] == palette[index]).all()
    assert len(np.unique(only[labels != index], axis=0)) == 1
    chip.click()
    page.mouse.move(0, 0)
    assert (colors(visitor) == palette[labels]).all()

    # opacity changes in the browser
    shown, status = visitor.shown(), page.locator("#status").inner_text()

    def opacity() -> float:
        return float(page.evaluate("getComputedStyle(document.querySelector('#viewer .colors')).opacity"))

    assert opacity() == 0.5
    slider = page.locator("#opacity input[type=range]")
    slider.focus()
    for _ in range(20):
        slider.press("ArrowRight")
    page.wait_for_function("getComputedStyle(document.querySelector('#viewer .colors')).opacity === '0.7'")
    assert (visitor.shown(), page.locator("#status").inner_text()) == (shown, status)

    # downloads
    with page.expect_download() as download:
        page.locator("#labels").click()
    assert download.value.suggested_filename == "photo_labels.png"
    assert (np.array(Image.open(download.value.path())) == labels).all()

    # another model
    page.locator("#model input").click()
    page.get_by_role("option", name="mask_transformer").click()
    page.wait_for_function("document.querySelector('#license').innerText.includes('unknown')")
    page.locator("#segment").click()
    visitor.wait_for_result(shown)
    assert "with mask_transformer" in page.locator("#status").inner_text()
    assert (colors(visitor) == palette[load_predictor(str(mask_folder))(read_image(photo))]).all()

    # inside it
    page.get_by_role("tab", name="Inside the model").click()
    page.get_by_label("Attention from a point").check()
    picture = page.locator("#view_picture img")
    picture.wait_for()
    first = picture.get_attribute("src")
    page.mouse.click(*visitor.to_window(0.9, 0.1))
    page.wait_for_function(f"document.querySelector('#view_picture img').src !== '{first}'")
    second = picture.get_attribute("src")
    assert Image.open(urlopen(second)).size == (240, 160)
    page.get_by_label("Attention of a class").check()
    page.wait_for_function(f"document.querySelector('#view_picture img').src !== '{second}'")
    assert page.get_by_label("Class", exact=True).is_visible()
    page.screenshot(path=tmp_path / "inside.png", full_page=True)


def test_broken_and_large_files(visitor, photo, tmp_path):
    page = visitor.page
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    visitor.upload(broken)
    toast = page.locator(".toast-body")
    toast.get_by_text("The file cannot be read as an image").wait_for()
    assert visitor.shown() is None
    # the next file works, and is scaled down
    visitor.upload(make_image(tmp_path / "large.png", 800, 600))
    toast.get_by_text("scaled down from 800 x 600").wait_for()
    visitor.wait_for_result()
    assert "scaled down from 800 x 600" in page.locator("#status").inner_text()
    assert colors(visitor).shape == (300, 400, 3)
    # an invalid option
    page.get_by_text("Windows, scales, flip").click()
    page.locator("#window textarea, #window input").first.fill("many")
    page.locator("#segment").click()
    toast.get_by_text(re.compile("'many' is neither a number of pixels")).wait_for()


def test_the_example(visitor):
    pytest.importorskip("sklearn", reason="scikit-learn ships the photograph")
    visitor.page.locator(".gallery-item").first.click()
    visitor.wait_for_result()
    assert "scaled down from 640 x 427" in visitor.page.locator("#status").inner_text()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_looks(browser, server, photo, tmp_path, scheme, width):
    visitor = Visitor(browser, server, color_scheme=scheme, viewport={"width": width, "height": 844})
    visitor.upload(photo)
    visitor.wait_for_result()
    folder = Path(os.environ.get("HF_SEGMODELS_SCREENSHOTS", tmp_path))
    path = folder / f"{scheme}_{width}.png"
    visitor.page.screenshot(path=path, full_page=True)
    assert visitor.page.evaluate("document.scrollingElement.scrollWidth") <= width
    corner = np.asarray(Image.open(path).convert("L"))[5, 5]
    assert (corner > 128) == (scheme == "light")
    box = visitor.page.locator("#viewer .stage").bounding_box()
    assert box["width"] > 0.75 * min(width, 900)
    visitor.context.close()
