"""A row of a run, as views show it: which one, its tokens' texts, what was captured of it."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from llama_jax import Generation, Llama, Run
from llama_jax.base.choice import numbered as numbered_of
from llama_jax.base.modes import jit
from llama_jax.capture import positions_of
from llama_jax.model.product import wide

__all__ = [
    "LONGEST",
    "bounded",
    "norms",
    "numbered",
    "pieces",
    "positions",
    "row_of",
    "texts_of",
    "widened",
]

LONGEST = 100  # characters of one token's text


def row_of(row: int, rows: int, what: str) -> int:
    """`row` counted from the first; raises `IndexError` where there is none."""
    try:
        return numbered_of("row", row, rows)
    except IndexError:
        raise IndexError(f"Row {row}; this {what} has {rows}.") from None


def numbered(run: Run | Generation, row: int) -> int:
    """`row` counted from the first of a run's rows."""
    return row_of(row, len(run.lengths), type(run).__name__)


def pieces(run: Run | Generation, row: int) -> list[str]:
    """The text of each token of a row; its number where there is no tokenizer."""
    return bounded(texts_of(run.llama, run.tokens[row, : int(run.lengths[row])]))


def texts_of(llama: Llama | None, ids: Int[np.ndarray, " n"]) -> list[str]:
    """The texts of tokens, their numbers where there is no tokenizer."""
    if llama is None or llama.tokenizer is None:
        return [str(token) for token in ids.tolist()]
    return llama.pieces(ids) if len(ids) else []


def bounded(texts: Sequence[str], most: int = LONGEST) -> list[str]:
    """Texts of tokens, each cut to what a page shows of it."""
    return [text if len(text) <= most else text[: most - 1] + "…" for text in texts]


def positions(run: Run, name: str, row: int) -> Int[np.ndarray, " P"]:
    """Which position of the prompt each entry along T of a capture is."""
    capture = run.captures[name]
    chosen = -1 if capture.reduce == "last" else capture.positions
    if chosen is None:
        return np.arange(run.tokens.shape[1])
    return positions_of(chosen, run.lengths, name)[row]


@jit
def norms(x: Array) -> Array:
    """The Euclidean length of the vectors along the last axis, in f32 at least."""
    return jnp.linalg.norm(widened(x), axis=-1)


def widened(x: Array) -> Array:
    """In f32 at least."""
    return x.astype(wide(x.dtype))
