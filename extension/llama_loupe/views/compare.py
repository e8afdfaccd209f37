"""Two runs, or two models: what changed most, and there a, b and b - a down to single entries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from llama_jax import Llama, Run, analysis
from llama_jax.model import parameters
from llama_jax.points import point_of
from llama_loupe import image
from llama_loupe.selection import Selection
from llama_loupe.tiles import Matrix, asked, tile, whole
from llama_loupe.view import Question, View, ViewError, integer
from llama_loupe.views.rows import pieces, row_of

__all__ = ["Compare", "compare"]

MOST_TOKENS = 200  # tokens that differ, listed
MOST_NOTES = 20
PICTURE = (128, 256)  # cells where no scripts run


class Compare(View):
    """See `compare`; `comparison` is the list."""

    name = "compare"

    def __init__(self, a: Any, b: Any, row: int, selection: Selection | None) -> None:
        self.a, self.b = a, b
        self.comparison = a if b is None else analysis.compare(a, b)
        said = f": {len(a)} differences" if b is None else f" {_label(a)} (a) with {_label(b)} (b)"
        self.runs = isinstance(a, Run)
        self.batch = len(a.lengths) if self.runs else 1
        self.row = row_of(row, self.batch, "batch")
        super().__init__(f"Compare{said}", selection, self.row if self.runs else None)
        self.rows = {difference.name: difference for difference in self.comparison}
        self.slots = [] if self.runs or b is None else [parameters(x.model) for x in (a, b)]

    def data(self) -> dict[str, Any]:
        rows = list(self.rows.values())
        forms: dict[str, dict[str, Any]] = {}
        keys = ["" if self.b is None else self._form_of(row.name, forms) for row in rows]
        numbers = [
            [row.relative, row.max_abs, *(_or_nan(x) for x in (row.kl, row.flipped, row.variation))]
            for row in rows
        ]
        return {
            "names": [row.name for row in rows],
            "kinds": [row.kind for row in rows],
            "numbers": np.array(numbers, np.float64).reshape(-1, 5),
            "where": [", ".join(map(str, row.where)) for row in rows],
            "spots": np.array([self._spot(row) for row in rows], np.int32).reshape(-1, 4),
            "forms": forms,
            "form": keys,
            "labels": ["", ""] if self.b is None else [_label(self.a), _label(self.b)],
            "notes": self._notes(),
            "batch": self.batch,
            "row": self.row,
            "prompt": self.prompt(self.row) if self.runs and self.b is not None else None,
        }

    def _notes(self) -> list[str]:
        found = self.comparison
        notes = [
            f"Only in {side}: {name}"
            for side, names in (("a", found.only_in_a), ("b", found.only_in_b))
            for name in names
        ]
        if found.aligned is not None:
            common, one, other = found.aligned
            notes.insert(
                0,
                f"Prompts of other lengths, aligned by tokens: {common} of {one} and {other} "
                "positions. There are no maps of them.",
            )
        elif self.b is None:
            notes.insert(0, "A Comparison holds no arrays: compare(a, b) shows maps of them.")
        return [*notes[:MOST_NOTES], *found.configs]

    def _form_of(self, name: str, forms: dict[str, dict[str, Any]]) -> str:
        """The key of what its matrix is like; the prompt's length is written as 0."""
        kind = self.rows[name].kind
        if kind == "lens":
            return ""
        if kind == "weight":
            key = name.split(".", 2)[-1] if name.startswith("layers.") else name
            if key not in forms:
                height, width = Matrix(self.slots[0][name].get_value()).shape
                forms[key] = {"height": height, "width": width, "heads": 0, "size": 0}
            return key
        point = point_of(name)
        if point.local in forms:
            return point.local
        axes = point.axes.split()
        shape = point.shape(self.a.config, 1, 1, 1)
        form = {"height": 0, "width": math.prod(shape[2:]), "heads": 0, "size": 0}
        if "S" in axes:
            form |= {"width": 0, "heads": shape[1]}
        elif len(axes) == 4:
            form["size"] = shape[3]
        if kind == "logits" and not self._all_logits:
            form["height"] = 1
        forms[point.local] = form
        return point.local

    def _spot(self, row: analysis.Difference) -> list[int]:
        """Row of the batch, head, row and column of the largest difference; -1 where none is."""
        where = row.where
        if self.b is None:
            return [-1] * 4
        if row.kind == "weight":
            return [-1, -1, *([0] if len(where) == 1 else []), *where]
        if row.kind in ("logits", "lens"):
            return [where[0], -1, *where[1:]]
        point = point_of(row.name)
        if "S" in point.axes.split():
            return list(where)
        inner = point.shape(self.a.config, 1, 1, 1)[2:]
        return [where[0], -1, where[1], int(np.ravel_multi_index(where[2:], inner))]

    @property
    def _all_logits(self) -> bool:
        return all(run.logits.shape[1] == run.tokens.shape[1] for run in (self.a, self.b))

    def prompt(self, row: int) -> dict[str, Any]:
        """The tokens of a row in a, and in b where they differ."""
        length = int(self.a.lengths[row])
        differ = np.flatnonzero(self.a.tokens[row, :length] != self.b.tokens[row, :length])
        other = pieces(self.b, row)
        return {
            "length": length,
            "tokens": pieces(self.a, row),
            "differ": len(differ),
            "positions": differ[:MOST_TOKENS].astype(np.int32),
            "others": [other[at] for at in differ[:MOST_TOKENS].tolist()],
        }

    def answer(self, what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self.b is None or what not in ("tile", "prompt"):
            return super().answer(what, arguments)
        row = integer(arguments, "row", self.batch)
        if what == "prompt":
            if not self.runs:
                raise ViewError("Llamas have no prompt.")
            return self.prompt(row)
        name = arguments.get("name")
        if not isinstance(name, str) or name not in self.rows or self.rows[name].kind == "lens":
            raise ViewError(f"There is no map of {name!r}.")
        head = integer(arguments, "head", self.a.config.num_attention_heads)
        a, b, shape = self.sides(name, row, head)
        window = asked(arguments, shape)
        found = {"a": tile(a, *window), "b": tile(b, *window), "change": tile(a, *window, b)}
        return {
            **{part: each.values for part, each in found.items()},
            "rows": found["a"].rows,
            "columns": found["a"].columns,
        }

    def sides(self, name: str, row: int, head: int) -> tuple[Matrix, Matrix, tuple[int, int]]:
        """A weight, or a point of one row of the batch, in a and in b; how much of it is real."""
        kind = self.rows[name].kind
        if kind == "weight":
            a, b = (Matrix(slots[name].get_value()) for slots in self.slots)
            return a, b, a.shape
        if kind == "logits" and not self._all_logits:
            a, b = _last(self.a, row), _last(self.b, row)
            return a, b, a.shape
        length = int(self.a.lengths[row])
        if kind == "logits":
            a, b = (Matrix(run.logits, (row,)) for run in (self.a, self.b))
            return a, b, (length, a.shape[1])
        is_map = "S" in point_of(name).axes.split()
        lead = (row, head) if is_map else (row,)
        a, b = (Matrix(run.captured[name], lead, is_map) for run in (self.a, self.b))
        return a, b, (length, length if is_map else a.shape[1])

    def questions(self) -> Iterator[Question]:
        """Maps of what changed, the most first."""
        if self.b is None:
            return
        for row in range(self.batch):
            if row != self.row:
                yield "prompt", {"row": row}
        data = self._data
        for name, key, spot in zip(data["names"], data["form"], data["spots"], strict=True):
            if not key or self.rows[name].max_abs == 0:
                continue
            form = data["forms"][key]
            length = data["prompt"]["length"] if data["prompt"] else 0
            shape = form["height"] or length, form["width"] or length
            heads = range(form["heads"] or 1)
            for head in sorted(heads, key=lambda head: head != spot[1]):
                yield "tile", {"name": name, "row": self.row, "head": head, **whole(shape)}

    def cells(self) -> image.Cells | None:
        """b - a of what changed most."""
        first = next((row for row in self.comparison if row.kind != "lens" and row.max_abs), None)
        if first is None or self.b is None:
            return None
        row, head, _, _ = self._spot(first)
        a, b, (height, width) = self.sides(first.name, max(row, 0), max(head, 0))
        found = tile(a, (0, height), (0, width), PICTURE, "max", b)
        return image.Cells(found.values, diverging=True)

    def text(self) -> str:
        return f"{self.title}\n{self.comparison!r}"


def compare(
    a: Run | Llama | analysis.Comparison,
    b: Run | Llama | None = None,
    *,
    row: int = 0,
    selection: Selection | None = None,
) -> Compare:
    """What differs between two runs, or the weights of two Llamas: a ranked list and three maps.

    The list is `llama_jax.analysis.compare`'s, which says what may be compared; choose one of it
    and see a, b and b - a side by side, at one window. A cell of several entries shows the one of
    the largest magnitude, with its sign, so one changed entry is seen wherever it is; zoomed in,
    entries are exact. b - a is in f32 or wider, and computed where the arrays are. Of a batch, one
    `row` is shown at a time. A point with heads is joined to `[T, N*H]`; of patterns and scores a
    head is chosen; layers of the logit lens have numbers and no map. A `Comparison` alone, which
    holds no arrays, is shown as the list; so are runs of prompts of other lengths, which are
    aligned by their tokens.

    Raises what `analysis.compare` raises, and `IndexError` for a row that is not there.

    >>> import numpy as np
    >>> llama = Llama.from_pretrained("cria")
    >>> view = compare(llama, llama.edited({"norm.weight": np.zeros(192)}))
    >>> view.comparison.top(1)[0].name
    'norm.weight'
    """
    if isinstance(a, analysis.Comparison) and b is None:
        return Compare(a, None, row, selection)
    if not isinstance(a, (Run, Llama)) or type(a) is not type(b):
        raise TypeError(
            f"compare takes two Runs, two Llamas or one Comparison, not {type(a).__name__} and "
            f"{type(b).__name__}: loupe.compare(llama.run(one), llama.run(other))."
        )
    if isinstance(a, Run) and isinstance(b, Run) and a.lengths.tolist() != b.lengths.tolist():
        return Compare(analysis.compare(a, b), None, row, selection)
    return Compare(a, b, row, selection)


def _last(run: Run, row: int) -> Matrix:
    """The logits of a row's last position."""
    at = int(run.lengths[row]) - 1 if run.logits.shape[1] == run.tokens.shape[1] else 0
    return Matrix(run.logits, (row, at))


def _label(side: Run | Llama) -> str:
    return side.name if isinstance(side, Llama) and side.name else repr(side)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
