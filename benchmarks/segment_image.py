# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Time the label map of one image against a baseline, after checking that both give the same labels.

    python benchmarks/segment_image.py [--threads 2] [--repeats 9] [--device cpu] [--output benchmarks/results]

The model is Segmenter-S/16-Mask with 150 classes, random weights, float32. The baseline is the same model with eager
attention, softmax and argmax over logits upsampled to full resolution; ours is sdpa attention and `upsample_argmax`.

The time for labels depends on the number of classes that compete in a region, so patch-level logits are timed in two forms:

- *low-entropy logits*, like those of a trained model: 14 Voronoi regions of random classes, averaged over 3x3 patches and
  worth 8 logits, on a background of Gaussian noise that is smooth over 8 patches (standard deviation 1) plus white noise
  (0.3), seed 0. They replace the network's logits after it has run, so the network's time is included.
- *random weights*: the logits of the network itself.

SegViT-B/16 is timed at 512x512, where labels come from queries with classes and masks. The baseline upsamples all masks, takes
their sigmoid and multiplies them with the class probabilities; ours is `mask_argmax`. Low-entropy queries: class logits are
standard Gaussian noise, plus 10 for a query's own class if one of the 14 regions has it, otherwise for "no object". Masks are
10 inside the query's region, averaged over 3x3 patches, on the same noise minus 5. SegViT-B/16 is also timed at 1024x512 in
windows of 512, stride 384, where the baseline evaluates all classes in bands of rows.

Run it on a quiet machine: threads that wait for a core cost more than the work they share. Variants are timed in turns, one
call each, and medians are compared. Peak memory is measured in a separate process for each variant, over the memory held
before (Linux only).
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_segmodels import (
    PlainViTConfig,
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    SegViTConfig,
    SegViTForSemanticSegmentation,
)
from hf_segmodels.evaluation.results import package_commit as commit
from hf_segmodels.inference import MaskScores, WindowGrid, mask_argmax, upsample_argmax


REPOSITORY = Path(__file__).resolve().parents[1]
Name = TypeVar("Name")


def segmenter_small(
    window_size: int | None = None, window_stride: int | None = None
) -> SegmenterForSemanticSegmentation:
    """Segmenter-S/16-Mask with 150 classes and fixed random weights."""
    torch.manual_seed(0)
    encoder = PlainViTConfig(
        hidden_size=384,
        num_attention_heads=6,
        layer_norm_eps=1e-5,
        position_embedding_interpolation="bilinear",
        image_size=window_size or 512,
    )
    config = SegmenterConfig(backbone_config=encoder, window_size=window_size, window_stride=window_stride)
    return SegmenterForSemanticSegmentation(config).eval()


def segvit_base() -> SegViTForSemanticSegmentation:
    """SegViT-B/16 with 150 classes and fixed random weights."""
    torch.manual_seed(0)
    return SegViTForSemanticSegmentation(SegViTConfig()).eval()


