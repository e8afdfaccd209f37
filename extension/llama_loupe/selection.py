"""What is chosen: views that are given the same `Selection` follow each other."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping
from typing import Any

import traitlets

from llama_jax.base.choice import integer

__all__ = ["Selection", "SelectionError"]

FIELDS = ("row", "token", "layer", "head")


class SelectionError(traitlets.TraitError, IndexError):
    """What cannot be chosen."""


class Selection(traitlets.HasTraits):
    """A row of the batch, a token's position, a layer, a head; each counts from 0.

    As soon as a view tells how many there are, negative ones count from the end, and what is not
    there raises `SelectionError` (an `IndexError`), there and in the view.

    Views that share one move together, on the page at once and here as soon as the kernel is free.
    Set it from Python and the views follow; `observe` as with every traitlets object.

    >>> selection = Selection(layer=1)
    >>> selection.observe(lambda change: print(change.name, change.new), "head")
    >>> selection.head = 5
    head 5
    >>> selection
    Selection(row=0, layer=1, head=5)
    """

    row = traitlets.Any(0)
    token = traitlets.Any(None)
    layer = traitlets.Any(None)
    head = traitlets.Any(None)

    def __init__(self, **chosen: Any) -> None:
        unknown = set(chosen) - set(FIELDS)
        if unknown:
            raise TypeError(f"A selection has {', '.join(FIELDS)}, not {', '.join(unknown)}.")
        self._sizes: dict[str, int] = {}
        super().__init__(**chosen)
        self.id = uuid.uuid4().hex
        self.from_page = False

    @traitlets.validate(*FIELDS)
    def _valid(self, proposal: Any) -> int | None:
        name, value = proposal["trait"].name, proposal["value"]
        if value is None and name != "row":
            return None
        return _checked(name, value, self._sizes.get(name))

    def limit(self, **sizes: int) -> None:
        """Says how many rows, tokens, layers and heads a view of it has; of views the most counts.

        Raises `SelectionError` where what is chosen is not there.
        """
        for name, size in sizes.items():
            value = getattr(self, name)
            if value is not None:
                _checked(name, value, size)
            self._sizes[name] = max(size, self._sizes.get(name, 0))

    @property
    def chosen(self) -> dict[str, int | None]:
        """All four, by name."""
        return {name: getattr(self, name) for name in FIELDS}

    def choose(self, part: Mapping[str, Any]) -> None:
        """Sets what is valid in a page's message, all at once.

        While observers are told, `from_page` is true: the page's own views have moved already.
        """
        self.from_page = True
        try:
            self._choose(part)
        finally:
            self.from_page = False

    def _choose(self, part: Mapping[str, Any]) -> None:
        with self.hold_trait_notifications():
            for name in FIELDS:
                value, size = part.get(name, getattr(self, name)), self._sizes.get(name)
                if value is None and name != "row":
                    setattr(self, name, None)
                elif (integer(value) or 0) >= 0:  # a page counts from the start
                    with contextlib.suppress(SelectionError):
                        setattr(self, name, _checked(name, value, size))

    def __repr__(self) -> str:
        said = ", ".join(
            f"{name}={value}" for name, value in self.chosen.items() if value is not None
        )
        return f"Selection({said})"


def _checked(name: str, value: Any, size: int | None) -> int:
    """Where `size` is not known, negative ones cannot be counted from the end."""
    found = integer(value)
    if size is not None:
        if found is not None and -size <= found < size:
            return found % size
        raise SelectionError(f"{name} is {value!r}; it must be an integer, 0 to {size - 1}.")
    if found is None or found < 0:
        raise SelectionError(f"{name} is {value!r}; it must be an integer from 0 on.")
    return found
