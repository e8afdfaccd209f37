"""The one widget: it carries a view's data to a page, and the page's questions to the view.

What a page asks is answered in one thread of our own. Messages may arrive in any thread while a
cell runs, so the handler only notes them. Of several questions for one slot, such as the tile of a
map that somebody drags, only the newest is answered.
"""

from __future__ import annotations

import concurrent.futures
import logging
import pathlib
import threading
import weakref
from typing import Any

import anywidget
import traitlets

from llama_loupe.view import View, ViewError
from llama_loupe.wire import pack

__all__ = ["LoupeWidget"]

STATIC = pathlib.Path(__file__).parent / "static"
LOG = logging.getLogger(__name__)

_WORKER = concurrent.futures.ThreadPoolExecutor(1, "llama_loupe")


class LoupeWidget(anywidget.AnyWidget):
    """Shows one `View`, whatever stands in it."""

    _esm = STATIC / "loupe.js"
    _css = STATIC / "loupe.css"

    payload = traitlets.Dict().tag(sync=True)
    buffers: Any = traitlets.List().tag(sync=True)

    def __init__(self, view: View) -> None:
        payload, buffers = view.packed()
        super().__init__(payload=payload, buffers=buffers)
        # ipywidgets holds every widget for ever. The view, and the arrays that it shows, are held
        # while a page shows it, and before one does.
        self._view = weakref.ref(view)
        self._held: View | None = view
        self._pages = 0
        self._questions: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self.on_msg(self._heard)
        view.selection.observe(self._chosen)

    @property
    def view(self) -> View:
        """What it shows. Raises `ViewError` when nothing holds that any more."""
        view = self._view()
        if view is None:
            raise ViewError("This view was closed, and what it showed let go: run the cell again.")
        return view

    def _heard(self, _: Any, message: Any, buffers: Any) -> None:
        """From the page, in any thread."""
        if not isinstance(message, dict):
            return
        kind = message.get("kind")
        if kind == "ask":
            with self._lock:
                self._questions[str(message.get("slot"))] = message
            _WORKER.submit(self._answer)
        elif kind in ("hello", "bye"):
            self._pages = max(0, self._pages + (1 if kind == "hello" else -1))
            self._held = self._view() if self._pages else None
            if kind == "hello":
                self._tell()
        elif kind == "select" and (view := self._view()) is not None:
            view.selection.choose(message)

    def _answer(self) -> None:
        with self._lock:
            if not self._questions:
                return  # a newer one took its slot, and has been answered
            question = self._questions.pop(next(iter(self._questions)))
        content: dict[str, Any] = {"kind": "answer", "id": question.get("id")}
        buffers: list[bytes] = []
        try:
            view = self.view.at(question.get("path") or ())
            found = view.answer(str(question.get("what")), question.get("args") or {})
            content["body"] = pack(found, buffers)
        except Exception as error:  # the page says it; nobody else would
            LOG.debug("a page's question failed", exc_info=True)
            known = isinstance(error, ValueError | LookupError) and error.args
            content["error"] = str(error.args[0]) if known else f"{type(error).__name__}: {error}"
            buffers = []
        self.send(content, buffers)

    def _chosen(self, change: Any) -> None:
        if not change.owner.from_page:
            self._tell()

    def _tell(self) -> None:
        if (view := self._view()) is not None:
            self.send({"kind": "selected", "chosen": view.selection.chosen})
