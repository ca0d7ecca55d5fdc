# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Times SegViT-L at 640x640 against its Shrunk structure, which has 0.586 of the multiply-adds.

    python benchmarks/shrunk.py [--threads 2] [--repeats 5] [--device cpu] [--dtype float32] [--output benchmarks/results]

Random weights, 150 classes, one image. Both models are timed in turns, one call each, and medians are compared: the network
down to class and mask logits, and `forward` with the scores of all classes at full resolution. Run it on a quiet machine.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from segment_image import commit, interleaved, processor_name

from hf_segmodels import PlainViTConfig, SegViTConfig, SegViTForSemanticSegmentation


def segvit_large(is_shrunk: bool) -> SegViTForSemanticSegmentation:
    """SegViT-L/16 for images of 640x640 as the paper has it, with fixed random weights."""
    torch.manual_seed(0)
    encoder = PlainViTConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=640,
        use_cls_token=False,
        final_norm="none",
        query_downsampling_layer=8 if is_shrunk else None,
        out_indices=[8, 24] if is_shrunk else [8, 16, 24],
    )
    config = SegViTConfig(
        backbone_config=encoder,
        decoder_type="shrunk" if is_shrunk else "cascade",
        decoder_hidden_size=512,
        decoder_num_attention_heads=16,
        prediction_size=640,
    )
    return SegViTForSemanticSegmentation(config).eval()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--output", type=Path, help="folder for the results file (default: results are only printed)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)

    models = {name: segvit_large(name == "Shrunk").to(device, dtype) for name in ("plain", "Shrunk")}
    images = torch.randn(1, 3, 640, 640, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    ways: dict[str, Any] = {}
    for name, model in models.items():
        ways[f"{name}, network"] = lambda model=model: model.decode(model.encode(images))
        ways[f"{name}, forward"] = lambda model=model: model(images)
    seconds = interleaved(ways, arguments.repeats, device)
    ratios = {
        f"{part}, Shrunk relative to plain": seconds[f"Shrunk, {part}"] / seconds[f"plain, {part}"]
        for part in ("network", "forward")
    }
    for text, ratio in ratios.items():
        print(f"{text}: {ratio:.3f}")
    if arguments.output is not None:
        results = {
            "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
            "threads": arguments.threads,
            "dtype": arguments.dtype,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "commit": commit(),
            "seconds": seconds,
            "ratios": ratios,
        }
        arguments.output.mkdir(parents=True, exist_ok=True)
        path = arguments.output / f"shrunk_{device.type}.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
