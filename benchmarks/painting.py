# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Time RegProxy's painting and the steps from image to labels, after checking that both variants agree.

    python benchmarks/painting.py [--threads 2] [--repeats 15] [--device cpu] [--output benchmarks/results]

The model is RegProxy-S/16 with 150 classes, random weights, float32, on an image of 512x512.

- *painting*: token logits of 32x32 tokens onto 4x4 pixels each. The original formulation (Algorithm 1 of the paper) unfolds
  the token logits into nine copies, multiplies per token and puts the pixels in order, each in a separate pass.
- *image to labels*: the baseline is the same network with eager attention, the original painting, and softmax and argmax over
  logits upsampled to full resolution. Ours is sdpa attention, `paint` and `upsample_argmax`. The time for labels depends on the
  number of classes that compete in a region, so token logits are either the network's own or *low-entropy logits* as in
  `segment_image.py`, inserted after the network has run.

Variants are timed in turns, one call each, and medians are compared. Peak memory of painting is measured in a separate process
for each variant, over the memory held before (Linux only), the painted logits included.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from segment_image import (
    REPOSITORY,
    baseline_labels,
    check_equal,
    commit,
    compare_memory,
    interleaved,
    low_entropy_logits,
    peak_memory_over_start,
    processor_name,
)
from torch import nn

from hf_segmodels import PlainViTConfig, RegProxyConfig, RegProxyForSemanticSegmentation
from hf_segmodels.inference import upsample_argmax
from hf_segmodels.regproxy import paint


SIZE = (512, 512)


def regproxy_small() -> RegProxyForSemanticSegmentation:
    """RegProxy-S/16 with 150 classes and fixed random weights."""
    torch.manual_seed(0)
    encoder = PlainViTConfig(hidden_size=384, num_attention_heads=6)
    return RegProxyForSemanticSegmentation(RegProxyConfig(backbone_config=encoder)).eval()


