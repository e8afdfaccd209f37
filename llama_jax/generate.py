"""Writing: prefill in chunks, then one token at a time, over a KV cache that is donated on."""

from __future__ import annotations

import dataclasses
import functools
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax.base.choice import integer
from llama_jax.base.modes import jit
from llama_jax.capture import (
    Capture,
    Captured,
    CaptureError,
    rows_of,
    takes,
    taps_for,
)
from llama_jax.config import LlamaConfig
from llama_jax.edits import Edit, Place, edits_at
from llama_jax.model import Cache, Logits, empty_cache, forward, leaves_of
from llama_jax.model.product import wide
from llama_jax.model.tap import Take, Tap, TopK, along
from llama_jax.plan import check_budget
from llama_jax.run import Candidate, candidates
from llama_jax.sampling import Chosen, Sampling, choose
from llama_jax.text import Tokenizer

if TYPE_CHECKING:
    from llama_jax.llama import Llama

__all__ = ["Generation", "Step", "collect", "prefill", "write"]

LARGEST_CHUNK = 512
SMALLEST_CHUNK = 16
CACHE_BLOCK = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Step(Captured):
    """One new token of every row that still writes.

    For one prompt the fields are single values; for a batch they are lists with an entry a row,
    and a row that has stopped has `token` -1, empty text, and zeros.

    `step[name]` holds a captured point at the positions that this step ran: all of the prompt's in
    the first step, then the one of the token before.
    """

    token: int | list[int]
    text: str | list[str]  # whole characters only: "" while a character is not complete
    logprob: float | list[float]  # nats, from the unmodified distribution
    entropy: float | list[float]  # nats, likewise
    top: list[Candidate] | list[list[Candidate]]  # the likeliest tokens at this step
    config: LlamaConfig = dataclasses.field(repr=False)
    captured: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    pieces: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    """What was captured before positions are reduced; of it `Generation` is made."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Generation(Captured):
    """What was written. `tokens` holds the new tokens only, the stop token among them.

    Of row b the first `lengths[b]` entries mean something; behind them are zeros. `logprobs` and
    `entropy` are in nats, from the unmodified distribution.

    `out[name]` is a captured point at all positions that ran, as in a `Run` on the prompt and all
    new tokens but the last, which was written and not read.
    """

    tokens: Int[np.ndarray, "B new"]
    lengths: Int[np.ndarray, " B"]
    logprobs: Float[np.ndarray, "B new"]
    entropy: Float[np.ndarray, "B new"]
    text: str | list[str]
    config: LlamaConfig
    captured: Mapping[str, Any]
    llama: Llama | None = None  # shared, not copied: it knows the tokens' texts

    @property
    def rows(self) -> list[list[int]]:
        """The new tokens of each row, without what is behind its end."""
        return rows_of(self.tokens, self.lengths)

    def __repr__(self) -> str:
        return f"Generation({self.text!r})"


def write(
    llama: Llama,
    tokens: Int[np.ndarray, "B T"],
    lengths: Int[np.ndarray, " B"],
    single: bool,
    max_new_tokens: int,
    sampling: Sampling,
    stop: str | int | Sequence[str | int] = (),
    captures: Mapping[str, Capture] = types.MappingProxyType({}),
    edits: Edit | Iterable[Edit] = (),
    budget: int | str | None = None,
    keep: bool = False,
) -> Iterator[Step]:
    """Yields a `Step` a token until every row has stopped; see `Llama.stream`.

    `keep` says that all of what is captured will be held, and so must fit the budget.

    All checks are made at the call, before the first step is asked for.
    """
    config = llama.config
    if (count := integer(max_new_tokens)) is None or count < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens!r}; it must be an integer from 0 on.")
    max_new_tokens = count
    longest, room = int(lengths.max()), config.max_position_embeddings
    if longest + max_new_tokens > room:
        raise ValueError(
            f"The prompt has {longest} tokens and max_new_tokens is {max_new_tokens}: that is "
            f"{longest + max_new_tokens} positions, and this model has {room} "
            f"(max_position_embeddings). At most {max(room - longest, 0)} new tokens fit."
        )
    stop_tokens, stop_texts = _stops(llama, stop)
    rows = [_Row(llama.tokenizer, stop_tokens, stop_texts) for _ in lengths]
    dtype = llama.model.dtype
    more = max(max_new_tokens - 1, 0)
    chunk = _chunk(longest)
    size = _up(_up(longest, chunk) + max_new_tokens, CACHE_BLOCK)
    _check_positions(captures, config, lengths, keep)
    # What needs all positions is reduced when all are there: till then it is held whole.
    held = {name: capture.while_writing for name, capture in captures.items()}
    if keep:
        logits: Logits = "all" if "logits" in captures else "last"
        check_budget(held, config, lengths + more, dtype, logits, budget, size, llama.device_count)
    changes = edits_at(edits, Place(config, wide(dtype), lengths, longest, size, more))
    taps = taps_for(held, changes, config, lengths)
    after = {name: take.rest for name, take in takes(captures, config, lengths).items()}
    leaves, structure = leaves_of(llama.model)
    cache = functools.partial(empty_cache, config, len(lengths), size, dtype, llama.mesh)
    writer = _Writer(structure, leaves, jax.device_put(taps), after, llama, keep)
    return writer.steps(cache, tokens, lengths, rows, single, chunk, max_new_tokens, sampling)


def collect(
    steps: Iterator[Step],
    llama: Llama,
    lengths: Int[np.ndarray, " B"],
    single: bool,
    captures: Mapping[str, Capture] = types.MappingProxyType({}),
) -> Generation:
    """Gathers the steps of `write` on prompts of these lengths into one `Generation`."""
    made = list(steps)

    def column(name: str, dtype: Any) -> np.ndarray:
        return np.array([getattr(step, name) for step in made], dtype).reshape(-1, len(lengths)).T

    tokens = column("token", np.int32)
    alive = tokens >= 0
    texts = ["".join(parts) for parts in column("text", object)]
    written = alive.sum(axis=1)
    config = llama.config
    captured = _assembled([step.pieces for step in made], captures, config, lengths, written)
    return Generation(
        tokens=np.where(alive, tokens, 0),
        lengths=written,
        logprobs=column("logprob", np.float32),
        entropy=column("entropy", np.float32),
        text=texts[0] if single else texts,
        config=config,
        captured=captured,
        llama=llama,
    )


def _check_positions(
    captures: Mapping[str, Capture],
    config: LlamaConfig,
    lengths: Int[np.ndarray, " B"],
    keep: bool,
) -> None:
    """Raises before anything runs where positions could not be chosen when all is written."""
    takes(captures, config, lengths)
    for name, capture in captures.items():
        if capture.positions is not None and not keep:
            raise CaptureError(
                f"Capture of {name}: positions= chooses from a whole sequence, and a stream has "
                "that of one step. Leave it out and index step[name], or use generate."
            )
        if isinstance(capture.positions, slice) and len(lengths) > 1:
            start, stop = capture.positions.start or 0, capture.positions.stop
            shortest = int(lengths.min())
            within = stop is not None and start >= 0 and 0 <= stop <= shortest
            behind = -shortest <= start < 0 and (stop is None or stop < 0)
            if not (within or behind):
                raise CaptureError(
                    f"Capture of {name}: {capture.positions} may choose more positions of the rows "
                    "that write more; give both ends from the start of the shortest prompt, or "
                    "both from the end."
                )


def _assembled(
    steps: list[Mapping[str, Any]],
    captures: Mapping[str, Capture],
    config: LlamaConfig,
    lengths: Int[np.ndarray, " B"],
    written: Int[np.ndarray, " B"],
) -> dict[str, Any]:
    """What was captured step by step as one array a point, each row's positions in a row."""
    if not steps or not captures:
        return {}
    ran = lengths + written - 1
    positions, prompt = np.arange(ran.max()), int(lengths.max())
    # Row b's prompt ends at lengths[b]; its new positions lie behind the longest prompt's.
    shift = np.where(positions < lengths[:, None], 0, prompt - lengths[:, None])
    behind = positions + shift
    found = {}
    for name, take in takes(captures, config, ran).items():
        rest = take.rest

        def joined(*parts: Array, axes: str = rest.axes) -> Array:
            return along(axes, jnp.concatenate(parts, axis=axes.split().index("T")), behind)

        pieces = jax.tree.map(joined, *(step[name] for step in steps))
        if isinstance(pieces, TopK):
            made: Any = TopK(*(rest(part, jnp.asarray(ran)) for part in pieces))  # type: ignore
        else:
            made = rest(_cut(rest.axes, pieces, len(positions)), jnp.asarray(ran))
        found[name] = made
    return found


