# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""A model as a folder that loads anywhere: weights, configuration, image processor, and the code of all three."""

import copy
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_processing_base import ImageProcessingMixin
from transformers.modeling_utils import PreTrainedModel

from ..image_processing.segmentation_image_processor import (
    SegmentationImageProcessor,
    SegmentationImageProcessorPil,
    both_backends,
)
from ..modeling_utils import SegmentationPreTrainedModel
from ..utils.errors import UserError
from ..utils.files import atomic_directory, is_non_empty
from .cards.card import create_model_card
from .cards.facts import METHODS
from .remote_code import MARK, PACKAGE, flat_name, flatten


# The lower bounds are those of pyproject.toml.
_REQUIREMENTS = ("numpy>=2.1", "pillow>=11.0", "torch>=2.11", "torchvision>=0.26", "transformers>=5.17,<6")
_MORE_REQUIREMENTS = {"superpixel_vit": "scikit-image>=0.25", "timm_backbone": "timm>=1.0.20"}
# What an export, an earlier one too, may have left in a folder, beside its code.
_ARTIFACTS = (
    "README.md",
    "config.json",
    "handler.py",
    "model*.safetensors*",
    "preprocessor_config.json",
    "requirements.txt",
)

_SAVED_WITH = """

from typing import TYPE_CHECKING


if TYPE_CHECKING:  # so that `save_pretrained` of this class takes the other backend's module along
    from .{module} import {name}  # noqa: F401
"""
_PIPELINE_NAMES = """

from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES


# `pipeline("image-segmentation")` looks at these names only, and would log that the model is not supported
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault("{model_type}", "{name}")
"""


