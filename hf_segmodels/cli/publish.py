# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`hf-segmodels publish`."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "publish",
        help="upload a model to the Hugging Face Hub, with its code",
        description="Exports the model in FOLDER so that it loads without this package "
        "(`from_pretrained(..., trust_remote_code=True)`) and uploads it in one commit: weights, configuration, image "
        "processor, code, handler.py for Inference Endpoints, requirements.txt and the model card (FOLDER/README.md if it "
        "exists). The access token is that of `hf auth login` or HF_TOKEN.",
        epilog="Exit code: 0 on success, 2 for an error in the arguments or a refused upload.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of a trained or converted model")
    parser.add_argument(
        "--repo-id", required=True, metavar="OWNER/NAME", help="repository; created if it does not exist"
    )
    parser.add_argument("--dry-run", action="store_true", help="only write and list the files, without network")
    parser.add_argument("--output", type=Path, metavar="DIR", help="also keep the uploaded files in DIR")
    parser.add_argument("--private", action="store_const", const=True, help="create a private repository")
    parser.add_argument("--revision", metavar="BRANCH", help="commit to this branch; created if it does not exist")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    description = "Facts for a new card. Missing facts are marked unknown."
    card = parser.add_argument_group("model card", description, argument_default=argparse.SUPPRESS)
    card.add_argument(
        "--results",
        nargs="+",
        type=Path,
        metavar="JSON",
        help="scores, from `hf-segmodels evaluate --output` (default: FOLDER/results.json, if it exists)",
    )
    card.add_argument("--dataset", metavar="NAME", help="training data, such as ade20k or OWNER/NAME")
    card.add_argument("--license", metavar="ID", help="license of the weights, such as mit, cc-by-nc-4.0 or other")
    card.add_argument("--license-name", metavar="NAME", help="name of the license if ID is other")
    card.add_argument("--license-link", metavar="URL", help="address of the license if ID is other")
    card.add_argument("--base-model", metavar="OWNER/NAME", help="repository of the pretrained weights")


def run(arguments: argparse.Namespace) -> int:
    from ..hub import publish

    published = publish(**vars(arguments))
    for name, size in published.files.items():
        print(f"{size:>13,}  {name}")
    print(f"{sum(published.files.values()):>13,}  bytes in {len(published.files)} files")
    print(published.url or f"nothing was sent to {arguments.repo_id}")
    return 0
