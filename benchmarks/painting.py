# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Times RegProxy's painting and its way from image to labels, after checking that both ways agree.

    python benchmarks/painting.py [--threads 2] [--repeats 15] [--device cpu] [--output benchmarks/results]

The model is RegProxy-S/16 with 150 classes, random weights, float32, on an image of 512x512.

- *painting*: token logits of 32x32 tokens onto 4x4 pixels each. The original's formulation (Algorithm 1 of the paper)
  unfolds the token logits into nine copies, multiplies per token and puts the pixels in order, each in a pass of its own.
- *image to labels*: the plain way is the same network with eager attention, that painting, and softmax and argmax over
  logits upsampled to full resolution. Ours is sdpa attention, `paint` and `upsample_argmax`. How long labels take depends on
  how many classes compete in a place, so token logits are either the network's own or *peaked* ones as in
  `segment_image.py`, put in their place after the network has run.

Ways are timed in turns, one call each, and medians are compared. Peak memory of painting is that of a process of its own
for each way, over what it held before (Linux only), the painted logits included.
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
    check_equal,
    commit,
    compare_memory,
    interleaved,
    peak_memory_over_start,
    peaked_logits,
    plain_labels,
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


def paint_plainly(token_logits: torch.Tensor, affinity: torch.Tensor) -> torch.Tensor:
    """Painting as the original formulates it; see [`~hf_segmodels.regproxy.paint`] for the shapes."""
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
    """Token logits and affinity of a model's shapes."""
    generator = torch.Generator().manual_seed(0)
    token_logits = torch.randn(1, 1024, 150, generator=generator)
    affinity = torch.randn(1, 9, 4, 4, 32, 32, generator=generator).softmax(dim=1)
    return token_logits.to(device), affinity.to(device)


def time_painting(repeats: int, device: torch.device) -> dict[str, Any]:
    token_logits, affinity = random_regions(device)
    difference = (paint(token_logits, affinity) - paint_plainly(token_logits, affinity)).abs().max().item()
    if difference > 1e-5:
        sys.exit(f"painting: the two ways differ by {difference:.2e}")
    print(f"painting: the two ways agree within {difference:.1e}")
    seconds = interleaved(
        {"plain": lambda: paint_plainly(token_logits, affinity), "ours": lambda: paint(token_logits, affinity)},
        repeats,
        device,
    )
    return {
        "max_abs_difference": difference,
        "seconds": seconds,
        "ratios": {"painting, plain over ours": seconds["plain"] / seconds["ours"]},
    }


def time_image_to_labels(repeats: int, device: torch.device) -> dict[str, Any]:
    ours, plain = regproxy_small().to(device), regproxy_small().to(device)
    plain.set_attn_implementation("eager")
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    peaked = peaked_logits(150, 32, 32).flatten(2).transpose(1, 2).contiguous().to(device)

    def plain_way(token_logits: torch.Tensor | None = None) -> torch.Tensor:
        early, late = plain.backbone(images).feature_maps
        affinity, own_logits = plain.decoder(early, [late])
        return plain_labels(paint_plainly(own_logits if token_logits is None else token_logits, affinity), SIZE)

    def our_way() -> torch.Tensor:
        return upsample_argmax(ours(images).logits, SIZE)

    def our_way_peaked() -> torch.Tensor:
        return upsample_argmax(paint(peaked, ours(images).affinity), SIZE)

    outputs = ours(images)
    for name, labels, logits in (
        ("random weights", our_way(), outputs.logits),
        ("peaked", our_way_peaked(), paint(peaked, outputs.affinity)),
    ):
        check_equal(f"{name}, image to labels", labels, logits, SIZE)
    # the two networks' logits differ by rounding, and so may labels in ties
    agreement = (
        (plain_way() == our_way()).float().mean().item(),
        (plain_way(peaked) == our_way_peaked()).float().mean().item(),
    )
    if min(agreement) < 0.999:
        sys.exit(f"image to labels: only {100 * min(agreement):.2f} % of the labels agree")
    painted = paint(peaked, outputs.affinity)
    seconds = interleaved(
        {
            "plain, random weights": plain_way,
            "ours, random weights": our_way,
            "plain, peaked": lambda: plain_way(peaked),
            "ours, peaked": our_way_peaked,
            "network": lambda: ours(images),
            "ours, labels of painted logits, random weights": lambda: upsample_argmax(outputs.logits, SIZE),
            "ours, labels of painted logits, peaked": lambda: upsample_argmax(painted, SIZE),
            "plain, labels of painted logits": lambda: plain_labels(painted, SIZE),
        },
        max(1, repeats // 2),
        device,
    )
    ratios = {
        f"images per second, ours over plain, {name}": seconds[f"plain, {name}"] / seconds[f"ours, {name}"]
        for name in ("random weights", "peaked")
    }
    return {"seconds": seconds, "ratios": ratios}


def extra_peak_memory(way: str) -> int:
    """Paints once in this process; bytes by which its peak is above the memory held before."""
    token_logits, affinity = random_regions(torch.device("cpu"))
    painting = paint_plainly if way == "plain" else paint
    painting(token_logits[:, :4], affinity[..., :2, :2])  # what torch loads on first use is not painting's
    return peak_memory_over_start(lambda: painting(token_logits, affinity))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="folder for the results; printed only where not given")
    parser.add_argument("--memory-of", choices=["plain", "ours"], help=argparse.SUPPRESS)
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
