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
from typing import Any

import anywidget
import traitlets

from llama_loupe.view import View
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
        self.view = view
        self._questions: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self.on_msg(self._heard)
        view.selection.observe(self._chosen)

    def _heard(self, _: Any, message: Any, buffers: Any) -> None:
        """From the page, in any thread."""
        if not isinstance(message, dict):
            return
        if message.get("kind") == "ask":
            with self._lock:
                self._questions[str(message.get("slot"))] = message
            _WORKER.submit(self._answer)
        elif message.get("kind") == "select":
            self.view.selection.choose(message)
        elif message.get("kind") == "hello":
            self._tell()

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
            content["error"] = f"{type(error).__name__}: {error}"
            buffers = []
        self.send(content, buffers)

    def _chosen(self, change: Any) -> None:
        if not self.view.selection.from_page:
            self._tell()

    def _tell(self) -> None:
        self.send({"kind": "selected", "chosen": self.view.selection.chosen})
