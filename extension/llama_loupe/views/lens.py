"""The logit lens: what each layer would say next, all over a prompt."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax import Run, analysis
from llama_jax.base.modes import jit
from llama_jax.model import leaves_of, readout
from llama_jax.points import point_of
from llama_loupe import image
from llama_loupe.selection import Selection
from llama_loupe.view import Kept, Question, View, ViewError, f32, integer
from llama_loupe.views.rows import LONGEST, bounded, numbered, pieces, texts_of, widened
from llama_loupe.views.tokens import statistics

__all__ = ["Lens", "lens"]

BLOCK = 32  # columns that are computed, and sent, at once
SAMPLES = 256  # columns of the overview
LIKELIEST = 10
SHOWN = 24  # characters of a cell's text
# An exported file holds so many columns of cells, and of so many cells the likeliest tokens.
EXPORTED = 1024
EXPORTED_CELLS = 400
MISSING = (
    "This run does not hold the residual stream of every layer, through which the lens looks. "
    "Capture it:",
    'run = llama.run(prompt, capture="resid_post")',
)
NO_LLAMA = (
    "This run was loaded without its Llama, whose unembedding is the lens. Load it with one:",
    "run = Run.load(path, llama=llama)",
)


class Lens(View):
    """See `lens`."""

    name = "lens"

    def __init__(
        self, lens: analysis.LogitLens | None, run: Run, row: int, selection: Selection | None
    ) -> None:
        self.run, self.row = run, numbered(run, row)
        self.length = int(run.lengths[self.row])
        sizes = {"token": self.length, "layer": run.config.num_hidden_layers}
        super().__init__(f"Logit lens: {run!r}", selection, self.row, **sizes)
        self._blocks = Kept[dict[str, np.ndarray]](64)
        self._logits = Kept[Any](1)
        if lens is None:
            self.name = "empty"  # type: ignore[misc]
            return
        self.lens = lens
        self.layers, self.point = lens.layers, point_of(lens.names[0]).local
        # Behind a row's end the lens means nothing.
        self.columns = np.flatnonzero(lens.positions[self.row] < self.length)
        self.positions = lens.positions[self.row][self.columns]
        self.texts = pieces(run, self.row)
        last = f"layers.{run.config.num_hidden_layers - 1}.resid_post"
        whole = last in run.captures and run.captures[last].whole
        # Of what the divergence is measured to, at the lens' own positions.
        self.final = last if last in lens.names or whole else None

    def data(self) -> dict[str, Any]:
        if self.name == "empty":
            sentence, code = NO_LLAMA if self.run.llama is None else MISSING
            return {"sentence": sentence, "code": code}
        first = self.selection.token
        at = np.flatnonzero(self.positions == first)
        start = int(at[0]) // BLOCK * BLOCK if len(at) else 0
        return {
            "layers": self.layers,
            "point": self.point,
            "tokens": self.texts,
            "positions": self.positions.astype(np.int32),
            "block": BLOCK,
            "samples": self._samples().astype(np.int32),
            "measures": self._measures(),
            "start": start,
            "first": self._cells(start),
        }

    def _measures(self) -> list[dict[str, Any]]:
        """What a cell's colour may be; `high` is the strongest colour, where that is fixed."""
        vocabulary = self.run.config.vocab_size
        rows = [
            ("top", "probability of what it would say", "probability", "", 1.0, False),
            ("next", "probability of what came next", "what came has probability", "", 1.0, True),
            ("rank", "rank of what came next", "what came has rank", "", vocabulary - 1.0, True),
            ("entropy", "entropy", "entropy", "nats", math.log(vocabulary), False),
            ("kl", "KL(model || layer)", "KL(model || layer)", "nats", None, False),
        ]
        fields = ("name", "text", "said", "unit", "high", "next")
        shown = rows if self.final is not None else rows[:-1]
        return [dict(zip(fields, row, strict=True)) for row in shown]

    def answer(self, what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        count = len(self.columns) if self.name != "empty" else 0
        if what == "cells" and count:
            start = integer(arguments, "from", count)
            if start % BLOCK:
                raise ViewError(f"from is {start}; cells come in blocks of {BLOCK} columns.")
            return self._cells(start)
        if what == "overview" and count:
            start = integer(arguments, "from", len(self._samples()))
            found = self._block(self._samples()[start : start + BLOCK])
            return {name: found[name] for name in found if name != "ids"}
        if what == "cell" and count:
            token = integer(arguments, "token", self.length)
            layer = integer(arguments, "layer", self.run.config.num_hidden_layers)
            if token not in self.positions or layer not in self.layers:
                raise ViewError(f"This lens does not hold layer {layer} after token {token}.")
            return self._cell(token, self.layers.index(layer))
        return super().answer(what, arguments)

    def _samples(self) -> Int[np.ndarray, " samples"]:
        """Columns of the overview: all, or of as many equal parts the first."""
        count = len(self.columns)
        return np.arange(min(count, SAMPLES)) * count // min(count, SAMPLES)

    def _cells(self, start: int) -> dict[str, Any]:
        """A block of columns: what each layer would say, and the measures, `[layers, columns]`."""
        found = self._block_of(start)
        texts = self._said(found["ids"].ravel(), found["top"].ravel(), SHOWN)
        return {**{name: found[name] for name in found if name != "ids"}, "texts": texts}

    def _said(self, ids: np.ndarray, chances: np.ndarray, most: int = LONGEST) -> list[str]:
        """The tokens' texts; where the logits are NaN nothing is said."""
        texts = bounded(texts_of(self.lens.llama, ids), most)
        return ["NaN" if np.isnan(p) else text for text, p in zip(texts, chances, strict=True)]

    def _block_of(self, column: int) -> dict[str, np.ndarray]:
        """The block in which a column stands."""
        return self._block(self._columns_of(column))

    def _columns_of(self, column: int) -> Int[np.ndarray, " P"]:
        start = column - column % BLOCK
        return np.arange(start, min(start + BLOCK, len(self.columns)))

    def _block(self, columns: Int[np.ndarray, " P"]) -> dict[str, np.ndarray]:
        return self._blocks.get(tuple(columns.tolist()), lambda: self._computed(columns))

    def _computed(self, columns: Int[np.ndarray, " P"]) -> dict[str, np.ndarray]:
        following = np.minimum(self.positions[columns] + 1, self.length - 1)
        tokens = self.run.tokens[self.row, _padded(following)]
        leaves, structure = leaves_of(self.lens.llama.model)
        found = _cells_of(structure, leaves, self._streams(columns), self._last(columns), tokens)
        names = ("ids", "top", "next", "rank", "entropy", "kl")
        made = {
            name: np.asarray(part)[:, : len(columns)]
            for name, part in zip(names, found, strict=True)
            if part is not None
        }
        return {name: part if name == "ids" else f32(part) for name, part in made.items()}

    def _streams(self, columns: Int[np.ndarray, " P"]) -> Float[Array, "L block D"]:
        """What the layers left at some columns."""
        at = _padded(self.columns[columns])
        return jnp.stack([self.run.captured[name][self.row, at] for name in self.lens.names])

    def _last(self, columns: Int[np.ndarray, " P"]) -> Float[Array, "block D"] | None:
        """What the model read its own logits from."""
        if self.final is None:
            return None
        whole = self.run.captures[self.final].whole
        at = self.positions[columns] if whole else self.columns[columns]
        return jnp.asarray(self.run.captured[self.final][self.row, _padded(at)])

    def _cell(self, token: int, layer: int) -> dict[str, Any]:
        """The likeliest tokens of a cell and the one that came next, through all layers."""
        column = int(np.flatnonzero(self.positions == token)[0])
        logits = self._logits.get(column, lambda: self._column(column))
        count = min(LIKELIEST, logits.shape[-1])
        ids = np.asarray(jax.lax.top_k(logits[layer], count)[1])
        following = None
        if token + 1 < self.length:
            following = int(self.run.tokens[self.row, token + 1])
            if following not in ids:
                ids = np.append(ids, following)
        # Always of one length, which compiles once.
        padded = np.pad(ids, (0, count + 1 - len(ids)), mode="edge")
        probabilities, ranks = (f32(part)[: len(ids)] for part in _paths(logits, padded))
        # Another program may round the last bit in another way, so what stands in the grid is
        # taken from there.
        grid = {name: part[:, column % BLOCK] for name, part in self._block_of(column).items()}
        in_grid = ids[:, None] == grid["ids"]
        probabilities = np.where(in_grid, grid["top"], probabilities)
        came_next = ids[:, None] == (-1 if following is None else following)
        probabilities = np.where(came_next, grid["next"], probabilities)
        ranks = np.where(came_next, grid["rank"], ranks)
        return {
            "ids": ids.astype(np.int32),
            "texts": self._said(ids, probabilities[:, layer]),
            "next": None if following is None else ids.tolist().index(following),
            "probabilities": probabilities,
            "ranks": ranks,
        }

    def _column(self, column: int) -> Float[Array, "L V"]:
        """As a part of its block, so that the numbers are those of the cells."""
        streams = self._streams(self._columns_of(column))
        leaves, structure = leaves_of(self.lens.llama.model)
        return _logits_of(structure, leaves, streams, column % BLOCK)

    def questions(self) -> Iterator[Question]:
        if self.name == "empty":
            return
        count = min(len(self.columns), EXPORTED)
        if self._data["start"] >= count:
            yield "cells", {"from": self._data["start"]}
        for start in range(0, len(self._samples()), BLOCK):
            yield "overview", {"from": start}
        for start in range(0, count, BLOCK):
            yield "cells", {"from": start}
        chosen = self.selection.token
        order = sorted(range(count), key=lambda column: self.positions[column] != chosen)
        for column in order[: max(1, EXPORTED_CELLS // len(self.layers))]:
            for layer in self.layers:
                yield "cell", {"token": int(self.positions[column]), "layer": layer}

    def cells(self) -> image.Cells | None:
        if self.name == "empty":
            return None
        # The last layer on top, as on the page.
        return image.Cells(self._data["first"]["top"][::-1], low=0.0, high=1.0)

    def text(self) -> str:
        if self.name == "empty":
            return f"{self.title}: nothing to show. {self._data['sentence']} {self._data['code']}"
        return (
            f"{self.title}, {self.point} of {len(self.layers)} layers, {len(self.columns)} tokens"
        )


def lens(
    run: Run | analysis.LogitLens, *, row: int = 0, selection: Selection | None = None
) -> Lens:
    """What each layer would say after each token: layers down, the last on top, tokens across.

    The run must have captured `resid_post`; without it the view says so. A `LogitLens` shows other
    points, as `lens(analysis.logit_lens(run, "resid_mid"))`. `row` is the row of a batch.

    The cell of token t and layer l has the token that layer l holds likeliest to follow token t:
    the stream there, read through the final norm and the unembedding. Its colour is the probability
    of that token, the probability or the rank (0 is the likeliest) of the token that really came
    next, the entropy or KL(model || layer), both in nats; the last layer's is 0. Choosing a cell
    lists its 10 likeliest tokens, and follows each of them through all layers.

    Everything is computed when it is looked at, in blocks of 32 tokens. Above a long prompt stands
    the whole of it, of which up to 256 tokens are computed. Raises `IndexError` for a row that is
    not there, and `TypeError` for what is neither a run nor a lens.

    >>> from llama_jax import Llama
    >>> llama = Llama.from_pretrained("cria")
    >>> lens(llama.run("Once upon a time", capture="resid_post"))
    Logit lens: Run(1 x 5 tokens, 4 points, 0.1 MiB), resid_post of 4 layers, 5 tokens
    """
    if isinstance(run, analysis.LogitLens):
        return Lens(run, run.run, row, selection)
    if not isinstance(run, Run):
        raise TypeError(
            f"lens takes a Run or a LogitLens, not {type(run).__name__}: "
            'loupe.lens(llama.run(prompt, capture="resid_post")).'
        )
    made = None
    with contextlib.suppress(analysis.MissingPointError, ValueError):
        made = analysis.logit_lens(run)
    return Lens(made, run, row, selection)


def _padded(values: Int[np.ndarray, " P"]) -> Int[np.ndarray, " block"]:
    """As long as a block: one shape compiles once."""
    return np.pad(values, (0, BLOCK - len(values)), mode="edge")


@functools.partial(jit, static_argnums=0)
def _cells_of(
    structure: Any,
    leaves: tuple[Array, ...],
    streams: Float[Array, "L block D"],
    last: Float[Array, "block D"] | None,
    following: Int[Array, " block"],
) -> tuple[Array | None, ...]:
    """Of each cell the likeliest token and the measures, one layer after the other."""
    model = jax.tree.unflatten(structure, leaves)
    final = None if last is None else readout(model, last)

    def one(stream: Float[Array, "block D"]) -> tuple[Array | None, ...]:
        logits = readout(model, stream)
        own, rank, entropy, kl = statistics(logits, following, final)
        best = jnp.argmax(logits, axis=1)
        return best, jnp.exp(statistics(logits, best)[0]), jnp.exp(own), rank, entropy, kl

    return jax.lax.map(one, streams)


@functools.partial(jit, static_argnums=0)
def _logits_of(
    structure: Any,
    leaves: tuple[Array, ...],
    streams: Float[Array, "L block D"],
    at: Int[Array, ""],
) -> Float[Array, "L V"]:
    """What every layer would say at one place of a block."""
    model = jax.tree.unflatten(structure, leaves)
    return jax.lax.map(lambda stream: readout(model, stream)[at], streams)


@jit
def _paths(
    logits: Float[Array, "L V"], ids: Int[Array, " n"]
) -> tuple[Float[Array, "n L"], Float[Array, "n L"]]:
    """Probability and rank of tokens through the layers."""
    own = jax.nn.log_softmax(widened(logits))[:, ids].T
    ranks = jax.lax.map(lambda token: jnp.sum(logits > logits[:, token, None], axis=1), ids)
    return jnp.exp(own), jnp.where(jnp.isnan(own), jnp.nan, ranks)
