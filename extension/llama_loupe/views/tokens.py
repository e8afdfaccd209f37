"""The text of a run, token by token, coloured by how the model took each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax import Capture, Generation, Run, analysis
from llama_jax.base.modes import jit
from llama_jax.points import point_of
from llama_loupe import image
from llama_loupe.selection import Selection
from llama_loupe.view import Kept, Question, View, ViewError, f32, integer, one_of
from llama_loupe.views.rows import bounded, norms, numbered, pieces, positions, widened

__all__ = ["Measure", "Tokens", "narrowed", "statistics", "tokens"]

AT_ONCE = 2**24  # logits of one block: 64 MiB in f32
LIKELIEST = 10
# An exported file answers for so many tokens, and so many (layer, token) of what costs a readout.
EXPORTED = 1024
EXPORTED_READOUTS = 20_000
COLUMNS = 64  # tokens in a row of the picture for places that run no scripts
HINT = 'run = llama.run(prompt, logits="all")'


def narrowed(run: Run, row: int, points: Sequence[str], columns: Int[np.ndarray, " P"]) -> Run:
    """The run as if it had captured only some of the positions of one row.

    `columns` count along what was captured, not along the prompt.
    """
    found, captures = {}, {}
    for name in points:
        kept = run.captured[name]
        found[name] = kept[row, columns][None]
        at = positions(run, name, row)[columns]
        captures[name] = Capture(name, positions=tuple(at.tolist()))
    return dataclasses.replace(
        run,
        tokens=run.tokens[row : row + 1],
        lengths=run.lengths[row : row + 1],
        captured=found,
        captures=captures,
    )


@dataclasses.dataclass(frozen=True)
class Measure:
    """Something that each token has a number of; `layers` where each layer has its own."""

    name: str
    text: str
    unit: str
    meaning: str
    layers: tuple[int, ...] = ()


# What is known of a token before it is read: of the distribution that it was chosen from.
BEFORE = {
    "loss": Measure("loss", "loss", "nats", "−ln p: how much the token surprised the model"),
    "logprob": Measure(
        "logprob", "log-probability", "nats", "ln p of the token, given what stands before it"
    ),
    "rank": Measure(
        "rank", "rank", "", "how many tokens the model held likelier: 0 is its first choice"
    ),
    "entropy": Measure(
        "entropy", "entropy", "nats", "−Σ p ln p: how undecided the model was before the token"
    ),
}
KL = "Σ p ln(p / p_layer) before the token: what stopping after this layer would have lost"


class Tokens(View):
    """See `tokens`."""

    name = "tokens"

    def __init__(self, run: Run | Generation, row: int, selection: Selection | None) -> None:
        self.run, self.row = run, numbered(run, row)
        self.length = int(run.lengths[self.row])
        told = repr(run) if isinstance(run, Run) else "Generation"  # whose text is the view
        sizes = {"token": self.length, "layer": run.config.num_hidden_layers}
        super().__init__(f"Tokens: {told}", selection, self.row, **sizes)
        self.ids = np.asarray(run.tokens[self.row, : self.length])
        self.texts = pieces(run, self.row)
        self.whole = isinstance(run, Run) and run.logits.shape[1] == run.tokens.shape[1]
        self.measures = {measure.name: measure for measure in self._measures()}
        self._known = Kept[np.ndarray](64)

    def _measures(self) -> Iterator[Measure]:
        run = self.run
        if isinstance(run, Generation):
            yield from (BEFORE[name] for name in ("loss", "logprob", "entropy"))
            return
        held: dict[str, list[int]] = {}
        for name, capture in run.captures.items():
            axes = point_of(name).axes.split()
            vector = axes[:2] == ["B", "T"] and axes[-1] in ("D", "F", "H")
            if vector and capture.heads is None and capture.reduce in (None, "norm", "last"):
                held.setdefault(point_of(name).local, []).extend(_layer(name))
        norms = []
        for local, layers in held.items():
            together = ", all heads together" if local in HEADED else ""
            meaning = f"√Σ x² of {local} at the token itself{together}"
            norms.append(Measure(local, f"norm of {local}", "", meaning, tuple(layers)))
        last = run.config.num_hidden_layers - 1
        read = tuple(i for i in range(last + 1) if self._plain(f"layers.{i}.resid_post"))
        kl = []
        if last in read and len(read) > 1 and run.llama is not None:
            kl = [Measure("kl", "KL(model || layer)", "nats", KL, read[:-1])]
        # The first is drawn at once, and the divergence takes longest.
        yield from [*BEFORE.values(), *kl, *norms] if self.whole else [*norms, *kl]

    def _plain(self, name: str) -> bool:
        assert isinstance(self.run, Run)
        capture = self.run.captures.get(name)
        return capture is not None and capture.whole

    def data(self) -> dict[str, Any]:
        first = next(iter(self.measures.values()), None)
        start = None if first is None else next(iter(first.layers), None)
        missing = isinstance(self.run, Run) and not self.whole
        return {
            "tokens": self.texts,
            "measures": [dataclasses.asdict(measure) for measure in self.measures.values()],
            "first": None if first is None else self._values(first.name, start),
            "tops": self.whole,
            "sentence": "This run kept the logits of the last position only, so it does not know "
            "how likely each token was. To see that, keep all of them:"
            if missing
            else None,
            "code": HINT if missing else None,
        }

    def answer(self, what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if what == "values":
            measure = self.measures[one_of(arguments, "measure", list(self.measures))]
            layer = arguments.get("layer")
            if measure.layers:
                layer = integer(arguments, "layer", max(measure.layers) + 1)
            if layer not in (measure.layers or (None,)):
                known = ", ".join(map(str, measure.layers)) or "None"
                raise ViewError(f"layer is {layer!r}; of {measure.text} it must be one of {known}.")
            return self._values(measure.name, layer)
        if what == "top" and self.whole and self.length > 1:
            return self._top(integer(arguments, "token", self.length, 1))
        return super().answer(what, arguments)

    def _top(self, token: int) -> dict[str, Any]:
        """The likeliest tokens where `token` was to come, and how it stood among them."""
        assert isinstance(self.run, Run)
        found = self.run.top(min(LIKELIEST, self.run.logits.shape[-1]), token - 1, self.row)
        probability = self.run.probability(int(self.ids[token]), token - 1, self.row)
        return {
            "ids": np.array([candidate.token for candidate in found], np.int32),
            "texts": bounded([candidate.text or str(candidate.token) for candidate in found]),
            "probabilities": np.array([candidate.probability for candidate in found], np.float32),
            "id": int(self.ids[token]),
            "own": np.array([probability, self._before["rank"][token - 1]], np.float32),
        }

    def _values(self, name: str, layer: int | None) -> dict[str, Any]:
        """The number of each token, and of which tokens there is one."""
        found = self._known.get((name, layer), lambda: self._measured(name, layer))
        return {"values": found[0].astype(np.float32), "known": found[1].astype(np.uint8)}

    def _measured(self, name: str, layer: int | None) -> np.ndarray:
        made = np.zeros((2, self.length))
        if name in ("loss", "logprob", "rank", "entropy"):
            found = self._before["logprob" if name == "loss" else name]
            made[0, self.length - len(found) :] = -found if name == "loss" else found
            made[1, self.length - len(found) :] = 1
            return made
        assert isinstance(self.run, Run)
        if name == "kl":
            last = self.run.config.num_hidden_layers - 1
            points = [f"layers.{i}.resid_post" for i in (layer, last)]
            before = np.arange(self.length - 1)
            if len(before):
                run = narrowed(self.run, self.row, points, before)
                made[0, 1:] = np.asarray(analysis.logit_lens(run, points[0]).kl)[0, 0]
                made[1, 1:] = 1
            return made
        full = name if layer is None else f"layers.{layer}.{name}"
        at = positions(self.run, full, self.row)
        inside = at < self.length
        # Of several heads' norms it is that of all together.
        vectors = self.run.captured[full][self.row]
        made[0, at[inside]] = f32(norms(vectors.reshape(len(vectors), -1)))[inside]
        made[1, at[inside]] = 1
        return made

    @functools.cached_property
    def _before(self) -> dict[str, np.ndarray]:
        """Of the distribution that each token was chosen from; a prompt's first has none."""
        run, row = self.run, self.row
        if isinstance(run, Generation):
            kept = {"logprob": run.logprobs, "entropy": run.entropy}
            return {name: f32(values[row, : self.length]) for name, values in kept.items()}
        return dict(zip(("logprob", "rank", "entropy"), _surprise(run, row), strict=True))

    def questions(self) -> Iterator[Question]:
        for measure in self.measures.values():
            if not measure.layers:
                yield "values", {"measure": measure.name, "layer": None}
        if self.whole:
            chosen = self.selection.token
            if chosen is None or chosen >= self.length:
                chosen = self.length - 1
            if chosen:
                yield "top", {"token": chosen}
            for token in range(1, min(self.length, EXPORTED)):
                yield "top", {"token": token}
        for measure in self.measures.values():
            readouts = len(measure.layers) * self.length
            if measure.name != "kl" or readouts <= EXPORTED_READOUTS:
                for layer in measure.layers:
                    yield "values", {"measure": measure.name, "layer": layer}

    def cells(self) -> image.Cells | None:
        first = self._data["first"]
        if first is None:
            return None
        rows = -(-self.length // COLUMNS)
        values, known = (
            np.pad(first[name], (0, rows * COLUMNS - self.length)).reshape(rows, COLUMNS)
            for name in ("values", "known")
        )
        most = min(self.length, COLUMNS)
        return image.Cells(values[:, :most], mask=known[:, :most] == 0)

    def text(self) -> str:
        said = f"{self.title}, {self.length} tokens"
        if "loss" not in self.measures:
            return said
        losses = self._values("loss", None)
        known = losses["values"][losses["known"] == 1]
        return f"{said}, mean loss {known.mean():.3f} nats" if len(known) else said


def tokens(run: Run | Generation, *, row: int = 0, selection: Selection | None = None) -> Tokens:
    """The text, each token coloured by a measure that is chosen on the page.

    Of the distribution that token t was chosen from, which the model gave after token t - 1: the
    token's loss and log-probability in nats, its rank (0 is the likeliest) and the entropy in nats;
    the first token has none of these. With `resid_post` captured in all layers, also
    KL(model || layer) there, in nats. Of token t itself the Euclidean norm of every vector that was
    captured, also with `reduce="norm"`. At a token the page lists the 10 likeliest in its place.

    A run with `logits="last"` shows what it has captured, and says what is missing. Of a
    `Generation` the new tokens are shown, with their log-probabilities and entropies. `row` is the
    row of a batch; raises `IndexError` where there is none, and `TypeError` for what is neither.

    Everything is computed on the device, in blocks of at most 64 MiB of logits; a page gets one
    number a token.

    >>> from llama_jax import Llama
    >>> llama = Llama.from_pretrained("cria")
    >>> tokens(llama.run("Once upon a time"))
    Tokens: Run(1 x 5 tokens, 0 points, 0.0 MiB), 5 tokens, mean loss ... nats
    """
    if not isinstance(run, Run | Generation):
        raise TypeError(
            f"tokens takes a Run or a Generation, not {type(run).__name__}: "
            "loupe.tokens(llama.run(prompt))."
        )
    return Tokens(run, row, selection)


HEADED = {f"self_attn.{name}" for name in ("q", "k", "v", "q_rot", "k_rot", "z", "head_out")}


def _layer(name: str) -> tuple[int, ...]:
    """The number in a full name, where it has one."""
    return (int(name.split(".")[1]),) if name.startswith("layers.") else ()


def _surprise(run: Run, row: int) -> Float[np.ndarray, "3 T-1"]:
    """Log-probability and rank of each token but the first, and the entropy that it met."""
    count, (_, _, vocabulary) = int(run.lengths[row]) - 1, run.logits.shape
    made = np.zeros((3, count), np.float32)
    size = max(1, min(count, AT_ONCE // vocabulary))
    for start in range(0, count, size):
        start = min(start, count - size)
        following = run.tokens[row, start + 1 : start + size + 1]
        # Logits that are mapped from a file are read a block at a time.
        mapped = isinstance(run.logits, np.ndarray)
        logits = run.logits[row : row + 1, start : start + size] if mapped else run.logits
        place = (0, 0) if mapped else (row, start)
        made[:, start : start + size] = _surprise_in(logits, np.array(place), following, size)
    return made


@functools.partial(jit, static_argnames="size")
def _surprise_in(
    logits: Float[Array, "B T V"],
    place: Int[Array, " 2"],
    following: Int[Array, " R"],
    size: int,
) -> Float[Array, "3 R"]:
    row, start = place
    block = jax.lax.dynamic_slice(logits, (row, start, 0), (1, size, logits.shape[-1]))[0]
    own, rank, entropy, _ = statistics(block, following)
    return jnp.stack([own, rank, entropy])


def statistics(
    logits: Float[Array, "R V"],
    following: Int[Array, " R"],
    final: Float[Array, "R V"] | None = None,
) -> tuple[Float[Array, " R"], Float[Array, " R"], Float[Array, " R"], Float[Array, " R"] | None]:
    """Of distributions: log-probability and rank of a token, entropy, and KL of `final` to them.

    A rank among logits that are not numbers is NaN. What has probability 0 counts as 0.
    """
    logits = widened(logits)
    p = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(p, following[:, None], axis=1)[:, 0]
    larger = logits > jnp.take_along_axis(logits, following[:, None], axis=1)
    rank = jnp.where(jnp.isnan(own), jnp.nan, larger.sum(axis=1).astype(own.dtype))
    entropy = -_expected(p, p)
    if final is None:
        return own, rank, entropy, None
    q = jax.nn.log_softmax(widened(final))
    return own, rank, entropy, _expected(q, q - p)


def _expected(p: Float[Array, "R V"], values: Float[Array, "R V"]) -> Float[Array, " R"]:
    """The mean of `values` under log-probabilities `p`."""
    weights = jnp.exp(p)
    return jnp.sum(jnp.where(weights == 0, 0, weights * values), axis=1)
