# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Base class of the metrics, with conversion and checks of predictions and labels."""

from typing import Any

import torch


# Torch cannot compare or add these types.
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


class ClassCounts:
    """
    Counts per class, accumulated batch by batch in constant memory. Counts of parts of a data set add up to the counts
    of the whole.

    Args:
        num_labels (`int`): Number of classes.
        ignore_index (`int`, *optional*, defaults to 255): Label of ignored pixels.
    """

    counts: torch.Tensor

    def __init__(self, num_labels: int, ignore_index: int = 255):
        if num_labels < 1:
            raise ValueError(f"`num_labels` must be at least 1, got {num_labels}.")
        self.num_labels = num_labels
        self.ignore_index = ignore_index

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that must be equal for counts to be merged."""
        return {name: value for name, value in vars(self).items() if name != "counts"}

    def update(self, predictions: Any, references: Any) -> None:
        """Count one label map or a batch of them; see [`~SegmentationScores.update`]."""
        raise NotImplementedError

    def merge(self, other: "ClassCounts") -> None:
        """Add the counts of another object, for example of another process."""
        if type(self) is not type(other) or self.settings != other.settings:
            raise ValueError(
                f"Counts of {type(self).__name__} with {self.settings} and of {type(other).__name__} with "
                f"{other.settings} cannot be merged."
            )
        self.counts += other.counts.to(self.counts.device)

    def _check_classes(self, predictions: torch.Tensor, references: torch.Tensor) -> None:
        """Check that predictions and labels of pixels that are not ignored are classes."""
        for name, values in (("Predictions", predictions), ("Labels", references)):
            if values.numel() == 0:
                continue
            lowest, highest = (bound.item() for bound in values.aminmax())
            if lowest < 0 or highest >= self.num_labels:
                raise ValueError(
                    f"{name} hold values from {lowest} to {highest}, outside the {self.num_labels} classes. Check "
                    "`num_labels`, whether label 0 must be reduced (`do_reduce_labels`), and whether void labels must "
                    f"become {self.ignore_index}."
                )

    def _read_label_maps(self, predictions: Any, references: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Check label maps, and return them in the smallest dtype, with `num_labels` in both for ignored pixels."""
        predictions, references = read_pair(predictions, references)
        if references.ndim < 2:
            raise ValueError(f"Expected label maps of shape (..., height, width), got {tuple(references.shape)}.")
        is_ignored = references == self.ignore_index
        predictions, references = (values.masked_fill(is_ignored, 0) for values in (predictions, references))
        self._check_classes(predictions, references)
        kinds = (torch.uint8, torch.int16, torch.int32)
        dtype = next(kind for kind in kinds if self.num_labels <= torch.iinfo(kind).max)
        marked = [values.to(dtype).masked_fill_(is_ignored, self.num_labels) for values in (predictions, references)]
        return marked[0], marked[1]


def read_pair(predictions: Any, references: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Convert predictions and labels to integer tensors of one shape on one device, without copying such tensors."""
    tensors = []
    for name, values in (("Predictions", predictions), ("Labels", references)):
        tensor = torch.as_tensor(values)
        if tensor.is_floating_point() or tensor.is_complex():
            raise ValueError(f"{name} are of {tensor.dtype}; classes are integers (`argmax` of scores, `.long()`).")
        tensors.append(tensor.long() if tensor.dtype in _UNSIGNED or tensor.dtype == torch.bool else tensor)
    prediction, reference = tensors
    if prediction.shape != reference.shape:
        raise ValueError(
            f"Predictions of shape {tuple(prediction.shape)} do not match labels of shape "
            f"{tuple(reference.shape)}: resize them to the labels' size, for example with `target_sizes`."
        )
    return prediction.to(reference.device), reference
