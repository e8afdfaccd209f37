"""One forward pass and what was asked of its inside: a `Run`."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax import identities, runfile
from llama_jax.base.choice import integer, numbered
from llama_jax.base.modes import jit
from llama_jax.capture import (
    Capture,
    Captured,
    CaptureError,
    Captures,
    rows_of,
    taps_for,
    wanted,
)
from llama_jax.config import LlamaConfig
from llama_jax.edits import Edit, Place, edits_at
from llama_jax.model import Logits, forward, leaves_of
from llama_jax.model.product import wide
from llama_jax.model.tap import Tap
from llama_jax.plan import check_budget
from llama_jax.points import Points, resolve

if TYPE_CHECKING:
    from llama_jax.llama import Llama

__all__ = ["Candidate", "Run", "candidates", "check_logits", "run"]


class Candidate(NamedTuple):
    """A token that the model may say next, with its probability."""

    token: int
    text: str
    probability: float


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run(Captured):
    """One forward pass over a batch of prompts: tokens, logits and the points that were captured.

    Axes are those of `llama_jax.points.POINTS`. Rows shorter than the longest are padded on the
    right: of row b only the first `lengths[b]` positions mean anything. Arrays stay on their
    devices until somebody looks. `captures` says how each point was asked for, `edited` which
    points were changed, `model` and `versions` by what it was made. `llama` is None in a run that
    was loaded without one.

    >>> from llama_jax import Llama
    >>> run = Llama.from_pretrained("cria").run("Once upon a time", capture=("pattern", "embed"))
    >>> run["pattern", -1].shape == (1, 8, *run.tokens.shape[1:] * 2)
    True
    """

    llama: Llama | None
    config: LlamaConfig
    tokens: Int[np.ndarray, "B T"]
    lengths: Int[np.ndarray, " B"]
    logits: Float[Array, "B T V"]
    captured: Mapping[str, Any]
    captures: Mapping[str, Capture]
    edited: tuple[str, ...] = ()
    dtype: str = "float32"  # of the weights and the activations
    model: str | None = None  # its name
    versions: Mapping[str, str] = dataclasses.field(default_factory=runfile.versions)

    def __getitem__(self, points: Points) -> Any:
        if points == "logits" and "logits" not in self.captured:
            return self.logits
        return super().__getitem__(points)

    @property
    def rows(self) -> list[list[int]]:
        """The tokens of each row without padding, as `llama.run` takes them.

        >>> from llama_jax import Llama
        >>> Llama.from_pretrained("cria").run([[5, 6, 7], [8]]).rows
        [[5, 6, 7], [8]]
        """
        return rows_of(self.tokens, self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of the captured arrays and the logits."""
        arrays = jax.tree.leaves((dict(self.captured), self.logits))
        return sum({id(array): array.nbytes for array in arrays}.values())

    @functools.cached_property
    def loss(self) -> Float[Array, "B T-1"]:
        """Nats of surprise at each next token: `loss[b, t]` is -log p(token t+1 | tokens to t).

        NaN where a row has no next token, so that `jnp.nanmean` is the mean loss.
        """
        self._need_all_logits("loss")
        logits = jnp.asarray(self.logits)[:, :-1]
        targets = jnp.asarray(self.tokens)[:, 1:, None]
        chosen = jnp.take_along_axis(logits, targets, axis=-1)[..., 0]
        losses = jax.nn.logsumexp(logits, axis=-1) - chosen
        known = np.arange(1, self.tokens.shape[1]) < self.lengths[:, None]
        with jax.debug_nans(False):  # these are meant
            return jnp.where(known, losses, jnp.nan)

    def top(self, k: int = 10, position: int = -1, row: int = 0) -> list[Candidate]:
        """The k likeliest next tokens after `position` of a row, likeliest first.

        Positions count within the row's own length, negative ones from its end.
        """
        if not 1 <= (integer(k) or 0) <= self.logits.shape[-1]:
            raise ValueError(f"k is {k}; it must be 1 to {self.logits.shape[-1]}, the vocabulary.")
        probabilities, ids = jax.lax.top_k(self._probabilities(position, row), k)
        return candidates(self.llama, np.asarray(ids), np.asarray(probabilities))

    def probability(self, token: int | str, position: int = -1, row: int = 0) -> float:
        """The probability of `token` right after `position` of a row.

        `token` is an id, or text that is exactly one token, as `" Mary"`.

        >>> from llama_jax import Llama
        >>> run = Llama.from_pretrained("cria").run("Once upon a")
        >>> run.probability(" time") == run.top(1)[0].probability
        True
        """
        if isinstance(token, str):
            token = self.needs_llama("reading a token").token(token)
        id, size = integer(token), self.config.vocab_size
        if id is None or not 0 <= id < size:
            raise ValueError(f"Token {token!r}: the vocabulary is 0 to {size - 1}.")
        return float(self._probabilities(position, row)[id])

    def check(self) -> identities.Check:
        """Measures on this run the identities that must hold between what was captured.

        Gives a table of name, error, tolerance and outcome; what was not captured whole, or was
        edited on purpose, is skipped and says so. See `llama_jax.identities`. Where something is
        NaN or infinite, a row more names the first point in the order of the forward pass that is:
        for this the prompt is run once more, with a norm kept of every point.
        """
        model = None if self.llama is None else self.llama.model
        whole = {name: self.captured[name] for name, c in self.captures.items() if c.whole}
        if self.logits.shape[1] == self.tokens.shape[1]:
            whole["logits"] = self.logits
        found = identities.check(
            whole, self.config, self.lengths, frozenset(self.edited), self.dtype, model
        )
        broken = self._not_finite()
        return found if broken is None else identities.Check((*found.outcomes, broken))

    def _not_finite(self) -> identities.Outcome | None:
        """Where NaN or infinity begins, if there is any in what this run holds."""
        first = identities.first_not_finite({**self.captured, "logits": self.logits}, self.lengths)
        if first is None:
            return None
        where, how = first, "of what was captured"
        if self.llama is not None and not self.edited:
            # Norms are small, and not finite where an entry is not; scores of the future are -inf.
            names = [n for n in resolve("*", self.config.num_hidden_layers) if "scores" not in n]
            again = self.llama.run(self.rows, Capture(names, reduce="norm"), logits="last")
            found = identities.first_not_finite(again.captured, self.lengths)
            where, how = found or first, "of all points; the prompt was run once more to find it"
        note = f"not finite first at {where}, {how}"
        return identities.Outcome("everything is finite", math.nan, 0.0, False, note)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the run into one file: safetensors, with everything else as JSON in its header.

        Bit for bit what `Run.load` gives back. The file takes its place when it is whole. Raises
        `runfile.RunFileError` where there can be no such file, `TypeError` or `ValueError` for what
        is no path.
        """
        runfile.write(path, self)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], llama: Llama | None = None, verify: bool = True
    ) -> Run:
        """Opens what `save` wrote. Arrays are mapped from the file, and read where looked at.

        `verify` reads the file through once and compares its checksums; without, that of the
        header is compared, and not a byte of an array is read. Without a `llama` what needs weights
        or the tokenizer says so. Raises `runfile.RunFileError` for a file that is not whole, not a
        run, or of a newer format, and for a llama of another config.
        """
        return cls(llama, **runfile.read(path, llama, verify))

    def needs_llama(self, what: str) -> Llama:
        """The run's Llama. Where there is none, a `ValueError` says that `what` needs it."""
        if self.llama is None:
            raise ValueError(
                f"This run was loaded without its Llama, which {what} needs: "
                "Run.load(path, llama=llama)."
            )
        return self.llama

    def _need_all_logits(self, what: str) -> None:
        if self.logits.shape[1] != self.tokens.shape[1]:
            raise ValueError(
                f"This run kept the logits of the last position only; {what} needs logits='all'."
            )

    def _probabilities(self, position: int, row: int) -> Float[Array, " V"]:
        row = numbered("row", row, len(self.lengths))
        length = int(self.lengths[row])
        try:
            at = numbered("position", position, length)
        except IndexError:
            raise IndexError(f"Position {position} of a row of {length} tokens.") from None
        if self.logits.shape[1] != self.tokens.shape[1]:
            if at != length - 1:
                raise IndexError(
                    f"Position {position}: this run kept the logits of the last position only; "
                    "run with logits='all'."
                )
            at = 0
        return jax.nn.softmax(jnp.asarray(self.logits[row, at]))

    def __repr__(self) -> str:
        batch, length = self.tokens.shape
        edited = f", {len(self.edited)} points edited" if self.edited else ""
        return (
            f"Run({batch} x {length} tokens, {len(self.captured)} points{edited}, "
            f"{self.nbytes / 2**20:.1f} MiB)"
        )

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        from llama_jax.runtree import draw

        return draw(self, path, subtree_renderer)


