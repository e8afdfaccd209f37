"""Gradients of a metric with respect to points and weights."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax.base.modes import jit
from llama_jax.capture import Capture, Captured, taps_for
from llama_jax.config import LlamaConfig
from llama_jax.edits import Edit, Place, edits_at
from llama_jax.metrics import Metric, bound
from llama_jax.model import Logits, forward, leaf_numbers, leaves_of
from llama_jax.model.product import wide
from llama_jax.model.tap import Add, Tap
from llama_jax.parallel import sharding, weight_shardings
from llama_jax.plan import check_budget
from llama_jax.points import PointError, Points, is_pair, point_of, resolve, resolve_weights

if TYPE_CHECKING:
    from llama_jax.llama import Llama

__all__ = ["Gradients", "gradients"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Gradients(Captured, Mapping[str, Array]):
    """d metric / d x for every point and weight x that was asked for, each of x's shape.

    `metric` is its value, for each row or for all. A point's gradient at row b is that of
    row b's value; a weight's is that of the sum over rows. A mapping from full names, that takes
    every form of name.
    """

    config: LlamaConfig
    metric: Float[Array, ...]
    captured: Mapping[str, Array]

    def __getitem__(self, points: Points) -> Any:
        if isinstance(points, str) and points in self.captured:
            return self.captured[points]
        try:
            return super().__getitem__(points)
        except PointError:
            names = resolve_weights(points, self.captured)
            found = {name: self.captured[name] for name in names}
            if not found:
                raise
            return next(iter(found.values())) if len(found) == 1 else found

    def __iter__(self) -> Iterator[str]:
        return iter(self.captured)

    def __len__(self) -> int:
        return len(self.captured)

    def __repr__(self) -> str:
        return f"Gradients(of {np.asarray(self.metric)} with respect to {', '.join(self.captured)})"


def gradients(
    llama: Llama,
    tokens: Int[np.ndarray, "B T"],
    lengths: Int[np.ndarray, " B"],
    metric: Metric,
    points: Points,
    edits: Edit | Iterable[Edit] = (),
    logits: Logits = "last",
    budget: int | str | None = None,
) -> Gradients:
    """See `Llama.gradients`, which also takes text."""
    config, dtype = llama.config, llama.model.dtype
    names, weights = _split(points, llama)
    asked = {name: Capture(name) for name in names}
    check_budget(asked, config, lengths, dtype, logits, budget, devices=llama.device_count)
    place = Place(config, wide(dtype), lengths, tokens.shape[1], tokens.shape[1])
    taps = taps_for({}, edits_at(edits, place), config, lengths)
    shapes = []
    for name in names:
        queries = 1 if name == "logits" and logits == "last" else tokens.shape[1]
        shapes.append((name, point_of(name).shape(config, len(tokens), queries, tokens.shape[1])))
    leaves, structure = leaves_of(llama.model)
    numbers = leaf_numbers(llama.model)
    places = tuple((name, numbers[name]) for name in weights)
    values, found = _program(
        structure,
        places,
        bound(metric, llama),
        logits,
        tuple(shapes),
        leaves,
        taps,
        tokens,
        lengths,
    )
    return Gradients(config, values, {name: found[name] for name in (*names, *weights)})


@functools.partial(jit, static_argnums=(0, 1, 2, 3, 4))
def _program(
    structure: Any,
    places: tuple[tuple[str, int], ...],
    metric: Metric,
    logits: Logits,
    points: tuple[tuple[str, tuple[int, ...]], ...],
    leaves: tuple[Array, ...],
    taps: dict[str, Tap],
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
) -> tuple[Float[Array, ...], dict[str, Array]]:
    def total(wanted: dict[str, Array]) -> tuple[Float[Array, ""], Float[Array, ...]]:
        inside = dict(taps)
        for name, _ in points:
            before = inside[name].edits if name in inside else ()
            added = Add(point_of(name).axes, jnp.ones((1,) * wanted[name].ndim, bool), wanted[name])
            inside[name] = Tap((*before, added))
        all_leaves = list(leaves)
        for name, i in places:
            all_leaves[i] = wanted[name]
        model = jax.tree.unflatten(structure, all_leaves)
        made = forward(model, tokens, lengths, taps=inside, logits=logits).logits
        assert made is not None
        values = jnp.asarray(metric(made[:, 0] if logits == "last" else made))
        if values.shape not in ((), (len(tokens),)):
            raise ValueError(
                f"The metric gives shape {list(values.shape)}; it must give a value for each of "
                f"the {len(tokens)} rows, [{len(tokens)}], or one number."
            )
        return jnp.sum(values), values

    model = jax.tree.unflatten(structure, leaves)
    wanted = {name: leaves[i] for name, i in places}
    wanted |= {name: jnp.full(shape, -0.0, wide(model.dtype)) for name, shape in points}
    found, values = jax.grad(total, has_aux=True)(wanted)
    if model.mesh is not None:
        lie = weight_shardings(wanted.keys() - dict(points), model.mesh)
        lie |= {n: sharding(point_of(n).axes, model.mesh, shape) for n, shape in points}
        found = {n: jax.lax.with_sharding_constraint(g, lie[n]) for n, g in found.items()}
    return values, found


def _split(points: Points, llama: Llama) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Full names of points and of weights."""
    items: list[Any] = [points] if isinstance(points, str) or is_pair(points) else list(points)
    known = leaf_numbers(llama.model)
    names: list[str] = []
    weights: list[str] = []
    for item in items:
        found = resolve_weights(item, known)
        weights.extend(found)
        if not found and any(kind in str(item) for kind in ("weight", "bias")):
            near = difflib.get_close_matches(str(item), known, n=3)
            raise PointError(
                f"No weight is called {item!r}."
                + (f" Near: {', '.join(near)}." if near else "")
                + f" This model has layers 0 to {llama.config.num_hidden_layers - 1}."
            )
        if not found:
            names.extend(resolve([item], llama.config.num_hidden_layers))
    if not names and not weights:
        raise ValueError("points names nothing: give a point such as 'resid_post', or a weight.")
    return tuple(dict.fromkeys(names)), tuple(dict.fromkeys(weights))
