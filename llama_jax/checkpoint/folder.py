"""A folder that is replaced whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(
    directory: pathlib.Path, is_ours: Callable[[str], bool] = lambda name: True
) -> Iterator[pathlib.Path]:
    """Yields a new, empty folder that takes the place of `directory` when the block ends well.

    After an error or an interrupt, also in the last step, `directory` is what it was. Entries of
    the old folder whose names are not `is_ours` go into the new one as well.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    new = directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:8]}")
    new.mkdir()
    try:
        yield new
        for file in new.iterdir():
            _flush(file)
        if directory.exists():
            _keep(directory, new, is_ours)
        _swap(directory, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _flush(file: pathlib.Path) -> None:
    """Waits until the disk has it, since the old one goes next."""
    with open(file, "rb+") as stream:
        os.fsync(stream.fileno())


def _keep(old: pathlib.Path, new: pathlib.Path, is_ours: Callable[[str], bool]) -> None:
    for entry in old.iterdir():
        if is_ours(entry.name):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=_link)
        else:
            _link(entry, new / entry.name)


def _link(source: str | pathlib.Path, target: str | pathlib.Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target, follow_symlinks=False)


def _swap(directory: pathlib.Path, new: pathlib.Path) -> None:
    old = new.with_name(f"{new.name}.old")
    try:
        if directory.exists():
            directory.rename(old)
        new.rename(directory)
    finally:
        if old.exists() and directory.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():
            old.rename(directory)
