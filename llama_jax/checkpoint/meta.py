"""Meta's own checkpoints: `params.json` and `consolidated.XX.pth`, one file a model-parallel rank.

Each file holds its rank's share of every tensor, as a torch pickle. Torch says from the pickle
where the tensors lie, running none of its code (`weights_only`) and reading no weight; the bytes
are then read as those of any other format. Rows of queries and keys are in another order than
Hugging Face's: Meta rotates neighbouring pairs, Hugging Face's layout rotates halves.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from llama_jax.checkpoint.filling import expected, fill
from llama_jax.checkpoint.folder import (
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
    Part,
    TensorInfo,
    aligned,
    equal,
    listed,
    on_host,
    whole,
)
from llama_jax.config import LlamaConfig
from llama_jax.model import Model, parameters
from llama_jax.text import Tokenizer

__all__ = ["checked", "inspect", "is_meta", "load", "read_config", "save", "stop_tokens"]

Path = str | os.PathLike[str]
Rank = dict[str, TensorInfo]


def is_meta(directory: pathlib.Path) -> bool:
    """Whether a folder holds Meta's format: `params.json`, and no `config.json` beside it."""
    return (directory / "params.json").is_file() and not (directory / "config.json").is_file()


def inspect(directory: Path) -> list[Rank]:
    """What each rank's file holds, by Meta's names; no weight is read.

    Raises `CheckpointError` for files that are missing, cut off, would run code, or are in torch's
    format of before 2020; `ImportError` without torch.
    """
    directory = existing(directory)
    files = sorted(directory.glob("consolidated*.pth"))
    if not files:
        raise CheckpointError(
            f"{directory} has params.json and no consolidated.00.pth; it has {contents(directory)}."
        )
    numbers = [file.name.split(".")[1] for file in files]
    if numbers not in ([f"{rank:02}" for rank in range(len(files))], ["pth"]):
        raise CheckpointError(
            f"{directory} has {in_words([file.name for file in files])}: ranks are numbered from "
            "00 on, and one is missing. Was all of it downloaded?"
        )
    ranks = [_header(file) for file in files]
    for file, rank in zip(files, ranks, strict=True):
        apart = sorted(set(rank) ^ set(ranks[0]))
        if apart:
            raise CheckpointError(
                f"{file.name} and {files[0].name} do not hold the same tensors: {in_words(apart)} "
                "is in one only. Are two checkpoints mixed?"
            )
    return ranks


def read_config(directory: Path, ranks: Sequence[Rank]) -> LlamaConfig:
    """The config, from `params.json` and what only the tensors tell.

    The head is tied where it holds the embedding's bytes or is not there. Key/value heads that
    neighbouring ranks hold twice (405B on 16 ranks) count once.
    """
    directory = existing(directory)
    params = read_json(directory / "params.json")
    parts = [
        [rank[name] for rank in ranks]
        for name in ("tok_embeddings.weight", "output.weight")
        if name in ranks[0]
    ]
    tied = len(parts) == 1 or all(equal(*pair) for pair in zip(*parts, strict=True))
    if params.get("vocab_size") in (None, -1) and parts:
        params["vocab_size"] = sum(size for part in parts[0] for size in part.shape[:1])
    config = LlamaConfig.from_meta(params, tie_word_embeddings=tied)
    copies = _copies(ranks)
    if copies > 1:
        heads = _key_rows(ranks) // config.head_dim // copies
        config = dataclasses.replace(config, num_key_value_heads=heads)
    return config


def stop_tokens(
    directory: Path, config: LlamaConfig, tokenizer: Tokenizer | None
) -> tuple[int, ...]:
    """Where Llama 3.1 and later stop, which no file of Meta's says.

    Raises `CheckpointError` for a `tokenizer.model` of another vocabulary than the model's.
    """
    if tokenizer is None:
        return ()
    if tokenizer.to_ranks() is not None and tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"{directory}: tokenizer.model has {tokenizer.vocab_size:,} tokens with the special "
            f"ones, params.json says {config.vocab_size:,}. Is it this model's, and whole?"
        )
    names = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
    return tuple(tokenizer.special[name] for name in names if name in tokenizer.special)


