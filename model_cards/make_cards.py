# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Write the cards of this folder from checkpoints.yaml, and the card of the demo model from its results file.

    python model_cards/make_cards.py            # writes cards that changed
    python model_cards/make_cards.py --check    # fails if a card is stale

No weights are needed: models are built on the meta device, from the recipes of the checkpoints.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard

from hf_segmodels.hub import create_model_card
from hf_segmodels.hub.cards.facts import METHODS
from hf_segmodels.training.factory import build_model
from hf_segmodels.training.recipe import Recipe
from package_demo_model import MODEL_FOLDER, RESULTS, demo_card


FOLDER = Path(__file__).resolve().parent
REPOSITORY = FOLDER.parent
CHECKPOINTS = FOLDER / "checkpoints.yaml"
RECIPES = REPOSITORY / "training" / "recipes"
README = FOLDER / "README.md"
_TABLE = re.compile(r"(?<=<!-- cards -->\n).*(?=<!-- end of cards -->)", re.DOTALL)
_PROTOCOLS = {
    "single scale": "single scale",
    "multi-scale": "scales 0.5, 0.75, 1, 1.25, 1.5, 1.75, with flipped copies",
}


def read_checkpoints() -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the facts about methods and about checkpoints in `checkpoints.yaml`."""
    facts = yaml.safe_load(CHECKPOINTS.read_text(encoding="utf-8"))
    return facts["methods"], facts["checkpoints"]


def build_checkpoint(checkpoint: Mapping[str, Any]) -> tuple[Any, Any, Recipe]:
    """Model on the meta device, image processor and recipe of a checkpoint."""
    recipe = Recipe.read(RECIPES / f"{checkpoint['recipe']}.yaml", ["pretrained_backbone=null"])
    with torch.device("meta"):
        return *build_model(recipe), recipe


def checkpoint_card(name: str, checkpoint: Mapping[str, Any], methods: Mapping[str, Any]) -> tuple[ModelCard, Any]:
    """Card and model of a released checkpoint."""
    model, image_processor, recipe = build_checkpoint(checkpoint)
    key = checkpoint["recipe"].partition("/")[0]
    method, facts = METHODS[key], methods[key]
    values = {"name": name, "file": checkpoint["file"]}
    if "url" in checkpoint:
        values["url"] = f"{facts['url']}/{checkpoint['url']}"
    left_out = f"Not converted: {facts['left_out']}." if facts["left_out"] else "All tensors are converted."
    original = (
        f"This card describes a checkpoint of [the authors]({method.repository}) after conversion. {facts['license_remark']}\n\n"
        f"{facts['download'].format(**values)}\n\n"
        "Convert it, and compare the result with an independent forward pass over the original weights:\n\n"
        f"```bash\nhf-segmodels convert --method {key} {facts['convert'].format(**values)}\n```\n\n"
        f"The file has {checkpoint['tensors']} tensors according to the authors' code and configuration (not verified against the "
        f"original file). {left_out}"
    )
    differences = "\n".join(f"- {text}" for text in [*facts["differences"], *checkpoint.get("notes", ())])
    card = create_model_card(
        model,
        image_processor,
        repo_id=name,
        dataset=recipe.layout,
        license=facts.get("license"),
        license_name=facts.get("license_name"),
        license_link=facts.get("license_link"),
        base_model=facts.get("base_model"),
        title=checkpoint["title"],
        reported=[
            {"score": str(score), "protocol": _PROTOCOLS[protocol], "source": _source(source, method.repository)}
            for score, protocol, source in checkpoint["reported"]
        ],
        sections={
            "The original checkpoint": original,
            "Differences between the paper, the authors' code and this model": "A converted model behaves like the code that "
            f"trained it.\n\n{differences}",
        },
    )
    return card, model


def _source(source: str, repository: str) -> str:
    return f"[README]({repository}) of the authors' code" if source == "README" else f"{source} of the paper"


def make_cards() -> dict[Path, str]:
    """Path and content of all files that this script writes."""
    methods, checkpoints = read_checkpoints()
    files, rows = {}, []
    for name, checkpoint in checkpoints.items():
        card, model = checkpoint_card(name, checkpoint, methods)
        files[FOLDER / f"{name}.md"] = f"{card}\n"
        rows.append(_row(name, checkpoint, model))
    head = "| card | parameters, M | classes | mIoU | multi-scale |\n|---|---|---|---|---|\n"
    text, num_tables = _TABLE.subn(lambda _: head + "".join(rows), README.read_text(encoding="utf-8"))
    if num_tables != 1:
        raise SystemExit(f"{README} needs the lines `<!-- cards -->` and `<!-- end of cards -->` for its table.")
    files[README] = text
    files[MODEL_FOLDER / "README.md"] = f"{demo_card(RESULTS)}\n"
    return files


def _row(name: str, checkpoint: Mapping[str, Any], model: Any) -> str:
    scores = {protocol: score for score, protocol, _ in checkpoint["reported"]}
    cells = [
        f"[{checkpoint['title']}]({name}.md)",
        f"{model.num_parameters() / 1e6:.1f}",
        model.config.num_labels,
        *(scores.get(protocol, "") for protocol in _PROTOCOLS),
    ]
    return f"| {' | '.join(map(str, cells))} |\n"


def stale_files(files: Mapping[Path, str]) -> list[Path]:
    """Files that are missing or out of date, and cards without an entry in `checkpoints.yaml`."""
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    return stale + [path for path in FOLDER.glob("*.md") if path not in files]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the model cards of this folder and of the demo model.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a card is stale")
    arguments = parser.parse_args(argv)

    files = make_cards()
    stale = stale_files(files)
    if arguments.check:
        for path in stale:
            print(f"stale: {path.relative_to(REPOSITORY)}", file=sys.stderr)
        if stale:
            print("run `python model_cards/make_cards.py` and review the changes", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        if path in files:
            path.write_text(files[path], encoding="utf-8")
            print(f"wrote {path.relative_to(REPOSITORY)}")
        else:
            path.unlink()
            print(f"removed {path.relative_to(REPOSITORY)}, which has no entry in {CHECKPOINTS.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
