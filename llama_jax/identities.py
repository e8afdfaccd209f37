"""What must hold between the tensors of one forward pass, measured on the tensors themselves.

A Llama's norms subtract no mean, so its sums have no remainder: the residual stream is the
embedding plus what the layers wrote, an attention output is the sum of its heads', an MLP's the sum
of its neurons', each with the projection's bias where a model has one. Each identity is skipped,
with the reason, where a tensor that it reads was not captured whole, or where the tensor that it
predicts was edited.

An error is the largest absolute difference over all real positions and all layers; its tolerance is
1e-10 (f64), 1e-5 (f32), 2e-3 (f16) or 1e-2 (bf16) of the largest entry, or of 1 where that is
larger, for the narrowest dtype among the model's and those of the tensors read. A sum that a model
of narrow dtype rounds at every term may be off by half a unit in the last place for each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from llama_jax.base.largest import largest
from llama_jax.base.modes import standard
from llama_jax.config import LlamaConfig
from llama_jax.model import Model, unembed
from llama_jax.model.product import product, wide
from llama_jax.points import point_of
from llama_jax.tables import Table

__all__ = ["Check", "Outcome", "check", "first_not_finite"]

_TOLERANCES = {"float64": 1e-10, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}


class Outcome(NamedTuple):
    """One identity on one run. `passed` is None where it was skipped; `note` says why, or where."""

    name: str
    error: float | None
    tolerance: float | None
    passed: bool | None
    note: str


@dataclasses.dataclass(frozen=True, repr=False)
class Check(Table):
    """The identities of one run; prints as a table."""

    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether none failed, and at least one could be measured."""
        measured = [o.passed for o in self.outcomes if o.passed is not None]
        return bool(measured) and all(measured)

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self.outcomes)

    def __len__(self) -> int:
        return len(self.outcomes)

    def __getitem__(self, index: int) -> Outcome:
        return self.outcomes[index]

    def _table(self) -> tuple[Sequence[str], Sequence[Sequence[str]], str]:
        words = {True: "pass", False: "FAIL", None: "skipped"}
        rows = [
            (
                outcome.name,
                "" if outcome.error is None else f"{outcome.error:.1e}",
                "" if outcome.tolerance is None else f"{outcome.tolerance:.1e}",
                words[outcome.passed],
                outcome.note,
            )
            for outcome in self.outcomes
        ]
        counts = {word: sum(row[3] == word for row in rows) for word in words.values()}
        last = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        return ("identity", "error", "tolerance", "", ""), rows, last


@standard
def check(
    captured: Mapping[str, Array],
    config: LlamaConfig,
    lengths: Int[np.ndarray, " B"],
    edited: frozenset[str],
    dtype: str,
    model: Model | None,
) -> Check:
    """Measures every identity on whole tensors by full name; see `Run.check`.

    Weights are read from `model` as they are now.
    """
    seen = _Seen(captured, config, lengths, edited, dtype, model)
    return Check(tuple(_outcome(identity, seen) for identity in _IDENTITIES))


@standard
def first_not_finite(captured: Mapping[str, Array], lengths: Int[np.ndarray, " B"]) -> str | None:
    """The first of these, in their order, that is not finite at a row's own positions, and where.

    Of scores only NaN counts: those of the future are -inf.
    """
    for name, array in captured.items():
        for part in jax.tree.leaves(array):
            bad = jnp.isnan(part) if "scores" in name else ~jnp.isfinite(part)
            axes = point_of(name).axes.split()[: bad.ndim]
            at = axes.index("T")
            if bad.shape[at] == lengths.max():  # all positions: padding means nothing
                shape = [1] * bad.ndim
                shape[0], shape[at] = len(lengths), bad.shape[at]
                bad = bad & (np.arange(bad.shape[at]) < lengths[:, None]).reshape(shape)
            if bool(jnp.any(bad)):
                where = np.unravel_index(int(jnp.argmax(bad)), bad.shape)
                return f"{name}, row {where[0]}" + (
                    f", position {where[at]}" if bad.shape[at] == lengths.max() else ""
                )
    return None


class _Skip(Exception):
    """Why an identity cannot be measured on a layer."""


