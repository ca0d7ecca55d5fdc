# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Writing a folder in one piece or not at all."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def is_non_empty(folder: Path) -> bool:
    """Whether there is something that writing to `folder` could replace."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


@contextmanager
def atomic_directory(folder: Path, stale: Callable[[Path], Iterable[Path]]) -> Iterator[Path]:
    """
    Gives a new folder beside `folder` to write to. When the block ends it becomes `folder`; when it fails it is removed
    and nothing has changed.

    Args:
        folder (`Path`): The folder that is to hold the results.
        stale (`Callable`): Which files of a folder that holds something are of an earlier result, and so replaced. Others
            are kept.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        for file in partial.iterdir():
            # safetensors lets only the owner read what it writes; the new folder's mode knows the umask
            file.chmod(partial.stat().st_mode & 0o666)
        if not is_non_empty(folder):
            if folder.is_dir():
                folder.rmdir()
            partial.rename(folder)
            return
        for file in list(stale(folder)):
            file.unlink()
        for file in partial.iterdir():
            file.rename(folder / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Writes beside `path` first, so that an interrupted run leaves no half file."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


__all__ = ["atomic_directory", "atomic_write", "is_non_empty"]
