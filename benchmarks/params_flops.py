# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Counts parameters and multiply-adds of the papers' models and prints them next to the numbers in the papers.

    python benchmarks/params_flops.py [--method segvit]

Models are built on the meta device: nothing is computed, and no memory is needed. Two counts of multiply-adds are given:

- *authors' way*: that of the tool that the authors used (mmcv's `get_model_complexity_info`), which adds up layers: a
  multiply-add for each weight and position, two operations for each element of a norm, one for each of a ReLU. Attention is
  left out altogether (its projections and products are no layers to the tool), and so are the stem's convolutions
  and norms in R50+L/32.
- *true*: all matrix products and convolutions, attention included (torch's `FlopCounterMode`).

SegViT's authors used fvcore, which follows operations instead: all matrix products and convolutions, attention included,
five operations for each element of a LayerNorm and four for each of a bilinear upsampling. Masks are upsampled to the
training crop, and scores from there to the image, as in the released code.

UN-EPT's number is counted in mmcv's way, with the backbone's linear layers but without the decoder's self-attention. What the
sampling of points costs is in neither count (`grid_sample` is not a product): about 0.8 billion for DeiT-B.

A number fits if it is within one unit of the last digit in the paper, which may have been rounded or cut; an increment (+)
is the difference of two such numbers and may be two units off. Rows that do not fit are marked, and say so.
"""

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig

from hf_segmodels import (
    PlainViTBackbone,
    PlainViTConfig,
    RegProxyConfig,
    RegProxyForSemanticSegmentation,
    ResNetV1cConfig,
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    SegViTConfig,
    SegViTForSemanticSegmentation,
    UNEPTConfig,
    UNEPTForSemanticSegmentation,
)


ATTENTION = r"\.attention\."


@dataclass(frozen=True)
class Row:
    """
    A line of a table in a paper.

    Args:
        table (`str`): Which one.
        name (`str`): The model there.
        build (`Callable`): Builds it.
        image_size (`int`): Side of its square input in pixels.
        parameters, multiply_adds (`str`): As printed: `"5.8M"`, `"+0.1G"`; empty if the paper gives none.
        num_windows (`int`): Windows that make one image.
        left_out (`str`): Modules that the authors' count lacks (regular expression on their names).
        by_operations (`bool`): Whether the authors' count follows operations (fvcore) instead of layers (mmcv).
        base (`Row`, *optional*): The row that increments (`+`) are added to.
        misfit (`str`): Why a number is known not to fit.
    """

    table: str
    name: str
    build: Callable[[], nn.Module]
    image_size: int = 512
    parameters: str = ""
    multiply_adds: str = ""
    num_windows: int = 1
    left_out: str = ATTENTION
    by_operations: bool = False
    base: "Row | None" = None
    misfit: str = ""


@dataclass(frozen=True)
class Counts:
    """Parameters in millions; multiply-adds of an image in billions, counted in the authors' way and truly."""

    parameters: float
    authors: float
    true: float


@cache
def count(row: Row) -> Counts:
    """Measures a row's model."""
    with torch.device("meta"):
        model = row.build().eval()
        images = torch.empty(1, 3, row.image_size, row.image_size)
    layers = 0.0

    def add(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal layers
        layers += _layer_operations(module, inputs[0], output)

    handles = [
        module.register_forward_hook(add)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, *_NORMS, nn.ReLU)) and not re.search(row.left_out, name)
    ]
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _SmallOperations() as small:
        model(images)
    for handle in handles:
        handle.remove()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    windows = row.num_windows / 1e9
    true = counter.get_total_flops() / 2
    authors = true + small.total if row.by_operations else layers
    return Counts(parameters / 1e6, authors * windows, true * windows)