def prefill(
    structure: Any,
    leaves: tuple[Array, ...],
    cache: Cache,
    tokens: Int[np.ndarray, "B T"],
    lengths: Int[np.ndarray, " B"],
    chunk: int,
    taps: Mapping[str, Tap] = types.MappingProxyType({}),
) -> tuple[Float[Array, "B V"], Cache, list[dict[str, Any]]]:
    """Runs the prompts in chunks of one size, so that their length compiles nothing.

    Gives the logits after each row's last token, and what each chunk captured. The cache must have
    room for whole chunks.
    """
    logits, pieces = None, []
    for start in range(0, int(lengths.max()), chunk):
        block = np.zeros((len(tokens), chunk), np.int32)
        part = tokens[:, start : start + chunk]
        block[:, : part.shape[1]] = part
        inside = np.clip(lengths - start, 0, chunk).astype(np.int32)
        new, cache, captured = advance(structure, leaves, cache, block, inside, dict(taps))
        logits = new if logits is None else jnp.where((inside > 0)[:, None], new, logits)
        pieces.append(captured)
    assert logits is not None
    return logits, cache, pieces


@functools.partial(jit, static_argnums=0, donate_argnums=2)
def advance(
    structure: Any,
    leaves: tuple[Array, ...],
    cache: Cache,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    taps: dict[str, Tap],
) -> tuple[Float[Array, "B V"], Cache, dict[str, Any]]:
    """One forward behind the cache, for a chunk of a prompt and for a single token alike."""
    model = jax.tree.unflatten(structure, leaves)
    everywhere = "logits" in taps and taps["logits"].take is not None
    result = forward(model, tokens, lengths, cache, taps, "all" if everywhere else "last")
    assert result.logits is not None and result.cache is not None
    logits = result.logits
    if everywhere:
        logits = along("B T V", logits, jnp.maximum(lengths - 1, 0)[:, None])
    return logits[:, 0], result.cache, result.captured


