"""What each attention head does, told by where it looks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from llama_jax.analysis.needs import held, need
from llama_jax.analysis.results import Result, node
from llama_jax.base.modes import jit
from llama_jax.model.product import product, wide
from llama_jax.run import Run

if TYPE_CHECKING:
    import pandas

    from llama_jax.llama import Llama, Prompt

__all__ = ["SCORES", "HeadScores", "head_scores", "repeated_tokens"]

SCORES = (
    "previous_token",
    "current_token",
    "first_token",
    "duplicate_token",
    "induction",
    "entropy",
)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class HeadScores:
    """One number for each head and each thing that heads are known to do, `[L, N]` each.

    Shares of attention, 0 to 1, means over the queries that are named, of all rows; NaN where there
    is no such query. Token i is the query, j a key.
    """

    previous_token: Float[Array, "L N"]  # mean over i >= 1 of p[i, i-1]
    current_token: Float[Array, "L N"]  # mean over all i of p[i, i]
    first_token: Float[Array, "L N"]  # mean over i >= 1 of p[i, 0]
    duplicate_token: Float[Array, "L N"]  # mass on earlier equal tokens, of queries that have one
    induction: Float[Array, "L N"]  # mass on the token behind the last earlier equal one, of those
    entropy: Float[Array, "L N"]  # mean over all i of -sum_j p log p, in nats
    axes: ClassVar[tuple[str, ...]] = ("layer", "head")

    def __getitem__(self, score: str) -> Result:
        """One score as a table and a picture, layers down and heads across."""
        if score not in SCORES:
            raise KeyError(f"{score!r} is no score: {', '.join(SCORES)}.")
        return Result(getattr(self, score), self.axes, title=score.replace("_", " "))

    def __iter__(self) -> Iterator[str]:
        return iter(SCORES)

    def top(self, score: str, k: int = 5) -> list[tuple[int, int, float]]:
        """The k heads of the highest score: layer, head, score."""
        values = np.asarray(self[score].values)
        order = np.argsort(-np.nan_to_num(values, nan=-np.inf), axis=None, kind="stable")[:k]
        at = zip(*np.unravel_index(order, values.shape), strict=True)
        return [(int(layer), int(head), float(values[layer, head])) for layer, head in at]

    def to_dataframe(self) -> pandas.DataFrame:
        """A row for each head, a column for each score."""
        table = self["entropy"].to_dataframe()[["layer", "head"]]
        for score in SCORES:
            table[score] = np.asarray(getattr(self, score), np.float64).ravel()
        return table

    def __repr__(self) -> str:
        layers, heads = self.entropy.shape
        best = [(score, *self.top(score, 1)[0]) for score in SCORES[:-1]]
        said = ", ".join(
            f"{score} {layer}.{head} {value:.2f}" for score, layer, head, value in best
        )
        return f"HeadScores({layers} layers x {heads} heads; highest: {said})"

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        return node(self, {score: self[score] for score in SCORES}, path, subtree_renderer)


def head_scores(llama: Llama | Run, inputs: Prompt | None = None) -> HeadScores:
    """How much each head looks at the token before, the same token, the first, and what followed.

    Of a `Llama` on `inputs` (text, tokens, batches), by default on random tokens said twice, as
    `repeated_tokens` gives them; or of a `Run` that captured `pattern`, or `q_rot` and `k_rot`.
    Patterns are made one layer and one head at a time, so that memory is one `[B, T, T]` map.

    Each score is that of the whole patterns to 1e-5 in f32; previous, current and first token are
    shares of one row, so for no head do those of different keys sum to more than 1. Raises
    `MissingPointError`, and what `Llama.run` raises.

    >>> from llama_jax import Llama
    >>> scores = head_scores(Llama.from_pretrained("cria"))
    >>> scores.top("previous_token", 1)[0][:2]  # layer 0, head 5
    (0, 5)
    >>> bool(scores.induction[1].max() > 0.9)
    True

    Source: induction and previous-token heads, arXiv 2209.11895; duplicates, arXiv 2211.00593.
    """
    if isinstance(llama, Run):
        run = llama
        if inputs is not None:
            raise ValueError("A run has its inputs: give a Llama to look at others.")
    elif not hasattr(llama, "model"):
        raise TypeError(f"head_scores is of a Llama or a Run; this is a {type(llama).__name__}.")
    else:
        tokens = repeated_tokens(llama) if inputs is None else inputs
        run = llama.run(tokens, ("q_rot", "k_rot"), logits="last")
    if not held(run, "pattern"):
        need(run, "q_rot", "The scores of heads", ("q_rot", "k_rot"))
        need(run, "k_rot", "The scores of heads", ("q_rot", "k_rot"))
        if any(name.endswith(("scores", "pattern")) for name in run.edited):
            raise ValueError(
                "This run's scores or patterns were edited, so queries and keys do not tell them: "
                "capture='pattern'."
            )
    looked = _looked_for(jnp.asarray(run.tokens), jnp.asarray(run.lengths))
    with jax.debug_nans(False):  # a score that no query of a prompt has is NaN
        layers = []
        for i in range(run.config.num_hidden_layers):
            if held(run, "pattern"):
                layers.append(_of_patterns(jnp.asarray(run["pattern", i]), looked))
            else:
                layers.append(
                    _of_queries(jnp.asarray(run["q_rot", i]), jnp.asarray(run["k_rot", i]), looked)
                )
        return HeadScores(
            **{score: jnp.stack([layer[score] for layer in layers]) for score in SCORES}
        )


def repeated_tokens(llama: Llama, length: int = 48, rows: int = 4, seed: int = 0) -> np.ndarray:
    """`[rows, 2 length]` random tokens, all different, said twice; behind BOS, if there is one.

    >>> from llama_jax import Llama
    >>> repeated_tokens(Llama.from_pretrained("cria"), length=3, rows=1).shape
    (1, 7)
    """
    rng = np.random.default_rng(seed)
    tokenizer, size = llama.tokenizer, llama.config.vocab_size
    bos = [] if tokenizer is None else tokenizer.before
    special = () if tokenizer is None else tokenizer.special.values()
    # Not the ids behind the tokenizer's, which no text has.
    known = size if tokenizer is None else min(size, tokenizer.vocab_size)
    usual = np.setdiff1d(np.arange(known), list(special))
    length = min(length, len(usual))
    once = [rng.choice(usual, length, replace=False) for _ in range(rows)]
    return np.array([[*bos, *row, *row] for row in once], np.int32)


# Which keys count for each query, [B, T, S]; which queries count, [B, T]; by score.
_Looked = Mapping[str, tuple[Bool[Array, "B T S"], Bool[Array, "B T"]]]


@jit
def _looked_for(tokens: Int[Array, "B T"], lengths: Int[Array, " B"]) -> _Looked:
    size = tokens.shape[1]
    positions = jnp.arange(size)
    real = positions < lengths[:, None]
    later = real & (positions >= 1)
    query, key = positions[:, None], positions[None]
    equal = (tokens[:, :, None] == tokens[:, None, :]) & (key < query)
    again = real & equal.any(-1)
    last = jnp.max(jnp.where(equal, key, -1), axis=-1)
    behind = (key == last[..., None] + 1) & again[..., None]

    def everywhere(keys: Array) -> Array:
        return jnp.broadcast_to(keys, (*tokens.shape, size))

    return {
        "previous_token": (everywhere(key == query - 1), later),
        "current_token": (everywhere(key == query), real),
        "first_token": (everywhere(key == 0), later),
        "duplicate_token": (equal, again),
        "induction": (behind, again),
        "entropy": (everywhere(key <= query), real),
    }


@jit
def _of_patterns(pattern: Float[Array, "B N T S"], looked: _Looked) -> dict[str, Array]:
    return jax.lax.map(lambda one: _of_one(one, looked), jnp.moveaxis(pattern, 1, 0))


@jit
def _of_queries(
    q: Float[Array, "B T N H"], k: Float[Array, "B S K H"], looked: _Looked
) -> dict[str, Array]:
    heads, group = q.shape[2], q.shape[2] // k.shape[2]
    keep, real = looked["entropy"]

    def one(head: Int[Array, ""]) -> dict[str, Array]:
        queries, keys = (
            jax.lax.dynamic_index_in_dim(x, at, axis=2, keepdims=False)
            for x, at in ((q, head), (k, head // group))
        )
        scores = product("BTH,BSH->BTS", queries, keys) * q.shape[-1] ** -0.5
        readable = keep & (real[:, None, :] | ~real[:, :, None])
        pattern = jax.nn.softmax(jnp.where(readable, scores, -jnp.inf), axis=-1)
        return _of_one(pattern.astype(q.dtype), looked)

    return jax.lax.map(one, jnp.arange(heads))


def _of_one(pattern: Float[Array, "B T S"], looked: _Looked) -> dict[str, Float[Array, ""]]:
    """The scores of one head."""
    p = pattern.astype(wide(pattern.dtype))
    found = {}
    for score, (keys, queries) in looked.items():
        each = jax.scipy.special.entr(p) if score == "entropy" else p
        mass = jnp.sum(jnp.where(keys, each, 0), axis=-1)
        found[score] = jnp.sum(jnp.where(queries, mass, 0)) / jnp.sum(queries)
    return found
