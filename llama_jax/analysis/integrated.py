"""Integrated gradients: a metric shared out over the entries of a tensor, nothing left over."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm.auto import tqdm

from llama_jax.analysis.results import Result
from llama_jax.base.largest import largest
from llama_jax.base.modes import standard
from llama_jax.capture import Captured
from llama_jax.edits import Ablate
from llama_jax.metrics import Metric, bound
from llama_jax.model.product import wide
from llama_jax.points import Points, point_of, resolve

if TYPE_CHECKING:
    from llama_jax.llama import Llama, Prompt

__all__ = ["IntegratedGradients", "integrated_gradients"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class IntegratedGradients(Result):
    """What each entry of a point adds to a metric; `values` has the point's shape.

    The values of a row sum to `metric - baseline`, both `[B]`, up to `error` `[B]`, which is what
    the steps taken leave over. Drawn and in the table are sums over the last axis.
    """

    metric: Float[Array, " B"]
    baseline: Float[Array, " B"]
    point: str

    @property
    def error(self) -> Float[Array, " B"]:
        """`sum of values - (metric - baseline)`; it shrinks as `steps` grow."""
        total = jnp.sum(self.values, axis=tuple(range(1, self.values.ndim)))
        return total - (self.metric - self.baseline)

    @property
    def by_position(self) -> Result:
        """`values` summed over the last axis: what each position adds."""
        return Result(
            jnp.sum(self.values, axis=-1),
            self.axes[:-1],
            coordinates=self.coordinates,
            pieces=self.pieces,
            title="by position",
        )

    def to_dataframe(self) -> Any:
        """A row for each position, with what it adds."""
        return self.by_position.to_dataframe()

    def _summary(self) -> str:
        error = float(largest(jnp.abs(self.error)))
        return f"{self.point}: {self.by_position._summary()}, unexplained {error:.1e}"

    def _drawn(self) -> Mapping[str, Any]:
        return self.by_position._drawn()


@standard
def integrated_gradients(
    llama: Llama,
    prompt: Prompt,
    metric: Metric,
    point: Points = "embed",
    baseline: Any = "mean",
    steps: int = 50,
    budget: int | str | None = None,
) -> IntegratedGradients:
    """`(x - x0) * mean of d metric / dx` along the straight line from a baseline x0 to x.

    `point` is one tensor: the embeddings, or `("resid_post", 3)`, `("mlp.act", 0)`, …. `baseline`
    is x0: `"mean"`, that over the row's own positions; a number; an array that broadcasts to the
    tensor; or a `Run` of an equally long prompt that captured the point. The mean along the line is
    a Gauss-Legendre sum over `steps` points, one forward and one backward pass each; only the first
    compiles.

    Completeness: the values sum to `metric(x) - metric(x0)`. `.error` is what is missing, usually
    far below 1 % at 50 steps; above 1 % there is a warning. A baseline of 0 for the embeddings or
    the residual stream is a bad one: every norm blows up what is near 0, so that most of the line's
    change lies in its first millionth. Raises what `Llama.gradients` raises.

    >>> from llama_jax import Llama
    >>> from llama_jax.metrics import logit
    >>> llama = Llama.from_pretrained("cria")
    >>> found = integrated_gradients(llama, "Once upon a", logit(" time"), ("resid_mid", 2))
    >>> found.values.shape, bool(abs(found.error[0]) < 0.01 * abs(found.metric[0]))
    ((1, 4, 192), True)

    Source: arXiv 1703.01365.
    """
    names = resolve(point, llama.config.num_hidden_layers)
    if len(names) != 1:
        raise ValueError(
            f"point={point!r} means {len(names)} tensors ({', '.join(names[:3])}, …); integrated "
            "gradients are of one: give a pair such as ('resid_post', 3)."
        )
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be 1 or more.")
    (name,), metric = names, bound(metric, llama)
    tokens, lengths, _ = llama.read(prompt)
    rows = [list(row[:length]) for row, length in zip(tokens, lengths, strict=True)]
    run = llama.run(rows, name, logits="last", budget=budget)
    x = jnp.asarray(run.captured[name])
    x = x.astype(wide(x.dtype))
    start = _baseline(baseline, name, x, lengths)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    total = jnp.zeros_like(x)
    with tqdm(total=steps, desc="integrated gradients", leave=False, delay=1) as bar:
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            there = Ablate(name, to=start + node * (x - start))
            found = llama.gradients(rows, metric, name, edits=there, budget=budget)
            total = total + weight * found[name]
            bar.update()
    ends = [
        llama.run(rows, logits="last", edits=edits, budget=budget).logits[:, 0]
        for edits in ((), (Ablate(name, to=start),))
    ]
    at_end, at_start = (jnp.atleast_1d(jnp.asarray(metric(logits))) for logits in ends)
    axes = tuple(_AXES[letter] for letter in point_of(name).axes.split())
    single = llama.tokenizer is not None and len(rows) == 1
    result = IntegratedGradients(
        (x - start) * total,
        axes,
        at_end,
        at_start,
        name,
        pieces=llama.pieces(tokens[0]) if single else None,
    )
    gap = float(largest(jnp.abs(result.error) / jnp.maximum(jnp.abs(at_end - at_start), 1e-6)))
    if gap > 0.01:
        warnings.warn(
            f"Integrated gradients at {name}: {gap:.0%} of the metric's change are not explained "
            f"at {steps} steps. Take more steps=, or a baseline= nearer to the tensor.",
            stacklevel=2,
        )
    return result


_AXES = {
    "B": "batch",
    "T": "position",
    "S": "key",
    "N": "head",
    "K": "head",
    "D": "dimension",
    "H": "dimension",
    "F": "neuron",
    "1": "scale",
    "V": "token",
}


def _baseline(
    baseline: Any, name: str, x: Float[Array, "B ..."], lengths: Int[np.ndarray, " B"]
) -> Array:
    if isinstance(baseline, str):
        if baseline != "mean":
            raise ValueError(
                f"baseline is {baseline!r}; it must be 'mean', a number, an array or a Run."
            )
        axis = point_of(name).axes.split().index("T")
        real = np.arange(x.shape[axis]) < lengths[:, None]
        real = real.reshape(len(real), *[1] * (axis - 1), -1, *[1] * (x.ndim - axis - 1))
        return jnp.broadcast_to(jnp.mean(x, axis, keepdims=True, where=real), x.shape)
    if isinstance(baseline, Captured):
        baseline = baseline[name]
    array = jnp.asarray(baseline, x.dtype)
    try:
        return jnp.broadcast_to(array, x.shape)
    except ValueError:
        raise ValueError(
            f"baseline has shape {list(array.shape)}; {name} has {list(x.shape)}, and the one must "
            "broadcast to the other."
        ) from None
