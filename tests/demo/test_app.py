# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The demo page without a browser. test_browser.py is with a browser."""

import gc
import importlib
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from common.images import make_image
from common.tiny_segmenter import CLASS_NAMES
from hf_segmodels.cli.main import main
from hf_segmodels.demo import session as session_module
from hf_segmodels.demo.sample import DEMO_MODEL
from hf_segmodels.demo.session import DemoSession, ModelCache, PredictOptions, license_note, name_models
from hf_segmodels.demo.views import ViewSelection
from hf_segmodels.image_processing import read_image
from hf_segmodels.inference.predictor import Predictor, load_predictor
from hf_segmodels.utils.errors import UserError
from hf_segmodels.visualization import palette_for


pytestmark = pytest.mark.filterwarnings("ignore::Warning:gradio")
pytest.importorskip("gradio", reason="the page needs Gradio: pip install '.[app]'")

# after the skip: they need Gradio
app_module = importlib.import_module("hf_segmodels.demo.app")
viewer_value = importlib.import_module("hf_segmodels.demo.viewer").viewer_value
create_app = app_module.create_app


@pytest.fixture
def session(segmenter_folder) -> DemoSession:
    return DemoSession(ModelCache(name_models([str(segmenter_folder)])))


@pytest.fixture
def model_calls(monkeypatch) -> list:
    """Images that models segmented."""
    calls, original = [], Predictor.predict

    def count(self, inputs, target_sizes):
        calls.extend(inputs)
        return original(self, inputs, target_sizes)

    monkeypatch.setattr(Predictor, "predict", count)
    return calls


def test_segmenting_gives_overlay_legend_and_table(session, segmenter_folder, photo, tmp_path):
    result = session.segment(str(photo), "tiny_segmenter")
    predictor = load_predictor(str(segmenter_folder))
    expected = predictor(read_image(photo))
    assert len(np.unique(expected)) > 1
    assert (result.label_map == expected).all()
    assert [share.name for share in result.shares] == [
        CLASS_NAMES[index] for index in sorted(np.unique(expected), key=lambda index: -(expected == index).sum())
    ]
    assert sum(share.pixels for share in result.shares) == 60 * 40
    assert result.notes[:2] == ("60 x 40 pixels", f"{len(np.unique(expected))} classes")

    picture = np.asarray(result.picture(100))
    assert picture.shape[1] > 60  # the legend
    assert (picture[:40, :60] == palette_for(predictor.model.config)[expected]).all()

    value = viewer_value(result, str(tmp_path))
    channels = np.asarray(Image.open(value["labels"]["path"]).convert("RGB")).astype(int)
    assert (channels[..., 0] + 256 * channels[..., 1] == expected).all()
    assert [item["name"] for item in value["classes"]] == [share.name for share in result.shares]
    assert (value["width"], value["height"]) == Image.open(value["image"]["path"]).size


def test_more_than_256_classes_reach_the_browser(session, photo, tmp_path):
    result = session.segment(str(photo), "tiny_segmenter")
    labels = np.full((40, 60), 777, dtype=np.uint16)
    labels[:, 30:] = 2
    object.__setattr__(result, "label_map", labels)
    channels = np.asarray(Image.open(viewer_value(result, str(tmp_path))["labels"]["path"])).astype(int)
    assert (channels[..., 0] + 256 * channels[..., 1] == labels).all()


def test_another_opacity_does_not_run_the_model(session, photo, model_calls):
    result = session.segment(str(photo), "tiny_segmenter")
    pictures = [np.asarray(result.picture(opacity))[:40, :60] for opacity in (0, 50, 100)]
    assert len(model_calls) == 1
    assert (pictures[0] == np.asarray(Image.open(photo))).all()
    assert np.abs(pictures[1].astype(int) - pictures[0]).max() > 10
    assert np.abs(pictures[1].astype(int) - pictures[2]).max() > 10


