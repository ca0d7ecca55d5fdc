# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
A web page to try models on photographs: `hf-segmodels demo`, or a Space on the Hub with this `app.py`:

    from hf_segmodels.demo.app import demo

    if __name__ == "__main__":
        demo.launch()

The variable HF_SEGMODELS_MODELS of the Space names the models (docs/demo.md).
"""

import functools
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..utils.errors import UserError, first_line
from ..visualization import label_image
from .sample import CREDIT, PHOTOGRAPH, sample_photograph
from .session import (
    DEFAULT_LONG_EDGE,
    SCALES,
    DemoSession,
    ModelCache,
    PredictOptions,
    SegmentedPhoto,
    license_note,
    name_models,
)
from .views import ViewSelection


try:
    import gradio as gr

    from .viewer import OPACITY_JAVASCRIPT, label_map_viewer, viewer_value
except ImportError as error:
    raise UserError(
        f"the demo needs Gradio, which cannot be imported ({error}): `pip install 'hf_segmodels[app]'`."
    ) from error


MODELS_VARIABLE = "HF_SEGMODELS_MODELS"

_TITLE = "Semantic segmentation"
_INTRODUCTION = (
    "Upload a photograph, and the model predicts the class of every pixel. Point at the result to read the class names, "
    "select a class in the legend, or look inside the model."
)
_SEGMENT_FIRST = "Segment an image first, then choose a view."
_CSS = """
.gradio-container { max-width: 1280px !important; }
#viewer .html-container { padding: 0; }
#classes th, #classes td { font-family: var(--font); }
#status p { color: var(--body-text-color-subdued); font-size: 0.85rem; }
#license p, #credit p { color: var(--body-text-color-subdued); font-size: 0.8rem; }
"""


class SegmentationDemo(gr.Blocks):
    """The page of a session. `launch` sets theme and limits."""

    def __init__(self, session: DemoSession):
        # No telemetry, and uploads are deleted after an hour.
        super().__init__(title=_TITLE, analytics_enabled=False, delete_cache=(3600, 3600))
        self.models = session.models
        with self:
            _Layout(session).add_events(self)
        self.queue(max_size=64)

    def launch(self, *arguments: Any, **options: Any) -> Any:
        """See `gradio.Blocks.launch`. `options` replace the defaults of the page."""
        # System fonts: the page loads nothing from other servers.
        fonts = [gr.themes.Font(name) for name in ("system-ui", "Segoe UI", "Roboto", "sans-serif")]
        mono = [gr.themes.Font(name) for name in ("ui-monospace", "Consolas", "monospace")]
        defaults: dict[str, Any] = {
            "theme": gr.themes.Default(
                primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=fonts, font_mono=mono
            ),
            "css": _CSS,
            "max_file_size": "64mb",
            "state_session_capacity": 64,
            "ssr_mode": False,
            "footer_links": ["api", "settings"],
        }
        return super().launch(*arguments, **(defaults | options))


def _show_errors(function: Callable) -> Callable:
    """Decorate a callback so that a [`UserError`] appears as a message on the page."""

    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UserError as error:
            message = str(error)
            raise gr.Error(message[:1].upper() + message[1:], print_exception=False) from None

    return wrapper


class _Layout:
    """Components of the page, by area, and their callbacks. Created within a `gradio.Blocks`."""

    def __init__(self, session: DemoSession):
        self.session = session
        self.result, self.point = gr.State(None), gr.State(None)
        gr.Markdown(f"# {_TITLE}\n{_INTRODUCTION}")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self._add_inputs()
            with gr.Column(scale=3, min_width=320):
                self._add_results()
                with gr.Tab("Inside the model"):
                    self._add_views()

    def _add_inputs(self) -> None:
        photo: Any = gr.Image(
            label="Photograph",
            type="filepath",
            sources=["upload", "clipboard"],
            height=280,
            buttons=[],
            elem_id="photo",
        )
        # Gradio would decode the file, with unhelpful messages for damaged files.
        photo.preprocess = lambda payload: None if payload is None else payload.path
        self.photo = photo
        names = list(self.session.models.sources)
        self.model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")
        self.license = gr.Markdown(elem_id="license")
        with gr.Accordion("Windows, scales, flip", open=False):
            with gr.Row():
                self.window = gr.Textbox(label="Window", placeholder="the model's own", min_width=120, elem_id="window")
                self.stride = gr.Textbox(label="Stride", placeholder="the model's own", min_width=120)
            gr.Markdown("In pixels, `512` or `768x1024`; a window of `0` is the whole image.")
            self.scales = gr.CheckboxGroup(
                list(SCALES), value=[1.0], label="Scales", info="Results at these sizes are averaged."
            )
            self.flip = gr.Checkbox(label="Flip", info="Average over the image and its mirror image.")
        self.button = gr.Button("Segment", variant="primary", elem_id="segment")
        self.example_click = self._add_example()

    def _add_example(self) -> Any:
        """Add the photograph of `make demo` as an example. Returns its click event; `None` without scikit-learn."""
        try:
            photograph = sample_photograph()
        except UserError:
            return None
        path = _save(photograph, Path(PHOTOGRAPH).stem, self.photo, suffix=".jpg")
        examples = gr.Examples([path], self.photo, label="Example", cache_examples=False)
        gr.Markdown(CREDIT, elem_id="credit")
        return examples.load_input_event

    def _add_results(self) -> None:
        self.viewer = label_map_viewer(elem_id="viewer")
        self.status = gr.Markdown(elem_id="status")
        self.opacity = gr.Slider(0, 100, value=50, step=1, label="Opacity", elem_id="opacity")
        with gr.Row():
            self.labels_file = gr.DownloadButton("Label map (PNG)", interactive=False, size="md", elem_id="labels")
            self.picture_file = gr.DownloadButton(
                "Picture with legend (PNG)", interactive=False, size="md", elem_id="picture"
            )
        with gr.Tab("Classes"):
            self.table = gr.Dataframe(
                headers=["class", "share", "pixels"],
                datatype=["str", "str", "number"],
                interactive=False,
                show_label=False,
                elem_id="classes",
            )

    def _add_views(self) -> None:
        self.hint = gr.Markdown(_SEGMENT_FIRST, elem_id="hint")
        self.view = gr.Radio([], label="View", visible=False, elem_id="view")
        with gr.Row():
            self.class_index = gr.Dropdown([], label="Class", visible=False)
            self.layer = gr.Dropdown([], label="Layer", visible=False)
        self.view_picture = gr.Image(
            label="View",
            interactive=False,
            visible=False,
            format="png",
            buttons=["download", "fullscreen"],
            elem_id="view_picture",
        )

    def add_events(self, page: SegmentationDemo) -> None:
        # One request at a time: the models share memory and processor.
        on_model: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
        private: dict[str, Any] = {"api_visibility": "private"}
        view_controls = [self.hint, self.class_index, self.layer, self.view_picture]
        results = [self.result, self.viewer, self.status, self.table, self.labels_file, self.view, self.point]
        segment: dict[str, Any] = {
            "fn": self._segment,
            "inputs": [self.photo, self.model, self.window, self.stride, self.scales, self.flip, self.view],
            "outputs": [*results, *view_controls],
            "show_progress_on": [self.viewer],
            **on_model,
        }
        draw_view: dict[str, Any] = {
            "fn": self._draw_view,
            "inputs": [self.result, self.view, self.point, self.class_index, self.layer],
            "outputs": self.view_picture,
            **on_model,
            **private,
        }
        draw_picture: dict[str, Any] = {
            "fn": self._draw_picture,
            "inputs": [self.result, self.opacity],
            "outputs": self.picture_file,
            "show_progress": "hidden",
        }
        note_license: dict[str, Any] = {
            "fn": self._note_license,
            "inputs": self.model,
            "outputs": self.license,
            "show_progress": "hidden",
            **private,
        }

        runs = [gr.on([self.button.click, self.photo.upload], **segment, api_name="segment")]
        if self.example_click is not None:
            runs.append(self.example_click.then(**segment, **private))
        for run in runs:
            run.success(**draw_picture, **private).then(**draw_view)
        self.opacity.change(None, self.opacity, js=OPACITY_JAVASCRIPT)
        self.opacity.release(**draw_picture, api_name="picture")
        self.model.change(**note_license)
        page.load(**note_license)
        self.view.input(self._view_controls, [self.result, self.view], view_controls, **private).then(**draw_view)
        gr.on([self.class_index.input, self.layer.input], **draw_view)
        self.viewer.select(_clicked_point, None, self.point, **private).then(**draw_view)

    @_show_errors
    def _segment(
        self,
        path: str | None,
        model: str,
        window: str,
        stride: str,
        scales: list[float],
        flip: bool,
        view: str | None,
    ) -> list[Any]:
        result = self.session.segment(path, model, PredictOptions(window, stride, tuple(scales), flip))
        for note in result.notes:
            if note.startswith("scaled"):
                gr.Info(f"The image was {note} to limit the waiting time.")
        labels = label_image(result.label_map, result.palette)
        labels_path = _save(labels, f"{Path(path or '').stem}_labels", self.labels_file)
        view_names = [view.name for view in result.views]
        selected = view if view in view_names else None
        return [
            result,
            viewer_value(result, self.viewer.GRADIO_CACHE),
            " · ".join(result.notes),
            [[share.name, share.percent, share.pixels] for share in result.shares],
            gr.DownloadButton(value=labels_path, interactive=True),
            gr.Radio(view_names, value=selected, visible=bool(view_names)),
            None,
            *self._view_controls(result, selected),
        ]

    def _view_controls(self, result: SegmentedPhoto | None, name: str | None) -> list[Any]:
        """Controls of the selected view: hint, class, layer and picture."""
        view = result.view(name) if result else None
        if result is None or view is None:
            no_view = "Choose a view." if result and result.views else "This model has no views."
            hint = no_view if result else _SEGMENT_FIRST
            hidden = gr.Dropdown(visible=False)
            return [hint, hidden, hidden, gr.Image(value=None, visible=False)]
        found = [share.index for share in result.shares]
        others = [index for index in sorted(result.id2label) if index not in found]
        classes = [(result.id2label.get(index, f"class {index}"), index) for index in (*found, *others)]
        return [
            view.description + (" **Click a point in the picture above.**" if view.needs == "point" else ""),
            gr.Dropdown(classes, value=found[0], visible=view.needs == "class"),
            gr.Dropdown(list(view.layers), value=max(view.layers, default=None), visible=bool(view.layers)),
            gr.Image(label=view.name, visible=True),
        ]

    @_show_errors
    def _draw_view(
        self,
        result: SegmentedPhoto | None,
        name: str | None,
        point: tuple[float, float] | None,
        class_index: int | None,
        layer: int | None,
    ) -> Any:
        if result is None or name is None:
            return gr.skip()
        return self.session.view(result, name, ViewSelection(point or (0.5, 0.5), class_index or 0, layer))

    def _draw_picture(self, result: SegmentedPhoto | None, opacity: float) -> Any:
        if result is None:
            return gr.skip()
        path = _save(result.picture(opacity), "overlay", self.picture_file)
        return gr.DownloadButton(value=path, interactive=True)

    def _note_license(self, model: str) -> str:
        return license_note(self.session.models.sources[model])


def _clicked_point(event: gr.SelectData) -> tuple[float, float]:
    x, y = (min(max(float(part), 0.0), 1 - 1e-6) for part in event.index)
    return x, y


def _save(image: Image.Image, name: str, component: gr.components.Component, suffix: str = ".png") -> str:
    """Write an image to the folder that Gradio serves the component's files from. Gradio deletes it after an hour."""
    Path(component.GRADIO_CACHE).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=component.GRADIO_CACHE))
    # Visitors' file names may contain any characters.
    path = folder / (re.sub(r"[^\w.-]+", "_", name)[:80] + suffix)
    image.save(path, compress_level=2) if suffix == ".png" else image.save(path)
    return str(path)


