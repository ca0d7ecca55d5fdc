# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Export of a model to a folder that loads without this package: weights, configuration, image processor, and code."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_processing_base import ImageProcessingMixin
from transformers.modeling_utils import PreTrainedModel

from ..image_processing.segmentation_image_processor import both_backends
from ..modeling_utils import SegmentationPreTrainedModel
from ..utils.errors import UserError
from ..utils.files import atomic_directory, is_non_empty
from .cards.card import create_model_card
from .cards.facts import METHODS
from .remote_code import MARK, PACKAGE, flat_name, flatten


# lower bounds of pyproject.toml
_REQUIREMENTS = ("numpy>=2.1", "pillow>=11.0", "torch>=2.11", "torchvision>=0.26", "transformers>=5.17,<6")
_MORE_REQUIREMENTS = {"superpixel_vit": "scikit-image>=0.25", "timm_backbone": "timm>=1.0.20"}
# files that an export writes, code aside
_FILES = (
    "README.md",
    "config.json",
    "handler.py",
    "model*.safetensors*",
    "preprocessor_config.json",
    "requirements.txt",
)

_OTHER_BACKEND = """

from typing import TYPE_CHECKING


if TYPE_CHECKING:  # so that `save_pretrained` of this class copies the module of the other backend, too
    from .{module} import {name}  # noqa: F401
"""
_PIPELINE_NAMES = """

from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES


# `pipeline("image-segmentation")` only checks these names, and would log that the model is not supported
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault("{model_type}", "{name}")
"""
_HANDLER_MODULE = "hub.endpoint.handler"
_HANDLER = f'''{MARK}; see {PACKAGE}/hub/export.py.
"""Custom handler of Hugging Face Inference Endpoints, for the model in this folder."""

import contextlib
import importlib.machinery
import importlib.util
import sys
import uuid
from pathlib import Path


with contextlib.suppress(ImportError):
    import {PACKAGE}  # noqa: F401  (its own classes are used where it is installed)

# Servers load this file by its path. The modules next to it are a package under a name of its own, so that handlers of
# several models fit into one process.
_spec = importlib.machinery.ModuleSpec(f"{PACKAGE}_{{uuid.uuid4().hex}}", None, is_package=True)
_spec.submodule_search_locations = [str(Path(__file__).resolve().parent)]
sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
EndpointHandler = importlib.import_module(f"{{_spec.name}}.{flat_name(_HANDLER_MODULE)}").EndpointHandler
'''


@dataclass(frozen=True)
class RemoteCode:
    """
    The code that a model needs in a repository, and the `auto_map`s that lead to its classes.

    Args:
        files (`dict[str, str]`): Source code by file name.
        auto_map (`dict[str, str]`): `auto_map` of the model's configuration.
        backbone_auto_map (`dict[str, str]`, *optional*):
            `auto_map` of the encoder's configuration; `None` for an encoder of transformers.
        processor_auto_map (`dict[str, dict[str, str]]`, *optional*):
            `auto_map` of the image processor; `None` without one or for one of transformers.
    """

    files: dict[str, str]
    auto_map: dict[str, str]
    backbone_auto_map: dict[str, str] | None
    processor_auto_map: dict[str, dict[str, str]] | None

    @classmethod
    def from_model(cls, model: PreTrainedModel, image_processor: ImageProcessingMixin | None = None) -> "RemoteCode":
        """
        Collect the code of a model of this package, of its image processor, and of the endpoint handler.

        Args:
            model (`PreTrainedModel`): The model.
            image_processor (`ImageProcessingMixin`, *optional*): Its image processor, of either backend.

        Raises:
            UserError: if the model is not a class of this package, or the encoder or image processor is neither a class of
                this package nor of transformers.
        """
        if not isinstance(model, SegmentationPreTrainedModel) or _package(model) != PACKAGE:
            raise UserError(f"{_describe(model)} is not a model class of {PACKAGE}: {_advice(model)}.")
        modules = [_HANDLER_MODULE, _module(model), _module(model.config)]
        footer = _PIPELINE_NAMES.format(model_type=model.config.model_type, name=type(model).__name__)
        footers = {_module(model): footer}
        auto_map = {"AutoConfig": _reference(model.config), "AutoModelForSemanticSegmentation": _reference(model)}
        backbone, backbone_auto_map, processor_auto_map = model.backbone, None, None
        if _is_own(backbone, "encoder"):
            modules += [_module(backbone), _module(backbone.config)]
            backbone_auto_map = {"AutoConfig": _reference(backbone.config), "AutoBackbone": _reference(backbone)}
        if image_processor is not None and _is_own(image_processor, "image processor"):
            backends = both_backends(_reference(image_processor))
            processor_auto_map = {"AutoImageProcessor": backends}
            module_package = _module(image_processor).rpartition(".")[0]
            references = [reference.split(".") for reference in backends.values()]
            for (module, _), (other_module, other_name) in zip(references, reversed(references), strict=True):
                modules.append(f"{module_package}.{module}")
                footers[modules[-1]] = _OTHER_BACKEND.format(module=other_module, name=other_name)
        return cls(flatten(modules, footers), auto_map, backbone_auto_map, processor_auto_map)

    def set_auto_map(self, config: PreTrainedConfig, image_processor: Any = None) -> None:
        """Set `auto_map` of a model's configuration, its encoder's configuration, and an image processor."""
        _set_auto_map(config, self.auto_map)
        _set_auto_map(config.backbone_config, self.backbone_auto_map)
        if image_processor is not None:
            _set_auto_map(image_processor, self.processor_auto_map)

    def write(self, folder: Path, config: PreTrainedConfig) -> None:
        """Write the code, the endpoint handler, and the requirements of a model with this configuration into a folder."""
        model_types = (config.model_type, config.backbone_config.model_type)
        more = [_MORE_REQUIREMENTS[name] for name in model_types if name in _MORE_REQUIREMENTS]
        requirements = "".join(f"{requirement}\n" for requirement in sorted([*_REQUIREMENTS, *more]))
        for name, text in {**self.files, "handler.py": _HANDLER, "requirements.txt": requirements}.items():
            (folder / name).write_text(text, encoding="utf-8")


