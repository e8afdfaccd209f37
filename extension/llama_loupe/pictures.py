"""The arrays of a tree: a few are drawn at once, of more each when its node is opened.

Until then an array is a line, and in its node stands
`<llama-loupe-picture data-tree="…" data-array="…">` around where the array lies. The front end asks
`picture` for what belongs there. Without a front end, or without a kernel, the text stays.
"""

from __future__ import annotations

import collections
import functools
import html
import secrets
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import treescope
from IPython.core.getipython import get_ipython
from treescope import context, lowering
from treescope import rendering_parts as parts

from llama_loupe import arrays
from llama_loupe.view import View, ViewError, integer

__all__ = ["picture"]

ELEMENT = "llama-loupe-picture"
# A tree of so many arrays, so many of them large, is drawn at once: at most 0.2 MB of page. In any
# other what has at most `SMALL` entries is written out.
MOST_ARRAYS, MOST_LARGE, SMALL = 100, 4, 100
# Characters of a picture's page.
MOST_PAGE = 60_000
# So many arrays can be asked for, of all trees; the latest ones, up to so many bytes, are held.
MOST_KNOWN, MOST_HELD = 10_000, 64_000_000


def picture(tree: str, array: int) -> str:
    """The HTML of the array that a tree on a page calls so: a drawing, or a line that says why not.

    At most 60 kB. The tree's own line already names the array, so this does not. A drawing is a
    page of Treescope's, whose scripts look for their container in `document`: it has to be there
    when they run, and may be moved from there into the tree. May be called in any thread.
    """
    reference = ARRAYS.known.get((tree, array))
    if reference is None:
        return line("Not known to this kernel, which was restarted, or has shown much since")
    value = reference()
    if value is None:
        return line("No longer in memory: nothing held this array")
    if not arrays.has_picture(value):
        return line("No longer in memory: this array was deleted, or donated to a computation")
    try:
        drawn = page(value)
    except Exception as error:
        return line(f"Could not be drawn ({type(error).__name__}: {error})"[:1000])
    return drawn if len(drawn) <= MOST_PAGE else line("Too large to be drawn here")


class Pictures(View):
    """What an undisplayed widget answers with, for the trees of a whole notebook."""

    name = "pictures"

    def answer(self, what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        tree = arguments.get("tree")
        if what != "picture" or not isinstance(tree, str):
            raise ViewError(f"{what!r} of {tree!r}: a page asks for the picture of a tree's array.")
        drawn = picture(tree, integer(arguments, "array", 2**31))
        return {"html": np.frombuffer(drawn.encode(), np.uint8)}


@functools.cache
def listen(kernel: Any) -> Any:
    """The widget through which pages of this kernel ask; it is never displayed."""
    return Pictures("pictures of arrays").widget


def page(value: Any) -> str:
    """Without a setting of Treescope's, which would be another thread's as well."""
    drawn = arrays.on_auto_mesh(value, None, arrays.draw_unfolded)
    if drawn is NotImplemented:
        drawn = arrays.draw_unfolded(value, None)
    return lowering.render_to_html_as_root(drawn.rendering.renderable, compressed=True)


def line(said: str) -> str:
    return html.escape(f"{said}. Display it again.")


class Arrays:
    """What pages may ask for.

    References are weak: a page must not keep a model's weights on a device. But what nothing else
    holds, such as the list of a cell that shows it, would be gone at once, so a little is held.
    """

    def __init__(self) -> None:
        self.known: dict[tuple[str, int], weakref.ref[Any]] = {}
        self.held: collections.deque[Any] = collections.deque()
        self.held_bytes = 0

    def add(self, tree: str, number: int, array: Any) -> None:
        kernel = getattr(get_ipython(), "kernel", None)
        if kernel is not None:
            listen(kernel)
        self.known[tree, number] = weakref.ref(array)
        if len(self.known) > MOST_KNOWN:
            del self.known[next(iter(self.known))]
        if array.nbytes > MOST_HELD:
            return
        self.held.append(array)
        self.held_bytes += array.nbytes
        while self.held_bytes > MOST_HELD:
            self.held_bytes -= self.held.popleft().nbytes

    def clear(self) -> None:
        self.known.clear()
        self.held.clear()
        self.held_bytes = 0


ARRAYS = Arrays()  # the front end's questions come to the kernel, from whatever page is open


class Tree:
    """One display: its name, which no other has in any kernel, and how many arrays it has."""

    def __init__(self) -> None:
        self.name = secrets.token_hex(8)
        self.arrays = self.large = 0

    def is_drawn_at_once(self) -> bool:
        return self.arrays <= MOST_ARRAYS and self.large <= MOST_LARGE


TREE: context.ContextualValue[Tree | None] = context.ContextualValue(None, __name__, "TREE")


def new_tree() -> AbstractContextManager[None]:
    """For `context_builders` of a renderer."""
    return TREE.set_scoped(Tree())


def later(node: Any, path: str | None, node_renderer: Any) -> Any:
    """A wrapper hook: how an array inside of a tree is drawn is decided when all are counted."""
    tree = TREE.get()
    alone = path == ""
    if tree is None or alone or treescope.active_autovisualizer.get() is not arrays.draw:
        return NotImplemented
    if not arrays.has_picture(node):
        return NotImplemented
    return parts.RenderableAndLineAnnotations(Later(tree, node), parts.build_copy_button(path))


class Around(parts.RenderableTreePart):
    """A part that looks like the one inside."""

    inside: Any

    def _compute_collapsed_width(self) -> int:
        return self.inside.collapsed_width

    def _compute_newlines_in_expanded_parent(self) -> int:
        return self.inside.newlines_in_expanded_parent

    def _compute_layout_marks_in_this_part(self) -> frozenset[Any]:
        return self.inside.layout_marks_in_this_part

    def foldables_in_this_part(self) -> Any:
        return self.inside.foldables_in_this_part()

    def html_setup_parts(self, setup: Any, /) -> Any:
        return self.inside.html_setup_parts(setup)

    def render_to_html(self, stream: Any, **settings: Any) -> None:
        self.inside.render_to_html(stream, **settings)

    def render_to_text(self, stream: Any, **settings: Any) -> None:
        self.inside.render_to_text(stream, **settings)


class Later(Around):
    """An array, which is looked at only when the whole tree is there."""

    def __init__(self, tree: Tree, value: Any) -> None:
        self.tree, self.value, self.number = tree, value, tree.arrays
        self.renderer = treescope.active_renderer.get()
        tree.arrays += 1
        tree.large += value.size > SMALL

    @functools.cached_property
    def inside(self) -> Any:
        if self.tree.is_drawn_at_once():
            return self.alone(arrays.draw)
        if self.value.size <= SMALL:
            return self.alone(None)
        ARRAYS.add(self.tree.name, self.number, self.value)
        return arrays.folded(self.value, "", [Placeholder(self)])

    def alone(self, autovisualizer: Any) -> Any:
        with treescope.active_autovisualizer.set_scoped(autovisualizer):
            drawn = self.renderer.to_foldable_representation(self.value, ignore_exceptions=True)
        return drawn.renderable


class Placeholder(Around):
    """The element in which the front end puts the picture once it is seen."""

    def __init__(self, array: Later) -> None:
        self.inside = arrays.comment(arrays.place(array.value))
        self.tree, self.number = array.tree.name, array.number

    def render_to_html(self, stream: Any, **settings: Any) -> None:
        stream.write(f'<{ELEMENT} data-tree="{self.tree}" data-array="{self.number}">')
        self.inside.render_to_html(stream, **settings)
        stream.write(f"</{ELEMENT}>")