@dataclass(frozen=True)
class RemoteCode:
    """
    The code that a model needs in a repository, and what says where in it each class is.

    Args:
        files (`dict[str, str]`): Source code by file name.
        auto_map (`dict[str, str]`): Of the model's configuration.
        backbone_auto_map (`dict[str, str]`, *optional*): Of the encoder's; `None` where transformers has it.
        processor_auto_map (`dict[str, dict[str, str]]`, *optional*): Of the image processor; `None` where transformers
            has it.
    """

    files: dict[str, str]
    auto_map: dict[str, str]
    backbone_auto_map: dict[str, str] | None
    processor_auto_map: dict[str, dict[str, str]] | None

    @classmethod
    def of(cls, model: PreTrainedModel, image_processor: ImageProcessingMixin | None = None) -> "RemoteCode":
        """
        Collects the code of a model of this package, and of its image processor.

        Raises:
            UserError: for models, encoders and image processors that are neither this package's nor transformers'.
        """
        if not isinstance(model, SegmentationPreTrainedModel) or not _is_own(model):
            raise UserError(
                f"{_describe(model)} is no model of {PACKAGE}, whose code would be exported: {_advice(model)}."
            )
        modules, footers = [type(model).__module__, type(model.config).__module__], {}
        footers[_within_package(type(model))] = _PIPELINE_NAMES.format(
            model_type=model.config.model_type, name=type(model).__name__
        )
        auto_map = {
            "AutoConfig": _reference(type(model.config)),
            "AutoModelForSemanticSegmentation": _reference(type(model)),
        }
        backbone, backbone_auto_map = model.backbone, None
        if _is_own(backbone):
            modules += [type(backbone).__module__, type(backbone.config).__module__]
            backbone_auto_map = {
                "AutoConfig": _reference(type(backbone.config)),
                "AutoBackbone": _reference(type(backbone)),
            }
        elif not type(backbone).__module__.startswith("transformers."):
            raise UserError(
                f"the encoder {_describe(backbone)} is neither {PACKAGE}'s nor transformers': nothing would load it."
            )
        processor_auto_map = None
        if image_processor is not None and not type(image_processor).__module__.startswith("transformers."):
            if not isinstance(
                image_processor, (SegmentationImageProcessor, SegmentationImageProcessorPil)
            ) or not _is_own(image_processor):
                raise UserError(
                    f"{_describe(image_processor)} is neither {PACKAGE}'s nor transformers': use an image processor of "
                    "theirs."
                )
            backends = both_backends(_reference(type(image_processor)))
            processor_auto_map = {"AutoImageProcessor": backends}
            room = type(image_processor).__module__.rpartition(".")[0]
            references = [reference.split(".") for reference in backends.values()]
            for (module, _), (other_module, other_name) in zip(references, reversed(references), strict=True):
                modules.append(f"{room}.{module}")
                footers[f"{room}.{module}".removeprefix(f"{PACKAGE}.")] = _SAVED_WITH.format(
                    module=other_module, name=other_name
                )
        return cls(
            files=flatten((module.removeprefix(f"{PACKAGE}.") for module in modules), footers),
            auto_map=auto_map,
            backbone_auto_map=backbone_auto_map,
            processor_auto_map=processor_auto_map,
        )

    def name_in(self, config: PreTrainedConfig, image_processor: Any = None) -> None:
        """Sets `auto_map` of a model's configuration, its encoder's, and an image processor."""
        config.auto_map = dict(self.auto_map)
        _set_auto_map(config.backbone_config, self.backbone_auto_map)
        if image_processor is not None:
            _set_auto_map(image_processor, self.processor_auto_map)

    def write(self, folder: Path, config: PreTrainedConfig) -> None:
        """Writes the files, with the handler for endpoints and the requirements of a model with this configuration."""
        for name, source in self.files.items():
            (folder / name).write_text(source, encoding="utf-8")
        shutil.copyfile(Path(__file__).parent / "endpoint" / "handler.py", folder / "handler.py")
        requirements = "".join(f"{requirement}\n" for requirement in _requirements(config))
        (folder / "requirements.txt").write_text(requirements, encoding="utf-8")


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
    Writes a folder that `from_pretrained(folder, trust_remote_code=True)` of the Auto classes loads without this package:
    weights as safetensors, `config.json`, `preprocessor_config.json`, the Python modules that they need, `handler.py` for
    Inference Endpoints, `requirements.txt` and a model card. With this package imported it loads as any other folder.

    Args:
        model (`PreTrainedModel`):
            A model of this package, on an encoder of this package's or transformers'. It is left as it is.
        image_processor (`ImageProcessingMixin`):
            Its image processor, of either backend; both are exported.
        folder (`str` or `Path`):
            Where to. It is new or empty, or holds a model: that is replaced, files that are not of a model are kept.
            Nothing changes unless all could be written.
        repo_id (`str`, *optional*):
            Name of the repository that it is for, for the card.
        card (`str`, *optional*):
            Text of the model card, `README.md`. If unset, one is made from the model ([`create_model_card`]); SuperpixelViT
            has none.
        card_options:
            For the card that is made, such as `results`, `dataset`, `license`; see [`create_model_card`].

    Returns:
        `Path`: The folder.

    Raises:
        UserError: if the model or the image processor cannot be exported, the card's options do not fit them or come with a
            `card`, or the folder holds something that is no model.

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
    code = RemoteCode.of(model, image_processor)
    _check_weights(model)
    if is_non_empty(folder) and not (folder / "config.json").is_file():
        what = "holds files that are no model" if folder.is_dir() else "is a file"
        raise UserError(f"{folder} {what}: choose another folder.")
    if card is not None and card_options:
        raise UserError(f"there is a model card already: leave out {', '.join(card_options)}, or the card.")
    if card is None and (card_options or model.config.model_type in METHODS):
        parts: tuple[Any, Any] = (model, image_processor)
        try:
            card = str(create_model_card(*parts, repo_id=repo_id, remote_code=True, **card_options))
        except ValueError as error:
            raise UserError(f"cannot write the model card: {error}") from error

    config, image_processor = copy.deepcopy(model.config), copy.deepcopy(image_processor)
    with atomic_directory(folder, artifacts) as partial:
        # names of weights that an encoder of transformers has had in all its versions
        model.save_pretrained(partial, save_original_format=True)
        # a copy: the model itself stays one whose folders need this package
        config.architectures, config.dtype = model.config.architectures, model.config.dtype
        code.name_in(config, image_processor)
        config.save_pretrained(partial)
        image_processor.save_pretrained(partial)
        code.write(partial, config)
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf-8")
    return folder


