"""A checkpoint's folder: what is in it, and putting a new one in its place whole or not at all."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from llama_jax.checkpoint.tensors import CheckpointError, listed

__all__ = [
    "check_replaceable",
    "contents",
    "existing",
    "in_words",
    "read_json",
    "replacing",
    "write_json",
]


@contextlib.contextmanager
def replacing(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a new, empty folder that takes the place of `directory` when the block ends well.

    After an error or an interrupt, also in the last step, `directory` is what it was. Entries of
    the old folder that are no part of a checkpoint, in whatever format, go into the new one too.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    new = directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:8]}")
    new.mkdir()
    try:
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                _flush(file)
        if directory.exists():
            _keep(directory, new)
        _swap(directory, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _flush(file: pathlib.Path) -> None:
    """Waits until the disk has it, since the old one goes next."""
    with open(file, "rb+") as stream:
        os.fsync(stream.fileno())


_OURS = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
    "params.json",
    "consolidated*.pth",
    "checklist.chk",
    "weights.orbax",
)


def _keep(old: pathlib.Path, new: pathlib.Path) -> None:
    for entry in old.iterdir():
        if any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in _OURS):
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


def existing(directory: str | os.PathLike[str]) -> pathlib.Path:
    """The folder. Raises `FileNotFoundError`, and `CheckpointError` for a file."""
    directory = pathlib.Path(directory).expanduser()
    if not directory.exists():
        raise FileNotFoundError(
            f"There is no {directory} on this machine. A checkpoint is a folder with config.json "
            "and safetensors; the model that ships is called 'cria'."
        )
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is a file. A checkpoint is a folder: give that.")
    return directory


def check_replaceable(directory: pathlib.Path) -> None:
    """Raises `CheckpointError` for a file, and for a folder with things that are no checkpoint."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is a file. A checkpoint is a folder.")
    if any(directory.iterdir()) and not any((directory / name).is_file() for name in _CONFIGS):
        raise CheckpointError(
            f"{directory} has no config.json, so it is no checkpoint to replace; it has "
            f"{contents(directory)}. Save to a new folder."
        )


_CONFIGS = ("config.json", "params.json")


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """Settings by name. Raises `CheckpointError` for anything else."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not settings by name.")
    return content


def write_json(file: pathlib.Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def contents(directory: pathlib.Path) -> str:
    """What a folder holds, in words."""
    return in_words(sorted(entry.name for entry in directory.iterdir())) or "nothing"


def in_words(names: Sequence[str]) -> str:
    return ", ".join(listed(names))