def test_options_are_those_of_predict(session, segmenter_folder, photo):
    options = PredictOptions(window="16x24", stride=" 8 ", scales=(1.0, 0.5), flip=True)
    predictor = load_predictor(
        str(segmenter_folder), window_size=(16, 24), window_stride=(8, 8), scales=(0.5, 1.0), flip=True
    )
    expected = predictor(read_image(photo))
    assert (session.segment(str(photo), "tiny_segmenter", options).label_map == expected).all()
    # the next visitor gets the defaults
    default = load_predictor(str(segmenter_folder))(read_image(photo))
    assert (session.segment(str(photo), "tiny_segmenter").label_map == default).all()
    assert (default != expected).any()
    assert PredictOptions(window="0").for_predict() == {"window_size": 0}
    assert PredictOptions(scales=()).for_predict() == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PredictOptions(window="big"), "neither a number of pixels"),
        (PredictOptions(stride="0"), "neither a number of pixels"),
        (PredictOptions(window="16", stride="32"), "`window_stride` (32, 32) must be from 1 to"),
        (PredictOptions(window="8", stride="1", scales=(1.75,)), "windows, more than 1000"),
        (PredictOptions(scales=(0.3,)), "the scales are 0.5, 0.75"),
    ],
)
def test_invalid_options(session, photo, options, message):
    with pytest.raises(UserError) as caught:
        session.segment(str(photo), "tiny_segmenter", options)
    assert message in str(caught.value)


class TestImages:
    @pytest.mark.parametrize("content", [b"", b"no image at all", "truncated"])
    def test_broken_files(self, session, tmp_path, content):
        if content == "truncated":
            content = make_image(tmp_path / "whole.jpg", 300, 200).read_bytes()[:-500]
        path = tmp_path / "broken.jpg"
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as an image") as caught:
            session.segment(str(path), "tiny_segmenter")
        assert str(tmp_path) not in str(caught.value)

    def test_no_file(self, session):
        with pytest.raises(UserError, match="choose a photograph first"):
            session.segment(None, "tiny_segmenter")

    def test_large_images_are_scaled_down_with_a_note(self, segmenter_folder, tmp_path):
        session = DemoSession(ModelCache(name_models([str(segmenter_folder)])), long_edge=100)
        path = make_image(tmp_path / "large.jpg", 400, 200)
        result = session.segment(str(path), "tiny_segmenter")
        assert result.image.size == (100, 50)
        assert result.label_map.shape == (50, 100)
        assert result.notes[-1] == "scaled down from 400 x 200"

    def test_decompression_bombs_and_strips(self, session, tmp_path, monkeypatch):
        path = make_image(tmp_path / "strip.png", 600, 20)
        with pytest.raises(UserError, match="crop it to at most 12 times"):
            session.segment(str(path), "tiny_segmenter")
        monkeypatch.setattr(session_module, "_MAX_PIXELS", 10_000)
        with pytest.raises(UserError, match="scale it down"):
            session.segment(str(make_image(tmp_path / "large.png", 300, 200)), "tiny_segmenter")

    def test_orientation_is_followed_and_metadata_dropped(self, session, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees
        exif[0x010E] = "taken at home"
        path = make_image(tmp_path / "a.jpg", 60, 40, exif=exif)
        result = session.segment(str(path), "tiny_segmenter")
        assert result.image.size == (40, 60)
        written = Path(viewer_value(result, str(tmp_path))["image"]["path"]).read_bytes()
        assert b"taken at home" not in written


class TestModels:
    def test_names(self, segmenter_folder, tmp_path):
        other = tmp_path / "tiny_segmenter"
        other.mkdir()
        names = name_models([str(segmenter_folder), f"{other}/", "owner/name", str(segmenter_folder)])
        assert list(names) == ["tiny_segmenter", "tiny_segmenter (2)", "owner/name"]
        assert name_models([]) == {"demo model (street scenes)": str(DEMO_MODEL)}

    def test_loaded_once_and_kept_up_to_a_limit(self, method_folders, monkeypatch):
        loads = []

        def load(source, **options):
            loads.append(Path(source).name)
            return load_predictor(source, **options)

        monkeypatch.setattr(session_module, "load_predictor", load)
        folders = {name: str(folder) for name, folder in method_folders.items()}
        cache = ModelCache(folders)
        assert list(cache.loaded) == []
        for name in ("segmenter", "regproxy", "segmenter"):
            assert cache.get(name).model.config.model_type == name
        assert list(cache.loaded) == ["regproxy", "segmenter"]
        assert len(loads) == 2

        small = ModelCache(folders, memory_limit=0)
        first = small.get("segmenter").model
        weight = next(first.parameters())
        reference = weakref.ref(first)
        small.get("regproxy")
        assert list(small.loaded) == ["regproxy"]
        del first, weight
        gc.collect()
        assert reference() is None  # and out of memory

    def test_only_offered_models(self, session, photo, segmenter_folder):
        with pytest.raises(UserError, match="there is no model 'owner/other' here"):
            session.segment(str(photo), "owner/other")
        with pytest.raises(UserError, match="there is no model"):
            session.segment(str(photo), str(segmenter_folder))

    def test_a_model_that_fails(self, session, photo, monkeypatch):
        result = session.segment(str(photo), "tiny_segmenter")

        def run_out(*arguments, **options):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

        monkeypatch.setattr(Predictor, "predict", run_out)
        with pytest.raises(UserError, match="out of memory: try a smaller window"):
            session.segment(str(photo), "tiny_segmenter")
        with pytest.raises(UserError, match="has no view 'Regions'"):
            session.view(result, "Regions", ViewSelection())

    def test_models_of_transformers_itself(self, photo, tmp_path):
        config = SegformerConfig(
            num_labels=3, depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8
        )
        SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "segformer")
        SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "segformer")
        session = DemoSession(ModelCache(name_models([str(tmp_path / "segformer")])))
        result = session.segment(str(photo), "segformer")
        assert result.label_map.shape == (40, 60)
        assert result.views == ()
        with pytest.raises(UserError, match="does not support window, stride, scales and flip"):
            session.segment(str(photo), "segformer", PredictOptions(flip=True))

    def test_views_use_the_model_of_the_result(self, method_folders, photo):
        session = DemoSession(ModelCache({name: str(folder) for name, folder in method_folders.items()}))
        results = [session.segment(str(photo), name) for name in ("regproxy", "unept")]
        assert session.view(results[0], "Region at a point", ViewSelection()).size == (60, 40)
        assert session.view(results[1], "Boundaries", ViewSelection()).size == (60, 40)

    def test_license_from_the_card(self, segmenter_folder, mask_folder, tmp_path):
        assert license_note(str(DEMO_MODEL)) == "License of the model: research-use."
        assert license_note(str(segmenter_folder)) == "License of the model: apache-2.0."
        assert "unknown" in license_note(str(mask_folder))
        card = (
            "---\nlicense: other\nlicense_name: '<b>x</b>](javascript:0)'\nlicense_link: 'javascript:alert(1)'\n---\n"
        )
        (tmp_path / "README.md").write_text(card)
        assert license_note(str(tmp_path)) == "License of the model: bx/b(javascript:0)."
        (tmp_path / "README.md").write_text("---\nlicense: mit\nlicense_link: https://example.org/l\n---\n")
        assert license_note(str(tmp_path)) == "License of the model: [mit](https://example.org/l)."