def run(
    llama: Llama,
    tokens: Int[np.ndarray, "B T"],
    lengths: Int[np.ndarray, " B"],
    capture: Captures = (),
    logits: Logits = "all",
    edits: Edit | Iterable[Edit] = (),
    budget: int | str | None = None,
) -> Run:
    """See `Llama.run`, which also takes text."""
    config, dtype = llama.config, llama.model.dtype
    check_logits(logits)
    if tokens.shape[1] > config.max_position_embeddings:
        warnings.warn(
            f"The prompt has {tokens.shape[1]:,} tokens, and this model was made for "
            f"{config.max_position_embeddings:,} (max_position_embeddings): beyond these its "
            "numbers are those of a model that never saw such positions.",
            stacklevel=3,
        )
    captures = wanted(capture, config.num_hidden_layers)
    if logits == "last" and "logits" in captures and captures["logits"].positions is not None:
        raise CaptureError(
            "Capture of logits: logits='last' makes those of one position only; ask for "
            "logits='all' to choose positions."
        )
    check_budget(captures, config, lengths, dtype, logits, budget, devices=llama.device_count)
    place = Place(config, wide(dtype), lengths, tokens.shape[1], tokens.shape[1])
    changes = edits_at(edits, place)
    leaves, structure = leaves_of(llama.model)
    # Plain logits are there anyway: a second copy would be wasted.
    inside = {n: c for n, c in captures.items() if n != "logits" or not c.plain}
    taps = taps_for(inside, changes, config, lengths)
    made, captured = _program(structure, leaves, tokens, lengths, taps, logits)
    captured.setdefault("logits", made)
    captured = {name: captured[name] for name in captures}
    return Run(
        llama,
        config,
        tokens,
        lengths,
        made,
        captured,
        captures,
        tuple(changes),
        str(dtype),
        llama.name,
    )


def check_logits(logits: Logits) -> None:
    if logits not in ("all", "last"):
        raise ValueError(f"logits is {logits!r}; it must be 'all' or 'last'.")


@functools.partial(jit, static_argnums=(0, 5))
def _program(
    structure: Any,
    leaves: tuple[Array, ...],
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    taps: dict[str, Tap],
    logits: Logits,
) -> tuple[Float[Array, "B T V"], dict[str, Any]]:
    model = jax.tree.unflatten(structure, leaves)
    result = forward(model, tokens, lengths, taps=taps, logits=logits)
    assert result.logits is not None
    return result.logits, result.captured


def candidates(llama: Llama | None, ids: np.ndarray, probabilities: np.ndarray) -> list[Candidate]:
    """Tokens with their texts (empty without a tokenizer) and probabilities.

    Where the probability is NaN no token is named: -1, "NaN".
    """
    known = llama is not None and llama.tokenizer is not None
    texts = llama.pieces(ids) if known else [""] * len(ids)  # type: ignore[union-attr]
    return [
        Candidate(-1, "NaN", math.nan)
        if math.isnan(probability)
        else Candidate(int(token), text, float(probability))
        for token, text, probability in zip(ids, texts, probabilities, strict=True)
    ]
