# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Compares the four methods with transformers' own models of like size: images per second, peak memory, parameters, multiply-adds.

    python benchmarks/compare_models.py [--scale small base] [--modes eager sdpa compile bf16] [--only NAME ...]
        [--size 512] [--repeats 3] [--threads 2] [--device cpu] [--output benchmarks/results] [--page docs]

A measurement goes from an RGB image in memory to its label map, of the image's size: image processor, network, labels; one
image, 150 classes, random weights (seed 0). Each model takes its own documented way: ours `predict`, those of transformers
`forward` and the image processor's `post_process_semantic_segmentation`, which ours takes too where it is compiled, since
`predict` is not. Modes:

- *eager*, *sdpa*: the implementation of attention, in float32; a model without the second keeps its own attention there.
- *compile*: `torch.compile` with its defaults, float32, sdpa. Compilation time is not included.
- *bf16*: model and images in bfloat16, sdpa.

Before anything is timed, label maps of one model in `eager`, `sdpa` and `compile` have to agree in all but 0.1 % of the pixels
(weights are random, so scores are close to each other); that of `bf16` is only stated, as the share of pixels with the same
label as in `sdpa`. All models and modes of a scale are then timed in turns, one call each, and medians are given. Peak memory
is that of a process of its own for each measurement, over what it holds once the model is there; a compiled model has run once
before. Multiply-adds are those of all matrix products and convolutions (`params_flops.py`: "true"), attention included, whatever
samples points left out.

