"""Hugging Face checkpoints: `config.json`, safetensors in one file or in shards, a tokenizer.

Files put `model.` before the names of most tensors; it is taken off and put on here alone. Loading
checks all names, shapes and dtypes from the files' headers, then reads each tensor into the memory
that its array keeps, so that it takes the room of the weights and little more.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from safetensors.numpy import save_file

from llama_jax.base.fields import shown
from llama_jax.checkpoint.filling import expected, fill
from llama_jax.checkpoint.folder import (
    check_kind,
    contents,
    existing,
    in_words,
    read_json,
    replaceable,
    replacing,
    write_json,
)
from llama_jax.checkpoint.tensors import (
    DTYPES,
    CheckpointError,
    TensorInfo,
    equal,
    listed,
    on_host,
    read_header,
)
from llama_jax.config import LlamaConfig
from llama_jax.config_json import check_generation
from llama_jax.model import Model, parameters
from llama_jax.text import Tokenizer

__all__ = [
    "checked",
    "inspect",
    "load",
    "read_config",
    "read_stop_tokens",
    "read_tokenizer",
    "save",
    "write_configs",
]

Path = str | os.PathLike[str]

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def read_config(directory: Path) -> dict[str, Any]:
    """The content of `config.json`. Warns of a LoRA adapter beside it.

    Raises `FileNotFoundError`, and `CheckpointError` also for a folder of another kind.
    """
    directory = existing(directory)
    check_kind(directory)
    if not (directory / "config.json").is_file():
        raise CheckpointError(
            f"{directory} has no config.json. A checkpoint is a folder with config.json and "
            f"{_WEIGHTS} (or shards and {_INDEX}); this one has {contents(directory)}."
        )
    if (directory / "adapter_config.json").is_file():
        warnings.warn(
            f"{directory} has a LoRA adapter (adapter_config.json) beside config.json: what is "
            "opened is the model without it.",
            stacklevel=3,
        )
    return read_json(directory / "config.json")


def read_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer of a checkpoint: `tokenizer.json`, else `tokenizer.model`, else None."""
    for name in ("tokenizer.json", "tokenizer.model"):
        file = existing(directory) / name
        if file.is_file():
            return Tokenizer.from_file(file)
    return None


def read_stop_tokens(directory: Path) -> tuple[int, ...]:
    """The end tokens: `eos_token_id` of `generation_config.json`, else of `config.json`.

    Raises `ConfigError` where one of these, or another field beside it, is of the wrong type.
    """
    for name in ("generation_config.json", "config.json"):
        file = existing(directory) / name
        settings = read_json(file) if file.is_file() else {}
        check_generation(str(file), settings)
        ids = settings.get("eos_token_id")
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    return ()


def inspect(directory: Path) -> dict[str, TensorInfo]:
    """What the files hold, by name without `model.`; reads their headers only.

    Raises `CheckpointError` for a file that is missing, cut off or not safetensors, and for files
    that contradict each other; `FileNotFoundError` where there is no such folder.
    """
    directory = existing(directory)
    tensors: dict[str, TensorInfo] = {}
    for file, indexed in _files(directory).items():
        here, _ = read_header(directory / file)
        absent = sorted(indexed - set(here))
        if absent:
            raise CheckpointError(f"{directory / file}: {_INDEX} says it has {in_words(absent)}.")
        for full_name, info in here.items():
            name = full_name.removeprefix("model.")
            if name in tensors:
                raise CheckpointError(
                    f"{name} is twice in {directory}: in {tensors[name].file.name} and in {file}. "
                    "Are two checkpoints mixed?"
                )
            tensors[name] = info
    return tensors


def checked(directory: Path, config: LlamaConfig) -> dict[str, TensorInfo]:
    """What `inspect` gives, where it is what a model of this config needs; reads headers only.

    Raises `CheckpointError`, which lists names, shapes and dtypes that do not fit.
    """
    tensors = inspect(directory)
    _check(directory, tensors, expected(config, len(tensors), directory))
    return tensors


