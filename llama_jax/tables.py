"""A table that prints itself, in a terminal and in a notebook alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Table"]


class Table:
    """Rows of text under a header: mixed into results whose best form is a table."""

    def _table(self) -> tuple[Sequence[str], Sequence[Sequence[str]], str]:
        """The header, the rows, and a last line about the whole."""
        raise NotImplementedError

    def __repr__(self) -> str:
        header, rows, last = self._table()
        columns = zip(header, *rows, strict=True)
        widths = [max(len(cell) for cell in column) for column in columns]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (header, *rows)
        ]
        return "\n".join([*lines, last])

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        from treescope import rendering_parts as parts

        return parts.text(repr(self))
