# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Key maps of ViT encoders: timm (DeiT and Segmenter, too), AugReg and mmsegmentation."""

from ..key_mapping import add_prefix


# timm, DeiT and Segmenter.
TRANSFORMER_LAYER = {
    "norm1.{p}": "layernorm_before.{p}",
    "attn.qkv.{p}": "attention.qkv.{p}",
    "attn.proj.{p}": "attention.o_proj.{p}",
    "norm2.{p}": "layernorm_after.{p}",
    "mlp.fc1.{p}": "mlp.fc1.{p}",
    "mlp.fc2.{p}": "mlp.fc2.{p}",
}
STEM = "embeddings.patch_embeddings.stem."
# The hybrids' convolutional stem, the same in timm and mmsegmentation.
_HYBRID_STEM = {
    "patch_embed.backbone.stem.conv.{p}": STEM + "embedder.convolution.{p}",
    "patch_embed.backbone.stem.norm.{p}": STEM + "embedder.norm.{p}",
    "patch_embed.backbone.stages.{s}.blocks.{b}.{layer}.{p}": STEM + "encoder.stages.{s}.layers.{b}.{layer}.{p}",
    "patch_embed.backbone.stages.{s}.blocks.{b}.downsample.{layer}.{p}": (
        STEM + "encoder.stages.{s}.layers.{b}.downsample.{layer}.{p}"
    ),
    "patch_embed.proj.{p}": "embeddings.patch_embeddings.projection.{p}",
}
_TOKENS = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
}
TIMM_VIT = {
    **_TOKENS,
    **_HYBRID_STEM,  # holds the plain ViT's projection, too
    **add_prefix(TRANSFORMER_LAYER, "blocks.{i}.", "encoder.layers.{i}."),
    "norm.{p}": "layernorm.{p}",
}
# ImageNet classifiers and the layers that exist only for them.
TIMM_DROPPED = ("head.{p}", "head_dist.{p}", "pre_logits.fc.{p}", "fc_norm.{p}")

# AugReg. Arrays also change their layout, and queries, keys and values become one matrix: see `formats/backbone.py`.
_AUGREG_LAYER = {
    "LayerNorm_0/scale": "layernorm_before.weight",
    "LayerNorm_0/bias": "layernorm_before.bias",
    "MultiHeadDotProductAttention_1/{part}/kernel": "attention.{part}.weight",
    "MultiHeadDotProductAttention_1/{part}/bias": "attention.{part}.bias",
    "LayerNorm_2/scale": "layernorm_after.weight",
    "LayerNorm_2/bias": "layernorm_after.bias",
    "MlpBlock_3/Dense_0/kernel": "mlp.fc1.weight",
    "MlpBlock_3/Dense_0/bias": "mlp.fc1.bias",
    "MlpBlock_3/Dense_1/kernel": "mlp.fc2.weight",
    "MlpBlock_3/Dense_1/bias": "mlp.fc2.bias",
}
_AUGREG_STEM_BLOCK = {
    "conv{n}/kernel": "conv{n}.weight",
    "gn{n}/scale": "norm{n}.weight",
    "gn{n}/bias": "norm{n}.bias",
}
AUGREG = {
    "cls": "embeddings.cls_token",
    "Transformer/posembed_input/pos_embedding": "embeddings.position_embeddings",
    "embedding/kernel": "embeddings.patch_embeddings.projection.weight",
    "embedding/bias": "embeddings.patch_embeddings.projection.bias",
    **add_prefix(_AUGREG_LAYER, "Transformer/encoderblock_{i}/", "encoder.layers.{i}."),
    "Transformer/encoder_norm/scale": "layernorm.weight",
    "Transformer/encoder_norm/bias": "layernorm.bias",
    # the hybrids' stem; stages and blocks count from 1
    "conv_root/kernel": STEM + "embedder.convolution.weight",
    "gn_root/scale": STEM + "embedder.norm.weight",
    "gn_root/bias": STEM + "embedder.norm.bias",
    "block{s}/unit{b}/conv_proj/kernel": STEM + "encoder.stages.{s-1}.layers.{b-1}.downsample.conv.weight",
    "block{s}/unit{b}/gn_proj/scale": STEM + "encoder.stages.{s-1}.layers.{b-1}.downsample.norm.weight",
    "block{s}/unit{b}/gn_proj/bias": STEM + "encoder.stages.{s-1}.layers.{b-1}.downsample.norm.bias",
    **add_prefix(_AUGREG_STEM_BLOCK, "block{s}/unit{b}/", STEM + "encoder.stages.{s-1}.layers.{b-1}."),
}
AUGREG_DROPPED = ("head/{p}", "pre_logits/{p}")

# mmsegmentation.
_MMSEG_LAYER = {
    "ln1.{p}": "layernorm_before.{p}",
    "attn.attn.in_proj_{p}": "attention.qkv.{p}",
    "attn.attn.out_proj.{p}": "attention.o_proj.{p}",
    "ln2.{p}": "layernorm_after.{p}",
    "ffn.layers.0.0.{p}": "mlp.fc1.{p}",
    "ffn.layers.1.{p}": "mlp.fc2.{p}",
}
MMSEG_VIT = {
    **_TOKENS,
    **_HYBRID_STEM,
    "patch_embed.projection.{p}": "embeddings.patch_embeddings.projection.{p}",
    **add_prefix(_MMSEG_LAYER, "layers.{i}.", "encoder.layers.{i}."),
    "ln1.{p}": "layernorm.{p}",
}
