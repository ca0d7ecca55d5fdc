# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""ResNet-V1c encoders that were pre-trained on ImageNet, by the names of mmsegmentation and of timm."""

from pathlib import Path

from ...resnet_v1c.modeling_resnet_v1c import ResNetV1cBackbone
from ..checkpoint_files import read_checkpoint
from ..key_mapping import load_strictly, rename


# mmsegmentation's ResNet-V1c.
MMSEG_RESNET_V1C = {
    "stem.0.{p}": "stem.layers.0.convolution.{p}",
    "stem.1.{p}": "stem.layers.0.normalization.{p}",
    "stem.3.{p}": "stem.layers.1.convolution.{p}",
    "stem.4.{p}": "stem.layers.1.normalization.{p}",
    "stem.6.{p}": "stem.layers.2.convolution.{p}",
    "stem.7.{p}": "stem.layers.2.normalization.{p}",
    "layer{s}.{b}.conv1.{p}": "stages.{s-1}.layers.{b}.reduction.convolution.{p}",
    "layer{s}.{b}.bn1.{p}": "stages.{s-1}.layers.{b}.reduction.normalization.{p}",
    "layer{s}.{b}.conv2.{p}": "stages.{s-1}.layers.{b}.spatial.convolution.{p}",
    "layer{s}.{b}.bn2.{p}": "stages.{s-1}.layers.{b}.spatial.normalization.{p}",
    "layer{s}.{b}.conv3.{p}": "stages.{s-1}.layers.{b}.expansion.convolution.{p}",
    "layer{s}.{b}.bn3.{p}": "stages.{s-1}.layers.{b}.expansion.normalization.{p}",
    "layer{s}.{b}.downsample.0.{p}": "stages.{s-1}.layers.{b}.shortcut.convolution.{p}",
    "layer{s}.{b}.downsample.1.{p}": "stages.{s-1}.layers.{b}.shortcut.normalization.{p}",
}
# timm calls the stem's layers `conv1.0` to `conv1.6`, and its last norm `bn1`.
RESNET_V1C = {
    **MMSEG_RESNET_V1C,
    **{key.replace("stem.", "conv1."): ours for key, ours in MMSEG_RESNET_V1C.items() if key.startswith("stem.")},
    "bn1.{p}": "stem.layers.2.normalization.{p}",
}
# the ImageNet classifier
_DROPPED = ("fc.{p}", "head.fc.{p}")


def load_resnet_v1c_weights(backbone: ResNetV1cBackbone, path: Path) -> list[str]:
    """
    Puts pre-trained weights into a backbone, whose dilation and strides may be others.

    Args:
        backbone ([`ResNetV1cBackbone`]): Changed in place.
        path (`Path`): A checkpoint of mmsegmentation's `resnet50_v1c` (or another depth's) or of timm's `resnet50c`.

    Returns:
        `list[str]`: Names of the weights that were left out: the ImageNet classifier.

    Raises:
        ConversionError: if the file is damaged, or a weight missing, left over or of another shape.
    """
    weights = {name.removeprefix("backbone."): tensor for name, tensor in read_checkpoint(path).items()}
    renamed, dropped = rename(list(weights), RESNET_V1C, _DROPPED)
    tensors = {ours: weights[name] for name, ours in renamed.items()}
    # files of old torch versions lack these counters, which only batch norms without a momentum look at
    counters = {name: count for name, count in backbone.state_dict().items() if name.endswith("num_batches_tracked")}
    load_strictly(backbone, counters | tensors, RESNET_V1C)
    return dropped


__all__ = ["MMSEG_RESNET_V1C", "RESNET_V1C", "load_resnet_v1c_weights"]
