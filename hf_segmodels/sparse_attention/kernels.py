# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Where a compiled kernel for the operation comes from. The first of these that is there is used:

1. `LOCAL_KERNELS=hf-segmodels/sparse-attention=FOLDER`, as `kernels` reads it, or a build in this checkout
   (`hub_kernels/sparse-attention/tools/build_local.py`);
2. a revision on the Hub that the user asked for, by [`use_hub_kernel`] or
   `HF_SEGMODELS_SPARSE_ATTENTION=OWNER/NAME@REVISION`: code from the network never runs unasked;
3. none: the operation runs through `grid_sample`. `HF_SEGMODELS_SPARSE_ATTENTION=reference` asks for that.

Which one it is, is logged once, at level INFO, or WARNING where one was asked for and could not be loaded.
"""

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from transformers.utils import logging
from transformers.utils.import_utils import is_kernels_available


logger = logging.get_logger(__name__)

LAYER_NAME = "SparseSampling"
REPOSITORY = "hf-segmodels/sparse-attention"
ENVIRONMENT_VARIABLE = "HF_SEGMODELS_SPARSE_ATTENTION"
CHECKOUT = Path(__file__).resolve().parents[2] / "hub_kernels" / "sparse-attention"


@dataclass(frozen=True)
class HubKernel:
    """A kernel on the Hub that the user asked for; `trust_remote_code` as `kernels.get_kernel` takes it."""

    repo_id: str
    revision: str | None = None
    version: int | None = None
    trust_remote_code: bool = False

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision or f'v{self.version}'}"


_asked_for: HubKernel | None = None


def use_hub_kernel(
    repo_id: str = REPOSITORY,
    *,
    revision: str | None = None,
    version: int | None = None,
    trust_remote_code: bool = False,
) -> None:
    """
    Takes the kernel from a repository of type `kernel` on the Hub, unless there is a local one. It is downloaded when
    sparse attention first runs.

    Args:
        repo_id (`str`, *optional*): The repository.
        revision (`str`, *optional*): Branch, tag or commit; a commit always means the same code.
        version (`int`, *optional*): Major version, instead of a revision.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Required for publishers that the Hub does not list
            as trusted.

    Raises:
        ValueError: unless exactly one of `revision` and `version` is given.
    """
    if (revision is None) == (version is None):
        raise ValueError("Say which kernel to run: give a `revision` (best a commit) or a `version`, one of both.")
    global _asked_for
    _asked_for = HubKernel(repo_id, revision, version, trust_remote_code)
    forget_kernel()


def forget_kernel() -> None:
    """Lets the next use look for a kernel again, after the environment has changed."""
    load_kernel.cache_clear()


@functools.cache
def load_kernel() -> ModuleType | None:
    """The kernel's module, or `None`. Never raises: without a kernel the operation runs all the same."""
    requested = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if requested == "reference":
        logger.info(f"Sparse attention runs through grid_sample, as {ENVIRONMENT_VARIABLE}=reference asks.")
        return None
    for source, was_asked_for, load in _sources(requested):
        try:
            kernel = load()
        except Exception as error:  # whatever goes wrong in another package, an old or a new version of it
            log = logger.warning if was_asked_for else logger.info
            reason = str(error).strip().splitlines() or [type(error).__name__]
            log(f"The sparse attention kernel from {source} cannot be used: {reason[0]}")
        else:
            logger.info(f"Sparse attention runs with the kernel from {source} ({kernel.__name__}).")
            return kernel
    logger.info("Sparse attention runs through grid_sample: there is no kernel for it. See README.md.")
    return None


def _sources(requested: str) -> Iterator[tuple[str, bool, Callable[[], ModuleType]]]:
    """What to try in turn: its name, whether the user named it, and how to load it."""
    for entry in filter(None, os.environ.get("LOCAL_KERNELS", "").split(":")):
        repo_id, _, folder = entry.partition("=")
        if repo_id == REPOSITORY:
            yield f"LOCAL_KERNELS, {folder}", True, functools.partial(_load_local, Path(folder))
    if any((CHECKOUT / "build").glob("*/metadata.json")):
        yield f"the local build in {CHECKOUT}", False, functools.partial(_load_local, CHECKOUT)
    if requested:
        repo_id, _, revision = requested.partition("@")
        # naming it is trusting it
        asked_for = HubKernel(repo_id, revision, trust_remote_code=True)
        yield str(asked_for), True, functools.partial(_load_from_hub, asked_for)
    elif _asked_for is not None:
        yield str(_asked_for), True, functools.partial(_load_from_hub, _asked_for)


def _kernels() -> ModuleType:
    try:
        import kernels
    except ImportError as error:
        raise ImportError("the package `kernels` is not installed: `pip install kernels`") from error
    return kernels


def _load_local(folder: Path) -> ModuleType:
    try:
        return _kernels().get_local_kernel(folder)
    except FileNotFoundError:
        # a build of torch with CUDA can use a build of the kernel for CPUs only
        return _kernels().get_local_kernel(folder, backend="cpu")


def _load_from_hub(kernel: HubKernel) -> ModuleType:
    if not kernel.revision and kernel.version is None:
        raise ValueError(f"{kernel.repo_id} names no revision: write {ENVIRONMENT_VARIABLE}=OWNER/NAME@REVISION.")
    return _kernels().get_kernel(
        kernel.repo_id,
        revision=kernel.revision,
        version=kernel.version,
        trust_remote_code=[kernel.repo_id] if kernel.trust_remote_code else False,
    )


class _ResolvedLayer:
    """A source of layers for `kernels`' mapping: that of the kernel found above, whatever its origin."""

    layer_name = LAYER_NAME

    def load(self) -> type[nn.Module]:
        kernel = load_kernel()
        if kernel is None:
            raise FileNotFoundError("there is no kernel for sparse attention")
        return getattr(kernel.layers, LAYER_NAME)

    def __str__(self) -> str:
        return f"hf_segmodels' choice of a kernel, layer `{LAYER_NAME}`"


def register_kernel_mapping() -> bool:
    """
    Tells `kernels` which layer replaces [`SparseSampling`], for `use_kernels=True` and `kernelize`.

    Returns:
        `bool`: whether there is such a layer and a version of `kernels` that transformers works with.
    """
    if not is_kernels_available():
        logger.warning(
            "`use_kernels=True` has no effect: this version of transformers does not work with the installed `kernels`, "
            "or there is none. Sparse attention still runs with a kernel where one can be loaded."
        )
        return False
    kernel = load_kernel()
    if kernel is None:
        logger.warning("`use_kernels=True` has no effect: there is no kernel for sparse attention. See README.md.")
        return False
    mapping: dict[str, Any] = {device: _ResolvedLayer() for device in ("cpu", "cuda") if kernel.supports(device)}
    _kernels().register_kernel_mapping({LAYER_NAME: mapping})
    return True


class SparseAttentionKernelMixin:
    """For models with [`SparseSampling`] layers: `from_pretrained(..., use_kernels=True)` finds their kernel."""

    def set_use_kernels(self, use_kernels: bool, kernel_config: Any = None, **kwargs: Any) -> None:
        """As transformers' own. Where there is no kernel the model stays as it is, with a warning."""
        # a mapping of the caller's is for transformers to judge
        if use_kernels and kernel_config is None:
            use_kernels = register_kernel_mapping()
        super().set_use_kernels(use_kernels, kernel_config, **kwargs)  # type: ignore[misc]
