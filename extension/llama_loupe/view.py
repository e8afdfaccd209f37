"""What every view is: data for a page, answers to what the page asks, and a text form.

A view is built, asked and exported in plain Python. Shown in a notebook it gets a widget, which
carries messages and does nothing else (`widget.py`).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from llama_loupe import image
from llama_loupe.selection import Selection
from llama_loupe.wire import pack

__all__ = ["Kept", "Question", "View", "ViewError", "f32", "integer", "one_of"]

T = TypeVar("T")

# A question that a page may ask of a view: what, and with which arguments.
Question = tuple[str, Mapping[str, Any]]


class ViewError(ValueError):
    """A view that cannot be made from what it was given, or a question that it cannot answer."""


class View:
    """A picture of one piece of data. Subclasses say what it holds and answer for the rest."""

    #: The name under which the page knows how to draw it.
    name: ClassVar[str]

    def __init__(
        self,
        title: str,
        selection: Selection | None = None,
        row: int | None = None,
        **sizes: int,  # how many tokens, layers, heads there are to choose
    ) -> None:
        self.title = title
        self.selection = Selection() if selection is None else selection
        self.selection.limit(**sizes)
        if row is not None:  # that of the batch which the view shows
            self.selection.row = row

    def data(self) -> dict[str, Any]:
        """What the page draws at first: JSON values and NumPy arrays, bounded by a screen."""
        return {}

    def answer(self, what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What the page asks for later; any argument may come from anywhere, so all are checked.

        Called in a thread of the widget's, while another runs cells.
        """
        raise ViewError(f"{type(self).__name__} has no {what!r}.")

    def questions(self) -> Iterator[Question]:
        """What an exported file should be able to answer, the most useful first."""
        return iter(())

    def cells(self) -> image.Cells | None:
        """A picture for places that run no scripts: numbers, and how they are coloured."""
        return None

    @property
    def children(self) -> Sequence[View]:
        """The views that stand in this one."""
        return ()

    def text(self) -> str:
        """What the view shows, in words and numbers."""
        return self.title

    def payload(self) -> dict[str, Any]:
        """`data`, with what every page needs."""
        return {"view": self.name, "title": self.title, **self._data}

    @functools.cached_property
    def _data(self) -> dict[str, Any]:
        return self.data()

    def packed(self) -> tuple[dict[str, Any], list[bytes]]:
        """What the page gets, as JSON and buffers."""
        buffers: list[bytes] = []
        selection = {"id": self.selection.id, "chosen": self.selection.chosen}
        whole = {**self.payload(), "label": self.title, "selection": selection}
        return pack(whole, buffers), buffers

    def at(self, path: Sequence[int]) -> View:
        """The view that a page's question is for."""
        view = self
        for index in path:
            if not isinstance(index, int) or not 0 <= index < len(view.children):
                raise ViewError(f"There is no view at {list(path)}.")
            view = view.children[index]
        return view

    @functools.cached_property
    def widget(self) -> Any:
        """The widget that shows this view; made when it is first displayed."""
        from llama_loupe.widget import LoupeWidget

        return LoupeWidget(self)

    def _display_(self) -> Any:
        """What marimo shows."""
        return self.widget

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        made = self.widget._repr_mimebundle_(**kwargs)
        data, metadata = made if isinstance(made, tuple) else (made, {})
        data = {**(data or {}), "text/plain": self.text()}
        cells = self.cells()
        if cells is not None and cells.values.size:
            data["image/png"] = image.png(cells)
        return data, metadata

    def __repr__(self) -> str:
        return self.text()


class Kept(Generic[T]):
    """The last `most` of what was computed, for threads to share; computed twice at the worst."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: dict[Hashable, T] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        with self._lock:
            if key in self._found:
                return self._found[key]
        made = compute()
        with self._lock:
            self._found[key] = made
            if len(self._found) > self._most:
                del self._found[next(iter(self._found))]
        return made


def integer(arguments: Mapping[str, Any], name: str, stop: int, start: int = 0) -> int:
    """An argument of a question that must be an integer from `start` to `stop - 1`."""
    value = arguments.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not start <= value < stop:
        raise ViewError(f"{name} is {value!r}; it must be an integer, {start} to {stop - 1}.")
    return value


def one_of(arguments: Mapping[str, Any], name: str, known: Sequence[str]) -> str:
    """An argument of a question that must be one of several words."""
    value = arguments.get(name)
    if not isinstance(value, str) or value not in known:
        raise ViewError(f"{name} is {value!r}; it must be one of {', '.join(known)}.")
    return value


def f32(array: Any) -> np.ndarray:
    """On the host, as the page wants numbers."""
    return np.asarray(array, np.float32)
