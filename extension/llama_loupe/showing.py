"""Which view shows a value: at the end of a cell, and in `show`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from llama_jax import Generation, Llama, Run, analysis
from llama_loupe.view import View
from llama_loupe.views.lens import lens
from llama_loupe.views.page import page
from llama_loupe.views.residual import residual
from llama_loupe.views.results import result
from llama_loupe.views.tokens import tokens
from llama_loupe.views.weights import weights

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["install", "view_of"]

VIEWS: dict[type, Callable[[Any], View]] = {
    Run: page,
    Generation: tokens,
    Llama: weights,
    analysis.Result: result,
    analysis.Decomposition: residual,
    analysis.HeadScores: result,
    analysis.Factored: result,
    analysis.LogitLens: lens,
    analysis.Comparison: result,
    analysis.SVD: result,
    analysis.WeightStatistics: result,
    analysis.Overview: result,
}


def view_of(value: Any) -> View | None:
    """The view that shows `value`; None for what Treescope shows better."""
    if isinstance(value, View):
        return value
    make = maker(value)
    return None if make is None else make(value)


def maker(value: Any) -> Callable[[Any], View] | None:
    """What makes the view of `value`. A Llama without weights is a tree of shapes."""
    if isinstance(value, Llama) and not isinstance(value.model.norm.weight.get_value(), jax.Array):
        return None
    return next((VIEWS[kind] for kind in type(value).__mro__ if kind in VIEWS), None)


def install(ip: InteractiveShell, undo: contextlib.ExitStack) -> None:
    """Makes cells of `ip` that end in one of our objects show its view."""
    assert ip.display_formatter is not None
    formatter = ip.display_formatter.mimebundle_formatter
    for kind in VIEWS:
        formatter.for_type(kind, _bundle)
        undo.callback(formatter.pop, kind, None)


def _bundle(value: Any, include: Any = None, exclude: Any = None) -> Any:
    view = view_of(value)
    if view is None:
        return {}, {}
    return view._repr_mimebundle_(include=include, exclude=exclude)
