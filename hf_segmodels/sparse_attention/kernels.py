# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Loading of the compiled kernel. The first available source is used:

1. `LOCAL_KERNELS=hf-segmodels/sparse-attention=FOLDER`, as `kernels` reads it, or a build in this checkout
   (`hub_kernels/sparse-attention/tools/build_local.py`);
2. a revision on the Hub that the user requested with [`use_hub_kernel`] or
   `HF_SEGMODELS_SPARSE_ATTENTION=OWNER/NAME@REVISION`: code from the network never runs without a request;
3. no kernel: the operation runs through `grid_sample`, also with `HF_SEGMODELS_SPARSE_ATTENTION=reference`.

The source is logged once, at level INFO, or at level WARNING if a requested kernel could not be loaded.
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
    """Kernel on the Hub that the user requested; `trust_remote_code` as in `kernels.get_kernel`."""

    repo_id: str
    revision: str | None = None
    version: int | None = None
    trust_remote_code: bool = False

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision or f'v{self.version}'}"


_requested_kernel: HubKernel | None = None


def use_hub_kernel(
    repo_id: str = REPOSITORY,
    *,
    revision: str | None = None,
    version: int | None = None,
    trust_remote_code: bool = False,
) -> None:
    """
    Use the kernel of a repository of type `kernel` on the Hub, unless there is a local kernel. It is downloaded when sparse
    attention first runs.

    Args:
        repo_id (`str`, *optional*, defaults to `"hf-segmodels/sparse-attention"`): Repository on the Hub.
        revision (`str`, *optional*): Branch, tag or commit. Only a commit always refers to the same code.
        version (`int`, *optional*): Major version, instead of `revision`.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Required for publishers that are not trusted by the Hub.

    Raises:
        ValueError: if not exactly one of `revision` and `version` is given.
    """
    if (revision is None) == (version is None):
        raise ValueError("Give exactly one of `revision` (preferably a commit) and `version`.")
    global _requested_kernel
    _requested_kernel = HubKernel(repo_id, revision, version, trust_remote_code)
    load_kernel.cache_clear()


@functools.cache
def load_kernel() -> ModuleType | None:
    """
    Return the module of the kernel, or `None` without a kernel. Errors are logged, since the reference can run instead. After
    `load_kernel.cache_clear()`, for example when the environment has changed, the next use loads the kernel again.
    """
    requested = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if requested == "reference":
        logger.info(f"Sparse attention runs through grid_sample, as requested by {ENVIRONMENT_VARIABLE}=reference.")
        return None
    for source, was_requested, load in _sources(requested):
        try:
            kernel = load()
        except Exception as error:  # a kernel of another version may fail in any way
            log = logger.warning if was_requested else logger.info
            reason = str(error).strip().splitlines() or [type(error).__name__]
            log(f"The sparse attention kernel from {source} cannot be used: {reason[0]}")
        else:
            logger.info(f"Sparse attention runs with the kernel from {source} ({kernel.__name__}).")
            return kernel
    logger.info("Sparse attention runs through grid_sample: there is no kernel for it. See README.md.")
    return None


def _sources(requested: str) -> Iterator[tuple[str, bool, Callable[[], ModuleType]]]:
    """Yield the sources in order of priority: name, whether the user requested it, and the function that loads it."""
    for entry in filter(None, os.environ.get("LOCAL_KERNELS", "").split(":")):
        repo_id, _, folder = entry.partition("=")
        if repo_id == REPOSITORY:
            yield f"LOCAL_KERNELS, {folder}", True, functools.partial(_load_local, Path(folder))
    if any((CHECKOUT / "build").glob("*/metadata.json")):
        yield f"the local build in {CHECKOUT}", False, functools.partial(_load_local, CHECKOUT)
    if requested:
        repo_id, _, revision = requested.partition("@")
        # the request in the environment variable implies trust
        kernel = HubKernel(repo_id, revision, trust_remote_code=True)
        yield str(kernel), True, functools.partial(_load_from_hub, kernel)
    elif _requested_kernel is not None:
        yield str(_requested_kernel), True, functools.partial(_load_from_hub, _requested_kernel)


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
        # a build of torch for CUDA can use a kernel that was built for CPUs only
        return _kernels().get_local_kernel(folder, backend="cpu")


def _load_from_hub(kernel: HubKernel) -> ModuleType:
    if not kernel.revision and kernel.version is None:
        raise ValueError(f"{kernel.repo_id} has no revision: set {ENVIRONMENT_VARIABLE}=OWNER/NAME@REVISION.")
    return _kernels().get_kernel(
        kernel.repo_id,
        revision=kernel.revision,
        version=kernel.version,
        trust_remote_code=[kernel.repo_id] if kernel.trust_remote_code else False,
    )


class _ResolvedLayer:
    """Source of the layer for the mapping of `kernels`: the kernel that [`load_kernel`] found."""

    layer_name = LAYER_NAME

    def load(self) -> type[nn.Module]:
        kernel = load_kernel()
        if kernel is None:
            raise FileNotFoundError("there is no kernel for sparse attention")
        return getattr(kernel.layers, LAYER_NAME)

    def __str__(self) -> str:
        return f"the kernel selected by hf_segmodels, layer `{LAYER_NAME}`"


def register_kernel_mapping() -> bool:
    """
    Register the layer that replaces [`SparseSampling`] with `kernels`, for `use_kernels=True` and `kernelize`.

    Returns:
        `bool`: whether there is such a layer, and a version of `kernels` that transformers supports.
    """
    if not is_kernels_available():
        logger.warning(
            "`use_kernels=True` has no effect: `kernels` is not installed, or this version of transformers does not support "
            "it. Sparse attention still runs with a kernel if one can be loaded."
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
    """Mixin for models with [`SparseSampling`] layers: `from_pretrained(..., use_kernels=True)` finds the kernel."""

    def set_use_kernels(self, use_kernels: bool, kernel_config: Any = None, **kwargs: Any) -> None:
        """See `PreTrainedModel.set_use_kernels`. Without a kernel the model stays unchanged, with a warning."""
        # a mapping of the caller is left to transformers
        if use_kernels and kernel_config is None:
            use_kernels = register_kernel_mapping()
        super().set_use_kernels(use_kernels, kernel_config, **kwargs)  # type: ignore[misc]
