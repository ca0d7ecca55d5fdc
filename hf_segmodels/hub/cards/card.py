# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The card of a model: what it is, where it comes from, how to use it, and figures that somebody measured."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from ...configuration_utils import as_pair
from ...inference import choose_windows
from ...plain_vit.configuration_plain_vit import PlainViTConfig
from .facts import DATASETS, METHODS, Dataset
from .results import TASK, Measurement, describe_window, metric_name, read_results


if TYPE_CHECKING:
    from ...image_processing.segmentation_image_processor import SegmentationImageProcessor
    from ...modeling_utils import SegmentationPreTrainedModel


TEMPLATE = Path(__file__).with_name("template.md")
_SMALL_IMAGES = {
    "upscale": "; smaller images are enlarged until they fill one",
    "pad": "; smaller images are padded with zeros",
    "none": "",
}
# owner/name on the Hub
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def create_model_card(
    model: "SegmentationPreTrainedModel",
    image_processor: "SegmentationImageProcessor",
    *,
    repo_id: str | None = None,
    results: str | Path | Mapping[str, Any] | Sequence[str | Path | Mapping[str, Any]] | None = None,
    dataset: str | None = None,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    base_model: str | None = None,
    reported: Sequence[Mapping[str, str]] = (),
    title: str | None = None,
    description: str | None = None,
    limits: Sequence[str] = (),
    sections: Mapping[str, str] | None = None,
    tags: Sequence[str] = (),
    remote_code: bool = False,
) -> ModelCard:
    """
    Writes the card of a model: `README.md` of its folder or repository, with the Hub's metadata. Sizes, classes, windows
    come from the model; figures from results files only. What nobody said is said to be unknown.

    Args:
        model (`SegmentationPreTrainedModel`): One of the four models; only its configuration and the shapes of its weights count,
            so it may be on the meta device.
        image_processor (`SegmentationImageProcessor`): Its image processor.
        repo_id (`str`, *optional*): Repository or folder that the examples load.
        results (path, `dict`, or a sequence of them, *optional*): What `hf-segmodels evaluate --output` or a training script
            (`results.json`) wrote; what they hold becomes tables and the metadata's `model-index`.
        dataset (`str`, *optional*): What it was trained on: one of `hf_segmodels.hub.cards.facts.DATASETS` such as `"ade20k"`, a
            repository on the Hub, or any other name. That of a training script's results by default.
        license (`str`, *optional*): License of the weights, an identifier of the Hub (`"mit"`, `"cc-by-nc-4.0"`, `"other"`).
        license_name, license_link (`str`, *optional*): Name and address of the license; for `"other"` only.
        base_model (`str`, *optional*): Repository on the Hub that the weights come from.
        reported (`Sequence[Mapping]`, *optional*): Figures that others report: `score`, `protocol` and `source` of each, such as
            `{"score": "48.5", "protocol": "single scale", "source": "Table 4 of the paper"}`.
        title (`str`, *optional*): Heading.
        description (`str`, *optional*): Markdown below the heading.
        limits (`Sequence[str]`, *optional*): What this model does badly, besides the limits of its method.
        sections (`Mapping[str, str]`, *optional*): Further sections, heading to Markdown.
        tags (`Sequence[str]`, *optional*): Further tags.
        remote_code (`bool`, *optional*, defaults to `False`): Whether the repository brings its own code, so that the examples do
            without this package.

    Returns:
        `huggingface_hub.ModelCard`: Save it with `card.save("README.md")`.

    Raises:
        ValueError: for results that are none, are of another model or hold no numbers; a data set with another number of
            classes; a license that the Hub would refuse; a kind of model that has no card.
        ImportError: if Jinja2 is missing.

    Example:

    ```python
    >>> from hf_segmodels import SegmenterConfig, SegmenterForSemanticSegmentation, SegmenterImageProcessor
    >>> from hf_segmodels.hub import create_model_card

    >>> model = SegmenterForSemanticSegmentation(SegmenterConfig(num_labels=150))
    >>> card = create_model_card(model, SegmenterImageProcessor(), dataset="ade20k", license="mit")
    >>> card.data.pipeline_tag
    'image-segmentation'
    ```
    """
    config = model.config
    if config.model_type not in METHODS:
        raise ValueError(f"There are no cards for {config.model_type!r} models, only for {', '.join(METHODS)}.")
    _check_license(license, license_name, license_link)
    method = METHODS[config.model_type]
    measurements = read_results(results, config)
    trained = next((measurement for measurement in measurements if measurement.recipe), None)
    if dataset is None and trained is not None:
        dataset = trained.dataset
    known = _known_dataset(dataset, config.num_labels)
    hub_datasets = _hub_datasets(dataset, known)
    # of a folder only its name: where it lies is nobody's business
    dataset_name = known.name if known else dataset if hub_datasets else dataset and Path(dataset).name
    title = title or (f"{method.name} trained on {dataset_name}" if dataset_name else method.name)

    data = ModelCardData(
        license=license or "unknown",
        license_name=license_name,
        license_link=license_link,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["semantic-segmentation", "vision", config.model_type, *tags],
        datasets=hub_datasets,
        base_model=base_model,
        metrics=["mean_iou"] if measurements else None,
        # what `model-index` is called after
        model_name=(repo_id or title).rpartition("/")[2] if measurements else None,
        eval_results=[result for measurement in measurements for result in measurement.eval_results()] or None,
    )
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    windows = choose_windows(config)
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=title,
        description=description and description.strip(),
        method=method,
        repo=repo_id or "path/to/model",
        remote_code=remote_code,
        base_model=base_model,
        parameters=f"{model.num_parameters():,}",
        encoder=describe_encoder(config.backbone_config),
        decoder=describe_decoder(config),
        input=_describe_input(image_processor),
        window=describe_window(windows) + (_SMALL_IMAGES[config.small_image_mode] if windows else ""),
        window_size=_as_code(windows[0]) if windows else 0,
        window_stride=_as_code(windows[1]) if windows else None,
        dataset_name=dataset_name,
        dataset_terms=known.terms if known else None,
        scenes=known.scenes if known else None,
        classes=[_cell(name) for name in names],
        has_names=names != [f"LABEL_{index}" for index in range(config.num_labels)],
        license=f"[{license_name or license}]({license_link})" if license_link else license_name or license,
        limits=[*method.limits, *_limits_of(config), *limits],
        measurements=_measured(measurements),
        metric_columns=_metric_columns(measurements),
        class_rows=_class_rows(names, measurements),
        runs=[_describe_run(measurement) for measurement in measurements],
        reported=reported,
        training=_describe_training(trained) if trained else None,
        sections={heading: text.strip() for heading, text in (sections or {}).items()},
    )


