# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""A recipe: all that a training run depends on, read from YAML and `key=value` overrides."""

import dataclasses
import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..data.detection import find_id2label
from ..data.specs import DatasetSpec, LabelSpec


@dataclasses.dataclass
class Recipe:
    """
    The fields of a recipe. Whatever is left out has the value given here.

    Args:
        dataset (`str`): Folder of a native layout; otherwise folder or Hub repository for `datasets.load_dataset`.
        layout (`str`, *optional*): How the files in `dataset` lie: `ade20k`, `cityscapes`, `pascal_context_59`,
            `pascal_context_60`, `coco_stuff_10k`, or `folder` for `images/` and `labels/`.
        model (`dict`): Fields of the model's configuration, `model_type` among them.
        output_dir (`str`): Where checkpoints, the model and `results.json` go.
        pretrained (`str`, *optional*): Model folder or repository to start from; `model` then overrides its fields.
        pretrained_backbone (`str`, *optional*): Encoder to start from, under a new decoder: what
            [`~hf_segmodels.conversion.load_backbone_weights`] takes, which is a `PlainViTBackbone` (folder or
            repository) or a file of AugReg (`.npz`), DeiT or timm, or a `ResNetV1cBackbone` or mmsegmentation's file of
            one. `image_processor` has to have its mean and deviation.
        image_processor (`dict`): Fields of the image processor; `pretrained` gives those left out. Labels are read as
            its `do_reduce_labels` and `ignore_index` say; the loss ignores the same.
        train_split, eval_split (`str`): Names of the splits.
        image_column, label_column (`str`): Names of the columns.
        label_mapping (`dict` or `str`, *optional*): Class of each value in the label maps, null for values that do not
            count; or a JSON file of it. It comes before `do_reduce_labels` and replaces what the layout does.
        streaming (`bool`): Whether samples are read one after another, shuffled within a buffer.
        id2label (`dict` or `str`, *optional*): Class names, a JSON file of them, or one of `hf_segmodels.labels.DATASETS`
            such as `ade20k`; `id2label.json` in the data set's folder, or those of the layout, when not given. The names of a
            benchmark give the model its `palette` as well.
        base_size (`[shorter, longer]`): Bounds of the edges at scale 1; the aspect ratio is kept.
        crop_size (`[height, width]`): Size of the training crops.
        scale_range (`[lowest, highest]`): Random scale.
        photometric_distortion (`bool`): Whether brightness, contrast, saturation and hue change at random.
        max_class_ratio (`float`): Largest share of a crop's labeled pixels that one class may have.
        batch_size (`int`): Samples for each process and forward pass.
        gradient_accumulation_steps (`int`): Forward passes for each update.
        max_steps (`int`): Updates.
        optimizer (`"adamw"` or `"sgd"`): SGD has Nesterov momentum 0.9, as in Segmenter's released code.
        learning_rate, weight_decay (`float`): Of the optimizer; the method says which parameters learn
            faster or do not decay.
        parameter_rules (`list`, *optional*): Replaces what the method says: `[regular expression searched in a
            parameter's name, factor of the learning rate, factor of the weight decay]`, the first match counts.
        warmup_steps (`int`): Updates in which a factor of the learning rate rises linearly to 1.
        schedule (`"poly"`, `"cosine"`, `"step"` or `"constant"`): Fall of the learning rate: that of
            `hf_segmodels.training.schedules`, with power 0.9 for poly and one fall for cosine.
        schedule_options (`dict`): Arguments of that schedule that are to be others, such as `{power: 1.0}`, `{periods:
            [...], restart_factors: [...]}` or `{milestones: [...]}`.
        min_learning_rate (`float`): Where poly and cosine end.
        max_grad_norm (`float`): Limit of the gradient's norm; 0 for none.
        ema_decay (`float`): Decay of the moving average of weights that is evaluated and saved; 0 for none.
        class_weighting (`"none"`, `"median_frequency"` or `"sqrt_median_frequency"`): Weights of the loss.
        label_smoothing (`float`): Of the loss. With weights or smoothing, the loss is cross-entropy on the model's scores
            instead of the method's own; not for UN-EPT, whose own trains more than scores.
        mixed_precision (`"no"`, `"bf16"` or `"fp16"`): Of forward and backward.
        seed (`int`): Of initialization, order and augmentation.
        num_workers (`int`): Processes that load data.
        report_to (`list`): Where figures are logged besides `curves.png`: `tensorboard`, `trackio` and others that
            Accelerate and the Trainer know, if installed.
        log_steps, eval_steps, checkpoint_steps (`int`): Updates between log lines, evaluations and checkpoints.
        evaluation (`dict`): Options of [`~hf_segmodels.evaluation.evaluate_model`] at each evaluation: `window_size`,
            `window_stride`, `scales`, `flip`, `boundary_iou`, `object_sizes`.
        resume (`bool`): Whether to go on from the newest checkpoint in `output_dir`. A run that is not to do so refuses a
            folder with checkpoints, since its own would replace them.
    """

    dataset: str = ""
    layout: str | None = None
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    output_dir: str = "runs/segmentation"
    pretrained: str | None = None
    pretrained_backbone: str | None = None
    image_processor: dict[str, Any] = dataclasses.field(default_factory=dict)
    train_split: str = "train"
    eval_split: str = "validation"
    image_column: str = "image"
    label_column: str = "label"
    label_mapping: Any = None
    streaming: bool = False
    id2label: Any = None
    base_size: Sequence[int] = (512, 2048)
    crop_size: Sequence[int] = (512, 512)
    scale_range: Sequence[float] = (0.5, 2.0)
    photometric_distortion: bool = True
    max_class_ratio: float = 0.75
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    max_steps: int = 1000
    optimizer: str = "sgd"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    parameter_rules: Sequence[Sequence[Any]] | None = None
    warmup_steps: int = 0
    schedule: str = "poly"
    schedule_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    min_learning_rate: float = 1e-5
    max_grad_norm: float = 0.0
    ema_decay: float = 0.0
    class_weighting: str = "none"
    label_smoothing: float = 0.0
    mixed_precision: str = "no"
    seed: int = 0
    num_workers: int = 0
    report_to: Sequence[str] = ()
    log_steps: int = 10
    eval_steps: int = 500
    checkpoint_steps: int = 250
    evaluation: dict[str, Any] = dataclasses.field(default_factory=dict)
    resume: bool = False

    choices = {
        "optimizer": ("adamw", "sgd"),
        "schedule": ("poly", "cosine", "step", "constant"),
        "class_weighting": ("none", "median_frequency", "sqrt_median_frequency"),
        "mixed_precision": ("no", "bf16", "fp16"),
    }
    lowest = dict.fromkeys(("batch_size", "gradient_accumulation_steps", "max_steps"), 1)
    lowest |= dict.fromkeys(("log_steps", "eval_steps", "checkpoint_steps"), 1)
    lowest |= dict.fromkeys(("warmup_steps", "num_workers"), 0)

    evaluation_options = ("window_size", "window_stride", "scales", "flip", "boundary_iou", "object_sizes")

    def __post_init__(self) -> None:
        if not self.dataset:
            raise ValueError("The recipe needs `dataset`: a folder or Hub repository for `datasets.load_dataset`.")
        if not self.model and not self.pretrained:
            raise ValueError("The recipe needs `model` (with a `model_type`) or `pretrained` (a model folder).")
        if self.pretrained and self.pretrained_backbone:
            raise ValueError("`pretrained` has an encoder already: give `model` and `pretrained_backbone` instead.")
        # YAML reads a bare no as false
        self.mixed_precision = self.mixed_precision or "no"
        if isinstance(self.report_to, str):
            self.report_to = [self.report_to]
        for name, allowed in self.choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}.")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            # YAML reads 1e-3 (without a point) as a string
            if field.type is float:
                setattr(self, field.name, _number(field.name, value))
            elif field.type is int and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(f"`{field.name}` must be a whole number, got {value!r}.")
            elif field.type is bool and not isinstance(value, bool):
                raise ValueError(f"`{field.name}` must be true or false, got {value!r}.")
            elif field.type == dict[str, Any] and not isinstance(value, dict):
                raise ValueError(f"`{field.name}` must hold fields of its own, `{{name: value}}`, got {value!r}.")
        if unknown := sorted(self.evaluation.keys() - {*self.evaluation_options}):
            raise ValueError(
                f"`evaluation` has no option {unknown[0]!r}: it takes {', '.join(self.evaluation_options)}."
            )
        for name, lowest in self.lowest.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"`{name}` must be at least {lowest}, got {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` must be greater than 0, got {self.learning_rate}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be from 0 to less than 1, got {self.ema_decay}.")
        for name in ("base_size", "crop_size"):
            edges = getattr(self, name)
            if not _is_pair(edges) or not all(type(edge) is int and edge > 0 for edge in edges):
                raise ValueError(f"`{name}` must be two whole numbers of pixels, got {edges!r}.")
        if not _is_pair(self.scale_range):
            raise ValueError(f"`scale_range` must be [lowest, highest], got {self.scale_range!r}.")
        self.scale_range = tuple(_number("scale_range", scale) for scale in self.scale_range)
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"`scale_range` must be [lowest, highest], above 0, got {list(self.scale_range)}.")

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
            ValueError: if neither the recipe nor the data set defines the classes.
        """
        from transformers import AutoConfig
        from transformers.image_processing_utils import BaseImageProcessor

        processor, id2label = self.image_processor, find_id2label(self.dataset_spec, self.id2label)
        if self.pretrained:
            processor = BaseImageProcessor.get_image_processor_dict(self.pretrained)[0] | processor
        if id2label is None:
            if self.pretrained:
                config = AutoConfig.from_pretrained(self.pretrained, **self.model)
            elif "model_type" in self.model:
                config = AutoConfig.for_model(**self.model)
            else:
                raise ValueError("`model` in the recipe needs a `model_type`, such as `segmenter`.")
            id2label = {int(index): str(name) for index, name in (config.id2label or {}).items()}
        return LabelSpec(
            len(id2label), id2label, processor.get("ignore_index", 255), bool(processor.get("do_reduce_labels"))
        )

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """
        Reads a recipe.

        Args:
            path (`str` or `Path`): The YAML file.
            overrides (`Sequence[str]`, *optional*): `key=value` with a YAML value; `model.hidden_size=64` reaches
                into a field.

        Raises:
            ValueError: for a file that is no YAML, an unknown key (names the nearest one) or a value that cannot be.
        """
        fields = _read_yaml(Path(path).read_text(encoding="utf-8"), str(path)) or {}
        if not isinstance(fields, dict):
            raise ValueError(f"{path} is no recipe: a YAML file of `key: value` lines is needed.")
        for override in overrides:
            key, separator, value = override.partition("=")
            if not separator:
                raise ValueError(f"Override {override!r} must look like `key=value`.")
            *parents, last = key.split(".")
            target = fields
            for parent in parents:
                target = target.setdefault(parent, {})
                if not isinstance(target, dict):
                    raise ValueError(f"Override {override!r}: `{parent}` has no fields of its own.")
            target[last] = _read_yaml(value, f"Override {override!r}")
        known = [field.name for field in dataclasses.fields(cls)]
        for key in fields:
            if key not in known:
                nearest = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean `{nearest[0]}`?" if nearest else f"known are {', '.join(known)}."
                raise ValueError(f"Unknown key `{key}` in the recipe: {hint}")
        return cls(**fields)


def run_script(train: Callable[[Recipe], Any], description: str, argv: Sequence[str]) -> int:
    """
    A training script's command line: `RECIPE.yaml [key=value ...]`.

    Returns:
        `int`: 0, or 2 for a recipe that cannot be read.
    """
    if not argv or argv[0] in {"-h", "--help"}:
        print(description.strip())
        return 0 if argv else 2
    try:
        recipe = Recipe.read(argv[0], argv[1:])
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    train(recipe)
    return 0


def _read_yaml(text: str, name: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is no YAML: {error}") from error


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` must be a number, got {value!r}.") from None