def export_for_hub(
    model: PreTrainedModel,
    image_processor: ImageProcessingMixin,
    folder: str | Path,
    *,
    repo_id: str | None = None,
    card: str | None = None,
    **card_options: Any,
) -> Path:
    """
    Export a model to a folder that the Auto classes load without this package, with `trust_remote_code=True`. It holds the
    weights as safetensors, `config.json`, `preprocessor_config.json`, the Python modules that they need, `handler.py` for
    Inference Endpoints, `requirements.txt` and a model card. With this package imported, it loads as any other folder.

    Args:
        model (`PreTrainedModel`):
            A model of this package, with an encoder of this package or of transformers. It is not changed.
        image_processor (`ImageProcessingMixin`):
            The model's image processor, of either backend; both backends are exported.
        folder (`str` or `Path`):
            Output folder: a new or empty folder, or the folder of a model. The model in it is replaced, other files are
            kept. If the export fails, the folder is not changed.
        repo_id (`str`, *optional*):
            Name of the repository, for the card.
        card (`str`, *optional*):
            Text of the model card, `README.md`. Defaults to the card of [`create_model_card`]; SuperpixelViT has no card.
        card_options:
            Options of [`create_model_card`], such as `results`, `dataset` or `license`.

    Returns:
        `Path`: The folder.

    Raises:
        UserError: if the model or image processor cannot be exported, the card's options are invalid or given together with
            `card`, or the folder holds other files than a model.

    Example:

    ```python
    >>> from hf_segmodels.hub import export_for_hub
    >>> from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    >>> model = AutoModelForSemanticSegmentation.from_pretrained("path/to/model")
    >>> image_processor = AutoImageProcessor.from_pretrained("path/to/model")
    >>> folder = export_for_hub(model, image_processor, "exported")
    ```
    """
    folder = Path(folder).expanduser()
    code = RemoteCode.from_model(model, image_processor)
    _check_weights(model)
    if is_non_empty(folder) and not (folder / "config.json").is_file():
        problem = "holds other files than a model" if folder.is_dir() else "is a file"
        raise UserError(f"{folder} {problem}: choose another folder.")
    if card is not None and card_options:
        raise UserError(f"there is a model card already: leave out {', '.join(card_options)}, or the card.")
    if card is None and (card_options or model.config.model_type in METHODS):
        try:
            card = str(create_model_card(model, image_processor, repo_id=repo_id, remote_code=True, **card_options))
        except ValueError as error:
            raise UserError(f"cannot write the model card: {error}") from error

    config, image_processor = copy.deepcopy(model.config), copy.deepcopy(image_processor)
    with atomic_directory(folder, exported_files) as partial:
        # the original names of weights, which every version of transformers reads for its own encoders
        model.save_pretrained(partial, save_original_format=True)
        # the copy gets the `auto_map`, so that `save_pretrained` of the model itself stays without code
        config.architectures, config.dtype = model.config.architectures, model.config.dtype
        code.set_auto_map(config, image_processor)
        config.save_pretrained(partial)
        image_processor.save_pretrained(partial)
        code.write(partial, config)
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf-8")
    return folder


