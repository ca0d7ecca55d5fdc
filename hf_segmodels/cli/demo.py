# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`hf-segmodels demo`."""

import argparse
from typing import Any

from ..utils.arguments import add_device_options, whole_number


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="serve a web page to try models on photographs",
        description="Serves a web page to try models on photographs: upload, overlay, classes, and views into the model. "
        "Needs Gradio: pip install 'hf_segmodels[app]'.",
        epilog="Exit code: 0 when stopped, 2 for an error in the arguments or a missing package.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--model",
        dest="models",
        nargs="+",
        default=(),
        metavar="FOLDER_OR_REPO",
        help="folders, or names of repositories on the Hub, to choose from (default: the packaged model)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 admits other machines")
    parser.add_argument(
        "--port", type=whole_number(1, 65535), metavar="N", help="(default: the first free one from 7860 on)"
    )
    parser.add_argument(
        "--share", action="store_true", help="create a public link for 72 hours through Gradio's servers"
    )
    parser.add_argument(
        "--long-edge", type=whole_number(1), default=2048, metavar="N", help="scale larger images down (default: 2048)"
    )
    add_device_options(parser)


def run(arguments: argparse.Namespace) -> int:
    from ..demo.app import run_demo

    run_demo(**vars(arguments))
    return 0
