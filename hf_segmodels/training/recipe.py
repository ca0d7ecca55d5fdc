# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Recipe: all settings of a training run, read from YAML and `key=value` overrides."""

# ruff: noqa: RUF009  (`_setting` is a `dataclasses.field`)

import copy
import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

import yaml

from ..data import DatasetSpec, LabelSpec, find_id2label


EVALUATION_OPTIONS = ("window_size", "window_stride", "scales", "flip", "boundary_iou", "object_sizes")


def _setting(default: Any, help: str, **limits: Any) -> Any:
    """Field of [`Recipe`]. Its metadata holds `help` and the limits of its value: `choices` or `minimum`."""
    metadata = {"help": help, **limits}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass
class Recipe:
    """
    Settings of a training run. Each field is documented in its metadata:
    `{field.name: field.metadata["help"] for field in dataclasses.fields(Recipe)}`.

    Raises:
        ValueError: if a setting is missing or has a value that is not allowed.
    """

    dataset: str = _setting("", "Folder of a layout; otherwise folder or Hub repository for `datasets.load_dataset`.")
    layout: str | None = _setting(
        None,
        "Layout of the folder: `ade20k`, `cityscapes`, `pascal_context_59`, `pascal_context_60`, `coco_stuff_10k`, or `folder` "
        "for `images/` and `labels/`.",
    )
    model: dict[str, Any] = _setting({}, "Fields of the model's configuration, including `model_type`.")
    output_dir: str = _setting("runs/segmentation", "Folder for checkpoints, the model and `results.json`.")
    pretrained: str | None = _setting(
        None, "Folder or Hub repository of a model to start from; `model` overrides fields of its configuration."
    )
    pretrained_backbone: str | None = _setting(
        None,
        "Encoder to start from, under a new decoder. See `hf_segmodels.conversion.load_backbone_weights` for plain ViTs (folder, "
        "repository, or file of AugReg, DeiT or timm) and ResNet-V1c (folder, repository, or file of mmsegmentation); other "
        "transformers backbones are a folder or repository. `image_processor` must set the encoder's mean and standard deviation.",
    )
    image_processor: dict[str, Any] = _setting(
        {},
        "Fields of the image processor, over those of `pretrained`. Labels are read with its `do_reduce_labels` and "
        "`ignore_index`, and the loss ignores the same label.",
    )
    train_split: str = _setting("train", "Split to train on.")
    eval_split: str = _setting("validation", "Split to evaluate on.")
    image_column: str = _setting("image", "Column of images.")
    label_column: str = _setting("label", "Column of label maps.")
    label_mapping: Any = _setting(
        None,
        "Class of each value in the label maps, null for ignored values; or a JSON file with this mapping. It is applied before "
        "`do_reduce_labels` and replaces the mapping of the layout.",
    )
    streaming: bool = _setting(False, "Whether to read samples sequentially, shuffled within a buffer.")
    id2label: Any = _setting(
        None,
        "Class names, a JSON file with class names, or a name of `hf_segmodels.labels.DATASETS` such as `ade20k`; defaults to "
        "`id2label.json` in the data set's folder, or to the classes of the layout. A benchmark's class names also set the "
        "`palette` of the model.",
    )
    base_size: Sequence[int] = _setting(
        (512, 2048), "Bounds `[shorter, longer]` of the image's edges at scale 1; the aspect ratio is kept."
    )
    crop_size: Sequence[int] = _setting((512, 512), "Size `[height, width]` of the training crops.")
    scale_range: Sequence[float] = _setting((0.5, 2.0), "Range `[lowest, highest]` of the random scale.")
    photometric_distortion: bool = _setting(
        True, "Whether to change brightness, contrast, saturation and hue at random."
    )
    max_class_ratio: float = _setting(0.75, "Largest ratio of one class among the labeled pixels of a crop.")
    batch_size: int = _setting(8, "Samples per process and forward pass.", minimum=1)
    gradient_accumulation_steps: int = _setting(1, "Forward passes per training step.", minimum=1)
    max_steps: int = _setting(1000, "Training steps.", minimum=1)
    optimizer: str = _setting(
        "sgd", "Optimizer; `sgd` has Nesterov momentum 0.9 as in Segmenter's released code.", choices=("adamw", "sgd")
    )
    learning_rate: float = _setting(1e-3, "Base learning rate; the method sets factors for groups of parameters.")
    weight_decay: float = _setting(0.0, "Weight decay; the method sets factors for groups of parameters.")
    parameter_rules: Sequence[Sequence[Any]] | None = _setting(
        None,
        "Replacement for the method's parameter groups: `[regular expression searched in the parameter's name, factor of the "
        "learning rate, factor of the weight decay]`; the first match counts.",
    )
    warmup_steps: int = _setting(
        0, "Training steps in which a factor of the learning rate rises linearly to 1.", minimum=0
    )
    schedule: str = _setting(
        "poly",
        "Learning rate schedule, see `hf_segmodels.training.schedules`: poly with power 0.9, cosine with one decay.",
        choices=("poly", "cosine", "step", "constant"),
    )
    schedule_options: dict[str, Any] = _setting(
        {},
        "Arguments of the schedule, such as `{power: 1.0}`, `{periods: [...], restart_factors: [...]}` or `{milestones: [...]}`.",
    )
    min_learning_rate: float = _setting(1e-5, "Final learning rate of poly and cosine.")
    max_grad_norm: float = _setting(0.0, "Upper bound of the gradient norm; 0 for no bound.")
    ema_decay: float = _setting(
        0.0, "Decay of the moving average of weights that is evaluated and saved; 0 for no average."
    )
    class_weighting: str = _setting(
        "none",
        "Class weights of the loss, from the frequencies in the training split.",
        choices=("none", "median_frequency", "sqrt_median_frequency"),
    )
    label_smoothing: float = _setting(
        0.0,
        "Label smoothing. With class weights or smoothing, the loss is the cross-entropy of the logits instead of the method's "
        "own loss. UN-EPT supports neither, because its own loss also trains other outputs.",
    )
    mixed_precision: str = _setting("no", "Precision of forward and backward.", choices=("no", "bf16", "fp16"))
    seed: int = _setting(0, "Seed of initialization, order and augmentation.")
    num_workers: int = _setting(0, "Worker processes that load data.", minimum=0)
    report_to: Sequence[str] = _setting(
        (),
        "Trackers in addition to `curves.png`: `tensorboard`, `trackio` and others that Accelerate and the Trainer support.",
    )
    log_steps: int = _setting(10, "Training steps between log lines.", minimum=1)
    eval_steps: int = _setting(500, "Training steps between evaluations.", minimum=1)
    checkpoint_steps: int = _setting(250, "Training steps between checkpoints.", minimum=1)
    evaluation: dict[str, Any] = _setting(
        {},
        "Options of `hf_segmodels.evaluation.evaluate_model`: `window_size`, `window_stride`, `scales`, `flip`, `boundary_iou`, "
        "`object_sizes`.",
    )
    resume: bool = _setting(
        False,
        "Whether to resume from the newest checkpoint in `output_dir`. Without it, a run refuses a folder with checkpoints, which "
        "its own would replace.",
    )

    def __post_init__(self) -> None:
        if not self.dataset:
            raise ValueError("The recipe needs `dataset`: a folder or Hub repository for `datasets.load_dataset`.")
        if self.pretrained and self.pretrained_backbone:
            raise ValueError("`pretrained` includes an encoder: set `model` and `pretrained_backbone` instead.")
        # YAML reads an unquoted no as false
        self.mixed_precision = self.mixed_precision or "no"
        if isinstance(self.report_to, str):
            self.report_to = [self.report_to]
        for field in dataclasses.fields(self):
            setattr(self, field.name, _checked(field, getattr(self, field.name)))
        if "model_type" not in self.model and not self.pretrained:
            raise ValueError("The recipe needs `model` (with a `model_type`) or `pretrained` (a model folder).")
        _refuse_unknown(self.evaluation, EVALUATION_OPTIONS, "`evaluation`")
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` must be greater than 0, got {self.learning_rate}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be at least 0 and less than 1, got {self.ema_decay}.")
        for name in ("base_size", "crop_size"):
            edges = getattr(self, name)
            if not _is_pair(edges) or not all(type(edge) is int and edge > 0 for edge in edges):
                raise ValueError(f"`{name}` must be two whole numbers of pixels, got {edges!r}.")
        if not _is_pair(self.scale_range):
            raise ValueError(f"`scale_range` must be [lowest, highest], got {self.scale_range!r}.")
        lowest, highest = self.scale_range = tuple(_number("scale_range", scale) for scale in self.scale_range)
        if not 0 < lowest <= highest:
            raise ValueError(f"`scale_range` must be [lowest, highest], greater than 0, got {[lowest, highest]}.")

    @property
    def dataset_spec(self) -> DatasetSpec:
        """The recipe's data set."""
        return DatasetSpec(
            self.dataset, self.layout, self.image_column, self.label_column, self.label_mapping, self.streaming
        )

    @property
    def splits(self) -> list[str]:
        """Names of the splits that training and evaluation read."""
        return list(dict.fromkeys([self.train_split, self.eval_split]))

    def label_spec(self) -> LabelSpec:
        """
        The labels that the recipe's model learns, read from configurations alone.

        Raises:
            OSError: if `pretrained` does not exist.
            ValueError: if the class names of the recipe or of the data set are not valid.
        """
        from transformers import AutoConfig
        from transformers.image_processing_utils import BaseImageProcessor

        processor, id2label = self.image_processor, find_id2label(self.dataset_spec, self.id2label)
        if self.pretrained:
            processor = BaseImageProcessor.get_image_processor_dict(self.pretrained)[0] | processor
        if id2label is None:
            if self.pretrained:
                config = AutoConfig.from_pretrained(self.pretrained, **self.model)
            else:
                config = AutoConfig.for_model(**self.model)
            id2label = {int(index): str(name) for index, name in (config.id2label or {}).items()}
        return LabelSpec(
            len(id2label), id2label, processor.get("ignore_index", 255), bool(processor.get("do_reduce_labels"))
        )

    @classmethod
    def read(
        cls,
        recipe: "Recipe | Mapping[str, Any] | str | Path",
        overrides: Mapping[str, Any] | Sequence[str] = (),
    ) -> "Recipe":
        """
        Read a recipe.

        Args:
            recipe (`str`, `Path`, `Mapping` or `Recipe`): YAML file, the content of one, or another recipe.
            overrides (`Mapping` or `Sequence[str]`, *optional*):
                Settings to replace, or `key=value` strings with YAML values. A dotted key such as `model.hidden_size` sets one
                value within a setting.

        Raises:
            ValueError: if the file or an override is not valid YAML, a key is unknown, or a value is not allowed.
        """
        if isinstance(recipe, Recipe):
            values = dataclasses.asdict(recipe)
        elif isinstance(recipe, Mapping):
            values = copy.deepcopy(dict(recipe))
        else:
            values = _read_yaml(Path(recipe).read_text(encoding="utf-8"), str(recipe)) or {}
            if not isinstance(values, dict):
                raise ValueError(f"{recipe} is not a recipe: a recipe is a YAML file with `key: value` lines.")
        if not isinstance(overrides, Mapping):
            overrides = dict(_parse_override(override) for override in overrides)
        for key, value in overrides.items():
            *parents, last = key.split(".")
            target = values
            for parent in parents:
                target = target.setdefault(parent, {})
                if not isinstance(target, dict):
                    raise ValueError(f"Override `{key}`: `{parent}` is not a mapping, so it has no `{last}`.")
            target[last] = value
        _refuse_unknown(values, [field.name for field in dataclasses.fields(cls)], "the recipe")
        return cls(**values)


def _parse_override(override: str) -> tuple[str, Any]:
    key, separator, value = override.partition("=")
    if not separator:
        raise ValueError(f"Override {override!r} must have the form `key=value`.")
    return key, _read_yaml(value, f"Override {override!r}")


def _read_yaml(text: str, name: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not valid YAML: {error}") from error


def _refuse_unknown(keys: Iterable[str], known: Sequence[str], place: str) -> None:
    for key in keys:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean `{nearest[0]}`?" if nearest else f"known keys are {', '.join(known)}."
            raise ValueError(f"Unknown key `{key}` in {place}: {hint}")


def _checked(field: dataclasses.Field, value: Any) -> Any:
    """Return `value` in the type of `field`, or raise a `ValueError` that names the field."""
    name, limits = field.name, field.metadata
    if field.type is float:
        # YAML reads 1e-3, without a point, as a string
        return _number(name, value)
    for expected, words in ((int, "a whole number"), (bool, "true or false"), (dict, "a mapping `{name: value}`")):
        if expected in (field.type, get_origin(field.type)) and type(value) is not expected:
            raise ValueError(f"`{name}` must be {words}, got {value!r}.")
    if value not in limits.get("choices", [value]):
        raise ValueError(f"`{name}` must be one of {', '.join(limits['choices'])}, got {value!r}.")
    if "minimum" in limits and value < limits["minimum"]:
        raise ValueError(f"`{name}` must be at least {limits['minimum']}, got {value}.")
    return value


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` must be a number, got {value!r}.") from None
