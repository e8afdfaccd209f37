"""What a capture will take, from shapes alone, and refusing what does not fit the budget."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from llama_jax.capture import Capture, takes
from llama_jax.config import LlamaConfig
from llama_jax.memory import free_memory, in_bytes, readable
from llama_jax.model import Logits
from llama_jax.model.product import wide
from llama_jax.points import point_of
from llama_jax.tables import Table

__all__ = ["BudgetError", "Plan", "PlanRow", "check_budget", "plan"]


class BudgetError(MemoryError):
    """A capture that is larger than its budget; nothing has run."""


class PlanRow(NamedTuple):
    """One array that a run will hold. Of a `TopK` the shape is that of the values."""

    point: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclasses.dataclass(frozen=True, repr=False)
class Plan(Table):
    """What a run will hold, point by point; prints as a table with equal layers folded.

    >>> from llama_jax import Llama
    >>> llama = Llama.abstract("llama-3.1-405b")
    >>> llama.plan(np.zeros((1, 8192), int), "pattern", logits="last")
    point                             shape                  dtype     bytes
    layers.{0…125}.self_attn.pattern  1 x 128 x 8192 x 8192  bfloat16  126 x 16.0 GiB
    logits                            1 x 1 x 128256         float32   501.0 KiB
    total: 2.0 TiB
    """

    rows: tuple[PlanRow, ...]

    @property
    def total(self) -> int:
        """Bytes of all rows."""
        return sum(row.bytes for row in self.rows)

    def __iter__(self) -> Iterator[PlanRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> PlanRow:
        return self.rows[index]

    def _table(self) -> tuple[Sequence[str], Sequence[Sequence[str]], str]:
        groups: dict[tuple[str, tuple[int, ...], str, int], list[PlanRow]] = {}
        for row in self.rows:
            groups.setdefault((point_of(row.point).name, *row[1:]), []).append(row)
        lines = []
        for (kind, shape, dtype, nbytes), rows in groups.items():
            size = readable(nbytes) if len(rows) == 1 else f"{len(rows)} x {readable(nbytes)}"
            name = rows[0].point if len(rows) == 1 else kind.format(i=_span(rows))
            lines.append((name, " x ".join(map(str, shape)), dtype, size))
        return ("point", "shape", "dtype", "bytes"), lines, f"total: {readable(self.total)}"


def plan(
    captures: Mapping[str, Capture],
    config: LlamaConfig,
    lengths: Int[np.ndarray, " B"],
    dtype: jnp.dtype,
    logits: Logits,
    keys: int | None = None,
) -> Plan:
    """The arrays of a run over prompts of these lengths. See `Llama.plan`.

    `keys` is the S of maps where it is not the longest prompt's length.
    """
    longest = int(lengths.max())
    seen: dict[tuple[int, str], tuple[tuple[int, ...], str, int]] = {}
    rows = []
    for name, take in takes(captures, config, lengths).items():
        point = point_of(name)
        key = (id(take), point.name)
        if key not in seen:
            queries = 1 if point.name == "logits" and logits == "last" else longest
            shape = point.shape(config, len(lengths), queries, keys or longest)
            x = jax.ShapeDtypeStruct(shape, wide(dtype) if point.wide else dtype)
            if captures[name].whole:
                kept: Any = jax.ShapeDtypeStruct(shape, take.dtype or x.dtype)
            else:  # the very function that will run says what it gives
                kept = jax.eval_shape(take.__call__, x, lengths)
            parts = jax.tree.leaves(kept)
            size = sum(math.prod(part.shape) * part.dtype.itemsize for part in parts)
            first = parts[0]  # of a TopK the values
            seen[key] = (first.shape, first.dtype.name, size)
        rows.append(PlanRow(name, *seen[key]))
    if "logits" not in captures or not captures["logits"].plain:
        made_anyway = (len(lengths), longest if logits == "all" else 1, config.vocab_size)
        nbytes = math.prod(made_anyway) * wide(dtype).itemsize
        rows.append(PlanRow("logits", made_anyway, wide(dtype).name, nbytes))
    return Plan(tuple(rows))


def check_budget(
    captures: Mapping[str, Capture],
    config: LlamaConfig,
    lengths: Int[np.ndarray, " B"],
    dtype: jnp.dtype,
    logits: Logits,
    budget: int | str | None,
    keys: int | None = None,
    devices: int = 1,
) -> None:
    """Raises `BudgetError`, with what would fit, where a run would hold more than `budget`.

    The default is half of what is free on the devices together.
    """
    allowed = free_memory(devices) // 2 if budget is None else in_bytes(budget)

    def price(captures: Mapping[str, Capture], logits: Logits = logits) -> int:
        return plan(captures, config, lengths, dtype, logits, keys).total

    asked = plan(captures, config, lengths, dtype, logits, keys)
    if asked.total <= allowed:
        return
    whole = {n: c for n, c in captures.items() if c.reduce is None and n != "logits"}
    ideas: list[tuple[str, int]] = []
    if logits == "all":
        ideas.append(("logits='last'", price(captures, "last")))
    narrow = {n: dataclasses.replace(c, dtype="bf16") for n, c in whole.items() if c.dtype is None}
    ideas.append(("Capture(..., dtype='bf16')", price({**captures, **narrow})))
    for reduce in (("max_pool", 64), "last", "norm"):
        small = {n: dataclasses.replace(c, positions=None, reduce=reduce) for n, c in whole.items()}
        ideas.append((f"Capture(..., reduce={reduce!r})", price({**captures, **small})))
    layers = sorted({_layer(name) for name in captures} - {-1})
    for count in range(len(layers) - 1, 0, -1):
        kept = {n: c for n, c in captures.items() if _layer(n) in {-1, *layers[:count]}}
        if (size := price(kept)) <= allowed:
            ideas.append((f"{count} of the {len(layers)} layers", size))
            break
    fitting = [f"{idea}: {readable(size)}" for idea, size in ideas if size <= allowed]
    largest = max(asked.rows, key=lambda row: row.bytes)
    origin = "" if budget is not None else ", half of what is free"
    raise BudgetError(
        f"This would hold {readable(asked.total)}; the budget is {readable(allowed)}{origin}. The "
        f"largest array is {largest.point}, {list(largest.shape)} in {largest.dtype}, "
        f"{readable(largest.bytes)}. "
        + (f"What would fit: {'; '.join(fitting)}." if fitting else "Shorter prompts would fit.")
        + " A larger budget= is allowed too; llama.plan(...) lists every array."
    )


def _layer(name: str) -> int:
    match = re.match(r"layers\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _span(rows: Sequence[PlanRow]) -> str:
    """Numbers of layers as `{0…3, 7}`."""
    numbers = sorted(_layer(row.point) for row in rows)
    spans = []
    for _, group in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        spans.append(f"{run[0]}…{run[-1]}" if len(run) > 1 else str(run[0]))
    return "{" + ", ".join(spans) + "}"
