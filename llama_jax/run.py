"""One forward pass and what was asked of its inside: a `Run`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax.model import Logits, forward, leaves_of
from llama_jax.points import PointError, Points, resolve

if TYPE_CHECKING:
    from llama_jax.llama import Llama

__all__ = ["Candidate", "Run", "run"]


class Candidate(NamedTuple):
    """A token that the model may say next, with its probability."""

    token: int
    text: str
    probability: float


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run:
    """One forward pass over a batch of prompts: tokens, logits and the points that were captured.

    Axes are those of `llama_jax.points.POINTS`. Rows shorter than the longest are padded on the
    right: of row b only the first `lengths[b]` positions mean anything. Arrays stay on their
    devices until somebody looks.

    >>> from llama_jax import Llama
    >>> run = Llama.from_pretrained("cria").run("Once upon a time", capture=("pattern", "embed"))
    >>> run["pattern", -1].shape == (1, 8, *run.tokens.shape[1:] * 2)
    True
    """

    llama: Llama
    tokens: Int[np.ndarray, "B T"]
    lengths: Int[np.ndarray, " B"]
    logits: Float[Array, "B T V"]
    captured: Mapping[str, Array]

    def __getitem__(self, points: Points) -> Array | dict[str, Array]:
        """The captured array of that name, or `{full name: array}` where several match.

        Takes every form of name that `capture` takes. Raises `PointError` (a `KeyError`) for a
        name that no tensor has, and for one that was not captured.
        """
        wanted = resolve(points, self.llama.config.num_hidden_layers)
        found = {name: self.captured[name] for name in wanted if name in self.captured}
        if "logits" in wanted:
            found["logits"] = self.logits
        if not found:
            has = ", ".join(self.names[:6]) + (", …" if len(self.names) > 6 else "")
            raise PointError(
                f"{points!r} was not captured. This run holds {has or 'no points'}; ask for more "
                f"with llama.run(..., capture={points!r})."
            )
        return next(iter(found.values())) if len(found) == 1 else found

    @property
    def names(self) -> tuple[str, ...]:
        """Full names of what was captured, in the order of the forward pass."""
        return tuple(self.captured)

    @property
    def nbytes(self) -> int:
        """Bytes of the captured arrays and the logits."""
        return sum(array.nbytes for array in {**self.captured, "logits": self.logits}.values())

    def top(self, k: int = 10, position: int = -1, row: int = 0) -> list[Candidate]:
        """The k likeliest next tokens after `position` of a row, likeliest first.

        Positions count within the row's own length, negative ones from its end.
        """
        if not 1 <= k <= self.logits.shape[-1]:
            raise ValueError(f"k is {k}; it must be 1 to {self.logits.shape[-1]}, the vocabulary.")
        length = int(self.lengths[row])
        if not -length <= position < length:
            raise IndexError(f"Position {position} of a row of {length} tokens.")
        at = position % length
        if self.logits.shape[1] != self.tokens.shape[1]:
            if at != length - 1:
                raise IndexError(
                    f"Position {position}: this run kept the logits of the last position only; "
                    "run with logits='all'."
                )
            at = 0
        probabilities, ids = jax.lax.top_k(jax.nn.softmax(self.logits[row, at]), k)
        return candidates(self.llama, np.asarray(ids), np.asarray(probabilities))

    def __repr__(self) -> str:
        batch, length = self.tokens.shape
        return (
            f"Run({batch} x {length} tokens, {len(self.captured)} points, "
            f"{self.nbytes / 2**20:.1f} MiB)"
        )

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        from treescope import repr_lib

        return repr_lib.render_object_constructor(
            object_type=type(self),
            attributes={
                "tokens": self.tokens,
                "lengths": self.lengths,
                "logits": self.logits,
                "captured": dict(self.captured),
            },
            path=path,
            subtree_renderer=subtree_renderer,
        )


def run(
    llama: Llama,
    tokens: Int[np.ndarray, "B T"],
    lengths: Int[np.ndarray, " B"],
    capture: Points = (),
    logits: Logits = "all",
) -> Run:
    """See `Llama.run`, which also takes text."""
    if logits not in ("all", "last"):
        raise ValueError(f"logits is {logits!r}; it must be 'all' or 'last'.")
    names = resolve(capture, llama.config.num_hidden_layers)
    leaves, structure = leaves_of(llama.model)
    inside = frozenset(names) - {"logits"}
    made, captured = _program(structure, leaves, tokens, lengths, inside, logits)
    captured["logits"] = made
    return Run(llama, tokens, lengths, made, {name: captured[name] for name in names})


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _program(
    structure: Any,
    leaves: tuple[Array, ...],
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    capture: frozenset[str],
    logits: Logits,
) -> tuple[Float[Array, "B T V"], dict[str, Array]]:
    model = jax.tree.unflatten(structure, leaves)
    result = forward(model, tokens, lengths, capture=capture, logits=logits)
    assert result.logits is not None
    return result.logits, result.captured


def candidates(llama: Llama, ids: np.ndarray, probabilities: np.ndarray) -> list[Candidate]:
    """Tokens with their texts (empty without a tokenizer) and probabilities."""
    texts = llama.pieces(ids) if llama.tokenizer is not None else [""] * len(ids)
    return [
        Candidate(int(token), text, float(probability))
        for token, text, probability in zip(ids, texts, probabilities, strict=True)
    ]