class RemoteCodeCallback(TrainerCallback):
    """
    Callback for transformers' `Trainer` that adds the model's code to what it pushes to the Hub. The repository then loads
    without this package, with `trust_remote_code=True`.

    Example:

    ```python
    >>> from hf_segmodels.hub import RemoteCodeCallback
    >>> from transformers import Trainer

    >>> trainer = Trainer(..., processing_class=image_processor, callbacks=[RemoteCodeCallback()])
    >>> trainer.push_to_hub()
    ```
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set `auto_map` before training, since pushes copy the configurations of checkpoints."""
        self._set_auto_map(kwargs["model"], kwargs.get("processing_class"))

    def on_push_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the code into the folder that is pushed."""
        code = self._set_auto_map(kwargs["model"], kwargs.get("processing_class"))
        if args.should_save:
            folder = Path(args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            code.write(folder, kwargs["model"].config)

    @staticmethod
    def _set_auto_map(model: Any, image_processor: Any) -> RemoteCode:
        code = RemoteCode.from_model(model, image_processor)
        code.set_auto_map(model.config, image_processor)
        return code


def exported_files(folder: Path) -> Iterator[Path]:
    """Files in a folder that an export wrote."""
    for pattern in _FILES:
        yield from folder.glob(pattern)
    yield from (path for path in folder.glob("*.py") if path.name not in _FILES and is_exported_module(path))


def is_exported_module(path: Path) -> bool:
    """Whether a file is a module that an export wrote."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(len(MARK)) == MARK


def _package(part: Any) -> str:
    return type(part).__module__.partition(".")[0]


def _is_own(part: Any, title: str) -> bool:
    """Whether an encoder or image processor is a class of this package. If not, it has to be one of transformers."""
    own = _package(part) == PACKAGE and isinstance(part, (PreTrainedModel, ImageProcessingMixin))
    if not own and _package(part) != "transformers":
        raise UserError(
            f"the {title} {_describe(part)} is neither a class of {PACKAGE} nor of transformers: use one of these."
        )
    return own


def _module(part: Any) -> str:
    """Module of an object's class, within the package."""
    return type(part).__module__.removeprefix(f"{PACKAGE}.")


def _reference(part: Any) -> str:
    """`MODULE.CLASS` of an object's class, in the flat folder."""
    return f"{flat_name(_module(part))}.{type(part).__name__}"


def _describe(part: Any) -> str:
    return f"{type(part).__name__} (of {type(part).__module__})"


def _advice(model: Any) -> str:
    if _package(model) == "transformers_modules":
        return f"it was loaded with code from the Hub; `import {PACKAGE}` first and load it again"
    if isinstance(model, SegmentationPreTrainedModel):
        return "export the class that it is derived from, or publish your own class by hand"
    if hasattr(model, "merge_and_unload"):
        return "merge the adapter into it first (`model.merge_and_unload()`)"
    if hasattr(model, "_orig_mod"):
        return "give the model that was compiled"
    return "give a Segmenter, SegViT, UN-EPT, RegProxy or SuperpixelViT"


def _check_weights(model: PreTrainedModel) -> None:
    if getattr(model, "hf_quantizer", None) is not None:
        raise UserError("the model is quantized: export the unquantized model, and quantize it after loading.")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError("the model has adapters: merge or remove them before the export.")
    if any(parameter.device == torch.device("meta") for parameter in model.parameters()):
        raise UserError("some weights are on the device `meta`: load the model without offloading.")


def _set_auto_map(part: Any, auto_map: dict | None) -> None:
    """Set an `auto_map`, or remove one of an earlier export, whose files no longer exist."""
    if auto_map is not None:
        part.auto_map = copy.deepcopy(auto_map)
    elif hasattr(part, "auto_map"):
        del part.auto_map
