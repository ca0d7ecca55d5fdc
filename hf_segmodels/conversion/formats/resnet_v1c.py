# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Key maps of ResNet-V1c encoders, by the names of mmsegmentation and of timm."""

# mmsegmentation.
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
# The ImageNet classifier.
RESNET_DROPPED = ("fc.{p}", "head.fc.{p}")
