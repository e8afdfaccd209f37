"""How the residual stream is made: what every component writes into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from llama_jax import Run
from llama_jax.analysis import Decomposition
from llama_jax.analysis.needs import held
from llama_jax.base.modes import jit
from llama_loupe.selection import Selection
from llama_loupe.view import Question, View, f32, integer
from llama_loupe.views.results import WHOLE, Axis, Chart, Charts, Reading
from llama_loupe.views.rows import norms, pieces, positions, row_of, widened

__all__ = ["Residual", "residual"]

WRITES = ("embed", "self_attn.out", "mlp.out")
STREAMS = ("resid_pre", "resid_mid", "resid_post")
HINT = 'run = llama.run(prompt, capture=("embed", "self_attn.out", "mlp.out"))'
NOTES = {
    "written": "The length of what is written.",
    "accumulated": "The length of the stream behind it: of the sum of all that is written so far.",
    "share": "How much of the final stream, the sum of all that is written, comes from here: in "
    "its direction, as a share of its length. The shares of a position add up to 1; a negative "
    "one takes away.",
    "cosine": "Of the angle between what is written and the final stream, the sum of all.",
}


class Residual(Charts):
    """See `residual`."""

    def __init__(
        self,
        reading: Reading,
        row: int,
        start: int,
        note: Mapping[str, str],
        selection: Selection | None,
    ) -> None:
        super().__init__(reading, selection, row)
        self.start, self.note = start, note

    def data(self) -> dict[str, Any]:
        if not self.charts:
            return {**self.note}
        return {**super().data(), **self.note, "start": {"position": self.start}, "profile": True}

    def answer(self, what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if what != "column" or not self.charts:
            return super().answer(what, arguments)
        chart = self.charts[integer(arguments, "chart", len(self.charts))]
        at = integer(arguments, "at", chart.values.shape[1])
        alike = [other for other in self.charts if other.axes == chart.axes]
        return {"values": f32(np.stack([other.values[:, at] for other in alike]))}

    def questions(self) -> Iterator[Question]:
        yield from super().questions()
        firsts = {chart.axes: number for number, chart in reversed([*enumerate(self.charts)])}
        for first in firsts.values():
            values = self.charts[first].values
            if values.size > WHOLE:
                for at in sorted(range(values.shape[1]), key=lambda at: abs(at - self.start)):
                    yield "column", {"chart": first, "at": at}


def residual(
    run: Run | Decomposition,
    *,
    row: int = 0,
    position: int | None = None,
    selection: Selection | None = None,
) -> View:
    """What the embedding and each layer's attention and MLP write into the residual stream.

    Components down, in the order in which they write, positions across; below the map the chosen
    position as bars and as a table. To choose from:

    - *written norm*: the Euclidean length of what the component writes;
    - *accumulated stream norm*: the length of the stream behind it, the sum so far;
    - *projection on the final stream*: `w . s / s . s`, with w what it writes and s the sum of all.
      These shares of a position sum to 1; a negative one takes away from where the stream ends up;
    - *cosine with the final stream*: of the angle between w and s; NaN where nothing is written.

    The run must have captured `embed`, `self_attn.out` and `mlp.out`. One that holds only their
    norms (`Capture(..., reduce="norm")`), or some of `resid_pre`, `resid_mid` and `resid_post`,
    whole or as norms, shows norms; one without any says what to capture. A `Decomposition` may be
    by head too. `row` is the row of a batch, `position` the one that is shown first, from the end
    where negative: by default the selected one, or the last. Norms are f32, made from one
    component at a time. Raises `IndexError` and `TypeError`.

    >>> from llama_jax import Llama
    >>> llama = Llama.from_pretrained("cria")
    >>> run = llama.run("Once upon a time", capture=("embed", "self_attn.out", "mlp.out"))
    >>> residual(run)
    Residual stream: Run(1 x 5 tokens, 9 points, 0.1 MiB), 9 components x 5 positions
    """
    if not isinstance(run, Run | Decomposition):
        raise TypeError(
            f"residual takes a Run or a Decomposition, not {type(run).__name__}: "
            f"loupe.residual(llama.run(prompt, capture={WRITES}))."
        )
    rows = len(run.values if isinstance(run, Decomposition) else run.lengths)
    row = row_of(row, rows, type(run).__name__)
    if isinstance(run, Decomposition):
        charts, axes, note = _parts(run, row)
        texts, length = run.pieces, max(map(int, run.along("position"))) + 1
    else:
        charts, axes, note = _parts(run, row) if held(run, WRITES) else _norms(run, row)
        texts, length = pieces(run, row), int(run.lengths[row])
    title = f"Residual stream: {run!r}"
    said = f"{title}: nothing to show. {' '.join(note.values())}"
    known: list[Any] = []
    if charts:
        known = list(axes["position"].names)
        said = f"{title}, " + " x ".join(f"{len(axes[a].names)} {a}s" for a in charts[0].axes)
        if position is not None:
            at = position + length if position < 0 else position
            if at not in known:
                raise IndexError(f"Position {position}; there are {known[0]} to {known[-1]}.")
            selection = Selection() if selection is None else selection
            selection.token = at
    reading = Reading(title=title, said=said, charts=charts, axes=axes, pieces=texts)
    return Residual(reading, row, len(known) - 1, note, selection)


Found = tuple[list[Chart], dict[str, Axis], dict[str, str]]


def _parts(found: Run | Decomposition, row: int) -> Found:
    """Charts of what every component writes, from one of them at a time."""
    if isinstance(found, Decomposition):
        names, at = list(found.along("component")), list(found.along("position"))
        whole = found.values

        def part(name: int | str) -> Any:
            return whole[row, :, names.index(name)]
    else:
        points = _components(found)
        names, at = list(points), list(range(int(found.lengths[row])))

        def part(name: int | str) -> Any:
            return found.captured[points[str(name)]][row]

    stream, lengths = 0.0, []
    for name in names:
        stream, *both = _written(stream, part(name))
        lengths.append([f32(length)[: len(at)] for length in both])
    written, accumulated = np.stack(lengths, 1)
    along = np.stack([f32(_along(part(name), stream))[: len(at)] for name in names])
    with np.errstate(invalid="ignore", divide="ignore"):
        share = along / accumulated[-1] ** 2
        cosine = along / (written * accumulated[-1])
    axes = ("component", "position")
    charts = [
        Chart("written norm", written, axes, "written", scale="sqrt"),
        Chart("accumulated stream norm", accumulated, axes, "accumulated", scale="sqrt"),
        Chart("projection on the final stream", share, axes, "share", diverging=True),
        Chart("cosine with the final stream", cosine, axes, "cosine", diverging=True),
    ]
    charts = [chart._replace(note=NOTES[chart.value]) for chart in charts]
    note: dict[str, str] = {}
    edited = [name for name in getattr(found, "edited", ()) if name.endswith(STREAMS)]
    if edited:
        note["sentence"] = (
            f"This run's stream was edited at {', '.join(edited[:3])}{', …' * (len(edited) > 3)}. "
            "What an edit puts in is no component's, and not in these sums."
        )
    return charts, {"component": Axis(names), "position": Axis(at)}, note


def _norms(run: Run, row: int) -> Found:
    """Charts of whatever norms the run has."""
    every = range(run.config.num_hidden_layers)
    points: dict[tuple[str, str], dict[Any, str]] = {
        ("written norm", "component"): {**_components(run)},
        **{
            (f"norm of {kind}", "layer"): {i: f"layers.{i}.{kind}" for i in every}
            for kind in ("resid_post", "resid_mid", "resid_pre")
        },
    }
    charts: list[Chart] = []
    axes: dict[str, Axis] = {}
    for (title, axis), names in points.items():
        known = {name: norm for name, point in names.items() if (norm := _norm(run, point, row))}
        if not known:
            continue
        # All charts are of the same positions, and those of layers of the same layers.
        at = axes.setdefault("position", Axis(next(iter(known.values()))[0])).names
        same = {name: values for name, (own, values) in known.items() if own == at}
        if same and axes.setdefault(axis, Axis(list(same))).names == list(same):
            values = np.stack(list(same.values()))
            charts.append(Chart(title, values, (axis, "position"), title, scale="sqrt"))
    sentence = "To see what every component writes, capture it:"
    if not charts:
        sentence = f"This run holds nothing of the residual stream. {sentence}"
    return charts, axes, {"sentence": sentence, "code": HINT}


def _norm(run: Run, point: str, row: int) -> tuple[list[int], np.ndarray] | None:
    """A row's positions, and the norms there, as far as the run holds them."""
    capture = run.captures.get(point)
    if capture is None or capture.reduce not in (None, "last", "norm"):
        return None
    values, at = run.captured[point][row], positions(run, point, row)
    inside = at < run.lengths[row]
    found = f32(values if capture.reduce == "norm" else norms(values))
    return at[inside].tolist(), found[inside]


def _components(run: Run) -> dict[str, str]:
    """All that writes into the stream, in order, and the points that hold it."""
    found = {"embed": "embed"}
    for i in range(run.config.num_hidden_layers):
        found |= {f"{i}.attn": f"layers.{i}.self_attn.out", f"{i}.mlp": f"layers.{i}.mlp.out"}
    return found


@jit
def _written(stream: Any, part: Any) -> tuple[Any, Any, Any]:
    stream = stream + widened(part)
    return stream, norms(part), norms(stream)


@jit
def _along(part: Any, final: Any) -> Any:
    return jnp.sum(part.astype(final.dtype) * final, axis=-1)