Accuracy is not measured: weights are random. `--output` writes compare_models_DEVICE.json, in which a run replaces the scales that
it measured, and `--page` writes the tables and plots of all such files as benchmarks.md. Run it on a quiet machine.
"""

import argparse
import copy
import json
import multiprocessing
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from segment_image import REPOSITORY, commit, interleaved, peak_memory_over_start, processor_name
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DPTConfig,
    DPTForSemanticSegmentation,
    DPTImageProcessor,
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from hf_segmodels import (
    PlainViTConfig,
    RegProxyConfig,
    RegProxyForSemanticSegmentation,
    RegProxyImageProcessor,
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    SegmenterImageProcessor,
    SegViTConfig,
    SegViTForSemanticSegmentation,
    SegViTImageProcessor,
    UNEPTConfig,
    UNEPTForSemanticSegmentation,
    UNEPTImageProcessor,
)


NUM_LABELS = 150
MODES = ("eager", "sdpa", "compile", "bf16")
MODE_NAMES = {"eager": "eager", "sdpa": "sdpa", "compile": "compiled", "bf16": "bfloat16"}
# width, layers and heads of plain ViTs; `tiny` is for trying the script
VITS = {"tiny": (32, 4, 2), "small": (384, 12, 6), "base": (768, 12, 12)}
SWINS = {
    "tiny": (16, [1, 1, 1, 1], [1, 1, 2, 2], 4),
    "small": (96, [2, 2, 6, 2], [3, 6, 12, 24], 7),
    "base": (128, [2, 2, 18, 2], [4, 8, 16, 32], 12),
}
SCALES = tuple(VITS)
DEFAULT_MODES = {"base": ("sdpa", "bf16")}
AGREEMENT = 0.999


def plain_vit(scale: str, size: int, **fields: Any) -> PlainViTConfig:
    width, num_layers, num_heads = VITS[scale]
    return PlainViTConfig(
        hidden_size=width, num_hidden_layers=num_layers, num_attention_heads=num_heads, image_size=size, **fields
    )


def swin(scale: str, size: int) -> SwinConfig:
    width, depths, num_heads, window = SWINS[scale]
    stages = [f"stage{index}" for index in range(1, 5)]
    return SwinConfig(
        image_size=size,
        embed_dim=width,
        depths=depths,
        num_heads=num_heads,
        window_size=window,
        out_features=stages,
    )


def segmenter(scale: str, size: int) -> SegmenterForSemanticSegmentation:
    encoder = plain_vit(scale, size, layer_norm_eps=1e-5, position_embedding_interpolation="bilinear")
    return SegmenterForSemanticSegmentation(SegmenterConfig(backbone_config=encoder, num_labels=NUM_LABELS))


def segvit(scale: str, size: int) -> SegViTForSemanticSegmentation:
    width, num_layers, num_heads = VITS[scale]
    taps = [6, 8, 12] if num_layers == 12 else [1, 2, 4]
    encoder = plain_vit(scale, size, use_cls_token=False, final_norm="none", out_indices=taps)
    config = SegViTConfig(
        backbone_config=encoder,
        decoder_hidden_size=width // 2,
        decoder_num_attention_heads=num_heads,
        num_labels=NUM_LABELS,
    )
    return SegViTForSemanticSegmentation(config)


def regproxy(scale: str, size: int) -> RegProxyForSemanticSegmentation:
    encoder = plain_vit(scale, size, use_distillation_token=scale == "base")
    depth = 5 if scale != "tiny" else 1
    return RegProxyForSemanticSegmentation(
        RegProxyConfig(backbone_config=encoder, token_head_depth=depth, num_labels=NUM_LABELS)
    )


def unept(scale: str, size: int) -> UNEPTForSemanticSegmentation:
    fields: dict[str, Any] = {}
    if scale == "tiny":
        fields = {"hidden_size": 32, "intermediate_size": 64, "num_points": 4, "spatial_hidden_sizes": (8, 16)}
    num_layers = VITS[scale][1]
    encoder = plain_vit(
        scale,
        size,
        use_distillation_token=scale == "base",
        final_norm="none",
        out_indices=[num_layers // 3, 2 * num_layers // 3, num_layers],
    )
    return UNEPTForSemanticSegmentation(
        UNEPTConfig(backbone_config=encoder, image_size=size, num_labels=NUM_LABELS, **fields)
    )


def segformer(scale: str, size: int) -> SegformerForSemanticSegmentation:
    depths = {"tiny": [1, 1, 1, 1], "small": [3, 4, 6, 3], "base": [3, 6, 40, 3]}[scale]
    widths, decoder_width = ([16, 16, 16, 16], 16) if scale == "tiny" else ([64, 128, 320, 512], 768)
    heads = [1, 1, 2, 2] if scale == "tiny" else [1, 2, 5, 8]
    config = SegformerConfig(
        depths=depths,
        hidden_sizes=widths,
        num_attention_heads=heads,
        decoder_hidden_size=decoder_width,
        num_labels=NUM_LABELS,
    )
    return SegformerForSemanticSegmentation(config)


def dpt(scale: str, size: int) -> DPTForSemanticSegmentation:
    width, num_layers, num_heads = VITS[scale]
    config = DPTConfig(
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=4 * width,
        image_size=size,
        backbone_out_indices=[2, 5, 8, 11] if num_layers == 12 else [0, 1, 2, 3],
        neck_hidden_sizes=[width // 8, width // 4, width // 2, width],
        fusion_hidden_size={"tiny": 16, "small": 64, "base": 256}[scale],
        num_labels=NUM_LABELS,
    )
    return DPTForSemanticSegmentation(config)


def upernet(scale: str, size: int) -> UperNetForSemanticSegmentation:
    encoder = swin(scale, size)
    config = UperNetConfig(
        backbone_config=encoder,
        hidden_size=16 if scale == "tiny" else 512,
        auxiliary_in_channels=4 * encoder.embed_dim,
        num_labels=NUM_LABELS,
    )
    return UperNetForSemanticSegmentation(config)


def eomt(scale: str, size: int) -> EomtForUniversalSegmentation:
    width, num_layers, num_heads = VITS[scale]
    config = EomtConfig(
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        image_size=size,
        num_blocks=3 if num_layers == 12 else 1,
        num_queries=100,
        num_labels=NUM_LABELS,
    )
    return EomtForUniversalSegmentation(config)


def mask2former(scale: str, size: int) -> Mask2FormerForUniversalSegmentation:
    fields: dict[str, Any] = {}
    if scale == "tiny":
        fields = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 64}
        fields |= {"dim_feedforward": 64, "encoder_layers": 1, "decoder_layers": 2}
    config = Mask2FormerConfig(backbone_config=swin(scale, size), num_labels=NUM_LABELS, **fields)
    return Mask2FormerForUniversalSegmentation(config)


def shorter_edge(processor_class: type[BaseImageProcessor], **fields: Any) -> Callable[[int], BaseImageProcessor]:
    """An image processor that brings the shorter edge to a size, and whose labels are those in the files."""
    return lambda size: processor_class(size={"shortest_edge": size, "longest_edge": 4 * size}, **fields)


def both_edges(processor_class: type[BaseImageProcessor], **fields: Any) -> Callable[[int], BaseImageProcessor]:
    return lambda size: processor_class(size={"height": size, "width": size}, **fields)


def eomt_processor(size: int) -> EomtImageProcessor:
    """That of its models for ADE20K, which cuts an image into squares of the shorter edge."""
    return EomtImageProcessor(size={"shortest_edge": size, "longest_edge": None}, do_split_image=True)


@dataclass(frozen=True)
class Family:
    """
    A method in several sizes.

    Args:
        build (`Callable`): Scale and side of the image in pixels -> the model.
        processor (`Callable`): Side of the image in pixels -> its image processor.
        variants (`tuple[str, str]`): What its small and its base model are called.
        is_ours (`bool`): Whether it has `predict`.
    """

    build: Callable[[str, int], PreTrainedModel]
    processor: Callable[[int], BaseImageProcessor]
    variants: tuple[str, str] = ("S/16", "B/16")
    is_ours: bool = False


FAMILIES = {
    "Segmenter": Family(segmenter, shorter_edge(SegmenterImageProcessor), is_ours=True),
    "SegViT": Family(segvit, shorter_edge(SegViTImageProcessor), is_ours=True),
    "RegProxy": Family(regproxy, shorter_edge(RegProxyImageProcessor), is_ours=True),
    "UN-EPT": Family(unept, shorter_edge(UNEPTImageProcessor), is_ours=True),
    "SegFormer": Family(segformer, both_edges(SegformerImageProcessor), ("B2", "B5")),
    "DPT": Family(dpt, both_edges(DPTImageProcessor)),
    "UperNet": Family(upernet, both_edges(SegformerImageProcessor), ("Swin-T", "Swin-B")),
    "EoMT": Family(eomt, eomt_processor),
    "Mask2Former": Family(mask2former, shorter_edge(Mask2FormerImageProcessor), ("Swin-T", "Swin-B")),
}


def model_name(family: str, scale: str) -> str:
    """Such as `"Segmenter-S/16"`."""
    variants = dict(zip(("small", "base"), FAMILIES[family].variants, strict=True))
    return f"{family}-{variants.get(scale, scale)}"


def names(scales: Iterable[str], only: Iterable[str] | None = None) -> dict[str, tuple[str, str]]:
    """
    The models to measure: name -> family and scale.

    Args:
        scales (`Iterable[str]`): Of `SCALES`.
        only (`Iterable[str]`, *optional*): Names of models (`"Segmenter-S/16"`) or of families (`"Segmenter"`).

    Raises:
        ValueError: for a name that none of the models has.
    """
    known = {model_name(family, scale): (family, scale) for scale in SCALES for family in FAMILIES}
    unknown = [name for name in only or () if name not in known and name not in FAMILIES]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join([*FAMILIES, *known])}.")
    return {
        name: (family, scale)
        for name, (family, scale) in known.items()
        if scale in scales and (only is None or name in only or family in only)
    }


def picture(size: int) -> Image.Image:
    """An image of smooth colors."""
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def build(family: str, scale: str, size: int, device: torch.device) -> PreTrainedModel:
    """A model in eval mode with fixed random weights."""
    torch.manual_seed(0)
    return FAMILIES[family].build(scale, size).to(device).eval()


@dataclass(frozen=True)
class Way:
    """
    A model in one of the modes, and what is measured of it.

    Args:
        family (`str`): Of [`FAMILIES`].
        model (`PreTrainedModel`): As [`build`] gives it; float32 modes share its weights.
        mode (`str`): Of [`MODES`].
        size (`int`): Side of the picture in pixels.
    """

    family: str
    model: Any
    mode: str
    size: int

    @classmethod
    def of(cls, family: str, model: PreTrainedModel, mode: str, size: int) -> "Way":
        if mode == "bf16":
            return cls(family, copy.deepcopy(model).to(torch.bfloat16), mode, size)
        if mode == "compile":
            return cls(family, torch.compile(model), mode, size)
        if mode == "eager":
            tensors = [*model.parameters(), *model.buffers()]
            model = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
            model.set_attn_implementation("eager")
        return cls(family, model, mode, size)

    def inputs(self) -> BatchFeature:
        """The picture as the image processor gives it."""
        parameter = next(self.model.parameters())
        images = self.processor(picture(self.size), return_tensors="pt")
        return images.to(parameter.device, parameter.dtype)

    @cached_property
    def processor(self) -> BaseImageProcessor:
        return FAMILIES[self.family].processor(self.size)

    def scores(self) -> list[torch.Tensor]:
        """All scores that `forward` gives."""
        return [value for value in self.model(**self.inputs()).values() if isinstance(value, torch.Tensor)]

    def __call__(self) -> torch.Tensor:
        """The picture's label map `(size, size)`, int64."""
        inputs, sizes = self.inputs(), [(self.size, self.size)]
        if FAMILIES[self.family].is_ours and self.mode != "compile":
            return self.model.predict(inputs["pixel_values"], target_sizes=sizes)[0]
        return self.processor.post_process_semantic_segmentation(self.model(**inputs), target_sizes=sizes)[0]


