"""Metrics: what a sweep or a gradient measures of the logits behind each prompt's last token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax.base.choice import integer

if TYPE_CHECKING:
    from llama_jax.llama import Llama

__all__ = [
    "Metric",
    "TokenMetric",
    "Tokens",
    "bound",
    "ids_of",
    "log_probability",
    "logit",
    "logit_difference",
]

# Logits [B, V] (or [B, T, V] where all were asked for) to a value for each row, [B], or one number.
Metric = Callable[[Array], Array]
# A token's id, text that is exactly one token, or one of these for each row of a batch.
Tokens = int | str | Sequence["int | str"]


@dataclasses.dataclass(frozen=True)
class TokenMetric:
    """A metric of named tokens; made by `logit`, `logit_difference` and `log_probability`.

    Equal ones are interchangeable, so that a new one of the same tokens compiles nothing.
    """

    kind: str
    tokens: tuple[int | str | tuple[int | str, ...], ...]

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, " B"]:
        if self.kind == "log_probability":
            logits = jax.nn.log_softmax(logits, axis=-1)
        first, *others = (self._at(logits, tokens) for tokens in self.tokens)
        return first - others[0] if others else first

    def of(self, llama: Llama) -> TokenMetric:
        """The same with ids for texts. Raises `PromptError` for a text that is not one token."""

        def ids(tokens: int | str | tuple[int | str, ...]) -> int | tuple[int, ...]:
            if isinstance(tokens, tuple):
                return tuple(map(llama.token, tokens))
            return llama.token(tokens)

        return dataclasses.replace(self, tokens=tuple(map(ids, self.tokens)))

    def _at(
        self, logits: Float[Array, "B V"], tokens: int | str | tuple[int | str, ...]
    ) -> Float[Array, " B"]:
        batch, size = logits.shape
        ids = tokens if isinstance(tokens, tuple) else (tokens,)
        for token in ids:
            if isinstance(token, str):
                raise ValueError(
                    f"{self} names the text {token!r}; metric.of(llama) gives one with ids."
                )
            if not 0 <= token < size:
                raise ValueError(f"Token {token}: the vocabulary is 0 to {size - 1}.")
        chosen = jnp.asarray(ids_of(ids, batch))
        return jnp.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0]

    def __repr__(self) -> str:
        return f"{self.kind}({', '.join(map(repr, self.tokens))})"


def logit_difference(a: Tokens, b: Tokens) -> TokenMetric:
    """The metric `logit of a - logit of b`: the log of their odds, in nats.

    Each is a token (an id, or text that is exactly one token), or one for each row of a batch.

    >>> metric = logit_difference(3, 5)
    >>> float(metric(jnp.arange(10.0)[None])[0])
    -2.0
    """
    return TokenMetric("logit_difference", (_hashable(a), _hashable(b)))


def logit(token: Tokens) -> TokenMetric:
    """The metric `logit of the token`.

    >>> float(logit(7)(jnp.arange(10.0)[None])[0])
    7.0
    """
    return TokenMetric("logit", (_hashable(token),))


def log_probability(token: Tokens) -> TokenMetric:
    """The metric `log p(token)`, in nats.

    >>> round(float(log_probability(1)(jnp.zeros((1, 4)))[0]), 4)  # one of four
    -1.3863
    """
    return TokenMetric("log_probability", (_hashable(token),))


def ids_of(tokens: Any, batch: int) -> Int[np.ndarray, " B"]:
    """The id for each row of a batch, from one or as many. Raises `ValueError` for others."""
    ids = np.atleast_1d(np.array(tokens, np.int32))
    if len(ids) not in (1, batch):
        raise ValueError(f"{len(ids)} tokens are named for a batch of {batch} rows.")
    return np.broadcast_to(ids, batch)


def bound(metric: Metric, llama: Llama) -> Metric:
    """The metric with ids where it names texts. Raises `TypeError` for what is no function."""
    if not callable(metric):
        raise TypeError(f"metric is {metric!r}; it must be a function of the logits [B, V].")
    return metric.of(llama) if isinstance(metric, TokenMetric) else metric


def _hashable(tokens: Tokens) -> int | str | tuple[int | str, ...]:
    if isinstance(tokens, str):
        return tokens
    single = integer(tokens)
    if single is not None:
        return single
    items: Any = np.asarray(tokens).tolist() if hasattr(tokens, "__array__") else tokens
    found = [item if isinstance(item, str) else integer(item) for item in items]
    if not found or None in found:
        raise TypeError(f"tokens is {tokens!r}; it must be a token or several: ids, or texts.")
    return tuple(found)  # type: ignore[arg-type]
