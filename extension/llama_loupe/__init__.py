"""A loupe for Llamas in a notebook: `%load_ext llama_loupe` draws every tree and array.

What is the last line of a cell, or is given to `show`, is drawn by Treescope as a tree that folds,
with a picture of each array in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import treescope
from IPython.core.getipython import get_ipython
from IPython.display import display

from llama_jax.base import compilation_cache
from llama_jax.text import token_labels
from llama_loupe import arrays, renderer
from llama_loupe.export import export
from llama_loupe.selection import Selection
from llama_loupe.showing import view_of
from llama_loupe.view import View
from llama_loupe.views.attention import attention
from llama_loupe.views.compare import compare
from llama_loupe.views.lens import lens
from llama_loupe.views.page import page
from llama_loupe.views.residual import residual
from llama_loupe.views.results import result
from llama_loupe.views.tokens import tokens
from llama_loupe.views.weights import weights

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = [
    "Selection",
    "View",
    "attention",
    "compare",
    "export",
    "lens",
    "load_ipython_extension",
    "page",
    "residual",
    "result",
    "show",
    "token_labels",
    "tokens",
    "unload_ipython_extension",
    "weights",
]


def show(*values: Any) -> None:
    """Draws each value below the last one: runs, Llamas and results as views, trees that fold.

    A run is shown on one page, whose parts are linked (`page`), a Llama as its weights, what an
    analysis found as its picture, arrays as pictures, strings as text, anything else as a tree.
    Works with and without `%load_ext llama_loupe`. Outside a notebook it prints.

    >>> show("three weights:", {"up": 1.5, "down": [2, 3]})
    three weights:
    {'up': 1.5, 'down': [2, 3]}
    """
    for value in values:
        view = view_of(value)
        if isinstance(value, str):
            print(value)
        elif get_ipython() is None:
            print(renderer.text(value) if view is None else view.text())
        elif view is not None:
            display(view)
        else:
            with treescope.active_autovisualizer.set_scoped(arrays.draw):
                drawn = renderer.html(value)
            if drawn is None:
                display(value)
            else:
                display({"text/html": drawn, "text/plain": renderer.text(value)}, raw=True)


def load_ipython_extension(ip: InteractiveShell) -> None:
    """`%load_ext llama_loupe`: Treescope draws what cells display, in this notebook only.

    A large array of real numbers is shown whole, in at most 2,304 cells with the largest magnitude
    of each, its statistics and a histogram; a smaller one entry by entry. Of a tree with more than
    four large arrays each is drawn when its node is opened, as long as the kernel is there.
    `%%autovisualize False` at the top of a cell leaves pictures out of its output.

    Compiled programs are kept for the next kernel (`llama_jax.base.compilation_cache`), unless
    JAX's own settings for that are set.
    """
    compilation_cache.enable()
    renderer.install(ip)


def unload_ipython_extension(ip: InteractiveShell) -> None:
    """`%unload_ext llama_loupe`: what cells display looks as it did before."""
    renderer.remove(ip)