def agreement(found: Iterable[torch.Tensor], expected: Iterable[torch.Tensor]) -> float:
    """Smallest share of a tensor's elements that differ by no more than 1e-3 of its largest one."""
    shares = [1.0]
    for one, other in zip(found, expected, strict=True):
        shares.append(float(((one - other).abs() <= 1e-3 * other.abs().amax()).float().mean()))
    return min(shares)


@torch.inference_mode()
def peak_memory(family: str, scale: str, mode: str, size: int, device_name: str, threads: int) -> int:
    """Bytes, in the process that calls it; see [`peak_memory_over_start`]."""
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    way = Way.of(family, build(family, scale, size, device), mode, size)
    if mode == "compile":
        way()
    return peak_memory_over_start(way, device)


def peak_memory_apart(*arguments: Any) -> int:
    """[`peak_memory`] in a process of its own, forked off one that has everything imported and has computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module for module in sys.modules if ".modeling_" in module])
    with context.Pool(1) as pool:
        return pool.apply(peak_memory, arguments)


def command(name: str, scale: str, mode: str, arguments: argparse.Namespace) -> str:
    """What repeats one measurement."""
    parts = ["python", "benchmarks/compare_models.py", "--only", name, "--scale", scale, "--modes", mode]
    parts += ["--size", arguments.size, "--repeats", arguments.repeats, "--threads", arguments.threads]
    return shlex.join(map(str, [*parts, "--device", arguments.device]))


@torch.inference_mode()
def measure(scale: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all models and modes of a scale."""
    device, size = torch.device(arguments.device), arguments.size
    ways: dict[tuple[str, str], Way] = {}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for name, (family, _) in names([scale], arguments.only).items():
        reference = Way.of(family, build(family, scale, size, device), "sdpa", size)
        labels, scores = reference(), reference.scores()
        counts = {"parameters": reference.model.num_parameters(), "multiply_adds": multiply_adds(reference)}
        for mode in arguments.modes or DEFAULT_MODES.get(scale, MODES):
            way = reference if mode == "sdpa" else Way.of(family, reference.model, mode, size)
            ways[name, mode] = way
            same_labels = 1.0 if mode == "sdpa" else float((way() == labels).float().mean())
            print(f"{name}, {mode}: {same_labels:.3%} of the labels are those of sdpa", flush=True)
            if mode in ("eager", "compile") and min(same_labels, agreement(way.scores(), scores)) < AGREEMENT:
                sys.exit(f"{name}: mode {mode} does not give what sdpa gives, so nothing was timed.")
            rows[name, mode] = {
                "model": name,
                "mode": mode,
                "is_ours": FAMILIES[family].is_ours,
                **counts,
                "labels_as_in_sdpa": same_labels,
                "classes": len(labels.unique()),
                "command": command(name, scale, mode, arguments),
            }
    for key, seconds in interleaved(ways, arguments.repeats, device, is_warm=True).items():
        rows[key] |= {"seconds": seconds, "images_per_second": 1 / seconds}
    can_measure_memory = device.type == "cuda" or Path("/proc/self/clear_refs").exists()
    for (name, mode), row in rows.items():
        place = (ways[name, mode].family, scale, mode, size, arguments.device, arguments.threads)
        row["peak_bytes"] = peak_memory_apart(*place) if can_measure_memory else None
        memory = f", {row['peak_bytes'] / 2**20:.0f} MiB" if can_measure_memory else ""
        print(f"{name}, {mode}: {row['images_per_second']:.2f} images/s{memory}", flush=True)
    return {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "threads": arguments.threads,
        "size": size,
        "repeats": arguments.repeats,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "commit": commit(),
        "rows": list(rows.values()),
    }


