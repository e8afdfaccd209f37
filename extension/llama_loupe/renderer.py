"""Treescope as the notebook's renderer: pages that stay small, in the notebook's colours."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import treescope
from IPython.core.display import DisplayObject
from IPython.core.formatters import BaseFormatter
from IPython.lib.pretty import RepresentationPrinter, pretty

from llama_loupe import arrays

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

# About 6 KB of page for an array, and at most 0.6 MB for a tree.
MOST_PICTURES = 100

# In a dark theme the drawing is turned inside out: Treescope (0.1.10) has no colours but its own.
# 0.93 makes its white the background of JupyterLab Dark.
THEME = """<style>
:is([data-jp-theme-light="false"], .vscode-dark, [theme="dark"]) treescope-container {
  filter: invert(0.93) hue-rotate(180deg);
}
</style>
"""

# Types whose own text copies every array to the host in order to print a few corners. By name:
# where JAX keeps its array type changes, and Flax need not be imported.
WORDY = (
    "jaxlib._jax.ArrayImpl",
    "jaxlib.xla_extension.ArrayImpl",
    "flax.nnx.pytreelib.Pytree",
    "flax.nnx.variablelib.Variable",
    "flax.nnx.statelib.State",
)
MOST_VALUES, MOST_LINES, MOST_COLUMNS = 100, 60, 200

UNDO = "_llama_loupe_undo"


def install(ip: InteractiveShell) -> None:
    """Makes Treescope draw all that `ip` displays. A second call does nothing."""
    if hasattr(ip, UNDO):
        return
    undo = contextlib.ExitStack()
    setattr(ip, UNDO, undo)
    assert ip.display_formatter is not None  # a shell without one displays nothing
    formatters = ip.display_formatter.formatters
    undo.callback(setattr, ip.display_formatter, "formatters", formatters)
    restore_later(undo, formatters["text/html"], object)
    for name in WORDY:
        restore_later(undo, formatters["text/plain"], name)
    # Besides what we replace in the next lines, this switches off Colab's own renderers.
    treescope.register_as_default(streaming=False)
    formatters["text/html"].for_type(object, html)
    for name in WORDY:
        formatters["text/plain"].for_type(name, print_text)
    # Half of the colours around zero: white, like the page, where there is nothing.
    around_zero = treescope.default_diverging_colormap.get()
    for setting, value in (
        (treescope.active_autovisualizer, arrays.draw),
        (treescope.default_magic_autovisualizer, arrays.draw),
        (treescope.default_sequential_colormap, around_zero[len(around_zero) // 2 :]),
    ):
        undo.callback(setting.set_globally, setting.get())
        setting.set_globally(value)
    magics = ip.magics_manager.magics["cell"]
    undo.callback(put_back, magics, {name: magics.get(name) for name in ("autovisualize", "with")})
    treescope.register_autovisualize_magic()
    treescope.register_context_manager_magic()


def remove(ip: InteractiveShell) -> None:
    """Undoes `install`, except that Colab's own renderers stay off."""
    undo = ip.__dict__.pop(UNDO, None)
    if undo:
        undo.close()


def html(value: Any) -> str | None:
    """What the page shows for `value`, or None for what displays itself (a widget, a plot)."""
    if callable(own := getattr(type(value), "_repr_html_", None)):
        drawn = own(value)
    elif displays_itself(value):
        return None
    else:
        with (
            treescope.active_renderer.set_scoped(arrays.renderer()),
            treescope.active_autovisualizer.set_scoped(pictures()),
        ):
            drawn = treescope.render_to_html(value, ignore_exceptions=True)
    return THEME + drawn if drawn and "treescope-container" in drawn else drawn


def text(value: Any) -> str:
    """`value` in few words: large arrays by shape alone, nothing of them computed or copied."""
    if displays_itself(value):
        return pretty(value)
    if arrays.is_array(value) and not is_long(value):
        return repr(value)
    with (
        treescope.active_renderer.set_scoped(arrays.renderer(only_named=is_long)),
        treescope.active_autovisualizer.set_scoped(None),
    ):
        lines = treescope.render_to_text(value, ignore_exceptions=True).splitlines()
    cut = [line if len(line) <= MOST_COLUMNS else f"{line[:MOST_COLUMNS]} …" for line in lines]
    if len(cut) > MOST_LINES:
        cut[MOST_LINES:] = [f"… {len(cut) - MOST_LINES} more lines"]
    return "\n".join(cut)


def print_text(value: Any, printer: RepresentationPrinter, cycle: bool) -> None:
    for number, line in enumerate(text(value).split("\n")):
        if number:
            printer.break_()
        printer.text(line)


def displays_itself(value: Any) -> bool:
    kind = type(value)
    if hasattr(kind, "__treescope_repr__") or hasattr(kind, "__treescope_root_repr__"):
        return False
    own = ("_ipython_display_", "_repr_mimebundle_", "_repr_pretty_")
    return isinstance(value, DisplayObject) or any(hasattr(kind, name) for name in own)


def pictures() -> treescope.Autovisualizer | None:
    """The active autovisualizer for one display; ours draws so many arrays of it, and no more."""
    active = treescope.active_autovisualizer.get()
    if active is not arrays.draw:
        return active
    drawn = itertools.count()

    def first_ones(value: Any, path: str | None) -> Any:
        if arrays.is_array(value) and next(drawn) >= MOST_PICTURES:
            return None
        return arrays.draw(value, path)

    return first_ones


def is_long(value: Any) -> bool:
    return arrays.is_array(value) and value.size > MOST_VALUES


def restore_later(undo: contextlib.ExitStack, formatter: BaseFormatter, kind: type | str) -> None:
    try:
        before: Callable[[Any], Any] | None = formatter.lookup_by_type(kind)
    except KeyError:
        before = None
    if before is None:
        undo.callback(formatter.pop, kind, None)
    else:
        undo.callback(formatter.for_type, kind, before)


def put_back(mapping: dict[str, Any], before: dict[str, Any]) -> None:
    for name, value in before.items():
        if value is None:
            mapping.pop(name, None)
        else:
            mapping[name] = value
