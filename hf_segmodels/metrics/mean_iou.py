# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Mean IoU as a module of the `evaluate` library, loaded from this file without the Hub:

    metric = evaluate.load(hf_segmodels.metrics.MEAN_IOU, num_labels=150, boundary_iou=True, object_sizes=True)
"""

from typing import Any

import datasets
import evaluate

from hf_segmodels.metrics import SegmentationScores, sum_over_processes


_DESCRIPTION = """
Mean intersection over union of semantic segmentation, from totals over the whole data set as in mmsegmentation.
Batches are counted at once, so little more than `num_labels` squared integers is kept. Optionally, boundary IoU and
mean IoU by the size of objects.
"""

_INPUTS = """
Args:
    predictions: label maps, of shape (height, width) each.
    references: labels of the same sizes.
    num_labels (int): number of classes, as an argument of `evaluate.load` or `compute`.
    ignore_index (int, optional, defaults to 255): label of ignored pixels.
    boundary_iou (bool, optional), dilation_ratio (float, optional), object_sizes (bool, optional): arguments of
        `evaluate.load`; see `hf_segmodels.metrics.SegmentationScores`.
Returns:
    mean_iou, mean_accuracy, overall_accuracy (float, 0 to 1), per_category_iou, per_category_accuracy (list of float,
    nan for classes that do not occur).
    With boundary_iou: mean_boundary_iou, per_category_boundary_iou.
    With object_sizes: mean_iou_small, mean_iou_medium, mean_iou_large (of thirds of the classes), per_category_size.
"""


class MeanIoU(evaluate.Metric):
    """
    Streaming mean IoU. With several processes (`torch.distributed`), `compute` sums the counts of all processes. All of
    them must call it, even without any counts. Takes the arguments of [`~hf_segmodels.metrics.SegmentationScores`];
    `num_labels` is required before the first `add` or `add_batch`.
    """

    def __init__(
        self,
        *args: Any,
        num_labels: int | None = None,
        ignore_index: int = 255,
        boundary_iou: bool = False,
        dilation_ratio: float = 0.02,
        object_sizes: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.options: dict[str, Any] = {
            "num_labels": num_labels,
            "ignore_index": ignore_index,
            "boundary_iou": boundary_iou,
            "dilation_ratio": dilation_ratio,
            "object_sizes": object_sizes,
        }
        self.scores: SegmentationScores | None = None

    def _info(self) -> evaluate.MetricInfo:
        label_map = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": label_map, "references": label_map}),
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Count a batch: a tensor or array `(batch_size, height, width)`, or a list of label maps of any sizes."""
        if predictions is None or references is None:
            raise ValueError("Pass both `predictions` and `references`.")
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions do not match {len(references)} references.")
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference, **kwargs)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Count one label map of shape `(height, width)`."""
        if self.scores is None:
            if self.options["num_labels"] is None:
                raise ValueError("`num_labels` is not set: `evaluate.load(MEAN_IOU, num_labels=...)`.")
            self.scores = SegmentationScores(**self.options)
        self.scores.update(prediction, reference)

    def compute(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        num_labels: int | None = None,
        ignore_index: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """
        Return the scores since the last `compute`, after adding `predictions` and `references` if they are passed.
        """
        if kwargs:
            raise ValueError(f"Unknown arguments {sorted(kwargs)}: labels are reduced by the image processor.")
        given = {"num_labels": num_labels, "ignore_index": ignore_index}
        given = {name: value for name, value in given.items() if value is not None}
        if self.scores is not None and given:
            raise ValueError("Pass `num_labels` and `ignore_index` to `evaluate.load`: batches were already counted.")
        self.options |= given
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        scores, self.scores = self.scores, None
        scores = sum_over_processes(scores)
        if scores is None:
            raise ValueError("Nothing to compute: add predictions and references first.")
        return scores.compute()
