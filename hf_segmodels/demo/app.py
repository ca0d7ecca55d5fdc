# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
A web page to try models on photographs: `hf-segmodels demo`, or a Space on the Hub whose `app.py` says

    from hf_segmodels.demo.app import demo

    if __name__ == "__main__":
        demo.launch()

and whose variable HF_SEGMODELS_MODELS names the models (docs/demo.md).
"""

import argparse
import functools
import os
import re
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard
from PIL import Image

from ..cli.main import parse_pixels, parse_window
from ..image_processing import read_image
from ..inference import choose_windows
from ..inference.predictor import Predictor, load_predictor
from ..utils.errors import UserError, first_line
from ..visualization import add_legend, class_shares, label_image, overlay, palette_for
from .__main__ import CREDIT, DEMO_MODEL, PHOTOGRAPH, sample_photograph
from .views import Choice, MethodView, method_views


try:
    import gradio as gr

    from .viewer import OPACITY_JAVASCRIPT, SegmentedImage, label_map_viewer, viewer_value
except ImportError as error:
    raise UserError(
        f"the demo needs Gradio, which cannot be imported ({error}): `pip install 'hf_segmodels[app]'`."
    ) from error


MODELS_VARIABLE = "HF_SEGMODELS_MODELS"
DEFAULT_LONG_EDGE = 2048

_DEMO_MODEL_NAME = "demo model (street scenes)"
_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
_DEFAULT_OPACITY = 50
# decoded, this many pixels take 300 MB
_MAX_PIXELS = 100_000_000
_MAX_ASPECT = 12
_MAX_WINDOWS = 1000
_UPLOAD_LIMIT = "64mb"
_SECONDS_KEPT = 3600
_SESSIONS_KEPT = 64
_QUEUE_LENGTH = 64


class ModelShelf:
    """
    Models by name, loaded when they are first asked for. Those used last stay in memory as long as their weights take no
    more than `memory_limit`; beyond it, the one in use stays alone.

    Args:
        sources (`dict[str, str]`): Folder or repository of each name.
        device (`str`, *optional*): See [`load_predictor`].
        dtype (`str`, *optional*, defaults to `"float32"`): See [`load_predictor`].
        memory_limit (`int`, *optional*, defaults to 4 GiB): Bytes.
    """

    def __init__(
        self, sources: dict[str, str], device: str | None = None, dtype: str = "float32", memory_limit: int = 4 << 30
    ):
        self.sources = sources
        self.device = device
        self.dtype = dtype
        self.memory_limit = memory_limit
        self._loaded: OrderedDict[str, Predictor] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def loaded(self) -> list[str]:
        """Names of the models in memory, the one used last at the end."""
        return list(self._loaded)

    def get(self, name: str) -> Predictor:
        """
        Raises:
            UserError: for an unknown name, or a model that cannot be loaded.
        """
        if name not in self.sources:
            raise UserError(f"there is no model {name!r} here: choose one of {', '.join(self.sources)}.")
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = load_predictor(self.sources[name], device=self.device, dtype=self.dtype)
            self._loaded.move_to_end(name)
            while len(self._loaded) > 1 and sum(map(_num_bytes, self._loaded.values())) > self.memory_limit:
                self._loaded.popitem(last=False)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            return self._loaded[name]


def _num_bytes(predictor: Predictor) -> int:
    return sum(tensor.nbytes for tensor in (*predictor.model.parameters(), *predictor.model.buffers()))


def name_models(models: Sequence[str]) -> dict[str, str]:
    """
    What the page calls each model: a repository by its name, a folder by its own where no other is called so. A visitor
    never learns where folders are.

    Args:
        models (`Sequence[str]`): Folders and repositories; the packaged model if empty.
    """
    names: dict[str, str] = {}
    for model in models or [str(DEMO_MODEL)]:
        path = Path(model).expanduser()
        if path.is_dir() and path.resolve() == DEMO_MODEL.resolve():
            name = _DEMO_MODEL_NAME
        else:
            name = path.resolve().name if path.exists() else model.strip("/")
        if model in names.values():
            continue
        number = 2
        unique = name
        while unique in names:
            unique, number = f"{name} ({number})", number + 1
        names[unique] = model
    return names


@dataclass(frozen=True)
class Options:
    """How an image is segmented, as the page's fields have it."""

    window: str = ""
    """`"512"`, `"768x1024"`, `"0"` for the whole image, or nothing for the model's own."""
    stride: str = ""
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def for_predict(self) -> dict[str, Any]:
        """
        What differs from the defaults of `predict`, as its arguments.

        Raises:
            UserError: if a window or stride is no number of pixels, or a scale none of those on offer.
        """
        options: dict[str, Any] = {}
        for name, text, parse in (
            ("window_size", self.window, parse_window),
            ("window_stride", self.stride, parse_pixels),
        ):
            if text and text.strip():
                try:
                    options[name] = parse(text.strip())
                except argparse.ArgumentTypeError as error:
                    raise UserError(f"{error}.") from error
        scales = tuple(sorted(self.scales or (1.0,)))
        if not set(scales) <= set(_SCALES):
            raise UserError(f"the scales are {', '.join(map(str, _SCALES))}.")
        if scales != (1.0,):
            options["scales"] = scales
        if self.flip:
            options["flip"] = True
        return options