def multiply_adds(way: Way) -> int:
    """Of `forward` with eager attention: all matrix products and convolutions."""
    eager = Way.of(way.family, way.model, "eager", way.size)
    with FlopCounterMode(display=False) as counter:
        eager.scores()
    return counter.get_total_flops() // 2


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown lines: a line for each model, its modes side by side."""
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in rows)]
    speed = [f"images/s, {MODE_NAMES[mode]}" for mode in modes]
    memory = [f"MiB, {MODE_NAMES[mode]}" for mode in modes]
    heads = [
        "model",
        "parameters, M",
        "multiply-adds, G",
        *speed,
        *memory,
        "bfloat16 labels as in float32",
        "repeat with",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in dict.fromkeys(row["model"] for row in rows):
        found = {row["mode"]: row for row in rows if row["model"] == name}
        first = next(iter(found.values()))
        cells = [f"**{name}**" if first["is_ours"] else name]
        cells += [f"{first['parameters'] / 1e6:.1f}", f"{first['multiply_adds'] / 1e9:.1f}"]
        cells += [f"{found[mode]['images_per_second']:.2f}" if mode in found else "" for mode in modes]
        peaks = [found[mode]["peak_bytes"] if mode in found else None for mode in modes]
        cells += ["" if peak is None else f"{peak / 2**20:.0f}" for peak in peaks]
        # one class in the whole picture says nothing about how exact a model is
        is_telling = "bf16" in found and first["classes"] > 1
        cells.append(f"{100 * found['bf16']['labels_as_in_sdpa']:.1f} %" if is_telling else "")
        cells.append(f"`{_without_mode(first['command'])}`")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _without_mode(words: str) -> str:
    """A command that measures one mode -> the one that measures all of them."""
    parts = shlex.split(words)
    place = parts.index("--modes")
    return shlex.join(parts[:place] + parts[place + 2 :])


def page(results: dict[str, dict[str, Any]]) -> str:
    """
    The page of the tables.

    Args:
        results (`dict`): Kind of device (`"cpu"`, `"cuda"`) -> content of its results file.
    """
    lines = [
        "# Comparison of models",
        "",
        "Written by `python benchmarks/compare_models.py --page docs` from `benchmarks/results/compare_models_*.json`; the",
        "script's head says what exactly is measured. From an image in memory to its label map of the same size, one image at a",
        f"time, {NUM_LABELS} classes, random weights: speed and memory depend on them little, **accuracy is not measured**. The",
        "methods of this package are in bold; the others are models of transformers of about the same size. All rows of a table",
        "were timed in turns in one run. Peak memory is over what the process holds with the model loaded; compilation is not in",
        "the numbers.",
    ]
    if not results:
        lines += ["", "**No results have been measured yet.**"]
    for device, scales in results.items():
        for scale, measured in scales.items():
            versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
            threads = f", {measured['threads']} threads" if device == "cpu" else ""
            lines += ["", f"## {device.upper()}, {scale} models at {measured['size']}x{measured['size']}", ""]
            lines += [f"{measured['machine']}{threads}; {versions}; medians of {measured['repeats']}; commit "]
            lines[-1] += f"`{measured['commit'][:12]}`."
            lines += ["", *table(measured["rows"])]
        lines += ["", f"![Multiply-adds over images per second]({figure_name(device)})", ""]
        lines += ["Multiply-adds over images per second in `sdpa`; the area of a circle is the number of parameters."]
    return "\n".join(lines) + "\n"


def figure_name(device: str) -> str:
    return f"compare_models_{device}.svg"


def plot(scales: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws multiply-adds over images per second, areas as parameters, after Figure 2 of RegProxy's paper."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    matplotlib.rcParams["svg.hashsalt"] = "compare_models"  # the same numbers give the same file
    figure = Figure(figsize=(9, 6), layout="constrained")
    panel = figure.subplots()
    rows = [row for measured in scales.values() for row in measured["rows"] if row["mode"] == "sdpa"]
    for row in rows:
        place = row["images_per_second"], row["multiply_adds"] / 1e9
        color = "tab:blue" if row["is_ours"] else "tab:gray"
        panel.scatter(*place, s=row["parameters"] / 1e5, color=color, alpha=0.4)
        panel.annotate(row["model"], place, ha="center", va="center", fontsize=7)
    panel.set(xscale="log", yscale="log", xlabel="images per second", ylabel="multiply-adds, billions")
    panel.margins(0.15)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    for color, text in (("tab:blue", "hf_segmodels"), ("tab:gray", "transformers")):
        panel.scatter([], [], s=60, color=color, alpha=0.4, label=text)
    panel.legend()
    figure.savefig(path, metadata={"Date": None})


def write_page(results_folder: Path, folder: Path) -> None:
    """Writes the page and its plots from all results files in a folder."""
    files = sorted(results_folder.glob("compare_models_*.json"))
    results = {file.stem.removeprefix("compare_models_"): json.loads(file.read_text()) for file in files}
    folder.mkdir(parents=True, exist_ok=True)
    for device, scales in results.items():
        plot(scales, folder / figure_name(device))
    (folder / "benchmarks.md").write_text(page(results))
    print(f"wrote {folder / 'benchmarks.md'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scale",
        dest="scales",
        nargs="*",
        choices=SCALES,
        default=["small", "base"],
        help="tiny: for trying the script; none measures nothing, for --page alone (default: small base)",
    )
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, help="(default: all of them, sdpa and bf16 at the scale base)"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="models (Segmenter-S/16) or families (Segmenter)")
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels (default: 512)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="folder for the results file (default: results are only printed)")
    parser.add_argument("--page", type=Path, help="folder for the page of what lies in benchmarks/results or --output")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    if arguments.size < 32 or arguments.size % 32:
        parser.error("--size must be a multiple of 32, the models' coarsest stride")
    try:
        names(arguments.scales, arguments.only)
    except ValueError as error:
        parser.error(f"--only: {error}")
    torch.set_num_threads(arguments.threads)
    results = {scale: measure(scale, arguments) for scale in arguments.scales if names([scale], arguments.only)}
    if arguments.output is not None and results:
        arguments.output.mkdir(parents=True, exist_ok=True)
        path = arguments.output / f"compare_models_{torch.device(arguments.device).type}.json"
        earlier = json.loads(path.read_text()) if path.exists() else {}
        merged = earlier | results
        path.write_text(json.dumps({scale: merged[scale] for scale in SCALES if scale in merged}, indent=1) + "\n")
        print(f"wrote {path}")
    if arguments.page is not None:
        write_page(arguments.output or REPOSITORY / "benchmarks" / "results", arguments.page)


if __name__ == "__main__":
    main()
