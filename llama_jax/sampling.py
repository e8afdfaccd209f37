"""From logits to the next token: greedy or at a temperature, within top-k and top-p."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_jax.base.choice import integer
from llama_jax.base.modes import jit

__all__ = ["Chosen", "Sampling", "choose"]

TOP = 10


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn: `temperature` 0 takes the likeliest one.

    Applied in this order: the logits are divided by the temperature; only the `top_k` likeliest
    stay; of those, sorted, a token stays while the probabilities before it sum to at most `top_p`
    (Meta's rule: the likeliest one always stays).
    """

    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not _real(self.temperature) or not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature is {self.temperature!r}; it must be a number, at least 0, and 0 is "
                "greedy."
            )
        if not _real(self.top_p) or not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p!r}; it must be above 0 and at most 1.")
        if self.top_k is not None and (integer(self.top_k) or 0) < 1:
            raise ValueError(
                f"top_k is {self.top_k!r}; it must be an integer from 1 on, or None for all."
            )
        if integer(self.seed) is None:
            raise ValueError(f"seed is {self.seed!r}; it must be an integer.")


def _real(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


class Chosen(NamedTuple):
    """The next token of each row, and what the model's own distribution says of it."""

    token: Int[Array, " B"]
    logprob: Float[Array, " B"]  # nats, before temperature, top-k and top-p
    entropy: Float[Array, " B"]  # nats, likewise
    top_tokens: Int[Array, "B 10"]
    top_probabilities: Float[Array, "B 10"]


def choose(logits: Float[Array, "B V"], sampling: Sampling, step: int) -> Chosen:
    """Draws a token for each row. Each (seed, row, step) has its own random numbers."""
    top_k = logits.shape[-1] if sampling.top_k is None else sampling.top_k
    return _choose(
        logits,
        jnp.float32(sampling.temperature),
        jnp.float32(sampling.top_p),
        jnp.int32(min(top_k, logits.shape[-1])),
        jnp.uint32(sampling.seed % 2**32),
        jnp.int32(step),
        # Below this the likeliest token is drawn whatever the draw, and f32 would overflow.
        greedy=sampling.temperature < 1e-20,
        narrowed=sampling.top_p < 1 or sampling.top_k is not None,
    )


@functools.partial(jit, static_argnames=("greedy", "narrowed"))
def _choose(
    logits: Float[Array, "B V"],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
    top_k: Int[Array, ""],
    seed: Int[Array, ""],
    step: Int[Array, ""],
    *,
    greedy: bool,
    narrowed: bool,
) -> Chosen:
    logprobs = jax.nn.log_softmax(logits)
    probabilities = jnp.exp(logprobs)
    # 0 log 0 = 0: a logit of -inf adds nothing.
    entropy = -jnp.sum(jnp.where(probabilities > 0, probabilities * logprobs, 0), axis=-1)
    if greedy:
        token = jnp.argmax(logits, axis=-1)
    else:
        scaled = logits / temperature
        if narrowed:
            scaled = _narrow(scaled, top_p, top_k)
        key = jax.random.fold_in(jax.random.key(seed), step)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(len(logits)))
        token = jax.vmap(jax.random.categorical)(keys, scaled)
    logprob = jnp.take_along_axis(logprobs, token[:, None], axis=-1)[:, 0]
    top_probabilities, top_tokens = jax.lax.top_k(probabilities, min(TOP, logits.shape[-1]))
    return Chosen(token.astype(jnp.int32), logprob, entropy, top_tokens, top_probabilities)


def _narrow(
    logits: Float[Array, "B V"], top_p: Float[Array, ""], top_k: Int[Array, ""]
) -> Float[Array, "B V"]:
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    within_k = jnp.arange(logits.shape[-1]) < top_k
    ranked = jnp.where(within_k, ranked, -jnp.inf)
    probabilities = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = jnp.where(within_k & (before <= top_p), ranked, -jnp.inf)
    back = jnp.argsort(order, axis=-1)
    return jnp.take_along_axis(kept, back, axis=-1)
