"""Treescope as the notebook's renderer: pages that stay small, in the notebook's colours."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import treescope
from flax import nnx
from IPython.core.display import DisplayObject
from IPython.core.formatters import BaseFormatter
from IPython.lib.pretty import RepresentationPrinter, pretty
from treescope import context
from treescope import rendering_parts as parts

from llama_jax.model import Model
from llama_jax.points import POINTS
from llama_loupe import arrays, pictures, showing

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

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

# Terminal codes, what ends a line or turns the direction of text, and halves of characters.
CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

# A module's path, with {i} for the number of the layer -> the name of the point that comes out.
POINT_OF = {module: point.name for point in POINTS for module in point.modules}
# Where the model is in which something is drawn.
MODEL: context.ContextualValue[str | None] = context.ContextualValue(None, __name__, "MODEL")

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
    showing.install(ip, undo)
    for name in WORDY:
        restore_later(undo, formatters["text/plain"], name)
    # Besides what we replace in the next lines, this switches off Colab's own renderers.
    treescope.register_as_default(streaming=False)
    formatters["text/html"].for_type(object, html)
    for name in WORDY:
        formatters["text/plain"].for_type(name, print_text)
    # Half of the colours around zero: white, like the page, where there is nothing.
    around_zero = treescope.default_diverging_colormap.get()
    undo.callback(pictures.ARRAYS.clear)
    for setting, value in (
        (treescope.active_renderer, extended()),
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
    """What the page shows for `value`; None for what has a view or displays itself (a plot)."""
    if showing.maker(value) is not None:
        return None
    if callable(own := getattr(type(value), "_repr_html_", None)):
        drawn = own(value)
    elif displays_itself(value):
        return None
    else:
        with treescope.active_renderer.set_scoped(extended()):
            drawn = treescope.render_to_html(value, ignore_exceptions=True)
    return THEME + drawn if drawn and "treescope-container" in drawn else drawn


def text(value: Any) -> str:
    """`value` in few words: large arrays by shape alone, nothing of them computed or copied."""
    if displays_itself(value):
        return pretty(value)
    if arrays.is_array(value) and not is_long(value):
        return repr(value)
    with (
        treescope.active_renderer.set_scoped(extended(named=is_long)),
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


def extended(named: Callable[[Any], bool] = arrays.is_large) -> Any:
    """The active renderer with all that we change about trees."""
    active = treescope.active_renderer.get()
    if pictures.later in active.wrapper_hooks:
        return active.extended_with(handlers=[arrays.naming(named)])
    return active.extended_with(
        handlers=[arrays.naming(named), with_paths_that_evaluate],
        # From the outermost in: `later` has to see the array itself, not what stands in for it.
        wrapper_hooks=[with_controls_written_out, with_point, pictures.later, arrays.on_auto_mesh],
        context_builders=[pictures.new_tree],
    )


def with_paths_that_evaluate(node: Any, path: str | None, subtree_renderer: Any) -> Any:
    """A handler: Flax (0.12.8) writes `.layers.0` for an item, and the deprecated `.value`."""
    draw = getattr(type(node), "__treescope_repr__", None)
    if path is None or draw not in (nnx.Pytree.__treescope_repr__, nnx.Variable.__treescope_repr__):
        return NotImplemented
    own_path = path

    def step(name: str, value: Any) -> str:
        if isinstance(node, nnx.List):
            return f"[{name}]"
        if isinstance(node, nnx.Dict):
            return f"[{name!r}]"
        if isinstance(node, nnx.Variable) and name == "value":
            return "[...]" if isinstance(value, jax.Array) else ".get_value()"
        return f".{name}"

    def child_renderer(value: Any, path: str) -> Any:
        name = path.removeprefix(f"{own_path}.")
        return subtree_renderer(value, path=own_path + step(name, value))

    return draw(node, own_path, child_renderer)


def with_controls_written_out(node: Any, path: str | None, node_renderer: Any) -> Any:
    """A wrapper hook: what an object says of itself turns no text around, and colours none."""
    if path != "":
        return NotImplemented
    drawn = node_renderer(node, path)
    return parts.RenderableAndLineAnnotations(WrittenOut(drawn.renderable), drawn.annotations)


class WrittenOut(pictures.Around):
    def __init__(self, inside: Any) -> None:
        self.inside = inside

    def render_to_html(self, stream: Any, **settings: Any) -> None:
        self.inside.render_to_html(written := io.StringIO(), **settings)
        stream.write(CONTROLS.sub(lambda found: ascii(found[0])[1:-1], written.getvalue()))

    def render_to_text(self, stream: Any, **settings: Any) -> None:
        self.inside.render_to_text(written := io.StringIO(), **settings)
        stream.write(CONTROLS.sub(lambda found: ascii(found[0])[1:-1], written.getvalue()))


def with_point(node: Any, path: str | None, node_renderer: Any) -> Any:
    """A wrapper hook: beside a module of a Llama stands what `capture` calls its output."""
    if isinstance(node, Model):
        with MODEL.set_scoped(path):
            return node_renderer(node, path)
    model = MODEL.get()
    if model is None or path is None or not isinstance(node, nnx.Module):
        return NotImplemented
    point = point_at(path.removeprefix(model))
    if point is None:
        return NotImplemented
    beside = arrays.comment(f"  # {point}")
    return parts.siblings_with_annotations(node_renderer(node, path), extra_annotations=[beside])


def point_at(path: str) -> str | None:
    """The point that comes out of a module of a model, by its path there.

    >>> point_at(".layers[3].mlp.up_proj"), point_at(".norm"), point_at(".layers")
    ('layers.3.mlp.up', 'norm.out', None)
    """
    layer = re.match(r"\.layers\[(\d+)\]", path)
    module = f".layers.{{i}}{path[layer.end() :]}" if layer else path
    point = POINT_OF.get(module.removeprefix("."))
    return point and point.format(i=layer and layer[1])


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
