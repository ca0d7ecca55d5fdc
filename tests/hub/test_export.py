# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Exported folders: content, models that cannot be exported, and loading without the package."""

import json
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
)
from transformers.dynamic_module_utils import get_imports

from common.exported_models import CLASS_NAMES, MODELS, make_image, make_model, run_clean_process, write_expected
from hf_segmodels import SegmenterForSemanticSegmentation, SegmenterImageProcessor, SegmenterImageProcessorPil
from hf_segmodels.hub import EndpointHandler, RemoteCode, export_for_hub
from hf_segmodels.utils.errors import UserError


@pytest.fixture(scope="module")
def parts():
    return make_model("segmenter-linear")


@pytest.fixture(scope="module")
def exported(parts, tmp_path_factory) -> Path:
    return export_for_hub(*parts, tmp_path_factory.mktemp("hub") / "exported", card="A card.")


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestFolder:
    def test_auto_maps(self, exported: Path):
        config = json.loads((exported / "config.json").read_text())
        assert config["auto_map"] == {
            "AutoConfig": "configuration_segmenter.SegmenterConfig",
            "AutoModelForSemanticSegmentation": "modeling_segmenter.SegmenterForSemanticSegmentation",
        }
        assert config["backbone_config"]["auto_map"] == {
            "AutoConfig": "configuration_plain_vit.PlainViTConfig",
            "AutoBackbone": "modeling_plain_vit.PlainViTBackbone",
        }
        assert json.loads((exported / "preprocessor_config.json").read_text())["auto_map"] == {
            "AutoImageProcessor": {
                "torchvision": "image_processing_segmenter.SegmenterImageProcessor",
                "pil": "image_processing_pil_segmenter.SegmenterImageProcessorPil",
            }
        }
        assert (exported / "README.md").read_text() == "A card."
        assert (exported / "model.safetensors").is_file()

    def test_the_model_is_not_changed(self, parts, exported: Path, tmp_path: Path):
        model, image_processor = parts
        model.save_pretrained(tmp_path)
        image_processor.save_pretrained(tmp_path)
        assert sorted(read(tmp_path)) == ["config.json", "model.safetensors", "preprocessor_config.json"]
        assert b"auto_map" not in read(tmp_path)["config.json"] + read(tmp_path)["preprocessor_config.json"]

    def test_the_package_loads_it_with_its_own_classes(self, parts, exported: Path, tmp_path: Path):
        for options in ({}, {"trust_remote_code": True}):
            model = AutoModelForSemanticSegmentation.from_pretrained(exported, **options)
            image_processor = AutoImageProcessor.from_pretrained(exported, **options)
            assert type(model) is SegmenterForSemanticSegmentation
            assert type(image_processor) is SegmenterImageProcessor
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, parts[0].state_dict()[name])
        again = export_for_hub(model, image_processor, tmp_path / "again", card="A card.")
        ours, theirs = read(again), read(exported)
        # loading sets the data type of the weights in the encoder's configuration, too
        ours["config.json"] = ours["config.json"].replace(
            b'"dtype": "float32",\n    "final', b'"dtype": null,\n    "final'
        )
        assert ours == theirs

    def test_either_backend_gives_both(self, parts, exported: Path, tmp_path: Path):
        model, image_processor = parts
        pil = SegmenterImageProcessorPil(size=image_processor.size)
        folder = export_for_hub(model, pil, tmp_path / "pil", card="A card.")
        assert read(folder) == read(exported)

    def test_image_processor_of_transformers(self, parts, tmp_path: Path):
        folder = export_for_hub(parts[0], SegformerImageProcessorPil(), tmp_path / "new")
        assert "auto_map" not in json.loads((folder / "preprocessor_config.json").read_text())
        assert not list(folder.glob("image_processing_*segmenter.py"))

    def test_weights_keep_their_type(self, parts, tmp_path: Path):
        folder = export_for_hub(make_model("segmenter-linear")[0].bfloat16(), parts[1], tmp_path / "new")
        assert AutoModelForSemanticSegmentation.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16

    def test_requirements_of_the_package(self, repository: Path, tmp_path: Path):
        project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
        extras = project["optional-dependencies"]
        known = {*project["dependencies"], *extras["superpixels"], *extras["dev"]}
        folder = export_for_hub(*make_model("superpixel-vit"), tmp_path / "new")
        required = (folder / "requirements.txt").read_text().split()
        assert set(required) <= known
        assert [line.partition(">")[0] for line in required] == [
            "numpy", "pillow", "scikit-image", "torch", "torchvision", "transformers",
        ]  # fmt: skip