@dataclass(frozen=True)
class Result(SegmentedImage):
    """A segmented image, and what the page says about it. It belongs to one visitor."""

    model: str
    views: tuple[MethodView, ...]
    id2label: dict[int, str]
    notes: tuple[str, ...]


class Workbench:
    """
    What the page does, without the page.

    Args:
        models (`ModelShelf`): The models on offer.
        long_edge (`int`, *optional*, defaults to 2048): Larger images are scaled down to this.
    """

    def __init__(self, models: ModelShelf, long_edge: int = DEFAULT_LONG_EDGE):
        self.models = models
        self.long_edge = long_edge

    def segment(self, path: str | None, model: str, options: Options = Options()) -> Result:
        """
        Reads and segments an image.

        Args:
            path (`str`): An image file.
            model (`str`): Name of the model.
            options (`Options`, *optional*): Windows, scales, flip.

        Raises:
            UserError: for a file or options that cannot be used, or a model that fails.
        """
        if not path:
            raise UserError("choose a photograph first.")
        image, notes = self._read(path)
        predictor = replace(self.models.get(model), options=options.for_predict())
        start = time.perf_counter()
        label_map = _run(_predict, predictor, image)
        seconds = time.perf_counter() - start
        shares = class_shares(label_map, predictor.id2label, ignore_index=None)
        num_classes = f"{len(shares)} class{'es' if len(shares) != 1 else ''}"
        return Result(
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
                    f"the image ({width} x {height} pixels) is too long for its width: crop it to at most "
                    f"{_MAX_ASPECT} times as long as wide."
                )
            image = read_image(path)
        except UserError:
            raise
        except Exception as error:  # decoders of damaged files raise anything
            reason = first_line(error).replace(str(path), "the file").replace(repr(str(path)), "the file")
            raise UserError(f"the file cannot be read as an image ({reason}): try a JPEG or PNG file.") from error
        image.info.clear()  # where and when a photograph was taken is not passed on
        if max(image.size) <= self.long_edge:
            return image, []
        original = f"{image.width} x {image.height}"
        image.thumbnail((self.long_edge, self.long_edge), Image.Resampling.LANCZOS, reducing_gap=2.0)
        return image, [f"scaled down from {original}"]

    def picture(self, result: Result, opacity: float) -> Image.Image:
        """The overlay with a legend; the model does not run. `opacity` is from 0 to 100."""
        shares, palette = result.shares, result.palette
        painted = overlay(result.image, result.label_map.astype(np.int64), palette, opacity / 100, ignore_index=None)
        return add_legend(painted, shares, palette)

    def view(self, result: Result, name: str, choice: Choice) -> Image.Image:
        """
        A picture of the model's workings.

        Raises:
            UserError: if the model has no such view, or fails.
        """
        view = next((view for view in result.views if view.name == name), None)
        if view is None:
            raise UserError(f"{result.model} has no view {name!r}: choose another.")
        return _run(view.draw, self.models.get(result.model), result.image, choice)


