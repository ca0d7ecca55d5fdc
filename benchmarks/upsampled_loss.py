# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Time cross-entropy of upsampled scores against the baseline `cross_entropy(interpolate(...))`, forward and backward, after
checking that values and gradients agree.

    python benchmarks/upsampled_loss.py [--threads 2] [--repeats 7] [--device cpu] [--output benchmarks/results]

Four images of 512x512 with 150 classes and a tenth of the pixels ignored, float32, from scores of 32x32 (Segmenter) and
128x128 (RegProxy). *image by image* is the baseline in a loop over the batch, with accumulated gradients.

The variants are timed alternately, one call each, and medians are compared. Extra peak memory is the peak of forward and
backward beyond scores and labels, on a CPU in a separate process for each variant (Linux only). Run it on an idle machine:
other processes slow many small steps down more than few large ones.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from segment_image import commit, compare_memory, interleaved, peak_memory_over_start, processor_name
from torch import nn

from hf_segmodels.losses.semantic_cross_entropy import semantic_cross_entropy


BATCH_SIZE, NUM_LABELS, SIZE = 4, 150, (512, 512)
GRIDS = (32, 128)


def baseline_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    upsampled = nn.functional.interpolate(logits, size=SIZE, mode="bilinear", align_corners=False)
    return nn.functional.cross_entropy(upsampled, labels, ignore_index=255)


def step(variant: str, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and its gradient."""
    if variant == "image by image":
        shares = (labels != 255).flatten(1).sum(dim=1) / (labels != 255).sum()
        parts = [
            step("baseline", logits[image : image + 1].detach().requires_grad_(), labels[image : image + 1])
            for image in range(len(logits))
        ]
        losses, gradients = zip(*parts, strict=True)
        return (torch.stack(losses) * shares).sum(), torch.cat(gradients) * shares.view(-1, 1, 1, 1)
    loss = baseline_loss(logits, labels) if variant == "baseline" else semantic_cross_entropy(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


def random_batch(grid: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(BATCH_SIZE, NUM_LABELS, grid, grid, generator=generator)
    labels = torch.randint(0, NUM_LABELS, (BATCH_SIZE, *SIZE), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return logits.to(device).requires_grad_(), labels.to(device)


def check(grid: int, device: torch.device) -> dict[str, float]:
    """Exit if values or gradients differ by more than 1e-6; return the largest differences."""
    batch = random_batch(grid, device)
    baseline = step("baseline", *batch)
    differences = {}
    for variant in ("ours", "image by image"):
        for part, one, other in zip(("loss", "gradient"), step(variant, *batch), baseline, strict=True):
            difference = (one - other).abs().max().item()
            if not difference <= 1e-6 * max(1.0, other.abs().max().item()):
                sys.exit(f"{grid}x{grid}: the {part} of {variant} differs by {difference:.1e}")
            differences[f"{part}, {variant}"] = difference
    print(f"{grid}x{grid}: losses and gradients agree within {max(differences.values()):.1e}")
    return differences


def measure(grid: int, repeats: int, device: torch.device) -> dict[str, Any]:
    differences = check(grid, device)
    batch = random_batch(grid, device)
    variants = ("baseline", "image by image", "ours")
    seconds = interleaved(
        {variant: lambda variant=variant: step(variant, *batch) for variant in variants}, repeats, device
    )
    ratios = {f"{variant} over ours": seconds[variant] / seconds["ours"] for variant in variants[:2]}
    return {"max_abs_differences": differences, "seconds": seconds, "ratios": ratios}


def extra_peak_memory(variant: str, device: torch.device) -> int:
    """Run one step in this process, and return the bytes of its peak above the memory before."""
    variant, grid = variant.split("@")
    batch = random_batch(int(grid), device)
    # without the memory of what torch loads on first use
    step(variant, batch[0][:1, :2, :4, :4].detach().requires_grad_(), batch[1][:1].clamp(max=1))
    return peak_memory_over_start(lambda: step(variant, *batch), device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="folder for the results; defaults to printing only")
    parser.add_argument("--memory-only", action="store_true", help="print the ratios of memory as JSON, time nothing")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.memory_of:
        print(extra_peak_memory(arguments.memory_of, device))
        return

    has_memory = device.type == "cuda" or Path("/proc/self/clear_refs").exists()
    memory: dict[str, Any] = {}
    for grid in GRIDS if has_memory else ():
        if device.type == "cuda":
            peaks = {variant: extra_peak_memory(f"{variant}@{grid}", device) for variant in ("baseline", "ours")}
            ratio = {"extra peak memory, relative to the baseline": peaks["ours"] / peaks["baseline"]}
            memory[f"{grid}x{grid}"] = {"bytes": peaks, "ratios": ratio}
        else:
            memory[f"{grid}x{grid}"] = compare_memory(arguments.threads, __file__, of=f"@{grid}")
    if arguments.memory_only:
        print(json.dumps({grid: numbers["ratios"].popitem()[1] for grid, numbers in memory.items()}))
        return

    results: dict[str, Any] = {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "threads": arguments.threads,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "commit": commit(),
        **{f"{grid}x{grid}": measure(grid, arguments.repeats, device) for grid in GRIDS},
        "memory": memory,
    }
    for grid in (f"{grid}x{grid}" for grid in GRIDS):
        for ratios in (results[grid]["ratios"], memory.get(grid, {}).get("ratios", {})):
            for text, ratio in ratios.items():
                print(f"{grid}: {text}: {ratio:.2f}")
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        path = arguments.output / f"upsampled_loss_{device.type}.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
