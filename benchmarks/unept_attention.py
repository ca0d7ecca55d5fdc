# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Peak training memory and time of UN-EPT with each form of self-attention in its decoder, and how they grow with the image.

    python benchmarks/unept_attention.py [--threads 2] [--repeats 3] [--device cpu] [--output benchmarks/results]

A step is forward and backward with labels and ready-made boundary targets: one image, float32, random weights, dropout on.

- *model*: DeiT-B, 150 classes, 480x480, with `sparse`, `dense` and `across_batch` self-attention. `dense` goes through torch's
  scaled dot-product attention, whose form for CPUs holds the attention matrix where there is dropout, and through eager
  attention, which holds it everywhere.
- *scaling*: the context branch alone (its encoder over three levels at 1/16, its decoder over queries at 1/8), since the
  backbone's attention is quadratic in pixels whatever the decoder does; images of 256 to 1024 pixels a side (`dense`: to
  640, where it still fits). An exponent
  of 1 means that a quantity grows linearly in pixels; it is the slope from 512 pixels a side on, in logarithms.

The operation runs through `grid_sample`; `--kernel` lets a compiled one take its place where there is one. Each measurement is
made in a process of its own. Peak memory is over what is held before the step (model and input): on CUDA what
torch allocated, on CPUs (Linux only) what the process occupied. With `--output`, a plot of the scaling is drawn as SVG.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from segment_image import commit, peak_memory_over_start, processor_name
from torch import nn

from hf_segmodels import UNEPTConfig, UNEPTForSemanticSegmentation
from hf_segmodels.sparse_attention.kernels import ENVIRONMENT_VARIABLE
from hf_segmodels.unept.context_branch import UNEPTDecoder, UNEPTEncoder


FORMS = ("sparse", "dense", "dense, eager", "across_batch")
SIDES = (256, 384, 512, 640, 768, 896, 1024)
# `dense` holds attention matrices that grow with the square of the pixels: at 768 a step took over 20 GiB on a CPU
LARGEST_DENSE_SIDE = 640


def config(form: str) -> UNEPTConfig:
    name, _, implementation = form.partition(", ")
    fields = {"attn_implementation": implementation} if implementation else {}
    return UNEPTConfig(decoder_self_attention=name, **fields)


def model_step(form: str, device: torch.device) -> Callable[[], torch.Tensor]:
    """One training step's loss at 480x480."""
    model = UNEPTForSemanticSegmentation._from_config(config(form)).to(device).train()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, 480, 480, generator=generator)
    labels = torch.randint(0, 150, (1, 480, 480), generator=generator)
    targets = {
        "labels": labels,
        "distance_maps": torch.randint(0, 20, labels.shape, generator=generator),
        "angle_maps": torch.randint(-180, 180, labels.shape, generator=generator),
    }
    inputs = {name: tensor.to(device) for name, tensor in {"pixel_values": images, **targets}.items()}
    return lambda: model(**inputs).loss


