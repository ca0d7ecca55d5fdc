# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Atomic writes: a file or a folder appears complete, or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


def is_non_empty(folder: Path) -> bool:
    """Whether `folder` is a file, or a folder with contents."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


@contextmanager
def atomic_directory(folder: Path, stale: Callable[[Path], Iterable[Path]]) -> Iterator[Path]:
    """
    Yield a new folder next to `folder`. It becomes `folder` when the block ends. If the block raises, the new folder is
    removed and `folder` is unchanged.

    Args:
        folder (`Path`): Folder for the results. Its parent folders are created.
        stale (`Callable`): Maps a non-empty `folder` to its files from an earlier result. These are removed, all other
            files are kept.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        for file in partial.iterdir():
            # safetensors writes files that only their owner can read. The mode of the new folder follows the umask.
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


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or a folder. It replaces `path` when the block ends, and is removed if it raises."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        yield temporary
        if path.is_dir():  # `os.replace` does not replace folders
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        remove(temporary)


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path, then move the file that it wrote to `path`."""
    with atomic_path(path) as temporary:
        write(temporary)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