class TestCommand:
    def test_without_gradio(self, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "gradio", None)
        monkeypatch.delitem(sys.modules, "hf_segmodels.demo.app")
        monkeypatch.delitem(sys.modules, "hf_segmodels.demo.viewer")
        assert main(["demo"]) == 2
        assert "pip install 'hf_segmodels[app]'" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--port", "0"], "not a whole number from 1 to 65535"),
            (["--long-edge", "x"], "not a whole number"),
            (["--model", "/no/such/model"], "there is no folder /no/such/model"),
            (["--device", "nonsense"], "cannot use the device"),
        ],
    )
    def test_user_errors(self, arguments, message, capsys):
        assert main(["demo", *arguments]) == 2
        assert message in capsys.readouterr().err

    def test_options_reach_the_page(self, segmenter_folder, monkeypatch):
        launched = {}
        monkeypatch.setattr(app_module.gr.Blocks, "launch", lambda self, **options: launched.update(options, page=self))
        made = []
        monkeypatch.setattr(
            session_module, "load_predictor", lambda *arguments, **options: made.append((arguments, options))
        )
        arguments = ["--host", "0.0.0.0", "--port", "7999", "--share", "--device", "cpu", "--dtype", "bfloat16"]
        assert main(["demo", "--model", str(segmenter_folder), "owner/name", *arguments]) == 0
        assert (launched["server_name"], launched["server_port"], launched["share"]) == ("0.0.0.0", 7999, True)
        assert made == [((str(segmenter_folder),), {"device": "cpu", "dtype": "bfloat16"})]
        choices = next(block.choices for block in launched["page"].blocks.values() if block.elem_id == "model")
        assert [name for name, _ in choices] == ["tiny_segmenter", "owner/name"]

    def test_space(self, segmenter_folder, monkeypatch):
        monkeypatch.setenv("HF_SEGMODELS_MODELS", f"owner/name, {segmenter_folder}")
        from hf_segmodels.demo.app import demo

        choices = next(block.choices for block in demo.blocks.values() if block.elem_id == "model")
        assert [name for name, _ in choices] == ["owner/name", "tiny_segmenter"]