@dataclasses.dataclass(frozen=True)
class _Seen:
    captured: Mapping[str, Array]
    config: LlamaConfig
    lengths: Int[np.ndarray, " B"]
    edited: frozenset[str]
    dtype: str
    model: Model | None
    narrowest: list[str] = dataclasses.field(default_factory=list)  # dtypes of what was read

    def __call__(self, name: str, layer: int | None = None) -> Array:
        full = name if layer is None else f"layers.{layer}.{name}"
        if full not in self.captured:
            raise _Skip(f"{name} was not captured whole")
        array = jnp.asarray(self.captured[full])
        self.narrowest.append(array.dtype.name)
        return array.astype(wide(array.dtype))

    def unedited(self, layer: int | None, *names: str) -> None:
        for name in names:
            if (name if layer is None else f"layers.{layer}.{name}") in self.edited:
                raise _Skip(f"{name} was edited")

    def weights(self) -> Model:
        if self.model is None:
            raise _Skip("it needs weights: Run.load(path, llama=llama)")
        return self.model

    def real(self, array: Array, axis: int = 1) -> Bool[Array, ...]:
        """True at the rows' own positions."""
        shape = [1] * array.ndim
        shape[0], shape[axis] = len(self.lengths), array.shape[axis]
        return jnp.asarray((np.arange(array.shape[axis]) < self.lengths[:, None]).reshape(shape))


# Each gives (error, size of the terms, number of narrow roundings) of one layer.
_Measured = tuple[float, float, int]
_Identity = tuple[str, bool, Callable[[_Seen, Any], _Measured]]


def _outcome(identity: _Identity, seen: _Seen) -> Outcome:
    name, by_layer, measure = identity
    layers: list[int | None] = list(range(seen.config.num_hidden_layers)) if by_layer else [None]
    worst: tuple[float, float, int | None] | None = None
    reasons: dict[str, int] = {}
    if measure is _handed_on:
        layers = layers[:-1]
        if not layers:
            return Outcome(name, None, None, None, "the model has one layer")
    for layer in layers:
        seen.narrowest[:] = [seen.dtype]
        try:
            error, size, roundings = measure(seen, layer)
        except _Skip as reason:
            reasons[str(reason)] = reasons.get(str(reason), 0) + 1
            continue
        eps = max(float(jnp.finfo(dtype).eps) for dtype in seen.narrowest)
        bound = max(_TOLERANCES[dtype] for dtype in seen.narrowest)
        tolerance = max(bound, roundings * eps / 2) * max(1.0, size)
        if worst is None or (
            not np.isnan(worst[0]) and not error / tolerance <= worst[0] / worst[1]
        ):
            worst = (error, tolerance, layer)
    why = "; ".join(
        reason if count == len(layers) else f"{reason} in {count} of {len(layers)} layers"
        for reason, count in reasons.items()
    )
    if worst is None:
        return Outcome(name, None, None, None, why)
    error, tolerance, layer = worst
    where = f"largest in layer {layer}" if layer is not None and len(layers) > 1 else ""
    note = "; ".join(part for part in (where, why) if part)
    return Outcome(name, error, tolerance, bool(error <= tolerance), note)


def _difference(seen: _Seen, a: Array, b: Array, axis: int = 1, roundings: int = 1) -> _Measured:
    """NaN where both are not finite in the same way; equal infinities differ by nothing."""
    real = seen.real(a, axis)
    apart = jnp.where(a == b, 0, jnp.abs(a - b))
    finite = jnp.where(real & jnp.isfinite(b), jnp.abs(b), 0)
    return float(largest(jnp.where(real, apart, 0))), float(jnp.max(finite)), roundings


def _rows_sum_to_one(seen: _Seen, layer: int) -> _Measured:
    seen.unedited(layer, "self_attn.pattern", "self_attn.scores")
    pattern = seen("self_attn.pattern", layer)
    sums = jnp.sum(pattern, axis=-1)
    # Each entry of a row was rounded to the dtype, by half a unit of its own.
    return _difference(seen, sums, jnp.ones_like(sums), axis=2)


def _causal(seen: _Seen, layer: int) -> _Measured:
    seen.unedited(layer, "self_attn.pattern", "self_attn.scores")
    pattern = seen("self_attn.pattern", layer)
    after = jnp.triu(jnp.ones(pattern.shape[-2:], bool), 1)
    return float(largest(jnp.where(after & seen.real(pattern, 2), jnp.abs(pattern), 0))), 0.0, 0


def _pattern(seen: _Seen, layer: int) -> _Measured:
    seen.unedited(layer, "self_attn.pattern", "self_attn.scores")
    q, k = seen("self_attn.q_rot", layer), seen("self_attn.k_rot", layer)
    scores = product("BTNH,BSNH->BNTS", q, _for_queries(k, seen.config)) * q.shape[-1] ** -0.5
    keep = jnp.tril(jnp.ones(scores.shape[-2:], bool)) & seen.real(scores, 3)
    pattern = jax.nn.softmax(jnp.where(keep, scores, -jnp.inf), axis=-1)
    return _difference(seen, seen("self_attn.pattern", layer), pattern, axis=2)


def _z(seen: _Seen, layer: int) -> _Measured:
    seen.unedited(layer, "self_attn.z")
    pattern, v = seen("self_attn.pattern", layer), seen("self_attn.v", layer)
    z = product("BNTS,BSNH->BTNH", pattern, _for_queries(v, seen.config))
    return _difference(seen, seen("self_attn.z", layer), z)