def random_regions(
    num_labels: int, height: int, width: int, regions: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Voronoi regions of random classes: masks `(1, num_labels, height, width)`, soft at borders; and noise."""
    centers = torch.rand(regions, 2, generator=generator) * torch.tensor([height, width])
    classes = torch.randint(0, num_labels, (regions,), generator=generator)
    grid = torch.cartesian_prod(torch.arange(height) + 0.5, torch.arange(width) + 0.5)
    # (height * width,) -> (1, num_labels, height, width)
    labels = classes[torch.cdist(grid, centers).argmin(dim=1)].view(height, width)
    masks = nn.functional.one_hot(labels, num_labels).permute(2, 0, 1)[None].float()
    masks = nn.functional.avg_pool2d(nn.functional.pad(masks, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    smooth = torch.randn(1, num_labels, -(-height // 8), -(-width // 8), generator=generator)
    smooth = nn.functional.interpolate(smooth, size=(height, width), mode="bicubic", align_corners=False)
    return masks, smooth + 0.3 * torch.randn(1, num_labels, height, width, generator=generator)


def low_entropy_logits(num_labels: int, height: int, width: int, regions: int = 14, seed: int = 0) -> torch.Tensor:
    """Logits `(1, num_labels, height, width)` as described above."""
    masks, noise = random_regions(num_labels, height, width, regions, torch.Generator().manual_seed(seed))
    return 8.0 * masks + noise


def low_entropy_queries(
    num_labels: int, height: int, width: int, regions: int = 14, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Class logits `(1, num_labels, num_labels + 1)` and mask logits `(1, num_labels, height, width)`, as above."""
    generator = torch.Generator().manual_seed(seed)
    masks, noise = random_regions(num_labels, height, width, regions, generator)
    is_present = masks.amax(dim=(2, 3)) > 0.5
    # (1, num_labels): the query's own class, or "no object"
    target = torch.arange(num_labels).where(is_present, num_labels)
    class_logits = torch.randn(1, num_labels, num_labels + 1, generator=generator)
    class_logits += 10.0 * nn.functional.one_hot(target, num_labels + 1)
    return class_logits, 10.0 * masks - 5.0 + noise


def baseline_labels(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Labels by softmax and argmax at full resolution."""
    upsampled = nn.functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
    return upsampled.softmax(dim=1).argmax(dim=1)


def baseline_scores(class_logits: torch.Tensor, mask_logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Scores of classes at full resolution."""
    masks = nn.functional.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False)
    return torch.einsum("bqk,bqhw->bkhw", class_logits.softmax(dim=-1)[..., :-1], masks.sigmoid())


def check_equal(name: str, labels: torch.Tensor, logits: torch.Tensor, size: tuple[int, int]) -> None:
    """Exit if labels differ from those of the upsampled logits by more than rounding."""
    check_labels(
        name, labels, nn.functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
    )


def check_labels(name: str, labels: torch.Tensor, upsampled: torch.Tensor) -> None:
    """Exit if labels differ from those of the full-resolution scores by more than rounding."""
    chosen = upsampled.gather(1, labels[:, None])[:, 0]
    behind = upsampled.amax(dim=1) - chosen
    differing = int((labels != upsampled.argmax(dim=1)).sum())
    if behind.max() > 1e-5 * upsampled.abs().max():
        sys.exit(f"{name}: labels differ in {differing} pixels, by up to {behind.max():.2e} in score")
    print(f"{name}: labels agree ({differing} of {labels.numel()} pixels differ by rounding)")


def interleaved(
    variants: dict[Name, Callable[[], Any]], repeats: int, device: torch.device, is_warm: bool = False
) -> dict[Name, float]:
    """Median seconds of each variant, called in turns after one warm-up unless `is_warm`."""
    seconds: dict[Name, list[float]] = {name: [] for name in variants}
    for repeat in range(1 if is_warm else 0, repeats + 1):
        for name, variant in variants.items():
            _synchronize(device)
            started = time.perf_counter()
            variant()
            _synchronize(device)
            if repeat > 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_one_image(repeats: int, device: torch.device) -> dict[str, Any]:
    """512x512: end to end, labels alone, and the network compared with the rate of matrix products."""
    size = (512, 512)
    ours, baseline = segmenter_small().to(device), segmenter_small().to(device)
    baseline.set_attn_implementation("eager")
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    low_entropy = low_entropy_logits(150, 32, 32).to(device)
    random_logits = baseline(images).logits
    torch.testing.assert_close(ours(images).logits, random_logits, atol=1e-4, rtol=1e-4)
    check_equal("low-entropy logits, 512x512", upsample_argmax(low_entropy, size), low_entropy, size)
    check_equal("random weights, 512x512", upsample_argmax(random_logits, size), random_logits, size)

    with FlopCounterMode(display=False) as counter:
        baseline(images)
    multiply_adds = counter.get_total_flops() / 2
    # the first matrix product of the MLP, the most common size in the encoder
    tokens, weight = torch.randn(1025, 384, device=device), torch.randn(384, 1536, device=device)

    def products() -> None:
        for _ in range(20):
            tokens @ weight

    half = segmenter_small().to(device, torch.bfloat16)
    half_images = images.to(torch.bfloat16)
    seconds = interleaved(
        {
            "baseline, low-entropy logits": lambda: (baseline(images), baseline_labels(low_entropy, size)),
            "ours, low-entropy logits": lambda: (ours(images), upsample_argmax(low_entropy, size)),
            "baseline, random weights": lambda: baseline_labels(baseline(images).logits, size),
            "ours, random weights": lambda: upsample_argmax(ours(images).logits, size),
            "baseline labels, low-entropy logits": lambda: baseline_labels(low_entropy, size),
            "our labels, low-entropy logits": lambda: upsample_argmax(low_entropy, size),
            "baseline labels, random weights": lambda: baseline_labels(random_logits, size),
            "our labels, random weights": lambda: upsample_argmax(random_logits, size),
            "network": lambda: ours(images),
            "network, bfloat16": lambda: half(half_images),
            "20 matrix products": products,
        },
        repeats,
        device,
    )
    rate = 20 * 1025 * 384 * 1536 / seconds["20 matrix products"]
    ratios = {
        "images per second, speed-up, low-entropy logits": seconds["baseline, low-entropy logits"]
        / seconds["ours, low-entropy logits"],
        "images per second, speed-up, random weights": seconds["baseline, random weights"]
        / seconds["ours, random weights"],
        "labels, speed-up, low-entropy logits": seconds["baseline labels, low-entropy logits"]
        / seconds["our labels, low-entropy logits"],
        "labels, speed-up, random weights": seconds["baseline labels, random weights"]
        / seconds["our labels, random weights"],
        "labels over network, low-entropy logits": seconds["our labels, low-entropy logits"] / seconds["network"],
        "network over its multiply-adds at the rate of matrix products": seconds["network"] * rate / multiply_adds,
        "network, float32 over bfloat16": seconds["network"] / seconds["network, bfloat16"],
    }
    return {"giga_multiply_adds": multiply_adds / 1e9, "seconds": seconds, "ratios": ratios}


def time_large_image(repeats: int, device: torch.device) -> dict[str, Any]:
    """2048x1024 in windows of 768, stride 512: `predict` against averaging full-resolution windows."""
    size = (1024, 2048)
    model = segmenter_small(window_size=768, window_stride=512).to(device)
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    baseline = segmenter_small(window_size=768, window_stride=512).to(device)
    baseline.set_attn_implementation("eager")

    def baseline_windows() -> torch.Tensor:
        total, count = torch.zeros(1, 150, *size, device=device), torch.zeros(1, 1, *size, device=device)
        for top in (0, 256):
            for left in (0, 512, 1024, 1280):
                crop = images[..., top : top + 768, left : left + 768]
                logits = baseline(crop).logits
                logits = nn.functional.interpolate(logits, size=(768, 768), mode="bilinear", align_corners=False)
                total[..., top : top + 768, left : left + 768] += logits
                count[..., top : top + 768, left : left + 768] += 1
        return total / count

    averaged = baseline_windows()
    check_equal("random weights, 2048x1024 in windows", torch.stack(model.predict(images)), averaged, size)
    seconds = interleaved(
        {
            "baseline": lambda: baseline_windows().softmax(dim=1).argmax(dim=1),
            "ours": lambda: model.predict(images),
        },
        max(1, repeats // 3),
        device,
    )
    return {"seconds": seconds, "ratios": {"images per second, speed-up": seconds["baseline"] / seconds["ours"]}}


def time_queries(repeats: int, device: torch.device) -> dict[str, Any]:
    """SegViT-B/16 at 512x512: from class and mask logits to labels, compared with the network."""
    size = (512, 512)
    model = segvit_base().to(device)
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    low_entropy = [logits.to(device) for logits in low_entropy_queries(150, 32, 32)]
    outputs = model(images)
    random_queries = outputs.class_queries_logits, outputs.masks_queries_logits
    check_labels("SegViT, low-entropy logits", mask_argmax(*low_entropy, size), baseline_scores(*low_entropy, size))
    check_labels("SegViT, random weights", mask_argmax(*random_queries, size), outputs.logits)
    check_labels("SegViT, predict", torch.stack(model.predict(images)), outputs.logits)

    seconds = interleaved(
        {
            "network": lambda: model.decode(model.encode(images)),
            "baseline labels, low-entropy logits": lambda: baseline_scores(*low_entropy, size).argmax(dim=1),
            "our labels, low-entropy logits": lambda: mask_argmax(*low_entropy, size),
            "baseline labels, random weights": lambda: baseline_scores(*random_queries, size).argmax(dim=1),
            "our labels, random weights": lambda: mask_argmax(*random_queries, size),
        },
        repeats,
        device,
    )
    ratios = {
        f"labels, speed-up, {kind}": seconds[f"baseline labels, {kind}"] / seconds[f"our labels, {kind}"]
        for kind in ("low-entropy logits", "random weights")
    }
    ratios["labels over network, low-entropy logits"] = seconds["our labels, low-entropy logits"] / seconds["network"]
    ratios["baseline labels over network, low-entropy logits"] = (
        seconds["baseline labels, low-entropy logits"] / seconds["network"]
    )
    return {"seconds": seconds, "ratios": ratios}


def time_query_windows(repeats: int, device: torch.device) -> dict[str, Any]:
    """SegViT-B/16 at 1024x512 in windows: from class and mask logits to labels, compared with the network."""
    size = (512, 1024)
    grid = WindowGrid(size, window_size=(512, 512), window_stride=(384, 384))
    starts = grid.starts[1]
    model = segvit_base().to(device)
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    class_logits, mask_logits = (logits.to(device) for logits in low_entropy_queries(150, 32, 64))
    # (1, 150, 151) -> (1, 1, windows, 150, 151), (1, 150, 32, 64) -> (1, 1, windows, 150, 32, 32)
    classes = class_logits[:, None, None].expand(-1, -1, len(starts), -1, -1)
    masks = torch.stack([mask_logits[..., left // 16 : left // 16 + 32] for left in starts], dim=1)[:, None]
    scores = {
        "low-entropy logits": MaskScores.from_windows(classes, masks, grid.axes((32, 32), (512, 512)), [size])[0],
        "random weights": model._window_scores(images, [size], grid, len(starts))[0],
    }

    def labels_in_bands(scores: Any) -> torch.Tensor:
        return torch.cat([scores.evaluate(top, top + 16).argmax(dim=0) for top in range(0, size[0], 16)])

    variants: dict[str, Callable[[], Any]] = {
        "network": lambda: model._window_scores(images, [size], grid, len(starts))
    }
    for kind, of_kind in scores.items():
        check_labels(f"SegViT in windows, {kind}", of_kind.argmax()[None], of_kind.evaluate()[None])
        variants[f"baseline labels, {kind}"] = partial(labels_in_bands, of_kind)
        variants[f"our labels, {kind}"] = of_kind.argmax
    seconds = interleaved(variants, max(1, repeats // 3), device)
    ratios = {f"{name} over network": seconds[name] / seconds["network"] for name in seconds if name != "network"}
    return {"seconds": seconds, "ratios": ratios}


def _memory(field: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at its peak (Linux)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def peak_memory_over_start(work: Callable[[], Any], device: torch.device | None = None) -> int:
    """
    Bytes by which peak memory exceeds the memory held before the work: allocated by torch on CUDA, otherwise of this
    process (Linux).
    """
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current memory
    before = _memory("VmRSS")
    work()
    return _memory("VmHWM") - before


def extra_peak_memory(variant: str) -> int:
    """Run one variant in this process; see [`peak_memory_over_start`]."""
    if "queries" in variant:
        queries = low_entropy_queries(150, 32, 32)
        labels = mask_argmax if variant.startswith("ours") else lambda *args: baseline_scores(*args).argmax(dim=1)
        return peak_memory_over_start(lambda: labels(*queries, (512, 512)))
    model = segmenter_small()
    if variant == "baseline":
        model.set_attn_implementation("eager")
    labels = baseline_labels if variant == "baseline" else upsample_argmax
    images, low_entropy = torch.randn(1, 3, 512, 512), low_entropy_logits(150, 32, 32)
    return peak_memory_over_start(lambda: (model(images), labels(low_entropy, (512, 512))))


def compare_memory(threads: int, script: str = __file__, of: str = "") -> dict[str, Any]:
    """Extra peak memory of both variants of a script on a CPU, each in a separate process."""
    peaks = {}
    for variant in ("baseline", "ours"):
        command = [sys.executable, script, "--threads", str(threads), "--memory-of", variant + of]
        peaks[variant] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    return {
        "bytes": peaks,
        "ratios": {"extra peak memory, relative to the baseline": peaks["ours"] / peaks["baseline"]},
    }


def processor_name() -> str:
    """Name of the processor on Linux, otherwise its architecture; and the instruction set that torch uses on it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = f"{len(names)} x {names[0]}" if names else platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="folder for the results; default: print only")
    parser.add_argument(
        "--memory-of", choices=["baseline", "ours", "baseline queries", "ours queries"], help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(extra_peak_memory(arguments.memory_of))
        return

    device = torch.device(arguments.device)
    results: dict[str, Any] = {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "threads": arguments.threads,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "commit": commit(),
        "512x512": time_one_image(arguments.repeats, device),
        "2048x1024": time_large_image(arguments.repeats, device),
        "SegViT 512x512": time_queries(arguments.repeats, device),
        "SegViT 1024x512": time_query_windows(arguments.repeats, device),
    }
    if device.type == "cpu" and Path("/proc/self/clear_refs").exists():
        results["memory"] = compare_memory(arguments.threads)
        results["SegViT memory"] = compare_memory(arguments.threads, of=" queries")
    for name in ("512x512", "2048x1024", "memory", "SegViT 512x512", "SegViT 1024x512", "SegViT memory"):
        for text, ratio in results.get(name, {}).get("ratios", {}).items():
            print(f"{name}: {text}: {ratio:.2f}")
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        path = arguments.output / f"segment_image_{device.type}.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
