# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
The command `hf-segmodels`.

    hf-segmodels segment photo.jpg folder/ --model FOLDER_OR_REPO --output results
    hf-segmodels segment-dataset DATASET --model FOLDER_OR_REPO --output results
    hf-segmodels train RECIPE.yaml max_steps=500
    hf-segmodels evaluate --model FOLDER_OR_REPO --dataset data/ADEChallengeData2016 --layout ade20k
    hf-segmodels convert --method segmenter --checkpoint checkpoint.pth --output_dir converted
    hf-segmodels check-data ADEChallengeData2016
    hf-segmodels publish FOLDER --repo-id OWNER/NAME
    hf-segmodels demo --model FOLDER_OR_REPO

torch and the models are only imported once a command runs, so that help and mistakes in the arguments show at once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils.errors import UserError
from . import train


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs `hf-segmodels`.

    Args:
        argv (`Sequence[str]`, *optional*): Arguments without the program's name; those of the process if unset.

    Returns:
        `int`: 0; 1 where some images could not be segmented, or data has faults; 2 for a mistake in the arguments; 130 when
        interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["convert"]:
            from .convert import main as convert

            return convert(arguments[1:]) or 0
        parsed = _parser().parse_args(arguments)
        from ..auto import register

        register()
        return parsed.run(parsed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _segment(arguments: argparse.Namespace) -> int:
    from ..inference.segment_images import segment_images

    return segment_images(
        arguments.images,
        arguments.model,
        arguments.output,
        recursive=arguments.recursive,
        skip_existing=arguments.skip_existing,
        alpha=arguments.alpha,
        device=arguments.device,
        dtype=arguments.dtype,
        attention=arguments.attention,
        **_prediction_options(arguments),
    )


def _segment_dataset(arguments: argparse.Namespace) -> int:
    from ..inference.segment_dataset import segment_dataset

    return segment_dataset(
        arguments.dataset,
        arguments.model,
        arguments.output,
        split=arguments.split,
        layout=arguments.layout,
        image_column=arguments.image_column,
        keep_columns=arguments.keep_columns,
        format=arguments.format,
        shard_size=arguments.shard_size,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        overwrite=arguments.overwrite,
        device=arguments.device,
        dtype=arguments.dtype,
        **_prediction_options(arguments),
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    from ..evaluation.evaluate import evaluate

    evaluate(
        arguments.model,
        arguments.dataset,
        split=arguments.split,
        layout=arguments.layout,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
        label_mapping=arguments.label_mapping,
        output=arguments.output,
        device=arguments.device,
        dtype=arguments.dtype,
        boundary_iou=arguments.boundary_iou,
        object_sizes=arguments.object_sizes,
        **_prediction_options(arguments),
    )
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from ..demo.app import run_demo

    run_demo(
        arguments.models,
        host=arguments.host,
        port=arguments.port,
        share=arguments.share,
        device=arguments.device,
        dtype=arguments.dtype,
        long_edge=arguments.long_edge,
    )
    return 0


def _prediction_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those of `predict` that were given."""
    options = {
        "window_size": arguments.window,
        "window_stride": arguments.stride,
        "scales": tuple(arguments.scales) if arguments.scales else None,
        "flip": arguments.flip or None,
    }
    return {name: value for name, value in options.items() if value is not None}


def _check_data(arguments: argparse.Namespace) -> int:
    from .check_data import check_data_command

    options = vars(arguments)
    for name in ("command", "run"):
        del options[name]
    return check_data_command(**options)


def _publish(arguments: argparse.Namespace) -> int:
    from ..hub import publish

    names = ("results", "dataset", "license", "license_name", "license_link", "base_model")
    card_options = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    published = publish(
        arguments.folder,
        arguments.repo_id,
        dry_run=arguments.dry_run,
        output=arguments.output,
        private=arguments.private or None,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        **card_options,
    )
    for name, size in published.files.items():
        print(f"{size:>13,}  {name}")
    print(f"{sum(published.files.values()):>13,}  bytes in {len(published.files)} files")
    print(published.url or f"nothing was sent to {arguments.repo_id}")
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def _parser() -> argparse.ArgumentParser:
    from .. import __version__

    parser = _Parser(prog="hf-segmodels", description="Semantic segmentation with plain vision transformers.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")

    segment = commands.add_parser(
        "segment",
        help="segment images: an overlay with a legend, and a label map for each",
        description="Segments images. For each one, DIR gets NAME_overlay.png (the colors of the classes over the "
        "image, and a legend) and NAME_labels.png (the class index of each pixel: a palette image, or 16-bit gray with "
        "more than 256 classes). DIR/summary.json lists the classes in each image and their share of the pixels.",
        epilog="Exit code: 0 if all went well, 1 if some images could not be segmented (the others were), 2 for a mistake "
        "in the arguments.",
    )
    segment.set_defaults(run=_segment)
    segment.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of images")
    segment.add_argument("--model", required=True, help="folder of a model, or name of a repository on the Hub")
    segment.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    segment.add_argument("--recursive", action="store_true", help="also search the folders inside folders")
    segment.add_argument("--skip-existing", action="store_true", help="leave out images that DIR has results of")
    _add_prediction_options(segment)
    segment.add_argument(
        "--alpha", type=_alpha, default=0.5, metavar="A", help="opacity of the overlay, 0 to 1 (default: 0.5)"
    )
    segment.add_argument(
        "--attention", choices=["eager", "sdpa"], help="implementation of attention (default: transformers' choice)"
    )

    evaluate = commands.add_parser(
        "evaluate",
        help="score a model on a data set: mean IoU, accuracies, each class",
        description="Scores a model on a data set as the papers do: sliding window, scales and flip, labels at their own "
        "size, counts of the whole set. On several GPUs: accelerate launch -m hf_segmodels.cli evaluate ...",
        epilog="Exit code: 0 if all went well, 2 for a mistake in the arguments or data that cannot be used.",
    )
    evaluate.set_defaults(run=_evaluate)
    evaluate.add_argument("--model", required=True, help="folder of a model, or name of a repository on the Hub")
    evaluate.add_argument("--dataset", required=True, help="folder, or name of a data set on the Hub")
    evaluate.add_argument(
        "--layout", help="how the folder is laid out, such as ade20k (default: as `datasets` reads it)"
    )
    evaluate.add_argument("--split", default="validation", help="(default: validation)")
    evaluate.add_argument("--image-column", default="image", help="(default: image)")
    evaluate.add_argument("--label-column", default="label", help="(default: label)")
    evaluate.add_argument("--label-mapping", metavar="JSON", help="file that maps values of label maps to classes")
    evaluate.add_argument(
        "--boundary-iou", action="store_true", help="also the IoU of what lies along the classes' edges"
    )
    evaluate.add_argument(
        "--object-sizes", action="store_true", help="also the mean IoU of small, medium and large objects"
    )
    evaluate.add_argument("--output", type=Path, metavar="JSON", help="file for the scores")
    _add_prediction_options(evaluate)
    _add_segment_dataset(commands)
    train.add_parser(commands)
    _add_check_data(commands)
    _add_publish(commands)
    _add_demo(commands)
    # only for the list of commands: `main` hands its arguments on unread
    commands.add_parser("convert", help="convert a checkpoint of an original repository", add_help=False)
    return parser


def _add_prediction_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--window",
        type=parse_window,
        metavar="N|HxW",
        help="sliding window, in pixels of the image as the model's processor resizes it; 0: the whole image at once "
        "(default: the model's own)",
    )
    parser.add_argument(
        "--stride", type=parse_pixels, metavar="N|HxW", help="step of the window (default: the model's own)"
    )
    parser.add_argument(
        "--scales",
        nargs="+",
        type=_scale,
        metavar="S",
        help="average over the image at these sizes, 0.1 to 10 times its own (default: 1.0)",
    )
    parser.add_argument("--flip", action="store_true", help="average over the image and its mirror image")
    _add_device_options(parser)


def _add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: cuda where there is one, else cpu)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="(default: float32)"
    )


def _add_segment_dataset(commands: Any) -> None:
    segment = commands.add_parser(
        "segment-dataset",
        help="segment a data set of any size, shard by shard, with several processes",
        description="Segments the images of a data set shard by shard. DIR gets, for each shard, a parquet file or a folder "
        "of label maps once it is complete; a run that was interrupted goes on where it was when it is started again. On "
        "several GPUs or machines: accelerate launch -m hf_segmodels.cli segment-dataset ...",
        epilog="Exit code: 0 if all went well, 1 if some images could not be segmented (the others were), 2 for a mistake "
        "in the arguments. Of several processes, the one that finishes last has it; the others end with 0.",
    )
    segment.set_defaults(run=_segment_dataset)
    segment.add_argument(
        "dataset",
        metavar="DATASET",
        help="a folder of images or of parquet files, a parquet file, or a data set's repository on the Hub",
    )
    segment.add_argument("--model", required=True, help="folder of a model, or name of a repository on the Hub")
    segment.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    segment.add_argument("--overwrite", action="store_true", help="start again where DIR has results")
    segment.add_argument("--split", help="(default: the only one)")
    segment.add_argument("--layout", help="how the folder is laid out, such as ade20k (default: images, or parquet)")
    segment.add_argument("--image-column", default="image", metavar="NAME", help="(default: image)")
    segment.add_argument(
        "--keep-columns", nargs="+", default=(), metavar="NAME", help="columns of the data that the results have, too"
    )
    segment.add_argument(
        "--format", choices=["parquet", "png"], default="parquet", help="of the results (default: parquet)"
    )
    segment.add_argument(
        "--shard-size", type=_count, default=500, metavar="N", help="images of a shard in a folder (default: 500)"
    )
    segment.add_argument(
        "--batch-size", type=_count, default=1, metavar="N", help="images, of one size, that run together (default: 1)"
    )
    segment.add_argument(
        "--num-workers", type=_whole, default=0, metavar="N", help="processes that decode and preprocess (default: 0)"
    )
    _add_prediction_options(segment)


def _add_check_data(commands: Any) -> None:
    check = commands.add_parser(
        "check-data",
        help="find what is wrong with the labels of a data set",
        description="Reads every label map of a data set and reports sizes, modes, the pixels of each class, and faults: "
        "values that are no classes, labels shifted by one, masks of 0 and 255, wrong Cityscapes ids, colors, damaged "
        "files, images and label maps that do not match, and others. Each fault has a name and says what to do.",
        epilog="Exit code: 0 if all is well, 1 if there are faults, 2 if the data cannot be checked.",
    )
    check.set_defaults(run=_check_data)
    check.add_argument(
        "source",
        metavar="RECIPE|FOLDER",
        help="a training recipe (.yaml), a folder, or a data set's repository on the Hub",
    )
    check.add_argument(
        "--split", dest="splits", nargs="+", metavar="NAME", help="splits to check (default: the recipe's, or all)"
    )
    check.add_argument(
        "--layout",
        help="how the files lie: ade20k, cityscapes, pascal_context_59, pascal_context_60, coco_stuff_10k or folder (default: "
        "the recipe's, or what the folder looks like)",
    )
    check.add_argument(
        "--num-labels", type=_count, metavar="N", help="number of classes (default: by recipe or layout)"
    )
    check.add_argument(
        "--label-mapping", metavar="FILE", help="JSON: class of each value in the label maps, null for void"
    )
    check.add_argument(
        "--reduce-labels",
        dest="do_reduce_labels",
        action=argparse.BooleanOptionalAction,
        help="0 is unlabeled and classes start at 1 (default: by recipe or layout)",
    )
    check.add_argument("--ignore-index", type=int, metavar="N", help="label of pixels that do not count (default: 255)")
    check.add_argument("--image-column", metavar="NAME", help="column of images, without a layout (default: image)")
    check.add_argument("--label-column", metavar="NAME", help="column of label maps, without a layout (default: label)")
    check.add_argument(
        "--limit", dest="max_samples", type=_count, metavar="N", help="only N label maps, spread over the split"
    )
    check.add_argument(
        "--num-workers", type=_count, metavar="N", help="processes that read (default: one for each processor)"
    )
    check.add_argument("--json", dest="json_path", type=Path, metavar="FILE", help="write the whole report there")
    check.add_argument(
        "--allow", dest="allowed", nargs="+", default=(), metavar="FAULT", help="faults that do not count, by name"
    )
    check.add_argument("--strict", action="store_true", help="warnings count as faults")


def _add_publish(commands: Any) -> None:
    publish = commands.add_parser(
        "publish",
        help="put a model on the Hugging Face Hub, with its code",
        description="Exports the model in FOLDER as one that loads without this package "
        "(`from_pretrained(..., trust_remote_code=True)`) and uploads it in one commit: weights, configuration, image "
        "processor, code, handler.py for Inference Endpoints, requirements.txt and the model card (FOLDER/README.md if there "
        "is one). The access token is that of `hf auth login` or HF_TOKEN.",
        epilog="Exit code: 0 if all went well, 2 for a mistake in the arguments or an upload that was refused.",
    )
    publish.set_defaults(run=_publish)
    publish.add_argument("folder", type=Path, metavar="FOLDER", help="folder of a trained or converted model")
    publish.add_argument("--repo-id", required=True, metavar="OWNER/NAME", help="repository; created if there is none")
    publish.add_argument("--dry-run", action="store_true", help="only write and list the files, without network")
    publish.add_argument("--output", type=Path, metavar="DIR", help="also keep what is uploaded there")
    publish.add_argument("--private", action="store_true", help="create the repository as a private one")
    publish.add_argument("--revision", metavar="BRANCH", help="commit to this branch, created if there is none")
    publish.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    card = publish.add_argument_group(
        "model card", "What a card that is made says; without them it says that it is unknown."
    )
    card.add_argument(
        "--results",
        nargs="+",
        type=Path,
        metavar="JSON",
        help="scores, from `hf-segmodels evaluate --output` (default: FOLDER/results.json of a training script, if any)",
    )
    card.add_argument("--dataset", metavar="NAME", help="what the model was trained on, such as ade20k or OWNER/NAME")
    card.add_argument("--license", metavar="ID", help="license of the weights, such as mit, cc-by-nc-4.0 or other")
    card.add_argument("--license-name", metavar="NAME", help="name of the license, where ID is other")
    card.add_argument("--license-link", metavar="URL", help="address of the license, where ID is other")
    card.add_argument("--base-model", metavar="OWNER/NAME", help="repository that the weights come from")


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="a web page to try models on photographs",
        description="Serves a web page to try models on photographs: upload, overlay, classes, and views into the model. "
        "Needs Gradio: pip install 'hf_segmodels[app]'.",
        epilog="Exit code: 0 when stopped, 2 for a mistake in the arguments or a missing package.",
    )
    demo.set_defaults(run=_demo)
    demo.add_argument(
        "--model",
        dest="models",
        nargs="+",
        default=(),
        metavar="FOLDER_OR_REPO",
        help="models to choose from: folders, or names of repositories on the Hub (default: the one in the package)",
    )
    demo.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: for other machines too")
    demo.add_argument("--port", type=_port, metavar="N", help="(default: the first free one from 7860 on)")
    demo.add_argument("--share", action="store_true", help="a public link for 72 hours, through Gradio's servers")
    demo.add_argument(
        "--long-edge",
        type=_count,
        default=2048,
        metavar="N",
        help="larger images are scaled down to this (default: 2048)",
    )
    _add_device_options(demo)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 1 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def parse_pixels(text: str) -> tuple[int, int]:
    """`"512"` or `"768x1024"` -> (height, width)."""
    numbers = text.lower().split("x")
    if len(numbers) > 2 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of pixels (512) nor HEIGHTxWIDTH (768x1024)")
    return int(numbers[0]), int(numbers[-1])


def parse_window(text: str) -> tuple[int, int] | int:
    return 0 if text == "0" else parse_pixels(text)


def _scale(text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; images come before the options") from None
    if not 0.1 <= scale <= 10:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.1 and 10")
    return scale


def _alpha(text: str) -> float:
    try:
        alpha = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= alpha <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return alpha


if __name__ == "__main__":
    sys.exit(main())
