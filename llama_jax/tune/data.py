"""Documents of any length, packed whole into rows of one length."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

__all__ = ["Batch", "batched", "pack"]


class Batch(NamedTuple):
    """What one step learns from. `weights[b, t]` says how much it counts that the row's token
    t + 1 is predicted from those before it; None counts every one. `documents` numbers the
    documents of each row: tokens see their own only. With None all of a row is one.
    """

    tokens: Int[np.ndarray, "B T"]
    weights: Float[np.ndarray, "B T-1"] | None = None
    documents: Int[np.ndarray, "B T"] | None = None


def pack(
    documents: Iterable[Sequence[int]], length: int, padding: int, open_rows: int = 16
) -> Iterator[tuple[Int[np.ndarray, " T"], Float[np.ndarray, " T-1"]]]:
    """Rows of `length` tokens, each with the weights of its predictions: 0 for padding, else 1.

    A document goes whole into the fullest of `open_rows` rows that has room for it; where none has,
    the fullest is given out. A document longer than a row is cut, its last piece is packed. Every
    token is in exactly one row, and the rows come as their documents come: nothing is kept back
    but the open rows. A row's documents see each other, so each should begin with its own BOS.

    >>> [row.tolist() for row, _ in pack([[1, 2, 3], [4, 5], [6]], length=4, padding=0)]
    [[1, 2, 3, 6], [4, 5, 0, 0]]
    """
    rows: list[list[int]] = []
    pieces = (
        piece[start : start + length]
        for piece in documents
        for start in range(0, len(piece), length)
    )
    for piece in pieces:
        fitting = [row for row in rows if len(row) + len(piece) <= length]
        if fitting:
            max(fitting, key=len).extend(piece)
            continue
        if len(rows) == open_rows:
            fullest = max(range(open_rows), key=lambda i: len(rows[i]))
            yield _row(rows.pop(fullest), length, padding)
        rows.append(list(piece))
    for row in sorted(rows, key=len, reverse=True):
        yield _row(row, length, padding)


def _row(
    tokens: list[int], length: int, padding: int
) -> tuple[Int[np.ndarray, " T"], Float[np.ndarray, " T-1"]]:
    row = np.full(length, padding, np.int32)
    row[: len(tokens)] = tokens
    return row, (np.arange(1, length) < len(tokens)).astype(np.float32)


def batched(
    rows: Iterable[tuple[Int[np.ndarray, " T"], Float[np.ndarray, " T-1"]]], size: int
) -> Iterator[Batch]:
    """Batches of `size` rows; the rows that are left over at the end are dropped."""
    rows = iter(rows)
    while len(some := list(itertools.islice(rows, size))) == size:
        tokens, weights = zip(*some, strict=True)
        yield Batch(np.stack(tokens), np.stack(weights))