def context_step(form: str, side: int, device: torch.device) -> Callable[[], torch.Tensor]:
    """The context branch's outputs, summed, for an image of `side` x `side`."""
    settings = config(form)
    # what a model sets from `attn_implementation`
    settings._attn_implementation = settings._attn_implementation or "sdpa"
    branch = nn.ModuleDict({"encoder": UNEPTEncoder(settings, 3), "decoder": UNEPTDecoder(settings, 3)})
    branch = branch.to(device).train()
    generator = torch.Generator().manual_seed(0)
    width = settings.hidden_size
    pyramid = [torch.randn(1, width, side // 16, side // 16, generator=generator).to(device) for _ in range(3)]
    context = torch.randn(1, width, side // 8, side // 8, generator=generator).to(device)
    return lambda: branch["decoder"](context, *branch["encoder"](pyramid)).sum()


def measure(form: str, side: int | None, repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of a step and its peak memory in bytes, of the whole model or (given a side) the context branch."""
    torch.manual_seed(0)
    loss_of_step = model_step(form, device) if side is None else context_step(form, side, device)

    def step() -> None:
        loss_of_step().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    # of the first one: later ones find memory that torch or the system keeps
    peak = peak_memory_over_start(step, device)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds), "bytes": peak}


def measure_apart(form: str, side: int | None, arguments: argparse.Namespace) -> dict[str, float]:
    """[`measure`] in a process of its own."""
    command = [sys.executable, __file__, "--measure", form, "--device", arguments.device]
    command += ["--threads", str(arguments.threads), "--repeats", str(arguments.repeats)]
    command += [] if side is None else ["--side", str(side)]
    environment = dict(os.environ) if arguments.kernel else {**os.environ, ENVIRONMENT_VARIABLE: "reference"}
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if process.returncode != 0:
        sys.exit(f"{form}{'' if side is None else f' at {side} pixels'} failed:\n{process.stderr[-2000:]}")
    return json.loads(process.stdout.splitlines()[-1])


def exponent(measurements: dict[int, dict[str, float]], name: str) -> float:
    """Slope of a measurement over pixels, in logarithms, by least squares over sides of 512 and more."""
    points = [
        (math.log(side * side), math.log(measured[name])) for side, measured in measurements.items() if side >= 512
    ]
    if len(points) < 2:
        return math.nan
    x_mean, y_mean = (statistics.mean(values) for values in zip(*points, strict=True))
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)


def plot(scaling: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    """Draws time and memory over pixels a side, both axes logarithmic, with the line of linear growth."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.5))
    for panel, (name, label, unit) in zip(
        panels, (("seconds", "time of a step, s", 1), ("bytes", "peak memory, GiB", 2**30)), strict=True
    ):
        for form, measured in scaling.items():
            panel.loglog(measured.keys(), [values[name] / unit for values in measured.values()], "o-", label=form)
        sides = list(scaling["sparse"])
        start = scaling["sparse"][sides[-1]][name] / unit
        linear = [start * (side / sides[-1]) ** 2 for side in sides]
        panel.loglog(sides, linear, "k:", linewidth=1, label="linear in pixels")
        panel.set(xlabel="pixels a side", ylabel=label)
        panel.set_xticks(sides, sides)
        panel.minorticks_off()
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sides", type=int, nargs="*", default=list(SIDES), help="of the scaling; none skips it")
    parser.add_argument("--output", type=Path, help="folder for the results file (default: results are only printed)")
    parser.add_argument("--kernel", action="store_true", help="use a compiled kernel if there is one")
    parser.add_argument("--measure", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.side, arguments.repeats, device)))
        return

    at_480 = {}
    for form in FORMS:
        at_480[form] = measure_apart(form, None, arguments)
        print(f"model at 480x480, {form}: {at_480[form]['bytes'] / 2**30:.2f} GiB, {at_480[form]['seconds']:.2f} s")
    scaling: dict[str, dict[int, dict[str, float]]] = {}
    exponents: dict[str, dict[str, float]] = {}
    for form in ("sparse", "dense", "across_batch") if arguments.sides else ():
        sides = [side for side in arguments.sides if form != "dense" or side <= LARGEST_DENSE_SIDE]
        scaling[form] = {side: measure_apart(form, side, arguments) for side in sides}
        for side, measured in scaling[form].items():
            print(f"context branch, {form}, {side}: {measured['bytes'] / 2**30:.2f} GiB, {measured['seconds']:.2f} s")
        exponents[form] = {name: exponent(scaling[form], name) for name in ("seconds", "bytes")}
        print(f"context branch, {form}: grows with pixels to the power of {exponents[form]}")
    if arguments.output is not None:
        results: dict[str, Any] = {
            "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
            "threads": arguments.threads,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "commit": commit(),
            "operation": "kernel if there is one" if arguments.kernel else "grid_sample",
            "model at 480x480": at_480,
            "context branch": scaling,
            "exponents": exponents,
        }
        arguments.output.mkdir(parents=True, exist_ok=True)
        path = arguments.output / f"unept_attention_{device.type}.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"wrote {path}")
        if scaling:
            plot(scaling, path.with_suffix(".svg"))
            print(f"wrote {path.with_suffix('.svg')}")


if __name__ == "__main__":
    main()
