"""The one reader of what is chosen of an axis: heads, positions, rows, layers, tokens.

Integers of any library, negative ones from the end; several, as a list, a tuple, a range or an
array; a slice; a boolean mask as long as the axis. Everything else is an error: a mask that is read
as the indices 0 and 1, or `1.0` as `1`, would be a wrong number that nobody notices.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["Choice", "Read", "chosen", "integer", "numbered", "read"]

#: What may be given.
Choice = int | slice | Sequence[int] | Sequence[bool] | np.ndarray
#: As it is kept, so that equal choices are equal and can be hashed.
Read = tuple[int, ...] | tuple[bool, ...] | slice


def read(given: Any, what: str) -> Read:
    """A choice as it is kept, before it is known of how many; `what` names it in the plural.

    Raises `TypeError` for what is no choice, or an empty one.

    >>> read(np.int64(3), "heads"), read(range(2), "heads"), read([True, False], "heads")
    ((3,), (0, 1), (True, False))
    """
    if isinstance(given, slice):
        parts = (given.start, given.stop, given.step)
        if all(part is None or integer(part) is not None for part in parts) and given.step != 0:
            return slice(*(None if part is None else integer(part) for part in parts))
        raise TypeError(f"{what} is {given!r}; a slice has integers, and a step that is not 0.")
    single = integer(given)
    if single is not None:
        return (single,)
    if hasattr(given, "__array__"):
        array = np.asarray(given)
        items = array.tolist() if array.ndim == 1 else None
    else:
        items = list(given) if isinstance(given, list | tuple | range) else None
    if items:
        if all(isinstance(item, bool | np.bool_) for item in items):
            return tuple(map(bool, items))
        numbers = [integer(item) for item in items]
        if None not in numbers:
            return tuple(numbers)  # type: ignore[arg-type]
    raise TypeError(
        f"{what} is {_said(given)}; it must be an integer, several, a slice, or a boolean mask."
    )


def chosen(given: Any, what: str, count: int) -> tuple[int, ...]:
    """The numbers of the chosen ones of `count`, each from 0; `what` names one.

    Raises `TypeError` for what is no choice, and `IndexError` for one that is not there, for a mask
    of another length, and where nothing is chosen.

    >>> chosen([-1, 0], "head", 8), chosen(slice(2), "head", 8), chosen([False, True], "row", 2)
    ((7, 0), (0, 1), (1,))
    """
    found = read(given, f"{what}s")
    if isinstance(found, slice):
        numbers = tuple(range(*found.indices(count)))
    elif isinstance(found[0], bool):
        if len(found) != count:
            raise IndexError(f"The mask has {len(found)} entries, and there are {count} {what}s.")
        numbers = tuple(np.flatnonzero(found).tolist())
    else:
        for number in found:
            if not -count <= number < count:
                raise IndexError(f"{what} {number}; there are {count} {what}s, 0 to {count - 1}.")
        numbers = tuple(number % count for number in found)
    if not numbers:
        raise IndexError(f"{_said(given)} chooses none of {count} {what}s.")
    return numbers


def numbered(what: str, number: Any, count: int) -> int:
    """The number of one of `count` things, counted from the end where negative.

    Raises `IndexError`, and `TypeError` for what is no integer.

    >>> numbered("head", -1, 8)
    7
    """
    found = integer(number)
    if found is None:
        raise TypeError(f"{what} is {_said(number)}; it must be an integer, 0 to {count - 1}.")
    if not -count <= found < count:
        raise IndexError(f"There is no {what} {found}: {count} of them, 0 to {count - 1}.")
    return found % count


def integer(value: Any) -> int | None:
    """An integer of any library as Python's; None for all else, True and 1.0 among it.

    >>> integer(np.int64(3)), integer(True), integer(np.bool_(True)), integer(1.0)
    (3, None, None, None)
    """
    if isinstance(value, bool | np.bool_) or getattr(value, "dtype", None) == np.bool_:
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _said(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