def checked(directory: Path, config: LlamaConfig, ranks: Sequence[Rank]) -> dict[str, _Parts]:
    """Where each weight of a model of this config lies in `inspect`'s ranks; none is read.

    Raises `CheckpointError`, which lists names, shapes and dtypes that do not fit.
    """
    copies = _copies(ranks)
    if _key_rows(ranks) // copies != config.num_key_value_heads * config.head_dim:
        copies = 1
    heads = {"wq": config.num_attention_heads, "wk": config.num_key_value_heads}
    wanted = expected(config, len(ranks[0]), directory)
    sources: dict[str, _Parts] = {}
    problems = []
    for name, shape in wanted.items():
        theirs = _their_name(name)
        if theirs not in ranks[0]:
            problems.append(f"{theirs}: not in the files, params.json says {list(shape)}")
            continue
        parts = [rank[theirs] for rank in ranks]
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            parts = parts[::copies]
        source = _Parts(tuple(parts), _axis(theirs), heads.get(theirs.split(".")[-2]))
        if not source.go_together:
            each = ", ".join(dict.fromkeys(f"{part.dtype} {list(part.shape)}" for part in parts))
            problems.append(f"{theirs}: ranks have {each}, config says {list(shape)}")
            continue
        if source.shape != shape:
            problems.append(f"{theirs}: files have {list(source.shape)}, config says {list(shape)}")
        elif source.dtype not in DTYPES:
            problems.append(
                f"{theirs}: files have {source.dtype}, what is read is {', '.join(DTYPES)}"
            )
        sources[name] = source
    known = {_their_name(name) for name in wanted} | {"output.weight", "rope.freqs"}
    problems += [
        f"{name}: files have {list(ranks[0][name].shape)}, a Llama 3 has no such tensor"
        for name in ranks[0]
        if name not in known
    ]
    if problems:
        lines = "".join(f"\n  {line}" for line in listed(problems))
        raise CheckpointError(
            f"{directory}: files and params.json do not fit.{lines}\n"
            "Do params.json and these files belong together?"
        )
    return sources


def load(
    directory: Path,
    model: Model,
    ranks: Sequence[Rank],
    dtype: Any = None,
    progress: bool = True,
    sources: Mapping[str, _Parts] | None = None,
) -> None:
    """Fills `model` with the weights of `inspect`'s ranks, as stored or cast to `dtype`.

    As `huggingface.load`: all is checked before any weight is read (`checked`, of which `sources`
    is the answer where it was asked before).
    """
    sources = checked(directory, model.config, ranks) if sources is None else sources
    fill(parameters(model), sources, dtype, directory, progress, model.mesh)