def _predict(predictor: Predictor, image: Image.Image) -> np.ndarray:
    inputs = predictor.prepare(image)
    if hasattr(predictor.model, "predict"):
        _check_number_of_windows(predictor, inputs["pixel_values"])
    elif predictor.options:
        raise UserError("this model takes no window, stride, scales or flip: leave them as they were.")
    return predictor.predict([inputs], [(image.height, image.width)])[0]


def _check_number_of_windows(predictor: Predictor, pixel_values: torch.Tensor) -> None:
    """A visitor's tiny stride must not keep all others waiting for hours."""
    options = predictor.options
    windows = choose_windows(predictor.model.config, options.get("window_size"), options.get("window_stride"))
    if windows is None:
        return
    total = 0
    for scale in options.get("scales", (1.0,)):
        steps = [
            max(0, -(-(round(side * scale) - window) // stride)) + 1
            for side, window, stride in zip(pixel_values.shape[-2:], *windows, strict=True)
        ]
        total += steps[0] * steps[1] * (2 if options.get("flip") else 1)
    if total > _MAX_WINDOWS:
        raise UserError(f"that makes {total} windows, more than {_MAX_WINDOWS}: choose a larger window or stride.")


def _run(function: Callable, *arguments: Any) -> Any:
    """Calls what runs a model, and says in a line why it failed."""
    try:
        return function(*arguments)
    except torch.OutOfMemoryError as error:
        raise UserError("out of memory: try a smaller window, fewer scales, or a smaller image.") from error
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the model cannot do that: {first_line(error)}") from error


def license_note(source: str) -> str:
    """
    What the model's card says about its license, as a line of Markdown.

    Args:
        source (`str`): Folder, or name of a repository on the Hub.
    """
    path = Path(source).expanduser()
    try:
        data = ModelCard.load(path / "README.md" if path.is_dir() else source).data.to_dict()
    except Exception:  # offline, no card, or one that is not in order
        return "License of the model: unknown (no model card)."
    # "other" stands for a license with a name of its own
    license = data.get("license_name") if data.get("license") in (None, "other") else data.get("license")
    license = re.sub(r"[^\w .,:+()/-]", "", str(license or "not stated"))
    link = str(data.get("license_link") or "")
    if re.fullmatch(r"https?://[^\s()<>]+", link):
        license = f"[{license}]({link})"
    where = "" if path.is_dir() else f" ([model card](https://huggingface.co/{source}))"
    return f"License of the model: {license}{where}."


_TITLE = "Semantic segmentation"
_INTRODUCTION = (
    "Upload a photograph, and the model names the class of every pixel. Point at the result to read the names, pick a class "
    "from the legend, or look inside the model."
)
_FIRST_SEGMENT = "Segment an image first; then choose what to look at."
_CSS = """
.gradio-container { max-width: 1280px !important; }
#viewer .html-container { padding: 0; }
#classes th, #classes td { font-family: var(--font); }
#status p { color: var(--body-text-color-subdued); font-size: 0.85rem; }
#license p, #credit p { color: var(--body-text-color-subdued); font-size: 0.8rem; }
"""


class SegmentationDemo(gr.Blocks):
    """The page. `launch` has the theme, the limits, and no need of the network."""

    def launch(self, *arguments: Any, **options: Any) -> Any:
        """See `gradio.Blocks.launch`; what is given there stands."""
        # no fonts from elsewhere
        fonts = [gr.themes.Font(name) for name in ("system-ui", "Segoe UI", "Roboto", "sans-serif")]
        mono = [gr.themes.Font(name) for name in ("ui-monospace", "Consolas", "monospace")]
        defaults: dict[str, Any] = {
            "theme": gr.themes.Default(
                primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=fonts, font_mono=mono
            ),
            "css": _CSS,
            "max_file_size": _UPLOAD_LIMIT,
            "state_session_capacity": _SESSIONS_KEPT,
            "ssr_mode": False,
            "footer_links": ["api", "settings"],
        }
        return super().launch(*arguments, **(defaults | options))


def _uploaded_file(payload: Any) -> str | None:
    return None if payload is None else payload.path


def _show_errors(function: Callable) -> Callable:
    """Makes mistakes of the user a message on the page."""

    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UserError as error:
            message = str(error)
            raise gr.Error(message[:1].upper() + message[1:], print_exception=False) from None

    return wrapper


def create_app(
    models: Sequence[str] = (),
    *,
    device: str | None = None,
    dtype: str = "float32",
    long_edge: int = DEFAULT_LONG_EDGE,
) -> SegmentationDemo:
    """
    Builds the page. No model is loaded yet.

    Args:
        models (`Sequence[str]`, *optional*): Folders and repositories on the Hub to choose from, the first to begin with; the
            packaged model if empty.
        device (`str`, *optional*): See [`load_predictor`].
        dtype (`str`, *optional*, defaults to `"float32"`): See [`load_predictor`].
        long_edge (`int`, *optional*, defaults to 2048): Larger images are scaled down to this.
    """
    workbench = Workbench(ModelShelf(name_models(models), device, dtype), long_edge)
    return _build_page(workbench)


def _build_page(workbench: Workbench) -> SegmentationDemo:
    names = list(workbench.models.sources)
    # telemetry is off, and uploads do not stay
    page = SegmentationDemo(title=_TITLE, analytics_enabled=False, delete_cache=(_SECONDS_KEPT, _SECONDS_KEPT))
    with page:
        result_state, point_state = gr.State(None), gr.State(None)
        gr.Markdown(f"# {_TITLE}\n{_INTRODUCTION}")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                photo: Any = gr.Image(
                    label="Photograph",
                    type="filepath",
                    sources=["upload", "clipboard"],
                    height=280,
                    buttons=[],
                    elem_id="photo",
                )
                # Gradio would open the file, and have nothing of use to say where it cannot
                photo.preprocess = _uploaded_file
                model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")
                license = gr.Markdown(elem_id="license")
                with gr.Accordion("Windows, scales, flip", open=False):
                    with gr.Row():
                        window = gr.Textbox(
                            label="Window", placeholder="the model's own", min_width=120, elem_id="window"
                        )
                        stride = gr.Textbox(label="Stride", placeholder="the model's own", min_width=120)
                    gr.Markdown("In pixels, `512` or `768x1024`; a window of `0` is the whole image.")
                    scales = gr.CheckboxGroup(
                        list(_SCALES), value=[1.0], label="Scales", info="Results at these sizes are averaged."
                    )
                    flip = gr.Checkbox(label="Flip", info="Average over the image and its mirror image.")
                button = gr.Button("Segment", variant="primary", elem_id="segment")
                example = _add_example(photo)
            with gr.Column(scale=3, min_width=320):
                viewer = label_map_viewer(elem_id="viewer")
                status = gr.Markdown(elem_id="status")
                opacity = gr.Slider(0, 100, value=_DEFAULT_OPACITY, step=1, label="Opacity", elem_id="opacity")
                with gr.Row():
                    labels_file = gr.DownloadButton("Label map (PNG)", interactive=False, size="md", elem_id="labels")
                    picture_file = gr.DownloadButton(
                        "Picture with legend (PNG)", interactive=False, size="md", elem_id="picture"
                    )
                with gr.Tab("Classes"):
                    table = gr.Dataframe(
                        headers=["class", "share", "pixels"],
                        datatype=["str", "str", "number"],
                        interactive=False,
                        show_label=False,
                        elem_id="classes",
                    )
                with gr.Tab("Inside the model"):
                    hint = gr.Markdown(_FIRST_SEGMENT, elem_id="hint")
                    view = gr.Radio([], label="View", visible=False, elem_id="view")
                    with gr.Row():
                        class_index = gr.Dropdown([], label="Class", visible=False)
                        layer = gr.Dropdown([], label="Layer", visible=False)
                    view_picture = gr.Image(
                        label="View",
                        interactive=False,
                        visible=False,
                        format="png",
                        buttons=["download", "fullscreen"],
                        elem_id="view_picture",
                    )

        @_show_errors
        def segment(
            path: str | None, model: str, window: str, stride: str, scales: list[float], flip: bool, view: str | None
        ) -> list[Any]:
            result = workbench.segment(path, model, Options(window, stride, tuple(scales), flip))
            for note in result.notes:
                if note.startswith("scaled"):
                    gr.Info(f"The image was {note}, so that nobody has to wait long.")
            stem = Path(path or "").stem
            labels = label_image(result.label_map, result.palette)
            view_names = [one.name for one in result.views]
            chosen = view if view in view_names else None
            return [
                result,
                viewer_value(result, viewer.GRADIO_CACHE),
                " · ".join(result.notes),
                [[share.name, share.percent, share.pixels] for share in result.shares],
                gr.DownloadButton(value=_save(labels, f"{stem}_labels", labels_file), interactive=True),
                gr.Radio(view_names, value=chosen, visible=bool(view_names)),
                None,
                *view_controls(result, chosen),
            ]

        def view_controls(result: Result | None, name: str | None) -> list[Any]:
            """What is there to set for a view: the sentence above it, the class, the layer."""
            chosen = next((one for one in result.views if one.name == name), None) if result else None
            if result is None or chosen is None:
                sentence = _FIRST_SEGMENT if result is None else "Choose what to look at."
                if result is not None and not result.views:
                    sentence = "There is nothing to see inside this model."
                hidden = gr.Dropdown(visible=False)
                return [sentence, hidden, hidden, gr.Image(value=None, visible=False)]
            found = [share.index for share in result.shares]
            others = [index for index in sorted(result.id2label) if index not in found]
            classes = [(result.id2label.get(index, f"class {index}"), index) for index in (*found, *others)]
            sentence = chosen.description
            if chosen.needs == "point":
                sentence += " **Click a place in the picture above.**"
            return [
                sentence,
                gr.Dropdown(classes, value=found[0], visible=chosen.needs == "class"),
                gr.Dropdown(list(chosen.layers), value=max(chosen.layers, default=None), visible=bool(chosen.layers)),
                gr.Image(label=chosen.name, visible=True),
            ]

        @_show_errors
        def draw_view(
            result: Result | None,
            name: str | None,
            point: tuple[float, float] | None,
            class_index: int | None,
            layer: int | None,
        ) -> Any:
            if result is None or name is None:
                return gr.skip()
            choice = Choice(point or (0.5, 0.5), class_index or 0, layer)
            return workbench.view(result, name, choice)

        def draw_picture(result: Result | None, opacity: float) -> Any:
            if result is None:
                return gr.skip()
            path = _save(workbench.picture(result, opacity), "overlay", picture_file)
            return gr.DownloadButton(value=path, interactive=True)

        def choose_point(event: gr.SelectData) -> tuple[float, float]:
            x, y = (min(max(float(part), 0.0), 1 - 1e-6) for part in event.index)
            return x, y

        def note_license(model: str) -> str:
            return license_note(workbench.models.sources[model])

        # one at a time: the models share memory and processor
        on_model: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
        view_outputs = [hint, class_index, layer, view_picture]
        view_inputs = [result_state, view, point_state, class_index, layer]
        segment_options: dict[str, Any] = {
            "fn": segment,
            "inputs": [photo, model, window, stride, scales, flip, view],
            "outputs": [result_state, viewer, status, table, labels_file, view, point_state, *view_outputs],
            "show_progress_on": [viewer],
            **on_model,
        }
        draw_options: dict[str, Any] = {"fn": draw_view, "inputs": view_inputs, "outputs": view_picture, **on_model}
        picture_options: dict[str, Any] = {
            "fn": draw_picture,
            "inputs": [result_state, opacity],
            "outputs": picture_file,
        }

        runs = [gr.on([button.click, photo.upload], **segment_options, api_name="segment")]
        if example is not None:
            runs.append(example.then(**segment_options, api_visibility="private"))
        for run in runs:
            shown = run.success(**picture_options, show_progress="hidden", api_visibility="private")
            shown.then(**draw_options, api_visibility="private")
        opacity.change(None, opacity, js=OPACITY_JAVASCRIPT)
        opacity.release(**picture_options, show_progress="hidden", api_name="picture")
        model.change(note_license, model, license, api_visibility="private", show_progress="hidden")
        page.load(note_license, model, license, api_visibility="private", show_progress="hidden")
        view.input(view_controls, [result_state, view], view_outputs, api_visibility="private").then(
            **draw_options, api_visibility="private"
        )
        gr.on([class_index.input, layer.input], **draw_options, api_visibility="private")
        viewer.select(choose_point, None, point_state, api_visibility="private").then(
            **draw_options, api_visibility="private"
        )
    return page.queue(max_size=_QUEUE_LENGTH)


def _add_example(photo: gr.Image) -> Any:
    """The photograph of `make demo`, where scikit-learn is installed: the event of its click, otherwise nothing."""
    try:
        photograph = sample_photograph()
    except UserError:
        return None
    path = _save(photograph, Path(PHOTOGRAPH).stem, photo, suffix=".jpg")
    examples = gr.Examples([path], photo, label="Example", cache_examples=False)
    gr.Markdown(CREDIT.partition(";")[0] + ".", elem_id="credit")
    return examples.load_input_event


def _save(image: Image.Image, name: str, component: gr.components.Component, suffix: str = ".png") -> str:
    """Writes an image where Gradio serves the component's files from, and removes them in time."""
    Path(component.GRADIO_CACHE).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=component.GRADIO_CACHE))
    # visitors' file names may hold anything
    path = folder / (re.sub(r"[^\w.-]+", "_", name)[:80] + suffix)
    image.save(path, compress_level=2) if suffix == ".png" else image.save(path)
    return str(path)