def load(
    directory: Path,
    model: Model,
    dtype: Any = None,
    progress: bool = True,
    tensors: Mapping[str, TensorInfo] | None = None,
) -> None:
    """Fills `model` with the weights of a checkpoint, as stored or cast to `dtype`.

    All names, shapes and dtypes are checked before any weight is read (`checked`, of which
    `tensors` is the answer where it was asked before): `CheckpointError` lists what does not fit,
    `MemoryError` says what there is no room for. float64 becomes float32 unless JAX has 64 bits
    switched on. `progress` shows a bar where there is much to read. After an error or an interrupt
    in the middle the model is filled in part, and can be loaded again.
    """
    tensors = checked(directory, model.config) if tensors is None else tensors
    fill(parameters(model), tensors, dtype, directory, progress, model.mesh)


def save(
    directory: Path,
    model: Model,
    tokenizer: Tokenizer | None = None,
    stop_tokens: Iterable[int] = (),
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a checkpoint that transformers loads; in shards where it is larger than one.

    It takes the place of `directory` when it is whole: after an error or an interrupt the old
    checkpoint is as it was. What else lies in `directory` stays. Raises `CheckpointError` rather
    than touch a folder that is no checkpoint.
    """
    directory = replaceable(directory)
    weights = {name: slot.get_value() for name, slot in parameters(model).items()}
    if not all(isinstance(weight, jax.Array) for weight in weights.values()):
        raise CheckpointError(
            f"The model is abstract: there are no weights to save in {directory}."
        )
    with replacing(directory) as new:
        write_configs(new, model, tokenizer, list(stop_tokens))
        _write_weights(new, weights, max_shard_bytes)


# Reading


def _files(directory: pathlib.Path) -> dict[str, set[str]]:
    """The safetensors files, each with the tensors that the index, where there is one, names."""
    if (directory / _WEIGHTS).is_file():
        return {_WEIGHTS: set()}
    if not (directory / _INDEX).is_file():
        raise CheckpointError(
            f"{directory} has neither {_WEIGHTS} nor {_INDEX}; it has {contents(directory)}."
        )
    weight_map = read_json(directory / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{directory / _INDEX} has no weight_map.")
    files: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or pathlib.PurePath(file).name != file:
            raise CheckpointError(
                f"{directory / _INDEX}: {name} is in {shown(file)}, no file name."
            )
        files.setdefault(file, set()).add(name)
    there = {entry.name for entry in directory.iterdir() if entry.is_file()}
    missing = sorted(files.keys() - there)
    if missing:
        raise CheckpointError(
            f"{directory} lacks {len(missing)} of the {len(files)} files that {_INDEX} names: "
            f"{in_words(missing)}. Was all of it downloaded?"
        )
    return files


def _check(
    directory: Path, tensors: dict[str, TensorInfo], shapes: dict[str, tuple[int, ...]]
) -> None:
    missing, misshapen, strange = [], [], []
    for name, shape in shapes.items():
        info = tensors.get(name)
        if info is None:
            missing.append(f"{name}: not in the files, config says {list(shape)}")
        elif info.shape != shape:
            misshapen.append(f"{name}: file has {list(info.shape)}, config says {list(shape)}")
        elif info.dtype not in DTYPES:
            strange.append(f"{name}: file has {info.dtype}, what is read is {', '.join(DTYPES)}")
    head, tied = tensors.get("lm_head.weight"), "lm_head.weight" not in shapes
    surplus = [
        f"{name}: file has {list(info.shape)}, config has no such tensor"
        for name, info in tensors.items()
        if name not in shapes
        and info is not head
        and not name.endswith(".rotary_emb.inv_freq")  # in old files; it follows from the config
    ]
    kinds = [listed(kind) for kind in (missing, misshapen, surplus, strange)]
    if any(kinds):
        problems = "".join(f"\n  {line}" for kind in kinds for line in kind)
        hint = _hint(missing, misshapen, surplus)
        raise CheckpointError(f"{directory}: files and config.json do not fit.{problems}\n{hint}")
    if tied and head and not equal(head, tensors["embed_tokens.weight"]):
        raise CheckpointError(
            f"{directory}: lm_head.weight {head.dtype} {list(head.shape)} differs from "
            "embed_tokens.weight, but config.json ties them. Should it say "
            "tie_word_embeddings = false?"
        )


# What a tensor's name tells of who made it, by a part of the name.
_MAKERS = {
    ".lora_A.": "These are a LoRA's: merge it into its base model with peft, and open that.",
    ".qweight": "These are weights quantized by GPTQ or AWQ, which are not read. Open the "
    "checkpoint that they were made from.",
    ".quant_state.": "These are weights quantized by bitsandbytes, which are not read. Open the "
    "checkpoint that they were made from.",
    ".SCB": "These are weights quantized by bitsandbytes to 8 bits, which are not read. Open the "
    "checkpoint that they were made from.",
    ".weight_scale": "These are quantized weights with their scales, which are not read. Open the "
    "checkpoint that they were made from.",
    ".scales": "These are quantized weights with their scales (MLX), which are not read. Open the "
    "checkpoint that they were made from.",
    ".self_attn.q_proj.bias": "Should config.json say attention_bias = true?",
    ".mlp.up_proj.bias": "Should config.json say mlp_bias = true?",
}


def _hint(missing: list[str], misshapen: list[str], surplus: list[str]) -> str:
    for part, hint in _MAKERS.items():
        if any(part in line for line in surplus):
            return hint
    if len(missing) == 1 and missing[0].startswith("lm_head"):
        return "Should config.json say tie_word_embeddings = true?"
    if missing and not misshapen and all(".bias: " in line for line in missing):
        return "Should config.json say attention_bias or mlp_bias = false?"
    sized_by = {  # by a part of a tensor's name; the first that occurs
        "norm": "hidden_size",
        "embed_tokens": "vocab_size",
        "q_proj": "num_attention_heads or head_dim",
        "k_proj": "num_key_value_heads",
        "mlp": "intermediate_size",
    }
    for part, setting in sized_by.items():
        if any(part in line for line in misshapen):
            return f"Is {setting} right in config.json?"
    return "Do config.json and these files belong together?"


# Writing


def write_configs(
    directory: pathlib.Path, model: Model, tokenizer: Tokenizer | None, stop_tokens: list[int]
) -> None:
    """Writes all but the weights: config, generation config, tokenizer."""
    tokens: dict[str, Any] = {}
    if tokenizer is not None:
        tokenizer.save(directory)
        tokens |= {} if tokenizer.bos is None else {"bos_token_id": tokenizer.bos}
    if stop_tokens:
        tokens["eos_token_id"] = stop_tokens
    config = {**model.config.to_huggingface(), **tokens, "torch_dtype": model.dtype.name}
    write_json(directory / "config.json", config)
    if tokens:
        write_json(directory / "generation_config.json", tokens)


def _write_weights(
    directory: pathlib.Path, weights: dict[str, jax.Array], max_shard_bytes: int
) -> None:
    shards = _shards(weights, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else _WEIGHTS
        tensors = {_full_name(name): on_host(weights[name]) for name in names}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        # safetensors lets nobody else read what it writes; let the umask decide, as elsewhere.
        shutil.copymode(directory / "config.json", directory / file)
        weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        total = sum(weight.nbytes for weight in weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(directory / _INDEX, index)


def _shards(weights: dict[str, jax.Array], max_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = max_bytes
    for name, weight in weights.items():
        if weight.nbytes > room and shards[-1]:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= weight.nbytes
    return shards


def _full_name(name: str) -> str:
    return name if name == "lm_head.weight" else f"model.{name}"
