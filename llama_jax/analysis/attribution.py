"""Who wrote what into the residual stream, and how much of a logit each writer is.

A Llama 3 has no biases and its norms subtract no mean: the last residual stream is the embedding
plus what every attention head and every neuron wrote, with nothing left over. (Of others' Llamas
the biases of the output projections write too.) Divided by the final
norm's scale, which is held at its value in this run, each of these is a share of every logit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax.analysis.needs import a_run, at_positions, gathered, held, need, pieces_of
from llama_jax.analysis.results import Result
from llama_jax.base.modes import standard
from llama_jax.capture import Positions
from llama_jax.metrics import TokenMetric, Tokens, ids_of, logit, logit_difference
from llama_jax.model.product import product, wide
from llama_jax.run import Run

if TYPE_CHECKING:
    from llama_jax.llama import Llama

__all__ = ["Attribution", "Decomposition", "direct_logit_attribution", "residual_decomposition"]

By = Literal["layer", "head", "neuron"]
_WRITES = ("embed", "self_attn.out", "mlp.out")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Attribution(Result):
    """What each part of the model adds to a logit, or to a difference of two.

    `logit` is what is explained, for each row and position; `remainder` what the parts listed do
    not explain: `sum of values + remainder == logit`. By layer it is rounding, by head and by
    neuron what the other parts wrote.
    """

    logit: Float[Array, "B P"]
    remainder: Float[Array, "B P"]
    target: str

    def top(self, k: int = 10, row: int = 0) -> list[tuple[tuple[int | str, ...], float]]:
        """The k largest parts of a row's last position, either way, with what they add."""
        values = np.asarray(self.values[row])
        if "position" in self.axes:
            values = values[-1]
        names = self.axes[-values.ndim :]
        order = np.argsort(-np.abs(values), axis=None, kind="stable")[:k]
        return [
            (tuple(self.along(axis)[i] for axis, i in zip(names, index, strict=True)), float(part))
            for index in zip(*np.unravel_index(order, values.shape), strict=True)
            for part in (values[index],)
        ]

    def _summary(self) -> str:
        return f"{self.target}: {super()._summary()}"


@standard
def direct_logit_attribution(
    run: Run,
    token: Tokens | tuple[Tokens, Tokens] | TokenMetric,
    position: Positions | None = -1,
    by: By = "layer",
) -> Attribution:
    """What each layer, head or neuron adds directly to the logit of a token.

    `token` is an id or text that is one token; a pair `(a, b)`, or `logit_difference(a, b)`, means
    the difference of their logits. `position` counts in each row, from its end where negative;
    several give an axis `position`, an integer gives none; None means all.

    | `by` | axes behind batch and position | the run must have captured |
    |---|---|---|
    | `"layer"` | component: `embed`, `0.attn`, … | `embed`, `self_attn.out`, `mlp.out` |
    | `"head"` | layer, head | `z`, and `norm.scale` or the last `resid_post` |
    | `"neuron"` | layer, neuron | `mlp.act`, and `norm.scale` or the last `resid_post` |

    Only the direct way through the final norm is counted, with its scale as it was in this run. By
    layer the values sum to the logit; heads sum to their layer's `attn`, neurons to its `mlp`, but
    for biases: to 1e-5 of the largest part in f32. Raises `MissingPointError`, `PromptError`.

    >>> from llama_jax import Llama
    >>> llama = Llama.from_pretrained("cria")
    >>> run = llama.run("Once upon a", capture=("embed", "self_attn.out", "mlp.out"))
    >>> found = direct_logit_attribution(run, " time")
    >>> found.along("component")[:3], abs(float(found.remainder[0])) < 1e-4
    (['embed', '0.attn', '0.mlp'], True)

    Source: arXiv 2209.11895, appendix; TransformerLens' `logit_attrs`.
    """
    llama = a_run(run, "Attribution").needs_llama("attribution")
    metric = _target(token).of(llama)
    chosen = at_positions(run, position, "direct_logit_attribution")
    parts = _PARTS.get(by)
    if parts is None:
        raise ValueError(f"by={by!r}; it must be 'layer', 'head' or 'neuron'.")
    needs, axes, project = parts
    what = f"Attribution by {by}"
    for point in needs:
        need(run, point, what, needs if by == "layer" else (*needs, "norm.scale"))
    direction = _direction(llama, metric, len(run.lengths))
    scale = _scale(run, chosen, what, needs)
    values = project(llama, run, chosen, direction) / scale.reshape(
        *scale.shape[:2], *[1] * len(axes)
    )
    explained = _logit(run, llama, metric, chosen, direction, scale)
    rest = explained - jnp.sum(values, axis=tuple(range(2, values.ndim)))
    names: tuple[str, ...] = ("batch", "position", *axes)
    coordinates: dict[str, Sequence[int | str]] = {}
    if by == "layer":
        coordinates["component"] = components(run.config.num_hidden_layers)
    if isinstance(position, int | np.integer):
        values, explained, rest, names = values[:, 0], explained[:, 0], rest[:, 0], ("batch", *axes)
    elif len(chosen) == 1:
        coordinates["position"] = chosen[0].tolist()
    return Attribution(
        values,
        names,
        explained,
        rest,
        repr(_target(token)),
        coordinates=coordinates,
        pieces=pieces_of(run),
    )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Decomposition(Result):
    """The residual stream as a sum: `values` [B, P, C, D], one vector for each writer.

    Drawn, and in its table, are the vectors' lengths.
    """

    @property
    def norms(self) -> Result:
        """The Euclidean length of each part, batch x position x component."""
        return self._per_component(jnp.linalg.norm(self.values, axis=-1), "lengths")

    @property
    def accumulated(self) -> Decomposition:
        """The stream after each writer: running sums. The last is the last `resid_post`."""
        return dataclasses.replace(self, values=jnp.cumsum(self.values, axis=2))

    def project(self, direction: Float[Array, " D"]) -> Result:
        """How much of each part lies along a vector: dot products, batch x position x component."""
        along = product("BPCD,D->BPC", self.values, jnp.asarray(direction, self.values.dtype))
        return self._per_component(along, "dot products")

    def _per_component(self, values: Array, title: str) -> Result:
        return Result(
            values,
            self.axes[:3],
            coordinates=self.coordinates,
            pieces=self.pieces,
            title=title,
        )

    def to_dataframe(self) -> Any:
        """A row for each row, position and component, with the length of its vector."""
        return self.norms.to_dataframe().rename(columns={"value": "norm"})

    def _summary(self) -> str:
        return f"{self.values.shape[-1]} dimensions, lengths {self.norms._summary()}"

    def _drawn(self) -> Any:
        return {**self.norms._drawn(), "around_zero": False, "vmin": 0.0}


