# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Times the sparse attention kernel against grid_sample at every size of UN-EPT, after checking that outputs and the three
gradients agree, and UN-EPT with its ResNet-50 as a whole.

    python benchmarks/sparse_attention.py [--threads 2] [--repeats 9] [--device cpu] [--output benchmarks/results]

Sizes are those of the crop of 480 that the paper trains with, and of 512: 8 heads of 32 channels, 16 points on each of
three levels; encoder queries are all cells of the levels, decoder queries every eighth pixel, and the decoder's
self-attention samples its own queries, one level. Points lie around their query as the layer starts, up to 16 cells
away, with noise. The kernel is the local build for this machine; it is built first where that has not been done.
Where the package torch-ms-deform-attn is installed (Deformable DETR's kernel, also for CPUs), it is timed as well.

Run it on a quiet machine. Ways are timed in turns, one call each, and medians are compared; each size in a process of its
own, since `grid_sample` is up to three times faster on memory that earlier sizes left to the process. Extra peak memory is
that of forward and backward together over inputs and their process, on a CPU in a process of its own for each way (Linux only).
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from segment_image import REPOSITORY, commit, interleaved, peak_memory_over_start, processor_name

from hf_segmodels import ResNetV1cConfig, UNEPTConfig, UNEPTForSemanticSegmentation
from hf_segmodels.sparse_attention import SparseAttention, reference_points, sparse_attention_reference
from hf_segmodels.sparse_attention import kernels as kernel_choice


HEADS, HEAD_DIM, POINTS = 8, 32, 16
COMPARATOR = "torch-ms-deform-attn"
# side of a level, levels, side of the grid of queries (None: all cells of all levels)
SIZES: dict[str, tuple[int, int, int | None]] = {
    "DeiT encoder, 480": (30, 3, None),
    "DeiT decoder, 480": (30, 3, 60),
    "DeiT encoder, 512": (32, 3, None),
    "DeiT decoder, 512": (32, 3, 64),
    "ResNet-50 encoder, 480": (60, 3, None),
    "ResNet-50 decoder, 480": (60, 3, 60),
    "decoder self-attention, 480": (60, 1, 60),
    "ResNet-50 encoder, 512": (64, 3, None),
    "ResNet-50 decoder, 512": (64, 3, 64),
    "decoder self-attention, 512": (64, 1, 64),
}


def build_kernel(device: torch.device) -> Path:
    """The variant that a local build makes for the device, in `.cache/`."""
    path = REPOSITORY / "hub_kernels" / "sparse-attention" / "tools" / "build_local.py"
    spec = importlib.util.spec_from_file_location("build_local", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_local"] = module
    spec.loader.exec_module(module)
    return module.build(device.type, output=REPOSITORY / ".cache" / "sparse-attention")


def load_kernel(variant: Path) -> ModuleType:
    from kernels import get_local_kernel

    return get_local_kernel(variant)


def load_comparator() -> Callable | None:
    """The operation of the package torch-ms-deform-attn, `None` where that is not installed."""
    try:
        from torch_ms_deform_attn import ms_deform_attn
    except ImportError:
        return None

    @functools.cache
    def sides_and_starts(shapes: tuple[tuple[int, int], ...], device: torch.device) -> list[torch.Tensor]:
        sides = torch.tensor(shapes)
        areas = sides.prod(dim=1)
        return [sides.to(device), (areas.cumsum(0) - areas).to(device)]

    def comparator(value, shapes, locations, weights):
        return ms_deform_attn(value, *sides_and_starts(tuple(shapes), value.device), locations, weights)

    return comparator


def arguments(
    side: int, num_levels: int, query_side: int | None, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[list[torch.Tensor], list[tuple[int, int]], torch.Tensor]:
    """Values, locations and weights that require gradients, the levels' shapes, and a gradient of the output."""
    torch.manual_seed(0)
    shapes = [(side, side)] * num_levels
    grids = [query_side] if query_side else [side] * num_levels
    points = torch.cat([reference_points(grid, grid) for grid in grids])
    layer = SparseAttention(HEADS * HEAD_DIM, HEADS, num_levels, POINTS)
    queries = torch.randn(1, len(points), HEADS * HEAD_DIM)
    for projection in (layer.sampling_offsets, layer.attention_weights):
        torch.nn.init.normal_(projection.weight, std=0.05)
    with torch.no_grad():
        locations, weights = layer.sample(queries, points, shapes)
    value = torch.randn(1, num_levels * side * side, HEADS, HEAD_DIM)
    inputs = [value.to(device, dtype), locations.to(device), weights.to(device)]
    gradient = torch.randn(1, len(points), HEADS * HEAD_DIM).to(device, dtype)
    return [tensor.requires_grad_() for tensor in inputs], shapes, gradient


def forward(function: Callable, inputs: list[torch.Tensor], shapes: list[tuple[int, int]]) -> torch.Tensor:
    with torch.no_grad():
        return function(inputs[0], shapes, *inputs[1:])


def forward_backward(
    function: Callable, inputs: list[torch.Tensor], shapes: list[tuple[int, int]], gradient: torch.Tensor
) -> list[torch.Tensor]:
    with torch.enable_grad():
        output = function(inputs[0], shapes, *inputs[1:])
        return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]


def check_equal(name: str, found: list[torch.Tensor], expected: list[torch.Tensor], locations: torch.Tensor) -> float:
    """Exits where an output or a gradient differs by more than rounding; returns the largest relative RMS difference."""
    position = locations.detach().double() * SIZES[name][0] - 0.5
    # at a cell's center the slope changes, and rounding chooses a side
    is_smooth = (position - position.round()).abs() > 1e-4
    worst = 0.0
    for part, one, other in zip(("output", "value", "locations", "weights"), found, expected, strict=True):
        error = one.double() - other.double()
        if part == "locations":
            error = error[is_smooth.all(-1)]
        difference = (error.square().mean() / other.double().square().mean()).sqrt().item()
        if not difference < 1e-5:
            sys.exit(f"{name}: {part} differs by {difference:.1e}")
        worst = max(worst, difference)
    return worst


def time_size(name: str, kernel: ModuleType, repeats: int, device: torch.device) -> dict[str, Any]:
    inputs, shapes, gradient = arguments(*SIZES[name], device)
    halves, _, half_gradient = arguments(*SIZES[name], device, torch.bfloat16)
    ours, plain = kernel.sparse_attention, sparse_attention_reference
    difference = check_equal(
        name,
        forward_backward(ours, inputs, shapes, gradient),
        forward_backward(plain, inputs, shapes, gradient),
        inputs[1],
    )
    others: dict[str, Callable] = {"grid_sample": plain}
    comparator = load_comparator()
    if comparator is not None:
        found = forward_backward(comparator, inputs, shapes, gradient)
        check_equal(name, found, forward_backward(plain, inputs, shapes, gradient), inputs[1])
        others[COMPARATOR] = comparator
    ways: dict[str, Callable] = {}
    for way, function in (*others.items(), ("kernel", ours)):
        ways[f"{way} forward"] = functools.partial(forward, function, inputs, shapes)
        ways[f"{way} forward and backward"] = functools.partial(forward_backward, function, inputs, shapes, gradient)
    ways["kernel forward, bfloat16"] = lambda: forward(ours, halves, shapes)
    ways["kernel forward and backward, bfloat16"] = lambda: forward_backward(ours, halves, shapes, half_gradient)
    seconds = interleaved(ways, repeats, device)
    result: dict[str, Any] = {
        "largest relative difference": difference,
        "seconds": seconds,
        "ratios": {
            f"{step}, {other} over kernel": seconds[f"{other} {step}"] / seconds[f"kernel {step}"]
            for other in others
            for step in ("forward", "forward and backward")
        },
        # four cells of each point, to hold against what the device's caches give
        "gathered bytes per second": {
            way: 4 * inputs[2].numel() * HEAD_DIM * item_bytes / seconds[way]
            for way, item_bytes in (("kernel forward", 4), ("kernel forward, bfloat16", 2))
        },
    }
    return result


def extra_peak_memory(name: str, way: str, variant: Path | None, device: torch.device) -> int:
    """Bytes that forward and backward need at their peak, over inputs and gradient."""
    function = sparse_attention_reference if variant is None else load_kernel(variant).sparse_attention
    inputs, shapes, gradient = arguments(*SIZES[name], device)
    # libraries and thread pools are there before it counts
    small, small_shapes, small_gradient = arguments(4, 1, 4, device)
    forward_backward(function, small, small_shapes, small_gradient)
    return peak_memory_over_start(lambda: forward_backward(function, inputs, shapes, gradient), device)


def run_apart(threads: int, device: torch.device, *arguments: str) -> Any:
    """What this script prints as its last line with `arguments`, in a process of its own."""
    command = [sys.executable, __file__, "--threads", str(threads), "--device", str(device), *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def compare_memory(name: str, threads: int, variant: Path, device: torch.device) -> dict[str, Any]:
    peaks = {
        way: run_apart(threads, device, "--memory-of", name, way, str(variant)) for way in ("grid_sample", "kernel")
    }
    inputs, _, gradient = arguments(*SIZES[name], torch.device("cpu"))
    return {
        "bytes": peaks,
        # the output and three gradients, which both ways hold at the end
        "bytes of results": sum(tensor.nbytes for tensor in (gradient, *inputs)),
        "ratio, grid_sample over kernel": peaks["grid_sample"] / peaks["kernel"],
    }


def time_model(variant: Path, repeats: int, device: torch.device) -> dict[str, Any]:
    """UN-EPT with its ResNet-50, one image of 480x480, float32, random weights."""
    torch.manual_seed(0)
    config = UNEPTConfig(backbone_config=ResNetV1cConfig(), num_labels=150)
    model = UNEPTForSemanticSegmentation(config).eval().to(device)
    images = torch.randn(1, 3, 480, 480, device=device)

    def choose(implementation: str) -> None:
        os.environ["LOCAL_KERNELS"] = f"{kernel_choice.REPOSITORY}={variant}"
        os.environ[kernel_choice.ENVIRONMENT_VARIABLE] = implementation
        kernel_choice.load_kernel.cache_clear()

    def run(implementation: str) -> torch.Tensor:
        choose(implementation)
        with torch.no_grad():
            return model(images).logits

    torch.testing.assert_close(run(""), run("reference"), atol=1e-3, rtol=1e-3)
    seconds = interleaved({"grid_sample": lambda: run("reference"), "kernel": lambda: run("")}, repeats, device)
    return {"seconds": seconds, "ratios": {"grid_sample over kernel": seconds["grid_sample"] / seconds["kernel"]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--output", type=Path, help="folder for the results file (default: results are only printed)")
    parser.add_argument("--time-of", nargs=2, metavar=("SIZE", "VARIANT"), help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", nargs=3, metavar=("SIZE", "WAY", "VARIANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.memory_of:
        name, way, folder = options.memory_of
        print(extra_peak_memory(name, way, Path(folder) if way == "kernel" else None, device))
        return

    if options.time_of:
        name, folder = options.time_of
        print(json.dumps(time_size(name, load_kernel(Path(folder)), options.repeats, device)))
        return

    variant = build_kernel(device)
    kernel = load_kernel(variant)
    on_gpu = device.type == "cuda"
    results: dict[str, Any] = {
        "machine": torch.cuda.get_device_name(device) if on_gpu else processor_name(),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else "not run on a GPU",
        "threads": options.threads,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "cuda": torch.version.cuda},
        "commit": commit(),
        "kernel": kernel.__name__,
        "sizes": {},
    }
    if load_comparator() is not None:
        results["versions"][COMPARATOR] = importlib.metadata.version(COMPARATOR)
    can_measure_memory = on_gpu or Path("/proc/self/clear_refs").exists()
    for name in options.sizes:
        timing = ["--time-of", name, str(variant), "--repeats", str(options.repeats)]
        result = run_apart(options.threads, device, *timing)
        if can_measure_memory:
            result["memory"] = compare_memory(name, options.threads, variant, device)
        results["sizes"][name] = result
        ratios = ", ".join(f"{text} {ratio:.1f}" for text, ratio in result["ratios"].items())
        memory = result.get("memory", {}).get("ratio, grid_sample over kernel", math.nan)
        print(f"{name}: agree; {ratios}, extra peak memory {memory:.1f}", flush=True)
    results["UN-EPT, ResNet-50, 480x480"] = time_model(variant, options.repeats, device)
    ratio = results["UN-EPT, ResNet-50, 480x480"]["ratios"]["grid_sample over kernel"]
    print(f"UN-EPT, ResNet-50, 480x480: grid_sample over kernel {ratio:.2f}")
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        path = options.output / f"sparse_attention_{device.type}.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