def _heads(seen: _Seen, layer: int) -> _Measured:
    seen.unedited(layer, "self_attn.out")
    out = seen("self_attn.out", layer)
    heads = jnp.sum(seen("self_attn.head_out", layer), axis=2)
    if seen.config.attention_bias:
        heads = seen.weights().layers[layer].self_attn.o_proj.shifted(heads)
    return _difference(seen, out, heads, roundings=seen.config.num_attention_heads)


def _heads_from_z(seen: _Seen, layer: int) -> _Measured:
    seen.unedited(layer, "self_attn.out", "self_attn.head_out")
    out, z = seen("self_attn.out", layer), seen("self_attn.z", layer)
    o_proj = seen.weights().layers[layer].self_attn.o_proj
    weight = o_proj.weight.get_value()
    by_head = weight.reshape(weight.shape[0], *z.shape[2:]).astype(z.dtype)
    return _difference(seen, out, o_proj.shifted(product("BTNH,DNH->BTD", z, by_head)))


def _neurons(seen: _Seen, layer: int) -> _Measured:
    seen.unedited(layer, "mlp.out")
    out, act = seen("mlp.out", layer), seen("mlp.act", layer)
    down_proj = seen.weights().layers[layer].mlp.down_proj
    weight = down_proj.weight.get_value().astype(act.dtype)
    return _difference(seen, out, down_proj.shifted(product("BTF,DF->BTD", act, weight)))


def _gated(seen: _Seen, layer: int) -> _Measured:
    seen.unedited(layer, "mlp.act")
    act = jax.nn.silu(seen("mlp.gate", layer)) * seen("mlp.up", layer)
    return _difference(seen, seen("mlp.act", layer), act, roundings=2)


def _mid(seen: _Seen, layer: int) -> _Measured:
    seen.unedited(layer, "resid_mid")
    total = seen("resid_pre", layer) + seen("self_attn.out", layer)
    return _difference(seen, seen("resid_mid", layer), total)


def _post(seen: _Seen, layer: int) -> _Measured:
    seen.unedited(layer, "resid_post")
    total = seen("resid_mid", layer) + seen("mlp.out", layer)
    return _difference(seen, seen("resid_post", layer), total)


def _handed_on(seen: _Seen, layer: int) -> _Measured:
    seen.unedited(layer + 1, "resid_pre")
    error, *_ = _difference(seen, seen("resid_post", layer), seen("resid_pre", layer + 1))
    return error, 0.0, 0


def _all_writes(seen: _Seen, layer: None) -> _Measured:
    layers = range(seen.config.num_hidden_layers)
    for i in layers:
        seen.unedited(i, "resid_pre", "resid_mid", "resid_post")
    total = seen("embed")
    for i in layers:
        total = total + seen("self_attn.out", i) + seen("mlp.out", i)
    final = seen("resid_post", layers[-1])
    return _difference(seen, final, total, roundings=2 * len(layers))


def _lens(seen: _Seen, layer: None) -> _Measured:
    seen.unedited(None, "norm.scale", "norm.normalized", "norm.out", "logits")
    model = seen.weights()
    stream = seen("resid_post", seen.config.num_hidden_layers - 1)
    scale = jnp.sqrt(jnp.mean(stream * stream, axis=-1, keepdims=True) + seen.config.rms_norm_eps)
    normed = (stream / scale).astype(seen.dtype) * model.norm.weight.get_value()
    return _difference(seen, seen("logits"), unembed(model, normed), roundings=2)


def _for_queries(x: Float[Array, "B S K H"], config: LlamaConfig) -> Float[Array, "B S N H"]:
    """Each key/value head for every query head that reads it."""
    return jnp.repeat(x, config.num_attention_heads // config.num_key_value_heads, axis=2)


_IDENTITIES: tuple[_Identity, ...] = (
    ("pattern rows sum to 1", True, _rows_sum_to_one),
    ("pattern is 0 above the diagonal", True, _causal),
    ("pattern = softmax(q_rot k_rot / sqrt(H))", True, _pattern),
    ("z = pattern v", True, _z),
    ("self_attn.out = sum of head_out", True, _heads),
    ("self_attn.out = sum over heads of W_O z", True, _heads_from_z),
    ("mlp.act = silu(gate) up", True, _gated),
    ("mlp.out = sum over neurons of W_down act", True, _neurons),
    ("resid_mid = resid_pre + self_attn.out", True, _mid),
    ("resid_post = resid_mid + mlp.out", True, _post),
    ("resid_post = next resid_pre", True, _handed_on),
    ("last resid_post = embed + all outputs", False, _all_writes),
    ("logits = lens of the last layer", False, _lens),
)