def _check_license(license: str | None, name: str | None, link: str | None) -> None:
    if license == "other" and not name:
        raise ValueError('The license "other" needs a name: set `license_name`, and `license_link` to its text.')
    if license != "other" and (name or link):
        raise ValueError(f'`license_name` and `license_link` belong to `license="other"`, the license is {license!r}.')


def _known_dataset(dataset: str | None, num_labels: int) -> Dataset | None:
    known = DATASETS.get(dataset or "")
    if known is not None and known.num_classes != num_labels:
        raise ValueError(
            f"{known.name} has {known.num_classes} classes, the model {num_labels}: give the `dataset` that it was trained on."
        )
    return known


def _hub_datasets(dataset: str | None, known: Dataset | None) -> list[str] | None:
    if known is not None:
        return [known.hub_id] if known.hub_id else None
    is_repository = dataset is not None and _REPOSITORY.fullmatch(dataset) and not Path(dataset).exists()
    return [str(dataset)] if is_repository else None


def describe_encoder(config: Any) -> str:
    """What an encoder is, from its configuration."""
    if not isinstance(config, PlainViTConfig):
        sizes = {
            "layers": getattr(config, "num_hidden_layers", None) or getattr(config, "depths", None),
            "width": getattr(config, "hidden_size", None) or getattr(config, "hidden_sizes", None),
            "patch size": getattr(config, "patch_size", None),
        }
        described = ", ".join(f"{name} {value}" for name, value in sizes.items() if value is not None)
        return f"`{config.model_type}`" + (f": {described}" if described else "")
    height, width = as_pair(config.image_size, "image_size")
    parts = [f"vision transformer: {config.num_hidden_layers} layers of width {config.hidden_size}"]
    parts.append(f"{config.num_attention_heads} heads")
    if config.stem_type == "patch":
        parts.append(f"patches of {config.patch_size}x{config.patch_size} pixels")
    else:
        depths = " + ".join(map(str, config.stem_depths))
        parts.append(f"a convolutional ResNetV2 stem ({depths} bottlenecks) of stride {config.patch_size}")
    if config.use_distillation_token:
        parts.append("class and distillation token (DeiT)")
    if config.query_downsampling_layer is not None:
        parts.append(f"grid halved behind layer {config.query_downsampling_layer}")
    return ", ".join(parts) + f"; position embeddings for {width}x{height} pixels"


def describe_decoder(config: Any) -> str:
    """What the decoder of one of the four models is, from its configuration."""
    if config.model_type == "segmenter":
        if config.decoder_type == "linear":
            return "linear"
        layers = config.decoder_num_hidden_layers
        return f"mask transformer, {layers} {'layer' if layers == 1 else 'layers'}"
    if config.model_type == "segvit":
        stages = len(config.backbone_config.out_indices)
        layers = config.decoder_num_hidden_layers
        kind = "Shrunk, with query-based up-sampling of" if config.decoder_type == "shrunk" else "Attention-to-Mask on"
        return f"{kind} {stages} feature {'map' if stages == 1 else 'maps'}, {layers} layers each, width {config.decoder_hidden_size}"
    if config.model_type == "regproxy":
        height, width = config.cell_size
        depth = config.token_head_depth
        start = f"layer {depth}" if depth else "the embeddings"
        return f"regions from {start}, {height}x{width} predictions for each token"
    refined = "refined along predicted boundaries" if config.refine_at_inference else "not refined at inference"
    return (
        f"{config.encoder_num_hidden_layers} encoder and {config.decoder_num_hidden_layers} decoder layers over "
        f"{config.num_feature_levels} feature maps, {config.num_points} sampled points each; self-attention "
        f"`{config.decoder_self_attention}`; scores {refined}"
    )


