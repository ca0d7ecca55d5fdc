# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Evaluation in transformers' Trainer in constant memory."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import EvalPrediction

from ..inference import upsample_argmax
from .segmentation_scores import SegmentationScores


# Padding value of the Trainer for batches of different size in several processes.
_PADDING = -100


def trainer_metrics(
    num_labels: int, ignore_index: int = 255, **options: Any
) -> tuple[Callable[[Any, Any], torch.Tensor], Callable[..., dict[str, float]]]:
    """
    Create two functions with which a Trainer evaluates in constant memory: scores become label maps of the labels' size
    after each batch, and label maps become counts.

    With `batch_eval_metrics=True`, each batch is counted at once. Otherwise, the label maps of the whole data set are
    kept until the end, and all images must have one size. With several processes, the Trainer gathers their label maps.

    Args:
        num_labels (`int`): Number of classes.
        ignore_index (`int`, *optional*, defaults to 255): Label of ignored pixels.
        options: `boundary_iou`, `dilation_ratio` and `object_sizes` of [`SegmentationScores`].

    Returns:
        `preprocess_logits_for_metrics` and `compute_metrics` of `transformers.Trainer`. `compute_metrics` returns the
        results of [`SegmentationScores`] that are single numbers. The Trainer prefixes their names with `eval_`.

    Example:

    ```python
    preprocess, compute = trainer_metrics(model.config.num_labels, boundary_iou=True)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir, batch_eval_metrics=True, eval_strategy="epoch"),
        eval_dataset=eval_dataset,
        preprocess_logits_for_metrics=preprocess,
        compute_metrics=compute,
    )
    ```
    """
    scores = SegmentationScores(num_labels, ignore_index, **options)

    def preprocess_logits_for_metrics(logits: Any, labels: Any) -> torch.Tensor:
        """
        Return label maps `(batch_size, height, width)` of the size of `labels`, from the first of a tuple of outputs.
        """
        logits, labels = (values[0] if isinstance(values, (tuple, list)) else values for values in (logits, labels))
        if labels is None:
            raise ValueError("There are no `labels` to compare with: add them to `label_names` of the Trainer.")
        # a quarter of the memory for processes to gather; signed, because the Trainer may pad with -100
        dtype = torch.int16 if num_labels <= torch.iinfo(torch.int16).max else torch.int32
        height, width = labels.shape[-2:]
        return upsample_argmax(logits, (height, width)).to(dtype)

    def compute_metrics(eval_pred: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Count a batch. With `compute_result`, return the scores since the last result and reset the counts."""
        nonlocal scores
        predictions, labels = (
            torch.as_tensor(values[0] if isinstance(values, (tuple, list)) else values)
            for values in (eval_pred.predictions, eval_pred.label_ids)
        )
        scores.update(predictions, labels.masked_fill(labels == _PADDING, ignore_index))
        if not compute_result:
            return {}
        results = scores.compute()
        scores = SegmentationScores(**scores.settings)
        return {name: value for name, value in results.items() if isinstance(value, float)}

    return preprocess_logits_for_metrics, compute_metrics
