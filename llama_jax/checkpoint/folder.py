"""A checkpoint's folder: what is in it, and putting a new one in its place whole or not at all."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from llama_jax.base.fields import parse_json, shown
from llama_jax.base.replacing import as_path, is_stage, replacing_folder, settle
from llama_jax.checkpoint.tensors import CheckpointError, listed

__all__ = [
    "check_kind",
    "check_unchanged",
    "contents",
    "existing",
    "in_words",
    "read_json",
    "replaceable",
    "replacing",
    "stamps",
    "write_json",
]


def replacing(directory: pathlib.Path) -> contextlib.AbstractContextManager[pathlib.Path]:
    """A new, empty folder whose content takes the place of `directory`'s when the block ends well.

    After an error or an interrupt, also in the last step, `directory` is what it was. Entries that
    are no part of a checkpoint, in whatever format, stay.
    """
    return replacing_folder(directory, _is_ours, CheckpointError)


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


def _is_ours(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _OURS)


def existing(directory: str | os.PathLike[str]) -> pathlib.Path:
    """The folder. Raises `FileNotFoundError`, and `CheckpointError` for a file.

    What a killed process left of saving to it is put in order first.
    """
    directory = as_path(directory)
    settle(directory)
    if not directory.exists():
        raise FileNotFoundError(
            f"There is no {directory} on this machine. A checkpoint is a folder with config.json "
            "and safetensors; the model that ships is called 'cria'."
        )
    if not directory.is_dir():
        what = _what([directory.name])
        raise CheckpointError(
            f"{directory} is {what or 'a file'}. A checkpoint is a folder: give that."
        )
    return directory


_WEIGHTS = ("model*.safetensors", "weights.orbax", "consolidated*.pth")
# What people have that is not a checkpoint of ours, by a file's name, with what to do; the first
# that fits counts.
_OTHERS = {
    "adapter_config.json": "a LoRA adapter, the change of a model and no model. Merge it into its "
    "base model with peft: PeftModel.from_pretrained(base, path).merge_and_unload()"
    ".save_pretrained(folder); open that folder",
    "*.gguf": "GGUF, llama.cpp's format, which is not read. Open the checkpoint that it was made "
    "from (config.json and safetensors)",
    "quantize_config.json": "weights quantized by GPTQ, which are not read. Open the checkpoint "
    "that they were made from",
    "quant_config.json": "weights quantized by AWQ, which are not read. Open the checkpoint that "
    "they were made from",
    "pytorch_model*.bin": "torch pickles, which are not opened. Write safetensors with "
    "transformers: AutoModelForCausalLM.from_pretrained(path).save_pretrained(folder)",
}


def check_kind(directory: pathlib.Path) -> None:
    """Raises `CheckpointError` for a folder that holds something else instead of our weights."""
    names = [entry.name for entry in directory.iterdir()]
    what = None if any(fnmatch.filter(names, form) for form in _WEIGHTS) else _what(names)
    if what and "adapter_config.json" in names:
        base = read_json(directory / "adapter_config.json").get("base_model_name_or_path")
        what += f". Its base model is {shown(base)}"
    if what:
        raise CheckpointError(f"{directory} is {what}.")


def _what(names: Sequence[str]) -> str | None:
    return next((what for form, what in _OTHERS.items() if fnmatch.filter(names, form)), None)


Stamps = dict[str, tuple[int, int, int]]


def stamps(directory: pathlib.Path) -> Stamps:
    """What tells a checkpoint's files from others of the same names, for `check_unchanged`."""
    found = {}
    for name in filter(_is_ours, os.listdir(directory)):
        with contextlib.suppress(OSError):
            about = os.stat(directory / name)
            found[name] = (about.st_ino, about.st_mtime_ns, about.st_size)
    return found


def check_unchanged(directory: pathlib.Path, before: Stamps) -> None:
    """Raises `CheckpointError` where files that were read are not those that are there now.

    A part of the weights may be another checkpoint's then.
    """
    now = stamps(directory)
    changed = sorted(name for name in before if now.get(name) != before[name])
    if changed:
        raise CheckpointError(
            f"{directory} was written to while it was read: {in_words(changed)} changed. Open it "
            "again."
        )


def replaceable(directory: str | os.PathLike[str]) -> pathlib.Path:
    """The folder that a checkpoint is to be saved in, which need not be there yet.

    Raises `CheckpointError` for a file, and for a folder with things that are no checkpoint.
    """
    directory = as_path(directory)
    settle(directory)
    if directory.is_file():
        raise CheckpointError(f"{directory} is a file. A checkpoint is a folder.")
    if not directory.is_dir():
        return directory
    try:
        names = [name for name in os.listdir(directory) if not is_stage(name)]
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be read: {error.strerror}.") from None
    if names and not any((directory / name).is_file() for name in _CONFIGS):
        raise CheckpointError(
            f"{directory} has no config.json, so it is no checkpoint to replace; it has "
            f"{contents(directory)}. Save to a new folder."
        )
    return directory


_CONFIGS = ("config.json", "params.json")
MOST_JSON = 64 * 2**20  # bytes; the index of 405B's 1,138 tensors takes 100 thousand


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """Settings by name. Raises `CheckpointError` for anything else."""
    if file.stat().st_size > MOST_JSON:
        raise CheckpointError(
            f"{file} has {file.stat().st_size:,} bytes; settings have at most {MOST_JSON:,}."
        )
    try:
        content = parse_json(file.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not settings by name.")
    return content


def write_json(file: pathlib.Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def contents(directory: pathlib.Path) -> str:
    """What a folder holds, in words."""
    names = (entry.name for entry in directory.iterdir() if not is_stage(entry.name))
    return in_words(sorted(names)) or "nothing"


def in_words(names: Sequence[str]) -> str:
    return ", ".join(listed(names))