def run_demo(
    models: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    device: str | None = None,
    dtype: str = "float32",
    long_edge: int = DEFAULT_LONG_EDGE,
) -> None:
    """
    Serves the page until it is interrupted.

    Args:
        models, device, dtype, long_edge: See [`create_app`].
        host (`str`, *optional*, defaults to `"127.0.0.1"`): Address to listen on; `"0.0.0.0"` for other machines too.
        port (`int`, *optional*): The first free one from 7860 on if unset.
        share (`bool`, *optional*, defaults to `False`): Whether Gradio makes a public link, through its servers.

    Raises:
        UserError: if the first model cannot be loaded, or the port is taken.
    """
    shelf = ModelShelf(name_models(models), device, dtype)
    shelf.get(next(iter(shelf.sources)))
    page = _build_page(Workbench(shelf, long_edge))
    try:
        page.launch(server_name=host, server_port=port, share=share)
    except OSError as error:
        raise UserError(f"cannot listen on {host} ({first_line(error)}): choose another --port or --host.") from error


def __getattr__(name: str) -> Any:
    """`demo`: the page for a Space, built on first use with the models that the environment names."""
    if name != "demo":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    page = create_app(os.environ.get(MODELS_VARIABLE, "").replace(",", " ").split())
    globals()["demo"] = page
    return page


if __name__ == "__main__":
    __getattr__("demo").launch()


__all__ = ["ModelShelf", "Options", "Result", "Workbench", "create_app", "license_note", "name_models", "run_demo"]
