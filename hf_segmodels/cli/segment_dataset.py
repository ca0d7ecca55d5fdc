# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`hf-segmodels segment-dataset`."""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from ..utils.arguments import add_device_options, add_model_option, add_prediction_options, whole_number
from .segment import print_totals


_MAX_ERRORS = 20


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "segment-dataset",
        help="segment a data set of any size, shard by shard, with several processes",
        description="Segments the images of a data set shard by shard. For each complete shard, DIR gets a parquet file or "
        "a folder of label maps. An interrupted run resumes when it is started again. On several GPUs or machines: "
        "accelerate launch -m hf_segmodels.cli segment-dataset ...",
        epilog="Exit code: 0 on success, 1 if some images could not be segmented (the others were), 2 for an error in the "
        "arguments. Of several processes, only the last one to finish returns 1.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help="a folder of images or of parquet files, a parquet file, or a data set's repository on the Hub",
    )
    add_model_option(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results in DIR")
    parser.add_argument("--split", help="(default: the only split)")
    parser.add_argument("--layout", help="layout of the folder, such as ade20k (default: images, or parquet)")
    parser.add_argument("--image-column", default="image", metavar="NAME", help="(default: image)")
    parser.add_argument(
        "--keep-columns", nargs="+", default=(), metavar="NAME", help="columns of the data to copy to the results"
    )
    parser.add_argument(
        "--format", choices=["parquet", "png"], default="parquet", help="format of the results (default: parquet)"
    )
    for option, low, default, text in (
        ("--shard-size", 1, 500, "images per shard of a folder"),
        ("--batch-size", 1, 1, "images of one size per batch"),
        ("--num-workers", 0, 0, "preprocessing processes"),
    ):
        text += f" (default: {default})"
        parser.add_argument(option, type=whole_number(low), default=default, metavar="N", help=text)
    add_device_options(parser)
    add_prediction_options(parser)


def run(arguments: argparse.Namespace) -> int:
    from ..inference.segment_dataset import segment_dataset

    results = segment_dataset(**vars(arguments))
    done = f"{_count(results.num_new_shards, 'shard')} done"
    if results.num_skipped_shards:
        done += f", {results.num_skipped_shards} skipped (already done)"
    if results.num_processes > 1:
        done = f"process {results.process_index + 1} of {results.num_processes}: {done}"
    print(done)
    summary = results.summary
    if summary is None:
        return 0
    if results.totals:
        print_totals(results.totals, Counter({item["name"]: item["images"] for item in summary["classes"]}))
    images, shards = _count(summary["images"], "image"), _count(summary["shards"], "shard")
    print(f"{images} in {shards}; label maps and summary.json are in {arguments.output}")
    for item in summary["unreadable_shards"]:
        print(f"error: {item['shard']} could not be read: {item['error']}", file=sys.stderr)
    failed = summary["failed"]
    for item in failed[:_MAX_ERRORS]:
        name = item["name"] or f"image {item['index']}"
        print(f"error: {name} ({item['shard']}): {item['error']}", file=sys.stderr)
    if failed:
        rest = ", see summary.json" if len(failed) > _MAX_ERRORS else ""
        print(f"error: {len(failed)} of {summary['images']} images could not be segmented{rest}.", file=sys.stderr)
    return 1 if failed or summary["unreadable_shards"] else 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
