# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Upload of a model to the Hub in one commit, for `hf-segmodels publish`."""

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
    HTTPError,  # from httpx or httpx2, depending on the version
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ..inference.predictor import load_predictor
from ..utils.errors import UserError, first_line
from .export import export_for_hub, exported_files, is_exported_module


# weights that an earlier upload may have left, and that would be loaded instead of the new ones
_WEIGHTS = (
    "model*.safetensors",
    "model*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
)


@dataclass(frozen=True)
class Publication:
    """
    Result of [`publish`].

    Args:
        files (`dict[str, int]`): Size of each file in bytes, by name.
        url (`str`, *optional*): Address of the commit or pull request; `None` for a dry run.
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
    Export the model in a folder with [`export_for_hub`] and upload it in one commit. The commit also deletes code and weights
    of an earlier upload that are no longer part of the model. Other files of the repository are kept.

    Args:
        folder (`str` or `Path`):
            Folder of a model and its image processor, as training, conversion or `save_pretrained` writes it. Its
            `README.md` becomes the model card. Without one, a card is made, with the scores of `results.json` if it exists.
        repo_id (`str`):
            Name of the repository, `OWNER/NAME`. A repository that does not exist is created.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether to stop before the upload. A dry run needs neither network nor token.
        output (`str` or `Path`, *optional*):
            Folder for the exported files; defaults to a temporary folder.
        private (`bool`, *optional*):
            Whether a new repository is private; defaults to the setting of its owner.
        revision (`str`, *optional*):
            Branch to commit to, created if it does not exist; defaults to `main`.
        create_pr (`bool`, *optional*, defaults to `False`):
            Whether to open a pull request instead of committing.
        token (`str`, *optional*):
            Access token; defaults to the token of `hf auth login` or of the variable `HF_TOKEN`.
        card_options:
            Options of [`create_model_card`], such as `results`, `dataset` or `license`.

    Returns:
        [`Publication`]: The files and the address of the commit.

    Raises:
        UserError: if the folder holds no model that can be exported, `repo_id` is malformed, there is no token or it does not
            permit the upload, or the Hub cannot be reached.
    """
    try:
        validate_repo_id(repo_id)
        problem = None if repo_id.count("/") == 1 else "the owner is missing"
    except HFValidationError as error:
        problem = first_line(error).rstrip(".")
    if problem is not None:
        raise UserError(
            f"{repo_id!r} is not a valid repository name ({problem}): write OWNER/NAME, such as jane/segmenter-ade20k."
        )
    if create_pr and revision is not None:
        raise UserError("a pull request always targets `main`: leave out the revision or the pull request.")
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder of a model.")
    if not dry_run and token is None and get_token() is None:
        raise UserError(
            "there is no access token for the Hub: run `hf auth login`, or set HF_TOKEN to a token with write permission "
            "(https://huggingface.co/settings/tokens)."
        )
    predictor = load_predictor(str(folder), device="cpu", dtype="auto")
    readme, own_results = folder / "README.md", folder / "results.json"
    card = readme.read_text(encoding="utf-8") if readme.is_file() else None
    if card is None and own_results.is_file():
        card_options.setdefault("results", own_results)
    with tempfile.TemporaryDirectory() as temporary:
        exported = export_for_hub(
            predictor.model,
            predictor.image_processor,
            Path(temporary, "model") if output is None else output,
            repo_id=repo_id,
            card=card,
            **card_options,
        )
        files = sorted(exported_files(exported))
        sizes = {path.name: path.stat().st_size for path in files}
        if dry_run:
            return Publication(sizes)
        api = HfApi(token=token)
        with _hub_errors(repo_id, api.endpoint):
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            info = api.model_info(repo_id, revision=revision)
            if private and info.private is False:
                raise UserError(
                    f"{repo_id} already exists and is public: make it private in its settings first, or leave out "
                    "--private."
                )
            # `upload_folder` may make several commits, so that someone could load half of an update
            present = {sibling.rfilename for sibling in info.siblings or []}
            stale = [name for name in sorted(present - sizes.keys()) if _is_stale(api, repo_id, info.sha, name)]
            commit = api.create_commit(
                repo_id,
                [*map(CommitOperationDelete, stale), *(CommitOperationAdd(path.name, path) for path in files)],
                commit_message=f"Upload {type(predictor.model).__name__}",
                revision=revision,
                create_pr=create_pr,
            )
    return Publication(sizes, commit.pr_url or commit.commit_url)


def _is_stale(api: HfApi, repo_id: str, commit: str | None, name: str) -> bool:
    if "/" in name:
        return False
    if not name.endswith(".py"):
        return any(fnmatch(name, pattern) for pattern in _WEIGHTS)
    with tempfile.TemporaryDirectory() as folder:
        return is_exported_module(Path(api.hf_hub_download(repo_id, name, revision=commit, local_dir=folder)))


@contextlib.contextmanager
def _hub_errors(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turn errors of the Hub into messages that say what to do."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UserError("the Hub cannot be used while HF_HUB_OFFLINE is set: unset it.") from error
    except RevisionNotFoundError as error:
        raise UserError(f"this revision of {repo_id} does not exist: {first_line(error)}") from error
    except HfHubHTTPError as error:
        status, reason = error.response.status_code, first_line(error)
        if status == 401:
            advice = "the access token is not valid: run `hf auth login` again, or set HF_TOKEN to another token"
        elif status in (403, 404):
            advice = (
                f"the access token may not write to {repo_id}: use a token with write permission, a repository of your own, or "
                "--create-pr for a pull request"
            )
        elif status >= 500:
            advice = f"{endpoint} failed: try again later"
        else:
            advice = f"{endpoint} refused the upload"
        raise UserError(f"{advice} ({reason}).") from error
    except (HTTPError, LocalEntryNotFoundError) as error:
        raise UserError(
            f"cannot reach {endpoint}: check the network, and HF_ENDPOINT if it is set ({first_line(error)})."
        ) from error
    except ValueError as error:  # the Hub checks the metadata of the card
        raise UserError(f"the Hub did not accept the model card: {' '.join(str(error).split())}") from error