class RemoteCodeCallback(TrainerCallback):
    """
    For transformers' `Trainer`: what it pushes to the Hub loads without this package, with `trust_remote_code=True`.

    Example:

    ```python
    >>> from hf_segmodels.hub import RemoteCodeCallback
    >>> from transformers import Trainer

    >>> trainer = Trainer(..., processing_class=image_processor, callbacks=[RemoteCodeCallback()])
    >>> trainer.push_to_hub()
    ```
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Lets the configurations that checkpoints hold name the code: pushes copy them."""
        self._name_code(kwargs["model"], kwargs.get("processing_class"))

    def on_push_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the code into the folder that is pushed."""
        code = self._name_code(kwargs["model"], kwargs.get("processing_class"))
        if args.should_save:
            folder = Path(args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            code.write(folder, kwargs["model"].config)

    @staticmethod
    def _name_code(model: Any, image_processor: Any) -> RemoteCode:
        code = RemoteCode.of(model, image_processor)
        code.name_in(model.config, image_processor)
        return code


def artifacts(folder: Path) -> Iterator[Path]:
    """What an export wrote into a folder, which may hold other files."""
    for pattern in _ARTIFACTS:
        yield from folder.glob(pattern)
    yield from (path for path in folder.glob("*.py") if path.name not in _ARTIFACTS and is_written_here(path))


def is_written_here(path: Path) -> bool:
    """Whether a file is code that an export wrote."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(len(MARK)) == MARK


def _is_own(part: Any) -> bool:
    return type(part).__module__.startswith(f"{PACKAGE}.")


def _within_package(part: type) -> str:
    return part.__module__.removeprefix(f"{PACKAGE}.")


def _reference(part: type) -> str:
    """`MODULE.CLASS` in the flat folder."""
    return f"{flat_name(_within_package(part))}.{part.__name__}"


def _describe(part: Any) -> str:
    return f"{type(part).__name__} (of {type(part).__module__})"


def _advice(model: Any) -> str:
    if type(model).__module__.startswith("transformers_modules."):
        return f"it was loaded with code from the Hub; `import {PACKAGE}` first and load it again"
    if isinstance(model, SegmentationPreTrainedModel):
        return (
            "a class of your own has code of your own; publish it by hand, or export the class that it is derived from"
        )
    if hasattr(model, "merge_and_unload"):
        return "merge the adapter into it first (`model.merge_and_unload()`)"
    if hasattr(model, "_orig_mod"):
        return "give the model that was compiled"
    return "give a Segmenter, SegViT, UN-EPT, RegProxy or SuperpixelViT"


def _check_weights(model: PreTrainedModel) -> None:
    if getattr(model, "hf_quantizer", None) is not None:
        raise UserError("the model is quantized: export it unquantized, and quantize it when it is loaded.")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError("the model has adapters: merge them, or remove them, and export it then.")
    if any(parameter.device == torch.device("meta") for parameter in model.parameters()):
        raise UserError(
            "some weights are not there (they are on the device `meta`): load the model without offloading."
        )


def _set_auto_map(part: Any, auto_map: dict | None) -> None:
    """An `auto_map` of an earlier export would name files that are not there."""
    if auto_map is not None:
        part.auto_map = copy.deepcopy(auto_map)
    elif hasattr(part, "auto_map"):
        del part.auto_map


def _requirements(config: PreTrainedConfig) -> list[str]:
    model_types = (config.model_type, config.backbone_config.model_type)
    return sorted([*_REQUIREMENTS, *(_MORE_REQUIREMENTS[name] for name in model_types if name in _MORE_REQUIREMENTS)])


__all__ = ["RemoteCode", "RemoteCodeCallback", "artifacts", "export_for_hub", "is_written_here"]
