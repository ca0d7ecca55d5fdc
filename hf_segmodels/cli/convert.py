# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
`hf-segmodels convert`.

    hf-segmodels convert --checkpoint seg_small_mask/checkpoint.pth --output_dir seg-small --verify
    hf-segmodels convert --checkpoint Akide/SegViTv1 --filename ade_51.3.pth --output_dir segvit-base --verify
    hf-segmodels convert --checkpoint S_16-i21k.npz --output_dir vit-small --verify
"""

import argparse
from pathlib import Path
from typing import Any

from ..utils.errors import UserError


METHODS = ("segmenter", "segvit", "unept", "regproxy", "backbone")


class ParityError(UserError):
    """A converted model that differs from the original."""

    exit_code = 1


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="convert a checkpoint of an original repository",
        description="Convert a checkpoint of an original repository into a folder for `from_pretrained`: safetensors, "
        "configuration and image processor. Fails if a weight is missing or left over.",
        epilog="Exit code: 0 for success, 1 if --verify finds a difference (nothing is written then), 2 if the input "
        "cannot be converted.",
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        help="the checkpoint's method (default: recognized from its keys). segmenter: checkpoint.pth of the original. "
        "segvit, unept, regproxy: .pth of the original. backbone: AugReg .npz, DeiT .pth, or timm .pth or .safetensors",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        metavar="FILE",
        help="the original's file; with --filename, a repository on the Hub (owner/name)",
    )
    parser.add_argument("--filename", metavar="FILE", help="name of the file in the repository given by --checkpoint")
    parser.add_argument("--revision", help="branch, tag or commit of that repository (default: its main branch)")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="segmenter: variant.yml (default: the one beside the checkpoint). segvit, unept, regproxy: the original's "
        "configuration as JSON or self-contained Python (default: the text inside the checkpoint). backbone: a JSON file "
        "with any of num_attention_heads, position_grid, layer_norm_eps, normalization (vit or deit)",
    )
    parser.add_argument("--output_dir", required=True, type=Path, metavar="DIR", help="folder for the result")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier conversion in DIR")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="load DIR again and compare it with an independent forward pass over the original weights, and with "
        "input.npy and logits.npy if they are beside the checkpoint; writes parity_report.json",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    # wrong arguments are reported before torch and the models are imported
    from ..conversion.checkpoint_files import find_checkpoint
    from ..conversion.converter import convert, output_directory
    from ..conversion.parity import format_report, verify

    try:
        with output_directory(arguments.output_dir, arguments.overwrite) as folder:
            checkpoint = find_checkpoint(arguments.checkpoint, arguments.filename, arguments.revision)
            conversion = convert(checkpoint, arguments.config, arguments.method)
            if arguments.method is None:
                print(f"recognized {conversion.format.title}: --method {conversion.format.method}")
            if conversion.dropped_keys:
                print(f"left out (not used for segmentation): {', '.join(conversion.dropped_keys)}")
            for note in conversion.notes:
                print(f"note: {note}")
            conversion.save_pretrained(folder)
            if arguments.verify:
                report = verify(conversion, folder)
                print(format_report(report))
                if not report["passed"]:
                    raise ParityError(
                        "the converted model differs from the original, so nothing was written. If the configuration "
                        "is the checkpoint's own, this is a bug in the conversion: please report it with the lines "
                        "above."
                    )
    except OSError as error:
        raise UserError(str(error)) from error
    print(f"wrote {arguments.output_dir}")
    return 0