def create_app(
    models: Sequence[str] = (),
    *,
    device: str | None = None,
    dtype: str = "float32",
    long_edge: int = DEFAULT_LONG_EDGE,
) -> SegmentationDemo:
    """
    Build the page. Models are loaded on first use.

    Args:
        models (`Sequence[str]`, *optional*): Folders and repositories on the Hub to choose from; the first one is selected.
            Defaults to the packaged model.
        device (`str`, *optional*): See [`~hf_segmodels.inference.predictor.load_predictor`].
        dtype (`str`, *optional*, defaults to `"float32"`): See [`~hf_segmodels.inference.predictor.load_predictor`].
        long_edge (`int`, *optional*, defaults to 2048): Larger images are scaled down to this long edge.
    """
    return SegmentationDemo(DemoSession(ModelCache(name_models(models), device, dtype), long_edge))


def run_demo(
    models: Sequence[str], *, host: str = "127.0.0.1", port: int | None = None, share: bool = False, **options: Any
) -> None:
    """
    Serve the page until interrupted. See [`create_app`] for models and options, `gradio.Blocks.launch` for the server.

    Raises:
        UserError: if the first model cannot be loaded, or the port is in use.
    """
    page = create_app(models, **options)
    page.models.get(next(iter(page.models.sources)))
    try:
        page.launch(server_name=host, server_port=port, share=share)
    except OSError as error:
        raise UserError(f"cannot listen on {host} ({first_line(error)}): choose another --port or --host.") from error


def __getattr__(name: str) -> Any:
    """Build `demo`, the page of a Space, when it is imported."""
    if name != "demo":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return create_app(os.environ.get(MODELS_VARIABLE, "").replace(",", " ").split())