class _SmallOperations(TorchDispatchMode):
    """What fvcore counts beside products: LayerNorms and bilinear upsampling."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.native_layer_norm:
            self.total += 5 * result[0].numel()
        elif func.overloadpacket is torch.ops.aten.upsample_bilinear2d:
            self.total += 4 * result.numel()
        return result


_NORMS = (nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm)


def _layer_operations(module: nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> int:
    if isinstance(module, nn.ReLU):
        return output.numel()
    if isinstance(module, _NORMS):
        return 2 * output.numel()
    biases = 0 if module.bias is None else output.numel() if isinstance(module, nn.Conv2d) else len(module.bias)
    return output.numel() * module.weight[0].numel() + biases


# RegProxy


def _encoder(
    width: int, num_layers: int, num_heads: int, image_size: int, stem: str = "", **fields: object
) -> PlainViTConfig:
    if stem:
        depths = {"R26": (2, 2, 2, 2), "R50": (3, 4, 6, 3)}[stem]
        fields |= {"stem_type": "resnetv2", "stem_depths": depths, "patch_size": 32}
    return PlainViTConfig(
        hidden_size=width, num_hidden_layers=num_layers, num_attention_heads=num_heads, image_size=image_size, **fields
    )


ENCODERS: dict[str, Callable[[int], PlainViTConfig]] = {
    "Ti/16": lambda size: _encoder(192, 12, 3, size),
    "S/16": lambda size: _encoder(384, 12, 6, size),
    "B/16": lambda size: _encoder(768, 12, 12, size, use_distillation_token=True),
    "L/16": lambda size: _encoder(1024, 24, 16, size),
    "R26+S/32": lambda size: _encoder(384, 12, 6, size, stem="R26"),
    "R50+L/32": lambda size: _encoder(1024, 24, 16, size, stem="R50"),
}
# the authors' tool does not know the stem's convolutions and norms; for R26 they counted a ResNet in its place
WITHOUT_STEM = rf"{ATTENTION}|\.stem\..*(conv|norm)\w*$"


def regproxy(name: str, image_size: int = 512, **fields: object) -> Callable[[], nn.Module]:
    depth = 0 if "+" in name else {"L/16": 10}.get(name, 5)
    return lambda: RegProxyForSemanticSegmentation(
        RegProxyConfig(backbone_config=ENCODERS[name](image_size), token_head_depth=depth, **fields)
    )


def linear_baseline(name: str) -> Callable[[], nn.Module]:
    config = ENCODERS[name]
    return lambda: SegmenterForSemanticSegmentation(SegmenterConfig(backbone_config=config(512), decoder_type="linear"))


def encoder(name: str, image_size: int) -> Callable[[], nn.Module]:
    return lambda: PlainViTBackbone(ENCODERS[name](image_size))


def increments(base: Row, rows: list[tuple[str, Callable[[], nn.Module], str, str]]) -> list[Row]:
    """Return a row of absolute numbers and the rows below it that have increments."""
    return [
        base,
        *(
            replace(base, name=name, build=build, multiply_adds=multiply_adds, parameters=parameters, base=base)
            for name, build, multiply_adds, parameters in rows
        ),
    ]


def regproxy_rows() -> list[Row]:
    """Tables 2, 4, 5, 6, 8 and 9 of the paper."""
    ade = "Table 4 (ADE20K)"
    rows = [
        Row("Table 2 (encoders)", name, encoder(name, size), size, parameters, misfit=misfit)
        for name, size, parameters, misfit in (
            ("Ti/16", 512, "6M", ""),
            ("S/16", 512, "22M", ""),
            ("B/16", 512, "86M", ""),
            ("L/16", 640, "307M", "the paper's number is that of ViT's own paper"),
            ("R26+S/32", 512, "37M", ""),
            ("R50+L/32", 640, "330M", "1.0M more, an ImageNet classifier's, would fit"),
        )
    ]
    rows += [
        Row(ade, "Ti/16", regproxy("Ti/16"), 512, "5.8M", "3.9G"),
        Row(ade, "S/16", regproxy("S/16"), 512, "22M", "15G"),
        Row(ade, "R26+S/32", regproxy("R26+S/32"), 512, "36M", "16G"),
        Row(ade, "B/16", regproxy("B/16"), 512, "87M", "59G"),
        Row(
            ade,
            "R50+L/32",
            regproxy("R50+L/32", 640),
            640,
            "323M",
            "82G",
            left_out=WITHOUT_STEM,
            misfit="the checkpoint has 329.7M, which Table 2 gives for the encoder",
        ),
        Row(ade, "L/16", regproxy("L/16", 640), 640, "306M", "326G"),
    ]
    rows += [
        Row(
            "Table 5 (Cityscapes)",
            name,
            regproxy(name, 768, num_labels=19),
            768,
            parameters,
            multiply_adds,
            num_windows=8,
            misfit=misfit,
        )
        for name, parameters, multiply_adds, misfit in (
            ("Ti/16", "6M", "69G", ""),
            ("S/16", "23M", "270G", ""),
            ("B/16", "88M", "1064G", "0.5 % below eight windows"),
            ("L/16", "307M", "", ""),
        )
    ]
    rows += [
        Row("Table 6 (Pascal Context)", name, regproxy(name, 480, num_labels=60), 480, parameters, multiply_adds)
        for name, parameters, multiply_adds in (("B/16", "87M", "52G"), ("L/16", "305M", "183G"))
    ]
    strides = "Table 8 (output strides)"
    for name, baseline, own, added in (
        ("Ti/16", ("3.8G", "5.7M"), ("3.9G", "5.8M"), ("+0.0G +0.0M", "+0.0G +0.0M", "+0.1G +0.1M", "+0.4G +0.4M")),
        ("S/16", ("14.9G", "22.0M"), ("15.1G", "22.2M"), ("+0.0G +0.0M", "+0.1G +0.1M", "+0.2G +0.2M", "+0.8G +0.9M")),
        ("R26+S/32", None, ("16.2G", "36.3M"), ("+0.0G +0.0M", "+0.1G +0.1M", "+0.2G +0.2M", "+0.3G +0.9M")),
    ):
        if baseline is not None:
            rows.append(Row(strides, f"ViT-{name}", linear_baseline(name), 512, baseline[1], baseline[0]))
        rows += increments(
            Row(strides, f"{name}, 1x1", regproxy(name, region_resolution=1), 512, own[1], own[0]),
            [
                (f"{name}, {side}x{side}", regproxy(name, region_resolution=side), *numbers.split())
                for side, numbers in zip((2, 4, 8, 16), added, strict=True)
            ],
        )
    for name, own, plain, depthwise in (
        ("Ti/16", "3.9G 5.7M", "+0.3G +0.4M", "+0.0G +0.1M"),
        ("S/16", "15.0G 22.1M", "+1.3G +1.3M", "+0.1G +0.2M"),
    ):
        multiply_adds, parameters = own.split()
        rows += increments(
            Row(
                "Table 9 (3x3 convolution)",
                f"{name}, none",
                regproxy(name, affinity_conv="none"),
                512,
                parameters,
                multiply_adds,
            ),
            [
                (f"{name}, plain", regproxy(name, affinity_conv="plain"), *plain.split()),
                (f"{name}, depth-wise", regproxy(name, affinity_conv="depthwise"), *depthwise.split()),
            ],
        )
    return rows


# SegViT


def segvit(
    size: str,
    image_size: int,
    taps: list[int],
    num_labels: int = 150,
    downsampling: int | None = None,
    up: bool = False,
) -> Callable[[], nn.Module]:
    """SegViT-B or -L; `up` for the Shrunk structure's up-sampling."""
    width, num_layers, num_heads, decoder_width = {"B": (768, 12, 12, 384), "L": (1024, 24, 16, 512)}[size]

    def build() -> nn.Module:
        encoder = _encoder(
            width,
            num_layers,
            num_heads,
            image_size,
            use_cls_token=False,
            final_norm="none",
            query_downsampling_layer=downsampling,
            out_indices=taps,
        )
        config = SegViTConfig(
            backbone_config=encoder,
            decoder_type="shrunk" if up else "cascade",
            decoder_hidden_size=decoder_width,
            decoder_num_attention_heads=num_heads,
            prediction_size=image_size,
            num_labels=num_labels,
        )
        return SegViTForSemanticSegmentation(config)

    return build