def paint_as_published(token_logits: torch.Tensor, affinity: torch.Tensor) -> torch.Tensor:
    """Painting in the original formulation; see [`~hf_segmodels.regproxy.paint`] for the shapes."""
    cell_height, cell_width, height, width = affinity.shape[2:]
    # (B, H * W, K) -> (B, K, H, W) -> (B, K * 9, H * W) -> (B, H, W, 9, K)
    maps = token_logits.transpose(1, 2).unflatten(2, (height, width))
    around = nn.functional.unfold(maps, kernel_size=3, padding=1).unflatten(1, (-1, 9))
    around = around.permute(0, 3, 2, 1).unflatten(1, (height, width)).contiguous()
    # (B, 9, h, w, H, W) -> (B, H, W, h * w, 9)
    weights = affinity.permute(0, 4, 5, 2, 3, 1).flatten(3, 4)
    painted = torch.matmul(weights, around).unflatten(3, (cell_height, cell_width))
    # (B, H, W, h, w, K) -> (B, K, H * h, W * w)
    return painted.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def random_regions(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Random token logits and affinity in the shapes of a model."""
    generator = torch.Generator().manual_seed(0)
    token_logits = torch.randn(1, 1024, 150, generator=generator)
    affinity = torch.randn(1, 9, 4, 4, 32, 32, generator=generator).softmax(dim=1)
    return token_logits.to(device), affinity.to(device)


def time_painting(repeats: int, device: torch.device) -> dict[str, Any]:
    token_logits, affinity = random_regions(device)
    difference = (paint(token_logits, affinity) - paint_as_published(token_logits, affinity)).abs().max().item()
    if difference > 1e-5:
        sys.exit(f"painting: the two variants differ by {difference:.2e}")
    print(f"painting: the two variants agree within {difference:.1e}")
    seconds = interleaved(
        {"baseline": lambda: paint_as_published(token_logits, affinity), "ours": lambda: paint(token_logits, affinity)},
        repeats,
        device,
    )
    return {
        "max_abs_difference": difference,
        "seconds": seconds,
        "ratios": {"painting, speed-up": seconds["baseline"] / seconds["ours"]},
    }


def time_image_to_labels(repeats: int, device: torch.device) -> dict[str, Any]:
    ours, baseline = regproxy_small().to(device), regproxy_small().to(device)
    baseline.set_attn_implementation("eager")
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    low_entropy = low_entropy_logits(150, 32, 32).flatten(2).transpose(1, 2).contiguous().to(device)

    def baseline_variant(token_logits: torch.Tensor | None = None) -> torch.Tensor:
        early, late = baseline.backbone(images).feature_maps
        affinity, own_logits = baseline.decoder(early, [late])
        return baseline_labels(paint_as_published(own_logits if token_logits is None else token_logits, affinity), SIZE)

    def our_variant() -> torch.Tensor:
        return upsample_argmax(ours(images).logits, SIZE)

    def our_variant_low_entropy() -> torch.Tensor:
        return upsample_argmax(paint(low_entropy, ours(images).affinity), SIZE)

    outputs = ours(images)
    for name, labels, logits in (
        ("random weights", our_variant(), outputs.logits),
        ("low-entropy logits", our_variant_low_entropy(), paint(low_entropy, outputs.affinity)),
    ):
        check_equal(f"{name}, image to labels", labels, logits, SIZE)
    # the two networks' logits differ by rounding, and so may labels in ties
    agreement = (
        (baseline_variant() == our_variant()).float().mean().item(),
        (baseline_variant(low_entropy) == our_variant_low_entropy()).float().mean().item(),
    )
    if min(agreement) < 0.999:
        sys.exit(f"image to labels: only {100 * min(agreement):.2f} % of the labels agree")
    painted = paint(low_entropy, outputs.affinity)
    seconds = interleaved(
        {
            "baseline, random weights": baseline_variant,
            "ours, random weights": our_variant,
            "baseline, low-entropy logits": lambda: baseline_variant(low_entropy),
            "ours, low-entropy logits": our_variant_low_entropy,
            "network": lambda: ours(images),
            "ours, labels of painted logits, random weights": lambda: upsample_argmax(outputs.logits, SIZE),
            "ours, labels of painted logits, low-entropy logits": lambda: upsample_argmax(painted, SIZE),
            "baseline, labels of painted logits": lambda: baseline_labels(painted, SIZE),
        },
        max(1, repeats // 2),
        device,
    )
    ratios = {
        f"images per second, speed-up, {name}": seconds[f"baseline, {name}"] / seconds[f"ours, {name}"]
        for name in ("random weights", "low-entropy logits")
    }
    return {"seconds": seconds, "ratios": ratios}


def extra_peak_memory(variant: str) -> int:
    """Paint once in this process; see [`peak_memory_over_start`]."""
    token_logits, affinity = random_regions(torch.device("cpu"))
    painting = paint_as_published if variant == "baseline" else paint
    painting(token_logits[:, :4], affinity[..., :2, :2])  # loads what torch loads on first use
    return peak_memory_over_start(lambda: painting(token_logits, affinity))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="folder for the results; default: print only")
    parser.add_argument("--memory-of", choices=["baseline", "ours"], help=argparse.SUPPRESS)
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
        "painting": time_painting(arguments.repeats, device),
        "image to labels": time_image_to_labels(arguments.repeats, device),
    }
    if device.type == "cpu" and Path("/proc/self/clear_refs").exists():
        results["memory of painting"] = compare_memory(arguments.threads, __file__)
    for name in ("painting", "image to labels", "memory of painting"):
        for text, ratio in results.get(name, {}).get("ratios", {}).items():
            print(f"{name}: {text}: {ratio:.2f}")
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        path = arguments.output / f"painting_{device.type}.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"wrote {path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path}")


if __name__ == "__main__":
    main()
