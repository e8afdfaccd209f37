"""A run on one page: its text, its attention, its lens and what wrote the next token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llama_jax import Run, analysis
from llama_jax.analysis import MissingPointError
from llama_loupe import image
from llama_loupe.selection import Selection
from llama_loupe.view import View
from llama_loupe.views.attention import attention
from llama_loupe.views.lens import lens
from llama_loupe.views.residual import residual
from llama_loupe.views.results import result
from llama_loupe.views.rows import numbered
from llama_loupe.views.tokens import tokens

__all__ = ["Page", "page"]

EVERYTHING = ("q_rot", "k_rot", "embed", "self_attn.out", "mlp.out", "resid_post")
TITLES = {
    "tokens": "Text",
    "attention": "Attention",
    "lens": "Logit lens",
    "residual": "Residual stream",
}


class Page(View):
    """Views that share one selection, each in its place."""

    name = "page"

    def __init__(
        self,
        title: str,
        views: Sequence[tuple[str, View]],
        missing: Sequence[str],
        selection: Selection,
        row: int | None = None,
    ) -> None:
        super().__init__(title, selection, row)
        self.views, self.missing = views, missing

    @property
    def children(self) -> Sequence[View]:
        return [view for _, view in self.views]

    def data(self) -> dict[str, Any]:
        return {
            "places": [place for place, _ in self.views],
            "children": [view.payload() for view in self.children],
            "missing": list(self.missing),
            "code": _code() if self.missing else None,
        }

    def cells(self) -> image.Cells | None:
        found = (view.cells() for view in reversed(self.children))
        return next((cells for cells in found if cells is not None), None)

    def text(self) -> str:
        lines = [f"{place}: {view.text()}" for place, view in self.views]
        if self.missing:
            lines.append(f"not captured: {', '.join(self.missing)}; {_code()}")
        return "\n".join([self.title, *lines])


def page(run: Run, *, row: int = 0, selection: Selection | None = None) -> Page:
    """All views of a run that it captured enough for, linked: choose in one and the others follow.

    The text on top, below it attention, the logit lens, what each layer wrote towards the
    likeliest next token, and the residual stream. What is not captured is named, with the line of
    code that captures everything.
    """
    row = numbered(run, row)
    selection = Selection(row=row) if selection is None else selection
    last = int(run.lengths[row]) - 1
    if selection.token is None:
        selection.token = last

    [best] = run.top(1, row=row)

    def attribution() -> View:
        found = analysis.direct_logit_attribution(run, best.token, position=None)
        view = result(found, selection=selection)
        view.title = f"What wrote the logit of {best.text or best.token!r} at each position"
        return view

    makers: dict[str, Callable[[], View]] = {
        "attention": lambda: attention(run, row=row, selection=selection),
        "lens": lambda: lens(run, row=row, selection=selection),
        "attribution": attribution,
        "residual": lambda: residual(run, row=row, selection=selection),
    }
    text = tokens(run, row=row, selection=selection)
    text.title = TITLES["tokens"]
    views: list[tuple[str, View]] = [("tokens", text)]
    if np.isnan(best.probability):  # it is no token's logit
        del makers["attribution"]
    missing: list[str] = []
    for place, make in makers.items():
        try:
            view = make()
        except (MissingPointError, ValueError):
            missing.append(place)
            continue
        if view.name == "empty":
            missing.append(place)
        else:
            view.title = TITLES.get(place, view.title)
            views.append((place, view))
    return Page(repr(run), views, missing, selection, row)


def _code() -> str:
    points = ", ".join(f'"{point}"' for point in EVERYTHING)
    return f"run = llama.run(prompt, capture=({points}))"