def segvit_rows() -> list[Row]:
    """Tables 1, 2, 3 and 8 of the paper, which gives no parameters: those of the checkpoints stand in their place."""
    shrunk, cascade = {"downsampling": 8, "up": True}, [8, 16, 24]
    rows = [
        ("Table 1 (ADE20K)", "ViT-B", segvit("B", 512, [6, 8, 12]), 512, "108.74M", "120.9G"),
        ("Table 1 (ADE20K)", "ViT-L", segvit("L", 640, cascade), 640, "344.31M", "637.9G"),
        ("Table 1 (ADE20K)", "ViT-L, Shrunk", segvit("L", 640, [8, 24], **shrunk), 640, "344.60M", "373.5G"),
        ("Table 2 (COCO-Stuff)", "ViT-L", segvit("L", 512, cascade, 171), 512, "343.74M", "383.9G"),
        ("Table 2 (COCO-Stuff)", "ViT-L, Shrunk", segvit("L", 512, [8, 24], 171, **shrunk), 512, "343.74M", "224.8G"),
        ("Table 3 (Pascal Context)", "ViT-L", segvit("L", 480, cascade, 59), 480, "343.50M", "321.6G"),
        (
            "Table 3 (Pascal Context)",
            "ViT-L, Shrunk",
            segvit("L", 480, [8, 24], 60, **shrunk),
            480,
            "343.43M",
            "186.9G",
        ),
        ("Table 8 (ViT-B, ADE20K)", "Single", segvit("B", 512, [12]), 512, "93.94M", "115.8G"),
        ("Table 8 (ViT-B, ADE20K)", "Naive Shrunk", segvit("B", 512, [12], downsampling=6), 512, "93.94M", "74.1G"),
        (
            "Table 8 (ViT-B, ADE20K)",
            "Shrunk",
            segvit("B", 512, [6, 12], downsampling=6, up=True),
            512,
            "108.83M",
            "97.1G",
        ),
    ]
    return [Row(*row, by_operations=True) for row in rows]


