"""What is chosen: views that are given the same `Selection` follow each other."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import traitlets

__all__ = ["Selection"]

FIELDS = ("row", "token", "layer", "head")


class Selection(traitlets.HasTraits):
    """A row of the batch, a token's position, a layer, a head; each counts from 0.

    Views that share one move together, on the page at once and here as soon as the kernel is free.
    Set it from Python and the views follow; `observe` as with every traitlets object.

    >>> selection = Selection(layer=1)
    >>> selection.observe(lambda change: print(change.name, change.new), "head")
    >>> selection.head = 5
    head 5
    >>> selection
    Selection(row=0, layer=1, head=5)
    """

    row = traitlets.Int(0, min=0)
    token = traitlets.Int(None, allow_none=True, min=0)
    layer = traitlets.Int(None, allow_none=True, min=0)
    head = traitlets.Int(None, allow_none=True, min=0)

    def __init__(self, **chosen: Any) -> None:
        unknown = set(chosen) - set(FIELDS)
        if unknown:
            raise TypeError(f"A selection has {', '.join(FIELDS)}, not {', '.join(unknown)}.")
        super().__init__(**chosen)
        self.id = uuid.uuid4().hex
        self.from_page = False

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
                value = part.get(name, getattr(self, name))
                known = isinstance(value, int) and not isinstance(value, bool) and value >= 0
                if known or (value is None and name != "row"):
                    setattr(self, name, value)

    def __repr__(self) -> str:
        said = ", ".join(
            f"{name}={value}" for name, value in self.chosen.items() if value is not None
        )
        return f"Selection({said})"
