# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Putting a model into a repository on the Hub, in one commit: what `hf-segmodels publish` does."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # httpx's or httpx2's, by the version
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ..inference.predictor import load_predictor
from ..utils.errors import UserError, first_line
from .export import artifacts, export_for_hub, is_written_here


# Weights of an earlier upload, which a loader could take for the model's.
_WEIGHTS = (
    "model*.safetensors",
    "model*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
)


@dataclass(frozen=True)
class Publication:
    """
    What [`publish`] did, or would do.

    Args:
        files (`dict[str, int]`): Size in bytes of each file, by its name.
        url (`str`, *optional*): Where the commit or the pull request is; `None` after a dry run.
    """

    files: dict[str, int]
    url: str | None = None


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    dry_run: bool = False,
    output: str | Path | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    **card_options: Any,
) -> Publication:
    """
    Exports the model in a folder ([`export_for_hub`]) and uploads it in one commit. Code and weights of an earlier upload
    that are no longer part of the model are deleted in the same commit, other files of the repository stay.

    Args:
        folder (`str` or `Path`):
            A model and its image processor, as training, converting or `save_pretrained` writes them. Its `README.md`, if
            there is one, becomes the model card; otherwise one is made, with the scores in its `results.json`, if any.
        repo_id (`str`):
            Name of the repository, `OWNER/NAME`. It is created if there is none.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether to stop before anything is sent. Needs no network and no token.
        output (`str` or `Path`, *optional*):
            Folder for what is uploaded; a temporary one if unset.
        private (`bool`, *optional*):
            Whether a repository that is created is private; as the owner's settings say if unset.
        revision (`str`, *optional*):
            Branch to commit to, created if there is none; `main` if unset.
        create_pr (`bool`, *optional*, defaults to `False`):
            Whether to open a pull request instead of committing.
        token (`str`, *optional*):
            Access token; that of `hf auth login` or of the variable `HF_TOKEN` if unset.
        card_options:
            For the card that is made: `results`, `dataset`, `license` and others of [`create_model_card`].

    Returns:
        [`Publication`]: The files, and where they are.

    Raises:
        UserError: if the folder holds no model that can be exported, the name is malformed, there is no token or it does
            not permit the upload, or the Hub cannot be reached.
    """
    _check_name(repo_id)
    if create_pr and revision is not None:
        raise UserError("a pull request is always one to `main`: leave out either the revision or the pull request.")
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give the folder of a model.")
    if not dry_run and token is None and get_token() is None:
        raise UserError(
            "there is no access token for the Hub: run `hf auth login`, or set HF_TOKEN to one that may write "
            "(https://huggingface.co/settings/tokens)."
        )
    predictor = load_predictor(str(folder), device="cpu", dtype="auto")
    readme, own_results = folder / "README.md", folder / "results.json"
    if own_results.is_file() and not readme.is_file():
        card_options.setdefault("results", own_results)
    with contextlib.ExitStack() as stack:
        if output is None:
            output = Path(stack.enter_context(tempfile.TemporaryDirectory()), "model")
        exported = export_for_hub(
            predictor.model,
            predictor.image_processor,
            output,
            repo_id=repo_id,
            card=readme.read_text(encoding="utf-8") if readme.is_file() else None,
            **card_options,
        )
        files = sorted(artifacts(exported))
        sizes = {path.name: path.stat().st_size for path in files}
        if dry_run:
            return Publication(sizes)
        api = HfApi(token=token)
        with _explained(repo_id, api.endpoint):
            url = _upload(
                api,
                files,
                repo_id,
                type(predictor.model).__name__,
                private=private,
                revision=revision,
                create_pr=create_pr,
            )
    return Publication(sizes, url)


def _upload(
    api: HfApi,
    files: list[Path],
    repo_id: str,
    model_name: str,
    *,
    private: bool | None,
    revision: str | None,
    create_pr: bool,
) -> str:
    api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    info = api.model_info(repo_id, revision=revision)
    if private and info.private is False:
        raise UserError(
            f"{repo_id} exists and is public: make it private in its settings first, or leave out --private."
        )
    # not `upload_folder`, which may make several commits: nobody is to load half of an update
    names = {path.name for path in files}
    there = [sibling.rfilename for sibling in info.siblings or []]
    stale = [name for name in there if name not in names and _is_stale(api, repo_id, info.sha, name)]
    commit = api.create_commit(
        repo_id,
        [
            *(CommitOperationDelete(name) for name in stale),
            *(CommitOperationAdd(path.name, path) for path in files),
        ],
        commit_message=f"Upload {model_name}",
        revision=revision,
        create_pr=create_pr,
    )
    return commit.pr_url or commit.commit_url


def _is_stale(api: HfApi, repo_id: str, commit: str | None, name: str) -> bool:
    if "/" in name:
        return False
    if not name.endswith(".py"):
        return any(fnmatch(name, pattern) for pattern in _WEIGHTS)
    with tempfile.TemporaryDirectory() as folder:
        return is_written_here(Path(api.hf_hub_download(repo_id, name, revision=commit, local_dir=folder)))


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
        problem = None if repo_id.count("/") == 1 else "the owner is missing"
    except HFValidationError as error:
        problem = first_line(error).rstrip(".")
    if problem is not None:
        raise UserError(
            f"{repo_id!r} is no name of a repository ({problem}): write OWNER/NAME, such as jane/segmenter-ade20k."
        )


@contextlib.contextmanager
def _explained(repo_id: str, endpoint: str) -> Iterator[None]:
    """Says what to do about the Hub's errors."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UserError("the Hub is not to be used while HF_HUB_OFFLINE is set: unset it.") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{repo_id} has no such revision: {first_line(error)}") from error
    except HfHubHTTPError as error:
        status, reason = error.response.status_code, first_line(error)
        if status == 401:
            advice = "the access token is not valid: run `hf auth login` again, or set HF_TOKEN to another"
        elif status in (403, 404):
            advice = (
                f"the access token may not write to {repo_id}: use one with that permission, or a repository of your own, or "
                "open a pull request with --create-pr"
            )
        elif status >= 500:
            advice = f"{endpoint} has a problem: try again later"
        else:
            advice = f"{endpoint} refuses the upload"
        raise UserError(f"{advice} ({reason}).") from error
    except (HTTPError, LocalEntryNotFoundError) as error:
        raise UserError(
            f"cannot reach {endpoint}: check the network, and HF_ENDPOINT if it is set ({first_line(error)})."
        ) from error
    except ValueError as error:  # of the card's metadata, which the Hub checks
        raise UserError(f"the Hub does not accept the files: {' '.join(str(error).split())}") from error


__all__ = ["Publication", "publish"]
