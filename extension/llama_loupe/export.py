"""A view as one file that needs no kernel and no network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import os
import warnings
from collections.abc import Iterator
from typing import Any

from llama_jax.base.replacing import replacing_file
from llama_loupe.view import View
from llama_loupe.widget import STATIC
from llama_loupe.wire import dumped, name_of, pack

__all__ = ["ExportError", "export", "page"]

LARGE = 20e6
# Answers to what a page may ask are written into the file until they take so much.
ANSWERS = 8 * 2**20


class ExportError(ValueError, OSError):
    """A place where no file can be: an argument that is wrong, and what `open` would raise."""


def export(view: View, path: str | os.PathLike[str]) -> int:
    """Writes `view` into one HTML file that anybody can open, and returns its size in bytes.

    The file is interactive as in the notebook, except that nothing new can be computed: it holds
    what the view shows, and up to 8 MiB of what it could be asked. It loads nothing and sends
    nothing, and its content security policy lets no script run but ours, by its hash. Warns above
    20 MB. A full disk leaves what was there before.

    Raises `TypeError` for what is no view or no path, and `ExportError` where there can be no such
    file: the folder is not there or not writable, or `path` is a folder itself.
    """
    with replacing_file(path, ExportError, make=False) as new:
        written = page(view).encode()
        new.write_bytes(written)
    if len(written) > LARGE:
        warnings.warn(
            f"{path} has {len(written) / 1e6:.1f} MB, which a browser opens slowly. A shorter "
            "prompt, or fewer layers in capture=, makes it smaller.",
            stacklevel=2,
        )
    return len(written)


def page(view: View) -> str:
    """The file's text."""
    if not isinstance(view, View):
        raise TypeError(
            f"export takes a view, such as loupe.attention(run), not {type(view).__name__}."
        )
    payload, buffers = view.packed()
    answers: dict[str, Any] = {}
    room = ANSWERS
    for path, what, arguments in _questions(view):
        try:
            found = view.at(path).answer(what, arguments)
        except (ValueError, LookupError):  # the page says why, as it does in a notebook
            continue
        more: list[bytes] = []
        body = pack(found, more)
        room -= sum(map(len, more)) + len(dumped(body))
        if room < 0:
            break
        answers[name_of(path, what, arguments)] = _renumbered(body, len(buffers))
        buffers += more
    packed = [base64.b64encode(gzip.compress(part, 6, mtime=0)).decode() for part in buffers]
    data = dumped({"payload": payload, "answers": answers, "buffers": packed})
    script = (STATIC / "loupe.js").read_text("utf-8")
    style = BODY + (STATIC / "loupe.css").read_text("utf-8")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(view.title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<script type="application/json" id="llama-loupe">{data}</script>\n'
        f'<script type="module">{script}</script>\n</body>\n</html>\n'
    )


BODY = "html { color-scheme: light dark; } body { margin: 12px auto; max-width: 1400px; }\n"


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _questions(
    view: View, path: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[int, ...], str, Any]]:
    for what, arguments in view.questions():
        yield path, what, dict(arguments)
    for index, child in enumerate(view.children):
        yield from _questions(child, (*path, index))


def _renumbered(tree: Any, by: int) -> Any:
    """Its buffers, counted behind those that are there."""
    if isinstance(tree, dict):
        if "$array" in tree:
            return {**tree, "$array": tree["$array"] + by}
        return {key: _renumbered(value, by) for key, value in tree.items()}
    return [_renumbered(value, by) for value in tree] if isinstance(tree, list) else tree
