# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Names and shapes of the layers that several original repositories share."""

Shapes = dict[str, tuple[int, ...]]


def pair(name: str, outputs: int, *inputs: int) -> Shapes:
    """Weight and bias of a linear layer, a convolution, or (without `inputs`) a norm."""
    return {f"{name}.weight": (outputs, *inputs), f"{name}.bias": (outputs,)}


def batch_norm(name: str, size: int) -> Shapes:
    statistics = {f"{name}.{part}": (size,) for part in ("running_mean", "running_var")}
    return pair(name, size) | statistics | {f"{name}.num_batches_tracked": ()}


def torch_attention(name: str, size: int) -> Shapes:
    """`torch.nn.MultiheadAttention`"""
    fused = {f"{name}.in_proj_weight": (3 * size, size), f"{name}.in_proj_bias": (3 * size,)}
    return fused | pair(f"{name}.out_proj", size, size)


def timm_layers(name: str, count: int, width: int) -> Shapes:
    """Transformer layers `name.0`, ... of timm, DeiT and Segmenter."""
    shapes: Shapes = {}
    for layer in (f"{name}.{number}" for number in range(count)):
        shapes |= pair(f"{layer}.norm1", width) | pair(f"{layer}.norm2", width)
        shapes |= pair(f"{layer}.attn.qkv", 3 * width, width) | pair(f"{layer}.attn.proj", width, width)
        shapes |= pair(f"{layer}.mlp.fc1", 4 * width, width) | pair(f"{layer}.mlp.fc2", width, 4 * width)
    return shapes


def mmseg_layers(name: str, count: int, width: int) -> Shapes:
    """Transformer layers `name.0`, ... of mmsegmentation."""
    shapes: Shapes = {}
    for layer in (f"{name}.{number}" for number in range(count)):
        shapes |= pair(f"{layer}.ln1", width) | pair(f"{layer}.ln2", width)
        shapes |= torch_attention(f"{layer}.attn.attn", width)
        shapes |= pair(f"{layer}.ffn.layers.0.0", 4 * width, width) | pair(f"{layer}.ffn.layers.1", width, 4 * width)
    return shapes
