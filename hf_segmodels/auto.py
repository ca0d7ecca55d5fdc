# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Registration with transformers' Auto classes.

The Auto classes' `register` wants classes, so calling it at import would load torch and every model. Importing
`hf_segmodels` must stay cheap, hence two steps: once transformers has imported one of its auto modules, the place where
it keeps registered classes is told to fill itself with ours when it is first read.
"""

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any


_SEGMENTATION_MODELS = {
    "regproxy": "RegProxy",
    "segmenter": "Segmenter",
    "segvit": "SegViT",
    "superpixel_vit": "SuperpixelViT",
    "unept": "UNEPT",
}
_BACKBONES = {"plain_vit": "PlainViT", "resnet_v1c": "ResNetV1c"}


def _get(name: str) -> Any:
    return getattr(importlib.import_module(__package__), name)


def _register_configs(module: ModuleType) -> None:
    for model_type, name in {**_BACKBONES, **_SEGMENTATION_MODELS}.items():
        module.AutoConfig.register(model_type, _get(f"{name}Config"), exist_ok=True)


def _register_backbones(module: ModuleType) -> None:
    for name in _BACKBONES.values():
        module.AutoBackbone.register(_get(f"{name}Config"), _get(f"{name}Backbone"), exist_ok=True)


def _register_segmentation_models(module: ModuleType) -> None:
    for name in _SEGMENTATION_MODELS.values():
        model_class = _get(f"{name}ForSemanticSegmentation")
        module.AutoModelForSemanticSegmentation.register(_get(f"{name}Config"), model_class, exist_ok=True)


def _register_image_processors(module: ModuleType) -> None:
    for name in _SEGMENTATION_MODELS.values():
        classes = {"pil": _get(f"{name}ImageProcessorPil")}
        if importlib.util.find_spec("torchvision") is not None:
            classes["torchvision"] = _get(f"{name}ImageProcessor")
        module.AutoImageProcessor.register(_get(f"{name}Config"), image_processor_classes=classes, exist_ok=True)


class _SelfFillingDict(dict):
    """
    A dict that calls `fill` before it is first read. Threads that read at the same time each call it: it can be repeated,
    and a lock could wait for an import that waits for the lock.
    """

    def __init__(self, entries: dict, fill: Callable[[], None]):
        super().__init__(entries)
        self._fill = fill
        self._is_filled = False
        self._thread = threading.local()

    def fill(self) -> None:
        # filling reads, too
        if self._is_filled or getattr(self._thread, "is_filling", False):
            return
        self._thread.is_filling = True
        try:
            self._fill()
            self._is_filled = True
        finally:
            self._thread.is_filling = False


def _fill_before(name: str) -> Callable:
    method = getattr(dict, name)

    def read(self: _SelfFillingDict, *args: Any) -> Any:
        self.fill()
        return method(self, *args)

    return read


for _name in ("__contains__", "__getitem__", "__iter__", "__len__", "get", "items", "keys", "values"):
    setattr(_SelfFillingDict, _name, _fill_before(_name))


def _defer(mapping: Any, registration: Callable[[ModuleType], None], module: ModuleType) -> None:
    if not isinstance(mapping._extra_content, _SelfFillingDict):
        mapping._extra_content = _SelfFillingDict(mapping._extra_content, lambda: registration(module))


def _on_configuration_auto(module: ModuleType) -> None:
    _defer(module.CONFIG_MAPPING, _register_configs, module)


def _on_modeling_auto(module: ModuleType) -> None:
    _defer(module.AutoBackbone._model_mapping, _register_backbones, module)
    _defer(module.AutoModelForSemanticSegmentation._model_mapping, _register_segmentation_models, module)
    for model_type, name in _SEGMENTATION_MODELS.items():
        # the pipeline looks at these names only, and would log that the model is not supported
        module.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault(model_type, f"{name}ForSemanticSegmentation")


def _on_image_processing_auto(module: ModuleType) -> None:
    _defer(module.IMAGE_PROCESSOR_MAPPING, _register_image_processors, module)


class _AfterImport(MetaPathFinder):
    """Runs an action right after a module has been imported."""

    def __init__(self, actions: dict[str, Callable[[ModuleType], None]]):
        self.actions = actions
        self._thread = threading.local()

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        action = self.actions.get(name)
        if action is None or getattr(self._thread, "is_finding", False):
            return None
        self._thread.is_finding = True
        try:
            spec = importlib.util.find_spec(name)  # the other finders'
        finally:
            self._thread.is_finding = False
        if spec is None or spec.loader is None:
            return spec
        exec_module = spec.loader.exec_module

        def exec_module_then_act(module: ModuleType) -> None:
            exec_module(module)
            action(module)

        spec.loader.exec_module = exec_module_then_act  # type: ignore[method-assign]
        return spec


def register() -> None:
    """
    Registers the package's configurations, models and image processors with `AutoConfig`, `AutoBackbone`,
    `AutoModelForSemanticSegmentation` and `AutoImageProcessor`. `import hf_segmodels` does it; doing it again changes
    nothing.
    """
    package = "transformers.models.auto"
    actions: dict[str, Callable[[ModuleType], None]] = {
        f"{package}.configuration_auto": _on_configuration_auto,
        f"{package}.modeling_auto": _on_modeling_auto,
        f"{package}.image_processing_auto": _on_image_processing_auto,
    }
    pending = {name: action for name, action in actions.items() if name not in sys.modules}
    for name in actions.keys() - pending.keys():
        actions[name](sys.modules[name])
    if pending and not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(pending))
