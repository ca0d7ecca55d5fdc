# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Model cards for the Hub: architecture, origin, license, usage and measured scores of a model."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers.image_processing_base import ImageProcessingMixin
from transformers.modeling_utils import PreTrainedModel

from ...inference import choose_windows
from .facts import DATASETS, METHODS
from .results import TASK, describe_window, metric_name, read_results


TEMPLATE = Path(__file__).with_name("template.md")
# owner/name on the Hub
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def create_model_card(
    model: PreTrainedModel,
    image_processor: ImageProcessingMixin,
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
    Create the model card of a model: the `README.md` of its folder or repository, with the metadata for the Hub. Sizes,
    classes and windows come from the model, scores from results files. Missing facts are marked unknown.

    Args:
        model (`PreTrainedModel`): A Segmenter, SegViT, RegProxy or UN-EPT. Its weights are not read, so that it may
            be on the meta device.
        image_processor (`ImageProcessingMixin`): The model's image processor.
        repo_id (`str`, *optional*): Repository or folder that the examples load; defaults to `"path/to/model"`.
        results (path, `dict`, or a sequence of them, *optional*): Results files of `hf-segmodels evaluate --output` or of
            training (`results.json`), or their content. They become tables and the `model-index` of the metadata.
        dataset (`str`, *optional*): Training data: a key of `hf_segmodels.hub.cards.facts.DATASETS` such as `"ade20k"`, a
            repository on the Hub, or another name. Defaults to the data set in the results of training.
        license (`str`, *optional*): License of the weights, an identifier of the Hub (`"mit"`, `"cc-by-nc-4.0"`, `"other"`).
        license_name, license_link (`str`, *optional*): Name and address of the license; only for `"other"`.
        base_model (`str`, *optional*): Repository on the Hub that the weights come from.
        reported (`Sequence[Mapping]`, *optional*): Scores reported elsewhere, with `score`, `protocol` and `source`, such as
            `{"score": "48.5", "protocol": "single scale", "source": "Table 4 of the paper"}`.
        title (`str`, *optional*): Heading; defaults to the names of the method and the data set.
        description (`str`, *optional*): Markdown below the heading.
        limits (`Sequence[str]`, *optional*): Limits of this model, in addition to the limits of its method.
        sections (`Mapping[str, str]`, *optional*): Additional sections, heading to Markdown.
        tags (`Sequence[str]`, *optional*): Additional tags.
        remote_code (`bool`, *optional*, defaults to `False`): Whether the repository contains the model's code, so that the
            examples do not import this package.

    Returns:
        `huggingface_hub.ModelCard`: The card; `card.save("README.md")` writes it.

    Raises:
        ValueError: if a results file is invalid or belongs to another model, the data set has another number of classes, the
            license is incomplete, or there are no cards for this model type.
        ImportError: if Jinja2 is not installed.

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
    config: Any = model.config
    if config.model_type not in METHODS:
        raise ValueError(f"There are no cards for {config.model_type!r} models, only for {', '.join(METHODS)}.")
    _check_license(license, license_name, license_link)
    method = METHODS[config.model_type]
    measurements = read_results(results, config)
    trained = next((measurement for measurement in measurements if measurement.results.recipe), None)
    recipe = trained.results.recipe if trained else {}
    if dataset is None and trained is not None:
        dataset = trained.dataset
    known = DATASETS.get(dataset or "")
    if known is not None and known.num_classes != config.num_labels:
        raise ValueError(
            f"{known.name} has {known.num_classes} classes, the model has {config.num_labels}: set `dataset` to its "
            "training data."
        )
    dataset_name = known.name if known else _public_name(dataset)
    if title is None:
        title = f"{method.name} trained on {dataset_name}" if dataset_name else method.name
    classes = [str(config.id2label[index]) for index in range(config.num_labels)]
    windows = choose_windows(config)

    hub_id = known.hub_id if known else dataset if dataset and _is_repository(dataset) else None
    data = ModelCardData(
        license=license or "unknown",
        license_name=license_name,
        license_link=license_link,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["semantic-segmentation", "vision", config.model_type, *tags],
        datasets=[hub_id] if hub_id else None,
        base_model=base_model,
        metrics=["mean_iou"] if measurements else None,
        # name of the entry in `model-index`
        model_name=(repo_id or title).rpartition("/")[2] if measurements else None,
        eval_results=[result for measurement in measurements for result in measurement.eval_results()] or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=title,
        description=description,
        method=method,
        repo=repo_id or "path/to/model",
        remote_code=remote_code,
        base_model=base_model,
        num_parameters=model.num_parameters(),
        config=config,
        encoder=config.backbone_config,
        processor=image_processor,
        windows=windows,
        protocol=describe_window(windows),
        dataset=known,
        dataset_name=dataset_name,
        classes=classes,
        has_names=classes != [f"LABEL_{index}" for index in range(config.num_labels)],
        license=license,
        license_name=license_name,
        license_link=license_link,
        limits=limits,
        sections=sections or {},
        measurements=measurements,
        metrics={name: metric_name(name) for measurement in measurements for name in measurement.scores},
        reported=reported,
        recipe=recipe,
        training_steps=trained.results.step if trained else None,
        initial_weights=_public_name(recipe.get("pretrained") or recipe.get("pretrained_backbone")),
    )


def _check_license(license: str | None, name: str | None, link: str | None) -> None:
    if license == "other" and not name:
        raise ValueError('`license="other"` needs a name: set `license_name`, and `license_link` to its text.')
    if license != "other" and (name or link):
        raise ValueError(f'`license_name` and `license_link` need `license="other"`, got {license!r}.')


def _is_repository(name: str) -> bool:
    return _REPOSITORY.fullmatch(name) is not None and not Path(name).exists()


def _public_name(source: str | None) -> str | None:
    """Name of a repository, or the last part of a path, whose folders are private."""
    return source and (source if _is_repository(source) else Path(source).name)