# UN-EPT


def unept(
    backbone_config: PreTrainedConfig | None = None, self_attention: str = "across_batch"
) -> Callable[[], nn.Module]:
    """UN-EPT with 150 classes; of two layers each, as in the released code."""
    fields = {"decoder_self_attention": self_attention, "refine_at_inference": False}
    return lambda: UNEPTForSemanticSegmentation(UNEPTConfig(backbone_config=backbone_config, **fields))


def unept_rows() -> list[Row]:
    """Table 7 of the paper, and what it does not give: the smaller model, and the paper's own self-attention."""
    table = "Table 7 (ADE20K)"
    resnet = ResNetV1cConfig(out_features=["stage2", "stage3", "stage4"])
    # the tool knows linear layers, but neither products nor torch's own multi-head attention
    left_out = r"^decoder\..*\.self_attention\."
    return [
        Row(table, "DeiT-B", unept(), 480, "94M", "99.1G", left_out=left_out),
        Row(table, "DeiT-B, sparse", unept(self_attention="sparse"), 480, left_out=left_out),
        Row(table, "ResNet-50", unept(resnet), 480, left_out=left_out),
    ]


METHODS: dict[str, Callable[[], list[Row]]] = {"regproxy": regproxy_rows, "segvit": segvit_rows, "unept": unept_rows}


def fits(printed: str, value: float, base_value: float = 0.0) -> bool:
    """Return whether a number of a paper (`"5.8M"`, `"+0.1G"`) is that of a measured value, as the module says."""
    digits = re.fullmatch(r"(\+?)(\d+(?:\.(\d+))?)[MG]", printed)
    if digits is None:
        raise ValueError(f"Cannot read {printed!r}.")
    unit = 10.0 ** -len(digits[3] or "")
    tolerance, value = (2 * unit, value - base_value) if digits[1] else (unit, value)
    return abs(float(digits[2]) - value) < tolerance


def check(row: Row) -> bool:
    """Return whether all numbers of a row fit."""
    counts = count(row)
    base = count(row.base) if row.base is not None else Counts(0, 0, 0)
    pairs = (
        (row.parameters, counts.parameters, base.parameters),
        (row.multiply_adds, counts.authors, base.authors),
    )
    return all(fits(printed, value, start) for printed, value, start in pairs if printed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=list(METHODS), help="(default: all)")
    arguments = parser.parse_args()
    for method in [arguments.method] if arguments.method else METHODS:
        table = ""
        for row in METHODS[method]():
            if row.table != table:
                table = row.table
                print(f"\n{method}, {table}")
                print(f"  {'':18}{'parameters':>11} {'paper':>7}{'authors':>14} {'paper':>7}{'true':>10}")
            counts = count(row)
            mark = "" if check(row) else f"  does not fit: {row.misfit or 'not known why'}"
            print(
                f"  {row.name:18}{counts.parameters:10.3f}M {row.parameters or '-':>7}{counts.authors:13.3f}G "
                f"{row.multiply_adds or '-':>7}{counts.true:9.2f}G{mark}"
            )


if __name__ == "__main__":
    main()
