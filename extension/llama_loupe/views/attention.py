"""Attention: every head in one atlas, and one of them down to single probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from llama_jax import Run, analysis
from llama_jax.analysis.heads import SCORES
from llama_jax.base.modes import jit
from llama_loupe import image, tiles
from llama_loupe.arrays import cuts
from llama_loupe.selection import Selection
from llama_loupe.view import Question, View, ViewError, f32, integer
from llama_loupe.views.rows import numbered, pieces

__all__ = ["Attention", "attention"]

ATLAS = 4_400_000  # cells of an atlas, one byte each
MOST_CELLS = 64  # along a side of one map of it
LARGEST, NOT_A_NUMBER = 254, 255  # codes of the probability 1, and of NaN
HINT = 'run = llama.run(prompt, capture=("q_rot", "k_rot"))'


class Attention(View):
    """See `attention`."""

    name = "attention"

    def __init__(self, run: Run, row: int, selection: Selection | None) -> None:
        self.run, self.row = run, numbered(run, row)
        self.length = int(run.lengths[self.row])
        layers, heads = run.config.num_hidden_layers, run.config.num_attention_heads
        sizes = {"token": self.length, "layer": layers, "head": heads}
        super().__init__(f"Attention: {run!r}", selection, self.row, **sizes)
        kept = {layer: self._kept(layer) for layer in range(run.config.num_hidden_layers)}
        # Single cells can be had of every layer that is shown, or of none.
        exact = {layer: kind for layer, kind in kept.items() if kind and kind != "pooled"}
        self.detail = bool(exact)
        self.kept = exact or {layer: kind for layer, kind in kept.items() if kind}
        self.layers = list(self.kept)
        self.absent = [layer for layer in kept if layer not in self.kept]
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
        sentences = []
        if self.absent:
            sentences.append(
                f"Not shown: layers {', '.join(map(str, self.absent))}, which were not captured, "
                "or whose scores or pattern were edited, so that only the pattern tells them."
            )
        if not self.detail:
            sentences.append("To zoom down to single tokens, capture queries and keys:")
        edges, atlas = self._atlas()
        scored = self.detail and not self.absent and self.run.llama is not None
        return {
            "layers": self.layers,
            "heads": config.num_attention_heads,
            "groups": config.num_key_value_heads,
            "length": self.length,
            "tokens": pieces(self.run, self.row),
            "atlas": atlas,
            "cuts": edges,
            "detail": self.detail,
            "sentence": " ".join(sentences) or None,
            "code": None if self.detail else HINT,
            "scores": list(SCORES) if scored else [],
        }

    def _atlas(self) -> tuple[np.ndarray, np.ndarray]:
        """Where its cells begin and end, and [layers, heads, n, n] codes of what is largest."""
        heads = self.run.config.num_attention_heads
        side = int((ATLAS / (len(self.layers) * heads)) ** 0.5)
        most = min(MOST_CELLS, max(8, side))
        n = tiles.even(self.length, most)
        edges = cuts(self.length, n)
        if not self.detail:
            own = self._cuts(self.layers[0])
            n = tiles.even(len(own) - 1, most)  # several of its cells in one
            edges = own[np.minimum(np.arange(n + 1) * -(-(len(own) - 1) // n), len(own) - 1)]
        quiet = self.length * self.length * len(self.layers) * heads < 1e9
        bar = tqdm(self.layers, "Pooling attention", unit="layer", disable=quiet)
        return edges.astype(np.int32), np.stack([self._codes(layer, n) for layer in bar])

    def _cuts(self, layer: int) -> np.ndarray:
        """Edges of the cells into which the forward pass pooled, those behind the row left out."""
        cells, longest = self._pattern(layer).shape[-1], self.run.tokens.shape[1]
        edges = cuts(longest, cells)
        inside = edges[:-1] < self.length
        return np.append(edges[:-1][inside], self.length).astype(np.int32)

    def _pooled(self, layer: int) -> Any:
        """[heads, n, n]: the cells of this row."""
        count = len(self._cuts(layer)) - 1
        return self._pattern(layer)[self.row, :, :count, :count]

    def _pattern(self, layer: int) -> Any:
        return self.run["pattern", layer]

    def _codes(self, layer: int, n: int) -> np.ndarray:
        heads, whole = range(self.run.config.num_attention_heads), (0, self.length)
        if self.kept[layer] == "pooled":
            return np.asarray(_coded(_most(f32(self._pooled(layer)), n)))
        if self.kept[layer] == "pattern":
            found = [self._tile(layer, head, whole, whole, (n, n), "max") for head in heads]
            return np.asarray(_coded(np.stack([tile["values"] for tile in found])))
        made = [
            analysis.attention_map(self.run, layer, head, self.row, shape=(n, n)) for head in heads
        ]
        return np.asarray(_coded(jnp.stack([each.values for each in made])))

    def answer(self, what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if what == "scores":
            scores = analysis.head_scores(self.run)
            values = np.stack([f32(getattr(scores, name)) for name in SCORES])
            return {"names": list(SCORES), "values": values[:, self.layers]}
        if what not in (("tile", "row") if self.detail else ("pooled",)):
            return super().answer(what, arguments)
        config, length = self.run.config, self.length
        layer = integer(arguments, "layer", config.num_hidden_layers)
        head = integer(arguments, "head", config.num_attention_heads)
        if layer not in self.kept:
            raise ViewError(f"Layer {layer} is not in this view.")
        if what == "pooled":
            edges = self._cuts(layer)
            return {"values": f32(self._pooled(layer)[head]), "rows": edges, "columns": edges}
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
        heads = range(self.run.config.num_attention_heads)
        if not self.detail:
            for layer in self.layers:
                yield from (("pooled", {"layer": layer, "head": head}) for head in heads)
            return
        whole = tiles.whole((self.length, self.length))
        first = self.selection.layer if self.selection.layer in self.kept else self.layers[0]
        for layer in sorted(self.layers, key=lambda layer: layer != first):
            for head in heads:
                yield "tile", {"layer": layer, "head": head, **whole}
        if self._data["scores"]:
            yield "scores", {}

    def cells(self) -> image.Cells | None:
        if not self.layers:
            return None
        codes = self._data["atlas"]
        layers, heads, n, _ = codes.shape
        n_shown = tiles.even(n, max(8, 1200 // max(layers, heads)))
        if n_shown < n:
            codes = _most(codes.reshape(layers * heads, n, n), n_shown)
            codes = codes.reshape(layers, heads, n_shown, n_shown)
        values = np.where(codes == NOT_A_NUMBER, np.nan, codes / LARGEST)
        values = np.pad(values, ((0, 0), (0, 0), (0, 1), (0, 1)))
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

    In the atlas a cell has the colour of the largest probability in it, to 1/254 of its square
    root; the map of one head shows exact f32 numbers, at the most pooled 256 x 256 cells at a time.

    >>> from llama_jax import Llama
    >>> llama = Llama.from_pretrained("cria")
    >>> attention(llama.run("Once upon a time", capture=("q_rot", "k_rot")))
    Attention: Run(1 x 5 tokens, 8 points, 0.1 MiB), 4 layers x 8 heads, 5 tokens
    """
    if not isinstance(run, Run):
        raise TypeError(
            f"attention takes a Run, not {type(run).__name__}: loupe.attention(llama.run(prompt, "
            'capture=("q_rot", "k_rot"))).'
        )
    return Attention(run, row, selection)


@jit
def _coded(values: Any) -> Any:
    """0 is nothing at all; what is a little is seen."""
    values = values.astype(jnp.float32)
    codes = jnp.ceil(LARGEST * jnp.sqrt(jnp.clip(values, 0, 1)))
    return jnp.where(jnp.isnan(values), NOT_A_NUMBER, codes).astype(jnp.uint8)


def _most(maps: np.ndarray, n: int) -> np.ndarray:
    """The largest of each cell of [heads, rows, columns], in n cells along both; NaN stays."""
    width = -(-maps.shape[1] // n)
    starts = np.arange(n) * width
    return np.maximum.reduceat(np.maximum.reduceat(maps, starts, axis=1), starts, axis=2)
