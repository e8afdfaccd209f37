"""What may be given as a prompt, and reading it: rows of tokens, aligned on the left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

__all__ = ["Prompt", "PromptError", "Rows", "read"]

# Text, several texts, tokens [T] or [B, T], several rows of tokens, what a tokenizer gives.
Prompt = (
    str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | np.ndarray | Mapping[str, Any]
)

_PROMPTS = (
    "a prompt is text, several texts, integer tokens [T] or [B, T], rows of tokens of their own "
    "lengths, or what a tokenizer gives (input_ids, attention_mask)."
)


class Rows(NamedTuple):
    """Prompts, aligned on the left."""

    tokens: Int[np.ndarray, "B T"]
    lengths: Int[np.ndarray, " B"]
    single: bool  # whether it was one prompt and no batch


class PromptError(ValueError):
    """A prompt that this model cannot take."""


def read(prompt: Prompt, encode: Callable[[str], Sequence[int]], vocab_size: int) -> Rows:
    """A prompt as the model takes it: tokens padded on the right, and the rows' lengths.

    Text is read by `encode`. The padding of a tokenizer's mapping, on whichever side, is left out.
    Raises `PromptError` for what is not a prompt, for an empty one, and for unknown tokens.

    >>> read({"input_ids": [[0, 7, 8]], "attention_mask": [[0, 1, 1]]}, len, 10).tokens.tolist()
    [[7, 8]]
    """
    rows, single = _rows(prompt, encode)
    lengths = np.array([len(row) for row in rows], np.int32)
    if not len(rows) or not lengths.all():
        which = f" (row {int(np.argmin(lengths))})" if len(rows) > 1 else ""
        raise PromptError(f"The prompt{which} is empty: there is no token to start from.")
    tokens = np.zeros((len(rows), lengths.max()), np.int32)
    for i, row in enumerate(rows):
        bad = np.flatnonzero((row < 0) | (row >= vocab_size))
        if len(bad):
            raise PromptError(
                f"Token {int(row[bad[0]])} at position {int(bad[0])} of row {i}: this model has a "
                f"vocabulary of {vocab_size} tokens, 0 to {vocab_size - 1}."
            )
        tokens[i, : len(row)] = row
    return Rows(tokens, lengths, single)


def _rows(prompt: Any, encode: Callable[[str], Sequence[int]]) -> tuple[list[np.ndarray], bool]:
    """Each row by itself, and whether it is one prompt and no batch."""
    if isinstance(prompt, str):
        return [np.array(encode(prompt))], True
    mask = None
    if isinstance(prompt, Mapping):
        prompt, mask = _of_tokenizer(prompt)
    items = _items(prompt)
    texts = [item for item in items if isinstance(item, str)]
    if texts and len(texts) < len(items):
        other = next(item for item in items if not isinstance(item, str))
        raise PromptError(
            f"The prompt holds {len(texts)} texts and a {type(other).__name__}: {_PROMPTS}"
        )
    if texts:
        return [np.array(encode(text)) for text in texts], False
    single = np.ndim(items[0]) == 0 if items else True
    rows = [_row(i, item) for i, item in enumerate([items] if single else items)]
    return rows if mask is None else _without_padding(rows, mask), single


def _items(prompt: Any) -> list[Any]:
    """What a list or an array holds. A table, a set, bytes … are nothing that has an order."""
    if hasattr(prompt, "__array__") and not hasattr(prompt, "columns"):
        prompt = np.asarray(prompt)
        if prompt.ndim == 0:
            raise PromptError(f"The prompt is {prompt.item()!r}: {_PROMPTS}")
    if not isinstance(prompt, np.ndarray | list | tuple | range):
        raise PromptError(f"The prompt is a {type(prompt).__name__}: {_PROMPTS}")
    return list(prompt)


def _row(number: int, given: Any) -> Int[np.ndarray, " T"]:
    try:
        row = np.asarray(given) if len(_items(given)) else np.zeros(0, np.int32)
    except ValueError:  # of several lengths, one inside the other
        row = np.array([[None]])
    if row.ndim != 1 or not np.issubdtype(row.dtype, np.integer):
        raise PromptError(
            f"Row {number} of the prompt is {row.dtype} of shape {list(row.shape)}: {_PROMPTS}"
        )
    return row


def _of_tokenizer(given: Mapping[str, Any]) -> tuple[Any, Any]:
    """The ids of what a tokenizer of transformers gives, and its mask, or None."""
    if "input_ids" not in given:
        named = ", ".join(map(str, list(given)[:4]))
        raise PromptError(
            f"The prompt is a {type(given).__name__} of {named}, without input_ids: {_PROMPTS}"
        )
    return given["input_ids"], given.get("attention_mask")


def _without_padding(rows: list[np.ndarray], mask: Any) -> list[np.ndarray]:
    """Of each row what its attention mask holds: padding may stand on either side."""
    marks = _items(mask)
    marks = [np.asarray(each) for each in ([marks] if np.ndim(marks[0]) == 0 else marks)]
    sizes, held = ([len(row) for row in each] for each in (rows, marks))
    if sizes != held:
        raise PromptError(
            f"input_ids has rows of {sizes} tokens, and attention_mask of {held}: they must agree."
        )
    found = []
    for i, (row, marked) in enumerate(zip(rows, marks, strict=True)):
        at = np.flatnonzero(marked)
        if not np.isin(marked, (0, 1)).all() or (len(at) and at[-1] - at[0] + 1 != len(at)):
            raise PromptError(
                f"attention_mask of row {i} is {marked.tolist()}: it must be 1 for tokens that "
                "follow each other, and 0 for the padding before or behind them."
            )
        found.append(row[at])
    return found