def _limits_of(config: Any) -> list[str]:
    """What a model does badly because of its configuration."""
    if getattr(config, "decoder_self_attention", None) == "across_batch":
        return [
            "As in the released code, the images of a batch influence each other (`decoder_self_attention`): segment them one "
            "by one where that matters."
        ]
    return []


def _describe_input(processor: Any) -> str:
    size = dict(processor.size or {}) if processor.do_resize else {}
    edges = {name: size.get(name) for name in ("shortest_edge", "longest_edge", "height", "width")}
    if edges["shortest_edge"]:
        longest = f", the longer one at most {edges['longest_edge']}" if edges["longest_edge"] else ""
        resized = f"resized to a shorter edge of {edges['shortest_edge']} pixels{longest}"
    elif edges["height"]:
        resized = f"resized to {edges['width']}x{edges['height']} pixels"
    else:
        resized = "at their own size"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (processor.image_mean, processor.image_std))
    normalized = f"; mean {mean}, standard deviation {std}" if processor.do_normalize else ""
    return f"images {resized}{normalized}"


def _as_code(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"({size[0]}, {size[1]})"


def _cell(text: str) -> str:
    """Text that stays inside a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _metric_columns(measurements: Sequence[Measurement]) -> list[str]:
    return [metric_name(name) for name in dict.fromkeys(name for each in measurements for name in each.scores)]


def _measured(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for each in measurements for name in each.scores))
    return [
        {
            "data": f"{_cell(each.dataset_name)}, {_cell(each.split)}"
            + (f" ({each.images} images)" if each.images else ""),
            "protocol": each.protocol,
            "scores": [f"{100 * each.scores[name]:.2f}" if name in each.scores else "" for name in names],
        }
        for each in measurements
    ]


def _class_rows(names: Sequence[str], measurements: Sequence[Measurement]) -> list[tuple[str, str]]:
    """IoU of each class in the first measurement."""
    if not measurements:
        return []
    scores = measurements[0].class_scores
    return [
        (_cell(name), "does not occur" if math.isnan(score) else f"{100 * score:.1f}")
        for name, score in zip(names, scores, strict=True)
    ]


def _describe_run(measurement: Measurement) -> str:
    parts = [f"`{measurement.source}`"] if measurement.source else []
    parts += [
        f"{name} {measurement.run[name]}"
        for name in ("hf_segmodels", "torch", "transformers")
        if name in measurement.run
    ]
    parts += [str(measurement.run["device"])] if "device" in measurement.run else []
    parts += [f"commit {measurement.run['commit']}"] if measurement.run.get("commit") else []
    return f"{_cell(measurement.dataset_name)}, {_cell(measurement.split)}: {', '.join(parts)}" if parts else ""


def _describe_training(measurement: Measurement) -> list[str]:
    """What the recipe in a results file says, line by line."""
    recipe = measurement.recipe
    lines = []
    start = recipe.get("pretrained") or recipe.get("pretrained_backbone")
    if start and not _REPOSITORY.fullmatch(start):
        start = Path(start).name
    lines.append(f"Starts from `{start}`." if start else "Trained from scratch, without pre-trained weights.")
    if measurement.step and recipe.get("batch_size"):
        crop = recipe.get("crop_size")
        batch = recipe["batch_size"] * recipe.get("gradient_accumulation_steps", 1)
        size = f" of {crop[1]}x{crop[0]} pixels" if crop else ""
        lines.append(f"{measurement.step:,} updates, with {batch} crops{size} for each process.")
    if recipe.get("optimizer"):
        lines.append(
            f"{recipe['optimizer']}, learning rate {recipe.get('learning_rate')} ({recipe.get('schedule')}, "
            f"{recipe.get('warmup_steps', 0)} updates of warm-up), weight decay {recipe.get('weight_decay')}."
        )
    extras = []
    if recipe.get("scale_range"):
        extras.append(f"random scale from {recipe['scale_range'][0]} to {recipe['scale_range'][1]}, crop and flip")
    if recipe.get("photometric_distortion") or any(recipe.get("color_jitter") or ()):
        extras.append("random colors")
    if recipe.get("class_weighting", "none") != "none":
        extras.append(f"classes weighted by `{recipe['class_weighting']}`")
    if recipe.get("ema_decay"):
        extras.append(f"moving average of the weights ({recipe['ema_decay']})")
    if recipe.get("mixed_precision", "no") != "no":
        extras.append(f"mixed precision ({recipe['mixed_precision']})")
    if "seed" in recipe:
        extras.append(f"seed {recipe['seed']}")
    if extras:
        text = ", ".join(extras)
        lines.append(f"{text[0].upper()}{text[1:]}.")
    return lines


__all__ = ["create_model_card", "describe_decoder", "describe_encoder"]
