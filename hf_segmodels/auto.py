# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Registration with transformers' Auto classes.

The Auto classes' own `register` wants classes, so it would import torch and every model. Importing `hf_segmodels` must
stay cheap, hence two steps: when transformers imports one of its auto modules (or if it has already), our entries are
put there, and an entry imports its class when it is first read.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, ItemsView, ValuesView
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any


_SEGMENTATION_MODELS = {"segmenter": "Segmenter"}
_BACKBONES = {"plain_vit": "PlainViT"}


class _LazyEntries(dict):
    """The registered content of an Auto mapping; values given as functions are called when they are first read."""

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, _LazyClasses):
            value = self[key] = value()
        return value

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key] if key in self else default

    def values(self) -> ValuesView:
        return {key: self[key] for key in self}.values()

    def items(self) -> ItemsView:
        return {key: self[key] for key in self}.items()


class _LazyClasses:
    """Imports one class, or several by backend, from `hf_segmodels` when called."""

    def __init__(self, names: str | dict[str, str]):
        self.names = names

    def __call__(self) -> type | dict[str, type]:
        package = importlib.import_module(__package__)
        if isinstance(self.names, str):
            return getattr(package, self.names)
        classes = {}
        for backend, name in self.names.items():
            # a missing torchvision leaves the PIL processor
            if backend != "torchvision" or importlib.util.find_spec("torchvision") is not None:
                classes[backend] = getattr(package, name)
        return classes


class _AfterImport(MetaPathFinder):
    """Runs an action right after a module has been imported for the first time."""

    def __init__(self, actions: dict[str, Callable[[ModuleType], None]]):
        self.actions = actions

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        action = self.actions.pop(name, None)
        if action is None:
            return None
        spec = importlib.util.find_spec(name)  # the other finders': this one has just forgotten the name
        if spec is None or spec.loader is None:
            return spec
        exec_module = spec.loader.exec_module

        def exec_module_and_register(module: ModuleType) -> None:
            exec_module(module)
            action(module)

        spec.loader.exec_module = exec_module_and_register  # type: ignore[method-assign]
        return spec


def _add_entry(mapping: Any, config_class: type, names: str | dict[str, str]) -> None:
    if not isinstance(mapping._extra_content, _LazyEntries):
        mapping._extra_content = _LazyEntries(mapping._extra_content)
    if config_class not in mapping._extra_content:
        mapping._extra_content[config_class] = _LazyClasses(names)


def _register_configs(module: ModuleType) -> None:
    for model_type, name in {**_BACKBONES, **_SEGMENTATION_MODELS}.items():
        module.AutoConfig.register(model_type, _config_class(model_type, name), exist_ok=True)


def _config_class(model_type: str, name: str) -> type:
    return getattr(importlib.import_module(f"{__package__}.{model_type}.configuration_{model_type}"), f"{name}Config")


def _register_models(module: ModuleType) -> None:
    for model_type, name in _BACKBONES.items():
        _add_entry(module.AutoBackbone._model_mapping, _config_class(model_type, name), f"{name}Backbone")
    for model_type, name in _SEGMENTATION_MODELS.items():
        class_name = f"{name}ForSemanticSegmentation"
        mapping = module.AutoModelForSemanticSegmentation._model_mapping
        _add_entry(mapping, _config_class(model_type, name), class_name)
        # the pipeline looks at the names only, and would log that the model is not supported
        module.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault(model_type, class_name)


def _register_image_processors(module: ModuleType) -> None:
    for model_type, name in _SEGMENTATION_MODELS.items():
        names = {"torchvision": f"{name}ImageProcessor", "pil": f"{name}ImageProcessorPil"}
        _add_entry(module.IMAGE_PROCESSOR_MAPPING, _config_class(model_type, name), names)


def register() -> None:
    """
    Registers the package's configurations, models and image processors with `AutoConfig`, `AutoBackbone`,
    `AutoModelForSemanticSegmentation` and `AutoImageProcessor`. `import hf_segmodels` does it; doing it again changes
    nothing.
    """
    auto = "transformers.models.auto"
    actions: dict[str, Callable[[ModuleType], None]] = {
        f"{auto}.configuration_auto": _register_configs,
        f"{auto}.modeling_auto": _register_models,
        f"{auto}.image_processing_auto": _register_image_processors,
    }
    pending = {}
    for name, action in actions.items():
        if name in sys.modules:
            action(sys.modules[name])
        else:
            pending[name] = action
    if pending and not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(pending))
