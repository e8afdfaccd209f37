"""What differs between two runs, or between two models: all of it, what changed most first."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int
from tqdm.auto import tqdm

from llama_jax.analysis.cells import as_matrix, on_host, over_cells, total, unit
from llama_jax.analysis.lens import LOGITS_AT_ONCE
from llama_jax.analysis.needs import held
from llama_jax.analysis.weights import CELLS, Rows
from llama_jax.base.largest import index_of_largest, largest
from llama_jax.base.modes import jit, standard
from llama_jax.config import LlamaConfig
from llama_jax.llama import Llama
from llama_jax.model import leaves_of, parameters, readout
from llama_jax.model.tap import AnyArray, real_positions
from llama_jax.points import point_of
from llama_jax.run import Run

__all__ = ["Comparison", "Difference", "compare"]

MOST_ROWS = 20  # that are printed


class Difference(NamedTuple):
    """How two tensors a and b of one name differ.

    `kind` is "weight", "point", "logits" or "lens". `relative` is |a - b| / |a| in Euclidean norm
    (0 / 0 is 0), `max_abs` the largest |a - b| and `where` its index. Equal infinities, and NaN on
    both sides, differ by 0. Of logits and lens `kl` is the mean over positions of KL(a || b) in
    nats, and `flipped` the share of positions where another token is likeliest; of a pattern
    `variation` is the mean over queries of half the L1 distance: 0 to 1 where rows sum to 1.
    """

    name: str
    kind: str
    relative: float
    max_abs: float
    where: tuple[int, ...]
    kl: float | None = None
    flipped: float | None = None
    variation: float | None = None

    @property
    def detail(self) -> str:
        """What is known beside the norms, in words."""
        words = {
            "KL {:.3g} nats": self.kl,
            "top token differs at {:.1%}": self.flipped,
            "total variation {:.3g}": self.variation,
        }
        return ", ".join(text.format(v) for text, v in words.items() if v is not None)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Comparison(Rows[Difference]):
    """Every `Difference` of two runs or two models, the largest `relative` first.

    `only_in_a` and `only_in_b` name points that one run alone captured whole, `configs` says in
    which fields the configs differ, `tokens_differ` at how many positions the prompts do. Prints
    the first 20 rows that are not 0.
    """

    only_in_a: tuple[str, ...] = ()
    only_in_b: tuple[str, ...] = ()
    tokens_differ: int = 0
    configs: tuple[str, ...] = ()

    def top(self, k: int = 10) -> list[Difference]:
        """The k that differ most."""
        return list(self.rows[:k])

    def _table(self) -> tuple[Sequence[str], Sequence[Sequence[str]], str]:
        changed = [row for row in self.rows if row.max_abs != 0]
        rows = [
            (
                row.name,
                row.kind,
                f"{row.relative:.3g}",
                f"{row.max_abs:.3g}",
                ", ".join(map(str, row.where)),
                row.detail,
            )
            for row in changed[:MOST_ROWS]
        ]
        notes = [f"{len(changed)} of {len(self)} differ"]
        if len(changed) > MOST_ROWS:
            notes[0] += ", of which these do most; top(k) gives more, to_dataframe() all"
        if self.tokens_differ:
            notes.append(f"tokens differ at {self.tokens_differ} positions")
        for side, names in (("a", self.only_in_a), ("b", self.only_in_b)):
            if names:
                notes.append(f"{len(names)} points only in {side}")
        last = "; ".join([*notes, *self.configs])
        return ("name", "kind", "relative", "max |a - b|", "where", ""), rows, last


@standard
def compare(a: Run | Llama, b: Run | Llama) -> Comparison:
    """What differs between two runs, or between the weights of two Llamas.

    Two Llamas must have weights of equal shapes; dtypes may differ. Of two runs every point that
    both captured whole is compared at real positions, in T and in S; their rows must be equally
    long, their tokens may differ. So are the logits, at each row's last position where one run kept
    no others. Where both captured all layers' `resid_post` and have their llama, rows named
    `layers.{i}.lens` compare what each layer would say, as `logit_lens` reads it.

    Computed in f32 or wider. Comparing something with itself gives exact zeros, `max_abs` is the
    same both ways round, KL divergences are at least 0 and right to 1e-5 nats. Raises `TypeError`
    for anything but two runs or two Llamas, `ValueError` where lengths or shapes are different.

    >>> llama = Llama.from_pretrained("cria")
    >>> changed = llama.edited({"layers.3.self_attn.o_proj.weight": np.zeros((192, 256))})
    >>> found = compare(llama, changed)
    >>> found.top(1)[0].name, round(found.top(1)[0].relative, 6)
    ('layers.3.self_attn.o_proj.weight', 1.0)
    >>> found.top(2)[1].max_abs
    0.0
    """
    if isinstance(a, Llama) and isinstance(b, Llama):
        return _llamas(a, b)
    if isinstance(a, Run) and isinstance(b, Run):
        return _runs(a, b)
    raise TypeError(
        f"compare takes two Runs or two Llamas, not {type(a).__name__} and {type(b).__name__}."
    )


def _llamas(a: Llama, b: Llama) -> Comparison:
    left, right = _weights(a), _weights(b)
    configs = _configs(a.config, b.config)
    if {n: x.shape for n, x in left.items()} != {n: x.shape for n, x in right.items()}:
        raise ValueError(
            "The weights of these Llamas have different shapes, so they have no difference: "
            f"{'; '.join(configs)}."
        )
    rows = [_difference(n, "weight", left[n], right[n]) for n in _progress(left)]
    return Comparison(_ranked(rows), configs=configs)


def _runs(a: Run, b: Run) -> Comparison:
    if a.lengths.tolist() != b.lengths.tolist():
        raise ValueError(
            f"The runs have rows of {a.lengths.tolist()} and {b.lengths.tolist()} tokens; compare "
            "takes prompts of equal lengths, position by position."
        )
    left, right = _whole(a), _whole(b)
    configs = _configs(a.config, b.config)
    both = [name for name in left if name in right]
    shapes = {name: (left[name].shape, right[name].shape) for name in both}
    shapes["logits"] = (a.logits.shape[-1:], b.logits.shape[-1:])
    for name, (one, other) in shapes.items():
        if one != other:
            raise ValueError(
                f"{name} has shape {list(one)} in one run and {list(other)} in the other: "
                f"{'; '.join(configs)}."
            )
    lengths = np.asarray(a.lengths, np.int32)
    rows = [
        _difference(n, "point", left[n], right[n], lengths, point_of(n).axes)
        for n in _progress(both)
    ]
    rows += [_logits(a, b), *_lenses(a, b)]
    real = np.arange(a.tokens.shape[1]) < lengths[:, None]
    return Comparison(
        _ranked(rows),
        tuple(name for name in left if name not in right),
        tuple(name for name in right if name not in left),
        int(np.sum((a.tokens != b.tokens) & real)),
        configs,
    )


def _ranked(rows: Sequence[Difference]) -> tuple[Difference, ...]:
    """Largest first, and before all of them what is NaN on one side only."""
    return tuple(sorted(rows, key=lambda r: -math.inf if math.isnan(r.relative) else -r.relative))


def _progress(names: Any) -> Any:
    return tqdm(names, desc="compare", unit="array", leave=False, delay=1)


def _weights(llama: Llama) -> dict[str, Array]:
    leaves_of(llama.model)
    return {name: weight.get_value() for name, weight in parameters(llama.model).items()}


def _whole(run: Run) -> dict[str, AnyArray]:
    return {n: run.captured[n] for n, c in run.captures.items() if c.whole and n != "logits"}


def _configs(a: LlamaConfig, b: LlamaConfig) -> tuple[str, ...]:
    names = [field.name for field in dataclasses.fields(LlamaConfig)]
    values = [(name, getattr(a, name), getattr(b, name)) for name in names]
    return tuple(f"{name} is {one} and {other}" for name, one, other in values if one != other)


def _difference(
    name: str,
    kind: str,
    a: AnyArray,
    b: AnyArray,
    lengths: Int[np.ndarray, " B"] | None = None,
    axes: str | None = None,
) -> Difference:
    """Over all entries, or over those at the real positions of `axes`."""
    is_pattern = name.endswith(".pattern")
    if a is b:
        start = (0,) * a.ndim
        return Difference(name, kind, 0.0, 0.0, start, variation=0.0 if is_pattern else None)
    masked = () if lengths is None else (lengths,)
    found = on_host(_measured, a, b, *masked, axes=axes)
    apart, size = (
        float(scale) * math.sqrt(squares.sum(dtype=np.float64))
        for scale, squares in ((found.unit, found.squares), (found.size_unit, found.size_squares))
    )
    top = float(found.max_abs)
    row, column = int(found.row), int(found.column)
    where = np.unravel_index(row * a.shape[-1] + column, a.shape)
    variation = None
    if is_pattern:
        assert lengths is not None
        distance = float(found.unit) * float(found.sums.sum(dtype=np.float64))
        variation = distance / 2 / (a.shape[1] * int(lengths.sum()))
    return Difference(
        name,
        kind,
        _relative(apart, size, top),
        top,
        tuple(int(index) for index in where),
        variation=variation,
    )


def _relative(apart: float, size: float, max_abs: float) -> float:
    if max_abs == 0 or not math.isfinite(max_abs):
        return max_abs
    return apart / size if size else math.inf


class _Measured(NamedTuple):
    """Of |a - b| and of |a|, over cells and as multiples of a unit; see `unit`."""

    max_abs: Float[Array, ""]
    row: Int[Array, ""]
    column: Int[Array, ""]
    unit: Float[Array, ""]
    squares: Float[Array, "m n"]
    sums: Float[Array, "m n"]
    size_unit: Float[Array, ""]
    size_squares: Float[Array, "m n"]


@functools.partial(jit, static_argnames="axes")
def _measured(
    a: Array, b: Array, lengths: Int[Array, " B"] | None = None, axes: str | None = None
) -> _Measured:
    real: Array | bool = True
    if lengths is not None:
        assert axes is not None
        real = real_positions(axes, a, lengths)
        if "S" in axes.split():
            real = real & real_positions(axes, a, lengths, along="S")
    apart = as_matrix(jnp.where(real, _apart(a, b), 0))
    size = as_matrix(jnp.where(real & jnp.isfinite(a), jnp.abs(a), 0))
    by_row = largest(apart, axis=1)  # an index into all of a large array would overflow int32
    row = index_of_largest(by_row)
    column = index_of_largest(apart[row])
    scale, size_scale = unit(by_row[row]), unit(jnp.max(size))

    squares, sums = over_cells(
        apart, CELLS, lambda part: [total((part / scale) ** 2), total(part / scale)]
    )
    (sizes,) = over_cells(size, CELLS, lambda part: [total((part / size_scale) ** 2)])
    return _Measured(by_row[row], row, column, scale, squares, sums, size_scale, sizes)


def _apart(a: Array, b: Array) -> Array:
    same = (a == b) | (jnp.isnan(a) & jnp.isnan(b))
    wide = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
    return jnp.where(same, 0, jnp.abs(a.astype(wide) - b.astype(wide)))


class _Distributions(NamedTuple):
    """How logits differ, row by row."""

    kl: Float[Array, " R"]
    flipped: Bool[Array, " R"]
    max_abs: Float[Array, " R"]
    token: Int[Array, " R"]
    squares: Float[Array, " R"]
    size_squares: Float[Array, " R"]


def _distributions(a: Float[Array, "R V"], b: Float[Array, "R V"]) -> _Distributions:
    p, q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    # Where p is 0 its logarithm is -inf, and the term 0.
    terms = jnp.where((_apart(p, q) == 0) | (p == -jnp.inf), 0, jnp.exp(p) * (p - q))
    apart, divergence = _apart(a, b), jnp.sum(terms, axis=-1)
    return _Distributions(
        jnp.where(jnp.isnan(divergence), jnp.nan, jnp.maximum(divergence, 0)),
        index_of_largest(a) != index_of_largest(b),
        largest(apart, axis=-1),
        index_of_largest(apart),
        jnp.sum(apart**2, axis=-1),
        jnp.sum(jnp.where(jnp.isfinite(a), a, 0) ** 2, axis=-1),
    )


def _in_chunks(
    function: Callable[..., Any], a: Float[Array, "B T _"], b: Float[Array, "B T _"], size: int
) -> Any:
    """`function` of the positions of a and b, at most `size` of them at a time."""
    a, b = (x.reshape(-1, x.shape[-1]) for x in (a, b))
    count = len(a)
    size = min(max(size, 1), count)

    def step(i: Array, whole: Any) -> Any:
        start = i * size  # slices move the last chunk to begin earlier, so that it is full
        parts = function(*(lax.dynamic_slice_in_dim(x, start, size) for x in (a, b)))
        return jax.tree.map(
            lambda to, part: lax.dynamic_update_slice_in_dim(to, part, start, 0), whole, parts
        )

    kinds = jax.eval_shape(function, a[:size], b[:size])
    empty = jax.tree.map(lambda kind: jnp.zeros((count, *kind.shape[1:]), kind.dtype), kinds)
    return lax.fori_loop(0, -(-count // size), step, empty)


@jit
def _logits_program(a: Float[Array, "B T V"], b: Float[Array, "B T V"]) -> _Distributions:
    return _in_chunks(_distributions, a, b, LOGITS_AT_ONCE // a.shape[-1])


def _logits(a: Run, b: Run) -> Difference:
    left: AnyArray = a.logits
    right: AnyArray = b.logits
    if left.shape != right.shape:
        left, right = _last(a), _last(b)
    at_all = left.shape[1] == a.tokens.shape[1]
    lengths = a.lengths if at_all else np.ones_like(a.lengths)
    found = on_host(_logits_program, left, right)
    return _by_position("logits", "logits", found, left.shape, lengths)


def _last(run: Run) -> AnyArray:
    if run.logits.shape[1] != run.tokens.shape[1]:
        return run.logits
    return run.logits[np.arange(len(run.lengths)), run.lengths - 1][:, None]


def _lenses(a: Run, b: Run) -> Iterator[Difference]:
    layers = a.config.num_hidden_layers
    if a.llama is None or b.llama is None or layers != b.config.num_hidden_layers:
        return
    if not (held(a, "resid_post") and held(b, "resid_post")):
        return
    leaves, structures = zip(*(leaves_of(llama.model) for llama in (a.llama, b.llama)), strict=True)
    for layer in _progress(range(layers)):
        x, y = a["resid_post", layer], b["resid_post", layer]
        found = jax.device_get(_lens_program(structures, leaves, x, y))
        yield _by_position(f"layers.{layer}.lens", "lens", found, x.shape, a.lengths)


@functools.partial(jit, static_argnums=0)
def _lens_program(
    structures: tuple[Any, Any],
    leaves: tuple[tuple[Array, ...], tuple[Array, ...]],
    a: Float[Array, "B T D"],
    b: Float[Array, "B T D"],
) -> _Distributions:
    first, second = map(jax.tree.unflatten, structures, leaves)

    def compared(x: Float[Array, "R D"], y: Float[Array, "R D"]) -> _Distributions:
        return _distributions(readout(first, x), readout(second, y))

    return _in_chunks(compared, a, b, LOGITS_AT_ONCE // first.config.vocab_size)


def _by_position(
    name: str,
    kind: str,
    found: _Distributions,
    shape: Sequence[int],
    lengths: Int[np.ndarray, " B"],
) -> Difference:
    """One difference from those at each of [B, T] positions, of which only the real ones count."""
    real = (np.arange(shape[1]) < np.asarray(lengths)[:, None]).ravel()
    kl, flipped, squares, size_squares = (
        np.asarray(x, np.float64)[real]
        for x in (found.kl, found.flipped, found.squares, found.size_squares)
    )
    position = int(np.argmax(np.where(real, found.max_abs, -1)))
    top = float(found.max_abs[position])
    relative = _relative(math.sqrt(squares.sum()), math.sqrt(size_squares.sum()), top)
    where = (*divmod(position, shape[1]), int(found.token[position]))
    return Difference(name, kind, relative, top, where, float(kl.mean()), float(flipped.mean()))