@dataclasses.dataclass(frozen=True)
class _Writer:
    """What stays the same while a text is written."""

    structure: Any
    leaves: tuple[Array, ...]
    taps: dict[str, Tap]
    after: dict[str, Take]  # what is done to a capture when all positions of a step are there
    llama: Llama
    keep: bool  # the pieces, for a `Generation`; else each step is reduced by itself

    def steps(
        self,
        make_cache: Callable[[], Cache],
        tokens: Int[np.ndarray, "B T"],
        lengths: Int[np.ndarray, " B"],
        rows: list[_Row],
        single: bool,
        chunk: int,
        max_new_tokens: int,
        sampling: Sampling,
    ) -> Iterator[Step]:
        if max_new_tokens == 0:
            return
        prompt = int(lengths.max())
        logits, cache, chunks = prefill(
            self.structure, self.leaves, make_cache(), tokens, lengths, chunk, self.taps
        )
        pieces = {name: self._joined(name, chunks, prompt) for name in self.after}
        one, queries, warned = np.ones(len(tokens), np.int32), lengths, False
        for step in range(max_new_tokens):
            chosen = choose(logits, sampling, step)
            ids, last = np.asarray(chosen.token), step == max_new_tokens - 1
            broken = np.flatnonzero(np.isnan(np.asarray(chosen.logprob)))
            if len(broken) and not warned:
                warned = True
                warnings.warn(
                    f"Step {step}: the logits of row {broken[0]} are NaN, so its tokens mean "
                    "nothing from here on. llama.run(prompt).check() says where NaN begins.",
                    stacklevel=2,
                )
            texts = [row.push(int(token), last) for row, token in zip(rows, ids, strict=True)]
            going = [row for row in rows if not row.stopped]
            captured = {} if self.keep else self._reduced(pieces, queries, lengths + step)
            fields = _fields(self.llama, chosen, texts, single)
            done = Step(*fields, self.llama.config, captured, pieces)  # type: ignore[call-arg]
            if going and not last:
                # Dispatched before the step is handed out: the device works while a caller looks.
                logits, cache, pieces = advance(
                    self.structure, self.leaves, cache, ids[:, None], one, self.taps
                )
                queries = one
            yield done
            if not going:
                return

    def _joined(self, name: str, chunks: list[dict[str, Any]], prompt: int) -> Any:
        """The chunks of a prompt as one, without the padding behind the last."""
        axis = self.after[name].axes.split().index("T")

        def join(*parts: Array) -> Array:
            return jax.lax.slice_in_dim(jnp.concatenate(parts, axis), 0, prompt, axis=axis)

        return jax.tree.map(join, *(captured[name] for captured in chunks))

    def _reduced(
        self, pieces: dict[str, Any], queries: Int[np.ndarray, " B"], keys: Int[np.ndarray, " B"]
    ) -> dict[str, Any]:
        reduced = {}
        for name, take in self.after.items():
            piece = pieces[name]
            if not isinstance(piece, TopK):
                piece = _cut(take.axes, piece, int(keys.max()))
                if take.reduce is not None or take.dtype is not None:
                    piece = take(piece, jnp.asarray(queries), jnp.asarray(keys))
            reduced[name] = piece
        return reduced


