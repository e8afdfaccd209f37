"""Writing: prefill in chunks, then one token at a time, over a KV cache that is donated on."""

from __future__ import annotations

import dataclasses
import functools
import numbers
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llama_jax.model import Cache, empty_cache, forward, leaves_of
from llama_jax.run import Candidate, candidates
from llama_jax.sampling import Chosen, Sampling, choose
from llama_jax.text import Tokenizer

if TYPE_CHECKING:
    from llama_jax.llama import Llama

__all__ = ["Generation", "Step", "collect", "prefill", "write"]

LARGEST_CHUNK = 512
SMALLEST_CHUNK = 16
CACHE_BLOCK = 128


@dataclasses.dataclass(frozen=True)
class Step:
    """One new token of every row that still writes.

    For one prompt the fields are single values; for a batch they are lists with an entry a row,
    and a row that has stopped has `token` -1, empty text, and zeros.
    """

    token: int | list[int]
    text: str | list[str]  # whole characters only: "" while a character is not complete
    logprob: float | list[float]  # nats, from the unmodified distribution
    entropy: float | list[float]  # nats, likewise
    top: list[Candidate] | list[list[Candidate]]  # the likeliest tokens at this step


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Generation:
    """What was written. `tokens` holds the new tokens only, the stop token among them.

    Of row b the first `lengths[b]` entries mean something; behind them are zeros. `logprobs` and
    `entropy` are in nats, from the unmodified distribution.
    """

    tokens: Int[np.ndarray, "B new"]
    lengths: Int[np.ndarray, " B"]
    logprobs: Float[np.ndarray, "B new"]
    entropy: Float[np.ndarray, "B new"]
    text: str | list[str]

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
) -> Iterator[Step]:
    """Yields a `Step` a token until every row has stopped; see `Llama.stream`.

    All checks are made at the call, before the first step is asked for.
    """
    config = llama.config
    if not isinstance(max_new_tokens, numbers.Integral) or max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be an integer from 0 on.")
    longest, room = int(lengths.max()), config.max_position_embeddings
    if longest + max_new_tokens > room:
        raise ValueError(
            f"The prompt has {longest} tokens and max_new_tokens is {max_new_tokens}: that is "
            f"{longest + max_new_tokens} positions, and this model has {room} "
            f"(max_position_embeddings). At most {max(room - longest, 0)} new tokens fit."
        )
    stop_tokens, stop_texts = _stops(llama, stop)
    rows = [_Row(llama.tokenizer, stop_tokens, stop_texts) for _ in lengths]
    leaves, structure = leaves_of(llama.model)
    return _steps(structure, leaves, llama, tokens, lengths, rows, single, max_new_tokens, sampling)


def collect(steps: Iterator[Step], rows: int, single: bool) -> Generation:
    """Gathers the steps of `write` into one `Generation`."""
    made = list(steps)

    def column(name: str, dtype: Any) -> np.ndarray:
        return np.array([getattr(step, name) for step in made], dtype).reshape(-1, rows).T

    tokens = column("token", np.int32)
    alive = tokens >= 0
    texts = ["".join(parts) for parts in column("text", object)]
    return Generation(
        tokens=np.where(alive, tokens, 0),
        lengths=alive.sum(axis=1),
        logprobs=column("logprob", np.float32),
        entropy=column("entropy", np.float32),
        text=texts[0] if single else texts,
    )


def prefill(
    structure: Any,
    leaves: tuple[Array, ...],
    cache: Cache,
    tokens: Int[np.ndarray, "B T"],
    lengths: Int[np.ndarray, " B"],
    chunk: int,
) -> tuple[Float[Array, "B V"], Cache]:
    """Runs the prompts in chunks of one size, so that their length compiles nothing.

    Gives the logits after each row's last token. The cache must have room for whole chunks.
    """
    logits = None
    for start in range(0, int(lengths.max()), chunk):
        block = np.zeros((len(tokens), chunk), np.int32)
        part = tokens[:, start : start + chunk]
        block[:, : part.shape[1]] = part
        inside = np.clip(lengths - start, 0, chunk).astype(np.int32)
        new, cache = advance(structure, leaves, cache, block, inside)
        logits = new if logits is None else jnp.where((inside > 0)[:, None], new, logits)
    assert logits is not None
    return logits, cache


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def advance(
    structure: Any,
    leaves: tuple[Array, ...],
    cache: Cache,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
) -> tuple[Float[Array, "B V"], Cache]:
    """One forward behind the cache, for a chunk of a prompt and for a single token alike."""
    model = jax.tree.unflatten(structure, leaves)
    result = forward(model, tokens, lengths, cache, logits="last")
    assert result.logits is not None and result.cache is not None
    return result.logits[:, 0], result.cache


def _steps(
    structure: Any,
    leaves: tuple[Array, ...],
    llama: Llama,
    tokens: Int[np.ndarray, "B T"],
    lengths: Int[np.ndarray, " B"],
    rows: list[_Row],
    single: bool,
    max_new_tokens: int,
    sampling: Sampling,
) -> Iterator[Step]:
    if max_new_tokens == 0:
        return
    chunk = _chunk(int(lengths.max()))
    size = _up(_up(int(lengths.max()), chunk) + max_new_tokens, CACHE_BLOCK)
    cache = empty_cache(llama.config, len(tokens), size, llama.model.dtype)
    logits, cache = prefill(structure, leaves, cache, tokens, lengths, chunk)
    one = np.ones(len(tokens), np.int32)
    for step in range(max_new_tokens):
        chosen = choose(logits, sampling, step)
        ids, last = np.asarray(chosen.token), step == max_new_tokens - 1
        texts = [row.push(int(token), last) for row, token in zip(rows, ids, strict=True)]
        going = [row for row in rows if not row.stopped]
        if going and not last:
            # Dispatched before the step is handed out: the device works while the caller looks.
            logits, cache = advance(structure, leaves, cache, ids[:, None], one)
        yield _step(llama, chosen, texts, single)
        if not going:
            return


def _step(llama: Llama, chosen: Chosen, texts: list[str | None], single: bool) -> Step:
    """`texts` has None for a row that had stopped before this step."""
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
    return Step(*(column[0] if single else column for column in columns))


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
    items = [stop] if isinstance(stop, str | int) else list(stop)
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
            ids.add(int(item))
    return frozenset(ids), tuple(texts)


def _chunk(longest: int) -> int:
    """The power of two that holds the prompt, within bounds: few sizes, few programs."""
    return min(max(SMALLEST_CHUNK, 1 << (longest - 1).bit_length()), LARGEST_CHUNK)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