class TestWriting:
    def test_an_earlier_export_is_replaced_and_other_files_are_kept(self, parts, tmp_path: Path):
        folder = export_for_hub(*make_model("unept"), tmp_path / "new")
        (folder / "mine.py").write_text("print('mine')\n")
        (folder / "checkpoint-1").mkdir()
        assert export_for_hub(*parts, folder) == folder
        assert not list(folder.glob("*unept*"))
        assert not (folder / "sparse_attention_kernels.py").exists()
        assert (folder / "mine.py").read_text() == "print('mine')\n"
        assert (folder / "checkpoint-1").is_dir()
        assert AutoModelForSemanticSegmentation.from_pretrained(folder).config.model_type == "segmenter"

    def test_other_folders_are_refused(self, parts, tmp_path: Path):
        (tmp_path / "letters").mkdir()
        (tmp_path / "letters" / "to_mother.txt").write_text("Dear")
        with pytest.raises(UserError, match="holds other files than a model: choose another folder"):
            export_for_hub(*parts, tmp_path / "letters")
        with pytest.raises(UserError, match="is a file"):
            export_for_hub(*parts, tmp_path / "letters" / "to_mother.txt")
        assert read(tmp_path / "letters") == {"to_mother.txt": b"Dear"}

    def test_a_failure_changes_nothing(self, parts, exported: Path, tmp_path: Path, monkeypatch):
        shutil.copytree(exported, tmp_path / "old")
        monkeypatch.setattr(RemoteCode, "write", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
        for name in ("old", "new"):
            with pytest.raises(OSError, match="disk full"):
                export_for_hub(*parts, tmp_path / name)
        assert [path.name for path in tmp_path.iterdir()] == ["old"]
        assert read(tmp_path / "old") == read(exported)


class TestHandler:
    def test_packages(self, exported: Path):
        files = [exported / "handler.py", *exported.glob("hub_endpoint_*.py")]
        assert len(files) > 1
        for path in files:
            packages = set(get_imports(path)) - sys.stdlib_module_names
            # `handler.py` imports the package only if it is installed
            assert packages <= {"PIL", "numpy", "torch", "transformers", "hf_segmodels"}, path.name
            assert "hf_segmodels" not in packages or path.name == "handler.py"

    def test_several_models_in_one_process(self, parts, exported: Path, tmp_path: Path):
        """Each handler runs the modules in its own folder, also when servers load both under one name."""
        pytest.importorskip("fastapi")
        from common.endpoint_server import load_handler

        other_parts = make_model("unept")
        other = export_for_hub(*other_parts, tmp_path / "other", card="A card.")
        changed = other / "hub_endpoint_requests.py"
        changed.write_text(changed.read_text().replace('"masks or label_map"', '"a form of this folder"'))
        path = list(sys.path)
        handlers = [load_handler(folder) for folder in (exported, other)]
        assert sys.path == path
        request = {"inputs": make_image()}
        for handler, (model, image_processor) in zip(handlers, (parts, other_parts), strict=True):
            assert type(handler).__module__ != EndpointHandler.__module__
            inputs = image_processor(request["inputs"], return_tensors="pt")
            labels = model.predict(**inputs, target_sizes=[(64, 80)])[0].numpy()
            shares = {item["label"]: item["share"] for item in handler(request)}
            assert shares == {CLASS_NAMES[int(label)]: (labels == label).mean() for label in np.unique(labels)}
        for handler, message in zip(handlers, ("masks or label_map", "a form of this folder"), strict=True):
            with pytest.raises(ValueError, match=f"send {message}"):
                handler({**request, "parameters": {"output": "other"}})


class OwnSegmenter(SegmenterForSemanticSegmentation):
    """A user's class."""


class OwnImageProcessor(SegmenterImageProcessorPil):
    """A user's class."""


class TestRefusals:
    def refused(self, model, image_processor, folder: Path) -> str:
        with pytest.raises(UserError) as error:
            export_for_hub(model, image_processor, folder / "new")
        assert not any(folder.iterdir())
        return str(error.value)

    def test_other_models(self, parts, tmp_path: Path):
        small = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "decoder_hidden_size": 8, "num_attention_heads": [1] * 4}
        segformer = SegformerForSemanticSegmentation(SegformerConfig(**small))
        assert "give a Segmenter, SegViT" in self.refused(segformer, parts[1], tmp_path)
        assert "export the class that it is derived from" in self.refused(
            OwnSegmenter(parts[0].config), parts[1], tmp_path
        )
        compiled = torch.nn.Module()
        compiled._orig_mod = parts[0]  # as `torch.compile` does, which takes long to import
        assert "model that was compiled" in self.refused(compiled, parts[1], tmp_path)

    def test_other_image_processors(self, parts, tmp_path: Path):
        assert "image processor OwnImageProcessor" in self.refused(parts[0], OwnImageProcessor(), tmp_path)

    def test_other_encoders(self, parts, tmp_path: Path):
        model = make_model("segmenter-linear")[0]
        model.backbone = torch.nn.Identity()
        assert "encoder Identity" in self.refused(model, parts[1], tmp_path)

    def test_missing_or_quantized_weights(self, parts, tmp_path: Path):
        assert "offloading" in self.refused(make_model("segmenter-linear")[0].to("meta"), parts[1], tmp_path)
        model = make_model("segmenter-linear")[0]
        model.hf_quantizer = object()
        assert "quantized" in self.refused(model, parts[1], tmp_path)


@pytest.mark.slow  # a process that imports everything and loads nine models, 40 s
def test_all_models_in_a_process_without_the_package(tmp_path: Path):
    cases = {}
    for name in MODELS:
        model, image_processor = make_model(name)
        write_expected(model, image_processor, tmp_path / "expected" / name)
        folder = export_for_hub(model, image_processor, tmp_path / "exported" / name)
        cases[name] = (folder, tmp_path / "expected" / name)
    # no output, such as the warning that a pipeline does not support the model
    assert run_clean_process(cases, tmp_path) == ""


@pytest.mark.slow  # another such process, 20 s
def test_without_packages_that_may_be_absent(tmp_path: Path):
    cases = {}
    for name in ("segvit-shrunk", "unept-resnet"):
        model, image_processor = make_model(name)
        write_expected(model, image_processor, tmp_path / "expected" / name)
        folder = export_for_hub(model, image_processor, tmp_path / "exported" / name)
        cases[name] = (folder, tmp_path / "expected" / name)
    absent = ("torchvision", "kernels", "scipy", "skimage", "datasets", "matplotlib", "timm")
    run_clean_process(cases, tmp_path, blocked=absent)