def save(directory: Path, model: Model, tokenizer: Tokenizer | None = None) -> None:
    """Writes `params.json` and one `consolidated.00.pth` that `llama-models` loads.

    A tied head is written out, since Meta's reference ties none. The tokenizer is written as
    `tokenizer.model` where it came from one, else as `tokenizer.json`, which Meta's code does not
    read. As with `huggingface.save`, an error leaves what was there. Raises `ImportError` without
    torch, and `ConfigError` for a config that `params.json` cannot say.
    """
    torch = _torch()
    directory = replaceable(directory)
    config = model.config
    weights = {name: slot.get_value() for name, slot in parameters(model).items()}
    if not all(isinstance(weight, jax.Array) for weight in weights.values()):
        raise CheckpointError(
            f"The model is abstract: there are no weights to save in {directory}."
        )
    params = config.to_meta()
    held = {}
    for name, weight in weights.items():
        array = on_host(weight)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            array = _neighbours(array, array.shape[0] // config.head_dim)
        held[_their_name(name)] = _as_torch(torch, array)
    held.setdefault("output.weight", held["tok_embeddings.weight"].clone())
    with replacing(directory) as new:
        write_json(new / "params.json", params)
        ranks = None if tokenizer is None else tokenizer.to_ranks()
        if ranks is not None:
            (new / "tokenizer.model").write_bytes(ranks)
        elif tokenizer is not None:
            tokenizer.save(new)
        torch.save(held, new / "consolidated.00.pth")


_KEYS = "layers.0.attention.wk.weight"
_NAMES = {
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _their_name(name: str) -> str:
    """
    >>> _their_name("layers.3.self_attn.q_proj.weight"), _their_name("norm.weight")
    ('layers.3.attention.wq.weight', 'norm.weight')
    """
    for ours, theirs in _NAMES.items():
        if f".{name}".endswith(f".{ours}.weight"):
            return f"{name.removesuffix(f'{ours}.weight')}{theirs}.weight"
    return name


def _axis(theirs: str) -> int | None:
    """Along which axis the ranks share a tensor out; None where each holds all of it."""
    if theirs.endswith("norm.weight"):
        return None
    return 1 if theirs.endswith(("attention.wo.weight", "feed_forward.w2.weight")) else 0


@dataclasses.dataclass(frozen=True)
class _Parts:
    """A tensor in the files of all ranks; of `turned` heads the rows are in Meta's order."""

    parts: tuple[TensorInfo, ...]
    axis: int | None
    turned: int | None

    @property
    def go_together(self) -> bool:
        """Whether they differ in size along the axis alone."""
        axis = len(self.parts[0].shape) if self.axis is None else self.axis
        kinds = {(x.dtype, x.shape[:axis], x.shape[axis + 1 :]) for x in self.parts}
        axes = 1 if self.axis is None else 2
        return len(kinds) == 1 and all(len(part.shape) == axes for part in self.parts)

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.parts[0].shape
        if self.axis is None:
            return first
        total = sum(part.shape[self.axis] for part in self.parts)
        return tuple(total if a == self.axis else size for a, size in enumerate(first))

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    @property
    def place(self) -> tuple[pathlib.Path, int]:
        return self.parts[0].place

    def read(self, dtype: np.dtype, part: Part | None = None) -> tuple[np.ndarray, bool]:
        """The tensor, or a part of it that cuts no head, as `dtype`; reads its own bytes only.

        Also says whether all of it is finite.
        """
        part = whole(self.shape) if part is None else part
        axis = self.axis
        if axis is None or (len(self.parts) == 1 and self.turned is None):
            return self.parts[0].read(dtype, part)
        array = aligned(tuple(x.stop - x.start for x in part), dtype)
        finite, start = True, 0
        for held in self.parts:
            low, high = (
                min(max(at, start), start + held.shape[axis]) - start
                for at in (part[axis].start, part[axis].stop)
            )
            here = _along(part, axis, slice(low, high))
            at = slice(low + start - part[axis].start, high + start - part[axis].start)
            out = array[_along(whole(array.shape), axis, at)]
            start += held.shape[axis]
            if low == high:
                continue
            if self.turned is None:
                finite &= held.read_into(out, here)
            else:
                heads = self.turned * (high - low) // self.shape[0]
                pairs, known = held.read(DTYPES[held.dtype], here)
                _halves(pairs, heads, out)
                finite &= known
        return array, finite


def _along(part: Part, axis: int, at: slice) -> Part:
    return (*part[:axis], at, *part[axis + 1 :])


def _halves(rows: np.ndarray, heads: int, out: np.ndarray) -> None:
    """From neighbouring pairs of rows, as Meta rotates them, to halves of each head."""
    size = rows.shape[0] // heads
    pairs = rows.reshape(heads, size // 2, 2, -1)
    out.reshape(heads, 2, size // 2, -1)[...] = pairs.swapaxes(1, 2)


def _neighbours(rows: np.ndarray, heads: int) -> np.ndarray:
    """From halves to neighbouring pairs."""
    size = rows.shape[0] // heads
    halves = rows.reshape(heads, 2, size // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _key_rows(ranks: Sequence[Rank]) -> int:
    return sum(size for rank in ranks if _KEYS in rank for size in rank[_KEYS].shape[:1])


def _copies(ranks: Sequence[Rank]) -> int:
    """How many neighbouring ranks hold the same key/value heads."""
    if any(_KEYS not in rank for rank in ranks):
        return 1
    for copies in range(len(ranks), 1, -1):
        if len(ranks) % copies == 0 and all(
            equal(ranks[i - i % copies][_KEYS], ranks[i][_KEYS]) for i in range(len(ranks))
        ):
            return copies
    return 1


def _header(file: pathlib.Path) -> Rank:
    torch = _torch()
    size = f"{file} ({file.stat().st_size:,} bytes)"
    pieces = _pieces(file, size)
    try:
        # Mapped into memory, which reads none of it; where a tensor lies there tells its offset.
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")
        found = next((line for line in reason if "GLOBAL" in line or "Unsupported" in line), "")
        raise CheckpointError(
            f"{size} holds more than tensors, and would run code if it were opened as it asks: "
            f"nothing of it was. {found.strip()}".strip()
        ) from None
    except Exception as error:  # of many kinds: a damaged pickle is a damaged program
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{size} is not a whole torch file: {said}") from None
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(name, str) and torch.is_tensor(x) for name, x in content.items())
    ):
        raise CheckpointError(f"{size} holds no tensors by name.")
    # Its bytes in the file are its numbers: in one piece, on no other device, with no sign apart.
    apart = [
        name
        for name, x in content.items()
        if x.layout is not torch.strided
        or x.device.type != "cpu"
        or x.is_quantized
        or x.is_neg()
        or not x.is_contiguous()
    ]
    if apart:
        raise CheckpointError(
            f"{size}: {in_words(apart)} does not lie in the file in one piece. Open it with torch "
            "and save it again."
        )
    dtypes = {
        torch.bfloat16: "BF16",
        torch.float16: "F16",
        torch.float32: "F32",
        torch.float64: "F64",
    }
    storages = {name: x.untyped_storage() for name, x in content.items()}
    first = min(storage.data_ptr() for storage in storages.values())
    start = min(offset for offset, _ in pieces) if pieces else 0
    held = {(start + x.data_ptr() - first, x.nbytes()) for x in storages.values()}
    if held != pieces:  # else the first in memory might not be the first in the file
        raise CheckpointError(
            f"{size} holds {len(pieces)} pieces of data for {len(held)} of its tensors, or of "
            "other sizes. Open it with torch and save it again."
        )
    return {
        name: TensorInfo(
            file,
            start + tensor.data_ptr() - first,
            tensor.numel() * tensor.element_size(),
            tuple(tensor.shape),
            dtypes.get(tensor.dtype, str(tensor.dtype)),
        )
        for name, tensor in content.items()
    }


_PIECE = re.compile(r"[^/]+/data/[^/]+")
# Names and shapes take about 200 bytes a tensor. Bounded since a pickle is a program: a byte of it
# makes a list of 56, and a million steps take some seconds.
MOST_PICKLE, MORE_PICKLE = 2**18, 2**10  # bytes, and more of them for each piece of data


def _pieces(file: pathlib.Path, size: str) -> set[tuple[int, int]]:
    """Where the data of each storage begins in a torch file, a zip archive, and its bytes.

    Raises `CheckpointError` for archives in which bytes are not numbers as they lie (compressed,
    encrypted, of the other byte order), or whose pickle is out of all proportion: nothing but the
    table of contents is read.
    """
    try:
        with zipfile.ZipFile(file) as archive, open(file, "rb") as stream:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            packed = [
                entry.filename
                for entry in entries
                if entry.compress_type != zipfile.ZIP_STORED
                or entry.compress_size != entry.file_size
                or entry.flag_bits & 1
            ]
            if packed:
                raise CheckpointError(
                    f"{size} is compressed ({in_words(packed)}), as torch writes none: nothing of "
                    "it was opened. Unpack and pack it without compression (zip -0), or open it "
                    "with torch, if you trust it, and save it again."
                )
            if len(set(names)) < len(names):
                raise CheckpointError(f"{size} has a name twice: nothing of it was opened.")
            data = [entry for entry in entries if _PIECE.fullmatch(entry.filename)]
            most = MOST_PICKLE + MORE_PICKLE * len(data)
            large = [
                entry
                for entry in entries
                if not _PIECE.fullmatch(entry.filename) and entry.file_size > most
            ]
            if large:
                raise CheckpointError(
                    f"{size}: {large[0].filename} has {large[0].file_size:,} bytes; what says "
                    f"where {len(data):,} pieces of data lie takes at most {most:,}. Nothing of it "
                    "was opened."
                )
            for entry in entries:
                if entry.filename.endswith("/byteorder") and archive.read(entry) != b"little":
                    raise CheckpointError(
                        f"{size} was written on a machine of the other byte order. Open it with "
                        "torch and save it again."
                    )
            return {(_data_offset(stream, entry.header_offset), entry.file_size) for entry in data}
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError) as error:
        if isinstance(error, CheckpointError | PermissionError):
            raise
        raise CheckpointError(
            f"{size} is not a whole torch file, which is a zip archive: nothing of it was opened. "
            "Is it a download that broke off, a Git LFS pointer, or of before 2020?"
        ) from None


def _data_offset(stream: Any, header: int) -> int:
    stream.seek(header + 26)  # a header's last 4 of 30 bytes: the lengths of what follows it
    name, extra = struct.unpack("<HH", stream.read(4))
    return stream.tell() + name + extra


def _as_torch(torch: Any, array: np.ndarray) -> Any:
    if array.dtype == DTYPES["BF16"]:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise ImportError(
            "Meta's consolidated.*.pth files are read and written by torch: pip install "
            "'llama-jax[meta]', or torch alone."
        ) from None
    return torch
