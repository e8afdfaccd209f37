"""What an analysis needs of a run, said as a line of code where it is not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax.capture import Positions, positions_of
from llama_jax.points import PointError, Points, resolve

if TYPE_CHECKING:
    from llama_jax.run import Run

__all__ = [
    "MissingPointError",
    "a_run",
    "at_positions",
    "gathered",
    "held",
    "need",
    "pieces_of",
]


class MissingPointError(PointError):
    """An analysis of a run that did not capture what it needs."""


def held(run: Run, points: Points) -> bool:
    """Whether the run holds these points whole."""
    names = resolve(points, run.config.num_hidden_layers)
    return all(name in run.captured and run.captures[name].whole for name in names)


def need(run: Run, points: Points, what: str, capture: Sequence[str] | None = None) -> None:
    """Raises `MissingPointError` unless the run holds the points whole.

    `capture` is what the message tells to ask for, where that is more than the points.
    """
    if held(run, points):
        return
    names = resolve(points, run.config.num_hidden_layers)
    missing = next(n for n in names if n not in run.captured or not run.captures[n].whole)
    kept = f"only a part of it, {run.captures[missing]}" if missing in run.captured else "not"
    listed = capture if capture is not None else ([points] if isinstance(points, str) else points)
    raise MissingPointError(
        f"{what} needs {missing}, which this run holds {kept}. Run it with "
        f"llama.run(prompt, capture={tuple(listed)!r})."
    )


def a_run(run: Run, what: str) -> Run:
    """The run. Raises `TypeError` for anything else, such as a Llama that is still to be run."""
    if not hasattr(run, "captures"):
        raise TypeError(
            f"{what} is of a Run, as llama.run(prompt, capture=...) gives; this is a "
            f"{type(run).__name__}."
        )
    return run


def at_positions(run: Run, positions: Positions | None, what: str) -> Int[np.ndarray, "B P"]:
    """The chosen positions of each row, from its start; all of the longest row's for None."""
    if positions is None:
        every = np.arange(run.tokens.shape[1], dtype=np.int32)
        return np.broadcast_to(every, run.tokens.shape)
    return positions_of(positions, run.lengths, what)


def gathered(array: Float[Array, "B T ..."], positions: Int[np.ndarray, "B P"]) -> Array:
    """Of each row its own positions."""
    if positions.shape[1] == array.shape[1] and (positions == np.arange(array.shape[1])).all():
        return jnp.asarray(array)
    index = positions.reshape(*positions.shape, *[1] * (array.ndim - 2))
    return jnp.take_along_axis(jnp.asarray(array), jnp.asarray(index), axis=1)


def pieces_of(run: Run) -> list[str] | None:
    """The texts of the tokens, where there is one row and a tokenizer."""
    if run.llama is None or run.llama.tokenizer is None or len(run.lengths) > 1:
        return None
    pieces: Any = run.llama.pieces(run.tokens[0])
    return pieces
