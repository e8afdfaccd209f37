"""What we compute means the same in every mode that JAX can be put into.

`jax_numpy_rank_promotion="raise"` and `jax_numpy_dtype_promotion="strict"` are for the code of who
sets them: ours is written for JAX's defaults, and tested in each of these modes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from llama_jax.base.turns import in_turn

__all__ = ["jit", "standard"]

_F = TypeVar("_F", bound=Callable[..., Any])


def standard(function: _F) -> _F:
    """The function under JAX's default rules of broadcasting and promotion."""

    @functools.wraps(function)
    def under_defaults(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return under_defaults  # type: ignore[return-value]


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` of the function under JAX's default rules; each of our programs is made by it.

    On a mesh of CPU devices they take turns (`llama_jax.base.turns`).
    """
    return in_turn(jax.jit(standard(function), **options))
