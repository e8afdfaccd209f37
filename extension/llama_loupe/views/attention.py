"""Attention: every head in one atlas, and one of them down to single probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from llama_jax import Run, analysis
from llama_jax.analysis.heads import SCORES
from llama_loupe import image, tiles
from llama_loupe.selection import Selection
from llama_loupe.view import Question, View, f32, integer
from llama_loupe.views.tokens import pieces

__all__ = ["Attention", "attention"]

ATLAS = 4_400_000  # cells of an atlas, one byte each
MOST_CELLS = 64  # along a side of one map of it
HINT = 'run = llama.run(prompt, capture=("q_rot", "k_rot"))'


class Attention(View):
    """See `attention`."""

    name = "attention"

    def __init__(self, run: Run, row: int, selection: Selection | None) -> None:
        super().__init__(f"Attention: {run!r}", selection)
        if not -len(run.lengths) <= row < len(run.lengths):
            raise IndexError(f"Row {row}; this run has {len(run.lengths)}.")
        self.run, self.row = run, row % len(run.lengths)
        self.length = int(run.lengths[self.row])
        self.kept = {
            layer: kept
            for layer in range(run.config.num_hidden_layers)
            if (kept := self._kept(layer)) is not None
        }
        self.layers = list(self.kept)
        # Single cells of every layer in the atlas.
        self.detail = bool(self.layers) and all(kind != "pooled" for kind in self.kept.values())
        if not self.layers:
            self.name = "empty"  # type: ignore[misc]

    def _kept(self, layer: int) -> str | None:
        """What the run holds of a layer's attention."""
        prefix = f"layers.{layer}.self_attn."
        captures = self.run.captures
        pattern = captures.get(f"{prefix}pattern")
        if pattern is not None and pattern.whole:
            return "pattern"
        both = [captures.get(f"{prefix}{point}") for point in ("q_rot", "k_rot")]
        edited = any(f"{prefix}{point}" in self.run.edited for point in ("scores", "pattern"))
        if all(capture is not None and capture.whole for capture in both) and not edited:
            return "queries and keys"
        if pattern is None or pattern.heads is not None or pattern.positions is not None:
            return None
        return "pooled" if pattern.reduce and pattern.reduce[0] == "max_pool" else None

    def data(self) -> dict[str, Any]:
        if not self.layers:
            return {
                "sentence": "This run holds no attention. Capture queries and keys, from which "
                "any part of a map is made when it is looked at:",
                "code": HINT,
            }
        config = self.run.config
        pooled = "This run holds pooled maps. To zoom down to single tokens, capture"
        return {
            "layers": self.layers,
            "heads": config.num_attention_heads,
            "groups": config.num_key_value_heads,
            "length": self.length,
            "tokens": pieces(self.run, self.row),
            "atlas": self._atlas(),
            "detail": self.detail,
            "sentence": None if self.detail else f"{pooled} queries and keys:",
            "code": None if self.detail else HINT,
            "scores": list(SCORES) if self.detail and self.run.llama is not None else [],
        }

    def _atlas(self) -> np.ndarray:
        """[layers, heads, n, n]: codes of each cell's largest probability."""
        heads = self.run.config.num_attention_heads
        side = int((ATLAS / (len(self.layers) * heads)) ** 0.5)
        n = min(self.length, MOST_CELLS, max(8, side))
        if not self.detail:
            captures = [
                self._pattern(layer) for layer in self.layers if self.kept[layer] == "pooled"
            ]
            n = min(n, *(cells.shape[-1] for cells in captures))
        quiet = self.length * self.length * len(self.layers) * heads < 1e9
        bar = tqdm(self.layers, "Pooling attention", unit="layer", disable=quiet)
        return np.stack([self._codes(layer, n) for layer in bar])

    def _pattern(self, layer: int) -> Any:
        return self.run["pattern", layer]

    def _codes(self, layer: int, n: int) -> np.ndarray:
        if self.kept[layer] == "queries and keys":
            heads = range(self.run.config.num_attention_heads)
            tiles = [
                analysis.attention_map(self.run, layer, head, self.row, shape=(n, n)).values
                for head in heads
            ]
            return np.asarray(_coded(jnp.stack(tiles)))
        maps = jnp.asarray(self._pattern(layer)[self.row])
        if self.kept[layer] == "pattern":
            maps = maps[:, : self.length, : self.length]
        return np.asarray(_pooled(maps, n))

    def answer(self, what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if what == "scores":
            scores = analysis.head_scores(self.run)
            values = np.stack([f32(getattr(scores, name)) for name in SCORES])
            return {"names": list(SCORES), "values": values[:, self.layers]}
        if what not in ("tile", "row") or not self.detail:
            return super().answer(what, arguments)
        config, length = self.run.config, self.length
        layer = integer(arguments, "layer", config.num_hidden_layers)
        head = integer(arguments, "head", config.num_attention_heads)
        if what == "row":
            query = integer(arguments, "query", length)
            found = self._tile(layer, head, (query, query + 1), (0, length), (1, length), "max")
            return {"values": found["values"][0]}
        rows, columns, cells, pool = tiles.asked(arguments, (length, length))
        return self._tile(layer, head, rows, columns, cells, pool)

    def _tile(
        self,
        layer: int,
        head: int,
        queries: tiles.Span,
        keys: tiles.Span,
        cells: tuple[int, int],
        pool: Any,
    ) -> dict[str, Any]:
        if self.kept[layer] == "queries and keys":
            made = analysis.attention_map(
                self.run, layer, head, self.row, queries, keys, cells, pool
            )
            tile = tiles.Tile(f32(made.values), made.query_edges, made.key_edges)
        else:
            pattern = tiles.Matrix(self._pattern(layer), (self.row, head))
            tile = tiles.tile(pattern, queries, keys, cells, pool)
        return {
            "values": f32(tile.values),
            "rows": tile.rows.astype(np.int32),
            "columns": tile.columns.astype(np.int32),
        }

    def questions(self) -> Iterator[Question]:
        if not self.detail:
            return
        whole = {"top": 0, "left": 0, "bottom": self.length, "right": self.length}
        cells = min(self.length, tiles.TILE)
        sides = {"rows": cells, "columns": cells, "pool": "max"}
        first = self.selection.layer if self.selection.layer in self.kept else self.layers[0]
        for layer in sorted(self.layers, key=lambda layer: layer != first):
            for head in range(self.run.config.num_attention_heads):
                yield "tile", {"layer": layer, "head": head, **whole, **sides}
        if self.run.llama is not None:
            yield "scores", {}

    def cells(self) -> image.Cells | None:
        if not self.layers:
            return None
        codes = self._data["atlas"]
        layers, heads, n, _ = codes.shape
        n_shown = min(n, max(8, 1200 // max(layers, heads)))
        if n_shown < n:
            codes = np.asarray(_most(codes.reshape(layers * heads, n, n), n_shown))
            codes = codes.reshape(layers, heads, n_shown, n_shown)
        values = np.pad((codes / 255.0), ((0, 0), (0, 0), (0, 1), (0, 1)))
        masked = np.triu(np.ones((n_shown, n_shown), bool), 1)
        mask = np.pad(masked, ((0, 1), (0, 1)), constant_values=True)
        grid = values.transpose(0, 2, 1, 3).reshape(layers * (n_shown + 1), -1)
        return image.Cells(grid, mask=np.tile(mask, (layers, heads)), low=0.0, high=1.0)

    def text(self) -> str:
        if not self.layers:
            return f"{self.title}: nothing to show. {self._data['sentence']} {HINT}"
        heads = self.run.config.num_attention_heads
        return f"{self.title}, {len(self.layers)} layers x {heads} heads, {self.length} tokens"


def attention(run: Run, *, row: int = 0, selection: Selection | None = None) -> Attention:
    """Every head's attention in an atlas; choose one and zoom to single probabilities.

    The run must have captured `q_rot` and `k_rot`, from which any part of a map is made when it is
    looked at, or `pattern`, whole or `Capture("pattern", reduce=("max_pool", 64))`, of which only
    the atlas can be shown; without any of them the view says so. `row` is the row of a batch.

    In the atlas a cell has the colour of the largest probability in it, to 1/255 of its square
    root; the map of one head shows exact f32 numbers, at the most pooled 256 x 256 cells at a time.

    >>> from llama_jax import Llama
    >>> llama = Llama.from_pretrained("cria")
    >>> attention(llama.run("Once upon a time", capture=("q_rot", "k_rot")))
    Attention: Run(1 x 5 tokens, 8 points, 0.0 MiB), 4 layers x 8 heads, 5 tokens
    """
    if not isinstance(run, Run):
        raise TypeError(
            f"attention takes a Run, not {type(run).__name__}: loupe.attention(llama.run(prompt, "
            'capture=("q_rot", "k_rot"))).'
        )
    return Attention(run, row, selection)


@jax.jit
def _coded(values: Any) -> Any:
    """0 is nothing at all; what is a little is seen."""
    codes = jnp.ceil(255 * jnp.sqrt(jnp.clip(values.astype(jnp.float32), 0, 1)))
    return codes.astype(jnp.uint8)


def _most(maps: Any, n: int) -> Any:
    """The largest of each cell of [heads, rows, columns], in n cells or fewer along both."""
    for axis in (1, 2):
        size = maps.shape[axis]
        if size > n:
            starts = np.array([part[0] for part in np.array_split(np.arange(size), n)])
            widths = np.diff([*starts, size])
            at = starts[:, None] + np.minimum(np.arange(widths.max()), widths[:, None] - 1)
            taken = jnp.take(maps, at.reshape(-1), axis=axis)
            cut = (*taken.shape[:axis], n, at.shape[1], *taken.shape[axis + 1 :])
            maps = taken.reshape(cut).max(axis + 1)
    return maps


def _pooled(maps: Any, n: int) -> Any:
    return _coded(_most(maps, n))