class TestServed:
    """The page behind its server, through Gradio's client; each client is a visitor."""

    @pytest.fixture(scope="class")
    @staticmethod
    def url(segmenter_folder, mask_folder):
        page = create_app([str(segmenter_folder), str(mask_folder)])
        _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_port=None)
        yield url
        page.close()

    @staticmethod
    def visit(url: str):
        from gradio_client import Client

        return Client(url, verbose=False)

    @staticmethod
    def segment(client, path: Path, model: str = "tiny_segmenter"):
        from gradio_client import handle_file

        return client.predict(handle_file(path), model, "", "", [1.0], False, None, api_name="/segment")

    def test_two_visitors_get_their_own_results(self, url, segmenter_folder, tmp_path):
        predictor = load_predictor(str(segmenter_folder))
        paths = [make_image(tmp_path / f"{seed}.png", 50 + 10 * seed, 40, seed) for seed in range(2)]
        clients = [self.visit(url) for _ in paths]
        answers: dict[int, list] = {0: [], 1: []}

        def work(number: int) -> None:
            for _ in range(2):
                self.segment(clients[number], paths[number])
                answers[number].append(clients[number].predict(100, api_name="/picture"))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        palette = palette_for(predictor.model.config)
        for number, path in enumerate(paths):
            expected = palette[predictor(read_image(path))]
            assert len(answers[number]) == 2
            for answer in answers[number]:
                file = answer["value"] if isinstance(answer, dict) else answer
                assert (np.asarray(Image.open(file))[:40, : expected.shape[1]] == expected).all()

    def test_a_label_map_to_download(self, url, segmenter_folder, photo):
        expected = load_predictor(str(segmenter_folder))(read_image(photo))
        answer = self.segment(self.visit(url), photo)
        (file,) = (
            item["value"] for item in answer if isinstance(item, dict) and "_labels.png" in str(item.get("value"))
        )
        labels = Image.open(file)
        assert labels.mode == "P"
        assert (np.array(labels) == expected).all()
        assert Path(file).name == "photo_labels.png"

    def test_errors_are_messages(self, url, tmp_path, capfd):
        from gradio_client.exceptions import AppError

        broken = tmp_path / "broken.png"
        broken.write_text("no image")
        client = self.visit(url)
        with pytest.raises(AppError, match="The file cannot be read as an image"):
            self.segment(client, broken)
        assert "Traceback" not in capfd.readouterr().err
        # the page still works
        self.segment(client, make_image(tmp_path / "good.png"))

    def test_files_of_the_server_stay_there(self, url, photo):
        import httpx

        def ask(path: str) -> str:
            file = {"path": path, "meta": {"_type": "gradio.FileData"}}
            data = [file, "tiny_segmenter", "", "", [1.0], False, None]
            event = httpx.post(f"{url}gradio_api/call/segment", json={"data": data}).json()["event_id"]
            return httpx.get(f"{url}gradio_api/call/segment/{event}", timeout=60).text

        answer = ask(str(photo))
        assert "event: error" in answer
        assert "60 x 40 pixels" not in answer
        (uploaded,) = httpx.post(f"{url}gradio_api/upload", files={"files": photo.open("rb")}).json()
        assert "60 x 40 pixels" in ask(uploaded)

    @pytest.mark.slow
    def test_twenty_images_do_not_pile_up(self, url, tmp_path, monkeypatch):
        results, segment = [], DemoSession.segment

        def remember(self, *arguments):
            result = segment(self, *arguments)
            results.append(weakref.ref(result))
            return result

        monkeypatch.setattr(DemoSession, "segment", remember)
        client = self.visit(url)
        for seed in range(20):
            self.segment(client, make_image(tmp_path / f"{seed}.png", 70, 50, seed))
        gc.collect()
        alive = [number for number, reference in enumerate(results) if reference() is not None]
        assert alive == [19]


def test_no_file_is_written_beside_the_sources():
    folder = Path(app_module.__file__).parent
    assert not list(folder.glob("*.pyi"))
