"""What crosses between Python and a page: JSON, with each array in a buffer of its own.

An array stands in the JSON as `{"$array": number of its buffer, "dtype": …, "shape": […]}`;
`frontend/src/wire.ts` is the other end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["dumped", "name_of", "pack", "safe"]

DTYPES = ("float32", "float64", "uint8", "uint16", "int32")
MOST_CHARACTERS = 300  # of a token's or a name's text


def pack(tree: Any, buffers: list[bytes]) -> Any:
    """`tree` as JSON can hold it; its NumPy arrays are appended to `buffers`.

    >>> buffers = []
    >>> pack({"values": np.zeros((2, 3), np.uint8), "names": ("a", 1.5)}, buffers)
    {'values': {'$array': 0, 'dtype': 'uint8', 'shape': [2, 3]}, 'names': ['a', 1.5]}
    >>> buffers
    [b'\\x00\\x00\\x00\\x00\\x00\\x00']
    """
    if isinstance(tree, np.ndarray):
        if tree.dtype.name not in DTYPES:
            raise TypeError(f"An array of {tree.dtype}: only {', '.join(DTYPES)} can be sent.")
        buffers.append(tree.astype(tree.dtype.newbyteorder("<"), copy=False).tobytes())
        place = {"$array": len(buffers) - 1, "dtype": tree.dtype.name}
        return {**place, "shape": list(tree.shape)}
    if isinstance(tree, Mapping):
        return {str(key): pack(value, buffers) for key, value in tree.items()}
    if isinstance(tree, str):
        return safe(tree)
    if isinstance(tree, Sequence):
        return [pack(value, buffers) for value in tree]
    if isinstance(tree, np.generic):
        tree = tree.item()
    if isinstance(tree, float) and not math.isfinite(tree):
        raise ValueError("JSON has no NaN and no infinity: send numbers like these in an array.")
    return tree


def safe(text: str) -> str:
    """`text` in characters that every encoding can carry, and not endlessly many of them.

    >>> safe("\\ud800"), len(safe("a" * 10_000))
    ('\\\\ud800', 300)
    """
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


def name_of(path: Sequence[int], what: str, arguments: Any) -> str:
    """The name of a question in an exported file, where its answer is looked up."""
    asked = [list(path), what, arguments]
    return json.dumps(asked, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def dumped(tree: Any) -> str:
    """JSON that may stand inside `<script>`: no character of it ends or opens an element."""
    text = json.dumps(tree, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