@standard
def residual_decomposition(
    run: Run, positions: Positions | None = None, by: Literal["layer", "head"] = "layer"
) -> Decomposition:
    """The last residual stream as the sum of all that was written into it.

    The parts are `embed`, then for each layer `0.attn` and `0.mlp`; with `by="head"` each head's
    `0.head.3` in the place of `0.attn`, and `0.bias` where `attention_bias` has one. They sum to
    the last layer's `resid_post`, to 1e-5 of its largest entry in f32. The run must have captured
    `embed`, `mlp.out`, and `self_attn.out` or, by head, `z`. Raises `MissingPointError`.

    >>> from llama_jax import Llama
    >>> llama = Llama.from_pretrained("cria")
    >>> run = llama.run("Once upon a", capture=("embed", "self_attn.out", "mlp.out"))
    >>> residual_decomposition(run, positions=[-1]).values.shape  # embed, and 4 layers of two
    (1, 1, 9, 192)

    Source: Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021.
    """
    what = "The decomposition"
    needs = _WRITES if by == "layer" else ("embed", "z", "mlp.out")
    if by not in ("layer", "head"):
        raise ValueError(f"by={by!r}; it must be 'layer' or 'head'.")
    for point in needs:
        need(a_run(run, what), point, what, needs)
    chosen = at_positions(run, positions, "residual_decomposition")
    parts = [_part(run, "embed", chosen)[:, :, None]]
    count = run.config.num_hidden_layers
    names = components(count)
    if by == "head":
        model = run.needs_llama("the decomposition by head").model
        names = ["embed"]
    for i in range(count):
        if by == "head":
            z = _part(run, f"layers.{i}.self_attn.z", chosen)
            parts.append(product("BPNH,DNH->BPND", z, _by_head(model.layers[i], z.shape[2:])))
            names += [f"{i}.head.{head}" for head in range(z.shape[2])]
            if run.config.attention_bias:
                nothing = jnp.zeros_like(parts[0])
                parts.append(model.layers[i].self_attn.o_proj.shifted(nothing))
                names.append(f"{i}.bias")
            names.append(f"{i}.mlp")
        else:
            parts.append(_part(run, f"layers.{i}.self_attn.out", chosen)[:, :, None])
        parts.append(_part(run, f"layers.{i}.mlp.out", chosen)[:, :, None])
    coordinates: dict[str, Sequence[int | str]] = {"component": names}
    if len(chosen) == 1:
        coordinates["position"] = chosen[0].tolist()
    return Decomposition(
        jnp.concatenate(parts, axis=2),
        ("batch", "position", "component", "dimension"),
        coordinates=coordinates,
        pieces=pieces_of(run),
    )


def components(num_layers: int) -> list[str]:
    """Names of all that writes into the stream, in order.

    >>> components(1)
    ['embed', '0.attn', '0.mlp']
    """
    return ["embed", *(f"{i}.{kind}" for i in range(num_layers) for kind in ("attn", "mlp"))]


