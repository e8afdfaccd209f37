"""Rows of random tokens that repeat themselves: nothing but copying predicts them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random


def random_repeats(
    seed: int, ids: Sequence[int], length: int, period: int | None = None
) -> list[int]:
    """`length` tokens drawn uniformly from `ids` that repeat what was drawn before.

    With `period` the first `period` tokens are said again and again. Without, passages of 4 to
    length // 2 tokens are each said two or three times, some with fresh tokens in between.

    >>> random_repeats(0, range(100), length=6, period=3)[3:] == random_repeats(0, range(100), 3, 3)
    True
    """
    rng = Random(f"cria repeats {seed}")
    if period is not None:
        passage = rng.choices(ids, k=period)
        return (passage * (length // period + 1))[:length]
    row: list[int] = []
    while len(row) < length:
        passage = rng.choices(ids, k=rng.randint(4, max(4, length // 2)))
        for _ in range(rng.choice((2, 2, 3))):
            row += passage
            if rng.random() < 0.3:
                row += rng.choices(ids, k=rng.randint(1, 12))
    return row[:length]