def _cut(axes: str, array: Array, keys: int) -> Array:
    """Without the part of the cache that nothing was in."""
    if not axes.endswith("S") or array.shape[-1] <= keys:
        return array
    return array[..., :keys]


def _fields(llama: Llama, chosen: Chosen, texts: list[str | None], single: bool) -> tuple[Any, ...]:
    """The first fields of a `Step`; `texts` has None for a row that had stopped before it."""
    ids, logprobs, entropy, top_ids, top = (np.asarray(x) for x in chosen)
    alive = [text is not None for text in texts]
    columns: list[list[Any]] = [
        [int(x) if on else -1 for x, on in zip(ids, alive, strict=True)],
        [text or "" for text in texts],
        [float(x) if on else 0.0 for x, on in zip(logprobs, alive, strict=True)],
        [float(x) if on else 0.0 for x, on in zip(entropy, alive, strict=True)],
        [
            candidates(llama, i, p) if on else []
            for i, p, on in zip(top_ids, top, alive, strict=True)
        ],
    ]
    return tuple(column[0] if single else column for column in columns)


class _Row:
    """The text of one row as it grows, and whether it has stopped."""

    def __init__(
        self, tokenizer: Tokenizer | None, stop_tokens: frozenset[int], stop_texts: tuple[str, ...]
    ) -> None:
        self.stopped = False
        self._decoder = tokenizer.stream() if tokenizer is not None else None
        self._stop_tokens = stop_tokens
        self._stop_texts = stop_texts
        self._held = ""

    def push(self, token: int, last: bool) -> str | None:
        """The text that is certain with this token; None if the row had stopped before it."""
        if self.stopped:
            return None
        ends = last or token in self._stop_tokens
        if self._decoder is not None:
            self._held += self._decoder.push(token)
            if ends:
                self._held += self._decoder.finish()
        cuts = [at for at in map(self._held.find, self._stop_texts) if at >= 0]
        self.stopped = token in self._stop_tokens or bool(cuts)
        if cuts:
            text, self._held = self._held[: min(cuts)], ""
        else:
            kept = 0 if ends else self._undecided()
            text = self._held[: len(self._held) - kept]
            self._held = self._held[len(text) :]
        return text

    def _undecided(self) -> int:
        """How many characters at the end may still turn out to begin a stop text."""
        return max(
            (
                size
                for stop in self._stop_texts
                for size in range(1, len(stop))
                if self._held.endswith(stop[:size])
            ),
            default=0,
        )


def _stops(
    llama: Llama, stop: str | int | Sequence[str | int]
) -> tuple[frozenset[int], tuple[str, ...]]:
    """Splits `stop` into token ids and texts; a special token's name is its id."""
    items = stop_items(stop)
    special = llama.tokenizer.special if llama.tokenizer is not None else {}
    ids, texts = set(llama.stop_tokens), []
    for item in items:
        if isinstance(item, str) and item in special:
            ids.add(special[item])
        elif isinstance(item, str):
            if not item:
                raise ValueError("stop holds an empty text, which every text contains.")
            if llama.tokenizer is None:
                raise ValueError(
                    f"stop holds the text {item!r}, but this model came without a tokenizer; "
                    "give token ids."
                )
            texts.append(item)
        else:
            ids.add(llama.token(item))
    return frozenset(ids), tuple(texts)


def stop_items(stop: Any) -> list[Any]:
    """What `stop=` holds, one by one."""
    single = isinstance(stop, str) or integer(stop) is not None
    items = [stop] if single else list(stop) if isinstance(stop, Iterable) else [stop]
    for item in items:
        if isinstance(stop, Mapping | bytes) or not (
            isinstance(item, str) or integer(item) is not None
        ):
            raise TypeError(
                f"stop is {stop!r}; it must be a token id, the name of a special token, a text, or "
                "several of these; () for none."
            )
    return items


def _chunk(longest: int) -> int:
    """The power of two that holds the prompt, within bounds: few sizes, few programs."""
    return min(max(SMALLEST_CHUNK, 1 << (longest - 1).bit_length()), LARGEST_CHUNK)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