def _target(token: Any) -> TokenMetric:
    if isinstance(token, TokenMetric):
        if token.kind == "log_probability":
            raise ValueError(f"{token} is not linear in the logits: give tokens or a difference.")
        return token
    if isinstance(token, tuple) and len(token) == 2:
        return logit_difference(*token)
    return logit(token)


def _part(run: Run, name: str, positions: Int[np.ndarray, "B P"]) -> Array:
    array = gathered(run[name], positions)
    return array.astype(wide(array.dtype))


def _direction(llama: Llama, metric: TokenMetric, batch: int) -> Float[Array, "B D"]:
    """The final norm's weight times the unembedding of the token, or of both, as a difference."""
    model = llama.model
    head = model.embed_tokens if model.config.tie_word_embeddings else model.lm_head
    weight = head.weight.get_value()
    rows = [weight[ids_of(tokens, batch)].astype(wide(weight.dtype)) for tokens in metric.tokens]
    difference = rows[0] if len(rows) == 1 else rows[0] - rows[1]
    return difference * model.norm.weight.get_value().astype(difference.dtype)


def _scale(
    run: Run, positions: Int[np.ndarray, "B P"], what: str, needs: Sequence[str]
) -> Float[Array, "B P 1"]:
    """The final norm's scale at the positions, from whatever the run holds."""
    last = f"layers.{run.config.num_hidden_layers - 1}.resid_post"
    if held(run, "norm.scale"):
        return _part(run, "norm.scale", positions)
    if held(run, last):
        stream = _part(run, last, positions)
    elif all(held(run, point) for point in _WRITES):
        stream = jnp.sum(residual_decomposition(run).values, axis=2)
        stream = gathered(stream, positions)
    else:
        need(run, "norm.scale", what, (*needs, "norm.scale"))
        raise AssertionError
    mean_square = jnp.mean(stream * stream, axis=-1, keepdims=True)
    return jnp.sqrt(mean_square + run.config.rms_norm_eps)


def _logit(
    run: Run,
    llama: Llama,
    metric: TokenMetric,
    positions: Int[np.ndarray, "B P"],
    direction: Float[Array, "B D"],
    scale: Float[Array, "B P 1"],
) -> Float[Array, "B P"]:
    """What the model itself said."""
    ends = positions == run.lengths[:, None] - 1
    if run.logits.shape[1] == run.tokens.shape[1]:
        logits = gathered(run.logits, positions)
    elif ends.all():
        logits = jnp.asarray(run.logits)
    else:
        raise ValueError(
            "This run kept the logits of the last position only; attribution at others needs "
            "logits='all'."
        )
    batch, count, _ = logits.shape
    found = []
    for tokens in metric.tokens:
        ids = ids_of(tokens, batch)
        index = jnp.broadcast_to(jnp.asarray(ids)[:, None, None], (batch, count, 1))
        found.append(jnp.take_along_axis(logits, index, axis=2)[..., 0])
    return found[0] if len(found) == 1 else found[0] - found[1]


def _by_head(layer: Any, shape: tuple[int, ...]) -> Float[Array, "D N H"]:
    weight = layer.self_attn.o_proj.weight.get_value()
    return weight.reshape(-1, *shape).astype(wide(weight.dtype))


Project = Callable[..., Float[Array, "B P ..."]]


def _layers(
    llama: Llama, run: Run, chosen: Int[np.ndarray, "B P"], direction: Float[Array, "B D"]
) -> Float[Array, "B P C"]:
    names = ["embed"]
    for i in range(run.config.num_hidden_layers):
        names += [f"layers.{i}.self_attn.out", f"layers.{i}.mlp.out"]
    parts = [product("BPD,BD->BP", _part(run, name, chosen), direction) for name in names]
    return jnp.stack(parts, axis=-1)


def _heads(
    llama: Llama, run: Run, chosen: Int[np.ndarray, "B P"], direction: Float[Array, "B D"]
) -> Float[Array, "B P L N"]:
    found = []
    for i, layer in enumerate(llama.model.layers):
        z = _part(run, f"layers.{i}.self_attn.z", chosen)
        read = product("DNH,BD->BNH", _by_head(layer, z.shape[2:]), direction)
        found.append(product("BPNH,BNH->BPN", z, read))
    return jnp.stack(found, axis=2)


def _neurons(
    llama: Llama, run: Run, chosen: Int[np.ndarray, "B P"], direction: Float[Array, "B D"]
) -> Float[Array, "B P L F"]:
    found = []
    for i, layer in enumerate(llama.model.layers):
        weight = layer.mlp.down_proj.weight.get_value()
        read = product("DF,BD->BF", weight.astype(direction.dtype), direction)
        found.append(_part(run, f"layers.{i}.mlp.act", chosen) * read[:, None])
    return jnp.stack(found, axis=2)


_PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], Project]] = {
    "layer": (_WRITES, ("component",), _layers),
    "head": (("z",), ("layer", "head"), _heads),
    "neuron": (("mlp.act",), ("layer", "neuron"), _neurons),
}
