"""The logit lens: what the model would say if it stopped after each layer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax.analysis.needs import MissingPointError, a_run, pieces_of
from llama_jax.analysis.results import Result, node
from llama_jax.base.choice import numbered
from llama_jax.base.modes import jit
from llama_jax.capture import positions_of
from llama_jax.model import leaves_of, readout
from llama_jax.model.tap import TopK
from llama_jax.points import Points, point_of, resolve
from llama_jax.run import Candidate, Run, candidates

if TYPE_CHECKING:
    import pandas

    from llama_jax.llama import Llama

__all__ = ["LogitLens", "logit_lens"]

# Logits of so many positions exist at once: 64 MiB in f32.
LOGITS_AT_ONCE = 2**24


def logit_lens(run: Run, point: Points = "resid_post") -> LogitLens:
    """Reads the residual stream of every layer through the final norm and the unembedding.

    `point` is `resid_pre`, `resid_mid` or `resid_post`, in every layer or in some; the run must
    have captured it, at all positions or at some. Nothing is computed before it is asked for, and
    then a block of positions at a time: `[L, B, T, V]` never exists.

    At the last layer's `resid_post` the lens is the model: `logits_at(-1)` are the run's logits,
    and `kl` there is 0, to 1e-5 in f32. Raises `MissingPointError`.

    >>> from llama_jax import Llama
    >>> run = Llama.from_pretrained("cria").run("Once upon a", capture="resid_post")
    >>> lens = logit_lens(run)
    >>> lens.probability(" time").shape  # layers, batch, positions
    (4, 1, 4)
    >>> lens.candidates(layer=-1)[0] == run.top(1)[0]
    True

    Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.
    """
    llama = a_run(run, "The logit lens").needs_llama("the logit lens")
    names = resolve(point, run.config.num_hidden_layers)
    kinds = {point_of(name).local for name in names}
    if len(kinds) > 1 or not kinds <= {"resid_pre", "resid_mid", "resid_post"}:
        raise ValueError(
            f"point={point!r}: the lens reads the residual stream: resid_pre, resid_mid or "
            "resid_post."
        )
    for name in names:
        capture = run.captures.get(name)
        if capture is None or capture.reduce not in (None, "last"):
            raise MissingPointError(
                f"The logit lens needs {name}, which this run "
                + ("did not capture" if capture is None else f"holds only as {capture}")
                + f". Run it with llama.run(prompt, capture={kinds.pop()!r})."
            )
    seen = {_positions(run, name) for name in names}
    if len(seen) > 1:
        raise ValueError("The logit lens needs the same positions of every layer.")
    return LogitLens(run, llama, names, np.array(seen.pop(), np.int32))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LogitLens:
    """The distributions that the layers of one run would give; made by `logit_lens`.

    Arrays have the axes layer, batch, position: `layers` are the numbers of the layers, and
    `positions` [B, P] each row's positions. Behind a row's end they mean nothing. Logarithms are
    natural, so entropies and divergences are in nats.
    """

    run: Run
    llama: Llama
    names: Sequence[str]
    positions: Int[np.ndarray, "B P"]
    axes: ClassVar[tuple[str, ...]] = ("layer", "batch", "position")

    @property
    def layers(self) -> list[int]:
        return [int(name.split(".")[1]) for name in self.names]

    def logits_at(self, layer: int) -> Float[Array, "B P V"]:
        """The logits after one layer, counted among `layers`, from the end where negative."""
        layer = numbered("layer", layer, len(self.names))
        leaves, structure = leaves_of(self.llama.model)
        return _whole(structure, leaves, self._stream(self.names[layer]))

    def top(self, k: int = 10) -> TopK:
        """The k likeliest tokens: probabilities and ids, each `[L, B, P, k]`, likeliest first."""
        self._check(k)
        return TopK(*self._each(_top(k)))

    def candidates(
        self, layer: int, position: int = -1, row: int = 0, k: int = 10
    ) -> list[Candidate]:
        """The k likeliest tokens after one layer at one of the positions, with their texts."""
        self._check(k)
        row = numbered("row", row, len(self.positions))
        ends = self.positions[row] == self.run.lengths[row] - 1
        last = int(np.argmax(ends)) if ends.any() else self.positions.shape[1] - 1
        at = position if position >= 0 else position + 1 + last
        if not 0 <= at <= last:
            raise IndexError(f"Position {position}; this row has {last + 1} in the lens.")
        probabilities, ids = jax.lax.top_k(jax.nn.softmax(self.logits_at(layer)[row, at]), k)
        return candidates(self.llama, np.asarray(ids), np.asarray(probabilities))

    def probability(self, token: int | str | Int[Array, "B P"]) -> Float[Array, "L B P"]:
        """The probability of a token, or at each position of its own, such as the next token."""
        return jnp.exp(self.log_probability(token))

    def log_probability(self, token: int | str | Int[Array, "B P"]) -> Float[Array, "L B P"]:
        """The natural logarithm of `probability`."""
        return self._each(_log_probability, tokens=self._tokens(token))[0]

    def rank(self, token: int | str | Int[Array, "B P"]) -> Float[Array, "L B P"]:
        """How many tokens have a larger logit: 0 where the token is the likeliest, NaN of NaN."""
        return self._each(_rank, tokens=self._tokens(token))[0]

    @property
    def entropy(self) -> Float[Array, "L B P"]:
        """How undecided each layer is: `-sum p log p`, in nats; log V where it knows nothing."""
        return self._spread[0]

    @property
    def kl(self) -> Float[Array, "L B P"]:
        """`KL(model || layer)`: nats that are lost by stopping here, `sum p log(p / p_layer)`."""
        if self._spread[1] is None:
            raise MissingPointError(
                "KL to the model needs the last layer's stream, at the same positions: "
                "llama.run(prompt, capture='resid_post')."
            )
        return self._spread[1]

    def of(self, token: int | str) -> Result:
        """The probability of a token as a table and a picture: layers down, positions across."""
        return self._result(self.probability(token), f"probability of {token!r}")

    def to_dataframe(self, k: int = 1) -> pandas.DataFrame:
        """A row for each layer, row and position: entropy, KL, and the k likeliest tokens."""
        table = (
            self._result(self.entropy, "entropy")
            .to_dataframe()
            .rename(columns={"value": "entropy"})
        )
        if self._spread[1] is not None:
            table["kl"] = np.asarray(self.kl, np.float64).ravel()
        values, ids = (np.asarray(part).reshape(-1, k) for part in self.top(k))
        for n in range(k):
            name = f"top{n + 1}" if k > 1 else "top"
            table[name] = ids[:, n]
            if self.llama.tokenizer is not None:
                table[f"{name}_token"] = self.llama.pieces(ids[:, n])
            table[f"{name}_probability"] = values[:, n].astype(np.float64)
        return table

    @functools.cached_property
    def _spread(self) -> tuple[Array, Array | None]:
        last = f"layers.{self.run.config.num_hidden_layers - 1}.resid_post"
        same = last in self.run.captured and self.run.captures[last].reduce in (None, "last")
        if same and np.array_equal(_positions(self.run, last), self.positions):
            entropy, kl = self._each(_entropy_and_kl, final=self._stream(last))
            return entropy, kl
        return self._each(_entropy)[0], None

    def _each(self, statistic: Callable[..., Any], **others: Array) -> tuple[Array, ...]:
        """The statistic of every layer: `[L, B, P, …]`."""
        leaves, structure = leaves_of(self.llama.model)
        found = [
            _by_blocks(structure, statistic, leaves, self._stream(name), others)
            for name in self.names
        ]
        return tuple(jnp.stack(parts) for parts in zip(*found, strict=True))

    def _stream(self, name: str) -> Array:
        return jnp.asarray(self.run.captured[name])

    def _check(self, k: int) -> None:
        if not 1 <= k <= self.run.config.vocab_size:
            raise ValueError(f"k is {k}; it must be 1 to {self.run.config.vocab_size}.")

    def _tokens(self, token: int | str | Int[Array, "B P"]) -> Int[Array, "B P"]:
        size = self.run.config.vocab_size
        if isinstance(token, str) or np.ndim(token) == 0:
            token = self.llama.token(token)  # type: ignore[arg-type]
        ids = np.asarray(token)
        if not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0 or ids.max() >= size:
            raise ValueError(f"Tokens {token!r}: the vocabulary is 0 to {size - 1}.")
        return jnp.asarray(np.broadcast_to(ids, self.positions.shape))

    def _result(self, values: Array, title: str) -> Result:
        positions = self.positions[0].tolist() if len(self.positions) == 1 else None
        coordinates: dict[str, Sequence[int | str]] = {"layer": self.layers}
        if positions is not None:
            coordinates["position"] = positions
        pieces = pieces_of(self.run)
        return Result(values, self.axes, coordinates=coordinates, pieces=pieces, title=title)

    def __repr__(self) -> str:
        batch, count = self.positions.shape
        local = point_of(self.names[0]).local
        return f"LogitLens({local} of {len(self.names)} layers, {batch} x {count} positions)"

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        entropy, kl = self._spread
        drawn = {"entropy": self._result(entropy, "entropy, nats")}
        if kl is not None:
            drawn = {"kl": self._result(kl, "KL(model || layer), nats"), **drawn}
        return node(self, drawn, path, subtree_renderer)


def _positions(run: Run, name: str) -> tuple[tuple[int, ...], ...]:
    """The positions of each row that the run holds of a point."""
    capture = run.captures[name]
    chosen = -1 if capture.reduce == "last" else capture.positions
    if chosen is None:
        rows = np.broadcast_to(np.arange(run.tokens.shape[1]), run.tokens.shape)
    else:
        rows = positions_of(chosen, run.lengths, name)
    return tuple(map(tuple, rows.tolist()))


@functools.partial(jit, static_argnums=0)
def _whole(structure: Any, leaves: tuple[Array, ...], x: Array) -> Float[Array, "B P V"]:
    return readout(jax.tree.unflatten(structure, leaves), x)


@functools.partial(jit, static_argnums=(0, 1))
def _by_blocks(
    structure: Any,
    statistic: Callable[..., tuple[Array, ...]],
    leaves: tuple[Array, ...],
    x: Float[Array, "B P D"],
    others: dict[str, Array],
) -> tuple[Array, ...]:
    """`statistic(log-probabilities [R, V], …)` of some positions at a time."""
    model = jax.tree.unflatten(structure, leaves)
    batch, count = x.shape[:2]
    total = batch * count
    size = max(1, min(total, LOGITS_AT_ONCE // model.config.vocab_size))
    rest = -total % size

    def blocks(array: Array) -> Array:
        flat = array.reshape(total, *array.shape[2:])
        padded = jnp.pad(flat, ((0, rest), *[(0, 0)] * (flat.ndim - 1)))
        return padded.reshape(-1, size, *flat.shape[1:])

    def one(block: dict[str, Array]) -> tuple[Array, ...]:
        read = {
            name: jax.nn.log_softmax(readout(model, part)) if name in ("x", "final") else part
            for name, part in block.items()
        }
        return statistic(read.pop("x"), **read)

    found = jax.lax.map(one, {"x": blocks(x), **{n: blocks(each) for n, each in others.items()}})
    return tuple(
        part.reshape(-1, *part.shape[2:])[:total].reshape(batch, count, *part.shape[2:])
        for part in found
    )


@functools.lru_cache(maxsize=32)
def _top(k: int) -> Callable[[Float[Array, "R V"]], tuple[Array, ...]]:
    def top(p: Float[Array, "R V"]) -> tuple[Array, ...]:
        values, ids = jax.lax.top_k(p, k)
        return jnp.exp(values), ids

    return top


def _log_probability(p: Float[Array, "R V"], tokens: Int[Array, " R"]) -> tuple[Array]:
    return (jnp.take_along_axis(p, tokens[:, None], axis=1)[:, 0],)


def _rank(p: Float[Array, "R V"], tokens: Int[Array, " R"]) -> tuple[Array]:
    own = jnp.take_along_axis(p, tokens[:, None], axis=1)
    return (jnp.where(jnp.isnan(own[:, 0]), jnp.nan, jnp.sum(p > own, axis=1)),)


def _entropy(p: Float[Array, "R V"]) -> tuple[Array]:
    return (-jnp.sum(jnp.exp(p) * p, axis=1),)


def _entropy_and_kl(p: Float[Array, "R V"], final: Float[Array, "R V"]) -> tuple[Array, Array]:
    return *_entropy(p), jnp.sum(jnp.exp(final) * (final - p), axis=1)
