"""JSON files: reading one strictly, and what kind of value each of its fields takes."""

from __future__ import annotations

import collections
import json
import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = [
    "FLAG",
    "INTEGER",
    "LIST",
    "NUMBER",
    "OBJECT",
    "POSITIVE",
    "SIZE",
    "TEXT",
    "TEXTS",
    "TOKENS",
    "Kind",
    "parse_json",
    "shown",
    "wrong_fields",
]


class Kind(NamedTuple):
    """What a field may hold, in words and as a test of any value of JSON but null."""

    words: str
    accepts: Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    try:
        return (_whole(value) or isinstance(value, float)) and math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def _token(value: Any) -> bool:
    return _whole(value) and 0 <= value < 2**31


FLAG = Kind("true or false", lambda value: isinstance(value, bool))
INTEGER = Kind("an integer", _whole)
SIZE = Kind("a positive integer below 2^31", lambda value: _whole(value) and 0 < value < 2**31)
NUMBER = Kind("a number", _number)
POSITIVE = Kind("a positive number", lambda value: _number(value) and value > 0)
TEXT = Kind("text", lambda value: isinstance(value, str))
TEXTS = Kind(
    "a list of texts",
    lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
)
TOKENS = Kind(
    "a token id (an integer from 0 on) or a list of them",
    lambda value: _token(value) or (isinstance(value, list) and all(map(_token, value))),
)
LIST = Kind("a list", lambda value: isinstance(value, list))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))


def wrong_fields(fields: Mapping[str, Any], kinds: Mapping[str, Kind], prefix: str = "") -> str:
    """What is of the wrong kind, in a sentence for each; empty where nothing is.

    Absent fields, null, and names that `kinds` has not are left alone.

    >>> wrong_fields({"layers": "2", "bias": None, "size": 3}, {"layers": SIZE, "bias": FLAG})
    "layers is '2'; it must be a positive integer below 2^31."
    """
    return " ".join(
        f"{prefix}{name} is {shown(value)}; it must be {kinds[name].words}."
        for name, value in fields.items()
        if name in kinds and value is not None and not kinds[name].accepts(value)
    )


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlevel = 3


def shown(value: Any) -> str:
    """A value of a file for a message: `repr`, cut where it is long or deep.

    >>> shown("x" * 200)[:10], shown([[[[[[1]]]]]])
    ("'xxxxxxxxx", '[[[...]]]')
    """
    return _SHORT.repr(value)


def parse_json(data: str | bytes) -> Any:
    """The value that JSON text holds, a name in an object at most once.

    Raises `ValueError`, which says what is wrong: no JSON, no UTF-8, a name twice, too deep.

    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: the name 'a' is twice in one object
    """
    text = data if isinstance(data, str) else data.decode("utf-8-sig")
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("lists and objects lie too deep in each other") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise ValueError(f"the name {shown(twice)} is twice in one object")
    return made
